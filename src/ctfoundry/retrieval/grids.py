"""Feature maps on disk (``embed --grids``): ``OUT/grids/ID.safetensors``, each level on its own cells.

Tensors ``features/LEVEL`` (c, d, h, w) and ``valid/LEVEL`` (d, h, w); the header names the levels with their affines, and the
content that they are of. Features are float16, and float32 where that would blur them (`in_half`). A level is stored as the network
gives it: side by side on the cells of the finest one, as a search takes them (`search_maps.joined`), they would take five times the space.
Files of the first version hold one level, as ``features`` and ``valid``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files
from ctfoundry.errors import GeometryError, StoreError
from ctfoundry.geometry import as_affine

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from ctfoundry.encoder import FeatureMap
    from ctfoundry.geometry import Affine

FOLDER = "grids"
KINDS = ("F16", "F32")
"""Types of features."""
HALF_ERROR = 1e-3
"""Most that rounding to float16 may take of a level's spread over its cells. Whitening keeps directions of a hundredth of the widest
(`search_peaks.FLOOR`); measured: 3e-4 of CT-FM's networks, trained and random."""


@dataclass(frozen=True, eq=False)
class Grid:
    """One level of a scan as it is stored; the attributes are those of `encoder.FeatureMap`."""

    data: Float[np.ndarray, "c d h w"]
    affine: Affine
    valid: Bool[np.ndarray, "d h w"]
    level: str


@dataclass(frozen=True)
class About:
    """What the header of a file says: affines by level, finest first, and the digest of the scan ("" in the first version)."""

    levels: Mapping[str, Affine]
    content: str
    single: bool = False

    def tensor(self, what: str, level: str) -> str:
        """Name of the array of ``features`` or ``valid`` cells of a level."""
        return what if self.single else f"{what}/{level}"


def place(out: Path, id: str) -> Path:
    """Where the maps of a scan are, or would be. Raises StoreError for an id that would be another place."""
    if Path(id).name != id:
        raise StoreError(f"{id!r} is no id of a scan", where=out)
    return out / FOLDER / f"{id}.safetensors"


def ids(out: Path) -> set[str]:
    """The scans whose maps a folder holds."""
    return {path.stem for path in (out / FOLDER).glob("*.safetensors") if not path.name.startswith(".")}


def size(out: Path, some: Iterable[str] | None = None) -> tuple[int, int]:
    """(scans with maps, their bytes), of all or of `some` scans."""
    found = [place(out, id) for id in (ids(out) if some is None else some)]
    sizes = [path.stat().st_size for path in found if path.is_file()]
    return len(sizes), sum(sizes)


def write(out: Path, id: str, maps: Sequence[FeatureMap], content: str) -> None:
    """Store the maps of a scan, whole or not at all; `content` is the digest of its voxels."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    for one in maps:
        kept = in_half(one.data.cpu().float())
        tensors[f"features/{one.level}"] = np.ascontiguousarray(kept.numpy())
        tensors[f"valid/{one.level}"] = np.ascontiguousarray(one.valid.cpu().numpy())
    about = {one.level: one.affine.tolist() for one in maps}
    with files.whole(place(out, id)) as part:
        save_file(tensors, part, metadata={"levels": json.dumps(about), "content": content})


def in_half(data: Float[Tensor, "c d h w"]) -> Float[Tensor, "c d h w"]:
    """One level as float16, or as it is where that would overflow, or round off more than `HALF_ERROR` of what tells cells apart: numbers
    that are very small, or differ little from one large number."""
    half = data.half()
    lost = spread = 0.0
    for own, kept in zip(data.double(), half, strict=True):
        lost += float((own - kept).square().sum())
        spread += float((own - own.mean()).square().sum())
    return half if lost <= HALF_ERROR**2 * spread else data


def about(out: Path, id: str) -> About:
    """The header of a scan's maps. Raises StoreError where there is none, or a broken one."""
    with _opened(out, id) as (said, _):
        return said


@contextmanager
def _opened(out: Path, id: str) -> Iterator[tuple[About, Any]]:
    """The checked header and the open file: one file, also where another is just put in its place."""
    from safetensors import SafetensorError, safe_open

    path = place(out, id)
    if not path.is_file():
        raise StoreError(f"has no map of scan {id}", where=out, do="embed it into this folder too")
    try:
        with safe_open(path, "numpy") as stream:
            yield _header(stream), stream
    except (SafetensorError, GeometryError, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"holds no maps of a scan: {error}", where=path, do="remove it and embed again") from error


def _header(stream: Any) -> About:
    """What the file says, once the arrays are what it says."""
    said = stream.metadata() or {}
    single = "levels" not in said
    table = {said["level"]: json.loads(said["affine"])} if single else json.loads(said["levels"])
    if not isinstance(table, dict):
        raise ValueError("its levels have no places")
    found = About(
        {name: as_affine(affine) for name, affine in table.items()}, "" if single else said["content"], single
    )
    for name in found.levels:
        features, valid = (stream.get_slice(found.tensor(what, name)) for what in ("features", "valid"))
        shape = features.get_shape()
        if len(shape) != 4 or 0 in shape or shape[1:] != valid.get_shape() or features.get_dtype() not in KINDS:
            raise ValueError(f"what it calls {name} is no map")
    return found


def lacking(out: Path, id: str, levels: Sequence[str], content: str = "") -> str:
    """Why the stored maps of a scan cannot stand for a pass over it with these levels, as a clause; "" where they can.

    content : digest of the scan as it is now, where it is known.
    """
    try:
        return _lacking(about(out, id), id, levels, content)
    except StoreError as error:
        return error.what


def _lacking(said: About, id: str, levels: Sequence[str], content: str = "") -> str:
    if content and said.content and content != said.content:
        return f"the maps of scan {id} are of another content than it has now"
    missing = [name for name in levels if name not in said.levels]
    return f"the maps of scan {id} lack {', '.join(missing)}" if missing else ""


def read(out: Path, id: str, levels: Sequence[str]) -> list[Grid]:
    """The stored maps of a scan, in the order of `levels`. Raises StoreError where they are not there or broken."""
    with _opened(out, id) as (said, stream):
        why = _lacking(said, id, levels)
        if why:
            raise StoreError(
                why, where=out, do="embed it with these --levels into another folder, or search without --index"
            )
        return [
            Grid(
                stream.get_tensor(said.tensor("features", name)),
                said.levels[name],
                stream.get_tensor(said.tensor("valid", name)).astype(bool),
                name,
            )
            for name in levels
        ]
