"""RTSTRUCT in and out: every voxel in its place, by one stated rule, and back again exactly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset

from ctfoundry import geometry, io
from ctfoundry.errors import (
    CTFoundryError,
    GeometryError,
    NotAScanError,
    ReadError,
    TooLargeError,
    UsageError,
)
from ctfoundry.geometry import Grid
from ctfoundry.io import contours
from ctfoundry.io.dicom_seg_write import write_seg
from ctfoundry.io.overlaps import OverlapError
from ctfoundry.io.rtstruct import read_rtstruct, read_rtstruct_masks, structure_set
from ctfoundry.io.rtstruct_write import write_rtstruct
from ctfoundry.volume import Volume
from structures import CODES, FRAME, blobs, oblique, rtstruct_file, same_places, series, turned, volume

AFFINE = geometry.make_affine((3.0, 1.0, 1.0), "SPL")
"""Voxel (d, h, w) lies at LPS (w, h, 3 d)."""
GRID = Grid((4, 20, 30), AFFINE)


def ring(*points: tuple[float, float], z: float = 0.0) -> tuple[str, np.ndarray]:
    """A closed outline through (x, y) LPS in the plane z."""
    return "CLOSED_PLANAR", np.array([(x, y, z) for x, y in points])


def box(left: float, top: float, right: float, bottom: float, z: float = 0.0) -> tuple[str, np.ndarray]:
    return ring((left, top), (right, top), (right, bottom), (left, bottom), z=z)


def by_polygons(path: Path, affine: np.ndarray, shape: tuple[int, int, int]) -> dict[int, np.ndarray]:
    """An independent reading: pydicom, and matplotlib's test of each voxel's world point, in the plane of the outline."""
    data = pydicom.dcmread(path)
    result = {}
    inverse = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ affine)
    for roi in data.ROIContourSequence:
        count = np.zeros(shape, int)
        for outline in roi.get("ContourSequence", []):
            points = np.array(outline.ContourData, float).reshape(-1, 3) @ inverse[:3, :3].T + inverse[:3, 3]
            axis = int(np.argmin(np.ptp(points, axis=0)))
            across = [a for a in range(3) if a != axis]
            where = np.stack(np.meshgrid(*(np.arange(shape[a]) for a in across), indexing="ij"), -1)
            inside = Polygon(points[:, across], closed=False).contains_points(where.reshape(-1, 2))
            np.moveaxis(count, axis, 0)[round(points[0, axis])] += inside.reshape(where.shape[:2])
        result[int(roi.ReferencedROINumber)] = count % 2 == 1
    return result


def check_out_and_in(folder: Path, labels: Volume, source: Path) -> Path:
    path = folder / "rs.dcm"
    assert write_rtstruct(labels, path, source) == labels.names
    again = read_rtstruct(path, labels.grid)
    np.testing.assert_array_equal(again.voxels, labels.voxels)
    assert (again.names, again.notes, again.kind) == (labels.names, (), "label")
    scan = io.read(source)
    same_places(labels, read_rtstruct(path, scan.grid))
    for label, mask in by_polygons(path, np.array(scan.affine), scan.shape).items():
        same_places(labels, Volume(np.where(mask, label, 0), scan.affine, "label"), ((label, label),))
    return path


@pytest.mark.parametrize("code", CODES)
def test_48_orientations(code: str, tmp_path: Path) -> None:
    """The series runs in every orientation, and the labels come in another axis order and direction."""
    affine = geometry.make_affine((2.5, 0.8, 0.9), code, (30.0, 40.0, -100.0))
    source = series(tmp_path / "ct", affine, blobs().shape)
    check_out_and_in(tmp_path, turned(volume(affine), (11 * CODES.index(code)) % 48), source)


@pytest.mark.parametrize("code", ["SPL", "IAR", "PLS"])
def test_oblique(code: str, tmp_path: Path) -> None:
    affine = oblique(code)
    check_out_and_in(tmp_path, turned(volume(affine), 11), series(tmp_path / "ct", affine, blobs().shape))


def test_tilted_series_takes_labels_of_the_untilted_grid(tmp_path: Path) -> None:
    """The untilted grid has the planes of the slices, so outlines lie in them."""
    affine = np.array(AFFINE)
    affine[:3, 0] += affine[:3, 1] * 3 * np.tan(np.radians(15))
    source = series(tmp_path / "ct", affine, blobs().shape)
    scan = io.read(source)
    labels = np.zeros(scan.shape, np.uint8)
    labels[:, 2:12] = blobs()
    path = check_out_and_in(tmp_path, volume(scan.affine, labels), source)
    by_uid = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, source.iterdir())}
    for outline in pydicom.dcmread(path).ROIContourSequence[0].ContourSequence:
        image = by_uid[outline.ContourImageSequence[0].ReferencedSOPInstanceUID]
        assert float(outline.ContourData[2]) == pytest.approx(float(image.ImagePositionPatient[2]), abs=1e-4)


def test_random_masks_come_back_exactly(tmp_path: Path) -> None:
    """Noise: corners that touch, holes in holes, single voxels, all at the border of the image."""
    source = series(tmp_path / "ct", AFFINE, (4, 16, 19))
    labels = np.random.default_rng(0).choice([0, 1, 2, 5], (4, 16, 19), p=(0.4, 0.4, 0.1, 0.1)).astype(np.uint8)
    check_out_and_in(tmp_path, volume(AFFINE, labels), source)


# The rule ----------------------------------------------------------------------------------------------------------------


def read_one(path: Path, outlines: list[tuple[str, np.ndarray]], **more: Any) -> Volume:
    return read_rtstruct(rtstruct_file(path / "rs.dcm", [(3, "organ", outlines)]), GRID, **more)


def test_a_box_by_hand(tmp_path: Path) -> None:
    labels = read_one(tmp_path, [box(2.5, 4.5, 6.5, 7.5, z=3.0)])
    expected = np.zeros(GRID.shape, bool)
    expected[1, 5:8, 3:7] = True
    np.testing.assert_array_equal(labels.voxels == 3, expected)
    assert (labels.names, labels.notes, labels.source) == ({3: "organ"}, (), "rtstruct")


def test_centres_on_an_outline_go_to_one_side_only(tmp_path: Path) -> None:
    """Two boxes that share the line x = 6, which runs through centres: each voxel belongs to one of them."""
    path = rtstruct_file(tmp_path / "rs.dcm", [(1, "left", [box(2, 4, 6, 8)]), (2, "right", [box(6, 4, 10, 8)])])
    labels = read_rtstruct(path, GRID)
    assert sorted(np.argwhere(labels.voxels == 1)[:, 2].tolist()) == sorted([2, 3, 4, 5] * 4)
    assert sorted(np.argwhere(labels.voxels == 2)[:, 2].tolist()) == sorted([6, 7, 8, 9] * 4)


@pytest.mark.parametrize("keyhole", [False, True])
def test_holes_drawn_apart_or_as_keyholes(keyhole: bool, tmp_path: Path) -> None:
    hole = [(6.5, 6.5), (9.5, 6.5), (9.5, 9.5), (6.5, 9.5)]
    if keyhole:
        outlines = [ring((2.5, 2.5), (12.5, 2.5), (12.5, 12.5), (2.5, 12.5), (2.5, 2.5), *hole, hole[0])]
    else:
        outlines = [box(2.5, 2.5, 12.5, 12.5), ring(*hole)]
    expected = np.zeros(GRID.shape, bool)
    expected[0, 3:13, 3:13] = True
    expected[0, 7:10, 7:10] = False
    np.testing.assert_array_equal(read_one(tmp_path, outlines).voxels == 3, expected)


def test_any_axis_of_the_grid_and_none(tmp_path: Path) -> None:
    """Outlines in a sagittal plane of an axial grid; outlines in a plane that the grid does not have."""
    points = np.array([(5.0, 2.5, -1.0), (5.0, 6.5, -1.0), (5.0, 6.5, 7.0), (5.0, 2.5, 7.0)])
    labels = read_one(tmp_path, [("CLOSED_PLANAR", points)])
    expected = np.zeros(GRID.shape, bool)
    expected[0:3, 3:7, 5] = True
    np.testing.assert_array_equal(labels.voxels == 3, expected)
    with pytest.raises(GeometryError, match=r"outlines of organ leave every plane of the image's axes \(by 4\.00 mm"):
        read_one(tmp_path, [("CLOSED_PLANAR", points + [[0, 0, 0], [4, 0, 0], [4, 0, 4], [0, 0, 4]])])


def test_points_and_lines_are_left_out_by_name(tmp_path: Path) -> None:
    one = ("POINT", np.array([(5.0, 5.0, 0.0)]))
    line = ("OPEN_PLANAR", np.array([(5.0, 5.0, 0.0), (9.0, 5.0, 0.0), (9.0, 9.0, 0.0)]))
    two = ("CLOSED_PLANAR", np.array([(5.0, 5.0, 0.0), (9.0, 5.0, 0.0)]))
    labels = read_one(tmp_path, [one, line, line, two])
    assert not labels.voxels.any()
    assert labels.notes == (
        "organ: 1 outlines of POINT left out, they enclose nothing",
        "organ: 2 outlines of OPEN_PLANAR left out, they enclose nothing",
        "organ: 1 outlines of fewer than 3 points left out, they enclose nothing",
        "organ: nothing is drawn",
    )


def test_planes_between_slices(tmp_path: Path) -> None:
    """The nearest plane within half a slice is taken; the others, and how far it lies, are named."""
    outlines = [box(2.5, 2.5, 5.5, 5.5, z=1.0), box(7.5, 2.5, 9.5, 5.5, z=-1.2), box(2.5, 2.5, 4.5, 5.5, z=4.4)]
    labels = read_one(tmp_path, outlines)
    assert [int(n) for n in (labels.voxels > 0).sum(axis=(1, 2))] == [9, 6, 0, 0]
    assert labels.notes == (
        "organ: 1 planes are nearer to a slice that has a nearer one, and were left out",
        "organ: its planes lie up to 1.40 mm beside the slices that took them",
    )


def test_slices_without_outlines_between_outlined_ones(tmp_path: Path) -> None:
    """A cone: left empty by default; by the shape between, each slice is the circle halfway."""
    turn = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circles = [
        ("CLOSED_PLANAR", np.stack([14 + r * np.cos(turn), 10 + r * np.sin(turn), np.full(400, z)], axis=1))
        for r, z in ((9.0, 0.0), (3.0, 9.0))
    ]
    labels = read_one(tmp_path, circles)
    assert labels.notes == ("organ: 2 slices were left empty between outlined ones",)
    assert not labels.voxels[1:3].any()
    filled = read_one(tmp_path, circles, interpolate=True)
    assert filled.notes == ("organ: 2 slices were filled by the shape between",)
    np.testing.assert_array_equal(filled.voxels[[0, 3]], labels.voxels[[0, 3]])
    y, x = np.mgrid[:20, :30]
    for k, r in ((1, 7.0), (2, 5.0)):
        distance = np.hypot(y - 10, x - 14)
        assert (filled.voxels[k][distance < r - 0.7] == 3).all()
        assert not filled.voxels[k][distance > r + 0.7].any()


def test_outlines_beyond_the_grid(tmp_path: Path) -> None:
    outlines = [box(-50.0, 4.5, 2.5, 1e6), box(2.5, 2.5, 5.5, 5.5, z=300.0), box(500, 500, 600, 600, z=3.0)]
    labels = read_one(tmp_path, outlines)
    expected = np.zeros(GRID.shape, bool)
    expected[0, 5:, :3] = True
    np.testing.assert_array_equal(labels.voxels == 3, expected)
    assert labels.notes == (
        "organ: 1 outlines lie beyond the grid",
        "organ: 2 outlines reach beyond the grid and were cut",
    )


def test_an_outline_drawn_twice_counts_once(tmp_path: Path) -> None:
    labels = read_one(tmp_path, [box(2.5, 2.5, 5.5, 5.5), box(2.5, 2.5, 5.5, 5.5)])
    assert int((labels.voxels > 0).sum()) == 9
    assert labels.notes == ("organ: 1 outlines were drawn twice and counted once",)


def test_random_polygons_equal_the_textbook() -> None:
    """Self-crossing polygons against the point-in-polygon loop of W. R. Franklin, pixel by pixel."""
    rng = np.random.default_rng(0)
    for _ in range(15):
        points = rng.uniform(-5, 25, (int(rng.integers(3, 12)), 2))
        expected = np.zeros((20, 20), bool)
        for y, x in np.ndindex(20, 20):
            for (y0, x0), (y1, x1) in zip(points, np.roll(points, -1, axis=0), strict=True):
                if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
                    expected[y, x] = not expected[y, x]
        np.testing.assert_array_equal(contours.fill([points], (20, 20)), expected)


def test_outlines_of_a_mask_are_what_viewers_draw() -> None:
    """A disc with two holes is one outline; its area is that of the disc to a few per cent, its corners are halves."""
    y, x = np.mgrid[:80, :80]
    mask = np.hypot(y - 40, x - 40) < 30
    mask &= (np.hypot(y - 40, x - 30) > 6) & (np.hypot(y - 40, x - 52) > 5)
    outlines = contours.trace(mask)
    assert len(outlines) == 1
    points = outlines[0]
    np.testing.assert_array_equal(points * 2, np.rint(points * 2))
    after = np.roll(points, -1, axis=0)
    area = abs(float((points[:, 0] * after[:, 1] - points[:, 1] * after[:, 0]).sum())) / 2
    assert area == pytest.approx(float(mask.sum()), rel=0.01)
    np.testing.assert_array_equal(contours.fill(outlines, mask.shape), mask)


# Overlaps ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def overlapping(tmp_path: Path) -> Path:
    return rtstruct_file(
        tmp_path / "rs.dcm",
        [(4, "body", [box(0.5, 0.5, 12.5, 12.5)]), (7, "liver", [box(2.5, 2.5, 5.5, 5.5)])],
    )


def test_overlaps(overlapping: Path) -> None:
    with pytest.raises(OverlapError, match=r"body and liver in 9 voxels\n.*overlap='smallest'"):
        read_rtstruct(overlapping, GRID)
    small = read_rtstruct(overlapping, GRID, overlap="smallest")
    assert (int((small.voxels == 7).sum()), int((small.voxels == 4).sum())) == (9, 135)
    assert "body and liver in 9 voxels" in small.notes[0]
    assert not (read_rtstruct(overlapping, GRID, overlap=["body"]).voxels == 7).any()
    only = read_rtstruct(overlapping, GRID, names=["liver"])
    assert (only.names, int((only.voxels == 7).sum())) == ({7: "liver"}, 9)
    masks = read_rtstruct_masks(overlapping, GRID)
    assert {name: int(m.voxels.sum()) for name, m in masks.items()} == {"body": 144, "liver": 9}
    with pytest.raises(UsageError, match="holds 0 structures 'spleen'"):
        read_rtstruct(overlapping, GRID, names=["spleen"])


# Bad input ---------------------------------------------------------------------------------------------------------------


def contour_data(value: Any) -> Any:
    def change(data: Dataset) -> None:
        outline = data.ROIContourSequence[0].ContourSequence[0]
        outline[0x30060050] = pydicom.DataElement(0x30060050, "OB", value)

    return change


BAD = {
    "no names": (lambda d: d.pop("StructureSetROISequence"), ReadError, "names no structure"),
    "class": (lambda d: setattr(d, "SOPClassUID", "1.2"), NotAScanError, "is no DICOM structure set"),
    "nan": (contour_data(b"1\\2\\0\\nan\\3\\0\\4\\4\\0"), ReadError, "organ has points that are NaN"),
    "words": (contour_data(b"1\\2\\0\\x\\3\\0\\4\\4\\0 "), ReadError, "organ is garbled"),
    "points": (contour_data(b"1\\2\\0\\3 "), ReadError, "4 numbers, no whole points"),
    "another": (
        lambda d: setattr(d.ROIContourSequence[0], "ReferencedROINumber", 9),
        ReadError,
        "outlines of structure 9, which it does not name",
    ),
    "twice": (
        lambda d: d.StructureSetROISequence.append(d.StructureSetROISequence[0]),
        ReadError,
        "numbers two structures 3",
    ),
    "no number": (lambda d: d.ROIContourSequence[0].pop("ReferencedROINumber"), ReadError, "garbled"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    change, error, words = BAD[name]
    path = rtstruct_file(tmp_path / "rs.dcm", [(3, "organ", [box(2.5, 2.5, 5.5, 5.5)])], change=change)
    with pytest.raises(error, match=words) as caught:
        read_rtstruct(path, GRID)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("gone", ["ROIContourSequence", "ReferencedFrameOfReferenceSequence"])
def test_missing_sequences(gone: str, tmp_path: Path) -> None:
    outlines = [box(2.5, 2.5, 5.5, 5.5)]
    path = rtstruct_file(tmp_path / "rs.dcm", [(3, "organ", outlines)], change=lambda data: data.pop(gone))
    labels = read_rtstruct(path, GRID)
    assert labels.voxels.any() == (gone != "ROIContourSequence")
    assert labels.notes == (("organ: nothing is drawn",) if gone == "ROIContourSequence" else ())


def test_cap_and_a_grid_that_is_too_large(tmp_path: Path) -> None:
    path = rtstruct_file(tmp_path / "rs.dcm", [(3, "organ", [box(2.5, 2.5, 5.5, 5.5)])])
    with pytest.raises(TooLargeError, match="over the cap"):
        read_rtstruct(path, GRID, cap=1000)
    with pytest.raises(TooLargeError, match="over the cap"):
        read_rtstruct(path, Grid((1 << 20, 1 << 20, 1 << 10), AFFINE))


def test_many_points(tmp_path: Path) -> None:
    turn = np.linspace(0, 2 * np.pi, 300_000, endpoint=False)
    points = np.stack([14 + 9 * np.cos(turn), 10 + 9 * np.sin(turn), np.zeros_like(turn)], axis=1)
    path = rtstruct_file(
        tmp_path / "rs.dcm",
        [(3, "organ", [box(0, 0, 1, 1)])],
        change=contour_data("\\".join(map(str, points.round(4).ravel().tolist())).encode()),
    )
    begin = time.perf_counter()
    labels = read_rtstruct(path, GRID)
    assert time.perf_counter() - begin < 30  # it does not hang
    y, x = np.mgrid[:20, :30]
    distance = np.hypot(y - 10, x - 14)
    clear = np.abs(distance - 9) > 1e-3
    np.testing.assert_array_equal((labels.voxels[0] == 3)[clear], (distance < 9)[clear])


def test_damaged_bytes_raise_only_our_errors(tmp_path: Path) -> None:
    outlines = [box(2.5, 2.5, 5.5, 5.5, z=3.0 * k) for k in range(4)]
    path = rtstruct_file(tmp_path / "rs.dcm", [(3, "organ", outlines), (4, "other", [box(8, 8, 9, 9)])])
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for k in range(150):
        data = bytearray(whole)
        if k % 3 == 0:
            data = data[: rng.integers(1, len(whole))]
        else:
            for at in rng.integers(132, len(whole), rng.integers(1, 6)):
                data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            outcomes.add(read_rtstruct(path, GRID, overlap="smallest").kind)
        except CTFoundryError as error:
            outcomes.add(type(error).__name__)
    assert {"label", "ReadError", "TruncatedError"} <= outcomes


# Out ---------------------------------------------------------------------------------------------------------------------


def test_the_file_is_what_the_standard_asks_for(tmp_path: Path) -> None:
    source = series(tmp_path / "ct", AFFINE, blobs().shape)
    slices = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, source.iterdir())}
    first = next(iter(slices.values()))
    write_rtstruct(volume(AFFINE), tmp_path / "rs.dcm", source, label="TEST")
    data = pydicom.dcmread(tmp_path / "rs.dcm")
    assert (data.Modality, data.StructureSetLabel, data.FrameOfReferenceUID) == ("RTSTRUCT", "TEST", FRAME)
    assert (data.PatientID, data.StudyInstanceUID) == (first.PatientID, first.StudyInstanceUID)
    assert data.SeriesInstanceUID != first.SeriesInstanceUID
    assert [(r.ROINumber, r.ROIName) for r in data.StructureSetROISequence] == [
        (1, "liver"), (2, "kidney_left"), (5, "thing"),
    ]  # fmt: skip
    assert [o.ReferencedROINumber for o in data.RTROIObservationsSequence] == [1, 2, 5]
    references = structure_set(tmp_path / "rs.dcm").references
    assert references.series == (str(first.SeriesInstanceUID),)
    assert references.frame_of_reference == FRAME
    assert set(references.instances) == {str(uid) for uid in slices}
    for roi in data.ROIContourSequence:
        for outline in roi.ContourSequence:
            points = np.array(outline.ContourData, float).reshape(-1, 3)
            assert outline.NumberOfContourPoints == len(points)
            image = slices[outline.ContourImageSequence[0].ReferencedSOPInstanceUID]
            np.testing.assert_allclose(points[:, 2], float(image.ImagePositionPatient[2]), atol=1e-4)
    assert str(tmp_path).encode() not in (tmp_path / "rs.dcm").read_bytes()


def test_names_without_voxels_are_listed(tmp_path: Path) -> None:
    labels = Volume(np.minimum(blobs(), 1), AFFINE, "label", names={1: "liver", 9: "spleen"})
    write_rtstruct(labels, tmp_path / "rs.dcm", series(tmp_path / "ct", AFFINE, blobs().shape))
    again = read_rtstruct(tmp_path / "rs.dcm", labels.grid)
    assert (again.names, again.notes) == ({1: "liver", 9: "spleen"}, ("spleen: nothing is drawn",))


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    source, target = series(tmp_path / "ct", AFFINE, blobs().shape), tmp_path / "rs.dcm"
    target.write_bytes(b"what was there")
    with pytest.raises(GeometryError, match="first voxel lies"):
        write_rtstruct(volume(geometry.shifted(AFFINE, (0, 0.4, 0))), target, source)
    with pytest.raises(UsageError, match="longer than 16"):
        write_rtstruct(volume(AFFINE), target, source, label="a label of many characters")
    with pytest.raises(UsageError, match="not kind 'hu'"):
        write_rtstruct(io.read(source), target, source)
    assert target.read_bytes() == b"what was there"


# Real files --------------------------------------------------------------------------------------------------------------

REAL = {
    "sts": ("sts-002-dicom/mask/RS.dcm", "sts-002-dicom/image", ["GTV_Mass_CT"]),
    "pancreas": (
        "pancreas-ct-cb-001/RTSTRUCT_1-1.dcm",
        "pancreas-ct-cb-001/Pancreas-CT-CB_001_planCT.nii.gz",
        ["Bowel_sm_planCT", "Stomach_duo_planCT"],
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_structure_sets(name: str, shared_ct: Path) -> None:
    """Against matplotlib: voxels differ only where their centre lies on an outline, to the rounding of its coordinates."""
    path, image, chosen = shared_ct / REAL[name][0], shared_ct / REAL[name][1], REAL[name][2]
    scan = io.read(image)
    masks = read_rtstruct_masks(path, scan.grid, names=chosen)
    data = pydicom.dcmread(path)
    numbers = {r.ROIName: r.ROINumber for r in data.StructureSetROISequence}
    drawn = {r.ReferencedROINumber: r for r in data.ROIContourSequence}
    assert list(masks) == chosen
    to_index = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ np.array(scan.affine))
    for structure, mask in masks.items():
        roi = drawn[numbers[structure]]
        assert mask.notes == ()
        count = np.zeros(scan.shape, np.uint8)
        near = np.zeros(scan.shape, bool)
        sampled = (slice(None), slice(None, None, 6), slice(None, None, 5))  # matplotlib is slow: one pixel in thirty
        for outline in roi.ContourSequence:
            points = np.array(outline.ContourData, float).reshape(-1, 3) @ to_index[:3, :3].T + to_index[:3, 3]
            k, polygon = round(points[0, 0]), Polygon(points[:, 1:])
            low, high = points[:, 1:].min(axis=0), points[:, 1:].max(axis=0)
            rows, columns = (np.arange(0, n, by) for n, by in zip(scan.shape[1:], (6, 5), strict=True))
            rows, columns = (
                rows[(rows >= low[0]) & (rows <= high[0])],
                columns[(columns >= low[1]) & (columns <= high[1])],
            )
            if rows.size and columns.size:
                where = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
                # matplotlib grows or shrinks the polygon by a radius, by its direction
                inside, out, in_ = (
                    polygon.contains_points(where, radius=r).reshape(len(rows), -1) for r in (0, 0.01, -0.01)
                )
                part = (k, slice(rows[0], rows[-1] + 1, 6), slice(columns[0], columns[-1] + 1, 5))
                count[part] += inside
                near[part] |= (inside != out) | (inside != in_)
        ours = mask.voxels[sampled] > 0
        different = (count[sampled] % 2 == 1) != ours
        assert ours.sum() > 400
        assert different.sum() < 1e-3 * ours.sum()
        assert not (different & ~near[sampled]).any()


def test_real_structures_lie_where_another_rasterisation_puts_them(shared_ct: Path) -> None:
    """Against labels made of the same files by other programs: the lungs and organs, and the tumour at another spacing."""
    folder = shared_ct / "pancreas-ct-cb-001"
    theirs = io.read(folder / "labels.nii.gz")
    assert theirs.names is not None
    ours = read_rtstruct_masks(folder / "RTSTRUCT_1-1.dcm", theirs.grid)
    for label, name in theirs.names.items():
        a, b = ours[name].voxels > 0, theirs.voxels == label
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.999
        assert np.abs(np.argwhere(a).mean(axis=0) - np.argwhere(b).mean(axis=0)).max() < 0.05
    tumour = io.read(shared_ct / "sts-ibsi-2mm" / "STS_002_GTV.nii.gz")
    mask = read_rtstruct(shared_ct / REAL["sts"][0], io.read(shared_ct / REAL["sts"][1]).grid)
    volumes = [float((v.voxels > 0).sum() * np.prod(v.spacing)) for v in (tumour, mask)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.01)
    centres = [v.world(np.argwhere(v.voxels > 0).mean(axis=0)) for v in (tumour, mask)]
    assert np.abs(centres[0] - centres[1]).max() < 0.5  # the other one is a block mean, half a pixel of 0.98 mm off


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID"])
def test_a_series_that_cannot_be_referred_to_is_named(keyword: str, tmp_path: Path) -> None:
    source = series(tmp_path / "ct", AFFINE, blobs().shape)
    first = min(source.iterdir())
    data = pydicom.dcmread(first)
    del data[keyword]
    data.save_as(first)
    for written in (write_rtstruct, write_seg):
        with pytest.raises(ReadError, match=f"{first.name}: has no {keyword}, so nothing can refer to it"):
            written(volume(AFFINE), tmp_path / "x.dcm", source)
