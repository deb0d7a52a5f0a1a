"""Batch norm over groups of a batch, and over all processes that train together.

CT-FM sends each crop-view of the whole batch through the network alone, so its batch norm averages over the scans of one
crop-view, on all GPUs, and never over the crops of a scan (reference, 3.3). One large batch is faster; `GroupedBatchNorm3d`
keeps the published statistics in it. torch's SyncBatchNorm refuses to train on CPUs; this one does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ctfoundry import parallel
from ctfoundry.errors import ContractError
from ctfoundry.models import narrow

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class _Grouped(_BatchNorm):
    """Batch norm, same state, that in training normalises each of `groups` equal parts of the batch by itself.

    The batch is ordered group by group. Outputs, gradients and running statistics are those of `groups` forward passes
    one after another. With `sync`, and several processes, group i holds the samples of group i of all of them: outputs,
    gradients (of the sum of the processes' losses; of `weight` and `bias` the own share, which DDP adds up) and running
    statistics are those of one process with all samples. In eval mode, and with one group alone, it is plain batch norm.
    """

    groups = 1
    sync = True
    apart = False
    """Whether its running statistics are of this process' samples only (`train.forward.agree_on_statistics`)."""

    def forward(self, x: Float[Tensor, "gb c ..."]) -> Float[Tensor, "gb c ..."]:
        """Normalise; raises ContractError when the groups do not divide the batch."""
        if self.training and x.shape[0] % self.groups:
            raise ContractError(f"a batch of {x.shape[0]} does not split into {self.groups} equal groups")
        if self.training and self.sync and parallel.size() > 1:
            return self._together(x)
        if not self.training:
            return super().forward(x)
        if self.groups == 1:
            return self._narrow(x) if self.affine and narrow.normalises(x) else super().forward(x)
        # One call a group, not one reshaped to g*c channels: it keeps channels_last and saves the input once.
        return torch.cat([super(_Grouped, self).forward(part) for part in x.chunk(self.groups)])

    def _together(self, x: Float[Tensor, "gb c ..."]) -> Float[Tensor, "gb c ..."]:
        self._check_input_dim(x)
        y, mean, var, count = _Synchronised.apply(x, self.weight, self.bias, self.groups, self.eps)
        self._remember(mean, var, count)
        return y

    def _narrow(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """As torch's, in a fraction of the time for few channels on a CPU."""
        y, mean, var = narrow.Normalise.apply(x, self.weight, self.bias, self.eps)
        self._remember(mean[None], var[None], x.numel() / x.shape[1])
        return y

    def _remember(self, mean: Float[Tensor, "g c"], var: Float[Tensor, "g c"], count: float | Tensor) -> None:
        """Running statistics, group by group; `var` is that over `count` values."""
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            unbiased = var * (count / (count - 1))
            for own_mean, own_var in zip(mean, unbiased, strict=True):
                self.num_batches_tracked.add_(1)
                new = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.mul_(1 - new).add_(own_mean, alpha=new)
                self.running_var.mul_(1 - new).add_(own_var, alpha=new)


class GroupedBatchNorm3d(_Grouped, nn.BatchNorm3d):
    """`nn.BatchNorm3d` by groups (`batch_norm_groups`) and over processes."""


class GroupedBatchNorm1d(_Grouped, nn.BatchNorm1d):
    """`nn.BatchNorm1d` by groups (`batch_norm_groups`) and over processes, for heads."""


class _Synchronised(torch.autograd.Function):
    """Batch norm with the statistics of all processes.

    With x^ = (x - mean) / std over the N values of a channel in a group, on all processes,
    ``dx = weight / std * (dy - sum(dy) / N - x^ * sum(dy * x^) / N)``: one exchange on the way there, one on the way back.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "gb c ..."], weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
    ) -> tuple[Float[Tensor, "gb c ..."], Float[Tensor, "g c"], Float[Tensor, "g c"], Float[Tensor, ""]]:
        parts, axes = x.chunk(groups), [0, *range(2, x.ndim)]
        moments = [torch.var_mean(_precise(part), axes, correction=0) for part in parts]
        own = torch.stack([torch.stack(pair) for pair in zip(*moments, strict=True)])  # (var, mean) g c
        count = own.new_full((1,), x.numel() / (groups * x.shape[1]))  # made on the device: nothing waits
        all_own = parallel.all_gather(torch.cat([own.flatten(), count])[None])
        counts = all_own[:, -1, None, None]  # r 1 1
        total = counts.sum()
        share = counts / total
        own_var, own_mean = all_own[:, :-1].unflatten(1, own.shape).unbind(1)  # r g c
        mean = (share * own_mean).sum(0)
        var = (share * (own_var + (own_mean - mean).square())).sum(0)
        # with given statistics torch's kernel takes bf16 beside float32 and keeps channels_last
        normed = [F.batch_norm(p, m, v, weight, bias, eps=eps) for p, m, v in zip(parts, mean, var, strict=True)]
        ctx.save_for_backward(x, weight, mean, var, total)
        ctx.groups, ctx.eps = groups, eps
        ctx.mark_non_differentiable(mean, var, total)
        return normed[0] if groups == 1 else torch.cat(normed), mean, var, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Float[Tensor, "gb c ..."], *unused: object) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, total = ctx.saved_tensors
        inverse = (var + ctx.eps).rsqrt()
        parts = list(zip(dy.chunk(ctx.groups), x.chunk(ctx.groups), mean, var, inverse, strict=True))
        # the gradient of the kernel with given statistics: dy * weight / std, sum(dy * x^), sum(dy)
        found = [
            torch.ops.aten.native_batch_norm_backward(d, p, weight, m, v, m, i, False, ctx.eps, [True, True, True])
            for d, p, m, v, i in parts
        ]
        sums = torch.stack([torch.stack([turned, plain]) for _, turned, plain in found])  # g (dy x^, dy) c
        of_turned, of_plain = (parallel.all_reduce_sum(sums) / total).unbind(1)
        scale = inverse if weight is None else inverse * weight
        shape = [1, -1, *[1] * (x.ndim - 2)]
        dx = []
        for (_, p, m, _, i), (first, _, _), a, b, s in zip(parts, found, of_turned, of_plain, scale, strict=True):
            turn = (p - m.view(shape)).mul_((i * a * s).view(shape)).add_((s * b).view(shape))
            dx.append(torch.sub(first, turn).to(x.dtype))
        whole = dx[0] if ctx.groups == 1 else torch.cat(dx)
        return whole, *(sums.sum(0).unbind() if weight is not None else (None, None)), None, None


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def batch_norm_groups(network: nn.Module, groups: int, sync: bool = True) -> Iterator[None]:
    """Within the block every grouped batch norm of `network` sees its batches as `groups` groups.

    `sync` False: groups are those of this process alone (a group that is one scan, or a part of one).
    """
    if groups < 1:
        raise ValueError(f"a batch has at least one group, not {groups}")
    norms = [module for module in network.modules() if isinstance(module, _Grouped)]
    before = [(norm.groups, norm.sync) for norm in norms]
    try:
        for norm in norms:
            norm.groups, norm.sync, norm.apart = groups, sync, not sync
        yield
    finally:
        for norm, old in zip(norms, before, strict=True):
            norm.groups, norm.sync = old
