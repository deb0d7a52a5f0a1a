"""Batch norm of few channels on CPUs: the same numbers from kernels that fill the processor's vectors.

With 8 channels in channels_last torch's batch norm hardly fills a vector. But in that layout a voxel's neighbours *are* more
channels: a view of the same memory has a sixteenth of the voxels and 128 channels. Measured in docs/performance.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

NARROW = 16
"""Up to so many channels it gains."""
WIDTH = 128
"""Channels of batch norm's view: eight vectors of sixteen."""
DTYPES = (torch.bfloat16, torch.float32)


def normalises(x: Tensor) -> bool:
    """Whether `normalise` can take `x` without a copy in another layout, and gains."""
    if x.ndim != 5 or x.shape[1] > NARROW or WIDTH % x.shape[1] or x.numel() % WIDTH:
        return False
    return x.numel() > WIDTH and _in_order(x)


class Normalise(torch.autograd.Function):
    """Batch norm with the batch's statistics: (y, mean, variance over N values, not N - 1).

    Statistics of the view's channels are merged to those of the channels; both directions are then what torch's kernel does
    with given statistics, a x + b, on the view. With x^ = (x - mean) / std,
    ``dx = weight / std * (dy - sum(dy) / N - x^ * sum(dy x^) / N)``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "b c d h w"], weight: Float[Tensor, " c"], bias: Float[Tensor, " c"], eps: float
    ) -> tuple[Float[Tensor, "b c d h w"], Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Statistics, then one pass."""
        c = x.shape[1]
        rows = _rows(x)
        none = weight.new_zeros(2, WIDTH)  # statistics to update, by nothing: their type is that of the result
        found = torch.ops.aten.batch_norm_update_stats(rows, none[0], none[1], 0.0)
        means, variances = (v.view(-1, c) for v in found)  # k c
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        scale = weight * (var + eps).rsqrt()
        y = _affine(x, scale, bias - mean * scale)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Float[Tensor, "b c d h w"], *_: object) -> tuple[Tensor | None, ...]:
        """Two sums, then two passes."""
        x, weight, mean, var = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last_3d)
        rows, gradients = _rows(x), _rows(dy)
        c, count = x.shape[1], x.numel() / x.shape[1]
        inverse = (var + ctx.eps).rsqrt()
        wide = [_wide(v, rows) for v in (weight, mean, var, mean, inverse)]
        _, turned, plain = torch.ops.aten.native_batch_norm_backward(
            gradients, rows, *wide, False, ctx.eps, [False, True, True]
        )
        of_turned, of_plain = (v.view(-1, c).sum(0) for v in (turned, plain))  # sums of dy x^ and of dy
        scale = weight * inverse
        slope = -scale * inverse * of_turned / count
        dx = _affine(dy, scale, torch.zeros_like(scale))
        dx += _affine(x, slope, -scale * of_plain / count - slope * mean)
        return dx, of_turned, of_plain, None


def _in_order(x: Tensor) -> bool:
    """On the CPU, in a type that gains, with the channels of a voxel side by side (one channel is so in either layout)."""
    return x.device.type == "cpu" and x.dtype in DTYPES and x.is_contiguous(memory_format=torch.channels_last_3d)


def _rows(x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "n 128"]:
    """The same memory as rows of so many voxels' channels; channel i is that of i modulo c."""
    return x.permute(0, 2, 3, 4, 1).reshape(-1, WIDTH)


def _wide(v: Float[Tensor, " c"], rows: Float[Tensor, "n 128"]) -> Float[Tensor, " 128"]:
    return v.repeat(rows.shape[1] // len(v))


def _affine(
    x: Float[Tensor, "b c d h w"], scale: Float[Tensor, " c"], shift: Float[Tensor, " c"]
) -> Float[Tensor, "b c d h w"]:
    """``scale * x + shift`` in one pass, computed in float32: torch's batch norm for a mean of 0 and a deviation of 1."""
    out = torch.empty_like(x)  # no view: what follows may write into it
    rows, none = _rows(x), scale.new_empty(0)
    given = [_wide(scale, rows), _wide(shift, rows), scale.new_zeros(WIDTH), scale.new_ones(WIDTH)]
    torch.ops.aten.native_batch_norm.out(
        rows, *given, False, 0.0, 0.0, out=_rows(out), save_mean=none, save_invstd=none.clone()
    )
    return out
