"""Reciprocal rank fusion: one ranking of several (Cormack, Clarke and Buettcher, SIGIR 2009)."""

from __future__ import annotations

from collections.abc import Sequence

K = 60.0
"""Constant of the 2009 paper; FlexiCT's retrieval takes 60 with ranks from 0 for lung cancers, 20 for kidneys (public code)."""


def fuse(rankings: Sequence[Sequence[str]], *, k: float = K, first: int = 1) -> list[tuple[str, float]]:
    """Ids with the sum over rankings of ``1 / (k + rank)``, largest first; of equal sums the one that came first.

    Parameters
    ----------
    rankings : ids, best first; an id that a ranking lacks gets nothing from it.
    first : rank of the best: 1 in the paper, 0 in FlexiCT's code.
    """
    sums: dict[str, float] = {}
    for ranking in rankings:
        if len(set(ranking)) != len(ranking):
            raise ValueError("an id stands twice in a ranking")
        for place, id in enumerate(ranking):
            sums[id] = sums.get(id, 0.0) + 1.0 / (k + first + place)
    return sorted(sums.items(), key=lambda pair: -pair[1])
