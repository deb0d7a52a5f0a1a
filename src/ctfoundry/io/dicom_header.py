"""The few header elements of a DICOM file that reading a CT needs, fast and without pixels.

pydicom parses a header in about 0.2 ms when told which tags matter; the scanner below walks the same elements of the usual
little- or big-endian file and takes a fraction of that, which decides how long opening a folder takes. Whatever is unusual
(`_UnusualError`) goes to pydicom, and tests compare both on every file. Elements and their coding: DICOM PS3.5 section 7 and
PS3.10 section 7.
"""

from __future__ import annotations

import os
import struct
import warnings
from dataclasses import dataclass

from ctfoundry.errors import ReadError
from ctfoundry.io.stream import Stream

FIRST_READ = 1 << 14
"""Bytes read of each file at first; most CT headers are shorter."""
HEADER_LIMIT = 1 << 26
"""A header that does not end within these bytes is an error."""

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RAW_SYNTAXES = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN)
"""Transfer syntaxes whose pixels are plain numbers."""

PIXELS = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_DEEPEST = 16  # nested sequences

_TEXT = {
    "image_type": 0x00080008,
    "sop_class": 0x00080016,
    "modality": 0x00080060,
    "patient": 0x00100020,
    "study": 0x0020000D,
    "series": 0x0020000E,
    "photometric": 0x00280004,
    "rescale_type": 0x00281054,
}
_DECIMALS = {
    "thickness": 0x00180050,
    "position": 0x00200032,
    "orientation": 0x00200037,
    "spacing": 0x00280030,
    "intercept": 0x00281052,
    "slope": 0x00281053,
    "frames": 0x00280008,
}
_SHORTS = {
    "samples": 0x00280002,
    "rows": 0x00280010,
    "columns": 0x00280011,
    "allocated": 0x00280100,
    "stored": 0x00280101,
    "high_bit": 0x00280102,
    "signed": 0x00280103,
}
WANTED = frozenset((*_TEXT.values(), *_DECIMALS.values(), *_SHORTS.values()))


class _UnusualError(Exception):
    """Left to pydicom."""


class _NeedMoreError(Exception):
    """The header goes on behind the bytes at hand."""

    def __init__(self, clean: bool = False) -> None:
        self.clean = clean  # it stopped between two elements, so the file may simply end here


@dataclass(frozen=True, slots=True)
class Header:
    """What one DICOM file says of itself; absent elements are empty, None or 0. Lengths in mm, positions in LPS."""

    path: str
    syntax: str
    sop_class: str
    modality: str
    image_type: str
    patient: str
    study: str
    series: str
    photometric: str
    rescale_type: str
    thickness: float | None
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    slope: float | None
    intercept: float | None
    frames: int
    samples: int
    rows: int
    columns: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    has_pixels: bool
    plain: bool
    """Whether the pixel data are plain numbers; otherwise pydicom decodes them."""
    pixels: int
    """Byte where the pixel data begin (of the inflated file where it is deflated); -1 when not known."""
    length: int
    """Bytes of the pixel data; -1 when not known or a sequence of fragments."""
    start: int
    """Byte where the deflate stream begins, 0 in all other files."""


def is_dicom(start: bytes) -> bool:
    """Whether `start` begins a DICOM file, with or without the 128 bytes and the word that should come first."""
    return start[128:132] == b"DICM" or _is_bare(start)


def _is_bare(start: bytes) -> bool:
    """A data set without preamble begins with an element of group 0002 or 0008 whose length makes sense."""
    if (
        len(start) < 16
        or start[:2] not in (b"\x02\0", b"\x08\0")
        or start[2:4] not in (b"\0\0", b"\x05\0", b"\x08\0", b"\x16\0")
    ):
        return False
    return start[4:6] in _SHORT_VRS or int.from_bytes(start[4:8], "little") <= 128


def read_header(path: str, start: bytes | None = None) -> Header:
    """The header of a DICOM file; `start` are its first bytes where the caller has read them.

    Raises ReadError when it cannot be parsed.
    """
    if start is None:
        with open(path, "rb", buffering=0) as file:
            start = file.read(FIRST_READ)
    if not is_dicom(start):
        raise ReadError("is not a DICOM file", where=path)
    try:
        values, syntax, pixels, length = _scan_file(path, start)
        order = ">" if syntax == BIG_ENDIAN else "<"
    except _NeedMoreError:
        raise ReadError("ends within its header", where=path, do="copy or download the file again") from None
    except (_UnusualError, struct.error, RecursionError):
        if DEFLATED.encode() in start:  # pydicom would inflate it without a limit
            raise ReadError("its deflated data set is unusual or damaged", where=path) from None
        values, syntax, order = _with_pydicom(path)
        pixels, length = -1, -1  # somewhere; pydicom will find them
    try:
        return _header(
            path, values, syntax, order, pixels, length, _meta(start)[1] if syntax == DEFLATED and pixels != -1 else 0
        )
    except (ValueError, struct.error, OverflowError) as error:
        raise ReadError(f"an element of its header is garbled ({error})", where=path) from error


def _header(
    path: str, values: dict[int, bytes], syntax: str, order: str, pixels: int | None, length: int, start: int
) -> Header:
    text = {name: _decoded(values.get(tag, b"")) for name, tag in _TEXT.items()}
    numbers = {name: _decimals(values.get(tag, b"")) for name, tag in _DECIMALS.items()}
    shorts = {
        name: struct.unpack(order + "H", values[tag][:2])[0] if values.get(tag) else 0 for name, tag in _SHORTS.items()
    }
    return Header(
        path=path,
        syntax=syntax,
        **text,
        thickness=_first(numbers["thickness"]),
        position=numbers["position"],
        orientation=numbers["orientation"],
        spacing=numbers["spacing"],
        slope=_first(numbers["slope"]),
        intercept=_first(numbers["intercept"]),
        frames=int(_first(numbers["frames"]) or 1),
        samples=shorts["samples"] or 1,
        rows=shorts["rows"],
        columns=shorts["columns"],
        allocated=shorts["allocated"],
        stored=shorts["stored"],
        high_bit=shorts["high_bit"],
        signed=shorts["signed"] == 1,
        has_pixels=pixels is not None,
        plain=syntax in RAW_SYNTAXES and length not in (_UNDEFINED, -1),
        pixels=-1 if pixels is None else pixels,
        length=length if length != _UNDEFINED else -1,
        start=start,
    )


def _decoded(value: bytes) -> str:
    """Text of any character set, only ever compared and counted: UTF-8 where it is, else byte by byte."""
    value = value.rstrip(b" \0").lstrip(b" ")
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _decimals(value: bytes) -> tuple[float, ...]:
    words = value.decode("latin-1").strip(" \0")
    return tuple(float(w) for w in words.split("\\")) if words else ()


def _first(values: tuple[float, ...]) -> float | None:
    return values[0] if values else None


# The scanner ---------------------------------------------------------------------------------------------------------


def _scan_file(path: str, start: bytes) -> tuple[dict[int, bytes], str, int | None, int]:
    """(values, transfer syntax, byte of the pixels or None, their length) of a file; reads on where the header is long."""
    syntax, at = _meta(start)
    explicit = syntax != IMPLICIT
    order = ">" if syntax == BIG_ENDIAN else "<"
    have = start
    deflated = syntax == DEFLATED
    size = os.path.getsize(path)
    if deflated:
        have = start[:at] + _inflated(path, at, FIRST_READ)
    while True:
        values: dict[int, bytes] = {}
        try:
            pixels, length = _scan(have, at, explicit, order, values)
            return values, syntax, pixels, length
        except _NeedMoreError as stop:
            if _is_no_image(values):
                return values, syntax, None, -1  # a structure set or report: its sequences need not be read
            wanted = 4 * len(have)
            if wanted > HEADER_LIMIT:
                raise ReadError(f"its header is longer than {HEADER_LIMIT >> 20} MiB", where=path) from None
            if deflated:
                more = start[:at] + _inflated(path, at, wanted)
            else:
                with open(path, "rb", buffering=0) as file:
                    more = file.read(min(wanted, size))
            if len(more) <= len(have):
                if stop.clean:
                    return values, syntax, None, -1
                raise ReadError("ends within its header", where=path, do="copy or download the file again") from None
            have = more


def _inflated(path: str, at: int, size: int) -> bytes:
    with Stream(path, "deflate", at) as stream:
        return stream.take(size)


def _is_no_image(values: dict[int, bytes]) -> bool:
    """Whether the class is one whose files hold no slice: reports, structure sets, segmentations, PDFs and the like."""
    name = values.get(_TEXT["sop_class"], b"")
    return bool(name) and not name.startswith(b"1.2.840.10008.5.1.4.1.1.2")


def _meta(start: bytes) -> tuple[str, int]:
    """Transfer syntax and the byte behind the file's meta group (always explicit little endian)."""
    at = 132 if start[128:132] == b"DICM" else 0
    syntax = b""
    while start[at : at + 2] == b"\x02\0":
        tag, _, length, value = _element(start, at, True, "<")
        if length == _UNDEFINED or value + length > len(start):
            raise _UnusualError
        if tag == 0x00020010:
            syntax = start[value : value + length].rstrip(b" \0")
        at = value + length
    if not syntax:  # a bare data set: explicit when a value representation stands where one should
        vr = start[at + 4 : at + 6]
        return (EXPLICIT if vr in _SHORT_VRS or vr in _LONG_VRS else IMPLICIT), at
    return syntax.decode("latin-1"), at


def _element(data: bytes, at: int, explicit: bool, order: str) -> tuple[int, bytes, int, int]:
    """(tag, value representation, length, byte of the value) of the element at `at`."""
    if at + 12 > len(data):
        if at + 8 > len(data):
            raise _NeedMoreError
        data = data[at:] + b"\0\0\0\0"
        tag, vr, length, value = _element(data, 0, explicit, order)
        if value == 12:
            raise _NeedMoreError
        return tag, vr, length, at + value
    if not explicit:
        group, number, length = struct.unpack_from("<HHI", data, at)
        return group << 16 | number, b"", length, at + 8
    group, number, vr, length = struct.unpack_from(order + "HH2sH", data, at)
    if vr in _SHORT_VRS:
        return group << 16 | number, vr, length, at + 8
    if vr in _LONG_VRS:
        (length,) = struct.unpack_from(order + "I", data, at + 8)
        return group << 16 | number, vr, length, at + 12
    raise _UnusualError


def _scan(data: bytes, at: int, explicit: bool, order: str, values: dict[int, bytes]) -> tuple[int | None, int]:
    """Put the wanted elements of the data set at `at` into `values`; returns byte and length of the pixel data."""
    end = len(data)
    last = 0
    while True:
        if at == end:
            raise _NeedMoreError(clean=True)
        tag, vr, length, at = _element(data, at, explicit, order)
        if tag <= last:
            raise _UnusualError  # elements come in rising order; whatever this is, it is not read by guessing
        last = tag
        if tag == PIXELS:
            return at, length
        if tag > PIXELS:
            return None, -1
        if length == _UNDEFINED:
            if vr not in (b"SQ", b""):
                raise _UnusualError
            at = _behind_sequence(data, at, explicit, order, 0)
            continue
        if at + length > end:
            raise _NeedMoreError
        if tag in WANTED:
            values[tag] = data[at : at + length]
        at += length


def _behind_sequence(data: bytes, at: int, explicit: bool, order: str, depth: int) -> int:
    """The byte behind a sequence of undefined length that begins at `at`."""
    if depth > _DEEPEST:
        raise _UnusualError
    while True:
        if at + 8 > len(data):
            raise _NeedMoreError
        group, number, length = struct.unpack_from(order + "HHI", data, at)
        tag, at = group << 16 | number, at + 8
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise _UnusualError
        if length != _UNDEFINED:
            at += length
            continue
        while True:
            if at + 8 > len(data):
                raise _NeedMoreError
            group, number = struct.unpack_from(order + "HH", data, at)
            if group << 16 | number == _ITEM_END:
                at += 8
                break
            _, vr, inner, at = _element(data, at, explicit, order)
            if inner != _UNDEFINED:
                at += inner
            elif vr in (b"SQ", b""):
                at = _behind_sequence(data, at, explicit, order, depth + 1)
            else:
                raise _UnusualError


def _with_pydicom(path: str) -> tuple[dict[int, bytes], str, str]:
    """(values, transfer syntax, byte order), by pydicom, for files that the scanner leaves alone."""
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=sorted(WANTED))
            values = {}
            for tag in WANTED:
                element = data.get_item(tag) if tag in data else None
                if element is not None and isinstance(
                    element.value, bytes
                ):  # raw, as pydicom keeps what nobody asked for
                    values[tag] = element.value
            little = data.original_encoding[1]
            syntax = str(data.file_meta.get("TransferSyntaxUID", "")) if hasattr(data, "file_meta") else ""
    except Exception as error:  # pydicom raises many types on damaged files
        raise ReadError(f"its DICOM header cannot be parsed ({error})", where=path) from error
    return values, syntax or (IMPLICIT if data.original_encoding[0] else EXPLICIT), "<" if little is not False else ">"
