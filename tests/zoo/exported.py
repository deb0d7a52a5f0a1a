"""A narrow encoder and a narrow segmenter whose labels differ from place to place, for the exports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

import worlds
from ctfoundry import zoo
from ctfoundry.encoder import Card, Encoder
from ctfoundry.infer.passes import Extent
from ctfoundry.preparation import PREPARATIONS, prepare
from ctfoundry.segmenter import Segmenter
from ctfoundry.volume import Volume
from zoo.sources import worn

NAMES = ("background", "lung", "liver", "bone")


def body(shape: tuple[int, int, int] = (28, 44, 40), seed: int = 0) -> Volume:
    """A body without a scanner's fill: values under -1024 HU would be no measurement for us, and air for other tools."""
    made = worlds.body(seed, shape, (6, 3, 3))
    return made.with_voxels(np.maximum(made.voxels, -1024))


def encoder(spacing: tuple[float, float, float] = (6.0, 2.0, 2.0)) -> Encoder:
    made = worlds.tiny(spacing=spacing)
    card = replace(made.card, weights="trained", licence="CC BY 4.0 of a test", origin="a test")
    return Encoder.of(worn(made.network), card)


def segmenter(
    volume: Volume,
    spacing: tuple[float, float, float] = (5.0, 2.5, 2.5),
    blocks: int = 4,
    window: tuple[int, int, int] = (16, 32, 32),
) -> Segmenter:
    """Its head is set so that every class is the largest somewhere in `volume`."""
    base, multiple = PREPARATIONS["ct-fm-1.5mm"], 2 ** (blocks - 1)
    preparation = replace(
        base,
        name="tiny",
        resampling=replace(base.resampling, spacing=spacing),
        sizing=replace(base.sizing, multiple=(multiple,) * 3),
    )
    card = Card(
        name="tiny-segmenter",
        kind="segmenter",
        architecture="segresnet-ds",
        arguments={
            "classes": 4,
            "in_channels": 1,
            "filters": 2,
            "blocks": [1] * blocks,
            "blocks_up": [1] * (blocks - 1),
            "depth": 2,
        },
        preparation=preparation,
        extent=Extent("windows", window, 0.625, "gaussian"),
        level="",
        vector="",
        weights="trained",
        licence="Apache-2.0",
        names=NAMES,
    )
    made = Segmenter.of(worn(zoo.build(card)), card)
    x = prepare(preparation, volume).x[None]
    with torch.no_grad():
        found = made.network.trunk(x).flatten(2)[0].T
        head = made.network.head
        directions = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]])
        head.weight.copy_((directions / found.std(0)).reshape(head.weight.shape))
        head.bias.copy_(-(head.weight.flatten(1) @ found.median(0).values))
    return made
