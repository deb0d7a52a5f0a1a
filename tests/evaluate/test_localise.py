"""Localisation across patients, with its trivial methods and its limit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import worlds
from ctfoundry.body import body_box
from ctfoundry.evaluate import localise
from ctfoundry.evaluate.localise import Case
from ctfoundry.volume import Volume


def cases(count: int = 3) -> list[Case]:
    made = []
    for i in range(count):
        volume = worlds.body(i)
        centre = volume.world((np.array(volume.shape) - 1) / 2)
        made.append(Case(f"c{i}", f"p{i}", volume, {"centre": tuple(centre), f"own{i}": tuple(centre)}))
    return made


def test_all_ordered_pairs_of_shared_landmarks():
    encoder = worlds.tiny()
    errors = localise.localise(cases(), {"random": localise.encoder_method(encoder, ("stage1", "stage2"))})
    table = localise.by_method(errors)
    assert set(table) == {"random", "position in the body box", "best possible cell"}
    assert [len(v) for v in table.values()] == [6, 6, 6]
    assert {e.landmark for e in errors} == {"centre"}


def test_nothing_beats_the_best_cell():
    encoder = worlds.tiny()
    methods = {"a": localise.encoder_method(encoder, ("stage2",)), "hu": localise.hu_method(encoder, "stage2")}
    table = localise.by_method(localise.localise(cases(), methods))
    best = np.array([p.value for p in table["best possible cell"]])
    for name in methods:
        assert (np.array([p.value for p in table[name]]) >= best - 1e-9).all()


def test_position_guess_is_exact_for_a_moved_and_scaled_body():
    first = cases(1)[0]
    affine = np.array(first.volume.affine)
    affine[:3, :3] *= 1.5
    affine[:3, 3] += 40
    second = Volume(first.volume.voxels, affine)
    point = tuple(second.world((np.array(second.shape) - 1) / 2))
    pair = [first, Case("other", "other", second, {"centre": point})]
    table = localise.by_method(localise.localise(pair, {"hu": localise.hu_method(worlds.tiny(), "stage2")}))
    # body boxes are found on voxels some 4 mm apart, and the scaled scan is looked at through a coarser step
    assert max(p.value for p in table["position in the body box"]) < 8


def test_scans_of_one_patient_are_not_searched_in_each_other():
    first, second, third = cases()
    same = Case(second.id, first.patient, second.volume, second.landmarks)
    errors = localise.localise([first, same, third], {"hu": localise.hu_method(worlds.tiny(), "stage2")})
    assert all(e.pair.query != e.pair.target for e in errors)


def test_hu_cells_are_the_mean_around_them():
    encoder, volume = worlds.tiny(), worlds.body()
    described = localise.hu_method(encoder, "stage1")(volume)
    x = encoder.prepare(volume).x[0] * 3072 - 1024
    cell = (3, 8, 9)
    box = x[6 - 2 : 6 + 3, 16 - 2 : 16 + 3, 18 - 2 : 18 + 3]
    assert float(described.data[0][cell]) * 1000 == pytest.approx(float(box.mean()), abs=1e-2)
    assert float(described.data[1][cell]) * 1000 == pytest.approx(float(box.std(correction=0)), abs=0.5)
    torch.testing.assert_close(described.data[2:].sum(0), torch.ones(described.data.shape[1:]), atol=1e-4, rtol=0)


def test_body_box_leaves_the_table_out():
    volume = worlds.body(shape=(24, 64, 72))
    box = body_box(volume)
    hu = volume.voxels.copy()
    hu[:, 62:64, :] = 200  # a table behind the body, not touching it
    hu[:, 60:62, :] = -1000
    np.testing.assert_allclose(body_box(volume.with_voxels(hu)), box, atol=8)


def test_a_landmark_outside_what_the_encoder_sees_is_left_out():
    """The preparation keeps the box of HU > 0; a place in the air around it can be no query."""
    first, second, _ = cases()
    outside = {"corner": tuple(first.volume.world([0, 0, 0])), **first.landmarks}
    made = Case(first.id, first.patient, first.volume, outside)
    other = Case(second.id, second.patient, second.volume, {"corner": outside["corner"], **second.landmarks})
    errors = localise.localise([made, other], {"hu": localise.hu_method(worlds.tiny(), "stage0")})
    assert {e.landmark for e in errors} == {"centre"}


def test_containment_is_a_look_up_of_the_voxel():
    volume = worlds.body(0)
    voxels = np.zeros(volume.shape, np.uint8)
    voxels[3:6, 4:7, 5:9] = 7
    labels = Volume(voxels, volume.affine, "label", {7: "Liver"})
    case = Case("c", "p", volume, {}, labels)
    corners = labels.world([[3, 4, 5], [5, 6, 8], [2.4, 4, 5], [2.6, 4, 5], [6, 4, 5], [-50, 0, 0]])
    assert case.inside("liver", corners).tolist() == [1, 1, 0, 1, 0, 0]
    assert case.inside("spleen", corners) is None
    assert Case("c", "p", volume, {}).inside("liver", corners) is None


def test_the_target_tells_whether_a_place_is_inside():
    first, second, _ = cases()
    voxels = np.zeros(second.volume.shape, np.uint8)
    labelled = Case(
        second.id, second.patient, second.volume, second.landmarks, Volume(voxels, second.volume.affine, "label", {1: "centre"})
    )  # fmt: skip
    middle = tuple(n // 2 for n in voxels.shape)
    voxels[tuple(slice(m - 1, m + 2) for m in middle)] = 1
    errors = localise.localise([first, labelled], {"hu": localise.hu_method(worlds.tiny(), "stage2")})
    assert {e.inside for e in errors if e.target == first.id} == {None}
    nearest = next(e for e in errors if e.target == labelled.id and e.method == "position in the body box")
    assert nearest.inside == float(nearest.pair.value < 8)
