"""A task's forward passes: alone, compiled, or in step with other processes."""

from __future__ import annotations

import inspect
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ctfoundry import parallel
from ctfoundry.errors import SettingsError, UsageError
from ctfoundry.train.task import Task

if TYPE_CHECKING:
    from torch import Tensor


class Forward:
    """``task.losses``; with several processes through DistributedDataParallel, which sends gradients off while others are computed.

    DDP averages gradients over processes. It starts by giving all of them the weights and running statistics of process 0.
    """

    def __init__(self, task: Task, place: torch.device) -> None:
        self.module: nn.Module = _Losses(task)
        if parallel.size() > 1:
            # our batch norm keeps running statistics equal by itself; torch 2.13 has renamed how to say so
            known = inspect.signature(DistributedDataParallel).parameters
            own: dict[str, Any] = {
                "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False,
                "device_ids": [place] if place.type == "cuda" else None,
            }
            self.module = DistributedDataParallel(self.module, **own)
            # said of a convolution of one channel, whose two memory layouts are the same one
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)

    def __call__(self, batch: Any, step: int) -> dict[str, Tensor]:
        """The losses of a batch of this process."""
        return self.module(batch, step)

    def quietly(self) -> AbstractContextManager[None]:
        """Within the block backward passes keep their gradients to this process; the next one outside sends the sum."""
        return self.module.no_sync() if isinstance(self.module, DistributedDataParallel) else nullcontext()


class _Losses(nn.Module):
    """A task as a module, which is what DDP wraps."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.modules_, self._task = task.modules, [task]

    def forward(self, batch: Any, step: int) -> dict[str, Tensor]:
        return self._task[0].losses(batch, step)


@contextmanager
def compiled(task: Task, place: torch.device) -> Iterator[None]:
    """Within the block the task's encoder runs compiled (`torch.compile`); names and values of its state stay as they are.

    Raises SettingsError for a task without an encoder, UsageError where there is no compiler.
    """
    encoder = getattr(task, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise SettingsError("this task has no encoder to compile", where="compile", do="set it to false")
    if place.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UsageError("compile needs a C++ compiler on the CPU, and none is installed", do="set train.compile=false")
    name = "features" if hasattr(encoder, "features") else "forward"
    setattr(encoder, name, torch.compile(getattr(encoder, name)))  # on the object, in front of its class's
    try:
        yield
    finally:
        delattr(encoder, name)


@contextmanager
def undisturbed(modules: nn.Module) -> Iterator[None]:
    """Within the block somebody else uses the modules, uncompiled: their modes and torch's generators are put back."""
    modes = [(module, module.training) for module in modules.modules()]
    try:
        with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def agree_on_statistics(modules: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Running statistics of batch norms that see the samples of their own process only: as if one process had seen all of them.

    `before` holds the buffers as they were at the beginning of the step. k updates with momentum u take a value r0 to
    ``(1 - u)^k r0 + s``: each process knows its own s, and those of all follow one another in the order of ranks. Nothing is
    done where batch norm averages over all processes, which keeps its statistics equal by itself.
    """
    if parallel.size() == 1:
        return
    norms = {n: m for n, m in modules.named_modules() if isinstance(m, _BatchNorm) and getattr(m, "apart", True)}
    norms = {name: norm for name, norm in norms.items() if norm.running_mean is not None}
    if not norms:
        return
    kinds = ("running_mean", "running_var")
    now = torch.cat([norm.get_buffer(kind) for norm in norms.values() for kind in kinds])  # n
    start = torch.cat([before[f"{name}.{kind}"] for name in norms for kind in kinds])
    counts = [
        norm.get_buffer("num_batches_tracked") - before[f"{name}.num_batches_tracked"] for name, norm in norms.items()
    ]
    everyone = parallel.all_gather(torch.cat([now, torch.stack(counts).to(now.dtype)])[None])  # r n+k
    values, updates = everyone.split([len(now), len(norms)], 1)
    kept = []
    for norm, count in zip(norms.values(), updates.unbind(1), strict=True):
        assert norm.momentum is not None, "a mean over all updates so far has no share that stays"
        kept.append(((1 - norm.momentum) ** count)[:, None].expand(-1, 2 * norm.num_features))
    merged = start
    for value, stays in zip(values, torch.cat(kept, 1), strict=True):
        merged = stays * merged + (value - stays * start)
    for (name, norm), part, count in zip(
        norms.items(), merged.split([2 * norm.num_features for norm in norms.values()]), updates.sum(0), strict=True
    ):
        for kind, value in zip(kinds, part.chunk(2), strict=True):
            norm.get_buffer(kind).copy_(value)
        norm.get_buffer("num_batches_tracked").copy_(before[f"{name}.num_batches_tracked"] + count.long())
