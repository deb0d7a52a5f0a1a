"""The same place in another scan: query by a world point, answer with a world point, its similarity and a heat map.

Two ways. *dense*: one pass per scan; the features of some levels, each L2-normalised, side by side on the cells of the
finest. *windows*: every window of the target embedded alone, as published (CT-FM, semantic search). Similarity is the
cosine in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry import geometry
from ctfoundry.encoder import Encoder, FeatureMap, Windows
from ctfoundry.errors import UsageError
from ctfoundry.geometry import Grid, Vec3
from ctfoundry.infer.passes import Precision
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


LEVELS = 3
"""How many of the encoder's last levels the dense way takes unless told; the first of them sets the grid of answers."""


@dataclass(frozen=True, eq=False)
class Hit:
    """The best place in the target.

    Attributes
    ----------
    point : world millimetres (x, y, z).
    similarity : cosine there.
    scores : similarity of every cell or window with its world position, (n,) and (n, 3).
    heatmap : similarity on the target's own grid (kind "other"); None where it was not asked for.
    """

    point: tuple[float, float, float]
    similarity: float
    scores: np.ndarray
    centres: geometry.Points
    heatmap: Volume | None = None


def dense_map(encoder: Encoder, volume: Volume, levels: Sequence[str], precision: Precision = "fp32") -> FeatureMap:
    """Levels side by side on the cells of the first (finest) one, each L2-normalised and weighted equally."""
    features = encoder(volume, levels=levels, vectors=(), precision=precision)
    finest = features.maps[levels[0]]
    shape = finest.data.shape[1:]
    centres = finest.world(np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).reshape(-1, 3))
    rows = []
    for name in levels:
        data = features.maps[name]
        flat = data.data.flatten(1).T if data is finest else data.sample(centres)
        rows.append(torch.nn.functional.normalize(flat.float(), dim=1))
    joint = torch.cat(rows, dim=1).T.reshape(-1, *shape) / len(levels) ** 0.5
    return FeatureMap(joint, finest.affine, finest.valid, "+".join(levels))


def query_vector(query: FeatureMap, point: Sequence[float]) -> Float[Tensor, "c"]:
    """The feature of a world point; raises UsageError when it lies outside the scan."""
    if not query.holds(point):
        raise UsageError(
            f"the point {_text(point)} mm lies outside the query scan", do="points are x,y,z in world millimetres, RAS+"
        )
    return query.sample(point)[0]


def match(query: Float[Tensor, "c"], target: FeatureMap) -> Hit:
    """The most similar valid cell of a map, without a heat map."""
    rows, centres = target.cells()
    return _best(_cosine(query, rows), centres)


@dataclass(frozen=True, eq=False)
class Query:
    """A place of one scan as an encoder sees it, ready to be looked for in many scans (`seek` makes one)."""

    encoder: Encoder
    vector: Float[Tensor, "c"]
    levels: tuple[str, ...]
    window: Vec3 | None
    overlap: float
    precision: Precision

    def find(self, target: Volume) -> Hit:
        """The most similar place in `target`."""
        if self.window is None:
            found = dense_map(self.encoder, target, self.levels, self.precision)
            hit = match(self.vector, found)
            grid = torch.zeros(found.data.shape[1:])
            grid[found.valid.cpu()] = torch.from_numpy(hit.scores)
            return _with_heatmap(hit, grid.numpy(), found.affine, target.grid)
        windows = self.encoder.windows(target, self.window, self.overlap, precision=self.precision)
        hit = _best(_cosine(self.vector, windows.vectors), windows.centres)
        return _with_heatmap(hit, *_window_grid(windows, hit.scores), target.grid)


def seek(
    encoder: Encoder,
    volume: Volume,
    point: Sequence[float],
    *,
    method: str = "dense",
    levels: Sequence[str] | None = None,
    window: Vec3 | None = None,
    overlap: float = 0.625,
    precision: Precision = "fp32",
) -> Query:
    """The query for `point` (world mm, RAS+) of `volume`; `find` explains the options."""
    if method == "dense":
        names = tuple(levels) if levels else tuple(level.name for level in encoder.levels[-LEVELS:])
        vector = query_vector(dense_map(encoder, volume, names, precision), point)
        return Query(encoder, vector, names, None, overlap, precision)
    if method != "windows":
        raise UsageError(f"method is 'dense' or 'windows', not {method!r}")
    if window is None:
        raise UsageError(
            "the windows method needs a window size", do="give window=(d, h, w) in voxels of the preparation"
        )
    vector = window_at(encoder, volume, point, window, precision)
    return Query(encoder, vector, (), window, overlap, precision)


def find(
    encoder: Encoder,
    volume: Volume,
    point: Sequence[float],
    target: Volume,
    *,
    method: str = "dense",
    levels: Sequence[str] | None = None,
    window: Vec3 | None = None,
    overlap: float = 0.625,
    precision: Precision = "fp32",
) -> Hit:
    """The place in `target` that looks like `point` (world mm, RAS+) of `volume`; for many targets, `seek` once.

    levels : for the dense way, finest first (default: the last three of the encoder).
    window, overlap : for the windows way: size in voxels of the preparation, share by which windows overlap.
    """
    query = seek(
        encoder, volume, point, method=method, levels=levels, window=window, overlap=overlap, precision=precision
    )
    return query.find(target)


def window_at(
    encoder: Encoder, volume: Volume, point: Sequence[float], size: Vec3, precision: Precision = "fp32"
) -> Float[Tensor, "c"]:
    """The vector of the window centred on a world point, padded with air where it leaves the scan."""
    prepared = encoder.prepare(volume)
    centre = geometry.to_index(prepared.affine, point)
    shape = np.array(prepared.x.shape[1:])
    if ((centre < -0.5) | (centre > shape - 0.5)).any():
        raise UsageError(
            f"the point {_text(point)} mm lies outside the query scan", do="points are x,y,z in world millimetres, RAS+"
        )
    start = np.round(centre - (np.array(size) - 1) / 2).astype(int)
    width: list[int] = []
    for axis in (2, 1, 0):
        width += [max(-start[axis], 0), max(start[axis] + size[axis] - int(shape[axis]), 0)]
    x = torch.nn.functional.pad(prepared.x, width, value=float(prepared.x.min()))
    a, b, c = np.maximum(start, 0)
    box = x[:, a : a + size[0], b : b + size[1], c : c + size[2]]
    return encoder.embed(box[None], encoder.card.vector, precision)[0]


def _cosine(query: Float[Tensor, "c"], rows: Float[Tensor, "n c"]) -> Float[Tensor, "n"]:
    return torch.nn.functional.normalize(rows.float(), dim=1) @ torch.nn.functional.normalize(query.float(), dim=0)


def _best(scores: Float[Tensor, "n"], centres: geometry.Points) -> Hit:
    best = int(scores.argmax())
    x, y, z = (float(v) for v in centres[best])
    return Hit((x, y, z), float(scores[best]), scores.cpu().numpy(), centres)


def _window_grid(windows: Windows, scores: np.ndarray) -> tuple[np.ndarray, geometry.Affine]:
    """Scores on the regular grid of window centres; windows that were left out get the lowest score."""
    axes = [np.unique(windows.starts[:, a]) for a in range(3)]
    step = [float(a[1] - a[0]) if len(a) > 1 else float(n) for a, n in zip(axes, windows.size, strict=True)]
    place = tuple(np.searchsorted(axes[a], windows.starts[:, a]) for a in range(3))
    grid = np.full([len(a) for a in axes], scores.min(), dtype=np.float32)
    grid[place] = scores
    first = [float(a[0]) + (n - 1) / 2 for a, n in zip(axes, windows.size, strict=True)]
    return grid, geometry.rescaled(windows.affine, step, first)


def _with_heatmap(hit: Hit, grid: np.ndarray, affine: geometry.Affine, target: Grid) -> Hit:
    heat = Volume(grid.astype(np.float32), affine, "other").onto(target, fill=float(hit.scores.min()), antialias=False)
    return Hit(hit.point, hit.similarity, hit.scores, hit.centres, heat)


def _text(point: Any) -> str:
    return ",".join(f"{float(v):.1f}" for v in point)
