"""Measures on label maps, points and labels of whole scans, small and exact.

Conventions: a structure that neither map holds has no Dice (NaN), because nothing was asked; one that only one of them
holds has Dice 0. Centroids are means of voxel centres in world millimetres (RAS+). Distances are Euclidean, in millimetres.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.errors import GeometryError
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Integer

    from ctfoundry.geometry import Points


def dice(
    prediction: Integer[np.ndarray, "..."], reference: Integer[np.ndarray, "..."], labels: Iterable[int]
) -> dict[int, float]:
    """Dice's coefficient ``2 |A and B| / (|A| + |B|)`` of each label (Dice 1945, Sorensen 1948).

    Both arrays hold non-negative whole numbers on one grid; GeometryError when their shapes differ. NaN where a label is
    absent in both, 0 where it is absent in one.

    >>> dice(np.array([1, 1, 0, 2]), np.array([1, 0, 0, 0]), (1, 2, 3))
    {1: 0.666..., 2: 0.0, 3: nan}
    """
    if prediction.shape != reference.shape:
        raise GeometryError(
            f"shapes {prediction.shape} and {reference.shape} differ", where="dice", do="bring both onto one grid first"
        )
    wanted = [int(label) for label in labels]
    size = 1 + max([0, *wanted, *(int(a.max()) for a in (prediction, reference) if a.size)])
    ours = np.bincount(prediction.ravel(), minlength=size)
    theirs = np.bincount(reference.ravel(), minlength=size)
    both = np.bincount(reference[prediction == reference].ravel(), minlength=size)
    total = ours + theirs
    return {label: float(2 * both[label] / total[label]) if total[label] else float("nan") for label in wanted}


def centroid(volume: Volume, label: int) -> Float64[np.ndarray, "3"]:
    """World millimetres of the mean voxel centre of a label; NaN where the volume does not hold it."""
    index = np.nonzero(volume.voxels == label)
    if index[0].size == 0:
        return np.full(3, np.nan)
    return np.asarray(volume.world([float(i.mean()) for i in index]))


def localisation_error(points: Points, truth: Points) -> Float64[np.ndarray, "..."]:
    """Distance of each point (..., 3) from its truth, in the unit of both (millimetres); NaN where either is NaN.

    >>> localisation_error([[0.0, 3.0, 4.0]], [[0.0, 0.0, 0.0]]).tolist()
    [5.0]
    """
    a, b = np.asarray(points, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if a.shape != b.shape or a.ndim < 1 or a.shape[-1] != 3:
        raise GeometryError(
            f"points {a.shape} and truth {b.shape} are not two equal (..., 3)", where="localisation_error"
        )
    return np.asarray(np.linalg.norm(a - b, axis=-1))


# Whole-scan labels. `weight` says how often each scan counts, as a bootstrap over patients draws them; None: each once.


def auroc(
    scores: Float64[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], weight: Float64[np.ndarray, "n"] | None = None
) -> float:
    """Area under the receiver operating characteristic: the share of pairs (positive, negative) in which the positive scores higher,
    ties counting half (Hanley and McNeil 1982). NaN where one class is absent.

    >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]))
    0.875
    """
    return float(aurocs(scores, positive, _row(weight, len(scores)))[0])


def aurocs(
    scores: Float64[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], weights: Float64[np.ndarray, "r n"]
) -> Float64[np.ndarray, "r"]:
    """`auroc` for many rows of weights at once."""
    own, other = _by_score(scores, positive, weights)
    below = np.cumsum(other, 1) - other
    with np.errstate(invalid="ignore"):
        return np.asarray((own * (below + 0.5 * other)).sum(1) / (own.sum(1) * other.sum(1)))


def average_precision(
    scores: Float64[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], weight: Float64[np.ndarray, "n"] | None = None
) -> float:
    """Sum over thresholds of (gain in recall) x precision, without interpolation; NaN without positives."""
    return float(average_precisions(scores, positive, _row(weight, len(scores)))[0])


def average_precisions(
    scores: Float64[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], weights: Float64[np.ndarray, "r n"]
) -> Float64[np.ndarray, "r"]:
    """`average_precision` for many rows of weights at once."""
    own, other = (side[:, ::-1] for side in _by_score(scores, positive, weights))
    hit, taken = np.cumsum(own, 1), np.cumsum(own + other, 1)
    with np.errstate(invalid="ignore"):
        return np.asarray((own / own.sum(1, keepdims=True) * hit / np.maximum(taken, 1e-300)).sum(1))


def roc(
    scores: Float64[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], weight: Float64[np.ndarray, "n"] | None = None
) -> tuple[Float64[np.ndarray, "t"], Float64[np.ndarray, "t"], Float64[np.ndarray, "t"]]:
    """(false positive rate, true positive rate, threshold) from no positive call to all; a scan is called positive from its threshold on."""
    own, other = (side[0, ::-1] for side in _by_score(scores, positive, _row(weight, len(scores))))
    thresholds = np.unique(scores)[::-1]
    rates = [np.concatenate([[0.0], np.cumsum(side) / max(side.sum(), 1e-300)]) for side in (other, own)]
    return rates[0], rates[1], np.concatenate([[np.inf], thresholds])


def youden(scores: Float64[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> float:
    """The threshold with the largest sensitivity + specificity (Youden 1950): half-way between the score that is called positive there and
    the next one below. Of several as good it is the one nearest to 0.5. Raises ValueError where one class is absent.
    """
    if positive.all() or not positive.any():
        raise ValueError("a threshold is chosen on scans of both classes")
    fpr, tpr, threshold = roc(scores, positive)
    gain = (tpr - fpr)[1:]
    lower = np.append(threshold[2:], threshold[-1])  # below the lowest there is none
    middles = (threshold[1:] + lower) / 2
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(middles[best[np.argmin(np.abs(middles[best] - 0.5))]])


def at_threshold(
    probabilities: Float64[np.ndarray, "n"],
    positive: Bool[np.ndarray, "n"],
    threshold: float,
    weight: Float64[np.ndarray, "n"] | None = None,
) -> dict[str, float]:
    """Sensitivity, specificity, precision, F1, accuracy and balanced accuracy of calling scans positive from `threshold` on.

    A rate of nothing is NaN (sensitivity without positives, precision without positive calls); F1 is then 0 where there is any positive.
    """
    counts = confusion(probabilities, positive, threshold)
    return rates(counts.sum(0) if weight is None else weight @ counts)


def confusion(
    probabilities: Float64[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], threshold: float
) -> Float64[np.ndarray, "n 4"]:
    """1 for each scan in its column: true positive, false positive, false negative, true negative."""
    called = probabilities >= threshold
    cells = (called & positive, called & ~positive, ~called & positive, ~called & ~positive)
    return np.stack(cells, 1).astype(np.float64)


def rates(counts: Float64[np.ndarray, "4"]) -> dict[str, float]:
    """The measures of `at_threshold` from the numbers of true positives, false positives, false negatives and true negatives."""
    return {name: float(values[0]) for name, values in many_rates(np.asarray(counts, dtype=np.float64)[None]).items()}


def many_rates(counts: Float64[np.ndarray, "r 4"]) -> dict[str, Float64[np.ndarray, "r"]]:
    """`rates` of many rows of counts at once."""
    tp, fp, fn, tn = counts.T
    with np.errstate(invalid="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        return {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": tp / (tp + fp),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "balanced_accuracy": (sensitivity + specificity) / 2,
        }


def brier(
    probabilities: Float64[np.ndarray, "n"],
    positive: Bool[np.ndarray, "n"],
    weight: Float64[np.ndarray, "n"] | None = None,
) -> float:
    """Mean squared difference of probability and outcome (Brier 1950)."""
    return float(np.average(np.square(probabilities - positive), weights=weight))


def log_loss(
    probabilities: Float64[np.ndarray, "n k"],
    classes: Integer[np.ndarray, "n"],
    weight: Float64[np.ndarray, "n"] | None = None,
) -> float:
    """Mean of -log of the probability of the true class; probabilities are kept above 1e-15."""
    own = probabilities[np.arange(len(classes)), classes]
    return float(np.average(-np.log(np.clip(own, 1e-15, 1.0)), weights=weight))


def reliability(
    probabilities: Float64[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], bins: int = 10
) -> list[tuple[float, float, int]]:
    """(mean probability, share of positives, scans) of bins of equal mass; equal probabilities stay in one bin, empty bins are left out."""
    edges = np.quantile(probabilities, np.linspace(0, 1, bins + 1))
    place = np.searchsorted(edges[1:-1], probabilities)
    return [
        (float(probabilities[at].mean()), float(positive[at].mean()), int(at.sum()))
        for at in (place == i for i in range(bins))
        if at.any()
    ]


def expected_calibration_error(
    probabilities: Float64[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], bins: int = 10
) -> float:
    """Mean over scans of |mean probability - share of positives| of their bin, bins of equal mass (Nguyen and O'Connor 2015)."""
    found = reliability(probabilities, positive, bins)
    return sum(n * abs(said - seen) for said, seen, n in found) / len(probabilities)


def macro_auroc(
    probabilities: Float64[np.ndarray, "n k"],
    classes: Integer[np.ndarray, "n"],
    weight: Float64[np.ndarray, "n"] | None = None,
) -> float:
    """Mean over classes of the area of one against the rest; NaN where one is absent."""
    return float(np.mean([auroc(probabilities[:, i], classes == i, weight) for i in range(probabilities.shape[1])]))


def multiclass_rates(
    probabilities: Float64[np.ndarray, "n k"],
    classes: Integer[np.ndarray, "n"],
    weight: Float64[np.ndarray, "n"] | None = None,
) -> dict[str, float]:
    """Accuracy, balanced accuracy (mean recall) and macro F1 of the most probable class; a class that no scan has counts in neither mean."""
    w = np.ones(len(classes)) if weight is None else weight
    size = probabilities.shape[1]
    table = np.zeros((size, size))
    np.add.at(table, (classes, probabilities.argmax(1)), w)
    own, called, hit = table.sum(1), table.sum(0), np.diag(table)
    there = own > 0
    return {
        "accuracy": float(hit.sum() / table.sum()),
        "balanced_accuracy": float(np.mean(hit[there] / own[there])),
        "f1": float(np.mean(2 * hit[there] / (own + called)[there])),
    }


def _row(weight: Float64[np.ndarray, "n"] | None, count: int) -> Float64[np.ndarray, "1 n"]:
    return np.ones((1, count)) if weight is None else np.asarray(weight, dtype=np.float64)[None]


def _by_score(
    scores: Float64[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], weights: Float64[np.ndarray, "r n"]
) -> tuple[Float64[np.ndarray, "r t"], Float64[np.ndarray, "r t"]]:
    """How many positives and negatives have each distinct score, lowest first."""
    order = np.argsort(scores, kind="stable")
    new = np.ones(len(scores), dtype=bool)
    new[1:] = scores[order][1:] != scores[order][:-1]
    first = np.flatnonzero(new)
    own, other = ((weights * side)[:, order] for side in (positive, ~positive))
    return np.add.reduceat(own, first, axis=1), np.add.reduceat(other, first, axis=1)
