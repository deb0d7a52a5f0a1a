"""Exact retrieval by cosine: a quick pass over all vectors finds every row that can be among the nearest, float64 decides.

The pass is in half precision, or in float32 where there are few rows. By how much a similarity of it can be wrong is bounded
(`_asked`, `_doubt`), so no true neighbour is lost: recall is 1, also of near ties, and equal similarities come in the order of rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from ctfoundry.errors import UsageError
from ctfoundry.retrieval import matrix as matrices
from ctfoundry.retrieval.matrix import Matrix

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

HALF = 2.0**-8 * 1.01
"""Largest relative error of rounding to bfloat16."""
SINGLE = 2.0**-24
"""The same of float32."""
GROUP = 64
"""Similarities whose largest stands for them at first."""
AT_ONCE = 64
"""Queries that go through the matrix together."""
FEW = 8
"""A choice of fewer than one in so many rows is compared alone, without the pass over all."""
SMALL = 5_000
"""Up to so many rows one float32 product is faster than the pass in half precision and its second look."""


@dataclass(frozen=True)
class Neighbour:
    """A scan and its cosine similarity to the query; for a window or slice its centre (mm) and box too."""

    id: str
    similarity: float
    centre: tuple[float, float, float] | None = None
    box: tuple[int, ...] | None = None


class Index:
    """Vectors of scans, searched by cosine; `Index.of` for vectors in memory, `retrieval.embed.load_index` for a folder.

    Attributes
    ----------
    ids : of the rows, in order. A scan has several rows where its windows or slices are what is searched.
    vector : name of the vectors.
    """

    def __init__(self, matrix: Matrix, ids: Sequence[str], alive: np.ndarray | None = None, vector: str = "") -> None:
        self.ids, self.vector = tuple(ids), vector
        self.matrix, self._alive = matrix, alive
        self._dead = None if alive is None else torch.from_numpy(_complement(alive, len(matrix.raw)))

    @classmethod
    def of(cls, ids: Collection[str], vectors: Float[Tensor, "n c"]) -> Index:
        """An index of `vectors`, one for each id."""
        if len(ids) != len(vectors):
            raise ValueError(f"{len(ids)} ids for {len(vectors)} vectors")
        return cls(matrices.in_memory(vectors.detach().cpu().float().numpy()), tuple(ids))

    @classmethod
    def from_matrix(cls, matrix: Matrix, vector: str = "") -> Index:
        """An index of the rows of a folder's matrix that count."""
        alive = matrices.alive(matrix)
        scan = matrix.rows["scan"] if alive is None else matrix.rows["scan"][alive]
        names = [id for id, _, _ in matrix.scans]
        return cls(matrix, [names[i] for i in scan.tolist()], alive, vector)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Index({len(self)} vectors of {len(self._rows_of)} scans)"

    @cached_property
    def rows(self) -> Float[Tensor, "n c"]:
        """The vectors, of unit length, in float32. They are read from the disk when this is asked for."""
        return torch.nn.functional.normalize(self.vectors(), dim=1)

    def vectors(self, rows: Sequence[int] | np.ndarray | None = None) -> Float[Tensor, "n c"]:
        """The vectors as they were embedded, all or those of some rows."""
        raw = self.matrix.raw
        place = self._alive if rows is None else self._places(np.asarray(rows, np.int64))
        return torch.from_numpy(np.array(raw if place is None else raw[place]))

    def of_id(self, id: str) -> Float[Tensor, "n c"]:
        """The vectors of one scan."""
        return self.vectors(self._rows_of[id])

    def rows_of(self, ids: Collection[str]) -> Int64[np.ndarray, "m"]:
        """The rows of some scans, in order; unknown ids have none."""
        return np.sort(np.array([row for id in set(ids) for row in self._rows_of.get(id, ())], np.int64))

    def described(self) -> str:
        """How it searches."""
        return f"exact, {len(self):,} vectors"

    def nearest(
        self,
        query: Float[Tensor, "c"],
        k: int = 5,
        *,
        without: Collection[str] = (),
        within: Collection[str] | None = None,
    ) -> list[Neighbour]:
        """The `k` most similar scans, best first, each by its best row; ids in `without` are left out.

        Equal similarities keep the order of rows. `within` : only these ids (`filters.where`).
        """
        if within is not None:
            within = set(within) - set(without)
        count = min(k, len(self._rows_of))
        wanted = k
        while True:
            rows, scores = self.top(query[None], wanted, without=without, within=within)[0]
            found: dict[str, Neighbour] = {}
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
                if self.ids[row] not in found:
                    found[self.ids[row]] = self.neighbour(row, score)
            if len(found) >= count or len(rows) < wanted or len(rows) == len(self):
                return list(found.values())[:k]
            wanted *= 4  # several rows of one scan

    def top(
        self,
        queries: Float[Tensor, "q c"],
        k: int,
        *,
        without: Collection[str] = (),
        within: Collection[str] | None = None,
    ) -> list[tuple[Int64[np.ndarray, "k"], Float[np.ndarray, "k"]]]:
        """For each query the `k` most similar rows, best first, and their similarities (float64)."""
        asked = queries.detach().cpu().double()
        if asked.ndim != 2 or (len(self) and asked.shape[1] != self.matrix.raw.shape[1]):
            raise UsageError(
                f"a query of shape {tuple(queries.shape)[1:]} for vectors of {self.matrix.raw.shape[1]} numbers",
                do="embed the query with the model that made the index",
            )
        if not bool(torch.isfinite(asked).all()):
            raise UsageError("a query holds numbers that are not finite")
        unit = torch.nn.functional.normalize(asked, dim=1, eps=1e-300)
        left_out = self.rows_of(without)
        kept = None if within is None else self.rows_of(within)
        if kept is not None and len(left_out):
            kept = np.setdiff1d(kept, left_out, assume_unique=True)
        available = len(self) - len(left_out) if kept is None else len(kept)
        k = min(k, available)
        if k <= 0:
            return [(np.zeros(0, np.int64), np.zeros(0)) for _ in unit]
        if kept is not None and len(kept) < max(len(self) // FEW, GROUP):
            places = self._places(kept)
            return [self._decided(q.numpy(), places, k) for q in unit]
        if len(self.matrix.raw) <= SMALL:
            gone = left_out if kept is None else np.setdiff1d(np.arange(len(self)), kept, assume_unique=True)
            return self._small(unit.numpy(), k, gone)
        dead = [] if self._dead is None else [self._dead]
        if kept is not None:
            dead = [torch.from_numpy(_complement(self._places(kept), len(self.matrix.raw)))]
        elif len(left_out):
            dead.append(torch.from_numpy(self._places(left_out)))
        found = []
        for start in range(0, len(unit), AT_ONCE):
            block = unit[start : start + AT_ONCE]
            for q, places in zip(block, self._candidates(block, k, dead), strict=True):
                found.append(self._decided(q.numpy(), places, k))
        return found

    def _small(
        self, unit: Float[np.ndarray, "q c"], k: int, left_out: Int64[np.ndarray, "m"]
    ) -> list[tuple[Int64[np.ndarray, "k"], Float[np.ndarray, "k"]]]:
        """`top` by one product in float32 over all rows; what that leaves in doubt is decided in float64."""
        raw, single = self.matrix.raw, unit.astype(np.float32)
        quick = np.asarray((raw @ single[0])[None] if len(single) == 1 else single @ raw.T) / self._lengths
        if self._dead is not None:
            quick[:, self._dead.numpy()] = -np.inf
        quick[:, self._places(left_out)] = -np.inf
        least = np.partition(quick, len(raw) - k, axis=1)[:, len(raw) - k]
        doubt = _doubt(unit.shape[1])
        return [
            self._decided(q, np.flatnonzero(row >= low - 2 * doubt), k)
            for q, row, low in zip(unit, quick, least, strict=True)
        ]

    # ------------------------------------------------------------------ the pass in half precision

    def _candidates(self, unit: Float[Tensor, "q c"], k: int, dead: Sequence[Tensor]) -> list[Int64[np.ndarray, "m"]]:
        """For each query, in order, the places in the matrix of all rows that may be among the `k` nearest."""
        half = self.matrix.half
        asked, slack = self._asked(unit)
        scores = torch.mv(half, asked[0])[None] if len(unit) == 1 else asked @ half.T
        for gone in dead:
            scores.index_fill_(1, gone, -torch.inf)
        # the k-th of the largest of disjoint groups is at most the k-th of all, so it is a safe start
        count = scores.shape[1] // GROUP
        if count >= 4 * k:
            body = scores[:, : count * GROUP].view(len(unit), GROUP, count)
            largest = torch.cat([body.amax(1), scores[:, count * GROUP :]], 1).float()
            reached = largest.topk(k, dim=1).values[:, -1].double()
        else:
            largest, reached = None, scores.float().topk(k, dim=1).values[:, -1].double()
        # what is true of the k-th is at least this; who cannot reach it is out
        floor = reached - HALF * reached.abs() - 2 * slack
        floor = torch.where(floor > 0, floor / (1 + HALF), floor / (1 - HALF))
        floor = torch.where(reached.isfinite(), floor, -torch.inf)
        found = []
        for i in range(len(unit)):
            low = max(float(floor[i]), -3e38)  # never those that are left out
            if largest is None:
                places = (scores[i].float() >= low).nonzero()[:, 0]
            else:
                groups = (largest[i] >= low).nonzero()[:, 0]
                inside = groups[groups < count]
                members = (inside[:, None] + count * torch.arange(GROUP)).flatten()
                members = torch.cat([members, groups[groups >= count] - count + count * GROUP])
                places = members[scores[i][members].float() >= low].sort().values
            found.append(places.numpy())
        return found

    def _asked(self, unit: Float[Tensor, "q c"]) -> tuple[Float[Tensor, "q width"], Float[Tensor, "q"]]:
        """The queries as the stored rows want them, and by how much a similarity can differ from what the pass finds.

        With q = a m + r (r across the centre m): q . x = q . m + a (m . y) + r . y for x = m + y. The first term is the same
        for all rows. The error has four parts: rounding of y (at most ``error`` in length), rounding of r, the three
        columns of a (m . y), and sums in float32 over all columns.
        """
        m, bounds = torch.from_numpy(self.matrix.centre), self.matrix.bounds
        size = float(m @ m)
        a = unit @ m / size if size > 0 else torch.zeros(len(unit), dtype=torch.float64)
        r = unit - a[:, None] * m
        channels = len(m)
        asked = torch.zeros(len(unit), self.matrix.half.shape[1], dtype=torch.bfloat16)
        asked[:, :channels] = r
        high = a.bfloat16()
        asked[:, channels] = asked[:, channels + 2] = high
        asked[:, channels + 1] = (a - high).bfloat16()
        kept = asked[:, :channels].double()
        along = a.abs() * bounds.along
        slack = r.norm(dim=1) * bounds.error + (r - kept).norm(dim=1) * bounds.length
        slack += 2.0**-13 * along
        slack += 2 * SINGLE * asked.shape[1] * (kept.norm(dim=1) * bounds.length + 3 * along)
        return asked, slack * 1.001 + 1e-12

    # ------------------------------------------------------------------ the decision

    def _decided(
        self, unit: Float[np.ndarray, "c"], places: Int64[np.ndarray, "m"], k: int
    ) -> tuple[Int64[np.ndarray, "k"], Float[np.ndarray, "k"]]:
        """The `k` most similar of the rows at `places` (in order): by float32 where that is enough, float64 among the rest."""
        rows = self.matrix
        if len(places) > 4 * k:
            quick = np.empty(len(places))
            single = unit.astype(np.float32)
            for start in range(0, len(places), matrices.BLOCK):
                some = places[start : start + matrices.BLOCK]
                norms = rows.rows["norm"][some]
                quick[start : start + len(some)] = (rows.raw[some] @ single) / np.where(norms > 0, norms, 1.0)
            least = np.partition(quick, len(quick) - k)[len(quick) - k]
            places = places[quick >= least - 2 * _doubt(len(unit))]
        scores = np.empty(len(places))
        for start in range(0, len(places), matrices.BLOCK):
            some = rows.raw[places[start : start + matrices.BLOCK]].astype(np.float64)
            norms = np.sqrt((some * some).sum(1))
            # a sum a row, so that equal rows have equal similarities wherever they stand
            scores[start : start + len(some)] = (some * unit).sum(1) / np.where(norms > 0, norms, 1.0)
        order = np.argsort(-scores, kind="stable")[:k]
        chosen = places[order]
        own = chosen if self._alive is None else np.searchsorted(self._alive, chosen)
        return own, scores[order]

    def _places(self, rows: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "m"]:
        """Where rows of this index stand in the matrix."""
        return rows if self._alive is None else self._alive[rows]

    @cached_property
    def _lengths(self) -> Float[np.ndarray, "n"]:
        """Of the matrix's rows, in float32; 1 for a row of zeros."""
        norms = self.matrix.rows["norm"]
        return np.where(norms > 0, norms, 1.0).astype(np.float32)

    @cached_property
    def _rows_of(self) -> dict[str, list[int]]:
        table: dict[str, list[int]] = {}
        for row, id in enumerate(self.ids):
            table.setdefault(id, []).append(row)
        return table

    def neighbour(self, row: int, score: float) -> Neighbour:
        """A row as an answer."""
        about = self.matrix.rows[int(self._places(np.array([row]))[0])]
        x, y, z = about["centre"].tolist()
        box = about["box"].tolist()
        return Neighbour(self.ids[row], score, None if np.isnan(x) else (x, y, z), None if box[0] < 0 else tuple(box))


def _doubt(channels: int) -> float:
    """By how much a similarity in float32 may be wrong: four times the bound of a sum of so many products."""
    return 4 * SINGLE * (channels + 8)


def _complement(places: np.ndarray, count: int) -> np.ndarray:
    rest = np.ones(count, bool)
    rest[places] = False
    return np.flatnonzero(rest)
