"""Reading a CT: ours against SimpleITK's and MONAI's series readers, and against nibabel.

Every pair reads the same files from the page cache, in turns, in one process; equal voxels are part of the measurement.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ctfoundry import geometry, io
from ctfoundry.bench.baselines import read as baselines
from ctfoundry.io.dicom_write import write_series
from ctfoundry.keys import Key
from ctfoundry.volume import Volume

SHAPE = (300, 512, 512)
SPACING = (1.0, 0.75, 0.75)


def run(*, repeats: int = 5, threads: int = 1, shape: tuple[int, int, int] = SHAPE) -> list[dict[str, Any]]:
    """Rows of {name, ours_s, other_s, ratio, max_error, threads, dtype}; seconds are medians of `repeats` alternating runs.

    `threads` is given to both sides. MONAI's row is there where MONAI is installed.
    """
    with tempfile.TemporaryDirectory(prefix="ctfoundry-bench-") as place:
        volume = _chest_like(shape)
        folder, nifti = Path(place, "series"), Path(place, "scan.nii.gz")
        stored = (volume.voxels + 1024).astype(np.uint16)
        write_series(folder, stored, volume.affine, intercept=-1024, change=_numbered)
        io.write(volume, nifti)

        def ours() -> np.ndarray:
            return io.read(folder, threads=threads).voxels

        pairs: list[tuple[str, Callable[[], np.ndarray], Callable[[], np.ndarray]]] = [
            ("dicom series: SimpleITK", ours, lambda: baselines.simpleitk_series(folder, threads))
        ]
        if importlib.util.find_spec("monai") is not None:
            pairs.append(("dicom series: MONAI", ours, lambda: baselines.monai_series(folder)))
        pairs.append((".nii.gz: nibabel", lambda: io.read(nifti).voxels, lambda: baselines.nibabel_file(nifti)))
        pairs.append((".nii.gz: SimpleITK", lambda: io.read(nifti).voxels, lambda: baselines.simpleitk_file(nifti)))
        return [_row(*pair, repeats=repeats, threads=threads) for pair in pairs]


def _row(
    name: str, ours: Callable[[], np.ndarray], other: Callable[[], np.ndarray], *, repeats: int, threads: int
) -> dict[str, Any]:
    mine, theirs = ours(), other()  # also warms the page cache and the imports
    error = int(np.abs(mine.astype(np.int32) - theirs).max()) if mine.shape == theirs.shape else None
    dtype = f"{mine.dtype}" if mine.dtype == theirs.dtype else f"{mine.dtype} / {theirs.dtype}"
    del mine, theirs
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, work in enumerate((ours, other)):
            start = time.perf_counter()
            work()
            seconds[side].append(time.perf_counter() - start)
    ours_s, other_s = (median(s) for s in seconds)
    return {
        "name": name,
        "ours_s": ours_s,
        "other_s": other_s,
        "ratio": other_s / ours_s,
        "max_error": error,
        "threads": threads,
        "dtype": dtype,
    }


def _numbered(data: Any, d: int) -> None:
    data.InstanceNumber = d + 1  # MONAI stacks slices by it


def _chest_like(shape: tuple[int, int, int]) -> Volume:
    """A body of soft tissue with noise in air: compresses about as a scan does."""
    affine = geometry.make_affine(SPACING, "SPL", (-190.0, -190.0, -150.0))
    h, w = (np.linspace(-1, 1, n) for n in shape[1:])
    body = (h[:, None] ** 2 / 0.5 + w[None] ** 2 / 0.8) < 1
    voxels = np.empty(shape, dtype=np.int16)
    for d in range(shape[0]):
        noise = Key.of("bench-read", d).integers(-24, 25, shape[1:]).astype(np.int16)
        voxels[d] = np.where(body, 40 + noise, -1000 + noise // 8)
    return Volume(voxels, affine, "hu")
