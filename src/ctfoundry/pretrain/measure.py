"""A few real steps of a recipe, timed: as much of a step as fits into the time and memory that there are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry.geometry import Box, Grid, Vec3, make_affine
from ctfoundry.infer.passes import autocast
from ctfoundry.keys import Key
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.pretrain.task import CropTask
from ctfoundry.store import Entry
from ctfoundry.train import Source
from ctfoundry.train.loop import resolve_precision
from ctfoundry.train.utilisation import Flops, counting, holding

if TYPE_CHECKING:
    from jaxtyping import Int16

TRUNK = (340.0, 360.0, 360.0)
"""Millimetres along d, h, w of the made-up scan: a chest and abdomen without the air around it."""


@dataclass(frozen=True)
class Step:
    """One measured size of a step.

    Attributes
    ----------
    scans, crops, crop : its size; each crop has two views.
    full : whether that is the whole step of one device.
    count : how often it was timed.
    seconds : median of crops, views, forward and backward; what grows with the step.
    update_seconds : median of AdamW's update; the same for every size.
    flops : of one step.
    memory : bytes of tensors that lived at once, beyond weights, gradients and optimiser.
    precision : of the forward pass.
    """

    scans: int
    crops: int
    crop: Vec3
    full: bool
    count: int
    seconds: float
    update_seconds: float
    flops: Flops
    memory: float
    precision: str

    @property
    def voxels(self) -> int:
        """Voxels of all views together, with which work and memory grow."""
        return self.scans * self.crops * 2 * int(np.prod(self.crop))


@dataclass(frozen=True)
class MadeUp:
    """Scans of noise that need no disk, all of one size on the recipe's own grid."""

    preparation: str
    count: int = 4

    @property
    def entries(self) -> Sequence[Entry]:
        """The scans."""
        asked = PREPARATIONS[self.preparation].resampling.spacing
        spacing = [s or native for s, native in zip(asked, (2.0, 0.8, 0.8), strict=True)]
        d, h, w = (max(1, round(mm / s)) for mm, s in zip(TRUNK, spacing, strict=True))
        shape = (d, h, w)
        grid = Grid(shape, make_affine(spacing))
        box: Any = tuple((0, n) for n in shape)
        return [Entry(f"made-up-{i}", f"made-up-{i}", "made-up", grid, box, box, Path()) for i in range(self.count)]

    def read(self, id: str, box: Box) -> Int16[np.ndarray, "d h w"]:
        """Noise between -1000 and 1000 HU."""
        noise = Key.of("made-up", id).integers(-1000, 1001, (65536,)).astype(np.int16)
        return np.resize(noise, tuple(high - low for low, high in box))


def measure(recipe: Recipe, source: Source, device: torch.device, scans: int, seconds: float) -> Step:
    """Time the largest step of `recipe`, up to `scans` scans on this device, that fits into about `seconds` and into memory.

    The smallest size tells what larger ones will take. Raises SettingsError as the recipe's own training would.
    """
    end = time.monotonic() + seconds
    sizes = _sizes(recipe, scans)
    best = _timed(sizes[0], source, device, time.monotonic() + seconds / 4, full=sizes[0] == sizes[-1])
    for size in reversed(sizes[1:]):
        times = _voxels(size) / best.voxels
        expected = times * (best.seconds + best.update_seconds)
        if 1.5 * expected > end - time.monotonic() or 1.2 * times * best.memory > 0.7 * _free(device):
            continue
        try:
            return _timed(size, source, device, end, full=size == sizes[-1])
        except torch.OutOfMemoryError:  # the next smaller one then
            torch.cuda.empty_cache()
    return best


def reading_rate(recipe: Recipe, source: Source, seconds: float) -> float:
    """Scans a second whose crops are planned and read by the recipe's number of threads, with nothing else to do."""
    task, key, entries = CropTask(_sized(recipe, recipe.crop, 2, recipe.crops)), Key.of("plan"), source.entries
    end, done = time.monotonic() + seconds, 0

    def read(place: tuple[int, Any]) -> int:
        i, entry = place
        if time.monotonic() > end:
            return 0
        for box in task.plan(key(i), entry).boxes:
            source.read(entry.id, box)
        return 1

    order = [entries[int(i)] for i in key("order").permutation(len(entries))[:1000]]
    workers = max(1, recipe.train.workers)
    began = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        places = enumerate(cycle(order))
        while time.monotonic() < end:
            done += sum(pool.map(read, islice(places, 4 * workers)))
    return done / (time.monotonic() - began)


def _sizes(recipe: Recipe, scans: int) -> list[Recipe]:
    """Steps from a small one to that of one device, without chunks, which would only hide how memory grows."""
    # what is told apart must be two, also for batch norm: crops of a scan, or scans
    few = 2 if not recipe.intra or (recipe.family != "simclr" and recipe.batch_norm == "per-crop-view") else 1
    few, crops, crop = min(few, scans), min(2, recipe.crops), recipe.crop
    small = crop
    if all(n % 32 == 0 for n in crop):
        small = (crop[0] // 2, crop[1] // 2, crop[2] // 2)
    steps = [(small, few, crops), (crop, few, crops), (crop, few, recipe.crops), (crop, scans, recipe.crops)]
    if scans >= 4:
        steps.insert(3, (crop, scans // 2, recipe.crops))
    return [_sized(recipe, *size) for size in dict.fromkeys(steps)]


def _sized(recipe: Recipe, crop: Vec3, scans: int, crops: int) -> Recipe:
    return replace(recipe, crop=crop, crops=crops, chunk=0, train=replace(recipe.train, batch=scans, accumulate=1))


def _voxels(recipe: Recipe) -> int:
    return recipe.train.batch * recipe.crops * 2 * int(np.prod(recipe.crop))


def _timed(recipe: Recipe, source: Source, device: torch.device, end: float, *, full: bool) -> Step:
    """Steps until `end`, one at least; the first, in which kernels are chosen and memory is found, counts only if it is alone."""
    task = CropTask(recipe)
    precision = resolve_precision(recipe.train.precision, device)
    modules = task.modules.to(device, torch.float64 if precision == "fp64" else None).train()
    if recipe.train.channels_last:
        modules.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(modules.parameters(), recipe.train.optimiser.rate, fused=True)
    for parameter in modules.parameters():  # gradients and moments stand before memory is measured
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    samples = _samples(task, source, recipe.train.batch)

    flops = Flops()

    def work() -> None:
        batch = task.batch([s[0] for s in samples], [s[1] for s in samples], device)
        optimiser.zero_grad(set_to_none=False)  # gradients are counted with the weights, not with the step
        with counting(flops) if not flops.useful else nullcontext():
            with autocast(device, "fp32" if precision == "fp64" else precision):
                loss = task.losses(batch, 0)["loss"]
            loss.backward()

    with holding() as held:
        began = time.monotonic()
        work()
        _wait(device)
        seconds = [time.monotonic() - began]
    updates = [_clock(optimiser.step, device)]
    first = len(seconds)
    while len(seconds) < 30 and time.monotonic() + 1.2 * sum(seconds) / len(seconds) < end:
        seconds.append(_clock(work, device))
        updates.append(_clock(optimiser.step, device))
    kept = seconds[first:] or seconds
    return Step(
        scans=recipe.train.batch,
        crops=recipe.crops,
        crop=recipe.crop,
        full=full,
        count=len(kept),
        seconds=median(kept),
        update_seconds=median(updates[first:] or updates),
        flops=flops,
        memory=held.peak,
        precision=precision,
    )


def _samples(task: CropTask, source: Source, count: int) -> list[tuple[list[np.ndarray], Any]]:
    key, entries = Key.of("plan"), source.entries
    made = []
    for i in range(count):
        entry = entries[i % len(entries)]
        draws = task.plan(key(i), entry)
        made.append(([source.read(entry.id, box) for box in draws.boxes], draws))
    return made


def _clock(call: Callable[[], Any], device: torch.device) -> float:
    began = time.monotonic()
    call()
    _wait(device)
    return time.monotonic() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _free(device: torch.device) -> float:
    """Bytes that are free on the device, or in this machine; infinite where nobody says."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), float("inf"))
