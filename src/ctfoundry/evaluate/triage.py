"""Head CT triage on phantoms (reference ct-fm.md, 6 and 8.4): blood in the skull or not, and what is left of it on another scanner.

Classifiers are fine-tuned on heads of one scanner from a pretrained encoder and from random weights, with the same recipe, steps, seeds
and scans, at several shares of the training heads. Step, threshold and temperature are chosen on validation heads of that scanner
and kept for the test heads of both scanners. Beside them stand regressions on the pooled features of both frozen encoders, on the
HU histogram and on one hand-made number, which learn from the same scans.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files, identity
from ctfoundry.errors import UsageError
from ctfoundry.evaluate.pretrained import pretrained
from ctfoundry.evaluate.triage_heads import brightest_blob, make_site, read_truth
from ctfoundry.settings import to_data, with_changes

if TYPE_CHECKING:
    from ctfoundry.adapt.inputs import Inputs
    from ctfoundry.adapt.recipe import ClassificationRecipe
    from ctfoundry.adapt.tables import TargetScan, TargetSet
    from ctfoundry.classifier import Classifier
    from ctfoundry.encoder import Encoder

PRETRAINED, SCRATCH = "pretrained", "from scratch"
FROZEN, FROZEN_RANDOM, HISTOGRAM = "pretrained, frozen", "random, frozen", "HU histogram"
TUNED = (PRETRAINED, SCRATCH)
BLOB = "brightest blob"
READ = (FROZEN, FROZEN_RANDOM, HISTOGRAM, BLOB)
"""Methods whose vectors a ridge logistic regression reads (`phantom.difficulty.histogram_log_odds`)."""
PARTS = ("validation", "source", "target")
"""Heads that are predicted: validation and test of the scanner that is learnt on, and test of the other one."""


@dataclass(frozen=True)
class Plan:
    """What is done, as data: its digest names the results.

    Attributes
    ----------
    train, validation, test : heads; `test` at each of the two sites. cohort : names the patients.
    shares : of the training heads that are learnt from.
    seeds : runs of each method and share; a seed draws the share, the random weights and the order.
    coarser : factor on the phantoms' pixels and slices.
    recipe, changes : of every run. The size holds every head of the cohort at 10x4x4 mm.
    pretraining : phantoms and steps of the encoder that is pretrained where none is given.
    """

    train: int = 96
    validation: int = 40
    test: int = 64
    cohort: int = 0
    shares: tuple[float, ...] = (0.1, 1.0)
    seeds: int = 3
    coarser: float = 1.0
    recipe: str = "head-triage-tiny"
    changes: tuple[str, ...] = (
        "size=[17,56,44]",
        "train.precision=auto",
        "train.schedule.steps=40",
        "validate_every=20",
    )
    pretraining: tuple[int, int] = (110, 1500)

    def __post_init__(self) -> None:
        if min(self.train, self.validation, self.test) < 4 or self.seeds < 1:
            raise UsageError("each part holds at least 4 heads, and there is at least 1 seed")
        if not self.shares or not all(0 < share <= 1 for share in self.shares) or min(map(self.shots, self.shares)) < 4:
            raise UsageError("a share is at most 1 and leaves at least 4 heads to learn from", where="--share")

    def shots(self, share: float) -> int:
        """Training heads of a share."""
        return round(share * self.train)

    def jobs(self) -> list[tuple[str, float, int]]:
        """(method, share, seed), all of one seed before the next one."""
        return [
            (method, share, seed) for seed in range(self.seeds) for share in self.shares for method in (*TUNED, *READ)
        ]


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of both sites by part, and the folder of each by its id."""

    source: TargetSet
    parts: Mapping[str, tuple[TargetScan, ...]]
    folders: Mapping[str, Path]

    def truth(self, part: str) -> list[dict[str, Any]]:
        """Name, label and findings of the heads of a part, in order."""
        return [
            {
                "name": self.folders[scan.id].name,
                "abnormal": int(scan.target[0]),
                "findings": [
                    {key: found[key] for key in ("kind", "size_mm", "volume_ml", "centre_mm", "attributes")}
                    for found in read_truth(self.folders[scan.id])["findings"]
                ],
            }
            for scan in self.parts[part]
        ]


def triage(
    out: Path,
    *,
    init: str | Path | None = None,
    plan: Plan | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Make what is missing under `out` and return what every method came to: its rule, and its logits on each of `PARTS`.

    Parameters
    ----------
    init : the pretrained encoder, as `zoo.load_encoder` takes it; None: one is pretrained on phantoms of other patients.

    Killed and called again, it continues: finished results of the same plan, encoder and heads stay. ``setup.json`` says who was
    tested. UsageError for an `init` with random weights.
    """
    from ctfoundry import zoo

    plan = plan or Plan()
    out.mkdir(parents=True, exist_ok=True)
    heads = prepare(out, plan, say)
    model = (
        init
        if init is not None
        else pretrained(out, *plan.pretraining, heads=max(plan.pretraining[0] // 3, 1), device=device, say=say)
    )
    encoder = zoo.load_encoder(model, device=device)
    if encoder.card.weights == "random":
        raise UsageError("random weights against random weights say nothing", where="--init")
    files.write_json(
        out / "setup.json",
        {
            "plan": to_data(plan),
            "encoder": {"name": encoder.card.name, "sha256": encoder.card.sha256},
            "heads": {part: heads.truth(part) for part in PARTS},
            "train": [int(scan.target[0]) for scan in heads.parts["train"]],
        },
    )
    of, work = _digest(plan, encoder, heads), _Work(out, plan, heads, model, encoder, device)
    jobs, found, made, began = plan.jobs(), [], 0, time.monotonic()
    for number, (method, share, seed) in enumerate(jobs, 1):
        path = out / "results" / f"{method.replace(', ', '-').replace(' ', '-')}-{plan.shots(share)}-s{seed}.json"
        result = _finished(path, of)
        if result is None:
            result = {"of": of, "method": method, "share": share, "seed": seed, **work.result(method, share, seed)}
            files.write_json(path, result)
            made += method in TUNED
            left = sum(m in TUNED for m, *_ in jobs[number:])
            minutes = (time.monotonic() - began) / max(made, 1) * left / 60
            say(f"{method}, {share:.0%}, seed {seed}: {number} of {len(jobs)}, about {minutes:.0f} min left")
        found.append(result)
    return found


def prepare(out: Path, plan: Plan, say: Callable[[str], None] = lambda _: None) -> Heads:
    """The heads of both sites, made where they are missing, and their labels as any data set's are read."""
    from ctfoundry.adapt.tables import open_targets

    counts = {"train": plan.train, "validation": plan.validation, "test": plan.test}
    sets: dict[str, TargetSet] = {}
    folders: dict[str, Path] = {}
    for site in ("source", "target"):
        root = out / site
        table = make_site(root, site, counts, coarser=plan.coarser, seed=plan.cohort, say=say)
        sets[site] = open_targets(root, table, "abnormal")
        who = {
            identity.name("patient", f"{site}-{path.parent.name}"): path.parent for path in root.glob("*/truth.json")
        }
        folders |= {scan.id: who[scan.patient] for scan in sets[site].scans}

    def part(site: str, split: str) -> tuple[TargetScan, ...]:
        own = [scan for scan in sets[site].scans if scan.split == split]
        return tuple(sorted(own, key=lambda scan: folders[scan.id].name))

    return Heads(
        sets["source"],
        {
            "train": part("source", "train"),
            "validation": part("source", "validation"),
            "source": part("source", "test"),
            "target": part("target", "test"),
        },
        folders,
    )


def _finished(path: Path, of: str) -> dict[str, Any] | None:
    """A result that stands and is of this plan, encoder and heads."""
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return None
    return found if found.get("of") == of else None


def _digest(plan: Plan, encoder: Encoder, heads: Heads) -> str:
    """What a single result depends on: not how many shares and seeds there are beside it."""
    own = {k: v for k, v in to_data(plan).items() if k not in ("shares", "seeds", "pretraining")}
    scans = {
        part: [[heads.folders[s.id].name, s.content(), *s.target] for s in own] for part, own in heads.parts.items()
    }
    return files.digest([own, to_data(_recipe(plan, 0)), encoder.card.sha256, scans])


def _recipe(plan: Plan, seed: int) -> ClassificationRecipe:
    from ctfoundry.adapt.recipe import ClassificationRecipe, finetune_recipe

    recipe = finetune_recipe(plan.recipe)
    if not isinstance(recipe, ClassificationRecipe):
        raise UsageError(f"recipe {recipe.name!r} is not for classification", where="--recipe")
    return with_changes(recipe, [*plan.changes, f"train.seed={seed}", "train.checkpoint_every=100000", "test=0"])


class _Work:
    """What several results share: prepared heads, and the vectors that regressions read."""

    def __init__(self, out: Path, plan: Plan, heads: Heads, model: str | Path, encoder: Encoder, device: str) -> None:
        self.out, self.plan, self.heads, self.device = out, plan, heads, device
        self.model, self.encoder = model, encoder
        self.vectors: dict[str, dict[str, np.ndarray]] = {}

    def result(self, method: str, share: float, seed: int) -> dict[str, Any]:
        """Rule, logits on `PARTS`, and how it came to them."""
        began = time.monotonic()
        train = self._train(share, seed)
        found = self._tuned(method, share, seed) if method in TUNED else self._read(method, train, seed)
        return {
            "shots": len(train),
            "positive": sum(scan.target[0] for scan in train),
            **found,
            "seconds": round(time.monotonic() - began, 1),
        }

    def _train(self, share: float, seed: int) -> tuple[TargetScan, ...]:
        """The heads that a share and a seed learn from: the same for every method."""
        from ctfoundry.adapt.target_splits import few_of_each

        everyone = self.heads.parts["train"]
        return everyone if share == 1 else few_of_each(everyone, self.plan.shots(share), "binary", seed=seed)

    def _inputs(self, part: str, recipe: ClassificationRecipe) -> Inputs:
        """Heads as the classifiers get them."""
        from ctfoundry.adapt.classify_begin import size_for
        from ctfoundry.adapt.inputs import Inputs

        scans = self.heads.parts[part]
        return Inputs(scans, size_for(recipe, self.encoder, scans), cache=self.out / "prepared")

    def folder(self, method: str, share: float, seed: int) -> Path:
        """Of a run."""
        return self.out / "runs" / f"{method.replace(' ', '-')}-{self.plan.shots(share)}-s{seed}"

    def run(self, method: str, share: float, seed: int) -> Classifier:
        """What one run of fine-tuning came to; a finished one of the same recipe, encoder and heads is taken as it is."""
        from ctfoundry import zoo
        from ctfoundry.adapt.classify_run import finetune

        folder, recipe, train = self.folder(method, share, seed), _recipe(self.plan, seed), self._train(share, seed)
        if not self._is_done(folder, recipe, [scan.id for scan in train], method):
            finetune(
                recipe,
                replace(self.heads.source, scans=(*train, *self.heads.parts["validation"])),
                folder,
                # by its name, so that it is loaded anew: a run trains the very encoder that it is given
                init=self.model if method == PRETRAINED else "random",
                device=self.device,
                quiet=True,
                command=("evaluate", "triage"),
                report=False,
                baseline=False,
            )
        return zoo.load_classifier(folder, device=self.device)

    def _is_done(self, folder: Path, recipe: ClassificationRecipe, train: Sequence[str], method: str) -> bool:
        """Whether a run is finished and is this one; `finetune` refuses to continue another."""
        if not (folder / "run.json").is_file():
            return False
        split = json.loads((folder / "split.json").read_text())
        return bool(
            json.loads((folder / "recipe.json").read_text()) == to_data(recipe)
            and sorted(split["train"]) == sorted(train)
            and sorted(split["validation"]) == sorted(scan.id for scan in self.heads.parts["validation"])
            and (method == SCRATCH or split["init"]["sha256"] == self.encoder.card.sha256)
        )

    def _tuned(self, method: str, share: float, seed: int) -> dict[str, Any]:
        """A run, and the logits of its best step."""
        from ctfoundry.adapt.run import VALIDATION
        from ctfoundry.train.monitor import read_lines

        recipe, model = _recipe(self.plan, seed), self.run(method, share, seed)
        told = model.card.training
        return {
            "rule": to_data(model.rule),
            "logits": {
                part: [float(model.logits(item.x())[0]) for item in self._inputs(part, recipe)] for part in PARTS
            },
            "step": told["steps"],
            "steps": told["of_steps"],
            "curve": [
                [row["step"], row["auroc"], row["loss"]]
                for row in read_lines(self.folder(method, share, seed) / VALIDATION)
            ],
            "warnings": list(told.get("warnings", ())),
        }

    def _read(self, method: str, train: Sequence[TargetScan], seed: int) -> dict[str, Any]:
        """A regression on vectors, its threshold and temperature chosen on validation as for the others."""
        from ctfoundry.adapt.class_scores import ScanScores
        from ctfoundry.adapt.classification import chosen_rule
        from ctfoundry.classifier import Rule
        from ctfoundry.keys import Key
        from ctfoundry.phantom.difficulty import histogram_log_odds

        known = self._vectors(method, seed)
        x = np.stack([known[scan.id] for scan in train])
        y = np.array([float(scan.target[0]) for scan in train])
        who = np.array([scan.patient for scan in train])
        logits = {}
        for part in PARTS:
            new = np.stack([known[scan.id] for scan in self.heads.parts[part]])
            logits[part] = histogram_log_odds(x, y, who, new, key=Key.of("triage regression", seed))
        held = self.heads.parts["validation"]
        truth = np.array([scan.target for scan in held])
        ids, patients = tuple(s.id for s in held), tuple(s.patient for s in held)
        chosen = chosen_rule(
            ScanScores(method, ("abnormal",), Rule("binary"), ids, patients, logits["validation"][:, None], truth, seed)
        )
        return {"rule": to_data(chosen), "logits": {part: values.tolist() for part, values in logits.items()}}

    def _vectors(self, method: str, seed: int) -> dict[str, np.ndarray]:
        """Of every head: pooled cells of a frozen encoder on the classifiers' input, the HU histogram, or the brightest blob."""
        from ctfoundry.phantom.difficulty import hu_histogram

        name = f"{method} {seed}" if method == FROZEN_RANDOM else method
        if name not in self.vectors:
            if method in (FROZEN, FROZEN_RANDOM):
                self.vectors[name] = self._pooled(method, seed)
            else:
                made = hu_histogram if method == HISTOGRAM else brightest_blob
                self.vectors[name] = {s.id: made(s.image()) for own in self.heads.parts.values() for s in own}
        return self.vectors[name]

    def _pooled(self, method: str, seed: int) -> dict[str, np.ndarray]:
        import torch

        from ctfoundry import zoo
        from ctfoundry.classifier import pooled

        recipe = _recipe(self.plan, seed)
        encoder = self.encoder
        if method == FROZEN_RANDOM:
            encoder = zoo.load_encoder(recipe.model, weights="random", device=self.device, seed=seed)
        encoder.network.eval()
        found = {}
        with torch.no_grad():
            for part in self.heads.parts:
                read = partial(pooled, encoder, pool=recipe.pool)
                for scan, item in zip(self.heads.parts[part], self._inputs(part, recipe), strict=True):
                    found[scan.id] = read(item.x()[None].to(encoder.device))[0].double().cpu().numpy()
        return found
