from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ctfoundry.errors import ContractError
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.norm import GroupedBatchNorm3d, batch_norm_groups
from ctfoundry.models.segresnet import SegResNetEncoder

GROUPS = 3


def data(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_equals_separate_forward_passes() -> None:
    """Outputs, gradients, running statistics and counters of a whole network, in float64."""
    grouped = initialise(SegResNetEncoder(filters=2, blocks=(1, 2, 1)), Key.of("test")).double()
    separate = copy.deepcopy(grouped)
    x = data(4 * GROUPS, 1, 6, 8, 7)
    x += torch.arange(GROUPS).repeat_interleave(4)[:, None, None, None, None]
    with batch_norm_groups(grouped, GROUPS):
        out = grouped(x)[-1]
    expected = torch.cat([separate(part)[-1] for part in x.chunk(GROUPS)])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    weight = data(*out.shape)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(grouped.parameters(), separate.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)
    for (name, a), b in zip(grouped.named_buffers(), separate.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert not name.endswith("tracked") or int(a) == GROUPS


@pytest.mark.parametrize("train", [True, False])
def test_one_group_and_eval_are_plain_batch_norm(train: bool) -> None:
    ours, plain = GroupedBatchNorm3d(3).double().train(train), nn.BatchNorm3d(3).double().train(train)
    assert list(ours.state_dict()) == list(plain.state_dict())
    x = data(4, 3, 2, 2, 2)
    with batch_norm_groups(ours, 1 if train else 2):
        assert torch.equal(ours(x), plain(x))


def test_groups_end_with_the_block() -> None:
    network = nn.Sequential(GroupedBatchNorm3d(1), nn.Sequential(GroupedBatchNorm3d(1)))
    with pytest.raises(ContractError, match="batch of 3 does not split into 2"), batch_norm_groups(network, 2):
        network(data(3, 1, 2, 2, 2).float())
    assert [m.groups for m in network.modules() if isinstance(m, GroupedBatchNorm3d)] == [1, 1]
    with pytest.raises(ValueError, match="at least one"), batch_norm_groups(network, 0):
        pass


def test_keeps_channels_last() -> None:
    norm = GroupedBatchNorm3d(4)
    x = data(4, 4, 3, 3, 3).float().to(memory_format=torch.channels_last_3d)
    with batch_norm_groups(norm, 2):
        assert norm(x).is_contiguous(memory_format=torch.channels_last_3d)
