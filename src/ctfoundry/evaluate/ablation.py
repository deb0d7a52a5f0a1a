"""CT-FM's ablation of objectives and crop counts, redone small (paper: "Pre-training ablations", Extended Data Figure 6).

Every arm is a recipe of the package, trained for several seeds on the same patients until the same number of voxels has gone
through the encoder. Its frozen encoder is measured on patients that no arm saw: Dice of a light decoder on few labelled
phantoms, the miss and the containment of landmarks searched from one phantom in another, and, on real scans, how often two
views of one place find each other. Untrained encoders and methods that know no anatomy are measured the same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files, io
from ctfoundry.errors import UsageError
from ctfoundry.evaluate import landmarks, localise, views
from ctfoundry.evaluate.gather import Scan, fill_store, gather, hold_out
from ctfoundry.keys import Key
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.settings import nearest, to_data, with_changes

if TYPE_CHECKING:
    from ctfoundry.adapt.scores import Scores
    from ctfoundry.encoder import Encoder
    from ctfoundry.pretrain.recipe import Recipe

RANDOM = "random weights"
ARMS: Mapping[str, str] = {
    "simclr": "SimCLR, plain, one large crop a scan (published)",
    "simclr-matched": "SimCLR, plain, crops as intra",
    "simclr-intra": "SimCLR, intra-sample, 15 crops",
    "simsiam": "SimSiam, plain, one large crop a scan (published)",
    "simsiam-intra": "SimSiam, intra-sample",
    "vicreg": "VICReg, plain, one large crop a scan (published)",
    "vicreg-matched": "VICReg, plain, crops as intra",
    "vicreg-intra": "VICReg, intra-sample",
    "simclr-intra-5": "SimCLR, intra-sample, 5 crops",
    "simclr-intra-10": "SimCLR, intra-sample, 10 crops",
    "simclr-intra-20": "SimCLR, intra-sample, 20 crops",
}
"""Arms by the name of their recipe (with ``-tiny`` behind it). SimSiam on matched crops is none of its own: crops do not meet in its
loss, so that plain and intra-sample are one run there."""
LEVELS = ("stage2", "stage3", "stage4")
"""What a cell is described by in searches, as in the quickstart."""
VIEW = (96.0, 128.0, 128.0)
"""Millimetres of the places whose views are matched."""
MOST_CASES = 12
"""Phantoms that are searched in one another: the work grows with the square."""
MOST_REAL = 16
PLACES, DRAWS = 16, 2


@dataclass(frozen=True)
class Plan:
    """What is done, as data: its digest names the results.

    Attributes
    ----------
    phantoms : patients made; a third is held out.
    voxel_mm : of the phantoms.
    forwards : crops of the tiny recipe (16x64x64) whose voxels go through the encoder in a run, views counted.
    shots : labelled phantoms that the decoder learns from.
    seeds : runs of each arm.
    """

    phantoms: int = 36
    voxel_mm: float = 3.0
    forwards: int = 3600
    shots: int = 5
    seeds: int = 3

    def steps(self, recipe: Recipe) -> int:
        """Steps of a recipe after which the voxels of `forwards` crops have gone through the encoder."""
        voxels = 2 * recipe.train.batch * recipe.crops * math.prod(recipe.crop)
        return max(round(self.forwards * 16 * 64 * 64 / voxels), 2)


@dataclass(frozen=True)
class Job:
    """One encoder to make and to measure, in a process of its own."""

    out: Path
    arm: str
    seed: int
    plan: Plan
    threads: int
    device: str

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.arm.replace(' ', '-')}-s{self.seed}"

    @property
    def result(self) -> Path:
        """Where its measurements go."""
        return self.out / "results" / f"{self.name}.json"


def ablation(
    out: Path,
    *,
    data: Path | None = None,
    patients: Path | None = None,
    plan: Plan | None = None,
    arms: Sequence[str] = (),
    jobs: int = 2,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Make what is missing under `out` and return the measurements of every arm and seed, random weights among them.

    Parameters
    ----------
    data, patients : real scans beside the phantoms, and who they belong to, as in the quickstart.
    arms : of `ARMS`; none: all.
    jobs : encoders made at a time, each with its share of the threads.

    Killed and called again, it continues: finished results with the same plan stay. UsageError for an arm that is none.
    """
    plan = plan or Plan()
    for arm in arms:
        if arm not in ARMS:
            raise UsageError(f"no arm is called {arm!r}; {nearest(arm, ARMS)}")
    import torch

    prepare(out, plan, data, patients, say)
    threads = max(torch.get_num_threads() // jobs, 1)
    todo = [
        Job(out, arm, seed, plan, threads, device) for seed in range(plan.seeds) for arm in (RANDOM, *(arms or ARMS))
    ]
    left = [job for job in todo if not _is_done(job)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for number, done in enumerate(as_completed(pool.submit(work, job) for job in left), 1):
            say(f"{done.result()}: {len(todo) - len(left) + number} of {len(todo)}")
    return [json.loads(job.result.read_text()) for job in todo]


def _is_done(job: Job) -> bool:
    if not job.result.is_file():
        return False
    try:
        return bool(json.loads(job.result.read_text())["of"] == _digest(job))
    except (ValueError, KeyError):
        return False


def _digest(job: Job) -> str:
    recipe = None if job.arm == RANDOM else to_data(_recipe(job.arm, job.seed, job.plan))
    return files.digest([to_data(job.plan), job.seed, recipe, json.loads((job.out / "patients.json").read_text())])


def prepare(
    out: Path, plan: Plan, data: Path | None, patients: Path | None, say: Callable[[str], None] = lambda _: None
) -> None:
    """Phantoms, two stores (training scans; real scans that are held out) and ``patients.json``, which says who is in which."""
    from ctfoundry.layouts import plain
    from ctfoundry.layouts.cases import Cohort

    out.mkdir(parents=True, exist_ok=True)
    names = plain.make_many(out / "phantoms", Cohort(plan.phantoms, 0, voxel_mm=plan.voxel_mm), say=say)
    known = gather(out / "phantoms", say=say)
    split = hold_out(known, 0)
    real = gather(data, patients, say=say) if data else None
    real_split = hold_out(real, 0) if real else None
    if not split.honest or (real_split and not real_split.honest):
        raise UsageError("too few patients to hold any out")
    spacing = PREPARATIONS["ct-fm-tiny"].resampling.spacing
    folder = {scan.id: Path(known.paths[scan.id]).parent.name for scan in known.scans}
    train = [s for s in known.scans if s.patient in split.train]
    held = [s for s in known.scans if s.patient in split.held_out]
    real_train: list[Scan] = []
    real_held: list[Scan] = []
    if real and real_split:
        real_train = [s for s in real.scans if s.patient in real_split.train]
        real_held = [s for s in real.scans if s.patient in real_split.held_out][:MOST_REAL]
    fill_store(out / "store", [*_apart("phantom", train), *_apart("real", real_train)], spacing, say)
    fill_store(out / "held-out", _apart("real", real_held), spacing, say)
    assert {folder[s.id] for s in (*train, *held)} <= set(names)
    table = {
        "train": sorted(folder[s.id] for s in train),
        "held_out": sorted(folder[s.id] for s in held),
        "real_train": len({s.patient for s in real_train}),
        "real_held_out": sorted(s.id for s in real_held),
    }
    files.write_json(out / "patients.json", table)


def _apart(source: str, scans: Iterable[Scan]) -> list[Scan]:
    """The scans with patients that cannot be mistaken for those of another source, each of which counts from P01."""
    from dataclasses import replace

    return [replace(scan, patient=f"{source}-{scan.patient}") for scan in scans]


def _recipe(arm: str, seed: int, plan: Plan) -> Recipe:
    from ctfoundry.pretrain.recipe_files import load_recipe

    recipe = load_recipe(f"{arm}-tiny")
    steps = plan.steps(recipe)
    return with_changes(
        recipe,
        [
            f"train.seed={seed}",
            f"train.schedule.steps={steps}",
            f"train.schedule.warmup={min(10, steps // 4)}",
            f"train.checkpoint_every={max(steps // 3, 1)}",
        ],
    )


def work(job: Job) -> str:
    """Pretrain one arm (or take random weights), measure it, write the result; runs in a process of its own."""
    import torch

    from ctfoundry import zoo
    from ctfoundry.pretrain.run import pretrain

    torch.set_num_threads(job.threads)
    known = json.loads((job.out / "patients.json").read_text())
    training: dict[str, Any] = {}
    if job.arm == RANDOM:
        encoder = zoo.load_encoder("ct-fm-tiny", weights="random", device=job.device, seed=job.seed)
    else:
        recipe = _recipe(job.arm, job.seed, job.plan)
        run = job.out / "runs" / job.name
        done = pretrain(recipe, job.out / "store", run, device=job.device, quiet=True)
        encoder = zoo.load_encoder(run, device=job.device)
        training = {
            "objective": recipe.objective,
            "crop": list(recipe.crop),
            "crops": recipe.crops,
            "batch": recipe.train.batch,
            "steps": done.train.steps,
            "seconds": round(done.train.seconds, 1),
            "warnings": list(done.train.warnings),
            "last": dict(done.train.last),
        }
    result = {
        "of": _digest(job),
        "arm": job.arm,
        "seed": job.seed,
        "training": training,
        **measure(encoder, job.out, known, job.plan, job.seed),
    }
    files.write_json(job.result, result)
    return job.name


def measure(encoder: Encoder, out: Path, known: Mapping[str, Any], plan: Plan, seed: int) -> dict[str, Any]:
    """All measurements of one frozen encoder, value by value, so that intervals can be drawn over patients later."""
    cases = _cases(out, tuple(known["held_out"][:MOST_CASES]))
    methods = {"encoder": localise.encoder_method(encoder, LEVELS)}
    if seed == 0 and encoder.card.weights == "random":  # the same for all encoders: measured once
        methods["HU around the cell"] = localise.hu_method(encoder, LEVELS[0])
    found = localise.localise(cases, methods)
    return {
        "dice": _dice(encoder, out, known, plan, seed),
        "searches": [
            [e.method, e.landmark, e.pair.query, e.pair.target, round(e.pair.value, 2), e.inside]
            for e in found
            if e.method in methods or len(methods) > 1
        ],
        "views": _views(encoder, out, known["real_held_out"]),
    }


def _dice(encoder: Encoder, out: Path, known: Mapping[str, Any], plan: Plan, seed: int) -> dict[str, Any]:
    """Of each held-out phantom, Dice as mean of the structures and of all voxels together, for the encoder and (once) for
    methods that know no anatomy. Seed n draws the labelled phantoms, the decoder's weights and the order anew."""
    from ctfoundry.adapt.cases import chosen_classes, few, open_labelled
    from ctfoundry.adapt.prepared import Cases
    from ctfoundry.adapt.probe import ProbeSettings, probe_segmentation
    from ctfoundry.adapt.trivial import intensity_scores, position_scores
    from ctfoundry.phantom.names import GROUPS

    data = open_labelled(out / "phantoms")
    classes = chosen_classes(data, groups=GROUPS)
    scans = {scan.id: scan for scan in data.scans}
    train = few([scans[name] for name in known["train"]], plan.shots, seed=seed)
    held = [scans[name] for name in known["held_out"]]
    learn, score = (Cases(part, encoder.preparation, classes, cache=out / "prepared") for part in (train, held))
    result = probe_segmentation(encoder, learn, score, ProbeSettings(seed=seed))
    found = {"encoder": _by_patient(result.scores)}
    if seed == 0 and encoder.card.weights == "random":
        found["one voxel's HU"] = _by_patient(intensity_scores(learn, score))
        found["position in the body box"] = _by_patient(position_scores(learn, score))
    return found


def _by_patient(scores: Scores) -> dict[str, dict[str, float]]:
    found = {}
    for patient, row, (hit, taken, own) in zip(scores.patients, scores.dice, scores.counts.sum(1), strict=True):
        found[patient] = {"macro": float(np.nanmean(row)), "micro": float(2 * hit / (taken + own))}
    return found


def _views(encoder: Encoder, out: Path, ids: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Of each held-out real patient, hits of the encoder and of HU bands alone."""
    from ctfoundry.store import open_store

    found: dict[str, dict[str, list[float]]] = {"encoder": {}, "HU bands of the crop": {}}
    if not ids:
        return found
    store = open_store(out / "held-out")
    crop = tuple(round(n / s) for n, s in zip(VIEW, (6.0, 2.0, 2.0), strict=True))
    for id in ids:
        patient, volume = store.entry(id).patient, store.volume(id)
        for draw in range(DRAWS):
            key = Key.of("ablation places", id, draw)
            places = views.draw_places(encoder, volume, (crop[0], crop[1], crop[2]), key, places=PLACES)
            found["encoder"].setdefault(patient, []).extend(views.encoder_hits(encoder, places))
            found["HU bands of the crop"].setdefault(patient, []).extend(views.hu_hits(places))
    return found


@lru_cache(maxsize=1)
def _cases(out: Path, names: tuple[str, ...]) -> tuple[localise.Case, ...]:
    """Held-out phantoms with labels and the centroids of the structures that lie wholly inside."""
    found = []
    for name in names:
        volume = io.read(out / "phantoms" / name / "ct.nii.gz")
        labels = io.read(out / "phantoms" / name / "labels.nii.gz")
        found.append(localise.Case(name, name, volume, landmarks.centroids(labels), labels))
    return tuple(found)
