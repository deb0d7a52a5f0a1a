"""How well a device is used: floating-point operations of a step, over what the device could have done in that time.

Counted are multiplications and additions of convolutions and matrix products (two for each pair), forward and backward, once.
What is computed a second time to save memory (activation checkpointing, chunks) is no progress and is kept apart; so the share
is that of the *useful* operations, which reports call MFU.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ctfoundry.record import peak_memory_mib

if TYPE_CHECKING:
    from torch import Tensor

DType = Literal["fp64", "fp32", "bf16", "fp16"]

_TORCH = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Peak:
    """Dense peaks of a GPU as its maker publishes them, in 1e12 operations a second (no structured sparsity).

    half : fp16 and bf16 matrix units with fp32 sums. tf32 : fp32 inputs on the matrix units; 0 where there are none. single : fp32.
    """

    half: float
    tf32: float
    single: float


PEAKS: dict[str, Peak] = {
    "B200": Peak(2250, 1125, 75),
    "H200 NVL": Peak(835.5, 417.5, 60),
    "H200": Peak(989.4, 494.7, 67),
    "GH200": Peak(989.4, 494.7, 67),
    "H100 PCIe": Peak(756.4, 378, 51.2),
    "H100 NVL": Peak(835.5, 417.5, 60),
    "H100": Peak(989.4, 494.7, 66.9),
    "A100": Peak(312, 156, 19.5),
    "A30": Peak(165, 82, 10.3),
    "A40": Peak(149.7, 74.8, 37.4),
    "A10G": Peak(70, 35, 31.5),
    "A10": Peak(125, 62.5, 31.2),
    "L40S": Peak(362, 183, 91.6),
    "L40": Peak(181, 90.5, 90.5),
    "L4": Peak(121, 60, 30.3),
    "RTX 6000 Ada": Peak(364.2, 182.1, 91.1),
    "RTX A6000": Peak(154.8, 77.4, 38.7),
    "RTX A5000": Peak(111.1, 55.6, 27.8),
    "RTX 5090": Peak(209.5, 104.8, 104.8),
    "RTX 4090": Peak(165.2, 82.6, 82.6),
    "RTX 3090": Peak(71, 35.6, 35.6),
    "V100": Peak(125, 0, 15.7),
    "T4": Peak(65, 0, 8.1),
}
"""By a part of the name that the driver gives; from the makers' data sheets. Consumer cards: with fp32 sums."""


def published_peak(name: str, dtype: DType, *, tf32: bool = True) -> float | None:
    """Published operations a second of the GPU called `name`; None for one that is not in `PEAKS`, for fp64, and for a slice of a GPU.

    >>> published_peak("NVIDIA H100 80GB HBM3", "bf16")
    989400000000000.0
    >>> published_peak("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16") is None
    True
    """
    words = name.replace("-", " ").split()
    if "MIG" in words or dtype == "fp64":
        return None
    for known, peak in PEAKS.items():
        wanted = known.split()
        if any(words[i : i + len(wanted)] == wanted for i in range(len(words))):
            return 1e12 * (peak.half if dtype in ("bf16", "fp16") else (peak.tf32 if tf32 else 0) or peak.single)
    return None


def peak_flops(device: str | torch.device, dtype: DType) -> float:
    """Operations a second that `device` can do at most: published for GPUs in `PEAKS`, else measured once with a large product.

    fp32 on a GPU means TF32 where torch lets convolutions use it, as it does by default. On a CPU the measurement takes a quarter of a
    second, with the threads that torch has then.
    """
    place = torch.device(device)
    if place.type == "cuda":
        tf32 = bool(torch.backends.cudnn.allow_tf32)
        published = published_peak(torch.cuda.get_device_name(place), dtype, tf32=tf32)
        if published is not None:
            return published
    return _measured_peak(str(place), dtype, torch.get_num_threads())


@cache
def _measured_peak(device: str, dtype: DType, threads: int, seconds: float = 0.25) -> float:
    """The fastest of some square matrix products; the size is what takes a hundredth of a second or so on a CPU."""
    place = torch.device(device)
    n = 1024 if place.type == "cpu" else 8192
    # drawn from a generator of its own: the global one must not notice
    factor = torch.rand((n, n), generator=torch.Generator().manual_seed(0)).to(place, _TORCH[dtype])
    best, end = float("inf"), time.perf_counter() + seconds
    out = factor @ factor  # warms up
    while best == float("inf") or time.perf_counter() < end:
        _wait(place)
        began = time.perf_counter()
        torch.mm(factor, factor, out=out)
        _wait(place)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


@dataclass
class Flops:
    """Operations counted so far: `forward` and `backward` once each, `again` those done a second time to save memory."""

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0

    @property
    def useful(self) -> float:
        """What a step with all the memory in the world would do."""
        return self.forward + self.backward

    @property
    def executed(self) -> float:
        """What the device really did."""
        return self.useful + self.again


class _Counter(TorchDispatchMode):
    """Sees each operation on its way to the kernel and adds up what torch's own formulas say of its shapes; changes nothing."""

    def __init__(self, flops: Flops) -> None:
        super().__init__()
        self.flops = flops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            given = {k: v for k, v in (kwargs or {}).items() if k != "out"}
            self._add(func, float(formula(*args, **given, out_val=out)))
        return out

    def _add(self, func: Any, count: float) -> None:
        name = func._overloadpacket.__name__
        in_backward = torch._C._current_graph_task_id() != -1
        if not in_backward:
            self.flops.forward += count
        elif name == "convolution":  # a plain convolution in a backward pass is a repeated forward one
            self.flops.again += count
        else:
            self.flops.backward += count


@contextmanager
def counting(into: Flops | None = None) -> Iterator[Flops]:
    """Within the block, `Flops` (those of `into` go on) of everything that runs in this thread, backward passes included.

    Kernels, their order and their results are what they would be without it. Operations inside a backward pass that are plain
    convolutions count as repeated ones: a convolution's own gradients are other operations. Not seen: what a compiled graph
    does, and memory-bound work (norms, activations), which has no formula and next to no operations.
    """
    flops = Flops() if into is None else into
    with _Counter(flops):
        yield flops


def flops_of(call: Callable[[], object]) -> float:
    """The useful operations of `call`, which does its backward pass itself."""
    with counting() as flops:
        call()
    return flops.useful


@dataclass
class Held:
    """Bytes of tensors that were made in a block: those that live `now`, and the most that lived at once."""

    now: float = 0.0
    peak: float = 0.0

    def add(self, count: float) -> None:
        """So many more (or, below 0, fewer)."""
        self.now += count
        self.peak = max(self.peak, self.now)


class _Watcher(TorchDispatchMode):
    """Sees what each operation returns and hears when its memory is given back; changes nothing."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.held = held
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_storage(t)._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not {_storage(tensor)._cdata} & (before | self.known):
                self._watch(_storage(tensor))
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        address, count = storage._cdata, float(storage.nbytes())

        def gone() -> None:
            self.known.discard(address)
            self.held.add(-count)

        self.known.add(address)
        self.held.add(count)
        weakref.finalize(storage, gone)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


@contextmanager
def holding() -> Iterator[Held]:
    """Within the block, `Held` of all tensors that operations of this thread make, on any device.

    What a step needs beside weights, without the work space inside kernels. Unlike the memory of a process it is the same
    every time, and grows with the batch as a GPU's does.
    """
    held = Held()
    with _Watcher(held):
        yield held


def peak_memory_gib(device: str | torch.device) -> float:
    """Largest memory so far, in GiB: tensors on a GPU, else this process."""
    place = torch.device(device)
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated(place) / 2**30
    return peak_memory_mib() / 1024
