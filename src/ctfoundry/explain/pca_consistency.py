"""Whether colours mean something: has a structure the same colour in every scan, and another than its neighbours?

Both distances are between mean colours (L, a, b) of a structure in one scan and of one in another patient's: *within* for the
same structure, *between* for two different ones. Their ratio does not depend on how strong the colours are; 1 means that colours
tell nothing. Beside it stands how often the nearest colour in the other scan is the same structure's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry import stats
from ctfoundry.encoder import FeatureMap, roi_vectors
from ctfoundry.errors import UsageError
from ctfoundry.explain import pca
from ctfoundry.explain.pca import Pca
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float64

Means = Mapping[str, "Float64[np.ndarray, '3']"]
"""Structure to its mean colour in one scan."""
LEAST_CELLS = 1.0
"""Structures smaller than so many cells have no colour of their own."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Over ordered pairs of patients: sums and counts of distances within and between, and of nearest colours that are right.

    (kind, patients, patients), kinds: within, its count, between, its count, right, tried, chance.
    """

    table: Float64[np.ndarray, "7 p p"]

    def ratio(self, weight: Float64[np.ndarray, "p"]) -> float:
        """Mean distance within over mean distance between, patients weighted."""
        within, n, between, m = (float(weight @ part @ weight) for part in self.table[:4])
        return (within / n) / (between / m) if n and m and between else float("nan")

    def right(self, weight: Float64[np.ndarray, "p"]) -> float:
        """Share of structures whose nearest colour in the other scan is the same structure's."""
        hits, tried = (float(weight @ part @ weight) for part in self.table[4:6])
        return hits / tried if tried else float("nan")


@dataclass(frozen=True)
class Consistency:
    """What was measured; intervals are over patients. `chance`: share that a guess would get right."""

    ratio: stats.Interval
    right: stats.Interval
    chance: float


def means(fitted: Pca, feature: FeatureMap, labels: Volume) -> Means:
    """Mean L, a, b of each label over its cells, weighted by the label's share of them; small labels are left out."""
    cell = float(np.prod(feature.grid.spacing))
    voxel = float(np.prod(labels.spacing))
    counts = dict(zip(*np.unique(labels.voxels, return_counts=True), strict=True))
    names = labels.names or {}
    large = {f"roi:{names.get(int(i), int(i))}" for i, n in counts.items() if i and n * voxel >= LEAST_CELLS * cell}
    found = roi_vectors(pca.lab(fitted, feature), labels)
    return {name.removeprefix("roi:"): v.double().cpu().numpy() for name, v in found.items() if name in large}


def summed(scans: Sequence[Means]) -> Sums:
    """Distances over all ordered pairs of scans of different patients (one scan a patient)."""
    table = np.zeros((7, len(scans), len(scans)))
    for i, one in enumerate(scans):
        for j, other in enumerate(scans):
            if i == j or not one or not other:
                continue
            names, others = list(one), list(other)
            far = np.linalg.norm(np.stack([*one.values()])[:, None] - np.stack([*other.values()]), axis=2)
            same = np.array([[a == b for b in others] for a in names])
            known = same.any(1)
            nearest = far.argmin(1)
            right = sum(others[nearest[k]] == names[k] for k in np.flatnonzero(known))
            table[:, i, j] = (
                far[same].sum(), same.sum(), far[~same].sum(), (~same).sum(),
                right, known.sum(), known.sum() / len(others),
            )  # fmt: skip
    return Sums(table)


def measure(scans: Sequence[Means], *, seed: int = 0) -> Consistency:
    """Ratio and share with bootstrap intervals over patients. Raises UsageError where no two scans share a structure."""
    found = summed(scans)
    if not found.table[1].any() or not found.table[3].any():
        raise UsageError(
            "no two scans share a structure", do="give labelled scans of one part of the body, two at least"
        )
    pairs = int(found.table[1].sum())
    return Consistency(
        stats.resampled(len(scans), found.ratio, pairs, seed=seed),
        stats.resampled(len(scans), found.right, pairs, seed=seed),
        float(found.table[6].sum() / found.table[5].sum()),
    )


def difference(ours: Sequence[Means], other: Sequence[Means], *, seed: int = 0) -> stats.Interval:
    """Ratio of one minus ratio of the other, on the same patients in the same order; below 0 ours is the more consistent."""
    a, b = summed(ours), summed(other)
    return stats.resampled(len(ours), lambda w: a.ratio(w) - b.ratio(w), int(a.table[1].sum()), seed=seed)
