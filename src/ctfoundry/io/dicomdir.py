"""DICOMDIR: the list of a medium's files (DICOM PS3.3 F, PS3.10 8), believed only about files in its own folder.

A Referenced File ID is a list of names, one a folder level. Written with care it leads anywhere on the disk (as CVE-2026-32711
had it), so each name is one plain component, and the file, links followed, lies below the DICOMDIR.
"""

from __future__ import annotations

import warnings
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

from ctfoundry.errors import CTFoundryError, ReadError
from ctfoundry.io import dicom, dicom_file, dicom_series
from ctfoundry.io.dicom_header import Header
from ctfoundry.io.stream import CAP
from ctfoundry.volume import Kind, Volume

CLASS = b"1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR (Media Storage Directory Storage), in its meta group."""
LIMIT = 16 << 20
"""Largest DICOMDIR that is read: some 30,000 files."""

_SHOWN = 5
_RECORDS = 0x00041220  # Directory Record Sequence


def is_dicomdir(start: bytes) -> bool:
    """Whether `start` begins a DICOMDIR: its meta group says so."""
    at = start.find(b"\x02\0\x02\0UI", 0, 1024)
    length = int.from_bytes(start[at + 6 : at + 8], "little")
    return start[128:132] == b"DICM" and at > 0 and start[at + 8 : at + 8 + length].rstrip(b"\0 ") == CLASS


def listed(path: Path) -> list[Path]:
    """The image files that a DICOMDIR lists, in its order, each once.

    Raises ReadError for a list that cannot be parsed, that leads out of its folder, or whose files are missing.
    """
    folder = path.parent
    inside = folder.resolve()
    found: dict[Path, None] = {}
    missing: list[str] = []
    for names in _referenced(path):
        target = _file(folder, names)
        if target is None:
            missing.append("/".join(names))
            continue
        if not target.resolve().is_relative_to(inside):
            raise _leads_out(path)
        found[target] = None
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ReadError(
            f"lists {len(missing)} files that are not in its folder",
            where=path,
            do=f"copy the whole medium again; missing: {', '.join(missing[:_SHOWN])}{more}. Or give the folder as it is",
        )
    return list(found)


def read(
    path: Path,
    name: str | None = None,
    *,
    kind: Kind | None = None,
    cap: int = CAP,
    threads: int | None = None,
    allow_gaps: bool = False,
) -> Volume:
    """The one series that a DICOMDIR lists, or the one that `name` says; as `dicom_series.read_folder`."""
    headers: list[Header] = []
    skipped: Counter[str] = Counter()
    for file in listed(path):
        slices = dicom.slices_of(str(file))  # a damaged image is an error: the series would come out short
        if isinstance(slices, str):
            skipped[slices] += 1
        else:
            headers += slices
    return dicom_series.read_slices(
        headers, skipped, path, name, kind=kind, cap=cap, threads=threads, allow_gaps=allow_gaps
    )


def _referenced(path: Path) -> list[list[str]]:
    """The Referenced File ID of each image record."""
    from pydicom.filereader import read_dataset

    if path.stat().st_size > LIMIT:
        raise ReadError(f"is larger than a DICOMDIR of {LIMIT >> 20} MiB", where=path, do="give the folder")
    content = path.read_bytes()
    try:
        syntax, at = dicom_file.meta(content)
        if syntax == dicom_file.DEFLATED:  # which pydicom would inflate without a limit
            raise ReadError("is a deflated DICOMDIR, which the standard forbids", where=path, do="give the folder")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            implicit = syntax == dicom_file.IMPLICIT
            data: Any = read_dataset(BytesIO(content[at:]), implicit, True, specific_tags=[_RECORDS])
            records = list(data.get("DirectoryRecordSequence", None) or [])
            result = []
            for record in records:
                if str(record.get("DirectoryRecordType", "")).strip() != "IMAGE" or "ReferencedFileID" not in record:
                    continue
                names = record.ReferencedFileID
                result.append([names] if isinstance(names, str) else [str(n) for n in names])
    except CTFoundryError:
        raise
    except Exception as error:  # pydicom raises many types on damaged files
        raise ReadError(f"cannot be parsed ({str(error)[:100]})", where=path, do="give the folder") from error
    for names in result:
        if not names or any(n.strip() in ("", ".", "..") or set(n) & set("/\\:\0") for n in names):
            raise _leads_out(path)
    return result


def _leads_out(path: Path) -> ReadError:
    return ReadError("lists a file outside of its folder", where=path, do="do not trust it; give the folder itself")


def _file(folder: Path, names: list[str]) -> Path | None:
    """The file, in whatever case its medium was mounted; None where there is none."""
    place = folder
    for name in names:
        tries = (name, name.lower(), name.upper(), name + ".", name.lower() + ".")
        try:
            place = next(place / t for t in tries if (place / t).exists())
        except (StopIteration, OSError):
            return None
    return place if place.is_file() else None
