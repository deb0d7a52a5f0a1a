"""PCA colour maps: the three directions in which cells differ most, joint over scans, as colours.

Components 1 to 3 become L, a and b of CIELAB (CT-FM, concept maps), so that equal steps in feature space look equal. Signs
are fixed (the largest loading of each component is positive), so the same features always give the same colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ctfoundry.body import BODY_HU
from ctfoundry.encoder import FeatureMap
from ctfoundry.errors import ContractError
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pca:
    """Mean (c), components (3, c), and the range (3, 2) of each component over the cells it was fitted on."""

    mean: Float[Tensor, "c"]
    components: Float[Tensor, "3 c"]
    span: Float[Tensor, "3 2"]
    explained: tuple[float, float, float]


def body_cells(feature: FeatureMap, volume: Volume) -> Bool[Tensor, "d h w"]:
    """Cells of which at least a quarter is body (above -300 HU)."""
    body = replace(volume, voxels=(volume.voxels > BODY_HU).astype(np.float32), kind="other", valid=None)
    share = body.onto(feature.grid, fill=0.0)
    return (torch.from_numpy(share.voxels).to(feature.valid.device) > 0.25) & feature.valid


def fit(maps: Sequence[FeatureMap], masks: Sequence[Bool[Tensor, "d h w"]]) -> Pca:
    """The joint PCA of the masked cells of several scans; each scan has the same weight, whatever its size."""
    rows = [m.data[:, mask].T.double() for m, mask in zip(maps, masks, strict=True) if bool(mask.any())]
    if not rows:
        raise ContractError("no cell of the scans lies in a body", do="give scans that hold one, in HU")
    mean = torch.stack([r.mean(0) for r in rows]).mean(0)
    covariance = torch.stack([(r - mean).T @ (r - mean) / len(r) for r in rows]).mean(0)
    values, vectors = torch.linalg.eigh(covariance)
    components = vectors[:, -3:].flip(1).T
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * torch.where(largest < 0, -1.0, 1.0)
    scores = torch.cat([(r - mean) @ components.T for r in rows])
    ends = torch.tensor([0.02, 0.98], dtype=scores.dtype, device=scores.device)
    spread = scores[:: 1 + len(scores) // 10**6]  # of every scan; torch refuses to sort many millions
    span = torch.stack([torch.quantile(spread[:, i], ends) for i in range(3)])
    share = values.clamp_min(0).flip(0)[:3] / values.clamp_min(0).sum()
    a, b, c = (float(v) for v in share)
    return Pca(mean.float(), components.float(), span.float(), (a, b, c))


def colours(pca: Pca, feature: FeatureMap, mask: Bool[Tensor, "d h w"]) -> FeatureMap:
    """The map as sRGB in 0..1, (3, d, h, w); cells outside `mask` are black."""
    scores = (feature.data.flatten(1).T.float() - pca.mean) @ pca.components.T
    unit = ((scores - pca.span[:, 0]) / (pca.span[:, 1] - pca.span[:, 0]).clamp_min(1e-12)).clamp(0, 1)
    rgb = lab_to_srgb(torch.stack([20 + 70 * unit[:, 0], 120 * unit[:, 1] - 60, 120 * unit[:, 2] - 60], dim=1))
    grid = rgb.T.reshape(3, *feature.data.shape[1:]) * mask
    return replace(feature, data=grid)


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
