"""Known places in scans: centroids of labelled structures that lie wholly inside the field of view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ctfoundry import geometry
from ctfoundry.geometry import Grid
from ctfoundry.volume import Volume

Point = tuple[float, float, float]
MINIMUM_VOXELS = 8
"""Smaller structures are crumbs of a neighbour or of a resampled mask."""


def centroids(labels: Volume) -> dict[str, Point]:
    """World centroid of each named structure that touches no face of the grid (a cut structure has a false centre)."""
    found = {}
    for label in (int(v) for v in np.unique(labels.voxels) if v != 0):
        mask = labels.voxels == label
        box = geometry.bounding_box(mask)
        if box is None or mask.sum() < MINIMUM_VOXELS:
            continue
        if any(low == 0 or high == n for (low, high), n in zip(box, labels.shape, strict=True)):
            continue
        x, y, z = labels.world(np.argwhere(mask).mean(0)).tolist()
        found[(labels.names or {}).get(label, str(label)).lower()] = (x, y, z)
    return found


def attach(
    scans: Mapping[str, tuple[Path, Grid]], labels: Iterable[tuple[Path, Volume]]
) -> dict[str, dict[str, Point]]:
    """Landmarks of each scan from label maps of the same folder and on its very grid."""
    known: dict[str, dict[str, Point]] = {name: {} for name in scans}
    for folder, volume in labels:
        for name, (home, grid) in scans.items():
            if folder == home and grid.same(volume.grid, tolerance=0.5):
                known[name] |= centroids(volume)
    return known
