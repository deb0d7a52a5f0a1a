"""How well a search finds: every structure of every scan looked for in every scan of another patient.

Errors are distances to the structure's centroid in mm; a structure that the target does not hold at all must be answered with "not in
this scan"; one that is cut by the target's border is left out. Labels stay on their own grid: nothing is resampled, a place lies
in a structure where its voxel says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctfoundry import stats
from ctfoundry.body import body_box
from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import UsageError
from ctfoundry.evaluate import landmarks
from ctfoundry.evaluate.localise import Case, hu_method
from ctfoundry.layouts.cases import Cohort
from ctfoundry.phantom import make
from ctfoundry.phantom.spec import Spec
from ctfoundry.retrieval.search import Seen
from ctfoundry.retrieval.search_confidence import RIGHT_MM, Calibration, Evidence, calibrate
from ctfoundry.retrieval.search_maps import Looking, Scene, scene
from ctfoundry.settings import to_data
from ctfoundry.volume import Volume

POSITION = "position in the body box"
BEST_CELL = "best possible cell"
HU = "HU around the cell"
SHOWN_BINS = 5
LEVEL_OF_HU = 3
"""Where windows are searched with, HU cells are those of this level from the last."""


@dataclass(frozen=True)
class Answer:
    """One search: the place, its error (None: the structure is not in the target), whether it lies in the structure."""

    method: str
    structure: str
    query: str
    target: str
    patients: tuple[str, str]
    point: tuple[float, float, float]
    error: float | None
    inside: float | None = None
    evidence: Evidence | None = None

    @property
    def asked(self) -> tuple[str, str, str]:
        """What was looked for, from where, in what."""
        return self.structure, self.query, self.target

    @property
    def pair(self) -> stats.Pair:
        """The error with its patients."""
        assert self.error is not None
        return stats.Pair(*self.patients, self.error)


@dataclass(frozen=True, eq=False)
class Way:
    """An encoder and how it looks; `describe` gives the scene of a scan. `seconds` : what each look took, preparation included."""

    encoder: Encoder
    looking: Looking
    describe: Callable[[Volume], Scene] | None = None
    seconds: list[float] = field(default_factory=list)

    def see(self, case: Case) -> Seen:
        """The scan of a case."""
        began = time.perf_counter()
        found = self.describe(case.volume) if self.describe else scene(self.encoder, case.volume, self.looking)
        self.seconds.append(time.perf_counter() - began)
        return Seen.of(self.encoder, case.volume, self.looking, seen=found)


def ways(
    encoder: Encoder, random: Encoder | None, looking: Looking, beside: Mapping[str, Looking] = {}
) -> dict[str, Way]:
    """The encoder, and how else it may look (`beside`); its twin with random weights, and cells described by their HU, both looked
    at in the first way."""
    found = {encoder.card.name: Way(encoder, looking)}
    found |= {f"{encoder.card.name}, {name}": Way(encoder, other) for name, other in beside.items()}
    if random is not None:
        found["random weights"] = Way(random, looking)
    hu = hu_method(encoder, looking.levels[0] if looking.levels else encoder.levels[-LEVEL_OF_HU].name)
    plain = replace(looking, window=None, levels=looking.levels or (encoder.levels[-LEVEL_OF_HU].name,))

    def describe(volume: Volume) -> Scene:
        feature = hu(volume)
        return Scene.of_map(feature, (feature.data.shape[0],))

    return found | {HU: Way(encoder, plain, describe)}


def phantom_cases(
    count: int, seed: int, *, voxel_mm: float | None = None, say: Callable[[str], None] = lambda _: None
) -> list[Case]:
    """Labelled phantoms of the torso's views, one patient each."""
    from ctfoundry.layouts.plain import in_processes

    cohort = Cohort(count, seed, voxel_mm=voxel_mm)
    made = in_processes(_phantom, [(cohort.specs(n)[0],) for n in range(count)], say=say)
    return [case_of(cohort.name(n), ct, labels) for n, (ct, labels) in enumerate(made)]


def _phantom(spec: Spec) -> tuple[Volume, Volume]:
    made = make(spec)
    return made.ct, made.labels


def labelled_cases(root: Path) -> list[Case]:
    """Cases below a folder: each folder with one CT and one label map on its grid; its public number is its patient's too."""
    from ctfoundry.evaluate.difficulty import read_scans

    return [case_of(f"P{n:02d}", scan.ct, scan.labels) for n, scan in enumerate(read_scans(root), 1)]


def case_of(name: str, ct: Volume, labels: Volume) -> Case:
    """A labelled scan with its landmarks."""
    return Case(name, name, ct, landmarks.centroids(labels), labels)


def search_all(
    cases: Sequence[Case],
    methods: Mapping[str, Way],
    structures: Sequence[str] = (),
    source: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Answer]:
    """Answers of all methods for all ordered pairs of patients, in one order; then the position guess and the best possible cell of
    the first method.

    `structures` : only these. `source` : only from this case (as published).
    """
    if len(cases) < 2:
        raise UsageError(f"{len(cases)} labelled scans: two are needed")
    names = [{n for n in case.landmarks if not structures or n in structures} for case in cases]
    held = [_held(case) for case in cases]
    found: list[Answer] = []
    for number, (method, way) in enumerate(methods.items()):
        seen = [way.see(case) for case in cases]
        names = [_asked(s, c, own) for s, c, own in zip(seen, cases, names, strict=True)]
        if number == 0:
            nearest = [s.scene.centres for s in seen]
        for q, query in enumerate(cases):
            if source is not None and q != source:
                continue
            own = replace(seen[q])  # as in `_asked`
            asked = {name: own.query(query.landmarks[name]) for name in sorted(names[q])}
            for t, target in enumerate(cases):
                if query.patient == target.patient or not asked:
                    continue
                rows = seen[q].likeness(seen[t].scene.rows)
                for name, one in asked.items():
                    truth = target.landmarks.get(name)
                    if truth is None and name in held[t]:
                        continue  # cut by the border: where its centre would be is not known
                    hit = one.find_in(seen[t].scene, rows=rows)
                    found.append(_answer(method, name, query, target, hit.point, hit.evidence))
            say(f"{method}: searched from {q + 1} of {len(cases)} scans")
        seen.clear()
    first = next(iter(methods))
    boxes = [body_box(case.volume) for case in cases]
    place = {case.id: i for i, case in enumerate(cases)}
    found = [a for a in found if a.structure in names[place[a.query]]]
    for answer in [a for a in found if a.method == first and a.error is not None]:
        q, t = place[answer.query], place[answer.target]
        share = (np.array(cases[q].landmarks[answer.structure]) - boxes[q][0]) / (boxes[q][1] - boxes[q][0])
        guess = boxes[t][0] + share * (boxes[t][1] - boxes[t][0])
        centre = np.array(cases[t].landmarks[answer.structure])
        cell = nearest[t][np.linalg.norm(nearest[t] - centre, axis=1).argmin()]
        found.append(_answer(POSITION, answer.structure, cases[q], cases[t], guess))
        found.append(_answer(BEST_CELL, answer.structure, cases[q], cases[t], cell))
    return found


def _asked(seen: Seen, case: Case, names: set[str]) -> set[str]:
    """Those of `names` that a way can be asked for: a place that its preparation, or the last whole cell, cut off is no query for
    any method."""
    own = replace(seen)  # what it prepares goes with it: prepared scans of all cases would be gigabytes
    return {name for name in names if own.holds(case.landmarks[name])}


def _held(case: Case) -> set[str]:
    assert case.labels is not None
    there = np.unique(case.labels.voxels)
    return {name.lower() for value, name in (case.labels.names or {}).items() if value in there}


def _answer(method: str, name: str, query: Case, target: Case, point: Any, evidence: Evidence | None = None) -> Answer:
    truth = target.landmarks.get(name)
    error = None if truth is None else float(np.linalg.norm(np.asarray(point) - np.array(truth)))
    inside = target.inside(name, np.asarray(point, dtype=np.float64)[None]) if truth is not None else None
    x, y, z = (float(v) for v in point)
    flag = None if inside is None else float(inside[0])
    return Answer(method, name, query.id, target.id, (query.patient, target.patient), (x, y, z), error, flag, evidence)


@dataclass
class Summary:
    """Tables of `search_all`'s answers."""

    errors: dict[str, stats.Interval] = field(default_factory=dict)
    right: dict[str, stats.Interval] = field(default_factory=dict)
    inside: dict[str, stats.Interval] = field(default_factory=dict)
    gains: dict[str, stats.Interval] = field(default_factory=dict)
    agreement: dict[str, stats.Interval] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    structures: dict[str, dict[str, float]] = field(default_factory=dict)
    absent: int = 0


def summarise(answers: Sequence[Answer], right_mm: float, seed: int = 0) -> Summary:
    """Median errors, shares of right answers and of places inside the structure (all two-way over patients), the first method's
    paired gains over the others (mean of the differences in mm: below zero is better), the share of a method's answers that lie
    within `right_mm` of the first method's, medians by structure."""
    table: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.error is not None:
            table.setdefault(answer.method, []).append(answer)
    if not table:
        raise UsageError("no structure lies wholly inside two scans of different patients")
    first = next(iter(table))
    points = {a.asked: a.point for a in table[first]}
    made = Summary(absent=sum(a.method == first and a.error is None for a in answers))
    for method, rows in table.items():
        pairs = [a.pair for a in rows]
        made.errors[method] = stats.pairs(pairs, seed=seed)
        made.right[method] = stats.pairs(
            [replace(p, value=float(p.value <= right_mm)) for p in pairs], "mean", seed=seed
        )
        known = [replace(a.pair, value=a.inside) for a in rows if a.inside is not None]
        if known:
            made.inside[method] = stats.pairs(known, "mean", seed=seed)
        if method != first:
            made.gains[method] = stats.pair_difference([a.pair for a in table[first]], pairs, seed=seed)
            apart = [float(np.linalg.norm(np.subtract(a.point, points[a.asked]))) for a in rows]
            alike = [replace(p, value=float(d <= right_mm)) for p, d in zip(pairs, apart, strict=True)]
            made.agreement[method] = stats.pairs(alike, "mean", seed=seed)
        for name in sorted({a.structure for a in rows}):
            own = [a.error for a in rows if a.structure == name and a.error is not None]
            made.structures.setdefault(name, {})[method] = float(np.median(own))
            made.structures[name]["searches"] = len(own)
    return made


def reliability(answers: Sequence[Answer], calibration: Calibration, seed: int = 0) -> dict[str, Any]:
    """How true a calibration's words are on these answers: right answers by stated confidence, sensitivity (present structures that
    are not called absent), specificity (absent ones that are)."""
    rows = [a for a in answers if a.evidence is not None]
    if not rows:
        return {}
    judged = [calibration.judge(a.evidence) for a in rows if a.evidence is not None]
    said = np.array([j.confidence for j in judged])
    right = np.array([a.error is not None and a.error <= calibration.right_mm for a in rows])
    bins = []
    edges = np.quantile(said, np.linspace(0, 1, SHOWN_BINS + 1))
    index = np.clip(np.searchsorted(edges[1:-1], said, side="right"), 0, SHOWN_BINS - 1)
    for k in range(SHOWN_BINS):
        own = index == k
        if own.any():
            pairs = [stats.Pair(*a.patients, float(r)) for a, r, o in zip(rows, right, own, strict=True) if o]
            bins.append({"said": float(said[own].mean()), "true": _plain(stats.pairs(pairs, "mean", seed=seed))})
    found: dict[str, Any] = {
        "bins": bins,
        "expected_error": float(sum((index == k).mean() * abs(said[index == k].mean() - right[index == k].mean())
                                    for k in range(SHOWN_BINS) if (index == k).any())),
        "brier": float(((said - right) ** 2).mean()),
        "brier_of_the_base_rate": float(right.mean() * (1 - right.mean())),
        "auroc_right": _auroc(said, right),
        "auroc_similarity_alone": _auroc(np.array([a.evidence.similarity for a in rows if a.evidence]), right),
    }  # fmt: skip
    there = np.array([a.error is not None for a in rows])
    for name, mask, good in (("sensitivity", there, True), ("specificity", ~there, False)):
        chosen = [
            stats.Pair(*a.patients, float(j.present is good))
            for a, j, m in zip(rows, judged, mask, strict=True) if m
        ]  # fmt: skip
        found[name] = _plain(stats.pairs(chosen, "mean", seed=seed)) if chosen else None
    found["auroc_present"] = _auroc(np.array([j.presence for j in judged]), there)
    return found


def _auroc(score: np.ndarray, truth: np.ndarray) -> float | None:
    """Probability that a true one scores higher than a false one, ties half (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    positive = int(truth.sum())
    if positive in (0, len(truth)):
        return None
    ranks = rankdata(score)[truth].sum() - positive * (positive + 1) / 2
    return float(ranks / (positive * (len(truth) - positive)))


def _plain(interval: stats.Interval) -> dict[str, Any]:
    return {
        "value": interval.value, "low": interval.low, "high": interval.high,
        "patients": interval.patients, "values": interval.values, "seed": interval.seed,
    }  # fmt: skip


def as_data(summary: Summary) -> dict[str, Any]:
    """Plain data of a summary, for JSON."""
    parts = {
        "error_mm": summary.errors, "right": summary.right, "inside": summary.inside, "gain_mm": summary.gains,
        "agreement": summary.agreement,
    }  # fmt: skip
    data: dict[str, Any] = {k: {m: _plain(i) for m, i in table.items()} for k, table in parts.items()}
    return data | {"structures": summary.structures, "absent": summary.absent, "seconds_a_scan": summary.seconds}


@dataclass
class Result:
    """What `measure` and `published` found."""

    answers: list[Answer]
    summary: Summary
    right_mm: float
    settings: dict[str, Any]
    made_from: dict[str, Any]
    reliability: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return as_data(self.summary) | {
            "right_mm": self.right_mm, "settings": self.settings, "made_from": self.made_from,
            "reliability": self.reliability, "notes": list(self.notes),
        }  # fmt: skip


def measure(
    methods: Mapping[str, Way],
    cases: Sequence[Case],
    structures: Sequence[str] = (),
    *,
    seed: int = 0,
    calibration: Calibration | None = None,
    made_from: Mapping[str, Any] = {},
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """All methods over all pairs; with a calibration, how true its words are (unless it was made from these very scans)."""
    answers = search_all(cases, methods, structures, say=say)
    first = next(iter(methods))
    notes: tuple[str, ...] = ()
    judged = None
    if calibration is None:
        notes += ("No calibration: similarity is no probability.",)
    elif calibration.made_from == dict(made_from):
        notes += ("The calibration was made from these very scans, so its reliability is not measured here.",)
    else:
        judged = reliability([a for a in answers if a.method == first], calibration, seed)
    right = calibration.right_mm if calibration else RIGHT_MM
    summary = summarise(answers, right, seed)
    summary.seconds = {name: float(np.median(way.seconds)) for name, way in methods.items()}
    settings = {name: to_data(way.looking) for name, way in methods.items()}
    return Result(answers, summary, right, settings, dict(made_from), judged, notes)


def calibration_of(result: Result, card: Card, looking: Looking, made_from: dict[str, Any]) -> Calibration:
    """The calibration that the first method's answers give."""
    first = result.answers[0].method
    rows = [(a.evidence, a.error) for a in result.answers if a.method == first and a.evidence is not None]
    return calibrate([e for e, _ in rows], [e for _, e in rows], card, looking, made_from)


PUBLISHED = Looking(window=(64, 64, 64), overlap=0.625, whiten=False, refine=False)
DEFECTS = (
    "As published: one fixed source scan, the heart alone, windows of 64 voxels at 1 mm every 24, plain cosine.",
    "Not as published, because it would be wrong: labels stay on their own grid (theirs are interpolated linearly and then compared for "
    "equality, which erodes them); the query is the heart's centroid (theirs is truncated to whole voxels); 'inside' looks the voxel up "
    "(theirs accepts a place that shares any one coordinate with any voxel of the heart, which nearly all do); the network sees scans in its "
    "training orientation (theirs are turned to RAS).",
    "One source patient: the interval says nothing about other sources.",
)


def published(
    encoder: Encoder, random: Encoder | None, cases: Sequence[Case], *, say: Callable[[str], None] = lambda _: None
) -> Result:
    """CT-FM's protocol (reference facts 7.5): the first scan with a whole heart is the source of all searches."""
    source = next((i for i, case in enumerate(cases) if "heart" in case.landmarks), None)
    if source is None:
        raise UsageError("no scan holds a whole structure named heart", where="--protocol ct-fm")

    def at_one_mm(made: Encoder) -> Encoder:
        fine = replace(made.preparation, resampling=replace(made.preparation.resampling, spacing=(1.0, 1.0, 1.0)))
        return replace(made, preparation=fine, card=replace(made.card, preparation=fine))

    methods = {encoder.card.name: Way(at_one_mm(encoder), PUBLISHED)}
    if random is not None:
        methods["random weights"] = Way(at_one_mm(random), PUBLISHED)
    answers = [a for a in search_all(cases, methods, ["heart"], source, say) if a.error is not None]
    made_from = {"protocol": "ct-fm", "scans": len(cases)}
    return Result(
        answers,
        summarise(answers, RIGHT_MM),
        RIGHT_MM,
        {encoder.card.name: to_data(PUBLISHED)},
        made_from,
        None,
        DEFECTS,
    )
