"""Intra-sample NT-Xent as a loop over anchors, in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def looped_nt_xent(z: Float[Tensor, "b m 2 c"], temperature: float = 0.1) -> Float[Tensor, ""]:
    """One anchor at a time: its positive and its negatives gathered, one small product, one cross-entropy.

    Vectors are normalised once, in one call; a scan's views are flattened once.
    """
    b, m = z.shape[:2]
    z = F.normalize(z, dim=-1)
    target = torch.zeros(1, dtype=torch.long)
    losses = []
    for scan in range(b):
        views = z[scan].flatten(0, 1)  # 2m c
        for i in range(m):
            negatives = torch.cat([views[: 2 * i], views[2 * i + 2 :]])  # 2m-2 c
            candidates = torch.cat([views[2 * i + 1 : 2 * i + 2], negatives])
            logits = candidates @ views[2 * i] / temperature
            losses.append(F.cross_entropy(logits[None], target))
    return torch.stack(losses).mean()
