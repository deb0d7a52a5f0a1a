"""The objective of CT-FM, and what shows whether it learns or collapses.

Embeddings come as one tensor (b, m, 2, c): b scans, m crops of each, two views of each crop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from ctfoundry.errors import ContractError

if TYPE_CHECKING:
    from jaxtyping import Float
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
    with torch.autocast(z.device.type, enabled=False):
        loss = _NTXent.apply(_views(z), temperature)
        return (loss + _NTXent.apply(_views(z.flip(2)), temperature)) / 2 if symmetric else loss


class _NTXent(torch.autograd.Function):
    """The one-way loss and its gradient, written out, in half of autograd's time.

    With unit vectors ``u = v / |v|`` and ``w_ij`` the loss' derivative by u_i.u_j, both ways added,
    ``dL/du_i = d_i = sum_j w_ij u_j`` and ``dL/dv_i = (d_i - u_i (u_i.d_i)) / |v_i|``.
    """

    @staticmethod
    def forward(ctx: Any, views: Float[Tensor, "b 2m c"], temperature: float) -> Float[Tensor, ""]:
        unit, length = _unit(views)
        logits = (unit[:, ::2] @ unit.mT).div_(temperature)  # b m 2m
        _own(logits)[:, 0] = -torch.inf
        log_share = logits.log_softmax(2)
        ctx.save_for_backward(unit, length, log_share)
        ctx.temperature = temperature
        return -_own(log_share)[:, 1].mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, ""]) -> tuple[Float[Tensor, "b 2m c"], None]:
        unit, length, log_share = ctx.saved_tensors
        b, m, k = log_share.shape
        slope = log_share.exp()
        _own(slope)[:, 1] -= 1
        weight = torch.zeros(b, k, k, dtype=unit.dtype, device=unit.device)  # b 2m 2m
        weight[:, ::2] = slope.mul_(grad / (b * m * ctx.temperature))
        with torch.autocast(unit.device.type, enabled=False):
            pull = (weight + weight.mT) @ unit  # b 2m c
        return pull.addcmul_(unit, (pull * unit).sum(2, keepdim=True), value=-1).div_(length), None


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
    with torch.autocast(z.device.type, enabled=False):
        unit, _ = _unit(_views(z))
        cosine = unit[:, ::2] @ unit.mT  # b m 2m
    positive = _own(cosine)[:, 1].clone()  # b m
    _own(cosine).zero_()
    negative = cosine.sum(2) / (2 * z.shape[1] - 2)
    _own(cosine).fill_(-torch.inf)
    return Similarities(positive.mean(), negative.mean(), (positive > cosine.amax(2)).float().mean())


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


def _views(z: Float[Tensor, "b m 2 c"]) -> Float[Tensor, "b 2m c"]:
    """All views of a scan in one axis, crop by crop: views 2i and 2i + 1 are a pair, and ``index ^ 1`` is the partner."""
    if z.ndim != 4 or z.shape[2] != 2 or z.shape[1] < 2:
        raise ContractError(f"embeddings are (scans, crops >= 2, 2 views, channels), not {tuple(z.shape)}")
    return _precise(z).flatten(1, 2)


def _unit(views: Float[Tensor, "b 2m c"]) -> tuple[Float[Tensor, "b 2m c"], Float[Tensor, "b 2m 1"]]:
    length = torch.linalg.vector_norm(views, dim=2, keepdim=True).clamp_min_(1e-12)
    return views / length, length


def _own(x: Float[Tensor, "b m 2m"]) -> Float[Tensor, "b 2 m"]:
    """The entries of each anchor's own crop, itself and its partner, as a view into `x`."""
    return x.unflatten(2, (-1, 2)).diagonal(dim1=1, dim2=2)
