"""Embeddings on disk, exact retrieval, and the same place in another scan."""
