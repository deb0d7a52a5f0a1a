"""A volume thinned while it is read: enough for a picture and a histogram, in little memory whatever the scan's size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ctfoundry import geometry
from ctfoundry.errors import GeometryError, TruncatedError
from ctfoundry.io import kinds, raw, reading
from ctfoundry.io.discovery import Found
from ctfoundry.io.stream import CAP, Stream, check_cap
from ctfoundry.volume import Volume

LARGEST = 2 << 30
"""A file inside an archive, and one whose frames lie in no order, is read whole, up to this size."""
LONGEST = 256
"""Voxels along an axis that a glance keeps, at most twice as many; three planes of 200 pixels need no more."""
FIRST = 8
"""Slices that are looked at to tell a scan from a label map before it is read whole."""
WHOLE = 192 << 20
"""A file whose numbers take no more bytes than this is read whole, by the reader that checks everything."""


def glance(found: Found, *, cap: int = CAP, threads: int | None = None) -> Volume:
    """Every k-th voxel along each axis of what `found` names, so that about `LONGEST` are left of long axes.

    Slices that are left out are not read, or thrown away as they come. Labels and HU are told apart by the voxels that are left.

    Raises whatever reading the scan raises.
    """
    if found.problem is not None:
        raise found.problem
    if found.format == "dicom":
        step = _step(found)
        try:
            return thinned(_every(found, step).read(cap=cap, threads=threads))
        except GeometryError:
            if step == 1 or not found.frames:
                raise
            return thinned(found.read(cap=min(cap, LARGEST), threads=threads))  # frames in no order of their places
    if found.members:
        return thinned(found.read(cap=min(cap, LARGEST), threads=threads))
    declared = reading.HEADERS[found.format](found.path)
    if declared.size <= WHOLE or declared.text:
        return thinned(found.read(cap=cap, threads=threads))
    return _streamed(declared, cap)


def is_label(found: Found, *, cap: int = CAP) -> bool:
    """Whether `found.read` gives a label map, told from as few slices as show that it is none: one with a number below 0, as air
    is, or between whole ones. Only what has none in its first slices is read whole.

    Raises whatever is found wrong on the way; what lies behind the first slices of a scan is not looked at.
    """
    if found.problem is not None:
        raise found.problem
    if found.format == "dicom" or found.members:
        return found.read(cap=cap).kind == "label"
    declared = reading.HEADERS[found.format](found.path)
    measured = not declared.text and _is_measured(declared, cap)
    return not measured and found.read(cap=cap).kind == "label"


def _is_measured(declared: raw.Declared, cap: int) -> bool:
    """Whether one of the first slices holds a number that no label map has."""
    d, h, w = declared.shape
    slice_bytes = h * w * declared.dtype.itemsize
    check_cap(slice_bytes, min(cap, WHOLE), declared.path)
    buffer = np.empty((1, h, w), dtype=declared.dtype)
    with Stream(declared.data, declared.packing, declared.start) as stream:
        stream.skip(declared.skip)
        for _ in range(min(d, FIRST)):
            if stream.readinto(buffer.data.cast("B")) < slice_bytes:
                return False  # the reader says what is wrong
            own = buffer if buffer.dtype.isnative else buffer.byteswap().view(buffer.dtype.newbyteorder())
            values = kinds.scaled(own, declared.slope, declared.intercept)
            if float(values.min()) < 0 or not kinds.is_whole(values):
                return True
    return False


def _step(found: Found) -> int:
    """Every how manyth slice is read: few enough, and small enough together, but three tell the spacing."""
    assert found.grid is not None
    d, h, w = found.grid.shape
    return max(1, min(max(d // LONGEST, -(-d * h * w * 2 // WHOLE)), (d - 1) // 2))


def _every(found: Found, step: int) -> Found:
    """The same series with every `step`-th slice only."""
    if step == 1:
        return found
    if len(found.members or found.paths) == 1:  # one multi-frame file
        return replace(found, frames=tuple(f[::step] for f in found.frames))
    each = slice(None, None, step)
    paths = found.paths if found.members else found.paths[each]
    return replace(found, paths=paths, members=found.members[each], frames=found.frames[each])


def thinned(volume: Volume) -> Volume:
    """Every k-th voxel along each axis, at places that keep their world coordinates."""
    steps = [max(1, n // LONGEST) for n in volume.shape]
    if steps == [1, 1, 1]:
        return volume
    part = tuple(slice(None, None, s) for s in steps)
    return replace(
        volume,
        voxels=np.ascontiguousarray(volume.voxels[part]),
        affine=geometry.as_affine(volume.affine @ np.diag([*map(float, steps), 1.0])),
        valid=None if volume.valid is None else np.ascontiguousarray(volume.valid[part]),
    )


def _streamed(declared: raw.Declared, cap: int) -> Volume:
    """A large file slice by slice; of a slice only every k-th row and column is kept."""
    d, h, w = declared.shape
    steps = [max(1, n // LONGEST) for n in declared.shape]
    slice_bytes = h * w * declared.dtype.itemsize
    check_cap(slice_bytes, min(cap, WHOLE), declared.path)
    kept = np.empty([len(range(0, n, s)) for n, s in zip(declared.shape, steps, strict=True)], dtype=declared.dtype)
    buffer = np.empty((h, w), dtype=declared.dtype)
    with Stream(declared.data, declared.packing, declared.start) as stream:
        stream.skip(declared.skip)
        for k in range(0, d, steps[0]):
            if stream.readinto(buffer.data.cast("B")) < slice_bytes:
                raise TruncatedError(
                    "ends before its last slice", where=declared.path, do="copy or download the file again"
                )
            kept[k // steps[0]] = buffer[:: steps[1], :: steps[2]]
            stream.skip(slice_bytes * min(steps[0] - 1, d - k - 1))
    if not kept.dtype.isnative:
        kept = kept.byteswap().view(kept.dtype.newbyteorder())
    kinds.check_finite(kept, declared.path)
    voxels = kinds.scaled(kept, declared.slope, declared.intercept)
    kind, notes = kinds.judge(voxels, None, declared.path, says_label=declared.says_label)
    voxels, valid = kinds.finished(voxels, kind)
    affine = geometry.as_affine(declared.affine @ np.diag([*map(float, steps), 1.0]))
    return Volume(voxels, affine, kind, valid=valid, source=declared.format, notes=declared.notes + notes)
