"""`read` and `write`: one door for every format."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from ctfoundry.errors import ReadError, UsageError
from ctfoundry.io import (
    archives,
    dicom_file,
    dicom_series,
    dicomdir,
    drawn,
    kinds,
    metaimage,
    names,
    nifti,
    nrrd,
    raw,
    zip_directory,
)
from ctfoundry.io.places import place_of
from ctfoundry.io.raw import Declared, Format
from ctfoundry.io.stream import CAP, start_of
from ctfoundry.volume import Kind, Volume

START = dicom_file.FIRST_READ
"""Bytes of a file that are looked at to tell its format."""

HEADERS: dict[str, Callable[[Path], Declared]] = {
    "nifti": nifti.header,
    "nrrd": nrrd.header,
    "metaimage": metaimage.header,
}
"""The header reader of each format that keeps a volume in one file (or a pair)."""

_STRANGERS = (
    (b"PK\3\4", "zip archive in an archive"),
    (b"Rar!", "RAR archive"),
    (b"7z\xbc\xaf", "7z archive"),
    (b"\x1f\x8b", "gzip file"),
    (b"\x1f\x9d", "compress (.Z) file"),
    (b"BZh", "bzip2 file"),
    (b"\xfd7zXZ", "xz file"),
    (b"\x28\xb5\x2f\xfd", "Zstandard file"),
    (b"\x89HDF", "HDF5 or MINC file"),
    (b"CDF", "NetCDF or MINC file"),
    (b"# vtk", "VTK file"),
    (b"<?xml", "XML file"),
    (b"\x93NUMPY", "NumPy array"),
    (b"\x89PNG", "PNG picture"),
    (b"\xff\xd8\xff", "JPEG picture"),
    (b"II*\0", "TIFF picture"),
    (b"MM\0*", "TIFF picture"),
    (b"%PDF", "PDF"),
)

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
    if dicom_file.is_dicom(start):
        return "dicom"
    if nrrd.is_nrrd(start):
        return "nrrd"
    if nifti.version(start):
        return "nifti"
    return "metaimage" if metaimage.is_metaimage(start) else None


def stranger(start: bytes) -> str:
    """What a file is that none of the readers reads, by its first bytes; "" where that is not known."""
    if start[257:262] == b"ustar":
        return "tar archive"
    if start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return "Analyze 7.5 header"
    return next((name for magic, name in _STRANGERS if start.startswith(magic)), "")


def read(
    path: str | os.PathLike[str],
    *,
    kind: Kind | None = None,
    cap: int = CAP,
    threads: int | None = None,
    allow_gaps: bool = False,
) -> Volume:
    """Read one volume.

    Parameters
    ----------
    path : a NIfTI, NRRD, MHA or MHD file; a folder with one DICOM CT series in any mix of other files; `FOLDER#UID` for
        one of several series; the only DICOM slice of its series (a volume of depth 1, as thick as its slice thickness); a
        DICOM SEG (its labels, on the grid that its frames imply); or a zip archive or DICOMDIR with one of these, else
        `ARCHIVE#UID` or `ARCHIVE#FILE`.
    kind : what the numbers are, where the caller knows better than the rule in `kinds`; `"hu"` takes for HU what does not look
        it, and `Volume.notes` says so. A label map is never read as HU.
    cap : most bytes of decoded voxels; compared with the header before anything is allocated.
    threads : how many decode the slices of a series; as many as there are processors by default.
    allow_gaps : resample a DICOM series with missing slices or irregular distances instead of raising their errors; the notes
        say where.

    Returns
    -------
    Volume : the array is (d, h, w) with the file's slowest axis first (DICOM: along the normal of the slices), RAS+
    millimetres. HU are int16 where all are whole numbers, else float32; scanner fill is -1024 and not `valid`. `notes` say
    what was done to it, and for kind "other" why its numbers are no HU.

    Raises
    ------
    NotAScanError, TruncatedError, TooLargeError, ReadError, GeometryError, MissingSlicesError, DuplicateSlicesError,
    IrregularSpacingError : each names the file or series, what is wrong and what to do.
    """
    place, name = place_of(path)
    try:
        if place.is_dir():
            return dicom_series.read_folder(place, name, kind=kind, cap=cap, threads=threads, allow_gaps=allow_gaps)
        start = _start(place)
        for knows, reader in ((zip_directory.is_zip, archives.read), (dicomdir.is_dicomdir, dicomdir.read)):
            if knows(start):
                return reader(place, name, kind=kind, cap=cap, threads=threads, allow_gaps=allow_gaps)
        if name is not None:
            raise ReadError(
                f"is one file, so {name[:80]!r} is not in it", where=place, do="leave out what follows the #"
            )
        found = format_of(place, start)
        if found == "dicom" and drawn.is_drawn(place, start):
            return drawn.read_file(place, kind=kind, cap=cap)
        if found == "dicom":
            return dicom_series.read_file(place, start, kind=kind, cap=cap, threads=threads, allow_gaps=allow_gaps)
        if found is None:
            raise _refusal(place, start)
        return read_file(HEADERS[found](place), kind=kind, cap=cap)
    except OSError as error:
        raise ReadError(f"cannot be read ({error.strerror or error})", where=place) from error
    except MemoryError as error:
        raise ReadError("does not fit into this machine's memory", where=place, do="pass a smaller cap") from error


def _start(path: Path) -> bytes:
    """The first bytes of a file; pipes, sockets and devices, which may never end, are not opened."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ReadError("does not exist", where=path, do="check the path") from None
    if not stat.S_ISREG(mode):
        raise ReadError("is a pipe, socket or device, not a file", where=path, do="save its content as a file first")
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(number, "rb", buffering=0) as file:
        return file.read(START)


def _refusal(path: Path, start: bytes) -> ReadError:
    """Why a file in none of the formats is not read."""
    if not start:
        return ReadError("is empty", where=path, do="copy or download the file again")
    header = next((h for h in _headers_beside(path) if h.is_file()), None)
    if header is not None:
        return ReadError("holds the numbers of a NIfTI pair", where=path, do=f"read {header}")
    if start[:2] == b"\x1f\x8b":
        with contextlib.suppress(ReadError):
            start = start_of(path, 512)
    what = stranger(start)
    if what.startswith("Analyze"):
        return ReadError(
            "is Analyze 7.5, which does not say where its voxels lie", where=path, do="convert the original to NIfTI"
        )
    if what:
        return ReadError(f"is a {what}", where=path, do="unpack or convert it, and give the files")
    return ReadError(
        "is no NIfTI, NRRD, MetaImage or DICOM file",
        where=path,
        do="give one of these, or a folder with a DICOM series",
    )


def _headers_beside(path: Path) -> list[Path]:
    stem, ends = names.stem(path), path.name.lower()
    if not ends.endswith((".img", ".img.gz")):
        return []
    return [path.parent / (stem + end) for end in (".hdr", ".hdr.gz", ".HDR")]


def read_file(declared: Declared, *, kind: Kind | None = None, cap: int = CAP, called: str | None = None) -> Volume:
    """The volume that a NIfTI, NRRD or MetaImage header declares; `called` is the file's own name where it is a copy."""
    stored = raw.load(declared, cap)
    kinds.check_finite(stored, declared.path)
    voxels = kinds.scaled(stored, declared.slope, declared.intercept)
    kinds.check_finite(voxels, declared.path)
    kind, notes = kinds.judge(voxels, kind, declared.path, says_label=declared.says_label)
    voxels, valid = kinds.finished(voxels, kind)
    labels = names.of_labels(declared.path, voxels, called) if kind == "label" else None
    notes = declared.notes + notes
    return Volume(voxels, declared.affine, kind, names=labels, valid=valid, source=declared.format, notes=notes)


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
