"""Label systems and data sets; what labels hold; sides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from adapt.bodies import CLASSES, NAMES, body, save, scans, write_plain
from ctfoundry.adapt.cases import Classes, LabelledSet, class_map, few, open_labelled, scan_of
from ctfoundry.adapt.labelling import survey, system_classes
from ctfoundry.adapt.prepared import Cases, prepare_case
from ctfoundry.adapt.sides import crossed, places
from ctfoundry.errors import ContractError, CTFoundryError, SettingsError, UsageError
from ctfoundry.phantom.names import LABELS
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.structures import system
from ctfoundry.volume import Volume

TINY = PREPARATIONS["ct-fm-tiny"]
V1 = system("totalsegmentator-v1")


def named(*names: str) -> LabelledSet:
    ct, labels = body(0)
    return LabelledSet("some", (scan_of("a", ct, replace(labels, names=dict(enumerate(names, 1)))),))


def test_classes_of_a_system_or_a_group() -> None:
    data = named(*LABELS.values())
    classes, notes = system_classes(data, "totalsegmentator/ribs")
    assert classes.names == system("totalsegmentator").groups["ribs"]
    assert classes.of_structure["rib_left_1"] == 1  # 92 in the system: remapped to 1 .. n in the order of its numbers
    assert classes.of_structure["costal_cartilages"] == 26
    assert notes == ()
    _, notes = system_classes(data, "totalsegmentator")
    lacking = set(system("totalsegmentator").structures) - set(LABELS.values())
    assert notes[0].startswith(f"{len(lacking)} of the 117 structures of totalsegmentator are not among the labels: ")
    assert "vertebrae_S1" in notes[0]
    own, _ = system_classes(data, "")
    assert own.names == tuple(LABELS.values())
    for wrong, said in (("totalsegmentator/rib", "'ribs'"), ("merlins", "'merlin'")):
        with pytest.raises(SettingsError, match=said):
            system_classes(data, wrong)
    with pytest.raises(UsageError, match="none of the 2 structures of msd-hepatic-vessel"):
        system_classes(data, "msd-hepatic-vessel")


def test_one_version_is_not_read_as_the_other() -> None:
    data = named(*V1.structures)
    with pytest.raises(
        UsageError, match=r"labels of totalsegmentator-v1 .*not of totalsegmentator(.|\n)*labels=totalsegmentator-v1"
    ):
        system_classes(data, "totalsegmentator")
    assert system_classes(data, "totalsegmentator-v1/ribs")[0].names == V1.groups["ribs"]
    nameless = LabelledSet("some", (replace(data.scans[0], names={}),))
    with pytest.raises(UsageError, match=r"nothing names the numbers(.|\n)*labels\.json"):
        system_classes(nameless, "totalsegmentator")


def sided(numbers: dict[str, int], names: dict[int, str]) -> tuple[Volume, Volume]:
    """A scan (L to the left in RAS+: smaller x) with boxes on both sides, under the numbers that they have in some system."""
    ct, _ = body(0)
    voxels = np.zeros(ct.shape, dtype=np.uint8)
    x = [ct.affine[0, :3] @ (0, 0, i) for i in (0, 1)]
    left = slice(4, 14) if x[0] < x[1] else slice(26, 36)
    right = slice(26, 36) if x[0] < x[1] else slice(4, 14)
    for k, (name, number) in enumerate(numbers.items()):
        voxels[3 * k : 3 * k + 3, 10:24, left if "left" in name else right] = number
    return ct, Volume(voxels, ct.affine, "label", names=names)


def test_crossed_sides_are_said() -> None:
    structures = ("adrenal_gland_right", "adrenal_gland_left", "lung_lower_lobe_left", "lung_lower_lobe_right")
    v1 = {name: V1.names.index(name) for name in structures}
    ct, labels = sided(v1, V1.table)
    assert places(labels.voxels, labels.affine, V1.table).keys() == set(structures)
    classes = Classes.of(structures)
    assert class_map(scan_of("right", ct, labels), ct, classes)[1] == []
    # the same map taken for version 2: adrenals become lobes, lobes others
    v2 = replace(labels, names=system("totalsegmentator").table)
    (said,) = class_map(scan_of("wrong", ct, v2), ct, Classes.of(["lung_lower_lobe_left"]))[1]
    assert said.startswith("wrong: lung_lower_lobe_left lies on the patient's right of what is named right")
    assert "another label system" in said
    # a mirrored scan, masks one a structure
    mirrored = {
        name: replace(labels, voxels=(labels.voxels == v)[:, :, ::-1].astype(np.uint8)) for name, v in v1.items()
    }
    scan = replace(scans(1)[0], maps={name: (lambda m=m: m) for name, m in mirrored.items()}, names={})  # type: ignore[misc]
    (said,) = class_map(scan, ct, classes)[1]
    assert "lung_lower_lobe_left" in said
    assert "adrenal_gland_left" in said
    assert (
        crossed({"kidney_left": 3.0, "kidney_right": 0.0, "rib_left_2": 50.0}) == []
    )  # near the middle; no counterpart


def test_what_labels_hold_is_surveyed() -> None:
    ct, labels = body(1)
    empty = scan_of("empty", ct, labels.with_voxels(labels.voxels * 0))
    crooked = scan_of("crooked", ct, labels.crop(((0, 15), (0, 36), (0, 40))))
    some = replace(labels, voxels=np.where(labels.voxels == 2, 0, labels.voxels))
    found = survey(Cases([empty, crooked, scan_of("some", ct, some)], TINY, CLASSES))
    assert (found.scans, found.unseen) == (2, ("fat",))
    assert dict(found.holding) == {"bone": 1, "fat": 0, "left_side": 1}
    assert list(found.failed) == ["crooked"]
    assert "another grid" in found.failed["crooked"]
    assert found.said("training") == (
        "empty: holds none of the classes",
        "1 of 3 classes are in none of the 2 training scans: fat",
    )
    assert survey(Cases(scans(2), TINY, CLASSES)).said("training") == ()


def test_draws_pass_over_scans_of_no_use() -> None:
    made = [replace(s, patient=f"p{i // 3}") for i, s in enumerate(scans(12))]
    useful = {s.id for i, s in enumerate(made) if i % 3 == 1}
    asked: list[str] = []

    def holds(scan: object) -> bool:
        asked.append(scan.id)  # type: ignore[attr-defined]
        return asked[-1] in useful

    drawn = {n: few(made, n, seed=2, holds=holds) for n in (1, 3, 4)}
    assert {s.id for s in drawn[4]} == useful
    assert drawn[4][:3] == drawn[3]
    assert drawn[3][:1] == drawn[1]
    asked.clear()
    few(made, 1, seed=2, holds=holds)
    assert len(set(asked)) <= 3
    with pytest.raises(
        UsageError, match=r"2 shots are asked for and 4 training patients, 0 of them with what is to be learnt"
    ):
        few(made, 2, holds=lambda scan: False)
    # neither the order of the scans nor the first one of a patient decides
    assert few(made[::-1], 4, seed=2) == few(made, 4, seed=2)
    assert any(few(made, 1, seed=seed)[0].id not in ("body0", "body3", "body6", "body9") for seed in range(6))


# ------------------------------------------------------------------ bad files


def broken(root: Path, voxels: np.ndarray) -> LabelledSet:
    write_plain(root, 1)
    path = root / "body0" / "labels.nii.gz"
    affine = nibabel.load(path).affine
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(voxels.T), affine), path)
    return open_labelled(root)


def test_label_maps_with_fractions_are_refused(tmp_path: Path) -> None:
    voxels = body(0)[1].voxels.astype(np.float32)
    voxels[5:9] = 0.5 * (voxels[5:9] + voxels[4:8]) + 0.25
    data = broken(tmp_path, voxels)
    with pytest.raises(
        ContractError, match=r"body0: the labels labels\.nii\.gz are not whole numbers(.|\n)*resampled linearly"
    ):
        prepare_case(data.scans[0], TINY, CLASSES)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_label_maps_with_no_numbers_of_labels_are_refused(tmp_path: Path, value: float) -> None:
    voxels = body(0)[1].voxels.astype(np.float32)
    voxels[3, 4, 5] = value
    data = broken(tmp_path, voxels)
    with pytest.raises(CTFoundryError, match=r"labels\.nii\.gz"):
        prepare_case(data.scans[0], TINY, CLASSES)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scans_with_no_numbers_are_refused(value: float) -> None:
    ct, labels = body(0)
    voxels = ct.voxels.astype(np.float32)
    voxels[3, 4, 5] = value
    with pytest.raises(CTFoundryError, match=r"NaN|infinite|finite"):
        prepare_case(scan_of("a", ct.with_voxels(voxels), labels), TINY, CLASSES)


def test_three_hundred_label_values() -> None:
    ct, labels = body(0)
    voxels = labels.voxels.astype(np.int32)
    voxels[0].flat[:300] = np.arange(100_000, 100_300)  # beyond a table too
    many = replace(labels, voxels=voxels, names=NAMES)
    case = prepare_case(scan_of("a", ct, many), TINY, CLASSES)
    (said,) = case.warnings
    assert "label values that nothing names are left out of training and scores: 100000, 100001" in said
    assert case.present == CLASSES.names
    table = {i: f"part{i}" for i in range(1, 301)}
    voxels = labels.voxels.astype(np.uint16)
    voxels[0].flat[:300] = np.arange(1, 301)
    case = prepare_case(
        scan_of("a", ct, replace(labels, voxels=voxels, names=table)), TINY, Classes.of(["part2", "part3"])
    )
    assert case.present == ("part2", "part3")
    with pytest.raises(SettingsError, match="300 classes; at most 254"):
        Classes.of(table.values())


def test_a_folder_of_version_1_names_itself(tmp_path: Path) -> None:
    """As published: masks one a structure; and as one map with a labels.json."""
    ct, labels = body(0)
    for name in V1.structures:
        mask = labels.with_voxels((labels.voxels == 1).astype(np.uint8))
        save(mask, tmp_path / "a" / "s0001" / "segmentations" / f"{name}.nii.gz")
    save(ct, tmp_path / "a" / "s0001" / "ct.nii.gz")
    (tmp_path / "a" / "meta.csv").write_text("image_id;age;gender;institute;study_type;split\ns0001;60;m;A;ct;train\n")
    save(ct, tmp_path / "b" / "x" / "ct.nii.gz")
    save(labels, tmp_path / "b" / "x" / "labels.nii.gz")
    (tmp_path / "b" / "labels.json").write_text(json.dumps({str(k): v for k, v in V1.table.items()}))
    for folder in ("a", "b"):
        with pytest.raises(UsageError, match="totalsegmentator-v1"):
            system_classes(open_labelled(tmp_path / folder), "totalsegmentator")
        assert len(system_classes(open_labelled(tmp_path / folder), "totalsegmentator-v1")[0].names) == 104
