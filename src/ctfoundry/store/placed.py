"""Prepared crops straight from a store: crop first, then one interpolation.

`prepare` resamples a whole scan; training wants a box of it. `read_placed` reads the few source voxels that the box depends
on and gives the operators that turn them into it, so that they run on the device, over a batch, fused with a view's own
zoom and flip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.geometry import Box
from ctfoundry.preparation import Placement, Resampling, kept_box, place
from ctfoundry.resampling import Taps
from ctfoundry.store.errors import ForegroundError
from ctfoundry.store.sidecar import Entry
from ctfoundry.store.store import Store
from ctfoundry.volume import AIR

if TYPE_CHECKING:
    from jaxtyping import Int16


def placement(entry: Entry, settings: Resampling) -> Placement:
    """Where the resampled voxels of a stored scan lie: that of `prepare` on the scan, without reading a voxel.

    Raises ForegroundError for a foreground threshold other than 0 and -1024 HU, whose boxes the store knows, and
    ContractError for an orientation other than SPL.
    """
    found = None
    if settings.foreground is not None:
        known = {0.0: entry.box_soft, float(AIR): entry.box_body}
        if settings.foreground.above not in known:
            raise ForegroundError(
                f"the store knows the boxes of HU > 0 and HU > {AIR}, not of HU > {settings.foreground.above:g}",
                where=entry.id,
                do="prepare the whole scan instead",
            )
        found = known[settings.foreground.above]
    return place(settings, entry.grid, kept_box(found, settings.foreground, entry.shape))


def read_placed(
    store: Store, entry: Entry, settings: Resampling, box: Box
) -> tuple[Int16[np.ndarray, "d h w"], tuple[Taps, Taps, Taps]]:
    """Source voxels (int16 HU) and one operator for each axis: together they give `box` of the resampled scan.

    ``resampling.resample(torch.from_numpy(voxels).float(), operators)`` has the shape of `box` and equals `prepare` on the
    whole scan, before intensity and sizing, cropped there. What lies outside ``placement(entry, settings).shape`` is
    -1024 HU, as if padded. Where the grids are equal the operators are the identity and `voxels` is the crop.
    """
    placed = placement(entry, settings)
    inner, beyond = [], []
    for (low, high), n in zip(box, placed.shape, strict=True):
        a, b = max(low, 0), min(high, n)
        inner.append((a, b) if a < b else (0, 0))
        beyond.append((a - low, high - b) if a < b else (0, high - low))
    if any(low == high for low, high in inner):
        return _air(box)
    part: Box = (inner[0], inner[1], inner[2])
    reads = placed.reads(part)
    voxels = store.read(entry.id, reads)
    d, h, w = placed.operators(part, reads)
    # One layer of air at the end of an axis serves all rows beyond the scan: they copy it, and are air along all axes.
    voxels = np.pad(voxels, [(0, int(sum(b) > 0)) for b in beyond], constant_values=AIR) if np.any(beyond) else voxels
    return voxels, (_reaching(d, *beyond[0]), _reaching(h, *beyond[1]), _reaching(w, *beyond[2]))


def _reaching(inner: Taps, before: int, after: int) -> Taps:
    """The operator with `before` and `after` rows more, which copy an input appended after the last."""
    if before == after == 0:
        return inner
    sides = ((0, 0), (before, after))
    index = np.pad(inner.index, sides, constant_values=inner.length)
    weight = np.pad(inner.weight, sides)
    weight[0, :before] = 1
    weight[0, weight.shape[1] - after :] = 1
    return Taps(index, weight, np.pad(inner.inside, (before, after)), inner.length + 1)


def _air(box: Box) -> tuple[Int16[np.ndarray, "d h w"], tuple[Taps, Taps, Taps]]:
    made = [
        Taps(np.zeros((1, high - low), np.int64), np.ones((1, high - low), np.float32), np.zeros(high - low, bool), 1)
        for low, high in box
    ]
    return np.full((1, 1, 1), AIR, dtype=np.int16), (made[0], made[1], made[2])
