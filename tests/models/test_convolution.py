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


@pytest.mark.parametrize(("channels", "shape"), [(1, (9, 20, 31)), (16, (2, 7, 5)), (64, (4, 9, 6)), (64, (8, 50, 20))])
@pytest.mark.parametrize("stride", [1, 2])
def test_one_small_input_goes_to_onednn_and_equals_float64(channels: int, shape: tuple[int, ...], stride: int) -> None:
    """Values and gradients; torch's own choice for all but the last is `slow_conv3d`."""
    torch.manual_seed(0)
    conv = Conv3x3x3(channels, 8, stride, bias=True)
    x = torch.randn(1, channels, *shape)
    with torch.profiler.profile() as profile:
        found = conv(x)
    names = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in names
    assert "aten::slow_conv3d" not in names
    exact = nn.functional.conv3d(x.double(), conv.weight.double(), conv.bias.double(), stride, 1)  # type: ignore[union-attr]
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    gradients_here = gradients(conv, x, low=False)
    for here, there in zip(gradients_here, gradients(conv.double(), x.double(), low=False), strict=True):
        assert float((here - there).norm() / there.norm()) < 1e-5


def test_under_autocast_a_small_input_is_still_bf16() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Conv3x3x3(4, 4)(torch.randn(1, 4, 5, 6, 7)).dtype == torch.bfloat16


def test_keeps_channels_last() -> None:
    conv = Conv3x3x3(8, 8).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 8, 2, 4, 4).to(memory_format=torch.channels_last_3d)
    assert conv(x).is_contiguous(memory_format=torch.channels_last_3d)
