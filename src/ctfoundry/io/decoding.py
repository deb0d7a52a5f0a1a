"""Compressed pixels, decoded in other processes.

pydicom with its decoders, and python-gdcm's where installed, does the work. On damaged JPEG bytes GDCM ends its whole
process (tried: one garbled file in fifty), so it runs in children: a slice that kills its child, or on which it falls silent,
is an error with a name. A child starts in about half a second and serves one series; very few CT series are compressed.
Run-length and plain pixels need no GDCM: pydicom's own decoder takes them here.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
from math import prod
from os import path as os_path
from pathlib import Path
from threading import Event, Lock, Timer
from types import TracebackType

import numpy as np

from ctfoundry.errors import ReadError, TruncatedError
from ctfoundry.io import decoder_child
from ctfoundry.io.dicom_elements import ITEM, SEQUENCE_END, mark
from ctfoundry.io.dicom_file import RAW_SYNTAXES
from ctfoundry.io.dicom_header import Header
from ctfoundry.io.stream import Stream

RLE = "1.2.840.10008.1.2.5"
SECONDS = 60.0
"""A child that has not answered for so long is ended. Starting one takes a second, decoding a slice some milliseconds."""
MOST_FRAGMENTS = 1 << 20
"""Pieces of compressed pixels in one file."""
_CHILD = Path(__file__).with_name("decoder_child.py")

Piece = tuple[int, int]
"""(byte, length) in a file."""


class Decoders:
    """Children that decode slices, started when needed, as many as threads ask at once; ended by the `with` block."""

    def __init__(self) -> None:
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._pieces: dict[str, list[list[Piece]]] = {}
        self._inflated: tuple[str, memoryview] | None = None
        self._lock = Lock()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._idle.empty():
            _end(self._idle.get())

    def inflated(self, header: Header) -> memoryview:
        """The bytes of all frames of a deflated file, whose number its header declares; the last file's are kept."""
        with self._lock:
            if self._inflated is not None and self._inflated[0] == header.path:
                return self._inflated[1]
        bytes_ = memoryview(bytearray(header.rows * header.columns * header.allocated // 8 * header.frames))
        with Stream(header.path, "deflate", header.start) as stream:
            stream.fill(bytes_, header.pixels - header.start)
        if header.frames > 1:
            with self._lock:
                self._inflated = header.path, bytes_
        return bytes_

    def decode(self, header: Header) -> np.ndarray:
        """The stored numbers of a slice (h, w). Raises ReadError naming the file, also when its decoder dies."""
        if header.syntax in RAW_SYNTAXES:
            return _checked(_here(header), header)
        with self._lock:
            frames = self._pieces.get(header.path)
            if frames is None:
                frames = self._pieces[header.path] = frames_of(header)
        request: dict[str, object] = {
            "path": header.path,
            "pieces": frames[header.frame],
            "syntax": header.syntax,
            "pixels": {
                "rows": header.rows,
                "columns": header.columns,
                "bits_allocated": header.allocated,
                "bits_stored": header.stored,
                "pixel_representation": int(header.signed),
            },
        }
        if header.syntax == RLE:
            return _checked(_run_lengths(request, header), header)
        try:
            child = self._idle.get_nowait()
        except queue.Empty:
            child = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        silent = Event()
        timer = Timer(SECONDS, _give_up, (child, silent))
        timer.daemon = True
        timer.start()
        try:
            numbers = _asked(child, request, header)
        except (OSError, ValueError, TypeError):
            _end(child)
            what = (
                f"its compressed pixels keep their decoder busy for more than {SECONDS:g} s"
                if silent.is_set()
                else "its compressed pixels are so damaged that they end their decoder"
            )
            raise ReadError(what, where=header.path, do="copy or download the file again") from None
        except ReadError:
            self._idle.put(child)
            raise
        finally:
            timer.cancel()
        self._idle.put(child)
        return numbers


def _give_up(child: subprocess.Popen[bytes], silent: Event) -> None:
    silent.set()
    child.kill()


def frames_of(header: Header) -> list[list[Piece]]:
    """The fragments of each frame of compressed pixels (PS3.5 A.4), walked to the end; decoders take a cut one without a word.

    Frames are told apart by their count where each is one fragment, by the Basic Offset Table, or by the marker that begins
    a JPEG stream.

    Raises TruncatedError and ReadError.
    """
    size, at = os_path.getsize(header.path), header.pixels
    pieces: list[Piece] = []
    with open(header.path, "rb") as file:
        while True:
            file.seek(at)
            start = file.read(8)
            if len(start) < 8:
                raise TruncatedError(
                    "ends within its compressed pixels", where=header.path, do="copy or download the file again"
                )
            tag, length = mark(start, 0, "<")
            if tag == SEQUENCE_END:
                break
            if tag != ITEM or len(pieces) > MOST_FRAGMENTS:
                raise ReadError("its compressed pixels are no list of fragments", where=header.path)
            pieces.append((at + 8, length))
            at += 8 + length
            if at > size:
                raise TruncatedError(
                    "ends within its compressed pixels", where=header.path, do="copy or download the file again"
                )
        if not pieces[1:]:
            raise ReadError("has no compressed pixels", where=header.path)
        table, pieces = pieces[0], pieces[1:]
        if header.frames == 1:
            return [pieces]
        if len(pieces) == header.frames:
            return [[piece] for piece in pieces]
        file.seek(table[0])
        offsets = np.frombuffer(file.read(table[1] // 4 * 4), "<u4").tolist()
        if len(offsets) != header.frames:
            offsets = [at - pieces[0][0] for at, _ in pieces if _begins_a_frame(file, at)]
    starts = {at - pieces[0][0]: k for k, (at, _) in enumerate(pieces)}
    first = [starts[o] for o in offsets if o in starts]
    if len(first) != header.frames or first[0] != 0 or sorted(set(first)) != first:
        raise ReadError(f"has {len(pieces):,} fragments for {header.frames:,} frames", where=header.path)
    return [pieces[a:b] for a, b in zip(first, [*first[1:], len(pieces)], strict=True)]


def _begins_a_frame(file: object, at: int) -> bool:
    file.seek(at)  # type: ignore[attr-defined]
    return file.read(2) in (b"\xff\xd8", b"\xff\x4f")  # type: ignore[attr-defined]


def _asked(child: subprocess.Popen[bytes], request: dict[str, object], header: Header) -> np.ndarray:
    """Ask a child for one slice; ValueError, TypeError or OSError when it is gone or answers nonsense."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(request).encode() + b"\n")
    child.stdin.flush()
    answer = json.loads(child.stdout.readline())  # an empty line, from a dead child, is a ValueError
    if "error" in answer:
        raise ReadError(
            f"its pixels cannot be decoded ({answer['error']})",
            where=header.path,
            do="install the decoders with 'pip install ctfoundry[codecs]', or copy the file again",
        )
    dtype, shape = np.dtype(answer["dtype"]), tuple(answer["shape"])
    if shape != (header.rows, header.columns) or dtype.kind not in "iu":
        raise ValueError
    body = child.stdout.read(prod(shape) * dtype.itemsize)
    return np.frombuffer(body, dtype=dtype).reshape(shape)


def _run_lengths(request: dict[str, object], header: Header) -> np.ndarray:
    """By pydicom's own decoder; a stream much longer than its pixels is refused, because two bytes may unpack to 128."""
    plain = header.rows * header.columns * header.allocated // 8
    packed = sum(length for _, length in request["pieces"])  # type: ignore[attr-defined]
    if packed > 2 * plain + 1024:
        raise ReadError(f"has {packed:,} bytes of run-lengths for {plain:,} of pixels", where=header.path)
    try:
        return np.asarray(decoder_child.decode({**request, "plugin": "pydicom"}))
    except Exception as error:  # pydicom raises many types on damaged files
        raise ReadError(f"its pixels cannot be decoded ({error})", where=header.path) from error


def _here(header: Header) -> np.ndarray:
    import pydicom
    from pydicom.pixels import pixel_array

    try:
        data = pydicom.dcmread(header.path, force=True)
        return np.asarray(pixel_array(data, raw=True, index=header.frame))
    except Exception as error:  # pydicom raises many types on damaged files
        raise ReadError(f"its pixels cannot be decoded ({error})", where=header.path) from error


def _checked(numbers: np.ndarray, header: Header) -> np.ndarray:
    if numbers.shape != (header.rows, header.columns):
        raise ReadError(f"decodes to {numbers.shape}, not {(header.rows, header.columns)}", where=header.path)
    return numbers


def _end(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # a dead child's pipe cannot be flushed
                pipe.close()
    try:
        child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
