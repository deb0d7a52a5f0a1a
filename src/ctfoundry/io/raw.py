"""What a header declares, and the voxels that it declares: shared by NIfTI, NRRD and MetaImage.

These formats are a header and one block of numbers, perhaps packed. Each format's file turns its header into a
`Declared`; `load` is the only place that allocates and reads voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ctfoundry.errors import GeometryError, ReadError, TruncatedError
from ctfoundry.geometry import Vec3
from ctfoundry.io.stream import Packing, Stream, check_cap, check_ratio

if TYPE_CHECKING:
    from ctfoundry.geometry import Affine

Format = Literal["dicom", "nifti", "nrrd", "metaimage"]

LONGEST_AXIS = (1 << 31) - 1
"""More voxels along one axis are a lie; what they would add up to is compared with the cap later."""
FAR_MM = 1e8
"""No first voxel lies farther from the origin of its space, nor from the next one, even where millimetres are called metres."""
SKIP_LIMIT = 1 << 28
"""Most bytes that are unpacked and thrown away before the first voxel: header extensions are no quarter of a gigabyte."""
_DIGITS = 32
"""Most characters, blanks included, of one number that is written as text."""


@dataclass(frozen=True, eq=False)
class Declared:
    """One volume as its header describes it; no voxel has been read.

    Attributes
    ----------
    path : the file with the header (what the user named).
    data : the file with the numbers, which is `path` itself or lies in its folder.
    start : byte of `data` where the (perhaps packed) stream begins.
    skip : bytes of that stream, unpacked, before the first number.
    dtype : type of the stored numbers, with their byte order.
    shape : (d, h, w), slowest axis of the file first.
    affine : voxel index (d, h, w) to world millimetres, RAS+.
    slope, intercept : what a stored number is multiplied by and what is then added.
    says_label : the header itself says that the numbers are labels.
    text : the numbers are written as text, separated by blanks.
    notes : what a person should know of how the header was understood; goes into `Volume.notes`.
    """

    path: Path
    format: Format
    data: Path
    start: int
    skip: int
    packing: Packing
    dtype: np.dtype
    shape: Vec3
    affine: Affine
    slope: float = 1.0
    intercept: float = 0.0
    says_label: bool = False
    text: bool = False
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the stored numbers."""
        return prod(self.shape) * self.dtype.itemsize


@contextmanager
def header_errors(path: Path) -> Iterator[None]:
    """What goes wrong while a header's fields are read becomes an error that names the file."""
    try:
        yield
    except (KeyError, ValueError, IndexError, OverflowError) as error:
        raise ReadError(
            f"its header lacks or garbles a field ({str(error)[:100]})", where=path, do="export the file again"
        ) from error
    except GeometryError as error:
        raise type(error)(error.what, where=path, do="repair the header") from error


def check_size(declared: Declared) -> Declared:
    """The same, after comparing it with itself and with the file's length.

    Raises ReadError for axes and offsets that no file has, GeometryError for places that nobody has, TruncatedError where the numbers cannot fit into the file.
    """
    if max(declared.shape) > LONGEST_AXIS:
        raise ReadError(
            "declares an axis of more than two thousand million voxels", where=declared.path, do="export the file again"
        )
    if declared.packing != "raw" and declared.skip > SKIP_LIMIT:
        raise ReadError(
            f"its voxels are said to begin {declared.skip >> 20:,} MiB into its packed data",
            where=declared.path,
            do="export the file again",
        )
    have = declared.data.stat().st_size
    least = 2 * prod(declared.shape) - 1 if declared.text else declared.size if declared.packing == "raw" else 1
    need = declared.start + (declared.skip if declared.packing == "raw" else 0) + least
    if have < need:
        raise TruncatedError(
            f"has {have:,} of the {need:,} bytes that its header declares"
            if declared.packing == "raw" and not declared.text
            else f"has {have:,} bytes, too few for what its header declares",
            where=declared.data,
            do="copy or download the file again",
        )
    far = np.abs(declared.affine[:3]).max()
    if far > FAR_MM:
        raise GeometryError(
            f"has a spacing or origin of {far:.3g} mm", where=declared.path, do="repair the geometry of its header"
        )
    return declared


def load(declared: Declared, cap: int) -> np.ndarray:
    """The stored numbers, (d, h, w), in the machine's byte order and not yet scaled."""
    check_cap(prod(declared.shape) * max(declared.dtype.itemsize, 2), cap, declared.path)
    packed = declared.data.stat().st_size - declared.start
    check_ratio(declared.skip + declared.size, packed, declared.packing, declared.data)
    if declared.text:
        return _from_text(declared, packed)
    stored = np.empty(declared.shape, dtype=declared.dtype)
    with Stream(declared.data, declared.packing, declared.start) as stream:
        stream.fill(stored.data.cast("B"), declared.skip)
    return stored if stored.dtype.isnative else stored.byteswap().view(stored.dtype.newbyteorder())


def _from_text(declared: Declared, size: int) -> np.ndarray:
    """Numbers written as text; as many as declared, each of at most `_DIGITS` characters."""
    count = prod(declared.shape)
    with Stream(declared.data, "raw", declared.start) as stream:
        words = stream.take(min(size, _DIGITS * count)).split(None, count)[:count]
    again = "copy or download the file again"
    if len(words) < count:
        raise TruncatedError(f"holds {len(words):,} of {count:,} numbers as text", where=declared.data, do=again)
    whole = declared.dtype.kind in "iu"
    try:
        values = np.array([int(w) if whole else float(w) for w in words], dtype=object if whole else np.float64)
        if whole:
            limits = np.iinfo(declared.dtype)
            if values.min() < limits.min or values.max() > limits.max:
                raise ValueError(f"a number does not fit {declared.dtype.name}")
    except ValueError as error:
        raise ReadError(f"its text is no list of numbers ({str(error)[:60]})", where=declared.data, do=again) from error
    with np.errstate(over="ignore"):  # infinities are named later
        return values.astype(declared.dtype.newbyteorder("=")).reshape(declared.shape)


def beside(path: Path, name: str) -> Path:
    """The data file `name` that the header `path` points at; raises ReadError when it is no file in or below its folder.

    Links are followed before the comparison, so one that leads out of the folder is refused too.
    """
    folder = path.parent.resolve()
    target = folder / name
    try:
        inside = "\0" not in name and target.resolve().is_relative_to(folder) and target.is_file()
    except (OSError, RuntimeError):  # a name too long, a loop of links
        inside = False
    if not inside:
        raise ReadError(
            "its voxels are said to be in what is no file of its own folder",  # reports show this part, so no name
            where=path,
            do=f"put {name!r} into the header's folder",
        )
    return target
