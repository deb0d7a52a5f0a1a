"""The frames of a segmentation, one after the other: plain bits and numbers, run-length, deflated, or otherwise compressed.

Plain frames are read from the file as they lie (bits run on from frame to frame without padding, DICOM PS3.5 8.1.1);
compressed ones are unpacked one at a time, to the size that the header declares and no further.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from ctfoundry.errors import ReadError, TruncatedError
from ctfoundry.io import objects
from ctfoundry.io.decoding import Decoders, frames_of
from ctfoundry.io.dicom_header import read_header

DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
"""Deflated Image Frame Compression (PS3.5 A.4.13)."""


def plain_frames(
    found: objects.DicomObject, size: int, allocated: int, wanted: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """(frame, values) of uncompressed pixels: `size` numbers, or for bits ``size / 64`` words where that is whole, else bools.

    Raises TruncatedError before the first when the pixels are fewer than declared.
    """
    span = found.large[objects.PIXEL_DATA]
    need = (len(wanted) * size * allocated + 7) // 8
    if span.stop - span.start < need:
        raise TruncatedError(
            f"has {span.stop - span.start:,} bytes of pixels, where its frames need {need:,}",
            where=found.path,
            do="copy or download the file again",
        )
    frames = np.flatnonzero(wanted).tolist()
    bits = size * allocated
    places = [(span.start + k * bits // 8, span.start + ((k + 1) * bits + 7) // 8) for k in frames]
    for frame, part in zip(frames, found.parts(places), strict=True):
        if allocated > 1:
            yield frame, np.frombuffer(part, dtype=f"<u{allocated // 8}")
        elif size % 64 == 0:
            yield frame, np.frombuffer(part, dtype=np.uint64)
        else:
            first = frame * bits % 8
            unpacked = np.unpackbits(np.frombuffer(part, dtype=np.uint8), bitorder="little")
            yield frame, unpacked[first : first + size].view(bool)


def unpacked_frames(
    found: objects.DicomObject, shape: tuple[int, int], allocated: int, wanted: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """(frame, values) of compressed pixels (rows * columns,)."""
    start = found.large[objects.PIXEL_DATA].start
    header = read_header(str(found.path))._replace(
        rows=shape[0],
        columns=shape[1],
        frames=len(wanted),
        allocated=allocated,
        stored=allocated,
        high_bit=allocated - 1,
        signed=False,
        pixels=start,
        length=-1,
    )
    if found.syntax == DEFLATED_FRAMES:
        need = (prod(shape) * allocated + 7) // 8
        pieces = frames_of(header)
        for frame in np.flatnonzero(wanted).tolist():
            numbers = _inflated(b"".join(found.parts((at, at + n) for at, n in pieces[frame])), need, found.path)
            if allocated == 1:
                yield frame, np.unpackbits(numbers, count=prod(shape), bitorder="little").view(bool)
            else:
                yield frame, numbers.view(f"<u{allocated // 8}")
        return
    with warnings.catch_warnings(), Decoders() as decoders:
        warnings.simplefilter("ignore")
        for frame in np.flatnonzero(wanted).tolist():
            yield frame, decoders.decode(header._replace(frame=frame)).reshape(-1)


def _inflated(data: bytes, need: int, where: Path) -> np.ndarray:
    try:
        out = zlib.decompressobj(-15).decompress(data, need)
    except zlib.error as error:
        raise ReadError(f"its deflated pixels are damaged ({error})", where=where) from error
    if len(out) < need:
        raise TruncatedError(f"a deflated frame has {len(out):,} bytes instead of {need:,}", where=where)
    return np.frombuffer(out, dtype=np.uint8)
