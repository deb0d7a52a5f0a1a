"""``search`` and ``evaluate search`` on the command line: boxes, places, maps from disk, calibration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import worlds
from ctfoundry import files, io, zoo
from ctfoundry.cli.evaluate_search import _otherwise
from ctfoundry.encoder import Encoder
from ctfoundry.errors import UsageError
from ctfoundry.retrieval.search_maps import Looking, default_levels
from ctfoundry.volume import Volume
from program import result, run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    for seed in range(4):
        volume = worlds.body(seed, (24, 48, 48))
        io.write(volume, folder / "scans" / f"case{seed}" / "ct.nii.gz")
        voxels = np.zeros(volume.shape, np.uint8)
        voxels[10:14, 20:28, 20:28] = 1
        if seed != 3:
            voxels[6:9, 28:34, 14:20] = 2
        home = folder / "scans" / f"case{seed}"
        io.write(Volume(voxels, volume.affine, "label"), home / "labels.nii.gz")
        (home / "labels.json").write_text(json.dumps({"1": "heart", "2": "liver"}))
    zoo.save_model(worlds.tiny(), folder / "model.safetensors")
    return folder


def test_a_box_several_places_and_maps_from_disk(data, tmp_path, command, monkeypatch):
    model, query = data / "model.safetensors", data / "scans" / "case0" / "ct.nii.gz"
    x, y, z = io.read(query).world([12, 24, 24]).tolist()
    box = f"{x - 8},{y - 8},{z - 8},{x + 8},{y + 8},{z + 8}"
    target = data / "scans" / "case1" / "ct.nii.gz"
    found = result("search", "--model", model, "--query", query, "--box", box, "--target", target, "--places", 3)
    (hit,) = found["hits"]
    assert len(hit["places"]) == 3
    assert hit["places"][0]["point"] == hit["point"]
    assert (found["calibrated"], hit["confidence"], hit["present"]) == (False, None, None)

    index = tmp_path / "index"
    done = command("embed", query.parent, target.parent, "--model", model, "--grids", "-o", index)
    assert done["maps"] == {
        "levels": list(default_levels(worlds.tiny())),
        "scans": 2,
        "bytes": sum(p.stat().st_size for p in (index / "grids").iterdir()),
    }
    assert command("embeddings", "show", index)["maps"] == done["maps"]
    asked = ("search", "--model", model, "--query", query, "--box", box, "--target", target, "--places", 3)
    with monkeypatch.context() as patched:
        patched.setattr(Encoder, "__call__", None)  # a pass would be an error
        ours = command(*asked, "--index", index)
    assert ours["without_map"] == {}
    for one, other in zip(ours["hits"][0]["places"], hit["places"], strict=True):
        np.testing.assert_allclose(one["point"], other["point"], atol=0.5)
        np.testing.assert_allclose(one["similarity"], other["similarity"], atol=5e-3)
    # a scan that is not in the index is passed through the network, for the same answer again
    stranger = data / "scans" / "case2" / "ct.nii.gz"
    for more, turned in ((("--target", stranger), ()), ((), ("--query", stranger))):
        fresh, of_index = (command(*asked, *more, *turned, *option) for option in ((), ("--index", index)))
        assert len(of_index["without_map"]) == 1
        for one, other in zip(of_index["hits"], fresh["hits"], strict=True):
            np.testing.assert_allclose(one["point"], other["point"], atol=0.5)
    for options, code, said in (
        (("--shifts", "1x2x2"), 2, "are of one pass over each scan"),
        (("--within", "8x16x16"), 2, "are of one pass over each scan"),
        (("--method", "windows"), 2, "are of one pass over each scan"),
        (("--levels", "stage1,stage2"), 1, "stores maps of stage2, stage3, stage4; the search also takes stage1"),
    ):
        refused = command(*asked, "--index", index, *options, fails=True)
        assert (refused[0], said in refused[1]) == (code, True), refused
    asked = ("search", "--model", model, "--query", query, "--box", box, "--target", target, "--patch", "8")
    refused = command(*asked, fails=True)
    assert (refused[0], "has no patch size to choose" in refused[1]) == (2, True), "another family has none"
    wrong = run("search", "--model", model, "--query", query, "--target", target)
    assert wrong.returncode == 2
    assert "--point or a --box" in wrong.stderr


def test_calibrate_then_measure_then_search_with_confidence(data, tmp_path):
    model, scans = data / "model.safetensors", data / "scans"
    done = run("evaluate", "search", model, "--data", scans, "--calibrate", "--levels", "stage1,stage2", "--json")
    assert done.returncode == 0, done.stderr
    assert (data / "model.search.json").is_file()
    again = ("evaluate", "search", model, "--data", scans, "--levels", "stage1,stage2")
    measured = result(*again, "--beside", "windows=8x16x16,plain", "-o", tmp_path / "out")
    beside = next(name for name in measured["settings"] if name.endswith("windows=8x16x16,plain"))
    assert measured["settings"][beside] | {"window": [8, 16, 16], "whiten": False} == measured["settings"][beside]
    assert measured["agreement"][beside]["value"] is not None
    refused = run(*again, "--beside", "sideways")
    assert (refused.returncode, "'sideways' is no way to look" in refused.stderr) == (2, True)
    assert "these very scans" in measured["notes"][0]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"search.json", "report.html", "run.json", "parts"}
    query = scans / "case0" / "ct.nii.gz"
    point = ",".join(f"{v:.1f}" for v in io.read(query).world([12, 24, 24]))
    asked = ("search", "--model", model, "--query", query, "--point", point, "--target", scans / "case1" / "ct.nii.gz")
    found = result(*asked, "--levels", "stage1,stage2")
    assert found["calibrated"]
    assert 0 <= found["hits"][0]["confidence"] <= 1
    assert isinstance(found["hits"][0]["present"], bool)
    other = run(*asked, "--levels", "stage2", "--json")
    assert not json.loads(other.stdout)["calibrated"]
    assert "model.search.json was made for other weights or another way to look" in other.stderr


def test_a_patch_is_that_of_the_index(data, tmp_path, command):
    query, target = (data / "scans" / name / "ct.nii.gz" for name in ("case0", "case1"))
    flexict = ("--model", "flexict-tiny", "--weights", "random")
    command("embed", query.parent, target.parent, *flexict, "--patch", "6x16x16", "--grids", "-o", tmp_path / "index")
    point = ",".join(f"{v:.1f}" for v in io.read(query).world([12, 24, 24]))
    asked = ("search", *flexict, "--query", query, "--point", point, "--target", target)
    of_index = (*asked, "--index", tmp_path / "index")
    ours = command(*of_index, "--patch", "6x16x16")["hits"][0]
    passed = command(*asked, "--patch", "6x16x16")["hits"][0]
    other = command(*asked, "--patch", "12x24x24")["hits"][0]
    np.testing.assert_allclose(ours["point"], passed["point"], atol=0.5)
    np.testing.assert_allclose(ours["similarity"], passed["similarity"], atol=0.02)
    assert other["point"] != passed["point"]
    for options, code, said in (
        ((), 1, "with a patch of 6x16x16, not 8"),
        (("--patch", "16"), 1, "give --patch 6x16x16"),
        (("--patch", "6x16"), 1, "a patch of 3 axes is one number or 3"),
        (("--patch", "0"), 2, "is no patch size"),
        (("--patch", "x"), 2, "is no patch size"),
    ):
        refused = command(*of_index, *options, fails=True)
        assert (refused[0], said in refused[1]) == (code, True), refused


def test_a_report_does_not_overwrite_a_calibration(tmp_path):
    (tmp_path / "run").mkdir()
    done = run("evaluate", "search", tmp_path / "run", "-o", tmp_path / "run")
    assert done.returncode == 2
    assert "another folder" in done.stderr


def test_a_way_beside_is_another_one_or_refused():
    encoder, first = worlds.tiny(), Looking(window=(8, 16, 16))
    with pytest.raises(UsageError, match="no shifts"):
        _otherwise("shifts=1x2x2", first, encoder)
    found = _otherwise("dense,shifts=1x2x2", first, encoder)
    assert (found.window, found.shifts, found.levels) == (None, (1, 2, 2), default_levels(encoder))
    assert _otherwise("windows=8x16x16", found, encoder) == first


def test_a_bad_scan_is_named_and_the_others_are_measured(data, tmp_path, command, monkeypatch):
    """Exit 3, the reason and the place on stderr alone; a run that was stopped before the page is written goes on."""
    scans, asked = tmp_path / "scans", ("evaluate", "search", data / "model.safetensors", "--levels", "stage2")
    shutil.copytree(data / "scans", scans)
    (scans / "case1" / "labels.nii.gz").unlink()
    (scans / "case2" / "ct.nii.gz").write_bytes((scans / "case2" / "ct.nii.gz").read_bytes()[:2000])
    out = tmp_path / "out"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ctfoundry.evaluate.search_report.report", stop)
        assert command(*asked, "--data", scans, "-o", out, fails=True)[0] == 130
    assert {p.name for p in out.iterdir()} == {"parts"}
    (out / "parts" / "ways" / "stopped" / "cells" / "x").mkdir(parents=True)  # of a way that nobody asks for again
    with files.alone(out / "parts"):
        code, said = command(*asked, "--data", scans, "-o", out, fails=True)
    assert (code, "another run works here" in said) == (1, True)
    with monkeypatch.context() as patch:
        patch.setattr("ctfoundry.evaluate.search_walk.scene", stop)  # what was seen is not looked at again
        code, said = command(*asked, "--data", scans, "-o", out, fails=True)
    assert code == 3
    assert f"failed: P02 ({scans / 'case1'}): holds 1 CTs and 0 label maps" in said
    assert f"failed: P03 ({scans / 'case2'})" in said
    assert {p.name for p in out.iterdir()} == {"search.json", "report.html", "run.json", "parts"}
    assert not list(out.rglob("cells")), "nobody needs them any more"
    first = (out / "search.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("ctfoundry.evaluate.search_walk.scene", stop)
        patch.setattr("ctfoundry.evaluate.search_walk.Query", stop)  # nor is what was answered asked again
        assert command(*asked, "--data", scans, "-o", out, fails=True)[0] == 3
    assert (out / "search.json").read_bytes() == first
    measured = json.loads((out / "search.json").read_text())
    assert (measured["failed"], measured["made_from"]["scans"]) == (["P02", "P03"], 2)
    assert measured["seconds_from_scans"]["tiny"] == 2
    assert "2 of 4 scans could not be used: P02, P03." in (out / "report.html").read_text()
    assert not any(str(scans) in p.read_text() for p in out.rglob("*") if p.is_file())
    shutil.rmtree(scans / "case3")
    code, said = command(*asked, "--data", scans, fails=True)
    assert (code, "1 labelled scans: two are needed" in said, "P02: holds 1 CTs" in said) == (2, True, True)
