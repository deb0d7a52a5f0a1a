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
    """The function that makes these views, into `out` where given: SpatialCrop, Resize, Flip, RandHistogramShift and GaussianSmooth as drawn.

    The transforms are made beforehand, the random ones are given their parameters and draw nothing, and tensors carry no metadata
    (the caller turns `monai.data.set_track_meta` off): what is left is the work itself.
    """
    from monai.transforms import Flip, GaussianSmooth, RandHistogramShift, Resize, SpatialCrop

    resize, flip = Resize(spatial_size=size, mode="trilinear", align_corners=False), Flip(spatial_axis=0)
    chains: list[list[Callable[[Any], Any]]] = []
    for draw in draws:
        end = [a + b for a, b in zip(draw.start, draw.size, strict=True)]
        chain: list[Callable[[Any], Any]] = [SpatialCrop(roi_start=draw.start, roi_end=end), resize]
        if draw.flip:
            chain.append(flip)
        if draw.control:
            chain.append(_given(RandHistogramShift(num_control_points=len(draw.control), prob=1.0), draw.control))
        if draw.sigma:
            chain.append(GaussianSmooth(sigma=draw.sigma, approx="erf"))
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
    shift._do_transform = True
    shift.reference_control_points = np.linspace(0, 1, len(control))
    shift.floating_control_points = np.array(control)
    return lambda x: shift(x, randomize=False)
