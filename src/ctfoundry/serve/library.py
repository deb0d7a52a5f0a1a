"""Which scans the app knows: those of the index, those given besides, and those sent from the page.

A scan is known by its id alone. Where it lies stands in the index's private file and stays in this process.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import stat
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctfoundry import identity, io
from ctfoundry.errors import CTFoundryError, ReadError
from ctfoundry.io.places import place_of
from ctfoundry.memory import Memory
from ctfoundry.retrieval.sources import Source, resolve, without_paths
from ctfoundry.serve.offers import Offer, offered
from ctfoundry.serve.picture import Shown, shown, thumbnail

CHANGED = "its file has changed since it was embedded"


class UnknownError(CTFoundryError):
    """There is nothing of this id."""


class GoneError(CTFoundryError):
    """The scan is known, but its voxels cannot be had."""


class FullError(CTFoundryError):
    """There is no room for another upload."""


@dataclass(frozen=True)
class Entry:
    """A scan that the page may ask for; `path` is private and None for uploads."""

    id: str
    path: str | None
    indexed: bool
    source: Source | None = None

    def problem(self) -> str:
        """Why its voxels cannot be had, "" where they should be there."""
        if self.path is None:
            return "its file is not known to this server"
        return "" if place_of(self.path)[0].exists() else "its file is gone"


def _stamp(path: str) -> tuple[int, int] | None:
    """Tells whether a file was written since; None for folders, which do not tell it, and for what is gone."""
    place = place_of(path)[0]
    try:
        about = place.stat()
    except OSError:
        return None
    return (about.st_mtime_ns, about.st_size) if stat.S_ISREG(about.st_mode) else None


def private_paths(folder: Path) -> dict[str, str]:
    """Where the scans of an embeddings folder lie; nothing where the folder came without its private file."""
    path = folder / identity.PRIVATE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ReadError("cannot be read", where=path, do="give the scans with --scans") from error
    return {id: place for id, place in found.items() if isinstance(place, str)} if isinstance(found, dict) else {}


class Library:
    """The scans by id, and their voxels in bounded memory."""

    def __init__(
        self,
        indexed: Collection[str],
        paths: Mapping[str, str],
        given: Sequence[Source],
        memory: Memory,
        *,
        uploads: int,
        upload_bytes: int,
    ) -> None:
        sources = {source.scan.id: source for source in given}
        self._entries = {
            id: Entry(id, sources[id].path if id in sources else paths.get(id), True, sources.get(id)) for id in indexed
        }
        for id, source in sources.items():
            self._entries.setdefault(id, Entry(id, source.path, False, source))
        self._memory = memory
        self._uploads: dict[str, Shown] = {}
        self._changed: dict[str, tuple[int, int]] = {}
        self._most, self._most_bytes = uploads, upload_bytes
        self._lock = threading.Lock()
        self._reading = threading.Semaphore(2)  # more at once would only take more memory

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, uploads first."""
        with self._lock:
            return (*self._uploads, *self._entries)

    def is_indexed(self, id: str) -> bool:
        """Whether the index holds a scan."""
        return id in self._entries and self._entries[id].indexed

    def content(self, id: str) -> str:
        """The digest of an indexed scan as it lies there now, where that is known without reading it; else ""."""
        entry = self._entry(id)
        source = entry.source
        # the id of a file is made of its content, that of a scan in a store is a name, and says nothing of the voxels
        if source is None and entry.path is not None and (place_of(entry.path)[0] / "store.json").is_file():
            with contextlib.suppress(CTFoundryError, OSError):
                source = self._found(id, entry.path)
        return source.scan.digest if source is not None else ""

    def describe(self, id: str) -> dict[str, object]:
        """A line of the list of scans."""
        if id in self._uploads:
            return {"id": id, "state": "upload", "problem": "", "indexed": False}
        problem = self._problem(self._entry(id))
        return {
            "id": id,
            "state": "unavailable" if problem else "ready",
            "problem": problem,
            "indexed": self._entries[id].indexed,
        }

    def available(self, id: str) -> bool:
        """Whether the voxels of a scan should be there, as far as is known without reading it."""
        return id in self._uploads or (id in self._entries and not self._problem(self._entries[id]))

    def readable(self, id: str) -> bool:
        """Whether the voxels of a scan are there; it is read for that."""
        try:
            self.scan(id)
        except CTFoundryError:
            return False
        return True

    def scan(self, id: str) -> Shown:
        """A scan with its voxels; raises UnknownError and GoneError."""
        with self._lock:
            if id in self._uploads:
                return self._uploads[id]
        entry = self._entry(id)
        return self._memory.once(("scan", id), lambda: self._read(entry))

    def thumb(self, id: str) -> bytes:
        """A small picture of a scan, PNG."""

        def make() -> tuple[bytes, int]:
            picture = thumbnail(self.scan(id))
            return picture, len(picture)

        return self._memory.once(("thumb", id), make)

    def add(self, scan: Shown) -> str:
        """Take a scan that was sent; raises FullError where there is no room."""
        with self._lock:
            used = sum(other.nbytes for other in self._uploads.values())
            if len(self._uploads) >= self._most or used + scan.nbytes > self._most_bytes:
                raise FullError("there is no room for another upload", do="remove one that is not needed")
            id = f"upload-{secrets.token_hex(6)}"
            self._uploads[id] = scan
            return id

    def room(self) -> bool:
        """Whether another upload may come."""
        return len(self._uploads) < self._most

    def remove(self, id: str) -> None:
        """Forget an upload and all that was made of it."""
        with self._lock:
            if self._uploads.pop(id, None) is None:
                raise UnknownError("there is no such upload")
        self._memory.drop(lambda key: id in key)

    def close(self) -> None:
        """Forget all uploads."""
        with self._lock:
            self._uploads.clear()

    def _entry(self, id: str) -> Entry:
        entry = self._entries.get(id)
        if entry is None:
            raise UnknownError("there is no scan of this id", do="go back to the list of scans")
        return entry

    def _problem(self, entry: Entry) -> str:
        """Why a scan cannot be shown, also where only reading it told; a file that was written since is given another chance."""
        stamp = self._changed.get(entry.id)
        return entry.problem() or (CHANGED if stamp and entry.path and _stamp(entry.path) == stamp else "")

    def _read(self, entry: Entry) -> tuple[Shown, int]:
        problem = entry.problem()
        if problem or entry.path is None:
            raise GoneError(problem, do="start the server with --scans FOLDER, where the file now lies")
        with self._reading:
            try:
                source = entry.source or self._found(entry.id, entry.path)
                made = shown(source.scan.read())
            except GoneError:
                raise
            except CTFoundryError as error:
                raise without_paths(error, entry.path) from None
            except OSError as error:
                raise GoneError(f"its file cannot be read ({error.strerror})") from None
        return made, made.nbytes

    def _found(self, id: str, path: str) -> Source:
        """The scan as it lies there; raises GoneError where the file is another one now, and remembers that until it is written again."""
        stamp, found = _stamp(path), resolve([path]).scans
        source = next((s for s in found if s.scan.id == id), None)
        if source is None:
            if found and stamp:  # a file that cannot be read may be read the next time
                self._changed[id] = stamp
            raise GoneError(CHANGED, do="embed it again")
        return source


def read_upload(path: Path, cap: int, name: str | None = None) -> Shown | Offer:
    """The scan in a file that was sent: NIfTI, NRRD, MetaImage, a DICOM slice, or a zip archive.

    Where an archive holds several it is what there is to choose from; `name` is the choice. Raises what `io.read` raises,
    without the path of the temporary file.
    """
    try:
        found = offered(path, cap) if name is None else name
        if isinstance(found, Offer):
            return found
        return shown(io.read(path if found is None else f"{path}#{found}", cap=cap))
    except CTFoundryError as error:
        raise without_paths(error, str(path)) from None
