"""Networks only, no files: encoders, heads and what they are made of."""
