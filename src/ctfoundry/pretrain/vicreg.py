"""VICReg (Bardes et al. 2022, arXiv 2105.04906), in lightly's form, which CT-FM's ablation used (reference, 3.3 and 4.2).

Views of a crop shall be near (invariance); every channel shall vary between crops (variance); channels shall not repeat one another
(covariance).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ctfoundry.models.heads import NormedHead
from ctfoundry.pretrain.embeddings import check, one_scan

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ctfoundry.pretrain.recipe import ModelSettings

EPS = 1e-4
"""Added to variances before the root, as published."""


def heads(width: int, model: ModelSettings) -> dict[str, nn.Module]:
    """The expander (published: 512 -> 8192 -> 8192 -> 8192, batch norm after all but the last)."""
    return {"head": NormedHead(width, *model.head)}


def vicreg_intra(
    z: Float[Tensor, "b m 2 c"], invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Float[Tensor, ""]:
    """VICReg of the m crops of each scan, averaged over scans.

    ``i mean((a - b)^2) + v (V(a) + V(b)) / 2 + c (C(a) + C(b))`` with a, b the crops' first and second views;
    ``V = mean over channels of relu(1 - sqrt(Var + eps))``, ``C = sum over pairs of unlike channels of Cov^2 / channels``, both
    unbiased (divided by m - 1). Computed in float32 at least, whatever autocast says; at least two crops a scan.
    """
    z = check(z, 2)
    with torch.autocast(z.device.type, enabled=False):
        near = (z[:, :, 0] - z[:, :, 1]).square().mean()
        x = z.transpose(1, 2)  # b 2 m c: statistics are those of each scan and view
        varied = torch.relu(1 - (x.var(2) + EPS).sqrt()).mean()  # channels, then views and scans
        return invariance * near + variance * varied + covariance * 2 * _covariance(x).mean()


def vicreg(
    z: Float[Tensor, "b m 2 c"], invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Float[Tensor, ""]:
    """Plain VICReg: of all crops of all scans of the step, at least two.

    Statistics are those of all ranks together (lightly's ``gather_distributed=True``), so that a step does not depend on how many
    devices share it. The published ablation left that switch off: each of its devices saw its own five scans only.
    """
    return vicreg_intra(one_scan(check(z, 1)), invariance, variance, covariance)


def _covariance(x: Float[Tensor, "... n c"]) -> Float[Tensor, "..."]:
    """Sum of squares of the covariance matrix off its diagonal, over c.

    The sum of all squares is that of the smaller of X'X (c c) and XX' (n n). With fewer crops than channels the latter saves a
    matrix of 8192 x 8192; it cannot be near to the diagonal's share, so nothing is lost in the difference.
    """
    n, c = x.shape[-2:]
    x = (x - x.mean(-2, keepdim=True)) / (n - 1) ** 0.5
    if n <= c:
        return ((x @ x.mT).square().sum((-2, -1)) - x.square().sum(-2).square().sum(-1)) / c
    unlike = 1 - torch.eye(c, dtype=x.dtype, device=x.device)
    return (x.mT @ x * unlike).square().sum((-2, -1)) / c
