"""What a recipe will take: days, memory and disk, from half a minute of measuring and arithmetic that is told.

Work is proportional to the voxels of all views (counted operations, not assumed ones), so a part of a step stands for the
whole. What a GPU will do is either what this GPU did, or, where the measuring was done on a CPU, a stated share of the peak that
its maker publishes: the second is a guess about speed, and says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ctfoundry.errors import UsageError
from ctfoundry.pretrain.measure import MadeUp, Step, measure, reading_rate
from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.pretrain.recipe_files import load_recipe
from ctfoundry.pretrain.task import CropTask
from ctfoundry.settings import with_changes
from ctfoundry.store import Store, open_store
from ctfoundry.train.utilisation import PEAKS, DType, peak_flops, published_peak
from ctfoundry.zoo.models import device_of

if TYPE_CHECKING:
    from ctfoundry.train import LoopSettings

SHARE = 0.3
"""Share of a GPU's published half-precision peak that is taken for granted where no GPU was measured: what a tuned 3D network of
this kind reaches. Attention reaches more, small or untuned networks a third of it."""

STORED_MB = {"floor:1": 19.4, "ct-fm": 8.6}
"""Megabytes of a mean scan (170 slices of 512x512) by the store's grid, measured on real scans (docs/scale.md)."""


@dataclass(frozen=True)
class Plan:
    """What a recipe will take.

    Attributes
    ----------
    recipe, gpus, gpu : of the plan; `gpus` 0 is the measured device alone.
    scans, steps, passes : scans of the corpus, steps of the schedule, and how often it sees each scan.
    tera : 1e12 useful operations of a step, over all devices; `tera_again` those done twice to save memory.
    step_seconds, days : of the whole schedule, if reading keeps up.
    share, share_from : of the device's peak (`peak_tera`, 1e12 operations a second) at which it works, and whether that was
        measured or is stated.
    reading_wanted, reading_rate : scans a second that the plan needs, and that this machine reads; None where not measured.
    memory_gib : of one device, by what takes it; ``all`` is the sum.
    store_gb, store_from : of the prepared scans.
    checkpoint_gb, checkpoints_kept, checkpoints_gb : of one, how many are kept, all of them.
    measured : on what, and how much of a step.
    notes : what was not measured, and what does not fit.
    """

    recipe: str
    gpus: int
    gpu: str
    scans: int
    steps: int
    passes: float
    tera: float
    tera_again: float
    step_seconds: float
    days: float
    share: float
    share_from: str
    peak_tera: float
    reading_wanted: float
    reading_rate: float | None
    memory_gib: dict[str, float]
    store_gb: float
    store_from: str
    checkpoint_gb: float
    checkpoints_kept: int
    checkpoints_gb: float
    measured: dict[str, str | float]
    notes: tuple[str, ...]


def plan(
    recipe: Recipe | str | Path,
    *,
    gpus: int = 0,
    scans: int | None = None,
    store: Store | str | Path | None = None,
    seconds: float = 30.0,
    device: str = "auto",
    gpu: str | None = None,
    share: float | None = None,
    changes: Sequence[str] = (),
) -> Plan:
    """What `recipe` will take on `gpus` GPUs with `scans` scans.

    Parameters
    ----------
    gpus : 0 plans for the measured device as it is.
    scans : of the corpus; those of the store by default. The schedule has a number of steps, so they change passes and disk, not days.
    store : what to read and measure from; without one, made-up scans that are not read from anywhere.
    seconds : for measuring.
    device : to measure on.
    gpu : which to plan for (`PEAKS`); the measured one, or an H100 where a CPU was measured.
    share : of its published peak; the measured one, or `SHARE` where a CPU was measured.

    Raises UsageError for numbers that make no plan, and SettingsError for the recipe's own.
    """
    chosen = with_changes(recipe if isinstance(recipe, Recipe) else load_recipe(recipe), changes)
    settings, place = chosen.train, device_of(device)
    opened = open_store(store) if isinstance(store, str | Path) else store
    _check(chosen, gpus, scans, seconds, gpu, share, opened)
    corpus = scans if scans is not None else len(opened or ())
    source = MadeUp(chosen.preparation) if opened is None else opened
    each = settings.batch // max(gpus, 1)  # scans of a step on one device

    reads = None if opened is None else reading_rate(chosen, opened, seconds / 6)
    step = measure(chosen, source, place, each // settings.accumulate, seconds * (1 if opened is None else 5 / 6))
    target = _target(step, place, gpus, gpu, share)
    views = (
        each * chosen.crops * 2 * math.prod(chosen.crop) / step.voxels
    )  # a device's part of a step, in measured ones
    # chunks compute every forward pass once more; the measured step had none
    in_flight = each // settings.accumulate * chosen.crops * 2
    chunked = 0 < chosen.chunk < in_flight
    again = views * (step.flops.again + (step.flops.forward if chunked else 0))
    useful = views * step.flops.useful
    # the update is the same for any batch; on another device it is a matter of memory, and small
    step_seconds = (useful + again) / (target.peak * target.share) + (step.update_seconds if target.measured else 0)
    weights = _weights(chosen)
    memory = _memory(chosen, step, weights, gpus, chosen.chunk if chunked else in_flight)
    checkpoint = 4e-9 * weights * (3 + (settings.ema is not None))
    kept = _kept(settings)
    stored, stored_from = _stored(opened, corpus)
    return Plan(
        recipe=chosen.name,
        gpus=gpus,
        gpu=target.name,
        scans=corpus,
        steps=settings.schedule.steps,
        passes=settings.schedule.steps * settings.batch / corpus,
        tera=1e-12 * useful * max(gpus, 1),
        tera_again=1e-12 * again * max(gpus, 1),
        step_seconds=step_seconds,
        days=step_seconds * settings.schedule.steps / 86400,
        share=target.share,
        share_from="measured" if target.measured else "stated",
        peak_tera=1e-12 * target.peak,
        reading_wanted=settings.batch / step_seconds,
        reading_rate=reads,
        memory_gib=memory,
        store_gb=stored,
        store_from=stored_from,
        checkpoint_gb=checkpoint,
        checkpoints_kept=kept,
        checkpoints_gb=checkpoint * (kept + 1),  # one more while the next is written
        measured=_said(step, place),
        notes=tuple(_notes(chosen, step, place, target, gpus, reads, settings.batch / step_seconds, memory["all"])),
    )


@dataclass(frozen=True)
class _Target:
    name: str
    peak: float
    share: float
    measured: bool


def _check(
    recipe: Recipe,
    gpus: int,
    scans: int | None,
    seconds: float,
    gpu: str | None,
    share: float | None,
    store: Store | None,
) -> None:
    if gpus < 0 or not 0 < seconds < math.inf or (share is not None and not 0 < share <= 1):
        raise UsageError("gpus is at least 0, seconds above 0, share above 0 and at most 1")
    if scans is None and store is None:
        raise UsageError("a plan wants a number of scans", do="add --scans N, or --store STORE")
    if scans is not None and scans < 1:
        raise UsageError(f"scans is at least 1, not {scans}")
    if store is not None and not len(store):
        raise UsageError("the store has no scan to measure with", where=store.path)
    if gpus and recipe.train.batch % (gpus * recipe.train.accumulate):
        raise UsageError(
            f"{recipe.train.batch} scans a step in {recipe.train.accumulate} parts do not divide among {gpus} GPUs",
            do="take a number of GPUs that divides them, or change them with --set train.batch=N",
        )
    if gpu is not None and published_peak(gpu, "bf16") is None:
        raise UsageError(f"no peak is known for the GPU {gpu!r}", do=f"take one of {', '.join(PEAKS)}")


def _target(step: Step, place: torch.device, gpus: int, gpu: str | None, share: float | None) -> _Target:
    precision: DType = "fp32"
    for known in ("fp64", "bf16", "fp16"):
        precision = known if step.precision == known else precision
    peak = peak_flops(place, precision)
    found = step.flops.executed / step.seconds / peak
    if gpu is None and (not gpus or place.type == "cuda"):
        return _Target(_name(place), peak, share or found, share is None)
    name = gpu or "H100"
    # a GPU trains in half precision where the recipe leaves it the choice
    published = published_peak(name, "fp32" if precision == "fp32" and place.type == "cuda" else "bf16")
    assert published is not None
    if place.type == "cuda":
        return _Target(name, published, share or found, False)
    return _Target(name, published, share or SHARE, False)


def _name(place: torch.device) -> str:
    return torch.cuda.get_device_name(place) if place.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _weights(recipe: Recipe) -> int:
    return sum(p.numel() for p in CropTask(recipe).modules.parameters())


def _memory(recipe: Recipe, step: Step, weights: int, gpus: int, in_flight: int) -> dict[str, float]:
    """GiB of one device. A half-precision copy of the weights is part of what was measured, and does not grow."""
    fixed = 2.0 * weights if step.precision in ("bf16", "fp16") else 0.0
    per_voxel = max(0.0, step.memory - fixed) / step.voxels
    parts = {
        "weights": 4.0 * weights * (1 + (recipe.train.ema is not None)) + fixed,
        "gradients": 4.0 * weights * (2 if gpus > 1 else 1),  # DDP keeps them a second time, to send them
        "AdamW": 8.0 * weights,
        "views and activations": per_voxel * in_flight * math.prod(recipe.crop),
    }
    return {name: count / 2**30 for name, count in (*parts.items(), ("all", sum(parts.values())))}


def _kept(settings: LoopSettings) -> int:
    """Checkpoints that are there at the end: every n-th, and the last."""
    steps, every = settings.schedule.steps, settings.keep_every
    return 1 if not every else steps // every + (steps % every > 0)


def _stored(store: Store | None, scans: int) -> tuple[float, str]:
    if store is None:
        typical = ", ".join(f"{mb} MB on {grid}" for grid, mb in STORED_MB.items())
        return STORED_MB["floor:1"] * scans / 1e3, f"typical mean scans: {typical}; here floor:1"
    some = store.entries[:: max(1, len(store) // 200)]
    sizes = [sum(os.stat(p).st_size for p in (store.path / "scans").glob(f"{entry.id}.*")) for entry in some]
    mean = sum(sizes) / len(sizes)
    return mean * scans / 1e9, f"{mean / 1e6:.3g} MB a scan, the mean of {len(sizes)} of this store on {store.grid}"


def _said(step: Step, place: torch.device) -> dict[str, str | float]:
    return {
        "device": _name(place),
        "precision": step.precision,
        "scans": step.scans,
        "crops": step.crops,
        "crop": "x".join(map(str, step.crop)),
        "steps": step.count,
        "seconds": step.seconds,
        "update_seconds": step.update_seconds,
        "tera": 1e-12 * step.flops.useful,
    }


def _notes(
    recipe: Recipe,
    step: Step,
    place: torch.device,
    target: _Target,
    gpus: int,
    reads: float | None,
    wanted: float,
    memory: float,
) -> list[str]:
    notes = []
    if not step.full:
        notes.append(
            f"measured was a part of a step ({step.scans} scans of {step.crops} crops of {'x'.join(map(str, step.crop))}): the whole "
            "did not fit into the time or memory there was; operations and memory grow with the voxels"
        )
    if not target.measured:
        how = "stated share" if place.type == "cpu" else "share measured on another GPU"
        notes.append(
            f"no {target.name} was measured: days follow from its published peak and a {how}, {target.share:.0%}"
        )
    if gpus > 1:
        notes.append("sending gradients between GPUs was not measured and not added")
    if place.type == "cpu" and gpus:
        notes.append("memory is that of tensors counted here; a GPU's kernels and allocator want a tenth more or so")
    if reads is None:
        notes.append("reading was not measured: no store was given")
    elif reads < wanted:
        notes.append(
            f"reading would be too slow: {recipe.train.workers} threads here read {reads:.3g} scans a second of {wanted:.3g}, "
            f"so training would take {wanted / reads:.1f} times as long on a machine that reads like this one"
        )
    if gpus and place.type == "cuda":
        total = torch.cuda.get_device_properties(place).total_memory / 2**30
        if memory > total:
            notes.append(f"this GPU has {total:.0f} GiB: set chunk, model.checkpoint or train.accumulate")
    return notes
