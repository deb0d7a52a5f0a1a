"""Text in the headers of NIfTI, NRRD, MetaImage and gzip that no geometry needs."""

from __future__ import annotations

import struct
from pathlib import Path

from ctfoundry.io import nifti as format_nifti
from ctfoundry.io.phi.notes import LARGE, Notes
from ctfoundry.io.stream import start_of

_NIFTI_1 = {
    "data_type": (4, 10),
    "db_name": (14, 18),
    "descrip": (148, 80),
    "aux_file": (228, 24),
    "intent_name": (328, 16),
}
_NIFTI_2 = {"descrip": (240, 80), "aux_file": (320, 24), "intent_name": (508, 16)}
"""Field to (byte, length): nifti1.h and nifti2.h."""

_NRRD_FIELDS = frozenset(
    """type|dimension|space|sizes|spacings|encoding|endian|kinds|units|thicknesses|space dimension|space directions|space origin
    |space units|axis mins|axis maxs|axismins|axismaxs|centers|centerings|byte skip|byteskip|line skip|lineskip|measurement frame
    |block size|blocksize|min|max|old min|oldmin|old max|oldmax""".replace("\n    ", "").split("|")
)
_META_FIELDS = frozenset(
    """objecttype|ndims|binarydata|binarydatabyteordermsb|elementbyteordermsb|compresseddata|compresseddatasize|transformmatrix
    |rotation|orientation|offset|position|origin|centerofrotation|anatomicalorientation|elementspacing|elementsize|dimsize|headersize
    |modality|elementtype|elementdatafile|elementnumberofchannels|elementmin|elementmax|sequenceid|color|distanceunits""".replace(
        "\n    ", ""
    ).split("|")
)
"""Fields of NRRD and MetaImage that describe the array; every other one is text."""


def nifti(path: Path, start: bytes, notes: Notes) -> None:
    """The text fields of a NIfTI header and its extensions, and what gzip keeps beside them."""
    _gzip(start, notes)
    head = start_of(path, format_nifti.HEADER_SIZE + 8)
    version = format_nifti.version(head)
    for name, (at, size) in (_NIFTI_1 if version == 1 else _NIFTI_2).items():
        _field("NIfTI", name, head[at : at + size].split(b"\0")[0], notes)
    end = 348 if version == 1 else 540
    if head[end : end + 1] not in (b"", b"\0"):
        _extensions(path, end + 4, "<" if head[0] in (0x5C, 0x1C) else ">", notes)


def _extensions(path: Path, at: int, order: str, notes: Notes) -> None:
    data = start_of(path, at + LARGE)
    while at + 8 <= len(data):
        size, code = struct.unpack_from(order + "ii", data, at)
        if size < 16 or size % 16:
            return
        _field("NIfTI", f"extension of code {code}", data[at + 8 : at + size], notes)
        at += size


def _gzip(start: bytes, notes: Notes) -> None:
    """The name and the comment that gzip keeps of the file it packed (RFC 1952, 2.3.1)."""
    if start[:2] != b"\x1f\x8b":
        return
    flags, at = start[3], 10
    if flags & 4:
        at += 2 + int.from_bytes(start[10:12], "little")
    for bit, name in ((8, "original name"), (16, "comment")):
        if flags & bit:
            body = start[at:].split(b"\0")[0]
            _field("gzip", name, body, notes)
            at += len(body) + 1


def nrrd(path: Path, start: bytes, notes: Notes) -> None:
    """Comments, key/value pairs and descriptive fields of a NRRD header."""
    for line in start.split(b"\n\n")[0].split(b"\r\n\r\n")[0].splitlines()[1:]:
        text = line.decode("utf-8", "replace")
        key, sign, value = text.partition(":=") if ":=" in text else text.partition(":")
        if text.startswith("#"):
            if "nrrd file format" not in text.lower() and "teem.sourceforge.net" not in text:  # Teem's own greeting
                _field("NRRD", "comment", line[1:], notes)
        elif sign == ":=" or (sign and key.strip().lower() not in _NRRD_FIELDS):
            _field("NRRD", key.strip()[:64], value.encode(), notes)


def metaimage(path: Path, start: bytes, notes: Notes) -> None:
    """Comments, names, dates and fields of its maker in a MetaImage header."""
    for line in start.splitlines():
        key, sign, value = line.partition(b"=")
        name = key.decode("utf-8", "replace").strip()
        if not sign:
            return
        if name.lower() not in _META_FIELDS:
            _field("MetaImage", name[:64], value, notes)
        if name.lower() == "elementdatafile":
            return


def _field(kind: str, name: str, value: bytes, notes: Notes) -> None:
    text = value.decode("utf-8", "replace").strip(" \0\r\n\t")[:LARGE]
    if text:
        notes.entry("header", f"{kind} {name}", name, "free text of the header").add(text)
