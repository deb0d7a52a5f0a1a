"""Tiny networks with one answer a voxel."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ctfoundry.encoder import Card
from ctfoundry.infer.passes import Extent
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.segresnet_ds import SegResNetDS
from ctfoundry.preparation import PREPARATIONS, Preparation
from ctfoundry.segmenter import Segmenter


class Local(nn.Module):
    """Two small convolutions: features see their neighbours, the head is linear voxel by voxel."""

    def __init__(self, classes: int, features: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.classes = classes
        self.body = nn.Conv3d(1, features, 3, padding=1)
        self.head = nn.Conv3d(features, classes, 1)
        initialise(self, Key.of("local", seed))

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mul_(20).sin_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x))


class Plain(nn.Module):
    """The same without a head that others may call alone."""

    def __init__(self, inner: Local) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def names(classes: int) -> tuple[str, ...]:
    return ("background", *(f"part{k}" for k in range(1, classes)))


def card(classes: int, preparation: Preparation | None = None, extent: Extent | None = None) -> Card:
    return Card(
        name="tiny-segmenter",
        kind="segmenter",
        architecture="segresnet-ds",
        arguments={"classes": classes, "filters": 2, "blocks": [1, 1, 1], "blocks_up": [1, 1], "depth": 2},
        preparation=preparation or native(),
        extent=extent or Extent("windows", (16, 32, 32), 0.5, "gaussian"),
        level="",
        vector="",
        weights="random",
        names=names(classes),
    )


def native() -> Preparation:
    return replace(
        PREPARATIONS["ct-fm-native"], resampling=replace(PREPARATIONS["ct-fm-native"].resampling, foreground=None)
    )


def resampled(spacing: tuple[float, float, float]) -> Preparation:
    base = PREPARATIONS["ct-fm-1.5mm"]
    return replace(
        base,
        name="tiny",
        resampling=replace(base.resampling, spacing=spacing),
        sizing=replace(base.sizing, multiple=(4, 4, 4)),
    )


def segmenter(
    classes: int = 7, preparation: Preparation | None = None, extent: Extent | None = None, features: int = 4
) -> Segmenter:
    return Segmenter.of(Local(classes, features), card(classes, preparation, extent))


def segresnet(classes: int = 5) -> Segmenter:
    made = card(classes)
    return Segmenter.of(initialise(SegResNetDS(**made.arguments), Key.of("seg")), made)


def sided() -> Segmenter:
    """One whose names tell left from right."""
    made = replace(card(3), names=("background", "kidney_left", "kidney_right"))
    return Segmenter.of(Local(3), made)
