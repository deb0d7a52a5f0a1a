"""SuPreM's networks: published names and sizes, a literal float64 U-Net, MONAI's SegResNet, and both norms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ctfoundry.errors import ContractError
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.suprem import STAGES, SuPreMEncoder, SuPreMSegResNetEncoder, SuPreMUNet
from zoo.sources import worn

KEY = Key.of("suprem")


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_published_size() -> None:
    with torch.device("meta"):
        whole, encoder, segresnet = SuPreMUNet(), SuPreMEncoder(), SuPreMSegResNetEncoder()
    assert len(whole.state_dict()) == 106
    assert sum(p.numel() for p in whole.parameters()) == 19_073_665
    assert len(encoder.state_dict()) == 56
    assert sum(p.numel() for p in encoder.parameters()) == 7_027_776
    shapes = {name: tuple(value.shape) for name, value in whole.state_dict().items()}
    # the published convolutions (reference, 3.5)
    assert [shapes[f"{s}.ops.{i}.conv1.weight"][:2] for s in STAGES for i in (0, 1)] == [
        (32, 1), (64, 32), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (512, 256)
    ]  # fmt: skip
    assert [shapes[f"up_tr{n}.ops.0.conv1.weight"][:2] for n in (256, 128, 64)] == [(256, 768), (128, 384), (64, 192)]
    assert [shapes[f"up_tr{n}.up_conv.weight"] for n in (256, 128, 64)] == [(c, c, 2, 2, 2) for c in (512, 256, 128)]
    assert shapes["out_tr.final_conv.weight"] == (1, 64, 1, 1, 1)
    assert [(v.name, v.channels, v.stride[0], v.offset[0]) for v in encoder.levels] == [
        ("down_tr64", 64, 1, 0.0), ("down_tr128", 128, 2, 0.5), ("down_tr256", 256, 4, 1.5), ("down_tr512", 512, 8, 3.5)
    ]  # fmt: skip
    assert segresnet.levels[-1].channels == 128
    assert segresnet.levels[-1].stride == (8, 8, 8)


def literal(state: dict[str, Tensor], x: Tensor, batch: bool) -> tuple[list[Tensor], Tensor]:
    """The U-Net written out from its description, float64, by functions alone."""
    state = {name: value.double() for name, value in state.items()}

    def unit(x: Tensor, at: str) -> Tensor:
        x = F.conv3d(x, state[at + "conv1.weight"], state[at + "conv1.bias"], padding=1)
        axes = (0, 2, 3, 4)
        mean, var = (
            (x.mean(axes), x.var(axes, unbiased=False))
            if batch
            else (state[at + "bn1.running_mean"], state[at + "bn1.running_var"])
        )
        scale = state[at + "bn1.weight"] / (var + 1e-5).sqrt()
        shift = state[at + "bn1.bias"] - mean * scale
        return (x * scale[:, None, None, None] + shift[:, None, None, None]).clamp_min(0)

    skips = []
    for i, name in enumerate(STAGES):
        if i:
            b, c, d, h, w = x.shape
            x = x.reshape(b, c, d // 2, 2, h // 2, 2, w // 2, 2).amax((3, 5, 7))
        x = unit(unit(x, f"{name}.ops.0."), f"{name}.ops.1.")
        skips.append(x)
    for name, skip in zip(("up_tr256", "up_tr128", "up_tr64"), skips[-2::-1], strict=True):
        kernel, bias = state[f"{name}.up_conv.weight"], state[f"{name}.up_conv.bias"]
        b, _, d, h, w = x.shape
        # stride 2 and kernel 2: every voxel becomes a block of its own
        x = torch.einsum("bcdhw,coxyz->bodxhywz", x, kernel).reshape(b, -1, 2 * d, 2 * h, 2 * w)
        x = torch.cat([x + bias[:, None, None, None], skip], 1)
        x = unit(unit(x, f"{name}.ops.0."), f"{name}.ops.1.")
    return skips, F.conv3d(x, state["out_tr.final_conv.weight"], state["out_tr.final_conv.bias"])


@pytest.mark.parametrize("norm", ["running", "batch"])
def test_equals_the_literal_network(norm: str) -> None:
    network = worn(initialise(SuPreMUNet(classes=2, filters=4, norm=norm), KEY))  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = noise(2, 1, 16, 8, 24)
    with torch.no_grad():
        skips, logits = literal(network.state_dict(), x.double(), norm == "batch")
        for mine, other in zip(network.encoder(x), skips, strict=True):
            torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(x).double(), logits, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_corrected_norm_does_not_look_at_the_batch() -> None:
    """And the published one does: the reason why the zoo's card has the other."""
    x = noise(3, 1, 16, 16, 16)
    x[1:] *= 5
    for norm, same in (("running", True), ("batch", False)):
        network = worn(initialise(SuPreMEncoder(filters=4, norm=norm), KEY))  # type: ignore[arg-type]
        with torch.no_grad():
            alone, among = network(x[:1])[-1], network(x)[-1][:1]
        assert torch.allclose(alone, among, atol=1e-5) is same


def test_training_moves_the_statistics_of_both() -> None:
    for norm in ("running", "batch"):
        network = initialise(SuPreMEncoder(filters=2, norm=norm), KEY).train()  # type: ignore[arg-type]
        network(noise(2, 1, 8, 8, 8))
        assert int(network.down_tr64.ops[0].bn1.num_batches_tracked) == 1


@pytest.mark.monai
def test_segresnet_equals_monai() -> None:
    from monai.networks.nets.segresnet import SegResNet

    theirs = worn(SegResNet(init_filters=8, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)))
    ours = SuPreMSegResNetEncoder(filters=8).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()}, strict=True)
    x = noise(2, 1, 16, 21, 24)
    with torch.no_grad():
        for mine, other in zip(ours(x), theirs.encode(x)[1], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_levels_and_wrong_input() -> None:
    for network in (SuPreMEncoder(filters=2), SuPreMSegResNetEncoder(filters=8)):
        network.eval()
        names = [level.name for level in network.levels]
        x = noise(1, 1, 16, 16, 16)
        with torch.no_grad():
            every = network(x)
            maps, tokens = network.features(x, (names[2], names[0]))
        assert tokens == {}
        assert set(maps) == {names[2], names[0]}
        assert torch.equal(maps[names[2]], every[2])
        assert network.features(x, ()) == ({}, {})
        with pytest.raises(ContractError, match="unknown level"):
            network.features(x, ("stage9",))
        with pytest.raises(ContractError, match=r"\(b, 1, d, h, w\)"):
            network.features(x[0], (names[0],))
        assert network.peak_bytes((16, 32, 32)) > 4 * 16 * 32 * 32 * network.levels[0].channels
    with pytest.raises(ContractError, match="no multiple of 8"):
        SuPreMUNet(filters=2)(noise(1, 1, 12, 8, 8))
    with pytest.raises(ContractError, match="no norm is called"):
        SuPreMEncoder(norm="instance")  # type: ignore[arg-type]
