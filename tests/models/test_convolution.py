from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctfoundry.models.convolution import Conv3x3x3


def gradients(conv: nn.Module, x: Tensor, *, low: bool) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        y = conv(x)
    return list(torch.autograd.grad(y.float().square().sum(), [x, *conv.parameters()]))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_gradients_in_bf16(depth: int, stride: int, last: bool) -> None:
    """Each slice of the kernel's gradient against float32; memory that the kernel may read is filled with NaN first."""
    torch.manual_seed(0)
    conv = Conv3x3x3(16, 32, stride)
    x = torch.randn(4, 16, depth, 8, 8)
    if last:
        x = x.to(memory_format=torch.channels_last_3d)
    for _ in range(3):
        junk = [torch.full((size,), torch.nan) for size in (2**10, 2**12, 2**14, 2**16, 2**18)]
        del junk
        for low, full in zip(gradients(conv, x, low=True), gradients(conv, x, low=False), strict=True):
            scale = full.norm()
            for k in range(full.shape[2]):
                assert float((low - full)[:, :, k].norm() / scale) < 0.01


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_equals_torch(depth: int, stride: int) -> None:
    ours = Conv3x3x3(3, 4, stride).double()
    theirs = nn.Conv3d(3, 4, 3, stride, 1, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, depth, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_keeps_channels_last() -> None:
    conv = Conv3x3x3(8, 8).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 8, 2, 4, 4).to(memory_format=torch.channels_last_3d)
    assert conv(x).is_contiguous(memory_format=torch.channels_last_3d)
