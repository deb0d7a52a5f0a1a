"""A store of small structured scans, and a recipe that learns on it in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ctfoundry import store
from ctfoundry.geometry import make_affine
from ctfoundry.keys import Key
from ctfoundry.pretrain.recipe import ModelSettings, Recipe
from ctfoundry.pretrain.views import ViewSettings
from ctfoundry.resampling import resample, taps
from ctfoundry.store import Store
from ctfoundry.train import LoopSettings, Optimiser, Schedule
from ctfoundry.volume import Volume

PLAIN_VIEWS = ViewSettings(scale=(1.0, 1.0), flip=0.0, shift=0.0, smooth=0.0)


def structured(seed: int, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Volume:
    """Blobs of different HU in air: places of one scan differ from one another."""
    import torch

    coarse = torch.from_numpy(Key.of("blobs", seed).normal((6, 7, 8))).float()
    axes = [taps(n, out, 0.0, (n - 1) / (out - 1)) for n, out in zip(coarse.shape, shape, strict=True)]
    hu = (resample(coarse, (axes[0], axes[1], axes[2])) * 400).numpy().round().astype(np.int16)
    hu[:2], hu[:, :3], hu[..., -4:] = -1024, -1024, -1024
    return Volume(hu, make_affine(spacing, "SPL"), "hu")


def make_store(path: Path, *, grid: str = "6x2x2", count: int = 4, shape: tuple[int, int, int] = (24, 60, 64)) -> Store:
    spacing = (6.0, 2.0, 2.0) if grid == "6x2x2" else (1.5, 1.0, 1.25)
    with store.create(path, grid=grid) as scans:
        for i in range(count):
            scans.add(structured(i, shape, spacing), f"scan{i}", patient=f"patient{i // 2}")
    return store.open_store(path)


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "toy",
        "preparation": "ct-fm-tiny",
        "crop": (8, 16, 16),
        "crops": 4,
        "views": ViewSettings(scale=(0.8, 1.0)),
        "model": ModelSettings(filters=4, blocks=(1, 1, 1), head=(16, 8)),
        "batch_norm": "all",
        "train": loop(),
        **changes,
    }
    return Recipe(**values)


def loop(steps: int = 6, **changes: Any) -> LoopSettings:
    values: dict[str, Any] = {
        "schedule": Schedule(steps),
        "optimiser": Optimiser(rate=1e-3),
        "batch": 2,
        "precision": "fp32",
        "log_every": 5,
        **changes,
    }
    return LoopSettings(**values)
