"""Measures of labels of whole scans against scikit-learn, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import calibration
from sklearn import metrics as theirs

from ctfoundry import metrics, stats
from ctfoundry.keys import Key


def drawn(n: int = 83, digits: int = 2):
    """Scores with ties, labels that follow them loosely, and how often each counts."""
    key = Key.of("measures", n, digits)
    scores = np.round(key("score").uniform(shape=n), digits)
    positive = key("label").uniform(shape=n) < 0.15 + 0.6 * scores
    return scores, positive, key("weight").integers(0, 4, (n,)).astype(float)


@pytest.mark.parametrize("digits", [1, 2, 6])
def test_ranking_measures_are_scikit_learns(digits):
    scores, positive, weight = drawn(digits=digits)
    for w in (None, weight):
        assert metrics.auroc(scores, positive, w) == pytest.approx(
            theirs.roc_auc_score(positive, scores, sample_weight=w), abs=1e-12
        )
        assert metrics.average_precision(scores, positive, w) == pytest.approx(
            theirs.average_precision_score(positive, scores, sample_weight=w), abs=1e-12
        )
        w = None if w is None else w + 1  # theirs drops scans that do not count
        ours = metrics.roc(scores, positive, w)
        other = theirs.roc_curve(positive, scores, sample_weight=w, drop_intermediate=False)
        for a, b in zip(ours, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_many_draws_at_once_are_scikit_learns_one_by_one():
    scores, positive, _ = drawn(digits=1)
    weights = Key.of("draws").integers(0, 4, (20, len(scores))).astype(float)
    for ours, other in (
        (metrics.aurocs, theirs.roc_auc_score),
        (metrics.average_precisions, theirs.average_precision_score),
    ):
        found = [other(positive, scores, sample_weight=weight) for weight in weights]
        assert ours(scores, positive, weights) == pytest.approx(found, abs=1e-12)
    called = weights @ metrics.confusion(scores, positive, 0.5)
    found = [theirs.f1_score(positive, scores >= 0.5, sample_weight=weight) for weight in weights]
    assert metrics.many_rates(called)["f1"] == pytest.approx(found, abs=1e-12)
    nobody = np.zeros((1, len(scores)))
    assert np.isnan(
        [metrics.aurocs(scores, positive, nobody), metrics.average_precisions(scores, positive, nobody)]
    ).all()


def test_rates_and_probabilities_are_scikit_learns():
    p, positive, weight = drawn(digits=3)
    for w in (None, weight):
        found = metrics.at_threshold(p, positive, 0.4, w)
        called = p >= 0.4
        for name, expected in {
            "sensitivity": theirs.recall_score(positive, called, sample_weight=w),
            "specificity": theirs.recall_score(~positive, ~called, sample_weight=w),
            "precision": theirs.precision_score(positive, called, sample_weight=w),
            "f1": theirs.f1_score(positive, called, sample_weight=w),
            "accuracy": theirs.accuracy_score(positive, called, sample_weight=w),
            "balanced_accuracy": theirs.balanced_accuracy_score(positive, called, sample_weight=w),
        }.items():
            assert found[name] == pytest.approx(expected, abs=1e-12), name
        assert metrics.brier(p, positive, w) == pytest.approx(theirs.brier_score_loss(positive, p, sample_weight=w))
        both = np.stack([1 - p, p], 1).clip(1e-6, 1)
        both /= both.sum(1, keepdims=True)
        assert metrics.log_loss(both, positive.astype(int), w) == pytest.approx(
            theirs.log_loss(positive, both, sample_weight=w)
        )


def test_calibration_bins_are_scikit_learns():
    p, positive, _ = drawn(200, 4)
    seen, said = calibration.calibration_curve(positive, p, n_bins=10, strategy="quantile")
    found = metrics.reliability(p, positive)
    np.testing.assert_allclose([f[0] for f in found], said)
    np.testing.assert_allclose([f[1] for f in found], seen)
    assert [f[2] for f in found] == [20] * 10
    assert metrics.expected_calibration_error(p, positive) == pytest.approx(np.abs(seen - said).mean())
    assert metrics.expected_calibration_error(np.full(8, 0.25), np.array([1, 1, 0, 0, 0, 0, 0, 0], bool)) == 0


def test_several_classes_are_scikit_learns():
    key = Key.of("classes")
    truth = key("truth").integers(0, 4, (120,))
    p = np.exp(key("p").normal((120, 4)) + 1.2 * np.eye(4)[truth])
    p /= p.sum(1, keepdims=True)
    assert metrics.macro_auroc(p, truth) == pytest.approx(theirs.roc_auc_score(truth, p, multi_class="ovr"))
    found = metrics.multiclass_rates(p, truth)
    called = p.argmax(1)
    assert found["accuracy"] == pytest.approx(theirs.accuracy_score(truth, called))
    assert found["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(truth, called))
    assert found["f1"] == pytest.approx(theirs.f1_score(truth, called, average="macro"))
    assert metrics.log_loss(p, truth) == pytest.approx(theirs.log_loss(truth, p))


def test_where_a_class_is_absent():
    scores, none = np.array([0.2, 0.7]), np.zeros(2, dtype=bool)
    assert np.isnan(metrics.auroc(scores, none))
    assert np.isnan(metrics.average_precision(scores, none))
    found = metrics.at_threshold(scores, none, 0.5)
    assert np.isnan(found["sensitivity"])
    assert found["specificity"] == 0.5
    assert metrics.at_threshold(scores, ~none, 0.9)["f1"] == 0
    with pytest.raises(ValueError, match="both classes"):
        metrics.youden(scores, none)


def test_youden_is_the_best_of_all_thresholds():
    scores, positive, _ = drawn(60, 2)

    def gain(threshold):
        rates = metrics.at_threshold(scores, positive, threshold)
        return rates["sensitivity"] + rates["specificity"]

    chosen = metrics.youden(scores, positive)
    assert gain(chosen) == pytest.approx(max(gain(t) for t in np.linspace(-0.01, 1.01, 2041)))
    assert metrics.youden(np.array([0.1, 0.3, 0.5, 0.9]), np.array([0, 0, 1, 1], bool)) == pytest.approx(0.4)


def test_strata_keep_their_size_and_narrow_nothing_else():
    strata = [0] * 30 + [1] * 3
    sizes = set()

    def statistic(weight):
        sizes.add((weight[:30].sum(), weight[30:].sum()))
        return float(weight[30:].max())

    stats.resampled(33, statistic, 33, repeats=50, strata=strata)
    assert sizes == {(30.0, 3.0)}
    value = Key.of("values").normal(40)
    plain = stats.resampled(40, lambda w: float(w @ value), 40)
    assert plain == stats.resampled(40, lambda w: float(w @ value), 40, strata=[7] * 40)
