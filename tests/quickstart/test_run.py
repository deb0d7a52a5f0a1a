"""The main job end to end, small: every step runs, what it writes is whole, and running it again continues."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import worlds
from ctfoundry import io
from ctfoundry.errors import UsageError
from ctfoundry.evaluate.gather import fill_store, gather
from ctfoundry.quickstart import quickstart
from ctfoundry.volume import Volume


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six bodies in six folders whose names are patients' names; a ball is labelled in each."""
    folder = tmp_path_factory.mktemp("data")
    for seed in range(6):
        home = folder / f"Secret Name {seed}"
        scan = worlds.body(seed, (28, 60, 64), (6, 2, 2))
        voxels = np.zeros(scan.shape, np.uint8)
        voxels[12:15, 26:32, 28:34] = 1
        io.write(scan, home / "ct.nii.gz")
        io.write(Volume(voxels, scan.affine, "label"), home / "labels.nii.gz")
        (home / "labels.json").write_text('{"1": "ball"}')
    return folder


@pytest.fixture(scope="module")
def out(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "run"
    quickstart(folder, data=data, minutes=0.05, device="cpu", quiet=True)
    return folder


def test_everything_is_there(out):
    results = json.loads((out / "run.json").read_text())["results"]
    assert results["patients"] == 6
    assert results["held_out_patients"] == 2
    assert set(results["view_matching"]) == {"pretrained", "random weights", "HU bands of the crop"}
    assert set(results["localisation_mm"]) == {
        "pretrained", "random weights", "HU around the cell", "position in the body box", "best possible cell",
    }  # fmt: skip
    # two patients are an example, never an interval
    assert results["view_matching_gain"]["low"] is None
    for name in ("model.safetensors", "model.json", "metrics.jsonl"):
        assert (out / "run" / name).is_file()
    assert (out / "embeddings" / "pretrained" / "index.parquet").is_file()


def test_held_out_patients_are_not_trained_on(out):
    results = json.loads((out / "run.json").read_text())["results"]
    assert results["pretraining"]["patients"] == 4


def test_the_report_is_one_honest_page(out):
    text = (out / "report.html").read_text()

    class Links(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.loaded: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.loaded += [
                value or ""
                for name, value in attrs
                if name == "src" or (name == "href" and not (value or "").startswith("#"))
            ]

    links = Links()
    links.feed(text)
    assert all(link.startswith("data:") for link in links.loaded)
    assert "(example" in text
    assert "random weights" in text


def test_patients_stay_out_of_outputs(out, data):
    """Folder names, which may be patients' names, stand in the one private file only."""
    for path in out.rglob("*"):
        if path.is_file() and path.name != "private.json":
            content = path.read_bytes()
            assert b"Secret" not in content, path
            assert str(data).encode() not in content, path
    private = out / "private.json"
    assert "Secret Name" in private.read_text()
    assert private.stat().st_mode & 0o777 == 0o600


def test_running_it_again_continues(out, data):
    first = json.loads((out / "run.json").read_text())["results"]
    again = quickstart(out, data=data, minutes=0.05, device="cpu", quiet=True)["results"]
    assert again["pretraining"]["steps"] == first["pretraining"]["steps"]
    assert again["view_matching"] == first["view_matching"]
    assert again["localisation_mm"] == first["localisation_mm"]


def test_more_minutes_go_on_with_the_same_folder(out, data, tmp_path):
    """Another encoder comes out, so the embeddings of the first are made anew instead of ending the run."""
    shutil.copytree(out, tmp_path / "run")
    first = json.loads((out / "run.json").read_text())["results"]["pretraining"]
    again = quickstart(tmp_path / "run", data=data, minutes=0.15, device="cpu", quiet=True)["results"]["pretraining"]
    assert again["steps"] > first["steps"]


def test_a_store_of_earlier_data_keeps_no_scan_under_another_patients_name(data, tmp_path):
    """Training chooses by patient: a scan that is held out now must not get in by the name that it had before."""
    few = tmp_path / "few"
    for seed in (1, 3, 5):
        shutil.copytree(data / f"Secret Name {seed}", few / str(seed))
    for folder in (few, data):
        gathered = gather(folder)
        store = fill_store(tmp_path / "store", gathered.scans, (6.0, 2.0, 2.0))
        assert {e.id: e.patient for e in store.entries} == {s.id: s.patient for s in gathered.scans}


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_no_time_is_no_run(tmp_path, minutes):
    with pytest.raises(UsageError, match="minutes is a number above 0"):
        quickstart(tmp_path / "out", data=tmp_path, minutes=minutes, quiet=True)
    assert not (tmp_path / "out").exists()


def test_one_scan_is_not_enough(tmp_path):
    io.write(worlds.body(0, (28, 60, 64), (6, 2, 2)), tmp_path / "in" / "ct.nii.gz")
    with pytest.raises(UsageError, match=r"found 1 usable CT scan\(s\), two are needed"):
        quickstart(tmp_path / "out", data=tmp_path / "in", minutes=0.01, device="cpu", quiet=True)


def test_real_scans_count_patients_not_files(shared_ct, tmp_path):
    """The folder of real scans: which of them are one patient (SOURCES.csv), and what is no scan."""
    for name in ("totalseg-aorta", "totalseg-pulmonary", "sts-002-dicom", "elastix-lung-pair", "totalseg-brain-atlas"):
        shutil.copytree(shared_ct / name, tmp_path / name)
    real = tmp_path / "sts-ibsi-2mm"
    real.mkdir()
    for name in ("STS_001_CT.nii.gz", "STS_001_GTV.nii.gz", "STS_002_CT.nii.gz", "patients.csv"):
        (real / name).write_bytes((shared_ct / "sts-ibsi-2mm" / name).read_bytes())
    found = gather(tmp_path)
    # aorta and pulmonary crops of one CT angiography; STS_002 twice, as DICOM and as NIfTI; the elastix pair; STS_001
    assert len(found.patients) == 4
    assert len(found.scans) == 7
    assert len(found.twins) == 2
    assert found.left_out["not in Hounsfield units"] == 1  # the brain atlas
