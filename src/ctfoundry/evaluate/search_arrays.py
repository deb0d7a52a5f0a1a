"""Arrays on disk that a long search works on: written once, read as memory maps, gone when the search is done.

A set of arrays is a folder: ``NAME.npy`` each, and ``about.json``, written last, with their sizes and plain values. Where that
stands and the sizes hold, all of the set is whole; anything else counts as not there and is made again.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry import files
from ctfoundry.errors import DiskFullError
from ctfoundry.geometry import Grid
from ctfoundry.retrieval.search_maps import Scene

if TYPE_CHECKING:
    from jaxtyping import Float

ABOUT = "about.json"


def write(folder: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any] = {}) -> int:
    """Write a set; returns its bytes. Raises DiskFullError where the disk is full."""
    sizes = {}
    with files.or_full(folder):
        (folder / ABOUT).unlink(missing_ok=True)  # of a set that was here
        for name, array in arrays.items():
            path = folder / f"{name}.npy"
            files.write_npy(path, array, mode=0o600)
            sizes[name] = path.stat().st_size
        files.write_json(folder / ABOUT, {"bytes": sizes, **about})
    return sum(sizes.values())


def about(folder: Path) -> dict[str, Any] | None:
    """What is written of a whole set; None where there is none."""
    found = read_json(folder / ABOUT)
    try:
        sizes = {} if found is None else {n: (folder / f"{n}.npy").stat().st_size for n in found["bytes"]}
    except OSError:
        return None
    return found if found is not None and sizes == found["bytes"] else None


def read(folder: Path, name: str) -> np.ndarray:
    """One array, mapped from the disk; what is written into it stays in memory."""
    found: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)
    return found


def read_json(path: Path) -> Any:
    """Plain values; None where the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def write_json(path: Path, data: Any) -> None:
    """Plain values. Raises DiskFullError where the disk is full."""
    files.write_json(path, data, mode=0o600)


def check_room(folder: Path, need: float, what: str) -> None:
    """Raise DiskFullError where fewer than `need` bytes are free."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DiskFullError(
            f"{what} need about {need / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free",
            where=folder,
            do="make room, or give another --out; run again with the same --out, what was finished stays",
        )


# ---------------------------------------------------------------------- scenes


def write_scene(folder: Path, scene: Scene, vectors: Mapping[str, Float[torch.Tensor, "c"]]) -> int:
    """A scene without its map, and raw query vectors of some places by name; returns the bytes."""
    rows = scene.rows.cpu()
    # a map's rows are a transposed array, and products of other strides differ in their last bits
    turned = not rows.is_contiguous()
    arrays = {
        "rows": (rows.T if turned else rows).numpy(),
        "centres": np.asarray(scene.centres),
        "place": np.asarray(scene.place),
        "vectors": torch.stack(list(vectors.values())).cpu().numpy() if vectors else np.zeros((0, rows.shape[1])),
    }
    grid = {"shape": list(scene.grid.shape), "affine": scene.grid.affine.tolist()}
    return write(
        folder, arrays, {"turned": turned, "grid": grid, "widths": list(scene.widths), "vectors": list(vectors)}
    )


def read_scene(folder: Path, device: torch.device) -> Scene:
    """What `write_scene` wrote; on the CPU the cells stay on the disk and are mapped."""
    known = about(folder)
    if known is None:
        raise FileNotFoundError(errno.ENOENT, "cells of a scan are gone", str(folder))
    rows = torch.from_numpy(read(folder, "rows"))
    grid = known["grid"]
    return Scene(
        (rows.T if known["turned"] else rows).to(device),
        read(folder, "centres"),
        read(folder, "place"),
        Grid(tuple(grid["shape"]), np.array(grid["affine"])),
        tuple(known["widths"]),
    )


def read_vectors(folder: Path, device: torch.device) -> dict[str, Float[torch.Tensor, "c"]]:
    """The query vectors beside a scene."""
    known = about(folder)
    if known is None or not known["vectors"]:
        return {}
    rows = torch.from_numpy(np.array(read(folder, "vectors"))).to(device)
    return dict(zip(known["vectors"], rows, strict=True))
