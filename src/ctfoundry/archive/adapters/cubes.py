"""Arrays in NumPy archives (.npz), read without trusting them: no pickles, sizes checked before anything is unpacked."""

from __future__ import annotations

import io as bytes_io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ctfoundry.archive.adapters.dataset import Cube, DataSetError
from ctfoundry.errors import CTFoundryError
from ctfoundry.geometry import make_affine
from ctfoundry.io import zip_directory
from ctfoundry.io.zip_directory import Member
from ctfoundry.volume import Volume

SIDE = 256
"""Longest edge of a cube in voxels."""
COUNT = 1_000_000
"""Most cubes of an array."""
LABEL_BYTES = 1 << 24
"""Most bytes of an array that is read whole."""
_HEADER = 1 << 12
_AGAIN = "download it again"


@dataclass(frozen=True)
class Array:
    """An array as the archive declares it.

    Attributes
    ----------
    shape, dtype : as in its header; `start` : bytes of the header.
    """

    member: Member
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int


def arrays(path: Path) -> dict[str, Array]:
    """The arrays of an archive by name, from their headers alone.

    Raises DataSetError for what is no archive of arrays, holds pickled objects, or declares sizes that its bytes cannot hold.
    """
    try:
        found = {}
        for member in zip_directory.members(path):
            if not member.name.endswith(".npy"):
                raise DataSetError(f"holds {member.name[:80]!r}, which is no array", where=path, do=_AGAIN)
            head = b"".join(zip_directory.pieces(path, member, min(_HEADER, member.size)))
            found[member.name[:-4]] = _declared(path, member, head)
    except DataSetError:
        raise
    except CTFoundryError as error:
        raise DataSetError(error.what, where=error.where or path, do=error.do or _AGAIN) from error
    except OSError as error:
        raise DataSetError(f"cannot be read ({error.strerror})", where=path) from error
    return found


def _declared(path: Path, member: Member, head: bytes) -> Array:
    where = f"{path}#{member.name}"
    stream = bytes_io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream, max_header_size=_HEADER)
    except Exception as error:  # the parser of headers raises what a hostile header makes it raise
        raise DataSetError("is not a NumPy array", where=where, do=_AGAIN) from error
    if dtype.hasobject:
        raise DataSetError("holds pickled objects, which could run any code", where=where, do="do not use it")
    if fortran or len(shape) > 5 or min(shape, default=1) < 0:
        raise DataSetError(f"has shape {shape} in an order that is not read here", where=where)
    if prod(shape) * dtype.itemsize != member.size - stream.tell():
        raise DataSetError(
            f"declares {shape} of {dtype}, and holds {member.size - stream.tell():,} bytes", where=where, do=_AGAIN
        )
    return Array(member, shape, dtype, stream.tell())


def whole(path: Path, array: Array) -> np.ndarray:
    """All of a small array; raises DataSetError where it is larger than `LABEL_BYTES`."""
    where = f"{path}#{array.member.name}"
    if array.member.size > LABEL_BYTES:
        raise DataSetError(f"is larger than {LABEL_BYTES >> 20} MiB", where=where, do=_AGAIN)
    data = b"".join(_bytes(path, array, array.member.size))
    return np.frombuffer(data, array.dtype, offset=array.start).reshape(array.shape)


def _bytes(path: Path, array: Array, limit: int) -> Iterator[bytes]:
    try:
        yield from zip_directory.pieces(path, array.member, limit)
    except CTFoundryError as error:
        raise DataSetError(error.what, where=error.where or path, do=error.do or _AGAIN) from error


def each(path: Path, array: Array, stop: int | None = None) -> Iterator[np.ndarray]:
    """The cubes of an array (n, d, h, w) one after the other, in one pass; one of them is in memory at a time."""
    size = prod(array.shape[1:]) * array.dtype.itemsize
    count = array.shape[0] if stop is None else min(stop, array.shape[0])
    rest, skip, given = bytearray(), array.start, 0
    for piece in _bytes(path, array, array.start + count * size):
        rest += piece
        if skip:
            cut = min(skip, len(rest))
            del rest[:cut]
            skip -= cut
        while not skip and len(rest) >= size and given < count:
            yield np.frombuffer(bytes(rest[:size]), array.dtype).reshape(array.shape[1:])
            del rest[:size]
            given += 1


def read_cube(cube: Cube) -> Volume:
    """One cube as a volume of kind "other"; everything in front of it in its array is unpacked, so read many with `each`."""
    array = arrays(cube.file).get(cube.array)
    if array is None or not 0 <= cube.index < array.shape[0]:
        raise DataSetError(f"has no cube {cube.array}[{cube.index}]", where=cube.file, do="list the data set again")
    last = deque(each(cube.file, array, cube.index + 1), maxlen=1)
    return as_volume(last[0], cube)


def as_volume(voxels: np.ndarray, cube: Cube) -> Volume:
    """Voxels with the facts of their cube."""
    step = cube.spacing_mm or 1.0
    notes = ["the order of the axes is not stated by the source; taken for S, P, L"]
    notes += [] if cube.spacing_mm else ["size of a voxel unknown, written as 1 mm"]
    notes += [cube.note] if cube.note else []
    affine = make_affine((step, step, step), "SPL", (0.0, 0.0, 0.0))
    return Volume(voxels, affine, "other", source=f"{cube.array}[{cube.index}]", notes=tuple(notes))
