"""Fine-tune a segmentation network from a pretrained encoder: one run, from labelled scans to a `Segmenter`.

Which step is kept is chosen by macro Dice over whole validation scans, segmented on their own grids by the very `Segmenter` that comes
out. Test scans are looked at once, after the last step.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files, parallel
from ctfoundry.adapt import initial
from ctfoundry.adapt.borders import Borders, kinds_for
from ctfoundry.adapt.cases import (
    IGNORE,
    Classes,
    LabelledScan,
    LabelledSet,
    Splits,
    chosen_classes,
    few,
    open_labelled,
    split,
)
from ctfoundry.adapt.finetune_report import keep_report
from ctfoundry.adapt.finetune_result import looked, measures_of
from ctfoundry.adapt.labelling import survey, system_classes
from ctfoundry.adapt.prepared import Cases
from ctfoundry.adapt.recipe import SegmentationRecipe, finetune_recipe
from ctfoundry.adapt.run import MODEL, PARTS, TEST, Row, Run
from ctfoundry.adapt.scores import read_classes, score
from ctfoundry.adapt.segmentation import SegmentationTask, freeze, layer_rates
from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import CTFoundryError, SettingsError, UsageError
from ctfoundry.memory import Memory
from ctfoundry.record import Record
from ctfoundry.segmenter import Pass, Segmenter, side_of
from ctfoundry.settings import with_changes
from ctfoundry.train import Summary
from ctfoundry.train.checkpoint import averaged
from ctfoundry.train.options import resolve_precision
from ctfoundry.volume import Volume
from ctfoundry.zoo.files import load_segmentation_model, save_model
from ctfoundry.zoo.models import device_of

if TYPE_CHECKING:
    import torch

    from ctfoundry.infer.passes import Precision

HELD_BYTES = 4 * 2**30
"""Validation scans kept in memory between validations."""

Data = str | Path | LabelledSet | Sequence[LabelledScan]


@dataclass(frozen=True)
class FinetuneSummary:
    """What a fine-tuning run has come to.

    Attributes
    ----------
    run, model : the folder, and the best step's weights in it (``model.json`` beside them): `zoo.load_segmenter(run)`.
    recipe : its name. init : what it began from.
    classes : names, without the background.
    patients : of ``train``, ``validation`` and ``test``.
    device : where.
    best : row of ``validation.jsonl`` with the highest macro Dice, the earlier of equals.
    test : the same measures on the test scans, where there are any and the run is at its end.
    train : steps, time, last log line, warnings.
    warnings : about data and labels.
    """

    run: Path
    model: Path
    recipe: str
    init: Mapping[str, str]
    classes: tuple[str, ...]
    patients: Mapping[str, int]
    device: str
    best: Mapping[str, Any] | None
    test: Mapping[str, Any] | None
    train: Summary
    warnings: tuple[str, ...]


def finetune(
    recipe: SegmentationRecipe | str | Path,
    data: Data,
    run: str | Path,
    *,
    init: str | Path | Encoder | Segmenter | None,
    weights: str | Path | None = None,
    shots: int | None = None,
    changes: Sequence[str] = (),
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "auto",
    quiet: bool = False,
    command: Sequence[str] = ("finetune",),
    name: str | None = None,
    labels: Sequence[str] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    cache: str | Path | None = None,
    validation_share: float = 0.3,
    test_share: float = 0.0,
    measures: Sequence[str] | None = None,
    report: bool = True,
) -> FinetuneSummary:
    """Fine-tune for segmentation; continues the run that it finds in `run`.

    Writes ``recipe.json``, ``split.json`` (who learns, chooses and reports; classes; what it begins from), ``metrics.jsonl``,
    ``validation.jsonl``, ``checkpoints/``, ``model.safetensors`` with its card (the best step so far, from the first validation on),
    ``test.json`` where there are test scans, ``report.html`` and ``run.json``.

    Parameters
    ----------
    recipe : one, or its name or file (`finetune_recipe`).
    data : a folder (`open_labelled`), or labelled scans.
    init, weights : what the encoder begins with (`initial.start`); there is no default.
    shots : learn from so many patients, one scan each, drawn by the recipe's seed; validation and test stay whole.
    changes : ``key=value`` changes to the recipe. minutes, steps : see `ctfoundry.train.fit`.
    name : which data set the folder is. labels, groups : classes, instead of the recipe's (`chosen_classes`).
    cache : folder that keeps prepared training scans.
    validation_share, test_share : shares of the patients, where the data set gives no such split.
    measures : of the test scans beside Dice: ``surfaces``, ``lesions`` (`adapt.borders`); None: both where few classes are told apart.
    report : write ``report.html`` where its packages are installed.
    """
    given = recipe if isinstance(recipe, SegmentationRecipe) else finetune_recipe(recipe)
    if not isinstance(given, SegmentationRecipe):
        raise SettingsError(f"recipe {given.name!r} is for {given.task}, not for segmentation")
    chosen = with_changes(given, changes)
    opened = _opened(data, name)
    classes, warnings = classes_of(chosen, opened, labels, groups)
    kinds = kinds_for(classes.names, measures)
    _check_flips(chosen, classes)
    seed = chosen.train.seed
    parts = split(opened.scans, seed=seed, validation=validation_share, test=test_share)
    if shots is not None:
        parts = replace(parts, train=few(parts.train, shots, seed=seed, holds=lambda scan: _holds(scan, classes)))
    with parallel.joined(device_of(device)) as place:
        begun = initial.start(chosen, ("background", *classes.names), init, weights=weights)
        notes = (*opened.notes, *warnings, *begun.notes)
        made = _Run(Path(run), chosen, begun, parts, classes, notes, place, quiet, kinds)
        return made.go(minutes, steps, command, None if cache is None else Path(cache), report=report)


def _check_flips(recipe: SegmentationRecipe, classes: Classes) -> None:
    """Raise SettingsError where a flipped crop would call a left structure right."""
    sided = [
        name
        for name, parts in zip(classes.names, classes.parts, strict=True)
        if len({side for part in parts if (side := side_of(part)) is not None}) == 1
    ]
    if recipe.augmentation.flip and sided:
        raise SettingsError(
            f"a flip exchanges left and right, and {sided[0]!r} is on one side",
            where="augmentation.flip",
            do="--set augmentation.flip=0",
        )


def _holds(scan: LabelledScan, classes: Classes) -> bool:
    """Whether a scan has one of the classes; one that cannot be read has none."""
    try:
        found = np.unique(read_classes(scan, classes)[1].voxels)
    except (CTFoundryError, OSError):
        return False
    return bool(((found > 0) & (found != IGNORE)).any())


def _opened(data: Data, name: str | None) -> LabelledSet:
    if isinstance(data, LabelledSet):
        return data
    if isinstance(data, str | Path):
        return open_labelled(data, name)
    return LabelledSet(name or "scans", tuple(data))


def classes_of(
    recipe: SegmentationRecipe,
    data: LabelledSet,
    labels: Sequence[str] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Classes, tuple[str, ...]]:
    """The classes that are learnt, and notes: those asked for (`chosen_classes`), else the recipe's (`system_classes`)."""
    if labels or groups is not None:
        return chosen_classes(data, labels, groups), ()
    return system_classes(data, recipe.labels)


class _Run(Run[SegmentationRecipe, Splits]):
    """One run in its folder."""

    measure = "dice"

    def __init__(
        self,
        folder: Path,
        recipe: SegmentationRecipe,
        begun: initial.Start,
        parts: Splits,
        classes: Classes,
        notes: Sequence[str],
        place: torch.device,
        quiet: bool,
        kinds: Sequence[str],
    ) -> None:
        super().__init__(folder, recipe, parts, begun.init, notes, place, quiet)
        self.begun, self.classes, self.kinds = begun, classes, tuple(kinds)
        self.held = Memory(HELD_BYTES)

    # ------------------------------------------------------------------ the run

    def go(
        self, minutes: float | None, steps: int | None, command: Sequence[str], cache: Path | None, *, report: bool
    ) -> FinetuneSummary:
        recipe, begun, first = self.recipe, self.begun, parallel.rank() == 0
        record = self.begin(command, begun.card.preparation, classes=self._parts_of_classes())
        network = begun.network.to(self.place)
        cases = self._surveyed(cache)
        encoder: Any = network.encoder
        rates: dict[str, float] = {}
        left = [] if recipe.tuning.mode == "frozen" else initial.leave_unused(network)
        if recipe.tuning.mode == "frozen":
            freeze(encoder)
        elif recipe.tuning.mode == "layerwise":
            inside = any(module is encoder for module in network.modules())
            rates = layer_rates(network if inside else encoder, encoder, recipe.tuning.decay)
        if left:
            self.notes.append(
                f"{len(left)} tensors of the encoder have no part in this and stay as they are: {left[0]} ..."
            )
        initial.standardise(begun, cases, recipe.patch, recipe.train.seed)
        task = SegmentationTask(
            network,
            cases,
            recipe.patch,
            begun.multiple,
            augmentation=recipe.augmentation,
            background=recipe.background,
            rates=rates,
        )

        if first and not self.quiet:
            for note in self.notes:
                print(f"{recipe.name}: note: {note}", file=sys.stderr)

        def reached(step: int) -> None:
            self.validate(step, network)
            if report:
                keep_report(self.folder)

        summary, ended = self.learn(task, cases, reached, minutes, steps)
        if not first:
            return self._summary(summary, None)
        self.validate(summary.steps, network)
        test = self._test() if ended else None
        self._finish(summary, test, record)
        if report:
            keep_report(self.folder, self._pictured())
        return self._summary(summary, test)

    def _surveyed(self, cache: Path | None) -> Cases:
        """The training cases, all of which were prepared once: those that cannot be are left out, and what is odd is noted.

        Raises UsageError where no case can be prepared, and where no validation scan holds a class.
        """
        scans, preparation = self.parts.train, self.begun.card.preparation
        cases = Cases(scans, preparation, self.classes, cache=cache)
        found = survey(cases)
        whole = sum(cases.sizes.values())
        self.notes += found.said("training")
        if found.failed:
            self.notes += [f"left out of training: {reason}" for reason in found.failed.values()]
            kept = tuple(scan for scan in scans if scan.id not in found.failed)
            if not kept:
                raise UsageError(f"none of the {len(scans)} training scans can be prepared: {self.notes[-1]}")
            self.parts = replace(self.parts, train=kept)
            cases = Cases(kept, preparation, self.classes, cache=cache)
        if cache is None and whole > cases.memory:
            self.notes.append(
                f"the prepared training scans take {whole / 2**30:.1f} GiB and {cases.memory / 2**30:.1f} GiB are kept: most crops read and "
                "prepare their scan anew, which is slow; give a folder that keeps them (--cache DIR)"
            )
        if parallel.rank() == 0 and not self.rows:
            present = {name for scan in self.parts.validation for name in self._present(scan)}
            if not present:
                raise UsageError(
                    f"none of the {len(self.parts.validation)} validation scans holds one of the classes",
                    do="give more labelled scans, another seed (--seed), or a split of your own",
                )
            absent = [name for name in self.classes.names if name not in present]
            if absent:
                shown = ", ".join(absent[:6]) + (" ..." if len(absent) > 6 else "")
                self.notes.append(
                    f"{len(absent)} of {len(self.classes.names)} classes are in no validation scan: {shown}"
                )
        return cases

    def _present(self, scan: LabelledScan) -> list[str]:
        values = np.unique(self._read(scan)[1].voxels)
        return [name for i, name in enumerate(self.classes.names, 1) if i in values]

    def _parts_of_classes(self) -> dict[str, list[str]]:
        return {name: list(own) for name, own in zip(self.classes.names, self.classes.parts, strict=True)}

    # ------------------------------------------------------------------ validation and test

    def segmenter(self, step: int, network: Any) -> Segmenter:
        """The segmenter of a step, around the network itself, or around a copy with averaged weights."""
        if self.recipe.train.ema is not None:
            network = copy.deepcopy(network)
            tensors = averaged(self.folder / "checkpoints", step)
            network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items()})
        card = self.begun.card
        # not `Segmenter.of`: it would move weights that an optimiser holds
        return Segmenter(network.eval(), card.preparation, card.extent, card.names, card)

    def validate(self, step: int, network: Any) -> None:
        """Segment all validation scans, keep the weights if they are the best so far, and write a row; not twice for a step."""
        if step in self.rows:
            return
        began = time.monotonic()
        with parallel.alone():
            made = self.segmenter(step, network)
            scores = score(
                made,
                self.parts.validation,
                self.classes,
                read=self._read,
                seed=self.recipe.train.seed,
                settings=Pass(precision=self._precision),
            )
        row = {
            "step": step,
            **measures_of(scores, self.parts.validation),
            "precision": self._precision,
            "seconds": round(time.monotonic() - began, 2),
        }
        self.validated(
            row,
            lambda: save_model(replace(made, card=self._card(row)), self.folder / MODEL),
            f"macro Dice {scores.macro.text(3)}",
        )

    def rank(self, row: Row) -> tuple[float, ...]:
        """By macro Dice."""
        return (float(row["dice"]),)

    @property
    def _precision(self) -> Precision:
        """Of validations: on a GPU that of training, which takes a fraction of the time; on a CPU, and of the test, that of use."""
        if self.place.type != "cuda":
            return "fp32"
        chosen = resolve_precision(self.recipe.train.precision, self.place)
        return "fp32" if chosen == "fp64" else chosen

    def _read(self, scan: LabelledScan) -> tuple[Volume, Volume]:
        def read() -> tuple[tuple[Volume, Volume], int]:
            both = read_classes(scan, self.classes)
            return both, sum(volume.voxels.nbytes for volume in both)

        pair: tuple[Volume, Volume] = self.held.once(scan.id, read)
        return pair

    def _test(self) -> Mapping[str, Any] | None:
        """The measures of the best step on the test scans; made once, at the end.

        A run by the clock may go on after that; where another step is the best then, the test is made again, and says so.
        """
        if not self.parts.test:
            return None
        path, best = self.folder / TEST, self.best
        assert best is not None
        earlier: list[int] = []
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text())
            if found["step"] == best["step"]:
                return found
            earlier = [*found.get("looked_at_before", []), found["step"]]
        made = load_segmentation_model(self.folder / MODEL, device=self.place)
        borders, failed = Borders(self.classes.names, self.kinds), dict[str, str]()
        with parallel.alone():
            scores = score(
                made,
                self.parts.test,
                self.classes,
                seed=self.recipe.train.seed,
                failed=failed,
                each=borders.add if self.kinds else None,
            )
        self.notes += [f"test scan {id} is left out: {said}" for id, said in failed.items()]
        if not np.isfinite(scores.dice).any():
            self.notes.append("no test scan that can be read holds or gets one of the classes: there is no test")
            return None
        kept = [scan for scan in self.parts.test if scan.id not in failed]
        seed = self.recipe.train.seed
        row = {"step": best["step"], **measures_of(scores, kept), **borders.data(seed), "failed": failed}
        row["looked_at_before"] = earlier
        files.write_json(path, row)
        return row

    # ------------------------------------------------------------------ what is left behind

    def _card(self, row: Row, **more: Any) -> Card:
        return self.learnt(
            self.begun.card,
            row,
            f"macro Dice on {row['patients']} validation patients, by which the step was chosen: {row['dice']:.4f}",
            ("dice", "low", "high", "micro", "patients"),
            [[[s.id, s.patient] for s in getattr(self.parts, name)] for name in PARTS],
            classes=self._parts_of_classes(),
            **more,
        )

    def _finish(self, summary: Summary, test: Row | None, record: Record) -> None:
        best = self.best
        assert best is not None
        card = self._card(best, precision=summary.precision, warnings=[*summary.warnings, *self.notes])
        said = None
        if test is not None:
            said = f"macro Dice on {test['patients']} test patients, {looked(test)}: {test['dice']:.4f}"
        results = {"classes": list(self.classes.names), "test": test}
        made = load_segmentation_model(self.folder / MODEL)
        self.leave(made, card, record, summary, [TEST] if test else [], results, said)

    def _summary(self, summary: Summary, test: Mapping[str, Any] | None) -> FinetuneSummary:
        return FinetuneSummary(
            self.folder,
            self.folder / MODEL,
            self.recipe.name,
            self.begun.init,
            self.classes.names,
            self.patients,
            str(self.place),
            self.best,
            test,
            summary,
            tuple(self.notes),
        )

    def _pictured(self) -> list[tuple[str, float, Volume, Volume, Volume]]:
        """The validation scans with the highest and the lowest Dice at the best step: title, Dice, scan, reference, prediction."""
        best = self.best
        assert best is not None
        known = {name: value for name, value in best["scans"].items() if value is not None}
        made = load_segmentation_model(self.folder / MODEL, device=self.place)
        found: list[tuple[str, float, Volume, Volume, Volume]] = []
        for title, pick in (("best", max), ("worst", min)):
            name = pick(known, key=lambda scan: known[scan])
            if any(name == seen for seen, *_ in found) and len(known) == 1:
                break
            scan = next(s for s in self.parts.validation if s.id == name)
            image, reference = self._read(scan)
            found.append((title, known[name], image, reference, made(image)))
        return found
