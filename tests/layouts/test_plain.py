"""Phantoms as plain folders: what is written is what was made, whole or not at all, and only once."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from ctfoundry import files, io
from ctfoundry.layouts import plain
from ctfoundry.layouts.cases import Case, Cohort, cases
from ctfoundry.phantom import make
from ctfoundry.phantom.spec import Spec
from ctfoundry.settings import from_data, to_data

COHORT = Cohort(1, 11, view="pelvis", voxel_mm=12.0, lesions=True, repeat=2)


def test_a_case_as_files(tmp_path, case_of):
    case: Case = case_of(0, code="LAS")
    plain.write_phantom(tmp_path, case, dicom=True)
    for name in ("ct", "labels", "lesions"):
        volume = getattr(case.phantom, name)
        image = nib.load(tmp_path / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), volume.voxels)
        np.testing.assert_allclose(image.affine[:, [2, 1, 0, 3]], volume.affine, atol=1e-4)
    data = json.loads((tmp_path / "findings.json").read_text())
    assert data["schema"] == "ctfoundry-findings/1"
    assert [f["kind"] for f in data["findings"]] == [f.kind for f in case.findings]
    assert set(data["findings"][0]) == {
        "lesion", "kind", "site", "side", "size_mm", "volume_ml", "centre_mm", "whole", "attributes",
    }  # fmt: skip
    assert set(data["negatives"]).isdisjoint(f["kind"] for f in data["findings"])
    assert data["spec"] == files.digest(json.loads((tmp_path / "spec.json").read_text()))
    assert (tmp_path / "report.txt").read_text() == case.report.text
    assert json.loads((tmp_path / "lesions.json").read_text())["2"] == "liver_lesion 2"
    assert len(list((tmp_path / "dicom").glob("*.dcm"))) == 18
    assert io.read(tmp_path / "lesions.nii.gz").names[2] == "liver_lesion 2"  # not "kidney_right", which is label 2
    assert io.read(tmp_path / "labels.nii.gz").names[2] == "kidney_right"


def test_spec_json_makes_the_same_scan_again(tmp_path):
    names = plain.make_patient(tmp_path, COHORT, 0)
    assert names == ["phantom-11-000", "phantom-11-000-b"]
    home = tmp_path / names[1]
    spec = from_data(Spec, json.loads((home / "spec.json").read_text()))
    again = make(spec)
    np.testing.assert_array_equal(np.asarray(nib.load(home / "ct.nii.gz").dataobj).transpose(2, 1, 0), again.ct.voxels)
    first = json.loads((tmp_path / names[0] / "spec.json").read_text())
    assert to_data(spec)["subject"]["seed"] == first["subject"]["seed"]
    assert json.loads((home / "findings.json").read_text())["report"]["comparison"]


def test_finished_phantoms_are_kept_and_unfinished_ones_are_not(tmp_path, monkeypatch):
    cohort = Cohort(1, 11, view="pelvis", voxel_mm=12.0)
    name = plain.make_patient(tmp_path, cohort, 0)[0]
    ct = tmp_path / name / "ct.nii.gz"
    stamp = ct.stat().st_mtime_ns
    plain.make_patient(tmp_path, cohort, 0)
    assert ct.stat().st_mtime_ns == stamp
    (tmp_path / name / "report.txt").unlink()
    plain.make_patient(tmp_path, cohort, 0)
    assert (tmp_path / name / "report.txt").is_file()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    changed = Cohort(1, 11, view="pelvis", voxel_mm=13.0)
    monkeypatch.setattr(files, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        plain.make_patient(tmp_path, changed, 0)
    assert not (tmp_path / name / "spec.json").exists()  # nobody takes old files for new ones


def test_a_larger_cohort_begins_with_the_smaller_one():
    assert Cohort(9, 4).specs(2) == Cohort(3, 4).specs(2)
    assert Cohort(3, 4).specs(2) != Cohort(3, 5).specs(2)


def test_healthy_cohorts_have_neither_lesions_nor_comparison():
    (case,) = cases(Cohort(1, 2, view="pelvis", voxel_mm=12.0), 0)
    assert case.findings == ()
    assert case.report.comparison == ""
    assert case.data()["findings"] == []
