"""``ctfoundry bench views``: our view pipeline against MONAI's transforms making the same views."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ctfoundry.bench.baselines.views import monai_views
from ctfoundry.errors import UsageError
from ctfoundry.geometry import Vec3
from ctfoundry.keys import Key
from ctfoundry.pretrain.views import ViewSettings, draw_view, make_views

PAPER = ViewSettings(affine=0.2, intensity_scale=0.5, intensity_shift=0.5)
"""The paper's additions, at the probabilities of CT-FM's training for segmentation."""

CASES: tuple[tuple[str, Vec3, int, ViewSettings], ...] = (
    ("views 32x128x128 (ct-fm)", (32, 128, 128), 32, ViewSettings()),
    ("views 16x64x64 (ct-fm-tiny)", (16, 64, 64), 128, ViewSettings()),
    ("views 32x128x128 with the paper's additions", (32, 128, 128), 32, PAPER),
    ("views 32x128x128, all turned", (32, 128, 128), 32, replace(PAPER, affine=1.0)),
)


def run(*, repeats: int = 5, threads: int = 1) -> list[dict[str, Any]]:
    """One row a crop size, the published one first; whole batches, alternating, medians; float32 on both sides.

    What is random is drawn beforehand on both sides, and both write to memory that stands. Ours counts building its matrices;
    MONAI's objects are made beforehand.
    """
    try:
        from monai.data import get_track_meta, set_track_meta
    except ImportError as error:
        raise UsageError("this benchmark needs MONAI", do="pip install 'ctfoundry[dev]'") from error

    before, tracked = torch.get_num_threads(), get_track_meta()
    torch.set_num_threads(threads)
    set_track_meta(False)
    try:
        return [_row(name, size, count, settings, repeats, threads) for name, size, count, settings in CASES]
    finally:
        torch.set_num_threads(before)
        set_track_meta(tracked)


def _row(name: str, size: Vec3, count: int, settings: ViewSettings, repeats: int, threads: int) -> dict[str, Any]:
    key = Key.of("bench", "views")
    draws = [draw_view(key(i), settings, size) for i in range(count)]
    crops = torch.from_numpy(key("crops").uniform(shape=(count, *size))).float()
    into, there = torch.zeros_like(crops), torch.zeros_like(crops)
    other = monai_views(draws, size, there)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        start = time.perf_counter()
        ours = make_views(crops, draws, out=into)
        middle = time.perf_counter()
        theirs = other(crops)
        times[0].append(middle - start)
        times[1].append(time.perf_counter() - middle)
    ours_s, other_s = (float(np.median(t[1:])) for t in times)  # the first pass warms both up
    return {
        "name": name,
        "ours_s": ours_s,
        "other_s": other_s,
        "ratio": other_s / ours_s,
        "max_error": float((ours - theirs).abs().max()),
        "threads": threads,
        "dtype": "float32",
    }
