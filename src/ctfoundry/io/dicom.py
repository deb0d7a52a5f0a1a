"""CT series in DICOM: which files are slices, and the volume that they form.

Plain pixel numbers are read straight from the file into the volume; compressed ones are decoded by pydicom with whatever
decoders are installed (`decoding`). Rescale slope and intercept are each slice's own (PS3.3 C.11.1). Photometric
Interpretation says how stored numbers are shown, not what they mean (C.7.6.3.1.2): MONOCHROME1 is not inverted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod

import numpy as np

from ctfoundry.errors import NotAScanError, ReadError, TruncatedError
from ctfoundry.io import decoding, enhanced, kinds, regrid, stack
from ctfoundry.io.decoding import Decoders
from ctfoundry.io.dicom_file import BIG_ENDIAN, DEFLATED, RAW_SYNTAXES
from ctfoundry.io.dicom_header import Header, read_header
from ctfoundry.io.stream import CAP, Stream, check_cap
from ctfoundry.volume import AIR, Kind, Volume

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
"""SOP class of CT Image Storage: one slice a file."""

_CLASSES = {  # SOP classes (PS3.4 B.5) that are met beside CT slices, and what a reader calls them
    "1.2.840.10008.1.3.10": "DICOMDIR",
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

NO_PLACE = "no position in the patient"
"""Reason for slices without Image Position or Image Orientation."""
NO_PIXELS = "no pixels"
"""Reason for slices without pixel data, rows or columns."""
DAMAGED = "damaged DICOM file"
"""Reason for files that begin as DICOM and cannot be parsed."""
LOST = (DAMAGED, NO_PLACE, NO_PIXELS)
"""Reasons of files that may be slices of a series, which is shorter without them."""

MODALITIES = (
    "ANN", "AR", "ASMT", "AU", "BDUS", "BI", "BMD", "CFM", "CR", "CT", "CTPROTOCOL", "DG", "DMS", "DOC", "DX", "ECG",
    "EEG", "EMG", "EOG", "EPS", "ES", "FID", "GM", "HC", "HD", "IO", "IOL", "IVOCT", "IVUS", "KER", "KO", "LEN", "LS",
    "M3D", "MG", "MR", "NM", "OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS", "OT", "PA", "PLAN",
    "POS", "PR", "PT", "PX", "REG", "RESP", "RF", "RG", "RTDOSE", "RTIMAGE", "RTINTENT", "RTPLAN", "RTRAD",
    "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SM", "SMR", "SR", "SRF", "STAIN", "TEXTUREMAP", "TG", "US",
    "VA", "XA", "XAPROTOCOL", "XC", "AS", "CD", "CF", "CP", "CS", "DD", "DF", "DM", "DS", "EC", "FA", "FS", "LP",
    "MA", "MS", "OPR", "ST", "VF",
)  # fmt: skip
"""Defined terms of Modality (PS3.3 C.7.3.1.1.1), those that are retired last."""

_BITS = 16
_FAR_MM = 1e6
_LUNG_HU = -500


def why_not(header: Header) -> str | None:
    """The reason why a DICOM file is no CT slice, None when it is one."""
    name = header.sop_class
    is_enhanced = enhanced.is_enhanced(header)
    while name and name != CT_CLASS and not is_enhanced:
        if name in _CLASSES:
            return _CLASSES[name]
        name = name.rpartition(".")[0]
    if not header.sop_class and not header.modality:
        return DAMAGED
    if header.modality != "CT":
        # a defined term alone: what else stands there was typed by somebody, and reasons go into run.json
        known = header.modality if header.modality in MODALITIES else "another modality"
        return f"not CT ({known if header.modality else 'no modality'})"
    if not is_enhanced and header.sop_class not in (CT_CLASS, ""):
        return "other DICOM object"
    if "LOCALIZER" in header.image_type.upper():
        return "localizer"
    if not header.has_pixels or not (header.rows and header.columns):
        return NO_PIXELS
    if header.samples != 1:
        return "colour image"
    if header.frames != 1 and not is_enhanced:
        return "multi-frame image"
    if not is_enhanced and not is_placed(header):
        return NO_PLACE
    return None


def lost_beside(skipped: Mapping[str, int]) -> tuple[str, ...]:
    """A note for what is read out of a folder of which so many files were passed over for these reasons; none where no slice can be lacking."""
    lost = [f"{skipped[reason]} x {reason}" for reason in LOST if skipped.get(reason)]
    return (f"left out beside it, and perhaps slices of it: {', '.join(lost)}",) if lost else ()


def is_placed(header: Header) -> bool:
    """Whether a slice says where it lies."""
    return (
        len(header.position) == 3
        and len(header.orientation) == 6
        and sum(map(abs, header.position + header.orientation)) < _FAR_MM  # False for NaN
    )


def slices_of(path: str, start: bytes | None = None) -> list[Header] | str:
    """The CT slices of a DICOM file: one, or the frames of an enhanced image; or the reason why it holds none.

    Raises ReadError when the file cannot be parsed.
    """
    header = read_header(path, start)
    reason = why_not(header)
    if reason is not None:
        return reason
    if not enhanced.is_enhanced(header):
        return [header]
    frames = [f for f in enhanced.frames(header) if "LOCALIZER" not in f.image_type.upper()]
    if not all(map(is_placed, frames)):
        return NO_PLACE
    return frames or "localizer"


def default_threads() -> int:
    """As many as there are processors, at most 8: beyond that the disk decides."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


def read_stack(
    headers: Sequence[Header],
    where: str,
    *,
    kind: Kind | None = None,
    cap: int = CAP,
    threads: int | None = None,
    allow_gaps: bool = False,
) -> Volume:
    """The volume of slices of one group (`parts.split`), in any order.

    The kind is "hu" when every slice has a rescale slope and intercept whose type is HU or not given; otherwise it is
    recognised by the values (`kinds`), and a note says why where these are no HU. A gantry tilt is undone, and said in `notes`. `where` names the series in errors.

    Parameters
    ----------
    allow_gaps : resample missing slices and irregular distances instead of raising their errors (`stack.plan`).

    Raises GeometryError and its kind (`stack.plan`), TooLargeError, TruncatedError, ReadError.
    """
    plan = stack.plan(headers, where, allow_gaps=allow_gaps)
    ordered, first = plan.headers, plan.headers[0]
    size = max(len(ordered) * first.rows * first.columns, prod(plan.grid.shape))
    check_cap(size * 2, cap, where)
    for header in {h.path: h for h in ordered}.values():
        check_pixels(header)
        if header.syntax == DEFLATED:
            check_cap(header.length, cap, header.path)  # the file's size does not bound it
    threads = threads or default_threads()
    with warnings.catch_warnings(), Decoders() as decoders:  # around the threads: warning filters belong to the process
        warnings.simplefilter("ignore")
        said = kind in (None, "hu") and all(says_hu(h) for h in ordered)
        if all(h.allocated <= _BITS and _is_whole(h) for h in ordered):
            voxels, valid, padded = _read_whole(ordered, threads, decoders, hu=said)
        else:
            voxels, valid, padded = None, None, 0
        if voxels is None:
            check_cap(size * 4, cap, where)
            voxels, valid, padded = _read_float(ordered, threads, decoders)
    kind, notes = ("hu", ()) if said else kinds.judge(voxels, kind, where)
    if kind == "hu" and valid is not None:
        voxels[~valid] = AIR
    voxels, more = kinds.finished(voxels, kind)
    if more is not None:
        valid = more if valid is None else valid & more
    notes = plan.notes + notes
    if padded and kind == "hu":
        notes += (f"{padded:,} voxels of a Pixel Padding Value that would be tissue became air",)
    if plan.shift is not None or plan.between is not None:
        if kind == "label":
            raise NotAScanError(
                "is a label map on tilted or uneven slices", where=where, do="resample it by its labels"
            )
        fill = AIR if kind == "hu" else float(voxels.min())
        voxels, valid = regrid.regrid(plan, voxels, valid, fill, partial(_each, threads=threads))
    return Volume(voxels, plan.grid.affine, kind, valid=valid, source="dicom", notes=notes)


def says_hu(header: Header) -> bool:
    """Whether a slice says that its numbers are HU once they are rescaled (PS3.3 C.11.1.1.2; CT images need no type)."""
    return header.slope is not None and header.intercept is not None and header.rescale_type in ("", "HU")


def _rescale(header: Header) -> tuple[float, float]:
    slope = 1.0 if header.slope is None else header.slope
    intercept = 0.0 if header.intercept is None else header.intercept
    if not (0 < abs(slope) < 1e6 and abs(intercept) < 1e9):  # True for NaN
        raise ReadError(f"has rescale slope {slope} and intercept {intercept}", where=header.path)
    return slope, intercept


def _is_whole(header: Header) -> bool:
    slope, intercept = _rescale(header)
    return slope.is_integer() and intercept.is_integer() and abs(slope) < 1 << 15 and abs(intercept) < 1 << 31


def check_pixels(header: Header) -> None:
    """Compare what the header says of its pixels with itself and with the file's length, before anything is allocated."""
    if header.allocated not in (8, 16, 32) or not 1 <= header.stored <= header.allocated:
        raise ReadError(f"stores {header.stored} bits in {header.allocated}", where=header.path)
    if header.high_bit != header.stored - 1:  # GDCM reads the low bits then, others the high ones
        raise ReadError(f"puts {header.stored} bits below bit {header.high_bit}, an old form", where=header.path)
    if header.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise NotAScanError(f"is {header.photometric or 'of no kind of grey'}", where=header.path)
    if not header.plain:
        if header.syntax in RAW_SYNTAXES:  # only compressed pixels may be fragments (PS3.5 A.4)
            raise ReadError("its pixels are said not to be compressed, but give no length", where=header.path)
        decoding.frames_of(header)
        return
    need = header.rows * header.columns * header.allocated // 8 * header.frames
    if header.length not in (need, need + need % 2):
        error = TruncatedError if header.length < need else ReadError
        raise error(
            f"has {header.length:,} bytes of pixels, where {header.columns}x{header.rows}{_times(header)} need {need:,}",
            where=header.path,
            do="copy or download the file again",
        )
    if header.syntax != DEFLATED and os.path.getsize(header.path) < header.pixels + need:
        raise TruncatedError(
            f"has {os.path.getsize(header.path):,} of {header.pixels + need:,} bytes",
            where=header.path,
            do="copy or download the file again",
        )


def _times(header: Header) -> str:
    return f"x{header.frames}" if header.frames > 1 else ""


def _each(count: int, work: Callable[[int], None], threads: int) -> None:
    if threads == 1 or count == 1:
        for k in range(count):
            work(k)
        return
    with ThreadPoolExecutor(min(threads, count)) as pool:
        for _ in pool.map(work, range(count)):
            pass


def _read_whole(
    headers: list[Header], threads: int, decoders: Decoders, *, hu: bool
) -> tuple[np.ndarray | None, np.ndarray | None, int]:
    """(rescaled values as int16, valid or None, padding that would be tissue); (None, None, 0) when some do not fit.

    Fill becomes air here only where the headers say that the values are `hu`; else their kind is not known yet.
    """
    first = headers[0]
    out = np.empty((len(headers), first.rows, first.columns), dtype=np.int16)
    measured: dict[int, np.ndarray] = {}
    too_wide: list[int] = []
    padded = [0] * len(headers)

    def one(k: int) -> None:
        if too_wide:
            return
        header = headers[k]
        slope, intercept = (int(v) for v in _rescale(header))
        stored, padding = _stored(header, out[k], decoders)
        low, high = sorted(v * slope + intercept for v in (int(stored.min()), int(stored.max())))
        if padding is not None:
            measured[k] = ~padding
            padded[k] = _tissue(header, padding)
        if high > 32767 or (low < -32768 and not hu):
            too_wide.append(k)
        elif low < -32768:  # fill that only becomes so low by the intercept
            wide = stored.astype(np.int64) * slope + intercept
            fill = wide <= kinds.FILL_HU
            out[k] = np.where(fill, AIR, wide)
            measured[k] = measured.get(k, True) & ~fill
        else:
            if stored.base is not out:
                out[k] = stored.astype(np.int16)  # wraps; see below
            # The sum fits in 16 bits, so it is exact there even where the stored number or the product wraps around.
            if slope != 1:
                np.multiply(out[k], np.array(slope).astype(np.int16), out=out[k])
            if intercept != 0:
                np.add(out[k], np.array(intercept).astype(np.int16), out=out[k])
            if hu and low <= kinds.FILL_HU:
                fill = out[k] <= kinds.FILL_HU
                out[k][fill] = AIR
                measured[k] = measured.get(k, True) & ~fill

    _each(len(headers), one, threads)
    if too_wide:
        return None, None, 0
    return out, _assembled(measured, out.shape), sum(padded)


def _read_float(headers: list[Header], threads: int, decoders: Decoders) -> tuple[np.ndarray, np.ndarray | None, int]:
    """(rescaled values as float32, computed in float64; valid or None; padding that would be tissue)."""
    first = headers[0]
    out = np.empty((len(headers), first.rows, first.columns), dtype=np.float32)
    measured: dict[int, np.ndarray] = {}
    padded = [0] * len(headers)

    def one(k: int) -> None:
        slope, intercept = _rescale(headers[k])
        stored, padding = _stored(headers[k], None, decoders)
        out[k] = stored.astype(np.float64) * slope + intercept
        if padding is not None:
            measured[k] = ~padding
            padded[k] = _tissue(headers[k], padding)

    _each(len(headers), one, threads)
    return out, _assembled(measured, out.shape), sum(padded)


def _assembled(measured: dict[int, np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    if not measured:
        return None
    valid = np.ones(shape, dtype=bool)
    for k, mask in measured.items():
        valid[k] = mask
    return valid


def _tissue(header: Header, padding: np.ndarray) -> int:
    """How many padding voxels would be something denser than lung: worth a note, because some scanners misuse the value."""
    slope, intercept = _rescale(header)
    assert header.padding is not None
    return int(padding.sum()) if max(v * slope + intercept for v in header.padding) > _LUNG_HU else 0


def _stored(header: Header, out: np.ndarray | None, decoders: Decoders) -> tuple[np.ndarray, np.ndarray | None]:
    """(stored pixel numbers (h, w), which are padding or None); in the memory of `out` (int16) where they are 16 bits.

    Padding is replaced by the smallest number of the slice, so that it never decides about types.
    """
    if not header.plain or (header.syntax == BIG_ENDIAN and header.allocated == 8):
        numbers = decoders.decode(header)
    else:
        numbers = _plain(header, out, decoders)
    if header.padding is None:
        _clear_unused_bits(numbers, header)
        return numbers, None
    # Some scanners write a padding value that does not fit into the stored bits; then all bits count.
    low, high = header.padding
    least = -(1 << (header.stored - 1)) if header.signed else 0
    fits = least <= low and high < least + (1 << header.stored)
    padding = None if fits else (numbers >= low) & (numbers <= high)
    _clear_unused_bits(numbers, header)
    if padding is None:
        padding = (numbers >= low) & (numbers <= high)
    if not padding.any():
        return numbers, None
    if not numbers.flags.writeable:
        numbers = numbers.copy()
    numbers[padding] = 0 if padding.all() else numbers[~padding].min()
    return numbers, padding


def _plain(header: Header, out: np.ndarray | None, decoders: Decoders) -> np.ndarray:
    """Numbers that are not compressed, except by deflate with the whole data set."""
    dtype = np.dtype(f"{'i' if header.signed else 'u'}{header.allocated // 8}")
    if out is not None and dtype.itemsize == out.itemsize:
        numbers = out.view(dtype)
    else:
        numbers = np.empty((header.rows, header.columns), dtype=dtype)
    target = numbers.data.cast("B")
    if header.syntax == DEFLATED:
        target[:] = decoders.inflated(header)[header.frame * len(target) :][: len(target)]
    else:
        with Stream(header.path) as stream:
            stream.fill(target, header.pixels + header.frame * len(target))
    if header.syntax == BIG_ENDIAN:
        numbers.byteswap(inplace=True)
    return numbers


def _clear_unused_bits(numbers: np.ndarray, header: Header) -> None:
    """Bits above the stored ones may hold anything (overlays once did); shift them out, keeping the sign."""
    unused = header.allocated - header.stored
    if unused and header.plain:
        info = 1 << (header.stored - 1) if header.signed else 1 << header.stored
        if numbers.max() >= info or (header.signed and numbers.min() < -info):
            numbers <<= unused
            numbers >>= unused
