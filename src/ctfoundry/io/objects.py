"""DICOM files that are no image series (segmentations, structure sets): read whole, within limits, and what they refer to.

pydicom parses the small elements. The large ones (pixels, the list of frames) are left where they lie, because a
segmentation may list tens of thousands of frames and pydicom takes about half a millisecond for each. Coding of
elements: DICOM PS3.5 section 7.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ctfoundry.errors import CTFoundryError, ReadError, TooLargeError, TruncatedError
from ctfoundry.io import dicom_elements
from ctfoundry.io.dicom_elements import PIXELS, UNDEFINED, ElementsError, EndError, head, walk
from ctfoundry.io.dicom_file import BIG_ENDIAN, DEFLATED, IMPLICIT, is_dicom, meta
from ctfoundry.io.stream import CAP, Stream

if TYPE_CHECKING:
    from pydicom import Dataset

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of Segmentation Storage and Label Map Segmentation Storage (PS3.4 B.5)."""
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
"""SOP class of RT Structure Set Storage."""

PIXEL_DATA, FRAMES = PIXELS, 0x52009230
"""Pixel Data and the Per-frame Functional Groups Sequence: what is left where it lies."""

FIRST_LOOK = 1 << 20
"""Bytes in which all but the pixels of most files lie; more are read where they do not."""
SMALL_LIMIT = 1 << 30
"""Most bytes of everything but frames and pixels, so of a structure set as a whole: 1 GiB."""


@dataclass(frozen=True)
class Span:
    """Where the value of a large element lies in the buffer; `stop` is -1 for compressed pixels, which end by a mark."""

    start: int
    stop: int


@dataclass(frozen=True)
class DicomObject:
    """One parsed file.

    Attributes
    ----------
    path : the file.
    data : all elements but the large ones.
    syntax : transfer syntax UID.
    inflated : the bytes of a deflated file, None for others.
    large : place of each large element that is there.
    explicit : whether elements state their value representation.
    """

    path: Path
    data: Dataset
    syntax: str
    inflated: bytes | None
    large: Mapping[int, Span]
    explicit: bool

    @property
    def sop_class(self) -> str:
        """SOP Class UID."""
        return str(self.data.get("SOPClassUID", ""))

    def part(self, start: int, stop: int) -> bytes:
        """Bytes of a large element, read now. Raises as `parts`."""
        return next(self.parts([(start, stop)]))

    def parts(self, places: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """Bytes of large elements, piece by piece. Not mapped into memory: a mapped file that is cut meanwhile ends the process.

        Raises TruncatedError and ReadError.
        """
        if self.inflated is not None:
            yield from (self.inflated[start:stop] for start, stop in places)
            return
        try:
            with open(self.path, "rb", buffering=0) as file:
                for start, stop in places:
                    file.seek(start)
                    piece = file.read(stop - start)
                    if len(piece) < stop - start:
                        do = "read it again when it is complete"
                        raise TruncatedError("was cut while it was read", where=self.path, do=do)
                    yield piece
        except OSError as error:
            raise ReadError(f"cannot be read ({error.strerror or error})", where=self.path) from error


@dataclass(frozen=True)
class References:
    """What a segmentation or structure set says it was made of; UIDs, "" or empty where absent.

    Attributes
    ----------
    series : UIDs of the image series that it was drawn on.
    instances : UIDs of the images, where listed.
    frame_of_reference : UID of the patient coordinate system.
    """

    series: tuple[str, ...]
    instances: tuple[str, ...]
    frame_of_reference: str


def load(path: str | os.PathLike[str], *, cap: int = CAP) -> DicomObject:
    """Parse a DICOM file that is no image series, without its frames and pixels.

    Parameters
    ----------
    path : the file.
    cap : most bytes to which a deflated file may swell.

    Raises ReadError (not DICOM, damaged, big endian), TruncatedError, TooLargeError.
    """
    place = Path(path)
    try:
        with open(place, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(1 << 14)
            if not is_dicom(start):
                raise ReadError("is not a DICOM file" if start else "is empty", where=place)
            syntax, body = _begun(start, place)
            if syntax == BIG_ENDIAN:
                raise ReadError("is big endian, a coding that was retired before such objects existed", where=place)
            explicit = syntax != IMPLICIT
            if syntax == DEFLATED:
                inflated = _inflated(place, body, cap)
                small, large = _parts(inflated, 0, len(inflated), explicit, place)
                return DicomObject(place, _parsed(small, explicit), syntax, inflated, large, explicit)
            small, large = _read_parts(file, body, size, explicit, place)
            return DicomObject(place, _parsed(small, explicit), syntax, None, large, explicit)
    except OSError as error:
        raise ReadError(f"cannot be read ({error.strerror or error})", where=place) from error
    except EndError:
        raise TruncatedError("ends too early", where=place, do="copy or download the file again") from None
    except ValueError as error:
        raise ReadError(f"its DICOM elements cannot be parsed ({error})", where=place) from error


def _read_parts(file: BinaryIO, body: int, size: int, explicit: bool, where: Path) -> tuple[bytes, dict[int, Span]]:
    """As `_parts`, of a file whose elements begin at `body`; reads as far as the pixels."""
    look = FIRST_LOOK
    while True:
        file.seek(0)
        data = file.read(min(look, size))
        try:
            return _parts(data, body, size, explicit, where)
        except EndError:
            if len(data) < look:
                raise
        if look == 2 * SMALL_LIMIT:
            raise _too_large(where)
        look = min(4 * look, 2 * SMALL_LIMIT)


def _parts(data: bytes, body: int, size: int, explicit: bool, where: Path) -> tuple[bytes, dict[int, Span]]:
    """(bytes of all elements before the pixels but the large ones, where the large ones lie), from the first bytes of `size`.

    Raises EndError where the elements go on behind them.
    """
    end = len(data)
    found: dict[int, dicom_elements.Span] = {}
    large: dict[int, Span] = {}
    pixels = walk(data, body, end, explicit, "<", found, before=PIXELS)
    if pixels < end:
        tag, _, length, start = head(data, pixels, end, explicit, "<")
        if tag == PIXELS:
            if length != UNDEFINED and start + length > size:
                raise TruncatedError("ends too early", where=where, do="copy or download the file again")
            large[PIXEL_DATA] = Span(start, -1 if length == UNDEFINED else start + length)
    elif end < size:
        raise EndError
    if FRAMES in found:
        large[FRAMES] = Span(*found.pop(FRAMES)[1:])
    if sum(behind - begin for begin, _, behind in found.values()) > SMALL_LIMIT:
        raise _too_large(where)
    return b"".join(data[begin:behind] for begin, _, behind in found.values()), large


def _too_large(where: Path) -> TooLargeError:
    return TooLargeError(f"holds more than {SMALL_LIMIT >> 20} MiB beside its pixels", where=where)


def references(data: Dataset) -> References:
    """What a segmentation or structure set refers to, in either of their two ways of saying it."""
    series: dict[str, None] = {}
    instances: dict[str, None] = {}
    frame = str(data.get("FrameOfReferenceUID", "") or "")
    listed = list(data.get("ReferencedSeriesSequence", None) or [])
    for reference in data.get("ReferencedFrameOfReferenceSequence", None) or []:
        frame = str(reference.get("FrameOfReferenceUID", "") or "") or frame
        for study in reference.get("RTReferencedStudySequence", None) or []:
            listed.extend(study.get("RTReferencedSeriesSequence", None) or [])
    for item in listed:
        series[str(item.get("SeriesInstanceUID", ""))] = None
        for name in ("ReferencedInstanceSequence", "ContourImageSequence"):
            for image in item.get(name, None) or []:
                instances[str(image.get("ReferencedSOPInstanceUID", ""))] = None
    return References(tuple(s for s in series if s), tuple(i for i in instances if i), frame)


@contextlib.contextmanager
def parsing(where: Path) -> Iterator[None]:
    """Silence pydicom's remarks, and name the file in whatever it raises while it converts elements."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except CTFoundryError:
            raise
        except Exception as error:  # pydicom raises many types on damaged files
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ReadError(f"an element of its header is garbled ({reason})", where=where) from error


def _parsed(blob: bytes, explicit: bool) -> Dataset:
    from pydicom.filereader import read_dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read_dataset(BytesIO(blob), not explicit, True)
        except Exception as error:  # pydicom raises many types on damaged bytes
            raise ValueError(error) from error


def _begun(start: bytes, where: Path) -> tuple[str, int]:
    """Transfer syntax and the byte behind the meta group."""
    try:
        return meta(start)
    except (EndError, ElementsError):
        raise ReadError("its meta group is damaged", where=where, do="copy or download the file again") from None


def _inflated(path: Path, at: int, cap: int) -> bytes:
    """A deflated data set, as far as `cap` bytes."""
    pieces, total = [], 0
    with Stream(path, "deflate", at) as stream:
        while piece := stream.take(1 << 22):
            total += len(piece)
            if total > cap:
                raise TooLargeError(f"its deflated data swell beyond {cap / 2**20:,.0f} MiB", where=path)
            pieces.append(piece)
    return b"".join(pieces)


def text(value: Any) -> str:
    """A header's value as one line of text without blanks around it.

    >>> text(" Liver ")
    'Liver'
    """
    return " ".join(str("" if value is None else value).split())
