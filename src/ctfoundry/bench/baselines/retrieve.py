"""Exact nearest neighbours without us: NumPy in float32, and faiss's flat index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64


class Plain:
    """Unit vectors in memory; one matrix product, the k largest by partition, those sorted."""

    def __init__(self, vectors: Float32[np.ndarray, "n c"]) -> None:
        self.rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def search(self, queries: Float32[np.ndarray, "q c"], k: int) -> Int64[np.ndarray, "q k"]:
        """Places of the k nearest by cosine, nearest first. One query alone goes as a vector, which is faster."""
        unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        scores = (self.rows @ unit[0])[None] if len(unit) == 1 else unit @ self.rows.T
        some = np.argpartition(scores, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, some, 1), axis=1, kind="stable")
        return np.take_along_axis(some, order, 1)


class Flat:
    """faiss.IndexFlatIP over unit vectors."""

    def __init__(self, vectors: Float32[np.ndarray, "n c"]) -> None:
        import faiss

        self.index = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def search(self, queries: Float32[np.ndarray, "q c"], k: int) -> Int64[np.ndarray, "q k"]:
        """Places of the k nearest by cosine, nearest first."""
        unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        return self.index.search(unit, k)[1]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for NumPy, faiss and torch within the block."""
    import faiss
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before, torch_before = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(count)
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        faiss.omp_set_num_threads(before)
        torch.set_num_threads(torch_before)
