"""How far an answer of a search can be trusted, learnt from phantoms: logistic maps of what the search itself shows.

Two questions: is the structure in this scan at all (`present`), and does the answer lie within `right_mm` of the true place
(`confidence`; an answer for an absent structure is wrong)? A calibration belongs to one model and one way of looking, and is stored
beside the model's weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files
from ctfoundry.encoder import Card
from ctfoundry.errors import SettingsError, StoreError
from ctfoundry.retrieval.cards import with_one_patch
from ctfoundry.retrieval.search_maps import Looking
from ctfoundry.settings import from_data, to_data

if TYPE_CHECKING:
    from jaxtyping import Float64

RIGHT_MM = 40.0
"""An answer nearer than this to the true place counts as right."""
SAME_MODEL = ("architecture", "arguments", "preparation", "extent", "sha256", "weights", "seed")
RIDGE = 1e-3
SCHEMA = "ctfoundry-search-calibration/1"


@dataclass(frozen=True)
class Evidence:
    """What one search shows about its own answer.

    Attributes
    ----------
    similarity : of the answer.
    margin : by which it beats the next best place elsewhere.
    prominence : deviations by which it stands above the mean of the target's cells.
    cycle_mm : distance from the query to where the answer's own feature is found in the query's scan.
    """

    similarity: float
    margin: float
    prominence: float
    cycle_mm: float

    def values(self) -> list[float]:
        """As the logistic maps take them; distances by their logarithm."""
        return [self.similarity, self.margin, self.prominence, float(np.log1p(self.cycle_mm / 10))]


@dataclass(frozen=True)
class Logistic:
    """``1 / (1 + exp(-(bias + weights . (values - mean) / deviation)))``."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    def __call__(self, values: Sequence[Sequence[float]]) -> Float64[np.ndarray, "n"]:
        """Probabilities of rows (n, k)."""
        z = (np.asarray(values, dtype=np.float64).reshape(-1, len(self.mean)) - self.mean) / self.deviation
        return np.asarray(1 / (1 + np.exp(-np.clip(z @ np.array(self.weights) + self.bias, -50, 50))))


def fit_logistic(values: Sequence[Sequence[float]], truth: Sequence[bool]) -> Logistic:
    """Maximum likelihood with a small ridge on standardised weights, by Newton's steps (Hastie et al. 2009, 4.4.1).

    Raises StoreError where all answers are alike: nothing can be learnt then.
    """
    x, y = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if len(x) == 0 or y.min() == y.max():
        raise StoreError(
            "the searches to calibrate on are all right or all wrong", do="calibrate on more and more varied scans"
        )
    mean, deviation = x.mean(0), np.maximum(x.std(0), 1e-9)
    design = np.column_stack([np.ones(len(x)), (x - mean) / deviation])
    penalty = RIDGE * len(x) * np.diag([0.0, *np.ones(x.shape[1])])
    weights = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -50, 50)))
        curve = (design * (p * (1 - p))[:, None]).T @ design + penalty
        step = np.linalg.solve(curve + 1e-12 * np.eye(len(curve)), design.T @ (y - p) - penalty @ weights)
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    return Logistic(tuple(mean.tolist()), tuple(deviation.tolist()), tuple(weights[1:].tolist()), float(weights[0]))


@dataclass(frozen=True)
class Judged:
    """Probabilities of one answer."""

    confidence: float
    presence: float
    present: bool


@dataclass(frozen=True)
class Calibration:
    """The two maps, the threshold of presence, and what they were made for and from."""

    right: Logistic
    presence: Logistic
    threshold: float
    right_mm: float
    looking: Looking
    model: dict[str, Any]
    made_from: dict[str, Any]
    schema: str = SCHEMA

    def judge(self, evidence: Evidence) -> Judged:
        """What the evidence says; the confidence of an answer that is said to be absent stays what it is."""
        row = [evidence.values()]
        presence = float(self.presence(row)[0])
        return Judged(float(self.right(row)[0]), presence, presence >= self.threshold)

    def fits(self, card: Card, looking: Looking) -> bool:
        """Whether it was made for this model, looking this way, however either is written down."""
        return with_one_patch(self.model) == with_one_patch(model_of(card)) and self.looking == looking


def calibrate(
    evidence: Sequence[Evidence],
    errors: Sequence[float | None],
    card: Card,
    looking: Looking,
    made_from: dict[str, Any],
    right_mm: float = RIGHT_MM,
) -> Calibration:
    """Fit both maps; `errors` are mm, None where the structure is not in the target.

    The threshold is the one with the largest sum of sensitivity and specificity (Youden 1950).
    """
    rows = [e.values() for e in evidence]
    there = np.array([e is not None for e in errors])
    right = fit_logistic(rows, [e is not None and e <= right_mm for e in errors])
    presence = fit_logistic(rows, there.tolist())
    chance = presence(rows)
    steps = np.quantile(chance, np.linspace(0.005, 0.995, 199))
    youden = [(chance[there] >= t).mean() + (chance[~there] < t).mean() for t in steps]
    threshold = float(steps[int(np.argmax(youden))])
    return Calibration(right, presence, threshold, right_mm, looking, model_of(card), made_from)


def model_of(card: Card) -> dict[str, Any]:
    """What of a card decides its features."""
    data: dict[str, Any] = json.loads(json.dumps(to_data(card)))
    return {key: data[key] for key in SAME_MODEL}


def place_of(model: str | Path) -> Path | None:
    """Where the calibration of a model file or run folder stands; None for names of the zoo."""
    path = Path(model)
    if path.is_dir():
        return path / "search.json"
    return path.with_suffix(".search.json") if path.suffix == ".safetensors" and path.is_file() else None


def save(calibration: Calibration, path: Path) -> None:
    """Write it as JSON."""
    files.write_json(path, to_data(calibration))


def load(path: Path | None, card: Card, looking: Looking) -> Calibration | None:
    """The calibration at `path` where there is one that fits; raises StoreError for a damaged file."""
    if path is None or not path.is_file():
        return None
    try:
        found = from_data(Calibration, json.loads(path.read_text()), str(path.name))
    except (ValueError, SettingsError) as error:
        raise StoreError(
            f"is no calibration: {error}", where=path, do="make it again: evaluate search --calibrate"
        ) from error
    return found if found.fits(card, looking) else None
