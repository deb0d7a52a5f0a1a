"""Reading what was sent, in a process of its own: one that takes too long or too much memory is ended, not waited for."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import threading
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from ctfoundry.errors import CTFoundryError, ReadError, TooLargeError
from ctfoundry.serve.library import read_upload
from ctfoundry.serve.offers import Offer
from ctfoundry.serve.picture import Shown
from ctfoundry.serve.uploads import SlowError

MEMORY = 6
"""A reader may take so many times the bytes of the largest scan: as read, as HU, its mask, and copies on the way."""
LEAST_MEMORY = 1 << 30


class Reader:
    """One process that reads one file after the other. It is started for the first file, and anew after one that it died of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def read(self, path: Path, cap: int, seconds: float, name: str | None = None) -> Shown | Offer:
        """The scan in a file, or those to choose from (`library.read_upload`).

        Raises what that raises, SlowError, and ReadError where the process died. What is unpacked on the way lies beside the file.
        """
        with self._lock:
            try:
                pipe = self._started(cap)
                pipe.send((path, cap, name))
                if not pipe.poll(seconds):
                    self._end()
                    raise SlowError("reading the file took too long", do="give it to `ctfoundry embed` instead")
                found = pipe.recv()
            except (EOFError, OSError):
                self._end()
                raise ReadError(
                    "reading the file failed", do="give it to `ctfoundry inspect`, which says more"
                ) from None
        if isinstance(found, Shown | Offer):
            return found
        kind, what, do = found
        raise kind(what, do=do)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._end()

    def _started(self, cap: int) -> Connection:
        if self._process is not None and not self._process.is_alive():
            self._end()
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            memory = max(MEMORY * cap, LEAST_MEMORY)
            self._process = context.Process(target=_serve, args=(theirs, memory), daemon=True)
            self._process.start()
            theirs.close()
        return self._pipe

    def _end(self) -> None:
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if process is not None:
            process.kill()
            process.join()
        if pipe is not None:
            pipe.close()


def _serve(pipe: Connection, memory: int) -> None:
    """The process's life: files until the pipe closes."""
    import signal

    from ctfoundry.ingest.workers import limit_memory

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server ends us
    limit_memory(memory)
    with contextlib.suppress(EOFError, OSError):
        while True:
            path, cap, name = pipe.recv()
            tempfile.tempdir = str(path.parent)  # goes with the upload, also where this process is killed
            answer: Shown | Offer | tuple[type[CTFoundryError], str, str | None]
            try:
                answer = read_upload(path, cap, name)
            except CTFoundryError as error:
                answer = type(error), error.what, error.do
            except MemoryError:
                answer = TooLargeError, "takes more memory than an upload may", "give it to `ctfoundry embed` instead"
            except Exception as error:  # its text may hold the path of the temporary file
                answer = ReadError, f"cannot be read ({type(error).__name__})", None
            pipe.send(answer)
