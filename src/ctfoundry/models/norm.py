"""Batch norm over groups of a batch.

CT-FM sends each crop-view of the whole batch through the network alone, so its batch norm averages over the scans of one
crop-view and never over the crops of a scan (reference, 3.3). One large batch is faster; `GroupedBatchNorm3d` keeps the
published statistics in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ctfoundry.errors import ContractError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class GroupedBatchNorm3d(nn.BatchNorm3d):
    """`nn.BatchNorm3d`, same state, that in training normalises each of `groups` equal parts of the batch by itself.

    The batch is ordered group by group. Outputs, gradients and running statistics are those of `groups` forward passes
    one after another. In eval mode, and with one group, it is plain batch norm.
    """

    groups = 1

    def forward(self, x: Float[Tensor, "gb c d h w"]) -> Float[Tensor, "gb c d h w"]:
        """Normalise; raises ContractError when the groups do not divide the batch."""
        if not self.training or self.groups == 1:
            return super().forward(x)
        if x.shape[0] % self.groups:
            raise ContractError(f"a batch of {x.shape[0]} does not split into {self.groups} equal groups")
        # One call a group, not one reshaped to g*c channels: it keeps channels_last and saves the input once.
        return torch.cat([super(GroupedBatchNorm3d, self).forward(part) for part in x.chunk(self.groups)])


@contextmanager
def batch_norm_groups(network: nn.Module, groups: int) -> Iterator[None]:
    """Within the block every `GroupedBatchNorm3d` of `network` sees its batches as `groups` groups."""
    if groups < 1:
        raise ValueError(f"a batch has at least one group, not {groups}")
    norms = [module for module in network.modules() if isinstance(module, GroupedBatchNorm3d)]
    before = [norm.groups for norm in norms]
    try:
        for norm in norms:
            norm.groups = groups
        yield
    finally:
        for norm, old in zip(norms, before, strict=True):
            norm.groups = old
