"""RT structure sets in: outlines drawn on slices become a label map (DICOM PS3.3 A.19, C.8.8.5, C.8.8.6).

One rule, which `rtstruct_write` shares: a voxel belongs to a structure when its centre lies inside an odd number of the structure's
outlines on its slice (`contours.fill`). So holes drawn as outlines of their own and keyhole outlines both read right, and
what is written here reads back as exactly the same voxels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry import geometry
from ctfoundry.errors import GeometryError, NotAScanError, ReadError
from ctfoundry.geometry import Grid
from ctfoundry.io import contours, objects
from ctfoundry.io.overlaps import Overlap, Painter, pick, ranks
from ctfoundry.io.stream import CAP, check_cap
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

FLAT_MM = 0.5
"""Points of one outline may leave its plane by so much; planning systems round their coordinates to hundredths."""
SAME_PLANE = 0.1
"""Outlines nearer to each other than this share of a slice distance lie in one plane."""
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_POINTS = 0x30060050  # Contour Data


@dataclass(frozen=True)
class Structure:
    """One region of interest as it was drawn.

    Attributes
    ----------
    number, name : ROI Number and ROI Name.
    rings : closed outlines, (n, 3) points in RAS+ mm.
    others : how many outlines of each other kind it has (POINT, OPEN_PLANAR ...), which enclose nothing.
    """

    number: int
    name: str
    rings: tuple[np.ndarray, ...]
    others: Mapping[str, int]


@dataclass(frozen=True)
class StructureSet:
    """What an RTSTRUCT file holds; see `Structure` and `objects.References`."""

    path: Path
    structures: tuple[Structure, ...]
    references: objects.References

    @property
    def names(self) -> dict[int, str]:
        """ROI number to name."""
        return {s.number: s.name for s in self.structures}


def read_rtstruct(
    path: str | os.PathLike[str],
    onto: Grid,
    *,
    names: Sequence[int | str] | None = None,
    overlap: Overlap = "error",
    interpolate: bool = False,
    cap: int = CAP,
) -> Volume:
    """Read a DICOM RTSTRUCT as one label map on the grid of the image that it was drawn on.

    Parameters
    ----------
    path : the RTSTRUCT file.
    onto : the image's grid, in any axis order and direction; outlines lie in planes of two of its axes.
    names : structures to read, by ROI number or name; all by default.
    overlap : what to do where structures overlap (`Overlap`); "error" refuses.
    interpolate : fill slices between outlined ones by the shape halfway; otherwise they stay empty and a note counts them.
    cap : most bytes of the label map.

    Returns
    -------
    Volume : kind "label" on `onto`, voxels = ROI numbers, names = ROI names. Its notes say what was left out: points and open
    lines, outlines beyond the grid, planes between slices.

    Raises
    ------
    OverlapError : structures overlap and `overlap` is "error".
    GeometryError : outlines that lie in no plane of the grid's axes.
    NotAScanError, TruncatedError, ReadError, UsageError : no RTSTRUCT, damaged, garbled points; a name that is not there.
    """
    drawn = structure_set(path)
    chosen = pick(drawn.names, names, drawn.path)
    high = max(chosen)
    dtype = np.dtype(np.uint8 if high < 1 << 8 else np.uint16 if high < 1 << 16 else np.uint32)
    check_cap(int(np.prod(onto.shape, dtype=object)) * dtype.itemsize, cap, drawn.path)
    known = {k: drawn.names[k] for k in chosen}
    structures = [s for s in drawn.structures if s.number in known]
    sizes: dict[int, int] = {}
    if isinstance(overlap, str) and overlap == "smallest":
        for structure in structures:
            planes = _planes(structure, onto, interpolate, [], drawn.path)
            sizes[structure.number] = sum(int(np.count_nonzero(part.mask)) for _, _, part in planes)
    painter = Painter(ranks(known, overlap, sizes, drawn.path))
    out = np.zeros(onto.shape, dtype=dtype)
    notes: list[str] = []
    for structure in structures:
        for axis, k, part in _planes(structure, onto, interpolate, notes, drawn.path):
            plane = np.moveaxis(out, axis, 0)[k][part.box]
            plane[...] = painter.paint(plane.copy(), part.mask, structure.number)
    notes += painter.finish(known, drawn.path)
    return Volume(out, onto.affine, "label", names=known, source="rtstruct", notes=tuple(notes))


def read_rtstruct_masks(
    path: str | os.PathLike[str],
    onto: Grid,
    *,
    names: Sequence[int | str] | None = None,
    interpolate: bool = False,
    cap: int = CAP,
) -> dict[str, Volume]:
    """Read a DICOM RTSTRUCT as one mask of 0 and 1 for each structure, which may overlap; otherwise as `read_rtstruct`.

    The keys are ROI names; `cap` bounds all masks together.
    """
    drawn = structure_set(path)
    chosen = pick(drawn.names, names, drawn.path)
    check_cap(int(np.prod(onto.shape, dtype=object)) * len(chosen), cap, drawn.path)
    result = {}
    for structure in drawn.structures:
        if structure.number in chosen:
            notes: list[str] = []
            out = np.zeros(onto.shape, dtype=np.uint8)
            for axis, k, mask in _planes(structure, onto, interpolate, notes, drawn.path):
                np.moveaxis(out, axis, 0)[k][mask.box] |= mask.mask
            name = structure.name
            result[name] = Volume(out, onto.affine, "label", names={1: name}, source="rtstruct", notes=tuple(notes))
    return result


def structure_set(path: str | os.PathLike[str]) -> StructureSet:
    """The outlines of an RTSTRUCT file, in the order of the file. Raises as `read_rtstruct`."""
    found = objects.load(path)
    where = found.path
    with objects.parsing(where):
        if found.sop_class != objects.RTSTRUCT_CLASS:
            raise NotAScanError(f"is no DICOM structure set (class {found.sop_class or 'missing'})", where=where)
        return StructureSet(where, tuple(_structures(found.data, where)), objects.references(found.data))


def _structures(data: Dataset, where: Path) -> Iterator[Structure]:
    named: dict[int, str] = {}
    for item in data.get("StructureSetROISequence", None) or []:
        number = int(item.ROINumber)
        if number in named:
            raise ReadError(f"numbers two structures {number}", where=where)
        named[number] = objects.text(item.get("ROIName")) or f"structure {number}"
    if not named:
        raise ReadError("names no structure", where=where)
    if min(named) < 0 or max(named) >= 1 << 31:
        raise ReadError(f"has a structure of number {min(named) if min(named) < 0 else max(named)}", where=where)
    if 0 in named:  # 0 is the background of a label map
        named = {number + 1: name for number, name in named.items()}
    shift = int(0 in {int(i.ROINumber) for i in data.StructureSetROISequence})
    rings: dict[int, list[np.ndarray]] = {number: [] for number in named}
    others: dict[int, dict[str, int]] = {number: {} for number in named}
    for roi in data.get("ROIContourSequence", None) or []:
        number = int(roi.ReferencedROINumber) + shift
        if number not in named:
            raise ReadError(f"has outlines of structure {number - shift}, which it does not name", where=where)
        for contour in roi.get("ContourSequence", None) or []:
            kind = objects.text(contour.get("ContourGeometricType")).upper() or "no type"
            if kind not in _CLOSED:
                others[number][kind] = others[number].get(kind, 0) + 1
                continue
            points = _points(contour, named[number], where)
            if len(points) >= 3:
                rings[number].append(points)
            else:
                others[number]["fewer than 3 points"] = others[number].get("fewer than 3 points", 0) + 1
    names = _different(named)
    for number in sorted(named):
        yield Structure(number, names[number], tuple(rings[number]), others[number])


def _different(named: Mapping[int, str]) -> dict[int, str]:
    """Names, followed by the number where one stands for several."""
    values = list(named.values())
    return {k: name if values.count(name) == 1 else f"{name} {k}" for k, name in named.items()}


def _points(contour: Dataset, name: str, where: Path) -> np.ndarray:
    """The points of an outline, (n, 3) in RAS+ mm. Straight from the text: pydicom would make an object of each number."""
    if _POINTS not in contour:
        return np.zeros((0, 3))
    value = contour.get_item(_POINTS).value
    try:
        if isinstance(value, bytes):
            words = value.strip(b" \0").split(b"\\") if value.strip(b" \0") else []
            numbers = np.array([float(w) for w in words])
        else:
            numbers = np.array(value if value is not None else [], dtype=np.float64).reshape(-1)
    except ValueError as error:
        raise ReadError(f"an outline of {name} is garbled ({error})", where=where) from error
    if numbers.size % 3:
        raise ReadError(f"an outline of {name} has {numbers.size} numbers, no whole points", where=where)
    if not np.isfinite(numbers).all():
        raise ReadError(f"an outline of {name} has points that are NaN or infinite", where=where)
    return numbers.reshape(-1, 3) * (-1, -1, 1)


# Onto the slices ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A mask of the part `box` of a plane."""

    box: tuple[slice, slice]
    mask: np.ndarray


def _planes(
    structure: Structure, grid: Grid, interpolate: bool, notes: list[str], where: Path
) -> list[tuple[int, int, _Part]]:
    """(array axis across the slices, slice, mask) of each slice that a structure reaches; appends to `notes`."""
    name = structure.name
    for kind, count in structure.others.items():
        notes.append(f"{name}: {count} outlines of {kind} left out, they enclose nothing")
    if not structure.rings:
        notes.append(f"{name}: nothing is drawn")
        return []
    rings = [geometry.to_index(grid.affine, ring) for ring in structure.rings]
    axis = _axis(rings, grid, name, where)
    across = [a for a in range(3) if a != axis]
    depth = np.array([float(ring[:, axis].mean()) for ring in rings])
    flat = [ring[:, across] for ring in rings]
    shape = (grid.shape[across[0]], grid.shape[across[1]])
    layers, beyond = _layers(depth, grid.shape[axis])
    if beyond:
        notes.append(f"{name}: {beyond} outlines lie beyond the grid")
    result: dict[int, _Part] = {}
    merged, cut, doubled, farthest = 0, 0, 0, 0.0
    for k, planes in sorted(layers.items()):
        nearest = min(planes, key=lambda plane: abs(depth[plane[0]] - k))
        merged += len(planes) - 1
        farthest = max(farthest, abs(float(depth[nearest[0]]) - k))
        drawn = [flat[i] for i in nearest]
        once = _once(drawn)
        doubled += len(drawn) - len(once)
        cut += sum(bool((r.min(axis=0) < -1).any() or (r.max(axis=0) > shape).any()) for r in once)
        part = _filled(once, shape)
        if part is not None:
            result[k] = part
    step = grid.spacing[axis]
    if merged:
        notes.append(f"{name}: {merged} planes are nearer to a slice that has a nearer one, and were left out")
    if farthest > SAME_PLANE:
        notes.append(f"{name}: its planes lie up to {farthest * step:.2f} mm beside the slices that took them")
    if cut:
        notes.append(f"{name}: {cut} outlines reach beyond the grid and were cut")
    if doubled:
        notes.append(f"{name}: {doubled} outlines were drawn twice and counted once")
    empty = [k for a, b in pairwise(sorted(layers)) for k in range(a + 1, b)]
    if empty:
        if interpolate:
            result |= _between(result, shape)
        what = "filled by the shape between" if interpolate else "left empty between outlined ones"
        notes.append(f"{name}: {len(empty)} slices were {what}")
    return [(axis, k, part) for k, part in result.items()]


def _axis(rings: list[np.ndarray], grid: Grid, name: str, where: Path) -> int:
    """The array axis that the outlines are planar across: the one along which none extends."""
    extent = np.max([np.ptp(ring, axis=0) for ring in rings], axis=0) * grid.spacing
    axis = int(np.argmin(extent))
    if extent[axis] > FLAT_MM:
        raise GeometryError(
            f"outlines of {name} leave every plane of the image's axes (by {extent[axis]:.2f} mm at least)",
            where=where,
            do="read it onto the grid of the series that it was drawn on",
        )
    return axis


def _layers(depth: np.ndarray, count: int) -> tuple[dict[int, list[list[int]]], int]:
    """(slice to the planes that fall on it, each a list of outlines; how many outlines fall on none)."""
    layers: dict[int, list[list[int]]] = {}
    beyond = 0
    order = np.argsort(depth, kind="stable").tolist()
    last: list[int] | None = None
    for i in order:
        if last is not None and depth[i] - depth[last[0]] <= SAME_PLANE:
            last.append(i)
            continue
        last = [i]
        k = int(np.floor(np.clip(depth[i], -1e9, 1e9) + 0.5))
        if -0.5 <= depth[i] <= count - 0.5:
            layers.setdefault(min(max(k, 0), count - 1), []).append(last)
        else:
            layers.setdefault(-1, []).append(last)
    for plane in layers.pop(-1, []):
        beyond += len(plane)
    return layers, beyond


def _once(rings: list[np.ndarray]) -> list[np.ndarray]:
    """Outlines without exact copies, which would cancel each other."""
    return list({ring.tobytes(): ring for ring in rings}.values())


def _filled(rings: list[np.ndarray], shape: tuple[int, int]) -> _Part | None:
    low = np.floor(np.min([ring.min(axis=0) for ring in rings], axis=0))
    high = np.ceil(np.max([ring.max(axis=0) for ring in rings], axis=0)) + 1
    first = np.clip(low, 0, shape).astype(int)
    stop = np.clip(high, 0, shape).astype(int)
    if (stop <= first).any():
        return None
    box = slice(int(first[0]), int(stop[0])), slice(int(first[1]), int(stop[1]))
    mask = contours.fill([ring - first for ring in rings], (int(stop[0] - first[0]), int(stop[1] - first[1])))
    return _Part(box, mask)


def _between(parts: Mapping[int, _Part], shape: tuple[int, int]) -> dict[int, _Part]:
    """Masks for the slices between outlined ones."""
    result = {}
    full = (slice(0, shape[0]), slice(0, shape[1]))
    known = sorted(k for k, part in parts.items() if part.mask.any())
    for a, b in pairwise(known):
        if b - a > 1:
            first, second = _whole(parts[a], shape), _whole(parts[b], shape)
            for k in range(a + 1, b):
                result[k] = _Part(full, contours.between(first, second, (k - a) / (b - a)))
    return result


def _whole(part: _Part, shape: tuple[int, int]) -> np.ndarray:
    out = np.zeros(shape, dtype=bool)
    out[part.box] = part.mask
    return out
