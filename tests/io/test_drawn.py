"""Segmentations and structure sets in a folder: found, matched to their image, read on its grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from ctfoundry import geometry, io
from ctfoundry.errors import NotAScanError, ReadError, TruncatedError
from ctfoundry.ingest import Checks, prepare_store
from ctfoundry.io.dicom_seg_write import write_seg
from ctfoundry.io.dicom_write import UID
from ctfoundry.io.rtstruct_write import write_rtstruct
from structures import FRAME, blobs, enhanced_file, same_places, seg_file, series, volume

AFFINE = geometry.make_affine((2.5, 0.8, 0.9), "SPL", (30.0, 40.0, -100.0))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """An image series, and its labels as SEG and RTSTRUCT in other folders; a second series of the same size elsewhere."""
    series(tmp_path / "scans" / "a", AFFINE, blobs().shape)
    other = geometry.shifted(AFFINE, (0, 3, 0))
    series(tmp_path / "scans" / "b", other, blobs().shape, series="2")
    labels = volume(AFFINE)
    write_seg(labels, tmp_path / "drawn" / "seg.dcm", tmp_path / "scans" / "a", kind="LABELMAP")
    write_rtstruct(labels, tmp_path / "drawn" / "rs.dcm", tmp_path / "scans" / "a")
    return tmp_path


def test_labels_come_on_the_grid_of_their_image(study: Path) -> None:
    found = io.discover(study)
    by_modality = {item.modality: item for item in found.found if item.is_label}
    assert set(by_modality) == {"SEG", "RTSTRUCT"}
    assert len(found.scans) == 2
    assert found.skips == ()
    image = next(item for item in found.scans if item.series == f"{UID}.1")
    for modality, item in by_modality.items():
        assert (item.image, item.problem, item.format) == (image.series, None, "dicom")
        assert item.series not in (image.series, None)
        assert (item.study, item.patient) == (image.study, image.patient)
        assert item.name == str(item.path)
        assert item.grid == image.grid
        labels = item.read()
        assert (labels.kind, labels.grid) == ("label", image.grid)
        np.testing.assert_array_equal(labels.voxels, blobs(), err_msg=modality)
        assert labels.names == volume(AFFINE).names
        with pytest.raises(NotAScanError, match="structures, not a scan"):
            item.read(kind="hu")


def test_read_takes_a_seg_alone(study: Path) -> None:
    labels = io.read(study / "drawn" / "seg.dcm")
    assert labels.kind == "label"
    assert labels.shape == (5, 10, 12)  # the slices that hold something
    same_places(volume(AFFINE), labels)
    with pytest.raises(NotAScanError, match="structures, not a scan"):
        io.read(study / "drawn" / "seg.dcm", kind="hu")
    with pytest.raises(NotAScanError, match=r"is a structure set.*\n.*read_rtstruct\(path, onto=image.grid\)"):
        io.read(study / "drawn" / "rs.dcm")


def test_without_their_image(study: Path) -> None:
    found = io.discover(study / "drawn")
    (item,) = found.found
    assert (item.modality, item.image) == ("SEG", "")
    assert item.grid is not None
    assert item.grid == item.read().grid
    assert found.skipped == {"structure set (RTSTRUCT)": 1}


def test_matched_by_frame_of_reference_where_one_image_has_it(study: Path) -> None:
    """Made anonymous by halves: the series that is named is not there under that name."""
    path = study / "drawn" / "rs.dcm"
    data = pydicom.dcmread(path)
    inner: Any = data.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    inner.SeriesInstanceUID = f"{UID}.999"
    data.save_as(path)
    (study / "drawn" / "seg.dcm").unlink()
    assert io.discover(study).skipped == {"structure set (RTSTRUCT)": 1}  # two images have the frame of reference
    for other in (study / "scans" / "b").iterdir():
        other.unlink()
    (item,) = (f for f in io.discover(study).found if f.is_label)
    assert item.image == f"{UID}.1"
    np.testing.assert_array_equal(item.read().voxels, blobs())


def test_a_series_of_two_volumes_is_a_problem_with_a_name(study: Path) -> None:
    series(study / "scans" / "c", geometry.shifted(AFFINE, (0, 0, 0)), (7, 10, 14))
    for path in (study / "scans" / "c").iterdir():
        data = pydicom.dcmread(path)
        data.SOPInstanceUID = str(data.SOPInstanceUID) + ".5"
        data.save_as(path)
    labels = [item for item in io.discover(study).found if item.is_label]
    assert len(labels) == 2
    for item in labels:
        assert item.grid is None
        assert "holds 2 volumes" in str(item.problem)
        with pytest.raises(type(item.problem), match="holds 2 volumes"):  # type: ignore[arg-type]
            item.read()


def test_damaged_ones_are_listed_with_their_problem(tmp_path: Path) -> None:
    seg_file(tmp_path / "a.dcm", [((0, 0, 0), 9, np.ones((8, 16)))])
    whole = seg_file(tmp_path / "b.dcm", [((0, 0, 0), 1, np.ones((8, 16)))]).read_bytes()
    (tmp_path / "b.dcm").write_bytes(whole[: len(whole) // 2])
    found = io.discover(tmp_path)
    assert [type(f.problem) for f in found.found] == [ReadError, TruncatedError]
    assert all(f.is_label and f.problem is not None and f.problem.__traceback__ is None for f in found.found)
    assert found.skips == ()


def test_a_store_leaves_them_out_as_labels(study: Path, tmp_path: Path) -> None:
    checks = Checks(min_slices=1, min_cover_mm=1.0, min_body=0.0, min_plausible=0.0)
    outcome = prepare_store([study / "scans", study / "drawn"], tmp_path / "store", "native", checks=checks)
    assert (len(outcome.added), outcome.labels, outcome.failed) == (2, 1, {})
    again = prepare_store([study], tmp_path / "store2", "native", checks=checks)
    assert (len(again.added), again.labels, again.failed) == (2, 2, {})


def test_an_enhanced_image_is_drawn_on_like_a_series(tmp_path: Path) -> None:
    """Both objects name the frame of the one file in which each slice lies."""
    source = enhanced_file(tmp_path / "ct" / "e.dcm", AFFINE, blobs().shape)
    labels = volume(AFFINE)
    write_seg(labels, tmp_path / "seg.dcm", source.parent, kind="LABELMAP")
    write_rtstruct(labels, tmp_path / "rs.dcm", [source])
    items = [item for item in io.discover(tmp_path).found if item.is_label]
    assert [item.image for item in items] == [f"{UID}.8"] * 2
    for item in items:
        np.testing.assert_array_equal(item.read().voxels, blobs())
    for outline in pydicom.dcmread(tmp_path / "rs.dcm").ROIContourSequence[0].ContourSequence:
        frame = int(outline.ContourImageSequence[0].ReferencedFrameNumber)
        assert float(outline.ContourData[2]) == pytest.approx(-100 + 2.5 * (frame - 1), abs=1e-4)
    for item in pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence:
        frame = int(item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber)
        z = float(item.PlanePositionSequence[0].ImagePositionPatient[2])
        assert z == pytest.approx(-100 + 2.5 * (frame - 1), abs=1e-4)


def test_frame_of_reference_is_that_of_the_images(study: Path) -> None:
    assert pydicom.dcmread(study / "drawn" / "seg.dcm").FrameOfReferenceUID == FRAME
