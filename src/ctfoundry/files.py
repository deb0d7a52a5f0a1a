"""Files that appear whole or not at all, and their hashes.

Writing goes to a temporary file in the same folder, is flushed to the disk, renamed over the target, and the folder is
flushed too: after a crash or a ``kill -9`` either the old file or the new one is there, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctfoundry.errors import CTFoundryError, DiskFullError

if TYPE_CHECKING:
    import numpy as np

_TEMPORARY = ".ctfoundry-part-"
"""Prefix of unfinished files; `sweep` removes those that a killed process left behind."""
_DUCKDB = "tmp_"
"""What duckdb puts before a file's name while it writes it, unless it is told not to (USE_TMP_FILE)."""
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What an OSError says of a place that may not be written to."""
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of disk space is used up",
    errno.EFBIG: "a file may not grow to that size",
}
"""What an OSError says where a file cannot grow, and what that means."""
FULL = "make room and run it again: what was finished stays"


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

    The temporary name keeps the suffixes of `path`, because many writers choose a format by them. Raises DiskFullError.
    """
    target = Path(path)
    with or_full(target):
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


@contextlib.contextmanager
def or_full(place: Path) -> Iterator[None]:
    """Raise DiskFullError, about `place`, where the block finds that a file cannot grow, whichever library says so."""
    try:
        yield
    except CTFoundryError:
        raise
    except Exception as error:
        why = no_room(error)
        if why is None:
            raise
        raise DiskFullError(why, where=place, do=FULL) from error


def no_room(error: Exception) -> str | None:
    """Why a file cannot grow, where that is what an error says; others than Python itself (safetensors, duckdb, h5py) say it in words."""
    if isinstance(error, OSError) and error.errno:
        return NO_ROOM.get(error.errno)
    text = str(error)
    return next((why for code, why in NO_ROOM.items() if os.strerror(code) in text), None)


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
    with or_full(target):
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


def write_npy(path: str | os.PathLike[str], array: np.ndarray, *, mode: int = 0o644) -> None:
    """Write `array` as the whole file `path`, which `numpy.load` reads; numpy's own way can lose its end on a full disk unsaid."""
    from numpy.lib import format as npy

    array = array.copy() if not array.flags.c_contiguous else array
    with whole(path, mode=mode) as part, open(part, "wb") as stream:
        npy.write_array_header_1_0(stream, npy.header_data_from_array_1_0(array))
        stream.write(array.data)


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append one line with a single write, so that lines of several writers do not mix."""
    if "\n" in line:
        raise ValueError("a line holds no line break")
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (line + "\n").encode())
    finally:
        os.close(handle)


@contextlib.contextmanager
def alone(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of a folder, which the kernel frees when its holder dies. Raises BlockingIOError where somebody else holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def sweep(folder: str | os.PathLike[str], name: str = "") -> int:
    """Remove unfinished files (of `name`, where given) that a killed process left directly in `folder`; returns how many."""
    end = f"*-{name}" if name else "*"
    left = [part for start in ("", _DUCKDB) for part in Path(folder).glob(start + _TEMPORARY + end)]
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
