"""What is told of a fine-tuned segmenter: its measures as plain values, its patients, its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ctfoundry import files
from ctfoundry.adapt.cases import Classes, LabelledScan, Splits
from ctfoundry.adapt.initial import Start
from ctfoundry.adapt.recipe import SegmentationRecipe
from ctfoundry.adapt.scores import Scores, interval_data
from ctfoundry.encoder import Card
from ctfoundry.settings import to_data


def patients_of(parts: Splits) -> dict[str, int]:
    """How many patients each part has."""
    return {name: len({s.patient for s in getattr(parts, name)}) for name in ("train", "validation", "test")}


def card_of(
    begun: Start, recipe: SegmentationRecipe, parts: Splits, classes: Classes, row: Mapping[str, Any], **more: Any
) -> Card:
    """The card of the segmenter of a validated step, `row` of ``validation.jsonl``."""
    chosen = {name: row[name] for name in ("dice", "low", "high", "micro", "patients")}
    training = {
        "recipe": to_data(recipe),
        "init": dict(begun.init),
        "data": files.digest(
            [[[s.id, s.patient] for s in part] for part in (parts.train, parts.validation, parts.test)]
        ),
        "classes": {name: list(own) for name, own in zip(classes.names, classes.parts, strict=True)},
        "steps": row["step"],
        "of_steps": recipe.train.schedule.steps,
        "patients": patients_of(parts),
        "validation": chosen,
        **more,
    }
    return replace(
        begun.card,
        weights="trained",
        training=training,
        tested_on=(
            f"macro Dice on {row['patients']} validation patients, by which the step was chosen: {row['dice']:.4f}",
        ),
        not_tested_on=("test patients", "scans of other places, scanners and protocols"),
    )


def looked(test: Mapping[str, Any]) -> str:
    """How often the test scans were looked at."""
    before = test.get("looked_at_before", [])
    return "looked at once" if not before else f"looked at {len(before) + 1} times"


def measures_of(scores: Scores, scans: Sequence[LabelledScan]) -> dict[str, Any]:
    """What a row of ``validation.jsonl`` says of some scans."""
    macro, micro = scores.macro, scores.micro
    with np.errstate(invalid="ignore"):
        each = [float(np.nanmean(row)) if np.isfinite(row).any() else None for row in scores.dice]
    return {
        "dice": macro.value,
        "low": macro.low,
        "high": macro.high,
        "micro": micro.value,
        "patients": macro.patients,
        "seed": macro.seed,
        "labels": {name: None if i is None else interval_data(i) for name, i in scores.labels.items()},
        "scans": {scan.id: value for scan, value in zip(scans, each, strict=True)},
    }
