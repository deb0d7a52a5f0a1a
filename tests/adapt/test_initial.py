"""What a fine-tuning run begins with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.test_finetune import SMALL, encoder, recipe
from ctfoundry import zoo
from ctfoundry.adapt import initial
from ctfoundry.adapt.initial import check_features, leave_unused, put_encoder, start
from ctfoundry.encoder import Encoder
from ctfoundry.errors import SettingsError, UsageError, WeightsError
from ctfoundry.infer.passes import Extent
from ctfoundry.segmenter import Segmenter
from ctfoundry.zoo.models import CARDS, build
from models.test_combined import ENCODERS
from models.test_combined import encoder as of_family

NAMES = ("background", "a", "b")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("name", ENCODERS)
def test_weights_arrive_in_every_family(name: str) -> None:
    given = of_family(name)
    begun = start(recipe(decoder="unet"), NAMES, given)
    network: Any = begun.network
    assert same(network.encoder.state_dict(), given.network.state_dict())
    assert begun.init["weights"] == given.card.weights


def test_nobody_trains_from_random_weights_unknowingly(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--init random"):
        start(recipe(), NAMES, None)
    with pytest.raises(UsageError, match="takes no weights"):
        start(recipe(), NAMES, "random", weights="x.safetensors")
    monkeypatch.setitem(CARDS, "ct-fm-tiny", replace(CARDS["ct-fm-tiny"], arguments=SMALL))
    with pytest.raises(WeightsError, match="no weights come with it"):
        start(recipe(), NAMES, "ct-fm-tiny")
    states = []
    for seed in (0, 0, 1):
        changed = replace(recipe(), train=replace(recipe().train, seed=seed))
        begun = start(changed, NAMES, "random")
        assert begun.init == {"model": "ct-fm-tiny", "weights": "random", "sha256": "", "kind": "encoder"}
        states.append(begun.network.state_dict())
    assert same(states[0], states[1])
    different = [k for k in states[0] if not torch.equal(states[0][k], states[2][k])]
    assert {k for k in states[0] if "conv" in k and k.endswith("weight")} <= set(different)


def test_weights_that_do_not_fit_are_an_error_that_lists_them() -> None:
    network: Any = start(recipe(), NAMES, encoder()).network
    other = Encoder.of(
        build(replace(CARDS["ct-fm-tiny"], arguments={**SMALL, "blocks": [1, 1, 1, 1, 2]})), CARDS["ct-fm-tiny"]
    )
    with pytest.raises(WeightsError, match=r"unexpected: layers\.4\.blocks\.1"):
        put_encoder(network, other.network, "other")
    wider = build(replace(CARDS["ct-fm-tiny"], arguments={**SMALL, "filters": 6}))
    with pytest.raises(WeightsError, match="of another shape"):
        put_encoder(network, wider, "wider")


def test_weights_that_silently_did_not_load_are_noticed() -> None:
    """As with the hub class that loads nothing and says nothing: keys and shapes fit, features do not."""
    network: Any = start(recipe(), NAMES, encoder(3)).network
    check_features(network, encoder(3).network, "given")
    with pytest.raises(WeightsError, match="features of level"):
        check_features(network, encoder(4).network, "another")
    # one running statistic is enough
    other = encoder(3)
    other.network.get_buffer("layers.4.blocks.0.norm2.running_mean").sub_(0.5)
    with pytest.raises(WeightsError, match="'stage4'"):
        check_features(network, other.network, "drifted")


def trained(names: tuple[str, ...], seed: int = 3) -> Segmenter:
    begun = start(recipe(), names, encoder(seed))
    return Segmenter.of(begun.network, replace(begun.card, weights="trained"))


def test_a_segmenter_goes_on_with_its_own_decoder(tmp_path: Path) -> None:
    given = trained(NAMES)
    zoo.save_model(given, tmp_path / "model.safetensors")
    begun = start(recipe(), NAMES, tmp_path)
    assert same(begun.network.state_dict(), given.network.state_dict())
    assert not begun.notes
    assert begun.init["kind"] == "segmenter"
    assert len(begun.init["sha256"]) == 64
    # other classes, of another number and of the same number: the last layers are new, which is said, all else is kept
    for names in (("background", "x", "y", "z"), ("background", "x", "y")):
        other = start(replace(recipe(), train=replace(recipe().train, seed=9)), names, given)
        state, old = other.network.state_dict(), given.network.state_dict()
        new = {k for k in state if state[k].shape != old[k].shape or not torch.equal(state[k], old[k])}
        assert new == {k for k in state if ".head." in k}
        assert "drawn anew" in " ".join(other.notes)
        assert other.card.names == names


def test_patches_and_preparations() -> None:
    with pytest.raises(SettingsError, match="no multiple of"):
        start(recipe(patch=(16, 32, 24)), NAMES, encoder())
    begun = start(recipe(preparation="ct-fm"), NAMES, encoder())
    assert begun.card.preparation.name == "ct-fm"
    assert "comes with preparation 'ct-fm-tiny'" in begun.notes[0]
    whole = start(recipe(extent=Extent("whole")), NAMES, encoder())
    assert whole.card.preparation.sizing.multiple == (16, 16, 16)


def test_what_has_no_part_is_left_alone() -> None:
    network: Any = start(recipe(decoder="unet"), NAMES, of_family("vit")).network
    unused = leave_unused(network)
    assert {"mask_token", "patch_embed_2D.proj.weight"} <= set(unused)
    assert not [name for name in unused if name.startswith(("blocks", "patch_embed_3D"))]
    network.train()
    sum(out.square().mean() for out in network(torch.rand(1, 1, 16, 16, 16))).backward()
    left = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not left
    assert leave_unused(start(recipe(), NAMES, encoder()).network) == []


def test_a_light_decoder_learns_the_scale_of_channels() -> None:
    from adapt.bodies import CLASSES, scans
    from ctfoundry.adapt.prepared import Cases

    begun = start(recipe(decoder="light"), ("background", *CLASSES.names), encoder())
    cases = Cases(scans(2), begun.card.preparation, CLASSES)
    initial.standardise(begun, cases, (16, 32, 32), 0)
    decoder: Any = begun.network.decoder
    assert (decoder.spread4 != 1).all()
    assert bool(decoder.centre4.abs().sum() > 0)
