"""What lies on the patient and has no label: a blanket, or clothes with a zip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage as ndi

from ctfoundry.keys import Key
from ctfoundry.phantom.spec import Acquisition
from ctfoundry.phantom.texture import sample

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8


def add_cover(
    hu: Float32[np.ndarray, "d h w"], labels: UInt8[np.ndarray, "d h w"], z: np.ndarray, scan: Acquisition
) -> None:
    """One thin layer over the body's upper surface, in place, only where there is air.

    Wool and cotton hold -950 to -800 HU. The layer spans the hollows of the surface by 6 cm, lifts off in folds of up to
    12 mm (a blanket) or 5 mm (clothes) and ends 2 cm beside the body. A zip is a row of metal teeth in the middle of clothes.
    """
    if scan.cover == "none":
        return
    key, (depth, height, width) = Key.of("phantom", scan.seed, "cover"), labels.shape
    pixel, step = scan.pixel_mm, abs(float(z[1] - z[0])) if depth > 1 else 1.0
    seen = labels > 0
    covered = seen.any(axis=1)
    if not covered.any():
        return
    # Row of the body's front surface (row 0 is anterior), draped: the most anterior one within reach, smoothed.
    top = np.where(covered, seen.argmax(axis=1), height).astype(np.float32)
    reach = (max(int(30 / step), 1), max(int(30 / pixel), 1))
    drape = ndi.uniform_filter(ndi.minimum_filter(top, (2 * reach[0] + 1, 2 * reach[1] + 1)), reach)
    drape = np.minimum(drape, top)
    margin = max(int(20 / pixel), 1)
    allowed = ndi.binary_dilation(covered, np.ones((1, 2 * margin + 1), bool)) & (drape < height - 1)
    lift = 12.0 if scan.cover == "blanket" else 5.0
    zz, xx = np.meshgrid(np.arange(depth) * step, np.arange(width) * pixel, indexing="ij")
    folds = ndi.gaussian_filter(sample(key("folds"), 0.4 * zz, np.zeros_like(xx), xx, blob_mm=28), (1, 4 / pixel))
    row = drape - (1.5 + lift * np.clip(0.5 + 0.5 * folds, 0, 1)) / pixel
    thick = float(key("thick").uniform(1.5, 4.0) if scan.cover == "blanket" else key("thick").uniform(0.8, 1.8)) / pixel
    material = -float(key("material").uniform(800, 950))
    where = np.argwhere(allowed)
    d, w = where[:, 0], where[:, 1]
    first = np.floor(row[d, w] - thick).astype(int)
    for k in range(int(np.ceil(thick)) + 2):
        line = first + k
        share = np.clip(np.minimum(line + 0.5, row[d, w]) - np.maximum(line - 0.5, row[d, w] - thick), 0, 1)
        _mix(hu, labels, d, line, w, share, material)
    if scan.cover == "clothes" and float(key("zip").uniform()) < 0.6:
        middle = int(np.clip((width - 1) / 2 + scan.centre_mm[0] / pixel, 0, width - 1))
        teeth = np.flatnonzero(allowed[:, middle] & (np.arange(depth) * step % 4 < 2))
        rows = np.rint(row[teeth, middle] - thick / 2).astype(int)
        for side in (0, 1):
            column = np.full(len(teeth), min(middle + side, width - 1))
            _mix(hu, labels, teeth, rows, column, np.full(len(teeth), min(9 / pixel**2, 1.0)), 2200.0)


def _mix(
    hu: np.ndarray, labels: np.ndarray, d: np.ndarray, h: np.ndarray, w: np.ndarray, share: np.ndarray, value: float
) -> None:
    """Put a material into voxels of air by share."""
    free = (h >= 0) & (h < hu.shape[1])
    d, h, w, share = d[free], h[free], w[free], share[free]
    share = np.where(labels[d, h, w] == 0, share, 0)
    hu[d, h, w] += (share * (value - hu[d, h, w])).astype(np.float32)
