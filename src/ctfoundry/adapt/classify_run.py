"""Fine-tune for labels of whole scans: one run, from a table to a `Classifier`.

Which step is kept, the decision threshold and the temperature are chosen on validation patients. Test scans are looked at once, after the
last step, with all of these as they are.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files, parallel
from ctfoundry.adapt.class_scores import ScanScores, coded, score
from ctfoundry.adapt.classification import (
    ClassificationTask,
    chosen_rule,
    class_weights,
    classification_loss,
    histogram_baseline,
)
from ctfoundry.adapt.classify_begin import begin, leave_unused, size_for
from ctfoundry.adapt.finetune_result import looked
from ctfoundry.adapt.inputs import Inputs
from ctfoundry.adapt.predict import write_scores
from ctfoundry.adapt.recipe import ClassificationRecipe, finetune_recipe
from ctfoundry.adapt.run import MODEL, PARTS, TEST, Row, Run
from ctfoundry.adapt.segmentation import freeze, layer_rates
from ctfoundry.adapt.tables import TargetSet, open_targets
from ctfoundry.adapt.target_splits import Parts, few_of_each, split_targets
from ctfoundry.classifier import Classifier, Rule, assemble, check_memory, make_card
from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import CTFoundryError, SettingsError, UsageError
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.preparation import Preparation
from ctfoundry.record import Record
from ctfoundry.settings import to_data, with_changes
from ctfoundry.train import Summary
from ctfoundry.zoo.classifiers import load_classification_model
from ctfoundry.zoo.files import save_model
from ctfoundry.zoo.models import device_of

if TYPE_CHECKING:
    import torch

PREDICTIONS, CACHE = "predictions.csv", "prepared"
BASELINE_SCANS = 400
"""The baseline reads every scan once more; beyond so many it is left out, and the report says so."""


@dataclass(frozen=True)
class ClassifySummary:
    """What a run has come to.

    Attributes
    ----------
    run, model : the folder, and the best step's weights in it: `zoo.load_classifier(run)`.
    recipe : its name. init : what it began from (model, weights, sha256).
    kind, classes : of the labels.
    patients : of ``train``, ``validation`` and ``test``.
    device : where.
    best : row of ``validation.jsonl`` that was chosen.
    rule : thresholds and temperature, from validation.
    test, baseline : `ScanScores.data` of the classifier and of the regression on the HU histogram on the test scans; None where there are
        none, or the run is not at its end.
    train : steps, time, last log line, warnings. warnings : about data and labels.
    """

    run: Path
    model: Path
    recipe: str
    init: Mapping[str, str]
    kind: str
    classes: tuple[str, ...]
    patients: Mapping[str, int]
    device: str
    best: Mapping[str, Any]
    rule: Rule
    test: Mapping[str, Any] | None
    baseline: Mapping[str, Any] | None
    train: Summary
    warnings: tuple[str, ...]


def finetune(
    recipe: ClassificationRecipe | str | Path,
    data: str | Path | TargetSet,
    run: str | Path,
    *,
    init: str | Path | Encoder | None,
    weights: str | Path | None = None,
    table: str | Path | None = None,
    target: str | None = None,
    shots: int | None = None,
    changes: Sequence[str] = (),
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "auto",
    quiet: bool = False,
    command: Sequence[str] = ("finetune",),
    name: str | None = None,
    report: bool = True,
    baseline: bool = True,
) -> ClassifySummary:
    """Fine-tune for labels of whole scans; continues the run that it finds in `run`.

    Writes ``recipe.json``, ``split.json`` (who learns, chooses and reports; classes; what it begins from), ``metrics.jsonl``,
    ``validation.jsonl``, ``checkpoints/``, ``model.safetensors`` with its card (the best step so far), and at its end ``predictions.csv``,
    ``test.json``, ``report.html`` and ``run.json``. Prepared scans lie in ``prepared/`` until then.

    Parameters
    ----------
    recipe : one, or its name or file (`finetune_recipe`).
    data, table, target, name : what `open_targets` takes, or its result.
    init, weights : what the encoder begins with: an `Encoder`, what `load_encoder` takes, a classifier (its encoder), or ``random`` for the
        recipe's architecture drawn from its seed. There is no default.
    shots : learn from so many patients, one scan each, in turns from each class (`few_of_each`); validation and test stay whole.
    changes : ``key=value`` changes to the recipe. minutes, steps : see `ctfoundry.train.fit`.
    report, baseline : write ``report.html``; measure the regression on the HU histogram too.
    """
    given = recipe if isinstance(recipe, ClassificationRecipe) else finetune_recipe(recipe)
    if not isinstance(given, ClassificationRecipe):
        raise SettingsError(f"recipe {given.name!r} is for {given.task}, not for classification")
    chosen = with_changes(given, changes)
    if chosen.train.ema is not None:
        raise SettingsError(
            "the best step is kept here, not an average of steps", where="train.ema", do="set it to null"
        )
    encoder, begun = begin(chosen, init, weights)
    opened = data if isinstance(data, TargetSet) else open_targets(data, table, target, dataset=name)
    seed = chosen.train.seed
    parts, said = split_targets(opened, seed=seed, validation=chosen.validation, test=chosen.test)
    if shots is not None:
        parts = replace(parts, train=few_of_each(parts.train, shots, opened.kind, seed=seed))
    with parallel.joined(device_of(device)) as place:
        made = _Run(Path(run), chosen, encoder, begun, opened, parts, (*opened.notes, *said), place, quiet)
        return made.go(minutes, steps, command, report=report, baseline=baseline)


class _Run(Run[ClassificationRecipe, Parts]):
    """One run in its folder."""

    measure = "auroc"

    def __init__(
        self,
        folder: Path,
        recipe: ClassificationRecipe,
        encoder: Encoder,
        init: Mapping[str, str],
        data: TargetSet,
        parts: Parts,
        notes: Sequence[str],
        place: torch.device,
        quiet: bool,
    ) -> None:
        super().__init__(folder, recipe, parts, init, notes, place, quiet)
        self.data = data
        preparation = self._preparation(encoder)
        check_memory(encoder, preparation)
        card = make_card(
            recipe.name, encoder.card, preparation, recipe.pool, data.classes, Rule(data.kind),
            hidden=recipe.hidden, dropout=recipe.dropout,
        )  # fmt: skip
        self.classifier = assemble(card, encoder)
        initialise(self.classifier.head, Key.of("initialise", recipe.train.seed, "head"))
        self.preparation = preparation

    def _preparation(self, encoder: Encoder) -> Preparation:
        """As it was begun, so that a run which continues reads no scan for its size."""
        kept = self.folder / "split.json"
        size = json.loads(kept.read_text()).get("size") if kept.is_file() else None
        recipe = self.recipe if size is None else replace(self.recipe, size=tuple(size))
        return size_for(recipe, encoder, self.parts.train)

    def go(
        self, minutes: float | None, steps: int | None, command: Sequence[str], *, report: bool, baseline: bool
    ) -> ClassifySummary:
        recipe = self.recipe
        targets = [[scan.id, list(scan.target)] for name in PARTS for scan in getattr(self.parts, name)]
        record = self.begin(
            command,
            self.preparation,
            labels=files.digest(targets),
            kind=self.data.kind,
            classes=list(self.data.classes),
            size=list(self.preparation.sizing.crop or ()),
        )
        cache = self.folder / CACHE
        inputs = Inputs(self.parts.train, self.preparation, cache=cache)
        self.validation = self._readable(Inputs(self.parts.validation, self.preparation, cache=cache))
        network = self.classifier.network.to(self.place)
        if recipe.tuning.mode == "frozen":
            freeze(self.classifier.encoder.network)
        left = leave_unused(self.classifier)
        if left:
            self.notes.append(f"{left} tensors of the encoder have no part in the answers and stay as they are")
        rates = {}
        if recipe.tuning.mode == "layerwise":
            found = layer_rates(network, self.classifier.encoder.network, recipe.tuning.decay)
            rates = {name.removeprefix("network."): factor for name, factor in found.items()}
        weights = None
        if recipe.weights == "balanced":
            weights = class_weights(coded(self.parts.train, self.data.kind, len(self.data.classes)), self.data.kind)
            weights = weights.to(self.place)
        task = ClassificationTask(self.classifier, inputs, recipe.augmentation, weights, rates)
        summary, ended = self.learn(task, inputs, self.validate, minutes, steps)
        if parallel.rank() != 0:
            return self._summary(summary, Rule(self.data.kind), None, None)
        self.validate(summary.steps)
        if not ended:
            return self._summary(summary, load_classification_model(self.folder / MODEL).rule, None, None)
        with parallel.alone():
            return self._finish(summary, record, report=report, baseline=baseline)

    def _readable(self, inputs: Inputs) -> Inputs:
        """Validation scans that can be read and prepared; the others are named."""
        kept = []
        for i, scan in enumerate(inputs.scans):
            try:
                inputs[i]
                kept.append(scan)
            except (CTFoundryError, OSError) as error:
                said = error.what if isinstance(error, CTFoundryError) else type(error).__name__
                self.notes.append(f"validation scan {scan.id} is left out: {said}")
        if len(kept) == len(inputs.scans):
            return inputs
        truth = coded(kept, self.data.kind, len(self.data.classes))
        if not len(kept) or (truth.sum(0) == 0).any() or (truth.sum(0) == len(kept)).any():
            raise UsageError("the validation scans that can be read are not of every class", do="repair the others")
        return Inputs(kept, self.preparation, cache=inputs.cache)

    # ------------------------------------------------------------------ validation and test

    def validate(self, step: int) -> None:
        """Predict all validation scans, keep the weights if they are the best so far, and write a row; not twice for a step."""
        if step in self.rows:
            return
        began = time.monotonic()
        self.classifier.network.eval()
        logits = np.stack([self.classifier.logits(item.x()) for item in self.validation])
        scans = self.validation.scans
        scores = ScanScores(
            "", self.data.classes, Rule(self.data.kind), tuple(s.id for s in scans), tuple(s.patient for s in scans),
            logits, coded(scans, self.data.kind, len(self.data.classes)), self.recipe.train.seed,
        )  # fmt: skip
        area = scores.headline
        row = {
            "step": step,
            "auroc": area.value,
            "low": area.low,
            "high": area.high,
            "loss": _loss(scores),
            "patients": area.patients,
            "seconds": round(time.monotonic() - began, 2),
        }

        def save() -> None:
            made = replace(self.classifier, card=self._card(row)).with_rule(chosen_rule(scores))
            save_model(made, self.folder / MODEL)

        self.validated(row, save, f"AUROC {area.text(3)}, loss {row['loss']:.3f}")

    def rank(self, row: Row) -> tuple[float, float]:
        """Higher is better; of equal areas the lower loss. What is no number (a network that diverged) comes last."""
        area, loss = float(row["auroc"]), float(row["loss"])
        if not (np.isfinite(area) and np.isfinite(loss)):
            return (-np.inf, -np.inf)
        return (0.0 if self.recipe.select == "loss" else area, -loss)

    # ------------------------------------------------------------------ what is left behind

    def _finish(self, summary: Summary, record: Record, *, report: bool, baseline: bool) -> ClassifySummary:
        """Rule from validation scans as they are in use, the test once, predictions, page, record."""
        path, seed = self.folder / MODEL, self.recipe.train.seed
        made = load_classification_model(path, device=self.place)
        validation = score(made, self.validation.scans, seed=seed)
        made = made.with_rule(chosen_rule(validation))
        validation = replace(validation, rule=made.rule)
        best = self.best
        assert best is not None
        test = self._test(made)
        trivial = self._baseline() if test is not None and baseline else None
        card = replace(
            self._card(best, precision=summary.precision, warnings=[*summary.warnings, *self.notes]),
            arguments=made.card.arguments,
        )
        said = None
        if test is not None:
            area = test.headline
            times = looked(json.loads((self.folder / TEST).read_text()))
            said = f"AUROC on {area.patients} test patients, {times}: {area.text(4)}"
        write_scores(self.folder / PREDICTIONS, {"validation": validation, **({"test": test} if test else {})})
        told = None if test is None else test.data()
        results = {
            "kind": self.data.kind,
            "classes": list(self.data.classes),
            "rule": to_data(made.rule),
            "validation": validation.data(),
            "test": told,
            "baseline": None if trivial is None else trivial.data(),
        }
        self.leave(made, card, record, summary, [PREDICTIONS, *([TEST] if test else [])], results, said)
        if report:
            from ctfoundry.adapt.classify_page import write_report

            shown = {scan.id: scan.image for scan in (*self.parts.validation, *self.parts.test)}
            try:
                write_report(self.folder, validation, test, trivial, list(self.rows.values()), shown, self.notes)
            except Exception as error:  # the model and its numbers are there: a page that fails takes nothing from them
                print(f"no report.html: {error!r}", file=sys.stderr)
        shutil.rmtree(self.folder / CACHE, ignore_errors=True)
        return self._summary(summary, made.rule, told, None if trivial is None else trivial.data())

    def _test(self, made: Classifier) -> ScanScores | None:
        """The best step on the test scans; predicted once, at the end.

        A run by the clock may go on after that; where another step is the best then, the test is made again, and says so.
        """
        scans, best = self.parts.test, self.best
        if not scans:
            return None
        assert best is not None
        path = self.folder / TEST
        kept = json.loads(path.read_text()) if path.is_file() else {}
        if kept and kept.get("step", best["step"]) == best["step"]:
            ids = set(kept["ids"])
            scans = tuple(s for s in scans if s.id in ids)
            logits, failed = np.array(kept["logits"]), dict(kept["failed"])
            found = ScanScores(
                kept["method"], made.classes, made.rule, tuple(kept["ids"]), tuple(s.patient for s in scans), logits,
                coded(scans, made.rule.kind, len(made.classes)), self.recipe.train.seed, failed,
            )  # fmt: skip
        else:
            found = score(made, scans, seed=self.recipe.train.seed)
            files.write_json(
                path,
                {
                    "method": found.method,
                    "ids": list(found.ids),
                    "logits": found.logits.tolist(),
                    "failed": found.failed,
                    "step": best["step"],
                    "looked_at_before": [*kept.get("looked_at_before", []), kept["step"]] if kept else [],
                },
            )
            if kept:
                self.notes.append(
                    f"the test scans were looked at before, for step {kept['step']}, and the run went on: this is a second look"
                )
        self.notes += [f"test scan {id} is left out: {said}" for id, said in found.failed.items()]
        return found

    def _baseline(self) -> ScanScores | None:
        count = len(self.parts.train) + len(self.parts.test)
        if count > BASELINE_SCANS:
            self.notes.append(
                f"the regression on the HU histogram was left out: {count} scans are more than {BASELINE_SCANS}"
            )
            return None
        try:
            return histogram_baseline(
                self.parts.train, self.parts.test, self.data.kind, self.data.classes, seed=self.recipe.train.seed
            )
        except (CTFoundryError, OSError) as error:
            self.notes.append(f"the regression on the HU histogram was left out: {getattr(error, 'what', error)}")
            return None

    def _card(self, row: Row, **more: Any) -> Card:
        return self.learnt(
            self.classifier.card,
            row,
            f"AUROC on {row['patients']} validation patients, by which step and threshold were chosen: {row['auroc']:.4f}",
            ("auroc", "low", "high", "loss", "patients"),
            [[[s.id, s.patient, list(s.target)] for s in getattr(self.parts, name)] for name in PARTS],
            threshold="largest sensitivity + specificity on validation (Youden)",
            **more,
        )

    def _summary(
        self, summary: Summary, rule: Rule, test: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None
    ) -> ClassifySummary:
        return ClassifySummary(
            self.folder, self.folder / MODEL, self.recipe.name, self.init, self.data.kind, self.data.classes,
            self.patients, str(self.place), self.best or {}, rule, test, baseline, summary, tuple(self.notes),
        )  # fmt: skip


def _loss(scores: ScanScores) -> float:
    """The loss that training minimises, without class weights."""
    import torch

    logits, truth = torch.from_numpy(scores.logits), torch.from_numpy(scores.truth)
    return float(classification_loss(logits, truth, scores.rule.kind))
