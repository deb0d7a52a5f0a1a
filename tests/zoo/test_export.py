"""Exports: whole folders or none, the hub's layout there and back, and nnU-Net's network and plans beside ours."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import ctfoundry as ct
import worlds
from ctfoundry import zoo
from ctfoundry.encoder import Encoder
from ctfoundry.errors import UsageError
from ctfoundry.preparation import prepare
from ctfoundry.zoo import export as exporting
from ctfoundry.zoo import export_nnunet
from ctfoundry.zoo.export import Options, export
from program import result, run
from zoo import exported
from zoo.sources import state_of

BODY = exported.body()


@pytest.fixture(scope="module")
def encoder():
    return exported.encoder()


@pytest.fixture(scope="module")
def segmenter():
    return exported.segmenter(BODY)


def same_state(one, other):
    a, b = state_of(one), state_of(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------- folders


def test_the_same_export_is_not_made_again_and_nothing_else_is_overwritten(tmp_path, encoder, segmenter):
    first = export(encoder, "hub", tmp_path / "out")
    assert not first.skipped
    assert set(first.files) == {"README.md", "config.json", "model.json", "model.safetensors", "run.json"}
    assert export(encoder, "hub", tmp_path / "out").skipped
    for model, form in ((segmenter, "hub"), (encoder, "nnunet")):
        with pytest.raises(UsageError, match="something else lies there"):
            export(model, form, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="something else lies there"):
        export(encoder, "hub", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert not export(encoder, "hub", tmp_path / "empty").skipped


def test_a_failed_export_leaves_nothing(tmp_path, encoder, monkeypatch):
    def broken(model, folder, options):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    monkeypatch.setattr(exporting, "writers", lambda: {"hub": broken})
    with pytest.raises(OSError, match="disk full"):
        export(encoder, "hub", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(tmp_path, encoder, segmenter):
    vit = worlds_vit()
    native = replace(encoder, preparation=ct.zoo.CARDS["ct-fm"].preparation)
    native = replace(native, preparation=replace(native.preparation, name="n", resampling=no_spacing(native)))
    turned = replace(
        encoder,
        preparation=replace(encoder.preparation, resampling=replace(encoder.preparation.resampling, orientation=None)),
    )
    scores = replace(
        encoder,
        preparation=replace(encoder.preparation, intensity=replace(encoder.preparation.intensity, norm="z-volume")),
    )
    for model, form, options, words in (
        (encoder, "onnx", Options(), "no format is called 'onnx'"),
        (vit, "hub", Options(), "is a flexible-vit"),
        (native, "nnunet", Options(), "--spacing"),
        (turned, "nnunet", Options(), "orientation"),
        (scores, "nnunet", Options(), "intensities"),
        (scores, "monai-bundle", Options(), "not written as MONAI's transforms"),
        (encoder, "nnunet", Options(patch=(96, 100, 96)), "multiple of 16"),
        (segmenter, "nnunet", Options(dataset="Liver"), "no name of an nnU-Net data set"),
    ):
        with pytest.raises(UsageError, match=words):
            export(model, form, tmp_path / "out", options=options)
        assert list(tmp_path.iterdir()) == []
    export(native, "nnunet", tmp_path / "out", options=Options(spacing=(3.0, 1.0, 1.0)))
    plans = json.loads((tmp_path / "out" / "ctfoundryPlans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["spacing"] == [3.0, 1.0, 1.0]


def worlds_vit():
    card = replace(zoo.CARDS["flexict-tiny"], seed=0)
    return Encoder.of(zoo.build(card), card)


def no_spacing(encoder):
    return replace(encoder.preparation.resampling, spacing=(None, None, None))


# ---------------------------------------------------------------------- hub


def test_a_hub_folder_is_converted_back(tmp_path, encoder):
    export(encoder, "hub", tmp_path / "hub")
    done = zoo.convert(tmp_path / "hub", tmp_path / "back", name="mine", preparation="ct-fm-tiny")
    assert same_state(zoo.load_model(done.path).network, encoder.network)
    assert json.loads((tmp_path / "hub" / "config.json").read_text()) == {
        "spatial_dims": 3,
        "in_channels": 1,
        "init_filters": 2,
        "blocks_down": [1, 1, 1, 1, 1],
    }
    own = ct.load_encoder(tmp_path / "hub", device="cpu")  # a model folder of ours, with its preparation
    assert same_state(own.network, encoder.network)
    assert own.preparation == encoder.preparation
    np.testing.assert_array_equal(own(BODY).vector, encoder(BODY).vector)
    readme = (tmp_path / "hub" / "README.md").read_text()
    assert readme.startswith("---\nlibrary_name:")
    assert "CC BY 4.0 of a test" in readme


def test_a_hub_folder_of_a_segmenter_is_converted_back(tmp_path):
    made = exported.segmenter(BODY, blocks=5)
    export(made, "hub", tmp_path / "hub")
    zoo.convert_segmenter(tmp_path / "hub", tmp_path / "back.safetensors", exported.NAMES, preparation="ct-fm-1.5mm")
    assert same_state(ct.load_segmenter(tmp_path / "back.safetensors", device="cpu").network, made.network)
    own = ct.load_segmenter(tmp_path / "hub", device="cpu")
    wanted = made(BODY)
    np.testing.assert_array_equal(own(BODY).voxels, wanted.voxels)
    assert np.unique(wanted.voxels).size == 4


# ---------------------------------------------------------------------- nnU-Net, without it


def theirs(folder, plans, classes, *, deep):
    """The network that nnU-Net makes of the plans, made as it makes it, from the module in the folder."""
    spec = importlib.util.spec_from_file_location("exported_module", folder / "ctfoundry_nnunet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    return module.SegResNet(input_channels=1, num_classes=classes, deep_supervision=deep, **arguments)


def test_nnunets_network_is_ours(tmp_path, segmenter):
    export(segmenter, "nnunet", tmp_path / "out")
    trained = tmp_path / "out" / "trained"
    plans = json.loads((trained / "plans.json").read_text())
    weights = torch.load(trained / "fold_all" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    network = theirs(tmp_path / "out", plans, 4, deep=True)
    network.load_state_dict(weights)
    assert network.flip == [3, 4]
    x = torch.rand(1, 1, 16, 24, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        deep = network.eval()(x.flip(3, 4))
        assert [tuple(y.shape[2:]) for y in deep] == [(16, 24, 32), (8, 12, 16), (4, 6, 8)]
        network.decoder.deep_supervision = False  # what nnU-Net's trainer does before it predicts
        single = network(x.flip(3, 4))
        wanted = segmenter.network(x)
    torch.testing.assert_close(single.flip(3, 4), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(deep[0], single, rtol=0, atol=0)
    assert wanted.std() > 0.1
    assert not torch.allclose(network(x), wanted, atol=1e-2)  # the flips matter
    labels = json.loads((trained / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "lung": 1, "liver": 2, "bone": 3}


def test_an_encoders_decoder_is_drawn_from_the_seed(tmp_path, encoder):
    made = [export(encoder, "nnunet", tmp_path / str(i), options=Options(seed=s)) for i, s in enumerate((1, 1, 2))]
    a, b, c = (torch.load(m.path / "pretrained.pth", weights_only=True)["network_weights"] for m in made)
    ours = state_of(encoder.network)
    assert {name.removeprefix("encoder.") for name in a if name.startswith("encoder.")} == ours.keys()
    assert all(torch.equal(a[f"encoder.{name}"], value) for name, value in ours.items())
    decoder = [name for name in a if name.startswith("decoder.up_layers") and "deconv" in name]
    assert all(torch.equal(a[n], b[n]) and not torch.equal(a[n], c[n]) for n in decoder)
    assert any("drawn from seed 1" in note for note in made[0].notes)


@pytest.mark.parametrize("code", ["SPL", "RAS", "LPS", "AIR", "SAR"])
def test_plans_say_our_preparation(encoder, code):
    """`CTNormalization` and the axes, by nnU-Net's own formulas, on a scan of the plans' spacing: our tensor."""
    resampling = replace(encoder.preparation.resampling, orientation=code, foreground=None)
    model = replace(encoder, preparation=replace(encoder.preparation, resampling=resampling))
    plans = export_nnunet.plans(model, Options(spacing=(6.0, 2.0, 2.0)))
    volume = worlds.body(shape=(9, 12, 10), spacing=(4, 5, 3), code="LPS")
    scan = volume.reorient("SAR").voxels.astype(np.float32)  # what the reader gives
    turned = scan.transpose(plans["transpose_forward"])
    found = plans["foreground_intensity_properties_per_channel"]["0"]
    x = np.clip(turned, found["percentile_00_5"], found["percentile_99_5"])
    x = (x - found["mean"]) / max(found["std"], 1e-8)
    flips = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["flip"]
    same = replace(model.preparation, resampling=replace(resampling, spacing=(None, None, None)))
    np.testing.assert_allclose(np.flip(x, flips), prepare(same, volume).x[0].numpy(), atol=1e-6)
    assert np.array_equal(np.transpose(turned, plans["transpose_backward"]), scan)


# ---------------------------------------------------------------------- command line


def test_export_as_a_stranger_uses_it(tmp_path, segmenter):
    place = tmp_path / "secret-folder"
    zoo.save_model(segmenter, place / "model.safetensors")
    options = ("--dataset", "Dataset501_Liver", "--patch", "16x32x32", "--batch", 3)
    made = result("export", place, "--format", "nnunet", "-o", tmp_path / "out", *options)
    assert made["name"] == "tiny-segmenter"
    assert result("export", place, "--format", "nnunet", "-o", tmp_path / "out", *options)["skipped"] is True
    text = (tmp_path / "out" / "run.json").read_text()
    assert "secret-folder" not in text
    assert json.loads(text)["outputs"].keys() == set(made["files"]) - {"run.json"}
    plans = json.loads((tmp_path / "out" / "ctfoundryPlans.json").read_text())
    assert plans["dataset_name"] == "Dataset501_Liver"
    assert plans["configurations"]["3d_fullres"]["patch_size"] == [16, 32, 32]
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 3
    assert "Apache-2.0" in (tmp_path / "out" / "README.md").read_text()


def test_random_weights_are_said_and_errors_are_short(tmp_path):
    done = run("export", "ct-fm-tiny", "--weights", "random", "--format", "hub", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "the weights of ct-fm-tiny are random" in done.stderr
    for arguments in (
        ("ct-fm-tiny", "--format", "hub"),
        ("nowhere", "--format", "hub"),
        ("ct-fm-tiny", "--weights", "random", "--format", "hub", "--patch", "1x2"),
    ):
        done = run("export", *arguments, "-o", tmp_path / "other")
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "other").exists()
