"""A walk over a tree of files that looks into each, pixels aside."""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ctfoundry.errors import CTFoundryError, ReadError
from ctfoundry.io import reading, zip_directory
from ctfoundry.io.phi import dicom, headers, texts
from ctfoundry.io.phi.notes import GROUPS, Finding, Notes

_READERS: dict[str, Callable[[Path, bytes, Notes], None]] = {
    "dicom": dicom.look,
    "nifti": headers.nifti,
    "nrrd": headers.nrrd,
    "metaimage": headers.metaimage,
}
_ZIP_HEAD = 1 << 20
"""Bytes of each file in an archive that are unpacked."""
_ZIP_LIMIT = 4 << 30
_CODE = "(0008,0100)"
"""Code Value."""
_SIGNS = {
    b"%PDF": "PDF document",
    b"\xff\xd8\xff": "JPEG picture",
    b"\x89PNG": "PNG picture",
    b"{\\rtf": "RTF document",
}


@dataclass(frozen=True)
class Survey:
    """All findings of a folder.

    Attributes
    ----------
    findings : in the order of `GROUPS`, then of `where`.
    files : how many files were looked into, by format; "other" ones by their names only.
    unread : reason to the number of files that could not be looked into.
    """

    findings: tuple[Finding, ...]
    files: dict[str, int]
    unread: dict[str, int]


def survey(root: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None) -> Survey:
    """Look into every file under `root` (or the one file); `progress` is called with the number of files done, now and then.

    Raises ReadError when there is no such file or folder.
    """
    place = Path(root)
    if not place.exists():
        raise ReadError("does not exist", where=place, do="check the path")
    notes = Notes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that break the standard; here they are only listed
        for done, path in enumerate(_paths(place), 1):
            _look_into(path, notes)
            if progress is not None and done % 500 == 0:
                progress(done)
    known = texts.known(notes)
    _judge_texts(notes, known)
    _look_at_names(place, notes, known)
    order = {group: k for k, group in enumerate(GROUPS)}
    findings = sorted(notes.findings(), key=lambda f: (order[f.group], f.where, f.name, f.why))
    return Survey(tuple(findings), dict(sorted(notes.files.items())), dict(sorted(notes.unread.items())))


def _paths(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    for parent, below, files in os.walk(place):
        below.sort()
        for name in sorted(files):
            yield Path(parent, name)


def _look_into(path: Path, notes: Notes) -> None:
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(reading.START)
        kind = reading.format_of(path, start)
        if kind is None and zip_directory.is_zip(start):
            _look_into_zip(path, notes)
        elif kind is None:
            _look_at_other(start, notes)
        else:
            _READERS[kind](path, start, notes)
        notes.files[kind or "other"] = notes.files.get(kind or "other", 0) + 1
    except OSError as error:
        reason = f"cannot be opened ({error.strerror})"
        notes.unread[reason] = notes.unread.get(reason, 0) + 1
    except CTFoundryError as error:
        notes.unread[error.what] = notes.unread.get(error.what, 0) + 1
    except Exception:  # damaged headers make pydicom raise many types
        notes.unread["damaged header"] = notes.unread.get("damaged header", 0) + 1


def _look_into_zip(path: Path, notes: Notes) -> None:
    """The headers of what an archive holds, each unpacked into a private folder as far as headers reach."""
    left = _ZIP_LIMIT
    with tempfile.TemporaryDirectory(prefix="ctfoundry-") as place:
        for member in zip_directory.members(path):
            notes.members.append(member.name)
            if member.name == "[Content_Types].xml":
                notes.entry("document", "file", "office document", "not looked into: may hold anything").add()
            left -= min(member.size, _ZIP_HEAD)
            if left < 0:
                raise ReadError("zip archive too large to be looked into", where=path)
            target = Path(place, "member")
            with open(target, "wb") as file:
                file.writelines(zip_directory.pieces(path, member, limit=_ZIP_HEAD))
            _look_into(target, notes)


def _look_at_other(start: bytes, notes: Notes) -> None:
    """Files that hold no scan, and often tell names."""
    for sign, name in _SIGNS.items():
        if start.startswith(sign):
            notes.entry("document", "file", name, "not looked into: may hold anything").add()


def _judge_texts(notes: Notes, known: texts.Known) -> None:
    for where, text in notes.texts.items():
        for value, tally in text.values.items():
            for why in texts.looks(value, known):
                if why != texts.REPEATS and where.endswith(_CODE):
                    continue  # codes are numbers
                notes.entry("looks identifying", where, text.name, why).add(value, tally.times)


def _look_at_names(place: Path, notes: Notes, known: texts.Known) -> None:
    """Names of files and folders, that of `place` included."""
    folders: dict[str, None] = {place.resolve().name: None} if place.is_dir() else {}
    names = ((path.name, path.relative_to(place).parts[:-1]) for path in _paths(place))
    inside = ((PurePosixPath(name).name, PurePosixPath(name).parts[:-1]) for name in notes.members)
    for name, parents in itertools.chain(names, inside):
        for why in texts.name_looks(name, known):
            notes.entry("file name", "file", "name of a file", why).add(name)
        folders |= dict.fromkeys(parents)
    for name in folders:
        for why in texts.name_looks(name, known):
            notes.entry("file name", "folder", "name of a folder", why).add(name)
