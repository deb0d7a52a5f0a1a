from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from ctfoundry.errors import ContractError
from ctfoundry.keys import Key
from ctfoundry.models.decoders import INPUT, LightDecoder, upsample
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.levels import Level
from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.models.segresnet_ds import SegResNetDS

KEY = Key.of("test", "decoders")


def values(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def worn(network: nn.Module) -> nn.Module:
    """Norms as after training: no parameter or running statistic is still 0 or 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                for values_, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.2, 0.2),
                    (module.running_mean, -0.1, 0.1),
                    (module.running_var, 0.01, 0.2),
                ):
                    assert values_ is not None
                    values_.uniform_(low, high, generator=generator)
    return network


LEVELS = (
    Level("stage4", 2, (16, 16, 16)),  # a SegResNet's: cells on 0, 16, 32
    Level("stage1", 2, (2, 2, 2)),
    Level("patch", 2, (8, 8, 8), (3.5, 3.5, 3.5)),  # a ViT's: cells on 3.5, 11.5
    Level("slices", 2, (1, 8, 8), (0.0, 3.5, 3.5)),
)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_a_cell_stays_where_it_lies(level: Level) -> None:
    """A map whose value is its cell's own position must, between centres, give each voxel its position."""
    cells = (3, 4, 5)
    ramps = [
        o + s * torch.arange(n, dtype=torch.float64) for n, s, o in zip(cells, level.stride, level.offset, strict=True)
    ]
    x = torch.stack(torch.meshgrid(*ramps, indexing="ij"))[None]
    shape = tuple((n - 1) * s + 1 for n, s in zip(cells, level.stride, strict=True))
    made = upsample(x, level, INPUT, (shape[0], shape[1], shape[2]))
    for axis in range(3):
        first, last = ramps[axis][0].item(), ramps[axis][-1].item()
        wanted = np.clip(np.arange(shape[axis]), first, last)
        other = tuple(a for a in range(3) if a != axis)
        assert np.allclose(made[0, axis].mean(other).numpy(), wanted, atol=1e-5)
        assert made[0, axis].std(other).max() < 1e-5


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_upsampling_is_scipys_linear_interpolation(level: Level) -> None:
    x = values((1, 2, 3, 4, 3)).double()
    shape = (17, 25, 21)
    made = upsample(x, level, INPUT, shape)[0]
    places = [(np.arange(n) - o) / s for n, s, o in zip(shape, level.stride, level.offset, strict=True)]
    grid = np.stack(np.meshgrid(*places, indexing="ij"))
    for channel in range(2):
        wanted = ndimage.map_coordinates(x[0, channel].numpy(), grid, order=1, mode="nearest")
        assert np.abs(made[channel].numpy() - wanted).max() < 1e-5


def test_between_levels_of_other_offsets() -> None:
    coarse, fine = Level("a", 1, (8, 8, 8), (3.5, 3.5, 3.5)), Level("b", 1, (2, 2, 2), (0.5, 0.5, 0.5))
    x = values((1, 1, 3, 3, 3)).double()
    made = upsample(x, coarse, fine, (12, 12, 12))[0, 0].numpy()
    places = (0.5 + 2 * np.arange(12) - 3.5) / 8
    grid = np.stack(np.meshgrid(places, places, places, indexing="ij"))
    assert np.abs(made - ndimage.map_coordinates(x[0, 0].numpy(), grid, order=1, mode="nearest")).max() < 1e-5


@pytest.mark.parametrize("linear", [False, True])
def test_decoder_of_five_levels_and_of_one(linear: bool) -> None:
    encoder = initialise(SegResNetEncoder(filters=2, blocks=(1, 1, 1, 1, 1)), KEY).eval()
    x = values((2, 1, 17, 20, 33))
    maps, _ = encoder.features(x, tuple(level.name for level in encoder.levels))
    decoder = initialise(LightDecoder(encoder.levels, 4, 6, linear=linear), KEY)
    out = decoder(maps, (17, 20, 33))
    assert out.shape == (2, 4, 17, 20, 33)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())
    vit = initialise(LightDecoder([LEVELS[2]], 4, 6, linear=linear), KEY)
    assert vit({"patch": values((1, 2, 2, 3, 4))}, (16, 24, 32)).shape == (1, 4, 16, 24, 32)
    with pytest.raises(ContractError, match="stage4"):
        decoder({k: v for k, v in maps.items() if k != "stage4"}, (17, 20, 33))


def test_standardised_features_hide_their_scale() -> None:
    levels = [Level("a", 3, (1, 1, 1)), Level("b", 2, (2, 2, 2))]
    maps = {"a": values((2, 3, 8, 8, 8)), "b": values((2, 2, 4, 4, 4), 1)}
    outputs = []
    for scale, shift in ((1.0, 0.0), (1e3, -40.0)):
        decoder = initialise(LightDecoder(levels, 3, 4), KEY).eval()
        seen = {name: scale * data + shift for name, data in maps.items()}
        moments: Any = {n: (d.mean((0, 2, 3, 4)), d.std((0, 2, 3, 4), correction=0)) for n, d in seen.items()}
        decoder.standardise(moments)
        outputs.append(decoder(seen, (8, 8, 8)))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
    # and what the fused projection computes is what standardising first would
    plain = initialise(LightDecoder(levels, 3, 4), KEY).eval()
    by_hand = {
        n: (d - d.mean((0, 2, 3, 4), keepdim=True)) / d.std((0, 2, 3, 4), correction=0, keepdim=True)
        for n, d in maps.items()
    }
    torch.testing.assert_close(outputs[0], plain(by_hand, (8, 8, 8)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (1.5, 1.5, 1.5)])
@pytest.mark.parametrize("linear", [False, True])
def test_labels_in_slabs_are_those_of_the_whole(linear: bool, offset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctfoundry.models import decoders

    levels = [Level("a", 3, (2, 2, 2)), Level("b", 3, (4, 4, 4), offset)]
    decoder = worn(initialise(LightDecoder(levels, 5, 4, linear=linear), KEY)).eval()
    assert isinstance(decoder, LightDecoder)
    maps = {"a": values((1, 3, 9, 6, 7)), "b": values((1, 3, 5, 3, 4), 1)}
    whole = decoder(maps, (18, 12, 14))[0].argmax(0)
    assert len(torch.unique(whole)) > 2
    assert (decoder.segment(maps, (18, 12, 14)) == whole).all()
    calls = []
    decoder.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(decoders, "SLAB_BYTES", 4 * (5 + decoder.width) * 12 * 14 * 9)
    assert (decoder.segment(maps, (18, 12, 14)) == whole).all()
    assert len(calls) == 5
    # and a crop gives what the whole scan gives there, but for its border voxel in the convolution
    logits = decoder(maps, (18, 12, 14))[0]
    cells = {v.name: decoders.crop_cells(maps[v.name], v, (4, 4, 8), (8, 8, 6)) for v in levels}
    part = decoder(cells, (8, 8, 6), crop=True)[0]
    inside = (slice(None), slice(5, 11), slice(5, 11), slice(9, 13))
    torch.testing.assert_close(part[:, 1:-1, 1:-1, 1:-1], logits[inside], rtol=1e-5, atol=1e-5)
    with pytest.raises(ContractError, match="eval mode"):
        decoder.train().segment(maps, (10, 12, 14))


def test_published_segmentation_network() -> None:
    with torch.device("meta"):
        network = SegResNetDS(118)
        sizes = {k: sum(p.numel() for p in SegResNetDS(k).parameters()) for k in (1, 2, 3, 21)}
    state = network.state_dict()
    assert len(state) == 221
    assert sum(p.numel() for p in network.parameters()) == 87_220_344
    assert sizes == {1: 87_163_716, 2: 87_164_200, 3: 87_164_684, 21: 87_173_396}
    assert state["up_layers.0.upsample.deconv.weight"].shape == (512, 256, 3, 3, 3)
    assert state["up_layers.3.head.weight"].shape == (118, 32, 1, 1, 1)


@pytest.mark.monai
@pytest.mark.xdist_group("monai")
@pytest.mark.parametrize("depth", [4, 1])
def test_equals_monais_segresnet_ds(depth: int) -> None:
    from monai.networks.nets.segresnet_ds import SegResNetDS as Theirs

    ours = worn(initialise(SegResNetDS(3, filters=4, depth=depth), KEY))
    theirs = Theirs(init_filters=4, blocks_down=(1, 2, 2, 4, 4), norm="batch", out_channels=3, dsdepth=depth)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = values((2, 1, 16, 32, 48))
    a, b = ours.eval()(x), theirs.eval()(x)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    mine, other = ours.train()(x), theirs.train()(x)
    if depth == 1:  # MONAI returns no list then
        other = [other]
    assert [tuple(m.shape[2:]) for m in mine] == [(16 // 2**i, 32 // 2**i, 48 // 2**i) for i in range(depth)]
    for m, o in zip(mine, other, strict=True):
        torch.testing.assert_close(m, o, rtol=1e-5, atol=1e-5)
    sum(m.square().mean() for m in mine).backward()
    sum(o.square().mean() for o in other).backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    with pytest.raises(ContractError, match="multiple of 16"):
        ours(values((1, 1, 16, 16, 20)))


@pytest.mark.monai
@pytest.mark.xdist_group("monai")
def test_published_segmentation_keys_are_monais() -> None:
    from monai.networks.nets.segresnet_ds import SegResNetDS as Theirs

    with torch.device("meta"):
        ours = SegResNetDS(118).state_dict()
        theirs = Theirs(
            init_filters=32, blocks_down=(1, 2, 2, 4, 4), norm="batch", out_channels=118, dsdepth=4
        ).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
