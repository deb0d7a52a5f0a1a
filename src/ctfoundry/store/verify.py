"""Is a store still what was written? Every invariant of docs/store-format.md, scan by scan."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry import files, geometry
from ctfoundry.errors import StoreError
from ctfoundry.geometry import Box
from ctfoundry.store import grids, index
from ctfoundry.store.errors import ChecksumError, GridMismatchError, HistogramError, SidecarError, StaleIndexError
from ctfoundry.store.sidecar import Histogram, Sidecar
from ctfoundry.volume import AIR

if TYPE_CHECKING:
    from jaxtyping import Int16

    from ctfoundry.store.store import Store

SLAB = 32
"""Slices that are read at a time: one row of chunks."""


def verify(store: Store, ids: Sequence[str] | None = None) -> list[StoreError]:
    """All broken invariants of the scans `ids` (default: all, and files that belong to no scan), as errors, not raised.

    Every voxel is read once, slab by slab.
    """
    problems: list[StoreError] = [] if ids is not None else list(store.broken.values())
    for id in store.entries.ids if ids is None else ids:
        problems += _scan(store, id)
    if ids is None:
        known = {f"{id}{end}" for id in (*store.entries.ids, *store.broken) for end in (".json", ".b2nd")}
        for name in sorted(set(os.listdir(store._scans)) - known):
            if not name.startswith("."):
                problems.append(
                    SidecarError("the file belongs to no scan", where=f"{store.path.name}#{name}", do="delete it")
                )
    return problems


def _scan(store: Store, id: str) -> list[StoreError]:
    name = f"{store.path.name}#{id}"
    try:
        sidecar = store.sidecar(id)
        histogram = sidecar.histogram.unpack()
    except StoreError as error:
        return [error]
    except ValueError as error:
        return [SidecarError(str(error), where=name, do="remove the scan and add it again")]
    problems = _geometry(store, sidecar, name)
    try:
        problems += _array(store, sidecar, histogram, name)
    except StoreError as error:
        problems.append(error)
    return problems


def _geometry(store: Store, sidecar: Sidecar, name: str) -> list[StoreError]:
    problems: list[StoreError] = []
    if index.row_of(sidecar) != store.entries.row(sidecar.id):
        problems.append(
            StaleIndexError("the index row is not that of the sidecar", where=name, do="delete index.npy, open again")
        )
    grid = geometry.Grid(sidecar.shape, geometry.as_affine(sidecar.affine))
    if grid.orientation != grids.ORIENTATION:
        problems.append(GridMismatchError(f"the axes are {grid.orientation}, not SPL", where=name))
    if not np.allclose(grid.spacing, sidecar.spacing, rtol=0, atol=1e-6):
        problems.append(GridMismatchError(f"spacing {sidecar.spacing} is not the affine's {grid.spacing}", where=name))
    if not grids.is_on(store.grid, grid.spacing):
        problems.append(GridMismatchError(f"spacing {grid.spacing} mm is not on grid {store.grid!r}", where=name))
    return problems


def _array(store: Store, sidecar: Sidecar, histogram: Histogram, name: str) -> list[StoreError]:
    array = store._array(sidecar.id, sidecar.shape, sidecar.array.bytes)
    again = "remove the scan and add it again"
    if files.sha256(store._scans / f"{sidecar.id}.b2nd") != sidecar.array.sha256:
        return [ChecksumError("the array file is not the one that was written", where=name, do=again)]
    digest = hashlib.sha256()
    boxes: list[Box | None] = [None, None]

    def slabs() -> Iterator[Int16[np.ndarray, "d h w"]]:
        for low in range(0, sidecar.shape[0], SLAB):
            slab = array[low : low + SLAB]
            digest.update(np.ascontiguousarray(slab).data)
            for k, above in enumerate((0, AIR)):
                boxes[k] = _union(boxes[k], geometry.bounding_box(slab > above), low)
            yield slab

    found = Histogram.of(slabs())
    problems: list[StoreError] = []
    if digest.hexdigest() != sidecar.voxels_sha256:
        problems.append(ChecksumError("the voxels are not those that were written", where=name, do=again))
    if not found.same(histogram):
        problems.append(HistogramError("the histogram is not that of the voxels", where=name, do=again))
    if tuple(boxes) != (sidecar.box_soft, sidecar.box_body):
        problems.append(HistogramError("a foreground box is not that of the voxels", where=name, do=again))
    return problems


def _union(box: Box | None, more: Box | None, low: int) -> Box | None:
    """The smallest box around both; `more` is counted from slab `low`."""
    if more is None:
        return box
    moved: Box = ((more[0][0] + low, more[0][1] + low), more[1], more[2])
    if box is None:
        return moved
    a, b, c = ((min(p[0], q[0]), max(p[1], q[1])) for p, q in zip(box, moved, strict=True))
    return a, b, c
