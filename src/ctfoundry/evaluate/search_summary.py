"""Answers of many searches as tables: errors, shares, gains over other methods, and how true a calibration's words are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ctfoundry import stats
from ctfoundry.errors import UsageError
from ctfoundry.retrieval.search_confidence import Calibration, Evidence

SHOWN_BINS = 5


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


@dataclass
class Summary:
    """Tables of `search_all`'s answers. `seconds` : median of a look; `looked` : of so many scans."""

    errors: dict[str, stats.Interval] = field(default_factory=dict)
    right: dict[str, stats.Interval] = field(default_factory=dict)
    inside: dict[str, stats.Interval] = field(default_factory=dict)
    gains: dict[str, stats.Interval] = field(default_factory=dict)
    agreement: dict[str, stats.Interval] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    looked: dict[str, int] = field(default_factory=dict)
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
    data |= {"structures": summary.structures, "absent": summary.absent}
    return data | {"seconds_a_scan": summary.seconds, "seconds_from_scans": summary.looked}
