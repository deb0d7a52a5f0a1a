"""The objective of CT-FM, and what shows whether it learns or collapses.

Embeddings come as one tensor (b, m, 2, c): b scans, m crops of each, two views of each crop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from ctfoundry.errors import ContractError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def intra_sample_nt_xent(
    z: Float[Tensor, "b m 2 c"], temperature: float = 0.1, *, symmetric: bool = False
) -> Float[Tensor, ""]:
    """Intra-sample NT-Xent (CT-FM, arXiv 2501.09001, Methods; the public code's form, reference 4.1).

    Each anchor must find the other view of its own crop among both views of all crops of the same scan:
    ``-log(exp(a.p/t) / sum over all but a of exp(a.o/t))``, a, p, o of unit length; the mean over anchors and scans.

    Parameters
    ----------
    z : embeddings, not normalised; computed in float32 at least, whatever autocast says.
    temperature : t.
    symmetric : False: anchors are the first views (what made the public weights). True: both views are (the paper's formula).
    """
    similarity, others, positive = _matching(z, symmetric=symmetric)
    logits = (similarity / temperature).masked_fill(~others, -torch.inf)  # b a 2m
    own = positive.expand(len(z), -1)  # b a
    return F.cross_entropy(logits.flatten(0, 1), own.flatten())


class Similarities(NamedTuple):
    """How well two views of one crop find each other (first views as anchors)."""

    positive: Float[Tensor, ""]
    """Mean cosine between the two views of a crop."""
    negative: Float[Tensor, ""]
    """Mean cosine between an anchor and the views of other crops of its scan."""
    matching: Float[Tensor, ""]
    """Share of anchors whose nearest view is the other view of their crop; 1 / (2m - 1) by chance."""


@torch.no_grad()
def similarities(z: Float[Tensor, "b m 2 c"]) -> Similarities:
    """Monitors of the objective. A tie counts as a miss: collapsed embeddings match nothing."""
    similarity, others, positive = _matching(z, symmetric=False)
    own = positive[:, None].expand(len(z), -1, 1)  # b a 1
    paired = similarity.gather(2, own).squeeze(2)  # b a
    negatives = similarity.masked_fill(~others, -torch.inf).scatter(2, own, -torch.inf)  # b a 2m
    rest = (similarity * others).sum(2) - paired  # the 2m - 2 negatives of each anchor
    count = 2 * z.shape[1] - 2
    return Similarities(paired.mean(), rest.mean() / count, (paired > negatives.amax(2)).float().mean())


@torch.no_grad()
def effective_rank(z: Float[Tensor, "... c"]) -> Float[Tensor, ""]:
    """exp of the entropy of the normalised singular values of the rows (Roy & Vetterli, EUSIPCO 2007), neither centred nor scaled.

    Between 1 (all rows along one line: collapse) and min(rows, c); 0 when all rows are zero.
    """
    values = torch.linalg.svdvals(_precise(z).reshape(-1, z.shape[-1]))
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum().exp() * (values.sum() > 0)


def _precise(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


def _matching(z: Tensor, *, symmetric: bool) -> tuple[Float[Tensor, "b a 2m"], Bool[Tensor, "a 2m"], Tensor]:
    """Cosines of anchors and all views of their scan; which views are not the anchor; the index of its positive."""
    if z.ndim != 4 or z.shape[2] != 2 or z.shape[1] < 2:
        raise ContractError(f"embeddings are (scans, crops >= 2, 2 views, channels), not {tuple(z.shape)}")
    with torch.autocast(z.device.type, enabled=False):
        views = F.normalize(_precise(z), dim=-1).flatten(1, 2)  # b 2m c: crop by crop, view by view
        anchor = torch.arange(0, views.shape[1], 1 if symmetric else 2, device=z.device)
        similarity = views[:, :: 1 if symmetric else 2] @ views.mT  # b a 2m
    others = anchor[:, None] != torch.arange(views.shape[1], device=z.device)  # a 2m
    return similarity, others, anchor ^ 1
