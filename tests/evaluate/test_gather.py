"""Patients, near duplicates, landmarks and the split of the quickstart."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import worlds
from ctfoundry import io
from ctfoundry.errors import UsageError
from ctfoundry.evaluate import landmarks, patients
from ctfoundry.evaluate.gather import FEWEST_PATIENTS, Gathered, gather, hold_out
from ctfoundry.evaluate.patients import Coarse, alike
from ctfoundry.geometry import make_affine
from ctfoundry.volume import Volume


def scan(seed: int, spacing: tuple[float, float, float] = (4, 2, 2)) -> Volume:
    return worlds.body(seed, (24, 60, 64), spacing)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CTFOUNDRY_SALT", "test")
    for seed in range(5):
        io.write(scan(seed), tmp_path / f"case{seed}" / "ct.nii.gz")
    return tmp_path


def write_labels(home: Path, like: Volume, names: dict[int, str], boxes: dict[int, tuple[slice, slice, slice]]) -> None:
    voxels = np.zeros(like.shape, np.uint8)
    for label, box in boxes.items():
        voxels[box] = label
    io.write(Volume(voxels, like.affine, "label"), home / "labels.nii.gz")
    (home / "labels.json").write_text(json.dumps({str(k): v for k, v in names.items()}))


BALL = (slice(8, 12), slice(20, 30), slice(20, 30))


def test_one_folder_is_one_patient(folder):
    io.write(scan(7), folder / "case0" / "second.nii.gz")
    found = gather(folder)
    assert len(found.scans) == 6
    assert len(found.patients) == 5
    assert sum(s.name.endswith(("a", "b")) for s in found.scans) == 2


def test_a_patients_csv_in_the_folder_parts_its_files(folder):
    for name in ("A1", "A2"):
        io.write(scan(ord(name[1])), folder / "many" / f"{name}_ct.nii.gz")
    (folder / "many" / "patients.csv").write_text("patient,age\nA1,50\nA2,60\n")
    assert len(gather(folder).patients) == 7


def test_the_given_csv_wins(folder, tmp_path):
    table = tmp_path / "who.csv"
    table.write_text("path,patient\ncase0,x\ncase1/ct.nii.gz,x\n")
    assert len(gather(folder, table).patients) == 4


def test_a_csv_without_its_columns_is_named(folder, tmp_path):
    table = tmp_path / "who.csv"
    table.write_text("file,subject\na,b\n")
    with pytest.raises(UsageError, match="needs the columns path and patient"):
        gather(folder, table)


@pytest.mark.parametrize("rows", ["case0,\n", "case0\n", ",x\n"])
def test_a_csv_with_holes_is_named(folder, tmp_path, rows):
    """Otherwise all patients without a name would be one."""
    table = tmp_path / "who.csv"
    table.write_text("path,patient\n" + rows)
    with pytest.raises(UsageError, match="line 2 lacks a path or a patient"):
        gather(folder, table)


def test_a_csv_that_fits_no_scan_is_named(folder, tmp_path):
    """Otherwise one patient's scans would stand on both sides of the split, and nobody would know."""
    table = tmp_path / "who.csv"
    table.write_text("path,patient\nelsewhere/case0,x\nelsewhere/case1,x\n")
    with pytest.raises(UsageError, match="names none of the scans"):
        gather(folder, table)
    table.write_text("path,patient\n./case0/,x\ncase1,x\n")
    assert len(gather(folder, table).patients) == 4


def test_scans_with_one_header_and_other_numbers_are_two(tmp_path):
    """.mhd files of one geometry are equal to the byte: what tells them apart is the file beside each."""
    import SimpleITK as sitk

    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        image = sitk.GetImageFromArray(scan(seed).voxels)
        image.SetSpacing((2.0, 2.0, 4.0))
        sitk.WriteImage(image, str(tmp_path / str(seed) / "ct.mhd"))
    assert (tmp_path / "0" / "ct.mhd").read_bytes() == (tmp_path / "1" / "ct.mhd").read_bytes()
    assert len(gather(tmp_path).scans) == 2


def test_copies_and_resampled_copies_are_one_patient(folder):
    original = scan(0)
    (folder / "copy").mkdir()
    (folder / "copy" / "same.nii.gz").write_bytes((folder / "case0" / "ct.nii.gz").read_bytes())
    coarser = original.resample((6, 3, 3))
    io.write(coarser.with_voxels(np.round(coarser.voxels).astype(np.int16)), folder / "coarse" / "ct.nii.gz")
    found = gather(folder)
    assert found.left_out["a byte-for-byte copy of another scan"] == 1
    assert len(found.twins) == 1
    assert len(found.patients) == 5


def test_a_part_of_a_scan_in_its_own_frame_is_a_twin():
    whole = scan(0)
    part = whole.crop(((4, 20), (10, 50), (10, 54)))
    assert alike(Coarse.of(whole), Coarse.of(part)) == "the same place of one frame with the same content"


def test_other_bodies_in_one_frame_are_no_twins():
    assert alike(Coarse.of(scan(0)), Coarse.of(scan(1))) is None


def test_twins_join_over_several_scans():
    owners = {"a": "p1", "b": "p2", "c": "p3", "d": "p4"}
    twins = [patients.Twin("a", "b", ""), patients.Twin("b", "c", "")]
    merged = patients.merge_patients(owners, twins)
    assert len({merged["a"], merged["b"], merged["c"]}) == 1
    assert merged["d"] == "p4"


def test_landmarks_are_centroids_in_world(folder):
    volume = scan(0)
    write_labels(folder / "case0", volume, {1: "Liver"}, {1: BALL})
    found = next(s for s in gather(folder).scans if s.landmarks)
    expected = volume.world([9.5, 24.5, 24.5])
    np.testing.assert_allclose(found.landmarks["liver"], expected, atol=0.01)


def test_a_structure_cut_by_the_field_of_view_is_no_landmark():
    volume = scan(0)
    voxels = np.zeros(volume.shape, np.uint8)
    voxels[0:6, 20:30, 20:30] = 1
    voxels[BALL] = 2
    voxels[15, 40, 40] = 3
    labels = Volume(voxels, volume.affine, "label", names={1: "cut", 2: "whole", 3: "crumb"})
    assert set(landmarks.centroids(labels)) == {"whole"}


def test_unnamed_labels_are_no_landmarks():
    voxels = np.zeros((24, 60, 64), np.uint8)
    voxels[BALL] = 1
    assert landmarks.centroids(Volume(voxels, make_affine(), "label")) == {}


def test_masks_are_never_scans_and_other_kinds_are_counted(folder):
    write_labels(folder / "case0", scan(0), {1: "liver"}, {1: BALL})
    grey = np.clip((scan(0).voxels + 1024) / 2048, 0, 1).astype(np.float32)
    io.write(Volume(grey, scan(0).affine, "other"), folder / "case1" / "grey.nii.gz")
    (folder / "notes.txt").write_text("hello")
    truncated = (folder / "case2" / "ct.nii.gz").read_bytes()[:5000]
    (folder / "broken").mkdir()
    (folder / "broken" / "ct.nii.gz").write_bytes(truncated)
    found = gather(folder)
    assert len(found.scans) == 5
    assert found.labels == 1
    assert found.left_out["not in Hounsfield units"] == 1
    assert found.left_out["not a scan file"] >= 1
    assert any(reason.startswith("not readable") for reason in found.left_out)


def test_names_and_split_do_not_depend_on_salt_or_paths(folder, monkeypatch):
    first = gather(folder)
    monkeypatch.setenv("CTFOUNDRY_SALT", "another")
    (folder / "case0").rename(folder / "zzz")
    second = gather(folder)
    assert [(s.name, s.digest) for s in first.scans] == [(s.name, s.digest) for s in second.scans]
    assert [s.id for s in first.scans] != [s.id for s in second.scans]
    assert hold_out(first, 3) == hold_out(second, 3)


def test_patients_with_shared_landmarks_are_held_out_first(folder):
    found = gather(folder)
    known = {"liver": (0.0, 0.0, 0.0)}
    found.scans = [replace(s, landmarks=known if s.patient in ("P02", "P04") else {}) for s in found.scans]
    for seed in range(5):
        split = hold_out(found, seed)
        assert set(split.held_out) == {"P02", "P04"}
        assert not set(split.train) & set(split.held_out)


def test_with_few_patients_nobody_is_held_out_and_it_says_so():
    volume = scan(0)

    def one(name: str) -> object:
        from ctfoundry.evaluate.gather import Scan

        return Scan(name, name, name, name, volume.grid, lambda: volume, {}, (0, 1), "nifti")

    few = Gathered([one(f"P{i}") for i in range(FEWEST_PATIENTS - 1)], Counter())  # type: ignore[misc]
    split = hold_out(few, 0)
    assert not split.honest
    assert split.train == split.held_out


def test_no_such_folder(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        gather(tmp_path / "missing")
