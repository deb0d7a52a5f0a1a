"""Predictions on disk: a classifier on many scans, one line a scan so that a killed call continues; and the table of scores."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctfoundry import files
from ctfoundry.adapt.class_scores import ScanScores
from ctfoundry.classifier import Classifier
from ctfoundry.errors import CTFoundryError, UsageError
from ctfoundry.infer.many import overlapped
from ctfoundry.settings import to_data
from ctfoundry.train.monitor import read_lines
from ctfoundry.volume import Volume

LINES = "predictions.jsonl"

Item = tuple[str, str, Callable[[], Volume]]
"""Public id of a scan, digest of its content, and how to read it."""


def predict_many(
    scans: Sequence[Item], classifier: Classifier, out: Path, told: Callable[[int, str], None] = lambda done, id: None
) -> tuple[list[dict[str, Any]], list[str], dict[str, str]]:
    """Predict each scan into ``out/predictions.jsonl``, then ``predictions.csv`` and ``predictions.json`` of all.

    Returns the rows of these scans, the ids that were there already, and the failed ones with the reason; one that fails leaves the others
    alone. Raises UsageError where the folder holds predictions of another model.
    """
    out.mkdir(parents=True, exist_ok=True)
    files.sweep(out)
    _same_model(out, classifier)
    there = {
        (row["id"], row["digest"]): row for row in read_lines(out / LINES) if {"id", "digest", "logits"} <= row.keys()
    }
    skipped = [id for id, digest, _ in scans if (id, digest) in there]
    waiting = [item for item in scans if (item[0], item[1]) not in there]
    failed: dict[str, str] = {}

    def write(item: Item, row: dict[str, Any]) -> None:
        full = {"id": item[0], "digest": item[1], **row}
        files.append_line(out / LINES, json.dumps(full))
        there[item[0], item[1]] = full

    def work(volume: Volume) -> dict[str, Any]:
        return asdict(classifier(volume))

    for done, outcome in enumerate(overlapped(waiting, lambda item: item[2](), work, write), 1):
        error = outcome.error
        if error is not None:
            if not isinstance(error, CTFoundryError | OSError):
                raise error
            failed[outcome.item[0]] = error.what if isinstance(error, CTFoundryError) else type(error).__name__
        told(done, outcome.item[0])
    everyone = sorted(there.values(), key=lambda row: str(row["id"]))
    _write_tables(out, everyone, classifier)
    wanted = {(id, digest) for id, digest, _ in scans}
    return [row for row in everyone if (row["id"], row["digest"]) in wanted], skipped, failed


def _same_model(out: Path, classifier: Classifier) -> None:
    card = {"name": classifier.card.name, "sha256": classifier.card.sha256, "rule": to_data(classifier.rule)}
    path = out / "card.json"
    if path.is_file() and json.loads(path.read_text()) != card:
        raise UsageError("holds predictions of another model", where=out, do="choose another folder")
    if not path.is_file():
        files.write_json(path, card)


def _write_tables(out: Path, rows: Sequence[dict[str, Any]], classifier: Classifier) -> None:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    names = classifier.classes
    tails = [""] if len(names) == 1 else [f":{name}" for name in names]
    table.writerow(["id", *(f"{what}{tail}" for tail in tails for what in ("probability", "calibrated", "called"))])
    for row in rows:
        cells = [
            cell
            for name in names
            for cell in (
                f"{row['probabilities'][name]:.6f}",
                f"{row['calibrated'][name]:.6f}",
                int(name in row["found"]),
            )
        ]
        table.writerow([row["id"], *cells])
    files.write_text(out / "predictions.csv", stream.getvalue())
    files.write_json(
        out / "predictions.json", {"classes": list(names), "rule": to_data(classifier.rule), "predictions": list(rows)}
    )


def write_scores(path: Path, parts: Mapping[str, ScanScores]) -> None:
    """A row a scan: id, patient, split, label, probability, calibrated probability, call; several classes have columns of their own."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    first = next(iter(parts.values()))
    one = len(first.classes) == 1
    tails = [""] if one else [f":{name}" for name in first.classes]
    columns = [f"{what}{tail}" for tail in tails for what in ("label", "probability", "calibrated", "called")]
    table.writerow(["id", "patient", "split", *columns])
    for split, scores in parts.items():
        for row in range(len(scores.ids)):
            cells: list[Any] = []
            for i in range(len(scores.classes)):
                p = scores.probabilities[row]
                called = p.argmax() == i if scores.rule.kind == "multiclass" else p[i] >= scores.threshold(i)
                cells += [
                    int(scores.truth[row, i]), f"{p[i]:.6f}", f"{scores.calibrated[row, i]:.6f}", int(called),
                ]  # fmt: skip
            table.writerow([scores.ids[row], scores.patients[row], split, *cells])
    files.write_text(path, stream.getvalue())
