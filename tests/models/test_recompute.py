from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.norm import GroupedBatchNorm3d, batch_norm_groups
from ctfoundry.models.recompute import recomputed
from ctfoundry.models.segresnet import SegResNetEncoder


def encoder(*, checkpoint: bool) -> SegResNetEncoder:
    made = initialise(SegResNetEncoder(filters=3, blocks=(1, 2, 2)), Key.of("recompute")).double()
    made.checkpoint = checkpoint
    return made


def data(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assert_same_step(ours: nn.Module, plain: nn.Module) -> None:
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10, msg=name)
    for (name, a), b in zip(ours.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("levels", [("stage2",), ("stage0", "stage1")])
def test_a_checkpointed_encoder_is_the_same_encoder(levels: tuple[str, ...]) -> None:
    """Maps, gradients of weights and input, running statistics counted once; in groups that are over when gradients are taken."""
    ours, plain = encoder(checkpoint=True), encoder(checkpoint=False)
    results = []
    for network in (ours, plain):
        x = data(6, 1, 6, 8, 7).requires_grad_()
        with batch_norm_groups(network, 3):
            maps, _ = network.features(x, levels)
        sum((m * m.detach().sin()).sum() for m in maps.values()).backward()
        results.append((*maps.values(), x.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)
    assert_same_step(ours, plain)
    assert int(ours.layers[0].blocks[0].norm1.num_batches_tracked) == 3
    norms = [module for module in ours.modules() if isinstance(module, GroupedBatchNorm3d)]
    assert {(norm.groups, norm.sync, norm.track_running_stats) for norm in norms} == {(1, True, True)}


def kept_bytes(network: SegResNetEncoder, x: torch.Tensor) -> int:
    """Of the memory that a forward pass leaves for the backward pass, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    storages: dict[int, tuple[int, torch.Tensor]] = {}  # kept alive, so that no address is given twice

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in weights:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(), t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        network.features(x, ("stage2",))
    return sum(size for size, _ in storages.values())


def test_a_checkpointed_encoder_keeps_half() -> None:
    """Counted by hand: the image, of each block its input and what its first convolution gave (of four maps), and what a strided
    convolution gets."""
    plain, ours = (kept_bytes(encoder(checkpoint=flag), data(2, 1, 8, 16, 16)) for flag in (False, True))
    image = 8 * 2 * 8 * 16 * 16
    first, second, third = (
        3 * image,
        6 * image // 8,
        12 * image // 64,
    )  # a map of each stage, which have 1, 2 and 2 blocks
    assert ours == image + first * (2 + 1) + second * (4 + 1) + third * 4
    assert plain >= image + first * (4 + 1) + second * (8 + 1) + third * 8


def test_nested_calls_count_once() -> None:
    """Chunks of a checkpointed encoder: both compute again, and running statistics still see every crop once."""
    ours, plain = encoder(checkpoint=True), encoder(checkpoint=False)
    x = data(4, 1, 6, 8, 7)

    def run(network: SegResNetEncoder, part: torch.Tensor) -> torch.Tensor:
        with batch_norm_groups(network, 1):
            return network.features(part, ("stage2",))[0]["stage2"]

    outs = [torch.cat([recomputed(ours, lambda p: run(ours, p), part) for part in x.split(2)])]
    outs.append(torch.cat([run(plain, part) for part in x.split(2)]))
    for out in outs:
        (out * out.detach().sin()).sum().backward()
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-10, atol=1e-10)
    assert_same_step(ours, plain)


def test_without_gradients_it_is_the_plain_call() -> None:
    network = encoder(checkpoint=True)
    other = copy.deepcopy(network)
    other.checkpoint = False
    x = data(2, 1, 6, 8, 7)
    with torch.no_grad():
        assert torch.equal(network(x)[-1], other(x)[-1])
    calls = []
    with torch.no_grad():
        recomputed(network, lambda t: calls.append(t.requires_grad), x)
    assert calls == [False]


def test_eval_mode_and_frozen_weights() -> None:
    network, other = encoder(checkpoint=True).eval(), encoder(checkpoint=False).eval()
    x = data(2, 1, 6, 8, 7).requires_grad_()
    for module in (network, other):
        module.requires_grad_(False)
    (ours,), (plain,) = (torch.autograd.grad(m(x)[-1].sin().sum(), x) for m in (network, other))
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
