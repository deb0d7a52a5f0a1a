"""The verb convert between label maps, DICOM SEG and RTSTRUCT; once in a process of its own, else in this one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import typer

from ctfoundry import geometry, io
from ctfoundry.cli.common import app
from ctfoundry.errors import MissingSlicesError, UsageError
from ctfoundry.io.overlaps import OverlapError
from program import result
from structures import blobs, rtstruct_file, seg_file, series, volume

AFFINE = geometry.make_affine((2.5, 0.8, 0.9), "SPL", (30.0, 40.0, -100.0))
NAMES = {"1": "liver", "2": "kidney_left", "5": "thing"}


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Any:
    """``ctfoundry convert ARGUMENTS --json`` without a process; returns the document."""
    for module in ("convert", "inspect"):  # two verbs at least, or typer makes the one the whole program
        importlib.import_module(f"ctfoundry.cli.{module}")

    def run(*arguments: object) -> Any:
        typer.main.get_command(app).main(["convert", *map(str, arguments), "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def study(tmp_path: Path) -> Path:
    series(tmp_path / "ct", AFFINE, blobs().shape)
    labels = volume(AFFINE).reorient("LAI")  # as another program may have written them
    io.write(labels, tmp_path / "nifti" / "labels.nii.gz")
    (tmp_path / "nifti" / "labels.json").write_text(json.dumps(NAMES))
    return tmp_path


@pytest.mark.parametrize("kind", ["labelmap", "rtstruct"])
def test_to_dicom_and_back(kind: str, study: Path, convert: Any) -> None:
    made = convert(study / "nifti" / "labels.nii.gz", study / "x.dcm", "--as", kind, "--like", study / "ct")
    assert made["labels"] == NAMES
    convert(study / "x.dcm", study / "back" / "x.nii.gz", "--like", study / "ct")
    back = nib.load(study / "back" / "x.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(back.dataobj).transpose(2, 1, 0), blobs())
    np.testing.assert_allclose(back.affine[:, [2, 1, 0, 3]], AFFINE, atol=1e-4)
    assert json.loads((study / "back" / "labels.json").read_text()) == NAMES
    assert io.read(study / "back" / "x.nii.gz").names == {int(k): v for k, v in NAMES.items()}


def test_a_binary_seg_numbers_from_1(study: Path) -> None:
    made = result("convert", study / "nifti" / "labels.nii.gz", study / "x.dcm", "--as", "seg", "--like", study / "ct")
    assert made["labels"] == {"1": "liver", "2": "kidney_left", "3": "thing"}
    assert "5x10x12" in repr(io.read(study / "x.dcm"))  # the slices that hold something


def test_gaps_are_errors_unless_allowed(study: Path, convert: Any) -> None:
    sorted((study / "ct").iterdir())[3].unlink()
    with pytest.raises(MissingSlicesError):
        convert(study / "ct", study / "x.nii")
    made = convert(study / "ct", study / "x.nii", "--allow-gaps")
    assert "nothing was measured from" in made["notes"][0]
    assert nib.load(study / "x.nii").shape == blobs().shape[::-1]


def test_overlaps_and_choice(tmp_path: Path, convert: Any) -> None:
    big, small = np.zeros((8, 16), bool), np.zeros((8, 16), bool)
    big[1:7, 1:15], small[2:5, 3:6] = True, True
    path = seg_file(tmp_path / "seg.dcm", [((0, 0, 0), 1, big), ((0, 0, 0), 2, small)])
    with pytest.raises(OverlapError, match="liver and spleen in 9 voxels"):
        convert(path, tmp_path / "a" / "x.nii.gz")
    assert not (tmp_path / "a").exists()
    made = convert(path, tmp_path / "a" / "x.nii.gz", "--overlap", "smallest")
    assert "9 voxels" in made["notes"][0]
    one = convert(path, tmp_path / "b" / "x.nii.gz", "--only", "spleen")
    assert one["labels"] == {"2": "spleen"}
    with pytest.raises(UsageError, match="names other labels already"):
        convert(path, tmp_path / "b" / "y.nii.gz", "--only", "liver")
    assert not (tmp_path / "b" / "y.nii.gz").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{labels}", "{to}.dcm"], "--as is seg, labelmap or rtstruct"),
        (["{labels}", "{to}.dcm", "--as", "seg"], "needs --like"),
        (["{labels}", "{to}.nii.gz", "--as", "seg"], "and for no other"),
        (["{labels}", "{to}.nii.gz", "--overlap", "most"], "--overlap is error or smallest"),
        (["{rs}", "{to}.nii.gz"], "give the image with --like"),
        (["{labels}", "{to}.nii.gz", "--only", "liver"], "are for a DICOM SEG or RTSTRUCT"),
        (["{labels}", "{to}.nii.gz", "--like", "{ct}"], "--like is for"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, study: Path, convert: Any) -> None:
    places = {
        "labels": study / "nifti" / "labels.nii.gz",
        "rs": rtstruct_file(study / "rs.dcm", [(1, "organ", [])]),
        "ct": study / "ct",
        "to": study / "x",
    }
    with pytest.raises(UsageError, match=words):
        convert(*(a.format(**places) for a in arguments))
    assert not list(study.glob("x.*"))
