"""The few header elements of a DICOM file that reading a CT needs, fast and without pixels.

pydicom parses a header in about 0.2 ms when told which tags matter; the scanner below walks the same elements of the usual
little- or big-endian file and takes a fraction of that, which decides how long opening a folder takes. Whatever is unusual
(`_UnusualError`) goes to pydicom, and tests compare both on every file. Elements and their coding: DICOM PS3.5 section 7 and
PS3.10 section 7.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from functools import lru_cache
from typing import Any, NamedTuple

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
UNDEFINED = 0xFFFFFFFF
"""Length of an element that ends by a mark."""
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
"""Tags of the marks in sequences."""
LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""Value representations whose length takes four bytes."""
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Those whose length takes two."""
_DEEPEST = 16  # nested sequences

_PHASE = 0x00209241  # the one binary floating number among them
_TEXTS = {
    "sop_class": 0x00080016,
    "modality": 0x00080060,
    "image_type": 0x00080008,
    "patient": 0x00100020,
    "study": 0x0020000D,
    "series": 0x0020000E,
    "photometric": 0x00280004,
    "rescale_type": 0x00281054,
    "description": 0x0008103E,
    "number": 0x00200011,
    "kernel": 0x00181210,
    "contrast": 0x00180010,
    "body_part": 0x00180015,
    "manufacturer": 0x00080070,
    "model": 0x00081090,
    "temporal": 0x00200100,
    "phase": _PHASE,
    "trigger": 0x00181060,
    "stack": 0x00209056,
}
_DECIMALS = {"orientation": 0x00200037, "spacing": 0x00280030}
_NUMBERS = {
    "thickness": 0x00180050,
    "kvp": 0x00180060,
    "slope": 0x00281053,
    "intercept": 0x00281052,
}
_SHORTS = {
    "rows": 0x00280010,
    "columns": 0x00280011,
    "allocated": 0x00280100,
    "stored": 0x00280101,
    "high_bit": 0x00280102,
}
_FRAMES, _SAMPLES, _SIGNED, _PADDING, _PADDING_END = 0x00280008, 0x00280002, 0x00280103, 0x00280120, 0x00280121
_SHARED_TAGS = (
    *_TEXTS.values(),
    *_DECIMALS.values(),
    *_NUMBERS.values(),
    *_SHORTS.values(),
    *(_FRAMES, _SAMPLES, _SIGNED, _PADDING, _PADDING_END),
)
_POSITION, _INSTANCE, _ACQUISITION, _CONTENT_TIME, _ACQUISITION_TIME = (
    0x00200032,
    0x00200013,
    0x00200012,
    0x00080033,
    0x00080032,
)
WANTED = frozenset((*_SHARED_TAGS, _POSITION, _INSTANCE, _ACQUISITION, _CONTENT_TIME, _ACQUISITION_TIME))
"""Tags of the elements that a `Header` is made of."""


class _UnusualError(ValueError):
    """Left to pydicom."""


class _NeedMoreError(ValueError):
    """The header goes on behind the bytes at hand."""

    def __init__(self, clean: bool = False) -> None:
        self.clean = clean  # it stopped between two elements, so the file may simply end here


class Header(NamedTuple):
    """What one DICOM slice says of itself; absent elements are empty, None or 0. Lengths in mm, positions in LPS.

    A named tuple because there may be a million: what all slices of a series say alike is parsed once and shared.
    """

    path: str
    frame: int
    """Which frame of its file, from 0; 0 in files of one slice."""
    position: tuple[float, ...]
    instance: int | None
    acquisition: str
    content_time: str
    acquisition_time: str
    pixels: int
    """Byte where the pixel data begin (of the inflated file where it is deflated); -1 when there are none."""
    length: int
    """Bytes of the pixel data of all frames; -1 for a sequence of fragments."""
    start: int
    """Byte where the deflate stream begins, 0 in all other files."""
    syntax: str
    sop_class: str
    modality: str
    image_type: str
    patient: str
    study: str
    series: str
    photometric: str
    rescale_type: str
    description: str
    number: str
    kernel: str
    contrast: str
    body_part: str
    manufacturer: str
    model: str
    temporal: str
    phase: str
    trigger: str
    stack: str
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float | None
    kvp: float | None
    slope: float | None
    intercept: float | None
    rows: int
    columns: int
    allocated: int
    stored: int
    high_bit: int
    frames: int
    samples: int
    signed: bool
    padding: tuple[int, int] | None
    """Smallest and largest stored number that is padding (Pixel Padding Value and Range Limit)."""

    @property
    def has_pixels(self) -> bool:
        """Whether there is a Pixel Data element."""
        return self.pixels >= 0

    @property
    def plain(self) -> bool:
        """Whether the pixel data are plain numbers; otherwise a decoder is needed."""
        return self.syntax in RAW_SYNTAXES and self.length >= 0


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
    return start[4:6] in SHORT_VRS or int.from_bytes(start[4:8], "little") <= 128


def read_header(path: str, start: bytes | None = None) -> Header:
    """The header of a DICOM file; `start` are its first bytes where the caller has read them.

    Raises ReadError when it cannot be parsed.
    """
    values, coding, pixels, length = elements(path, start)
    try:
        return _header(path, values, coding, pixels, length)
    except (ValueError, struct.error, OverflowError) as error:
        raise ReadError(f"an element of its header is garbled ({error})", where=path) from error


class Coding(NamedTuple):
    """How the data set of a file is written down."""

    syntax: str
    explicit: bool
    order: str
    """``"<"`` or ``">"``, as `struct` names byte orders."""
    start: int
    """Byte where the deflate stream begins, 0 in all other files."""


def elements(
    path: str, start: bytes | None = None, wanted: frozenset[int] = WANTED
) -> tuple[dict[int, bytes], Coding, int, int]:
    """(values of the wanted elements as bytes, coding, byte of the pixels or -1, their length or -1) of a DICOM file.

    Values of wanted sequences are their items as written. Raises ReadError when the header cannot be parsed.
    """
    if start is None:
        with open(path, "rb", buffering=0) as file:
            start = file.read(FIRST_READ)
    if not is_dicom(start):
        raise ReadError("is not a DICOM file", where=path)
    try:
        return _scan_file(path, start, wanted)
    except _NeedMoreError:
        raise ReadError("ends within its header", where=path, do="copy or download the file again") from None
    except (_UnusualError, struct.error, RecursionError):
        return _with_pydicom(path, wanted)


def _header(path: str, values: dict[int, bytes], coding: Coding, pixels: int, length: int) -> Header:
    get = values.get
    return Header._make(
        (
            path,
            0,
            decimals(get(_POSITION)),
            _whole(get(_INSTANCE)),
            decoded(get(_ACQUISITION)),
            decoded(get(_CONTENT_TIME)),
            decoded(get(_ACQUISITION_TIME)),
            pixels,
            length,
            coding.start,
            coding.syntax,
            *_shared(coding.order, tuple(map(get, _SHARED_TAGS))),
        )
    )


@lru_cache(maxsize=512)
def _shared(order: str, raw: tuple[bytes | None, ...]) -> tuple[object, ...]:
    """Parsed values of `_SHARED_TAGS`, in the order of the fields of `Header`."""
    values = dict(zip(_SHARED_TAGS, raw, strict=True))

    def short(tag: int) -> int:
        value = values[tag]
        return struct.unpack(order + "H", value[:2])[0] if value else 0

    signed = short(_SIGNED) == 1
    padding = []
    for tag in (_PADDING, _PADDING_END):
        value = values[tag]
        if value:
            padding.append(struct.unpack(order + ("h" if signed else "H"), value[:2])[0])
    return (
        *(_single(values[tag], order) if tag == _PHASE else decoded(values[tag]) for tag in _TEXTS.values()),
        *(decimals(values[tag]) for tag in _DECIMALS.values()),
        *(next(iter(decimals(values[tag])), None) for tag in _NUMBERS.values()),
        *(short(tag) for tag in _SHORTS.values()),
        int(next(iter(decimals(values[_FRAMES])), 1)),
        short(_SAMPLES) or 1,
        signed,
        (min(padding), max(padding)) if values[_PADDING] else None,
    )


def _single(value: bytes | None, order: str) -> str:
    return f"{struct.unpack(order + 'f', value[:4])[0]:g}" if value else ""


def decoded(value: bytes | None) -> str:
    """Text of any character set, only ever compared, counted and shown: UTF-8 where it is, else byte by byte."""
    if not value:
        return ""
    value = value.rstrip(b" \0").lstrip(b" ")
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _whole(value: bytes | None) -> int | None:
    """A whole number; None for anything else, because nothing depends on it alone."""
    try:
        return int(value.strip(b" \0")) if value else None
    except ValueError:
        return None


def decimals(value: bytes | None) -> tuple[float, ...]:
    """Decimal strings; raises ValueError for what is none."""
    words = value.decode("latin-1").strip(" \0") if value else ""
    return tuple(float(w) for w in words.split("\\")) if words else ()


# The scanner ---------------------------------------------------------------------------------------------------------


def _scan_file(path: str, start: bytes, wanted: frozenset[int]) -> tuple[dict[int, bytes], Coding, int, int]:
    """As `elements`; reads on where the header is long."""
    syntax, at = meta(start)
    deflated = syntax == DEFLATED
    coding = Coding(syntax, syntax != IMPLICIT, ">" if syntax == BIG_ENDIAN else "<", at if deflated else 0)
    have = start[:at] + _inflated(path, at, FIRST_READ) if deflated else start
    while True:
        values: dict[int, bytes] = {}
        try:
            pixels, length = _scan(have, at, coding.explicit, coding.order, values, wanted)
            return values, coding, pixels, -1 if length == UNDEFINED else length
        except _NeedMoreError as stop:
            if _is_no_image(values):
                return values, coding, -1, -1  # a structure set or report: its sequences need not be read
            size = 4 * len(have)
            if size > HEADER_LIMIT:
                raise ReadError(f"its header is longer than {HEADER_LIMIT >> 20} MiB", where=path) from None
            if deflated:
                more = start[:at] + _inflated(path, at, size)
            else:
                with open(path, "rb", buffering=0) as file:
                    more = file.read(size)
            if len(more) <= len(have):
                if stop.clean:
                    return values, coding, -1, -1
                raise ReadError("ends within its header", where=path, do="copy or download the file again") from None
            have = more


def _inflated(path: str, at: int, size: int) -> bytes:
    with Stream(path, "deflate", at) as stream:
        return stream.take(size)


def _is_no_image(values: dict[int, bytes]) -> bool:
    """Whether the class is one whose files hold no slice: reports, structure sets, segmentations, PDFs and the like."""
    name = values.get(_TEXTS["sop_class"], b"")
    return bool(name) and not name.startswith(b"1.2.840.10008.5.1.4.1.1.2")


def meta(start: bytes) -> tuple[str, int]:
    """Transfer syntax and the byte behind the file's meta group (always explicit little endian).

    Raises ValueError or struct.error for a group that is garbled or longer than `start`.
    """
    at = 132 if start[128:132] == b"DICM" else 0
    syntax = b""
    while start[at : at + 2] == b"\x02\0":
        tag, _, length, value = element(start, at, True, "<")
        if length == UNDEFINED or value + length > len(start):
            raise _UnusualError
        if tag == 0x00020010:
            syntax = start[value : value + length].rstrip(b" \0")
        at = value + length
    if not syntax:  # a bare data set: explicit when a value representation stands where one should
        vr = start[at + 4 : at + 6]
        return (EXPLICIT if vr in SHORT_VRS or vr in LONG_VRS else IMPLICIT), at
    return syntax.decode("latin-1"), at


def element(data: bytes, at: int, explicit: bool, order: str) -> tuple[int, bytes, int, int]:
    """(tag, value representation, length, byte of the value) of the element at `at`."""
    if at + 12 > len(data):
        if at + 8 > len(data):
            raise _NeedMoreError
        data = data[at:] + b"\0\0\0\0"
        tag, vr, length, value = element(data, 0, explicit, order)
        if value == 12:
            raise _NeedMoreError
        return tag, vr, length, at + value
    if not explicit:
        group, number, length = struct.unpack_from("<HHI", data, at)
        return group << 16 | number, b"", length, at + 8
    group, number, vr, length = struct.unpack_from(order + "HH2sH", data, at)
    if vr in SHORT_VRS:
        return group << 16 | number, vr, length, at + 8
    if vr in LONG_VRS:
        (length,) = struct.unpack_from(order + "I", data, at + 8)
        return group << 16 | number, vr, length, at + 12
    raise _UnusualError


def _scan(
    data: bytes, at: int, explicit: bool, order: str, values: dict[int, bytes], wanted: frozenset[int]
) -> tuple[int, int]:
    """Put the wanted elements of the data set at `at` into `values`; returns byte and length of the pixel data, or -1."""
    end, last = len(data), 0
    unpack = struct.Struct(order + ("HH2sH" if explicit else "HHI")).unpack_from
    vr = b""
    while True:
        if at == end:
            raise _NeedMoreError(clean=True)
        if at + 12 > end:
            tag, vr, length, at = element(data, at, explicit, order)
        elif not explicit:
            group, number, length = unpack(data, at)
            tag = group << 16 | number
            at += 8
        else:
            group, number, vr, length = unpack(data, at)
            tag = group << 16 | number
            at += 8
            if vr not in SHORT_VRS:
                if vr not in LONG_VRS:
                    raise _UnusualError
                (length,) = struct.unpack_from(order + "I", data, at)
                at += 4
        if tag <= last:
            raise _UnusualError  # elements come in rising order; whatever this is, it is not read by guessing
        last = tag
        if tag >= PIXELS:
            return (at, length) if tag == PIXELS else (-1, -1)
        if length == UNDEFINED:
            if vr not in (b"SQ", b"UN", b""):
                raise _UnusualError
            begin = at
            # a sequence of unknown kind is written implicitly (PS3.5 6.2.2, note to UN)
            at = _behind_sequence(data, at, explicit and vr != b"UN", order, 0)
            if tag in wanted:
                values[tag] = data[begin:at]
            continue
        if at + length > end:
            raise _NeedMoreError
        if tag in wanted:
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
        if tag == SEQUENCE_END:
            return at
        if tag != ITEM:
            raise _UnusualError
        if length != UNDEFINED:
            at += length
            continue
        while True:
            if at + 8 > len(data):
                raise _NeedMoreError
            group, number = struct.unpack_from(order + "HH", data, at)
            if group << 16 | number == ITEM_END:
                at += 8
                break
            _, vr, inner, at = element(data, at, explicit, order)
            if inner != UNDEFINED:
                at += inner
            elif vr in (b"SQ", b"UN", b""):
                at = _behind_sequence(data, at, explicit and vr != b"UN", order, depth + 1)
            else:
                raise _UnusualError


def _with_pydicom(path: str, wanted: frozenset[int] = WANTED) -> tuple[dict[int, bytes], Coding, int, int]:
    """As `elements`, by pydicom, for files that the scanner leaves alone; sequences are left out.

    pydicom sees the first HEADER_LIMIT bytes only, and nothing that is deflated, because it would inflate without a limit.
    """
    import pydicom

    with open(path, "rb", buffering=0) as file:
        data = file.read(min(os.path.getsize(path), HEADER_LIMIT))
    if DEFLATED.encode() in data:
        raise ReadError("its deflated data set is unusual or damaged", where=path)
    buffer = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said: Any = pydicom.dcmread(buffer, stop_before_pixels=True, force=True, specific_tags=sorted(wanted))
            values = {}
            for tag in wanted:
                raw = said.get_item(tag) if tag in said else None
                if raw is not None and isinstance(raw.value, bytes):  # as pydicom keeps what nobody asked for
                    values[tag] = raw.value
            implicit, little = said.original_encoding
            syntax = str(said.file_meta.get("TransferSyntaxUID", "")) if hasattr(said, "file_meta") else ""
    except Exception as error:  # pydicom raises many types on damaged files
        raise ReadError(f"its DICOM header cannot be parsed ({error})", where=path) from error
    order = "<" if little is not False else ">"
    coding = Coding(syntax or (IMPLICIT if implicit else EXPLICIT), not implicit, order, 0)
    try:  # pydicom stops in front of the pixels
        tag, _, length, at = element(data, buffer.tell(), not implicit, order)
    except (_UnusualError, _NeedMoreError, struct.error):
        tag = 0
    if tag != PIXELS:
        return values, coding, -1, -1
    return values, coding, at, -1 if length == UNDEFINED else length
