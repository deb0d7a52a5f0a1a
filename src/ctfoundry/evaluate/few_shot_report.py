"""Tables, words and pictures of the few-shot curves: every number with its interval, every difference paired by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files, stats, structures
from ctfoundry.adapt.scores import interval_data
from ctfoundry.evaluate.few_shot import (
    ARMS,
    FROZEN,
    FROZEN_RANDOM,
    INTENSITY,
    POSITION,
    PRETRAINED,
    SCRATCH,
    dice_of,
    scores_of,
)
from ctfoundry.report import charts
from ctfoundry.report.page import Callout, Figure, Heading, Page, Prose, Table, write
from ctfoundry.stats import Interval

if TYPE_CHECKING:
    from ctfoundry.report.page import Cell

METHODS = (*ARMS, INTENSITY, POSITION)
PAIRS = ((PRETRAINED, SCRATCH), (FROZEN, FROZEN_RANDOM), (PRETRAINED, INTENSITY), (PRETRAINED, POSITION))
"""Which methods are compared: the first minus the second."""
OTHER = "skin, fat, discs and others"
_GROUPS = {
    "organs": "organs",
    "vertebrae": "vertebrae",
    "cardiac": "heart and vessels",
    "muscles": "muscles, limb bones, spinal cord",
    "ribs": "ribs and sternum",
}
"""TotalSegmentator's groups in words."""

Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Summary:
    """All intervals.

    Attributes
    ----------
    macro : by method and shots, macro Dice; micro : Dice of all voxels of the structures together.
    differences : by pair of methods and shots, of macro Dice, paired by patient.
    groups : by structure group: its classes, and by (method, shots) the mean Dice of its classes.
    group_differences : by group and shots, pretrained minus from scratch.
    classes : by class and (method, shots), mean Dice.
    by_seed : by pair and shots, the difference of each seed.
    shots, patients : what was done. seeds : of the full runs, by shots.
    """

    macro: Mapping[tuple[str, int], Interval]
    micro: Mapping[tuple[str, int], float]
    differences: Mapping[tuple[str, str, int], Interval]
    groups: Mapping[str, tuple[str, ...]]
    group_macro: Mapping[tuple[str, str, int], Interval]
    group_differences: Mapping[tuple[str, int], Interval]
    classes: Mapping[tuple[str, str, int], float]
    by_seed: Mapping[tuple[str, str, int], Sequence[float]]
    shots: Sequence[int]
    seeds: Mapping[int, Sequence[int]]
    patients: int


def group_of(parts: Sequence[str]) -> str:
    """TotalSegmentator's group of a class, by its first structure that has one."""
    for part in parts:
        for name, members in structures.system("totalsegmentator").groups.items():
            if part in members:
                return _GROUPS.get(name, name)
    return OTHER


def by_patient(results: Results, method: str, shots: int, columns: Sequence[int] = ()) -> dict[str, dict[int, float]]:
    """Of each patient, by seed, the mean Dice over the classes that scan or prediction holds (`columns`: those classes alone)."""
    found: dict[str, dict[int, float]] = {}
    for result in results:
        if (result["arm"], result["shots"]) != (method, shots):
            continue
        dice = dice_of(result)
        for patient, row in zip(result["patients"], dice[:, list(columns)] if columns else dice, strict=True):
            if np.isfinite(row).any():
                found.setdefault(patient, {})[result["seed"]] = float(np.nanmean(row))
    return found


def paired(ours: Mapping[str, Mapping[int, float]], other: Mapping[str, Mapping[int, float]]) -> Interval | None:
    """Mean of (ours - other) over patients, of each over the seeds that both have; None where they share nothing."""
    values = {
        patient: [value - other[patient][seed] for seed, value in own.items() if seed in other[patient]]
        for patient, own in ours.items()
        if patient in other
    }
    values = {patient: own for patient, own in values.items() if own}
    return stats.mean(values) if values else None


def balanced(results: Results) -> list[Mapping[str, Any]]:
    """The results without those whose other side (pretrained, random) has not been run on the same shots and seed."""
    there = {(r["arm"], r["shots"], r["seed"]) for r in results}
    other = {a: b for pair in PAIRS[:2] for a, b in (pair, pair[::-1])}
    return [r for r in results if (other.get(r["arm"], r["arm"]), r["shots"], r["seed"]) in there]


def summarise(results: Results, groups: Mapping[str, Sequence[str]]) -> Summary:
    """Intervals from the results of `few_shot.few_shot`; `groups` are its classes."""
    results = balanced(results)
    names, shots = tuple(groups), sorted({result["shots"] for result in results})
    kinds: dict[str, tuple[str, ...]] = {}
    for name, parts in groups.items():
        kinds[group_of(parts)] = (*kinds.get(group_of(parts), ()), name)
    order = [*(g for g in _GROUPS.values() if g in kinds), *(g for g in kinds if g not in _GROUPS.values())]
    values = {(method, n): by_patient(results, method, n) for method in METHODS for n in shots}
    values = {key: found for key, found in values.items() if found}
    differences: dict[tuple[str, str, int], Interval] = {}
    by_seed: dict[tuple[str, str, int], list[float]] = {}
    for a, b in PAIRS:
        for n in shots:
            if (a, n) not in values or (b, n) not in values:
                continue
            ours, other = values[a, n], values[b, n]
            found = paired(ours, other)
            if found is not None:
                differences[a, b, n] = found
                seeds = sorted(set(next(iter(ours.values()))) & set(next(iter(other.values()))))
                by_seed[a, b, n] = [
                    sum(ours[p][s] - other[p][s] for p in ours if p in other) / len(ours) for s in seeds
                ]
    group_macro: dict[tuple[str, str, int], Interval] = {}
    group_differences: dict[tuple[str, int], Interval] = {}
    classes: dict[tuple[str, str, int], float] = {}
    for method, n in values:
        for group in order:
            columns = [names.index(name) for name in kinds[group]]
            own = by_patient(results, method, n, columns)
            if own:
                group_macro[group, method, n] = stats.mean({p: list(v.values()) for p, v in own.items()})
        for i, name in enumerate(names):
            own = by_patient(results, method, n, [i])
            classes[name, method, n] = _mean([_mean(list(v.values())) for v in own.values()])
    for group in order:
        columns = [names.index(name) for name in kinds[group]]
        for n in shots:
            change = paired(*(by_patient(results, method, n, columns) for method in (PRETRAINED, SCRATCH)))
            if change is not None:
                group_differences[group, n] = change
    return Summary(
        {key: stats.mean({p: list(v.values()) for p, v in found.items()}) for key, found in values.items()},
        {key: _micro(results, *key) for key in values},
        differences,
        {group: kinds[group] for group in order},
        group_macro,
        group_differences,
        classes,
        by_seed,
        shots,
        {n: sorted({r["seed"] for r in results if (r["arm"], r["shots"]) == (SCRATCH, n)}) for n in shots},
        len({p for result in results for p in result["patients"]}),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _micro(results: Results, method: str, shots: int) -> float:
    own = [scores_of(result) for result in results if (result["arm"], result["shots"]) == (method, shots)]
    hit, taken, held = sum(scores.counts.sum((0, 1)) for scores in own)
    return float(2 * hit / (taken + held))


def verdict(found: Interval) -> str:
    """What a difference of Dice says."""
    if found.low is None or found.high is None:
        return "too few patients"
    return "undecided" if found.low <= 0 <= found.high else "higher" if found.value > 0 else "lower"


def tables(summary: Summary) -> list[Table]:
    """The curve, the differences, the structure groups and the structures."""
    shots = summary.shots
    curve: list[list[Cell]] = [
        [method, *(_text(summary.macro.get((method, n))) for n in shots)]
        for method in METHODS
        if any((method, n) in summary.macro for n in shots)
    ]
    micro = [
        [method, *(_number(summary.micro.get((method, n))) for n in shots)]
        for method in METHODS
        if any((method, n) in summary.micro for n in shots)
    ]
    seeds: list[Cell] = ["seeds", *(len(summary.seeds.get(n, ())) for n in shots)]
    changes: list[list[Cell]] = [
        [
            f"{a} - {b}",
            n,
            found.text(3),
            verdict(found),
            ", ".join(f"{v:+.3f}" for v in summary.by_seed[a, b, n]),
        ]
        for (a, b, n), found in summary.differences.items()
    ]
    few, many = shots[0], shots[-1]
    ends = [few] if few == many else [few, many]
    groups = [
        [
            f"{group} ({len(names)})",
            *(
                text
                for n in ends
                for text in (
                    *(_text(summary.group_macro.get((group, m, n)), short=True) for m in (PRETRAINED, SCRATCH)),
                    _text(summary.group_differences.get((group, n))),
                    *(_text(summary.group_macro.get((group, m, n)), short=True) for m in (INTENSITY, POSITION)),
                )
            ),
        ]
        for group, names in summary.groups.items()
    ]
    classes = [
        [
            name,
            group,
            *(
                _number(summary.classes.get((name, m, n)), 2)
                for n in ends
                for m in (PRETRAINED, SCRATCH, INTENSITY, POSITION)
            ),
        ]
        for group, names in summary.groups.items()
        for name in names
    ]
    return [
        Table(
            ["method", *(f"{n} shots" for n in shots)],
            [*curve, seeds],
            caption="Macro Dice on test phantoms, mean over patients [95 % interval].",
        ),
        Table(["method", *(f"{n} shots" for n in shots)], micro, caption="Dice of all voxels together."),
        Table(
            ["difference of macro Dice", "shots", "value [95 % interval]", "the first is", "of each seed"],
            changes,
            caption="Differences, paired by patient.",
        ),
        Table(
            [
                "group (structures)",
                *(f"{what}, {n}" for n in ends for what in (PRETRAINED, SCRATCH, "difference", "HU", "position")),
            ],
            groups,
            caption=f"Structure groups (TotalSegmentator's) at {' and '.join(map(str, ends))} shots: mean Dice of a group's structures.",
        ),
        Table(
            [
                "structure",
                "group",
                *(f"{what}, {n}" for n in ends for what in (PRETRAINED, SCRATCH, "HU", "position")),
            ],
            classes,
            caption=f"Every structure at {' and '.join(map(str, ends))} shots.",
        ),
    ]


def _text(found: Interval | None, *, short: bool = False) -> str:
    return "" if found is None else f"{found.value:.2f}" if short else found.text(3)


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def conclusions(summary: Summary) -> list[str]:
    """What the intervals say, in words."""
    said = []
    for a, b in PAIRS[:2]:
        found = {n: i for (x, y, n), i in summary.differences.items() if (x, y) == (a, b)}
        if found:
            each = "; ".join(f"{n} shots: **{verdict(i)}**, {i.text(3)}" for n, i in found.items())
            said.append(f"{a} against {b}, macro Dice: {each}.")
    for method in (INTENSITY, POSITION):
        found = {n: i for (x, y, n), i in summary.differences.items() if (x, y) == (PRETRAINED, method)}
        below = [n for n, i in found.items() if verdict(i) != "higher"]
        if found:
            tail = (
                f"not above it at {', '.join(map(str, below))} shots" if below else "above it at every number of shots"
            )
            said.append(f"{method}, from the same shots: the pretrained network is {tail}.")
    return said


def about(setup: Mapping[str, Any], summary: Summary) -> str:
    """What was done, in one paragraph."""
    recipe, plan = setup["recipe"], setup["plan"]
    seeds = sorted({len(own) for own in summary.seeds.values()})
    held = [entry["held_by"] for entry in setup["structures"].values()]
    train = recipe["train"]
    return (
        f"{summary.patients} test phantoms and {len(setup['validation'])} for validation, fixed; shots are drawn at random from "
        f"{len(setup['pool'])} others, anew for each of {_seeds(seeds)}, more shots hold fewer. {len(held)} structures: those that most "
        f"phantoms of the pool hold ({min(held)} to {max(held)} of {len(setup['pool'])} show at least 1 ml of one), of the coarse groups of "
        f"the torso and the structures in none. Recipe `{recipe['name']}`: {train['schedule']['steps']} steps of {train['batch']} crops of "
        f"{'x'.join(map(str, recipe['patch']))} voxels for every number of shots, rate {train['optimiser']['rate']:g}; the step is chosen on "
        "validation. Pretrained and from scratch share shots, seeds, decoder weights and order of crops. Pretrained model: "
        f"`{setup['model']['name']}`, SHA-256 `{setup['model']['sha256'][:12]}`, {setup['model']['training'].get('steps', '?')} steps. "
        f"Phantoms are of {plan['voxel_mm']:g} mm, seed {plan['cohort']}: labels are exact, anatomy is simplified. Intervals are bootstrapped "
        "over test patients; seeds are averaged within a patient, so they do not show how much another seed would change."
    )


def _seeds(counts: Sequence[int]) -> str:
    if list(counts) == [1]:
        return "one seed"
    return " to ".join(map(str, counts)) + " seeds"


def curve(summary: Summary) -> charts.Svg:
    """Macro Dice over shots, with intervals; the frozen runs, at the fewest and the most shots, stand in the table alone."""
    series, bands = {}, {}
    for method in (PRETRAINED, SCRATCH, INTENSITY, POSITION):
        own = [n for n in summary.shots if (method, n) in summary.macro]
        found = [summary.macro[method, n] for n in own]
        series[method] = ([float(n) for n in own], [i.value for i in found])
        if found and all(i.low is not None for i in found):
            bands[method] = (
                [i.low if i.low is not None else i.value for i in found],
                [i.high if i.high is not None else i.value for i in found],
            )
    series = {name: line for name, line in series.items() if line[0]}
    return charts.lines(
        series,
        xlabel="labelled phantoms to learn from",
        ylabel="macro Dice",
        bands=bands,
        height=3.6,
    )


def write_results(out: Path, results: Results, setup: Mapping[str, Any]) -> Summary:
    """``results.json``, ``few-shot.md`` and ``report.html`` into `out`."""
    groups = {name: entry["parts"] for name, entry in setup["structures"].items()}
    summary = summarise(results, groups)
    made, words, text = tables(summary), conclusions(summary), about(setup, summary)
    files.write_json(
        out / "results.json",
        {
            "about": text,
            "words": words,
            "macro": [{"method": m, "shots": n, **interval_data(i)} for (m, n), i in summary.macro.items()],
            "micro": [{"method": m, "shots": n, "value": v} for (m, n), v in summary.micro.items()],
            "differences": [
                {
                    "ours": a,
                    "other": b,
                    "shots": n,
                    "by_seed": list(summary.by_seed[a, b, n]),
                    **interval_data(i),
                }
                for (a, b, n), i in summary.differences.items()
            ],
            "group_differences": [
                {"group": g, "shots": n, **interval_data(i)} for (g, n), i in summary.group_differences.items()
            ],
        },
    )
    lines = ["# Few-shot segmentation of phantoms", "", text, ""]
    for table in made:
        lines += [
            f"**{table.caption}**",
            "",
            "| " + " | ".join(table.headers) + " |",
            "|---" * len(table.headers) + "|",
        ]
        lines += ["| " + " | ".join("" if c is None else str(c) for c in row) + " |" for row in table.rows]
        lines.append("")
    lines += ["## In words", "", *(f"- {line}" for line in words), ""]
    files.write_text(out / "few-shot.md", "\n".join(lines))
    group_rows = [
        (f"{group}, {n} shots", i.value, i.low, i.high) for (group, n), i in summary.group_differences.items()
    ]
    write(
        out / "report.html",
        Page(
            "Few-shot segmentation of phantoms",
            [
                Prose(text),
                Heading("In words"),
                *(Callout(line) for line in words),
                Heading("Pictures"),
                Figure(curve(summary), "Macro Dice by labelled phantoms; shades are 95 % intervals.", "few-shot curve"),
                Figure(
                    charts.intervals(group_rows, xlabel="pretrained - from scratch, Dice", reference=0.0, digits=3),
                    "What pretraining changes, by structure group.",
                    "differences by structure group",
                ),
                Heading("Tables"),
                *made,
            ],
            subtitle="Pretrained against from scratch, beside methods that know no anatomy",
        ),
    )
    return summary
