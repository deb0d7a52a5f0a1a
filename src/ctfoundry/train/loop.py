"""The training loop, once, for every task.

A step is: samples in order, batch on the device, losses, gradients, update, one line now and then, a checkpoint now and then.
The loop continues a run that it finds; on the CPU, k steps, a kill and N - k steps give the bits of N steps. Under torchrun each
process takes its part of every step (`ctfoundry.parallel`), and the weights are those of one process up to rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ctfoundry import files, parallel
from ctfoundry.errors import SettingsError, UsageError
from ctfoundry.infer.passes import autocast
from ctfoundry.keys import Key
from ctfoundry.settings import to_data
from ctfoundry.train import checkpoint
from ctfoundry.train.data import Quarantine, Samples
from ctfoundry.train.errors import TrainingError
from ctfoundry.train.forward import Forward, compiled, undisturbed
from ctfoundry.train.journal import Journal
from ctfoundry.train.monitor import Meters, read_metrics
from ctfoundry.train.options import FREE, LoopSettings, Precision, resolve_precision
from ctfoundry.train.progress import Progress
from ctfoundry.train.schedule import Schedule, rate
from ctfoundry.train.task import Source, Task
from ctfoundry.train.update import Updater
from ctfoundry.train.utilisation import Flops, counting, peak_flops, peak_memory_gib

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FREE", "LoopSettings", "Summary", "fit", "resolve_precision"]


@dataclass(frozen=True)
class Summary:
    """What a run has come to.

    `steps` done of `total` (with a budget of minutes, of as many as fitted); `last` is the last log line; `warnings` are all
    that the run gave, also before it continued.
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
    """What a checkpoint remembers beside tensors. `threads`: of torch, on a CPU, where sums depend on their number."""

    precision: Precision
    timed: bool
    scans: str
    threads: int | None = None
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    told: int = 0
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
        """The point of the schedule: the step, or with a budget of minutes the same share of it as of the time.

        With several processes it is the clock of the first that counts, so all must ask together.
        """
        if self.minutes is None:
            return step
        return self.schedule.steps * parallel.broadcast_object(self.seconds()) / (60 * self.minutes)

    def share(self, step: int, place: float) -> float:
        """The done share of what this call has to do; 1 is the end."""
        share = place / self.schedule.steps
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
    at: tuple[int, Callable[[int], None]] | None = None,
) -> Summary:
    """Train `task` on the scans of `source`, in the folder `run`; continues the run that it finds there.

    Under torchrun every process calls this with the same arguments; the first writes the files, which all must be able to read.

    Parameters
    ----------
    minutes : a budget of time, in all. The schedule then runs over the share of the time that is used instead of the share of
        the steps that are done (warm-up and all), so it ends when the time does, however fast the machine is and whatever
        else it does. Such a run continues too, but two of them are never the same to the bit: they follow a clock.
    steps : stop when this many steps are done in all. The schedule stays as it is, so a later call goes on as if there had
        been no stop.
    at : (every, call): after each `every`-th step a checkpoint is written and the first process calls ``call(step)``, while others
        wait (no longer than `parallel.TIMEOUT`). What it does to the modules' modes and to torch's generators is undone; their
        values are not its to change. A run that continues from such a step calls again: the kill may have come before it.

    Raises UsageError for a budget that is not above 0; SettingsError for a batch that the processes cannot share, or that may
    not be accumulated; SettingsError or UsageError when the run found was made with other settings, on other scans, or by
    steps and not by minutes (or the other way round); TrainingError when too many steps have no finite gradients, or when
    another process has ended.
    """
    for name, budget in (("minutes", minutes), ("steps", steps)):
        if budget is not None and not 0 < budget < math.inf:
            raise UsageError(f"{name} is a number above 0, not {budget}")
    with parallel.joined(device) as place:
        try:
            return _fit(task, source, settings, run, minutes, steps, place, quiet, title, at)
        except RuntimeError as error:
            if parallel.size() > 1 and parallel.is_broken(error):
                raise TrainingError(
                    "another process of this training has ended, or does not answer",
                    where=f"process {parallel.rank()} of {parallel.size()}",
                    do="look at its error; started again, the run continues from its last checkpoint",
                ) from error
            raise


def _fit(
    task: Task,
    source: Source,
    settings: LoopSettings,
    run: Path,
    minutes: float | None,
    steps: int | None,
    place: torch.device,
    quiet: bool,
    title: str,
    at: tuple[int, Callable[[int], None]] | None,
) -> Summary:
    began = time.monotonic()
    own = _own_samples(settings, task)
    folder = run / "checkpoints"
    run.mkdir(parents=True, exist_ok=True)
    scans = source.entries
    if not len(scans):
        raise UsageError("there is no scan to train on")
    trained_on = files.digest(getattr(scans, "ids", None) or [entry.id for entry in scans])

    threads = torch.get_num_threads() if place.type == "cpu" else None
    state = _State(resolve_precision(settings.precision, place), minutes is not None, trained_on, threads)
    saved = parallel.broadcast_object(checkpoint.steps(folder))
    tensors, rest = _found(folder, saved[-1], settings, state) if saved else ({}, {})
    if saved:
        state = _State(**rest["state"])
    modules = task.modules.to(place, torch.float64 if state.precision == "fp64" else None).train()
    if settings.channels_last:
        for weight in modules.parameters():
            if weight.ndim == 5:  # a transformer has kernels of slices too, which `Module.to` refuses
                weight.data = weight.data.to(memory_format=torch.channels_last_3d)
    updater = Updater(
        modules,
        settings.optimiser,
        place,
        scaled=state.precision == "fp16",
        ema=settings.ema,
        rates=getattr(task, "rates", None),
    )
    meters = Meters()
    clock = _Clock(settings.schedule, minutes, steps, state.seconds, began)
    skipped_before = state.skipped

    def save() -> None:
        state.seconds = clock.seconds()
        state.skipped = skipped_before + updater.skipped()
        rest = {
            "state": vars(state),
            "settings": to_data(settings),
            "task": task.state(),
            "scaler": updater.scaler.state_dict(),
            "meters": _mean_of_meters(meters.state()),
            "watch": journal.watch.state(),
        }
        if parallel.rank() == 0:
            weights = modules.state_dict()
            tensors = {"modules": weights, "optimiser": updater.tensors()}
            if settings.ema is not None:
                tensors["ema"] = updater.averaged(weights)
            checkpoint.write(folder, state.step, tensors, rest)
            checkpoint.prune(folder, settings.keep_every)

    def log() -> None:
        seconds, steps_here = clock.seconds() - logged, state.step - logged_at
        state.skipped, streak = skipped_before + updater.skipped(), updater.streak()
        row = {
            "step": state.step,
            "epoch": state.step * settings.batch / len(scans),
            **_mean_of_processes(meters.take()),
            **task.measures(),
            "rate": rate_now,
            "wait_share": data.waited / seconds,
            "samples_per_s": steps_here * settings.batch / seconds,
            "memory_gib": peak_memory_gib(place),
            **({"peak_share": flops.useful * steps_here / seconds / peak} if flops.useful else {}),
            "skipped": state.skipped,
            "seconds": clock.seconds(),
        }
        data.waited = 0.0
        new = state.skipped - state.told
        warnings = [f"skipped: {new} steps without finite gradients"] if new else []
        state.told = state.skipped
        state.last = journal.line(row, share, judged=reached > settings.schedule.warmup, warnings=warnings)
        if streak >= settings.skip_limit:
            raise TrainingError(
                f"{streak} steps in a row had no finite gradients; stopped at step {state.step}",
                where=run,
                do="lower the learning rate, clip gradients or use fp32; it continues from its last checkpoint",
            )

    with ExitStack() as stack:
        progress = stack.enter_context(Progress(title, quiet=quiet or parallel.rank() > 0))
        journal = stack.enter_context(Journal(run, state.step, settings, progress, title))
        if saved:
            checkpoint.load_strict(modules, tensors["modules"], folder)
            updater.load(tensors["optimiser"], rest["scaler"], folder)
            updater.load_averaged(tensors.get("ema", {}), folder)
            task.load(rest["task"])
            meters.load(rest["meters"])
            journal.watch.load(rest["watch"])
        quarantine = Quarantine(run / "quarantine.jsonl", len(scans), settings.failing_share, parallel.rank())
        data = stack.enter_context(
            Samples(
                task,
                source,
                Key.of("train", settings.seed),
                quarantine,
                start=state.step * settings.batch,
                workers=settings.workers,
                ahead=2 * own if settings.ahead is None else settings.ahead,
                balance=settings.balance,
                share=(parallel.rank(), parallel.size(), settings.batch),
            )
        )
        forward = Forward(task, place)
        flops, peak = (
            Flops(),
            peak_flops(place, state.precision),
        )  # counted once, in the first step that this call trains
        began_at = logged_at = state.step
        logged = clock.seconds()
        reached = clock.place(state.step)
        # a budget of time that starting alone has used up still buys one step: a run leaves a model and a log line
        done = state.step > 0 and clock.share(state.step, reached) >= 1
        if not done and minutes is None and threads and state.threads not in (None, threads):
            journal.warn(
                state.step,
                f"threads: continued with {threads}, trained with {state.threads} so far; on a CPU the weights then are not, to the bit, those of "
                f"a run that was never stopped (--threads {state.threads} keeps them so)",
            )
        state.threads = threads
        if saved and at is not None and state.step % at[0] == 0:
            _call(at[1], state.step, modules)
        if settings.compile and not done:
            stack.enter_context(compiled(task, place))
        while not done:
            rate_now = settings.optimiser.rate * rate(settings.schedule, reached)
            updater.begin(rate_now)
            for part in range(settings.accumulate):
                samples = data.take(own // settings.accumulate)
                batch = task.batch([s.reads for s in samples], [s.draws for s in samples], place)
                last = part == settings.accumulate - 1
                count = state.step == began_at and not settings.compile  # which hides the operations
                with nullcontext() if last else forward.quietly(), counting(flops) if count else nullcontext():
                    with autocast(place, "fp32" if state.precision == "fp64" else state.precision):
                        losses = forward(batch, state.step)
                    (updater.end if last else updater.backward)(losses["loss"] / settings.accumulate)
                meters.add(losses)
            task.after(state.step)
            state.step += 1
            reached = clock.place(state.step)
            share = clock.share(state.step, reached)
            done = share >= 1
            progress.step(state.step, share, clock.seconds())
            if done or state.step % settings.log_every == 0:
                log()
                logged, logged_at = clock.seconds(), state.step
            called = at is not None and state.step % at[0] == 0
            if done or called or state.step % settings.checkpoint_every == 0:
                save()
            if called and at is not None:
                away = clock.seconds()
                _call(at[1], state.step, modules)
                logged += clock.seconds() - away  # rates and shares are those of training

    return parallel.broadcast_object(
        Summary(
            steps=state.step,
            total=settings.schedule.steps if minutes is None else state.step,
            seconds=clock.seconds(),
            skipped=state.skipped,
            precision=state.precision,
            quarantined=len(set().union(*parallel.gather_objects(set(quarantine.since)))),
            last=state.last,
            warnings=tuple(row["text"] for row in read_metrics(run / "metrics.jsonl")[1]),
        )
    )


def _own_samples(settings: LoopSettings, task: Task) -> int:
    """Samples of a step that this process takes; raises SettingsError where they do not come out even, or may not be split."""
    ranks, parts = parallel.size(), settings.accumulate
    if settings.batch % (ranks * parts):
        raise SettingsError(
            f"a step of {settings.batch} scans does not split evenly into {ranks} processes with {parts} parts each",
            where="batch",
            do=f"make it a multiple of {ranks * parts}",
        )
    if parts > 1 and not task.separable:
        raise SettingsError(
            "the loss of this task, or its batch norm, compares the scans of a step: gradients of parts of it do not add up",
            where="accumulate",
            do="set it to 1, and `chunk` in the recipe, which sends parts through the encoder and shows the loss all of them",
        )
    return settings.batch // ranks


def _call(call: Callable[[int], None], step: int, modules: torch.nn.Module) -> None:
    """Let the first process call while the others wait."""
    if parallel.rank() == 0:
        with undisturbed(modules):
            call(step)
    parallel.barrier()


def _mean_of_processes(values: dict[str, float]) -> dict[str, float]:
    everyone = parallel.gather_objects(values)
    return {name: sum(each[name] for each in everyone) / len(everyone) for name in values}


def _mean_of_meters(state: dict[str, Any]) -> dict[str, Any]:
    """`Meters.state` as it is where all continue from the checkpoint of one."""
    sums = _mean_of_processes({name: float(text) for name, text in state["sums"].items()})
    return {**state, "sums": {name: repr(value) for name, value in sums.items()}}


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
