"""Tiny tasks and sources for tests of the loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.train import LoopSettings, Optimiser, Schedule

BOX = ((0, 4), (0, 4), (0, 4))


@dataclass(frozen=True)
class ToyEntry:
    id: str


@dataclass(frozen=True)
class ToyDraws:
    boxes: tuple[Any, ...]
    noise: float


@dataclass
class ToySource:
    """Scans of one constant each; those in `broken` cannot be read."""

    count: int = 7
    broken: frozenset[str] = frozenset()
    read_ids: list[str] = field(default_factory=list)

    @property
    def entries(self) -> list[ToyEntry]:
        return [ToyEntry(f"scan{i}") for i in range(self.count)]

    def read(self, id: str, box: Any) -> np.ndarray:
        self.read_ids.append(id)
        if id in self.broken:
            raise OSError(f"{id}: chunk 3 is damaged")
        return np.full([high - low for low, high in box], 100 * int(id[4:]), dtype=np.int16)


class Regression:
    """A small network with batch norm that learns the constant of a scan from noisy voxels."""

    separable = False

    def __init__(self, *, poison: frozenset[int] = frozenset(), collapse: bool = False) -> None:
        body = nn.Sequential(nn.Conv3d(1, 4, 3, bias=False), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 2))
        self.modules = initialise(nn.ModuleDict({"body": body}), Key.of("toy"))
        self.poison, self.collapse = poison, collapse
        self.batches: list[torch.Tensor] = []
        self.seen = 0

    def plan(self, key: Key, entry: ToyEntry) -> ToyDraws:
        return ToyDraws((BOX,), float(key.normal()))

    def batch(self, reads: Any, draws: Any, device: torch.device) -> torch.Tensor:
        x = torch.stack(
            [torch.from_numpy(r[0]).float() / 700 + 0.01 * d.noise for r, d in zip(reads, draws, strict=True)]
        )
        self.batches.append(x[:, 0, 0, 0].clone())
        return x[:, None].to(device, next(self.modules.parameters()).dtype)

    @property
    def encoder(self) -> nn.Module:
        return self.modules["body"]

    def losses(self, batch: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        if step in self.poison:  # spoils gradients and running statistics
            batch = batch * torch.nan
        z = self.modules["body"](batch).flatten(1)
        loss = ((z.mean(1) - batch.mean((1, 2, 3, 4))) ** 2).mean()
        if self.collapse:  # everything is pulled to one point
            loss = ((z - z.mean(0).detach() - 1) ** 2).mean()
        unit = nn.functional.normalize(z.detach().float(), dim=1)
        self.unit = unit
        return {"loss": loss, "positive": (unit * unit).sum(1).mean(), "negative": (unit @ unit.T).mean()}

    def measures(self) -> dict[str, float]:
        return {}

    def after(self, step: int) -> None:
        self.seen += 1

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def settings(steps: int = 12, **changes: Any) -> LoopSettings:
    values: dict[str, Any] = {
        "schedule": Schedule(steps, warmup=2),
        "optimiser": Optimiser(rate=1e-2),
        "batch": 3,
        "precision": "fp32",
        "log_every": 4,
        "checkpoint_every": 5,
        **changes,
    }
    return LoopSettings(**values)
