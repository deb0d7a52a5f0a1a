from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from adapt.bodies import CLASSES, NAMES, body, save, scans, write_plain
from ctfoundry.adapt import prepared as module
from ctfoundry.adapt.cases import IGNORE, Classes, chosen_classes, class_map, few, open_labelled, scan_of, split
from ctfoundry.adapt.prepared import Cases, prepare_case
from ctfoundry.errors import ContractError, CTFoundryError, SettingsError, UsageError
from ctfoundry.geometry import to_index, to_world
from ctfoundry.preparation import PREPARATIONS, prepare

TINY = PREPARATIONS["ct-fm-tiny"]


def test_classes_that_make_no_sense() -> None:
    assert Classes.of({"a": ["x", "y"], "b": ["z"]}).of_structure == {"x": 1, "y": 1, "z": 2}
    for wrong in ({"a": ["x"], "b": ["x"]}, {}, {"a": []}, [f"s{i}" for i in range(255)]):
        with pytest.raises(SettingsError):
            Classes.of(wrong)


def test_a_folder_of_labelled_scans(tmp_path: Path) -> None:
    data = open_labelled(write_plain(tmp_path, 2))
    assert data.structures == tuple(NAMES.values())
    assert [scan.id for scan in data.scans] == ["body0", "body1"]
    _, labels = body(1)
    image = data.scans[1].image()
    found, warnings = class_map(data.scans[1], image, chosen_classes(data, ["fat", "bone"]))
    assert warnings == []
    turned, wanted = found.reorient("SPL"), labels.reorient("SPL")
    assert np.allclose(turned.affine, wanted.affine, atol=1e-4)
    assert ((turned.voxels == 1) == (wanted.voxels == 2)).all()
    assert ((turned.voxels == 2) == (wanted.voxels == 1)).all()
    assert image.kind == "hu"
    assert data.scans[0].content() != data.scans[1].content()
    with pytest.raises(UsageError, match="'bone'"):
        chosen_classes(data, ["bones"])
    grouped = chosen_classes(data, groups={"hard": ["bone", "teeth"], "brain": ["brain"]})
    assert grouped == Classes(("hard",), (("bone",),))
    with pytest.raises(UsageError, match="none of the groups"):
        chosen_classes(data, groups={"brain": ["brain"]})


def test_folders_without_labels_and_without_names(tmp_path: Path) -> None:
    save(body(0)[0], tmp_path / "a" / "ct.nii.gz")
    with pytest.raises(UsageError, match="none of the 1 scans has labels"):
        open_labelled(tmp_path)
    save(body(0)[1], tmp_path / "a" / "labels.nii.gz")
    data = open_labelled(tmp_path)
    with pytest.raises(UsageError, match=r"labels\.json"):
        chosen_classes(data)


def test_masks_one_a_structure() -> None:
    ct, labels = body(0)
    maps = {
        "bone": lambda: labels.with_voxels((labels.voxels == 1).astype(np.uint8)),
        "fat": lambda: labels.with_voxels((labels.voxels >= 1).astype(np.uint8) * 255),
    }
    scan = replace(scans(1)[0], maps=maps, names={})
    found, warnings = class_map(scan, ct, Classes.of(["bone", "fat"]))
    assert (found.voxels == np.where(labels.voxels > 0, 2, 0)).all()
    assert warnings == [f"body0: {int((labels.voxels == 1).sum())} voxels lie in several masks; the last one counts"]
    alone, none = class_map(scan, ct, Classes.of(["bone"]))
    assert none == []
    assert ((alone.voxels == 1) == (labels.voxels == 1)).all()


def test_labels_off_the_grid_are_refused() -> None:
    ct, labels = body(0)
    moved = replace(labels, affine=labels.affine + np.diag([0, 0, 0, 0.0]))
    assert class_map(scan_of("a", ct, moved), ct, CLASSES)[1] == []
    affine = np.array(labels.affine)
    affine[0, 3] += 2.0
    for wrong in (replace(labels, affine=affine), labels.crop(((0, 15), (0, 36), (0, 40)))):
        with pytest.raises(ContractError, match=r"another grid(.|\n)*resample the labels"):
            prepare_case(scan_of("a", ct, wrong), TINY, CLASSES)


def test_unknown_values_are_asked_of_nobody_and_said() -> None:
    ct, labels = body(0)
    voxels = labels.voxels.copy()
    voxels[5, 6, 6] = 77
    case = prepare_case(scan_of("a", ct, labels.with_voxels(voxels)), TINY, CLASSES)
    assert case.warnings == ("a: label values that nothing names are left out of training and scores: 77",)
    assert (case.labels == IGNORE).sum() == 1
    nameless = replace(labels, names=None, voxels=voxels)
    found = prepare_case(scan_of("a", ct, nameless), TINY, Classes.of(["1", "77"]))
    assert (found.labels == 2).sum() == 1


def test_empty_labels_are_said_and_nan_is_refused() -> None:
    ct, labels = body(0)
    case = prepare_case(scan_of("a", ct, labels.with_voxels(labels.voxels * 0)), TINY, CLASSES)
    assert case.warnings == ("a: holds none of the classes",)
    broken = ct.voxels.astype(np.float32)
    broken[3, 4, 5] = np.nan
    with pytest.raises(CTFoundryError, match="NaN"):
        prepare_case(scan_of("a", ct.with_voxels(broken), labels), TINY, CLASSES)


def test_what_is_prepared_lies_where_the_labels_lie() -> None:
    ct, labels = body(0, (20, 50, 60))
    case = prepare_case(scan_of("a", ct, labels), PREPARATIONS["ct-fm"], CLASSES)  # 3x1x1 mm: twice as fine
    made = prepare(PREPARATIONS["ct-fm"], ct)
    assert (case.x() - made.x).abs().max() <= case.step / 2 + 1e-6
    assert case.step * 3072 / 2 < 0.03  # HU
    assert np.allclose(case.affine, made.affine)
    box = (slice(2, 9), slice(5, 11), slice(7, 8))
    assert (case.x(box) == case.x()[:, 2:9, 5:11, 7:8]).all()
    # each class' share at the voxels' places in the label map, by SciPy; the larger one, of equals the smaller label
    index = np.stack(np.meshgrid(*(np.arange(n) for n in case.shape), indexing="ij"), -1)
    places = np.round(to_index(labels.affine, to_world(case.affine, index)), 6)
    shares = [
        ndimage.map_coordinates(
            (labels.voxels == v).astype(np.float64), np.moveaxis(places, -1, 0), order=1, mode="nearest"
        )
        for v in range(4)
    ]
    assert (case.labels == np.argmax(np.round(shares, 6), 0)).all()
    assert all((case.labels == value).sum() > 1000 for value in (1, 2, 3))


def test_patients_stay_on_one_side() -> None:
    made = [replace(s, patient=f"p{i // 2}") for i, s in enumerate(scans(12))]
    parts = split(made, seed=3, test=0.2)
    sides = [{s.patient for s in part} for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, sides)) == 6
    assert [len(side) for side in sides] == [3, 2, 1]
    assert len(parts.train) == 6
    assert split(made, seed=3, test=0.2) == parts
    assert any(split(made, seed=seed, test=0.2) != parts for seed in range(4, 8))
    given = [replace(s, split="validation" if i > 9 else "train") for i, s in enumerate(made)]
    assert {s.patient for s in split(given).validation} == {"p5"}
    with pytest.raises(ContractError, match="patient p4 is in train and in validation"):
        split([replace(s, split="validation" if i > 8 else "train") for i, s in enumerate(made)])
    with pytest.raises(UsageError, match="do not divide"):
        split(made[:2])


def test_fewer_shots_are_part_of_more() -> None:
    made = [replace(s, patient=f"p{i // 2}") for i, s in enumerate(scans(12))]
    drawn = [[s.id for s in few(made, n, seed=1)] for n in (1, 3, 6)]
    assert drawn[2][:3] == drawn[1]
    assert drawn[1][:1] == drawn[0]
    assert len({few(made, 1, seed=seed)[0].patient for seed in range(20)}) > 2
    with pytest.raises(UsageError, match="7 shots"):
        few(made, 7)


def test_cases_are_made_once_and_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(module, "prepare_case", lambda *a: made.append(a[0].id) or prepare_case(*a))
    held = Cases(scans(3), TINY, CLASSES)
    first = list(held)
    assert [case.id for case in held[0:2]] == ["body0", "body1"]
    assert made == ["body0", "body1", "body2"]
    narrow = Cases(scans(3), TINY, CLASSES, memory=first[0].bytes)
    assert len([narrow[0], narrow[0], narrow[1], narrow[0]]) == 4
    assert made[3:] == ["body0", "body1", "body0"]
    made.clear()
    for _ in range(2):
        again = list(Cases(scans(3), TINY, CLASSES, cache=tmp_path))
    assert made == ["body0", "body1", "body2"]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.x(), b.x())
        assert (a.labels == b.labels).all()
        assert (a.id, a.patient, a.preparation, a.warnings) == (b.id, b.patient, b.preparation, b.warnings)
        assert np.array_equal(a.affine, b.affine)
    other = list(Cases(scans(3), TINY, Classes.of(["fat"]), cache=tmp_path))
    assert set(np.unique(other[0].labels)) == {0, 1}
    damaged = sorted(tmp_path.iterdir())
    assert len(damaged) == 6
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-100])
    made.clear()
    assert (next(iter(list(Cases(scans(3), TINY, CLASSES, cache=tmp_path)))).labels == first[0].labels).all()
    assert len(made) == 3
