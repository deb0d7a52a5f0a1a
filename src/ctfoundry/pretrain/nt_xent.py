"""SimCLR's loss, NT-Xent (Chen et al. 2020, arXiv 2002.05709), and CT-FM's form of it within each scan (arXiv 2501.09001; reference,
3.3, 4.1 and 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ctfoundry.models.heads import ProjectionHead
from ctfoundry.pretrain.embeddings import check, one_scan

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ctfoundry.pretrain.recipe import ModelSettings


def heads(width: int, model: ModelSettings) -> dict[str, nn.Module]:
    """The projection head, without batch norm (published: 512 -> 256 -> 128)."""
    return {"head": ProjectionHead(width, *model.head)}


def nt_xent_intra(
    z: Float[Tensor, "b m 2 c"], temperature: float = 0.1, *, symmetric: bool = False
) -> Float[Tensor, ""]:
    """Intra-sample NT-Xent (CT-FM, Methods; the public code's form, reference 4.1).

    Each anchor must find the other view of its own crop among both views of all crops of the same scan:
    ``-log(exp(a.p/t) / sum over all but a of exp(a.o/t))``, a, p, o of unit length; the mean over anchors and scans.

    Parameters
    ----------
    z : embeddings, not normalised, at least two crops a scan; computed in float32 at least, whatever autocast says.
    temperature : t.
    symmetric : False: anchors are the first views (what made the public weights). True: both views are (the paper's formula).
    """
    views = check(z, 2)
    with torch.autocast(z.device.type, enabled=False):
        loss = _NTXent.apply(views.flatten(1, 2), temperature)
        return (loss + _NTXent.apply(views.flip(2).flatten(1, 2), temperature)) / 2 if symmetric else loss


def nt_xent(z: Float[Tensor, "b m 2 c"], temperature: float = 0.1, *, symmetric: bool = True) -> Float[Tensor, ""]:
    """Plain NT-Xent (lightly's, gathered over ranks; reference 4.2): all other views of the step's N crops are negatives, 2N - 2.

    With one crop a scan it tells scans apart, with several also the crops of a scan. At least two crops in all.
    """
    return nt_xent_intra(one_scan(check(z, 1)), temperature, symmetric=symmetric)


class _NTXent(torch.autograd.Function):
    """The one-way loss and its gradient, written out, in half of autograd's time.

    Views of a scan lie crop by crop: 2i and 2i + 1 are a pair. With unit vectors ``u = v / |v|`` and ``w_ij`` the loss' derivative
    by u_i.u_j, both ways added, ``dL/du_i = d_i = sum_j w_ij u_j`` and ``dL/dv_i = (d_i - u_i (u_i.d_i)) / |v_i|``.
    """

    @staticmethod
    def forward(ctx: Any, views: Float[Tensor, "b 2m c"], temperature: float) -> Float[Tensor, ""]:
        length = torch.linalg.vector_norm(views, dim=2, keepdim=True).clamp_min_(1e-12)
        unit = views / length
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


def _own(x: Float[Tensor, "b m 2m"]) -> Float[Tensor, "b 2 m"]:
    """The entries of each anchor's own crop, itself and its partner, as a view into `x`."""
    return x.unflatten(2, (-1, 2)).diagonal(dim1=1, dim2=2)
