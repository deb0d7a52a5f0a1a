"""Where the patient is in a scan: the body mask and its box."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64

BODY_HU = -300
"""Above this a voxel is body (or table); below it lung, bowel gas or outside air."""
STEP_MM = 2.0
"""Coarse enough to be fast, fine enough for a box; the sheets of a table are one or two voxels thick at this step."""


def largest_part(mask: Bool[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
    """The largest part of a mask (connected by faces) after an opening by one voxel, which cuts thin things off: table,
    cables, blankets. The mask itself where the opening leaves nothing."""
    from scipy import ndimage

    # repeated borders: a body cut by the field of view, or a scan of one slice, is not eaten from there
    opened = ndimage.binary_opening(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
    parts, count = ndimage.label(opened)
    if count == 0:
        return mask
    return np.asarray(parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:])))


def body_box(volume: Volume) -> Float64[np.ndarray, "2 3"]:
    """Lowest and highest world coordinates (mm, RAS+) of the body's voxel centres, rows low and high.

    The body is the largest part above BODY_HU, looked for on every k-th voxel, some 2 mm apart. A scan without any such voxel is
    all body.
    """
    step = [max(round(STEP_MM / s), 1) for s in volume.spacing]
    mask = largest_part(volume.voxels[:: step[0], :: step[1], :: step[2]] > BODY_HU)
    points = volume.world((np.argwhere(mask) if mask.any() else np.argwhere(~mask)) * np.array(step))
    return np.stack([points.min(0), points.max(0)])
