"""A task's forward passes: alone, compiled, or in step with other processes."""

from __future__ import annotations

import inspect
import shutil
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
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
def agree_on_statistics(modules: nn.Module) -> None:
    """Where running statistics differ between processes (batch norm within a scan), all take their mean.

    They are moving averages, so the mean of each process's is the average over the samples of all.
    """
    buffers = [b for b in modules.buffers() if b.is_floating_point()]
    if parallel.size() == 1 or not buffers:
        return
    everyone = parallel.all_gather(torch.cat([b.flatten() for b in buffers])[None])  # r n
    mean = torch.where((everyone == everyone[0]).all(0), everyone[0], everyone.mean(0))
    for buffer, value in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(value.view_as(buffer))
