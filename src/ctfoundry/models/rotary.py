"""Rotary positions over two or three axes, as FlexiCT uses them (reference, 1.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Mode = Literal["separate", "max", "min"]


@dataclass(frozen=True)
class RotaryDraw:
    """How a training step moves the coordinates of one forward pass; drawn outside, so that it can be drawn again.

    Attributes
    ----------
    shift : added to each axis' coordinates.
    factor : multiplies each axis' coordinates (jitter times the rescaling common to all axes).
    """

    shift: tuple[float, ...]
    factor: tuple[float, ...]


def periods(axes: int, head_width: int, dtype: torch.dtype) -> Float[Tensor, "j"]:
    """``100 ** (2 j / 36)`` for head width 72; the divisor is half the head's width for 2 and for 3 axes.

    Computed in `dtype` throughout: in bfloat16 the exponents are rounded too, as in the published tables.
    """
    j = torch.arange(head_width // (2 * axes), dtype=dtype)
    return torch.as_tensor(100.0 ** (2 * j / (head_width // 2)))


class Rotary(nn.Module):
    """The tables of sine and cosine for a grid of patches.

    Parameters
    ----------
    axes : 2 (rows, columns) or 3 (slices, rows, columns).
    head_width : of an attention head; a multiple of twice the axes.
    dtype : of periods, coordinates, angles and tables. The published weights were trained with bfloat16 throughout, which
        moves a normalised CLS token by up to 0.02 against float32: to get their numbers it must be kept.
    mode : what a coordinate of -1..1 spans: every axis its own length, or the longest or shortest for all.
    """

    def __init__(self, axes: int, head_width: int, dtype: torch.dtype = torch.float32, mode: Mode = "separate") -> None:
        super().__init__()
        if axes not in (2, 3) or head_width % (2 * axes):
            raise ValueError(f"{axes} axes do not share a head of width {head_width}")
        self.axes, self.mode = axes, mode
        self.periods: Tensor
        self.register_buffer("periods", periods(axes, head_width, dtype))

    @torch.no_grad()
    def forward(
        self, grid: Sequence[int], draw: RotaryDraw | None = None
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        """(sin, cos) for the patches of `grid` in row-major order, each as wide as a head."""
        period = self.periods
        length = {"separate": None, "max": max(grid), "min": min(grid)}[self.mode]
        axes = []
        for count in grid:
            at = torch.arange(0.5, count, dtype=period.dtype, device=period.device) / (length or count)
            axes.append(2.0 * at - 1.0)
        if draw is not None:
            axes = [(at + s) * f for at, s, f in zip(axes, draw.shift, draw.factor, strict=True)]
        coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)  # n a
        angles = 2 * math.pi * coordinates[:, :, None] / period  # n a j
        angles = angles.flatten(1).tile(2)  # n k
        return angles.sin(), angles.cos()


def rotate(
    x: Float[Tensor, "b heads t k"], sin: Float[Tensor, "n k"], cos: Float[Tensor, "n k"]
) -> Float[Tensor, "b heads t k"]:
    """Queries or keys with their last n tokens turned; all of them pass through the tables' type, as published."""
    kept = x.dtype
    x = x.to(sin.dtype)
    prefix, patches = x.split([x.shape[2] - len(sin), len(sin)], dim=2)
    u, v = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-v, u], dim=-1) * sin
    return torch.cat([prefix, turned], dim=2).to(kept)
