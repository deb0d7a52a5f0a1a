"""Prepared crops straight from a store: crop first, then one interpolation.

`prepare` resamples a whole scan; training wants a box of it. `plan_crop` says which few source voxels the box depends on and
gives the operators that turn them into it, so that a reader needs no arithmetic and the device does the work (`make_crop`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ctfoundry.geometry import Box
from ctfoundry.preparation import Placement, Resampling, kept_box, place
from ctfoundry.resampling import Taps, resample
from ctfoundry.store.errors import ForegroundError
from ctfoundry.store.sidecar import Entry
from ctfoundry.volume import AIR

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor


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


@dataclass(frozen=True)
class CropPlan:
    """One crop of a prepared scan: the box to read of the stored scan, and the operators that make the crop of it.

    An operator that is longer by one than what is read along its axis refers to a layer of air behind it (`make_crop`).
    """

    reads: Box
    operators: tuple[Taps, Taps, Taps]


def plan_crop(placed: Placement, box: Box) -> CropPlan:
    """How to get `box` of the resampled scan that lies as `placed` says; the box may reach beyond it.

    ``make_crop(torch.from_numpy(store.read(id, plan.reads)), plan.operators)`` equals `prepare` on the whole scan, before
    intensity and sizing, cropped there. Where the grids are equal the operators are the identity.
    """
    inner, beyond = [], []
    for (low, high), n in zip(box, placed.shape, strict=True):
        a, b = max(low, 0), min(high, n)
        if a >= b:
            return _air(box)
        inner.append((a, b))
        beyond.append((a - low, high - b))
    part: Box = (inner[0], inner[1], inner[2])
    reads = placed.reads(part)
    d, h, w = placed.operators(part, reads)
    return CropPlan(reads, (_reaching(d, *beyond[0]), _reaching(h, *beyond[1]), _reaching(w, *beyond[2])))


def make_crop(voxels: Shaped[Tensor, "d h w"], operators: tuple[Taps, Taps, Taps]) -> Float[Tensor, "d h w"]:
    """The crop, float32 HU, from what was read for it; what lies outside the resampled scan is -1024, as if padded."""
    missing = [op.length - n for op, n in zip(operators, voxels.shape, strict=True)]
    if any(missing):
        # One layer of air at the end of an axis serves all rows beyond the scan: they copy it, and are air along all axes.
        d, h, w = missing
        voxels = torch.nn.functional.pad(voxels, (0, w, 0, h, 0, d), value=AIR)
    return resample(voxels, operators).float()


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


def _air(box: Box) -> CropPlan:
    """The plan of a crop that lies wholly outside: one voxel beyond the scan, which is air, serves all."""
    made = [
        Taps(np.zeros((1, high - low), np.int64), np.ones((1, high - low), np.float32), np.zeros(high - low, bool), 1)
        for low, high in box
    ]
    return CropPlan(((-1, 0), (-1, 0), (-1, 0)), (made[0], made[1], made[2]))
