"""Where the cells of a network's feature maps lie."""

from __future__ import annotations

from dataclasses import dataclass

from ctfoundry.geometry import Vec3


@dataclass(frozen=True)
class Level:
    """One feature map of a network: cell k is centred on input voxel ``stride * k + offset``.

    A SegResNet level of stride s lies on ``s * k`` (offset 0), a ViT patch on ``p * k + (p - 1) / 2``.
    """

    name: str
    channels: int
    stride: Vec3
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
