"""Memory for time: what lies between a network's input and output is computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ctfoundry.models.norm import GroupedBatchNorm1d, GroupedBatchNorm3d

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
    now = [(norm.groups, norm.sync) for norm in norms]

    @contextmanager
    def again() -> Iterator[None]:
        before = [(norm.groups, norm.sync) for norm in norms]
        _set(norms, now)
        try:
            with _spare_statistics(network):
                yield
        finally:
            _set(norms, before)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), again()

    return checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _set(norms: list[Grouped], values: list[tuple[int, bool]]) -> None:
    for norm, (groups, sync) in zip(norms, values, strict=True):
        norm.groups, norm.sync = groups, sync


@contextmanager
def _spare_statistics(network: nn.Module) -> Iterator[None]:
    """Within the block batch norms write into copies of their running statistics.

    Not without any: torch keeps the statistics for the backward pass, and a second pass that kept fewer tensors than the first
    would not fit it.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    own = [dict(norm._buffers) for norm in norms]
    try:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers.update({name: b if b is None else b.clone() for name, b in buffers.items()})
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers.update(buffers)
