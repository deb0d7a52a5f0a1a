"""NIfTI-1 and NIfTI-2: `.nii`, `.nii.gz` and the pair `.hdr` + `.img`.

nibabel reads and checks the header; the voxels are read here, bounded by what the header declares. NIfTI counts voxels
(i, j, k) with i fastest, so the array is (k, j, i) and the affine's columns are swapped to match.
"""

from __future__ import annotations

import io
import warnings
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ctfoundry import files, geometry
from ctfoundry.errors import CTFoundryError, GeometryError, NotAScanError, ReadError
from ctfoundry.geometry import Grid
from ctfoundry.io import names
from ctfoundry.io.raw import SKIP_LIMIT, Declared, beside, check_size
from ctfoundry.io.stream import gzipped, start_of
from ctfoundry.volume import Volume

FORMS_TOLERANCE_MM = 0.5
"""Largest distance of a corner voxel between sform and qform. A qform keeps a rotation near 180 degrees in float32
quaternions to about 5e-4 radians only, a quarter of a millimetre at the far end of a scan; true conflicts are far larger."""

HEADER_SIZE = 544
"""Bytes that hold either version's header."""

_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown (taken for mm), metres, mm, micrometres
_INTENT_LABEL = 1002
_NO_SCAN = {  # intent codes whose files hold no one value of tissue a voxel
    1004: "matrices",
    1005: "symmetric matrices",
    1006: "a displacement field",
    1007: "vectors",
    1008: "points",
    1009: "triangles",
    1010: "quaternions",
    2001: "a time series",
    2003: "colours",
    2004: "colours",
    2006: "displacements",
    2016: "a deformation field",
}
_STATISTICS = range(2, 25)
_FIRST_BYTE = {1: 352, 2: 544}  # of voxels in the header's own file
_PLAUSIBLE_MM = (0.01, 100.0)


def version(start: bytes) -> int:
    """1 or 2 when `start` (unpacked) begins a NIfTI file, else 0."""
    size = start[:4]
    if size in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and start[344:348] in (b"n+1\0", b"ni1\0"):
        return 1
    if size in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") and start[4:8] in (b"n+2\0", b"ni2\0"):
        return 2
    return 0


def header(path: Path) -> Declared:
    """What the header of `path` declares.

    Raises GeometryError when sform and qform disagree or neither is set, NotAScanError for more than one volume, for
    colours and complex numbers, ReadError for a header that lies, TruncatedError for a file that is too short.
    """
    start = start_of(path, HEADER_SIZE)
    fields = _parsed(start, path)
    dims = [int(n) for n in fields["dim"][1 : 1 + int(fields["dim"][0])]]
    intent = int(fields["intent_code"])
    if intent in _NO_SCAN and dims[3:] != [1] * len(dims[3:]):
        raise NotAScanError(f"holds {_NO_SCAN[intent]} (intent {intent}), not a scan", where=path)
    dtype = _number_type(fields, path)
    ijk = _three_axes(dims, path)
    magic = bytes(start[344:347] if version(start) == 1 else start[4:7])
    single = magic.startswith(b"n+")
    data = path if single else _image_of(path)
    offset, first = float(fields["vox_offset"]), _FIRST_BYTE[version(start)] if single else 0
    if not first <= offset <= SKIP_LIMIT or offset != int(offset):
        inside = ", inside its header" if 0 <= offset < first else ""
        raise ReadError(f"its voxels cannot begin at byte {offset:g}{inside}", where=path, do="export the file again")
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if not np.isfinite(slope) or slope == 0:  # the standard: no scaling
        slope, intercept = 1.0, 0.0
    elif not np.isfinite(intercept):
        raise ReadError(f"has a scl_inter of {intercept}", where=path, do="export the file again")
    packed = open_is_gzip(data)
    affine, notes = _affine(fields, ijk, path)
    if intent in _STATISTICS:
        notes += (f"its header calls it a statistic (intent {intent})",)
    return check_size(
        Declared(
            path=path,
            format="nifti",
            data=data,
            start=0 if packed else int(offset),
            skip=int(offset) if packed else 0,
            packing="gzip" if packed else "raw",
            dtype=dtype,
            shape=(ijk[2], ijk[1], ijk[0]),
            affine=geometry.as_affine(affine[:, [2, 1, 0, 3]]),
            slope=slope,
            intercept=intercept,
            says_label=intent == _INTENT_LABEL,
            notes=notes,
        )
    )


def open_is_gzip(path: Path) -> bool:
    """Whether a file is gzipped, by its first bytes."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _parsed(start: bytes, path: Path) -> Any:
    number = version(start)
    if number == 0:
        raise ReadError("is not a NIfTI file", where=path)
    from nibabel import nifti1, nifti2

    kind = nifti1.Nifti1Header if number == 1 else nifti2.Nifti2Header
    if len(start) < kind.sizeof_hdr:
        raise ReadError("ends within its header", where=path, do="copy or download the file again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind.from_fileobj(io.BytesIO(start[: kind.sizeof_hdr]), check=False)
    except Exception as error:  # nibabel raises many types on headers that lie
        raise ReadError(f"its header cannot be read ({error})", where=path, do="export the file again") from error


def _number_type(fields: Any, path: Path) -> np.dtype:
    try:
        dtype = np.dtype(fields.get_data_dtype())
    except Exception as error:
        raise ReadError(f"its type of numbers is unknown ({error})", where=path) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise NotAScanError(f"holds {dtype} numbers, not one value a voxel", where=path)
    return dtype


def _three_axes(dims: list[int], path: Path) -> tuple[int, int, int]:
    while len(dims) > 3 and dims[-1] == 1:
        dims.pop()
    if len(dims) > 3:
        raise NotAScanError(
            f"holds {prod(dims[3:])} volumes (axes {'x'.join(map(str, dims))}), not one",
            where=path,
            do="split it into one file a volume",
        )
    if len(dims) < 3 or min(dims) < 1:
        raise ReadError(f"declares axes {'x'.join(map(str, dims)) or 'of no number'}, not three", where=path)
    return dims[0], dims[1], dims[2]


def _image_of(path: Path) -> Path:
    """The `.img` (perhaps gzipped) beside a `.hdr`, in the case of its letters."""
    stem = names.stem(path)
    img = ".IMG" if path.name.removeprefix(stem).isupper() else ".img"
    for name in (stem + img, stem + img + ".gz"):
        if (path.parent / name).is_file():
            return beside(path, name)
    return beside(path, stem + img)  # raises: it is not there


def _affine(fields: Any, ijk: tuple[int, int, int], path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """(index (i, j, k) to RAS+ millimetres, notes), by the rule: the form that is set; both must agree; one must be set."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sform = fields.get_sform() if int(fields["sform_code"]) > 0 else None
            qform = fields.get_qform() if int(fields["qform_code"]) > 0 else None
        forms = [geometry.as_affine(f) for f in (sform, qform) if f is not None]
    except CTFoundryError as error:
        raise GeometryError(error.what, where=path, do="repair the sform or qform of the header") from error
    except Exception as error:  # a quaternion longer than one, and the like
        raise GeometryError(f"its qform cannot be read ({error})", where=path, do="repair the header") from error
    if not forms:
        raise GeometryError(
            "sets neither sform nor qform, so nobody knows where its voxels lie",
            where=path,
            do="set one, e.g. with nibabel: Nifti1Image(data, affine), then save",
        )
    if len(forms) == 2:
        apart = np.abs(Grid(ijk, forms[0]).corners - Grid(ijk, forms[1]).corners).max()
        if not apart <= FORMS_TOLERANCE_MM:
            raise GeometryError(
                f"sform and qform disagree by up to {apart:.1f} mm",
                where=path,
                do="keep the right one, e.g. with nibabel: image.set_qform(image.get_sform()), then save",
            )
    unit = int(fields["xyzt_units"]) & 7
    scale = _MM.get(unit)
    if scale is None:
        raise GeometryError(f"counts space in an unknown unit ({unit})", where=path)
    affine = np.diag([scale, scale, scale, 1.0]) @ forms[0]
    notes: tuple[str, ...] = ()
    low, high = (f(np.linalg.norm(affine[:3, :3], axis=0)) for f in (min, max))
    if not (_PLAUSIBLE_MM[0] <= low and high <= _PLAUSIBLE_MM[1]):
        said = {0: "no unit, taken as mm", 1: "metres", 2: "mm", 3: "micrometres"}[unit]
        notes = (f"voxels of {low:.3g} to {high:.3g} mm: is the unit of length in its header true ({said})?",)
    return affine, notes


def write(volume: Volume, path: Path) -> None:
    """Write a NIfTI-1 file (gzipped by its suffix, see `stream.gzipped`): sform, and qform unless the grid is sheared; mm.

    Where an axis is too long for NIfTI-1 it is a NIfTI-2 file.
    """
    import nibabel as nib

    if volume.voxels.dtype.kind not in "iuf" or volume.voxels.dtype.itemsize > 8 or volume.voxels.dtype == np.float16:
        raise CTFoundryError(f"NIfTI has no type for {volume.voxels.dtype}", where=path)
    kind = nib.Nifti1Image if max(volume.shape) < 1 << 15 else nib.Nifti2Image
    image = kind(volume.voxels.transpose(2, 1, 0), volume.affine[:, [2, 1, 0, 3]], dtype=volume.voxels.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, 1)
    if geometry.is_sheared(volume.affine):
        image.set_qform(None, 0)  # a qform cannot say it
    else:
        image.set_qform(image.affine, 1)
    if volume.kind == "label":
        image.header["intent_code"] = _INTENT_LABEL
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    image.header["magic"] = b"n+1" if kind is nib.Nifti1Image else b"n+2"
    first = _FIRST_BYTE[1 if kind is nib.Nifti1Image else 2]
    image.header["vox_offset"] = first
    head = image.header.binaryblock
    parts = (head + bytes(first - len(head)), np.ascontiguousarray(volume.voxels, dtype=image.get_data_dtype()).data)
    if path.name.lower().endswith(".gz"):
        files.write_bytes(path, gzipped(*parts))
        return
    with files.whole(path) as part, open(part, "wb") as stream:
        for piece in parts:
            stream.write(piece)
