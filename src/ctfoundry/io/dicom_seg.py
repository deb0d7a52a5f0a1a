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

from ctfoundry.errors import NotAScanError, ReadError, TruncatedError, UsageError
from ctfoundry.geometry import Grid
from ctfoundry.io import objects, seg_geometry
from ctfoundry.io.frames import plain_frames, unpacked_frames
from ctfoundry.io.overlaps import Overlap, Painter, pick, ranks
from ctfoundry.io.references import embedded
from ctfoundry.io.stream import CAP, check_cap
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

_BLOCK = 64  # bits that are looked at together


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
    stored = _checked_threshold(seg, threshold)
    size = int(np.prod(seg.grid.shape, dtype=object))
    dtype = _label_type(seg.names)
    check_cap(size * len(chosen) * dtype.itemsize, cap, seg.object.path)
    masks = {k: np.zeros(seg.grid.shape, dtype=dtype) for k in chosen}
    for frame, blocks, bits in _marks(seg, chosen, stored):
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
    frames = seg_geometry.frames_of(found, count)
    shared = seg_geometry.shared_groups(data)
    orientation = seg_geometry.common(seg_geometry.ORIENTATION, "image orientation", frames, shared, where)
    measures = seg_geometry.common(seg_geometry.MEASURES, "pixel spacing", frames, shared, where)
    positions = seg_geometry.positions_of(frames, shared, where)
    segments = np.zeros(count, dtype=np.int64)
    if kind != "LABELMAP":
        segments[:] = [
            seg_geometry.segment_of(f.get(seg_geometry.SEGMENT) or shared.get(seg_geometry.SEGMENT), names, where)
            for f in frames
        ]
    grid, slices, notes = seg_geometry.regular_grid(positions, orientation, measures, (rows, columns), where)
    size = (1 if kind != "LABELMAP" else 2) * int(np.prod(grid.shape, dtype=object))
    check_cap(size, cap, where)
    seg_geometry.check_twice(slices, segments, names, where)
    return Segmentation(found, grid, names, kind, slices, segments, objects.references(data), notes)  # type: ignore[arg-type]


def _label_map(
    seg: Segmentation, chosen: list[int], overlap: Overlap, threshold: float | None, cap: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(label map, notes)."""
    dtype = _label_type(seg.names)
    check_cap(int(np.prod(seg.grid.shape, dtype=object)) * dtype.itemsize, cap, seg.object.path)
    out = np.zeros(seg.grid.shape, dtype=dtype)
    if seg.kind == "LABELMAP":
        described = np.zeros(1 << 16, dtype=bool)
        described[[0, *seg.names]] = True
        kept = np.zeros(1 << 16, dtype=dtype)
        kept[chosen] = chosen
        for frame, _, numbers in _marks(seg, chosen, None):
            if not described[numbers].all():
                unknown = np.unique(numbers[~described[numbers]])[:8].tolist()
                raise ReadError(f"holds the numbers {unknown}, which it describes as no segment", where=seg.object.path)
            out[seg.slices[frame]] = numbers if len(chosen) == len(seg.names) else kept[numbers]
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
    for frame, values in _values_of(seg, wanted):
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


def _values_of(seg: Segmentation, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
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
