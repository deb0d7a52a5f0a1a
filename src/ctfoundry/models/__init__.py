"""Networks only, no files."""
