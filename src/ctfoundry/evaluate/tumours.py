"""Tumours on real scans: networks from pretrained and from random weights beside methods that know no anatomy, tested on every patient once.

Patients are divided into folds. A run learns from the patients of the other folds, of whom some choose the step, and is tested on its
fold, once. All arms have the same patients, seeds and, where their networks are the same, the same recipe and steps. The SuPreM U-Net stands
beside them as an architecture from scratch, with its own published preparation, its norm corrected and as published.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files, io
from ctfoundry.errors import UsageError
from ctfoundry.evaluate import tumours_trivial
from ctfoundry.evaluate.pretrained import pretrained
from ctfoundry.infer.passes import Extent
from ctfoundry.keys import Key
from ctfoundry.settings import to_data, with_changes

if TYPE_CHECKING:
    from ctfoundry.adapt.cases import Classes, LabelledScan, LabelledSet
    from ctfoundry.adapt.recipe import SegmentationRecipe
    from ctfoundry.archive.adapters.dataset import Split
    from ctfoundry.encoder import Encoder
    from ctfoundry.segmenter import Segmenter
    from ctfoundry.volume import Volume

SCRATCH = "from scratch"
SUPREM = "SuPreM U-Net from scratch, norm corrected"
SUPREM_PUBLISHED = "SuPreM U-Net from scratch, norm as published"
TRIVIAL = "trivial"
PAIR = re.compile(r"(?P<name>.+)_CT\.nii\.gz")
"""Scans that lie beside their tumour mask, ``NAME_CT.nii.gz`` and ``NAME_GTV.nii.gz``, as in the IBSI's sarcoma set."""
TUMOUR = "tumour"
SMALLEST = 10
"""Predicted parts of fewer voxels count as no finding (0.1 ml at 2x2x3 mm)."""
FOUND_IOU = 0.1
"""A tumour is found when it and the predicted parts that touch it overlap by at least this share of their union."""


@dataclass(frozen=True)
class Plan:
    """What is done, as data.

    Attributes
    ----------
    folds, seeds : of the cross-validation; runs of each fold. validation : patients of a training part that choose the step.
    recipe, changes : of every arm; the changes are those that the few-shot comparison tuned on phantoms. steps : of each run with the encoder
        of ``--init``; validate_every : steps.
    suprem_folds, suprem_steps, suprem_filters, suprem_patch : of the SuPreM U-Net (published: 32 filters, 96x96x96 voxels); of how many
        folds the patients test it (0: it is left out).
    pretraining : phantoms and steps of the encoder that is pretrained where none is given.
    """

    folds: int = 2
    seeds: int = 1
    validation: int = 4
    recipe: str = "lesions-tiny"
    changes: tuple[str, ...] = (
        "train.optimiser.rate=3e-3",
        *(f"augmentation.{name}=0" for name in ("affine", "smooth", "scale", "shift", "noise")),
    )
    steps: int = 200
    validate_every: int = 50
    suprem_folds: int = 2
    suprem_steps: int = 150
    suprem_filters: int = 8
    suprem_patch: int = 64
    pretraining: tuple[int, int] = (110, 1500)


@dataclass(frozen=True)
class Arm:
    """One row of the table. `kind` : ``encoder``, ``suprem`` or ``trivial``; `init` : a model, or ``random`` for weights drawn for the
    architecture of the model `like`."""

    name: str
    kind: str
    init: str = "random"
    like: str = ""


@dataclass(frozen=True)
class Job:
    """One run and its test, in a process of its own."""

    out: Path
    data: Path
    arm: Arm
    fold: int
    seed: int
    plan: Plan
    device: str

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{re.sub('[^a-z0-9]+', '-', self.arm.name.lower()).strip('-')}-f{self.fold}-s{self.seed}"

    @property
    def result(self) -> Path:
        """Where its measurements go."""
        return self.out / "results" / f"{self.name}.json"


def tumours(
    out: Path,
    data: Path,
    *,
    init: Sequence[str | Path] = (),
    plan: Plan | None = None,
    jobs: int = 1,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Make what is missing under `out` and return the measurements of every arm, fold and seed.

    Parameters
    ----------
    data : a folder of scans with tumour masks (`open_tumours`).
    init : pretrained encoders of one architecture, which is also trained from scratch; none: one is pretrained on phantoms.
    jobs : runs at a time, a thread each.

    Killed and called again, it continues; a test that was made is never made again for the same plan. UsageError for too few patients.
    """
    plan = plan or Plan()
    known = open_tumours(data)
    parts = folds(known.scans, plan)
    models = list(map(str, init)) or [str(pretrained(out, *plan.pretraining, device=device, say=say))]
    for model in models:
        if _card_of(model)["weights"] == "random":
            raise UsageError("random weights against random weights say nothing", where="--init")
    todo = _jobs(out, data, plan, models, device)
    files.write_json(
        out / "setup.json",
        {
            "plan": to_data(plan),
            "patients": len({scan.patient for scan in known.scans}),
            "scans": len(known.scans),
            "folds": [{name: len(ids) for name, ids in part.items()} for part in parts],
            "models": {job.arm.name: _card_of(job.arm.init) for job in todo if job.arm.init != "random"},
            "arms": list(dict.fromkeys(job.arm.name for job in todo)),
        },
    )
    left = [job for job in todo if not _is_done(job)]
    began = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for number, done in enumerate(as_completed(pool.submit(work, job) for job in left), 1):
            rest = (time.monotonic() - began) / number * (len(left) - number) / 60
            say(f"{done.result()}: {len(todo) - len(left) + number} of {len(todo)}, {rest:.0f} minutes left")
    return [json.loads(job.result.read_text()) for job in todo]


def _jobs(out: Path, data: Path, plan: Plan, models: Sequence[str], device: str) -> list[Job]:
    """All runs, the comparison of pretrained with random weights first."""
    named: dict[str, str] = {}
    for model in models:
        card = _card_of(model)
        name = f"{card['name']}, pretrained" if len(models) == 1 else f"{card['name']}, pretrained ({len(named) + 1})"
        named[name] = model
    scratch = Arm(f"{_card_of(models[0])['name']}, {SCRATCH}", "encoder", like=models[0])
    encoders = [*(Arm(name, "encoder", model) for name, model in named.items()), scratch]
    found = [Job(out, data, Arm(TRIVIAL, "trivial"), fold, 0, plan, device) for fold in range(plan.folds)]
    for arms, tested in ((encoders, plan.folds), ([Arm(SUPREM, "suprem")], min(plan.suprem_folds, plan.folds))):
        found += [
            Job(out, data, arm, fold, seed, plan, device)
            for seed in range(plan.seeds)
            for fold in range(tested)
            for arm in arms
        ]
    return found


def _card_of(model: str) -> dict[str, str]:
    from ctfoundry.zoo.files import model_file, read_card

    card = read_card(model_file(Path(model)))
    return {"name": card.name, "sha256": card.sha256, "weights": card.weights}


def _is_done(job: Job) -> bool:
    if not job.result.is_file():
        return False
    try:
        return bool(json.loads(job.result.read_text())["of"] == _digest(job))
    except (ValueError, KeyError):
        return False


def _digest(job: Job) -> str:
    plan = job.plan
    parts = [plan.folds, plan.validation, job.fold, job.seed, job.arm.name]
    if job.arm.kind == "trivial":
        return files.digest(parts)
    init = "random" if job.arm.init == "random" else _card_of(job.arm.init)["sha256"]
    return files.digest([*parts, init, to_data(recipe_of(job)), plan.suprem_filters * (job.arm.kind == "suprem")])


# ---------------------------------------------------------------------- data


def open_tumours(folder: Path) -> LabelledSet:
    """Scans with tumour masks: pairs ``NAME_CT.nii.gz`` and ``NAME_GTV.nii.gz`` (patients P01, P02 ...), or what `open_labelled` knows.

    Of the latter every labelled structure counts as tumour. Raises UsageError for a scan without its mask.
    """
    from ctfoundry.adapt.cases import LabelledScan, LabelledSet, open_labelled

    scans = sorted(path for path in folder.glob("*_CT.nii.gz") if PAIR.fullmatch(path.name))
    if not scans:
        return open_labelled(folder)
    found = []
    for number, path in enumerate(scans, 1):
        mask = path.with_name(path.name.replace("_CT.nii.gz", "_GTV.nii.gz"))
        if not mask.is_file():
            raise UsageError(f"{path.name} has no {mask.name} beside it", where=folder)
        id = f"P{number:02d}"
        found.append(
            LabelledScan(
                id,
                id,
                partial(io.read, path),
                {TUMOUR: partial(io.read, mask, kind="label")},
                {},
                partial(_hashes, path, mask),
            )
        )
    return LabelledSet("tumours", tuple(found))


def _hashes(*paths: Path) -> str:
    return files.digest([files.sha256(path) for path in paths])


def classes_of(data: LabelledSet) -> Classes:
    """One class: every structure that the set names is tumour."""
    from ctfoundry.adapt.cases import Classes

    return Classes.of({TUMOUR: data.structures})


def folds(scans: Sequence[LabelledScan], plan: Plan) -> list[dict[str, set[str]]]:
    """For each fold the patients that train, validate and test; every patient tests in one. Drawn by patient, not by table order."""
    patients = sorted({scan.patient for scan in scans})
    if (
        plan.folds < 2
        or len(patients) < plan.folds
        or len(patients) * (plan.folds - 1) // plan.folds <= plan.validation
    ):
        raise UsageError(
            f"{len(patients)} patients do not divide into {plan.folds} folds with {plan.validation} validation patients",
            do="give more patients, or fewer folds or validation patients",
        )
    order = [patients[i] for i in Key.of("tumour folds").permutation(len(patients))]
    found = []
    for fold in range(plan.folds):
        test = order[fold :: plan.folds]
        rest = [patient for patient in order if patient not in test]
        drawn = [rest[i] for i in Key.of("tumour validation", fold).permutation(len(rest))]
        chosen = drawn[: plan.validation]
        found.append({"train": set(drawn) - set(chosen), "validation": set(chosen), "test": set(test)})
    return found


# ---------------------------------------------------------------------- one run


def work(job: Job) -> str:
    """Train one arm on one fold (or teach the trivial methods), test it, write the result; runs in a process of its own."""
    import torch

    torch.set_num_threads(1)
    known = open_tumours(job.data)
    classes = classes_of(known)
    parts = folds(known.scans, job.plan)[job.fold]
    test = [scan for scan in known.scans if scan.patient in parts["test"]]
    if job.arm.kind == "trivial":
        guesses = tumours_trivial.guesses(
            [_pair(scan, classes) for scan in known.scans if scan.patient in parts["train"] | parts["validation"]]
        )
        methods: dict[str, Callable[[Volume], np.ndarray]] = dict(guesses)
        training: dict[str, Any] = {}
    else:
        methods, training = _trained(job, known, parts)
    measured: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for scan in test:
        image, mask = _pair(scan, classes)
        for name, method in methods.items():
            found = method(image)
            _keep_mask(job.out, name, job.seed, scan.id, found)
            measured[name][scan.id] = {"patient": scan.patient, **measure(found, mask, image.spacing)}
    files.write_json(
        job.result,
        {
            "of": _digest(job),
            "arm": job.arm.name,
            "fold": job.fold,
            "seed": job.seed,
            "training": training,
            "methods": measured,
        },
    )
    return job.name


def _pair(scan: LabelledScan, classes: Classes) -> tuple[Volume, np.ndarray]:
    from ctfoundry.adapt.scores import read_classes

    image, labels = read_classes(scan, classes)
    return image, labels.voxels == 1


def _trained(
    job: Job, known: LabelledSet, parts: Mapping[str, set[str]]
) -> tuple[dict[str, Callable[[Volume], np.ndarray]], dict[str, Any]]:
    from ctfoundry.adapt.cases import LabelledSet
    from ctfoundry.adapt.finetune import finetune
    from ctfoundry.segmenter import Pass
    from ctfoundry.train.options import resolve_precision
    from ctfoundry.zoo import load_segmenter
    from ctfoundry.zoo.models import device_of

    # the U-Net's one validation chooses nothing, and takes long: one patient is enough
    choosing = {min(parts["validation"])} if job.arm.kind == "suprem" else parts["validation"]
    splits: dict[str, Split] = {**dict.fromkeys(parts["train"], "train"), **dict.fromkeys(choosing, "validation")}
    # the test patients are no part of what the run is given
    learn = [replace(scan, split=splits[scan.patient]) for scan in known.scans if scan.patient in splits]
    run = job.out / "runs" / job.name
    done = finetune(
        recipe_of(job),
        LabelledSet(known.name, tuple(learn)),
        run,
        init=_suprem(job)
        if job.arm.kind == "suprem"
        else drawn(job.arm.like, job.seed)
        if job.arm.like
        else job.arm.init,
        groups={TUMOUR: known.structures},
        device=job.device,
        quiet=True,
        cache=job.out / "prepared",
        report=False,
        command=["evaluate", "tumours"],
    )
    assert done.best is not None
    precision = resolve_precision("auto", device_of(job.device))
    settings = Pass(precision="fp32" if precision == "fp64" else precision, batch=1)
    made = load_segmenter(run, device=job.device)
    methods = {job.arm.name: _method(made, settings)}
    if job.arm.kind == "suprem":
        methods[SUPREM_PUBLISHED] = _method(_as_published(made), settings)
    training = {
        "steps": done.train.steps,
        "seconds": round(done.train.seconds, 1),
        "best_step": done.best["step"],
        "validation_dice": done.best["dice"],
        "precision": done.train.precision,
        "parameters": sum(p.numel() for p in made.network.parameters()),
        "warnings": [*done.warnings, *done.train.warnings],
    }
    return methods, training


def _method(made: Segmenter, settings: Any) -> Callable[[Volume], np.ndarray]:
    return lambda volume: made(volume, settings=settings).voxels == 1


def recipe_of(job: Job) -> SegmentationRecipe:
    """The recipe of a run: one for all weights of an encoder; for the SuPreM U-Net its preparation, windows and a patch of its own."""
    from ctfoundry.adapt.recipe import SegmentationRecipe, finetune_recipe

    plan = job.plan
    base = finetune_recipe(plan.recipe)
    if not isinstance(base, SegmentationRecipe):
        raise UsageError(f"recipe {plan.recipe!r} does not segment", where="recipe")
    base = with_changes(base, plan.changes)
    suprem = job.arm.kind == "suprem"
    steps = plan.suprem_steps if suprem else plan.steps
    schedule = replace(base.train.schedule, steps=steps, warmup=min(base.train.schedule.warmup, steps // 4))
    recipe = replace(
        base,
        train=replace(base.train, seed=job.seed, schedule=schedule, checkpoint_every=steps),
        validate_every=plan.validate_every,
        extent=Extent("whole"),
    )
    if not suprem:
        return recipe
    n = plan.suprem_patch
    return replace(
        recipe,
        name="lesions-suprem",
        model="suprem-unet",
        preparation="suprem",
        patch=(n, n, n),
        extent=Extent("windows", (96, 96, 96), 0.25),
        train=replace(recipe.train, batch=1),
        # one validation, at the end: the weights are then the same for both norms, which differ in use alone
        validate_every=steps,
    )


def _suprem(job: Job) -> Encoder:
    """The U-Net's way down with random weights, at the plan's width."""
    from ctfoundry.encoder import Encoder
    from ctfoundry.zoo.models import CARDS, build

    card = CARDS["suprem-unet"]
    arguments = {**card.arguments, "filters": job.plan.suprem_filters}
    card = replace(card, arguments=arguments, seed=job.seed)
    return Encoder.of(build(card), card)


def drawn(model: str | Path, seed: int) -> Encoder:
    """An encoder of a model's architecture and preparation with random weights."""
    from ctfoundry.encoder import Encoder
    from ctfoundry.zoo.files import model_file, read_card
    from ctfoundry.zoo.models import build

    card = read_card(model_file(Path(model)))
    card = replace(card, weights="random", sha256="", seed=seed, training={}, golden={})
    return Encoder.of(build(card), card)


def _as_published(made: Segmenter) -> Segmenter:
    """The same weights, with the norm that takes the statistics of its batch also in use."""
    from ctfoundry.segmenter import Segmenter
    from ctfoundry.zoo.models import empty

    card = replace(made.card, arguments={**made.card.arguments, "norm": "batch"})
    network = empty(card)
    network.load_state_dict(made.network.state_dict())
    return Segmenter.of(network.to(made.device), card)


def measure(found: np.ndarray, mask: np.ndarray, spacing: Sequence[float]) -> dict[str, Any]:
    """The measures of one scan: Dice, tumours by connected part, volume, and the distance of surfaces (mm; the grid's diagonal where
    nothing is predicted)."""
    from ctfoundry.adapt.surfaces import lesion_scores, surface_scores

    mm = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    touched = lesion_scores(found, mask, mm, smallest=SMALLEST)
    met = lesion_scores(found, mask, mm, iou=FOUND_IOU, smallest=SMALLEST)
    surface = surface_scores(found, mask, mm, tolerance=max(mm))
    millilitres = float(np.prod(mm)) / 1000
    ours, theirs = int(found.sum()), int(mask.sum())
    return {
        "dice": 2 * int((found & mask).sum()) / max(ours + theirs, 1),
        "lesions": len(touched.lesions),
        "touched": sum(lesion.hit for lesion in touched.lesions),
        "found": sum(lesion.hit for lesion in met.lesions),
        "false_positives": touched.false_positives,
        "volume_ml": ours * millilitres,
        "reference_ml": theirs * millilitres,
        "surface_mm": surface.distance,
        "empty": surface.empty,
    }


def _mask_file(out: Path, method: str, seed: int, scan: str) -> Path:
    folder = re.sub("[^a-z0-9]+", "-", method.lower()).strip("-")
    return out / "masks" / f"{folder}-s{seed}" / f"{scan}.npz"


def _keep_mask(out: Path, method: str, seed: int, scan: str, mask: np.ndarray) -> None:
    path = _mask_file(out, method, seed, scan)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as part, part.open("wb") as file:
        np.savez(file, bits=np.packbits(mask), shape=np.array(mask.shape))


def read_mask(out: Path, method: str, seed: int, scan: str) -> np.ndarray:
    """A predicted mask of a test scan."""
    with np.load(_mask_file(out, method, seed, scan)) as kept:
        shape = kept["shape"]
        return np.unpackbits(kept["bits"], count=int(np.prod(shape))).reshape(shape).astype(bool)
