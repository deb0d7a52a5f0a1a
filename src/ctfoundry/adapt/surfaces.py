"""Measures of borders and of single lesions, with what an empty map counts said in words. The unit of intervals is the patient.

A border voxel is one of the structure that has a face neighbour outside it (beyond the array is outside). Distances are millimetres
between voxel centres, by SciPy's exact Euclidean transform; the grid must be rectangular.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import stats
from ctfoundry.errors import GeometryError
from ctfoundry.stats import Interval

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int32

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class SurfaceScores:
    """Of one structure in one scan.

    Attributes
    ----------
    distance : symmetric average surface distance in mm: the mean of all distances from border to border, both ways.
    normalised : share of both borders that lies within the tolerance of the other (normalised surface Dice).
    empty : ``prediction`` or ``reference`` where one map is empty: then `distance` is the penalty and `normalised` 0. Where both are, nothing
        was asked: both are NaN.
    """

    distance: float
    normalised: float
    empty: str = ""


def surface_scores(
    prediction: Bool[np.ndarray, "d h w"],
    reference: Bool[np.ndarray, "d h w"],
    spacing: Spacing,
    *,
    tolerance: float,
    penalty: float | None = None,
) -> SurfaceScores:
    """Border measures of a structure.

    Parameters
    ----------
    spacing : mm along each axis. tolerance : mm within which borders agree.
    penalty : mm that a map counts which is empty while the other is not; default: the grid's diagonal, the largest distance there is. (The
        reference's evaluation leaves such scans out of the mean, so that a network that finds nothing looks precise.)
    """
    if prediction.shape != reference.shape:
        raise GeometryError(f"shapes {prediction.shape} and {reference.shape} differ", where="surface_scores")
    ours, theirs = bool(prediction.any()), bool(reference.any())
    if not ours and not theirs:
        return SurfaceScores(float("nan"), float("nan"))
    if not ours or not theirs:
        worst = float(np.linalg.norm(np.array(prediction.shape) * spacing)) if penalty is None else penalty
        return SurfaceScores(worst, 0.0, "reference" if ours else "prediction")
    box = _box(prediction | reference)
    a, b = border(prediction[box]), border(reference[box])
    there, back = distances(b, spacing)[a], distances(a, spacing)[b]
    count = len(there) + len(back)
    within = int((there <= tolerance).sum()) + int((back <= tolerance).sum())
    return SurfaceScores(float(there.sum() + back.sum()) / count, within / count)


def border(mask: Bool[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
    """Voxels of the mask with a face neighbour outside it."""
    from scipy import ndimage

    return mask & ~ndimage.binary_erosion(mask)


def distances(mask: Bool[np.ndarray, "d h w"], spacing: Spacing) -> Float64[np.ndarray, "d h w"]:
    """Millimetres from each voxel to the nearest of the mask."""
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing))


def _box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Around the mask, with one voxel of space where there is one: erosion must see what is beside it."""
    found = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
        found.append(slice(max(int(there[0]) - 1, 0), int(there[-1]) + 2))
    return found[0], found[1], found[2]


@dataclass(frozen=True)
class Lesion:
    """One connected part of the reference: its voxels, volume in mm3, whether it was hit, and its Dice with all predicted parts that touch
    it (0 where none does)."""

    voxels: int
    volume: float
    hit: bool
    dice: float


@dataclass(frozen=True)
class LesionScores:
    """Of one scan: its lesions, and predicted parts that hit none."""

    lesions: tuple[Lesion, ...]
    false_positives: int
    predicted: int


def parts(mask: Bool[np.ndarray, "d h w"]) -> tuple[Int32[np.ndarray, "d h w"], int]:
    """Connected parts, numbered from 1; voxels that share a corner are connected (26 neighbours)."""
    from scipy import ndimage

    found, count = ndimage.label(mask, np.ones((3, 3, 3), dtype=bool))
    return found, int(count)


def lesion_scores(
    prediction: Bool[np.ndarray, "d h w"],
    reference: Bool[np.ndarray, "d h w"],
    spacing: Spacing,
    *,
    iou: float = 0.0,
    smallest: int = 1,
) -> LesionScores:
    """Lesion by lesion.

    Parameters
    ----------
    iou : a lesion is hit when it and the predicted parts that touch it overlap by at least this share of their union; 0: by one voxel. A
        predicted part is a false positive when none of the lesions that it touches is hit.
    smallest : parts of the prediction of fewer voxels are ignored.
    """
    if prediction.shape != reference.shape:
        raise GeometryError(f"shapes {prediction.shape} and {reference.shape} differ", where="lesion_scores")
    own, count = parts(reference)
    found, made = parts(prediction)
    sizes = np.bincount(found.ravel(), minlength=made + 1)
    sizes[0] = 0
    kept = sizes >= smallest
    kept[0] = False
    truth = np.bincount(own.ravel(), minlength=count + 1)
    both = np.zeros((count + 1, made + 1), dtype=np.int64)  # voxels that lesion i and predicted part j share
    meet = (own > 0) & (found > 0)
    np.add.at(both, (own[meet], found[meet]), 1)
    both[:, ~kept] = 0
    lesions, right = [], np.zeros(made + 1, dtype=bool)
    for i in range(1, count + 1):
        touching = both[i] > 0
        shared, taken = int(both[i].sum()), int(sizes[touching].sum())
        hit = shared > 0 and shared / (int(truth[i]) + taken - shared) >= iou
        right |= touching & hit
        dice = 2 * shared / (int(truth[i]) + taken)
        lesions.append(Lesion(int(truth[i]), float(truth[i] * np.prod(spacing)), hit, dice))
    return LesionScores(tuple(lesions), int((kept & ~right).sum()), int(kept.sum()))


@dataclass(frozen=True)
class LesionTable:
    """Lesion measures over patients.

    Attributes
    ----------
    sensitivity : share of all lesions that are hit; patients are drawn for its interval, not lesions. None without a lesion.
    false_positives : a scan, mean over patients.
    dice : mean over patients of the mean over their lesions (missed ones are 0). None without a lesion.
    lesions : how many.
    """

    sensitivity: Interval | None
    false_positives: Interval
    dice: Interval | None
    lesions: int


def lesion_table(scans: Sequence[tuple[str, LesionScores]], *, seed: int = 0) -> LesionTable:
    """Measures of (patient, scores) pairs, one a scan."""
    names = sorted({patient for patient, _ in scans})
    counts = np.zeros((len(names), 2))
    extra: dict[str, list[float]] = {}
    each: dict[str, list[float]] = {}
    for patient, scores in scans:
        counts[names.index(patient)] += [sum(lesion.hit for lesion in scores.lesions), len(scores.lesions)]
        extra.setdefault(patient, []).append(float(scores.false_positives))
        if scores.lesions:
            each.setdefault(patient, []).extend(lesion.dice for lesion in scores.lesions)
    total = int(counts[:, 1].sum())

    def share(weight: np.ndarray) -> float:
        hit, all_ = weight @ counts
        return float(hit / all_) if all_ else float("nan")

    return LesionTable(
        stats.resampled(len(names), share, total, seed=seed) if total else None,
        stats.mean(extra, seed=seed),
        stats.mean(each, seed=seed) if each else None,
        total,
    )


def surface_table(scans: Sequence[tuple[str, SurfaceScores]], *, seed: int = 0) -> Mapping[str, Any]:
    """Mean over patients of both measures with intervals, and how many scans had an empty ``prediction`` or ``reference``."""
    asked = [(patient, scores) for patient, scores in scans if np.isfinite(scores.distance)]
    found: dict[str, Any] = {}
    for name in ("distance", "normalised"):
        values: dict[str, list[float]] = {}
        for patient, scores in asked:
            values.setdefault(patient, []).append(getattr(scores, name))
        found[name] = stats.mean(values, seed=seed) if values else None
    found["empty"] = {what: sum(s.empty == what for _, s in asked) for what in ("prediction", "reference")}
    return found
