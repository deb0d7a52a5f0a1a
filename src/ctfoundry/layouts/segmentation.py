"""Segmentation sets: TotalSegmentator v2, Medical Segmentation Decathlon, AMOS 2022, WORD, KiTS23."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ctfoundry import files
from ctfoundry.layouts.cases import Case
from ctfoundry.layouts.layout import Layout, Row, no_tables, relabelled, write_image, write_table
from ctfoundry.phantom.names import GROUPS, IDS
from ctfoundry.phantom.spec import View
from ctfoundry.structures import system

TOTAL_V2: tuple[str, ...] = system("totalsegmentator").structures
"""The 117 classes of TotalSegmentator v2 in the order of their numbers 1 to 117; one mask file each."""

META = (
    "image_id", "age", "gender", "institute", "study_type", "split", "manufacturer", "scanner_model", "kvp", "pathology",
    "pathology_location",
)  # fmt: skip
"""Columns of its ``meta.csv``."""


def total_case(root: Path, case: Case) -> Row:
    """``s0001/ct.nii.gz`` and ``s0001/segmentations/CLASS.nii.gz`` for all 117 classes, those that are absent too."""
    name = f"s{case.patient + 1:04d}"
    write_image(case.phantom.ct, root / name / "ct.nii.gz")
    labels = case.phantom.labels
    for part in TOTAL_V2:
        parts = GROUPS["heart"] if part == "heart" else (part,)  # the chambers are a class of another task
        mask = np.isin(labels.voxels, [IDS.get(name, 255) for name in parts]).astype(np.uint8)
        write_image(labels.with_voxels(mask), root / name / "segmentations" / f"{part}.nii.gz")
    regions = {"chest": "thorax"}
    study = "ct " + "-".join(sorted(regions.get(part, part) for part in case.facts.parts))
    return dict.fromkeys(META, "") | {
        "image_id": name,
        "age": case.age,
        "gender": case.sex.lower(),
        "institute": "P",
        "study_type": study,
        "split": case.split,
        "manufacturer": "phantom",
        "scanner_model": "phantom",
        "kvp": 120,
        "pathology": "other" if case.findings else "no_pathology",
    }


def total_tables(root: Path, rows: Sequence[Row]) -> None:
    """``meta.csv``: separated by semicolons, UTF-8 with a byte order mark."""
    write_table(root / "meta.csv", rows, META, sep=";", bom=True)


@dataclass(frozen=True)
class Set:
    """A set with one image and one label file a scan.

    Attributes
    ----------
    folder : of the set below the root.
    image, label : file of a scan for each split ("" where the set has none), with ``{n}`` for its number.
    classes : number to structures (`layout.relabelled`); names : number to the set's own word.
    first : number of the first scan; axes : order of the arrays' axes.
    """

    folder: str
    image: Mapping[str, str]
    label: Mapping[str, str]
    classes: Mapping[int, Sequence[str]]
    names: Mapping[int, str]
    first: int = 0
    axes: str = "SAR"
    about: Mapping[str, Any] = field(default_factory=dict)


def set_case(layout: Set, root: Path, case: Case) -> Row:
    """The image, and the label file where the split has one."""
    n = case.patient + layout.first
    home = root / layout.folder
    image, label = layout.image[case.split].format(n=n), layout.label[case.split].format(n=n)
    write_image(case.phantom.ct, home / image, layout.axes)
    if label:
        write_image(relabelled(case, layout.classes), home / label, layout.axes)
    return {"image": f"./{image}", "label": f"./{label}" if label else "", "split": case.split}


def set_tables(layout: Set, root: Path, rows: Sequence[Row]) -> None:
    """``dataset.json`` in the Decathlon's form."""
    pairs = {
        split: [{"image": r["image"], "label": r["label"]} for r in rows if r["split"] == split and r["label"]]
        for split in ("train", "val")
    }
    tests = [r["image"] for r in rows if r["split"] == "test"]
    own = layout.image["val"] != layout.image["train"]
    training = pairs["train"] + ([] if own else pairs["val"])
    data = {
        "name": layout.folder,
        "description": "phantoms of ctfoundry",
        "reference": "",
        "licence": "",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background"} | {str(k): v for k, v in layout.names.items()},
        "numTraining": len(training),
        "numTest": len(tests),
        "training": training,
        **({"validation": pairs["val"]} if own else {}),
        "test": tests,
    }
    files.write_json(root / layout.folder / "dataset.json", data)


def _decathlon(
    task: str, stem: str, classes: Mapping[int, Sequence[str]], names: Mapping[int, str], number: str = "{n}"
) -> Set:
    name = f"{stem}_{number}.nii.gz"
    image, label = f"imagesTr/{name}", f"labelsTr/{name}"
    return Set(
        task,
        {"train": image, "val": image, "test": f"imagesTs/{name}"},
        {"train": label, "val": label, "test": ""},
        classes,
        names,
    )


_AMOS = (
    "spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach", "aorta", "inferior_vena_cava",
    "pancreas", "adrenal_gland_right", "adrenal_gland_left", "duodenum", "urinary_bladder", "prostate",
)  # fmt: skip
_AMOS_NAMES = (
    "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "arota", "postcava", "pancreas",
    "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
)  # fmt: skip
"""The set's own words, its spelling of the aorta included."""
_WORD = (
    "liver", "spleen", "kidney_left", "kidney_right", "stomach", "gallbladder", "esophagus", "pancreas", "duodenum", "colon",
    "small_bowel", "adrenal_gland_*", "rectum", "urinary_bladder", "femur_left", "femur_right",
)  # fmt: skip


def _numbered(names: Sequence[str]) -> dict[int, tuple[str, ...]]:
    return {i: (name,) for i, name in enumerate(names, 1)}


SETS: dict[str, Set] = {
    "msd-liver": _decathlon(
        "Task03_Liver", "liver", {1: ("liver",), 2: ("lesion:liver_lesion",)}, {1: "liver", 2: "cancer"}
    ),
    "msd-lung": _decathlon(
        "Task06_Lung", "lung", {1: ("lesion:lung_nodule",)}, {1: "cancer"}, "{n:03d}"
    ),  # numbers as in abachaa/3D-MIR: Data_Splits
    "msd-spleen": _decathlon("Task09_Spleen", "spleen", {1: ("spleen",)}, {1: "spleen"}),
    "amos": Set(
        "amos22",
        {s: f"images{f}/amos_{{n:04d}}.nii.gz" for s, f in (("train", "Tr"), ("val", "Va"), ("test", "Ts"))},
        {"train": "labelsTr/amos_{n:04d}.nii.gz", "val": "labelsVa/amos_{n:04d}.nii.gz", "test": ""},
        _numbered(_AMOS),
        dict(enumerate(_AMOS_NAMES, 1)),
        first=1,
    ),
    "word": Set(
        "WORD-V0.1.0",
        {s: f"images{f}/word_{{n:04d}}.nii.gz" for s, f in (("train", "Tr"), ("val", "Val"), ("test", "Ts"))},
        {s: f"labels{f}/word_{{n:04d}}.nii.gz" for s, f in (("train", "Tr"), ("val", "Val"), ("test", "Ts"))},
        _numbered(_WORD),
        {i: n.rstrip("*").rstrip("_") for i, n in enumerate(_WORD, 1)},
        first=1,
    ),
    "kits23": Set(
        "dataset",
        dict.fromkeys(("train", "val", "test"), "case_{n:05d}/imaging.nii.gz"),
        dict.fromkeys(("train", "val", "test"), "case_{n:05d}/segmentation.nii.gz"),
        {1: ("kidney_left", "kidney_right"), 3: ("kidney_cyst_left", "kidney_cyst_right", "lesion:renal_cyst")},
        {1: "kidney", 2: "tumor", 3: "cyst"},
        axes="LPI",
    ),
}

_SOURCES = {
    "msd-liver": "dataset.json as quoted for Task09_Spleen.tar (sarah-antillia/ImageMask-Dataset-Spleen, README.md); monai.data.load_decathlon_datalist reads it",
    "amos": "zenodo.org/records/7262581 as listed in qiumuyang/PLDG (AbdomenPrepare/data/raw/amos/README.md): imagesTr, labelsTr,"
    " imagesVa, labelsVa, amos_NNNN.nii.gz; numbers of the 15 classes as in its dataset.json",
    "word": "openmedlab/Awesome-Medical-Dataset, resources/WORD.md (six folders, word_NNNN.nii.gz); order of the 16 classes as in"
    " the SAT data builder's preprocess_WORD; the phantoms have no rectum. No dataset.json could be seen: ours is the Decathlon's form",
    "kits23": "neheller/kits23 README.md and kits23/configuration/labels.py: dataset/case_NNNNN/imaging.nii.gz, kidney 1, tumor 2,"
    " cyst 3; slices are the first axis (README of neheller/kits19); the signs of the axes (here I, P, L) could not be verified",
}


def _layout(name: str) -> Layout:
    about = SETS[name]
    views: dict[str, View] = {"msd-lung": "chest"}
    tables = no_tables if name == "kits23" else partial(set_tables, about)
    source = _SOURCES.get(name, _SOURCES["msd-liver"])
    lesions = name in ("msd-liver", "msd-lung", "kits23")
    return Layout(partial(set_case, about), tables, source, views.get(name, "abdomen"), lesions)


LAYOUTS: dict[str, Layout] = {
    "totalsegmentator": Layout(
        total_case,
        total_tables,
        "TotalSegmentator dataset v2.0.1 (doi 10.5281/zenodo.10047292) as read by its own"
        " resources/convert_dataset_to_nnunet.py (meta.csv with sep=';', SUBJECT/ct.nii.gz, SUBJECT/segmentations);"
        " 117 masks a subject and the columns of meta.csv as listed from the zip's directory in public notes",
        None,
    ),
    **{name: _layout(name) for name in SETS},
}
