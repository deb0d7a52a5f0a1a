"""Small networks on top of a vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class ProjectionHead(nn.Module):
    """SimCLR's projection: Linear, ReLU, Linear, both with bias and without batch norm (reference, 3.3).

    CT-FM's is 512 -> 256 -> 128. State keys ``layers.{0,2}.{weight,bias}``, as in its training checkpoints.
    """

    def __init__(self, width: int = 512, hidden: int = 256, out: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... out"]:
        """Project the last axis; the result is not normalised."""
        return self.layers(x)
