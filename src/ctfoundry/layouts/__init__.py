"""Synthetic patients as files: plain folders, and the folder layouts of public data sets."""
