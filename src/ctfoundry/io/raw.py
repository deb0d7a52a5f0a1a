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
from ctfoundry.io.stream import Packing, Stream, check_cap

if TYPE_CHECKING:
    from ctfoundry.geometry import Affine

Format = Literal["dicom", "nifti", "nrrd", "metaimage"]


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
            f"its header lacks or garbles a field ({error})", where=path, do="export the file again"
        ) from error
    except GeometryError as error:
        raise type(error)(error.what, where=path, do="repair the header") from error


def check_size(declared: Declared) -> Declared:
    """The same, after comparing the file's length with it where the numbers are not packed; raises TruncatedError."""
    if declared.packing == "raw":
        need, have = declared.start + declared.skip + declared.size, declared.data.stat().st_size
        if have < need:
            raise TruncatedError(
                f"has {have:,} of the {need:,} bytes that its header declares",
                where=declared.data,
                do="copy or download the file again",
            )
    return declared


def load(declared: Declared, cap: int) -> np.ndarray:
    """The stored numbers, (d, h, w), in the machine's byte order and not yet scaled."""
    check_cap(prod(declared.shape) * max(declared.dtype.itemsize, 2), cap, declared.path)
    stored = np.empty(declared.shape, dtype=declared.dtype)
    with Stream(declared.data, declared.packing, declared.start) as stream:
        stream.fill(stored.data.cast("B"), declared.skip)
    return stored if stored.dtype.isnative else stored.byteswap().view(stored.dtype.newbyteorder())


def beside(path: Path, name: str) -> Path:
    """The data file `name` that the header `path` points at; raises ReadError when it is not a file of the same folder."""
    folder = path.parent.resolve()
    target = folder / name
    if "\0" in name or target.resolve().parent != folder or not target.is_file():
        raise ReadError(
            "its voxels are said to be in what is no file of its own folder",  # reports show this part, so no name
            where=path,
            do=f"put {name!r} into the header's folder",
        )
    return target
