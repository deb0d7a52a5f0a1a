from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ctfoundry.errors import ContractError
from ctfoundry.keys import Key
from ctfoundry.models.heads import ProjectionHead
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.segresnet import SegResNetEncoder
from models.cells import cell_centre, linearised

KEY = Key.of("test", 1)


def small(filters: int = 4, blocks: tuple[int, ...] = (1, 2, 2, 4, 4)) -> SegResNetEncoder:
    return initialise(SegResNetEncoder(filters=filters, blocks=blocks), KEY)


def worn(network: nn.Module) -> nn.Module:
    """Norms as after training: no parameter or running statistic is still 0 or 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.2, 0.2, generator=generator)
                module.running_mean.uniform_(-0.1, 0.1, generator=generator)
                module.running_var.uniform_(0.01, 0.2, generator=generator)
    return network


def test_published_size() -> None:
    network = SegResNetEncoder()
    state = network.state_dict()
    assert len(state) == 161
    assert sum(p.numel() for p in network.parameters()) == 77_760_992
    assert sum(b.numel() for b in network.buffers()) == 13_978
    # counts by level as the reference gives them (3.1), the downsampling convolution included
    by_level = [sum(p.numel() for p in stage.parameters()) for stage in network.layers]
    assert by_level == [110_720, 664_064, 2_655_232, 17_698_816, 56_631_296]
    assert state["layers.0.downsample.weight"].shape == (64, 32, 3, 3, 3)
    assert "layers.4.downsample.weight" not in state
    head = ProjectionHead()
    assert list(head.state_dict()) == ["layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"]
    assert sum(p.numel() for p in (*network.parameters(), *head.parameters())) == 77_925_216


@pytest.mark.monai
@pytest.mark.parametrize("train", [False, True])
def test_equals_monai(train: bool) -> None:
    from monai.networks.nets.segresnet_ds import SegResEncoder

    ours = worn(small())
    theirs = SegResEncoder(init_filters=4, blocks_down=(1, 2, 2, 4, 4))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    ours.train(train)
    theirs.train(train)
    # odd sizes: each stage has ceil(n / 2) cells
    x = torch.rand(3, 1, 20, 27, 33, generator=torch.Generator().manual_seed(0))
    a, b = ours(x), theirs(x)
    assert len(a) == 5
    for i, (mine, other) in enumerate(zip(a, b, strict=True)):
        assert mine.shape == (3, 4 * 2**i, *(math.ceil(n / 2**i) for n in (20, 27, 33)))
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    sum(m.square().mean() for m in a).backward()
    sum(m.square().mean() for m in b).backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.monai
def test_published_keys_and_shapes_are_monais() -> None:
    from monai.networks.nets.segresnet_ds import SegResEncoder

    with torch.device("meta"):
        theirs = SegResEncoder(init_filters=32, blocks_down=(1, 2, 2, 4, 4)).state_dict()
        ours = SegResNetEncoder().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_levels_and_features() -> None:
    network = small(filters=2, blocks=(1, 1, 1, 1, 1)).eval()
    assert [(v.name, v.channels, v.stride) for v in network.levels] == [
        (f"stage{i}", 2 * 2**i, (2**i,) * 3) for i in range(5)
    ]
    x = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    every = network(x)
    maps, vectors = network.features(x, ("stage4", "stage1"))
    assert list(maps) == ["stage1", "stage4"]
    torch.testing.assert_close(maps["stage1"], every[1])
    torch.testing.assert_close(vectors["mean"], every[4].mean((2, 3, 4)))
    ran = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    maps, vectors = network.features(x, ("stage1",))
    assert list(maps) == ["stage1"]
    assert vectors == {}
    assert ran[-1] == "layers.1.blocks.0.conv2"
    assert network.features(x, ()) == ({}, {})
    with pytest.raises(ContractError, match="stage4"):
        network.features(x, ("stage9",))
    with pytest.raises(ContractError, match=r"\(b, 1, d, h, w\)"):
        network.features(x[0], ("stage0",))


def test_initialisation_is_a_function_of_the_key() -> None:
    torch.manual_seed(0)
    first = small().state_dict()
    torch.manual_seed(1)
    again = small().state_dict()
    other = initialise(SegResNetEncoder(filters=4), Key.of("test", 2)).state_dict()
    for key, value in first.items():
        assert torch.equal(value, again[key]), key
        assert value.ndim < 5 or not torch.equal(value, other[key]), key


def test_initialisation_has_torch_defaults() -> None:
    """Each weight in the bounds of torch's own default, and with the deviation of that uniform distribution."""
    ours, torchs = small(8), SegResNetEncoder(filters=8)
    for (name, a), b in zip(ours.named_parameters(), torchs.parameters(), strict=True):
        if a.ndim < 5:
            assert torch.equal(a, b), name
        else:
            a, bound = a.detach(), 1 / math.sqrt(a[0].numel())
            assert float(a.abs().max()) <= bound
            assert abs(float(a.std()) / (bound / math.sqrt(3)) - 1) < 5 / math.sqrt(a.numel()), name
            assert abs(float(a.mean())) < 5 * bound / math.sqrt(3 * a.numel()), name
    # nn.init with the same generator gives the same bits
    weight = torch.empty(8, 1, 3, 3, 3)
    generator = torch.Generator().manual_seed(KEY("conv_init").seed())
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
    torch.testing.assert_close(ours.conv_init.weight, weight, rtol=1e-6, atol=0)
    head = initialise(ProjectionHead(16, 8, 4), KEY)
    assert 0 < float(head.layers[0].bias.detach().abs().max()) <= 1 / 4
    with pytest.raises(TypeError, match="Embedding"):
        initialise(nn.Sequential(nn.Embedding(2, 2)), KEY)


@pytest.mark.parametrize("stage", range(5))
@pytest.mark.parametrize("axis", range(3))
def test_where_a_cell_is_along_each_axis(stage: int, axis: int) -> None:
    """The published blocks; columns one voxel thick hold the receptive field of 469 voxels along the axis."""
    network = linearised(small(filters=1))
    level = network.levels[stage]
    length = 495
    shape, cell = [1, 1, 1], [0, 0, 0]
    shape[axis] = length
    for k in (-1, 0):
        # the centre cell and its neighbour: 240 and 224 at stride 16 see 6..474 and -10..458, so only the first is whole there
        cell[axis] = 247 // level.stride[axis] + (k if stage < 4 else 0)
        found = cell_centre(
            lambda x: network.features(x, (level.name,))[0],
            level,
            (cell[0], cell[1], cell[2]),
            (shape[0], shape[1], shape[2]),
        )
        assert found[axis] == pytest.approx(level.centre((cell[0], cell[1], cell[2]))[axis], abs=0.01)


@pytest.mark.parametrize("stage", range(4))
def test_where_a_cell_is_in_space(stage: int) -> None:
    """All axes at once, with channels: one block a stage, receptive fields 7, 17, 37 and 77."""
    network = linearised(small(filters=2, blocks=(1, 1, 1, 1, 1)))
    level = network.levels[stage]
    shape = (85, 87, 93)
    cell = tuple(n // 2 // level.stride[0] for n in shape)
    found = cell_centre(lambda x: network.features(x, (level.name,))[0], level, (cell[0], cell[1], cell[2]), shape)
    assert found == pytest.approx(level.centre((cell[0], cell[1], cell[2])), abs=0.01)


def test_runs_in_bf16_and_channels_last() -> None:
    network = worn(small(8)).eval()
    x = torch.rand(2, 1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = network.features(x, ("stage4",))[1]["mean"]
        last = network.to(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(last.features(x, ("stage4",))[1]["mean"], plain, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            low = last.features(x, ("stage4",))[1]["mean"]
    assert low.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(low.float(), plain).min() > 0.999
    network.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = network.features(x, ("stage4",))[1]["mean"].float().square().mean()
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
    assert network.conv_init.weight.grad.dtype == torch.float32


def test_peak_memory_grows_with_the_scan() -> None:
    network = small(8)
    assert network.peak_bytes((10, 20, 30)) * 8 == network.peak_bytes((20, 40, 60))
