"""Files of public layouts, read back with nibabel, SimpleITK, pydicom, MONAI, csv and zipfile: never with our own readers."""

from __future__ import annotations

import csv
import json
import zipfile
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest

from ctfoundry.errors import UsageError
from ctfoundry.layouts import heads, luna16, medmnist, segmentation, sets, tcia, texts
from ctfoundry.layouts.cases import Cohort
from ctfoundry.phantom.names import IDS


def rows_of(path, **kwargs) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as stream:
        return list(csv.DictReader(stream, **kwargs))


def ras(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(image).dataobj)


def expected(volume) -> np.ndarray:
    """Voxels in nibabel's RAS order, by plain numpy: our array is (S, P, L)."""
    return volume.reorient("SPL").voxels[:, ::-1, ::-1].transpose(2, 1, 0)


def test_totalsegmentator_has_a_mask_for_each_of_117_classes(tmp_path, case_of):
    case = case_of(code="LAI")
    row = segmentation.total_case(tmp_path, case)
    segmentation.total_tables(tmp_path, [row])
    masks = sorted(p.name.removesuffix(".nii.gz") for p in (tmp_path / "s0001" / "segmentations").iterdir())
    assert len(masks) == 117
    assert {"vertebrae_S1", "adrenal_gland_left", "rib_left_12", "costal_cartilages"} <= set(masks)
    ct = nib.load(tmp_path / "s0001" / "ct.nii.gz")
    assert nib.aff2axcodes(ct.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(ras(ct), expected(case.phantom.ct))
    for name in ("liver", "brain", "adrenal_gland_left"):
        mask = nib.load(tmp_path / "s0001" / "segmentations" / f"{name}.nii.gz")
        np.testing.assert_allclose(mask.affine, ct.affine)
        np.testing.assert_array_equal(ras(mask), expected(case.phantom.labels) == IDS.get(name, -1))
    table = rows_of(tmp_path / "meta.csv", delimiter=";")
    assert (tmp_path / "meta.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert table[0]["image_id"] == "s0001"
    assert table[0]["split"] == "train"


def test_totalsegmentator_numbers_are_our_label_ids():
    """Two lists that were written down apart."""
    known = {name: i for name, i in IDS.items() if i <= 117}
    assert {name: segmentation.TOTAL_V2.index(name) + 1 for name in known} == known


@pytest.mark.parametrize(
    ("name", "train", "image", "label", "classes"),
    [
        ("msd-liver", "Task03_Liver", "imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz", {1: "liver", 2: "lesion 2"}),
        ("msd-lung", "Task06_Lung", "imagesTr/lung_000.nii.gz", "labelsTr/lung_000.nii.gz", {1: "lesion 1"}),
        ("amos", "amos22", "imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz", {1: "spleen", 2: "kidney_right", 3: "kidney_left", 6: "liver", 8: "aorta"}),
        ("word", "WORD-V0.1.0", "imagesTr/word_0001.nii.gz", "labelsTr/word_0001.nii.gz", {1: "liver", 2: "spleen", 3: "kidney_left", 4: "kidney_right"}),
        ("kits23", "dataset", "case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz", {3: "lesion 3"}),
    ],
)  # fmt: skip
def test_segmentation_sets(tmp_path, case_of, name, train, image, label, classes):
    case = case_of()
    sets.LAYOUTS[name].case(tmp_path, case)
    ct, seg = nib.load(tmp_path / train / image), nib.load(tmp_path / train / label)
    np.testing.assert_array_equal(ras(ct), expected(case.phantom.ct))
    np.testing.assert_allclose(ct.affine, seg.affine)
    assert int(seg.header["intent_code"]) == 0
    labels, lesions = expected(case.phantom.labels), expected(case.phantom.lesions)
    found = ras(seg)
    for number, part in classes.items():
        if part.startswith("lesion"):
            np.testing.assert_array_equal(found == number, lesions == int(part[-1]))
        else:
            over = lesions > 0 if name == "msd-liver" else np.zeros_like(lesions, bool)
            np.testing.assert_array_equal(found == number, (labels == IDS[part]) & ~over)
    if name == "kits23":
        assert nib.aff2axcodes(ct.affine)[0] == "I"  # slices are the first axis
        cyst = lesions == 3
        kidneys = (labels == IDS["kidney_left"]) | (labels == IDS["kidney_right"])
        np.testing.assert_array_equal(found == 1, kidneys & ~cyst)


@pytest.mark.monai
def test_the_decathlon_list_is_read_by_monai(tmp_path, case_of):
    from monai.data import load_decathlon_datalist

    cases = [case_of(0), case_of(1, split="val"), case_of(2, split="test")]
    layout = sets.LAYOUTS["msd-liver"]
    layout.tables(tmp_path, [layout.case(tmp_path, case) for case in cases])
    home = tmp_path / "Task03_Liver"
    found = load_decathlon_datalist(str(home / "dataset.json"), is_segmentation=True, data_list_key="training")
    assert [nib.load(item["label"]).shape for item in found] == [(24, 10, 18)] * 2
    tests = load_decathlon_datalist(str(home / "dataset.json"), is_segmentation=True, data_list_key="test")
    assert nib.load(tests[0]["image"]).shape == (24, 10, 18)
    assert not (home / "labelsTs").exists()
    assert json.loads((home / "dataset.json").read_text())["labels"] == {"0": "background", "1": "liver", "2": "cancer"}


def test_luna16_points_lie_in_the_nodule_by_itk(tmp_path, case_of):
    import SimpleITK as sitk

    case = case_of(3, code="IAR")
    luna16.tables(tmp_path, [luna16.case(tmp_path, case)])
    (row,) = rows_of(tmp_path / "annotations.csv")
    image = sitk.ReadImage(str(tmp_path / "subset3" / f"{row['seriesuid']}.mhd"))
    point = [float(row[c]) for c in ("coordX", "coordY", "coordZ")]
    x, y, z = image.TransformPhysicalPointToContinuousIndex(point)
    where = np.argwhere(case.phantom.lesions.reorient("SPL").voxels == 1)
    np.testing.assert_allclose((z, y, x), where.mean(0), atol=1e-3)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), case.phantom.ct.reorient("SPL").voxels)
    assert float(row["diameter_mm"]) == 5.5
    candidates = rows_of(tmp_path / "candidates_V2.csv")
    assert [r["class"] for r in candidates].count("1") == 1
    lungs = np.isin(
        case.phantom.labels.reorient("SPL").voxels, [IDS["lung_upper_lobe_right"], IDS["lung_lower_lobe_left"]]
    )
    for r in candidates:
        i, j, k = image.TransformPhysicalPointToIndex([float(r[c]) for c in ("coordX", "coordY", "coordZ")])
        assert lungs[k, j, i]


def test_ct_rate(tmp_path, case_of):
    cases = [case_of(0), case_of(0, scan=1), case_of(1, split="test")]
    texts.ct_rate_tables(tmp_path, [texts.ct_rate_case(tmp_path, case) for case in cases])
    home = tmp_path / "dataset"
    for path in ("train/train_1/train_1_a/train_1_a_1.nii.gz", "train/train_1/train_1_b/train_1_b_1.nii.gz", "valid/valid_2/valid_2_a/valid_2_a_1.nii.gz"):  # fmt: skip
        assert nib.load(home / path).shape[2] == 18
    labels = rows_of(home / "multi_abnormality_labels" / "train_predicted_labels.csv")
    assert len(labels[0]) == 19
    assert [name for name, value in labels[0].items() if value == "1"] == ["Lung nodule"]
    reports = rows_of(home / "radiology_text_reports" / "train_reports.csv")
    assert reports[0]["VolumeName"] == "train_1_a_1.nii.gz"
    assert reports[0]["Impressions_EN"] == " ".join(cases[0].report.impression)
    meta = rows_of(home / "metadata" / "validation_metadata.csv")
    assert (meta[0]["XYSpacing"], meta[0]["ZSpacing"], meta[0]["RescaleSlope"]) == ("[2, 2]", "3", "1")


def test_merlin(tmp_path, case_of):
    case = case_of(0)
    texts.merlin_tables(tmp_path, [texts.merlin_case(tmp_path, case)])
    home = tmp_path / "merlinabdominalctdataset"
    (row,) = rows_of(home / "zero_shot_findings_disease_cls.csv")
    assert len(row) == 31
    assert (home / "merlin_data" / f"{row['study id']}.nii.gz").is_file()
    assert (row["renal_cyst"], row["abdominal_aortic_aneurysm"], row["appendicitis"]) == ("1", "0", "-1")
    with zipfile.ZipFile(home / "reports_final.xlsx") as book:
        assert book.testzip() is None
        sheet = ElementTree.fromstring(book.read("xl/worksheets/sheet1.xml"))
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    cells = [[c.findtext(f"{space}is/{space}t") for c in r] for r in sheet.iter(f"{space}row")]
    assert cells[0] == ["study id", "Findings", "Split", "Few Shot"]
    assert cells[1][0] == row["study id"]
    assert cells[1][1].startswith("FINDINGS: ")


def test_cq500_slices_and_readings(tmp_path, case_of):
    import pydicom

    case = case_of(4, code="RPI")
    heads.cq500_tables(tmp_path, [heads.cq500_case(tmp_path, case)])
    folder = tmp_path / "CQ500CT4 CQ500CT4" / "Unknown Study" / "CT PLAIN THIN"
    slices = sorted((pydicom.dcmread(p) for p in folder.glob("CT*.dcm")), key=lambda d: d.ImagePositionPatient[2])
    hu = np.stack([d.pixel_array.astype(int) * d.RescaleSlope + d.RescaleIntercept for d in slices])
    np.testing.assert_array_equal(hu, case.phantom.ct.reorient("SPL").voxels)
    assert len({d.SeriesInstanceUID for d in slices}) == 1
    assert len({d.SOPInstanceUID for d in slices}) == 18
    assert all(d.file_meta.MediaStorageSOPInstanceUID == d.SOPInstanceUID for d in slices)
    (row,) = rows_of(tmp_path / "reads.csv")
    assert len(row) == 2 + 3 * 14
    assert [k for k, v in row.items() if v == "1" and k.startswith("R2")] == [
        "R2:ICH",
        "R2:SDH",
        "R2:BleedLocation-Left",
    ]


def test_rider_is_two_series_of_one_study(tmp_path, case_of):
    import pydicom

    for scan in (0, 1):
        tcia.rider_case(tmp_path, case_of(0, scan=scan))
    found = [pydicom.dcmread(p, stop_before_pixels=True) for p in tmp_path.rglob("*.dcm")]
    assert len({d.StudyInstanceUID for d in found}) == 1
    assert len({d.SeriesInstanceUID for d in found}) == 2
    assert len({d.SOPInstanceUID for d in found}) == 36
    assert {d.PatientID for d in found} == {"RIDER-1000000000"}


def test_nsclc_has_contours_and_segmentation_of_its_series(tmp_path, case_of):
    import pydicom

    tcia.nsclc_case(tmp_path, case_of(0))
    by: dict[str, list] = {}
    for path in tmp_path.rglob("*.dcm"):
        data = pydicom.dcmread(path)
        by.setdefault(data.Modality, []).append(data)
    assert {k: len(v) for k, v in by.items()} == {"CT": 18, "RTSTRUCT": 1, "SEG": 1}
    assert len({d.StudyInstanceUID for each in by.values() for d in each}) == 1
    rois = {r.ROIName for r in by["RTSTRUCT"][0].StructureSetROISequence}
    assert "GTV-1" in rois
    series = by["CT"][0].SeriesInstanceUID
    assert by["SEG"][0].ReferencedSeriesSequence[0].SeriesInstanceUID == series
    segment = next(s for s in by["SEG"][0].SegmentSequence if s.SegmentLabel == "GTV-1")
    frames = by["SEG"][0].PerFrameFunctionalGroupsSequence
    mine = [f.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment.SegmentNumber for f in frames]
    assert by["SEG"][0].pixel_array[np.array(mine)].sum() == 8


def test_organ_cubes_as_medmnist_reads_them(tmp_path, case_of):
    cases = [case_of(0), case_of(1, split="test")]
    medmnist.tables(tmp_path, [medmnist.case(tmp_path, case) for case in cases])
    with np.load(tmp_path / "organmnist3d.npz") as found:
        assert set(found) == {f"{s}_{k}" for s in ("train", "val", "test") for k in ("images", "labels")}
        images, labels = found["train_images"], found["train_labels"]
        assert images.shape[1:] == (28, 28, 28)
        assert images.dtype == labels.dtype == np.uint8
        assert found["val_images"].shape == (0, 28, 28, 28)
    assert labels[:, 0].tolist() == [0, 1, 2, 6, 7, 8, 9]  # no femora, bladder, pancreas among the blocks
    hu = case_of(0).phantom.ct.voxels[6:12, 1:9, 0:8].astype(float)
    grey = np.clip((hu + 160) / 400, 0, 1) * 255  # a block of 6 x 8 x 8 voxels, by its window
    assert abs(images[0].mean() - grey.mean()) < 3
    assert images[0].min() >= np.floor(grey.min())


def test_uids_of_different_scans_differ():
    from ctfoundry.layouts.series import uid

    assert len({uid("series", who, n) for who in "abcdef" for n in range(50)}) == 300


def test_writing_again_keeps_what_is_there(tmp_path, monkeypatch):
    """Finished patients are read from their marks; a damaged mark, or another cohort, is written anew."""
    cohort = sets.suited(Cohort(2, 5, view="chest", voxel_mm=12.0), "msd-lung")
    first = sets.write_patient(tmp_path, cohort, "msd-lung", 0)
    image = tmp_path / "Task06_Lung" / "imagesTr" / "lung_000.nii.gz"
    before = image.read_bytes()
    image.write_bytes(b"kept")
    assert sets.write_patient(tmp_path, cohort, "msd-lung", 0) == first
    assert image.read_bytes() == b"kept"
    mark = tmp_path / sets.DONE / "msd-lung-00000.json"
    mark.write_text("{")
    assert sets.write_patient(tmp_path, cohort, "msd-lung", 0) == first
    assert image.read_bytes() == before


def test_what_a_set_cannot_hold_is_an_error():
    with pytest.raises(UsageError, match="nearest known one is 'amos'"):
        sets.layout_named("amoss")
    with pytest.raises(UsageError, match="one scan of each patient"):
        sets.suited(Cohort(2, repeat=3), "word")
    assert sets.suited(Cohort(2), "rider").repeat == 2
    assert sets.suited(Cohort(2), "cq500").view == "head"
    assert all(layout.source for layout in sets.LAYOUTS.values())


def test_splits_are_by_patient():
    splits = [Cohort(10).split(n) for n in range(10)]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (7, 1, 2)
    assert {Cohort(2).split(n) for n in range(2)} == {"train"}
    assert {Cohort(3).split(n) for n in range(3)} == {"train", "val", "test"}
