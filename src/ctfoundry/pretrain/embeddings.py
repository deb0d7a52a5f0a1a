"""What the objectives share: embeddings are one tensor (b, m, 2, c): b scans, m crops of each, two views of each crop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ctfoundry import parallel
from ctfoundry.errors import ContractError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def precise(z: Tensor) -> Tensor:
    """float64 as it is, anything less in float32: losses and statistics are never computed in half precision."""
    return z if z.dtype == torch.float64 else z.float()


def check(z: Tensor, crops: int) -> Tensor:
    """`z` by `precise`; raises ContractError unless it is (b, m, 2, c) with at least `crops` crops of each scan."""
    if z.ndim != 4 or z.shape[2] != 2 or z.shape[1] < crops or not z.numel():
        raise ContractError(f"embeddings are (scans, crops >= {crops}, 2 views, channels), not {tuple(z.shape)}")
    return precise(z)


def one_scan(z: Float[Tensor, "b m 2 c"]) -> Float[Tensor, "1 rbm 2 c"]:
    """The crops of all scans of all r ranks as if of one scan, which makes an intra-sample loss a plain one.

    Every rank gets the whole and so computes the same loss; `parallel.all_gather` sums the gradients that come back from all
    ranks, so that their mean over ranks, which the loop takes, is the gradient of the one loss.
    """
    return parallel.all_gather(z).flatten(0, 1)[None]
