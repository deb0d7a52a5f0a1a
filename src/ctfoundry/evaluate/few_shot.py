"""Few-shot curves on phantoms: segmentation of the torso from 5 to 50 labelled scans, pretrained against from scratch.

Every run has the same recipe, steps, seeds, scans and validation; only what its encoder begins with differs. Shots are drawn at
random by the seed, and more shots hold fewer. The same shots teach two methods that know no anatomy: the best classifier of single
voxels' HU, and the most frequent structure at the same place of the body box.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files
from ctfoundry.errors import ContractError, UsageError
from ctfoundry.phantom.names import FOUND, GROUPS, IDS
from ctfoundry.segmenter import Pass
from ctfoundry.settings import to_data

if TYPE_CHECKING:
    from ctfoundry.adapt.cases import LabelledScan
    from ctfoundry.adapt.recipe import SegmentationRecipe
    from ctfoundry.adapt.scores import Scores
    from ctfoundry.encoder import Encoder

PRETRAINED, SCRATCH = "pretrained", "from scratch"
FROZEN, FROZEN_RANDOM = "pretrained, frozen", "random, frozen"
ARMS: Mapping[str, tuple[bool, str]] = {
    PRETRAINED: (True, "full"),
    SCRATCH: (False, "full"),
    FROZEN: (True, "frozen"),
    FROZEN_RANDOM: (False, "frozen"),
}
"""Whether the encoder begins with the given model, and what of it learns. The frozen ones run at the fewest and the most shots."""
INTENSITY, POSITION = "one voxel's HU", "position in the body box"
LEAST_ML = 1.0
"""A phantom holds a structure of which it shows at least so many millilitres."""


@dataclass(frozen=True)
class Plan:
    """What is done, as data: its digest names the results.

    Attributes
    ----------
    shots, seeds : labelled phantoms to learn from; runs of each.
    phantoms : patients made; two sevenths test, a twentieth (at least two) validates, shots are drawn from the others.
    cohort : their seed, which is none of those that the encoder was pretrained on. voxel_mm : of the phantoms.
    structures : how many are told apart.
    frozen : also train the decoder alone.
    recipe, changes : for every run.
    pretraining : phantoms and steps of the encoder that is pretrained where none is given.
    """

    shots: tuple[int, ...] = (5, 10, 20, 50)
    seeds: int = 3
    phantoms: int = 84
    cohort: int = 7000
    voxel_mm: float = 3.0
    structures: int = 25
    frozen: bool = True
    recipe: str = "few-shot-tiny"
    changes: tuple[str, ...] = (
        "train.schedule.steps=120",
        "train.optimiser.rate=3e-3",
        "validate_every=60",
        'extent={"mode": "whole"}',
        *(f"augmentation.{name}=0" for name in ("affine", "smooth", "scale", "shift", "noise")),
    )
    pretraining: tuple[int, int] = (110, 1500)

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1 or self.seeds < 1 or len(set(self.shots)) < len(self.shots):
            raise UsageError("shots are different numbers of at least 1, and seeds at least 1", where="--shots")
        if max(self.shots) > self.pool:
            raise UsageError(
                f"{max(self.shots)} shots are asked for, and {self.phantoms} phantoms leave {self.pool} to draw from",
                where="--shots",
                do="make more phantoms (--phantoms)",
            )

    @property
    def test(self) -> int:
        """Test phantoms."""
        return round(self.phantoms * 2 / 7)

    @property
    def validation(self) -> int:
        """Validation phantoms."""
        return max(2, round(self.phantoms / 20))

    @property
    def pool(self) -> int:
        """Phantoms that shots are drawn from."""
        return self.phantoms - self.test - self.validation

    def runs(self) -> list[tuple[str, int, int]]:
        """(arm, shots, seed), a whole curve of one seed before the next seed; the frozen ones come last."""
        always = (PRETRAINED, SCRATCH, INTENSITY, POSITION)
        full = [
            (arm, n, seed)
            for seed in range(self.seeds)
            for arm_pair in (always[:2], always[2:])
            for n in self.shots
            for arm in arm_pair
        ]
        ends = sorted({min(self.shots), max(self.shots)})
        rest = [(arm, n, seed) for seed in range(self.seeds) for n in ends for arm in (FROZEN, FROZEN_RANDOM)]
        return [*full, *(rest if self.frozen else [])]


@dataclass(frozen=True, eq=False)
class Data:
    """The scans by their part, and the classes."""

    pool: tuple[LabelledScan, ...]
    validation: tuple[LabelledScan, ...]
    test: tuple[LabelledScan, ...]
    groups: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Job:
    """One method on some shots of one seed, in a process of its own. `of` : digest of what its result depends on."""

    out: Path
    arm: str
    shots: int
    seed: int
    plan: Plan
    of: str
    init: str | Path
    device: str
    threads: int

    @property
    def name(self) -> str:
        """Of its files."""
        arm = self.arm.replace("'", "").replace(",", "").replace(" ", "-")
        return f"{arm}-{self.shots}-s{self.seed}"

    @property
    def result(self) -> Path:
        """Where its counts go."""
        return self.out / "results" / f"{self.name}.json"


def few_shot(
    out: Path,
    *,
    init: str | Path | None = None,
    plan: Plan | None = None,
    jobs: int = 1,
    minutes: float | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Make what is missing under `out` and return what every run and every trivial method came to.

    Parameters
    ----------
    init : the pretrained model, as `zoo.load_encoder` takes it; None: one is pretrained on phantoms of another seed.
    jobs : runs at a time, each in a process of its own with its share of the threads.
    minutes : after so many no run is begun, and what is finished is returned.

    Killed and called again, it continues: finished results of the same plan, model and phantoms stay, a run that was cut off begins
    again. UsageError for an `init` with
    random weights; ContractError where the command would pretrain on the phantoms that it tests on.
    """
    import torch

    from ctfoundry import zoo

    plan, began = plan or Plan(), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    source = init if init is not None else _pretrained(out, plan, device, say)
    encoder = zoo.load_encoder(source, device="cpu")
    if encoder.card.weights == "random":
        raise UsageError("a curve of random weights against random weights says nothing", where="--init")
    of = prepare(out, plan, encoder, say)
    todo = [
        Job(out, arm, n, seed, plan, of, source, device, torch.get_num_threads() // jobs or 1)
        for arm, n, seed in plan.runs()
    ]
    left = [job for job in todo if finished(job) is None]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(work, job) for job in left]
        for number, done in enumerate(as_completed(running), 1):
            spent = time.monotonic() - began
            rest = spent / number * (len(left) - number)
            if not done.cancelled():
                say(f"{done.result()}; {len(todo) - len(left) + number} of {len(todo)}, {rest / 60:.0f} min left")
            if minutes is not None and spent > 60 * minutes:
                pool.shutdown(wait=False, cancel_futures=True)
    return [result for job in todo if (result := finished(job)) is not None]


def dice_of(result: Mapping[str, Any]) -> np.ndarray:
    """Dice (test scans, classes) of a result's counts; NaN where neither the scan nor the prediction holds the class."""
    return scores_of(result).dice


def scores_of(result: Mapping[str, Any]) -> Scores:
    """The counts of a result as `Scores`."""
    from ctfoundry.adapt.scores import Scores

    names, patients = tuple(result["classes"]), tuple(result["patients"])
    counts = np.array(result["counts"], dtype=np.int64)
    return Scores(str(result["arm"]), names, patients, counts)


def finished(job: Job) -> dict[str, Any] | None:
    """The result of a job, where it stands and is of the same plan, model and data."""
    if not job.result.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(job.result.read_text())
    except ValueError:
        return None
    return found if found.get("of") == job.of else None


def _recipe(plan: Plan, seed: int) -> SegmentationRecipe:
    from ctfoundry.adapt.recipe import SegmentationRecipe, finetune_recipe
    from ctfoundry.settings import with_changes

    recipe = finetune_recipe(plan.recipe)
    if not isinstance(recipe, SegmentationRecipe):
        raise UsageError(f"recipe {recipe.name!r} is not for segmentation", where="--recipe")
    return with_changes(recipe, [*plan.changes, f"train.seed={seed}", "train.checkpoint_every=100000"])


# ---------------------------------------------------------------------- phantoms and structures


def prepare(out: Path, plan: Plan, encoder: Encoder, say: Callable[[str], None] = lambda _: None) -> str:
    """The phantoms (five views of the torso, as they are drawn) and ``setup.json``: the plan, the model, who is in which part, the
    structures that are told apart. Returns the digest of what a single result depends on: neither how many shots and seeds there
    are, nor whether frozen encoders are among the runs."""
    from ctfoundry.adapt.cases import open_labelled
    from ctfoundry.layouts import plain
    from ctfoundry.layouts.cases import Cohort

    cohort = Cohort(plan.phantoms, plan.cohort, voxel_mm=plan.voxel_mm)
    names = plain.make_many(out / "phantoms", cohort, say=say)
    scans = {scan.id: scan for scan in open_labelled(out / "phantoms").scans}
    ends = (plan.pool, plan.pool + plan.validation, plan.phantoms)
    parts = {"pool": names[: ends[0]], "validation": names[ends[0] : ends[1]], "test": names[ends[1] : ends[2]]}
    groups, held = commonest((_millilitres(scans[name]) for name in parts["pool"]), plan.structures)
    setup = {
        "plan": to_data(plan),
        "recipe": to_data(_recipe(plan, 0)),
        "model": {"name": encoder.card.name, "sha256": encoder.card.sha256, "training": _told(encoder)},
        **parts,
        "structures": {name: {"parts": list(p), "held_by": held[name]} for name, p in groups.items()},
    }
    files.write_json(out / "setup.json", setup)
    own = {k: v for k, v in to_data(plan).items() if k not in ("shots", "seeds", "frozen", "pretraining")}
    return files.digest([own, setup["recipe"], encoder.card.sha256, parts, to_data(groups)])


def load_data(out: Path) -> Data:
    """The scans and classes of ``setup.json``."""
    from ctfoundry.adapt.cases import open_labelled

    setup = json.loads((out / "setup.json").read_text())
    scans = {scan.id: scan for scan in open_labelled(out / "phantoms").scans}
    pool, validation, test = (tuple(scans[name] for name in setup[part]) for part in ("pool", "validation", "test"))
    groups = {name: tuple(entry["parts"]) for name, entry in setup["structures"].items()}
    return Data(pool, validation, test, groups)


def candidates() -> dict[str, tuple[str, ...]]:
    """What may be chosen: the coarse groups of the torso and each structure in none of them; no table, no lesions and devices."""
    grouped = {part for parts in GROUPS.values() for part in parts}
    single = {name: (name,) for name in IDS if name not in grouped and name not in FOUND}
    return {**{name: parts for name, parts in GROUPS.items() if name != "table"}, **single}


def commonest(volumes: Iterable[Mapping[str, float]], count: int) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """The `count` candidates that most scans hold, and how many do; of equals the earlier of `candidates`.

    volumes : of each scan, millilitres by structure.
    """
    known, held = candidates(), Counter[str]()
    for own in volumes:
        held.update(name for name, parts in known.items() if sum(own.get(p, 0.0) for p in parts) >= LEAST_ML)
    order = sorted((name for name in known if held[name]), key=lambda name: -held[name])  # stable: equals stay in order
    chosen = [name for name in known if name in order[:count]]
    return {name: known[name] for name in chosen}, {name: held[name] for name in chosen}


def _millilitres(scan: LabelledScan) -> dict[str, float]:
    labels = scan.maps["labels"]()
    names, voxel = dict(scan.names or labels.names or {}), float(np.prod(labels.spacing)) / 1000
    values, counts = np.unique(labels.voxels, return_counts=True)
    return {names[int(v)]: n * voxel for v, n in zip(values, counts, strict=True) if int(v) in names}


def _pretrained(out: Path, plan: Plan, device: str, say: Callable[[str], None]) -> Path:
    """The command's own encoder; raises ContractError where it would be trained on the test phantoms."""
    from ctfoundry.evaluate.pretrained import SEED, pretrained

    if plan.cohort == SEED:
        raise ContractError("the test phantoms are those that the encoder is pretrained on", do="take another cohort")
    return pretrained(out, *plan.pretraining, device=device, say=say)


# ---------------------------------------------------------------------- runs


def _drawn(data: Data, shots: int, seed: int) -> tuple[LabelledScan, ...]:
    """The shots of a seed: those of fewer shots are among them."""
    from ctfoundry.adapt.cases import few

    return few(data.pool, shots, seed=seed)


def work(job: Job) -> str:
    """Do one job, write its counts, and return a line about it; runs in a process of its own."""
    import torch

    torch.set_num_threads(job.threads)
    data = load_data(job.out)
    learn = _drawn(data, job.shots, job.seed)
    scores, more = _trivial(job, data, learn) if job.arm in (INTENSITY, POSITION) else _tuned(job, data, learn)
    files.write_json(
        job.result,
        {
            "of": job.of,
            "arm": job.arm,
            "shots": job.shots,
            "seed": job.seed,
            "learnt_from": [scan.id for scan in learn],
            "classes": list(scores.classes),
            "patients": list(scores.patients),
            "counts": scores.counts.tolist(),
            **more,
        },
    )
    return f"{job.arm}, {job.shots} shots, seed {job.seed}: macro Dice {scores.macro.text(3)}"


def _tuned(job: Job, data: Data, learn: Sequence[LabelledScan]) -> tuple[Scores, dict[str, Any]]:
    """Fine-tune, and count on the test phantoms with the best step, each on its own grid."""
    from ctfoundry.adapt.cases import Classes
    from ctfoundry.adapt.finetune import finetune
    from ctfoundry.adapt.scores import score
    from ctfoundry.train.options import resolve_precision
    from ctfoundry.zoo.files import load_segmentation_model
    from ctfoundry.zoo.models import device_of

    given, mode = ARMS[job.arm]
    run = job.out / "runs" / job.name
    shutil.rmtree(run, ignore_errors=True)  # of a job that was killed: a run takes minutes, and begins again
    train = [replace(scan, split="train") for scan in learn]
    choose = [replace(scan, split="validation") for scan in data.validation]
    done = finetune(
        _recipe(job.plan, job.seed),
        [*train, *choose],
        run,
        init=job.init if given else "random",
        changes=[f"tuning.mode={mode}"],
        groups=data.groups,
        device=job.device,
        quiet=True,
        command=("evaluate", "few-shot"),
        cache=job.out / "prepared",
        report=False,
    )
    assert done.best is not None
    place = device_of(job.device)
    precision: Any = resolve_precision("auto", place)  # as in training; blending and labels are float32
    scores = score(
        load_segmentation_model(done.model, device=place),
        data.test,
        Classes.of(data.groups),
        settings=Pass(precision=precision),
        seed=job.seed,
    )
    return scores, {
        "step": done.best["step"],
        "validation": done.best["dice"],
        "seconds": round(done.train.seconds, 1),
        "warnings": list(done.warnings),
    }


def _trivial(job: Job, data: Data, learn: Sequence[LabelledScan]) -> tuple[Scores, dict[str, Any]]:
    """What HU or position alone reaches, on the prepared grid of the test phantoms."""
    from ctfoundry.adapt.cases import Classes
    from ctfoundry.adapt.prepared import Cases
    from ctfoundry.adapt.trivial import intensity_scores, position_scores
    from ctfoundry.zoo import load_encoder

    preparation, classes = load_encoder(job.init, device="cpu").preparation, Classes.of(data.groups)
    train, test = (Cases(scans, preparation, classes, cache=job.out / "prepared") for scans in (learn, data.test))
    return (intensity_scores if job.arm == INTENSITY else position_scores)(train, test, seed=job.seed), {}


def _told(encoder: Encoder) -> dict[str, Any]:
    return {k: v for k, v in encoder.card.training.items() if k in ("steps", "of_steps", "scans", "patients")}
