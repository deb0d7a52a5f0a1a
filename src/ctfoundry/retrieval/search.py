"""The same place in another scan: query by a world point or box, answer with places, their similarity and a heat map.

Two ways (`Looking`). *dense*: one pass per scan (or several shifted ones); the features of some levels side by side on the cells
of the finest. *windows*: every window of the target embedded alone, as published (CT-FM, semantic search). Similarity is the cosine
in both, of features that are whitened by the query scan's own cells unless told otherwise (docs/search.md has what that brings).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry import geometry
from ctfoundry.encoder import Encoder, FeatureMap
from ctfoundry.errors import UsageError
from ctfoundry.geometry import Grid, Vec3
from ctfoundry.infer.passes import Extent, Precision
from ctfoundry.preparation import Prepared
from ctfoundry.retrieval.search_confidence import Calibration, Evidence
from ctfoundry.retrieval.search_maps import OVERLAP, Looking, Scene, default_levels, dense_map, scene
from ctfoundry.retrieval.search_peaks import Likeness, Place, best_places
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["APART", "Hit", "Place", "Query", "Seen", "dense_map", "find", "query_vector", "seek", "window_at"]

APART = 40.0
"""Millimetres between two answers: less is one place found twice."""
Box = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True, eq=False)
class Hit:
    """The best place in the target.

    Attributes
    ----------
    point : world millimetres (x, y, z).
    similarity : cosine there.
    scores : similarity of every cell or window with its world position, (n,) and (n, 3).
    heatmap : similarity on the target's own grid (kind "other"); None where it was not asked for.
    places : the best places, the first of which is `point`.
    evidence : what confidence is judged by.
    confidence : share of such answers that were right on phantoms; None without a calibration of this model.
    present : False where the calibration says "not in this scan"; None without one.
    """

    point: tuple[float, float, float]
    similarity: float
    scores: np.ndarray
    centres: geometry.Points
    heatmap: Volume | None = None
    places: tuple[Place, ...] = ()
    evidence: Evidence | None = None
    confidence: float | None = None
    present: bool | None = None


def query_vector(query: FeatureMap, point: Sequence[float]) -> Float[Tensor, "c"]:
    """The feature of a world point; raises UsageError when it lies outside the scan."""
    if not query.holds(point):
        raise _outside(point, query.data.shape[1:], query.affine)
    return query.sample(point)[0]


@dataclass(frozen=True, eq=False)
class Seen:
    """One scan as an encoder sees it, from which places can be looked for: `Seen.of(...).query(point)`."""

    encoder: Encoder
    given: Volume | None
    looking: Looking
    scene: Scene
    likeness: Likeness
    own: Float[Tensor, "n c"]
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        volume: Volume | None,
        looking: Looking,
        *,
        seen: Scene | None = None,
        calibration: Calibration | None = None,
    ) -> Seen:
        """Look at a scan, or take what was `seen` of it before (then the scan may be left out by who asks for no new place)."""
        if seen is None:
            assert volume is not None
            seen = scene(encoder, volume, looking)
        likeness = Likeness.whitened(seen.rows, seen.widths) if looking.whiten else Likeness(seen.widths)
        return cls(encoder, volume, looking, seen, likeness, likeness(seen.rows), calibration)

    @property
    def volume(self) -> Volume:
        """The scan."""
        assert self.given is not None, "only what was seen of the scan was given"
        return self.given

    @cached_property
    def prepared(self) -> Prepared:
        """The scan as the encoder's input."""
        return self.encoder.prepare(self.volume)

    def holds(self, point: Sequence[float]) -> bool:
        """Whether a world point can be asked for: it may lie where the preparation has cut the scan off."""
        if self.scene.feature is not None:
            return self.scene.feature.holds(point)
        return _holds(self.prepared, geometry.to_index(self.prepared.affine, point))

    def feature(self, point: Sequence[float]) -> Float[Tensor, "c"]:
        """The raw feature of a world point; raises UsageError for places outside."""
        if self.looking.window is not None:
            return window_at(self.encoder, self.prepared, point, self.looking.window, self.looking.precision)
        assert self.scene.feature is not None
        return query_vector(self.scene.feature, point)

    def query(self, point: Sequence[float] | None = None, box: Box | None = None) -> Query:
        """The query for a world point, or for a box given by two opposite corners (mm); raises UsageError for places outside."""
        if (point is None) is (box is None):
            raise UsageError("a query is a point or a box")
        if box is not None:
            low, high = np.minimum(*map(np.asarray, box)), np.maximum(*map(np.asarray, box))
            point = [float(v) for v in (low + high) / 2]
        assert point is not None
        vector = self.feature(point)  # a box outside the scan is refused by its middle
        if box is not None and self.scene.feature is not None:
            vector = self.scene.feature.sample(_points(self.scene, low, high)).mean(0)
        x, y, z = (float(v) for v in point)
        return Query(self, self.likeness(vector[None])[0], (x, y, z))


@dataclass(frozen=True, eq=False)
class Query:
    """A place of one scan, ready to be looked for in many scans (`seek` makes one)."""

    seen: Seen
    vector: Float[Tensor, "c"]
    point: tuple[float, float, float]

    def find(self, target: Volume, *, places: int = 1, heatmap: bool = True) -> Hit:
        """The most similar place in `target`, and the next best ones."""
        return self.find_in(
            scene(self.seen.encoder, target, self.seen.looking), places=places, grid=target.grid if heatmap else None
        )

    def find_in(
        self,
        target: Scene,
        *,
        places: int = 1,
        grid: Grid | None = None,
        rows: Float[Tensor, "n c"] | None = None,
    ) -> Hit:
        """The most similar place of a scan that was looked at before.

        places : how many answers. grid : of the heat map. rows : the target's rows under this query's likeness, where known.
        """
        rows = self.seen.likeness(target.rows) if rows is None else rows
        scores = (rows @ self.vector).cpu().numpy()
        best = best_places(scores, target, max(places, 2), APART, refine=self.seen.looking.refine)
        top = int(scores.argmax())
        back = self.seen.scene.centres[int((self.seen.own @ rows[top]).argmax())]
        evidence = Evidence(
            best[0].similarity,
            best[0].similarity - (best[1].similarity if len(best) > 1 else float(scores.min())),
            float((scores[top] - scores.mean()) / (scores.std() + 1e-12)),
            float(np.linalg.norm(back - np.array(self.point))),
        )
        hit = Hit(best[0].point, best[0].similarity, scores, target.centres, None, tuple(best[:places]), evidence)
        if self.seen.calibration is not None:
            judged = self.seen.calibration.judge(evidence)
            hit = replace(hit, confidence=judged.confidence, present=judged.present)
        return hit if grid is None else replace(hit, heatmap=_heatmap(scores, target, grid))


def seek(
    encoder: Encoder,
    volume: Volume,
    point: Sequence[float] | None = None,
    *,
    box: Box | None = None,
    method: str = "dense",
    levels: Sequence[str] | None = None,
    window: Vec3 | None = None,
    overlap: float = OVERLAP,
    precision: Precision = "fp32",
    shifts: Vec3 = (1, 1, 1),
    whiten: bool = True,
    extent: Extent | None = None,
    calibration: Calibration | None = None,
) -> Query:
    """The query for `point` (world mm, RAS+) or `box` (two corners) of `volume`; `find` explains the options."""
    looking = how_to_look(
        encoder, method=method, levels=levels, window=window, overlap=overlap, precision=precision, shifts=shifts,
        whiten=whiten, extent=extent,
    )  # fmt: skip
    return Seen.of(encoder, volume, looking, calibration=calibration).query(point, box)


def how_to_look(
    encoder: Encoder, *, method: str, levels: Sequence[str] | None = None, window: Vec3 | None = None, **rest: Any
) -> Looking:
    """The settings for one of the two ways; raises UsageError for another one and for windows without a size."""
    if method == "dense":
        return Looking(tuple(levels) if levels else default_levels(encoder), **rest)
    if method != "windows":
        raise UsageError(f"method is 'dense' or 'windows', not {method!r}")
    if window is None:
        raise UsageError(
            "the windows method needs a window size", do="give window=(d, h, w) in voxels of the preparation"
        )
    return Looking(window=window, **rest)


def find(
    encoder: Encoder,
    volume: Volume,
    point: Sequence[float],
    target: Volume,
    *,
    method: str = "dense",
    levels: Sequence[str] | None = None,
    window: Vec3 | None = None,
    overlap: float = OVERLAP,
    precision: Precision = "fp32",
    places: int = 1,
    **rest: Any,
) -> Hit:
    """The place in `target` that looks like `point` (world mm, RAS+) of `volume`; for many targets, `seek` once.

    levels : for the dense way, finest first (default: the last three of the encoder).
    window, overlap : for the windows way: size in voxels of the preparation, share by which windows overlap.
    places : how many answers, best first.
    rest : shifts (passes along each axis: a finer grid), whiten (by the query scan's cells), extent (of the passes), calibration.
    """
    query = seek(
        encoder, volume, point, method=method, levels=levels, window=window, overlap=overlap, precision=precision,
        **rest,
    )  # fmt: skip
    return query.find(target, places=places)


def window_at(
    encoder: Encoder, volume: Volume | Prepared, point: Sequence[float], size: Vec3, precision: Precision = "fp32"
) -> Float[Tensor, "c"]:
    """The vector of the window centred on a world point, padded with air where it leaves the scan."""
    prepared = volume if isinstance(volume, Prepared) else encoder.prepare(volume)
    centre = geometry.to_index(prepared.affine, point)
    shape = np.array(prepared.x.shape[1:])
    if not _holds(prepared, centre):
        raise _outside(point, prepared.x.shape[1:], prepared.affine)
    start = np.round(centre - (np.array(size) - 1) / 2).astype(int)
    width: list[int] = []
    for axis in (2, 1, 0):
        width += [max(-start[axis], 0), max(start[axis] + size[axis] - int(shape[axis]), 0)]
    x = torch.nn.functional.pad(prepared.x, width, value=float(prepared.x.min()))
    a, b, c = np.maximum(start, 0)
    box = x[:, a : a + size[0], b : b + size[1], c : c + size[2]]
    return encoder.embed(box[None], encoder.card.vector, precision)[0]


def _holds(prepared: Prepared, index: np.ndarray) -> bool:
    return bool(((index >= -0.5) & (index <= np.array(prepared.x.shape[1:]) - 0.5)).all())


def _points(seen: Scene, low: np.ndarray, high: np.ndarray) -> geometry.Points:
    """Points of a box, at most half a cell apart, at most 33 along an axis."""
    step = min(seen.grid.spacing) / 2
    axes = [np.linspace(a, b, min(int(np.ceil((b - a) / step)) + 1, 33)) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def _heatmap(scores: np.ndarray, target: Scene, grid: Grid) -> Volume:
    lowest = float(scores.min())
    laid = target.laid_out(scores, lowest)
    return Volume(laid, target.grid.affine, "other").onto(grid, fill=lowest, antialias=False)


def _outside(point: Sequence[float], shape: Sequence[int], affine: np.ndarray) -> UsageError:
    text = ",".join(f"{float(v):.1f}" for v in point)
    corners = geometry.to_world(affine, np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(shape) - 1))
    reach = (
        f"{name} {low:.0f} to {high:.0f}" for name, low, high in zip("xyz", corners.min(0), corners.max(0), strict=True)
    )
    return UsageError(
        f"the point {text} mm lies outside the query scan",
        do=f"points are x,y,z in world millimetres, RAS+; of this scan is seen {', '.join(reach)}",
    )
