"""Files that appear whole or not at all, and their hashes.

Writing goes to a temporary file in the same folder, is flushed to the disk, renamed over the target, and the folder is
flushed too: after a crash or a ``kill -9`` either the old file or the new one is there, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TEMPORARY = ".ctfoundry-part-"
"""Prefix of unfinished files; `sweep` removes those that a killed process left behind."""
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What an OSError says of a place that may not be written to."""


def flush_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk: only then has a rename in it happened for good."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole(path: str | os.PathLike[str], *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it becomes `path`, otherwise it is removed.

    The temporary name keeps the suffixes of `path`, because many writers choose a format by them.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = _temporary(target, "-" + target.name)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with open(part, "rb") as stream:
            os.fsync(stream.fileno())
        part.chmod(mode)
        part.replace(target)
        flush_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


def _temporary(target: Path, suffix: str = "") -> tuple[int, str]:
    """An open temporary file beside `target`; an error names `target`, which is what somebody asked for."""
    try:
        return tempfile.mkstemp(prefix=_TEMPORARY, suffix=suffix, dir=target.parent)
    except OSError as error:
        error.filename = str(target)
        raise


@contextlib.contextmanager
def unless_read_only() -> Iterator[None]:
    """Leave the block quietly where the place may not be written to (no right, or a read-only file system)."""
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise


def write_bytes(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` as the whole file `path`."""
    with whole(path, mode=mode) as part:
        part.write_bytes(data)


def create_once(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` as `path` unless it is there already: of several processes that try at once, one wins for all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = _temporary(target)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(mode)
        with contextlib.suppress(FileExistsError):
            os.link(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str, *, mode: int = 0o644) -> None:
    """Write `text` as the whole file `path`, in UTF-8."""
    write_bytes(path, text.encode(), mode=mode)


def write_json(path: str | os.PathLike[str], data: Any, *, mode: int = 0o644) -> None:
    """Write `data` as readable JSON; NaN and infinities are refused, because other readers refuse them."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n", mode=mode)


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append one line with a single write, so that lines of several writers do not mix."""
    if "\n" in line:
        raise ValueError("a line holds no line break")
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (line + "\n").encode())
    finally:
        os.close(handle)


def sweep(folder: str | os.PathLike[str]) -> int:
    """Remove unfinished files that a killed process left directly in `folder`; returns how many."""
    left = list(Path(folder).glob(_TEMPORARY + "*"))
    for part in left:
        part.unlink(missing_ok=True)
    return len(left)


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(data: Any) -> str:
    """SHA-256 of plain data through its canonical JSON (sorted keys, no blanks)."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
