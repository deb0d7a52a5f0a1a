"""Label systems: which number means which structure, and how structures are grouped."""
