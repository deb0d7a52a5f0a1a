"""Exports in the tools themselves: plain nnU-Net fine-tunes and predicts, ``monai.bundle run`` runs. Both in a side environment.

One scan is on the spacing of the plans, so what nnU-Net prepares must be our tensor; weights are compared before the first step.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ctfoundry as ct
from ctfoundry.preparation import prepare
from ctfoundry.zoo.export import Options, export
from zoo import exported, side

pytestmark = pytest.mark.xdist_group("side")

HERE = Path(__file__).parent
BODY = exported.body((24, 40, 40))  # one window: where several lie, nnU-Net and we place them differently


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return side.folder(tmp_path_factory.mktemp("side"))


def uncropped(model):
    """nnU-Net does not crop to the foreground; without that the input must be the same."""
    resampling = replace(model.preparation.resampling, foreground=None)
    return replace(model, preparation=replace(model.preparation, resampling=resampling))


@pytest.fixture(scope="module")
def work(tmp_path_factory, packages):
    """What nnU-Net made of the exports."""
    place = tmp_path_factory.mktemp("work")
    raw = place / "raw" / "Dataset501_Phantoms"
    for folder in (raw / "imagesTr", raw / "labelsTr", place / "images"):
        folder.mkdir(parents=True)
    for i, code in enumerate(("LPS", "RAS", "SPL", "LPS", "RAS")):
        scan = exported.body((18, 34, 33), seed=i).reorient(code)
        labels = replace(scan.with_voxels((scan.voxels > 150).astype(np.uint8), "label"), names={1: "ball"})
        ct.write(scan, raw / "imagesTr" / f"p{i}_0000.nii.gz")
        ct.write(labels, raw / "labelsTr" / f"p{i}.nii.gz")
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1}, "numTraining": 5}
    (raw / "dataset.json").write_text(json.dumps(about | {"file_ending": ".nii.gz"}))
    for code in ("LPS", "RAS"):
        ct.write(BODY.reorient(code), place / "images" / f"{code}_0000.nii.gz")
    encoder, segmenter = uncropped(exported.encoder((6.0, 3.0, 3.0))), segmenter_of()
    export(encoder, "nnunet", place / "export", options=Options("Dataset501_Phantoms", patch=(16, 32, 32)))
    export(segmenter, "nnunet", place / "segmenter")
    np.save(place / "input.npy", torch.rand(1, 1, 16, 24, 32, generator=torch.Generator().manual_seed(0)).numpy())
    side.run([HERE / "nnunet_drive.py", place], packages, place / "export")
    return place


def segmenter_of():
    return uncropped(exported.segmenter(BODY, spacing=(6.0, 3.0, 3.0), window=(24, 40, 40)))


def test_nnunet_starts_from_our_weights_and_trains(work):
    found = json.loads((work / "found.json").read_text())
    print(found["seconds"])
    ours = exported.encoder().network.state_dict()
    assert {f"encoder.{name}" for name in ours} <= set(found["equal"])
    assert all(".seg_layers." in name for name in found["other"])
    assert found["moved"] > len(ours)


def test_nnunet_builds_the_same_network(work):
    x, logits = (torch.from_numpy(np.load(work / f"{name}.npy")) for name in ("input", "logits"))
    with torch.no_grad():
        wanted = segmenter_of().network(x.flip(3, 4)).flip(3, 4)
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)
    assert json.loads((work / "found.json").read_text())["deep"] == [
        [1, 4, 16, 24, 32],
        [1, 4, 8, 12, 16],
        [1, 4, 4, 6, 8],
    ]


def test_nnunet_prepares_as_we_do_and_gives_our_labels(work):
    """Files in two orientations; the network turns nnU-Net's axes (S, A, R) into ours."""
    segmenter = segmenter_of()
    tensor = replace(segmenter.preparation, sizing=replace(segmenter.preparation.sizing, multiple=(1, 1, 1)))
    for code in ("LPS", "RAS"):
        volume = ct.read(work / "images" / f"{code}_0000.nii.gz")
        theirs = np.load(work / f"{code}_0000.nii.gz.npy")[0][:, ::-1, ::-1]
        np.testing.assert_allclose(theirs, prepare(tensor, volume).x[0].numpy(), atol=1e-5)
        labels = ct.read(work / "labels" / f"{code}.nii.gz", kind="label")
        wanted = segmenter(volume)
        assert labels.orientation == wanted.orientation
        np.testing.assert_allclose(labels.affine, wanted.affine, atol=1e-4)
        assert np.unique(wanted.voxels).size == 4
        # nnU-Net sums logits in half precision; at a window's rim their Gaussian weights are so small that digits are lost.
        inner = tuple(slice(n // 8, n - n // 8) for n in wanted.shape)
        same = labels.voxels == wanted.voxels
        print(code, "voxels agree", same.mean(), "inner", same[inner].mean())
        assert same[inner].mean() > 0.999
        assert same.mean() > 0.97
        assert (work / "tuned" / f"{code}.nii.gz").is_file()


def test_monai_runs_the_bundles(tmp_path, packages):
    (tmp_path / "images").mkdir()
    ct.write(BODY.reorient("RAS"), tmp_path / "images" / "a.nii.gz")
    encoder, segmenter = exported.encoder(), exported.segmenter(BODY)
    export(segmenter, "monai-bundle", tmp_path / "segmenter")
    export(encoder, "monai-bundle", tmp_path / "encoder")
    side.run([HERE / "bundle_drive.py", tmp_path], packages)
    volume = ct.read(tmp_path / "images" / "a.nii.gz")
    labels = ct.read(tmp_path / "out" / "segmenter" / "a_seg.nii.gz", kind="label")
    wanted = segmenter(volume)
    np.testing.assert_allclose(labels.affine, wanted.affine, atol=1e-4)
    assert (labels.voxels == wanted.voxels)[1:-1, 1:-1, 1:-1].mean() > 0.999  # the rim: see test_export_monai
    assert np.unique(wanted.voxels).size == 4
    vector = torch.load(tmp_path / "out" / "encoder" / "embeddings.pt", weights_only=True)["a.nii.gz"].numpy()
    ours = np.asarray(encoder(volume).vector)
    np.testing.assert_allclose(vector, ours, atol=1e-3 * np.abs(ours).max())
