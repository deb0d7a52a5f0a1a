"""The 3x3x3 convolution of our networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Conv3x3x3(nn.Conv3d):
    """`nn.Conv3d` with a 3x3x3 kernel and padding 1: gradients can be trusted in bf16, one small float32 input is not slow.

    In torch 2.13 the weight gradient of a bf16 convolution on the CPU (oneDNN, ``jit_bf16:avx512_core_bf16``) is wrong, or NaN from
    memory never written, for inputs of exactly two slices at stride 1: the fourth stage of a crop of 16 slices is there. With the
    padding of that axis made first, the result is the same and the gradient right.

    For a batch of one whose channels, slices and rows are few (their product at most 20,480) torch leaves oneDNN for a kernel that
    copies every neighbourhood first: two to six times slower, with 27 times the input's memory. Such a batch goes to oneDNN here.
    """

    def __init__(self, channels: int, out: int, stride: int = 1, *, bias: bool = False) -> None:
        super().__init__(channels, out, kernel_size=3, stride=stride, padding=1, bias=bias)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b o d2 h2 w2"]:
        """Convolve."""
        if _left_aside(x):
            given = [1, 1, 1], list(self.stride), [1, 1, 1], 1  # padding, stride, dilation, groups
            return torch.ops.aten.mkldnn_convolution(x, self.weight, self.bias, *given)
        if x.shape[2] == 2 and x.device.type == "cpu":
            return F.conv3d(F.pad(x, (0, 0, 0, 0, 1, 1)), self.weight, self.bias, self.stride, (0, 1, 1))
        return super().forward(x)


def _left_aside(x: Float[Tensor, "b c d h w"]) -> bool:
    """Whether torch would not give a float32 input to oneDNN though it could."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[:4].numel() <= 20480
        and x.shape[0] == 1
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )
