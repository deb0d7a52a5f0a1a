"""The web app: the indexed scans, and the same place in each of them."""
