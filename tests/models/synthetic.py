"""The synthetic weight fill of ``flexict-golden.txt``: weights that anybody can make again from a name and a shape."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def noise(name: str, shape: Sequence[int]) -> np.ndarray:
    """Uniform numbers from -0.5 to 0.5, float64, by a hash of the place and the name."""
    mask = np.uint64(0xFFFFFFFF)
    x = np.arange(int(np.prod(shape)), dtype=np.uint64)
    x = (x * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))) & mask
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x85EBCA6B)) & mask
    x ^= x >> np.uint64(13)
    x = (x * np.uint64(0xC2B2AE35)) & mask
    x ^= x >> np.uint64(16)
    return (x.astype(np.float64) / 2**32 - 0.5).reshape(tuple(shape))


def filled(name: str, shape: Sequence[int]) -> Tensor:
    """The weights of one parameter."""
    u = noise(name, shape)
    if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
        u = 1 + 0.2 * u
    elif name.endswith(("ls1.gamma", "ls2.gamma")):
        u = 0.5 + 0.2 * u
    elif name == "patch_embed_2D.proj.weight":
        u = 0.5 * u
    elif name == "patch_embed_3D.proj.weight":
        u = 0.18 * u
    elif name.endswith("weight"):
        u = 0.12 * u
    else:
        u = 0.2 * u
    return torch.from_numpy(u.astype(np.float32))


def fill(network: nn.Module) -> None:
    """Fill all parameters in place; buffers (the rotary periods) stay as they are."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(filled(name, value.shape))
