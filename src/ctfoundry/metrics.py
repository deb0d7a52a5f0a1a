"""Measures on label maps and points, small and exact.

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
    from jaxtyping import Float64, Integer

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
