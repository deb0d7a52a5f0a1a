"""MetaImage: `.mha`, and `.mhd` with its data in another file of the same folder.

The header is lines of ``Key = value``; x is fastest, directions and origin are LPS. Read here rather than by ITK, so that
sizes are checked before anything is allocated and hostile bytes meet no C++. As in ITK, AnatomicalOrientation (which says what
the matrix says) and CenterOfRotation change nothing. Format: itk.org, MetaIO documentation.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from ctfoundry import files, geometry
from ctfoundry.errors import CTFoundryError, GeometryError, NotAScanError, ReadError
from ctfoundry.io.raw import Declared, beside, check_size, header_errors
from ctfoundry.volume import Volume

HEADER_LIMIT = 1 << 16
"""Bytes within which a header must end."""

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NAMES = {"i1": "MET_CHAR", "u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT"} | {
    "u4": "MET_UINT",
    "f4": "MET_FLOAT",
    "f8": "MET_DOUBLE",
    "i8": "MET_LONG_LONG",
    "u8": "MET_ULONG_LONG",
}
_MATRIX = ("TransformMatrix", "Rotation", "Orientation")
_ORIGIN = ("Offset", "Position", "Origin")


def is_metaimage(start: bytes) -> bool:
    """Whether `start` begins a MetaImage header."""
    key, sign, _ = start[:200].partition(b"=")
    return bool(sign) and key.strip() in (b"ObjectType", b"NDims", b"Comment", b"ObjectSubType", b"TransformType")


def header(path: Path) -> Declared:
    """What the header of `path` declares.

    Raises NotAScanError for other than three axes and one channel, ReadError for a header that lies or points out of its
    folder, TruncatedError for a file that is too short.
    """
    with open(path, "rb") as file:
        start = file.read(HEADER_LIMIT)
    fields, end = _fields(start, path)
    if fields.get("ObjectType", "Image") != "Image":
        raise NotAScanError(f"is a MetaIO {fields['ObjectType'][:40]}, not an image", where=path)
    if fields.get("BinaryData", "True").lower() not in ("true", "1"):
        raise ReadError("holds its numbers as text", where=path, do="save it again as binary")
    with header_errors(path):
        return check_size(_declared(path, fields, end))


def _fields(start: bytes, path: Path) -> tuple[dict[str, str], int]:
    """The header's fields and the byte behind it; ElementDataFile is the last one by the format's rule."""
    fields: dict[str, str] = {}
    at = 0
    while "ElementDataFile" not in fields:
        stop = start.find(b"\n", at)
        key, sign, value = start[at : stop if stop >= 0 else len(start)].partition(b"=")
        if not sign or (stop < 0 and key.strip() != b"ElementDataFile"):
            raise ReadError("is not a MetaImage header", where=path, do="export the file again")
        fields[key.decode("latin-1").strip()] = value.decode("latin-1").strip()
        at = stop + 1 if stop >= 0 else len(start)
    return fields, at


def _declared(path: Path, fields: dict[str, str], end: int) -> Declared:
    axes = int(fields["NDims"])
    sizes = [int(v) for v in fields["DimSize"].split()]
    if axes != len(sizes) or axes < 1 or min(sizes) < 1:
        raise ValueError("DimSize")
    if axes < 3 or any(n != 1 for n in sizes[3:]):
        raise NotAScanError(f"has axes {'x'.join(map(str, sizes))}, not three", where=path, do="split it into volumes")
    if int(fields.get("ElementNumberOfChannels", "1")) != 1:
        raise NotAScanError("holds more than one number a voxel", where=path)
    slope, offset = (fields.get(f"ElementToIntensityFunction{k}", v) for k, v in (("Slope", "1"), ("Offset", "0")))
    if (float(slope), float(offset)) != (1.0, 0.0):
        raise ReadError(
            "scales its numbers, which other readers ignore", where=path, do="save it again without scaling"
        )
    big = any(
        fields.get(k, "False").lower() in ("true", "1") for k in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    )
    dtype = np.dtype((">" if big else "<") + _TYPES[fields["ElementType"]])
    packed = fields.get("CompressedData", "False").lower() in ("true", "1")
    name = fields["ElementDataFile"]
    if name.split(" ")[0] == "LIST" or "%" in name:
        raise ReadError("spreads its voxels over several files", where=path, do="save it again as .mha")
    local = name.lower() == "local"
    skip = int(fields.get("HeaderSize", "0"))
    data = path if local else beside(path, name)
    size = dtype.itemsize * int(np.prod(sizes, dtype=object))
    if skip == -1 and not packed:  # the format's way to say: the numbers are the last bytes of the file
        skip = max(data.stat().st_size - size, 0)
    if skip < 0:
        raise ValueError("HeaderSize")
    return Declared(
        path=path,
        format="metaimage",
        data=data,
        start=skip or (end if local else 0),
        skip=0,
        packing="zlib" if packed else "raw",
        dtype=dtype,
        shape=(sizes[2], sizes[1], sizes[0]),
        affine=_affine(fields, axes),
    )


def _affine(fields: dict[str, str], axes: int) -> geometry.Affine:
    """Array index to RAS+ mm. Row r of the header's matrix is the direction (LPS) of file axis r."""

    def numbers(keys: tuple[str, ...], count: int) -> np.ndarray:
        text = next((fields[k] for k in keys if k in fields), None)
        if text is None:
            raise GeometryError(f"has no {keys[0]}, so nobody knows where its voxels lie")
        values = np.array([float(v) for v in text.split()])
        if len(values) != count:
            raise ValueError(keys[0])
        return values

    matrix = numbers(_MATRIX, axes * axes).reshape(axes, axes)[:3, :3]
    steps = numbers(("ElementSpacing", "ElementSize"), axes)[:3]  # the size stands in where no spacing is, as in ITK
    lps = np.eye(4)
    lps[:3, 3] = numbers(_ORIGIN, axes)[:3]
    with np.errstate(over="ignore", invalid="ignore"):  # as_affine refuses what is not finite
        lps[:3, :3] = (matrix * steps[:, None]).T[:, ::-1]
        return geometry.as_affine(geometry.LPS_TO_RAS @ lps)


def write(volume: Volume, path: Path) -> None:
    """Write an `.mha` file, zlib-compressed at the fastest level."""
    dtype = volume.voxels.dtype.str[1:]
    if dtype not in _NAMES:
        raise CTFoundryError(f"MetaImage has no type for {volume.voxels.dtype}", where=path)
    lps = geometry.LPS_TO_RAS @ volume.affine
    steps = np.array(volume.spacing)
    body = zlib.compress(np.ascontiguousarray(volume.voxels, dtype="<" + dtype).data, 1)
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {len(body)}",
        f"TransformMatrix = {_text((lps[:3, :3] / steps).T[::-1].ravel())}",
        f"Offset = {_text(lps[:3, 3])}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_text(steps[::-1])}",
        f"DimSize = {' '.join(map(str, volume.shape[::-1]))}",
        f"ElementType = {_NAMES[dtype]}",
        "ElementDataFile = LOCAL",
    ]
    files.write_bytes(path, "\n".join(lines).encode() + b"\n" + body)


def _text(values: np.ndarray) -> str:
    return " ".join(repr(float(v) + 0.0) for v in values)
