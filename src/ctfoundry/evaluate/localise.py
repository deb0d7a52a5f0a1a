"""Localisation across patients: where does a landmark of one scan lie in another?

The error is the distance in millimetres between the found and the true place. Beside every encoder stand the best possible
cell (what the grid allows at all), a guess by proportional position in the body box, and cells described by their HU alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ctfoundry import geometry, stats
from ctfoundry.body import body_box
from ctfoundry.encoder import Encoder, FeatureMap
from ctfoundry.infer.passes import cells
from ctfoundry.retrieval.search import dense_map, match, query_vector
from ctfoundry.volume import Volume

BANDS = (-1024.0, -700.0, -150.0, -20.0, 30.0, 80.0, 200.0, 600.0, 3072.0)
"""Edges of the HU bands that the HU method describes a cell by: air, lung, fat, water, soft tissue, contrast, bone."""


@dataclass(frozen=True, eq=False)
class Case:
    """One scan with the places that are known in it (world mm, RAS+)."""

    id: str
    patient: str
    volume: Volume
    landmarks: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Error:
    """Error in mm of one method for one landmark, from one case into another."""

    method: str
    landmark: str
    query: str
    target: str
    pair: stats.Pair


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
    maps = {name: [describe(case.volume) for case in cases] for name, describe in methods.items()}
    boxes = [body_box(case.volume) for case in cases]
    found: list[Error] = []
    first = next(iter(methods), None)
    for q, query in enumerate(cases):
        for t, target in enumerate(cases):
            if query.patient == target.patient:
                continue
            for name in sorted(query.landmarks.keys() & target.landmarks.keys()):
                truth = np.array(target.landmarks[name])
                guesses = {
                    method: match(query_vector(made[q], query.landmarks[name]), made[t]).point
                    for method, made in maps.items()
                }
                share = (np.array(query.landmarks[name]) - boxes[q][0]) / (boxes[q][1] - boxes[q][0])
                guesses["position in the body box"] = tuple(boxes[t][0] + share * (boxes[t][1] - boxes[t][0]))
                if first is not None:
                    _, centres = maps[first][t].cells()
                    guesses["best possible cell"] = tuple(centres[np.linalg.norm(centres - truth, axis=1).argmin()])
                found += [
                    Error(
                        method,
                        name,
                        query.id,
                        target.id,
                        stats.Pair(query.patient, target.patient, float(np.linalg.norm(np.array(point) - truth))),
                    )
                    for method, point in guesses.items()
                ]
    return found


def by_method(errors: Iterable[Error]) -> dict[str, list[stats.Pair]]:
    """The pairs of each method, all in one order (so that methods can be compared pair by pair)."""
    table: dict[str, list[stats.Pair]] = {}
    for error in errors:
        table.setdefault(error.method, []).append(error.pair)
    return table
