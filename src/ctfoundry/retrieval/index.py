"""Exact retrieval: cosine similarity of one vector with all vectors of an index."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Neighbour:
    """A scan and its cosine similarity to the query."""

    id: str
    similarity: float


@dataclass(frozen=True, eq=False)
class Index:
    """Vectors of scans, L2-normalised once; ids in the order of the rows."""

    ids: tuple[str, ...]
    rows: Float[Tensor, "n c"]

    @classmethod
    def of(cls, ids: Collection[str], vectors: Float[Tensor, "n c"]) -> Index:
        """An index of `vectors`, one for each id."""
        if len(ids) != len(vectors):
            raise ValueError(f"{len(ids)} ids for {len(vectors)} vectors")
        return cls(tuple(ids), torch.nn.functional.normalize(vectors.float(), dim=1))

    def nearest(self, query: Float[Tensor, "c"], k: int = 5, *, without: Collection[str] = ()) -> list[Neighbour]:
        """The `k` most similar scans, best first; ids in `without` are left out. Equal similarities keep the order of rows."""
        scores = self.rows @ torch.nn.functional.normalize(query.float(), dim=0)
        order = torch.argsort(scores, descending=True, stable=True).tolist()
        kept = [i for i in order if self.ids[i] not in without][:k]
        return [Neighbour(self.ids[i], float(scores[i])) for i in kept]
