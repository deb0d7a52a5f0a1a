"""The few header elements of a DICOM file that reading a CT needs, parsed."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from ctfoundry.errors import ReadError
from ctfoundry.io.dicom_file import RAW_SYNTAXES, Coding, elements

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


def read_header(path: str, start: bytes | None = None) -> Header:
    """The header of a DICOM file; `start` are its first bytes where the caller has read them.

    Raises ReadError when it cannot be parsed.
    """
    values, coding, pixels, length = elements(path, start, WANTED)
    try:
        return _header(path, values, coding, pixels, length)
    except (ValueError, struct.error, OverflowError) as error:
        raise ReadError(f"an element of its header is garbled ({error})", where=path) from error


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
    return tuple(map(float, words.split("\\"))) if words else ()
