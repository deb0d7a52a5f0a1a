"""Listing a tree: scans and label maps are told apart as a reader of the whole files tells them, from a few slices of each."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

import worlds
from ctfoundry import io
from ctfoundry.errors import UsageError
from ctfoundry.io import reading
from ctfoundry.io.glance import FIRST, is_label
from ctfoundry.retrieval.embed import Scan, embed, load_index
from ctfoundry.retrieval.sources import query_in_index, resolve
from ctfoundry.volume import Volume


def numbers() -> dict[str, np.ndarray]:
    """Voxels (x, y, z) of all kinds."""
    scan = worlds.body(0, (20, 24, 26)).voxels.transpose(2, 1, 0)
    label = np.zeros(scan.shape, np.uint8)
    label[4:12, 4:12, 4:12] = 3
    picture = np.clip((scan + 200) / 2, 0, 255).astype(np.uint8)
    late = np.clip(scan, 0, None)
    late[..., FIRST + 2 :] = scan[..., FIRST + 2 :]
    return {
        "scan": scan,
        "floats": scan + np.float32(0.25),
        "labels": label,
        "labels-as-floats": label.astype(np.float32),
        "picture": picture,
        "normalised": np.linspace(0, 1, scan.size, dtype=np.float32).reshape(scan.shape),
        "no-air-at-first": late,
        "shifted": (scan + 1024).astype(np.uint16),
    }


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_labels_are_told_as_by_reading_all(tmp_path, suffix):
    affine = np.diag([2.0, 2.0, 6.0, 1.0])
    for name, voxels in numbers().items():
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}{suffix}")
    swapped = nib.Nifti1Image(numbers()["scan"].astype(">i2"), affine, nib.Nifti1Header(endianness=">"))
    nib.save(swapped, tmp_path / f"swapped{suffix}")
    scaled = nib.Nifti1Image(numbers()["scan"], affine)
    scaled.header.set_slope_inter(1, -1024)  # stored without a number below 0
    nib.save(scaled, tmp_path / f"scaled{suffix}")
    found = {item.path.name.partition(".")[0]: item for item in io.discover(tmp_path).found}
    told = {name: is_label(item) for name, item in found.items()}
    assert told == {name: item.read().kind == "label" for name, item in found.items()}
    assert {name for name, label in told.items() if label} == {"labels", "labels-as-floats"}


def test_the_real_scans_and_their_labels_are_told_apart(shared_ct):
    items = io.discover(shared_ct / "sts-ibsi-2mm").found[:12]
    assert [is_label(item) for item in items] == [item.path.name.endswith("GTV.nii.gz") for item in items]


def test_scans_are_listed_without_being_read_and_one_that_ends_too_early_fails_when_it_is(tmp_path, monkeypatch):
    whole, short = tmp_path / "scans" / "a.nii.gz", tmp_path / "scans" / "b.nii.gz"
    io.write(worlds.body(0, (20, 24, 26)), whole)
    io.write(worlds.body(1, (20, 24, 26)), tmp_path / "b.nii")
    with gzip.open(short, "wb") as stream:
        stream.write((tmp_path / "b.nii").read_bytes()[:-5000])
    mask = np.zeros((20, 24, 26), np.uint8)
    mask[5:9, 5:9, 5:9] = 1
    with monkeypatch.context() as patched:
        patched.setattr(reading, "read", None)  # reading one would be an error
        listed = resolve([str(tmp_path / "scans")])
    assert (len(listed.scans), listed.failed) == (2, {})
    io.write(Volume(mask, worlds.body(0, (20, 24, 26)).affine, "label"), tmp_path / "scans" / "mask.nii.gz")
    again = resolve([str(tmp_path / "scans")])
    assert (len(again.scans), again.labels) == (2, 1)
    outcome = embed([s.scan for s in again.scans], worlds.tiny(), tmp_path / "emb")
    bad = next(s.scan.id for s in again.scans if s.path.endswith("b.nii.gz"))
    assert list(outcome.failed) == [bad]
    assert "ends after" in outcome.failed[bad]


def test_what_may_be_a_scan_and_cannot_be_read_fails_and_junk_does_not(tmp_path):
    """As `prepare` has it: a download that broke off is named, once for all slices of a folder."""
    io.write(worlds.body(0), tmp_path / "good.nii.gz")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "cut.nii.gz").write_bytes(b"")
    (tmp_path / "series").mkdir()
    for i in range(3):
        (tmp_path / "series" / f"{i}.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    found = resolve([str(tmp_path)])
    assert len(found.scans) == 1
    reasons = {found.failed_paths[id]: reason for id, reason in found.failed.items()}
    assert reasons == {str(tmp_path / "cut.nii.gz"): "empty file", str(tmp_path / "series"): "3 x damaged DICOM file"}
    assert found.skipped == {"not a scan file": 1}
    (tmp_path / "good.nii.gz").unlink()
    assert not resolve([str(tmp_path)]).scans  # and no error: the failures say more


def test_errors_of_several_indexes_say_which(tmp_path):
    scan = worlds.body(0)
    io.write(scan, tmp_path / "a.nii.gz")
    listed = [source.scan for source in resolve([str(tmp_path / "a.nii.gz")]).scans]
    other = [Scan("other", "d", lambda: worlds.body(1))]
    for name, scans in (("one", listed), ("two", other)):
        embed(scans, worlds.tiny(), tmp_path / name)
    (id,) = (scan.id for scan in listed)
    for query in (id, str(tmp_path / "a.nii.gz")):
        with pytest.raises(UsageError, match=f"the index {tmp_path}/two"):
            query_in_index(tmp_path / "two", load_index(tmp_path / "two"), query, None, None, "cpu", 0)
