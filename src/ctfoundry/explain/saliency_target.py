"""What a saliency map asks about: a scan's vector, a region's, the features at a point, or a similarity to another vector."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from ctfoundry.encoder import Encoder, FeatureMap, roi_vectors
from ctfoundry.errors import ContractError, UsageError
from ctfoundry.preparation import Prepared
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int
    from torch import Tensor

    Starts = Int[np.ndarray, "b 3"]


@dataclass(frozen=True, eq=False)
class Target:
    """What is watched: a token vector, or a pooled map of one level.

    Attributes
    ----------
    name : as shown: "mean", "cls", "roi:liver", "point".
    token : the vector's name where it is a token of the network.
    how : "weights", or "max" or "min" over the cells of `weight` > 0.
    weight : (d, h, w), sums to 1.
    reference : a vector to which similarity is watched; None: the scan's own.
    """

    name: str
    level: str
    how: Literal["token", "weights", "max", "min"]
    base: Float64[Tensor, "c"]
    map: FeatureMap | None = None
    weight: Float[Tensor, "d h w"] | None = None
    reference: Float64[Tensor, "c"] | None = None

    def of_output(self, maps: Mapping[str, Tensor], tokens: Mapping[str, Tensor]) -> Float64[Tensor, "b c"]:
        """The vectors of what an encoder's network returns (`Encoder.raw`); differentiable."""
        return tokens[self.name].double() if self.how == "token" else self.of_maps(maps[self.level])

    def of_maps(self, data: Float[Tensor, "b c d h w"]) -> Float64[Tensor, "b c"]:
        """The vectors of whole maps."""
        assert self.weight is not None
        if self.how == "weights":
            return (data.double() * self.weight.double()).sum((2, 3, 4))
        rows = data[:, :, self.weight > 0].double()
        return rows.amax(2) if self.how == "max" else rows.amin(2)

    def of_windows(self, data: Float[Tensor, "b c d h w"], at: Starts) -> Float64[Tensor, "b c"]:
        """The vectors of maps that differ from the base in the windows `data` at cells `at`."""
        assert self.weight is not None
        assert self.map is not None
        rows = []
        for new, start in zip(data, at.tolist(), strict=True):
            part = tuple(slice(a, a + n) for a, n in zip(start, new.shape[1:], strict=True))
            if self.how == "weights":
                change = (new - self.map.data[(slice(None), *part)]).double() * self.weight[part].double()
                rows.append(self.base + change.sum((1, 2, 3)))
            else:
                whole = self.map.data.clone()
                whole[(slice(None), *part)] = new
                rows.append(self.of_maps(whole[None])[0])
        return torch.stack(rows)

    def score(self, vectors: Float64[Tensor, "b c"]) -> Float64[np.ndarray, "b"]:
        """Deviations: 1 - cosine to the base, or the fall of the similarity to the reference."""
        if self.reference is None:
            found = 1 - _cosine(vectors, self.base)
        else:
            found = _cosine(self.base[None], self.reference) - _cosine(vectors, self.reference)
        return np.asarray(found.cpu().numpy())


def _cosine(rows: Float64[Tensor, "b c"], vector: Float64[Tensor, "c"]) -> Float64[Tensor, "b"]:
    return torch.nn.functional.cosine_similarity(rows, vector[None], dim=1)


def target_of(
    encoder: Encoder,
    prepared: Prepared,
    *,
    roi: Volume | None = None,
    label: str | None = None,
    point: Sequence[float] | None = None,
    reference: Tensor | None = None,
) -> Target:
    """What to watch in one prepared scan: the card's vector, a region of the label map `roi`, or a `point` (mm, RAS+).

    `label` is the region's name, or its number; a map of one region needs none.

    Raises UsageError for a region or point that the scan does not hold, ContractError for windows stacked along axis 0.
    """
    if encoder.preparation.intensity.stack == "axis0":
        raise ContractError("windows lie stacked along axis 0, so a box would hide a place in one of them only")
    name, level = encoder.card.vector, encoder.card.level
    token = name not in ("mean", "max", "min")
    features = encoder(prepared, levels=(level,), vectors=(name,))
    against = None if reference is None else reference.double()
    if roi is None and point is None and token:
        return Target(name, level, "token", features.vector.double(), reference=against)
    grid = features.grid
    weight = grid.valid.float() if bool(grid.valid.any()) else torch.ones_like(grid.valid, dtype=torch.float32)
    how: Literal["weights", "max", "min"] = "max" if name == "max" else "min" if name == "min" else "weights"
    if roi is not None:
        held = [key.removeprefix("roi:") for key in roi_vectors(grid, roi)]
        numbered = {str(number): called for number, called in (roi.names or {}).items()}
        wanted = label if label is None or label in held else numbered.get(label, label)
        found = [called for called in held if wanted in (None, called)]
        if len(found) != 1:
            there = ", ".join(held) or "none"
            raise UsageError(f"one region is needed, {label or 'no label'} was asked for; the map holds {there}")
        name, how, weight = f"roi:{found[0]}", "weights", _roi_weight(grid, roi, found[0])
    elif point is not None:
        if not grid.holds(point):
            raise UsageError(f"the point {tuple(point)} lies outside the prepared scan")
        name, how, weight = "point", "weights", _point_weight(grid, point)
    weight = weight / weight.sum()
    made = Target(name, level, how, torch.empty(0), grid, weight, against)
    return replace(made, base=made.of_maps(grid.data[None])[0])


def _roi_weight(grid: FeatureMap, roi: Volume, name: str) -> Float[Tensor, "d h w"]:
    """The share of each cell that carries the label, as `roi_vectors` weighs cells."""
    labels = [v for v in np.unique(roi.voxels).tolist() if v and (roi.names or {}).get(v, str(v)) == name]
    share = replace(roi, voxels=np.isin(roi.voxels, labels).astype(np.float32), kind="other").onto(grid.grid, fill=0.0)
    return torch.from_numpy(share.voxels).to(grid.data.device) * grid.valid


def _point_weight(grid: FeatureMap, point: Sequence[float]) -> Float[Tensor, "d h w"]:
    """Linear between the cells round a point."""
    weight = torch.zeros_like(grid.valid, dtype=torch.float32)
    at = np.clip(grid.cell(point), 0, np.array(weight.shape) - 1)
    low = np.floor(at).astype(int)
    for step in itertools.product((0, 1), repeat=3):
        cell = np.minimum(low + step, np.array(weight.shape) - 1)
        share = float(np.prod(np.where(np.array(step) == 1, at - low, 1 - (at - low))))
        weight[tuple(cell.tolist())] += share
    return weight
