"""Random crops of one scan: from a store, against reading and resampling its .nii.gz, zarr and a memory-mapped array.

Twenty crops of 32x128x128 at 3x1x1 mm, as CT-FM's pretraining draws them from one scan. The .nii.gz is read and resampled
once for all twenty, which is the kindest way to count it. A mapped array of the resampled voxels is the ceiling: it unpacks
nothing and takes two to three times the disk.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from ctfoundry import geometry, store
from ctfoundry.bench.baselines import store as baselines
from ctfoundry.geometry import Box
from ctfoundry.keys import Key
from ctfoundry.preparation import Resampling
from ctfoundry.volume import Volume

SHAPE = (301, 512, 512)
SPACING = (1.25, 0.75, 0.75)
CROP = (32, 128, 128)
CROPS = 20
TARGET = Resampling(spacing=(3.0, 1.0, 1.0), rule="monai")


def run(*, repeats: int = 5, shape: tuple[int, int, int] = SHAPE) -> list[dict[str, Any]]:
    """Rows of {name, ours_s, other_s, ratio, max_error, threads, dtype}; seconds of all crops, medians of alternating repeats.

    max_error is in HU; it is not zero where a store rounds to int16 or where a crop is resampled from a native store.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="ctfoundry-bench-") as place:
            return _run(Path(place), repeats, shape)
    finally:
        torch.set_num_threads(threads)


def _run(place: Path, repeats: int, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    volume = body(shape)
    with store.create(place / "ct-fm", "ct-fm") as same, store.create(place / "native", "native") as native:
        entry = same.add(volume, "scan", patient="p")
        other = native.add(volume, "scan", patient="p")
    baselines.write_nifti(volume, place / "scan.nii.gz")
    baselines.write_zarr(same.volume("scan").voxels, place / "scan.zarr", store.CHUNK)
    np.save(place / "scan.npy", same.volume("scan").voxels)
    boxes = _boxes(entry.shape)

    def crops() -> list[np.ndarray]:
        return [same.read("scan", box) for box in boxes]

    def placed() -> list[np.ndarray]:
        plans = [store.plan_crop(store.placement(other, TARGET), box) for box in boxes]
        return [
            store.make_crop(torch.from_numpy(native.read("scan", plan.reads)), plan.operators).numpy() for plan in plans
        ]

    return [
        _row(
            "store, own grid: .nii.gz and resample",
            crops,
            lambda: baselines.nifti(place / "scan.nii.gz", boxes),
            repeats,
        ),
        _row(
            "store, native: .nii.gz and resample",
            placed,
            lambda: baselines.nifti(place / "scan.nii.gz", boxes),
            repeats,
        ),
        _row("store, own grid: zarr 3", crops, lambda: baselines.zarr_crops(place / "scan.zarr", boxes), repeats),
        _row("store, own grid: mapped array", crops, lambda: baselines.mapped(place / "scan.npy", boxes), repeats),
    ]


def body(shape: tuple[int, int, int]) -> Volume:
    """A body with organs' texture and scanner noise, int16: it compresses as a CT does, to about 40 %."""
    rng = np.random.Generator(np.random.Philox(key=Key.of("bench", "store").seed()))
    d, h, w = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    inside = (h[:, None] / 0.7) ** 2 + (w / 0.85) ** 2 < 1
    voxels = np.full(shape, -1000, dtype=np.int16)
    for k, z in enumerate(d):
        noise = rng.standard_normal(shape[1:], dtype=np.float32)
        noise = 25 * (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 3**0.5
        lung = (h[:, None] / 0.45) ** 2 + ((np.abs(w) - 0.4) / 0.3) ** 2 + z**2 < 1
        hu = np.where(lung, -830, 40 + 30 * np.sin(12 * w) * np.cos(9 * h[:, None] + 5 * z))
        voxels[k] = np.rint(np.where(inside, hu + noise, -1000 + 0.3 * noise))
    return Volume(voxels, geometry.make_affine(SPACING), "hu")


def _boxes(shape: tuple[int, int, int]) -> list[Box]:
    key, boxes = Key.of("bench", "crops"), []
    for k in range(CROPS):
        low = [int(key(k, a).integers(0, n - c + 1)) for a, (n, c) in enumerate(zip(shape, CROP, strict=True))]
        d, h, w = ((a, a + c) for a, c in zip(low, CROP, strict=True))
        boxes.append((d, h, w))
    return boxes


def _row(
    name: str, ours: Callable[[], list[np.ndarray]], other: Callable[[], list[np.ndarray]], repeats: int
) -> dict[str, Any]:
    pairs = list(zip(ours(), other(), strict=True))  # also warms the page cache and the imports
    error = max(float(np.abs(a.astype(np.float32) - b).max()) for a, b in pairs)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, run_one in zip(seconds, (ours, other), strict=True):
            start = time.perf_counter()
            run_one()
            side.append(time.perf_counter() - start)
    mine, theirs = median(seconds[0]), median(seconds[1])
    return {
        "name": name,
        "ours_s": mine,
        "other_s": theirs,
        "ratio": theirs / mine,
        "max_error": error,
        "threads": 1,
        "dtype": str(pairs[0][0].dtype),
    }
