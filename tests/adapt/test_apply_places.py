"""What `segment_many` writes lies where the scan does: every axis order and direction, oblique grids, NIfTI, DICOM SEG and RTSTRUCT.

Label maps are read back by nibabel, segmentations by highdicom, structures by pydicom: no code of ours says where they are.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from adapt import levels
from ctfoundry import geometry, io
from ctfoundry.adapt.apply import Options, segment_many
from ctfoundry.volume import Volume
from structures import CODES, blobs, oblique, places, rotation

LABELS = (1, 2, 5)


def by_nibabel(path: Path, label: int) -> np.ndarray:
    image = nibabel.load(path)
    return places(np.asarray(image.dataobj), np.asarray(image.affine), label)


def test_every_axis_order_and_direction(tmp_path: Path) -> None:
    """48 orientations and some oblique ones of one asymmetric body, with voxels of three different lengths."""
    affines = {code: geometry.make_affine((2.5, 0.8, 0.9), code, (30.0, 40.0, -100.0)) for code in CODES}
    affines |= {f"{code}-oblique": oblique(code) for code in ("SPL", "IAR", "PLS", "RSA")}
    items = [levels.nifti(tmp_path / "in" / f"{name}.nii.gz", levels.scan(a)) for name, a in affines.items()]
    outcome = segment_many(items, levels.segmenter(), tmp_path / "out")
    assert (len(outcome.done), outcome.failed) == (len(affines), {})
    for name, affine in affines.items():
        for label in LABELS:
            truth = places(blobs(), affine, label)
            found = by_nibabel(tmp_path / "out" / f"{name}.nii.gz", label)
            assert truth.shape == found.shape != (0, 3), name
            np.testing.assert_allclose(found, truth, atol=2e-3, err_msg=name)


def test_a_mirrored_map_would_be_seen(tmp_path: Path) -> None:
    """The measure of the test above can fail: the body has no symmetry that a flip of one axis would hide."""
    affine = geometry.make_affine((2.5, 0.8, 0.9), "SPL")
    for axis in range(3):
        moved = places(np.flip(blobs(), axis), affine, 1)
        assert np.abs(moved - places(blobs(), affine, 1)).max() > 0.5


SERIES = {
    "usual": geometry.make_affine((2.5, 0.8, 0.8), "SPL", (30.0, 40.0, -100.0)),
    "from head to foot": geometry.make_affine((2.5, 0.8, 0.9), "IPL", (30.0, 40.0, -100.0)),
    "both cosines negative": geometry.make_affine((2.5, 0.8, 0.9), "SAR", (-3.0, 4.0, 12.5)),
    "one cosine negative": geometry.make_affine((2.5, 0.6, 0.9), "SPR", (30.0, 40.0, -100.0)),
    "one negative, head first": geometry.make_affine((2.5, 0.9, 0.6), "IAL", (30.0, 40.0, -100.0)),
    "coronal": geometry.make_affine((3.0, 1.0, 0.7), "AIL", (30.0, 40.0, -100.0)),
    "sagittal": geometry.make_affine((3.0, 1.1, 0.7), "RIP", (30.0, 40.0, -100.0)),
    "oblique": oblique("SPL"),
    "oblique, reversed and mirrored": oblique("IAR"),
    "turned in its plane": geometry.make_affine((2.5, 0.8, 0.9), "SPL", (1.0, 2.0, 3.0), rotation(35.0)),
}


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One call over all series, with both objects."""
    root = tmp_path_factory.mktemp("dicom")
    items = [
        levels.dicom(root / "in" / name, levels.scan(affine), k) for k, (name, affine) in enumerate(SERIES.items(), 1)
    ]
    outcome = segment_many(items, levels.segmenter(), root / "out", Options(dicom_seg=True, rtstruct=True))
    assert outcome.failed == {}
    return root


@pytest.mark.parametrize("name", SERIES)
def test_seg_voxel_by_voxel(name: str, dicom: Path) -> None:
    import highdicom

    read = highdicom.seg.segread(dicom / "out" / f"{name}.seg.dcm")
    assert [s.SegmentLabel for s in read.SegmentSequence] == list(levels.NAMES[1:])
    volume = read.get_volume(combine_segments=True, relabel=False)
    for label in LABELS:
        found = places(volume.array, geometry.LPS_TO_RAS @ volume.affine, label)
        truth = places(blobs(), SERIES[name], label)
        assert found.shape == truth.shape
        np.testing.assert_allclose(found, truth, atol=2e-3)
    # and by our reader, on the very grid of the source: the same array
    scan = io.read(dicom / "in" / name)
    ours = io.read_seg(dicom / "out" / f"{name}.seg.dcm", onto=scan.grid)
    written = io.read(dicom / "out" / f"{name}.nii.gz", kind="label")
    np.testing.assert_array_equal(ours.voxels, written.voxels)
    np.testing.assert_allclose(written.affine, scan.affine, atol=1e-4)


@pytest.mark.parametrize("name", SERIES)
def test_rtstruct_outlines_lie_around_their_voxels(name: str, dicom: Path) -> None:
    """Outlines run halfway between voxel centres: in the plane of a slice, the box of a structure's points is that of its voxels and half a
    voxel more, and every slice of it has its own. Our reader gives the same voxels back."""
    path = dicom / "out" / f"{name}.rtstruct.dcm"
    data = pydicom.dcmread(path)
    numbers = {int(r.ROINumber): r.ROIName for r in data.StructureSetROISequence}
    assert numbers == dict(enumerate(levels.NAMES[1:], 1))
    affine = SERIES[name]
    for contours in data.ROIContourSequence:
        label = int(contours.ReferencedROINumber)
        if label not in LABELS:
            assert not contours.get("ContourSequence")
            continue
        points = np.concatenate([np.reshape(c.ContourData, (-1, 3)).astype(float) for c in contours.ContourSequence])
        at = geometry.to_index(affine, points * (-1, -1, 1))  # LPS to RAS
        voxels = np.argwhere(blobs() == label)
        np.testing.assert_allclose(at[:, 0], np.round(at[:, 0]), atol=1e-3)  # in the planes of the slices
        assert set(np.round(at[:, 0]).astype(int)) == set(voxels[:, 0])
        for d in np.unique(voxels[:, 0]):
            own, inside = at[np.round(at[:, 0]) == d, 1:], voxels[voxels[:, 0] == d, 1:]
            np.testing.assert_allclose(own.min(0), inside.min(0) - 0.5, atol=0.01)
            np.testing.assert_allclose(own.max(0), inside.max(0) + 0.5, atol=0.01)
    scan = io.read(dicom / "in" / name)
    back = io.read_rtstruct(path, scan.grid)
    truth = Volume(blobs(), affine, "label")
    for label in LABELS:
        found = places(back.voxels, back.affine, label)
        np.testing.assert_allclose(found, places(truth.voxels, affine, label), atol=2e-3)
