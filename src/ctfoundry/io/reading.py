"""`read` and `write`: one door for every format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ctfoundry.errors import ReadError, UsageError
from ctfoundry.io import dicom_header, dicom_series, kinds, metaimage, names, nifti, nrrd, raw
from ctfoundry.io.raw import Declared, Format
from ctfoundry.io.stream import CAP, start_of
from ctfoundry.volume import Kind, Volume

START = dicom_header.FIRST_READ
"""Bytes of a file that are looked at to tell its format."""

HEADERS: dict[str, Callable[[Path], Declared]] = {
    "nifti": nifti.header,
    "nrrd": nrrd.header,
    "metaimage": metaimage.header,
}
"""The header reader of each format that keeps a volume in one file (or a pair)."""

_WRITERS: dict[str, Callable[[Volume, Path], None]] = {
    ".nii.gz": nifti.write,
    ".nii": nifti.write,
    ".nrrd": nrrd.write,
    ".mha": metaimage.write,
}


def format_of(path: str | os.PathLike[str], start: bytes) -> Format | None:
    """The format of a file by its first bytes, whatever its name; None for anything that holds no scan."""
    if start[:2] == b"\x1f\x8b":
        try:
            start = start_of(path, nifti.HEADER_SIZE)
        except ReadError:
            return None
        return "nifti" if nifti.version(start) else None
    if dicom_header.is_dicom(start):
        return "dicom"
    if nrrd.is_nrrd(start):
        return "nrrd"
    if nifti.version(start):
        return "nifti"
    return "metaimage" if metaimage.is_metaimage(start) else None


def read(
    path: str | os.PathLike[str], *, kind: Kind | None = None, cap: int = CAP, threads: int | None = None
) -> Volume:
    """Read one volume.

    Parameters
    ----------
    path : a NIfTI, NRRD, MHA or MHD file; a folder with one DICOM CT series in any mix of other files; `FOLDER#UID` for
        one of several series; or the only DICOM slice of its series (a volume of depth 1, as thick as its slice thickness).
    kind : what the numbers are, where the caller knows better than the rule in `kinds`. A label map is never read as HU.
    cap : most bytes of decoded voxels; compared with the header before anything is allocated.
    threads : how many decode the slices of a series; as many as there are processors by default.

    Returns
    -------
    Volume : the array is (d, h, w) with the file's slowest axis first (DICOM: along the normal of the slices), RAS+
    millimetres. HU are int16 where all are whole numbers, else float32; scanner fill is -1024 and not `valid`.

    Raises
    ------
    NotAScanError, TruncatedError, TooLargeError, ReadError, GeometryError, MissingSlicesError, DuplicateSlicesError,
    IrregularSpacingError : each names the file or series, what is wrong and what to do.
    """
    place, series = _place(path)
    try:
        if place.is_dir():
            return dicom_series.read_folder(place, series, kind=kind, cap=cap, threads=threads)
        if not place.is_file():
            raise ReadError("does not exist", where=place, do="check the path")
        with open(place, "rb", buffering=0) as file:
            start = file.read(START)
        found = format_of(place, start)
        if found == "dicom":
            return dicom_series.read_file(place, start, kind=kind, cap=cap, threads=threads)
        if found is None:
            raise ReadError(
                "is no NIfTI, NRRD, MetaImage or DICOM file" if start else "is empty",
                where=place,
                do="give one of these, or a folder with a DICOM series",
            )
        return read_file(HEADERS[found](place), kind=kind, cap=cap)
    except OSError as error:
        raise ReadError(f"cannot be read ({error.strerror or error})", where=place) from error
    except MemoryError as error:
        raise ReadError("does not fit into this machine's memory", where=place, do="pass a smaller cap") from error


def read_file(declared: Declared, *, kind: Kind | None = None, cap: int = CAP) -> Volume:
    """The volume that a NIfTI, NRRD or MetaImage header declares."""
    stored = raw.load(declared, cap)
    kinds.check_finite(stored, declared.path)
    voxels = kinds.scaled(stored, declared.slope, declared.intercept)
    kinds.check_finite(voxels, declared.path)
    kind = kinds.decide(voxels, kind, declared.path)
    voxels, valid = kinds.finished(voxels, kind)
    labels = names.of_labels(declared.path, voxels) if kind == "label" else None
    return Volume(voxels, declared.affine, kind, names=labels, valid=valid, source=declared.format)


def write(volume: Volume, path: str | os.PathLike[str]) -> None:
    """Write a volume as `.nii`, `.nii.gz`, `.nrrd` or `.mha`, by the suffix of `path`; whole or not at all.

    The array's order and the affine are kept. Names and the `valid` mask are not part of these formats.

    Raises UsageError for another suffix.
    """
    target = Path(path)
    for suffix, writer in _WRITERS.items():
        if target.name.lower().endswith(suffix):
            writer(volume, target)
            return
    raise UsageError(f"has no suffix of {', '.join(_WRITERS)}", where=target)


def _place(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """(path, series UID) of ``FOLDER#UID``; a path that exists as it is written has no UID."""
    whole = Path(path)
    folder, sign, series = str(path).rpartition("#")
    if sign and not whole.exists() and Path(folder).is_dir():
        return Path(folder), series
    return whole, None
