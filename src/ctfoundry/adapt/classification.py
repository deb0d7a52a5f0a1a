"""Labels of whole scans as a task for the one loop, and what needs no learning: weights, temperature, a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from ctfoundry import metrics
from ctfoundry.adapt import augment
from ctfoundry.adapt.augment import Changes
from ctfoundry.adapt.class_scores import ScanScores, coded
from ctfoundry.adapt.inputs import Inputs
from ctfoundry.adapt.recipe import Augmentation
from ctfoundry.adapt.tables import TargetScan
from ctfoundry.classifier import Classifier, Kind, Rule
from ctfoundry.geometry import Box
from ctfoundry.keys import Key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Float64, Int64
    from torch import Tensor

TEMPERATURES = (0.25, 10.0)
"""Limits of the temperature: validation scans that are told apart without a mistake would ask for 0."""


def classification_loss(
    logits: Float[Tensor, "b k"], target: Int64[Tensor, "b k"], kind: Kind, weights: Float[Tensor, "k 2"] | None = None
) -> Float[Tensor, ""]:
    """Binary cross-entropy of each class, averaged over scans and classes (reference, 6), or cross-entropy of exclusive classes.

    target : 0 or 1 for each class (of exclusive ones, exactly one 1). weights : of a class where it is absent and where it is there; the
    mean is over scans, whatever their weights, so that a scan's loss does not depend on those it meets.
    """
    z = logits.float() if logits.dtype != torch.float64 else logits
    wanted = target.to(z.dtype)
    if kind == "multiclass":
        each = -F.log_softmax(z, 1) * wanted
        return (each if weights is None else each * weights[:, 1].to(z)).sum(1).mean()
    each = F.binary_cross_entropy_with_logits(z, wanted, reduction="none")
    if weights is not None:
        w = weights.to(z)
        each = each * (w[:, 1] * wanted + w[:, 0] * (1 - wanted))
    return each.mean()


def class_weights(targets: Int64[np.ndarray, "n k"], kind: Kind) -> Float[Tensor, "k 2"]:
    """Weights by which each class counts as much as the others: n / (classes * scans of the class), absent and present."""
    n, k = targets.shape
    there = np.maximum(targets.sum(0), 1)
    if kind == "multiclass":
        return torch.from_numpy(np.stack([np.zeros(k), n / (k * there)], 1)).float()
    return torch.from_numpy(np.stack([n / (2 * np.maximum(n - there, 1)), n / (2 * there)], 1)).float()


@dataclass(frozen=True)
class ScanDraws:
    """Which scan, and how it is changed."""

    scan: int
    changes: Changes
    dropout: int = 0
    boxes: tuple[Box, ...] = ()


def augmented(x: Float[Tensor, "c d h w"], changes: Changes, windows: int) -> Float[Tensor, "c d h w"]:
    """A changed input; the windows that lie one after the other along axis 0 are turned each for itself.

    The reference turns the joined volume as one, so that a rotated head reaches into the next window. Beyond the scan lies its lowest
    value.
    """
    split = x.reshape(windows, -1, *x.shape[2:]) if windows > 1 else x
    return augment.changed(split, changes, float(x.min())).reshape(x.shape)


class ClassificationTask:
    """Train a classifier on whole prepared scans.

    Parameters
    ----------
    classifier : its modules are trained. inputs : of the training scans. augmentation : of inputs.
    weights : of classes (`class_weights`). rates : factors of the learning rate by prefix of parameter names (`train.update`).
    """

    separable = False  # batch norm sees all scans of a step

    def __init__(
        self,
        classifier: Classifier,
        inputs: Inputs,
        augmentation: Augmentation,
        weights: Float[Tensor, "k 2"] | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.classifier, self.inputs, self.augmentation, self.weights = classifier, inputs, augmentation, weights
        self.modules = classifier.network
        self.encoder = classifier.encoder.network
        self.rates = dict(rates or {})
        self.targets = coded(inputs.scans, classifier.rule.kind, len(classifier.classes))
        intensity = inputs.preparation.intensity
        self.windows = len(intensity.windows) if intensity.stack == "axis0" else 1
        self.dropout = any(isinstance(part, torch.nn.Dropout) for part in classifier.head.modules())

    def plan(self, key: Key, entry: Any) -> ScanDraws:
        """The changes to a scan; preparing it happens here too, in a thread that reads ahead."""
        index = int(entry.id)
        found = self.inputs[index]
        changes = augment.draw(key("augmentation"), self.augmentation, found.spacing)
        return ScanDraws(index, changes, key("dropout").seed())

    def batch(
        self, reads: Any, draws: Sequence[ScanDraws], device: torch.device
    ) -> tuple[Float[Tensor, "b c d h w"], Int64[Tensor, "b k"], int]:
        """Inputs, targets, and the seed of dropout."""
        dtype = next(self.modules.parameters()).dtype
        rows = [
            augmented(self.inputs[d.scan].x().to(device), d.changes, self.windows).to(
                dtype if dtype == torch.float64 else torch.float32
            )
            for d in draws
        ]
        target = torch.from_numpy(self.targets[[d.scan for d in draws]]).to(device)
        return torch.stack(rows), target, draws[0].dropout

    def losses(self, batch: tuple[Tensor, Tensor, int], step: int) -> dict[str, Tensor]:
        """``loss``."""
        x, target, seed = batch
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []) if self.dropout else nullcontext():
            if self.dropout:
                torch.manual_seed(seed)
            logits = self.classifier.forward(x)
        return {"loss": classification_loss(logits, target, self.classifier.rule.kind, self.weights)}

    def measures(self) -> dict[str, float]:
        """None."""
        return {}

    def after(self, step: int) -> None:
        """Nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing beside the modules."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing."""


def find_temperature(logits: Float64[np.ndarray, "n k"], targets: Int64[np.ndarray, "n k"], kind: Kind) -> float:
    """The temperature with the smallest loss on validation logits (Guo et al. 2017), within `TEMPERATURES`."""
    from scipy.optimize import minimize_scalar

    z, wanted = torch.from_numpy(logits), torch.from_numpy(targets)

    def loss(power: float) -> float:
        return float(classification_loss(z / float(np.exp(power)), wanted, kind))

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def chosen_rule(scores: ScanScores) -> Rule:
    """Thresholds (Youden) and temperature from validation scans."""
    kind = scores.rule.kind
    temperature = find_temperature(scores.logits, scores.truth, kind)
    if kind == "multiclass":
        return Rule(kind, (), temperature)
    p = scores.probabilities
    limits = tuple(metrics.youden(p[:, i], scores.truth[:, i] > 0) for i in range(len(scores.classes)))
    return Rule(kind, limits, temperature)


def histogram_baseline(
    train: Sequence[TargetScan], test: Sequence[TargetScan], kind: Kind, classes: Sequence[str], *, seed: int = 0
) -> ScanScores:
    """What a regression on the HU histogram (`phantom.difficulty`) reaches on the same scans: no shape, no place, no learning of features.

    Several classes are each told from the rest. Reads every scan once.
    """
    from ctfoundry.phantom.difficulty import histogram_log_odds, hu_histogram

    x, new = (np.stack([hu_histogram(scan.image()) for scan in scans]) for scans in (train, test))
    y, truth = coded(train, kind, len(classes)), coded(test, kind, len(classes))
    patients = np.array([scan.patient for scan in train])
    columns = [
        histogram_log_odds(x, y[:, i].astype(float), patients, new, key=Key.of("histogram", seed, i))
        for i in range(len(classes))
    ]
    return ScanScores(
        "regression on the HU histogram", tuple(classes), Rule(kind), tuple(s.id for s in test),
        tuple(s.patient for s in test), np.stack(columns, 1), truth, seed,
    )  # fmt: skip
