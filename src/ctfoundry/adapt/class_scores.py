"""How well labels of whole scans are told: measures with bootstrap intervals over patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import metrics, stats
from ctfoundry.adapt.tables import TargetScan, TargetSet
from ctfoundry.classifier import Classifier, Kind, Rule
from ctfoundry.errors import ContractError, CTFoundryError
from ctfoundry.stats import Interval

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

FEW = 10
"""With fewer patients of the rarer class, patients are drawn within each class, so that no repeat lacks one."""
REPEATS = 2000


def coded(scans: Sequence[TargetScan], kind: Kind, count: int) -> Int64[np.ndarray, "n k"]:
    """Targets as 0 or 1 for each class; of exclusive classes exactly one is 1."""
    if kind == "multiclass":
        return np.eye(count, dtype=np.int64)[[scan.target[0] for scan in scans]]
    return np.array([scan.target for scan in scans], dtype=np.int64).reshape(len(scans), count)


@dataclass(frozen=True, eq=False)
class ScanScores:
    """Logits of one method on some scans beside the truth, and what follows from them.

    Attributes
    ----------
    method : what predicted.
    classes, rule : of the classifier; thresholds and temperature were found elsewhere, never on these scans.
    ids, patients : of each scan, public.
    logits, truth : (scans, classes); truth is 0 or 1.
    seed : of the bootstrap. failed : scans that could not be predicted, and why.
    """

    method: str
    classes: tuple[str, ...]
    rule: Rule
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    logits: Float64[np.ndarray, "n k"]
    truth: Int64[np.ndarray, "n k"]
    seed: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @cached_property
    def probabilities(self) -> Float64[np.ndarray, "n k"]:
        """As the network gives them."""
        return self.rule.probabilities(self.logits)

    @cached_property
    def calibrated(self) -> Float64[np.ndarray, "n k"]:
        """At the rule's temperature."""
        return self.rule.probabilities(self.logits, calibrated=True)

    def threshold(self, index: int) -> float:
        """Of a class."""
        return self.rule.thresholds[index] if self.rule.thresholds else 0.5

    def measures(self, index: int = 0) -> dict[str, Interval]:
        """Measures of one class against the rest, at its threshold, beside F1 at 0.5 and of a classifier that calls every scan positive."""
        p, better = self.probabilities[:, index], self.calibrated[:, index]
        positive = self.truth[:, index] > 0
        found = {
            "auroc": self._interval(lambda w: metrics.aurocs(p, positive, w), positive),
            "average_precision": self._interval(lambda w: metrics.average_precisions(p, positive, w), positive),
        }
        if self.rule.kind != "multiclass":
            for name in ("sensitivity", "specificity", "precision", "f1", "accuracy", "balanced_accuracy"):
                found[name] = self._rate(name, p, positive, self.threshold(index))
            found["f1_at_half"] = self._rate("f1", p, positive, 0.5)
            found["f1_all_positive"] = self._rate("f1", np.ones(len(p)), positive, 0.5)
            for name, q in (("log_loss", p), ("log_loss_calibrated", better)):
                own = np.where(positive, q, 1 - q)
                found[name] = self._mean(-np.log(np.clip(own, 1e-15, 1.0)), positive)
        found["brier"] = self._mean(np.square(p - positive), positive)
        found["brier_calibrated"] = self._mean(np.square(better - positive), positive)
        return found

    def overall(self) -> dict[str, Interval]:
        """Of all classes together: macro area (one against the rest), and for exclusive classes accuracy, balanced accuracy, macro F1 and
        log loss. Only for several classes."""
        p, truth = self.probabilities, self.truth
        rarest = truth[:, int(truth.sum(0).argmin())] > 0

        def area(w: np.ndarray) -> np.ndarray:
            each = [metrics.aurocs(p[:, i], truth[:, i] > 0, w) for i in range(len(self.classes))]
            return np.asarray(np.mean(each, axis=0))

        found = {"macro_auroc": self._interval(area, rarest)}
        if self.rule.kind == "multiclass":
            own = truth.argmax(1)
            for name in ("accuracy", "balanced_accuracy", "f1"):
                rate = partial(_class_rates, name, p, own)
                found[name] = self._interval(rate, rarest)
            for name, q in (("log_loss", p), ("log_loss_calibrated", self.calibrated)):
                found[name] = self._mean(-np.log(np.clip(q[np.arange(len(own)), own], 1e-15, 1.0)), rarest)
        return found

    def calibration_error(self, index: int = 0, *, calibrated: bool = False) -> float:
        """Expected calibration error, ten bins of equal mass. Without an interval: drawing scans again makes it larger."""
        p = (self.calibrated if calibrated else self.probabilities)[:, index]
        return metrics.expected_calibration_error(p, self.truth[:, index] > 0)

    @cached_property
    def headline(self) -> Interval:
        """The area under the curve: of the one class, or the mean of all."""
        if len(self.classes) > 1:
            return self.overall()["macro_auroc"]
        p, positive = self.probabilities[:, 0], self.truth[:, 0] > 0
        return self._interval(lambda w: metrics.aurocs(p, positive, w), positive)

    def roc_band(self, index: int = 0, points: int = 101) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """False positive rates, the true positive rate at each, and its 95 % band over patients (NaN for few patients)."""
        p, positive = self.probabilities[:, index], self.truth[:, index] > 0
        grid = np.linspace(0, 1, points)

        def curve(w: np.ndarray | None) -> np.ndarray:
            fpr, tpr, _ = metrics.roc(p, positive, w)
            # the highest rate at or left of each point: a step, as the curve of finitely many scans is
            return tpr[np.searchsorted(fpr, grid, side="right") - 1]

        rows, strata = self._rows(positive)
        if len(rows) < stats.MINIMUM_PATIENTS:
            nothing = np.full(points, np.nan)
            return grid, curve(None), nothing, nothing
        kept: list[np.ndarray] = []

        def keep(weight: np.ndarray) -> float:
            w = weight @ rows
            if (w * positive).sum() and (w * ~positive).sum():
                kept.append(curve(w))
            return 0.0

        stats.resampled(len(rows), keep, len(p), seed=self.seed, repeats=500, strata=strata)
        low, high = np.quantile(np.stack(kept), [0.025, 0.975], axis=0)
        return grid, curve(None), low, high

    def _rows(self, positive: np.ndarray) -> tuple[np.ndarray, list[int] | None]:
        """(patients, scans) whose scan is whose, and each patient's stratum where one of the classes is rare."""
        names = sorted(set(self.patients))
        rows = np.array([[float(own == name) for own in self.patients] for name in names])
        there = (rows @ positive) > 0
        rare = min(int(there.sum()), int((~there).sum())) < FEW
        return rows, there.astype(int).tolist() if rare else None

    def _interval(self, statistic: Callable[[np.ndarray], np.ndarray], positive: np.ndarray) -> Interval:
        """Of a statistic of how often each scan counts, of all repeats together."""
        rows, strata = self._rows(positive)
        return self._drawn(rows, statistic, strata)

    def _rate(self, name: str, p: np.ndarray, positive: np.ndarray, threshold: float) -> Interval:
        rows, strata = self._rows(positive)
        counts = rows @ metrics.confusion(p, positive, threshold)
        return self._drawn(counts, lambda total: metrics.many_rates(total)[name], strata)

    def _mean(self, values: np.ndarray, positive: np.ndarray) -> Interval:
        rows, strata = self._rows(positive)
        sums = rows @ np.stack([values, np.ones(len(values))], 1)
        return self._drawn(sums, lambda total: total[:, 0] / total[:, 1], strata)

    def _drawn(
        self, table: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], strata: Sequence[int] | None
    ) -> Interval:
        """Of a statistic of sums over patients, whose rows `table` has."""
        return stats.resampled_at_once(
            len(table), lambda w: statistic(w @ table), len(self.ids), seed=self.seed, repeats=REPEATS, strata=strata
        )

    def data(self) -> dict[str, Any]:
        """Plain values, for JSON: no ids."""
        return {
            "method": self.method,
            "scans": len(self.ids),
            "patients": len(set(self.patients)),
            "seed": self.seed,
            "failed": len(self.failed),
            "classes": {
                name: {
                    "positive": int(self.truth[:, i].sum()),
                    "threshold": None if self.rule.kind == "multiclass" else self.threshold(i),
                    "calibration_error": self.calibration_error(i),
                    "calibration_error_calibrated": self.calibration_error(i, calibrated=True),
                    **{key: interval_data(value) for key, value in self.measures(i).items()},
                }
                for i, name in enumerate(self.classes)
            },
            "overall": {k: interval_data(v) for k, v in self.overall().items()} if len(self.classes) > 1 else {},
        }


def interval_data(interval: Interval) -> dict[str, Any]:
    """An interval as plain values; None where there is no number."""

    def number(value: float | None) -> float | None:
        return None if value is None or not np.isfinite(value) else value

    return {"value": number(interval.value), "low": number(interval.low), "high": number(interval.high)}


def score(
    classifier: Classifier,
    labelled: TargetSet | Sequence[TargetScan],
    *,
    method: str = "",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ScanScores:
    """A classifier's scores on labelled scans, each read and predicted as in use, with the classifier's own threshold and temperature.

    `labelled` : scans whose targets are the classifier's classes in order; a `TargetSet` is checked for kind and, where they exclude
    each other or are several, for names. A scan that cannot be read is named in `ScanScores.failed` and leaves the others alone.

    Raises ContractError for other classes, and where no scan could be read.
    """
    if isinstance(labelled, TargetSet):
        labelled = matched(classifier, labelled)
    logits, kept, failed = [], [], {}
    for number, scan in enumerate(labelled, 1):
        try:
            found = classifier(scan.image())
        except (CTFoundryError, OSError) as error:
            failed[scan.id] = error.what if isinstance(error, CTFoundryError) else type(error).__name__
        else:
            logits.append([found.logits[name] for name in classifier.classes])
            kept.append(scan)
        progress(number, len(labelled))
    if not kept:
        raise ContractError(
            f"none of {len(labelled)} scans could be predicted: {next(iter(failed.values()), 'none given')}"
        )
    kind, count = classifier.rule.kind, len(classifier.classes)
    return ScanScores(
        method or f"{classifier.card.name}, {classifier.card.weights} weights",
        classifier.classes,
        classifier.rule,
        tuple(s.id for s in kept),
        tuple(s.patient for s in kept),
        np.array(logits, dtype=np.float64),
        coded(kept, kind, count),
        seed,
        failed,
    )


def matched(classifier: Classifier, data: TargetSet) -> list[TargetScan]:
    """The scans of another set with targets in the classifier's order. One binary target fits any other: what is called positive is
    said by whoever chose it."""
    if data.kind != classifier.rule.kind:
        raise ContractError(f"the classifier is {classifier.rule.kind}, the labels are {data.kind}")
    if data.kind == "binary":
        return list(data.scans)
    unknown = [name for name in data.classes if name not in classifier.classes]
    if unknown or (data.kind == "multilabel" and set(data.classes) != set(classifier.classes)):
        raise ContractError(
            f"the labels are {', '.join(data.classes)}, the classifier knows {', '.join(classifier.classes)}",
            do="choose the same targets",
        )
    if data.kind == "multiclass":
        new = [classifier.classes.index(name) for name in data.classes]
        return [replace(scan, target=(new[scan.target[0]],)) for scan in data.scans]
    order = [data.classes.index(name) for name in classifier.classes]
    return [replace(scan, target=tuple(scan.target[i] for i in order)) for scan in data.scans]


def _class_rates(name: str, p: np.ndarray, own: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.array([metrics.multiclass_rates(p, own, weight)[name] for weight in weights])
