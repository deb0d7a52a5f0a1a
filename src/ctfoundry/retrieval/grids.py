"""Feature maps on disk (``embed --grids``): ``OUT/grids/ID.safetensors``, each level on its own cells.

Tensors ``features/LEVEL`` (c, d, h, w) and ``valid/LEVEL`` (d, h, w); the header names the levels with their affines, and the
content that they are of. Features are float16, and float32 where that would overflow. A level is stored as the network gives it:
side by side on the cells of the finest one, as a search takes them (`search_maps.joined`), they would take five times the space.
Files of the first version hold one level, as ``features`` and ``valid``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry import files
from ctfoundry.errors import StoreError
from ctfoundry.geometry import as_affine

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from ctfoundry.encoder import FeatureMap
    from ctfoundry.geometry import Affine

FOLDER = "grids"


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


def place(out: Path, id: str) -> Path:
    """Where the maps of a scan are, or would be."""
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
        data = one.data.cpu().float()
        half = data.half()
        kept = half if bool(half.isfinite().all()) else data
        tensors[f"features/{one.level}"] = np.ascontiguousarray(kept.numpy())
        tensors[f"valid/{one.level}"] = np.ascontiguousarray(one.valid.cpu().numpy())
    about = {one.level: one.affine.tolist() for one in maps}
    with files.whole(place(out, id)) as part:
        save_file(tensors, part, metadata={"levels": json.dumps(about), "content": content})


def about(out: Path, id: str) -> About:
    """The header of a scan's maps. Raises StoreError where there is none, or a broken one."""
    from safetensors import SafetensorError, safe_open

    path = place(out, id)
    if not path.is_file():
        raise StoreError(f"has no map of scan {id}", where=out, do="embed it into this folder too")
    try:
        with safe_open(path, "numpy") as stream:
            said = stream.metadata() or {}
        if "levels" not in said:
            return About({said["level"]: as_affine(np.array(json.loads(said["affine"])))}, "", True)
        levels = {name: as_affine(np.array(affine)) for name, affine in json.loads(said["levels"]).items()}
        return About(levels, said["content"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"holds no maps of a scan: {error}", where=path, do="remove it and embed again") from error


def lacking(out: Path, id: str, levels: Sequence[str], content: str = "") -> str:
    """Why the stored maps of a scan cannot stand for a pass over it with these levels, as a clause; "" where they can.

    content : digest of the scan as it is now, where it is known.
    """
    try:
        said = about(out, id)
    except StoreError as error:
        return error.what
    if content and said.content and content != said.content:
        return f"the maps of scan {id} are of another content than it has now"
    missing = [name for name in levels if name not in said.levels]
    return f"the maps of scan {id} lack {', '.join(missing)}" if missing else ""


def read(out: Path, id: str, levels: Sequence[str]) -> list[Grid]:
    """The stored maps of a scan, in the order of `levels`. Raises StoreError where they are not there or broken."""
    from safetensors import SafetensorError, safe_open

    why = lacking(out, id, levels)
    if why:
        raise StoreError(
            why, where=out, do="embed it with these --levels into another folder, or search without --index"
        )
    said = about(out, id)
    try:
        with safe_open(place(out, id), "numpy") as stream:
            return [
                Grid(
                    stream.get_tensor("features" if said.single else f"features/{name}"),
                    said.levels[name],
                    stream.get_tensor("valid" if said.single else f"valid/{name}").astype(bool),
                    name,
                )
                for name in levels
            ]
    except (SafetensorError, OSError) as error:
        raise StoreError(
            f"holds no maps of a scan: {error}", where=place(out, id), do="remove it and embed again"
        ) from error
