"""What finds a tumour without knowing what one looks like: single voxels' HU, the place in the crop, and ellipsoids in its middle.

Scans cropped around a tumour give its place away: where the crop keeps a fixed margin, its edges say where the tumour ends. Each
method here learns from the training patients alone, so whatever they reach is what a network has to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.phantom.difficulty import HU_EDGES, dice_optimal

if TYPE_CHECKING:
    from jaxtyping import Bool

    from ctfoundry.volume import Volume

    Mask = Bool[np.ndarray, "d h w"]
    Pair = tuple[Volume, Mask]
    """A scan and its tumours."""
    Guess = Callable[[Volume], Mask]

INTENSITY, PLACE = "one voxel's HU", "place in the crop"
CENTRE, MARGIN = "ellipsoid in the crop's middle", "ellipsoid within the crop's margin"
NODES = 48
"""Cells of the atlas along each axis of the crop."""
FACTORS = np.arange(0.6, 1.31, 0.05)
"""Sizes of ellipsoids that are tried on the training patients."""


def guesses(train: Sequence[Pair]) -> Mapping[str, Guess]:
    """The four methods, taught by the training scans."""
    return {
        INTENSITY: _intensity(train),
        PLACE: _place(train),
        CENTRE: _ellipsoid(train, _mean_axes(train)),
        MARGIN: _ellipsoid(train, _within_margin(train)),
    }


def _bins(volume: Volume) -> np.ndarray:
    hu = np.clip(volume.voxels, HU_EDGES[0], HU_EDGES[-1] - 1).astype(np.int64)
    return np.asarray((hu - HU_EDGES[0]) // (HU_EDGES[1] - HU_EDGES[0]))


def _intensity(train: Sequence[Pair]) -> Guess:
    """The HU bins that give the highest Dice of all training voxels pooled."""
    size = len(HU_EDGES) - 1
    own, total = np.zeros(size), np.zeros(size)
    for volume, mask in train:
        bins = _bins(volume)
        own += np.bincount(bins[mask], minlength=size)
        total += np.bincount(bins.ravel(), minlength=size)
    taken = np.zeros(size, dtype=bool)
    taken[dice_optimal(own, total)] = True
    return lambda volume: np.asarray(taken[_bins(volume)])


def _cells(shape: Sequence[int]) -> tuple[np.ndarray, ...]:
    """The atlas' cell of each voxel, axis by axis."""
    return np.ix_(*(((np.arange(n) + 0.5) / n * NODES).astype(np.int64) for n in shape))


def _place(train: Sequence[Pair]) -> Guess:
    """Cells at the same proportional place of the crop, as many as give the highest Dice of the training scans' atlases pooled."""
    own = np.zeros((NODES, NODES, NODES))
    for _, mask in train:
        # at the cells' centres: a crop may have fewer voxels than the atlas has cells
        own += mask[np.ix_(*(((np.arange(NODES) + 0.5) / NODES * n).astype(np.int64) for n in mask.shape))]
    taken = np.zeros(own.size, dtype=bool)
    taken[dice_optimal(own.ravel(), np.full(own.size, float(len(train))))] = True
    atlas = taken.reshape(own.shape)
    return lambda volume: np.asarray(atlas[_cells(volume.shape)])


def _box(mask: Mask) -> np.ndarray:
    """First voxel and the one after the last along each axis, (2, 3)."""
    there = np.argwhere(mask)
    return np.stack([there.min(0), there.max(0) + 1])


Axes = tuple[np.ndarray, np.ndarray]
"""Centre and half axes in voxels."""


def _mean_axes(train: Sequence[Pair]) -> Callable[[Volume], Axes]:
    """The crop's middle, and half axes in mm that are the training tumours' mean."""
    half = np.mean([np.ptp(_box(mask), axis=0) * volume.spacing / 2 for volume, mask in train], axis=0)

    def axes(volume: Volume) -> Axes:
        return np.array(volume.shape) / 2 - 0.5, half / volume.spacing

    return axes


def _within_margin(train: Sequence[Pair]) -> Callable[[Volume], Axes]:
    """What is left of the crop inside the margin (mm, median over training tumours and both ends of an axis)."""
    ends = [
        np.stack([box[0] * volume.spacing, (np.array(mask.shape) - box[1]) * volume.spacing])
        for volume, mask in train
        for box in [_box(mask)]
    ]
    margin = np.median(np.concatenate(ends), axis=0)

    def axes(volume: Volume) -> Axes:
        size = np.array(volume.shape)
        return size / 2 - 0.5, np.maximum(size / 2 - margin / volume.spacing, 1.0)

    return axes


def _ellipsoid(train: Sequence[Pair], axes: Callable[[Volume], Axes]) -> Guess:
    """The ellipsoid of `axes`, grown or shrunk by the factor that gives the highest mean Dice on the training scans."""
    mean = []
    for factor in FACTORS:
        found = [_dice(_filled(volume.shape, *axes(volume), factor), mask) for volume, mask in train]
        mean.append(np.mean(found))
    best = float(FACTORS[int(np.argmax(mean))])
    return lambda volume: _filled(volume.shape, *axes(volume), best)


def _filled(shape: Sequence[int], centre: np.ndarray, half: np.ndarray, factor: float) -> Mask:
    grid = np.ix_(*(((np.arange(n) - c) / (h * factor)) ** 2 for n, c, h in zip(shape, centre, half, strict=True)))
    return np.asarray(grid[0] + grid[1] + grid[2] <= 1)


def _dice(ours: Mask, theirs: Mask) -> float:
    return float(2 * (ours & theirs).sum() / max(int(ours.sum()) + int(theirs.sum()), 1))
