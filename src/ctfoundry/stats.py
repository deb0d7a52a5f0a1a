"""Intervals and paired comparisons whose unit is the patient (Efron and Tibshirani 1993, percentile bootstrap).

Values that belong to one patient are averaged first; patients are drawn with replacement. Where a value belongs to a pair
of patients (query and target), both are drawn: a pair counts as often as the product of its patients' draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key

if TYPE_CHECKING:
    from jaxtyping import Float64

REPEATS = 10_000
MINIMUM_PATIENTS = 4
"""Below this many patients there is no interval, only examples."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval; `low` and `high` are None for fewer than MINIMUM_PATIENTS patients, and where no repeat
    gave a number (`value` is NaN then: the precision of a method that calls no scan positive)."""

    value: float
    low: float | None
    high: float | None
    patients: int
    values: int
    seed: int
    level: float = 0.95

    def text(self, digits: int = 2, unit: str = "") -> str:
        """``0.71 [0.62, 0.80]``; the value with the word 'example' where there are too few patients; 'undefined' for NaN."""
        if np.isnan(self.value):
            return "undefined"
        tail = f" {unit}" if unit else ""
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}{tail} (example, {self.patients} patient{'s' * (self.patients != 1)})"
        return f"{self.value:.{digits}f}{tail} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def mean(values: Mapping[str, Sequence[float]], *, seed: int = 0, repeats: int = REPEATS) -> Interval:
    """Mean over patients of each patient's mean, with its interval."""
    patients = sorted(p for p, v in values.items() if len(v))
    if not patients:
        raise ValueError("no values")
    each = np.array([np.mean(values[p]) for p in patients])
    count = sum(len(values[p]) for p in patients)
    drawn = _draws(len(patients), seed, repeats) @ each / len(patients)
    return _interval(float(each.mean()), drawn, len(patients), count, seed)


def difference(
    ours: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], *, seed: int = 0, repeats: int = REPEATS
) -> Interval:
    """Mean over patients of (ours - other), paired by patient; both must hold the same patients and counts."""
    if set(ours) != set(other) or any(len(ours[p]) != len(other[p]) for p in ours):
        raise ValueError("a paired difference needs the same patients and the same number of values of each")
    paired = {p: [a - b for a, b in zip(ours[p], other[p], strict=True)] for p in ours}
    return mean(paired, seed=seed, repeats=repeats)


def resampled(
    patients: int,
    statistic: Callable[[np.ndarray], float],
    values: int,
    *,
    seed: int = 0,
    repeats: int = 2000,
    strata: Sequence[int] | None = None,
) -> Interval:
    """Any statistic of a cohort with its interval: `statistic` gets how often each patient counts, (patients,).

    Repeats for which it is not a number (nothing was drawn that it needs) are left out. `values` : how many numbers it is made of.
    `strata` : a number for each patient; patients of one stratum are drawn among themselves, so that each keeps its size.
    """
    return resampled_at_once(
        patients, lambda counts: np.array([statistic(row) for row in counts]), values, seed=seed, repeats=repeats,
        strata=strata,
    )  # fmt: skip


def resampled_at_once(
    patients: int,
    statistic: Callable[[np.ndarray], np.ndarray],
    values: int,
    *,
    seed: int = 0,
    repeats: int = 2000,
    strata: Sequence[int] | None = None,
) -> Interval:
    """`resampled` for a statistic that takes all repeats together: (repeats, patients) to (repeats,)."""
    counts = np.zeros((repeats, patients))
    groups = np.zeros(patients, dtype=int) if strata is None else np.asarray(strata)
    for number, stratum in enumerate(np.unique(groups)):
        own = np.flatnonzero(groups == stratum)
        counts[:, own] = _draws(len(own), seed, repeats, number)
    drawn = statistic(counts)
    return _interval(float(statistic(np.ones((1, patients)))[0]), drawn[np.isfinite(drawn)], patients, values, seed)


@dataclass(frozen=True)
class Pair:
    """A value that belongs to two patients, such as the error of a search from one into the other."""

    query: str
    target: str
    value: float


def pairs(values: Sequence[Pair], statistic: str = "median", *, seed: int = 0, repeats: int = 2000) -> Interval:
    """The mean or median over pairs with a two-way bootstrap over patients."""
    if not values:
        raise ValueError("no values")
    names = sorted({v.query for v in values} | {v.target for v in values})
    place = {name: i for i, name in enumerate(names)}
    query = np.array([place[v.query] for v in values])
    target = np.array([place[v.target] for v in values])
    data = np.array([v.value for v in values])
    if statistic not in ("mean", "median"):
        raise ValueError(f"statistic is 'mean' or 'median', not {statistic!r}")
    order = np.argsort(data, kind="stable")

    def weighted(weight: np.ndarray) -> float:
        if statistic == "mean":
            return float(weight @ data / weight.sum())
        half = np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)
        return float(data[order][half])

    whole = float(np.mean(data) if statistic == "mean" else np.median(data))
    counts = _draws(len(names), seed, repeats)
    drawn = [weighted(w) for row in counts if (w := row[query] * row[target]).sum() > 0]
    return _interval(whole, np.array(drawn), len(names), len(values), seed)


def pair_difference(ours: Sequence[Pair], other: Sequence[Pair], *, seed: int = 0) -> Interval:
    """Mean of (ours - other) over the same pairs, two-way over patients."""
    if [(v.query, v.target) for v in ours] != [(v.query, v.target) for v in other]:
        raise ValueError("a paired difference needs the same pairs in the same order")
    both = [Pair(a.query, a.target, a.value - b.value) for a, b in zip(ours, other, strict=True)]
    return pairs(both, "mean", seed=seed)


def _draws(patients: int, seed: int, repeats: int, stratum: int = 0) -> Float64[np.ndarray, "repeats patients"]:
    """How often each patient is drawn in each repeat."""
    key = Key.of("bootstrap", seed)
    chosen = (key("stratum", stratum) if stratum else key).integers(0, patients, (repeats, patients))
    counts = np.zeros((repeats, patients))
    np.add.at(counts, (np.arange(repeats)[:, None], chosen), 1.0)
    return counts


def _interval(value: float, drawn: np.ndarray, patients: int, count: int, seed: int) -> Interval:
    if patients < MINIMUM_PATIENTS or not len(drawn):
        return Interval(value, None, None, patients, count, seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high), patients, count, seed)
