"""Model files: strict, complete, and never random by accident."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import worlds
from ctfoundry import zoo
from ctfoundry.encoder import Encoder
from ctfoundry.errors import CTFoundryError, UsageError, WeightsError
from models.cells import cell_centre, linearised


def saved(folder: Path) -> Path:
    path = folder / "model.safetensors"
    zoo.save_model(worlds.tiny(), path)
    return path


def test_round_trip_bit_for_bit(tmp_path):
    encoder = worlds.tiny()
    again = zoo.load_model(saved(tmp_path))
    for name, value in encoder.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])
    assert again.card.sha256
    assert replace(again.card, sha256="") == encoder.card
    assert torch.equal(encoder(worlds.body()).vector, again(worlds.body()).vector)
    assert not again.network.training


def test_a_run_folder_is_a_model(tmp_path):
    saved(tmp_path)
    assert isinstance(zoo.load_encoder(tmp_path, device="cpu"), Encoder)


def test_missing_unexpected_and_misshaped_keys_are_listed(tmp_path):
    path = saved(tmp_path)
    state = load_file(path)
    state["extra.weight"] = torch.zeros(1)
    state["conv_init.weight"] = torch.zeros(3, 1, 3, 3, 3)
    del state["layers.0.blocks.0.conv1.weight"]
    save_file(state, path)
    with pytest.raises(WeightsError) as error:
        zoo.load_model(path)
    text = str(error.value)
    assert "1 missing: layers.0.blocks.0.conv1.weight" in text
    assert "1 unexpected: extra.weight" in text
    assert "conv_init.weight is (3, 1, 3, 3, 3), not (2, 1, 3, 3, 3)" in text


def test_weights_of_another_card_are_refused(tmp_path):
    path = saved(tmp_path)
    state = load_file(path)
    state["conv_init.weight"] += 1
    save_file(state, path)
    with pytest.raises(WeightsError, match="the card says"):
        zoo.load_model(path)


def test_nan_weights_are_named(tmp_path):
    path = saved(tmp_path)
    state = load_file(path)
    state["conv_init.weight"][0] = float("nan")
    save_file(state, path)
    with pytest.raises(WeightsError, match="1 not finite: conv_init"):
        zoo.load_model(path)


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_truncated_weights(tmp_path, keep):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="no whole safetensors file"):
        zoo.load_model(path)


def test_weights_without_a_card(tmp_path):
    path = saved(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match="no card beside it"):
        zoo.load_model(path)


def test_unknown_key_of_a_card_names_the_nearest(tmp_path):
    path = saved(tmp_path)
    card = json.loads(path.with_suffix(".json").read_text())
    card["licnce"] = card.pop("licence")
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(CTFoundryError, match="nearest known one is 'licence'"):
        zoo.load_model(path)


def test_random_weights_only_when_asked():
    with pytest.raises(WeightsError, match="no weights come with it"):
        zoo.load_encoder("ct-fm-tiny")
    first = zoo.load_encoder("ct-fm-tiny", weights="random", device="cpu", seed=3)
    again = zoo.load_encoder("ct-fm-tiny", weights="random", device="cpu", seed=3)
    other = zoo.load_encoder("ct-fm-tiny", weights="random", device="cpu", seed=4)
    assert first.card.weights == "random"
    assert torch.equal(first.network.conv_init.weight, again.network.conv_init.weight)
    assert not torch.equal(first.network.conv_init.weight, other.network.conv_init.weight)


def test_unknown_names_and_devices():
    with pytest.raises(UsageError, match="nearest known one is 'ct-fm-tiny'"):
        zoo.load_encoder("ct-fm-tinny")
    with pytest.raises(UsageError, match="no device"):
        zoo.load_encoder("ct-fm-tiny", weights="random", device="gpu7")


TEXT = [pytest.mark.xdist_group("text")]  # transformers is slow to import


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=TEXT if name == "flexict-vlm" else []) for name in zoo.CARDS]
)
def test_where_is_a_cell(name):
    """DESIGN: each level's stride and offset, by the gradient centroid of one cell in a linearised copy, to 0.01 voxel.

    One axis at a time: the linearised copy is separable, so an input of length 1 along the others loses nothing, and the real
    blocks with their receptive field of 469 voxels fit. The width, which no position depends on, is 1.
    """
    card = zoo.CARDS[name]
    width = {"filters": 1} if "filters" in card.arguments else {"size": [12, 2, 1]}
    if card.architecture == "flexict-vlm":
        text = {"model_type": "qwen3", "vocab_size": 2, "hidden_size": 8, "num_hidden_layers": 1}
        width = {"vision": {**card.arguments["vision"], **width}, "text": text, "width": 8}
    narrow = replace(card, arguments={**card.arguments, **width}, level="")
    encoder = Encoder.of(linearised(zoo.build(narrow)), narrow)
    for level in encoder.levels:

        def maps(x: torch.Tensor, name: str = level.name) -> dict[str, torch.Tensor]:
            return encoder.raw(x, [name])[0]

        for axis in range(3):
            if encoder.extent.mode == "slices" and axis == 0:
                continue  # one slice at a time: there is no other cell
            whole = card.architecture in ("flexible-vit", "flexict-vlm", "suprem-unet")  # takes whole patches or pools
            shape = tuple((544 + (not whole) if a == axis else level.stride[a] if whole else 1) for a in range(3))
            cell = tuple(272 // level.stride[axis] if a == axis else 0 for a in range(3))
            found = cell_centre(maps, level, cell, shape)
            assert found[axis] == pytest.approx(level.stride[axis] * cell[axis] + level.offset[axis], abs=0.01)


@pytest.mark.parametrize("name", ["cuda:99", "mps", "meta", "nonsense"])
def test_devices_that_are_not_there_are_named(name):
    from ctfoundry.zoo.models import device_of

    with pytest.raises(UsageError, match="device"):
        device_of(name)
