"""Measures of what an embedding knows, each beside the random encoder and the trivial methods."""
