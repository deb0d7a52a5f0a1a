"""Tables, words and pictures of the few-shot curves: every number with its interval, every difference paired by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ctfoundry import files, stats, structures
from ctfoundry.evaluate.comparison import BETTER, FEW, Measure, Report, intervals, plain
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
from ctfoundry.report.page import Figure, Table
from ctfoundry.stats import Interval

if TYPE_CHECKING:
    from ctfoundry.report.page import Cell

METHODS = (*ARMS, INTENSITY, POSITION)
DICE = Measure("dice", "macro Dice")
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
Key = TypeVar("Key")
Runs = Mapping[str, Mapping[int, float]]
"""A number of each patient, by seed."""


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


def by_patient(results: Results, method: str, shots: int, columns: Sequence[int] = ()) -> Runs:
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


def averaged(runs: Runs) -> Interval | None:
    """Mean over patients, of each over the seeds; None where nothing was measured."""
    return stats.mean({patient: list(own.values()) for patient, own in runs.items()}) if runs else None


def paired(ours: Runs, other: Runs) -> Interval | None:
    """Mean of (ours - other) over patients, of each over the seeds that both have; None where they share nothing."""
    shared = {
        patient: {seed: value - other[patient][seed] for seed, value in own.items() if seed in other[patient]}
        for patient, own in ours.items()
        if patient in other
    }
    return averaged({patient: own for patient, own in shared.items() if own})


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
    values = {key: runs for key, runs in values.items() if runs}
    differences: dict[tuple[str, str, int], Interval] = {}
    by_seed: dict[tuple[str, str, int], list[float]] = {}
    for a, b in PAIRS:
        for n in shots:
            ours, other = values.get((a, n), {}), values.get((b, n), {})
            found = paired(ours, other)
            if found is not None:
                differences[a, b, n] = found
                seeds = sorted(set(next(iter(ours.values()))) & set(next(iter(other.values()))))
                both = [p for p in ours if p in other]
                by_seed[a, b, n] = [sum(ours[p][s] - other[p][s] for p in both) / len(both) for s in seeds]
    grouped: dict[tuple[str, str, int], Runs] = {
        (group, method, n): by_patient(results, method, n, [names.index(name) for name in kinds[group]])
        for method, n in values
        for group in order
    }
    changes = {
        (group, n): paired(grouped.get((group, PRETRAINED, n), {}), grouped.get((group, SCRATCH, n), {}))
        for group in order
        for n in shots
    }
    classes = {
        (name, method, n): _mean(by_patient(results, method, n, [i]))
        for method, n in values
        for i, name in enumerate(names)
    }
    return Summary(
        _known({key: averaged(runs) for key, runs in values.items()}),
        {key: _micro(results, *key) for key in values},
        differences,
        {group: kinds[group] for group in order},
        _known({key: averaged(runs) for key, runs in grouped.items()}),
        _known(changes),
        classes,
        by_seed,
        shots,
        {n: sorted({r["seed"] for r in results if (r["arm"], r["shots"]) == (SCRATCH, n)}) for n in shots},
        len({p for result in results for p in result["patients"]}),
    )


def _mean(runs: Runs) -> float:
    """The value of `averaged` without its interval, which takes time."""
    return float(np.mean([np.mean(list(own.values())) for own in runs.values()])) if runs else float("nan")


def _known(found: Mapping[Key, Interval | None]) -> dict[Key, Interval]:
    return {key: interval for key, interval in found.items() if interval is not None}


def _micro(results: Results, method: str, shots: int) -> float:
    own = [scores_of(result) for result in results if (result["arm"], result["shots"]) == (method, shots)]
    hit, taken, held = sum(scores.counts.sum((0, 1)) for scores in own)
    return float(2 * hit / (taken + held))


def tables(summary: Summary) -> list[Table]:
    """The curve, the differences, the structure groups and the structures."""
    shots = summary.shots
    ran = [method for method in METHODS if any((method, n) in summary.macro for n in shots)]
    curve: list[list[Cell]] = [[method, *(DICE.shown(summary.macro.get((method, n))) for n in shots)] for method in ran]
    micro: list[list[Cell]] = [[method, *(_number(summary.micro.get((method, n))) for n in shots)] for method in ran]
    seeds: list[Cell] = ["seeds", *(len(summary.seeds.get(n, ())) for n in shots)]
    changes: list[list[Cell]] = [
        [
            f"{a} - {b}",
            n,
            DICE.shown(found),
            DICE.verdict(found),
            ", ".join(f"{v:+.3f}" for v in summary.by_seed[a, b, n]),
        ]
        for (a, b, n), found in summary.differences.items()
    ]
    ends = sorted({shots[0], shots[-1]})
    groups: list[list[Cell]] = []
    for group, names in summary.groups.items():
        row: list[Cell] = [f"{group} ({len(names)})"]
        for n in ends:
            own = {m: None if (i := summary.group_macro.get((group, m, n))) is None else i.value for m in METHODS}
            row += [_number(own[PRETRAINED], 2), _number(own[SCRATCH], 2)]
            row += [DICE.shown(summary.group_differences.get((group, n)))]
            row += [_number(own[INTENSITY], 2), _number(own[POSITION], 2)]
        groups.append(row)
    classes: list[list[Cell]] = [
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
            ["structure", "group", *(f"{what}, {n}" for n in ends for what in (PRETRAINED, SCRATCH, "HU", "position"))],
            classes,
            caption=f"Every structure at {' and '.join(map(str, ends))} shots.",
        ),
    ]


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def conclusions(summary: Summary) -> list[str]:
    """What the intervals say, in words."""
    said = []
    for a, b in PAIRS[:2]:
        found = {n: i for (x, y, n), i in summary.differences.items() if (x, y) == (a, b)}
        if found:
            each = "; ".join(f"{n} shots: **{DICE.verdict(i)}**, {i.text(3)}" for n, i in found.items())
            said.append(f"{a} against {b}, macro Dice: {each}.")
    for method in (INTENSITY, POSITION):
        found = {n: i for (x, y, n), i in summary.differences.items() if (x, y) == (PRETRAINED, method)}
        told = {n: DICE.verdict(i) for n, i in found.items()}
        below = [n for n, word in told.items() if word != BETTER]
        if found:
            tail = (
                f"not above it at {', '.join(map(str, below))} shots" if below else "above it at every number of shots"
            )
            tail = "measured on too few patients to say" if FEW in told.values() else tail
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
        found = {float(n): summary.macro[method, n] for n in summary.shots if (method, n) in summary.macro}
        if not found:
            continue
        series[method] = (list(found), [i.value for i in found.values()])
        ends = [(i.low, i.high) for i in found.values() if i.low is not None and i.high is not None]
        if len(ends) == len(found):
            bands[method] = ([low for low, _ in ends], [high for _, high in ends])
    return charts.lines(series, xlabel="labelled phantoms to learn from", ylabel="macro Dice", bands=bands, height=3.6)


def write_results(out: Path, results: Results, setup: Mapping[str, Any]) -> Summary:
    """``results.json``, ``few-shot.md`` and ``report.html`` into `out`."""
    groups = {name: entry["parts"] for name, entry in setup["structures"].items()}
    summary = summarise(results, groups)
    words, text = conclusions(summary), about(setup, summary)
    files.write_json(
        out / "results.json",
        {
            "about": text,
            "words": words,
            "macro": [{"method": m, "shots": n, **plain(i)} for (m, n), i in summary.macro.items()],
            "micro": [{"method": m, "shots": n, "value": v} for (m, n), v in summary.micro.items()],
            "differences": [
                {"ours": a, "other": b, "shots": n, "by_seed": list(summary.by_seed[a, b, n]), **plain(i)}
                for (a, b, n), i in summary.differences.items()
            ],
            "group_differences": [
                {"group": g, "shots": n, **plain(i)} for (g, n), i in summary.group_differences.items()
            ],
        },
    )
    pictures = [
        Figure(curve(summary), "Macro Dice by labelled phantoms; shades are 95 % intervals.", "few-shot curve"),
        intervals(
            [(f"{group}, {n} shots", i) for (group, n), i in summary.group_differences.items()],
            "pretrained - from scratch, Dice",
            "What pretraining changes, by structure group.",
            "differences by structure group",
            reference=0.0,
            digits=3,
        ),
    ]
    Report(
        "Few-shot segmentation of phantoms",
        "Pretrained against from scratch, beside methods that know no anatomy",
        text,
        words,
        pictures,
        tables(summary),
    ).write(out, "few-shot")
    return summary
