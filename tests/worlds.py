"""Small volumes and encoders that several tests use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ctfoundry import zoo
from ctfoundry.encoder import Card, Encoder
from ctfoundry.geometry import make_affine
from ctfoundry.infer.passes import Extent
from ctfoundry.keys import Key
from ctfoundry.volume import Volume


def body(
    seed: int = 0, shape: tuple[int, int, int] = (24, 64, 72), spacing: tuple[float, ...] = (6, 2, 2), code: str = "SPL"
) -> Volume:
    """An ellipsoid of soft tissue with three bright balls and noise, in air."""
    key = Key.of("body", seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    hu = np.where((grid**2).sum(0) < 0.8, 40.0, -1000.0)
    for i in range(3):
        centre = key("ball", i).uniform(-0.5, 0.5, (3, 1, 1, 1))
        hu[((grid - centre) ** 2).sum(0) < 0.04] = 300.0 + 200 * i
    hu += 20 * key("noise").normal(shape)
    return Volume(np.round(hu).astype(np.int16), make_affine(spacing, code, (10.0, -20.0, 30.0)))


def tiny(
    name: str = "tiny",
    *,
    filters: int = 2,
    spacing: tuple[float, float, float] = (6.0, 2.0, 2.0),
    extent: Extent | None = None,
    seed: int = 0,
) -> Encoder:
    """A narrow SegResNet with random weights."""
    card = zoo.CARDS["ct-fm-tiny"]
    resampling = replace(card.preparation.resampling, spacing=spacing)
    made: Card = replace(
        card,
        name=name,
        arguments={"in_channels": 1, "filters": filters, "blocks": [1, 1, 1, 1, 1]},
        preparation=replace(card.preparation, resampling=resampling),
        extent=extent or card.extent,
        seed=seed,
    )
    return Encoder.of(zoo.build(made), made)
