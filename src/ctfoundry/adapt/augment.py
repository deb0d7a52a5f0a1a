"""Changes to training crops: drawn by counter keys, applied on the device (reference, section 6).

Order: affine, smoothing, intensity scale, intensity shift, noise. The numbers are those of MONAI's transforms given the same draws,
but for four things:

- A crop that is turned or stretched is cut larger before (`reach`), so that it shows the scan beyond its own box. The reference
  turns the crop alone and fills its corners with zeros.
- Beyond the scan the input is the case's lowest value, which is air, and labels are IGNORE. Zeros would be air for CT-FM alone; and
  the reference calls those voxels background, though nobody knows what lies there, and no prediction there is ever used.
- Turns are those of the patient: on a grid of 6x2x2 mm a rotation is one in millimetres. On equal spacings nothing differs.
- Smoothing counts what lies in the crop alone, where the reference lets zeros in at its faces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from ctfoundry.adapt.recipe import Augmentation
from ctfoundry.geometry import Vec3
from ctfoundry.keys import Key
from ctfoundry.resampling import affine_matrices, smoothing_operators

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from torch import Tensor

    Three = tuple[float, float, float]
    Matrix = tuple[Three, Three, Three]

MARGIN = 1
"""Voxels beyond the farthest place that is read, for the interpolation's second neighbour."""


@dataclass(frozen=True)
class Changes:
    """What was drawn for one crop; the defaults change nothing.

    Attributes
    ----------
    matrix : the offset from the centre (voxels d, h, w) that is read for an offset of the crop's own; None: no affine change.
    sigma : of the smoothing, voxels along each axis.
    gain, offset : ``x * gain + offset``.
    deviation : of the noise; `noise` : the counter that it comes from.
    """

    matrix: Matrix | None = None
    sigma: Three | None = None
    gain: float = 1.0
    offset: float = 0.0
    deviation: float = 0.0
    noise: int = 0


def draw(key: Key, settings: Augmentation, spacing: Three = (1.0, 1.0, 1.0)) -> Changes:
    """Draw the changes to one crop. Each decision has a place of its own below `key`: switching one off moves no other.

    spacing : millimetres of a voxel along d, h, w, in which rotations are rotations.
    """

    def happens(name: str) -> bool:
        return bool(key(name).uniform() < getattr(settings, name))

    def three(name: str, low: float, high: float) -> Three:
        a, b, c = key(name, "values").uniform(low, high, 3).tolist()
        return a, b, c

    rotation, zoom = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    turned = happens("affine")
    if turned:
        rotation = three("rotation", -settings.rotation, settings.rotation)
        zoom = three("zoom", 1 - settings.zoom, 1 + settings.zoom)
    flips = (key("flip").uniform(shape=3) < settings.flip).tolist()
    return Changes(
        matrix=_matrix(rotation, zoom, flips, spacing) if turned or any(flips) else None,
        sigma=three("smooth", *settings.sigma) if happens("smooth") else None,
        gain=1 + float(key("scale", "value").uniform(-settings.factor, settings.factor)) if happens("scale") else 1.0,
        offset=float(key("shift", "value").uniform(-settings.offset, settings.offset)) if happens("shift") else 0.0,
        deviation=float(key("noise", "value").uniform(0, settings.deviation)) if happens("noise") else 0.0,
        noise=key("noise", "voxels").seed(),
    )


def _matrix(rotation: Three, zoom: Three, flips: Sequence[bool], spacing: Three) -> Matrix:
    in_mm = affine_matrices([rotation], [zoom])[0]
    mm = torch.tensor(spacing, dtype=torch.float64)
    signs = torch.tensor([-1.0 if flip else 1.0 for flip in flips], dtype=torch.float64)
    a, b, c = (in_mm * mm / mm[:, None] * signs).tolist()
    return tuple(a), tuple(b), tuple(c)


def reach(matrix: Matrix | None, size: Vec3) -> Vec3:
    """Voxels of the box about the same centre that `warp` reads for a crop of `size`; it is `size` where nothing is turned.

    Along each axis it is larger by an even number, so that both boxes have their centre at the same place.
    """
    if matrix is None:
        return size
    grown = []
    for row, n in zip(matrix, size, strict=True):
        far = sum(abs(m) * (k - 1) / 2 for m, k in zip(row, size, strict=True))
        grown.append(n + 2 * max(0, math.ceil(far - (n - 1) / 2 - 1e-9) + MARGIN))
    return grown[0], grown[1], grown[2]


def warp(
    x: Shaped[Tensor, "c d h w"], matrix: Matrix, size: Vec3, mode: Literal["linear", "nearest"] = "linear"
) -> Shaped[Tensor, "c *size"]:
    """Read a crop of `size` from a box about the same centre, as `matrix` says; beyond the box its edge counts.

    Labels (any integer type below 2**24) are read with ``nearest``. The numbers are those of MONAI's Affine with padding "border".
    """
    rows = torch.tensor(matrix, dtype=torch.float64)
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size]
    dtype = x.dtype if x.is_floating_point() else torch.float32
    grid = torch.empty(1, *size, 3, dtype=dtype, device=x.device)
    for axis, n in enumerate(x.shape[1:]):
        # in grid_sample's numbers an axis runs from -1 to 1, edge to edge, and the last axis comes first
        d, h, w = ((along * rows[axis, k] * (2 / n)).to(x.device, dtype) for k, along in enumerate(axes))
        grid[0, ..., 2 - axis] = (d[:, None] + h)[:, :, None] + w
    name = "bilinear" if mode == "linear" else "nearest"
    out = F.grid_sample(x[None].to(dtype), grid, name, padding_mode="border", align_corners=False)[0]
    return out.to(x.dtype)


def intensities(x: Shaped[Tensor, "c d h w"], changes: Changes) -> Shaped[Tensor, "c d h w"]:
    """Smoothing, gain, offset and noise, on the device of `x`.

    Noise comes from a generator that starts at the counter: the same on every run of one kind of device, not between kinds.
    """
    if changes.sigma is not None:
        for axis, stack in enumerate(smoothing_operators([changes.sigma], x.shape[1:], device=x.device)):
            kernel = stack[0] / stack[0].sum(1, keepdim=True)
            x = torch.tensordot(x, kernel.to(x), dims=([axis + 1], [1])).movedim(-1, axis + 1)
    if changes.gain != 1 or changes.offset:
        x = x * changes.gain + changes.offset
    if changes.deviation:
        counter = torch.Generator(x.device).manual_seed(changes.noise)
        x = x + changes.deviation * torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=counter)
    return x.contiguous()


def changed(x: Shaped[Tensor, "c d h w"], changes: Changes, air: float) -> Shaped[Tensor, "c d h w"]:
    """All changes to an input that is the whole of what there is, such as a scan of a fixed size: `air` lies beyond it."""
    if changes.matrix is not None:
        size = (x.shape[1], x.shape[2], x.shape[3])
        grown = reach(changes.matrix, size)
        edges = [(n - k) // 2 for n, k in zip(reversed(grown), reversed(size), strict=True)]
        x = warp(F.pad(x, [n for edge in edges for n in (edge, edge)], value=air), changes.matrix, size)
    return intensities(x, changes)
