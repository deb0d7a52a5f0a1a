"""Files that are passed over, why, and which of them something is missing without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ctfoundry.io import dicom, names

SINGLE = "single slice"
"""Reason for a DICOM slice that has no other of its series, size and orientation."""
NO_SCAN_FILE = "not a scan file"
"""Reason for files in none of the formats."""
EMPTY = "empty file"
"""Reason for files without a byte."""
ZIP = "zip archive"
"""Reason for archives where they are not looked into."""
ZIPPED = "in a zip archive: "
"""How the reasons of files in archives begin."""
LINK, DEVICE, BROKEN_LINK = "link to a folder", "pipe, socket or device", "broken link"
"""Reasons for entries that are not opened."""
NOT_OPENED, REFUSED = "cannot be opened", "zip archive: "
"""How the reasons begin of files and folders that the system does not open, and of archives that are not looked into."""

_SCAN_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")


@dataclass(frozen=True)
class Skip:
    """One file that is no scan, and why; `member` is its name in the archive `path`."""

    path: Path
    reason: str
    member: str = ""

    @property
    def lost(self) -> bool:
        """Whether it is, or may well be, a scan or a part of one, so that something is missing without it.

        Such are CT slices that cannot be used, what cannot be opened, and files that are called like a scan and hold none
        (a download that broke off; but not what macOS writes beside each file, under its name).
        """
        reason, name = self.reason.removeprefix(ZIPPED), (self.member or self.path.name).rpartition("/")[2].lower()
        if reason in (EMPTY, NO_SCAN_FILE):
            return name.endswith(_SCAN_SUFFIXES) and not name.startswith("._")
        return reason in dicom.LOST or reason.startswith((NOT_OPENED, REFUSED))


@dataclass(frozen=True)
class Missing:
    """What is missing because of files that could not be used (`Skip.lost`), as one thing.

    place : a folder with slices, because nothing says which series they are of; an archive; or the file where its name says that it is
    a volume. `reason` is the same for all of `paths`.
    """

    place: Path
    reason: str
    paths: tuple[Path, ...]

    @property
    def told(self) -> str:
        """The reason, with how many files it holds for."""
        return self.reason if self.paths == (self.place,) else f"{len(self.paths)} x {self.reason}"


def missing(skips: Iterable[Skip]) -> tuple[Missing, ...]:
    """What could not even be recognised."""
    alike: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for skip in skips:
        if skip.lost:
            alike[_whole(skip), skip.reason.replace(NO_SCAN_FILE, "named like a scan, and holds none")].append(
                skip.path
            )
    return tuple(Missing(place, reason, tuple(paths)) for (place, reason), paths in alike.items())


def _whole(skip: Skip) -> Path:
    """What is missing because of it."""
    archive = skip.member or skip.reason.startswith(REFUSED)
    whole = archive or skip.path.is_dir() or names.stem(skip.path) != skip.path.name
    return skip.path if whole else skip.path.parent
