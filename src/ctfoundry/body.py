"""Where the patient is in a scan: the body mask and its box."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64

BODY_HU = -300
"""Above this a voxel is body (or table); below it lung, bowel gas or outside air."""
STEP_MM = 4.0
"""Coarse enough to be fast, fine enough for a box; thin table tops fall apart from the body at this step."""


def body_mask(volume: Volume) -> tuple[Bool[np.ndarray, "d h w"], tuple[int, int, int]]:
    """The largest connected part above BODY_HU after an opening that cuts table and clothing off, on every k-th voxel.

    Returns the mask and the steps k along each axis. A scan without any such voxel is all body.
    """
    from scipy import ndimage

    d, h, w = (max(round(STEP_MM / s), 1) for s in volume.spacing)
    coarse = volume.voxels[::d, ::h, ::w] > BODY_HU
    opened = ndimage.binary_opening(coarse, iterations=1)
    parts, count = ndimage.label(opened if opened.any() else coarse)
    if count == 0:
        return np.ones_like(coarse), (d, h, w)
    sizes = np.bincount(parts.ravel())[1:]
    return parts == 1 + int(np.argmax(sizes)), (d, h, w)


def body_box(volume: Volume) -> Float64[np.ndarray, "2 3"]:
    """Lowest and highest world coordinates (mm, RAS+) of the body's voxels, rows low and high."""
    mask, step = body_mask(volume)
    points = volume.world(np.argwhere(mask) * np.array(step))
    return np.stack([points.min(0), points.max(0)])
