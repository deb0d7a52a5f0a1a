"""The exported bundle in MONAI itself: its transforms are our preparation, its labels ours, its files load strictly."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import ctfoundry as ct
from ctfoundry.preparation import prepare
from ctfoundry.zoo.export import export
from zoo import exported

pytestmark = [
    pytest.mark.monai,
    # MONAI's LoadImage tries all of its readers, whichever is asked for
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]

BODY = exported.body()


@pytest.fixture(scope="module")
def segmenter():
    return exported.segmenter(BODY)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """The same body in three orientations of the file."""
    folder = tmp_path_factory.mktemp("scans")
    for code in ("SPL", "RAS", "LPI"):
        ct.write(BODY.reorient(code), folder / f"{code}.nii.gz")
    return folder


def parser(folder, scans):
    from monai.bundle import ConfigParser

    config = ConfigParser()
    config.read_config(folder / "configs" / "inference.json")
    config.read_meta(folder / "configs" / "metadata.json")
    config["bundle_root"], config["dataset_dir"] = str(folder), str(scans)
    return config


def test_the_bundles_labels_are_ours(tmp_path, segmenter, scans):
    export(segmenter, "monai-bundle", tmp_path / "out")
    config = parser(tmp_path / "out", scans)
    config["device"] = "$torch.device('cpu')"
    config["postprocessing"]["transforms"].pop()  # SaveImaged: the whole command runs in test_export_side
    assert config.get_parsed_content("weights").missing_keys == []
    network, inferer = config.get_parsed_content("network"), config.get_parsed_content("inferer")
    post, dataset = config.get_parsed_content("postprocessing"), config.get_parsed_content("dataset")
    assert len(dataset) == 3
    for item in dataset:
        volume = ct.read(item["image"].meta["filename_or_obj"])
        x = prepare(segmenter.preparation, volume).x
        assert x.shape == item["image"].shape
        assert (x - item["image"].as_tensor()).abs().max() < 1e-3
        with torch.no_grad():
            item["pred"] = inferer(item["image"][None], network)[0]
        found = post(item)["pred"].numpy()[0]
        wanted = segmenter(volume).voxels
        wanted = (
            wanted if found.shape == wanted.shape else wanted.transpose(2, 1, 0)
        )  # NIfTI's first axis is its fastest
        # Beyond the last sample of the grid MONAI repeats it, having cut the padding off; we interpolate into the padding.
        inner = (slice(1, -1),) * 3
        assert (found == wanted)[inner].mean() > 0.999
        assert np.unique(wanted).size == 4


def test_an_encoders_vector_is_ours(tmp_path, scans):
    encoder = exported.encoder()
    export(encoder, "monai-bundle", tmp_path / "out")
    config = parser(tmp_path / "out", scans)
    config["device"] = "$torch.device('cpu')"
    config.get_parsed_content("weights")
    with torch.no_grad():
        found = config.get_parsed_content("embeddings")
    for name, vector in found.items():
        wanted = np.asarray(encoder(ct.read(scans / name)).vector)
        np.testing.assert_allclose(vector.numpy(), wanted, atol=1e-3 * np.abs(wanted).max())
        assert type(vector) is torch.Tensor


def test_the_network_and_auto3dsegs_file_load_strictly(tmp_path, segmenter):
    from monai.networks.nets import SegResNetDS

    export(segmenter, "monai-bundle", tmp_path / "out")
    network = SegResNetDS(
        init_filters=2, out_channels=4, norm="BATCH", blocks_down=[1, 1, 1, 1], blocks_up=[1, 1, 1], dsdepth=2
    )
    for name, entry in (("models/model.pt", None), ("auto3dseg/model.pt", "state_dict")):
        held = torch.load(tmp_path / "out" / name, weights_only=True)
        assert not any(network.load_state_dict(held if entry is None else held[entry], strict=True))
        x = torch.rand(1, 1, 16, 24, 32)
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(x), segmenter.network(x), rtol=0, atol=1e-4)


def test_a_hub_folder_loads_strictly(tmp_path, segmenter):
    from monai.networks.nets import SegResNetDS
    from monai.networks.nets.segresnet_ds import SegResEncoder
    from safetensors.torch import load_file

    for model, kind in ((segmenter, SegResNetDS), (exported.encoder(), SegResEncoder)):
        folder = export(model, "hub", tmp_path / kind.__name__).path
        network = kind(**json.loads((folder / "config.json").read_text()))
        assert not any(network.load_state_dict(load_file(folder / "model.safetensors")))


def test_a_bundle_executes_no_more_than_it_says(tmp_path, segmenter):
    """Every expression of both kinds of bundle, letter for letter: a new one has to be looked at."""
    found = set()
    for i, model in enumerate((segmenter, exported.encoder())):
        folder = export(model, "monai-bundle", tmp_path / str(i)).path
        for file in sorted((folder / "configs").iterdir()):
            found |= set(re.findall(r'"(\$[^"]*)"', file.read_text()))
    assert found == {
        "$import glob",
        "$import os",
        "$@bundle_root + '/input'",
        "$@bundle_root + '/output'",
        "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.nii.gz'))]",
        "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "$@network_def.to(@device).eval()",
        "$@network_def.load_state_dict(torch.load(@bundle_root + '/models/model.pt', map_location=@device, "
        "weights_only=True), strict=True)",
        "$lambda x: x > -1024.0",
        "$lambda x: x > 0.0",
        "$@weights",
        "$@evaluator.run()",
        "$torch.set_grad_enabled(False)",
        "$os.makedirs(@output_dir, exist_ok=True)",
        "$torch.save(@embeddings, @output_dir + '/embeddings.pt')",
        "${os.path.basename(item['image'].meta['filename_or_obj']): "
        "@network(item['image'].as_tensor()[None].to(@device))[-1].mean((2, 3, 4))[0].cpu() for item in @dataset}",
    }
