"""Where is a cell? DESIGN's test, for every encoder of the zoo."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ctfoundry.models.levels import Level
from ctfoundry.models.vit import Block


class Pass(nn.Module):
    """A transformer block without its attention, which would tie every cell to all of the input."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return x


def linearised(network: nn.Module) -> nn.Module:
    """A float64 copy whose response is linear and positive.

    Activations and norms become identities, every convolution and linear weight one constant (an average), biases zero.
    What is left of a network is its geometry.
    """
    network = copy.deepcopy(network).double()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, Block):
                setattr(module, name, Pass())
            if isinstance(
                child, nn.MaxPool3d
            ):  # which of its voxels is largest is not geometry; on average it is their centre
                setattr(module, name, nn.AvgPool3d(child.kernel_size, child.stride, child.padding))
            if isinstance(child, nn.ReLU | nn.GELU | nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm):
                setattr(module, name, nn.Identity())
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network.eval()


def cell_centre(
    network_fn: Callable[[Tensor], Mapping[str, Tensor]],
    level: Level,
    cell: tuple[int, int, int],
    input_shape: tuple[int, int, int],
    channels: int = 1,
) -> tuple[float, float, float]:
    """The input voxel on which one cell is centred: the centroid of its gradient, in voxels.

    `network_fn` gives the maps (1, c, d, h, w) of a linearised network by level name. The cell's receptive field should
    lie within the input, or the border pulls the centroid inwards. An axis of length 1 is allowed and tells nothing.
    """
    x = torch.zeros(1, channels, *input_shape, dtype=torch.float64, requires_grad=True)
    network_fn(x)[level.name][0, :, *cell].sum().backward()
    assert x.grad is not None
    weight = x.grad[0].sum(0)
    assert float(weight.min()) >= 0
    assert float(weight.max()) > 0
    d, h, w = (
        float((weight.sum([a for a in range(3) if a != axis]) * torch.arange(n)).sum() / weight.sum())
        for axis, n in enumerate(input_shape)
    )
    return d, h, w
