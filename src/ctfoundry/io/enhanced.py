"""Enhanced multi-frame CT: the frames of one file as if each were a slice in a file of its own.

What frames have in common stands in the Shared Functional Groups Sequence, what is each one's own in the Per-Frame one
(PS3.3 C.7.6.16, A.38). Enhanced CT and Legacy Converted Enhanced CT are read alike; converted elements that have no place in
a functional group stand in the Unassigned Converted Attributes Sequences (C.7.6.16.2.25).
"""

from __future__ import annotations

import struct
from typing import Any

from ctfoundry.errors import ReadError
from ctfoundry.io import dicom_header
from ctfoundry.io.dicom_header import ITEM, ITEM_END, SEQUENCE_END, UNDEFINED, Header

CLASSES = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""SOP classes of Enhanced CT and of Legacy Converted Enhanced CT Image Storage."""

MOST_FRAMES = 1 << 16
"""A file that declares more frames is refused."""

_SHARED, _PER_FRAME, _FRAMES = 0x52009229, 0x52009230, 0x00280008
_DEEPEST = 16  # sequences within sequences

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
    wanted = dicom_header.WANTED | {_SHARED, _PER_FRAME}
    values, coding, _, _ = dicom_header.elements(path, None, wanted)
    try:
        shared = _items(values.get(_SHARED, b""), coding.explicit, coding.order)
        own = _items(values.get(_PER_FRAME, b""), coding.explicit, coding.order)
        if len(own) != header.frames:
            raise ReadError(f"declares {header.frames:,} frames and describes {len(own):,}", where=path)
        common = _said(shared[0], coding.order) if shared else {}
        return [
            header._replace(frame=k, instance=k, **(common | _said(item, coding.order))) for k, item in enumerate(own)
        ]
    except (struct.error, ValueError, OverflowError, IndexError) as error:
        raise ReadError(f"its functional groups are garbled ({error})", where=path) from error


def _said(item: dict[int, Any], order: str) -> dict[str, Any]:
    """Fields of `Header` that the functional groups in `item` give."""
    said: dict[str, Any] = {}
    for group, names in _GROUPS.items():
        for inner in (item.get(group) or [])[:1]:
            for tag, name in names.items():
                raw = inner.get(tag)
                if isinstance(raw, bytes) and raw:
                    said[name] = _value(name, tag, raw, order)
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


# Sequences -----------------------------------------------------------------------------------------------------------


def _items(data: bytes, explicit: bool, order: str, depth: int = 0) -> list[dict[int, Any]]:
    """The items of a sequence: tag to bytes, or to the items of a sequence within."""
    return _read_items(data, 0, len(data), explicit, order, depth)[0]


def _read_items(
    data: bytes, at: int, end: int, explicit: bool, order: str, depth: int
) -> tuple[list[dict[int, Any]], int]:
    items: list[dict[int, Any]] = []
    if depth > _DEEPEST:
        raise ValueError("sequences within sequences without end")
    while at + 8 <= end:
        group, number, length = struct.unpack_from(order + "HHI", data, at)
        tag, at = group << 16 | number, at + 8
        if tag == SEQUENCE_END:
            return items, at
        if tag != ITEM:
            raise ValueError(f"no item of a sequence: {tag:08x}")
        stop = end if length == UNDEFINED else at + length
        if stop > end:
            raise ValueError("an item is longer than its sequence")
        item, at = _read_item(data, at, stop, explicit, order, depth)
        items.append(item)
    return items, at


def _read_item(data: bytes, at: int, end: int, explicit: bool, order: str, depth: int) -> tuple[dict[int, Any], int]:
    item: dict[int, Any] = {}
    while at + 8 <= end:
        group, number = struct.unpack_from(order + "HH", data, at)
        if group << 16 | number == ITEM_END:
            return item, at + 8
        tag, vr, length, at = dicom_header.element(data, at, explicit, order)
        if length != UNDEFINED and at + length > end:
            raise ValueError("an element is longer than its item")
        if vr == b"SQ" or (tag in _GROUPS and (not explicit or vr == b"UN")) or length == UNDEFINED:
            stop = end if length == UNDEFINED else at + length
            item[tag], behind = _read_items(data, at, stop, explicit and vr != b"UN", order, depth + 1)
            at = behind if length == UNDEFINED else stop
        else:
            item[tag] = data[at : at + length]
            at += length
    return item, at
