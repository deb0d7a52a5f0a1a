"""Networks with an answer for each voxel around encoders of every family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from ctfoundry.encoder import Encoder
from ctfoundry.errors import ContractError, SettingsError
from ctfoundry.infer.passes import Extent
from ctfoundry.keys import Key
from ctfoundry.models.combined import EncoderDecoder, spread
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.levels import Level
from ctfoundry.models.suprem import SuPreMUNet
from ctfoundry.models.unet import UNetDecoder, steps
from ctfoundry.zoo import models
from ctfoundry.zoo.segmenters import with_decoder
from models.test_decoders import values, worn

KEY = Key.of("test", "combined")
TINY = {"patch": 8, "size": [144, 3, 2], "rotary": "float32"}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "segresnet": ("ct-fm-tiny", {"in_channels": 1, "filters": 4, "blocks": [1, 1, 1, 1, 1]}),
    "suprem": ("suprem-unet", {"in_channels": 1, "filters": 4, "norm": "running"}),
    "suprem-segresnet": ("suprem-segresnet", {"in_channels": 1, "filters": 8, "blocks": [1, 1, 1, 1]}),
    "vit": ("flexict-3d", {"axes": 3, **TINY}),
    "slices": ("flexict-2d", {"axes": 2, **TINY}),
}
NAMES = ("background", "a", "b")
WINDOWS = Extent("windows", (16, 32, 32), 0.25)
X = values((2, 1, 16, 32, 16))


def encoder(name: str) -> Encoder:
    card = replace(models.CARDS[ENCODERS[name][0]], arguments=ENCODERS[name][1])
    return Encoder.of(models.build(card), card)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("decoder", ["own", "unet", "light"])
def test_every_encoder_segments(name: str, decoder: Any) -> None:
    given = encoder(name)
    card = with_decoder(given, NAMES, extent=WINDOWS, decoder=decoder, depth=3)
    network: Any = worn(models.build(card))
    assert network.classes == 3
    # what the encoder is inside is what it is outside
    assert {k: v.shape for k, v in network.encoder.state_dict().items()} == {
        k: v.shape for k, v in given.network.state_dict().items()
    }
    network.train()
    found = network(X)
    outputs = found if isinstance(found, list) else [found]
    shapes = [(2, 3, 16 // 2**i, 32 // 2**i, 16 // 2**i) for i in range(len(outputs))]
    assert [tuple(out.shape) for out in outputs] == shapes
    assert len(outputs) == (1 if decoder == "light" or card.architecture == "suprem-unet-full" else 3)
    sum(out.square().mean() for out in outputs).backward()
    decoders = [p for n, p in network.named_parameters() if n.startswith(("decoder", "up", "out"))]
    assert decoders
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in decoders)
    first = next(p for n, p in network.encoder.named_parameters() if n.endswith("weight") and p.grad is not None)
    assert bool(first.grad.abs().sum() > 0)
    network.eval()
    with torch.no_grad():
        logits = network(X)
        assert logits.shape == (2, 3, 16, 32, 16)
        assert torch.isfinite(logits).all()
        if network.head is not None:
            torch.testing.assert_close(network.head(network.trunk(X)), logits)
        with pytest.raises(ContractError, match="multiple"):
            network(X[..., :15])
    # an empty network of the card takes the weights, whatever is nested in it
    empty = models.empty(card)
    empty.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(empty.eval()(X), logits)
    assert {k: v.shape for k, v in models.empty(card, device="meta").state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }


def test_the_published_decoder_comes_with_its_family() -> None:
    made = {name: with_decoder(encoder(name), NAMES, extent=WINDOWS).architecture for name in ENCODERS}
    assert made == {
        "segresnet": "segresnet-ds",
        "suprem": "suprem-unet-full",
        "suprem-segresnet": "encoder-decoder",
        "vit": "encoder-decoder",
        "slices": "encoder-decoder",
    }


def test_published_sizes() -> None:
    with torch.device("meta"):
        unet = SuPreMUNet(classes=1)
        sizes = {k: sum(p.numel() for p in SuPreMUNet(classes=k).parameters()) for k in (1, 21)}
    assert len(unet.state_dict()) == 106
    assert len(unet.encoder.state_dict()) == 56
    assert sizes == {1: 19_073_665, 21: 19_073_665 + 20 * 65}
    assert sum(p.numel() for p in unet.encoder.parameters()) == 7_027_776
    card = with_decoder(zoo_encoder("ct-fm"), ["background", *map(str, range(117))], extent=Extent("whole"))
    network = models.empty(card, device="meta")
    assert len(network.state_dict()) == 221
    assert sum(p.numel() for p in network.parameters()) == 87_220_344


def zoo_encoder(name: str) -> Encoder:
    card = models.CARDS[name]
    network: Any = models.empty(card, device="meta")
    return Encoder(network, card.preparation, card.extent, tuple(network.levels), (), card)


def test_suprems_encoder_is_a_view() -> None:
    network = initialise(SuPreMUNet(classes=2, filters=2), KEY)
    other = initialise(SuPreMUNet(classes=2, filters=2), KEY("other")).encoder
    network.encoder.load_state_dict(other.state_dict())
    for name, value in other.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)
    assert not hasattr(network.encoder, "up_tr64")
    assert not isinstance(network.encoder, SuPreMUNet)


@pytest.mark.parametrize(
    "bottom",
    [
        Level("patch", 3, (8, 8, 8), (3.5, 3.5, 3.5)),
        Level("slices", 3, (1, 8, 8), (0.0, 3.5, 3.5)),
        Level("pooled", 3, (4, 4, 4), (1.5, 1.5, 1.5)),
        Level("odd", 3, (6, 6, 6), (2.5, 2.5, 2.5)),
    ],
    ids=lambda level: level.name,
)
def test_nothing_is_shifted_on_the_way_up(bottom: Level) -> None:
    """With blocks, stem and skips silent, logits of every stride are the deepest map's own linear interpolation (SciPy's)."""
    decoder = initialise(UNetDecoder([bottom], 3, 1, 3, 3), KEY).eval()
    with torch.no_grad():
        for step in decoder.steps:
            step.block.conv2.weight.zero_()
            step.up[0].weight.copy_(
                torch.eye(len(step.up[0].weight), step.up[0].weight.shape[1])[..., None, None, None]
            )
            if step.stem is not None:
                step.stem[-1].weight.zero_()
            if step.skip is not None:
                step.skip[-1].weight.zero_()
        for head in decoder.heads:
            head.weight.copy_(torch.eye(3, head.weight.shape[1])[..., None, None, None])
            head.bias.zero_()
    shape = (24, 48, 24)
    cells = tuple(n // s for n, s in zip(shape, bottom.stride, strict=True))
    # smooth, so that interpolating step by step is interpolating at once; channel a is the position along axis a
    ramps = [o + s * torch.arange(n) for n, s, o in zip(cells, bottom.stride, bottom.offset, strict=True)]
    ramp = torch.stack(torch.meshgrid(*ramps, indexing="ij"))[None].float()
    scale = (1 + 1e-5) ** 0.5  # of a norm with variance 1
    outputs = decoder.outputs(torch.zeros(1, 1, *shape), {bottom.name: ramp})
    for i, out in enumerate(outputs):
        grid = np.meshgrid(*(np.arange(0, n, 2**i) for n in shape), indexing="ij")
        for axis in range(3):
            places = [(g - o) / s for g, o, s in zip(grid, bottom.offset, bottom.stride, strict=True)]
            wanted = ndimage.map_coordinates(ramp[0, axis].double().numpy(), places, order=1, mode="nearest")
            seen = out[0, axis].detach().numpy() * scale ** (len(decoder.steps) - i)
            inside = np.logical_and.reduce([(p >= 0) & (p <= n - 1) for p, n in zip(places, cells, strict=True)])
            assert inside.sum() > 100
            # the outermost cells are repeated at every step, so only what lies between centres of the deepest is compared
            inner = ndimage.binary_erosion(inside, iterations=4 // 2**i, border_value=0)
            np.testing.assert_allclose(seen[inner], wanted[inner], rtol=1e-4, atol=1e-3)


def test_plans() -> None:
    vit = [Level(f"block{i}", 8, (8, 8, 8), (3.5,) * 3) for i in range(16)]
    assert [(g.stride[0], s and s.name) for g, s in steps(vit, 4)] == [(1, None), (2, "block4"), (4, "block10")]
    assert [level.name for level in spread(vit)] == ["block3", "block7", "block11", "block15"]
    pyramid = [Level(f"s{i}", 8, (2**i,) * 3) for i in range(5)]
    assert [s and s.name for _, s in steps(pyramid, 4)] == ["s0", "s1", "s2", "s3"]
    assert spread(pyramid) == tuple(pyramid)
    late = pyramid[2:]  # a family that begins at stride 4
    assert [s and s.name for _, s in steps(late, 4)] == [None, None, "s2", "s3"]


def test_windows_and_preparations_that_do_not_fit() -> None:
    with pytest.raises(SettingsError, match="no multiple of"):
        with_decoder(encoder("segresnet"), NAMES, extent=Extent("windows", (24, 32, 32)))
    whole = with_decoder(encoder("vit"), NAMES, extent=Extent("whole"))
    assert whole.preparation.sizing.multiple == (8, 8, 8)
    head = models.CARDS["ct-fm"].preparation
    stacked = replace(head, intensity=replace(head.intensity, windows=((0.0, 1.0), (0.0, 2.0)), stack="channel"))
    with pytest.raises(SettingsError, match="2 channels"):
        with_decoder(encoder("segresnet"), NAMES, extent=WINDOWS, preparation=stacked)


def test_registered_encoders_are_taken_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(torch.nn.Module):
        in_channels = 1
        levels = (Level("only", 6, (2, 2, 2), (0.5, 0.5, 0.5)),)
        tokens = ()

        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv3d(1, 6, 2, stride=2)

        def features(self, x: torch.Tensor, levels: tuple[str, ...]) -> Any:
            return {"only": self.conv(x)}, {}

        def peak_bytes(self, shape: Any) -> int:
            return 0

    monkeypatch.setitem(models.ARCHITECTURES, "mine", lambda arguments, key: initialise(Mine(), key))
    card = replace(models.CARDS["ct-fm-tiny"], name="mine", architecture="mine", arguments={}, level="only")
    made = with_decoder(Encoder.of(models.build(card), card), NAMES, extent=WINDOWS)
    network = models.build(made).eval()
    assert isinstance(network, EncoderDecoder)
    again = models.empty(made).eval()
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(X), network(X))
