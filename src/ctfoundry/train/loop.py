"""The training loop, once, for every task.

A step is: samples in order, batch on the device, losses, gradients, update, one line now and then, a checkpoint now and then.
The loop continues a run that it finds; on the CPU, k steps, a kill and N - k steps give the bits of N steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ctfoundry import files
from ctfoundry.errors import UsageError
from ctfoundry.infer.passes import Precision, autocast
from ctfoundry.keys import Key
from ctfoundry.settings import to_data
from ctfoundry.train import checkpoint
from ctfoundry.train.data import Quarantine, Samples
from ctfoundry.train.errors import TrainingError
from ctfoundry.train.monitor import CollapseRule, CollapseWatch, Meters, Metrics, read_metrics
from ctfoundry.train.progress import Progress
from ctfoundry.train.schedule import Schedule, rate
from ctfoundry.train.task import Source, Task
from ctfoundry.train.update import Optimiser, Updater

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LoopSettings:
    """How a task is trained.

    Attributes
    ----------
    schedule : its ``steps`` are the length of the run.
    optimiser : AdamW's settings.
    batch : samples (scans) in a step.
    seed : of the data order and of every draw.
    precision : of the forward pass. ``auto`` is bf16 where the processor or GPU computes in it, fp16 on older GPUs, else fp32
        (`resolve_precision`); what it came to is kept in the checkpoints.
    balance : how far collections are evened out: 0 every scan as often, 1 every collection as often (`data.collection_shares`).
    channels_last : keep activations and weights in channels_last_3d, which oneDNN and cuDNN prefer.
    workers, ahead : threads that read, and samples that they read ahead (None: two steps). They change no result.
    log_every, checkpoint_every : steps between log lines and between checkpoints.
    keep_every : checkpoints of every such step stay; 0 keeps the last one only.
    failing_share : the run stops when more than this share of the scans (and more than one) cannot be read.
    skip_limit : the run stops after this many steps in a row without finite gradients (noticed at the next log step).
    collapse : when a collapse is announced.
    """

    schedule: Schedule
    optimiser: Optimiser = field(default_factory=Optimiser)
    batch: int = 4
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
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

    def __post_init__(self) -> None:
        if min(self.batch, self.log_every, self.checkpoint_every, self.skip_limit) < 1 or self.workers < 0:
            raise ValueError("batch, log_every, checkpoint_every and skip_limit are at least 1, workers at least 0")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance lies between 0 and 1, not {self.balance}")


FREE = {"workers", "ahead", "log_every", "checkpoint_every", "keep_every", "failing_share", "skip_limit", "collapse"}
"""Settings that may change when a run continues, because they change no weight."""


@dataclass(frozen=True)
class Summary:
    """What a run has come to.

    `steps` done of `total` (with a budget of minutes, of as many as fitted); `finished` when the schedule, the budget or the
    step asked for is reached; `last` is the last log line; `warnings` are all that the run gave, also before it continued.
    """

    steps: int
    total: int
    seconds: float
    skipped: int
    precision: str
    quarantined: int
    last: Mapping[str, Any]
    warnings: tuple[str, ...]


@dataclass
class _State:
    """What a checkpoint remembers beside tensors."""

    precision: Precision
    timed: bool
    scans: str
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    last: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Clock:
    """How far a run has come: along its schedule, and towards the end of this call."""

    schedule: Schedule
    minutes: float | None
    steps: int | None
    before: float
    began: float

    def seconds(self) -> float:
        """Seconds trained, also before the run was continued."""
        return self.before + time.monotonic() - self.began

    def place(self, step: int) -> float:
        """The point of the schedule: the step, or with a budget of minutes the same share of it as of the time."""
        return step if self.minutes is None else self.schedule.steps * self.seconds() / (60 * self.minutes)

    def share(self, step: int) -> float:
        """The done share of what this call has to do; 1 is the end."""
        share = self.place(step) / self.schedule.steps
        return share if self.steps is None else max(share, step / self.steps)


def fit(
    task: Task,
    source: Source,
    settings: LoopSettings,
    run: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    device: str | torch.device = "cpu",
    quiet: bool = False,
    title: str = "train",
) -> Summary:
    """Train `task` on the scans of `source`, in the folder `run`; continues the run that it finds there.

    Parameters
    ----------
    minutes : a budget of time, in all. The schedule then runs over the share of the time that is used instead of the share of
        the steps that are done (warm-up and all), so it ends when the time does, however fast the machine is and whatever
        else it does. Such a run continues too, but two of them are never the same to the bit: they follow a clock.
    steps : stop when this many steps are done in all. The schedule stays as it is, so a later call goes on as if there had
        been no stop.

    Raises UsageError for a budget that is not above 0; SettingsError or UsageError when the run found was made with other
    settings, on other scans, or by steps and not by minutes (or the other way round).
    """
    for name, budget in (("minutes", minutes), ("steps", steps)):
        if budget is not None and not 0 < budget < math.inf:
            raise UsageError(f"{name} is a number above 0, not {budget}")
    began = time.monotonic()
    place = torch.device(device)
    folder = run / "checkpoints"
    run.mkdir(parents=True, exist_ok=True)
    scans = source.entries
    if not len(scans):
        raise UsageError("there is no scan to train on")
    trained_on = files.digest(getattr(scans, "ids", None) or [entry.id for entry in scans])

    modules = task.modules.to(place).train()
    if settings.channels_last:
        modules.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    state = _State(resolve_precision(settings.precision, place), minutes is not None, trained_on)
    saved = checkpoint.steps(folder)
    tensors, rest = _found(folder, saved[-1], settings, state) if saved else ({}, {})
    if saved:
        state = _State(**rest["state"])
    updater = Updater(modules, settings.optimiser, place, scaled=state.precision == "fp16")
    meters, watch = Meters(), CollapseWatch(settings.collapse)
    if saved:
        checkpoint.load_strict(modules, tensors["modules"], folder)
        updater.load(tensors["optimiser"], rest["scaler"], folder)
        task.load(rest["task"])
        meters.load(rest["meters"])
        watch.load(rest["watch"])
    metrics = Metrics(run / "metrics.jsonl", state.step)
    quarantine = Quarantine(run / "quarantine.jsonl", len(scans), settings.failing_share)
    clock = _Clock(settings.schedule, minutes, steps, state.seconds, began)

    def save() -> None:
        state.seconds = clock.seconds()
        state.skipped += updater.take()[0]
        rest = {
            "state": vars(state),
            "settings": to_data(settings),
            "task": task.state(),
            "scaler": updater.scaler.state_dict(),
            "meters": meters.state(),
            "watch": watch.state(),
        }
        checkpoint.write(folder, state.step, {"modules": modules.state_dict(), "optimiser": updater.tensors()}, rest)
        checkpoint.prune(folder, settings.keep_every)

    def log() -> None:
        seconds, count = clock.seconds() - logged, meters.count
        skipped, streak = updater.take()
        state.skipped += skipped
        row = {
            "step": state.step,
            "epoch": state.step * settings.batch / len(scans),
            **meters.take(),
            **task.measures(),
            "rate": rate_now,
            "wait_share": data.waited / seconds,
            "samples_per_s": count * settings.batch / seconds,
            "skipped": state.skipped,
            "seconds": clock.seconds(),
        }
        data.waited = 0.0
        state.last = metrics.write(row)
        progress.log(state.step, clock.share(state.step), clock.seconds(), _text(row))
        new = watch.see(row, judge=clock.place(state.step) > settings.schedule.warmup)
        if skipped:
            new.append(f"skipped: {skipped} steps without finite gradients")
        for text in new:
            metrics.write({"step": state.step, "warning": text.split(":")[0], "text": text})
            progress.warn(text)
        if streak >= settings.skip_limit:
            raise TrainingError(
                f"{streak} steps in a row had no finite gradients; stopped at step {state.step}",
                where=run,
                do="lower the learning rate, clip gradients or use fp32; it continues from its last checkpoint",
            )

    with ExitStack() as stack:
        progress = stack.enter_context(Progress(title, quiet=quiet))
        data = stack.enter_context(
            Samples(
                task,
                source,
                Key.of("train", settings.seed),
                quarantine,
                start=state.step * settings.batch,
                workers=settings.workers,
                ahead=2 * settings.batch if settings.ahead is None else settings.ahead,
                balance=settings.balance,
            )
        )
        logged = clock.seconds()
        done = clock.share(state.step) >= 1
        while not done:
            rate_now = settings.optimiser.rate * rate(settings.schedule, clock.place(state.step))
            updater.begin(rate_now)
            samples = data.take(settings.batch)
            batch = task.batch([s.reads for s in samples], [s.draws for s in samples], place)
            with autocast(place, state.precision):
                losses = task.losses(batch, state.step)
            updater.end(losses["loss"])
            task.after(state.step)
            meters.add(losses)
            state.step += 1
            done = clock.share(state.step) >= 1
            progress.step(state.step, clock.share(state.step), clock.seconds())
            if done or state.step % settings.log_every == 0:
                log()
                logged = clock.seconds()
            if done or state.step % settings.checkpoint_every == 0:
                save()

    return Summary(
        steps=state.step,
        total=settings.schedule.steps if minutes is None else state.step,
        seconds=clock.seconds(),
        skipped=state.skipped,
        precision=state.precision,
        quarantined=len(quarantine.since),
        last=state.last,
        warnings=tuple(row["text"] for row in read_metrics(metrics.path)[1]),
    )


def resolve_precision(asked: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
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


def _found(
    folder: Path, step: int, settings: LoopSettings, fresh: _State
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The checkpoint to continue from; raises when it belongs to other settings, scans or another kind of budget."""
    tensors, rest = checkpoint.read(folder, step)
    checkpoint.check_same(rest["settings"], to_data(settings), folder, free=FREE)
    if rest["state"]["scans"] != fresh.scans:
        raise UsageError("this run was begun on other scans", where=folder.parent, do="start a new run")
    if rest["state"]["timed"] is not fresh.timed:
        was, now = ("minutes" if timed else "steps" for timed in (rest["state"]["timed"], fresh.timed))
        raise UsageError(
            f"the schedule of this run follows {was}, not {now}",
            where=folder.parent,
            do=f"continue it by {was}, or start a new run",
        )
    return tensors, rest


def _text(row: Mapping[str, Any]) -> str:
    parts = [f"loss {row['loss']:.4f}"]
    if "positive" in row:
        parts.append(f"similarity {row['positive']:.3f} of views, {row['negative']:.3f} of others")
    if "rank" in row:
        parts.append(f"rank {row['rank']:.1f}")
    parts += [f"rate {row['rate']:.2g}", f"{row['samples_per_s']:.1f} scans/s", f"waiting {row['wait_share']:.0%}"]
    return ", ".join(parts)
