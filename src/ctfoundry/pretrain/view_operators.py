"""The steps of a view as functions of what was drawn, for stacks of views.

Crop, zoom and flip of an axis are one small matrix (out x in), Gaussian smoothing of an axis another; three products apply
them (`products`). A rotation mixes axes: `affine_` looks each voxel up instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ctfoundry.errors import ContractError
from ctfoundry.geometry import Vec3
from ctfoundry.resampling import affine_matrices

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor

    from ctfoundry.pretrain.views import ViewDraw

    Operators = tuple[Float[Tensor, "n od id"], Float[Tensor, "n oh ih"], Float[Tensor, "n ow iw"]]
    Band = tuple[int, int, int, int]  # rows from, to; inputs from, to
    Three = tuple[float, float, float]

BLOCK = 16
"""Rows of one band: fewer leave out more zeros, more multiply faster."""
SLAB = 1 << 15
"""Voxels that `affine_` looks up at a time on the CPU."""
EXACT = 1 << 24
"""Whole numbers up to here are exact in float32."""


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


def affine_(
    x: Float[Tensor, "n d h w"],
    rotations: Sequence[Three],
    scales: Sequence[Three],
    work: Float[Tensor, "k most"] | None = None,
) -> Float[Tensor, "n d h w"]:
    """Turn and stretch each view about its centre, in place: trilinear, zeros (air) beyond it.

    The numbers are those of MONAI's RandAffine with `padding_mode` "zeros". `work` is memory that may be overwritten.
    """
    matrices = affine_matrices(rotations, scales)
    if x.device.type != "cpu" or math.prod(n + 4 for n in x.shape[1:]) > EXACT:
        return _affine_by_grid(x, matrices)
    for view, matrix in zip(x, matrices, strict=True):
        _affine_by_slabs(view, matrix, work)
    return x


def _positions(size: Sequence[int], matrix: Float64[Tensor, "... 3 3"], axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the voxels' d, h and w add to the offset along `axis` that they read."""
    d, h, w = (
        matrix[..., axis, k, None] * (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) for k, n in enumerate(size)
    )
    return d, h, w


def _affine_by_grid(x: Float[Tensor, "n d h w"], matrices: Float64[Tensor, "n 3 3"]) -> Float[Tensor, "n d h w"]:
    """`affine_` by torch's own sampling."""
    size = x.shape[1:]
    grid = x.new_empty(*x.shape, 3)
    for axis, n in enumerate(size):
        # in grid_sample's numbers an axis runs from -1 to 1, edge to edge, and the last axis comes first
        d, h, w = ((part * (2 / n)).to(x) for part in _positions(size, matrices, axis))
        grid[..., 2 - axis] = (d[:, :, None] + h[:, None, :])[..., None] + w[:, None, None, :]
    return x.copy_(
        torch.nn.functional.grid_sample(x[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[
            :, 0
        ]
    )


def _affine_by_slabs(x: Float[Tensor, "d h w"], matrix: Float64[Tensor, "3 3"], work: Tensor | None) -> None:
    """`affine_` of one view on the CPU, a few slices at a time so that all passes stay in the cache: half the time of torch's
    sampling there, which goes voxel by voxel.

    The view gets a border of two zeros: whatever lies further out reads zeros too when its position is moved into the border.
    """
    d, h, w = x.shape
    slab = max(1, SLAB // (h * w))
    voxels, padded = slab * h * w, (d + 4) * (h + 4) * (w + 4)
    if work is None or work.numel() < padded + 15 * voxels or not work.is_contiguous():
        work = x.new_empty(padded + 15 * voxels)
    source, buffers = work.view(-1)[:padded], work.view(-1)[padded : padded + 15 * voxels].view(15, voxels)
    source.zero_()
    source.view(d + 4, h + 4, w + 4)[2:-2, 2:-2, 2:-2] = x
    row, plane = w + 4, (h + 4) * (w + 4)
    corners = [source[i + j + k :] for i in (0, plane) for j in (0, row) for k in (0, 1)]
    parts = []
    for axis, n in enumerate(x.shape):
        along_d, along_h, along_w = _positions(x.shape, matrix, axis)
        parts.append(((along_d[:, None] + along_h + ((n - 1) / 2 + 2)).to(x), along_w.to(x)))
    for top in range(0, d, slab):
        count = min(slab, d - top) * h * w
        far, low, values = ([b[:count] for b in part] for part in (buffers[:3], buffers[3:6], buffers[6:14]))
        index = buffers[14].view(torch.int32 if x.dtype == torch.float32 else torch.int64)[:count]
        for (sides, across), n, f, whole in zip(parts, x.shape, far, low, strict=True):
            torch.add(sides[top : top + slab, :, None], across, out=f.view(-1, h, w))
            torch.floor(f.clamp_(0, n + 2), out=whole)
            f.sub_(whole)
        index.copy_(low[0].mul_(h + 4).add_(low[1]).mul_(row).add_(low[2]))
        for corner, value in zip(corners, values, strict=True):
            torch.index_select(corner, 0, index, out=value)
        for step, f in ((1, far[2]), (2, far[1]), (4, far[0])):
            for k in range(0, 8, 2 * step):
                torch.lerp(values[k], values[k + step], f, out=values[k])
        x[top : top + slab] = values[0].view(-1, h, w)


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
    total, above = (shaped(buffer, x.shape) for buffer in work[:2])
    torch.mul(x, slope[:, 0], out=total)
    constant = low - slope[:, 0] * low
    for k in range(1, slope.shape[1]):
        knee = low + (high - low) * (k / slope.shape[1])
        bend = slope[:, k] - slope[:, k - 1]
        total.addcmul_(torch.maximum(x, knee, out=above), bend)
        constant = constant - bend * knee
    return torch.add(total, constant, out=x)


def products(
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
        out = shaped(buffer, (len(x), chosen[axis].shape[1], a * b))
        skipped = 0 if axis else first
        for top, bottom, low, high in parts[axis]:
            matrix = chosen[axis][:, top:bottom, low:high]
            torch.bmm(matrix, inputs[:, low - skipped : high - skipped], out=out[:, top:bottom])
        x = out.unflatten(2, (a, b))


def bands(matrices: Float[Tensor, "n out in"]) -> list[list[Band]]:
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


def shaped(buffer: Float[Tensor, "most"], shape: Sequence[int]) -> Tensor:
    """The first numbers of a buffer as a tensor of `shape`."""
    return buffer[: math.prod(shape)].view(*shape)
