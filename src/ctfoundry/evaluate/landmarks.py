"""Known places in scans: centroids of labelled structures that lie wholly inside the field of view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ctfoundry.geometry import Grid
from ctfoundry.volume import Volume

Point = tuple[float, float, float]
MINIMUM_VOXELS = 8
"""Smaller structures are crumbs of a neighbour or of a resampled mask."""


def centroids(labels: Volume) -> dict[str, Point]:
    """World centroid of each structure that has a name and touches no face of the grid (a cut structure has a false centre)."""
    from scipy import ndimage

    found, names = {}, labels.names or {}
    for label, box in enumerate(ndimage.find_objects(labels.voxels.astype(np.int32, copy=False)), 1):
        if (
            box is None
            or label not in names
            or any(part.start == 0 or part.stop == n for part, n in zip(box, labels.shape, strict=True))
        ):
            continue
        inside = np.argwhere(labels.voxels[box] == label)
        if len(inside) < MINIMUM_VOXELS:
            continue
        x, y, z = labels.world(inside.mean(0) + [part.start for part in box]).tolist()
        found[names[label].lower()] = (x, y, z)
    return found


def attach(
    scans: Mapping[str, tuple[Path, Grid]], labels: Iterable[tuple[Path, Grid, Mapping[str, Point]]]
) -> dict[str, dict[str, Point]]:
    """Landmarks of each scan from the `centroids` of label maps of the same folder and on its very grid."""
    known: dict[str, dict[str, Point]] = {name: {} for name in scans}
    for folder, own, found in labels:
        for name, (home, grid) in scans.items():
            if folder == home and grid.same(own, tolerance=0.5):
                known[name] |= found
    return known
