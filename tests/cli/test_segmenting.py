"""``ctfoundry segment`` as a stranger starts it: folders, exit codes, records, no paths in what is shown around."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import program
from adapt import levels
from ctfoundry import geometry, io, zoo
from ctfoundry.cli.segmenting import _item
from ctfoundry.retrieval.sources import resolve
from ctfoundry.segmenter import Segmenter
from ctfoundry.zoo.files import save_model
from infer import networks
from structures import blobs

AFFINE = geometry.make_affine((2.5, 0.8, 0.9), "SPL", (30.0, 40.0, -100.0))
CLEAN = ("labels.json", "model.json", "volumes.csv", "volumes.json", "run.json", "qc.html")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    save_model(networks.segresnet(), tmp_path / "model" / "model.safetensors")
    return tmp_path / "model"


def test_a_folder_of_scans_and_a_broken_one(model: Path, tmp_path: Path) -> None:
    scans = tmp_path / "Doe^Jane"
    levels.nifti(scans / "a.nii.gz", levels.scan(AFFINE, seed=1))
    levels.dicom(scans / "series", levels.scan(AFFINE, seed=2), 7)
    broken = (scans / "a.nii.gz").read_bytes()[:200]
    (scans / "broken.nii.gz").write_bytes(broken)
    out = tmp_path / "out"
    options = ("--model", model, "-o", out, "--labels", "part1,part3", "--dicom-seg", "--mirror", "--overlap", "0.25")
    done = program.run("segment", scans, *options, "--json")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert len(found["done"]) == 2
    assert len(found["failed"]) == 2
    assert any("does not come from a DICOM series" in text for text in found["failed"].values())
    assert {row["name"] for row in found["volumes"]} == {"part1", "part3"}
    assert done.stderr.count("Doe^Jane") == 2  # where the failed ones are
    assert "segment: window" in done.stderr
    for name in CLEAN:
        assert "Doe" not in (out / name).read_text(), name
    private = json.loads((out / "private.json").read_text())
    assert sum("Doe^Jane" in path for path in private.values()) == 3
    (seg,) = out.glob("*.seg.dcm")
    written = io.read(out / seg.name.replace(".seg.dcm", ".nii.gz"))
    onto = io.read_seg(seg, onto=written.grid)
    for value, number in ((1, 1), (3, 2)):
        np.testing.assert_array_equal(written.voxels == value, onto.voxels == number)
    record = json.loads((out / "run.json").read_text())
    assert set(record["outputs"]) == {"volumes.csv", "volumes.json", "labels.json", "model.json"}
    again = program.run("segment", scans, *options, "--json", "--quiet")
    assert again.returncode == 3
    assert json.loads(again.stdout) == found | {"done": [], "skipped": found["done"]}


def test_wrong_use_is_said_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    levels.nifti(tmp_path / "a.nii.gz", levels.scan(AFFINE))
    done = program.run("segment", tmp_path / "a.nii.gz", "--model", model, "-o", tmp_path / "out", "--labels", "livr")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no structure 'livr'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_where_dicom_objects_can_refer_to(tmp_path: Path) -> None:
    """A folder, one of its series by name, one slice, an archive and a NIfTI file."""
    import zipfile

    folder = Path(levels.dicom(tmp_path / "series", levels.scan(AFFINE), 7).series)
    levels.nifti(tmp_path / "a.nii.gz", levels.scan(AFFINE, blobs()))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    uid = io.discover(folder).found[0].series

    def item(text: Path | str) -> object:
        (source,) = resolve([str(text)]).scans
        return _item(source)

    assert item(folder).series == f"{folder}#{uid}"
    assert item(f"{folder}#{uid}").series == f"{folder}#{uid}"
    assert item(tmp_path / "a.nii.gz").series is None
    assert "archive" in item(tmp_path / "all.zip").no_series


def test_windows_are_counted_over_scans_that_are_written_while_the_next_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ctfoundry.adapt.apply import Step
    from ctfoundry.cli.segmenting import _Teller
    from ctfoundry.train.progress import Progress

    teller = _Teller(Progress("segment", unit="window"))
    for step in (Step(0, 2, 4, 8, "a"), Step(0, 2, 8, 8, "a"), Step(1, 2, 3, 6, "b"), Step(1, 2, 0, 0, "a")):
        teller(step)
    assert teller.windows == 11
    for step in (Step(1, 2, 6, 6, "b"), Step(2, 2, 0, 0, "b")):
        teller(step)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("segment: window 11, 50%, ")
    assert first.endswith("1 of 2 scans through, a written")
    assert last == "segment: window 14, 100%, 0 s left, 2 of 2 scans through, b written"


def test_a_name_of_the_zoo_takes_weights(model: Path, tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of that name has 88 million weights: a small one stands in for it once name and file have come through."""
    levels.nifti(tmp_path / "scans" / "a.nii.gz", levels.scan(AFFINE, seed=1))
    load, asked = zoo.load_segmenter, []

    def small(name: str, *, weights: str | None = None, device: str = "auto") -> Segmenter:
        asked.append((name, weights))
        return load(model, device=device)

    monkeypatch.setattr(zoo, "load_segmenter", small)
    named = ("segment", tmp_path / "scans", "--model", zoo.WHOLE_BODY, "--weights", "body.safetensors")
    assert len(command(*named, "-o", tmp_path / "out")["done"]) == 1
    assert asked == [(zoo.WHOLE_BODY, "body.safetensors")]
    monkeypatch.undo()
    code, said = command(*named[:-2], "-o", tmp_path / "none", fails=True)
    assert (code, "no weights come with it" in said) == (1, True)
