"""First weights, as a function of a key."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ctfoundry.keys import Key

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def initialise(network: Network, key: Key) -> Network:
    """Draw all weights of `network` anew, in place, and return it.

    The distributions are torch's own defaults, which MONAI leaves alone: convolutions and linear layers, weight and bias,
    uniform in ±1/sqrt(fan_in) (He et al. 2015 with a = sqrt(5)); batch and group norm 1 and 0, running statistics 0 and 1. Each layer has its
    own generator, seeded by ``key(name of the layer)``, so neither the global generator nor the order of layers matters.

    Raises TypeError for a layer with weights that it does not know.
    """
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):
            generator = torch.Generator().manual_seed(key(name).seed())
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in (module.weight, module.bias):
                if parameter is not None:
                    # drawn on the CPU in float32, so that a network is the same on every device and in every precision
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        elif isinstance(module, _BatchNorm | nn.GroupNorm):
            module.reset_parameters()
        elif next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"no rule to initialise {type(module).__name__} ({name or 'the network itself'})")
    return network
