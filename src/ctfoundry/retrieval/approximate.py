"""Approximate search for very many vectors: faiss's HNSW graph, with its recall measured on the very data.

The graph proposes, exact similarities decide the order among what it proposes. What it misses is missed: so every answer comes
with the recall that was measured.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry import files
from ctfoundry.errors import UsageError
from ctfoundry.keys import Key
from ctfoundry.retrieval.index import Index, Neighbour

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

EXACT_UP_TO = 1_000_000
"""Up to so many vectors the exact search is chosen: at 512 numbers a pass over them reads a gigabyte."""
LINKS, BUILD, SEEK = 32, 100, 128
"""HNSW's M, efConstruction, efSearch (../shared/reference/stack.md, section 6: recall 0.99 at 128)."""
SAMPLE, RECALL_AT = 200, 10
DIGITS = 16
"""Of the digest in a stored graph's name."""


@dataclass(frozen=True)
class Recall:
    """Share of the true `at` nearest that the graph finds, over `queries` vectors of the index, each without itself."""

    value: float
    at: int
    queries: int


class Approximate:
    """An index that is searched by a graph; has `nearest` and `described` as `Index` has."""

    def __init__(self, index: Index, graph: Any, recall: Recall) -> None:
        self.index, self.graph, self.recall = index, graph, recall
        self.ids, self.vector = index.ids, index.vector

    def described(self) -> str:
        """How it searches, and how well."""
        r = self.recall
        return f"HNSW, {len(self.ids):,} vectors, recall@{r.at} {r.value:.3f} measured on {r.queries} queries"

    def nearest(
        self,
        query: Float[Tensor, "c"],
        k: int = 5,
        *,
        without: Collection[str] = (),
        within: Collection[str] | None = None,
    ) -> list[Neighbour]:
        """As `Index.nearest`, among what the graph finds. With `within` it is the exact search: a graph knows no filters."""
        if within is not None:
            return self.index.nearest(query, k, without=without, within=within)
        wanted, gone = max(4 * k, RECALL_AT) + len(self.index.rows_of(without)), set(without)
        while True:
            found: dict[str, Neighbour] = {}
            rows = self._proposed(query, wanted)
            scores = (self.index.vectors(rows).double() @ query.double()).numpy()
            norms = self.index.vectors(rows).double().norm(dim=1).numpy() * float(query.double().norm())
            scores = scores / np.where(norms > 0, norms, 1.0)
            for place in np.argsort(-scores, kind="stable").tolist():
                row = int(rows[place])
                if self.ids[row] not in found and self.ids[row] not in gone:
                    found[self.ids[row]] = self.index.neighbour(row, float(scores[place]))
            if len(found) >= k or wanted >= len(self.ids):
                return list(found.values())[:k]
            wanted *= 4

    def _proposed(self, query: Float[Tensor, "c"], count: int) -> np.ndarray:
        return _ask(self.graph, query[None].numpy(), min(count, len(self.ids)))[0]


def _ask(graph: Any, queries: np.ndarray, count: int) -> list[np.ndarray]:
    unit = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-30)
    graph.hnsw.efSearch = max(SEEK, count)
    _, places = graph.search(np.ascontiguousarray(unit, np.float32), count)
    return [np.sort(row[row >= 0]) for row in places]


def approximate(index: Index, cache: Path | None = None) -> Approximate:
    """The graph over an index's vectors; read from beside `cache` where it is of the same vectors, else made (minutes a million)
    and written there: the digest of the vectors is part of its name, and graphs of others go. Where nothing can be written,
    it is kept in memory alone."""
    faiss = _faiss()
    graph, place = None, None
    if cache is not None:
        place = cache.with_name(f"{cache.stem}-{_digest(index)}{cache.suffix}")
        with contextlib.suppress(RuntimeError):  # none there, or damaged
            graph = faiss.read_index(str(place))
    if graph is None or graph.ntotal != len(index):
        graph = faiss.IndexHNSWFlat(index.matrix.raw.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = BUILD
        for start in range(0, len(index), 65536):
            block = index.vectors(np.arange(start, min(start + 65536, len(index))))
            graph.add(torch.nn.functional.normalize(block, dim=1).numpy())
        if cache is not None and place is not None:
            with files.unless_read_only(), files.whole(place) as part:
                faiss.write_index(graph, str(part))
                for old in place.parent.glob(f"{cache.stem}-{'[0-9a-f]' * DIGITS}{cache.suffix}"):
                    if old != place:
                        old.unlink(missing_ok=True)
    return Approximate(index, graph, measured(index, graph))


def _digest(index: Index) -> str:
    """Of the vectors, bit by bit and in order: what a graph's rows stand for."""
    found = hashlib.sha256(str(index.matrix.raw.shape).encode())
    for start in range(0, len(index), 65536):
        found.update(index.vectors(np.arange(start, min(start + 65536, len(index)))).numpy().data)
    return found.hexdigest()[:DIGITS]


def measured(index: Index, graph: Any, *, queries: int = SAMPLE, at: int = RECALL_AT, seed: int = 0) -> Recall:
    """The graph's recall on vectors of the index itself, drawn by `seed`; a vector is no answer to itself."""
    queries, at = min(queries, len(index)), min(at, len(index) - 1)
    if at < 1:
        return Recall(1.0, max(at, 0), 0)
    chosen = np.sort(Key.of("recall", seed).permutation(len(index))[:queries])
    asked = index.vectors(chosen)
    truth = [set(rows.tolist()) - {int(own)} for own, (rows, _) in zip(chosen, index.top(asked, at + 1), strict=True)]
    given = _ask(graph, asked.numpy(), at + 1)
    hits = [len(true & set(rows.tolist())) / len(true) for true, rows in zip(truth, given, strict=True)]
    return Recall(float(np.mean(hits)), at, queries)


def chosen(index: Index, how: str = "auto", cache: Path | None = None) -> Index | Approximate:
    """The index as it is searched best: exact, or by a graph (``hnsw``); ``auto`` takes the graph above `EXACT_UP_TO` vectors
    where faiss is installed. `described` of what comes back says which."""
    if how not in ("auto", "exact", "hnsw"):
        raise UsageError(f"the search is 'auto', 'exact' or 'hnsw', not {how!r}")
    if how == "exact" or (how == "auto" and len(index) <= EXACT_UP_TO):
        return index
    try:
        return approximate(index, cache)
    except UsageError:
        if how == "hnsw":
            raise
        return index


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UsageError("approximate search needs faiss", do="pip install 'ctfoundry[ann]'") from error
    return faiss
