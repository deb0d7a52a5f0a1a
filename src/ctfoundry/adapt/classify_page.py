"""``report.html`` of a classification run: what it came to on test scans, how its probabilities fare, and where it is most wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import metrics
from ctfoundry.adapt.class_scores import ScanScores
from ctfoundry.errors import CTFoundryError
from ctfoundry.report import charts, page, planes
from ctfoundry.stats import Interval
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from ctfoundry.report.page import Cell

WORST = 6
CHARTED = 6
"""Classes that have a curve of their own; all are in the table."""
NAMES = {
    "auroc": "AUROC",
    "macro_auroc": "macro AUROC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "f1": "F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_at_half": "F1 at 0.5",
    "f1_all_positive": "F1 of calling every scan positive",
    "log_loss": "log loss",
    "log_loss_calibrated": "log loss, calibrated",
    "brier": "Brier score",
    "brier_calibrated": "Brier score, calibrated",
}


def write_report(
    folder: Path,
    validation: ScanScores,
    test: ScanScores | None,
    baseline: ScanScores | None,
    rows: Sequence[Mapping[str, Any]],
    images: Mapping[str, Callable[[], Volume]],
    notes: Sequence[str],
) -> None:
    """Write the page; `images` reads a scan by its id, for the pictures of the most wrong ones."""
    main = test or validation
    part = "test" if test is not None else "validation"
    sections: list[page.Section] = [
        page.Numbers(
            [
                (main.headline.text(), f"{'macro ' * (len(main.classes) > 1)}AUROC on {part} patients"),
                (str(len(set(main.patients))), f"{part} patients"),
                (str(len(main.ids)), f"{part} scans"),
            ]
        )
    ]
    if test is None:
        sections.append(
            page.Callout(
                "There are no test scans: the numbers are of the validation scans, by which step and threshold were chosen, "
                "and so are too good.",
                "Chosen and measured on the same patients",
                "warning",
            )
        )
    sections += [page.Heading("Measures"), *_measures(main, baseline)]
    sections += [page.Heading("Curves"), *_curves(main)]
    sections += [page.Heading("Probabilities"), *_calibration(main)]
    sections += [page.Heading("Calls"), *_calls(main)]
    worst = _worst(main, images)
    if worst.items:
        sections += [page.Heading("Most wrong"), worst]
    sections += [page.Heading("Training"), *_training(rows)]
    if notes:
        sections += [page.Heading("What was inferred or left out"), page.Prose("\n\n".join(dict.fromkeys(notes)))]
    page.write(folder / "report.html", page.Page("Labels of whole scans", sections, main.method))


def _text(interval: Interval) -> str:
    return interval.text() if np.isfinite(interval.value) else "–"


def _measures(main: ScanScores, baseline: ScanScores | None) -> list[page.Section]:
    found: list[page.Section] = []
    both = [main, *([baseline] if baseline is not None else [])]
    if len(main.classes) > 1:
        own = [scores.overall() for scores in both]
        found.append(
            page.Table(
                ["all classes", *(scores.method for scores in both)],
                [[NAMES[key], *(_text(each[key]) for each in own)] for key in own[0]],
                caption="95 % intervals: bootstrap over patients.",
            )
        )
    for i, name in enumerate(main.classes):
        ours = main.measures(i)
        other = None if baseline is None else baseline.measures(i)
        limit = "" if main.rule.kind == "multiclass" else f", called from {main.threshold(i):.3f} on"
        positive = int(main.truth[:, i].sum())
        # the baseline has no threshold of its own and is not calibrated: areas only
        rows = [
            [NAMES[key], _text(value), *([_text(other[key]) if key in ("auroc", "average_precision") else None] if other else [])]
            for key, value in ours.items()
        ]  # fmt: skip
        rows.append(
            [
                "calibration error, ten bins of equal mass",
                f"{main.calibration_error(i):.3f}",
                *([None] if other else []),
            ]
        )
        rows.append(
            ["the same, calibrated", f"{main.calibration_error(i, calibrated=True):.3f}", *([None] if other else [])]
        )
        found.append(
            page.Table(
                [name, "classifier", *(["HU histogram"] if other else [])],
                rows,
                caption=f"{name}: {positive} of {len(main.ids)} scans{limit}. 95 % intervals: bootstrap over patients.",
            )
        )
    if main.rule.kind != "multiclass":
        found.append(
            page.Prose(
                "The threshold has the largest sensitivity + specificity on the **validation** patients. F1 rewards calling everything "
                "positive where positives are common, so it stands beside what that alone reaches."
            )
        )
    return found


def _curves(main: ScanScores) -> list[page.Section]:
    series, bands = {}, {}
    for i, name in enumerate(main.classes[:CHARTED]):
        if 0 < main.truth[:, i].sum() < len(main.ids):
            x, y, low, high = main.roc_band(i)
            series[name] = (x, y)
            if np.isfinite(low).all():
                bands[name] = (low, high)
    if not series:
        return [page.Prose("No class is both there and absent in these scans, so there is no curve.")]
    series["chance"] = (np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    chart = charts.lines(
        series, xlabel="1 - specificity", ylabel="sensitivity", bands=bands if len(series) <= 3 else None, height=3.6
    )
    return [
        page.Figure(
            chart,
            "Receiver operating characteristic"
            + (", with the 95 % band of a bootstrap over patients." if bands and len(series) <= 3 else "."),
            "sensitivity against 1 - specificity",
        )
    ]


def _calibration(main: ScanScores) -> list[page.Section]:
    found: list[page.Section] = []
    for i, name in enumerate(main.classes[:CHARTED]):
        positive = main.truth[:, i] > 0
        bins = min(10, max(2, len(positive) // 5))
        series = {}
        counts = ""
        for what, p in (("as it is", main.probabilities[:, i]), ("calibrated", main.calibrated[:, i])):
            rows = metrics.reliability(p, positive, bins)
            series[what] = (np.array([r[0] for r in rows]), np.array([r[1] for r in rows]))
            counts = counts or ", ".join(str(r[2]) for r in rows)
        series["perfect"] = (np.array([0.0, 1.0]), np.array([0.0, 1.0]))
        chart = charts.lines(series, xlabel=f"mean probability of {name}", ylabel="share of positives", height=3.0)
        found.append(
            page.Figure(
                chart,
                f"{name}: {bins} bins of equal mass, with {counts} scans from the left. Calibrated probabilities are at the temperature "
                f"{main.rule.temperature:.2f}, found on validation scans.",
                "reliability of the probabilities of {name}",
            )
        )
    return found


def _calls(main: ScanScores) -> list[page.Section]:
    if main.rule.kind == "multiclass":
        own, called = main.truth.argmax(1), main.probabilities.argmax(1)
        table: list[list[Cell]] = [
            [name, *(int(((own == i) & (called == j)).sum()) for j in range(len(main.classes)))]
            for i, name in enumerate(main.classes)
        ]
        return [
            page.Table(
                ["true class", *(f"called {name}" for name in main.classes)], table, caption="Scans by class and call."
            )
        ]
    rows: list[list[Cell]] = []
    for i, name in enumerate(main.classes):
        positive, called = main.truth[:, i] > 0, main.probabilities[:, i] >= main.threshold(i)
        rows.append(
            [name, *(int((a & b).sum()) for a in (positive, ~positive) for b in (called, ~called))]
        )  # fmt: skip
    return [
        page.Table(
            ["class", "found", "missed", "false alarms", "cleared"],
            rows,
            caption="Scans at the thresholds chosen on validation: positives found and missed, negatives called and cleared.",
        )
    ]


def _worst(main: ScanScores, images: Mapping[str, Callable[[], Volume]]) -> page.Cards:
    """The scans whose true labels got the least probability."""
    if main.rule.kind == "multiclass":
        own = main.probabilities[np.arange(len(main.ids)), main.truth.argmax(1)]
    else:
        own = np.where(main.truth > 0, main.probabilities, 1 - main.probabilities).min(1)
    cards = []
    for row in np.argsort(own, kind="stable")[:WORST]:
        id = main.ids[row]
        if own[row] >= 0.5:
            break
        try:
            picture = planes.three_planes(images[id](), height=150)
        except (CTFoundryError, OSError, KeyError):
            continue
        true = [name for i, name in enumerate(main.classes) if main.truth[row, i]]
        facts = {
            name: f"{main.probabilities[row, i]:.3f}" for i, name in enumerate(main.classes) if i < CHARTED
        }  # fmt: skip
        truth = ", ".join(true) or "none"
        cards.append(page.Card(picture, f"three planes of {id}", id, {"true": truth, **facts}, tone="poor"))
    return page.Cards(
        cards, "Scans whose true labels got the least probability; numbers are the network's probabilities.", 320
    )


def _training(rows: Sequence[Mapping[str, Any]]) -> list[page.Section]:
    ordered = sorted(rows, key=lambda row: row["step"])
    steps = [row["step"] for row in ordered]
    chart = charts.lines(
        {"AUROC": (steps, [row["auroc"] for row in ordered]), "loss": (steps, [row["loss"] for row in ordered])},
        xlabel="step",
        ylabel="on validation",
    )
    return [page.Figure(chart, "Validation patients: area under the curve and loss by step.", "validation by step")]
