"""Compressed pixels, decoded in other processes.

pydicom with its decoders, and python-gdcm's where installed, does the work. On damaged JPEG bytes GDCM ends its whole
process (tried: one garbled file in fifty), so it runs in children: a slice that kills its child is an error with a name.
A child starts in about half a second and serves one series; very few CT series are compressed. Run-length and plain pixels
need no GDCM: pydicom's own decoder takes them here.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np

from ctfoundry.errors import ReadError
from ctfoundry.io.dicom_header import RAW_SYNTAXES, Header

RLE = "1.2.840.10008.1.2.5"
_CHILD = Path(__file__).with_name("decoder_child.py")


class Decoders:
    """Children that decode slices, started when needed, as many as threads ask at once; ended by the `with` block."""

    def __init__(self) -> None:
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._idle.empty():
            _end(self._idle.get())

    def decode(self, header: Header) -> np.ndarray:
        """The stored numbers of a slice (h, w). Raises ReadError naming the file, also when its decoder dies."""
        if header.syntax in (*RAW_SYNTAXES, RLE):
            return _checked(_here(header), header)
        try:
            child = self._idle.get_nowait()
        except queue.Empty:
            child = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        try:
            numbers = _asked(child, header)
        except (OSError, ValueError):
            _end(child)
            raise ReadError(
                "its compressed pixels are so damaged that they end their decoder",
                where=header.path,
                do="copy or download the file again",
            ) from None
        except ReadError:
            self._idle.put(child)
            raise
        self._idle.put(child)
        return numbers


def _asked(child: subprocess.Popen[bytes], header: Header) -> np.ndarray:
    """Ask a child for one slice; ValueError or OSError when it is gone or answers nonsense."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(header.path).encode() + b"\n")
    child.stdin.flush()
    answer = json.loads(child.stdout.readline())  # an empty line, from a dead child, is a ValueError
    if "error" in answer:
        raise ReadError(
            f"its pixels cannot be decoded ({answer['error']})",
            where=header.path,
            do="install the decoders with 'pip install ctfoundry[codecs]', or copy the file again",
        )
    dtype, shape = np.dtype(answer["dtype"]), tuple(answer["shape"])
    body = child.stdout.read(prod(shape) * dtype.itemsize)
    return _checked(np.frombuffer(body, dtype=dtype).reshape(shape), header)


def _here(header: Header) -> np.ndarray:
    import pydicom
    from pydicom.pixels import pixel_array

    try:
        data = pydicom.dcmread(header.path, force=True)
        plugin = "pydicom" if header.syntax == RLE else ""
        return np.asarray(pixel_array(data, raw=True, decoding_plugin=plugin))
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
