"""Raw scans into a store: what is refused and why, what goes through marked, and archives like folders."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctfoundry import geometry, identity, io
from ctfoundry.errors import ContractError, CTFoundryError
from ctfoundry.ingest import prepare_store
from ctfoundry.io.dicom_write import write_series
from ctfoundry.preparation import Preparation, check
from ctfoundry.store import create, open_store
from ctfoundry.store.errors import ProvenanceError
from ctfoundry.store.sidecar import NOTE_LENGTH, read_sidecar
from ctfoundry.volume import Volume

AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))
BALL = np.sqrt(sum(np.meshgrid(*[np.linspace(-1, 1, 16) ** 2] * 3))) < 0.8
CT = np.where(BALL, 40 + 20 * np.random.default_rng(5).normal(size=BALL.shape), -1000).astype(np.int16)
IMAGES = {
    "unit": ((CT + 1024) / 1200).clip(0, 1).astype(np.float32),
    "window": np.clip((CT + 160) / 400 * 255, 0, 255).astype(np.uint8),
    "shifted": (CT + 1024).astype(np.uint16),
}


@pytest.fixture(autouse=True)
def _salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTFOUNDRY_SALT", "ingest-test")


def save(folder: Path, name: str, voxels: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.transpose(2, 1, 0), np.diag([-1.3, -0.8, 2.5, 1])), folder / name)
    return folder / name


def run_json(store: Path) -> dict:
    return json.loads((store / "run.json").read_text())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unit", "a normalised image"),
        ("window", "8-bit image through a window"),
        ("shifted", "stored without its intercept"),
    ],
)
def test_what_is_no_hu_is_refused_with_its_reason_or_marked(name: str, words: str, tmp_path: Path) -> None:
    save(tmp_path / "in", f"{name}.nii.gz", IMAGES[name])
    save(tmp_path / "in", "good.nii.gz", CT)
    refused = prepare_store([tmp_path / "in"], tmp_path / "store", "native")
    (reason,) = refused.failed.values()
    assert words in reason
    assert words in (tmp_path / "store" / "quarantine.csv").read_text()
    assert len(refused.added) == 1
    assert refused.notes == {}
    marked = prepare_store([tmp_path / "in"], tmp_path / "store", "native", i_know=True)
    assert (len(marked.added), len(marked.skipped), marked.failed) == (1, 1, {})
    (id,) = marked.added
    notes = open_store(tmp_path / "store").entry(id).notes
    assert notes[0].startswith("taken as HU because the caller says so, but values from ")
    assert words in notes[0]
    assert (name == "unit") == any("rounding to whole HU leaves 2 different values" in note for note in notes)
    assert open_store(tmp_path / "store").volume(id).notes == notes
    run = run_json(tmp_path / "store")
    assert run["results"]["notes"] == {id: list(notes)}
    assert "--i-know" in run["command"]
    assert open_store(tmp_path / "store").verify() == []
    if name != "unit":
        np.testing.assert_array_equal(open_store(tmp_path / "store").volume(id).voxels, IMAGES[name])


def test_labels_stay_out_whatever_somebody_knows(tmp_path: Path) -> None:
    save(tmp_path / "in", "mask.nii.gz", BALL.astype(np.uint8))
    outcome = prepare_store([tmp_path / "in"], tmp_path / "store", "native", i_know=True)
    assert (outcome.added, outcome.labels) == ([], 1)


def test_gaps_are_refused_or_marked(tmp_path: Path) -> None:
    write_series(tmp_path / "in", CT, AFFINE)
    (tmp_path / "in" / "0007.dcm").unlink()
    refused = prepare_store([tmp_path / "in"], tmp_path / "store", "native")
    assert ["slices are missing" in reason for reason in refused.failed.values()] == [True]
    marked = prepare_store([tmp_path / "in"], tmp_path / "store", "native", allow_gaps=True)
    (id,) = marked.added
    assert open_store(tmp_path / "store").entry(id).shape == CT.shape
    assert marked.notes[id] == list(open_store(tmp_path / "store").entry(id).notes) != []


def test_archives_are_sources_like_folders(tmp_path: Path) -> None:
    for k in (1, 2):
        write_series(tmp_path / "in" / f"{k}", CT + np.int16(k), AFFINE, series=f"{k}")
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(p for p in (tmp_path / "in").rglob("*.dcm")):
            archive.write(file, file.relative_to(tmp_path))
    plain = prepare_store([tmp_path / "in"], tmp_path / "a", "native")
    zipped = prepare_store([tmp_path / "all.zip"], tmp_path / "b", "native")
    assert sorted(zipped.added) == sorted(plain.added)  # a scan is its content, however it was packed
    assert len(plain.added) == 2
    both = prepare_store([tmp_path / "all.zip", tmp_path / "in"], tmp_path / "a", "native")
    assert (both.added, sorted(both.skipped)) == ([], sorted(plain.added))
    private = json.loads((tmp_path / "b" / identity.PRIVATE).read_text())
    assert all("all.zip#" in path for path in private.values())
    for id in plain.added:
        assert (tmp_path / "a" / "scans" / f"{id}.json").read_text() == (
            tmp_path / "b" / "scans" / f"{id}.json"
        ).read_text()


# Notes in a store -----------------------------------------------------------------------------------------------------


def test_a_sidecar_without_notes_is_as_before(tmp_path: Path) -> None:
    with create(tmp_path / "s", "native") as store:
        store.add(Volume(CT, AFFINE), "plain", patient="p")
        store.add(Volume(CT, AFFINE, notes=("tilt undone",)), "noted", patient="p")
    plain = json.loads((tmp_path / "s" / "scans" / "plain.json").read_text())
    noted = json.loads((tmp_path / "s" / "scans" / "noted.json").read_text())
    assert "notes" not in plain  # an older program reads it
    assert noted.pop("notes") == ["tilt undone"]
    assert set(plain) == set(noted)
    assert read_sidecar(tmp_path / "s" / "scans" / "plain.json", "plain").notes == ()


def test_notes_are_short_plain_and_no_paths(tmp_path: Path) -> None:
    with create(tmp_path / "s", "native") as store:
        store.add(Volume(CT, AFFINE, notes=("x" * 1000, "tilt of 12°")), "a", patient="p")
        for path in ("/home/somebody/scan.nii", "C:\\scans\\a.dcm", "file:///a"):
            with pytest.raises(ProvenanceError, match="a note looks like a path"):
                store.add(Volume(CT, AFFINE, notes=(path,)), "b", patient="p")
        assert store.entry("a").notes == ("x" * NOTE_LENGTH, "tilt of 12?")


def test_refusals_of_stores_and_preparations_say_why(tmp_path: Path) -> None:
    volume = io.read(save(tmp_path, "a.nii.gz", IMAGES["shifted"]))
    with create(tmp_path / "s", "native") as store, pytest.raises(ContractError, match=r"HU \+ 1024.*\n.*--i-know"):
        store.add(volume, "a", patient="p")
    with pytest.raises(ContractError, match=r"takes hu, this volume is 'other'; not HU: .*HU \+ 1024"):
        check(Preparation("any", 1), volume)


def test_a_source_that_is_no_scan(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(CTFoundryError, match=r"a\.txt: is neither a folder nor a scan"):
        prepare_store([tmp_path / "a.txt"], tmp_path / "store", "native")
