"""SimSiam (Chen and He 2021, arXiv 2011.10566): each view's prediction points where the other view's projection does, and only the
prediction learns (reference, 3.3 and 4.2).

The public code lost predictor and stop-gradient; this is the form of its ablation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from ctfoundry.models.heads import NormedHead
from ctfoundry.pretrain.embeddings import check

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ctfoundry.pretrain.recipe import ModelSettings


def heads(width: int, model: ModelSettings) -> dict[str, nn.Module]:
    """Projection (512 -> 2048 -> 2048 -> 2048, batch norm after each) and prediction (2048 -> 512 -> 2048)."""
    assert model.predictor is not None
    return {
        "head": NormedHead(width, *model.head, last_norm=True),
        "predictor": NormedHead(model.head[-1], *model.predictor),
    }


def simsiam(
    z: Float[Tensor, "b m 2 c"], p: Float[Tensor, "b m 2 c"], *, stop_gradient: bool = True
) -> Float[Tensor, ""]:
    """``-(cos(p1, z2) + cos(p2, z1)) / 2``, the mean over all crops, between -1 (views agree) and 1.

    Crops do not meet in it, so plain and intra-sample are one loss: the mean over scans of each scan's mean, and ranks have
    nothing to gather. What differs between the two are the crops, and what batch norm averages over.

    Parameters
    ----------
    z, p : projections and their predictions, not normalised; computed in float32 at least, whatever autocast says.
    stop_gradient : whether z is a constant. False collapses.
    """
    z, p = check(z, 1), check(p, 1)
    if stop_gradient:
        z = z.detach()
    with torch.autocast(z.device.type, enabled=False):
        return -F.cosine_similarity(p, z.flip(2), dim=3, eps=1e-8).mean()
