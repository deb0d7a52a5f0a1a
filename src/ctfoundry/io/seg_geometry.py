"""Where the frames of a segmentation lie: positions in any order, with gaps, to one regular grid or a named error.

A frame's place stands in its functional groups (DICOM PS3.3 C.7.6.16): Plane Position, Plane Orientation and Pixel Measures,
the latter two usually shared by all frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry import geometry
from ctfoundry.errors import (
    GeometryError,
    IrregularSpacingError,
    NotAScanError,
    ReadError,
    TruncatedError,
)
from ctfoundry.geometry import ORIENTATION_TOLERANCE, POSITION_TOLERANCE_MM, SAME_GRID_MM, SPACING_TOLERANCE, Grid
from ctfoundry.io import dicom_elements, objects
from ctfoundry.io.dicom_elements import EndError, explicit_within, items, walk

if TYPE_CHECKING:
    from pydicom import Dataset

Groups = dict[int, dict[int, bytes]]
"""Functional group to its wanted elements, as they stand in the file."""

POSITION, SEGMENT, ORIENTATION, MEASURES = 0x00209113, 0x0062000A, 0x00209116, 0x00289110
_LEAVES = {
    POSITION: (0x00200032,),
    SEGMENT: (0x0062000B,),
    ORIENTATION: (0x00200037,),
    MEASURES: (0x00280030, 0x00180050, 0x00180088),
}
"""The elements that are wanted of each functional group."""
_FINEST = 4
"""Where no slice distance is declared it is searched down to this part of the smallest gap."""
_LOOSE, _CLOSE = 0.1, 0.05
"""Shares of a slice distance by which a gap may miss a whole number of them, where the distance is known and where guessed."""


def frames_of(found: objects.DicomObject, count: int) -> list[Groups]:
    """For each frame, the wanted elements of its functional groups, as they stand in the file."""
    span, where = found.large[objects.FRAMES], found.path
    data, result = found.part(span.start, span.stop), []
    try:
        for start, stop in items(data, 0, len(data), found.explicit, "<"):
            groups: Groups = {}
            places: dict[int, dicom_elements.Span] = {}
            walk(data, start, stop, found.explicit, "<", places, _LEAVES)
            for tag, place in places.items():
                explicit = explicit_within(data, place, found.explicit)
                leaves: dict[int, dicom_elements.Span] = {}
                for begin, end in islice(items(data, place[1], place[2], explicit, "<"), 1):
                    walk(data, begin, end, explicit, "<", leaves, _LEAVES[tag])
                    groups[tag] = {leaf: data[first:last] for leaf, (_, first, last) in leaves.items()}
            result.append(groups)
            if len(result) > count:
                break
    except EndError:
        raise TruncatedError("its list of frames ends too early", where=where) from None
    except ValueError as error:
        raise ReadError(f"its list of frames is damaged ({error})", where=where) from error
    if len(result) != count:
        raise ReadError(f"declares {count} frames and lists {len(result)}{'+' * (len(result) > count)}", where=where)
    return result


def shared_groups(data: Dataset) -> Groups:
    """The wanted elements that all frames share, in the form of `frames_of`."""
    result: Groups = {}
    for item in list(data.get("SharedFunctionalGroupsSequence", None) or [])[:1]:
        for tag, leaves in _LEAVES.items():
            for inner in list(item[tag].value)[:1] if tag in item else []:
                result[tag] = {leaf: _raw(inner, leaf) for leaf in leaves if leaf in inner}
    return result


def _raw(data: Dataset, tag: int) -> bytes:
    value = data.get_item(tag).value
    if isinstance(value, bytes):
        return value
    values = [value] if isinstance(value, (int, float, str)) else list(value)
    if tag in _LEAVES[SEGMENT]:
        return int(values[0]).to_bytes(2, "little")
    return "\\".join(map(str, values)).encode()


def common(group: int, what: str, frames: list[Groups], shared: Groups, where: Path) -> dict[int, tuple[float, ...]]:
    """The numbers of a functional group that must be the same for all frames."""
    different = {tuple(sorted((f.get(group) or shared.get(group) or {}).items())) for f in frames}
    parsed = [{tag: _decimals(value, what, where) for tag, value in each} for each in different]
    first = parsed[0]
    for other in parsed[1:]:
        for tag, numbers in first.items():
            theirs = other.get(tag, ())
            if len(theirs) != len(numbers) or np.abs(np.subtract(theirs, numbers)).max(initial=0) > 1e-4:
                raise GeometryError(f"its frames differ in {what}", where=where, do="write one SEG for each stack")
    return first


def positions_of(frames: list[Groups], shared: Groups, where: Path) -> np.ndarray:
    """Image Position of each frame, (n, 3) in LPS mm; each different text is parsed once."""
    tag = _LEAVES[POSITION][0]
    seen: dict[bytes, tuple[float, ...]] = {}
    result = []
    for frame in frames:
        value = (frame.get(POSITION) or shared.get(POSITION) or {}).get(tag, b"")
        if value not in seen:
            seen[value] = _decimals(value, "image position", where)
            if len(seen[value]) != 3:
                raise NotAScanError("says of some frames not where they lie in the patient", where=where)
        result.append(seen[value])
    return np.array(result, dtype=np.float64)


def _decimals(value: bytes, what: str, where: Path) -> tuple[float, ...]:
    try:
        numbers = tuple(float(v) for v in value.strip(b" \0").split(b"\\")) if value.strip(b" \0") else ()
    except ValueError as error:
        raise ReadError(f"has a garbled {what} ({error})", where=where) from error
    if not np.isfinite(numbers).all():
        raise GeometryError(f"has an {what} of {numbers}", where=where)
    return numbers


def segment_of(group: Mapping[int, bytes] | None, names: Mapping[int, str], where: Path) -> int:
    """The segment number that a frame's group names; it is one that the file describes."""
    value = (group or {}).get(_LEAVES[SEGMENT][0], b"")
    number = int.from_bytes(value[:2], "little")
    if number not in names:
        raise ReadError(
            f"has a frame of segment {number if value else 'no number'}, which it does not describe", where=where
        )
    return number


def regular_grid(
    positions: np.ndarray,
    orientation: Mapping[int, tuple[float, ...]],
    measures: Mapping[int, tuple[float, ...]],
    size: tuple[int, int],
    where: Path,
) -> tuple[Grid, np.ndarray, tuple[str, ...]]:
    """(grid, slice of each frame, notes): the coarsest regular grid on which all frames lie."""
    cosines = orientation.get(_LEAVES[ORIENTATION][0], ())
    spacing, thickness, declared = (measures.get(tag, ()) for tag in _LEAVES[MEASURES])
    if len(spacing) != 2 or not all(0 < s < 1e3 for s in spacing):
        raise GeometryError(f"has a pixel spacing of {spacing or 'nothing'}", where=where)
    across, down = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = np.array([np.linalg.norm(across), np.linalg.norm(down)])
    if (
        len(cosines) != 6
        or (abs(lengths - 1) > ORIENTATION_TOLERANCE).any()
        or abs(across @ down) > ORIENTATION_TOLERANCE
    ):
        raise GeometryError(f"its image orientation {cosines} is no pair of right-angled unit vectors", where=where)
    across, down = across / lengths[0], down / lengths[1]
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    new = np.concatenate([[True], np.diff(along[order]) >= SAME_GRID_MM])
    firsts = order[new]
    plane = np.empty(len(order), dtype=np.int64)
    plane[order] = np.cumsum(new) - 1
    notes: tuple[str, ...] = ()
    if len(firsts) == 1:
        step = (declared or thickness or (0.0,))[0]
        if not 0 < step < 1e3:
            raise GeometryError("holds one slice and says not how thick it is", where=where, do="pass onto=, a grid")
        number, vector = np.zeros(1, dtype=np.int64), normal * step
    else:
        number, guessed = _numbered(along[firsts], (declared or (0.0,))[0], where)
        vector = (positions[firsts[-1]] - positions[firsts[0]]) / number[-1]
        if guessed:
            notes = (f"slice distance of {vector @ normal:.3f} mm inferred from the frames",)
    off = np.linalg.norm(positions - positions[firsts[0]] - np.outer(number[plane], vector), axis=1)
    if off.max() > POSITION_TOLERANCE_MM:
        raise GeometryError(
            f"its frames lie up to {off.max():.2f} mm beside the line through the first and the last", where=where
        )
    drift = float(np.linalg.norm(vector / (vector @ normal) - normal))
    if drift > ORIENTATION_TOLERANCE:
        notes += (
            f"slices are shifted sideways as they advance ({np.degrees(np.arctan(drift)):.1f} degrees), the grid too",
        )
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = vector, down * spacing[0], across * spacing[1]
    lps[:3, 3] = positions[firsts[0]]
    return Grid((int(number[-1]) + 1, *size), geometry.LPS_TO_RAS @ lps), number[plane], notes


def _numbered(along: np.ndarray, declared: float, where: Path) -> tuple[np.ndarray, bool]:
    """(slice number of each position, whether their distance is a guess), for two positions or more in rising order.

    The declared distance is taken where the positions agree with it, else the largest that explains them, no finer than the
    smallest gap by `_FINEST`.
    """
    gaps = np.diff(along)
    order = np.argsort(gaps, kind="stable").tolist()
    smallest = float(gaps[order[0]])
    tries = [(declared, _LOOSE)] if 0 < declared < 1e3 else []
    tries += [(smallest / k, _LOOSE if k == 1 else _CLOSE) for k in range(1, _FINEST + 1)]
    for first, share in tries:
        counts = np.zeros(len(gaps), dtype=np.int64)
        step, total, steps = first, 0.0, 0
        for k in order:  # short gaps first: each makes the distance more exact for the longer ones
            count = round(min(float(gaps[k]) / step, 1e9))
            off = abs(float(gaps[k]) - count * step)
            if count < 1 or off > min(max(SPACING_TOLERANCE * count * step, 2 * SAME_GRID_MM), share * step):
                break
            counts[k] = count
            total, steps = total + float(gaps[k]), steps + count
            step = total / steps
        else:
            return np.concatenate([[0], np.cumsum(counts)]), bool(first != declared and counts.max() > 1)
    raise IrregularSpacingError(
        f"the distances of its frames ({gaps.min():.3f} to {gaps.max():.3f} mm) are no multiples of one slice distance",
        where=where,
        do="write it on an evenly spaced grid",
    )


def check_twice(slices: np.ndarray, segments: np.ndarray, names: Mapping[int, str], where: Path) -> None:
    """Raise ReadError where two frames show the same segment in the same slice."""
    pairs = np.unique(np.stack([segments, slices]), axis=1, return_counts=True)
    if pairs[1].max() > 1:
        segment, k = pairs[0][:, int(pairs[1].argmax())].tolist()
        raise ReadError(f"has {pairs[1].max()} frames of {names.get(segment, 'labels')} in slice {k}", where=where)
