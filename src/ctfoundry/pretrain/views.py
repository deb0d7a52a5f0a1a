"""The two views of a crop, as CT-FM makes them (reference, section 5, steps 3 to 6).

`draw_view` decides everything with a `Key`; `make_views` is a function of what was drawn. Crop, zoom and flip of an axis are one
small matrix (out x in), Gaussian smoothing of an axis another, so a view is three matrix products. The histogram
shift lies between them and is not linear: where it is drawn smoothing takes three products of its own, elsewhere it
rides in the same matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ctfoundry.errors import ContractError
from ctfoundry.geometry import Vec3
from ctfoundry.keys import Key

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Operators = tuple[Float[Tensor, "n od id"], Float[Tensor, "n oh ih"], Float[Tensor, "n ow iw"]]
    Band = tuple[int, int, int, int]  # rows from, to; inputs from, to
    Before = tuple[Float[Tensor, "*n od id"], Float[Tensor, "*n oh ih"], Float[Tensor, "*n ow iw"]]

BLOCK = 16
"""Rows of one band: fewer leave out more zeros, more multiply faster."""
TRUNCATED = 4.0
"""Smoothing kernels end at this many sigmas, as MONAI's do."""


@dataclass(frozen=True)
class ViewSettings:
    """Ranges and probabilities of a view; the defaults are the published ones.

    Attributes
    ----------
    scale : share of every axis' length that the zoomed box keeps, uniform between the two.
    flip : probability of a flip along axis 0 (superior-inferior).
    shift : probability of a histogram shift.
    control_points : of the histogram shift, ends included.
    smooth : probability of Gaussian smoothing.
    sigma : standard deviation of the smoothing in voxels, drawn for each axis.
    """

    scale: tuple[float, float] = (0.33, 1.0)
    flip: float = 0.5
    shift: float = 0.5
    control_points: int = 5
    smooth: float = 0.5
    sigma: tuple[float, float] = (0.25, 1.5)


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
    """

    scale: float
    start: Vec3
    size: Vec3
    flip: bool = False
    control: tuple[float, ...] | None = None
    sigma: tuple[float, float, float] | None = None


def draw_view(key: Key, settings: ViewSettings, crop_size: Vec3) -> ViewDraw:
    """Decide one view of a crop of `crop_size` voxels; the same key gives the same view."""
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
    return ViewDraw(
        scale,
        (start[0], start[1], start[2]),
        (size[0], size[1], size[2]),
        flip,
        tuple(control) if shift else None,
        sigma if smooth else None,
    )


def axis_operators(
    draws: Sequence[ViewDraw],
    size: Vec3,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Operators:
    """Crop, zoom and flip of n views of crops of `size`: one stack (n, size, size) an axis.

    The zoom is torch's linear `interpolate` (align_corners off, no anti-aliasing): output k reads ``start + (k + 1/2) *
    size / n - 1/2``, and the edge of its box where that lies beyond it.
    """
    stacks = []
    for axis, n in enumerate(size):
        if any(d.start[axis] < 0 or d.start[axis] + d.size[axis] > n for d in draws):
            raise ContractError(f"a view's box leaves its crop of {n} voxels along axis {axis}")
        start, length, flip = (
            torch.tensor(values, dtype=torch.float64, device=device).reshape(-1, 1)  # n 1
            for values in ([d.start[axis] for d in draws], [d.size[axis] for d in draws], [d.flip for d in draws])
        )
        voxel = torch.arange(n, device=device)
        position = start + ((voxel + 0.5) * length / n - 0.5).clamp_min(0).minimum(length - 1)  # n out
        if axis == 0:
            position = torch.where(flip > 0, position.flip(1), position)
        low = position.floor().clamp_max(n - 2).clamp_min(0)
        far = (position - low)[:, :, None]  # n out 1
        index = low.long()[:, :, None]
        matrix = torch.zeros(len(draws), n, n, dtype=dtype, device=device)  # n out in
        matrix.scatter_(2, index, (1 - far).to(dtype))
        stacks.append(matrix.scatter_add_(2, (index + 1).clamp_max(n - 1), far.to(dtype)))
    return stacks[0], stacks[1], stacks[2]


def smoothing_operators(
    sigmas: Sequence[tuple[float, float, float]], size: Vec3, *, device: torch.device | str = "cpu"
) -> Operators:
    """Gaussian smoothing of n views: one stack (n, size, size) an axis, float64.

    MONAI's "erf" kernel: the Gaussian's integral over each voxel, cut at 4 sigma, not normalised again; zeros beyond the view.
    """
    stacks = []
    for axis, n in enumerate(size):
        sigma = torch.tensor([v[axis] for v in sigmas], dtype=torch.float64, device=device).reshape(-1, 1)  # n 1
        voxel = torch.arange(n, device=device)
        t = math.sqrt(0.5) / sigma
        kernel = 0.5 * (torch.erf(t * (voxel + 0.5)) - torch.erf(t * (voxel - 0.5)))  # n distance
        kernel = kernel * (voxel <= (sigma * TRUNCATED).clamp_min(0.5).add(0.5).floor())
        stacks.append(kernel[:, (voxel[:, None] - voxel).abs()])  # n out in
    return stacks[0], stacks[1], stacks[2]


@torch.no_grad()
def make_views(
    crops: Float[Tensor, "n id ih iw"],
    draws: Sequence[ViewDraw],
    *,
    before: Before | None = None,
    out: Float[Tensor, "n od oh ow"] | None = None,
) -> Float[Tensor, "n od oh ow"]:
    """One view of each crop, as drawn: crop and zoom, flip, histogram shift, smoothing.

    Parameters
    ----------
    crops : n crops, intensities scaled to 0..1. Two views of one crop are two rows.
    draws : what was drawn for each of them.
    before : operators (crop x read), one an axis, that bring what was read (on a finer grid, say) to the crop's grid, each one
        matrix for all crops or a stack of n. They are multiplied into the view's matrices, so reading a finer grid costs
        no products of its own.
    out : where to write the views; fresh memory for a large batch costs as much time as half of the work.

    Returns
    -------
    float32 (float64 for float64 crops), each view of its crop's size. The numbers are those of MONAI's transforms given the same
    draws (tested to 1e-5).
    """
    if crops.ndim != 4 or len(draws) != len(crops) or not crops.is_floating_point():
        raise ContractError(f"{len(draws)} draws for crops of shape {tuple(crops.shape)}, {crops.dtype}")
    d, h, w = crops.shape[1:]
    size = (d, h, w) if before is None else _crop_size(before, (d, h, w))
    device, dtype = crops.device, torch.float64 if crops.dtype == torch.float64 else torch.float32
    early = {i: draw.sigma for i, draw in enumerate(draws) if draw.sigma and not draw.control}
    late = {i: draw.sigma for i, draw in enumerate(draws) if draw.sigma and draw.control}
    if out is None:
        out = torch.empty(len(draws), *size, dtype=dtype, device=device)
    elif out.shape != (len(draws), *size) or out.dtype != dtype or not out.is_contiguous():
        raise ContractError(
            f"out is a contiguous {dtype} tensor of shape {(len(draws), *size)}, not {tuple(out.shape)}"
        )
    with torch.autocast(device.type, enabled=False):
        zoom = list(axis_operators(draws, size, device=device, dtype=dtype))
        if before is not None:
            zoom = [z @ b.to(z) for z, b in zip(zoom, before, strict=True)]
        if early:  # nothing lies between: smoothing rides in the zoom's matrices
            ahead = smoothing_operators([*early.values()], size, device=device)
            for z, b in zip(zoom, ahead, strict=True):
                z[[*early]] = b.to(dtype) @ z[[*early]]
        blur = [b.to(dtype) for b in smoothing_operators([*late.values()], size, device=device)]
        groups = _groups(draws, device)
        most = max(map(len, groups), default=0) * max(d * h * size[2], d * size[1] * size[2], math.prod(size))
        work = out.new_empty(3, most)
        zoom_bands, blur_bands = ([_bands(m) for m in stacks] for stacks in (zoom, blur))
        place = {i: k for k, i in enumerate(late)}
        for index in groups:
            alone = len(index) == 1
            rows = slice(index[0], index[0] + 1) if alone else index
            x = out[rows] if alone else _shaped(work[2], (len(index), *size))
            _products(crops[rows].to(dtype), zoom, zoom_bands, index, work, x)
            control = [draw.control for draw in (draws[i] for i in index) if draw.control]
            if control:
                histogram_shift_(x, control, work)
            if index[0] in late:
                _products(x, blur, blur_bands, [place[i] for i in index], work, x)
            if not alone:
                out[rows] = x
    return out


def histogram_shift_(
    x: Float[Tensor, "n d h w"], control: Sequence[Sequence[float]], work: Float[Tensor, "2+ most"] | None = None
) -> Float[Tensor, "n d h w"]:
    """Map each view's own [min, max] onto itself piece by piece, in place: equally spaced points go to `control` (0..1, rising).

    Written as ``f(x) = s_0 x + sum of (s_k - s_{k-1}) max(x, x_k) + constant``: the slopes s do not depend on the range, so a
    constant view stays as it is. `work` are two buffers of at least the size of `x`.
    """
    if work is None:
        work = torch.empty(2, x.numel(), dtype=x.dtype, device=x.device)
    low, high = (bound[:, None, None, None] for bound in (x.flatten(1).amin(1), x.flatten(1).amax(1)))
    slope = torch.tensor(control, dtype=torch.float64, device=x.device).diff(dim=1)  # n k-1
    slope = (slope * slope.shape[1]).to(x.dtype)[..., None, None, None]
    total, above = (_shaped(buffer, x.shape) for buffer in work[:2])
    torch.mul(x, slope[:, 0], out=total)
    constant = low - slope[:, 0] * low
    for k in range(1, slope.shape[1]):
        knee = low + (high - low) * (k / slope.shape[1])
        bend = slope[:, k] - slope[:, k - 1]
        total.addcmul_(torch.maximum(x, knee, out=above), bend)
        constant = constant - bend * knee
    return torch.add(total, constant, out=x)


def _groups(draws: Sequence[ViewDraw], device: torch.device) -> list[list[int]]:
    """Views that are made together: one by one on the CPU, where a view's passes stay in the cache and it reads its own box
    alone; elsewhere all those that go through the same steps.
    """
    if device.type == "cpu":
        return [[i] for i in range(len(draws))]
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for i, draw in enumerate(draws):
        shifted = draw.control is not None
        kinds.setdefault((shifted, shifted and draw.sigma is not None), []).append(i)
    return list(kinds.values())


def _products(
    x: Tensor,
    stacks: Sequence[Tensor],
    bands: Sequence[Sequence[list[Band]]],
    index: list[int],
    work: Tensor,
    into: Tensor,
) -> None:
    """Volumes (len(index), d, h, w), each axis multiplied with the matrices `index` of its stack, written to `into` (`x` itself is fine).

    Each of the three products contracts the last axis and puts its result first, so after three the axes are back in order and
    nothing was ever transposed in memory. A single volume is multiplied band by band.
    """
    alone = len(index) == 1
    chosen = [stack[index[0] : index[0] + 1] if alone else stack[index] for stack in stacks]  # n out in
    parts = [b[index[0]] if alone else [(0, m.shape[1], 0, m.shape[2])] for b, m in zip(bands, chosen, strict=True)]
    first, last = min(band[2] for band in parts[0]), max(band[3] for band in parts[0])
    x = x[:, first:last]
    for buffer, axis in ((work[0], 2), (work[1], 1), (into.view(-1), 0)):
        a, b = x.shape[1:3]
        inputs = x.flatten(1, 2).mT  # n in ab
        out = _shaped(buffer, (len(x), chosen[axis].shape[1], a * b))
        skipped = 0 if axis else first
        for top, bottom, low, high in parts[axis]:
            matrix = chosen[axis][:, top:bottom, low:high]
            torch.bmm(matrix, inputs[:, low - skipped : high - skipped], out=out[:, top:bottom])
        x = out.unflatten(2, (a, b))


def _bands(matrices: Float[Tensor, "n out in"]) -> list[list[Band]]:
    """Of each matrix, blocks of rows with the inputs that they use: our operators are narrow bands, the rest is zeros."""
    _, out, length = matrices.shape
    if matrices.device.type != "cpu":  # looking would wait for the device, which multiplies whole stacks anyway
        return [[(0, out, 0, length)]] * len(matrices)
    used = torch.stack([rows.amax(1) for rows in matrices.split(BLOCK, 1)], 1).ne(0).byte()  # n blocks in
    lows, highs = used.argmax(2).tolist(), (length - used.flip(2).argmax(2)).tolist()
    tops = range(0, out, BLOCK)
    return [
        [(top, min(top + BLOCK, out), low, high) for top, low, high in zip(tops, *ends, strict=True)]
        for ends in zip(lows, highs, strict=True)
    ]


def _shaped(buffer: Float[Tensor, "most"], shape: Sequence[int]) -> Tensor:
    return buffer[: math.prod(shape)].view(*shape)


def _crop_size(before: Before, read: Vec3) -> Vec3:
    """The crop's size that operators lead to; raises ContractError when they do not fit what was read."""
    if tuple(b.shape[-1] for b in before) != read:
        raise ContractError(f"operators for {[b.shape[-1] for b in before]} voxels, but {list(read)} were read")
    d, h, w = (b.shape[-2] for b in before)
    return d, h, w
