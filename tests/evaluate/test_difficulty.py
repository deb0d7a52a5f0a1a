"""Intervals of the difficulty measures, on worlds small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ctfoundry.errors import UsageError
from ctfoundry.evaluate import difficulty
from ctfoundry.evaluate.difficulty import Row, Scan
from ctfoundry.geometry import make_affine
from ctfoundry.phantom import difficulty as exact
from ctfoundry.stats import Interval, resampled
from ctfoundry.volume import Volume


def scan(shift: int, hu: tuple[int, int] = (40, 300)) -> Scan:
    """A body with two cubes of its own HU; `shift` voxels of 2 mm up from the middle."""
    voxels, labels = np.full((24, 20, 20), -1000), np.zeros((24, 20, 20), int)
    voxels[2:22, 2:18, 2:18] = 0
    for label, row in ((1, 4), (2, 12)):
        part = (slice(row + shift, row + shift + 4), slice(4, 10), slice(6, 12))
        voxels[part], labels[part] = hu[label - 1], label
    affine = make_affine((2, 2, 2))
    return Scan(
        Volume(voxels.astype(np.int16), affine), Volume(labels.astype(np.uint8), affine, "label", {1: "a", 2: "b"})
    )


def test_the_value_is_that_of_the_exact_measure():
    scans = [scan(n % 4, (40 + 5 * (n % 3), 300)) for n in range(12)]
    train, test = scans[:6], scans[6:]
    (hu,) = difficulty._hu("all", train, test, None, seed=0)
    (position,) = difficulty._position("all", train, test, None, seed=0)
    assert hu.interval.value == pytest.approx(exact.hu_classifier_dice(train, test).overall)
    assert position.interval.value == pytest.approx(exact.position_guess_error(train, test).overall)
    for row in (hu, position):
        assert row.interval.low <= row.interval.value <= row.interval.high
        assert row.interval.patients == 6
    assert position.interval.high > position.interval.low  # the shifts differ between patients


def test_resampled_is_the_bootstrap_of_a_mean():
    """Against SciPy's percentile bootstrap of the same values."""
    from scipy import stats

    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 3.0, 5.0, 7.0])
    ours = resampled(8, lambda w: float(w @ values / w.sum()), 8, repeats=4000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.25)
    assert ours.high == pytest.approx(theirs.high, abs=0.25)


def test_limits_point_the_right_way():
    def row(what, value):
        return Row(what, "all", Interval(value, None, None, 2, 2, 0))

    assert row("hu", 0.59).holds
    assert not row("hu", 0.61).holds
    assert row("position", 41.0).holds
    assert not row("position", 39.0).holds
    assert row("findings", 0.69).holds
    assert not row("findings", 0.71).holds
    assert row("hu", 0.9).line()["verdict"] == "TOO EASY"


def test_labelled_scans_of_a_folder(tmp_path):
    from ctfoundry import io

    for n in range(3):
        made = scan(n)
        io.write(made.ct, tmp_path / f"case{n}" / "ct.nii.gz")
        if n != 1:
            io.write(made.labels, tmp_path / f"case{n}" / "labels.nii.gz")
    found = difficulty.read_scans(tmp_path)
    assert len(found) == 2
    np.testing.assert_array_equal(found[1].labels.voxels, scan(2).labels.voxels)
    rows = difficulty.measure(["hu"], 0, data=tmp_path)
    assert rows[0].interval.value == pytest.approx(1.0)  # each cube has a HU of its own
    with pytest.raises(UsageError, match="at least two"):
        difficulty.measure(["hu"], 0, data=tmp_path / "case0")


def test_a_pair_of_histograms_differs_by_the_lesion_only():
    pair = difficulty.histograms("pleural_effusion", 0, 0, "chest", 8.0)
    assert pair is not None
    ill, well = pair
    assert ill.shape == well.shape
    assert 0 < np.abs(ill - well).max() < 0.3
    assert difficulty.histograms("subdural_haemorrhage", 0, 0, "pelvis", 12.0) is None
