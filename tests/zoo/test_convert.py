"""Public checkpoints in: every source, strictly, and the same outputs on the other side."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ctfoundry import zoo
from ctfoundry.errors import CTFoundryError, SettingsError, UsageError, WeightsError
from ctfoundry.keys import Key
from ctfoundry.models.heads import ProjectionHead
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.models.suprem import SuPreMEncoder, SuPreMSegResNetEncoder, SuPreMUNet
from ctfoundry.models.vit import FlexibleViT
from ctfoundry.zoo import sources as reading
from zoo.sources import behind, hub_folder, saved, state_of, worn

KEY = Key.of("tests of the zoo")
TINY = {"spatial_dims": 3, "in_channels": 1, "init_filters": 8, "blocks_down": [1, 2, 2, 4, 4]}


@pytest.fixture(scope="module")
def tiny() -> SegResNetEncoder:
    """ct-fm-tiny's network, worn."""
    return worn(initialise(SegResNetEncoder(filters=8), KEY))


@pytest.fixture(scope="module")
def decoder() -> dict[str, torch.Tensor]:
    """Keys of a SegResNetDS decoder with two classes (reference, 3.2); the numbers do not matter."""
    return {
        "up_layers.0.upsample.deconv.weight": torch.rand(128, 64, 3, 3, 3),
        "up_layers.3.head.weight": torch.rand(2, 8, 1, 1, 1),
        "up_layers.3.head.bias": torch.rand(2),
    }


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def same_outputs(network: nn.Module, encoder: zoo.models.Encoder, x: torch.Tensor, level: str) -> None:
    """The converted encoder gives the very bits of the network that its weights were taken from, in one memory layout."""
    network = copy.deepcopy(network)
    for value in network.parameters():
        if value.ndim == 5:  # as `Encoder.of` lays them out; sums in another order differ in the last bit
            value.data = value.data.contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        theirs = network.features(x, (level,))[0][level]
        ours = encoder.raw(x, [level])[0][level]
    assert torch.equal(ours, theirs)
    assert float(theirs.std()) > 1e-4


LAYOUTS = {
    "encoder alone": lambda e, d: e,
    "SegResNetDS": lambda e, d: {**behind("encoder.", e), **d},
    "lightning": lambda e, d: {
        "epoch": 449,
        "global_step": 225000,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**behind("model.backbone.", e), **behind("model.projection_head.", state_of(worn(ProjectionHead(128))))},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}],
    },
    "lightning, compiled": lambda e, d: {
        "state_dict": {
            **behind("model._orig_mod.backbone.", e),
            **behind("model._orig_mod.projection_head.", state_of(worn(ProjectionHead(128)))),
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ct_fm_checkpoints(tmp_path, tiny, decoder, layout):
    source = saved(tmp_path / "a.ckpt", LAYOUTS[layout](state_of(tiny), decoder))
    done = zoo.convert(source, tmp_path / "out", name="ct-fm-tiny")
    encoder = zoo.load_encoder(tmp_path / "out", device="cpu")
    same_outputs(tiny, encoder, noise(1, 1, 9, 20, 17), "stage4")
    assert encoder.card.weights == "trained"
    assert done.looks == ()
    assert (
        dict(done.dropped)
        == {
            "encoder alone": {},
            "SegResNetDS": {"up_layers (decoder)": 3},
            "lightning": {"model.projection_head (projection head)": 4},
            "lightning, compiled": {"model._orig_mod.projection_head (projection head)": 4},
        }[layout]
    )


def test_hub_folder_and_its_card(tmp_path, tiny):
    folder = hub_folder(tmp_path / "hub", state_of(tiny), **TINY)
    done = zoo.convert(folder, tmp_path / "out", name="ct-fm-tiny", preparation="ct-fm-native")
    assert done.path == tmp_path / "out" / "ct-fm-tiny.safetensors"
    card = json.loads(done.path.with_suffix(".json").read_text())
    for name in ("model.safetensors", "config.json"):
        assert card["source"]["files"][name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert card["sha256"] == hashlib.sha256(done.path.read_bytes()).hexdigest()
    assert card["preparation"]["resampling"]["spacing"] == [None, None, None]
    assert card["preparation"]["name"] == "ct-fm-native"
    assert any("trained on 3x1x1 mm" in note for note in card["notes"])
    assert card["licence"].startswith("Apache-2.0")
    assert card["not_tested_on"]
    assert len(card["golden"]["values"]) == 16
    assert str(tmp_path) not in done.path.with_suffix(".json").read_text()
    same_outputs(tiny, zoo.load_encoder(done.path, device="cpu"), noise(1, 1, 9, 20, 17), "stage4")
    # by the keys alone
    assert zoo.convert(folder, tmp_path / "again").card.name == "ct-fm-tiny"


@pytest.mark.monai
def test_equals_monais_networks(tmp_path):
    """The hub's classes are MONAI's: the same weights give the same maps there."""
    from monai.networks.nets.segresnet_ds import SegResEncoder, SegResNetDS

    blocks = (1, 2, 2, 4, 4)
    torch.manual_seed(0)
    theirs = worn(SegResEncoder(init_filters=8, blocks_down=blocks))
    encoder = zoo.load_encoder(
        zoo.convert(hub_folder(tmp_path / "a", state_of(theirs), **TINY), tmp_path / "out").path, device="cpu"
    )
    x = noise(1, 1, 16, 24, 16)
    with torch.no_grad():
        for i, other in enumerate(theirs(x)):
            mine = encoder.raw(x, [f"stage{i}"])[0][f"stage{i}"]
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    whole = worn(SegResNetDS(init_filters=8, blocks_down=blocks, dsdepth=4, out_channels=2))
    config = {**TINY, "out_channels": 2, "dsdepth": 4}
    done = zoo.convert(hub_folder(tmp_path / "b", state_of(whole), **config), tmp_path / "outb", name="ct-fm-tiny")
    assert sum(done.dropped.values()) == 221 - 161
    encoder = zoo.load_encoder(done.path, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(encoder.raw(x, ["stage4"])[0]["stage4"], whole.encoder(x)[4], rtol=1e-5, atol=1e-5)


@pytest.mark.monai
def test_random_decoder_beside_a_trained_encoder_is_said(tmp_path):
    from monai.networks.nets.segresnet_ds import SegResNetDS

    torch.manual_seed(0)
    whole = SegResNetDS(init_filters=8, blocks_down=(1, 2, 2, 4, 4), dsdepth=4, out_channels=2)
    worn(whole.encoder)
    done = zoo.convert(saved(tmp_path / "a.pth", state_of(whole)), tmp_path / "out", name="ct-fm-tiny")
    assert done.card.weights == "trained"
    (word,) = done.looks
    assert word.startswith("up_layers looks freshly initialised")
    assert word in done.card.notes


def test_the_whole_body_model_is_not_the_feature_extractor(tmp_path, tiny, monkeypatch):
    """Their encoders have the same keys and shapes; 118 classes tell."""
    for name in ("ct-fm", "ct-fm-whole-body"):
        monkeypatch.setitem(zoo.CARDS, name, replace(zoo.CARDS[name], arguments=zoo.CARDS["ct-fm-tiny"].arguments))
    heads = {"up_layers.3.head.weight": torch.rand(118, 8, 1, 1, 1)}
    source = saved(tmp_path / "seg.pth", {**behind("encoder.", state_of(tiny)), **heads})
    with pytest.raises(WeightsError, match=r"whole-body segmentation model .118 classes.*\n.*--as ct-fm-whole-body"):
        zoo.convert(source, tmp_path / "out", name="ct-fm")
    done = zoo.convert(source, tmp_path / "out")
    assert done.card.name == "ct-fm-whole-body"
    assert done.card.preparation.resampling.spacing == (1.5, 1.5, 1.5)
    same_outputs(tiny, zoo.load_encoder(done.path, device="cpu"), noise(1, 1, 4, 8, 8), "stage4")
    extractor = saved(tmp_path / "fe.pth", state_of(tiny))
    with pytest.raises(WeightsError, match=r"it has no decoder, not 118 classes.*\n.*--as ct-fm"):
        zoo.convert(extractor, tmp_path / "other", name="ct-fm-whole-body")
    assert zoo.convert(extractor, tmp_path / "other").card.name == "ct-fm"


def vit(**arguments) -> FlexibleViT:
    network = FlexibleViT(size=[144, 2, 2], rotary="bfloat16", **arguments).initialise(KEY)
    return worn(network)


@pytest.fixture
def small_flexict(monkeypatch):
    """FlexiCT's names with a network of 144 x 2 x 2, so that files stay small; keys and wrappers are the published ones."""
    for name in ("flexict-2d", "flexict-3d", "flexict-vlm-vision"):
        card = zoo.CARDS[name]
        small = replace(card, arguments={**card.arguments, "size": [144, 2, 2]}, level="block1")
        monkeypatch.setitem(zoo.CARDS, name, small)


@pytest.mark.usefixtures("small_flexict")
@pytest.mark.parametrize("name", ["flexict-2d", "flexict-3d"])
def test_flexict_teachers(tmp_path, name):
    network = vit(axes=2 if name == "flexict-2d" else 3)
    heads = {"dino_head.mlp.0.weight": torch.rand(4, 4), "ibot_head.mlp.0.weight": torch.rand(4, 4)}
    content = {"teacher": {**behind("backbone.", state_of(network)), **heads}, "iteration": 5}
    source = saved(tmp_path / f"ct_{name[-2:]}_teacher.pth", content)
    done = zoo.convert(source, tmp_path / "out")  # the file's name says which
    assert done.card.name == name
    assert dict(done.dropped) == {"dino_head (DINO head)": 1, "ibot_head (iBOT head)": 1}
    assert done.card.source["other_entries"] == ["iteration"]
    encoder = zoo.load_encoder(done.path, device="cpu")
    x = noise(1, 1, 1, 16, 24) if name == "flexict-2d" else noise(1, 1, 16, 8, 16)
    same_outputs(network, encoder, x, "block1")
    assert encoder.network.rope_embed_2D.periods.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(encoder.raw(x, [])[1]["cls"], network.features(x, ())[1]["cls"])
    with pytest.raises(WeightsError, match="the same keys"):
        zoo.convert(saved(tmp_path / "t.pth", content), tmp_path / "other")


@pytest.mark.usefixtures("small_flexict")
def test_flexict_vlm(tmp_path):
    network = vit(axes=3)
    text = {"text_model.backbone.layers.0.mlp.up_proj.weight": torch.rand(4, 4).bfloat16()}
    rest = {"logit_scale": torch.zeros(1), "vlm_vision_projection.weight": torch.rand(8, 288)}
    content = {"model": {**behind("vision_model.", state_of(network)), **text, **rest}}
    done = zoo.convert(saved(tmp_path / "ct_3d_vlm.pth", content), tmp_path / "out", name="flexict-vlm-vision")
    assert set(done.dropped.values()) == {1}
    assert len(done.dropped) == 3
    encoder = zoo.load_encoder(done.path, device="cpu")
    same_outputs(network, encoder, noise(1, 1, 16, 8, 16), "block1")
    raw = reading.read(tmp_path / "ct_3d_vlm.pth")
    assert set(reading.find(raw).beside) == {*text, *rest}


QWEN = {
    "model_type": "qwen3", "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


@pytest.mark.xdist_group("text")
def test_the_whole_report_stage_with_its_text_tower(tmp_path, monkeypatch):
    """Every tensor of the file is in the model, and texts mean the same: the tables of positions too, which no file holds."""
    from ctfoundry.models.vlm import ImageText

    vision = {"axes": 3, "patch": 8, "size": [144, 2, 2], "rotary": "bfloat16"}
    card = zoo.CARDS["flexict-vlm"]
    arguments = {"vision": vision, "text": QWEN, "width": 24}
    monkeypatch.setitem(zoo.CARDS, "flexict-vlm", replace(card, arguments=arguments, level="block1"))
    network = ImageText(**arguments).initialise(KEY).eval()
    worn(network)
    state = {k: v.bfloat16() if k.startswith("text_model") else v for k, v in state_of(network).items()}
    done = zoo.convert(saved(tmp_path / "ct_vlm.pth", {"model": state, "iteration": 5}), tmp_path / "out")
    assert (done.card.name, done.dropped) == ("flexict-vlm", {})
    assert done.types == {
        "bfloat16 -> float32": sum(v.dtype == torch.bfloat16 and "rope" not in k for k, v in state.items())
    }
    encoder = zoo.load_encoder(done.path, device="cpu")
    network.load_state_dict({k: v.to(network.state_dict()[k].dtype) for k, v in state.items()})
    x = noise(1, 1, 16, 8, 16)
    ids, mask = torch.arange(14).view(2, 7), torch.ones(2, 7, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(encoder.raw(x, [])[1]["image"], network.features(x, ())[1]["image"])
        assert torch.equal(encoder.network.text(ids, mask), network.text(ids, mask))
    gone = {k: v for k, v in state.items() if k != "logit_scale"}
    with pytest.raises(WeightsError, match="1 missing: logit_scale"):
        zoo.convert(saved(tmp_path / "b.pth", {"model": gone}), tmp_path / "b")


@pytest.mark.usefixtures("small_flexict")
def test_the_2d_teacher_is_not_taken_for_the_3d_one(tmp_path):
    """Their keys and shapes are the same; a patch embedding that nobody trained tells."""
    network = FlexibleViT(size=[144, 2, 2], rotary="bfloat16").initialise(KEY)
    fresh = network.patch_embed_3D.proj.weight.detach().clone()
    worn(network)
    with torch.no_grad():
        network.patch_embed_3D.proj.weight.copy_(fresh)
    source = saved(tmp_path / "a.pth", {"teacher": behind("backbone.", state_of(network))})
    with pytest.raises(WeightsError, match="patch_embed_3D looks freshly initialised: these are weights for 2D input"):
        zoo.convert(source, tmp_path / "out", name="flexict-3d")
    assert zoo.convert(source, tmp_path / "out", name="flexict-2d").card.weights == "trained"


def test_published_flexict_names_shapes_and_types():
    """What `convert` compares a FlexiCT file with is the published list, buffers in bfloat16 included."""
    rows = [
        line.split("\t") for line in (Path(__file__).parents[1] / "models/flexict-keys.txt").read_text().splitlines()
    ]
    listed = {row[0]: (row[1], row[2]) for row in rows if len(row) > 2}
    state = zoo.models.empty(zoo.CARDS["flexict-3d"], device="meta").state_dict()
    assert {k: (str(tuple(v.shape)), str(v.dtype).removeprefix("torch.")) for k, v in state.items()} == listed
    assert len(listed) == 219


def test_suprem_unet(tmp_path):
    whole = worn(SuPreMUNet())
    heads = {"module.organ_embedding": torch.rand(32, 512), "module.controller.weight": torch.rand(153, 256, 1, 1, 1)}
    content = {
        "net": {**behind("module.backbone.", state_of(whole)), **heads},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 800,
    }
    done = zoo.convert(saved(tmp_path / "supervised_suprem_unet_2100.pth", content), tmp_path / "out")
    assert done.card.name == "suprem-unet"
    assert sum(done.dropped.values()) == 50 + 2
    assert done.dropped["module.organ_embedding (text-driven head)"] == 1
    encoder = zoo.load_encoder(done.path, device="cpu")
    assert len(encoder.network.state_dict()) == 56
    same_outputs(whole, encoder, noise(2, 1, 16, 16, 24), "down_tr512")
    assert encoder.card.arguments["norm"] == "running"
    # the same file as published: batch statistics in eval mode too
    done = zoo.convert(tmp_path / "supervised_suprem_unet_2100.pth", tmp_path / "out", name="suprem-unet-published")
    published = SuPreMEncoder(norm="batch").eval()
    published.load_state_dict({k: v for k, v in whole.state_dict().items() if k in published.state_dict()})
    again = zoo.load_encoder(done.path, device="cpu")
    x = noise(2, 1, 16, 16, 24)
    same_outputs(published, again, x, "down_tr512")
    with torch.no_grad():
        maps = [one.raw(x, ["down_tr512"])[0]["down_tr512"] for one in (encoder, again)]
    assert (maps[0] - maps[1]).abs().max() > 1e-2
    assert again.card.arguments["norm"] == "batch"


def test_suprem_whole_unet(tmp_path):
    """To begin a fine-tuning from: all but the last layer, which the published file has for one output only."""
    whole = worn(SuPreMUNet())
    content = {"net": {**behind("module.backbone.", state_of(whole)), "module.organ_embedding": torch.rand(32, 512)}}
    path = saved(tmp_path / "supervised_suprem_unet_2100.pth", content)
    out = tmp_path / "suprem.safetensors"
    card = zoo.convert_segmenter(path, out, name="suprem-unet-segmenter")
    assert "fine-tune it before use" in card.notes[0]
    made = zoo.load_segmenter(out, device="cpu")
    assert made.names == ("background", "untrained output")
    state = made.network.state_dict()
    assert len(state) == 106
    assert all(torch.equal(v, state[k]) for k, v in whole.state_dict().items() if "final_conv" not in k)
    assert zoo.convert_segmenter(path, out, name="suprem-unet-segmenter") == card  # not made again
    with pytest.raises(UsageError, match="--replace"):
        zoo.convert_segmenter(path, out, name="suprem-unet-published-segmenter")
    other = zoo.convert_segmenter(path, out, name="suprem-unet-published-segmenter", replace_other=True)
    assert other.arguments["norm"] == "batch"
    with pytest.raises(WeightsError, match="is a suprem-unet, not ct-fm-whole-body-segmenter"):
        zoo.convert_segmenter(path, tmp_path / "b.safetensors")
    encoder = {k: v for k, v in content["net"].items() if "_tr" not in k or "down_tr" in k}
    with pytest.raises(WeightsError, match="no decoder"):
        zoo.convert_segmenter(
            saved(tmp_path / "e.pth", {"net": encoder}), tmp_path / "c.safetensors", name="suprem-unet-segmenter"
        )


@pytest.mark.monai
def test_suprem_segresnet(tmp_path):
    from monai.networks.nets.segresnet import SegResNet

    torch.manual_seed(0)
    theirs = worn(SegResNet(init_filters=16, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1), out_channels=2))
    done = zoo.convert(saved(tmp_path / "a.pth", {"net": behind("module.", state_of(theirs))}), tmp_path / "out")
    assert done.card.name == "suprem-segresnet"
    encoder = zoo.load_encoder(done.path, device="cpu")
    x = noise(1, 1, 16, 17, 24)
    with torch.no_grad():
        torch.testing.assert_close(encoder.raw(x, ["stage3"])[0]["stage3"], theirs.encode(x)[0], rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in theirs.parameters()) - 4_700_897 == 17  # one class less is the published count
    own = SuPreMSegResNetEncoder()
    own.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in own.state_dict()})
    same_outputs(own.eval(), encoder, x, "stage3")


# ---------------------------------------------------------------------- what does not fit


def test_misfits_are_listed_with_counts(tmp_path, tiny):
    state = state_of(tiny)
    for name in [n for n in state if n.startswith("layers.1.") and n.endswith("weight")]:
        del state[name]
    state["layers.0.extra"] = torch.zeros(1)
    state["conv_init.weight"] = state["conv_init.weight"].repeat(1, 2, 1, 1, 1)
    state["layers.0.blocks.0.conv1.weight"][0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(WeightsError) as error:
        zoo.convert(
            saved(tmp_path / "a.pth", {"state_dict": behind("model.backbone.", state)}),
            tmp_path / "out",
            name="ct-fm-tiny",
        )
    text = str(error.value)
    assert "9 missing: layers.1.blocks.0.conv1.weight" in text
    assert ", ..." in text
    assert "1 unexpected: layers.0.extra" in text
    assert "1 of another shape: conv_init.weight is (8, 2, 3, 3, 3), not (8, 1, 3, 3, 3)" in text
    assert "1 not finite: layers.0.blocks.0.conv1.weight" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none(tmp_path, tiny, bad):
    state = state_of(tiny)
    state["layers.4.blocks.3.norm2.running_var"][5] = bad
    with pytest.raises(WeightsError, match=r"1 not finite: layers.4.blocks.3.norm2.running_var"):
        zoo.convert(saved(tmp_path / "a.pth", state), tmp_path / "out", name="ct-fm-tiny")


def test_unknown_tensors_beside_are_an_error(tmp_path, tiny):
    state = {**behind("model.backbone.", state_of(tiny)), "criterion.weight": torch.ones(2)}
    with pytest.raises(WeightsError, match=r"1 unexpected: criterion.weight"):
        zoo.convert(saved(tmp_path / "a.ckpt", {"state_dict": state}), tmp_path / "out", name="ct-fm-tiny")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_number_types_are_converted_and_said(tmp_path, tiny, kind):
    state = {k: v.to(kind) if v.is_floating_point() else v for k, v in state_of(tiny).items()}
    done = zoo.convert(saved(tmp_path / "a.pth", state), tmp_path / "out", name="ct-fm-tiny")
    assert dict(done.types) == {f"{str(kind).removeprefix('torch.')} -> float32": 135}
    written = load_file(done.path)
    assert all(torch.equal(written[k], v.float() if v.is_floating_point() else v) for k, v in state.items())


def test_a_number_that_float32_does_not_hold(tmp_path, tiny):
    state = {k: v.double() if v.is_floating_point() else v for k, v in state_of(tiny).items()}
    state["conv_init.weight"][0] = 1e60
    with pytest.raises(WeightsError, match=r"conv_init.weight is not finite as float32"):
        zoo.convert(saved(tmp_path / "a.pth", state), tmp_path / "out", name="ct-fm-tiny")


def test_another_model_than_asked_for_is_named(tmp_path, tiny):
    source = saved(tmp_path / "a.pth", state_of(tiny))
    with pytest.raises(WeightsError, match=r"a CT-FM encoder .8 filters., not flexict-3d.*\n.*--as ct-fm-tiny"):
        zoo.convert(source, tmp_path / "out", name="flexict-3d")
    with pytest.raises(
        WeightsError, match=r"as ct-fm, the weights do not fit: .*of another shape.*\n.*--as ct-fm-tiny"
    ):
        zoo.convert(source, tmp_path / "out", name="ct-fm")
    unet = saved(tmp_path / "u.pth", {"net": behind("module.backbone.", state_of(SuPreMEncoder(filters=4)))})
    with pytest.raises(WeightsError, match="SuPreM's U-Net, not ct-fm"):
        zoo.convert(unet, tmp_path / "out", name="ct-fm")
    with pytest.raises(WeightsError, match="no network that is known"):
        zoo.convert(saved(tmp_path / "l.pth", state_of(nn.Linear(2, 2))), tmp_path / "out")
    both = {**behind("backbone.", state_of(tiny)), **behind("encoder.", state_of(tiny))}
    with pytest.raises(WeightsError, match="holds 2 networks"):
        zoo.convert(saved(tmp_path / "b.pth", both), tmp_path / "out")
    with pytest.raises(UsageError, match="nearest known one is 'ct-fm-tiny'"):
        zoo.convert(source, tmp_path / "out", name="ct-fm-tinny")
    with pytest.raises(SettingsError, match="no preparation is called"):
        zoo.convert(source, tmp_path / "out", name="ct-fm-tiny", preparation="ct-fm-2mm")
    done = zoo.convert(source, tmp_path / "out", name="mine", preparation="ct-fm")
    assert zoo.load_encoder(done.path, device="cpu").card.arguments["filters"] == 8


def test_config_must_agree_with_the_weights(tmp_path, tiny):
    for change, text in (
        ({"init_filters": 16}, "config.json says init_filters 16, the weights have 8"),
        ({"norm": "instance"}, "norm 'instance', which this network has not"),
        ({"_target_": "os.system"}, "1 unknown keys: _target_"),
    ):
        folder = hub_folder(tmp_path / str(len(text)), state_of(tiny), **{**TINY, **change})
        with pytest.raises(WeightsError, match=text):
            zoo.convert(folder, tmp_path / "out", name="ct-fm-tiny")


# ---------------------------------------------------------------------- again, and never by half


def test_the_same_source_is_not_converted_again(tmp_path, tiny):
    source = saved(tmp_path / "a.pth", state_of(tiny))
    first = zoo.convert(source, tmp_path / "out", name="ct-fm-tiny")
    before = first.path.stat()
    again = zoo.convert(source, tmp_path / "out", name="ct-fm-tiny")
    assert again.skipped
    assert again.card == first.card
    assert first.path.stat().st_mtime_ns == before.st_mtime_ns
    assert zoo.convert(source, tmp_path / "out").skipped  # and where the name is found by the keys
    # another source is not written over it
    state = state_of(tiny)
    state["conv_init.weight"] += 1
    other = saved(tmp_path / "b.pth", state)
    with pytest.raises(UsageError, match="another model lies there"):
        zoo.convert(other, tmp_path / "out", name="ct-fm-tiny")
    assert not zoo.convert(other, tmp_path / "out", name="ct-fm-tiny", replace_other=True).skipped
    with pytest.raises(UsageError, match="another model lies there"):
        zoo.convert(other, tmp_path / "out", name="ct-fm-tiny", preparation="ct-fm")


def test_a_half_written_model_is_made_again(tmp_path, tiny, monkeypatch):
    """Killed between weights and card: what is there says that it is none, and the next run mends it."""
    source = saved(tmp_path / "a.pth", state_of(tiny))
    from ctfoundry import files

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            zoo.convert(source, tmp_path / "out", name="ct-fm-tiny")
    path = tmp_path / "out" / "ct-fm-tiny.safetensors"
    assert path.is_file()
    with pytest.raises(WeightsError, match="no card beside it"):
        zoo.load_model(path)
    with pytest.raises(UsageError, match="no finished model"):
        zoo.convert(source, tmp_path / "out", name="ct-fm-tiny")
    done = zoo.convert(source, tmp_path / "out", name="ct-fm-tiny", replace_other=True)
    assert zoo.load_model(done.path).card.sha256


# ---------------------------------------------------------------------- verify


def test_verify_meets_golden_values_and_sees_what_keys_cannot(tmp_path, tiny):
    done = zoo.convert(saved(tmp_path / "a.pth", state_of(tiny)), tmp_path / "out", name="ct-fm-tiny")
    found = zoo.verify_model(done.path)
    assert found["looks"] == "trained"
    assert found["golden"].startswith("met to ")
    assert found["sha256"] == done.card.sha256
    # two convolutions of one shape exchanged: keys, shapes and numbers are all there, and the network is another one
    state = load_file(done.path)
    a, b = "layers.4.blocks.0.conv1.weight", "layers.4.blocks.1.conv1.weight"
    state[a], state[b] = state[b], state[a]
    save_file(state, done.path)
    card = json.loads(done.path.with_suffix(".json").read_text())
    from ctfoundry import files

    card["sha256"] = files.sha256(done.path)
    done.path.with_suffix(".json").write_text(json.dumps(card))
    assert zoo.load_model(done.path)
    with pytest.raises(WeightsError, match="misses its golden values"):
        zoo.verify_model(done.path)
    card["golden"] = {"input": [1, 1, 16, "x"]}
    done.path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(CTFoundryError, match="golden values of card"):
        zoo.verify_model(done.path)


def test_a_model_with_a_card_is_not_loaded_under_another_preparation(tmp_path, tiny):
    source = saved(tmp_path / "a.pth", state_of(tiny))
    done = zoo.convert(source, tmp_path / "out", name="ct-fm-tiny", preparation="ct-fm-native")
    with pytest.raises(WeightsError, match="card says preparation 'ct-fm-native'"):
        zoo.load_encoder("ct-fm-tiny", weights=done.path, device="cpu")
    zoo.convert(source, tmp_path / "two", name="ct-fm-tiny")
    zoo.convert(source, tmp_path / "two", name="mine", preparation="ct-fm")
    with pytest.raises(WeightsError, match="has 2 models"):
        zoo.load_encoder(tmp_path / "two", device="cpu")


def test_pickles_and_hub_folders_are_not_loaded_but_converted(tmp_path, tiny):
    source = saved(tmp_path / "a.pth", state_of(tiny))
    with pytest.raises(WeightsError, match="zoo convert"):
        zoo.load_encoder("ct-fm-tiny", weights=source, device="cpu")
    folder = hub_folder(tmp_path / "hub", state_of(tiny), **TINY)
    with pytest.raises(WeightsError, match="zoo convert"):
        zoo.load_encoder(folder, device="cpu")


def test_a_family_of_somebody_elses_is_saved_and_loaded(tmp_path, tiny, monkeypatch):
    """It brings one function, which draws its weights from a key; buffers that no file holds are its own affair."""

    class Other(SegResNetEncoder):
        def __init__(self) -> None:
            super().__init__(filters=2, blocks=(1, 1))
            self.register_buffer("table", torch.arange(3.0), persistent=False)

    monkeypatch.setitem(zoo.models.ARCHITECTURES, "other", lambda arguments, key: initialise(Other(**arguments), key))
    card = replace(zoo.CARDS["ct-fm-tiny"], name="other", architecture="other", arguments={}, level="stage1")
    encoder = zoo.models.Encoder.of(zoo.build(card), card)
    zoo.save_model(encoder, tmp_path / "other.safetensors")
    again = zoo.load_model(tmp_path / "other.safetensors")
    assert torch.equal(again.network.table, torch.arange(3.0))
    same_outputs(encoder.network, again, noise(1, 1, 8, 8, 8), "stage1")


@pytest.mark.parametrize("prefix", ["", "model.", "model._orig_mod.trunk."])
def test_the_whole_segmentation_network_of_a_source(tmp_path, tiny, prefix):
    """What a segmenter is made of: encoder and decoder together, under the published names."""
    from ctfoundry.models.segresnet_ds import SegResNetDS

    whole = worn(initialise(SegResNetDS(2, filters=2, blocks=(1, 1, 1), blocks_up=(1, 1), depth=2), KEY))
    path = saved(tmp_path / "a.pth", {"state_dict": behind(prefix, state_of(whole))})
    found = reading.find(reading.read(path))
    assert reading.classes(found) == 2
    again = SegResNetDS(2, filters=2, blocks=(1, 1, 1), blocks_up=(1, 1), depth=2)
    again.load_state_dict(reading.with_decoder(found, path), strict=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    alone = saved(tmp_path / "b.pth", state_of(tiny))
    with pytest.raises(WeightsError, match="an encoder alone"):
        reading.with_decoder(reading.find(reading.read(alone)), alone)
