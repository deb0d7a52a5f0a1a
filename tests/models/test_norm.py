from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import processes
from ctfoundry.errors import ContractError
from ctfoundry.keys import Key
from ctfoundry.models import narrow
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.norm import GroupedBatchNorm1d, GroupedBatchNorm3d, batch_norm_groups
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


def test_one_dimensional_groups_equal_separate_passes() -> None:
    grouped, separate = (GroupedBatchNorm1d(5, affine=False).double() for _ in range(2))
    x = data(4 * GROUPS, 5)
    with batch_norm_groups(grouped, GROUPS):
        out = grouped(x)
    torch.testing.assert_close(out, torch.cat([separate(part) for part in x.chunk(GROUPS)]))
    torch.testing.assert_close(grouped.running_var, separate.running_var)


SYNCHRONISED = """
import sys
import torch
from ctfoundry import parallel
from ctfoundry.models.norm import GroupedBatchNorm1d, GroupedBatchNorm3d, batch_norm_groups
from models.test_norm import GROUPS, ranked_data, ranked_network

with parallel.joined("cpu", timeout=30):
    r, found = parallel.rank(), {}
    own, weight = (t[:, 2 * r : 2 * r + 2].flatten(0, 1) for t in ranked_data())
    for groups in (1, GROUPS):
        network, x = ranked_network(), own.clone().requires_grad_()
        with batch_norm_groups(network, groups):
            out = network(x)
        (out * weight).sum().backward()
        found[f"out{groups}"], found[f"dx{groups}"] = out.detach(), x.grad
        found.update({f"grad{groups}.{n}": p.grad for n, p in network.named_parameters()})
        found.update({f"buffer{groups}.{n}": b for n, b in network.named_buffers()})
    with batch_norm_groups(alone := ranked_network(), GROUPS, sync=False):
        found["alone"] = alone(own).detach()
    half = own.to(torch.bfloat16).to(memory_format=torch.channels_last_3d).requires_grad_()
    out = GroupedBatchNorm3d(3)(half)
    (out * out.detach().sin()).sum().backward()
    found["half"], found["dhalf"] = out.detach(), half.grad
    torch.save(found, f"{sys.argv[1]}/{r}")
"""


def ranked_data() -> tuple[torch.Tensor, torch.Tensor]:
    """Three groups of four samples with means far from 0, and the weights of a loss."""
    x = 2 * data(GROUPS, 4, 3, 2, 3, 2) + 5 + torch.arange(4.0).view(1, 4, 1, 1, 1, 1)
    return x, torch.cos(7 * data(GROUPS, 4, 6))


def ranked_network(three: type[nn.Module] = GroupedBatchNorm3d, one: type[nn.Module] = GroupedBatchNorm1d) -> nn.Module:
    layers = [three(3), nn.ReLU(inplace=True), nn.Conv3d(3, 4, 2), three(4, affine=False), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(8, 6), one(6, momentum=None))
    return initialise(network, Key.of("ranked")).double()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Outputs, gradients and running statistics in float64, against torch's own batch norm in one process."""
    processes.run(SYNCHRONISED, 2, tmp_path)
    ranks = [torch.load(tmp_path / str(r), weights_only=True) for r in range(2)]

    def merged(name: str) -> torch.Tensor:
        return torch.cat([found[name].unflatten(0, (GROUPS, 2)) for found in ranks], dim=1)

    for groups in (1, GROUPS):
        plain = ranked_network(nn.BatchNorm3d, nn.BatchNorm1d)
        x, weight = ranked_data()
        x.requires_grad_()
        out = torch.cat([plain(part.flatten(0, 1)).unflatten(0, (-1, 4)) for part in x.chunk(groups)])
        (out * weight).sum().backward()
        assert x.grad is not None
        exact = {"rtol": 1e-10, "atol": 1e-10}
        torch.testing.assert_close(merged(f"out{groups}"), out, **exact)
        torch.testing.assert_close(merged(f"dx{groups}"), x.grad, **exact)
        for name, p in plain.named_parameters():
            torch.testing.assert_close(sum(found[f"grad{groups}.{name}"] for found in ranks), p.grad, **exact)
        for name, b in plain.named_buffers():
            assert torch.equal(ranks[0][f"buffer{groups}.{name}"], ranks[1][f"buffer{groups}.{name}"])
            torch.testing.assert_close(ranks[0][f"buffer{groups}.{name}"], b, **exact)

    plain = ranked_network(nn.BatchNorm3d, nn.BatchNorm1d)
    for r, found in enumerate(ranks):  # without sync each process is by itself
        parts = [part.flatten(0, 1) for part in ranked_data()[0][:, 2 * r : 2 * r + 2].chunk(GROUPS)]
        torch.testing.assert_close(found["alone"], torch.cat([plain(part) for part in parts]))

    whole = ranked_data()[0].flatten(0, 1).float().requires_grad_()
    out = nn.BatchNorm3d(3)(whole)
    (out * out.detach().sin()).sum().backward()
    assert whole.grad is not None
    for name, value, atol in (("half", out, 0.02), ("dhalf", whole.grad, 0.02)):
        assert all(found[name].dtype == torch.bfloat16 for found in ranks)
        assert all(found[name].is_contiguous(memory_format=torch.channels_last_3d) for found in ranks)
        torch.testing.assert_close(merged(name).flatten(0, 1).float(), value, rtol=0.02, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 2, 8, 16])
def test_few_channels_on_a_cpu_are_torchs_batch_norm(channels: int, dtype: torch.dtype) -> None:
    """The way round for narrow layers against torch in float64, of the same inputs: far from zero, gradients with a mean."""
    generator = torch.Generator().manual_seed(channels)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    ours = GroupedBatchNorm3d(channels)
    with torch.no_grad():
        ours.weight.copy_(draw(channels))
        ours.bias.copy_(draw(channels))
    theirs = torch.nn.BatchNorm3d(channels).double()
    theirs.load_state_dict(ours.state_dict())
    x = (0.7 * draw(2, channels, 4, 8, 16) + 3 * draw(1, channels, 1, 1, 1)).to(dtype)
    dy = (draw(*x.shape) + 0.3).to(dtype)
    mine = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    exact = x.detach().double().requires_grad_()
    assert narrow.normalises(mine.detach())
    y, expected = ours(mine), theirs(exact)
    y.relu_()  # as a block does, in place
    expected = expected.relu()
    y.backward(dy)
    expected.backward(dy.double())
    near = 1e-5 if dtype == torch.float32 else 2**-7  # two roundings to eight bits
    for found, wanted, within in (
        (y, expected, near),
        (mine.grad, exact.grad, near),
        (ours.weight.grad, theirs.weight.grad, near),
        (ours.bias.grad, theirs.bias.grad, near),
        (ours.running_mean, theirs.running_mean, 1e-6),
        (ours.running_var, theirs.running_var, 1e-6),
    ):
        assert found is not None
        assert wanted is not None
        assert float((found.detach() - wanted.detach()).abs().max() / wanted.detach().abs().max()) < within
    assert y.dtype == dtype
    assert int(ours.num_batches_tracked) == 1


def test_what_is_not_narrow_goes_to_torch() -> None:
    like = torch.channels_last_3d
    assert narrow.normalises(torch.zeros(2, 8, 4, 4, 4).contiguous(memory_format=like))
    assert not narrow.normalises(torch.zeros(2, 8, 4, 4, 4))  # another layout
    assert not narrow.normalises(torch.zeros(2, 32, 4, 4, 4).contiguous(memory_format=like))
    assert not narrow.normalises(torch.zeros(2, 8, 4, 4, 4).double().contiguous(memory_format=like))
    assert not narrow.normalises(torch.zeros(1, 8, 3, 3, 3).contiguous(memory_format=like))  # no whole rows of 128
    assert not narrow.normalises(torch.zeros(2, 12, 4, 4, 4).contiguous(memory_format=like))
