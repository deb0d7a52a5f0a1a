"""Segmenters on disk, and `segment` in one call."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import ctfoundry as ct
import worlds
from ctfoundry import zoo
from ctfoundry.errors import ContractError, UsageError, WeightsError
from ctfoundry.infer.many import overlapped
from ctfoundry.infer.passes import Extent
from ctfoundry.segmenter import Segmenter
from infer import networks


def saved(folder):
    made = networks.segresnet()
    zoo.save_model(made, folder / "model.safetensors")
    return made


def test_a_segmenter_comes_back_as_it_was(tmp_path):
    made, volume = saved(tmp_path), worlds.body(shape=(20, 40, 36))
    again = ct.load_segmenter(tmp_path, device="cpu")
    assert replace(again.card, sha256="") == made.card
    assert again.names == networks.names(5)
    assert not again.network.training
    wanted = made(volume)
    found = ct.segment(volume, model=tmp_path, device="cpu")
    np.testing.assert_array_equal(found.voxels, wanted.voxels)
    assert np.unique(found.voxels).size > 1
    assert found.names == dict(enumerate(networks.names(5)[1:], start=1))
    np.testing.assert_array_equal(ct.segment(volume, model=again).voxels, wanted.voxels)


def test_the_last_model_is_kept_until_its_file_changes(tmp_path, monkeypatch):
    from ctfoundry.zoo import files

    saved(tmp_path)
    loads = []
    real = files.load_segmentation_model
    monkeypatch.setattr(files, "load_segmentation_model", lambda *a, **k: loads.append(a) or real(*a, **k))
    volume = worlds.body(shape=(20, 40, 36))
    first = ct.segment(volume, model=tmp_path, device="cpu")
    ct.segment(volume, model=tmp_path, device="cpu")
    assert len(loads) == 1
    other = networks.segresnet()
    other.network.head.bias.data[3] += 50
    zoo.save_model(other, tmp_path / "model.safetensors")
    second = ct.segment(volume, model=tmp_path, device="cpu")
    assert len(loads) == 2
    assert (second.voxels == 3).all()
    assert not (first.voxels == 3).all()


def test_encoders_and_segmenters_are_not_taken_for_each_other(tmp_path):
    saved(tmp_path)
    with pytest.raises(WeightsError, match="is no encoder, its card says 'segmenter'"):
        zoo.load_encoder(tmp_path, device="cpu")
    place = tmp_path / "encoder"
    place.mkdir()
    zoo.save_model(worlds.tiny(), place / "model.safetensors")
    with pytest.raises(WeightsError, match="is no segmenter, its card says 'encoder'"):
        ct.load_segmenter(place, device="cpu")
    with pytest.raises(UsageError, match="no file or folder"):
        ct.segment(worlds.body(), model=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"names": ("background", "one")}, "2 names for a network of 5 outputs"),
        ({"names": ("background", "a", "b", "c", "a")}, "each once"),
        ({"extent": Extent("slices")}, "whole scan or windows"),
        ({"kind": "encoder"}, "not of a segmenter"),
    ],
)
def test_a_card_that_cannot_be_right_is_refused(change, text):
    made = networks.segresnet()
    with pytest.raises(ContractError, match=text):
        Segmenter.of(made.network, replace(made.card, **change))


def test_scans_that_are_none_are_refused():
    label = worlds.body()
    with pytest.raises(ContractError, match="give the scan, not its label map"):
        networks.segmenter()(label.with_voxels(label.voxels, "label"))


def test_one_model_for_many_scans(tmp_path):
    made = saved(tmp_path)
    scans = {f"s{i}": worlds.body(i, (20, 40, 36)) for i in range(3)}
    scans["bad"] = scans["s0"].with_voxels(np.full((20, 40, 36), np.nan, np.float32))
    written: dict[str, np.ndarray] = {}
    outcomes = list(
        overlapped(scans, scans.__getitem__, made, lambda name, found: written.update({name: found.voxels}))
    )
    assert {o.item for o in outcomes if o.error is None} == {"s0", "s1", "s2"}
    (failed,) = (o for o in outcomes if o.error is not None)
    assert (failed.item, failed.stage) == ("bad", "work")
    assert "NaN" in str(failed.error)
    for name, voxels in written.items():
        np.testing.assert_array_equal(voxels, made(scans[name]).voxels)


@pytest.mark.monai
def test_monais_segmentation_network_becomes_a_segmenter(tmp_path):
    """The public models are MONAI's networks: theirs, saved as a training framework does, gives the same labels here."""
    import torch
    from monai.inferers.utils import sliding_window_inference
    from monai.networks.nets.segresnet_ds import SegResNetDS
    from safetensors.torch import save_file

    torch.manual_seed(0)
    theirs = SegResNetDS(init_filters=4, blocks_down=(1, 2, 2), norm="batch", dsdepth=2, out_channels=3)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    theirs.eval()
    save_file({f"model.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "public.safetensors")
    extent = Extent("windows", (16, 16, 16), 0.5, "gaussian")
    with pytest.raises(WeightsError, match="has 3 outputs, but 2 names"):
        zoo.convert_segmenter(tmp_path / "public.safetensors", tmp_path / "a.safetensors", ("background", "one"))
    zoo.convert_segmenter(
        tmp_path / "public.safetensors",
        tmp_path / "ours.safetensors",
        networks.names(3),
        preparation="ct-fm-native",
        extent=extent,
    )
    made = ct.load_segmenter(tmp_path / "ours.safetensors", device="cpu")
    volume = worlds.body(shape=(20, 40, 36))
    # voxels above -1024 HU lie on every face, so the prepared grid is the scan's own
    x = torch.from_numpy((volume.voxels[None, None].astype(np.float32).clip(-1024) + 1024) / 3072)
    with torch.no_grad():
        wanted = sliding_window_inference(x, (16, 16, 16), 2, theirs, 0.5, mode="gaussian").softmax(1)[0].numpy()
    found = made.probabilities(volume, networks.names(3)[1:])
    for k in (1, 2):
        np.testing.assert_allclose(found[f"part{k}"].voxels, wanted[k], atol=1e-4)
    assert wanted.std() > 0.01
    encoder = tmp_path / "encoder.safetensors"
    save_file(
        {k.removeprefix("encoder."): v.clone() for k, v in theirs.state_dict().items() if k.startswith("encoder.")},
        encoder,
    )
    with pytest.raises(WeightsError, match="it is an encoder alone"):
        zoo.convert_segmenter(encoder, tmp_path / "b.safetensors", networks.names(3))


def test_segmenters_have_golden_values_too(tmp_path):
    from ctfoundry.encoder import Card
    from ctfoundry.settings import from_data, to_data
    from ctfoundry.zoo.golden import golden_of

    made = networks.segresnet()
    golden = golden_of(made)
    assert golden["vector"] == "logits"
    assert len(set(golden["values"])) == 16
    zoo.save_model(replace(made, card=replace(made.card, golden=golden)), tmp_path / "model.safetensors")
    assert zoo.verify_model(tmp_path / "model.safetensors")["golden"].startswith("met to")
    # weights of another network under the same card are found out
    path = tmp_path / "model.json"
    card = from_data(Card, json.loads(path.read_text()))
    values = [value + 0.1 for value in golden["values"]]
    path.write_text(json.dumps(to_data(replace(card, golden={**golden, "values": values}))))
    with pytest.raises(WeightsError, match="misses its golden values"):
        zoo.verify_model(tmp_path / "model.safetensors")


def test_the_whole_body_segmenter_by_name(tmp_path, monkeypatch):
    from ctfoundry.zoo import segmenters

    card = zoo.whole_body()
    assert (len(card.names), card.names[0], card.names[5], card.names[117]) == (
        118, "background", "liver", "costal_cartilages",
    )  # fmt: skip
    small = replace(
        card, arguments={**card.arguments, "filters": 2, "blocks": [1, 1, 1], "blocks_up": [1, 1], "depth": 2}
    )
    monkeypatch.setattr(segmenters, "whole_body", lambda: small)
    with pytest.raises(WeightsError, match="no weights come with it"):
        zoo.load_segmenter(zoo.WHOLE_BODY, device="cpu")
    drawn = zoo.load_any(zoo.WHOLE_BODY, weights="random", device="cpu", seed=5)
    assert isinstance(drawn, Segmenter)
    assert (drawn.card.weights, drawn.card.seed) == ("random", 5)
    zoo.save_model(drawn, tmp_path / "w.safetensors")
    again = zoo.load_segmenter(zoo.WHOLE_BODY, weights=tmp_path / "w.safetensors", device="cpu")
    assert again.card.weights == "trained"
    assert len(again.card.sha256) == 64
    with pytest.raises(UsageError, match="brings its own weights"):
        zoo.load_segmenter(tmp_path / "w.safetensors", weights="random")
    assert isinstance(zoo.load_any(tmp_path / "w.safetensors", device="cpu"), Segmenter)


def test_a_segmenter_from_the_hub_is_converted_once(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    from ctfoundry.zoo import hub, segmenters

    made = networks.segresnet()
    fetched = []
    save_file({k: v.contiguous() for k, v in made.network.state_dict().items()}, tmp_path / "model.safetensors")
    monkeypatch.setenv("CTFOUNDRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(segmenters, "whole_body", lambda: made.card)
    monkeypatch.setattr(
        hub, "fetch", lambda name: fetched.append(name) or hub.Fetched(tmp_path / "model.safetensors", "c0ffee")
    )
    for _ in range(2):
        found = zoo.load_segmenter("hf://someone/whole", device="cpu")
        assert found.names == made.names
        assert all((found.network.state_dict()[k] == v).all() for k, v in made.network.state_dict().items())
    assert len(fetched) == 1
