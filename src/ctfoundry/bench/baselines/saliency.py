"""Occlusion as it is done everywhere: the scan copied, a box hidden, the whole network run, one box after another.

As well as it can be: no gradients, the network's fast memory layout, no box that changes nothing (both sides leave those out).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from torch import Tensor


@torch.no_grad()
def deviations(
    network: Callable[[Tensor], Tensor], x: Float[Tensor, "c d h w"], boxes: np.ndarray, size: int, fill: float
) -> Float64[np.ndarray, "n"]:
    """1 - cosine between the vector of `x` and that with each box (n, 3) hidden."""
    base, found = network(x[None])[0].double(), []
    for a, b, c in boxes.tolist():
        hidden = x.clone()
        hidden[:, a : a + size, b : b + size, c : c + size] = fill
        vector = network(hidden[None])[0].double()
        found.append(1 - float(torch.nn.functional.cosine_similarity(vector, base, dim=0)))
    return np.array(found)
