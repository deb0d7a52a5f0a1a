"""Small networks on top of a vector."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn

from ctfoundry.models.norm import GroupedBatchNorm1d

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class ProjectionHead(nn.Module):
    """SimCLR's projection: Linear, ReLU, Linear, all with bias and without batch norm (reference, 3.3).

    CT-FM's is 512 -> 256 -> 128. State keys ``layers.{0,2}.{weight,bias}``, as in its training checkpoints.
    """

    def __init__(self, width: int = 512, *layers: int) -> None:
        super().__init__()
        widths = (width, *(layers or (256, 128)))
        made = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*made[:-1])

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... out"]:
        """Project the last axis; the result is not normalised."""
        return self.layers(x)


class NormedHead(nn.Module):
    """Linear layers with batch norm and ReLU between them, as SimSiam and VICReg have them (reference, 3.3).

    A layer that batch norm follows has no bias. The last has one and no batch norm; with `last_norm`, batch norm without weights
    of its own. State keys ``layers.{i}.*``, as lightly's heads number them.
    """

    def __init__(self, width: int, *layers: int, last_norm: bool = False) -> None:
        super().__init__()
        made: list[nn.Module] = []
        for a, b in pairwise((width, *layers[:-1])):
            made += [nn.Linear(a, b, bias=False), GroupedBatchNorm1d(b), nn.ReLU(inplace=True)]
        made.append(nn.Linear((width, *layers)[-2], layers[-1], bias=not last_norm))
        if last_norm:
            made.append(GroupedBatchNorm1d(layers[-1], affine=False))
        self.layers = nn.Sequential(*made)

    def forward(self, x: Float[Tensor, "gb width"]) -> Float[Tensor, "gb out"]:
        """Project rows, ordered group by group (`ctfoundry.models.norm`); the result is not normalised."""
        return self.layers(x)


class ClassificationHead(nn.Module):
    """From one vector a scan to logits: Linear, ReLU, (Dropout,) Linear; one Linear where `hidden` is 0 (reference, 3.4).

    `hidden` -1 is half the vector's width, as published for head CT (512 -> 256 -> 1). State keys ``layers.{0,...}.{weight,bias}``.
    """

    def __init__(self, width: int, outputs: int, hidden: int = -1, dropout: float = 0.0) -> None:
        super().__init__()
        between = width // 2 if hidden < 0 else hidden
        made: list[nn.Module] = [nn.Linear(width, between), nn.ReLU()] if between else []
        if dropout:
            made.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*made, nn.Linear(between or width, outputs))

    def forward(self, x: Float[Tensor, "b width"]) -> Float[Tensor, "b outputs"]:
        """Logits of vectors."""
        return self.layers(x)
