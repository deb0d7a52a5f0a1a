"""``ctfoundry bench pretrain``: a step of pretraining against the same step with MONAI's transforms and network in a plain loop.

Both sides train on the same scans on the recipe's grid, with the same batch, optimiser, precision and threads. Ours reads its crops
from a store; the other side has the prepared scans in memory. Nobody reads ahead: every part of a step is counted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry import geometry, store
from ctfoundry.bench.baselines.pretrain import Form, Loop
from ctfoundry.errors import UsageError
from ctfoundry.geometry import Vec3
from ctfoundry.infer.passes import Precision, autocast
from ctfoundry.keys import Key
from ctfoundry.preparation import PREPARATIONS, scale
from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.pretrain.recipe_files import load_recipe
from ctfoundry.pretrain.task import CropTask
from ctfoundry.store import Store
from ctfoundry.store.placed import make_crop, placement, plan_crop
from ctfoundry.train.loop import resolve_precision
from ctfoundry.train.update import Updater
from ctfoundry.volume import Volume
from ctfoundry.zoo.models import device_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

PARTS = ("data", "views", "forward", "backward", "optimiser")
FIELD_MM = (420.0, 360.0, 360.0)
FORMS = {
    "crop-view by crop-view": Form(batched=False),  # as the public code
    "one batch": Form(batched=True),
    "one batch, channels_last": Form(batched=True, channels_last=True),
}
"""How the other side is written. The first two take the layout that torch takes; the last has borrowed ours."""


def run(
    *, repeats: int = 5, threads: int = 1, device: str = "auto", recipe: Recipe | None = None, scans: int = 2
) -> list[dict[str, Any]]:
    """Rows of {name, ours_s, other_s, ratio, max_error, threads, dtype}; seconds of a step, medians of alternating repeats.

    First against the fastest of the other side's forms in torch's own layout, with a row for each part of the step; then against
    the other forms. `max_error` is the relative difference of the two losses for the same weights and views, in float32. On a
    GPU a row about `ct-fm` follows, which has no other side (`gpu_row`).
    """
    try:
        from monai.data import get_track_meta, set_track_meta
    except ImportError as missing:
        raise UsageError("this benchmark needs MONAI", do="pip install 'ctfoundry[dev]'") from missing

    place = device_of(device)
    recipe = recipe or load_recipe("ct-fm-tiny")
    precision = _precision(recipe, place)
    before, tracked = torch.get_num_threads(), get_track_meta()
    torch.set_num_threads(threads)
    set_track_meta(False)
    try:
        with tempfile.TemporaryDirectory(prefix="ctfoundry-bench-") as folder:
            stored = fill(Path(folder) / "store", recipe, scans)
            ours = Ours(recipe, stored, place, precision)
            memory = [prepared(stored, i, recipe) for i in range(scans)]
            others = {name: Loop(recipe, memory, place, form) for name, form in FORMS.items()}
            sides = {"ours": ours.step} | {name: _with(loop, precision) for name, loop in others.items()}
            times = _alternate(sides, repeats, place)
            error = _difference(ours, others["one batch"])
        rows = _rows(recipe, times, error)
        common = {"threads": threads, "dtype": str(precision)}
        rows = [{**row, **common} for row in rows]
        if place.type == "cuda":
            rows.append({**gpu_row(repeats=repeats, device=place), **common})
        return rows
    finally:
        torch.set_num_threads(before)
        set_track_meta(tracked)


class Ours:
    """Our step of a recipe: planned, read, made into views, trained on, by the loop's own parts."""

    def __init__(self, recipe: Recipe, stored: Store, device: torch.device, precision: Precision) -> None:
        self.recipe, self.stored, self.device, self.precision = recipe, stored, device, precision
        self.task = CropTask(recipe)
        modules = self.task.modules.to(device).train()
        if recipe.train.channels_last:
            modules.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.updater = Updater(modules, recipe.train.optimiser, device, scaled=precision == "fp16")
        self.at = 0

    def batch(self, mark: Callable[[str], None] = lambda _: None) -> Tensor:
        """The next views."""
        entries = self.stored.entries
        reads, draws = [], []
        for _ in range(self.recipe.train.batch):
            entry = entries[self.at % len(entries)]
            drawn = self.task.plan(Key.of("bench", "pretrain", self.at), entry)
            reads.append([self.stored.read(entry.id, box) for box in drawn.boxes])
            draws.append(drawn)
            self.at += 1
        mark("data")
        views = self.task.batch(reads, draws, self.device)
        mark("views")
        return views

    def step(self, mark: Callable[[str], None] = lambda _: None) -> None:
        """One step; `mark` is called with the name of each part when it ends."""
        batch = self.batch(mark)
        self.updater.begin(self.recipe.train.optimiser.rate)
        with autocast(self.device, self.precision):
            losses = self.task.losses(batch, self.at)
        mark("forward")
        hook = self.updater.optimiser.register_step_pre_hook(lambda *_: mark("backward"))
        self.updater.end(losses["loss"])
        hook.remove()
        mark("optimiser")


def fill(path: Path, recipe: Recipe, scans: int) -> Store:
    """A store on the recipe's grid with bodies of soft tissue and noise in air, a field of `FIELD_MM` each."""
    given = PREPARATIONS[recipe.preparation].resampling.spacing
    assert given is not None
    spacing = [s for s in given if s is not None]
    shape = tuple(round(mm / s) for mm, s in zip(FIELD_MM, spacing, strict=True))
    with store.create(path, grid="x".join(f"{s:g}" for s in spacing)) as made:
        for i in range(scans):
            made.add(_body(i, (shape[0], shape[1], shape[2]), spacing), f"scan{i}", patient=f"patient{i}")
    return store.open_store(path)


def prepared(stored: Store, index: int, recipe: Recipe) -> Float[Tensor, "1 d h w"]:
    """A whole scan as the recipe's preparation makes it."""
    preparation, entry = PREPARATIONS[recipe.preparation], stored.entries[index]
    where = placement(entry, preparation.resampling)
    d, h, w = where.shape
    plan = plan_crop(where, ((0, d), (0, h), (0, w)))
    hu = make_crop(torch.from_numpy(stored.read(entry.id, plan.reads)), plan.operators)
    return scale(hu, preparation.intensity)[None].contiguous()


def gpu_row(*, repeats: int, device: torch.device, scans: int = 4) -> dict[str, Any]:
    """A step of `ct-fm` on a GPU, of `scans` scans: seconds of each part, and what the GPU does in them.

    `peak_share` is useful operations (convolutions and products, forward and backward) over those the GPU could have done in the
    time of the step without its data; `convolution_share` the share of the GPU's busy time in convolutions; `wait_share` that of
    waiting for data in a run of the loop itself, which reads ahead.
    """
    from ctfoundry.train import fit
    from ctfoundry.train.utilisation import flops_of, peak_flops

    full = load_recipe("ct-fm")
    recipe = replace(full, train=replace(full.train, batch=scans, log_every=10, checkpoint_every=1000))
    precision = _precision(recipe, device)
    with tempfile.TemporaryDirectory(prefix="ctfoundry-bench-") as folder:
        stored = fill(Path(folder) / "store", recipe, 2 * scans)
        ours = Ours(recipe, stored, device, precision)
        times = _alternate({"ours": ours.step}, repeats, device)["ours"]
        batch = ours.batch()

        def train() -> None:
            ours.updater.begin(recipe.train.optimiser.rate)
            with autocast(device, precision):
                loss = ours.task.losses(batch, 0)["loss"]
            ours.updater.end(loss)

        operations, convolutions = flops_of(train), convolution_share(train)
        summary = fit(CropTask(recipe), stored, recipe.train, Path(folder) / "run", steps=30, device=device, quiet=True)
    medians = {part: median(t[part] for t in times) for part in PARTS}
    compute = sum(medians[part] for part in ("forward", "backward", "optimiser"))
    return {
        "name": f"a step of ct-fm, {scans} scans x {recipe.crops} crops x 2 views",
        "ours_s": sum(medians.values()),
        "other_s": None,
        "ratio": None,
        "max_error": None,
        "parts": medians,
        "peak_share": operations / compute / peak_flops(device, precision),
        "convolution_share": convolutions,
        "wait_share": summary.last["wait_share"],
        "device": torch.cuda.get_device_name(device),
    }


def convolution_share(work: Callable[[], None]) -> float:
    """Share of the device's busy time that `work` spends in convolutions, forward and backward, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        work()
        if on_gpu:
            torch.cuda.synchronize()

    def own(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    events = found.key_averages()
    # only operators: a kernel is listed a second time under its own name
    operators = [e for e in events if e.key.startswith("aten::")]
    total = sum(own(e) for e in operators)
    return sum(own(e) for e in operators if "conv" in e.key) / total if total else 0.0


def _alternate(
    sides: dict[str, Callable[[Callable[[str], None]], Any]], repeats: int, device: torch.device
) -> dict[str, list[dict[str, float]]]:
    """Seconds of each part of each side's steps, in turns; the first round warms up and is not counted."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, step in sides.items():
            with _watch(device) as (mark, parts):
                step(mark)
            if turn:
                times[name].append(parts)
    return times


@contextmanager
def _watch(device: torch.device) -> Iterator[tuple[Callable[[str], None], dict[str, float]]]:
    """A `mark` to call when a part has ended, and the seconds that each part took."""
    parts: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    last = time.perf_counter()

    def mark(part: str) -> None:
        nonlocal last
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        parts[part], last = now - last, now

    yield mark, parts


def _precision(recipe: Recipe, device: torch.device) -> Precision:
    precision = resolve_precision(recipe.train.precision, device)
    if precision == "fp64":
        raise UsageError("float64 is for checks, not for benchmarks", do="take another precision")
    return precision


def _with(loop: Loop, precision: str) -> Callable[[Callable[[str], None]], Any]:
    return lambda mark: loop.step(precision, mark)


def _rows(recipe: Recipe, times: dict[str, list[dict[str, float]]], error: float) -> list[dict[str, Any]]:
    whole = {name: median(sum(t.values()) for t in found) for name, found in times.items()}
    plain = [name for name, form in FORMS.items() if not form.channels_last]
    best = min(plain, key=whole.__getitem__)
    title = f"a step of {recipe.name}, {recipe.train.batch} x {recipe.crops} crops x 2 views: MONAI and a plain loop"

    def row(name: str, ours: float, other: float, error: float | None) -> dict[str, Any]:
        return {"name": name, "ours_s": ours, "other_s": other, "ratio": other / ours, "max_error": error}

    rows = [row(f"{title}, {best}", whole["ours"], whole[best], error)]
    for part in PARTS:
        ours, other = (median(t[part] for t in times[name]) for name in ("ours", best))
        rows.append(row(f"  {part}", ours, other, None))
    rows += [row(f"{title}, {name}", whole["ours"], whole[name], error) for name in FORMS if name != best]
    return rows


@torch.no_grad()
def _difference(ours: Ours, other: Loop) -> float:
    """Relative difference of the losses, for our weights and the same views, in float32, where batch norm averages over the same."""
    recipe = ours.recipe
    batch = ours.batch()
    other.network.take(ours.task.modules)
    mine = float(ours.task.losses(batch, 0)["loss"])
    views = batch.view(recipe.crops, 2, recipe.train.batch, *batch.shape[1:])
    theirs = float(other.loss([[crop[0], crop[1]] for crop in views]))
    return abs(mine - theirs) / abs(theirs)


def _body(index: int, shape: Vec3, spacing: Sequence[float]) -> Volume:
    """An ellipse of soft tissue with noise and some blobs, in air."""
    h, w = (np.linspace(-1, 1, n) for n in shape[1:])
    body = (h[:, None] ** 2 / 0.6 + w[None] ** 2 / 0.9) < 1
    noise = Key.of("bench", "pretrain", "scan", index).integers(-24, 25, shape)
    blobs = 200 * np.sin(np.arange(shape[0]) / 5)[:, None, None] * np.sin(9 * h)[:, None] * np.sin(11 * w)
    hu = np.where(body, 40 + blobs + noise, -1000 + noise // 8).astype(np.int16)
    step = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    return Volume(hu, geometry.make_affine(step, "SPL"), "hu")
