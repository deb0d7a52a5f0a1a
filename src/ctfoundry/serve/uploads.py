"""A file from the page: streamed under a number into a private folder, read with the ordinary readers, and removed.

What the page calls the file is never taken. A process of its own reads it (`reader`). Limits: bytes of the file, bytes of its voxels, silence, and time; what an archive may
hold is checked where archives are read (`io.zip_directory`).
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from ctfoundry.errors import CTFoundryError, TooLargeError
from ctfoundry.serve.library import FullError


@dataclass(frozen=True)
class Limits:
    """How much a person may send.

    Attributes
    ----------
    file_bytes : of the file as it is sent.
    voxel_bytes : of its decoded voxels.
    scans : kept at one time.
    scan_bytes : that they take together.
    at_once : files that may be on their way at one time.
    silence_s : seconds without a byte before the transfer is given up.
    transfer_s, read_s : seconds that a transfer, and then reading, may take.
    """

    file_bytes: int = 1 << 30
    voxel_bytes: int = 1 << 30
    scans: int = 8
    scan_bytes: int = 3 << 30
    at_once: int = 2
    silence_s: float = 30.0
    transfer_s: float = 1200.0
    read_s: float = 300.0


STANDARD = Limits()


class SlowError(CTFoundryError):
    """Something took longer than it may."""


class DiskError(CTFoundryError):
    """The temporary folder takes no more."""


@contextlib.contextmanager
def slot(taken: set[object], most: int):  # type: ignore[no-untyped-def]
    """One of a few places; raises FullError when all are taken."""
    if len(taken) >= most:
        raise FullError("other files are on their way already", do="try again when they have arrived")
    mine = object()
    taken.add(mine)
    try:
        yield
    finally:
        taken.discard(mine)


def too_large(limit: int) -> TooLargeError:
    """The error for a file over the limit."""
    return TooLargeError(
        f"is larger than the {limit >> 20:,} MiB that this server takes", do="start it with a larger --upload-mib"
    )


async def receive(
    chunks: AsyncIterator[bytes], path: Path, limits: Limits, write: Callable[..., Awaitable[object]]
) -> None:
    """The body of a request into `path`; `write(function, argument)` runs a blocking call elsewhere.

    Raises TooLargeError, SlowError and DiskError; the rest of the body is not read then.
    """
    got, end = 0, time.monotonic() + limits.transfer_s
    with open(path, "xb") as file:
        while True:
            left = end - time.monotonic()
            try:
                chunk = await asyncio.wait_for(anext(chunks), min(limits.silence_s, max(left, 0.001)))
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise SlowError("the file came too slowly", do="try again over a faster connection") from None
            got += len(chunk)
            if got > limits.file_bytes:
                raise too_large(limits.file_bytes)
            try:
                await write(file.write, chunk)
            except OSError as error:
                raise DiskError(
                    f"the server's temporary folder takes no more ({error.strerror})", do="make room, or set TMPDIR"
                ) from None


def private_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that only this user may open, removed however its block ends."""
    return tempfile.TemporaryDirectory(prefix="ctfoundry-serve-")
