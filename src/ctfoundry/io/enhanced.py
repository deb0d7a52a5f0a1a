"""Enhanced multi-frame CT: the frames of one file as if each were a slice in a file of its own.

What frames have in common stands in the Shared Functional Groups Sequence, what is each one's own in the Per-Frame one
(PS3.3 C.7.6.16, A.38). Enhanced CT and Legacy Converted Enhanced CT are read alike; converted elements that have no place in
a functional group stand in the Unassigned Converted Attributes Sequences (C.7.6.16.2.25).
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import Any

from ctfoundry.errors import ReadError
from ctfoundry.io import dicom_header
from ctfoundry.io.dicom_elements import EndError, Span, explicit_within, items, walk
from ctfoundry.io.dicom_file import Coding, elements
from ctfoundry.io.dicom_header import Header

CLASSES = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""SOP classes of Enhanced CT and of Legacy Converted Enhanced CT Image Storage."""

MOST_FRAMES = 1 << 16
"""A file that declares more frames is refused."""

_SHARED, _PER_FRAME, _FRAMES = 0x52009229, 0x52009230, 0x00280008

# Functional groups, and which of their elements matter.
_GROUPS = {
    0x00209113: {0x00200032: "position"},
    0x00209116: {0x00200037: "orientation"},
    0x00289110: {0x00280030: "spacing", 0x00180050: "thickness"},
    0x00289145: {0x00281052: "intercept", 0x00281053: "slope", 0x00281054: "rescale_type"},
    0x00209111: {0x00209056: "stack", 0x00209128: "temporal", 0x00209156: "acquisition"},
    0x00189329: {0x00089007: "image_type"},
    0x00189118: {0x00209241: "phase", 0x00209153: "trigger"},
    0x00189314: {0x00181210: "kernel"},
    0x00189325: {0x00180060: "kvp"},
    0x00189341: {0x00189344: "contrast"},
    0x00209170: {0x00200012: "acquisition", 0x00180060: "kvp", 0x00181210: "kernel"},
    0x00209171: {0x00200012: "acquisition", 0x00180060: "kvp", 0x00181210: "kernel", 0x00200100: "temporal"},
}


def is_enhanced(header: Header) -> bool:
    """Whether the file is of a class whose slices are frames."""
    return header.sop_class in CLASSES


def frames(header: Header) -> list[Header]:
    """One header a frame, in the order of the file.

    Raises ReadError when the counts of frames do not agree or a functional group is garbled.
    """
    path = header.path
    if not 1 <= header.frames <= MOST_FRAMES:
        raise ReadError(f"declares {header.frames:,} frames", where=path)
    values, coding, _, _ = elements(path, None, frozenset((_SHARED, _PER_FRAME)))
    try:
        own = _groups(values.get(_PER_FRAME, b""), coding, header.frames + 1)
        if len(own) != header.frames:
            more = "+" * (len(own) > header.frames)
            raise ReadError(f"declares {header.frames:,} frames and describes {len(own):,}{more}", where=path)
        common = {}
        for said in _groups(values.get(_SHARED, b""), coding, 1):
            common = said
        return [header._replace(frame=k, instance=k, **(common | said)) for k, said in enumerate(own)]
    except EndError:
        raise ReadError("its functional groups are longer than they may be", where=path) from None
    except (struct.error, ValueError, OverflowError) as error:
        raise ReadError(f"its functional groups are garbled ({error})", where=path) from error


def _groups(data: bytes, coding: Coding, most: int) -> list[dict[str, Any]]:
    """For each item of a sequence of functional groups, `most` at most, the fields of `Header` that it gives."""
    return [
        _said(data, start, stop, coding)
        for start, stop in islice(items(data, 0, len(data), coding.explicit, coding.order), most)
    ]


def _said(data: bytes, start: int, stop: int, coding: Coding) -> dict[str, Any]:
    said: dict[str, Any] = {}
    groups: dict[int, Span] = {}
    walk(data, start, stop, coding.explicit, coding.order, groups, _GROUPS)
    for group, names in _GROUPS.items():
        if group not in groups:
            continue
        span = groups[group]
        inner: dict[int, Span] = {}
        explicit = explicit_within(data, span, coding.explicit)
        for first, last in islice(items(data, span[1], span[2], explicit, coding.order), 1):
            walk(data, first, last, explicit, coding.order, inner, names)
        for tag, name in names.items():
            if tag in inner and (raw := data[inner[tag][1] : inner[tag][2]]):
                said[name] = _value(name, tag, raw, coding.order)
    return said


def _value(name: str, tag: int, raw: bytes, order: str) -> Any:
    """An element's value as `Header` holds it: enhanced objects keep some numbers in binary that others keep as text."""
    if name in ("position", "orientation", "spacing"):
        return dicom_header.decimals(raw)
    if name == "temporal" and tag == 0x00209128:
        return str(struct.unpack(order + "I", raw[:4])[0])
    if name == "acquisition" and tag == 0x00209156:
        return str(struct.unpack(order + "H", raw[:2])[0])
    if name in ("phase", "trigger"):
        kind, size = ("f", 4) if name == "phase" else ("d", 8)
        return f"{struct.unpack(order + kind, raw[:size])[0]:g}"
    if name in ("thickness", "intercept", "slope", "kvp"):
        return next(iter(dicom_header.decimals(raw)), None)
    return dicom_header.decoded(raw)
