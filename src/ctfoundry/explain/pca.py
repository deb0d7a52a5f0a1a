"""PCA colour maps: the three directions in which cells differ most, joint over scans, as colours.

Components 1 to 3 become L, a and b of CIELAB (CT-FM, concept maps), so that equal steps in feature space look about equal.
Signs are fixed (the largest loading of each component is positive), so the same features always give the same colours.

All fits read one map after the other and keep a mean, a covariance and a bounded sample, so any number of scans fits into memory.
Each scan has the same weight. `maps` and `masks` may be generators.

What the published notebook does otherwise: it reshapes (scans, c, d, h, w) to (c, ...) without moving the scans' axis, so that each
of its "samples" mixes channels of two scans and both its pictures are blends of both; flips the first component by hand for one
scan; and cuts the foreground at a number chosen by eye.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ctfoundry.body import BODY_HU
from ctfoundry.encoder import FeatureMap
from ctfoundry.errors import ContractError
from ctfoundry.keys import Key
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64
    from torch import Tensor

SAMPLE = 60_000
"""Most cells, of all scans together, that ranges and thresholds are taken from."""
ENDS = (0.02, 0.98)
"""Quantiles of each component that the ends of its colour axis stand for."""
LIGHT, TINT = (20.0, 90.0), (-60.0, 60.0)
"""Ends of L, and of a and b. Within them most colours can be shown; the rest is clipped to sRGB."""
BINS = 256
"""Bins of Otsu's histogram."""


@dataclass(frozen=True, eq=False)
class Pca:
    """Mean (c), components (3, c), and the range (3, 2) of each component over the cells it was fitted on."""

    mean: Float[Tensor, "c"]
    components: Float[Tensor, "3 c"]
    span: Float[Tensor, "3 2"]
    explained: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Foreground:
    """A cell is foreground where its feature minus `mean`, along `direction`, is above `threshold`."""

    mean: Float[Tensor, "c"]
    direction: Float[Tensor, "c"]
    threshold: float

    def mask(self, feature: FeatureMap) -> Bool[Tensor, "d h w"]:
        """The valid cells of a map that are foreground."""
        along = torch.tensordot(self.direction, feature.data.float(), dims=1) - self.direction @ self.mean
        return (along > self.threshold) & feature.valid


def body_cells(feature: FeatureMap, volume: Volume) -> Bool[Tensor, "d h w"]:
    """Cells of which at least a quarter is body (above -300 HU)."""
    body = replace(volume, voxels=(volume.voxels > BODY_HU).astype(np.float32), kind="other", valid=None)
    share = body.onto(feature.grid, fill=0.0)
    return (torch.from_numpy(share.voxels).to(feature.valid.device) > 0.25) & feature.valid


def fit(maps: Iterable[FeatureMap], masks: Iterable[Bool[Tensor, "d h w"]], *, seed: int = 0) -> Pca:
    """The joint PCA of the masked cells of several scans; each scan has the same weight, whatever its size.

    seed : of the sample that the ranges come from (all cells, where there are at most `SAMPLE`).
    """
    moments = Moments(seed)
    for feature, mask in zip(maps, masks, strict=True):
        moments.add(feature.data[:, mask].T)
    if not moments.scans:
        raise ContractError("no cell of the scans lies in a body", do="give scans that hold one, in HU")
    values, components = moments.directions(3)
    scores = (moments.sample() - moments.mean) @ components.T
    ends = torch.tensor(ENDS, dtype=scores.dtype, device=scores.device)
    span = torch.stack([torch.quantile(scores[:, i], ends) for i in range(3)])
    a, b, c = (float(v) for v in values[:3] / values.sum())
    return Pca(moments.mean.float(), components.float(), span.float(), (a, b, c))


def fit_foreground(maps: Iterable[FeatureMap], bodies: Iterable[Bool[Tensor, "d h w"]], *, seed: int = 0) -> Foreground:
    """Foreground as features alone see it: the first component of all valid cells, cut by Otsu's threshold.

    A component has no sign of its own: the side on which more of the `bodies` lies (`body_cells`) is foreground. They do
    nothing else. Raises ContractError where no cell is valid.
    """
    moments, body = Moments(seed), _Balance()
    for feature, mask in zip(maps, bodies, strict=True):
        moments.add(feature.data[:, feature.valid].T)
        body.add(feature, mask)
    if not moments.scans:
        raise ContractError("no cell of the scans is valid", do="give scans that hold more than padding")
    _, components = moments.directions(1)
    direction = components[0] * (-1.0 if float(components[0] @ body.lean()) < 0 else 1.0)
    scores = (moments.sample() - moments.mean) @ direction
    return Foreground(moments.mean.float(), direction.float(), otsu(scores.cpu().numpy()))


def otsu(values: Float64[np.ndarray, "n"]) -> float:
    """The threshold that parts values into the two classes with the largest variance between them (Otsu 1979)."""
    counts, edges = np.histogram(values, BINS)
    middle = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), np.cumsum(counts * middle)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    # empty bins between two classes all cut alike: the middle of them
    best = np.flatnonzero(np.nan_to_num(between, nan=-1.0) >= np.nanmax(between) * (1 - 1e-12))
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)


def overlap(a: Bool[Tensor, "d h w"], b: Bool[Tensor, "d h w"]) -> float:
    """Dice of two masks, such as the foreground by features and the body; NaN where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def components(pca: Pca, feature: FeatureMap) -> FeatureMap:
    """The three components of each cell, (3, d, h, w)."""
    flat = (feature.data.flatten(1).T.float() - pca.mean) @ pca.components.T
    return replace(feature, data=flat.T.reshape(3, *feature.data.shape[1:]))


def to_lab(pca: Pca, scores: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Components as L, a, b: the span of each is laid over the axis, what lies beyond has the colour of the end."""
    unit = ((scores - pca.span[:, 0]) / (pca.span[:, 1] - pca.span[:, 0]).clamp_min(1e-12)).clamp(0, 1)
    low, high = (unit.new_tensor([LIGHT[i], TINT[i], TINT[i]]) for i in range(2))
    return low + unit * (high - low)


def lab(pca: Pca, feature: FeatureMap) -> FeatureMap:
    """The map as L, a, b (3, d, h, w), to measure distances of colours in."""
    scores = components(pca, feature).data
    return replace(feature, data=to_lab(pca, scores.flatten(1).T).T.reshape(scores.shape))


def colours(pca: Pca, feature: FeatureMap, mask: Bool[Tensor, "d h w"]) -> FeatureMap:
    """The map as sRGB in 0..1, (3, d, h, w); cells outside `mask` are black."""
    grid = lab(pca, feature).data
    return replace(feature, data=lab_to_srgb(grid.flatten(1).T).T.reshape(grid.shape) * mask)


def lab_to_srgb(lab: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """CIELAB (D65) to sRGB in 0..1 (IEC 61966-2-1), clipped to the gamut.

    >>> [round(v, 3) for v in lab_to_srgb(torch.tensor([[100.0, 0.0, 0.0]]))[0].tolist()]
    [1.0, 1.0, 1.0]
    """
    y = (lab[:, 0] + 16) / 116
    f = torch.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], dim=1)
    white = f.new_tensor([0.95047, 1.0, 1.08883])
    xyz = torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * white
    matrix = f.new_tensor([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    linear = (xyz @ matrix.T).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).clamp(0, 1)


class Moments:
    """Mean and covariance of scans' cells, each scan with the same weight, and a sample of them; in float64."""

    def __init__(self, seed: int = 0) -> None:
        self.scans = 0
        self._key = Key.of("pca", seed)
        self._within: Tensor | None = None
        self._between: Tensor | None = None
        self._mean: Tensor | None = None
        self._kept: list[Tensor] = []

    def add(self, rows: Float[Tensor, "n c"]) -> None:
        """Take in the cells of one more scan; one without cells does not count."""
        if not len(rows):
            return
        if rows.shape[1] < 3:
            raise ContractError(f"features of {rows.shape[1]} channels have no three components")
        order = torch.from_numpy(self._key("scan", self.scans).permutation(len(rows)))
        self.scans += 1
        # samples lie in random order, so that a shorter beginning of each is a sample too
        share = max(SAMPLE // self.scans, 1)
        self._kept = [kept[:share] for kept in self._kept]
        self._kept.append(rows[order[:share].to(rows.device)].float())
        rows = rows.double()
        mean = rows.mean(0)
        around = rows - mean
        within = around.T @ around / len(rows)
        if self._mean is None or self._within is None or self._between is None:
            self._mean, self._within, self._between = mean, within, torch.zeros_like(within)
            return
        step = mean - self._mean
        self._mean = self._mean + step / self.scans
        self._within += (within - self._within) / self.scans
        # Welford: sum of squares of the scans' means about their running mean
        self._between += torch.outer(step, mean - self._mean)

    @property
    def mean(self) -> Float64[Tensor, "c"]:
        """Mean over scans of each scan's mean."""
        assert self._mean is not None
        return self._mean

    def directions(self, count: int) -> tuple[Float64[Tensor, "c"], Float64[Tensor, "count c"]]:
        """All variances, largest first, and the first `count` directions, the largest loading of each positive."""
        assert self._within is not None
        assert self._between is not None
        covariance = self._within + self._between / self.scans
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        found = vectors[:, -count:].flip(1).T
        largest = found.gather(1, found.abs().argmax(1, keepdim=True))
        return values.clamp_min(0).flip(0), found * torch.where(largest < 0, -1.0, 1.0)

    def sample(self) -> Float64[Tensor, "n c"]:
        """Cells of all scans, about as many of each."""
        return torch.cat(self._kept).double()


class _Balance:
    """By how much the mean feature of the body differs from that of the rest, summed over scans."""

    def __init__(self) -> None:
        self._lean: Tensor | None = None

    def add(self, feature: FeatureMap, body: Bool[Tensor, "d h w"]) -> None:
        inner, outer = feature.data[:, body & feature.valid], feature.data[:, ~body & feature.valid]
        if inner.shape[1] and outer.shape[1]:
            lean = (inner.mean(1) - outer.mean(1)).double()
            self._lean = lean if self._lean is None else self._lean + lean
        elif self._lean is None:
            self._lean = torch.zeros(len(feature.data), dtype=torch.float64, device=feature.data.device)

    def lean(self) -> Float64[Tensor, "c"]:
        assert self._lean is not None
        return self._lean
