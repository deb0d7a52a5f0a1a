"""Several processes that train one model: who they are, and how tensors go between them.

Everything here is a no-op in a single process, so callers need no second way for it. The convention of gradients is that of
DistributedDataParallel: what is minimised is the mean over processes of the loss that each returns. A backward pass through
`all_gather` or `all_reduce_sum` adds up what all processes ask of a tensor, so a loss that every process computes of the same
gathered tensors gives, after DDP's mean, the gradients that one process would have had.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from jaxtyping import Shaped
    from torch import Tensor

TIMEOUT = 1800.0
"""Seconds after which a process that waits for the others gives up."""

_apart = False
"""Whether this process is in a block of `alone`."""

_joins = 0
"""How often this process has joined others."""


def rank() -> int:
    """Which of the processes this is; 0 alone."""
    import torch.distributed as dist

    return dist.get_rank() if _together() else 0


def size() -> int:
    """How many processes train together; 1 alone."""
    import torch.distributed as dist

    return dist.get_world_size() if _together() else 1


def all_gather(x: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "rb ..."]:
    """The tensors of all processes, one below the other in the order of ranks; each must have the same shape.

    Differentiable: the gradient is the own slice of the sum over processes.
    """
    return x if size() == 1 else _functions()[0].apply(x)


def all_reduce_sum(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The sum over processes of a tensor of one shape. Differentiable: the gradient is summed likewise."""
    return x if size() == 1 else _functions()[1].apply(x)


def broadcast_object(value: Any) -> Any:
    """The value that process 0 gives; what the others give is ignored."""
    import torch.distributed as dist

    if size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def gather_objects(value: Any) -> list[Any]:
    """The values of all processes, in the order of ranks, in every process."""
    import torch.distributed as dist

    if size() == 1:
        return [value]
    held: list[Any] = [None] * size()
    dist.all_gather_object(held, value)
    return held


def barrier() -> None:
    """Wait until every process is here."""
    gather_objects(None)  # dist.barrier would have to be told the device


@contextmanager
def joined(device: torch.device | str, *, timeout: float = TIMEOUT) -> Iterator[torch.device]:
    """Within the block this process is one of those that torchrun started; yields the device that it has to itself.

    gloo between CPUs, NCCL between GPUs, where process i of a machine takes GPU i. Without torchrun (no ``WORLD_SIZE`` above 1),
    or inside another such block, nothing is done. When a process fails, the others end with an error: at once where its
    connection breaks, after `timeout` seconds at the latest. Blocks may follow one another, in every process as many.
    """
    global _joins
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    place = torch.device(device)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if place.type == "cuda" and (count > 1 or _together()):
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if count == 1 or _together() or _apart:
        yield place
        return
    backend = "nccl" if place.type == "cuda" else "gloo"
    _joins += 1
    # Under names of its own: a process that is early would find the addresses that the others had in the block before, and wait.
    patience = timedelta(seconds=timeout)
    store, own_rank, count = _meeting(os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"))
    store.set_timeout(patience)
    own_store = PrefixStore(f"ctfoundry-{_joins}", store)
    dist.init_process_group(backend, store=own_store, rank=own_rank, world_size=count, timeout=patience)
    try:
        yield place
    except BaseException:
        # NCCL would wait here for collectives that nobody answers; leaving the process breaks them
        if backend == "gloo":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this process counts as the only one: it may train something of its own while the others wait."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def is_broken(error: BaseException) -> bool:
    """Whether an error says that another process is gone or does not answer."""
    import torch.distributed as dist

    words = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        said in words for said in ("gloo", "nccl", "connection closed", "connection reset", "timed out waiting")
    )


def _together() -> bool:
    import torch.distributed as dist

    return not _apart and dist.is_available() and dist.is_initialized()


@cache
def _meeting(address: str | None, port: str | None) -> tuple[Any, int, int]:
    """The store in which processes find each other, with the own rank and their number, from torchrun's variables.

    Kept: process 0 may be its server, and others may ask it when process 0 itself has left a block.
    """
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://", timeout=timedelta(seconds=TIMEOUT)))
    return store, rank, count


@cache
def _functions() -> tuple[Any, Any]:
    """The two autograd functions; made at first use, because this module imports no torch."""
    import torch
    import torch.distributed as dist
    from torch.autograd.function import once_differentiable

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            own = x.detach().contiguous()
            parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, own)
            return torch.cat(parts)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            total = grad.contiguous(memory_format=torch.contiguous_format).clone()
            dist.all_reduce(total)
            return total.chunk(dist.get_world_size())[dist.get_rank()].clone()

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            total = x.detach().clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total)
            return total

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            total = grad.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total)
            return total

    return Gather, Sum
