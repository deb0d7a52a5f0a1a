"""Search window by window, as CT-FM's public code does it: every window of the target embedded alone, in batches; the most similar
window's centre is the answer. As well as it can be done: views instead of copies, no gradients, one batch of windows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from ctfoundry.geometry import Vec3

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@torch.no_grad()
def window_vectors(
    network: Callable[[Tensor], Tensor], x: Float[Tensor, "d h w"], size: Vec3, step: Vec3, batch: int = 32
) -> tuple[Float[Tensor, "n c"], np.ndarray]:
    """The mean feature of each window, L2-normalised, and the windows' centres as voxels (n, 3)."""
    grow = [p - n if n <= p else -(n - p) % s for n, p, s in zip(x.shape, size, step, strict=True)]
    x = torch.nn.functional.pad(x, (0, grow[2], 0, grow[1], 0, grow[0]))
    views = x.unfold(0, size[0], step[0]).unfold(1, size[1], step[1]).unfold(2, size[2], step[2])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in views.shape[:3]), indexing="ij"), -1).reshape(-1, 3)
    rows = []
    for start in range(0, len(index), batch):
        part = index[start : start + batch]
        windows = torch.stack([views[a, b, c] for a, b, c in part])[:, None]
        rows.append(network(windows).flatten(2).mean(2))
    centres = index * np.array(step) + (np.array(size) - 1) / 2
    return torch.nn.functional.normalize(torch.cat(rows), dim=1), centres
