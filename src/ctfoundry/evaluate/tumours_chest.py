"""What phantoms teach for a real scan: networks that learnt groups of structures on phantoms alone, on one real chest.

One patient is an example, not an interval. The reference labels may be made by another model; then agreement with it is measured, not truth.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files, io
from ctfoundry.errors import UsageError
from ctfoundry.evaluate.tumours import Plan, drawn
from ctfoundry.phantom.names import GROUPS
from ctfoundry.settings import to_data, with_changes

if TYPE_CHECKING:
    from ctfoundry.adapt.cases import Classes, LabelledScan
    from ctfoundry.adapt.recipe import SegmentationRecipe
    from ctfoundry.adapt.scores import Scores

SHARED = (
    "lung_left",
    "lung_right",
    "heart",
    "aorta",
    "liver",
    "spleen",
    "kidney_left",
    "kidney_right",
    "stomach",
    "vertebrae",
    "ribs",
)
"""Groups of `phantom.names.GROUPS` that a labelled chest may hold whole or in part."""
PRETRAINED, SCRATCH = "pretrained", "from scratch"


@dataclass(frozen=True)
class ChestPlan:
    """What is done.

    phantoms : made, of which `validation` choose the step and `test` report, beside the chest. cohort : their seed, not that of pretraining.
    recipe, changes, steps, validate_every, seeds : of the runs, as in `tumours.Plan`.
    """

    phantoms: int = 24
    validation: int = 3
    test: int = 5
    cohort: int = 7000
    voxel_mm: float = 3.0
    recipe: str = "few-shot-tiny"
    changes: tuple[str, ...] = Plan.changes
    steps: int = 240
    validate_every: int = 80
    seeds: int = 1


def open_chest(folder: Path) -> LabelledScan:
    """A scan and its label map (``mask.nii.gz``), whose numbers ``structures.csv`` (columns id, structure) names.

    Raises UsageError where the folder holds anything else.
    """
    from ctfoundry.adapt.cases import LabelledScan

    mask, table = folder / "mask.nii.gz", folder / "structures.csv"
    scans = [path for path in folder.glob("*.nii.gz") if path != mask]
    if len(scans) != 1 or not mask.is_file() or not table.is_file():
        raise UsageError("a labelled chest is one scan, mask.nii.gz and structures.csv", where=folder)
    with table.open(newline="") as file:
        names = {int(row["id"]): row["structure"] for row in csv.DictReader(file)}

    def content() -> str:
        return files.digest([files.sha256(scans[0]), files.sha256(mask), {str(k): v for k, v in names.items()}])

    labels = partial(io.read, mask, kind="label")
    return LabelledScan("chest", "chest", partial(io.read, scans[0]), {"labels": labels}, names, content)


def shared_classes(scan: LabelledScan) -> Classes:
    """The groups of which the scan's labels hold voxels; each with all its structures, as phantoms name them."""
    from ctfoundry.adapt.cases import Classes

    read = scan.maps["labels"]()
    there = {scan.names.get(int(v), "") for v in np.unique(read.voxels)}
    return Classes.of({name: GROUPS[name] for name in SHARED if there & set(GROUPS[name])})


def chest(
    out: Path,
    folder: Path,
    init: str | Path,
    *,
    plan: ChestPlan | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train both arms on phantoms, segment the chest and the test phantoms, and return Dice by group; results are kept in ``chest.json``.

    Finished runs are not repeated.
    """
    from ctfoundry.adapt.cases import LabelledSet, open_labelled
    from ctfoundry.adapt.finetune import finetune
    from ctfoundry.adapt.prepared import Cases
    from ctfoundry.adapt.scores import score
    from ctfoundry.adapt.trivial import intensity_scores, position_scores
    from ctfoundry.layouts import plain
    from ctfoundry.layouts.cases import Cohort
    from ctfoundry.zoo import load_segmenter

    plan = plan or ChestPlan()
    real = open_chest(folder)
    classes = shared_classes(real)
    result, digest = out / "chest.json", files.digest([to_data(plan), str(_weights(init)), real.content()])
    if result.is_file() and (kept := json.loads(result.read_text())).get("of") == digest:
        return dict(kept)
    root = out / "chest-phantoms"
    names = plain.make_many(root, Cohort(plan.phantoms, plan.cohort, voxel_mm=plan.voxel_mm), say=say)
    known = {scan.id: scan for scan in open_labelled(root).scans}
    phantoms = [known[name] for name in names]
    test, rest = phantoms[: plan.test], phantoms[plan.test :]
    learn = [replace(s, split="validation" if i < plan.validation else "train") for i, s in enumerate(rest)]
    methods: dict[str, dict[str, Any]] = {}
    training: list[dict[str, Any]] = []
    for seed in range(plan.seeds):
        for arm in (PRETRAINED, SCRATCH):
            recipe = _recipe(plan, seed)
            run = out / "runs" / f"chest-{arm.replace(' ', '-')}-s{seed}"
            done = finetune(
                recipe,
                LabelledSet("phantoms", tuple(learn)),
                run,
                init=init if arm == PRETRAINED else drawn(init, seed),
                groups=dict(zip(classes.names, classes.parts, strict=True)),
                device=device,
                quiet=True,
                cache=out / "prepared",
                report=False,
                command=["evaluate", "tumours", "--chest"],
            )
            assert done.best is not None
            made = load_segmenter(run, device=device)
            name = arm if plan.seeds == 1 else f"{arm}, seed {seed}"
            methods[name] = {
                "chest": _dice(score(made, [real], classes)),
                "phantoms": _dice(score(made, test, classes)),
            }
            training.append({"arm": arm, "seed": seed, "best_step": done.best["step"], "dice": done.best["dice"]})
            say(f"{name}: done")
    from ctfoundry.preparation import PREPARATIONS

    preparation = PREPARATIONS["ct-fm-tiny"]
    taught = Cases([s for s in learn if s.split == "train"], preparation, classes, cache=out / "prepared")
    for label, method in (("one voxel's HU", intensity_scores), ("position in the body box", position_scores)):
        methods[label] = {}
        for what, scans in (("chest", [real]), ("phantoms", test)):
            asked = Cases(scans, preparation, classes, cache=out / "prepared")
            methods[label][what] = _dice(method(taught, asked))
    found = {
        "of": digest,
        "plan": to_data(plan),
        "classes": list(classes.names),
        "phantoms": {"train": len(taught), "validation": plan.validation, "test": len(test)},
        "training": training,
        "methods": methods,
    }
    files.write_json(result, found)
    return found


def _weights(init: str | Path) -> str:
    from ctfoundry.zoo.files import model_file, read_card

    return read_card(model_file(Path(init))).sha256


def _recipe(plan: ChestPlan, seed: int) -> SegmentationRecipe:
    from ctfoundry.adapt.recipe import SegmentationRecipe, finetune_recipe
    from ctfoundry.infer.passes import Extent

    base = finetune_recipe(plan.recipe)
    assert isinstance(base, SegmentationRecipe)
    base = with_changes(base, plan.changes)
    schedule = replace(base.train.schedule, steps=plan.steps, warmup=min(base.train.schedule.warmup, plan.steps // 4))
    train = replace(base.train, seed=seed, schedule=schedule, checkpoint_every=plan.validate_every)
    return replace(base, train=train, validate_every=plan.validate_every, extent=Extent("whole"))


def _dice(scores: Scores) -> dict[str, float | None]:
    """Of each class the mean over scans; None where neither a scan nor its prediction holds it."""
    return {name: None if i is None else i.value for name, i in scores.labels.items()}
