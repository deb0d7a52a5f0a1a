"""Approximate search for very many vectors: faiss's HNSW graph, with its recall measured on the very data.

The graph proposes, exact similarities decide the order among what it proposes. What it misses is missed: so every answer comes
with the recall that was measured.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry import files
from ctfoundry.errors import DiskFullError, UsageError
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
NUMBERED = re.compile(rf"(?:(\d{{1,15}})-)?([0-9a-f]{{{DIGITS}}})")
"""How a stored graph's name ends: number and digest of its vectors; those of earlier versions had no number, and go."""
BLOCK = 65536
"""Vectors that are read at one time."""
ADDED, SAY_S = 4096, 5.0
"""Vectors that go into a graph at one time (between them Ctrl-C is heard), and seconds between two lines of progress."""


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


def approximate(index: Index, cache: Path | None = None, *, say: Callable[[str], None] = lambda _: None) -> Approximate:
    """The graph over an index's vectors, and its recall as measured now.

    Beside `cache` it is kept, with the number and the digest of its vectors in its name. One of the very vectors is taken as it
    is; where the index has only grown since, the new rows are added to it; in all other cases (scans removed, or embedded again)
    it is made anew, which takes minutes a million; `say` hears how far it is. Graphs of others go. Where it cannot be written, it
    is kept in memory alone.
    """
    graph, digests = None, {}
    if cache is not None:
        stored = _stored(cache)
        digests = _digests(index, {len(index), *(count for count, _ in stored.values())})
        fitting = {place: count for place, (count, digest) in stored.items() if digests.get(count) == digest}
        for place in sorted(fitting, key=lambda place: -fitting[place]):
            graph = graph or _read(place, index, fitting[place])
    if graph is None:
        graph = _faiss().IndexHNSWFlat(index.matrix.raw.shape[1], LINKS, _faiss().METRIC_INNER_PRODUCT)
    if graph.ntotal < len(index):
        _grow(graph, index, say)
        if cache is not None:
            try:
                _keep(graph, cache, digests[len(index)])
            except (DiskFullError, RuntimeError) as error:  # of faiss, in many lines; the graph is there all the same
                why = error.what if isinstance(error, DiskFullError) else str(error).rpartition("(")[2].rstrip(")")
                say(f"the graph cannot be stored, so the next search makes it again ({why})")
    return Approximate(index, graph, measured(index, graph))


def _grow(graph: Any, index: Index, say: Callable[[str], None]) -> None:
    """Add the index's vectors that the graph lacks."""
    graph.hnsw.efConstruction = BUILD
    first, started = graph.ntotal, time.monotonic()
    said = started
    for start in range(first, len(index), ADDED):
        block = index.vectors(np.arange(start, min(start + ADDED, len(index))))
        graph.add(torch.nn.functional.normalize(block, dim=1).numpy())
        now = time.monotonic()
        if now - said >= SAY_S:
            said, rate = now, (graph.ntotal - first) / (now - started)
            left = (len(index) - graph.ntotal) / rate
            say(f"graph: {graph.ntotal:,} of {len(index):,} vectors, {rate:,.0f} a second, {left:.0f} s left")


def _keep(graph: Any, cache: Path, digest: str) -> None:
    """Write a graph, whole or not at all; then those of other vectors go."""
    place = cache.with_name(f"{cache.stem}-{graph.ntotal}-{digest}{cache.suffix}")
    with files.unless_read_only():
        with files.whole(place) as part:
            _faiss().write_index(graph, str(part))
        for old in cache.parent.glob(f"{glob.escape(cache.stem)}-*{cache.suffix}"):
            if old != place and re.fullmatch(NUMBERED, old.stem.removeprefix(f"{cache.stem}-")):
                old.unlink(missing_ok=True)


def _stored(cache: Path) -> dict[Path, tuple[int, str]]:
    """The graphs beside `cache`: how many vectors they are of, and the digest of these."""
    found = {}
    for place in cache.parent.glob(f"{glob.escape(cache.stem)}-*{cache.suffix}"):
        name = re.fullmatch(NUMBERED, place.stem.removeprefix(f"{cache.stem}-"))
        if name is not None and name[1]:
            found[place] = int(name[1]), name[2]
    return found


def _read(place: Path, index: Index, count: int) -> Any:
    """A stored graph; None where it is gone, damaged, or not what its name says."""
    try:
        graph = _faiss().read_index(str(place))
    except RuntimeError:
        return None
    return graph if (graph.ntotal, graph.d) == (count, index.matrix.raw.shape[1]) else None


def _digests(index: Index, counts: Collection[int]) -> dict[int, str]:
    """Of the first so many vectors, bit by bit and in order, for each of `counts` that the index has: what a graph's rows stand for."""
    found, digest = {}, hashlib.sha256(str(index.matrix.raw.shape[1]).encode())
    ends = sorted({count for count in counts if 0 <= count <= len(index)} | set(range(0, len(index), BLOCK)))
    for start, end in itertools.pairwise([0, *ends]):
        digest.update(index.vectors(np.arange(start, end)).numpy().data)
        found[end] = digest.copy().hexdigest()[:DIGITS]
    return {count: found[count] for count in counts if count in found}


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


def chosen(
    index: Index, how: str = "auto", cache: Path | None = None, *, say: Callable[[str], None] = lambda _: None
) -> Index | Approximate:
    """The index as it is searched best: exact, or by a graph (``hnsw``); ``auto`` takes the graph above `EXACT_UP_TO` vectors
    where faiss is installed. `described` of what comes back says which."""
    if how not in ("auto", "exact", "hnsw"):
        raise UsageError(f"the search is 'auto', 'exact' or 'hnsw', not {how!r}")
    if how == "exact" or (how == "auto" and len(index) <= EXACT_UP_TO):
        return index
    try:
        return approximate(index, cache, say=say)
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
