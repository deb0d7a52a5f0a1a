"""Views by MONAI's transforms, given what was drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry.geometry import Vec3
from ctfoundry.pretrain.views import ViewDraw

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def monai_views(
    draws: Sequence[ViewDraw], size: Vec3, out: Float[Tensor, "n d h w"] | None = None
) -> Callable[[Float[Tensor, "n d h w"]], Float[Tensor, "n d h w"]]:
    """The function that makes these views, into `out` where given: SpatialCrop, Resize, Flip, RandAffine, RandHistogramShift,
    GaussianSmooth, RandScaleIntensity and RandShiftIntensity as drawn.

    The transforms are made beforehand, the random ones are given their parameters and draw nothing, and tensors carry no metadata
    (the caller turns `monai.data.set_track_meta` off): what is left is the work itself.
    """
    from monai.transforms import (
        Flip,
        GaussianSmooth,
        RandAffine,
        RandHistogramShift,
        RandScaleIntensity,
        RandShiftIntensity,
        Resize,
        SpatialCrop,
    )

    resize, flip = Resize(spatial_size=size, mode="trilinear", align_corners=False), Flip(spatial_axis=0)
    affine = RandAffine(prob=1.0, spatial_size=size, mode="bilinear", padding_mode="zeros", cache_grid=True)
    chains: list[list[Callable[[Any], Any]]] = []
    for draw in draws:
        end = [a + b for a, b in zip(draw.start, draw.size, strict=True)]
        chain: list[Callable[[Any], Any]] = [SpatialCrop(roi_start=draw.start, roi_end=end), resize]
        if draw.flip:
            chain.append(flip)
        if draw.affine_rotation:
            chain.append(_turned(affine, draw))
        if draw.control:
            chain.append(_given(RandHistogramShift(num_control_points=len(draw.control), prob=1.0), draw.control))
        if draw.sigma:
            chain.append(GaussianSmooth(sigma=draw.sigma, approx="erf"))
        if draw.intensity_factor is not None:
            scaled = RandScaleIntensity(0.0, prob=1.0, dtype=None)
            scaled.factor = draw.intensity_factor
            chain.append(_fixed(scaled))
        if draw.intensity_offset is not None:
            shifted = RandShiftIntensity(0.0, prob=1.0)
            shifted._offset = draw.intensity_offset
            chain.append(_fixed(shifted))
        chains.append(chain)

    def make(crops: Tensor) -> Tensor:
        views = []
        for crop, chain in zip(crops, chains, strict=True):
            x = crop[None]
            for transform in chain:
                x = transform(x)
            views.append(x[0])
        return torch.stack(views, out=out)

    return make


def _given(shift: Any, control: Sequence[float]) -> Callable[[Any], Any]:
    shift.reference_control_points = np.linspace(0, 1, len(control))
    shift.floating_control_points = np.array(control)
    return _fixed(shift)


def _turned(affine: Any, draw: ViewDraw) -> Callable[[Any], Any]:
    """One transform, and so one identity grid, serves all views: it is told what was drawn before each."""

    def turn(x: Any) -> Any:
        affine.rand_affine_grid.rotate_params = draw.affine_rotation
        affine.rand_affine_grid.scale_params = draw.affine_scale
        return fixed(x)

    fixed = _fixed(affine)
    return turn


def _fixed(transform: Any) -> Callable[[Any], Any]:
    """A random transform that is applied for certain and draws nothing more."""
    transform._do_transform = True
    return lambda x: transform(x, randomize=False)
