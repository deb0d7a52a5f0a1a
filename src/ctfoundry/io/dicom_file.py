"""One DICOM file up to its pixels: whether it is one, how it is coded, and the values of chosen elements.

pydicom parses a header in about 0.2 ms when told which tags matter; the walker passes the same elements of the usual file in a
fraction of that, which decides how long opening a folder takes. Whatever is unusual (`ElementsError`) goes to pydicom, and tests
compare both on every file. DICOM PS3.10 section 7.
"""

from __future__ import annotations

import io
import os
import warnings
from typing import Any, NamedTuple

from ctfoundry.errors import ReadError
from ctfoundry.io.dicom_elements import (
    LONG_VRS,
    PIXELS,
    SHORT_VRS,
    UNDEFINED,
    ElementsError,
    EndError,
    Span,
    head,
    walk,
)
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

_SOP_CLASS = 0x00080016


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


class Coding(NamedTuple):
    """How the data set of a file is written down."""

    syntax: str
    explicit: bool
    order: str
    """``"<"`` or ``">"``, as `struct` names byte orders."""
    start: int
    """Byte where the deflate stream begins, 0 in all other files."""


def elements(path: str, start: bytes | None, wanted: frozenset[int]) -> tuple[dict[int, bytes], Coding, int, int]:
    """(values of the wanted elements as bytes, coding, byte of the pixels or -1, their length or -1) of a DICOM file.

    `start` are its first bytes where the caller has read them, else None. Values of wanted sequences are their items as written. Raises ReadError when the header cannot be parsed.
    """
    if start is None:
        with open(path, "rb", buffering=0) as file:
            start = file.read(FIRST_READ)
    if not is_dicom(start):
        raise ReadError("is not a DICOM file", where=path)
    try:
        return _scan_file(path, start, wanted)
    except EndError:
        raise ReadError("ends within its header", where=path, do="copy or download the file again") from None
    except ElementsError:
        return _with_pydicom(path, wanted)


def _scan_file(path: str, start: bytes, wanted: frozenset[int]) -> tuple[dict[int, bytes], Coding, int, int]:
    """As `elements`; reads on where the header is long."""
    syntax, at = meta(start)
    deflated = syntax == DEFLATED
    coding = Coding(syntax, syntax != IMPLICIT, ">" if syntax == BIG_ENDIAN else "<", at if deflated else 0)
    have = start[:at] + _inflated(path, at, FIRST_READ) if deflated else start
    while True:
        found: dict[int, Span] = {}
        complete = True
        try:
            stop = walk(have, at, len(have), coding.explicit, coding.order, found, wanted, before=PIXELS, rising=True)
            if stop < len(have):
                tag, _, length, start_of_pixels = head(have, stop, len(have), coding.explicit, coding.order)
                pixels = (start_of_pixels, -1 if length == UNDEFINED else length) if tag == PIXELS else (-1, -1)
                return _values(have, found), coding, *pixels
        except EndError:
            complete = False
        if _is_no_image(have, found):
            return _values(have, found), coding, -1, -1  # a structure set or report: its sequences need not be read
        size = 4 * len(have)
        if size > HEADER_LIMIT:
            raise ReadError(f"its header is longer than {HEADER_LIMIT >> 20} MiB", where=path)
        more = _more(path, at, size, start if deflated else None)
        if len(more) <= len(have):
            if complete:  # between two elements, so the file simply ends here
                return _values(have, found), coding, -1, -1
            raise EndError
        have = more


def _values(data: bytes, found: dict[int, Span]) -> dict[int, bytes]:
    return {tag: data[start:behind] for tag, (_, start, behind) in found.items()}


def _more(path: str, at: int, size: int, start: bytes | None) -> bytes:
    """The first `size` bytes of a file, inflated from `at` on where `start` are those of a deflated one."""
    if start is not None:
        return start[:at] + _inflated(path, at, size)
    with open(path, "rb", buffering=0) as file:
        return file.read(size)


def _inflated(path: str, at: int, size: int) -> bytes:
    with Stream(path, "deflate", at) as stream:
        return stream.take(size)


def _is_no_image(data: bytes, found: dict[int, Span]) -> bool:
    """Whether the class is one whose files hold no slice: reports, structure sets, segmentations, PDFs and the like."""
    if _SOP_CLASS not in found:
        return False
    _, start, behind = found[_SOP_CLASS]
    return behind > start and not data.startswith(b"1.2.840.10008.5.1.4.1.1.2", start)


def meta(start: bytes) -> tuple[str, int]:
    """Transfer syntax and the byte behind the file's meta group (always explicit little endian).

    Raises EndError or ElementsError for a group that is garbled or longer than `start`.
    """
    at, end = 132 if start[128:132] == b"DICM" else 0, len(start)
    syntax = b""
    while start[at : at + 2] == b"\x02\0":
        tag, _, length, value = head(start, at, end, True, "<")
        at = value + length
        if at > end:
            raise ElementsError("the meta group is longer than it may be")
        if tag == 0x00020010:
            syntax = start[value:at].rstrip(b" \0")
    if not syntax:  # a bare data set: explicit when a value representation stands where one should
        vr = start[at + 4 : at + 6]
        return (EXPLICIT if vr in SHORT_VRS or vr in LONG_VRS else IMPLICIT), at
    return syntax.decode("latin-1"), at


def _with_pydicom(path: str, wanted: frozenset[int]) -> tuple[dict[int, bytes], Coding, int, int]:
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
        tag, _, length, at = head(data, buffer.tell(), len(data), not implicit, order)
    except (EndError, ElementsError):
        tag = 0
    if tag != PIXELS:
        return values, coding, -1, -1
    return values, coding, at, -1 if length == UNDEFINED else length
