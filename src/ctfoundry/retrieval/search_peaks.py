"""Likeness of features, and the best places of a map of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ctfoundry import geometry
from ctfoundry.retrieval.search_maps import Scene

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

FLOOR = 1e-4
"""Directions in which features vary by less than this share of the largest variance are not blown up further."""
SAMPLE = 16384
"""Rows that a whitening is estimated from, evenly spaced; a covariance of 512 channels needs no more."""


@dataclass(frozen=True, eq=False)
class Likeness:
    """Cosine similarity as a linear map of each level followed by L2 normalisation: similarity is a product of mapped rows.

    Plain, it is the mean of the levels' cosines. Whitened, the mean over one scan's cells is taken off first and every direction
    is divided by its deviation there, so that what all of a body has in common does not drown what tells places apart.
    """

    widths: tuple[int, ...]
    mean: tuple[Float[Tensor, "c"], ...] = ()
    matrix: tuple[Float[Tensor, "c c"], ...] = ()

    @classmethod
    def whitened(cls, rows: Float[Tensor, "n c"], widths: Sequence[int]) -> Likeness:
        """Whitening of each level by the covariance of `rows`, in float64; directions beyond the sample's rank stay small."""
        few = rows[:: max(1, len(rows) // SAMPLE)].double()
        means, matrices = [], []
        for part in few.split(list(widths), dim=1):
            mean = part.mean(0)
            values, vectors = torch.linalg.eigh((part - mean).T @ (part - mean) / len(part))
            largest = values[-1].clamp_min(1e-30)
            means.append(mean.float())
            matrices.append((vectors / (values.clamp_min(0) + FLOOR * largest).sqrt()).float())
        return cls(tuple(widths), tuple(means), tuple(matrices))

    def __call__(self, rows: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Rows whose products with each other are their likeness."""
        parts = list(rows.float().split(list(self.widths), dim=1))
        if self.matrix:
            parts = [(p - m) @ w for p, m, w in zip(parts, self.mean, self.matrix, strict=True)]
        normal = [torch.nn.functional.normalize(part, dim=1) for part in parts]
        return torch.cat(normal, dim=1) / len(normal) ** 0.5


@dataclass(frozen=True)
class Place:
    """A place of the target, world millimetres, and its similarity."""

    point: tuple[float, float, float]
    similarity: float


def best_places(scores: np.ndarray, scene: Scene, count: int, apart: float, *, refine: bool) -> list[Place]:
    """The most similar cells, each at least `apart` mm from all before it (non-maximum suppression)."""
    left = scores.astype(np.float64, copy=True)
    grid = scene.laid_out(scores, np.nan) if refine else None
    found: list[Place] = []
    while len(found) < count:
        best = int(left.argmax())
        if left[best] == -np.inf:
            break
        centre = scene.centres[best]
        point = centre if grid is None else between_cells(grid, scene, best)
        found.append(Place((float(point[0]), float(point[1]), float(point[2])), float(scores[best])))
        left[np.linalg.norm(scene.centres - centre, axis=1) < apart] = -np.inf
        left[best] = -np.inf
    return found


def between_cells(grid: np.ndarray, scene: Scene, row: int) -> np.ndarray:
    """World point of the peak of a parabola along each axis through a cell and its two neighbours; at most half a cell away.

    Where a neighbour is missing (border, padding) or is not smaller, the cell's centre stays.
    """
    cell = scene.place[row]
    move = np.zeros(3)
    for axis in range(3):
        before, after = cell.copy(), cell.copy()
        before[axis] -= 1
        after[axis] += 1
        if before[axis] < 0 or after[axis] >= grid.shape[axis]:
            continue
        a, b, c = (float(grid[tuple(at)]) for at in (before, cell, after))
        if b > a and b > c:  # false where one is NaN
            move[axis] = 0.5 * (a - c) / (a - 2 * b + c)
    return np.asarray(geometry.to_world(scene.grid.affine, cell + move))
