"""NRRD: `.nrrd`, and `.nhdr` with its data in another file of the same folder.

The header is lines of ``field: value`` up to an empty line; the first axis is fastest. Read here rather than by ITK, for
the reasons given in `metaimage`. Format: teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctfoundry import files, geometry
from ctfoundry.errors import CTFoundryError, GeometryError, NotAScanError, ReadError
from ctfoundry.io.raw import Declared, beside, check_size, header_errors
from ctfoundry.io.stream import Packing, gzipped
from ctfoundry.volume import Volume

HEADER_LIMIT = 1 << 20
"""Bytes within which a header must end; key/value pairs of some writers are long."""

_TYPES = {
    name: code
    for code, names in {
        "i1": ("signed char", "int8", "int8_t"),
        "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
        "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
        "i4": ("int", "signed int", "int32", "int32_t"),
        "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
        "i8": (
            "longlong",
            "long long",
            "long long int",
            "signed long long",
            "signed long long int",
            "int64",
            "int64_t",
        ),
        "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        "f4": ("float",),
        "f8": ("double",),
    }.items()
    for name in names
}
_NAMES = {"i1": "int8", "u1": "uint8", "i2": "int16", "u2": "uint16", "i4": "int32", "u4": "uint32"} | {
    "i8": "int64",
    "u8": "uint64",
    "f4": "float",
    "f8": "double",
}
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_PACKINGS: dict[str, Packing] = {
    "raw": "raw",
    "gzip": "gzip",
    "gz": "gzip",
    "bzip2": "bzip2",
    "bz2": "bzip2",
    "text": "raw",
    "txt": "raw",
    "ascii": "raw",
}
_TEXT_ENCODINGS = ("text", "txt", "ascii")
_LINES_LIMIT = 1 << 22  # bytes; within these the lines to be skipped end
_MM = {"mm": 1.0, "": 1.0, "m": 1000.0, "um": 0.001, "cm": 10.0}


def is_nrrd(start: bytes) -> bool:
    """Whether `start` begins an NRRD file."""
    return start.startswith(b"NRRD000")


def header(path: Path) -> Declared:
    """What the header of `path` declares.

    Raises GeometryError where no space is given, NotAScanError for more than one volume, ReadError for a header that lies,
    points out of its folder or packs in a way that is not read, TruncatedError for a file that is too short.
    """
    with open(path, "rb") as file:
        start = file.read(HEADER_LIMIT)
    fields, end = _fields(start, path)
    with header_errors(path):
        return check_size(_declared(path, fields, end))


def _fields(start: bytes, path: Path) -> tuple[dict[str, str], int]:
    if not is_nrrd(start):
        raise ReadError("is not an NRRD file", where=path)
    fields: dict[str, str] = {}
    at = start.find(b"\n") + 1
    while at > 0 and at < len(start):
        stop = start.find(b"\n", at)
        line = start[at : stop if stop >= 0 else len(start)].rstrip(b"\r").decode("latin-1")
        at = stop + 1
        if not line:
            break
        name, sign, value = line.partition(": ")
        if sign and not line.startswith("#") and ":=" not in name:
            if (name := name.strip().lower()) in fields:
                raise ReadError(f"its header says {name[:40]!r} twice", where=path, do="export the file again")
            fields[name] = value.strip()
    else:
        if "data file" not in fields and "datafile" not in fields:  # a detached header may end without an empty line
            raise ReadError("its header does not end", where=path, do="export the file again")
    return fields, at if at > 0 else len(start)


def _declared(path: Path, fields: dict[str, str], end: int) -> Declared:
    sizes = [int(v) for v in fields["sizes"].split()]
    if len(sizes) != int(fields["dimension"]) or min(sizes, default=0) < 1:
        raise ValueError("sizes")
    directions = _directions(fields, len(sizes), path)
    spatial = [a for a, d in enumerate(directions) if d is not None]
    if len(spatial) != 3 or any(sizes[a] != 1 for a in range(len(sizes)) if a not in spatial):
        kinds = f" of kinds {fields['kinds'][:60]}" if "kinds" in fields else ""
        raise NotAScanError(f"has axes {'x'.join(map(str, sizes))}{kinds}, not one volume", where=path)
    encoding = fields["encoding"].lower()
    text = encoding in _TEXT_ENCODINGS
    dtype = np.dtype(_TYPES[fields["type"].lower()])
    if dtype.itemsize > 1 and not text:  # numbers in words have no order of bytes
        dtype = np.dtype({"little": "<", "big": ">"}[fields["endian"].lower()] + dtype.str[1:])
    if encoding not in _PACKINGS:
        raise ReadError(f"packs its voxels as {encoding[:20]!r}", where=path, do="save it again as raw or gzip")
    name = fields.get("data file", fields.get("datafile"))
    if name is not None and (name.split(" ")[0] == "LIST" or "%" in name):
        raise ReadError("spreads its voxels over several files", where=path, do="save it again as .nrrd")
    data = path if name is None else beside(path, name)
    skip = int(fields.get("byte skip", fields.get("byteskip", "0")))
    start = end if name is None else 0
    lines = int(fields.get("line skip", fields.get("lineskip", "0")))
    if lines:  # of the file as it is, before anything is unpacked; bytes are skipped after that
        start = _behind_lines(data, start, lines)
    if skip == -1 and encoding == "raw":  # the format's way to say: the numbers are the last bytes of the file
        skip = max(data.stat().st_size - start - dtype.itemsize * int(np.prod(sizes, dtype=object)), 0)
    if not 0 <= skip < 1 << 40:
        raise ValueError("byte skip")
    if text:
        start, skip = start + skip, 0
    return Declared(
        path=path,
        format="nrrd",
        data=data,
        start=start,
        skip=skip,
        packing=_PACKINGS[encoding],
        dtype=dtype,
        shape=(sizes[spatial[2]], sizes[spatial[1]], sizes[spatial[0]]),
        affine=_affine(fields, [d for d in directions if d is not None]),
        text=text,
    )


def _behind_lines(data: Path, start: int, lines: int) -> int:
    """The byte behind the first `lines` lines from `start` on."""
    if not 0 <= lines <= _LINES_LIMIT:
        raise ValueError("line skip")
    with open(data, "rb") as file:
        file.seek(start)
        begun = file.read(_LINES_LIMIT)
    at = 0
    for _ in range(lines):
        at = begun.find(b"\n", at) + 1
        if at == 0:
            raise ValueError("line skip")
    return start + at


def _directions(fields: dict[str, str], axes: int, path: Path) -> list[np.ndarray | None]:
    """The step of each axis in the file's own space, None for axes that are not of space."""
    if "space directions" not in fields:
        raise GeometryError("has no space directions, so nobody knows where its voxels lie", where=path)
    words = fields["space directions"].replace(" ", "").replace("none", "(none)").strip("()").split(")(")
    steps = [None if w == "none" else np.array([float(v) for v in w.split(",")]) for w in words]
    if len(steps) != axes or any(s is not None and s.shape != (3,) for s in steps):
        raise ValueError("space directions")
    return steps


def _affine(fields: dict[str, str], steps: list[np.ndarray]) -> geometry.Affine:
    space = fields.get("space", "").lower()
    if space not in _SPACES:
        raise GeometryError(
            f"names no space of the patient ({space[:40] or 'none'}), so nobody knows where its voxels lie"
        )
    if "space origin" not in fields:
        raise GeometryError("has no space origin, so nobody knows where its voxels lie")
    units = {u.strip().strip('"') for u in fields.get("space units", '"mm"').split()}
    if len(units) != 1 or next(iter(units)) not in _MM:
        raise GeometryError(f"counts space in {', '.join(map(repr, sorted(units)))[:60]}, not in one known unit")
    affine = np.eye(4)
    affine[:3, :3] = np.stack(steps[::-1], axis=1)
    affine[:3, 3] = [float(v) for v in fields["space origin"].strip("() ").split(",")]
    with np.errstate(over="ignore", invalid="ignore"):  # as_affine refuses what is not finite
        affine[:3] *= _MM[units.pop()]
        return geometry.as_affine(np.diag([*_SPACES[space], 1.0]) @ affine)


def write(volume: Volume, path: Path) -> None:
    """Write an `.nrrd` file in LPS, as 3D Slicer does, gzipped at the fastest level."""
    dtype = volume.voxels.dtype.str[1:]
    if dtype not in _NAMES:
        raise CTFoundryError(f"NRRD has no type for {volume.voxels.dtype}", where=path)
    lps = geometry.LPS_TO_RAS @ volume.affine
    lines = [
        "NRRD0004",
        f"type: {_NAMES[dtype]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, volume.shape[::-1]))}",
        f"space directions: {' '.join(_text(lps[:3, axis]) for axis in (2, 1, 0))}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        'space units: "mm" "mm" "mm"',
        f"space origin: {_text(lps[:3, 3])}",
    ]
    body = gzipped(np.ascontiguousarray(volume.voxels, dtype="<" + dtype).data)
    files.write_bytes(path, "\n".join(lines).encode() + b"\n\n" + body)


def _text(values: np.ndarray) -> str:
    return "(" + ",".join(repr(float(v) + 0.0) for v in values) + ")"
