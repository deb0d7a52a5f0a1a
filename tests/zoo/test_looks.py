"""Fresh weights are named, trained ones are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ctfoundry import zoo
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.models.suprem import SuPreMSegResNetEncoder, SuPreMUNet
from ctfoundry.models.vit import FlexibleViT
from ctfoundry.zoo.looks import distribution, looks
from zoo.sources import saved, state_of

KEY = Key.of("tests of looks")


def steps(network: nn.Module, count: int, rate: float = 1e-4, *shape: int) -> nn.Module:
    """A few real training steps towards an arbitrary target."""
    generator = torch.Generator().manual_seed(0)
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate)
    for _ in range(count):
        x = torch.rand(shape, generator=generator)
        maps, tokens = network.features(x, (network.levels[-1].name,))
        answer = next(iter(tokens.values())) if tokens else next(iter(maps.values())).mean((2, 3, 4))
        loss = (answer - 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


OURS = {
    "SegResNet": (lambda: SegResNetEncoder(filters=8), (2, 1, 16, 16, 16)),
    "U-Net": (lambda: SuPreMUNet(filters=4), (2, 1, 16, 16, 16)),
    "SuPreM SegResNet": (lambda: SuPreMSegResNetEncoder(filters=8), (1, 1, 16, 16, 16)),
    "FlexiCT": (lambda: FlexibleViT(size=[144, 2, 2]), (1, 1, 16, 16, 16)),
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("seed", range(3))
def test_our_fresh_networks_are_named(name, seed):
    network = OURS[name][0]()
    network.initialise(KEY(seed)) if isinstance(network, FlexibleViT) else initialise(network, KEY(seed))
    (look,) = looks(network.state_dict())
    assert look.part == ""
    assert "the whole network looks freshly initialised" in str(look)


@pytest.mark.parametrize("name", ["SegResNet", "U-Net", "SuPreM SegResNet"])
def test_torchs_own_draws_are_named(name):
    torch.manual_seed(4)
    assert [look.part for look in looks(OURS[name][0]().state_dict())] == [""]


@pytest.mark.parametrize("name", OURS)
def test_a_few_training_steps_are_seen(name):
    make, shape = OURS[name]
    network = make()
    network.initialise(KEY) if isinstance(network, FlexibleViT) else initialise(network, KEY)
    steps(network, 3, 1e-4, *shape)
    found = [look.part for look in looks(state_of(network))]
    # what the steps did not reach keeps its look, and is named: the U-Net's decoder, the patch embedding of slices
    assert "" not in found
    assert set(found) <= {"up_tr256", "up_tr128", "up_tr64", "out_tr", "patch_embed_2D"}
    assert ("patch_embed_2D" in found) is (name == "FlexiCT")


def test_statistics_alone_are_no_training():
    """A random network that saw data in train mode, without one step, is as random as before."""
    network = initialise(SegResNetEncoder(filters=8), KEY).train()
    with torch.no_grad():
        network(torch.rand(2, 1, 16, 16, 16))
    assert float(network.layers[0].blocks[0].norm1.running_mean.abs().max()) > 0
    assert [look.part for look in looks(network.state_dict())] == [""]


@pytest.mark.monai
def test_monais_fresh_networks_are_named():
    from monai.networks.nets import SegResNetDS, SwinUNETR, UNet
    from monai.networks.nets.segresnet_ds import SegResEncoder

    torch.manual_seed(0)
    for network in (
        SegResEncoder(init_filters=8, blocks_down=(1, 2, 2, 4, 4)),
        SegResNetDS(init_filters=8, blocks_down=(1, 2, 2, 4, 4), dsdepth=4, out_channels=2),
        UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=2,
            channels=(8, 16, 32),
            strides=(2, 2),
            norm="batch",
            act="relu",
        ),
        SwinUNETR(in_channels=1, out_channels=2, feature_size=12),
    ):
        found = looks(network.state_dict())
        assert [look.part for look in found] == [""], type(network).__name__


INITIALISERS = {
    "torch's default": lambda w: nn.init.kaiming_uniform_(w, a=5**0.5),
    "He's uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    "He's uniform of fan out": lambda w: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu"),
    "He's normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "He's normal of fan out": lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "Glorot's uniform": nn.init.xavier_uniform_,
    "Glorot's normal": nn.init.xavier_normal_,
    "a normal of deviation 0.02": lambda w: nn.init.trunc_normal_(w, std=0.02),
    "cut at two deviations": lambda w: nn.init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04),
}


@pytest.mark.parametrize("name", INITIALISERS)
@pytest.mark.parametrize("shape", [(16, 8, 3, 3, 3), (64, 48), (64, 3, 7, 7), (256, 64, 3, 3, 3)])
def test_torchs_initialisers_are_known_by_name(name, shape):
    torch.manual_seed(1)
    assert (distribution(INITIALISERS[name](torch.empty(shape))) or "").endswith(name)


@pytest.mark.parametrize("seed", range(20))
def test_other_weights_are_not_taken_for_fresh_ones(seed):
    """Twice the deviation, heavier tails, a shift: none is a first draw."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.empty(32, 16, 3, 3, 3).uniform_(-1, 1, generator=generator) * (16 * 27) ** -0.5
    assert distribution(w) is not None
    noise = torch.randn(w.shape, generator=generator)
    assert distribution(2 * w) is None
    assert distribution(w + 0.3 * w.std() * noise) is None
    assert distribution(w.std() * noise**3) is None
    assert distribution(w + 0.3 * w.std()) is None
    assert distribution(torch.zeros_like(w)) is None


def test_fresh_weights_are_converted_and_called_random(tmp_path):
    """They may be wanted (a baseline); they are never called trained."""
    network = initialise(SegResNetEncoder(filters=8), KEY)
    done = zoo.convert(saved(tmp_path / "a.pth", state_of(network)), tmp_path / "out", name="ct-fm-tiny")
    assert done.card.weights == "random"
    assert "the whole network looks freshly initialised" in done.looks[0]
    assert "random weights" in repr(zoo.load_encoder(done.path, device="cpu"))
    assert "freshly initialised" in zoo.verify_model(done.path)["looks"]
    again = zoo.convert(tmp_path / "a.pth", tmp_path / "out", name="ct-fm-tiny")
    assert again.skipped
    assert again.looks == done.looks
