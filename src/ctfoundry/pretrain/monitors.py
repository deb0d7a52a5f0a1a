"""What shows whether embeddings learn or collapse: a few numbers of one step's embeddings, none of which is trained on.

Embeddings come as one tensor (b, m, 2, c): b scans, m crops of each (one is enough), two views of each crop. `similarities` is
cheap enough for every step; `measures` is asked for at log steps only, works in float64 (a collapse is told from rounding
by small distances between unit vectors), and looks at no more than `ROWS` views.

Two kinds of collapse: in a *complete* one all crops get one vector (uniformity goes to 0, neighbours to the floor, rank to 1); in a
*dimensional* one they lie along few directions (the rank is small though vectors differ; Jing et al., arXiv 2110.09348).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from ctfoundry.errors import ContractError

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor

ROWS = 512
"""Views that `measures` looks at; of more, as many crops evenly spread over scans and crops."""
FLOOR = 1e-8
"""Smallest distance between unit vectors that float64 tells from none, and so the least that neighbours come to."""


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
    """Monitors of the objective. A tie counts as a miss: collapsed embeddings match nothing.

    Other crops are those of the same scan; with one crop a scan, those of the other scans (no other at all: NaN).
    """
    _check(z)
    if z.shape[1] == 1:
        z = z.transpose(0, 1)
    m = z.shape[1]
    with torch.autocast(z.device.type, enabled=False):
        views = (z if z.dtype == torch.float64 else z.float()).flatten(1, 2)  # b 2m c
        unit = torch.nn.functional.normalize(views, dim=2, eps=1e-12)
        cosine = unit[:, ::2] @ unit.mT  # b m 2m
    own = cosine.unflatten(2, (m, 2)).diagonal(dim1=1, dim2=2)  # b 2 m: an anchor and its partner, a view into `cosine`
    positive = own[:, 1].clone()  # b m
    if m == 1:
        return Similarities(positive.mean(), positive.new_tensor(math.nan), positive.new_tensor(math.nan))
    own.zero_()
    negative = cosine.sum(2) / (2 * m - 2)
    own.fill_(-torch.inf)
    return Similarities(positive.mean(), negative.mean(), (positive > cosine.amax(2)).float().mean())


@torch.no_grad()
def effective_rank(x: Float[Tensor, "... c"], *, centred: bool = False) -> Float64[Tensor, ""]:
    """exp of the entropy of the normalised singular values of the rows (Roy & Vetterli, EUSIPCO 2007), as they are or less their mean.

    Between 1 (all rows along one line: collapse) and min(rows, c); 0 when all rows are zero.
    """
    rows = x.double().reshape(-1, x.shape[-1])
    if centred:
        rows = rows - rows.mean(0)
    # roots of the smaller Gram matrix' eigenvalues: exact to 1e-8 of the largest in float64, and fast where c is thousands
    gram = rows @ rows.mT if len(rows) <= rows.shape[1] else rows.mT @ rows
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(share).sum().exp() * (values.sum() > 0)


@torch.no_grad()
def uniformity(x: Float[Tensor, "b m 2 c"], t: float = 2.0) -> Float64[Tensor, ""]:
    """log of the mean of ``exp(-t |u - v|^2)`` over all pairs of views of different crops, u, v of unit length (Wang & Isola 2020,
    arXiv 2005.10242, equation 5, t = 2).

    0 when all are one point; ``-2 t`` (-4) when all are at right angles, about what the sphere's uniform distribution gives in many
    dimensions. NaN for one crop.
    """
    return (-t * _distances(x).square()).exp()[_others(x)].mean().log()


@torch.no_grad()
def alignment(x: Float[Tensor, "b m 2 c"], alpha: float = 2.0) -> Float64[Tensor, ""]:
    """Mean of ``|u - v|^alpha`` over the two views of each crop, u, v of unit length (Wang & Isola 2020, equation 4, alpha = 2).

    0 when views of a crop agree, also in a collapse; 2 when they have nothing to do with one another.
    """
    unit = _unit(x)
    return torch.linalg.vector_norm(unit[..., 0, :] - unit[..., 1, :], dim=-1).pow(alpha).mean()


@torch.no_grad()
def norm_spread(x: Float[Tensor, "... c"]) -> Float64[Tensor, ""]:
    """Coefficient of variation of the vectors' lengths: standard deviation over mean; 0 when all are zero."""
    length = torch.linalg.vector_norm(x.double(), dim=-1)
    return length.std(correction=0) / length.mean().clamp_min(torch.finfo(length.dtype).tiny)


@torch.no_grad()
def neighbour_entropy(x: Float[Tensor, "b m 2 c"]) -> Float64[Tensor, ""]:
    """Mean over views of the log of the distance to the nearest view of another crop, vectors of unit length.

    The part of the nearest-neighbour estimate of differential entropy (Kozachenko & Leonenko 1987) that depends on the vectors, for one
    dimension of them, as in KoLeo (Sablayrolles et al., arXiv 1806.03198). Entropy of how often each vector is somebody's nearest
    neighbour would not do: it stays high when a collapse leaves noise. About 0.3 (log of root 2) at right angles, -18.4
    (`FLOOR`) when all are one point; NaN for one crop.
    """
    distance = _distances(x).masked_fill(~_others(x), math.inf)  # n n
    nearest = distance.amin(1)
    return nearest[nearest.isfinite()].clamp_min(FLOOR).log().mean()


@torch.no_grad()
def measures(vectors: Float[Tensor, "b m 2 k"], z: Float[Tensor, "b m 2 c"]) -> dict[str, float]:
    """All monitors of one step, of the projections `z` and, named ``vector_...``, of the encoder's pooled vectors; plain numbers.

    ``rank`` and ``rank_of`` (the largest that it could be), ``centred_rank``, ``uniformity``, ``alignment``, ``norm_spread``,
    ``neighbours``.
    """
    found: dict[str, float] = {}
    for prefix, x in (("", z), ("vector_", vectors)):
        _check(x)
        x = _few(x.detach())
        values: dict[str, Tensor | float] = {
            "rank": effective_rank(x),
            "rank_of": min(x.shape[:-1].numel(), x.shape[-1]),
            "centred_rank": effective_rank(x, centred=True),
            "uniformity": uniformity(x),
            "alignment": alignment(x),
            "norm_spread": norm_spread(x),
            "neighbours": neighbour_entropy(x),
        }
        found |= {prefix + name: float(value) for name, value in values.items()}
    return found


def _few(x: Float[Tensor, "b m 2 c"]) -> Float[Tensor, "b m 2 c"]:
    """At most `ROWS` views: crops evenly spread over all, as scans of one crop (no monitor asks whose crop it is)."""
    crops = x.flatten(0, 1)
    if 2 * len(crops) <= ROWS:
        return x
    return crops[torch.linspace(0, len(crops) - 1, ROWS // 2, device=x.device).long()][:, None]


def _check(z: Tensor) -> None:
    if z.ndim != 4 or z.shape[2] != 2 or not z.numel():
        raise ContractError(f"embeddings are (scans, crops, 2 views, channels), not {tuple(z.shape)}")


def _unit(x: Float[Tensor, "b m 2 c"]) -> Float64[Tensor, "b m 2 c"]:
    return torch.nn.functional.normalize(x.double(), dim=-1, eps=1e-12)


def _distances(x: Float[Tensor, "b m 2 c"]) -> Float64[Tensor, "n n"]:
    """Distances between the unit vectors of all views, crop by crop."""
    unit = _unit(x).flatten(0, 2)
    return (2 - 2 * unit @ unit.mT).clamp_min(0).sqrt()


def _others(x: Float[Tensor, "b m 2 c"]) -> Tensor:
    """Which pairs of views are of different crops (n n)."""
    crop = torch.arange(x.shape[:-1].numel(), device=x.device) // 2
    return crop[:, None] != crop
