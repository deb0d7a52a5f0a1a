"""A file from the page: streamed under a number into a private folder, read with the ordinary readers, and removed.

What the page calls the file is never taken. A process of its own reads it (`reader`). An archive with several scans waits for
the choice of one (`Waiting`). Limits: bytes of the file, bytes of its voxels, silence, and time; what an archive may hold is
checked where archives are read (`io.zip_directory`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from ctfoundry.errors import CTFoundryError, TooLargeError, UsageError
from ctfoundry.serve.library import FullError, UnknownError
from ctfoundry.serve.offers import Choice, Offer


@dataclass(frozen=True)
class Limits:
    """How much a person may send.

    Attributes
    ----------
    file_bytes : of the file as it is sent.
    voxel_bytes : of its decoded voxels.
    scans : kept at one time.
    scan_bytes : that they take together.
    at_once : files that may be on their way, or wait for a choice among their scans, at one time.
    silence_s : seconds without a byte before the transfer is given up.
    transfer_s, read_s : seconds that a transfer, and then reading, may take.
    choose_s : seconds that an archive waits for a choice among its scans.
    """

    file_bytes: int = 1 << 30
    voxel_bytes: int = 1 << 30
    scans: int = 8
    scan_bytes: int = 3 << 30
    at_once: int = 2
    silence_s: float = 30.0
    transfer_s: float = 1200.0
    read_s: float = 300.0
    choose_s: float = 180.0


STANDARD = Limits()


class SlowError(CTFoundryError):
    """Something took longer than it may."""


class DiskError(CTFoundryError):
    """The temporary folder takes no more."""


@contextlib.contextmanager
def slot(taken: set[object], most: int):  # type: ignore[no-untyped-def]
    """One of a few places; raises FullError when all are taken."""
    if len(taken) >= most:
        raise FullError(
            "other files are on their way already, or wait for a choice", do="try again when they have arrived"
        )
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


@dataclass(frozen=True)
class Held:
    """An archive that waits for a choice; `release` removes it and frees its place."""

    path: Path
    offer: Offer
    release: Callable[[], None]
    timer: asyncio.TimerHandle


class Waiting:
    """The archives that wait, by an id that cannot be guessed; each is removed when it is taken, dropped or late.

    All methods are called in the event loop's thread, so an archive is given to one request only.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._held: dict[str, Held] = {}

    def hold(self, path: Path, offer: Offer, release: Callable[[], None]) -> str:
        """Keep an archive until somebody chooses; its id."""
        id = secrets.token_urlsafe(12)
        timer = asyncio.get_running_loop().call_later(self.seconds, self._late, id)
        self._held[id] = Held(path, offer, release, timer)
        return id

    def take(self, id: str, choice: int) -> tuple[Held, Choice]:
        """The archive and what is chosen of it; from now on the caller's to release.

        An archive of which there is no such choice goes on waiting. Raises UnknownError and UsageError.
        """
        held = self._known(id)
        if not 0 <= choice < len(held.offer.choices):
            raise UsageError("the archive has no such scan", do="choose one of those that were listed")
        self._forget(id)
        return held, held.offer.choices[choice]

    def drop(self, id: str) -> None:
        """Nobody chooses: remove it. Raises UnknownError."""
        held = self._known(id)
        self._forget(id)
        held.release()

    def close(self) -> None:
        """Remove all."""
        for id in tuple(self._held):
            self.drop(id)

    def _known(self, id: str) -> Held:
        if id not in self._held:
            raise UnknownError("this archive does not wait for a choice any more", do="send it again")
        return self._held[id]

    def _forget(self, id: str) -> None:
        self._held.pop(id).timer.cancel()

    def _late(self, id: str) -> None:
        if id in self._held:
            self.drop(id)


def private_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that only this user may open, removed however its block ends."""
    return tempfile.TemporaryDirectory(prefix="ctfoundry-serve-")
