"""How much of the labels two trivial methods find: Hounsfield units alone, and position alone.

Nothing is claimed for a representation that these do too (DESIGN, decision 13): later rooms print them beside their own
numbers. Both take any scans with label maps, phantoms or real ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ctfoundry.body import body_box
from ctfoundry.errors import UsageError
from ctfoundry.phantom.names import GROUPS, IDS, WRAPS
from ctfoundry.volume import Volume

HU_EDGES = np.arange(-1025, 1531, 5)
"""Bins of the HU classifier: 5 HU wide; what lies outside falls into the first or the last one."""
SMALLEST_VOXELS = 20
"""Structures with fewer voxels in a scan have no centroid there."""


class Labelled(Protocol):
    """A scan with its label map, such as a `Phantom`."""

    @property
    def ct(self) -> Volume:
        """HU."""

    @property
    def labels(self) -> Volume:
        """Labels on the grid of `ct`."""


@dataclass(frozen=True)
class Difficulty:
    """A number over all structures, and one for each of them."""

    overall: float
    structures: Mapping[str, float]


def structures_of(scans: Iterable[Labelled]) -> dict[str, tuple[int, ...]]:
    """Every labelled structure of the scans: name to its single id."""
    found: dict[str, tuple[int, ...]] = {}
    for scan in scans:
        names = scan.labels.names or {}
        for label in np.unique(scan.labels.voxels).tolist():
            if label:
                found[names.get(label, str(label))] = (int(label),)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def coarse_structures(*, wraps: bool = True) -> dict[str, tuple[int, ...]]:
    """The eighteen groups of `names.GROUPS` with their ids; without `wraps` the fourteen that are places."""
    return {name: tuple(IDS[p] for p in parts) for name, parts in GROUPS.items() if wraps or name not in WRAPS}


def hu_classifier_dice(
    train: Sequence[Labelled], test: Sequence[Labelled], structures: Mapping[str, Sequence[int]] | None = None
) -> Difficulty:
    """Macro Dice of the best classifier that sees one voxel's HU and nothing else.

    For each structure it takes the HU bins whose pooled training voxels give the highest Dice against the rest: bins in the
    order of the structure's share, as many as pay. That is the Dice-optimal rule (Lipton et al. 2014), so a Bayes
    classifier, which never chooses small structures, cannot do better on the training scans. Dice is pooled over the voxels
    of all test scans; the overall number is the mean over structures that occur in both cohorts.
    """
    _need(train, test)
    structures = structures or structures_of(train)
    seen, target = _histograms(train), _histograms(test)
    result = {}
    for name, ids in structures.items():
        own, other = seen[:, list(ids)].sum(axis=1), target[:, list(ids)].sum(axis=1)
        if own.sum() == 0 or other.sum() == 0:
            continue
        total = seen.sum(axis=1)
        order = np.argsort(-own / np.maximum(total, 1), kind="stable")
        hit, taken = np.cumsum(own[order]), np.cumsum(total[order])
        chosen = order[: int(np.argmax(2 * hit / (taken + own.sum()))) + 1]
        result[name] = float(2 * other[chosen].sum() / (target[chosen].sum() + other.sum()))
    overall = float(np.mean(list(result.values()))) if result else float("nan")
    return Difficulty(overall, result)


def position_guess_error(
    train: Sequence[Labelled], test: Sequence[Labelled], structures: Mapping[str, Sequence[int]] | None = None
) -> Difficulty:
    """Median miss, in millimetres, of a guess by position in the body box.

    The guess for a structure is the mean, over training scans that hold it, of its centroid in coordinates proportional to
    the body box (0 to 1 from Left to Right, Posterior to Anterior, Inferior to Superior), laid into the test scan's body
    box. The overall number is the median over all structures of all test scans; each structure's is its own median.
    """
    _need(train, test)
    structures = structures or structures_of(train)
    places: dict[str, list[np.ndarray]] = {name: [] for name in structures}
    for scan in train:
        low, size = _body_frame(scan.ct)
        for name, point in _centroids(scan, structures).items():
            places[name].append((point - low) / size)
    misses: dict[str, list[float]] = {}
    for scan in test:
        low, size = _body_frame(scan.ct)
        for name, point in _centroids(scan, structures).items():
            if places[name]:
                guess = low + np.mean(places[name], axis=0) * size
                misses.setdefault(name, []).append(float(np.linalg.norm(guess - point)))
    overall = float(np.median(np.concatenate(list(misses.values())))) if misses else float("nan")
    return Difficulty(overall, {name: float(np.median(values)) for name, values in misses.items()})


def _body_frame(ct: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Lowest world point and size of the body box along the world's axes."""
    low, high = body_box(ct)
    return low, np.maximum(high - low, 1e-3)


def _centroids(scan: Labelled, structures: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """World centroid of each structure present with at least `SMALLEST_VOXELS` voxels."""
    voxels = scan.labels.voxels
    size = int(voxels.max()) + 1
    count = np.bincount(voxels.ravel(), minlength=size).astype(np.float64)
    sums = np.zeros((size, 3))
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = -1
        index = np.broadcast_to(np.arange(voxels.shape[axis], dtype=np.float64).reshape(shape), voxels.shape)
        sums[:, axis] = np.bincount(voxels.ravel(), weights=index.ravel(), minlength=size)
    found = {}
    for name, ids in structures.items():
        held = [i for i in ids if i < size]
        total = count[held].sum()
        if total >= SMALLEST_VOXELS:
            found[name] = np.asarray(scan.labels.world(sums[held].sum(axis=0) / total))
    return found


def _histograms(scans: Sequence[Labelled]) -> np.ndarray:
    """Voxel counts by HU bin and label, (bins, labels)."""
    total = np.zeros((len(HU_EDGES) - 1, 256), dtype=np.int64)
    for scan in scans:
        hu = np.clip(scan.ct.voxels, HU_EDGES[0], HU_EDGES[-1] - 1).astype(np.int64)
        both = (hu - HU_EDGES[0]) // (HU_EDGES[1] - HU_EDGES[0]) * 256 + scan.labels.voxels
        total += np.bincount(both.ravel(), minlength=total.size).reshape(total.shape)
    return total


def _need(train: Sequence[Labelled], test: Sequence[Labelled]) -> None:
    if not train or not test:
        raise UsageError("needs at least one training and one test scan", where="difficulty")
