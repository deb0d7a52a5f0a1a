"""The two views of a crop, as CT-FM makes them (reference, section 5, steps 3 to 6), and the additions of its paper.

`draw_view` decides everything with a `Key`; `make_views` is a function of what was drawn. Crop, zoom and flip of an axis are one
small matrix (out x in), Gaussian smoothing of an axis another, so a view is three matrix products. The histogram
shift lies between them and is not linear, and a rotation mixes axes: where one of them is drawn smoothing takes three
products of its own, elsewhere it rides in the same matrices.

The order is: resized crop, flip, affine, histogram shift, smoothing, intensity scale, intensity shift. Where the paper's
additions stand is not published: they stand as in CT-FM's own training for segmentation (reference, section 6).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ctfoundry.errors import ContractError
from ctfoundry.geometry import Vec3
from ctfoundry.keys import Key
from ctfoundry.pretrain.view_operators import (
    affine_,
    axis_operators,
    bands,
    histogram_shift_,
    products,
    shaped,
)
from ctfoundry.resampling import smoothing_operators

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class ViewSettings:
    """Ranges and probabilities of a view. The defaults are what made the public weights.

    The last seven, off by default, are what the paper has beyond the code: "random affine transformations, and intensity scale
    variations", and the intensity shift that it names for segmentation. It gives no numbers for pretraining; the ranges are
    those of CT-FM's training for segmentation, with probabilities 0.2, 0.5 and 0.5 there.

    Attributes
    ----------
    scale : share of every axis' length that the zoomed box keeps, uniform between the two.
    flip : probability of a flip along axis 0 (superior-inferior).
    shift : probability of a histogram shift.
    control_points : of the histogram shift, ends included.
    smooth : probability of Gaussian smoothing.
    sigma : standard deviation of the smoothing in voxels, drawn for each axis.
    affine : probability of an affine transformation about the centre; air beyond the crop.
    affine_rotation : largest angle about the axes d, h, w, radians, either way. Axes count in voxels (`affine_matrices`).
    affine_scale : by how much at most the scale of each axis differs from 1, either way.
    intensity_scale : probability that intensities are multiplied by 1 + a factor.
    intensity_factor : range of that factor.
    intensity_shift : probability that an offset is added to the intensities, which lie in 0..1 before.
    intensity_offset : range of that offset.
    """

    scale: tuple[float, float] = (0.33, 1.0)
    flip: float = 0.5
    shift: float = 0.5
    control_points: int = 5
    smooth: float = 0.5
    sigma: tuple[float, float] = (0.25, 1.5)
    affine: float = 0.0
    affine_rotation: tuple[float, float, float] = (0.26, 0.26, 0.26)
    affine_scale: tuple[float, float, float] = (0.2, 0.2, 0.2)
    intensity_scale: float = 0.0
    intensity_factor: tuple[float, float] = (-0.3, 0.3)
    intensity_shift: float = 0.0
    intensity_offset: tuple[float, float] = (-0.1, 0.1)

    def __post_init__(self) -> None:
        for name in ("flip", "shift", "smooth", "affine", "intensity_scale", "intensity_shift"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, 0 to 1, not {getattr(self, name)}")
        for name in ("scale", "sigma", "intensity_factor", "intensity_offset"):
            low, high = getattr(self, name)
            if not -math.inf < low <= high < math.inf:
                raise ValueError(f"{name} is a range, the lower number first, not {low} to {high}")
        if self.scale[0] <= 0 or self.scale[1] > 1:
            raise ValueError(f"scale lies above 0 and at most at 1, not {self.scale}")
        if self.sigma[0] <= 0:
            raise ValueError(f"sigma is above 0, not {self.sigma}")
        if self.control_points < 2:
            raise ValueError(f"control_points holds the two ends: at least 2, not {self.control_points}")
        if not all(0 <= s < 1 for s in self.affine_scale):
            raise ValueError(f"affine_scale lies between 0 and 1, not {self.affine_scale}")
        if not all(0 <= r <= math.pi for r in self.affine_rotation):
            raise ValueError(f"affine_rotation lies between 0 and pi, not {self.affine_rotation}")

    @property
    def extended(self) -> bool:
        """Whether any of the paper's additions can be drawn."""
        return self.affine > 0 or self.intensity_scale > 0 or self.intensity_shift > 0


@dataclass(frozen=True)
class ViewDraw:
    """Every random decision of one view, in plain numbers.

    Attributes
    ----------
    scale : drawn share of the axes.
    start, size : the box of the crop that is zoomed to the whole crop's size, in voxels.
    flip : whether axis 0 is reversed.
    control : where the equally spaced control points 0..1 of the intensity range go, rising; None: no histogram shift.
    sigma : of the smoothing, voxels along d, h, w; None: no smoothing.
    affine_rotation : radians about d, h, w; None: no affine transformation.
    affine_scale : what offsets from the centre are multiplied by to find what they show, along d, h, w: above 1 shows more, smaller.
    intensity_factor : intensities are multiplied by 1 + this; None: not.
    intensity_offset : is added to the intensities; None: not.
    """

    scale: float
    start: Vec3
    size: Vec3
    flip: bool = False
    control: tuple[float, ...] | None = None
    sigma: tuple[float, float, float] | None = None
    affine_rotation: tuple[float, float, float] | None = None
    affine_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    intensity_factor: float | None = None
    intensity_offset: float | None = None


def draw_view(key: Key, settings: ViewSettings, crop_size: Vec3) -> ViewDraw:
    """Decide one view of a crop of `crop_size` voxels; the same key gives the same view.

    Turning a step on or off leaves all other decisions as they were.
    """
    inner = settings.control_points - 2
    u: Iterator[float] = iter(key.uniform(shape=10 + inner).tolist())  # a fixed number, whatever is decided

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(u)

    scale = between(*settings.scale)
    size = [math.ceil(scale * n) for n in crop_size]
    start = [int(next(u) * (n - s + 1)) for n, s in zip(crop_size, size, strict=True)]
    flip, shift, smooth = (next(u) < p for p in (settings.flip, settings.shift, settings.smooth))
    sigma = (between(*settings.sigma), between(*settings.sigma), between(*settings.sigma))
    control = [i / (inner + 1) for i in range(inner + 2)]
    for i in range(1, inner + 1):  # in order: the left neighbour has moved already, the right one has not
        control[i] = between(control[i - 1], control[i + 1])
    draw = ViewDraw(
        scale,
        (start[0], start[1], start[2]),
        (size[0], size[1], size[2]),
        flip,
        tuple(control) if shift else None,
        sigma if smooth else None,
    )
    return _extended(draw, key("additions"), settings) if settings.extended else draw


def _extended(draw: ViewDraw, key: Key, settings: ViewSettings) -> ViewDraw:
    """The draw with the paper's additions, from a key of their own."""
    u: list[float] = key.uniform(shape=11).tolist()
    turn, stretch = ([2 * v - 1 for v in part] for part in (u[3:6], u[6:9]))
    a, b, c = (r * v for r, v in zip(settings.affine_rotation, turn, strict=True))
    d, e, f = (1 + s * v for s, v in zip(settings.affine_scale, stretch, strict=True))
    factor, offset = (
        low + (high - low) * v
        for (low, high), v in zip((settings.intensity_factor, settings.intensity_offset), u[9:], strict=True)
    )
    drawn = replace(
        draw,
        intensity_factor=factor if u[1] < settings.intensity_scale else None,
        intensity_offset=offset if u[2] < settings.intensity_shift else None,
    )
    return replace(drawn, affine_rotation=(a, b, c), affine_scale=(d, e, f)) if u[0] < settings.affine else drawn


@torch.no_grad()
def make_views(
    crops: Float[Tensor, "n d h w"],
    draws: Sequence[ViewDraw],
    *,
    out: Float[Tensor, "n d h w"] | None = None,
) -> Float[Tensor, "n d h w"]:
    """One view of each crop, as drawn, in the order that stands at the head of this module.

    Parameters
    ----------
    crops : n crops, intensities scaled to 0..1. Two views of one crop are two rows.
    draws : what was drawn for each of them.
    out : where to write the views; fresh memory for a large batch costs as much time as half of the work.

    Returns
    -------
    float32 (float64 for float64 crops), each view of its crop's size. The numbers are those of MONAI's transforms given the same
    draws (tested to 1e-5): an affine transformation is a second interpolation, of the zoomed and flipped crop.
    """
    if crops.ndim != 4 or len(draws) != len(crops) or not crops.is_floating_point():
        raise ContractError(f"{len(draws)} draws for crops of shape {tuple(crops.shape)}, {crops.dtype}")
    d, h, w = crops.shape[1:]
    size = (d, h, w)
    device, dtype = crops.device, torch.float64 if crops.dtype == torch.float64 else torch.float32
    late = {i: draw.sigma for i, draw in enumerate(draws) if draw.sigma and (draw.control or draw.affine_rotation)}
    early = {i: draw.sigma for i, draw in enumerate(draws) if draw.sigma and i not in late}
    if out is None:
        out = torch.empty(crops.shape, dtype=dtype, device=device)
    elif out.shape != crops.shape or out.dtype != dtype or not out.is_contiguous():
        raise ContractError(f"out is a contiguous {dtype} tensor of shape {tuple(crops.shape)}, not {tuple(out.shape)}")
    with torch.autocast(device.type, enabled=False):
        zoom = list(axis_operators(draws, size, device=device, dtype=dtype))
        if early:  # nothing lies between: smoothing rides in the zoom's matrices
            ahead = smoothing_operators([*early.values()], size, device=device)
            for z, b in zip(zoom, ahead, strict=True):
                z[[*early]] = b.to(dtype) @ z[[*early]]
        blur = [b.to(dtype) for b in smoothing_operators([*late.values()], size, device=device)]
        groups = _groups(draws, device)
        work = out.new_empty(3, max(map(len, groups), default=0) * math.prod(size))
        zoom_bands, blur_bands = ([bands(m) for m in stacks] for stacks in (zoom, blur))
        place = {i: k for k, i in enumerate(late)}
        for index in groups:
            alone = len(index) == 1
            rows = slice(index[0], index[0] + 1) if alone else index
            x = out[rows] if alone else shaped(work[2], (len(index), *size))
            products(crops[rows].to(dtype), zoom, zoom_bands, index, work, x)
            chosen = [draws[i] for i in index]
            rotations = [draw.affine_rotation for draw in chosen if draw.affine_rotation]
            if rotations:
                affine_(x, rotations, [draw.affine_scale for draw in chosen], work if alone else None)
            control = [draw.control for draw in chosen if draw.control]
            if control:
                histogram_shift_(x, control, work)
            if index[0] in late:
                products(x, blur, blur_bands, [place[i] for i in index], work, x)
            _intensity(x, chosen)
            if not alone:
                out[rows] = x
    return out


def _intensity(x: Float[Tensor, "n d h w"], draws: Sequence[ViewDraw]) -> None:
    """Scale, then shift the intensities of each view, in place; what was not drawn costs nothing."""
    if any(draw.intensity_factor is not None for draw in draws):
        x.mul_(1 + _column(x, [draw.intensity_factor for draw in draws]))
    if any(draw.intensity_offset is not None for draw in draws):
        x.add_(_column(x, [draw.intensity_offset for draw in draws]))


def _column(x: Tensor, values: Sequence[float | None]) -> Float[Tensor, "n 1 1 1"]:
    """One number a view; 0 where none was drawn."""
    return torch.tensor([v or 0.0 for v in values], dtype=x.dtype, device=x.device)[:, None, None, None]


def _groups(draws: Sequence[ViewDraw], device: torch.device) -> list[list[int]]:
    """Views that are made together: one by one on the CPU, where a view's passes stay in the cache and it reads its own box
    alone; elsewhere all those that go through the same steps.
    """
    if device.type == "cpu":
        return [[i] for i in range(len(draws))]
    kinds: dict[tuple[bool, bool, bool], list[int]] = {}
    for i, draw in enumerate(draws):
        shifted, turned = draw.control is not None, draw.affine_rotation is not None
        kinds.setdefault((shifted, turned, (shifted or turned) and draw.sigma is not None), []).append(i)
    return list(kinds.values())
