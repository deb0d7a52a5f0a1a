"""``RUN/report.html`` of a fine-tuning run: how it learnt, which step was kept and why, label by label, and two scans to look at.

Everything but the pictures is read from the run's folder, so it can be written at any time and again. Public IDs, no paths.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import __version__
from ctfoundry.train.monitor import read_lines, read_metrics

if TYPE_CHECKING:
    from ctfoundry.report.page import Page, Section
    from ctfoundry.volume import Volume

    Pictured = tuple[str, float, Volume, Volume, Volume]
    """``best`` or ``worst``, Dice, scan, reference and prediction."""

NAME = "report.html"
POINTS = 400
"""Points of a curve; of more log lines each point is the mean of some in a row."""
CHARTED = 30
"""Labels up to which they are drawn; more are a table."""


@dataclass(frozen=True)
class Run:
    """What lies in a run's folder: recipe, split, log lines, validations by step, test, record (each as data)."""

    recipe: Mapping[str, Any]
    split: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    warnings: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]
    test: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def best(self) -> Mapping[str, Any]:
        """The validation with the highest macro Dice, the earlier of equals."""
        return max(self.validations, key=lambda row: float(row["dice"]))


def keep_report(folder: Path, pictured: Sequence[Pictured] = ()) -> None:
    """Write the report; nothing that goes wrong with it ends a training: it is said on stderr."""
    try:
        write_report(folder, pictured)
    except Exception as error:
        _say(f"no {NAME}: {error!r}")


@cache
def _say(text: str) -> None:
    print(text, file=sys.stderr)


def write_report(folder: Path, pictured: Sequence[Pictured] = ()) -> Path:
    """``report.html`` of a run with at least one validation, whole or not at all."""
    from ctfoundry.report import page

    page.write(folder / NAME, build(read_run(folder), pictured))
    return folder / NAME


def read_run(folder: Path) -> Run:
    """What lies in a run's folder."""
    metrics, warnings = read_metrics(folder / "metrics.jsonl")
    rows = {row["step"]: row for row in read_lines(folder / "validation.jsonl") if "dice" in row}
    record = _json(folder / "run.json")
    if metrics and record.get("results", {}).get("steps") != metrics[-1]["step"]:
        record = {}  # of an earlier call: the run has gone on
    return Run(
        _json(folder / "recipe.json"),
        _json(folder / "split.json"),
        metrics,
        warnings,
        [rows[step] for step in sorted(rows)],
        _json(folder / "test.json"),
        record,
    )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def build(run: Run, pictured: Sequence[Pictured] = ()) -> Page:
    """The page."""
    from ctfoundry.report.page import Page

    last = run.metrics[-1]["step"] if run.metrics else run.validations[-1]["step"]
    total = run.record.get("results", {}).get("total") or run.recipe["train"]["schedule"]["steps"]
    state = "finished" if run.record and last >= total else "so far"
    return Page(
        f"Fine-tuning {run.recipe['name']}",
        [*_summary(run), *_learning(run), *_labels(run), *_borders(run), *_pictures(pictured), *_settings(run)],
        subtitle=f"Step {last} of {total}, {state}.",
        footer=f"ctfoundry {__version__}. Written from the run's own files up to step {last}.",
    )


def _summary(run: Run) -> Iterator[Section]:
    from ctfoundry.report.page import Callout, Numbers, Prose

    best, init, patients = run.best, run.split["init"], run.record.get("results", {}).get("patients", {})
    shown = [(f"{best['dice']:.3f}", f"validation Dice, step {best['step']}")]
    if run.test:
        before = run.test.get("looked_at_before", [])
        times = f"looked at {len(before) + 1} times" if before else "looked at once"
        shown.append((f"{run.test['dice']:.3f}", f"test Dice, {times}"))
    shown += [(str(n), f"{part} patients") for part, n in patients.items() if n]
    yield Numbers(shown)
    if init["weights"] == "random":
        yield Callout(
            "The encoder began with random weights: this run is the from-scratch side of a comparison.",
            "From scratch",
        )
    begun = f"It began with {init['model']}, {init['weights']} weights"
    yield Prose(f"{begun} ({init['sha256'][:12]})." if init["sha256"] else f"{begun}.")
    said = run.record.get("results", {}).get("warnings_of_data", [])
    for text in [*dict.fromkeys(said)][:20]:
        yield Callout(text, kind="warning")
    for row in run.warnings[:10]:
        yield Callout(str(row["text"]), f"At step {row['step']}", "warning")
    if best["low"] is None:
        yield Callout(f"With {best['patients']} validation patients there is no interval: numbers are examples.")


def _learning(run: Run) -> Iterator[Section]:
    from ctfoundry.report import charts
    from ctfoundry.report.page import Figure, Heading

    yield Heading("Learning")
    points = [(row["step"], row["loss"]) for row in run.metrics if isinstance(row.get("loss"), int | float)]
    if len(points) > 1:
        x, y = _thinned(np.array(points, dtype=float))
        yield Figure(
            charts.lines({"loss": (x, y)}, xlabel="step", ylabel="loss"),
            "Training loss: Dice and cross-entropy, summed over resolutions. It falls whether or not new patients gain.",
            "training loss by step",
        )
    steps = [row["step"] for row in run.validations]
    dice = [row["dice"] for row in run.validations]
    bounds = [[np.nan if row[end] is None else row[end] for row in run.validations] for end in ("low", "high")]
    best = run.best
    yield Figure(
        charts.lines(
            {"macro Dice": (steps, dice)},
            bands={"macro Dice": (bounds[0], bounds[1])} if np.isfinite(bounds[0]).any() else None,
            marks=[(best["step"], best["dice"], f"step {best['step']}")],
            xlabel="step",
            ylabel="Dice",
        ),
        "Macro Dice over whole validation scans, on their own grids, with its interval over patients; the dot is the step that was kept.",
        "validation Dice by step",
    )


def _thinned(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = np.array_split(points, min(POINTS, len(points)))
    means = np.array([part.mean(0) for part in parts])
    return means[:, 0], means[:, 1]


def _labels(run: Run) -> Iterator[Section]:
    from ctfoundry.report import charts
    from ctfoundry.report.page import Figure, Heading, Prose, Table

    yield Heading("Label by label")
    for what, row in (("validation", run.best), ("test", run.test)):
        if not row:
            continue
        known = {name: value for name, value in row["labels"].items() if value is not None}
        caption = (
            f"Dice on {what} patients at step {row['step']}: mean over the patients whose scan or prediction holds the label, "
            "with its bootstrap interval. Where only one of the two holds it, Dice is 0."
        )
        if len(known) <= CHARTED:
            rows = [(name, v["value"], v["low"], v["high"]) for name, v in known.items()]
            yield Figure(charts.intervals(rows, xlabel="Dice"), caption, f"Dice of each label, {what}")
        else:
            body = [(n, f"{v['value']:.3f}", _interval(v), v["patients"]) for n, v in known.items()]
            yield Table(("label", "Dice", "interval", "patients"), body, caption=caption)
        absent = [name for name, value in row["labels"].items() if value is None]
        if absent:
            yield Prose(f"In no {what} scan and never predicted there: {', '.join(absent)}.")


def _borders(run: Run) -> Iterator[Section]:
    from ctfoundry.report.page import Heading, Table

    surfaces, lesions = dict(run.test.get("surfaces", {})), run.test.get("lesions", {})
    if not surfaces and not lesions:
        return
    yield Heading("Borders and lesions of the test scans")
    tolerance = surfaces.pop("tolerance_mm", None)
    if surfaces:
        body = [
            (name, _text(row["distance"], 2), _text(row["normalised"]), row["empty"]["prediction"], row["empty"]["reference"])
            for name, row in surfaces.items()
        ]  # fmt: skip
        yield Table(
            (
                "label",
                "surface distance, mm",
                f"surface Dice at {tolerance:g} mm",
                "missed wholly",
                "found where none is",
            ),
            body,
            caption="Means over patients. A scan in which a label is missed wholly, or found where none is, counts the grid's diagonal as its "
            "distance and 0 as its surface Dice.",
        )
    if lesions:
        body = [
            (name, row["lesions"], _text(row["sensitivity"]), _text(row["false_positives"], 2), _text(row["dice"]))
            for name, row in lesions.items()
        ]
        yield Table(
            ("label", "lesions", "found", "false positives a scan", "Dice a lesion"),
            body,
            caption="Lesions are connected parts of the reference; one is found when a predicted voxel lies in it. Missed ones have Dice 0.",
        )


def _text(value: Mapping[str, Any] | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    tail = "" if value["low"] is None else f" [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"
    return f"{value['value']:.{digits}f}{tail}"


def _interval(value: Mapping[str, Any]) -> str:
    return "" if value["low"] is None else f"{value['low']:.3f} to {value['high']:.3f}"


def _pictures(pictured: Sequence[Pictured]) -> Iterator[Section]:
    from ctfoundry.report.page import Figure, Heading
    from ctfoundry.report.planes import three_planes

    if pictured:
        yield Heading("Two validation scans")
    for title, dice, image, reference, prediction in pictured:
        point = _middle(reference if reference.voxels.any() else prediction)
        for what, labels in (("reference", reference), ("prediction", prediction)):
            yield Figure(
                three_planes(image, point=point, overlay=_drawable(labels), outlined=True, height=260),
                f"The {title} scan, macro Dice {dice:.3f}: {what}. Both through the same point.",
                f"{what} outlines of the {title} validation scan",
            )


def _drawable(labels: Volume) -> Volume:
    """Without what nobody asks about."""
    from ctfoundry.adapt.cases import IGNORE
    from ctfoundry.volume import Volume

    known = np.where(labels.voxels == IGNORE, 0, labels.voxels) if labels.voxels.dtype == np.uint8 else labels.voxels
    return Volume(known, labels.affine, "label")


def _middle(labels: Volume) -> np.ndarray:
    """World millimetres of a labelled voxel in the slice that holds most classes, then most labelled voxels."""
    shown = _drawable(labels).voxels
    if not shown.any():
        return np.asarray(labels.world([(n - 1) / 2 for n in shown.shape]))
    weight = [len(np.unique(part)) * shown[0].size + np.count_nonzero(part) for part in shown]
    z = int(np.argmax(weight))
    inside = np.argwhere(shown[z] > 0)
    y, x = inside[np.abs(inside - inside.mean(0)).sum(1).argmin()]
    return np.asarray(labels.world([z, int(y), int(x)]))


def _settings(run: Run) -> Iterator[Section]:
    from ctfoundry.report.page import Details, Facts

    flat: dict[str, str] = {}

    def walk(data: Mapping[str, Any], path: str) -> None:
        for name, value in data.items():
            if isinstance(value, Mapping):
                walk(value, f"{path}{name}.")
            else:
                flat[path + name] = str(value)

    walk(run.recipe, "")
    yield Details("The recipe, as it was run", [Facts(flat)])
