"""Legs: lengths, sides, compartments, marrow and cortex; measured on the voxels alone."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import scipy.ndimage

from ctfoundry import metrics
from ctfoundry.keys import Key
from ctfoundry.phantom import IDS, LABELS, Acquisition, Phantom, Spec, Subject, draw, make
from ctfoundry.phantom.names import LEGS

STATURE_MM = 1720.0
"""Of the reference body, said by `phantom.anatomy`."""


@functools.cache
def legs(seed: int = 1, low: float = -1020.0, high: float = -70.0, voxel: float = 4.0, **changes: object) -> Phantom:
    """Both legs from the hip joints to the toes, quiet and without contrast medium."""
    grid = {"field_mm": 440.0, "matrix": round(440 / voxel), "spacing_mm": voxel, "thickness_mm": voxel}
    scan = Acquisition(seed, z_range=(low, high), noise_hu=0.0, kernel="soft", phase="none", **grid)
    return make(Spec(Subject(seed, **changes), scan))


def mask(phantom: Phantom, *names: str) -> np.ndarray:
    return np.isin(phantom.labels.voxels, [IDS[n] for n in names])


def points(phantom: Phantom, name: str, side: int = 0) -> np.ndarray:
    """World points of a structure's voxels (n, 3); of one side of the middle."""
    index = np.argwhere(mask(phantom, name))
    affine = phantom.ct.affine
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return world[world[:, 0] * side > 0] if side else world


def test_all_structures_are_there() -> None:
    present = {LABELS[i] for i in np.unique(legs().labels.voxels).tolist() if i}
    assert {*LEGS, "femur_left", "femur_right", "skin", "subcutaneous_fat"} <= present


@pytest.mark.parametrize("height", [0.92, 1.08])
def test_bones_have_the_lengths_of_their_stature(height: float) -> None:
    # Trotter and Gleser: femora 0.25 to 0.28 of the stature, tibiae 0.20 to 0.24.
    p = legs(2, height=height)
    for side, name in ((-1, "left"), (1, "right")):
        femur = points(p, f"femur_{name}")
        axis = np.linalg.svd(femur - femur.mean(0), full_matrices=False)[2][0]
        assert 0.25 < np.ptp((femur - femur.mean(0)) @ axis) / (STATURE_MM * height) < 0.28
        tibia = points(p, "tibia", side)
        assert 0.20 < np.ptp(tibia[:, 2]) / (STATURE_MM * height) < 0.24
        fibula = points(p, "fibula", side)
        assert fibula[:, 2].max() < tibia[:, 2].max()
        assert fibula[:, 2].min() < tibia[:, 2].min() + 20


def test_left_is_left_and_front_is_front() -> None:
    p = legs()
    assert metrics.centroid(p.labels, IDS["femur_left"])[0] < metrics.centroid(p.labels, IDS["femur_right"])[0] - 100
    for side in (-1, 1):
        middle = {n: points(p, n, side).mean(axis=0) for n in ("patella", "tibia", "fibula", "quadriceps", "hamstrings",
                                                              "adductors", "calf", "foot")}  # fmt: skip
        knee = points(p, "femur_left" if side < 0 else "femur_right", side)
        knee = knee[knee[:, 2] < knee[:, 2].min() + 30].mean(axis=0)
        assert middle["patella"][1] > knee[1] + 20
        assert (middle["fibula"][0] - middle["tibia"][0]) * side > 10
        assert middle["quadriceps"][1] > middle["hamstrings"][1] + 30
        assert middle["calf"][1] < middle["tibia"][1]
        assert (middle["adductors"][0] - middle["quadriceps"][0]) * side < -5
        assert middle["foot"][2] < middle["tibia"][2] - 100
        toes = points(p, "foot", side)
        assert toes[:, 1].max() > middle["tibia"][1] + 80


def test_hu_of_the_legs() -> None:
    p = legs(1, -640.0, -380.0, 2.0)
    hu = p.ct.voxels
    deep = scipy.ndimage.binary_erosion(mask(p, "quadriceps"), iterations=2)
    assert 30 < np.median(hu[deep]) < 75
    assert -125 < np.median(hu[scipy.ndimage.binary_erosion(mask(p, "subcutaneous_fat"))]) < -75
    assert 40 < np.median(hu[scipy.ndimage.binary_erosion(mask(p, "patella"), iterations=2)]) < 450
    # Shaft of the femur: dense ring, fatty marrow; spongy at the knee.
    height = p.ct.affine[2, 3] + p.ct.spacing[0] * np.arange(len(hu))
    shaft = mask(p, "femur_left") & ((height > -430) & (height < -390))[:, None, None]
    inner = scipy.ndimage.distance_transform_edt(mask(p, "femur_left"), p.ct.spacing)
    assert np.median(hu[shaft & (inner > 10)]) < 0
    assert np.median(hu[shaft & (inner > 2.5) & (inner < 5)]) > 900
    condyles = mask(p, "femur_left") & ((height > -530) & (height < -500))[:, None, None]
    assert 60 < np.median(hu[condyles & (inner > 8)]) < 350


def test_muscles_lie_inside_the_skin_and_weigh_what_muscles_weigh() -> None:
    p = legs(1)
    litres = {
        n: float(mask(p, n).sum() * np.prod(p.ct.spacing)) / 1e6
        for n in ("quadriceps", "hamstrings", "adductors", "calf")
    }
    # MRI volumetry of young adults, two legs: quadriceps 2 to 4.5 l, hamstrings and adductors about half of it each.
    assert 2.0 < litres["quadriceps"] < 4.5
    assert 0.7 < litres["hamstrings"] < 2.9
    assert 0.7 < litres["adductors"] < 2.9
    assert 0.7 < litres["calf"] < 2.0
    body = scipy.ndimage.binary_fill_holes(p.labels.voxels > 0)
    edge = body & ~scipy.ndimage.binary_erosion(body)
    assert not (edge[4:-4] & mask(p, *litres, "femur_left", "tibia")[4:-4]).any()


def test_vessels_run_from_the_groin_to_behind_the_knee() -> None:
    p = legs(3, -620.0, -160.0, 3.0)
    for side, name in ((-1, "left"), (1, "right")):
        vessel, femur = points(p, "femoral_vessels", side), points(p, f"femur_{name}")
        top, knee = vessel[vessel[:, 2] > -230], vessel[np.abs(vessel[:, 2] + 520) < 20]
        bone = femur[np.abs(femur[:, 2] + 520) < 20]
        assert top[:, 1].mean() > femur[femur[:, 2] > -230][:, 1].mean() + 15
        assert knee[:, 1].mean() < bone[:, 1].mean() - 15


def test_fat_and_weak_legs_differ() -> None:
    lean, fat = (legs(1, -420.0, -330.0, 3.0, fat_mm=mm, muscle=m) for mm, m in ((6.0, 1.15), (38.0, 0.8)))
    share = [float(mask(p, "subcutaneous_fat").sum() / (p.labels.voxels > 0).sum()) for p in (lean, fat)]
    assert share[1] > 2 * share[0]
    inside = [p.ct.voxels[scipy.ndimage.binary_erosion(mask(p, "quadriceps"))] for p in (lean, fat)]
    assert np.mean(inside[1] < 0) > np.mean(inside[0] < 0)


def test_nothing_of_a_leg_is_seen_in_the_chest_and_the_torso_ends_as_before() -> None:
    chest = make(Spec(Subject(1), Acquisition(1, z_range=(60, 200), matrix=80, spacing_mm=6, thickness_mm=6)))
    assert not mask(chest, *LEGS).any()
    torso = make(Spec(Subject(1), Acquisition(1, matrix=110, spacing_mm=4, thickness_mm=4)))
    assert not mask(torso, "tibia", "patella", "calf", "foot").any()


def test_views_of_legs_hold_what_they_name() -> None:
    for view, names in (("thigh", ("quadriceps",)), ("knee", ("patella", "tibia")), ("lower-leg", ("tibia", "calf"))):
        for i in range(2):
            p = make(draw(Key.of("test legs", view, i), view=view, voxel_mm=6.0))  # type: ignore[arg-type]
            for name in names:
                assert mask(p, name).any(), (view, i, name)
    wide = {draw(Key.of("field", i), view="knee").acquisition.field_mm > 280 for i in range(20)}
    assert wide == {True, False}  # one leg or both
    a, b = (make(draw(Key.of("same"), view="knee", voxel_mm=6.0)) for _ in range(2))
    assert np.array_equal(a.ct.voxels, b.ct.voxels)
