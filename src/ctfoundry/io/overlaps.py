"""One label map holds one structure a voxel: which one where drawn structures overlap, or the error that says so."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ctfoundry.errors import ReadError, UsageError

Overlap = Literal["error", "smallest"] | Sequence[int | str]
"""What to do where structures overlap, which one label map cannot hold: refuse; let the structure with fewer voxels win; or
let the one win that is listed first (numbers or names; those not listed come after, lowest number first)."""


class OverlapError(ReadError):
    """Structures overlap, and one label map holds one of them a voxel."""


def pick(known: Mapping[int, str], wanted: Sequence[int | str] | None, where: str | os.PathLike[str]) -> list[int]:
    """The numbers of the structures that `wanted` names by number or label, in its order; all of them for None.

    Raises UsageError for one that is not there or whose label stands for several.
    """
    if wanted is None:
        return sorted(known)
    chosen: list[int] = []
    for item in [wanted] if isinstance(wanted, (str, int)) else wanted:
        hits = [k for k, name in known.items() if item in (k, name)]
        if len(hits) != 1:
            raise UsageError(
                f"holds {len(hits)} structures {item!r}; it has {', '.join(f'{k} {n}' for k, n in known.items())}",
                where=where,
                do="name one of them by its number" if hits else "check the name",
            )
        chosen.extend(k for k in hits if k not in chosen)
    return chosen


def ranks(
    known: Mapping[int, str], overlap: Overlap, sizes: Mapping[int, int] | None, where: str | os.PathLike[str]
) -> dict[int, int] | None:
    """Rank of each label, lowest wins where structures overlap; None where overlaps are errors."""
    if isinstance(overlap, str) and overlap == "error":
        return None
    if isinstance(overlap, str) and overlap == "smallest":
        assert sizes is not None
        order = sorted(known, key=lambda k: (sizes.get(k, 0), k))
    else:
        first = pick(known, overlap, where)
        order = first + [k for k in sorted(known) if k not in first]
    return {k: place for place, k in enumerate(order)}


class Painter:
    """Puts structures into one label map and keeps account of where they overlap."""

    def __init__(self, rank: Mapping[int, int] | None) -> None:
        self.rank = rank
        self.clashes: Counter[tuple[int, int]] = Counter()

    def paint(self, there: np.ndarray, mask: np.ndarray, label: int) -> np.ndarray:
        """`there` with `label` where `mask`; `there` may be changed."""
        clash = mask & (there != 0)
        if clash.any():
            others, counts = np.unique(there[clash], return_counts=True)
            for other, count in zip(others.tolist(), counts.tolist(), strict=True):
                if other != label:
                    self.clashes[min(other, label), max(other, label)] += count
            if self.rank is not None:
                kept = [other for other in others.tolist() if self.rank[other] < self.rank[label]]
                mask = mask & ~np.isin(there, kept)
        there[mask] = label
        return there

    def finish(self, known: Mapping[int, str], where: str | os.PathLike[str]) -> tuple[str, ...]:
        """Notes about overlaps. Raises OverlapError where they are errors."""
        if not self.clashes:
            return ()
        worst = self.clashes.most_common(6)
        shown = "; ".join(f"{known[a]} and {known[b]} in {n:,} voxels" for (a, b), n in worst)
        more = f"; {len(self.clashes) - len(worst)} more pairs" if len(self.clashes) > len(worst) else ""
        if self.rank is None:
            raise OverlapError(
                f"its structures overlap: {shown}{more}",
                where=where,
                do="choose some with names=, say which wins with overlap='smallest' or a list, or read separate masks",
            )
        return (f"structures overlap, one was kept: {shown}{more}",)
