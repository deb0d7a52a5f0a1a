"""The training loop, once, for every task.

A step is: samples in order, batch on the device, losses, gradients, update, one line now and then, a checkpoint now and then.
The loop continues a run that it finds; on the CPU, k steps, a kill and N - k steps give the bits of N steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ctfoundry import files
from ctfoundry.errors import CTFoundryError, UsageError
from ctfoundry.infer.passes import Precision, autocast
from ctfoundry.keys import Key
from ctfoundry.settings import to_data
from ctfoundry.train import checkpoint
from ctfoundry.train.data import Quarantine, Samples
from ctfoundry.train.monitor import CollapseRule, CollapseWatch, Metrics, read_metrics
from ctfoundry.train.progress import Progress
from ctfoundry.train.schedule import Schedule, rate
from ctfoundry.train.task import Source, Task

if TYPE_CHECKING:
    from torch import Tensor

MEASURED_STEPS = 4
"""With a budget of minutes, the first steps are timed (the very first excepted) and then set the schedule's length."""
OVERRUN = 1.1
"""A run with a budget of minutes stops at this multiple of it when its steps got slower than those measured."""


@dataclass(frozen=True)
class Optimiser:
    """AdamW (Loshchilov and Hutter 2019). `clip`: largest norm of all gradients together; None leaves them as they are."""

    rate: float = 1e-4
    weight_decay: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None


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
    channels_last : keep activations and weights in channels_last_3d, which oneDNN and cuDNN prefer.
    workers, ahead : threads that read, and samples that they read ahead (None: two steps). They change no result.
    log_every, checkpoint_every : steps between log lines and between checkpoints.
    keep_every : checkpoints of every such step stay; 0 keeps the last one only.
    failing_share : the run stops when more than this share of the scans (and more than one) cannot be read.
    skip_limit : the run stops after this many steps in a row without finite gradients (noticed at the next log step).
    collapse : when a collapse is announced.
    """

    schedule: Schedule
    optimiser: Optimiser = Optimiser()
    batch: int = 4
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
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


FREE = {"workers", "ahead", "log_every", "checkpoint_every", "keep_every", "failing_share", "skip_limit", "collapse"}
"""Settings that may change when a run continues, because they change no weight."""


@dataclass(frozen=True)
class Summary:
    """What a run has come to.

    `steps` done of `total`; `finished` when the schedule is through or the step asked for is reached; `last` is the last
    log line.
    """

    steps: int
    total: int
    finished: bool
    seconds: float
    skipped: int
    precision: str
    quarantined: int
    last: Mapping[str, Any]
    warnings: tuple[str, ...]


@dataclass
class _State:
    """Everything beside tensors that a checkpoint remembers."""

    precision: Precision
    minutes: float | None
    scans: str
    step: int = 0
    total: int | None = None
    seconds: float = 0.0
    skipped: int = 0
    sums: dict[str, str] = field(default_factory=dict)  # text, because JSON knows no NaN
    summed: int = 0
    streaks: dict[str, int] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)


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
    minutes : a budget of time. The first `MEASURED_STEPS` steps are timed, then the schedule is stretched, warm-up and all, to
        the number of steps that fit; that number is kept in the checkpoints and stated in the summary, and
        ``schedule.steps`` set to it gives the same schedule again.
    steps : stop when this many steps are done in all. The schedule stays as it is, so a later call goes on as if there had
        been no stop.

    Raises SettingsError or UsageError when the run found was made with other settings or another budget.
    """
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
    parameters = {name: p for name, p in modules.named_parameters() if p.requires_grad}
    own = settings.optimiser
    optimiser = torch.optim.AdamW(
        parameters.values(), own.rate, own.betas, own.eps, weight_decay=own.weight_decay, fused=True
    )
    state = _State(resolve_precision(settings.precision, place), minutes, trained_on)
    saved = checkpoint.steps(folder)
    if saved:
        state, rest = _continue(folder, saved[-1], task, settings, parameters, optimiser, state)
    scaler = torch.amp.GradScaler(place.type, enabled=state.precision == "fp16")
    if saved and rest["scaler"]:
        scaler.load_state_dict(rest["scaler"])
    guard = _Guard(modules, place)
    watch = CollapseWatch(settings.collapse)
    watch.streaks.update(state.streaks)
    metrics = Metrics(run / "metrics.jsonl", state.step)
    quarantine = Quarantine(run / "quarantine.jsonl", len(scans), settings.failing_share)
    sums: dict[str, Tensor | float] = {name: float(value) for name, value in state.sums.items()}
    times: list[float] = []
    elapsed_before = state.seconds

    def save() -> None:
        state.seconds = elapsed_before + time.monotonic() - began
        state.sums = {name: repr(float(value)) for name, value in sums.items()}
        state.streaks = dict(watch.streaks)
        state.skipped += guard.take()[0]
        rest = {"settings": to_data(settings), "task": task.state(), "scaler": scaler.state_dict()}
        tensors = {"modules": modules.state_dict(), "optimiser": checkpoint.optimiser_state(optimiser, parameters)}
        checkpoint.write(folder, state.step, tensors, {"run": vars(state), **rest})
        checkpoint.prune(folder, settings.keep_every)

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
            )
        )
        logged = time.monotonic()
        while state.step < _stop(state, settings, steps):
            step_began = time.monotonic()
            stretched = state.total if minutes is not None else None
            for group in optimiser.param_groups:
                group["lr"] = own.rate * rate(settings.schedule, state.step, total=stretched)

            samples = data.take(settings.batch)
            batch = task.batch([s.reads for s in samples], [s.draws for s in samples], place)
            guard.remember()
            with autocast(place, state.precision):
                losses = task.losses(batch, state.step)
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(losses["loss"]).backward()
            scaler.unscale_(optimiser)
            guard.step(optimiser, scaler, own.clip)
            task.after(state.step)

            state.step += 1
            state.summed += 1
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach()  # on the device: a float here would wait for it
            if minutes is not None and state.total is None:
                if place.type == "cuda":
                    torch.cuda.synchronize(place)
                times.append(time.monotonic() - step_began)
                if len(times) == MEASURED_STEPS:
                    left = minutes * 60 - (elapsed_before + time.monotonic() - began)
                    state.total = state.step + max(1, int(left / statistics.median(times[1:])))
            total = _stop(state, settings, steps)
            seconds = (time.monotonic() - logged) / state.summed
            progress.step(state.step, total, seconds)

            done = state.step == total
            if done or state.step % settings.log_every == 0:
                now = time.monotonic()
                skipped, streak = guard.take()
                state.skipped += skipped
                row = {
                    "step": state.step,
                    "epoch": round(state.step * settings.batch / len(scans), 4),
                    **{name: float(value) / state.summed for name, value in sums.items()},
                    **task.measures(),
                    "rate": optimiser.param_groups[0]["lr"],
                    "wait_share": data.waited / (now - logged),
                    "samples_per_s": state.summed * settings.batch / (now - logged),
                    "skipped": state.skipped,
                    "seconds": elapsed_before + now - began,
                }
                state.last = metrics.write(row)
                progress.log(state.step, total, seconds, _text(row))
                new = watch.see(row) if state.step > settings.schedule.warmup else []
                new += [f"skipped: {skipped} steps without finite gradients"] if skipped else []
                for text in new:
                    metrics.write({"step": state.step, "warning": text.split(":")[0], "text": text})
                    progress.warn(text)
                if streak >= settings.skip_limit:
                    raise CTFoundryError(
                        f"{streak} steps in a row had no finite gradients; stopped at step {state.step}",
                        where=run,
                        do="lower the learning rate, clip gradients, or use precision fp32; it continues from its last checkpoint",
                    )
                sums.clear()
                state.summed, data.waited, logged = 0, 0.0, now
            late = minutes is not None and elapsed_before + time.monotonic() - began > OVERRUN * 60 * minutes
            if done or late or state.step % settings.checkpoint_every == 0:
                save()
            if late and not done:
                text = f"late: stopped at step {state.step} of {total}, because steps got slower than those measured"
                metrics.write({"step": state.step, "warning": "late", "text": text})
                progress.warn(text)
                break

    return Summary(
        steps=state.step,
        total=state.total or settings.schedule.steps,
        finished=state.step >= _stop(state, settings, steps),
        seconds=elapsed_before + time.monotonic() - began,
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


def _stop(state: _State, settings: LoopSettings, steps: int | None) -> int:
    """The step at which this call ends."""
    total = state.total or settings.schedule.steps
    if state.minutes is not None and state.total is None:
        total = state.step + MEASURED_STEPS
    return total if steps is None else min(total, steps)


def _continue(
    folder: Path,
    step: int,
    task: Task,
    settings: LoopSettings,
    parameters: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
    fresh: _State,
) -> tuple[_State, dict[str, Any]]:
    """Load a checkpoint; raises when it belongs to other settings."""
    tensors, rest = checkpoint.read(folder, step)
    where = folder / f"step-{step:08d}"
    checkpoint.check_same(rest["settings"], to_data(settings), where, free=FREE)
    state = _State(**rest["run"])
    if state.scans != fresh.scans:
        raise UsageError("this run was begun on other scans", where=folder.parent, do="start a new run")
    if state.minutes != fresh.minutes:
        was, now = (
            f"a budget of {m:g} minutes" if m is not None else "the schedule's own length"
            for m in (state.minutes, fresh.minutes)
        )
        raise UsageError(f"this run was begun with {was}, not {now}", where=folder.parent, do="start a new run")
    checkpoint.load_strict(task.modules, tensors["modules"], where)
    checkpoint.load_optimiser(optimiser, parameters, tensors["optimiser"], where)
    task.load(rest["task"])
    return state, rest


def _text(row: Mapping[str, Any]) -> str:
    parts = [f"loss {row['loss']:.4f}"]
    if "positive" in row:
        parts.append(f"similarity {row['positive']:.3f} of views, {row['negative']:.3f} of others")
    if "rank" in row:
        parts.append(f"rank {row['rank']:.1f}")
    parts += [f"rate {row['rate']:.2g}", f"{row['samples_per_s']:.1f} scans/s", f"waiting {row['wait_share']:.0%}"]
    return ", ".join(parts)


class _Guard:
    """Updates the weights unless a gradient is not finite, and counts, all without waiting for the device.

    A step that is skipped leaves no trace: AdamW's fused kernel is told on the device to do nothing, and running statistics
    are put back, since a forward pass that overflowed has spoiled them.
    """

    def __init__(self, modules: torch.nn.Module, device: torch.device) -> None:
        self.buffers = [b for b in modules.buffers() if b.numel()]
        self.before: list[Tensor] = []
        self.skipped = torch.zeros((), device=device)
        self.streak = torch.zeros((), device=device)
        self.worst = torch.zeros((), device=device)

    def remember(self) -> None:
        """Called before the forward pass."""
        self.before = [b.clone() for b in self.buffers]

    @torch.no_grad()
    def step(self, optimiser: torch.optim.AdamW, scaler: torch.amp.GradScaler, clip: float | None) -> None:
        """Clip, then update or skip."""
        parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        bad = (~norm.isfinite()).float()
        if not scaler.is_enabled():  # an enabled scaler tells the optimiser itself
            optimiser.found_inf = bad  # type: ignore[attr-defined]
        scaler.step(optimiser)
        scaler.update()
        for buffer, old in zip(self.buffers, self.before, strict=True):
            buffer.copy_(torch.where(bad.bool(), old, buffer))
        self.skipped += bad
        self.streak = (self.streak + 1) * bad
        self.worst = torch.maximum(self.worst, self.streak)

    def take(self) -> tuple[int, int]:
        """(skipped steps, longest row of them) since the last call."""
        found = int(self.skipped), int(self.worst)
        self.skipped.zero_()
        self.worst.copy_(self.streak)
        return found
