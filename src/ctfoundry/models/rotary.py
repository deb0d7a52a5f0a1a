"""Rotary positions over two or three axes, as FlexiCT uses them (reference, 1.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import nn

from ctfoundry.errors import ContractError
from ctfoundry.keys import Key
from ctfoundry.settings import nearest

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


def draw_rotary(key: Key, axes: int, *, shift: float = 0.0, jitter: float = 1.0, rescale: float = 1.0) -> RotaryDraw:
    """What training draws for one pass (reference, 1.2): a uniform shift in ±`shift` and a factor in 1/`jitter`..`jitter` for each
    axis, and one factor in 1/`rescale`..`rescale` for all; factors uniform in their logarithm. Pretraining uses ``rescale=2`` alone.
    """
    if shift < 0 or jitter < 1 or rescale < 1:
        raise ContractError(f"a shift is at least 0 and factors at least 1, not {shift}, {jitter} and {rescale}")
    wide, common = math.log(jitter), math.log(rescale)
    moved = key("shift").uniform(-shift, shift, (axes,))
    factors = np.exp(key("jitter").uniform(-wide, wide, (axes,)) + key("rescale").uniform(-common, common))
    return RotaryDraw(tuple(map(float, moved)), tuple(map(float, factors)))


def periods(
    axes: int, head_width: int, dtype: torch.dtype, span: tuple[float, float] | None = None
) -> Float[Tensor, "j"]:
    """``100 ** (2 j / 36)`` for head width 72; the divisor is half the head's width for 2 and for 3 axes.

    With a `span`, evenly spaced in their logarithm from its first to its second number instead. Computed in `dtype` throughout: in
    bfloat16 the exponents are rounded too, as in the published tables.
    """
    count = head_width // (2 * axes)
    if span is not None:
        low, high = span
        if not 0 < low <= high:
            raise ContractError(f"periods span from a number above 0 to one not below it, not {span}")
        return torch.as_tensor(low * (high / low) ** torch.linspace(0, 1, count, dtype=dtype))
    j = torch.arange(count, dtype=dtype)
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
    span : shortest and longest period (`periods`); None: the published ones.
    """

    def __init__(
        self,
        axes: int,
        head_width: int,
        dtype: torch.dtype = torch.float32,
        mode: Mode = "separate",
        span: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if axes not in (2, 3) or head_width % (2 * axes):
            raise ContractError(f"{axes} axes do not share a head of width {head_width}")
        if mode not in get_args(Mode):
            raise ContractError(f"no mode of rotary positions is called {mode!r}; {nearest(mode, get_args(Mode))}")
        self.axes, self.mode = axes, mode
        self.periods: Tensor
        self.register_buffer("periods", periods(axes, head_width, dtype, span))

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
