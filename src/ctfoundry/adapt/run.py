"""What every fine-tuning run does alike in its folder: begin or go on, keep the best step, and leave a card and a record."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ctfoundry import files, parallel
from ctfoundry.adapt.cases import Splits
from ctfoundry.adapt.kept import preparation_digest
from ctfoundry.adapt.recipe import FinetuneRecipe
from ctfoundry.adapt.segmentation import CaseSource
from ctfoundry.encoder import Card
from ctfoundry.preparation import Preparation
from ctfoundry.record import Record
from ctfoundry.settings import to_data
from ctfoundry.train import Summary, fit
from ctfoundry.train.checkpoint import check_same
from ctfoundry.train.loop import FREE
from ctfoundry.train.monitor import read_lines
from ctfoundry.zoo.golden import golden_of

if TYPE_CHECKING:
    import torch

    from ctfoundry.train.task import Task

VALIDATION, TEST, MODEL = "validation.jsonl", "test.json", "model.safetensors"
PARTS = ("train", "validation", "test")
Recipe = TypeVar("Recipe", bound=FinetuneRecipe)
Parts = TypeVar("Parts", bound=Splits)
Row = Mapping[str, Any]
"""One of ``validation.jsonl``: a step and what it came to."""


class Run(ABC, Generic[Recipe, Parts]):
    """One run in its folder.

    Attributes
    ----------
    folder, recipe, parts, place, quiet : what runs where.
    init : what it began from, as the card and ``split.json`` tell it.
    notes : about data and labels; they grow.
    rows : of ``validation.jsonl``, by step.
    """

    measure: str
    """What a whole row of ``validation.jsonl`` holds beside its step."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        parts: Parts,
        init: Mapping[str, str],
        notes: Sequence[str],
        place: torch.device,
        quiet: bool,
    ) -> None:
        self.folder, self.recipe, self.parts, self.init = folder, recipe, parts, init
        self.notes, self.place, self.quiet = list(notes), place, quiet
        known = [row for row in read_lines(folder / VALIDATION) if {"step", self.measure} <= row.keys()]
        self.rows: dict[int, Row] = {int(row["step"]): row for row in known}

    @abstractmethod
    def rank(self, row: Row) -> tuple[float, ...]:
        """What tells the better of two rows: higher is better."""

    @property
    def best(self) -> Row | None:
        """The best row so far, the earlier of equals."""
        return max((self.rows[step] for step in sorted(self.rows)), key=self.rank, default=None)

    @property
    def patients(self) -> dict[str, int]:
        """How many patients each part has."""
        return {name: len({scan.patient for scan in getattr(self.parts, name)}) for name in PARTS}

    def begin(self, command: Sequence[str], preparation: Preparation, **who: Any) -> Record:
        """Write what the run is (``recipe.json``, ``split.json``), or compare it with what it was begun as.

        `who` : what ``split.json`` says beside ids, the beginning and the preparation.
        """
        record = Record(command, {"train": self.recipe.train.seed}, str(self.place))
        first = parallel.rank() == 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if first:
            files.sweep(self.folder)
        ids = {name: [scan.id for scan in getattr(self.parts, name)] for name in PARTS}
        split = {**ids, **who, "init": dict(self.init), "preparation": preparation_digest(preparation)}
        for name, now in (("recipe.json", to_data(self.recipe)), ("split.json", split)):
            path = self.folder / name
            if first and not path.is_file():
                files.write_json(path, now)
            parallel.barrier()
            check_same(json.loads(path.read_text()), now, path, free={f"train.{key}" for key in FREE})
        return record

    def learn(
        self,
        task: Task,
        cases: Sequence[Any],
        validate: Callable[[int], None],
        minutes: float | None,
        steps: int | None,
    ) -> tuple[Summary, bool]:
        """Train, with a validation every so many steps; returns also whether this is the run's end, when the test is looked at."""
        train = self.recipe.train
        summary = fit(
            task,
            CaseSource(cases),
            train,
            self.folder,
            minutes=minutes,
            steps=steps,
            device=self.place,
            quiet=self.quiet,
            title=self.recipe.name,
            at=(self.recipe.validate_every, validate),
        )
        by_clock = minutes is not None and (steps is None or summary.steps < steps)
        return summary, summary.steps >= train.schedule.steps or by_clock

    def validated(self, row: Row, save: Callable[[], object], said: str) -> None:
        """Keep a validated step: its weights (`save`) if they are the best so far, then its row."""
        best = self.best
        if best is None or self.rank(row) > self.rank(best):
            save()
        # after the weights: killed between the two, the step is validated again and comes to the same
        files.append_line(self.folder / VALIDATION, json.dumps(row))
        self.rows[int(row["step"])] = row
        if not self.quiet:
            print(f"{self.recipe.name}: validation at step {row['step']}: {said}", file=sys.stderr)

    def learnt(self, card: Card, row: Row, chosen: str, validation: Sequence[str], data: Any, **more: Any) -> Card:
        """A card that says what a step learnt from and how it was chosen.

        `chosen` : the latter in words. `validation` : names of the row's numbers that are kept. `data` : all scans, of which the card has the
        digest. `more` : of the training.
        """
        training = {
            "recipe": to_data(self.recipe),
            "init": dict(self.init),
            "data": files.digest(data),
            "steps": row["step"],
            "of_steps": self.recipe.train.schedule.steps,
            "patients": self.patients,
            "validation": {name: row[name] for name in validation},
            **more,
        }
        return replace(
            card,
            weights="trained",
            seed=self.recipe.train.seed,
            training=training,
            tested_on=(chosen,),
            not_tested_on=("test patients", "scans of other places, scanners and protocols"),
        )

    def leave(
        self,
        made: Any,
        card: Card,
        record: Record,
        summary: Summary,
        outputs: Sequence[str],
        results: Mapping[str, Any],
        tested: str | None,
    ) -> None:
        """Write the model's card, with what the test said (`tested`), and the run's record."""
        if tested is not None:
            card = replace(card, tested_on=(*card.tested_on, tested), not_tested_on=card.not_tested_on[1:])
        path = self.folder / MODEL
        card = replace(card, sha256=files.sha256(path), golden=golden_of(made))
        files.write_json(path.with_suffix(".json"), to_data(card))
        record.inputs = {
            "recipe": files.digest(to_data(self.recipe)),
            "data": card.training["data"],
            "init": self.init["sha256"],
        }
        record.results = {
            "init": dict(self.init),
            "patients": self.patients,
            "best": dict(self.best or {}),
            **results,
            "warnings_of_data": self.notes,
            **asdict(summary),
        }
        kept = ["recipe.json", "split.json", "metrics.jsonl", VALIDATION, MODEL, "model.json"]
        record.write(self.folder, [*kept, *outputs])
