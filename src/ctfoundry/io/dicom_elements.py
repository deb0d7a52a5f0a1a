"""The walker over DICOM elements, items and sequences in bytes: explicit and implicit, either byte order (PS3.5 section 7).

Everything that looks into a data set without pydicom goes through it. The bytes are untrusted: no length leads beyond the end that
the caller gives, sequences nest `DEEPEST` deep, and a data set has at most `MOST_ELEMENTS` elements. Nothing is copied or
interpreted; what comes out are places.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator

PIXELS = 0x7FE00010
UNDEFINED = 0xFFFFFFFF
"""Length of an element that ends by a mark."""
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
"""Tags of the marks in sequences."""
LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""Value representations whose length takes four bytes."""
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Those whose length takes two."""
DEEPEST = 32
"""Sequences within sequences."""
MOST_ELEMENTS = 1 << 20
"""Elements of one data set that are all wanted; headers of scanners hold some hundred."""

_ENDLESS = frozenset((b"SQ", b"UN", b"OB", b"OW", b""))  # what may have no length: sequences and fragments
_HEADS = {
    (explicit, order): struct.Struct(order + ("HH2sH" if explicit else "HHI")).unpack_from
    for explicit in (False, True)
    for order in "<>"
}
_LONG = {order: struct.Struct(order + "I").unpack_from for order in "<>"}

Span = tuple[int, int, int]
"""Where an element lies: its first byte, the first of its value, the byte behind it with the closing mark that it may have."""


class EndError(Exception):
    """The bytes end within an element."""


class ElementsError(ValueError):
    """The bytes are no data set, or one that is nested too deeply or too long."""


def head(data: bytes, at: int, end: int, explicit: bool, order: str) -> tuple[int, bytes, int, int]:
    """(tag, value representation, length, byte of the value) of the element at `at`. Raises EndError and ElementsError."""
    if at + 8 > end:
        raise EndError
    if not explicit:
        group, number, length = _HEADS[False, order](data, at)
        return group << 16 | number, b"", length, at + 8
    group, number, vr, length = _HEADS[True, order](data, at)
    if vr in SHORT_VRS:
        return group << 16 | number, vr, length, at + 8
    if vr not in LONG_VRS:
        raise ElementsError(f"no value representation at byte {at}")
    if at + 12 > end:
        raise EndError
    return group << 16 | number, vr, _LONG[order](data, at + 8)[0], at + 12


def walk(
    data: bytes,
    at: int,
    end: int,
    explicit: bool,
    order: str,
    found: dict[int, Span],
    wanted: Container[int] | None = None,
    *,
    before: int = ITEM,
    rising: bool = False,
    depth: int = 0,
) -> int:
    """Walk the data set at `at` and put the places of the wanted elements into `found`.

    Ends at `end` or in front of the first element whose tag is `before` or higher (of an item in a sequence, at its closing
    mark), and returns that byte. One loop without calls for plain elements, because it decides how long opening a folder takes.

    Parameters
    ----------
    explicit : whether elements state their value representation.
    order : ``"<"`` or ``">"``, as `struct` names byte orders.
    wanted : tags; None for all.
    before : tag where to stop.
    rising : insist that tags rise, as the standard has it.
    depth : of the sequence around it.

    Raises EndError, with `found` as far as it came, and ElementsError.
    """
    unpack, unpack_long, vr = _HEADS[explicit, order], _LONG[order], b""
    tag, last_begin = 0, end - 8
    while at <= last_begin:
        begin, last = at, tag
        at += 8
        if explicit:
            group, number, vr, length = unpack(data, begin)
            tag = group << 16 | number
            if tag >= before:
                return begin
            if vr not in SHORT_VRS:
                if vr not in LONG_VRS:
                    raise ElementsError(f"no value representation at byte {begin}")
                if at + 4 > end:
                    raise EndError
                (length,) = unpack_long(data, at)
                at += 4
        else:
            group, number, length = unpack(data, begin)
            tag = group << 16 | number
            if tag >= before:
                return begin
        if rising and tag <= last:
            raise ElementsError(f"tags do not rise at byte {begin}")
        value = at
        if length != UNDEFINED:
            at += length
        elif vr in _ENDLESS:
            at = _behind_sequence(data, at, end, explicit and vr != b"UN", order, depth + 1)
        else:
            raise ElementsError(f"a value without length at byte {begin}")
        if wanted is None:
            if len(found) == MOST_ELEMENTS:
                raise ElementsError(f"more than {MOST_ELEMENTS:,} elements")
        elif tag not in wanted:
            continue
        found[tag] = begin, value, at
    if at > end:
        found.pop(tag, None)
    if at != end:
        raise EndError
    return at


def items(data: bytes, at: int, end: int, explicit: bool, order: str) -> Iterator[tuple[int, int]]:
    """(first byte, byte behind the last) of the data set of each item of the sequence whose value lies in `at` to `end`.

    Raises EndError and ElementsError.
    """
    while at < end:
        start, stop, at = _item(data, at, end, explicit, order, 0)
        if start < 0:
            return
        yield start, stop


def explicit_within(data: bytes, span: Span, explicit: bool) -> bool:
    """Whether the items of a sequence are explicit: one of unknown kind is written implicitly (PS3.5 6.2.2, note to UN)."""
    return explicit and data[span[0] + 4 : span[0] + 6] != b"UN"


def mark(data: bytes, at: int, order: str) -> tuple[int, int]:
    """(tag, length) of the mark at `at`; marks have no value representation in either coding. Raises EndError."""
    if at + 8 > len(data):
        raise EndError
    group, number, length = _HEADS[False, order](data, at)
    return group << 16 | number, length


def _item(data: bytes, at: int, end: int, explicit: bool, order: str, depth: int) -> tuple[int, int, int]:
    """(first byte, byte behind the last, byte behind the item) of the item at `at`; the first is -1 for the closing mark."""
    if at + 8 > end:
        raise EndError
    tag, length = mark(data, at, order)
    at += 8
    if tag == SEQUENCE_END:
        return -1, -1, at
    if tag != ITEM:
        raise ElementsError(f"a sequence holds {tag:08x} where an item should be")
    if length != UNDEFINED:
        if at + length > end:
            raise EndError
        return at, at + length, at + length
    stop = walk(data, at, end, explicit, order, {}, (), depth=depth)
    if stop == end:
        raise EndError
    if mark(data, stop, order)[0] != ITEM_END:
        raise ElementsError(f"an item holds a mark at byte {stop} that does not close it")
    return at, stop, stop + 8


def _behind_sequence(data: bytes, at: int, end: int, explicit: bool, order: str, depth: int) -> int:
    """The byte behind the closing mark of a sequence of undefined length whose value begins at `at`."""
    if depth > DEEPEST:
        raise ElementsError(f"more than {DEEPEST} sequences within each other")
    start = 0
    while start >= 0:
        start, _, at = _item(data, at, end, explicit, order, depth)
    return at
