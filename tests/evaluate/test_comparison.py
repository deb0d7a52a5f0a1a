"""Verdicts on intervals."""

from __future__ import annotations

import pytest

from ctfoundry.evaluate.comparison import BETTER, FEW, MISSING, UNDECIDED, WORSE, Measure
from ctfoundry.stats import Interval

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "low", "high", "higher", "lower"),
    [
        (0.2, 0.1, 0.3, BETTER, WORSE),
        (-0.2, -0.3, -0.1, WORSE, BETTER),
        (0.2, -0.1, 0.3, UNDECIDED, UNDECIDED),
        (0.2, None, None, FEW, FEW),
        (NAN, None, None, MISSING, MISSING),
        (NAN, NAN, NAN, MISSING, MISSING),
    ],
)
def test_a_verdict_says_what_the_interval_says(value, low, high, higher, lower):
    change = Interval(value, low, high, 9, 9, 0)
    assert Measure("m", "m").verdict(change) == higher
    assert Measure("m", "m", higher=False).verdict(change) == lower
    assert "nan" not in Measure("m", "m").judged(change)


def test_what_was_not_measured_is_no_verdict():
    assert Measure("m", "m").judged(None) == MISSING
