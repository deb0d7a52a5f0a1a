"""Memory for time: what lies between a network's input and output is computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ctfoundry.models.norm import GroupedBatchNorm1d, GroupedBatchNorm3d, running_statistics

T = TypeVar("T")
Grouped = GroupedBatchNorm1d | GroupedBatchNorm3d


def recomputed(network: nn.Module, call: Callable[..., T], *inputs: torch.Tensor) -> T:
    """``call(*inputs)``, a function of `network`, of which only inputs and outputs stay in memory.

    Output and gradients are those of the plain call, to the bit where the kernels are deterministic. The second computation
    sees batch norm's groups as they are now and leaves running statistics alone. Nothing random may happen in `call`; calls
    may be nested. Without gradients this is the plain call.
    """
    if not torch.is_grad_enabled():
        return call(*inputs)
    norms = [module for module in network.modules() if isinstance(module, Grouped)]
    groups = [(norm.groups, norm.sync) for norm in norms]

    @contextmanager
    def again() -> Iterator[None]:
        before = [(norm.groups, norm.sync) for norm in norms]
        _set(norms, groups)
        try:
            with running_statistics(network, update=False):
                yield
        finally:
            _set(norms, before)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), again()

    return checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _set(norms: list[Grouped], groups: list[tuple[int, bool]]) -> None:
    for norm, (count, sync) in zip(norms, groups, strict=True):
        norm.groups, norm.sync = count, sync
