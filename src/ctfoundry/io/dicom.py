"""CT series in DICOM: which files are slices, and the volume that they form.

Plain pixel numbers are read straight from the file into the volume; compressed ones are decoded by pydicom with whatever
decoders are installed (`decoding`). Rescale slope and intercept are each slice's own (PS3.3 C.11.1).
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ctfoundry.errors import NotAScanError, ReadError, TruncatedError
from ctfoundry.io import kinds, stack
from ctfoundry.io.decoding import Decoders
from ctfoundry.io.dicom_header import BIG_ENDIAN, DEFLATED, Header
from ctfoundry.io.stream import CAP, Stream, check_cap
from ctfoundry.volume import AIR, Kind, Volume

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
"""SOP class of CT Image Storage: one slice a file."""

_CLASSES = {  # SOP classes (PS3.4 B.5) that are met beside CT slices, and what a reader calls them
    "1.2.840.10008.1.3.10": "DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced multi-frame CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "enhanced multi-frame CT",
    "1.2.840.10008.5.1.4.1.1.7": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.11": "presentation state",
    "1.2.840.10008.5.1.4.1.1.66": "registration or raw data",
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation (SEG)",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation (SEG)",
    "1.2.840.10008.5.1.4.1.1.67": "real world value mapping",
    "1.2.840.10008.5.1.4.1.1.88": "structured report or dose sheet (SR)",
    "1.2.840.10008.5.1.4.1.1.104": "document (PDF)",
    "1.2.840.10008.5.1.4.1.1.481.2": "dose grid (RTDOSE)",
    "1.2.840.10008.5.1.4.1.1.481.3": "structure set (RTSTRUCT)",
    "1.2.840.10008.5.1.4.1.1.481.5": "plan (RTPLAN)",
}

DAMAGED = "damaged DICOM file"
"""Reason for files that begin as DICOM and cannot be parsed."""

_BITS = 16


def why_not(header: Header) -> str | None:
    """The reason why a DICOM file is no CT slice, None when it is one."""
    name = header.sop_class
    while name and name != CT_CLASS:
        if name in _CLASSES:
            return _CLASSES[name]
        name = name.rpartition(".")[0]
    if not header.sop_class and not header.modality:
        return DAMAGED
    if header.modality != "CT":
        return f"not CT ({header.modality[:16] or 'no modality'})"
    if header.sop_class not in (CT_CLASS, ""):
        return "other DICOM object"
    if "LOCALIZER" in header.image_type.upper():
        return "localizer"
    if not header.has_pixels or not (header.rows and header.columns):
        return "no pixels"
    if header.samples != 1:
        return "colour image"
    if header.frames != 1:
        return "multi-frame image"
    if (
        len(header.position) != 3
        or len(header.orientation) != 6
        or not np.isfinite(header.position + header.orientation).all()
    ):
        return "no position in the patient"
    return None


def default_threads() -> int:
    """As many as there are processors, at most 8: beyond that the disk decides."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


def read_stack(
    headers: Sequence[Header], where: str, *, kind: Kind | None = None, cap: int = CAP, threads: int | None = None
) -> Volume:
    """The volume of slices of one group (`stack.group`), in any order.

    The kind is "hu" when every slice has a rescale slope and intercept whose type is HU or not given; otherwise it is
    recognised by the values (`kinds`). `where` names the series in errors.

    Raises GeometryError and its kind (`stack.arrange`), TooLargeError, TruncatedError, ReadError.
    """
    ordered, affine = stack.arrange(headers, where)
    first = ordered[0]
    check_cap(len(ordered) * first.rows * first.columns * 2, cap, where)
    for header in ordered:
        check_pixels(header)
    threads = threads or default_threads()
    with warnings.catch_warnings(), Decoders() as decoders:  # around the threads: warning filters belong to the process
        warnings.simplefilter("ignore")
        if all(h.allocated <= _BITS and _is_whole(h) for h in ordered):
            voxels, valid = _read_whole(ordered, threads, decoders)
        else:
            voxels, valid = None, None
        if voxels is None:
            check_cap(len(ordered) * first.rows * first.columns * 4, cap, where)
            voxels = _read_float(ordered, threads, decoders)
    kind = "hu" if kind is None and all(_says_hu(h) for h in ordered) else kinds.decide(voxels, kind, where)
    voxels, more = kinds.finished(voxels, kind)
    return Volume(voxels, affine, kind, valid=more if valid is None else valid, source="dicom")


def _says_hu(header: Header) -> bool:
    return header.slope is not None and header.intercept is not None and header.rescale_type in ("", "HU")


def _rescale(header: Header) -> tuple[float, float]:
    slope = 1.0 if header.slope is None else header.slope
    intercept = 0.0 if header.intercept is None else header.intercept
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise ReadError(f"has rescale slope {slope} and intercept {intercept}", where=header.path)
    return slope, intercept


def _is_whole(header: Header) -> bool:
    slope, intercept = _rescale(header)
    return slope.is_integer() and intercept.is_integer() and abs(slope) < 1 << 15 and abs(intercept) < 1 << 31


def check_pixels(header: Header) -> None:
    """Compare what the header says of its pixels with itself and with the file's length, before anything is allocated."""
    if header.allocated not in (8, 16, 32) or not 1 <= header.stored <= header.allocated:
        raise ReadError(f"stores {header.stored} bits in {header.allocated}", where=header.path)
    if header.high_bit != header.stored - 1:
        raise ReadError(f"puts {header.stored} bits below bit {header.high_bit}, an old form", where=header.path)
    if header.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise NotAScanError(f"is {header.photometric or 'of no kind of grey'}", where=header.path)
    if not header.plain:
        _check_fragments(header)
        return
    need = header.rows * header.columns * header.allocated // 8
    if header.length not in (need, need + need % 2):
        error = TruncatedError if header.length < need else ReadError
        raise error(
            f"has {header.length:,} bytes of pixels, where {header.columns}x{header.rows} need {need:,}",
            where=header.path,
            do="copy or download the file again",
        )
    if header.syntax != DEFLATED and os.path.getsize(header.path) < header.pixels + need:
        raise TruncatedError(
            f"has {os.path.getsize(header.path):,} of {header.pixels + need:,} bytes",
            where=header.path,
            do="copy or download the file again",
        )


def _check_fragments(header: Header) -> None:
    """Walk the fragments of compressed pixels to their end (PS3.5 A.4); decoders take a cut one without a word."""
    if header.pixels < 0 or header.length >= 0:
        return
    size, at = os.path.getsize(header.path), header.pixels
    with open(header.path, "rb", buffering=0) as file:
        while at + 8 <= size:
            file.seek(at)
            group, number, length = struct.unpack("<HHI", file.read(8))
            if (group, number) == (0xFFFE, 0xE0DD):
                return
            if (group, number) != (0xFFFE, 0xE000):
                raise ReadError("its compressed pixels are no list of fragments", where=header.path)
            at += 8 + length
    raise TruncatedError("ends within its compressed pixels", where=header.path, do="copy or download the file again")


def _each(count: int, work: Callable[[int], None], threads: int) -> None:
    if threads == 1 or count == 1:
        for k in range(count):
            work(k)
        return
    with ThreadPoolExecutor(min(threads, count)) as pool:
        for _ in pool.map(work, range(count)):
            pass


def _read_whole(headers: list[Header], threads: int, decoders: Decoders) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(HU as int16, valid or None); (None, None) when some value does not fit."""
    first = headers[0]
    out = np.empty((len(headers), first.rows, first.columns), dtype=np.int16)
    measured: dict[int, np.ndarray] = {}
    too_wide: list[int] = []

    def one(k: int) -> None:
        if too_wide:
            return
        header = headers[k]
        slope, intercept = (int(v) for v in _rescale(header))
        stored = _stored(header, out[k], decoders)
        low, high = sorted(v * slope + intercept for v in (int(stored.min()), int(stored.max())))
        if high > 32767:
            too_wide.append(k)
        elif low < -32768:  # fill that only becomes so low by the intercept
            wide = stored.astype(np.int64) * slope + intercept
            measured[k] = wide > kinds.FILL_HU
            out[k] = np.where(measured[k], wide, AIR)
        else:
            if stored.base is not out:
                out[k] = stored.astype(np.int16)  # wraps; see below
            # The sum fits in 16 bits, so it is exact there even where the stored number or the product wraps around.
            if slope != 1:
                np.multiply(out[k], np.array(slope).astype(np.int16), out=out[k])
            if intercept != 0:
                np.add(out[k], np.array(intercept).astype(np.int16), out=out[k])
            if low <= kinds.FILL_HU:
                measured[k] = out[k] > kinds.FILL_HU
                out[k][~measured[k]] = AIR

    _each(len(headers), one, threads)
    if too_wide:
        return None, None
    if not measured:
        return out, None
    valid = np.ones(out.shape, dtype=bool)
    for k, mask in measured.items():
        valid[k] = mask
    return out, valid


def _read_float(headers: list[Header], threads: int, decoders: Decoders) -> np.ndarray:
    """Rescaled values as float32, computed in float64."""
    first = headers[0]
    out = np.empty((len(headers), first.rows, first.columns), dtype=np.float32)

    def one(k: int) -> None:
        slope, intercept = _rescale(headers[k])
        out[k] = _stored(headers[k], None, decoders).astype(np.float64) * slope + intercept

    _each(len(headers), one, threads)
    return out


def _stored(header: Header, out: np.ndarray | None, decoders: Decoders) -> np.ndarray:
    """The stored pixel numbers of a slice (h, w), put into the memory of `out` (int16) where they are 16 bits."""
    if not header.plain or (header.syntax == BIG_ENDIAN and header.allocated == 8):
        return decoders.decode(header)
    dtype = np.dtype(f"{'i' if header.signed else 'u'}{header.allocated // 8}")
    if out is not None and dtype.itemsize == out.itemsize:
        numbers = out.view(dtype)
    else:
        numbers = np.empty((header.rows, header.columns), dtype=dtype)
    with Stream(header.path, "raw" if header.syntax != DEFLATED else "deflate", header.start) as stream:
        stream.fill(numbers.data.cast("B"), header.pixels - header.start)
    if header.syntax == BIG_ENDIAN:
        numbers.byteswap(inplace=True)
    _clear_unused_bits(numbers, header)
    return numbers


def _clear_unused_bits(numbers: np.ndarray, header: Header) -> None:
    """Bits above the stored ones may hold anything (overlays once did); shift them out, keeping the sign."""
    unused = header.allocated - header.stored
    if unused:
        info = 1 << (header.stored - 1) if header.signed else 1 << header.stored
        if numbers.max() >= info or (header.signed and numbers.min() < -info):
            numbers <<= unused
            numbers >>= unused


def series_name(headers: Sequence[Header]) -> str:
    """How errors name a series: its folder and UID."""
    return f"{Path(headers[0].path).parent}#{headers[0].series}"
