"""How much an embedding changes when the same patient is scanned again (CT-FM, test-retest stability).

Two scans of a patient are registered; windows and dense cells at corresponding places are compared by cosine and mean squared
error. A high cosine alone says little, since all windows of an encoder may look alike: beside it stand windows at other places
of the same patient and of other patients, and the area under the ROC curve with which the cosine tells them apart.

Windows are cut from each scan's own prepared voxels, at the nearest voxel, so that nothing is interpolated a second time;
rotation is not undone within them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ctfoundry import geometry, metrics, stats
from ctfoundry.body import BODY_HU, largest_part
from ctfoundry.encoder import Encoder
from ctfoundry.geometry import Vec3
from ctfoundry.infer.passes import window_batches
from ctfoundry.keys import Key
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64

    Points = Float64[np.ndarray, "n 3"]
    Rows = Float64[np.ndarray, "n c"]

KINDS = ("windows", "cells")
BINS = (-1100.0, -950.0, -850.0, -700.0, -200.0, -100.0, -20.0, 20.0, 60.0, 110.0, 200.0, 400.0, 4000.0)
"""Edges (HU) of the descriptor that stands beside encoders."""


class Described(Protocol):
    """One scan as some descriptor sees it."""

    def windows(self, points: Points) -> tuple[Rows, Bool[np.ndarray, "n"]]:
        """Vectors of windows centred on world points, and which of them lie wholly in the scan."""
        ...

    def cells(self, points: Points) -> tuple[Rows, Bool[np.ndarray, "n"]]:
        """Dense features at world points, and which of them lie in the scan."""
        ...


class ByEncoder:
    """Windows embedded alone, and the map of the card's level, linear between cells."""

    def __init__(self, encoder: Encoder, volume: Volume, size: Vec3) -> None:
        self.encoder, self.size = encoder, size
        self.prepared = encoder.prepare(volume)
        self.map = encoder(self.prepared, levels=(encoder.card.level,), vectors=()).grid

    def windows(self, points: Points) -> tuple[Rows, Bool[np.ndarray, "n"]]:
        """See `Described`."""
        at, inside = window_places(self.prepared.affine, self.prepared.valid.shape, self.size, points)
        vector = self.encoder.card.vector
        starts = [(a, b, c) for a, b, c in at[inside].tolist()]
        found = [self.encoder.embed(x, vector) for _, x in window_batches(self.prepared.x, self.size, starts)]
        return _filled(torch.cat(found).double().cpu().numpy() if found else np.zeros((0, 1)), inside), inside

    def cells(self, points: Points) -> tuple[Rows, Bool[np.ndarray, "n"]]:
        """See `Described`."""
        inside = np.array([self.map.holds(p) for p in points], dtype=bool)
        rows = self.map.sample(points[inside]).double().cpu().numpy() if inside.any() else np.zeros((0, 1))
        return _filled(rows, inside), inside


class ByHu:
    """What a trivial method sees: the share of voxels in `BINS` of HU, in boxes of the same millimetres as the encoder's."""

    def __init__(self, volume: Volume, window_mm: Sequence[float], cell_mm: Sequence[float]) -> None:
        self.volume, self.window_mm, self.cell_mm = volume.reorient("SPL"), window_mm, cell_mm

    def windows(self, points: Points) -> tuple[Rows, Bool[np.ndarray, "n"]]:
        """See `Described`."""
        return self._boxes(points, self.window_mm)

    def cells(self, points: Points) -> tuple[Rows, Bool[np.ndarray, "n"]]:
        """See `Described`."""
        return self._boxes(points, self.cell_mm)

    def _boxes(self, points: Points, size_mm: Sequence[float]) -> tuple[Rows, Bool[np.ndarray, "n"]]:
        shape = self.volume.shape
        d, h, w = (max(1, min(round(mm / s), n)) for mm, s, n in zip(size_mm, self.volume.spacing, shape, strict=True))
        at, _ = window_places(self.volume.affine, shape, (d, h, w), points)
        index = self.volume.index(points)
        inside = np.asarray(((index >= -0.5) & (index <= np.array(shape) - 0.5)).all(axis=1))
        at = np.clip(at, 0, np.array(shape) - (d, h, w))
        rows = np.zeros((len(points), len(BINS) - 1))
        for n in np.flatnonzero(inside):
            a, b, c = at[n].tolist()
            counts, _ = np.histogram(self.volume.voxels[a : a + d, b : b + h, c : c + w], BINS)
            rows[n] = counts / max(counts.sum(), 1)
        return rows, inside


def window_places(
    affine: geometry.Affine, shape: Sequence[int], size: Vec3, points: Points
) -> tuple[np.ndarray, Bool[np.ndarray, "n"]]:
    """First voxels (n, 3) of windows centred on world points, to the nearest voxel, and which lie wholly inside."""
    at = np.rint(geometry.to_index(affine, points) - (np.array(size) - 1) / 2).astype(np.int64)
    return at, np.asarray(((at >= 0) & (at + size <= np.array(shape))).all(axis=1))


def _filled(rows: Rows, inside: Bool[np.ndarray, "n"]) -> Rows:
    """Rows of the points inside, zeros for the others."""
    out = np.zeros((len(inside), rows.shape[1]))
    out[inside] = rows
    return out


def body_points(volume: Volume, every_mm: float, count: int, key: Key) -> Points:
    """At most `count` world points on a grid of `every_mm` within the body."""
    turned = volume.reorient("SPL")
    step = [max(1, round(every_mm / s)) for s in turned.spacing]
    thin = [max(1, round(4 / s)) for s in turned.spacing]
    body = largest_part(turned.voxels[:: thin[0], :: thin[1], :: thin[2]] > BODY_HU)
    rows = [np.arange((n % s or s) // 2, n, s) for n, s in zip(turned.shape, step, strict=True)]
    index = np.stack(np.meshgrid(*rows, indexing="ij"), -1).reshape(-1, 3)
    place = np.minimum(index // thin, np.array(body.shape) - 1)
    index = index[body[tuple(place.T)]]
    if len(index) > count:
        index = index[np.sort(np.argsort(key.uniform(0, 1, len(index)))[:count])]
    return np.asarray(turned.world(index), dtype=np.float64).reshape(-1, 3)


@dataclass(frozen=True)
class Agreement:
    """One kind of vectors of one pair of scans.

    Attributes
    ----------
    cosine, mse : of each corresponding place.
    places : world points of the fixed scan, of those.
    elsewhere : median cosine with places of the same patient's other scan at least a window away; `other` : with other patients.
    auroc, auroc_other : how well the cosine tells corresponding places from those.
    mse_elsewhere : median squared error with the places elsewhere; the unit of `mse` is the encoder's own.
    """

    cosine: list[float]
    mse: list[float]
    places: list[list[float]]
    elsewhere: float
    other: float | None
    auroc: float
    auroc_other: float | None
    mse_elsewhere: float


@dataclass
class Others:
    """Vectors of patients seen so far, by descriptor and kind, to compare a pair with."""

    rows: dict[tuple[str, str], dict[str, Rows]] = field(default_factory=dict)

    def add(self, name: str, kind: str, patient: str, rows: Rows) -> None:
        """Keep a patient's rows (the first scan's, once)."""
        self.rows.setdefault((name, kind), {}).setdefault(patient, rows)

    def without(self, name: str, kind: str, patient: str) -> Rows | None:
        """All other patients' rows."""
        found = [rows for p, rows in self.rows.get((name, kind), {}).items() if p != patient and len(rows)]
        return np.concatenate(found) if found else None


def compare(fixed: Rows, moving: Rows, points: Points, apart_mm: float, others: Rows | None = None) -> Agreement | None:
    """Corresponding rows against those of places at least `apart_mm` away, and against `others`; None with fewer than four places or none so far away."""
    if len(fixed) < 4:
        return None
    cosine = _unit(fixed) @ _unit(moving).T
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    away = distance >= apart_mm
    if not away.any():
        return None
    own = np.diag(cosine)
    square = ((fixed[:, None] - moving[None]) ** 2).mean(-1)
    far = cosine[away]
    strange = None if others is None else (_unit(fixed) @ _unit(others).T).ravel()
    return Agreement(
        own.tolist(),
        np.diag(square).tolist(),
        points.round(2).tolist(),
        float(np.median(far)),
        None if strange is None else float(np.median(strange)),
        _auroc(own, far),
        None if strange is None else _auroc(own, strange),
        float(np.median(square[away])),
    )


def _unit(rows: Rows) -> Rows:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30))


def _auroc(own: np.ndarray, other: np.ndarray) -> float:
    scores = np.concatenate([own, other])
    return metrics.auroc(scores, np.arange(len(scores)) < len(own))


@dataclass(frozen=True)
class Row:
    """One line of the result: a factor, a descriptor, a kind; intervals over patients.

    `gain` : AUROC (same patient) of the first descriptor minus this one's, paired; None for the first itself.
    """

    factor: str
    name: str
    kind: str
    cosine: stats.Interval
    mse_share: stats.Interval
    auroc: stats.Interval
    auroc_other: stats.Interval | None
    gain: stats.Interval | None = None

    def data(self) -> dict[str, Any]:
        """As JSON."""

        def numbers(found: stats.Interval | None) -> dict[str, Any] | None:
            keys = ("value", "low", "high", "patients", "values")
            return None if found is None else {k: getattr(found, k) for k in keys}

        out: dict[str, Any] = {"factor": self.factor, "name": self.name, "kind": self.kind}
        return out | {k: numbers(getattr(self, k)) for k in ("cosine", "mse_share", "auroc", "auroc_other", "gain")}


def rows(pairs: Sequence[Mapping[str, Any]], *, seed: int = 0) -> list[Row]:
    """All factors, descriptors and kinds of finished pairs (`{"patient", "factor", "found": {name: {kind: Agreement as data}}}`)."""
    table: dict[tuple[str, str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for pair in pairs:
        for name, kinds in pair["found"].items():
            for kind, found in kinds.items():
                table.setdefault((pair["factor"], name, kind), {}).setdefault(pair["patient"], []).append(found)
    out = []
    first = next((name for _, name, _ in table), "")
    for (factor, name, kind), patients in table.items():

        def mean(pick: str, patients: dict[str, list[Mapping[str, Any]]] = patients) -> stats.Interval | None:
            values = {p: [float(f[pick]) for f in found if f[pick] is not None] for p, found in patients.items()}
            return stats.mean(values, seed=seed) if any(values.values()) else None

        cosine = {p: [float(np.mean(f["cosine"])) for f in found] for p, found in patients.items()}
        share = {p: [float(np.mean(f["mse"]) / f["mse_elsewhere"]) for f in found] for p, found in patients.items()}
        auroc = mean("auroc")
        assert auroc is not None
        out.append(
            Row(
                factor,
                name,
                kind,
                stats.mean(cosine, seed=seed),
                stats.mean(share, seed=seed),
                auroc,
                mean("auroc_other"),
                _gain(table.get((factor, first, kind), {}), patients, seed) if name != first else None,
            )
        )
    return out


def _gain(
    ours: Mapping[str, Sequence[Mapping[str, Any]]], other: Mapping[str, Sequence[Mapping[str, Any]]], seed: int
) -> stats.Interval | None:
    """Paired difference of the AUROC over pairs of scans that have one on both sides."""
    both = {
        p: [
            (float(a["auroc"]), float(b["auroc"]))
            for a, b in zip(ours[p], other[p], strict=True)
            if a["auroc"] is not None and b["auroc"] is not None
        ]
        for p in ours.keys() & other.keys()
    }
    kept = {p: pairs for p, pairs in both.items() if pairs}
    if not kept:
        return None
    sides = ({p: [pair[i] for pair in pairs] for p, pairs in kept.items()} for i in (0, 1))
    return stats.difference(*sides, seed=seed)
