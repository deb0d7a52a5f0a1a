"""Where the cells of a network's feature maps lie."""

from __future__ import annotations

from dataclasses import dataclass

from ctfoundry.geometry import Vec3


@dataclass(frozen=True)
class Level:
    """One feature map of a network: cell k is centred on input voxel ``stride * k + offset``.

    A SegResNet level of stride s lies on ``s * k`` (offset 0), a ViT patch on ``p * k + (p - 1) / 2``.

    >>> Level("stage4", 512, (16, 16, 16)).centre((16, 0, 3))
    (256.0, 0.0, 48.0)
    """

    name: str
    channels: int
    stride: Vec3
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def centre(self, cell: tuple[float, float, float]) -> tuple[float, float, float]:
        """The input voxel, not rounded, on which a cell is centred."""
        d, h, w = (s * c + o for s, c, o in zip(self.stride, cell, self.offset, strict=True))
        return d, h, w
