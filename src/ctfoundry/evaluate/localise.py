"""Localisation across patients: where does a landmark of one scan lie in another?

The error is the distance in millimetres between the found and the true place. Beside every encoder stand the best possible
cell (what the grid allows at all), a guess by proportional position in the body box, and cells described by their HU alone.

Every method is compared by plain cosine: what the features tell by themselves. `retrieval.search` whitens them and answers between
cells; `evaluate.search` measures that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ctfoundry import geometry, metrics, stats
from ctfoundry.body import body_box
from ctfoundry.encoder import Encoder, FeatureMap
from ctfoundry.infer.passes import cells
from ctfoundry.retrieval.search import dense_map, query_vector
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor

BANDS = (-1024.0, -700.0, -150.0, -20.0, 30.0, 80.0, 200.0, 600.0, 3072.0)
"""Edges of the HU bands that the HU method describes a cell by: air, lung, fat, water, soft tissue, contrast, bone."""


@dataclass(frozen=True, eq=False)
class Case:
    """One scan with the places that are known in it (world mm, RAS+); `labels` tell what a found place lies in."""

    id: str
    patient: str
    volume: Volume
    landmarks: Mapping[str, tuple[float, float, float]]
    labels: Volume | None = None

    def inside(self, name: str, points: geometry.Points) -> Float64[np.ndarray, "n"] | None:
        """1 where a point (n, 3) lies in a voxel of the structure, else 0; None without labels of that name."""
        return None if self.labels is None else inside(self.labels, name, points)


def inside(labels: Volume, name: str, points: geometry.Points) -> Float64[np.ndarray, "n"] | None:
    """1 where a point (n, 3) lies in a voxel of the structure (in lower case), else 0; None without labels of that name.

    A look-up of the voxel that holds the point. (The reference's containment rate accepts nearly every point: 7.5.)
    """
    ids = [i for i, n in (labels.names or {}).items() if n.lower() == name]
    if not ids:
        return None
    index = np.rint(geometry.to_index(labels.affine, points)).astype(np.int64)
    held = ((index >= 0) & (index < labels.shape)).all(1)
    found = np.zeros(len(index))
    found[held] = np.isin(labels.voxels[tuple(index[held].T)], ids)
    return found


@dataclass(frozen=True)
class Error:
    """Error in mm of one method for one landmark, from one case into another; `inside`: 1 where the found place lies in the
    structure, 0 where not, None where the target has no labels."""

    method: str
    landmark: str
    query: str
    target: str
    pair: stats.Pair
    inside: float | None = None


Describe = Callable[[Volume], FeatureMap]


def encoder_method(encoder: Encoder, levels: Sequence[str]) -> Describe:
    """Cells described by an encoder's levels, the finest of which sets the grid."""
    return lambda volume: dense_map(encoder, volume, levels)


def hu_method(like: Encoder, level: str) -> Describe:
    """Cells of `like`'s grid described by mean, deviation and bands of the HU around them: no learning, no anatomy."""

    def describe(volume: Volume) -> FeatureMap:
        prepared = like.prepare(replace(volume, valid=None))
        grid = like.level(level)
        shape = cells((prepared.x.shape[1], prepared.x.shape[2], prepared.x.shape[3]), grid)
        low, high = like.preparation.intensity.clip
        hu = prepared.x[0] * (high - low) + low
        channels = [hu / 1000, (hu / 1000) ** 2]
        channels += [((hu >= a) & (hu < b)).float() for a, b in itertools.pairwise(BANDS)]
        wide = torch.nn.functional.avg_pool3d(
            torch.stack(channels)[None],
            [2 * s + 1 for s in grid.stride],
            stride=grid.stride,
            padding=tuple(grid.stride),
            count_include_pad=False,
        )[0]
        data = wide[:, : shape[0], : shape[1], : shape[2]]
        data[1] = (data[1] - data[0] ** 2).clamp_min(0).sqrt()
        affine = geometry.rescaled(prepared.affine, grid.stride, grid.offset)
        return FeatureMap(data, affine, torch.ones(data.shape[1:], dtype=torch.bool), "hu")

    return describe


def localise(cases: Sequence[Case], methods: Mapping[str, Describe]) -> list[Error]:
    """Errors of every method, of the best cell of the first method's grid, and of the position guess, over all ordered
    pairs of cases of different patients and all landmarks that both have."""
    described = {
        name: [_Described.of(describe(case.volume), case) for case in cases] for name, describe in methods.items()
    }
    boxes = [body_box(case.volume) for case in cases]
    grid = next(iter(described.values()), None)
    found: list[Error] = []
    for q, query in enumerate(cases):
        for t, target in enumerate(cases):
            names = sorted(query.landmarks.keys() & target.landmarks.keys())
            names = [n for n in names if all(n in made[q].queries for made in described.values())]
            if query.patient == target.patient or not names:
                continue
            truth = np.array([target.landmarks[name] for name in names])
            points = {method: made[t].nearest(made[q], names) for method, made in described.items()}
            share = (np.array([query.landmarks[name] for name in names]) - boxes[q][0]) / (boxes[q][1] - boxes[q][0])
            points["position in the body box"] = boxes[t][0] + share * (boxes[t][1] - boxes[t][0])
            if grid is not None:
                points["best possible cell"] = np.array([grid[t].closest(point) for point in truth])
            for method, places in points.items():
                errors = metrics.localisation_error(places, truth)
                for name, place, error in zip(names, places, errors, strict=True):
                    inside = target.inside(name, place[None])
                    pair = stats.Pair(query.patient, target.patient, float(error))
                    hit = None if inside is None else float(inside[0])
                    found.append(Error(method, name, query.id, target.id, pair, hit))
    return found


@dataclass(frozen=True, eq=False)
class _Described:
    """One case as one method sees it: normalised cells with their places, and the normalised feature of each landmark."""

    rows: Float[Tensor, "n c"]
    centres: geometry.Points
    queries: Mapping[str, Float[Tensor, "c"]]

    @classmethod
    def of(cls, feature: FeatureMap, case: Case) -> _Described:
        rows, centres = feature.cells()
        # a preparation that crops to the body may cut a place at the border off
        seen = {name: point for name, point in case.landmarks.items() if feature.holds(point)}
        queries = {name: query_vector(feature, point) for name, point in seen.items()}
        normal = {name: torch.nn.functional.normalize(vector, dim=0) for name, vector in queries.items()}
        return cls(torch.nn.functional.normalize(rows.float(), dim=1), centres, normal)

    def nearest(self, query: _Described, names: Sequence[str]) -> geometry.Points:
        """World points of the most similar cells (cosine) to the query's landmarks."""
        similarity = torch.stack([query.queries[name] for name in names]) @ self.rows.T
        return self.centres[similarity.argmax(1).cpu().numpy()]

    def closest(self, point: np.ndarray) -> np.ndarray:
        """The cell centre nearest to a place."""
        return np.asarray(self.centres[np.linalg.norm(self.centres - point, axis=1).argmin()])


def by_method(errors: Iterable[Error]) -> dict[str, list[stats.Pair]]:
    """The pairs of each method, all in one order (so that methods can be compared pair by pair)."""
    table: dict[str, list[stats.Pair]] = {}
    for error in errors:
        table.setdefault(error.method, []).append(error.pair)
    return table
