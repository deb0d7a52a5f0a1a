"""What several processes train in the tests, and one process beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ctfoundry import parallel
from ctfoundry.pretrain.recipe import ModelSettings, Recipe
from ctfoundry.pretrain.task import CropTask
from ctfoundry.store import Store
from ctfoundry.train import Summary, fit
from pretrain.toys import loop, recipe

STEPS = 5
MODEL = ModelSettings(filters=2, blocks=(1, 1), head=(8, 6))
SMALL: dict[str, Any] = {"crop": (4, 8, 8), "crops": 2, "model": MODEL}


def cases() -> dict[str, Recipe]:
    """Everything that goes between processes: batch norm and its groups, gathered losses, parts, chunks."""
    values: dict[str, dict[str, Any]] = {
        "intra": {"objective": "simclr-intra", "batch_norm": "per-crop-view"},
        "plain": {"objective": "simclr", "batch_norm": "all"},
        "chunks": {"objective": "simclr", "batch_norm": "per-crop-view", "chunk": 4},
        "heads": {"objective": "vicreg", "batch_norm": "per-crop-view", "model": replace(MODEL, head=(8, 8, 6))},
        "parts": {"objective": "simclr-intra", "batch_norm": "per-scan"},
    }
    return {
        name: recipe(**{**SMALL, "train": loop(STEPS, batch=4, precision="fp64", ema=0.9, log_every=2), **own})
        for name, own in values.items()
    }


class Watched(CropTask):
    """Keeps the gradients of the first step."""

    gradients: dict[str, torch.Tensor]

    def after(self, step: int) -> None:
        if step == 0:
            self.gradients = {name: p.grad.clone() for name, p in self.modules.named_parameters() if p.grad is not None}


def train(chosen: Recipe, store: Store, run: Path, **kwargs: Any) -> tuple[Summary, Watched]:
    """Fit a recipe."""
    task = Watched(chosen)
    return fit(task, store, chosen.train, run, quiet=True, **kwargs), task


def train_all(store: Store, folder: Path) -> None:
    """As one of several processes: every case; ``stopped`` is ``intra`` stopped after three steps and continued."""
    found: dict[str, Any] = {}
    for name, chosen in cases().items():
        if name == "parts":
            chosen = replace(chosen, train=replace(chosen.train, accumulate=2))
        done, task = train(chosen, store, folder / name)
        found[name] = {"gradients": task.gradients, "weights": task.modules.state_dict(), "last": dict(done.last)}
    called: list[int] = []
    intra = cases()["intra"]
    train(intra, store, folder / "stopped", steps=3, at=(2, called.append))
    train(replace(intra, train=replace(intra.train, workers=0)), store, folder / "stopped")
    found["called"] = called
    torch.save(found, folder / f"rank-{parallel.rank()}")
