"""Tables, pictures and words of the tumour comparison; the page says what a crop gives away and how little one class in one crop shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files, stats
from ctfoundry.evaluate import tumours, tumours_trivial
from ctfoundry.evaluate.comparison import (
    BETTER,
    UNDECIDED,
    WORSE,
    Measure,
    Report,
    intervals,
    measured,
    plain,
    write_picture,
)
from ctfoundry.report.page import Figure, Heading, Prose, Section, Table

if TYPE_CHECKING:
    from ctfoundry.report.page import Cell
    from ctfoundry.stats import Interval

Values = Mapping[str, Sequence[float]]


DICE = Measure("dice", "Dice")
MEASURES = (
    DICE,
    Measure("found", "tumours found", digits=2),
    Measure("touched", "tumours touched", digits=2),
    Measure("false_positives", "false positives a scan", higher=False, digits=2),
    Measure("volume", "volume error, %", higher=False, digits=0),
    Measure("bias", "signed volume error, %", higher=None, digits=0),
    Measure("surface_mm", "surface distance, mm", higher=False, digits=1),
)
TRIVIAL = (tumours_trivial.INTENSITY, tumours_trivial.PLACE, tumours_trivial.CENTRE, tumours_trivial.MARGIN)


def value(measure: str, scan: Mapping[str, Any]) -> float:
    """A measure of one scan, from what `tumours.measure` kept."""
    if measure in ("found", "touched"):
        return float(scan[measure] / scan["lesions"]) if scan["lesions"] else float("nan")
    if measure in ("volume", "bias"):
        error = 100 * (scan["volume_ml"] - scan["reference_ml"]) / scan["reference_ml"]
        return float(abs(error) if measure == "volume" else error)
    return float(scan[measure])


@dataclass(frozen=True)
class Summary:
    """By method and measure: intervals; by pair of methods: paired differences (first minus second) over the patients of both.

    empty : tests in which a method predicted nothing. silent : methods for which those were all. scans : measures of each scan, of the first seed.
    """

    methods: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[tuple[str, str], Mapping[str, Interval]]
    empty: Mapping[str, int]
    silent: Sequence[str]
    scans: Mapping[str, Mapping[str, Mapping[str, Any]]]
    training: Sequence[Mapping[str, Any]]


def summarise(results: Sequence[Mapping[str, Any]]) -> Summary:
    """Intervals from measurements (`tumours.tumours`); seeds are averaged within a patient."""
    rows: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    first: dict[str, dict[str, Mapping[str, Any]]] = {}
    for result in sorted(results, key=lambda r: (r["seed"], r["fold"])):
        for method, found in result["methods"].items():
            rows.setdefault(method, []).extend(found.items())
            if result["seed"] == 0:
                first.setdefault(method, {}).update(found)
    order = [m for m in rows if m not in TRIVIAL] + [m for m in TRIVIAL if m in rows]
    values = {method: {m.name: _by_patient(rows[method], m.name) for m in MEASURES} for method in order}
    differences: dict[tuple[str, str], dict[str, Interval]] = {}
    for ours, other in _pairs(order):
        both: dict[str, Interval] = {}
        for m in MEASURES:
            a, b = values[ours][m.name], values[other][m.name]
            shared = [p for p in a if p in b]
            mine = {p: [float(np.mean(a[p]))] for p in shared}
            both[m.name] = stats.difference(mine, {p: [float(np.mean(b[p]))] for p in shared})
        differences[ours, other] = both
    return Summary(
        {method: {name: stats.mean(found) for name, found in table.items()} for method, table in values.items()},
        differences,
        {method: sum(scan["empty"] == "prediction" for _, scan in rows[method]) for method in order},
        [method for method in order if all(scan["empty"] == "prediction" for _, scan in rows[method])],
        first,
        [
            {"arm": r["arm"], "fold": r["fold"], "seed": r["seed"], **r["training"]}
            for r in results
            if r["arm"] != tumours.TRIVIAL
        ],
    )


def _by_patient(rows: Sequence[tuple[str, Mapping[str, Any]]], measure: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for _, scan in rows:
        number = value(measure, scan)
        if np.isfinite(number):
            found.setdefault(scan["patient"], []).append(number)
    return found


def _pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """What is compared: pretrained with from scratch, with the SuPreM U-Net and with the trivial methods; both norms of that U-Net."""
    networks = [m for m in methods if m not in TRIVIAL]
    pretrained = [m for m in networks if ", pretrained" in m]
    scratch = next((m for m in networks if m.endswith(tumours.SCRATCH)), None)
    found = [(p, scratch) for p in pretrained if scratch is not None]
    found += [(p, other) for p in pretrained for other in methods if other in (*TRIVIAL, tumours.SUPREM)]
    if tumours.SUPREM in networks and tumours.SUPREM_PUBLISHED in networks:
        found.append((tumours.SUPREM, tumours.SUPREM_PUBLISHED))
    return found


def tables(summary: Summary) -> list[Table]:
    """What stands in the page and in the Markdown file."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for row in summary.training:
        arms.setdefault(row["arm"], []).append(row)
    training: list[list[Cell]] = [
        [
            arm,
            len(runs),
            f"{runs[0]['parameters']:,}",
            runs[0]["steps"],
            ", ".join(str(run["best_step"]) for run in runs),
            ", ".join(f"{run['validation_dice']:.2f}" for run in runs),
        ]
        for arm, runs in arms.items()
    ]
    return [
        measured(
            ["method", "patients"],
            [([name, row["dice"].patients], row) for name, row in summary.methods.items()],
            MEASURES,
            f"Mean over test patients [95 % interval]. Found: overlap of at least {tumours.FOUND_IOU:.0%} of the union; touched: one "
            f"voxel. False positives: connected parts of at least {tumours.SMALLEST} voxels that touch no tumour. Surface distance: "
            "symmetric mean; a scan where nothing is predicted (column empty) counts the diagonal of its grid.",
            more={"empty": list(summary.empty.values())},
        ),
        measured(
            ["difference", "patients"],
            [([f"{a} minus {b}", row["dice"].patients], row) for (a, b), row in summary.differences.items()],
            MEASURES,
            "Differences, paired by patient [95 % interval]; better, worse or undecided says it of the first.",
            judged=True,
        ),
        Table(
            ["arm", "runs", "parameters", "steps", "step kept", "validation Dice"],
            training,
            caption="How the networks were trained; the step was chosen on validation patients.",
        ),
    ]


def conclusions(summary: Summary) -> list[str]:
    """In words, from the intervals alone."""
    said = []
    for (a, b), row in summary.differences.items():
        if {a, b} & set(summary.silent):
            continue
        found = row["dice"]
        word = {
            BETTER: f"**{a} is better** than {b}",
            WORSE: f"**{a} is worse** than {b}",
            UNDECIDED: f"{a} and {b} cannot be told apart",
        }.get(DICE.verdict(found), f"{a} and {b}: too few patients to say")
        words = [(m.text, m.verdict(row[m.name])) for m in MEASURES[1:]]
        rest = ", ".join(f"{text} {told}" for text, told in words if told in (BETTER, WORSE))
        said.append(
            f"{word} by Dice: {found.text(3)}, {found.patients} patients" + (f"; also: {rest}." if rest else ".")
        )
    return [
        *said,
        *(f"{name} predicted nothing in any test: it learnt too little to compare." for name in summary.silent),
    ]


def chest_table(found: Mapping[str, Any]) -> Table:
    """Dice by group of every method on the one chest, and its mean on the test phantoms beside."""
    methods = list(found["methods"])
    rows = [[name, *(_shown(found["methods"][m]["chest"][name]) for m in methods)] for name in found["classes"]]
    for text, what in (("mean, chest", "chest"), (f"mean, {found['phantoms']['test']} test phantoms", "phantoms")):
        rows.append([text, *(_shown(_mean(found["methods"][m][what])) for m in methods)])
    return Table(
        ["group", *methods],
        rows,
        caption="Dice on one real chest of methods that learnt on phantoms alone; its reference labels were made by another model.",
    )


def _shown(dice: float | None) -> str:
    return "not there" if dice is None else f"{dice:.3f}"


def _mean(dice: Mapping[str, float | None]) -> float:
    return float(np.mean([v for v in dice.values() if v is not None]))


def pictures(out: Path, data: Path, summary: Summary, method: str, most: int = 3) -> list[tuple[str, str, np.ndarray]]:
    """The scans with the lowest and the highest Dice of a method's first seed: caption, alternative text, picture.

    Each shows three planes through the reference's middle; the reference is outlined in one colour, the prediction in another, and what
    both outlines share in a third.
    """
    from ctfoundry.adapt.scores import read_classes
    from ctfoundry.adapt.surfaces import border
    from ctfoundry.report.planes import Overlay, three_planes

    known = tumours.open_tumours(data)
    classes = tumours.classes_of(known)
    ranked = sorted(summary.scans[method], key=lambda id: summary.scans[method][id]["dice"])
    chosen = [*((id, "lowest") for id in ranked[:most]), *((id, "highest") for id in ranked[::-1][: max(most - 1, 1)])]
    found = []
    for id, end in chosen:
        image, labels = read_classes(next(scan for scan in known.scans if scan.id == id), classes)
        reference, prediction = labels.voxels == 1, tumours.read_mask(out, method, 0, id)
        colours = np.full((*image.shape, 3), np.nan, dtype=np.float32)
        colours[border(reference)] = REFERENCE
        colours[border(prediction)] = PREDICTION
        colours[border(reference) & border(prediction)] = BOTH
        inside = np.argwhere(reference)
        centre = inside[np.abs(inside - inside.mean(0)).sum(1).argmin()]
        scan = summary.scans[method][id]
        picture = three_planes(
            image,
            point=np.asarray(image.world(centre)),
            window=(40, 400),
            overlay=Overlay(colours, alpha=1.0, smooth=False),
            height=240,
            field="scan",
        )
        caption = (
            f"{id} ({end} Dice): Dice {scan['dice']:.2f}, {scan['reference_ml']:.0f} ml in the reference, {scan['volume_ml']:.0f} ml "
            f"predicted, {scan['false_positives']} false positives."
        )
        found.append((caption, f"Outlines of reference and prediction, patient {id}", picture))
    return found


REFERENCE, PREDICTION, BOTH = (0.30, 0.76, 1.0), (1.0, 0.55, 0.1), (1.0, 1.0, 1.0)
"""Colours of outlines: blue, orange, white."""


def about(setup: Mapping[str, Any]) -> str:
    """How it was made, for people."""
    plan = setup["plan"]
    models = ", ".join(f"{name} ({card['sha256'][:12]})" for name, card in setup["models"].items())
    suprem = min(plan["suprem_folds"], plan["folds"])
    text = (
        f"{setup['scans']} scans of {setup['patients']} patients in {plan['folds']} folds; every patient is tested once, by a run that did not "
        f"see them ({plan['validation']} of the others choose the step). Runs of each fold: {plan['seeds']}, of {plan['steps']} steps of recipe "
        f"{plan['recipe']} ({', '.join(plan['changes'])}), all weights trained. Encoder: {models}. "
    )
    if suprem:
        text += (
            f"The SuPreM U-Net has {plan['suprem_filters']} filters instead of 32 and random weights (its public ones are not here), crops of "
            f"{plan['suprem_patch']} voxels cubed instead of 96, {plan['suprem_steps']} steps of one crop, its published preparation and windows; "
            f"it is tested on {suprem} of {plan['folds']} folds. Both norms are the same weights: they differ in use alone. "
        )
    return text + (
        "Scans are crops around the tumour, so the crop's own edges give its place away; the ellipsoids say how much. Every scan holds a "
        "tumour, so nothing here measures detection in whole scans. Intervals are bootstrapped over patients; seeds are averaged within a patient."
    )


def write_results(
    out: Path,
    data: Path,
    results: Sequence[Mapping[str, Any]],
    setup: Mapping[str, Any],
    chest: Mapping[str, Any] | None = None,
) -> Summary:
    """``results.json``, ``tumours.md``, ``report.html`` and, where an arm was pretrained, ``tumours.png`` into `out`."""
    summary = summarise(results)
    files.write_json(
        out / "results.json",
        {
            "setup": dict(setup),
            "methods": plain(summary.methods),
            "differences": [{"ours": a, "other": b, **plain(row)} for (a, b), row in summary.differences.items()],
            "empty": dict(summary.empty),
            "scans": {m: {k: dict(v) for k, v in row.items()} for m, row in summary.scans.items()},
            "training": list(summary.training),
            "chest": None if chest is None else dict(chest),
        },
    )
    pretrained = [name for name in summary.methods if ", pretrained" in name]
    marked = [i for i, name in enumerate(summary.methods) if name in pretrained]
    shown: list[Section] = [
        intervals(
            [(name, row[m.name]) for name, row in summary.methods.items()],
            m.text,
            f"{m.text} of every method, mean over patients with its interval.",
            title=m.text,
            marked=marked,
            digits=m.digits,
        )
        for m in (DICE, MEASURES[6])
    ]
    if pretrained:
        best, colours = pretrained[0], "Blue: reference. Orange: prediction. White: where both outlines run."
        made = pictures(out, data, summary, best)
        shown += [Heading("What was missed, and the best"), Prose(f"Of {best}. {colours}")]
        shown += [Figure(picture, caption, alt) for caption, alt, picture in made]
        dice = {f"{m}\n{row['dice'].text(2)}, {row['dice'].patients} patients": m for m, row in summary.methods.items()}
        rows = {text: summary.methods[m]["dice"] for text, m in dice.items()}
        write_picture(
            out / "tumours.png",
            {
                "in the pictures": {text: found for text, found in rows.items() if dice[text] == best},
                "others": {text: found for text, found in rows.items() if dice[text] != best},
            },
            [(caption, picture) for caption, _, picture in (*made[:2], made[-2])],
            "Dice on test patients, mean and 95 % interval",
            footer=f"{best}. {colours}",
        )
    Report(
        "Tumours on real scans",
        "Pretrained against from scratch, beside what a crop gives away",
        about(setup),
        conclusions(summary),
        shown,
        [*tables(summary), *([chest_table(chest)] if chest else [])],
    ).write(out, "tumours")
    return summary
