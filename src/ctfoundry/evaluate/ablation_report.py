"""Tables and pictures of the ablation: every arm with its interval, beside random weights, and whether the paper's order holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctfoundry import files, stats
from ctfoundry.evaluate import comparison
from ctfoundry.evaluate.ablation import ARMS, RANDOM, Plan
from ctfoundry.evaluate.comparison import BETTER, UNDECIDED, WORSE, Report, intervals, measured, plain
from ctfoundry.report.page import Table
from ctfoundry.settings import to_data
from ctfoundry.stats import Interval, Pair

Values = Mapping[str, Sequence[float]] | Sequence[Pair]
Found = Mapping[str, Interval | None]
"""Intervals by the names of measures."""


@dataclass(frozen=True)
class Measure(comparison.Measure):
    """One number about an encoder. `values` : of results and a method."""

    values: Callable[[Sequence[Mapping[str, Any]], str], Values] = lambda results, method: []


def _by_patient(kind: str) -> Callable[[Sequence[Mapping[str, Any]], str], Values]:
    def values(results: Sequence[Mapping[str, Any]], method: str) -> Values:
        table: dict[str, list[float]] = {}
        for result in results:
            for patient, value in result["dice"].get(method, {}).items():
                table.setdefault(patient, []).append(value[kind])
        return table

    return values


def _views(results: Sequence[Mapping[str, Any]], method: str) -> Values:
    table: dict[str, list[float]] = {}
    for result in results:
        for patient, hits in result["views"].get(method, {}).items():
            table.setdefault(patient, []).extend(100 * hit for hit in hits)
    return table


def _searches(column: int) -> Callable[[Sequence[Mapping[str, Any]], str], Values]:
    scale = 100 if column == 5 else 1

    def values(results: Sequence[Mapping[str, Any]], method: str) -> Values:
        return [
            Pair(row[2], row[3], scale * row[column])
            for result in results
            for row in result["searches"]
            if row[0] == method and row[column] is not None
        ]

    return values


MEASURES = (
    Measure("dice_macro", "few-shot Dice, mean of structures", values=_by_patient("macro")),
    Measure("dice_micro", "few-shot Dice, all voxels together", values=_by_patient("micro")),
    Measure("miss_mm", "miss of a search, mm", values=_searches(4), higher=False, digits=1),
    Measure("inside", "found place inside the structure, %", values=_searches(5), digits=1),
    Measure("views", "views that find each other, real scans, %", values=_views, digits=1),
)
CLAIMS = (
    ("simclr", "simclr-intra", "+0.257"),
    ("simclr-matched", "simclr-intra", "not in the paper: same crops"),
    ("simsiam", "simsiam-intra", "+0.325"),
    ("vicreg", "vicreg-intra", "+0.154"),
    ("vicreg-matched", "vicreg-intra", "not in the paper: same crops"),
    ("simclr-intra-5", "simclr-intra", "+0.078"),
)
"""From which arm to which the paper reports a gain of micro Dice (text and Extended Data Figure 6)."""


LIMIT = "best possible cell"
"""No method: what the grid of cells allows at all."""


def estimate(measure: Measure, values: Values) -> Interval | None:
    """Mean over patients, of searches over pairs; None where nothing was measured."""
    if not values:
        return None
    return stats.mean(values) if isinstance(values, Mapping) else stats.pairs(values, "mean")


def change(ours: Values, other: Values) -> Interval | None:
    """Mean of (ours - other), paired by patient or by pair of patients."""
    if not ours or not other:
        return None
    if isinstance(ours, Mapping):
        return stats.difference(ours, other) if isinstance(other, Mapping) else None
    return stats.pair_difference(ours, other) if not isinstance(other, Mapping) else None


@dataclass(frozen=True)
class Summary:
    """All intervals: of arms, of methods without learning, of changes from random weights and along the paper's claims."""

    arms: Mapping[str, Found]
    gains: Mapping[str, Found]
    others: Mapping[str, Found]
    claims: Sequence[tuple[str, str, str, Found]]
    training: Mapping[str, Sequence[Mapping[str, Any]]]


def summarise(results: Sequence[Mapping[str, Any]]) -> Summary:
    """Intervals from measurements (`ablation.ablation`)."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for result in sorted(results, key=lambda r: r["seed"]):
        by_arm.setdefault(result["arm"], []).append(result)
    order = [RANDOM, *(arm for arm in ARMS if arm in by_arm)]
    values = {arm: {m.name: m.values(by_arm[arm], "encoder") for m in MEASURES} for arm in order}
    without: dict[str, dict[str, Interval | None]] = {}
    names = {
        method
        for result in by_arm[RANDOM]
        for method in (*result["dice"], *result["views"], *(row[0] for row in result["searches"]))
    } - {"encoder"}
    for method in sorted(names):
        without[method] = {m.name: estimate(m, m.values(by_arm[RANDOM][:1], method)) for m in MEASURES}
    return Summary(
        {arm: {m.name: estimate(m, values[arm][m.name]) for m in MEASURES} for arm in order},
        {
            arm: {m.name: change(values[arm][m.name], values[RANDOM][m.name]) for m in MEASURES}
            for arm in order
            if arm != RANDOM and len(by_arm[arm]) == len(by_arm[RANDOM])
        },
        without,
        [
            (a, b, claim, {m.name: change(values[b][m.name], values[a][m.name]) for m in MEASURES})
            for a, b, claim in CLAIMS
            if a in values and b in values and len(by_arm[a]) == len(by_arm[b])
        ],
        {arm: [r["training"] for r in by_arm[arm]] for arm in order if arm != RANDOM},
    )


def tables(summary: Summary) -> list[Table]:
    """What stands in the page and in the Markdown file."""
    label = {RANDOM: RANDOM, **ARMS}
    training = [
        [
            label[arm],
            runs[0]["batch"],
            runs[0]["crops"],
            "x".join(map(str, runs[0]["crop"])),
            runs[0]["steps"],
            ", ".join(f"{run['seconds']:.0f}" for run in runs),
            ", ".join(sorted({w.split(":")[0] for run in runs for w in run["warnings"]})) or "none",
        ]
        for arm, runs in summary.training.items()
    ]
    return [
        measured(
            ["encoder"],
            [
                *(([label[arm]], found) for arm, found in summary.arms.items()),
                *(([name], found) for name, found in summary.others.items()),
            ],
            MEASURES,
            "Mean over patients [95 % interval], all seeds together.",
        ),
        measured(
            ["arm"],
            [([label[arm]], found) for arm, found in summary.gains.items()],
            MEASURES,
            "Change from random weights of the same shape, paired by patient.",
        ),
        measured(
            ["from, to", "paper (micro Dice)"],
            [([f"{a} to {b}", claim], found) for a, b, claim, found in summary.claims],
            MEASURES,
            "Changes that the paper reports, paired by patient; better, worse or undecided by the interval.",
            judged=True,
        ),
        Table(
            ["arm", "scans a step", "crops", "voxels of a crop", "steps", "seconds of each seed", "announced"],
            training,
            caption="How each arm was trained.",
        ),
    ]


def conclusions(summary: Summary) -> list[str]:
    """In words: which of the paper's changes show up here, by the measure that the paper uses and by the others."""
    said = []
    for a, b, claim, found in summary.claims:
        words = {m.name: m.verdict(found[m.name]) for m in MEASURES}
        paper = words["dice_micro"]
        if claim.startswith("not in"):
            tail = f"micro Dice is {paper}"
        else:
            tail = {
                BETTER: "the paper's order is reproduced",
                WORSE: "the paper's order is **reversed**",
                UNDECIDED: "the paper's order is **not reproduced** (undecided)",
            }.get(paper, f"nothing can be said of the paper's order ({paper})")
        rest = ", ".join(f"{m.text}: {words[m.name]}" for m in MEASURES if m.name != "dice_micro")
        said.append(f"`{a}` to `{b}`: {tail}. {rest}.")
    for m in MEASURES:
        better = max if m.higher else min
        arms = {arm: i.value for arm, found in summary.arms.items() if (i := found[m.name]) is not None}
        others = {o: i.value for o, found in summary.others.items() if o != LIMIT and (i := found[m.name]) is not None}
        if not arms or not others:
            continue
        arm, other = better(arms, key=arms.__getitem__), better(others, key=others.__getitem__)
        if better(arms[arm], others[other]) == others[other]:
            said.append(
                f"{m.text}: **{other}** alone ({others[other]:.{m.digits}f}) is as good as the best encoder or better "
                f"(`{arm}`, {arms[arm]:.{m.digits}f}), so no encoder here shows that it learnt this."
            )
    return said


def write_results(out: Path, results: Sequence[Mapping[str, Any]], plan: Plan, *, note: str = "") -> Summary:
    """``ablation.json``, ``ablation.md`` and ``report.html`` into `out`."""
    summary = summarise(results)
    files.write_json(
        out / "ablation.json",
        {
            "plan": to_data(plan),
            "arms": plain(summary.arms),
            "without_learning": plain(summary.others),
            "change_from_random": plain(summary.gains),
            "claims": [
                {"from": a, "to": b, "paper": claim, "found": plain(found)} for a, b, claim, found in summary.claims
            ],
        },
    )
    about = (
        f"{plan.phantoms} phantoms and the real scans; {plan.seeds} seeds an arm; the voxels of {plan.forwards} crops "
        f"(16x64x64) went through the encoder in every run; {plan.shots} labelled phantoms for the decoder. Phantoms are "
        "synthetic: labels are exact, anatomy is simplified. Intervals are bootstrapped over held-out patients; seeds are averaged "
        "within a patient, so they do not show how much another seed would change. " + note
    )
    rows = [*summary.arms.items(), *summary.others.items()]
    pictures = [
        intervals(
            [(name, found[m.name]) for name, found in rows],
            m.text,
            f"{m.text}; the first row is the untrained encoder.",
            title=m.text,
            marked=[0],
            digits=m.digits,
        )
        for m in MEASURES
        if any(found[m.name] is not None for _, found in rows)
    ]
    Report(
        "Ablation of objectives and crop counts",
        "CT-FM's comparison, redone small and measured on patients that no arm saw",
        about,
        conclusions(summary),
        pictures,
        tables(summary),
    ).write(out, "ablation")
    return summary
