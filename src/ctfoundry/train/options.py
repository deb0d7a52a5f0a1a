"""The settings of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from ctfoundry.errors import UsageError
from ctfoundry.train.monitor import CollapseRule
from ctfoundry.train.schedule import Schedule
from ctfoundry.train.update import Optimiser

Precision = Literal["fp64", "fp32", "bf16", "fp16"]
Asked = Literal["auto", "fp64", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class LoopSettings:
    """How a task is trained.

    Attributes
    ----------
    schedule : its ``steps`` are the length of the run.
    optimiser : AdamW's settings.
    batch : samples (scans) in a step, over all processes; each takes an equal part of them.
    accumulate : parts into which each process splits its part of a step, one after another, to save memory. Only for tasks whose loss
        is a mean over samples that do not meet (`Task.separable`): there it changes nothing but rounding.
    seed : of the data order and of every draw.
    precision : of the forward pass. ``auto`` is bf16 where the processor or GPU computes in it, fp16 on older GPUs, else fp32
        (`resolve_precision`); what it came to is kept in the checkpoints. fp64 makes the weights double too, for checks.
    ema : share of a moving average of the weights that stays at each step, such as 0.999; kept in the checkpoints beside the weights
        (`checkpoint.averaged`) and without influence on them. None: no average.
    compile : run the task's encoder through `torch.compile`. Results change by rounding.
    balance : how far collections are evened out: 0 every scan as often, 1 every collection as often (`data.collection_shares`).
    channels_last : keep activations and weights in channels_last_3d, which oneDNN and cuDNN prefer.
    workers, ahead : threads that read, and samples that they read ahead (None: two steps). They change no result.
    log_every, checkpoint_every : steps between log lines and between checkpoints.
    keep_every : checkpoints of every such step stay; 0 keeps the last one only.
    failing_share : the run stops when more than this share of the scans (and more than one) cannot be read.
    skip_limit : the run stops after this many steps in a row without finite gradients (noticed at the next log step).
    collapse : when a collapse is announced.
    sinks : where log lines go beside ``metrics.jsonl``.
    """

    schedule: Schedule
    optimiser: Optimiser = field(default_factory=Optimiser)
    batch: int = 4
    accumulate: int = 1
    seed: int = 0
    precision: Asked = "auto"
    ema: float | None = None
    compile: bool = False
    balance: float = 0.0
    channels_last: bool = True
    workers: int = 2
    ahead: int | None = None
    log_every: int = 10
    checkpoint_every: int = 500
    keep_every: int = 0
    failing_share: float = 0.1
    skip_limit: int = 20
    collapse: CollapseRule = field(default_factory=CollapseRule)
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        if min(self.batch, self.log_every, self.checkpoint_every, self.skip_limit) < 1 or self.workers < 0:
            raise ValueError("batch, log_every, checkpoint_every and skip_limit are at least 1, workers at least 0")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance lies between 0 and 1, not {self.balance}")
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise ValueError(f"accumulate divides batch; {self.accumulate} does not divide {self.batch}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema lies between 0 and 1, not {self.ema}")


FREE = {
    "accumulate",
    "ahead",
    "checkpoint_every",
    "collapse",
    "compile",
    "failing_share",
    "keep_every",
    "log_every",
    "sinks",
    "skip_limit",
    "workers",
}
"""Settings that may change when a run continues, because they change no weight (accumulate and compile: but for rounding)."""


def resolve_precision(asked: Asked, device: torch.device) -> Precision:
    """The precision that ``auto`` stands for on a device; raises UsageError for fp16 on a CPU, where it only loses."""
    if asked == "fp16" and device.type == "cpu":
        raise UsageError("precision fp16 trains on GPUs only", do="use bf16, fp32 or auto")
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _computes_bf16() else "fp32"


def _computes_bf16() -> bool:
    """Whether the CPU multiplies bf16 itself; a torch that cannot tell counts as no."""
    able: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
