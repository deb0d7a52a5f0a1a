"""Content is hashed once and then trusted by size and time of its files: a private list of what is known.

One line for each scan: a salted hash of its paths, sizes and times, and the digest of its content. No path stands in it, but the
digests are those of patients' files, so only the owner may read it and it is never exported. Lines are appended as work gets
done, so a killed run loses none; at the end of a run the list is sorted.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from ctfoundry import files
from ctfoundry.io import Found

NAME = "private-hashes.txt"


class Hashes:
    """The list of one store; `fresh` forgets what it says (``--rehash``)."""

    def __init__(self, store: Path, key: bytes, *, fresh: bool = False) -> None:
        self.path, self._key = store / NAME, key[:64]
        self._known: dict[str, str] = {}
        files.create_once(self.path, b"", mode=0o600)
        text = self.path.read_text(errors="replace")
        for line in () if fresh else text.splitlines():
            name, _, digest = line.partition(" ")
            if len(name) == 32 and len(digest) == 64:
                self._known[name] = digest
        if fresh or not text.endswith("\n"):
            self.tidy()

    def mark(self, found: Found) -> str:
        """A name for these files as they are now: of their paths, sizes and times. Raises OSError when one is gone."""
        hasher = blake2b(digest_size=16, key=self._key)
        for path in found.files:
            stat = os.stat(path)
            hasher.update(
                f"{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape")
            )
        hasher.update(repr((found.members, found.frames, found.part)).encode(errors="surrogateescape"))
        return hasher.hexdigest()

    def get(self, mark: str) -> str:
        """The digest of these files, or ""."""
        return self._known.get(mark, "")

    def put(self, mark: str, digest: str) -> None:
        """Remember a digest, on disk at once."""
        if self._known.get(mark) != digest:
            self._known[mark] = digest
            files.append_line(self.path, f"{mark} {digest}")

    def tidy(self) -> None:
        """Write the list anew, sorted, without what a killed run left of a line."""
        files.write_text(self.path, "".join(f"{k} {v}\n" for k, v in sorted(self._known.items())), mode=0o600)
