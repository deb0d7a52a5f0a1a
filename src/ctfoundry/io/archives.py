"""Scans in zip archives: found by the first bytes of their files, read without trusting names or sizes.

What has to lie on the disk lies there under a number, in a private folder that is removed again; names are compared and
shown, never used as paths. One level is opened; archives inside archives are named.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ctfoundry.errors import CTFoundryError, NotAScanError, ReadError, TooLargeError
from ctfoundry.io.skips import SINGLE, Skip
from ctfoundry.io.stream import CAP
from ctfoundry.io.zip_directory import OPEN_IT, Member, member_of, members, pieces
from ctfoundry.volume import Kind, Volume

if TYPE_CHECKING:
    from ctfoundry.io.discovery import Discovery, Found

HEAD = 1 << 20
"""Bytes unpacked of a file to see what it is, if it is no DICOM slice; no header of another format is longer."""
LOOK_LIMIT = 2 << 30
"""Bytes unpacked, in all, of files whose beginning does not tell what they are."""
NO_SCAN = "zip archive without a scan"
"""Reason for an archive that holds nothing of interest."""


@dataclass(frozen=True)
class _Place:
    """A private folder with files of an archive under numbers."""

    archive: Path
    folder: Path
    names: dict[str, str]

    def put(self, member: Member, limit: int | None = None) -> Path:
        """A file, or its first `limit` bytes followed by a hole to its full length."""
        target = self.folder / f"{len(self.names):06d}"
        self.names[target.name] = member.name
        try:
            with open(target, "xb") as file:
                for piece in pieces(self.archive, member, limit):
                    file.write(piece)
                file.truncate(member.size)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return target

    def shown(self, text: str) -> str:
        """`text` with the archive's names in place of the numbers."""
        found = re.escape(str(self.folder)) + r"(?:[/\\](\d{6}))?"

        def name(match: re.Match[str]) -> str:
            number = match.group(1)
            return str(self.archive) + (f"#{self.names[number]}" if number in self.names else "")

        return re.sub(found, name, text)

    def error(self, error: CTFoundryError) -> CTFoundryError:
        """The same error, speaking of the archive."""
        texts = [None if t is None else self.shown(t) for t in (error.what, error.where, error.do)]
        return type(error)(texts[0] or "", where=texts[1], do=texts[2])


@contextmanager
def _private(archive: Path) -> Iterator[_Place]:
    """A private folder that is removed however the block ends; errors that leave the block speak of the archive."""
    with tempfile.TemporaryDirectory(prefix="ctfoundry-zip-") as folder:
        place = _Place(archive, Path(folder), {})
        try:
            yield place
        except CTFoundryError as error:
            raise place.error(error) from error
        except OSError as error:
            raise ReadError(f"cannot be unpacked ({error.strerror or error})", where=archive) from error


# Scans ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """What the first bytes of an archive's files tell; names of its DICOM files, and of its lone slices."""

    discovery: Discovery
    dicom: list[str]
    lone: list[str]


def discover(path: Path) -> Discovery:
    """What an archive holds, from the first bytes of its files; one `Found` a volume, as `discovery.discover`.

    Raises what `zip_directory.members` raises, and ReadError where a file in it cannot be unpacked: a slice that is left out
    would make a volume shorter without a word.
    """
    return _look(path).discovery


def _look(path: Path) -> _Seen:
    from ctfoundry.io import discovery, reading

    skips: list[Skip] = []
    dicom: list[str] = []
    budget = LOOK_LIMIT
    with _private(path) as place:
        for member in members(path):
            target = place.put(member, reading.START)
            with open(target, "rb") as file:
                start = file.read(min(reading.START, member.size))
            fmt = reading.format_of(target, start)
            if fmt is None:
                target.unlink()
                skips.append(Skip(path, discovery.reason_of(start), member.name))
                continue
            if fmt == "dicom":
                dicom.append(member.name)
            if member.size > reading.START and not (fmt == "dicom" and _is_enough(target, start)):
                target.unlink()
                limit = None if fmt == "dicom" else HEAD
                budget -= min(member.size, limit or member.size)
                if budget < 0:
                    raise TooLargeError("is too large to be looked into", where=path, do=OPEN_IT)
                place.put(member, limit)
        inner = discovery.discover(place.folder)
        found = [_outside(item, place) for item in inner.found]
        lone = [place.names[s.path.name] for s in inner.skips if s.reason == SINGLE]
    skips += [Skip(path, s.reason, place.names.get(s.path.name, "")) for s in inner.skips]
    return _Seen(discovery.Discovery(path, tuple(found), tuple(skips)), dicom, lone)


def _is_enough(target: Path, start: bytes) -> bool:
    """Whether the first bytes of a DICOM file hold its whole header, and its pixels are plain; or it is of no interest."""
    from ctfoundry.io import drawn
    from ctfoundry.io.dicom import CT_CLASS
    from ctfoundry.io.dicom_header import read_header

    try:
        header = read_header(str(target), start)
    except ReadError:
        return False
    if header.sop_class and not header.sop_class.startswith(CT_CLASS):
        return not drawn.is_drawn(target, start)  # those are read whole
    return header.plain and header.start == 0 and 0 < header.pixels <= len(start)


def _outside(item: Found, place: _Place) -> Found:
    """A volume of the private folder as one of the archive."""
    from ctfoundry.io.discovery import named_as_label

    names = tuple(place.names[p.name] for p in item.paths)
    return replace(
        item,
        paths=(place.archive,),
        members=names,
        is_label=item.is_label or (item.format != "dicom" and named_as_label(Path(Path(names[0]).name))),
        problem=None if item.problem is None else place.error(item.problem),
        data=None,
        folder=place.archive,
    )


def read_found(
    item: Found, *, kind: Kind | None = None, cap: int = CAP, threads: int | None = None, allow_gaps: bool = False
) -> Volume:
    """The volume that `discover` found in an archive."""
    with _private(item.path) as place:
        paths = _unpacked(place, item.members, cap)
        if item.format != "dicom":
            return _read_file(place, paths[0], kind, cap)
        inside = replace(item, paths=tuple(paths), members=(), folder=place.folder)
        return inside.read(kind=kind, cap=cap, threads=threads, allow_gaps=allow_gaps)


def read(
    path: Path,
    name: str | None = None,
    *,
    kind: Kind | None = None,
    cap: int = CAP,
    threads: int | None = None,
    allow_gaps: bool = False,
) -> Volume:
    """The one volume in an archive, or the one that `name` says: a series UID (``UID@PART``), or a file in it.

    For a series the checksums of all DICOM files in the archive are compared, those too that are not part of it: a damaged
    slice looks like a stranger.

    Raises NotAScanError where there is none or more than one, with their names; else as `reading.read`.
    """
    from ctfoundry.io import dicom_series, drawn

    seen = _look(path)
    found, lone = seen.discovery, seen.lone
    items = list(found.found if name is None else found.named(name))
    slices = [f for f in items if f.format == "dicom" and f.modality not in drawn.MODALITIES]
    if (slices and all(f.format == "dicom" for f in items)) or (not items and lone):
        wanted = list(dict.fromkeys([n for f in slices for n in f.members] or lone))
        with _private(path) as place:
            _unpacked(place, wanted, cap)
            table = {m.name: m for m in members(path)}
            for other in set(seen.dicom).difference(wanted):
                for _ in pieces(path, table[other]):
                    pass
            return dicom_series.read_folder(
                place.folder, name, kind=kind, cap=cap, threads=threads, allow_gaps=allow_gaps
            )
    if not items:
        holds = ", ".join(f"{count} x {reason}" for reason, count in found.skipped.items()) or "no file"
        raise NotAScanError(
            f"holds no scan{f' {name}' if name else ''} (it holds: {holds})",
            where=path,
            do="give an archive with a scan",
        )
    if len(items) > 1:
        listed = "; ".join(f.name for f in items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")
        raise NotAScanError(f"holds {len(items)} volumes: {listed}", where=path, do="name one of these")
    return read_found(items[0], kind=kind, cap=cap)


def _read_file(place: _Place, path: Path, kind: Kind | None, cap: int) -> Volume:
    from ctfoundry.io import reading

    with open(path, "rb") as file:
        fmt = reading.format_of(path, file.read(reading.START))
    if fmt is None or fmt == "dicom":
        raise ReadError("is another file than before", where=path, do="search the archive again")
    return reading.read_file(reading.HEADERS[fmt](path), kind=kind, cap=cap, called=place.names[path.name])


def _unpacked(place: _Place, names: Sequence[str], cap: int) -> list[Path]:
    """The files `names`, unpacked whole; raises TooLargeError when they are larger than a volume of `cap` bytes can be."""
    table = {m.name: m for m in members(place.archive)}
    chosen = [member_of(table, name, place.archive) for name in names]
    total = sum(m.size for m in chosen)
    if total > cap + len(chosen) * HEAD:
        raise TooLargeError(
            f"unpacks to {total >> 20:,} MiB, over the cap of {cap >> 20:,} MiB",
            where=place.archive,
            do="pass a larger cap (bytes) if the size is true",
        )
    return [place.put(member) for member in chosen]
