"""Labels and the image series that they belong to: which slices, and whether the two grids are one.

Labels reach a DICOM series in any axis order and direction. Whether their grid is that of the slices is decided here, by
the places of voxel centres, so that a mirrored map is impossible: either every voxel lands on the slice voxel that has its
place in the patient, or there is an error that names the difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ctfoundry import geometry
from ctfoundry.errors import CTFoundryError, GeometryError, NotAScanError, ReadError, UsageError
from ctfoundry.geometry import POSITION_TOLERANCE_MM, Grid, Vec3
from ctfoundry.io import dicom, stack
from ctfoundry.io.dicom_header import Header
from ctfoundry.io.parts import Part
from ctfoundry.io.places import place_of
from ctfoundry.volume import Volume

_EDGE = 1e-3  # voxels: a centre on the edge of a grid is inside


@dataclass(frozen=True)
class Source:
    """An image series that labels refer to.

    Attributes
    ----------
    headers : its slices in the order of their positions.
    grid : their grid as `io.read` gives it; after a gantry tilt was undone it is wider than the slices.
    tilted : whether it was.
    """

    headers: tuple[Header, ...]
    grid: Grid
    tilted: bool

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file of each slice."""
        return tuple(Path(h.path) for h in self.headers)


@dataclass(frozen=True)
class Placement:
    """How an array falls on another grid voxel by voxel: transposed by `order`, reversed where `flip`, beginning at `start`."""

    order: Vec3
    flip: tuple[bool, bool, bool]
    start: Vec3


def source_of(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Source:
    """The CT series that labels are to refer to.

    Parameters
    ----------
    source : a folder with one CT series, ``FOLDER#SeriesInstanceUID`` (with ``@PART`` where a series holds several volumes),
        or the slices' files.

    Raises NotAScanError when that is not one volume, and what `stack.plan` raises.
    """
    part = _part(source)
    plan = stack.plan(part.headers, part.where)
    return Source(tuple(plan.headers), plan.grid, plan.shift is not None)


def _part(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Part:
    """The one volume that `source` names."""
    from ctfoundry.io import dicom_series
    from ctfoundry.io.discovery import slices_in

    if not isinstance(source, (str, os.PathLike)):
        if not source:
            raise UsageError("no slice of the image series is given")
        headers = []
        for path in source:
            try:
                slices = dicom.slices_of(str(path))
            except OSError as error:
                raise ReadError(f"cannot be read ({error.strerror or error})", where=path) from error
            if isinstance(slices, str):
                raise NotAScanError(f"is no CT slice: {slices}", where=path)
            headers += slices
        return dicom_series.chosen(headers, {}, Path(source[0]).parent, None)[0]
    folder, name = place_of(source)
    if not folder.is_dir():
        raise ReadError("is not a folder", where=source, do="give the folder of the image series")
    return dicom_series.chosen(*slices_in(folder), folder, name)[0]


def placement(affine: geometry.Affine, shape: Sequence[int], grid: Grid) -> Placement | None:
    """How an array of `shape` on `affine` falls on the voxels of `grid`, or None where it does not.

    Every corner voxel's centre must lie within POSITION_TOLERANCE_MM of a voxel centre of the (endless) lattice of `grid`.
    """
    relation = np.linalg.inv(grid.affine) @ affine
    turn = np.rint(relation[:3, :3])
    if not (np.abs(turn).sum(axis=0) == 1).all() or not (np.abs(turn).sum(axis=1) == 1).all():
        return None
    shift = np.rint(relation[:3, 3])
    corners = Grid((shape[0], shape[1], shape[2]), affine).corners
    index = geometry.to_index(affine, corners)
    landed = geometry.to_world(grid.affine, index @ turn.T + shift)
    if np.abs(landed - corners).max() > POSITION_TOLERANCE_MM:
        return None
    order = [int(np.argmax(np.abs(turn[axis]))) for axis in range(3)]
    flip = [bool(turn[axis, old] < 0) for axis, old in enumerate(order)]
    start = [
        int(shift[axis]) - (shape[old] - 1 if back else 0)
        for axis, (old, back) in enumerate(zip(order, flip, strict=True))
    ]
    return Placement((order[0], order[1], order[2]), (flip[0], flip[1], flip[2]), (start[0], start[1], start[2]))


def turned(voxels: np.ndarray, how: Placement) -> np.ndarray:
    """A view of `voxels` with the axes of the other grid."""
    return voxels.transpose(how.order)[tuple(slice(None, None, -1 if back else 1) for back in how.flip)]


def onto_source(labels: Volume, grid: Grid, where: str | os.PathLike[str]) -> np.ndarray:
    """The labels as an array on the grid of the slices, without interpolation.

    Raises GeometryError, naming the difference, when the grids are not one (in whatever axis order).
    """
    if labels.kind != "label":
        raise UsageError(f"only label maps can be written as structures, not kind {labels.kind!r}", where=where)
    how = placement(labels.affine, labels.shape, grid)
    if how is not None:
        array = turned(labels.voxels, how)
        if how.start == (0, 0, 0) and array.shape == grid.shape:
            return array
    raise GeometryError(
        f"the labels are not on the grid of the image series: {_difference(labels.grid, grid, how)}",
        where=where,
        do="bring them onto it first: labels.onto(io.read(series).grid)",
    )


def _difference(labels: Grid, grid: Grid, how: Placement | None) -> str:
    order, flip = geometry.axes_to(labels.affine, grid.orientation)
    same = Grid(
        (labels.shape[order[0]], labels.shape[order[1]], labels.shape[order[2]]),
        geometry.reordered(labels.affine, labels.shape, order, flip),
    )
    if how is not None:
        return f"it begins at voxel {how.start} of it and has {_size(same.shape)} voxels instead of {_size(grid.shape)}"
    found = []
    if same.shape != grid.shape:
        found.append(f"{_size(same.shape)} voxels instead of {_size(grid.shape)}")
    if (
        max(abs(a - b) * n for a, b, n in zip(same.spacing, grid.spacing, grid.shape, strict=True))
        > POSITION_TOLERANCE_MM
    ):
        found.append(f"spacing {_steps(same)} instead of {_steps(grid)} mm")
    cosines = np.sum(same.affine[:3, :3] / same.spacing * grid.affine[:3, :3] / grid.spacing, axis=0)
    angle = float(np.degrees(np.arccos(np.clip(cosines.min(), -1, 1))))
    if angle > 0.01:
        found.append(f"its axes are turned by {angle:.2f} degrees")
    shift = same.affine[:3, 3] - grid.affine[:3, 3]
    if np.abs(shift).max() > POSITION_TOLERANCE_MM:
        found.append(f"its first voxel lies {np.linalg.norm(shift):.2f} mm away")
    return "; ".join(found)


def _size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _steps(grid: Grid) -> str:
    return "x".join(f"{s:.4g}" for s in grid.spacing)


def embedded(labels: Volume, grid: Grid) -> Volume:
    """Labels on a given grid: copied voxel by voxel where the grids share a lattice, else resampled class by class.

    Voxels beyond `grid` are lost; a note counts labelled ones. Raises GeometryError for grids turned against each other.
    """
    how = placement(labels.affine, labels.shape, grid)
    if how is None:
        notes = labels.notes + _lost(_beyond(labels, grid))
        moved = _unsheared(labels.reorient(grid.orientation), grid)
        if moved is not None:
            note = "slices moved to the nearest voxels of the image's grid, which does not shift with them"
            return replace(labels, voxels=moved, affine=grid.affine, valid=None, notes=(*notes, note))
        resampled = labels.onto(grid)
        return replace(resampled, valid=None, notes=(*notes, "resampled class by class onto the image's grid"))
    array = turned(labels.voxels, how)
    out = np.zeros(grid.shape, dtype=labels.voxels.dtype)
    into, taken = [], []
    for first, n, size in zip(how.start, array.shape, grid.shape, strict=True):
        low, high = max(first, 0), min(first + n, size)
        into.append(slice(low, max(high, low)))
        taken.append(slice(low - first, max(high, low) - first))
    part = array[tuple(taken)]
    out[tuple(into)] = part
    lost = int(np.count_nonzero(array)) - int(np.count_nonzero(part))
    return replace(labels, voxels=out, affine=grid.affine, valid=None, notes=labels.notes + _lost(lost))


def _lost(count: int) -> tuple[str, ...]:
    return (f"{count:,} labelled voxels lie outside the image's grid",) if count else ()


def _beyond(labels: Volume, grid: Grid) -> int:
    """How many labelled voxels have their centre outside the voxels of `grid`."""
    relation = np.linalg.inv(grid.affine) @ labels.affine
    count = 0
    for k, plane in enumerate(labels.voxels):
        index = np.argwhere(plane) @ relation[:3, 1:3].T + relation[:3, 0] * k + relation[:3, 3]
        count += int(((index < -0.5 - _EDGE) | (index > np.array(grid.shape) - 0.5 + _EDGE)).any(axis=1).sum())
    return count


def _unsheared(labels: Volume, grid: Grid) -> np.ndarray | None:
    """Labels whose slices shift sideways, on a grid whose axes are theirs but for that: each voxel takes the nearest of its slice.

    None where the grids differ otherwise.
    """
    relation = np.linalg.inv(labels.affine) @ grid.affine
    matrix, shift = relation[:3, :3], relation[:3, 3]
    off = np.abs(matrix - np.diag(np.diag(matrix))) * grid.shape
    for s in range(3):
        a, b = (axis for axis in range(3) if axis != s)
        if np.delete(off, s, axis=1).max() > 0.1 or off[s].max() > 0.1 or max(off[a, s], off[b, s]) <= 0.1:
            continue
        taken = np.moveaxis(labels.voxels, s, 0)
        out = np.zeros([grid.shape[axis] for axis in (s, a, b)], dtype=labels.voxels.dtype)
        layers = np.rint(matrix[s, s] * np.arange(grid.shape[s]) + shift[s]).astype(int)
        for k in np.flatnonzero((layers >= 0) & (layers < len(taken))).tolist():
            index = [
                np.rint(matrix[axis, axis] * np.arange(grid.shape[axis]) + matrix[axis, s] * k + shift[axis]).astype(
                    int
                )
                for axis in (a, b)
            ]
            inside = [(i >= 0) & (i < n) for i, n in zip(index, taken.shape[1:], strict=True)]
            part = taken[layers[k]][np.ix_(index[0][inside[0]], index[1][inside[1]])]
            out[k][np.ix_(inside[0], inside[1])] = part
        return np.ascontiguousarray(np.moveaxis(out, 0, s))
    return None


def names_for(labels: Volume) -> dict[int, str]:
    """A name for every label that occurs or is named: the volume's own, or "label 7"."""
    present = {int(v) for v in np.unique(labels.voxels)} - {0}
    given = {int(k): str(v) for k, v in (labels.names or {}).items() if int(k) != 0}
    result = {k: given.get(k, f"label {k}") for k in sorted(present | set(given))}
    if not result:
        raise UsageError("the label map is empty and names nothing", do="give a map with at least one structure")
    if min(result) < 0:
        raise CTFoundryError(f"label {min(result)} is negative", do="number structures from 1")
    return result
