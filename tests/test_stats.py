"""Bootstrap intervals: the unit is the patient."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ctfoundry import stats
from ctfoundry.keys import Key


def test_interval_agrees_with_scipy():
    values = Key.of("values").normal(30) + 2
    ours = stats.mean({f"p{i}": [v] for i, v in enumerate(values)})
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, method="percentile", rng=1, n_resamples=10_000
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)


def test_the_patient_is_the_unit():
    """A hundred copies of one patient's value change neither the mean nor the interval."""
    few = {f"p{i}": [float(i)] for i in range(8)}
    many = few | {"p7": [7.0] * 100}
    assert stats.mean(few) == stats.mean(many).__class__(**{**stats.mean(many).__dict__, "values": 8})


def test_too_few_patients_are_an_example():
    one = stats.mean({"a": [1.0, 2.0], "b": [3.0]})
    assert one.low is None
    assert "example, 2 patients" in one.text()


def test_what_no_repeat_gives_is_undefined():
    found = stats.resampled_at_once(8, lambda counts: np.full(len(counts), np.nan), 8)
    assert np.isnan(found.value)
    assert (found.low, found.high, found.text()) == (None, None, "undefined")


def test_difference_is_paired():
    """A constant gain has an interval of no width, however different the patients are."""
    other = {f"p{i}": [100.0 * i] for i in range(10)}
    gain = stats.difference({p: [v[0] + 1] for p, v in other.items()}, other)
    assert (gain.value, gain.low, gain.high) == (1.0, 1.0, 1.0)


def test_difference_refuses_other_patients():
    with pytest.raises(ValueError, match="same patients"):
        stats.difference({"a": [1.0]}, {"b": [1.0]})


def test_pairs_covers_the_truth_more_often_when_both_patients_are_drawn():
    """Pair values that share patients are not independent; a one-way bootstrap over pairs is far too narrow."""
    hits = 0
    for trial in range(60):
        key = Key.of("trial", trial)
        effect = key("patient").normal(10)
        values = [
            stats.Pair(f"p{i}", f"p{j}", float(effect[i] + effect[j] + key(i, j).normal()))
            for i in range(10)
            for j in range(10)
            if i != j
        ]
        found = stats.pairs(values, "mean", repeats=400)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    assert hits >= 50


def test_pair_median_without_draws_is_the_median():
    values = [stats.Pair("a", "b", 1.0), stats.Pair("b", "a", 5.0), stats.Pair("a", "c", 9.0)]
    assert stats.pairs(values).value == 5.0


def test_pair_difference_needs_the_same_pairs():
    with pytest.raises(ValueError, match="same pairs"):
        stats.pair_difference([stats.Pair("a", "b", 1.0)], [stats.Pair("b", "a", 1.0)])
