"""DICOM segmentations in: SEG objects of all three kinds become label maps on a regular grid.

Segmentation Storage holds one frame for each segment and slice, as bits (BINARY) or as 8-bit shares (FRACTIONAL); Label Map
Segmentation Storage holds one frame a slice whose numbers are segments (LABELMAP); DICOM PS3.3 A.51 and C.8.20. Empty slices
are usually left out, frames come in any order, and only each frame's Image Position says where it lies. So frames are
placed by geometry alone, and a bit is looked at only where its word of 64 is not zero: most of a segmentation is empty.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ctfoundry import geometry
from ctfoundry.errors import (
    GeometryError,
    IrregularSpacingError,
    NotAScanError,
    ReadError,
    TruncatedError,
    UsageError,
)
from ctfoundry.geometry import ORIENTATION_TOLERANCE, POSITION_TOLERANCE_MM, SAME_GRID_MM, SPACING_TOLERANCE, Grid
from ctfoundry.io import objects
from ctfoundry.io.frames import plain_frames, unpacked_frames
from ctfoundry.io.overlaps import Overlap, Painter, pick, ranks
from ctfoundry.io.references import embedded
from ctfoundry.io.stream import CAP, check_cap
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

_BLOCK = 64  # bits that are looked at together
_FINEST = 4
"""Where no slice distance is declared it is searched down to this part of the smallest gap."""
_LOOSE, _CLOSE = 0.1, 0.05
"""Shares of a slice distance by which a gap may miss a whole number of them, where the distance is known and where guessed."""
_POSITION, _SEGMENT, _ORIENTATION, _MEASURES = 0x00209113, 0x0062000A, 0x00209116, 0x00289110
_LEAVES = {
    _POSITION: (0x00200032,),
    _SEGMENT: (0x0062000B,),
    _ORIENTATION: (0x00200037,),
    _MEASURES: (0x00280030, 0x00180050, 0x00180088),
}


@dataclass(frozen=True)
class Segmentation:
    """What a SEG object holds, by its header.

    Attributes
    ----------
    grid : the regular grid that its frames imply; empty slices beyond the first and last frame are not part of it.
    names : segment number to label.
    kind : "BINARY", "FRACTIONAL" or "LABELMAP".
    slices, segments : slice index and segment number of each frame (segment 0: the frame holds numbers itself).
    references : the images that it was made of.
    notes : what a person should know of how it was read.
    """

    object: objects.DicomObject
    grid: Grid
    names: Mapping[int, str]
    kind: Literal["BINARY", "FRACTIONAL", "LABELMAP"]
    slices: np.ndarray
    segments: np.ndarray
    references: objects.References
    notes: tuple[str, ...]


def read_seg(
    path: str | os.PathLike[str],
    *,
    onto: Grid | None = None,
    names: Sequence[int | str] | None = None,
    overlap: Overlap = "error",
    threshold: float | None = None,
    cap: int = CAP,
) -> Volume:
    """Read a DICOM SEG as one label map.

    Parameters
    ----------
    path : the SEG file.
    onto : the grid that the labels shall have, such as that of the image; by default the regular grid that the frames imply,
        from the first slice that holds something to the last.
    names : segments to read, by number or label; all by default.
    overlap : what to do where segments overlap (`Overlap`).
    threshold : FRACTIONAL segments hold a voxel from this share on (0 < threshold <= 1).
    cap : most bytes of the label map.

    Returns
    -------
    Volume : kind "label", voxels = segment numbers, names = segment labels. Slices are (row, column) images in the order of
    their positions along the normal, as `io.read` orders a CT series.

    Raises
    ------
    OverlapError : segments overlap and `overlap` is "error".
    NotAScanError : no SEG; FRACTIONAL without a threshold; a tiled slide.
    GeometryError, IrregularSpacingError, TooLargeError, TruncatedError, ReadError : see docs/readers.md.
    """
    seg = seg_header(path, cap=cap)
    chosen = pick(seg.names, names, seg.object.path)
    voxels, notes = _label_map(seg, chosen, overlap, _checked_threshold(seg, threshold), cap)
    labels = Volume(
        voxels,
        seg.grid.affine,
        "label",
        names={k: seg.names[k] for k in chosen},
        source="dicom seg",
        notes=(*seg.notes, *_threshold_note(seg, threshold), *notes),
    )
    return labels if onto is None else embedded(labels, _capped(onto, voxels.itemsize, cap, seg.object.path))


def read_seg_masks(
    path: str | os.PathLike[str],
    *,
    onto: Grid | None = None,
    names: Sequence[int | str] | None = None,
    threshold: float | None = None,
    cap: int = CAP,
) -> dict[str, Volume]:
    """Read a DICOM SEG as one mask of 0 and its segment number for each segment, which may overlap; otherwise as `read_seg`.

    The keys are segment labels; a label that stands twice is followed by its number. `cap` bounds all masks together.
    """
    seg = seg_header(path, cap=cap)
    chosen = pick(seg.names, names, seg.object.path)
    threshold = _checked_threshold(seg, threshold)
    size = int(np.prod(seg.grid.shape, dtype=object))
    dtype = _label_type(seg.names)
    check_cap(size * len(chosen) * dtype.itemsize, cap, seg.object.path)
    masks = {k: np.zeros(seg.grid.shape, dtype=dtype) for k in chosen}
    for frame, blocks, bits in _marks(seg, chosen, threshold):
        number = int(seg.segments[frame])
        if number == 0:
            for k in np.unique(bits).tolist():
                if k in masks:
                    masks[k][seg.slices[frame]][blocks] = np.where(bits == k, k, 0)
            continue
        target = masks[number][seg.slices[frame]].reshape(-1, bits.shape[1])
        target[blocks] |= bits.astype(dtype) * dtype.type(number)
    notes = seg.notes + _threshold_note(seg, threshold)
    result = {}
    for k, mask in masks.items():
        volume = Volume(mask, seg.grid.affine, "label", names={k: seg.names[k]}, source="dicom seg", notes=notes)
        if onto is not None:
            volume = embedded(volume, _capped(onto, dtype.itemsize * len(chosen), cap, seg.object.path))
        result[seg.names[k]] = volume
    return result


def seg_header(path: str | os.PathLike[str], *, cap: int = CAP) -> Segmentation:
    """What a SEG object holds and where its frames lie, without its pixels. Raises as `read_seg`."""
    found = objects.load(path, cap=cap)
    with objects.parsing(found.path):
        return _header(found, cap)


def _header(found: objects.DicomObject, cap: int) -> Segmentation:
    data, where = found.data, found.path
    if found.sop_class not in objects.SEG_CLASSES:
        raise NotAScanError(f"is no DICOM segmentation (class {found.sop_class or 'missing'})", where=where)
    kind = objects.text(data.get("SegmentationType")).upper()
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise ReadError(f"has segmentation type {kind or 'nothing'!r}", where=where)
    try:
        rows, columns, count = int(data.Rows), int(data.Columns), int(data.NumberOfFrames)
    except (AttributeError, TypeError, ValueError) as error:
        raise ReadError(f"does not say how many frames of which size it holds ({error})", where=where) from error
    if min(rows, columns, count) < 1:
        raise ReadError(f"declares {count} frames of {columns}x{rows}", where=where)
    if objects.FRAMES not in found.large:
        tiled = "TotalPixelMatrixRows" in data
        raise NotAScanError("is a tiled slide" if tiled else "says of no frame where it lies", where=where)
    names = _names(data, where)
    frames = _frames(found, count)
    shared = _shared(data)
    orientation = _one(_ORIENTATION, "image orientation", frames, shared, where)
    measures = _one(_MEASURES, "pixel spacing", frames, shared, where)
    positions = _positions(frames, shared, where)
    segments = np.zeros(count, dtype=np.int64)
    if kind != "LABELMAP":
        segments[:] = [_segment(f.get(_SEGMENT) or shared.get(_SEGMENT), names, where) for f in frames]
    grid, slices, notes = _grid(positions, orientation, measures, (rows, columns), where)
    size = (1 if kind != "LABELMAP" else 2) * int(np.prod(grid.shape, dtype=object))
    check_cap(size, cap, where)
    _check_twice(slices, segments, names, where)
    return Segmentation(found, grid, names, kind, slices, segments, objects.references(data), notes)  # type: ignore[arg-type]


def _label_map(
    seg: Segmentation, chosen: list[int], overlap: Overlap, threshold: float | None, cap: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(label map, notes)."""
    dtype = _label_type(seg.names)
    check_cap(int(np.prod(seg.grid.shape, dtype=object)) * dtype.itemsize, cap, seg.object.path)
    out = np.zeros(seg.grid.shape, dtype=dtype)
    if seg.kind == "LABELMAP":
        for frame, _, numbers in _marks(seg, chosen, None):
            out[seg.slices[frame]] = numbers
        _check_numbers(out, seg)
        if len(chosen) < len(seg.names):
            out[~np.isin(out, chosen)] = 0
        return out, ()
    sizes: dict[int, int] | None = None
    if isinstance(overlap, str) and overlap == "smallest":
        sizes = {}
        for frame, _, bits in _marks(seg, chosen, threshold):
            number = int(seg.segments[frame])
            sizes[number] = sizes.get(number, 0) + int(np.count_nonzero(bits))
    painter = Painter(ranks({k: seg.names[k] for k in chosen}, overlap, sizes, seg.object.path))
    for frame, blocks, bits in _marks(seg, chosen, threshold):
        target = out[seg.slices[frame]].reshape(-1, bits.shape[1])
        target[blocks] = painter.paint(target[blocks], bits, int(seg.segments[frame]))
    return out, painter.finish(seg.names, seg.object.path)


def _marks(seg: Segmentation, chosen: list[int], threshold: float | None) -> Iterator[tuple[int, Any, np.ndarray]]:
    """(frame, blocks, values) of each frame of the chosen segments.

    A slice is seen as (blocks, width); `values` are those of `blocks` alone, (n, width): bool, or numbers of a LABELMAP.
    """
    wanted = np.isin(seg.segments, chosen) | (seg.segments == 0)
    _, rows, columns = seg.grid.shape
    for frame, values in _frames_of(seg, wanted):
        if values.dtype == np.uint64:  # 64 bits a word
            blocks = np.flatnonzero(values)
            if blocks.size:
                bits = np.unpackbits(values[blocks].view(np.uint8), bitorder="little")
                yield frame, blocks, bits.view(bool).reshape(-1, _BLOCK)
            continue
        image = values.reshape(rows, columns)
        if seg.kind == "LABELMAP":
            yield frame, slice(None), image
            continue
        mask = image.astype(bool, copy=False) if threshold is None else image >= threshold
        lines = np.flatnonzero(mask.any(axis=1))
        if lines.size:
            yield frame, lines, mask[lines]


def _frames_of(seg: Segmentation, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(frame, values) of the wanted frames: numbers (rows * columns,), or the bits as words of 64 where they fill such."""
    data, where = seg.object.data, seg.object.path
    allocated, signed = int(data.get("BitsAllocated", 0) or 0), int(data.get("PixelRepresentation", 0) or 0)
    fits = {"BINARY": (1, 8), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}[seg.kind]
    if allocated not in fits or signed or int(data.get("SamplesPerPixel", 1) or 1) != 1:
        raise ReadError(f"is {seg.kind} with {allocated} bits a pixel", where=where)
    if objects.PIXEL_DATA not in seg.object.large:
        raise TruncatedError("has no pixels", where=where, do="copy or download the file again")
    size = seg.grid.shape[1] * seg.grid.shape[2]
    if seg.object.large[objects.PIXEL_DATA].stop >= 0:
        return plain_frames(seg.object, size, allocated, wanted)
    return unpacked_frames(seg.object, (seg.grid.shape[1], seg.grid.shape[2]), allocated, wanted)


def _checked_threshold(seg: Segmentation, threshold: float | None) -> float | None:
    """The stored value from which a FRACTIONAL frame holds a voxel; None for the other kinds."""
    if seg.kind != "FRACTIONAL":
        return None
    most = int(seg.object.data.get("MaximumFractionalValue", 255) or 255)
    what = objects.text(seg.object.data.get("SegmentationFractionalType")).lower() or "share"
    if threshold is None:
        raise NotAScanError(
            f"is FRACTIONAL: its values 0 to {most} are each segment's {what}, not labels",
            where=seg.object.path,
            do="say from which share on a voxel belongs to a segment: read_seg(path, threshold=0.5)",
        )
    if not 0 < threshold <= 1:
        raise UsageError(f"a threshold is a share above 0 and up to 1, not {threshold}")
    return threshold * most


def _threshold_note(seg: Segmentation, threshold: float | None) -> tuple[str, ...]:
    return (f"fractional segments cut at a share of {threshold:g}",) if seg.kind == "FRACTIONAL" else ()


def _label_type(names: Mapping[int, str]) -> np.dtype:
    return np.dtype(np.uint8 if max(names) < 1 << 8 else np.uint16)


def _capped(grid: Grid, itemsize: int, cap: int, where: Path) -> Grid:
    check_cap(int(np.prod(grid.shape, dtype=object)) * itemsize, cap, where)
    return grid


def _check_numbers(out: np.ndarray, seg: Segmentation) -> None:
    unknown = sorted({int(v) for v in np.unique(out)} - set(seg.names) - {0})
    if unknown:
        raise ReadError(f"holds the numbers {unknown[:8]}, which it describes as no segment", where=seg.object.path)


def _names(data: Dataset, where: Path) -> dict[int, str]:
    """Segment number to label; the label of the property type stands in for an empty one."""
    names: dict[int, str] = {}
    for item in data.get("SegmentSequence", None) or []:
        try:
            number = int(item.SegmentNumber)
        except (AttributeError, TypeError, ValueError) as error:
            raise ReadError(f"has a segment without a number ({error})", where=where) from error
        if number == 0:
            continue  # the background of a label map
        if not 0 < number < 1 << 16 or number in names:
            raise ReadError(f"numbers a segment {number}{' twice' if number in names else ''}", where=where)
        label = objects.text(item.get("SegmentLabel"))
        for meaning in item.get("SegmentedPropertyTypeCodeSequence", None) or []:
            label = label or objects.text(meaning.get("CodeMeaning"))
        names[number] = label or f"segment {number}"
    if not names:
        raise ReadError("describes no segment", where=where)
    labels = Counter(names.values())
    return {k: name if labels[name] == 1 else f"{name} {k}" for k, name in names.items()}


# Where the frames lie --------------------------------------------------------------------------------------------------


def _frames(found: objects.DicomObject, count: int) -> list[dict[int, dict[int, bytes]]]:
    """For each frame, the wanted elements of its functional groups, as they stand in the file."""
    span, where = found.large[objects.FRAMES], found.path
    data, result = bytes(found.buffer[span.start : span.stop]), []
    try:
        for start, stop in objects.items(data, 0, len(data), found.explicit):
            groups: dict[int, dict[int, bytes]] = {}
            for tag, _, first, last, _ in objects.elements(data, start, stop, found.explicit):
                if tag in _LEAVES:
                    for begin, end in objects.items(data, first, last, found.explicit):
                        groups[tag] = {
                            leaf: data[a:b]
                            for leaf, _, a, b, _ in objects.elements(data, begin, end, found.explicit)
                            if leaf in _LEAVES[tag]
                        }
                        break
            result.append(groups)
            if len(result) > count:
                break
    except objects.EndError:
        raise TruncatedError("its list of frames ends too early", where=where) from None
    except ValueError as error:
        raise ReadError(f"its list of frames is damaged ({error})", where=where) from error
    if len(result) != count:
        raise ReadError(f"declares {count} frames and lists {len(result)}{'+' * (len(result) > count)}", where=where)
    return result


def _shared(data: Dataset) -> dict[int, dict[int, bytes]]:
    """The wanted elements that all frames share, in the form of `_frames`."""
    result: dict[int, dict[int, bytes]] = {}
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
    if tag in _LEAVES[_SEGMENT]:
        return int(values[0]).to_bytes(2, "little")
    return "\\".join(map(str, values)).encode()


def _one(
    group: int, what: str, frames: list[dict[int, dict[int, bytes]]], shared: dict[int, dict[int, bytes]], where: Path
) -> dict[int, tuple[float, ...]]:
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


def _positions(
    frames: list[dict[int, dict[int, bytes]]], shared: dict[int, dict[int, bytes]], where: Path
) -> np.ndarray:
    tag = _LEAVES[_POSITION][0]
    seen: dict[bytes, tuple[float, ...]] = {}
    result = []
    for frame in frames:
        value = (frame.get(_POSITION) or shared.get(_POSITION) or {}).get(tag, b"")
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


def _segment(group: Mapping[int, bytes] | None, names: Mapping[int, str], where: Path) -> int:
    value = (group or {}).get(_LEAVES[_SEGMENT][0], b"")
    number = int.from_bytes(value[:2], "little")
    if number not in names:
        raise ReadError(
            f"has a frame of segment {number if value else 'no number'}, which it does not describe", where=where
        )
    return number


def _grid(
    positions: np.ndarray,
    orientation: Mapping[int, tuple[float, ...]],
    measures: Mapping[int, tuple[float, ...]],
    size: tuple[int, int],
    where: Path,
) -> tuple[Grid, np.ndarray, tuple[str, ...]]:
    """(grid, slice of each frame, notes): the coarsest regular grid on which all frames lie."""
    cosines = orientation.get(_LEAVES[_ORIENTATION][0], ())
    spacing, thickness, declared = (measures.get(tag, ()) for tag in _LEAVES[_MEASURES])
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


def _check_twice(slices: np.ndarray, segments: np.ndarray, names: Mapping[int, str], where: Path) -> None:
    pairs = np.unique(np.stack([segments, slices]), axis=1, return_counts=True)
    if pairs[1].max() > 1:
        segment, k = pairs[0][:, int(pairs[1].argmax())].tolist()
        raise ReadError(f"has {pairs[1].max()} frames of {names.get(segment, 'labels')} in slice {k}", where=where)
