"""What is told of a fine-tuned segmenter: its measures as plain values, and how often the test was looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctfoundry.adapt.cases import LabelledScan
from ctfoundry.adapt.scores import Scores, interval_data


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
