"""Scans and patients without their names.

An identifier is a hash of content or UID, salted with a secret that stays on the machine (mode 0600), so that nobody can
confirm a guess. (The checksums inside a store are not salted: they hold its bytes together wherever it travels.) Paths and names appear in one private file of an output folder and on stderr, nowhere else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from ctfoundry import files

PRIVATE = "private.json"
"""Name of the one file (mode 0600) of an output folder that maps identifiers to paths; never exported."""


def salt() -> bytes:
    """The machine's secret: CTFOUNDRY_SALT where set, else a file in the user's configuration folder, made when missing."""
    given = os.environ.get("CTFOUNDRY_SALT")
    if given:
        return given.encode()
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = home / "ctfoundry" / "salt"
    if not path.is_file():
        files.create_once(path, secrets.token_hex(16).encode(), mode=0o600)
    return path.read_bytes()


def name(kind: str, *parts: str, key: bytes | None = None) -> str:
    """``scan-3f9a...`` or ``patient-...``: 12 hexadecimal digits of a salted hash of `parts`.

    `key` is the salt, where a process was given that of another machine; by default this machine's.

    >>> os.environ["CTFOUNDRY_SALT"] = "doctest"
    >>> name("scan", "1.2.3") == name("scan", "1.2.3"), name("scan", "1.2.3") == name("scan", "1.2.4")
    (True, False)
    >>> del os.environ["CTFOUNDRY_SALT"]
    """
    text = "\0".join(parts).encode(errors="surrogatepass")
    return f"{kind}-{blake2b(text, digest_size=6, key=(key or salt())[:64]).hexdigest()}"


def salt_name() -> str:
    """A public name of the machine's salt, so that patients hashed with different salts are not put together by accident."""
    return f"salt-{blake2b(b'name', digest_size=4, key=salt()[:64]).hexdigest()}"


def sealed(digest: str) -> str:
    """A digest of content that tells the same from the same, but not to somebody who has the file and lacks the salt."""
    return blake2b(digest.encode(), digest_size=32, key=salt()[:64]).hexdigest()


def content_digest(paths: Sequence[Path]) -> str:
    """SHA-256 over the bytes of a scan's files, in an order that does not depend on their names."""
    return digest_of(files.sha256(path) for path in paths)


def digest_of(hashes: Iterable[str]) -> str:
    """The digest of a scan whose files have these SHA-256 (`io.Found.hashes`), in whatever order."""
    each = sorted(hashes)
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def write_private(folder: Path, paths: Mapping[str, str]) -> None:
    """Record which identifier stands for which path, beside what the file says already; only the owner may read it.

    Several may write at once: each waits for the folder's lock, which the kernel frees when its holder dies.
    """
    path = folder / PRIVATE
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        known = json.loads(path.read_text()) if path.is_file() else {}
        if not path.is_file() or known | dict(paths) != known:
            files.write_json(path, dict(sorted((known | dict(paths)).items())), mode=0o600)
    finally:
        os.close(handle)
