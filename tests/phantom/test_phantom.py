"""The phantom as a whole: determinism, truth in millimetres, tissues, partial volume."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
import scipy.ndimage

from ctfoundry import metrics, settings
from ctfoundry.errors import SettingsError, UsageError
from ctfoundry.keys import Key
from ctfoundry.phantom import GROUPS, IDS, LABELS, Acquisition, Phantom, Spec, Subject, draw, make
from ctfoundry.phantom.names import FOUND, HEAD, LEGS, NECK

KEY = Key.of("test phantom")
COARSE = {"spacing_mm": 4.0, "thickness_mm": 4.0, "matrix": 112, "field_mm": 448.0}


@functools.cache
def torso(seed: int = 1, **changes: object) -> Phantom:
    """A quiet 4 mm torso."""
    scan = {"seed": seed, "noise_hu": 0.0, "kernel": "soft", **COARSE, **changes}
    return make(Spec(Subject(seed), Acquisition(**scan)))


def centre(phantom: Phantom, name: str) -> np.ndarray:
    point = metrics.centroid(phantom.labels, IDS[name])
    assert np.isfinite(point).all(), name
    return point


def inside(phantom: Phantom, *names: str) -> np.ndarray:
    """HU of the voxels at least one voxel away from the edge of a structure."""
    mask = np.isin(phantom.labels.voxels, [IDS[n] for n in names])
    return phantom.ct.voxels[scipy.ndimage.binary_erosion(mask, iterations=1)]


def test_same_spec_same_bits() -> None:
    spec = draw(KEY(0), voxel_mm=5)
    a, b = make(spec), make(settings.from_data(Spec, json.loads(json.dumps(settings.to_data(spec)))))
    assert a.spec == b.spec
    assert np.array_equal(a.ct.voxels, b.ct.voxels)
    assert np.array_equal(a.labels.voxels, b.labels.voxels)
    assert np.array_equal(a.ct.affine, b.ct.affine)


@pytest.mark.parametrize("part", ["subject", "acquisition"])
def test_another_seed_is_another_phantom(part: str) -> None:
    base = Spec(Subject(1), Acquisition(1, z_range=(100, 300), **COARSE))
    other = dataclasses.replace(base, **{part: dataclasses.replace(getattr(base, part), seed=2)})
    a, b = make(base), make(other)
    assert not np.array_equal(a.ct.voxels, b.ct.voxels)
    # The noise belongs to the scan, the liver to the patient.
    assert np.array_equal(a.labels.voxels == IDS["liver"], b.labels.voxels == IDS["liver"]) is (part == "acquisition")


def test_draws_are_functions_of_the_key() -> None:
    specs = [draw(KEY(i)) for i in range(40)]
    assert specs == [draw(KEY(i)) for i in range(40)]
    assert len({s.subject.seed for s in specs}) == 40
    for field in ("kernel", "phase", "spacing_mm", "matrix"):
        assert len({getattr(s.acquisition, field) for s in specs}) >= 3, field
    assert {s.subject.sex for s in specs} == {"female", "male"}
    chest = draw(KEY(1), view="chest", voxel_mm=2.0)
    assert chest.acquisition.z_range[0] >= 60
    assert chest.acquisition.pixel_mm == pytest.approx(2)
    assert chest.acquisition.spacing_mm == chest.acquisition.thickness_mm == 2


def test_unknown_or_impossible_settings_are_refused() -> None:
    with pytest.raises(SettingsError, match="nearest"):
        settings.from_data(Subject, {"seed": 1, "heigth": 1.0})
    with pytest.raises(UsageError, match="z_range"):
        Acquisition(1, z_range=(0, 900))
    with pytest.raises(UsageError, match="spacing"):
        Acquisition(1, spacing_mm=0)
    with pytest.raises(UsageError, match="factors"):
        Subject(1, height=0)
    with pytest.raises(UsageError, match="visceral"):
        Subject(1, visceral=2)


def test_grids_and_types() -> None:
    p = torso()
    assert (p.ct.kind, p.labels.kind) == ("hu", "label")
    assert p.ct.voxels.dtype == np.int16
    assert p.labels.voxels.dtype == np.uint8
    assert p.ct.grid == p.labels.grid
    assert p.ct.orientation == "SPL"
    assert p.ct.spacing == pytest.approx((4, 4, 4))
    assert p.labels.names == LABELS
    assert p.ct.voxels.min() >= -1024
    assert p.ct.voxels.max() <= 3071


def test_a_torso_holds_all_structures() -> None:
    male = make(Spec(Subject(3, sex="male"), Acquisition(3, spacing_mm=3, thickness_mm=3, matrix=150)))
    present = {LABELS[i] for i in np.unique(male.labels.voxels).tolist() if i}
    torso_only = set(IDS) - set(HEAD) - set(NECK) - set(LEGS) - set(FOUND)
    assert torso_only - present <= {"breast"}
    assert "breast" in {LABELS[i] for i in np.unique(torso().labels.voxels).tolist() if i}
    assert len(GROUPS) >= 15
    assert sorted(set(IDS.values())) == sorted(IDS.values())


def test_no_tissue_is_without_a_label() -> None:
    p = torso()
    bare = (p.labels.voxels == 0) & (p.ct.voxels > -150)
    # What is left are edge voxels whose smaller share is skin, blurred by the kernel.
    assert bare.sum() < 0.002 * (p.labels.voxels > 0).sum()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tissues_have_plausible_hu(seed: int) -> None:
    p = torso(seed, phase="none")
    lungs = GROUPS["lung_left"] + GROUPS["lung_right"]
    for names, low, high in (
        (lungs, -930, -700),
        (("subcutaneous_fat",), -125, -80),
        (("muscle",), 20, 80),
        (("liver",), -5, 90),
        (("spleen",), 25, 75),
        (("kidney_left",), 0, 65),
        (GROUPS["heart"], 20, 70),
        (("aorta",), 20, 65),
        (("urinary_bladder",), -15, 45),
        (("hip_left", "hip_right", *GROUPS["vertebrae"]), 60, 650),
        (("trachea",), -1024, -800),
    ):
        value = float(np.median(inside(p, *names)))
        assert low < value < high, (names, value)


def test_contrast_follows_the_phase() -> None:
    none, arterial, portal = (torso(2, phase=phase) for phase in ("none", "arterial", "portal"))
    hu = {
        p.spec.acquisition.phase: {
            n: float(np.median(inside(p, n))) for n in ("aorta", "liver", "spleen", "inferior_vena_cava")
        }
        for p in (none, arterial, portal)
    }
    assert hu["arterial"]["aorta"] > hu["portal"]["aorta"] > hu["none"]["aorta"] + 40
    assert hu["arterial"]["aorta"] > hu["arterial"]["inferior_vena_cava"] + 80
    assert hu["portal"]["liver"] > hu["arterial"]["liver"] > hu["none"]["liver"]


@pytest.mark.parametrize("seed", range(1, 7))
def test_anatomy_is_in_order_in_world_millimetres(seed: int) -> None:
    """RAS+: x to the patient's Right, y Anterior, z Superior; random bodies, not turned much."""
    spec = draw(KEY("order", seed), view="torso", voxel_mm=4)
    upright = dataclasses.replace(spec.acquisition, tilt_deg=(1.0, -1.0, 4.0), field_mm=500.0, matrix=125, noise_hu=0.0)
    p = make(Spec(spec.subject, upright))
    x, y, z = (
        {name: float(centre(p, name)[axis]) for name in IDS if (p.labels.voxels == IDS[name]).any()}
        for axis in range(3)
    )
    spine = x["vertebrae_T12"]
    assert x["liver"] > spine + 20 > spine - 20 > x["spleen"]
    assert x["kidney_right"] > x["vertebrae_L2"] > x["kidney_left"]
    assert x["lung_lower_lobe_right"] > x["lung_lower_lobe_left"]
    assert x["stomach"] < spine
    assert x["heart"] < x["vertebrae_T8"]
    assert x["inferior_vena_cava"] > x["aorta"] - 1
    assert x["hip_right"] > x["sacrum"] > x["hip_left"]
    assert x["rib_right_5"] > x["rib_left_5"]
    assert y["sternum"] > y["heart"] > y["vertebrae_T8"]
    assert y["vertebrae_L3"] > y["autochthon_left"]
    assert y["urinary_bladder"] > y["sacrum"]
    assert y["skin"] > p.labels.world([0, p.labels.shape[1] - 1, 0])[1]
    assert (
        min(z[lobe] for lobe in ("lung_upper_lobe_right", "lung_upper_lobe_left")) > z["liver"] > z["urinary_bladder"]
    )
    assert z["lung_upper_lobe_right"] > z["lung_middle_lobe_right"] > z["lung_lower_lobe_right"] - 30
    assert z["heart"] > max(z["kidney_left"], z["kidney_right"])
    assert z["spleen"] > z["urinary_bladder"]
    column = [z[name] for name in GROUPS["vertebrae"] if name in z]
    by_id = sorted((IDS[n], z[n]) for n in GROUPS["vertebrae"] if n in z)
    assert len(column) >= 17
    assert all(b[1] > a[1] for a, b in itertools.pairwise(by_id))  # ids count upwards from L5
    for side in ("left", "right"):
        ribs = [z[f"rib_{side}_{n}"] for n in range(2, 11)]
        assert all(a > b for a, b in itertools.pairwise(ribs))
    # The table is under the patient.
    assert y["table"] < y["sacrum"]


def test_the_apex_points_left_forwards_and_down() -> None:
    p = torso(1)
    heart = np.argwhere(p.labels.voxels == IDS["heart"])
    world = p.labels.world(heart)
    _, axes = np.linalg.eigh(np.cov((world - world.mean(0)).T))
    axis = axes[:, 2] * -np.sign(axes[0, 2])  # towards the left
    assert axis[0] < -0.3
    assert axis[1] > 0


def test_every_orientation_holds_the_same_patient() -> None:
    a, b = torso(1), torso(1, orientation="LAI")
    assert b.ct.orientation == "LAI"
    for name in ("liver", "heart", "kidney_left"):
        np.testing.assert_allclose(centre(a, name), centre(b, name), atol=1e-6)


def test_the_same_patient_in_another_scan() -> None:
    a = torso(1)
    b = torso(
        1,
        spacing_mm=5.0,
        thickness_mm=7.0,
        matrix=128,
        kernel="sharp",
        phase="arterial",
        origin_mm=(30.0, -20.0, 400.0),
    )
    for name in ("liver", "heart", "kidney_left", "spleen", "vertebrae_L1", "aorta"):
        np.testing.assert_allclose(centre(b, name) - (30, -20, 400), centre(a, name), atol=1.5)


def test_a_breath_moves_the_liver_down() -> None:
    rest, deep = torso(1), torso(1, breath_mm=25.0)
    assert -28 < centre(deep, "liver")[2] - centre(rest, "liver")[2] < -12
    assert abs(centre(deep, "vertebrae_L1")[2] - centre(rest, "vertebrae_L1")[2]) < 0.1


def test_field_of_view_cuts() -> None:
    p = torso(1, z_range=(250.0, 480.0), field_mm=300.0, matrix=75)
    present = {LABELS[i] for i in np.unique(p.labels.voxels).tolist() if i}
    assert {"heart", "aorta", "lung_upper_lobe_left"} <= present
    assert not {"urinary_bladder", "sacrum", "hip_left"} & present
    assert (p.ct.voxels[:, 0, 0] == -1024).all()  # outside the reconstructed circle


def test_edges_hold_partial_volume() -> None:
    """A voxel on a border holds both sides by share: refined four times and averaged, the body is the same."""
    field = {"z_range": (200.0, 230.0), "field_mm": 384.0, "phase": "none", "noise_hu": 0.0, "kernel": "soft"}
    subject = Subject(5, variety=0.3)
    coarse = make(Spec(subject, Acquisition(1, matrix=96, spacing_mm=4.0, thickness_mm=4.0, **field)))
    fine = make(Spec(subject, Acquisition(1, matrix=384, spacing_mm=4.0, thickness_mm=4.0, **field)))
    blocks = fine.ct.voxels.reshape(len(fine.ct.voxels), 96, 4, 96, 4).mean(axis=(2, 4))
    edge = (blocks > -900) & (blocks < -350) & (coarse.labels.voxels != IDS["table"])
    edge &= ~np.isin(coarse.labels.voxels, [IDS[n] for n in GROUPS["lung_left"] + GROUPS["lung_right"]])
    values = coarse.ct.voxels[edge]
    assert edge.sum() > 200
    # Without partial volume these voxels would be air or tissue: nothing between.
    assert ((values > -930) & (values < -200)).mean() > 0.7
    assert np.corrcoef(values, blocks[edge])[0, 1] > 0.6


def test_thick_slices_smear_along_z() -> None:
    thin, thick = (torso(1, z_range=(180.0, 330.0), thickness_mm=t) for t in (4.0, 12.0))
    rough = [np.abs(np.diff(p.ct.voxels.astype(float), axis=0)).mean() for p in (thin, thick)]
    assert rough[1] < 0.8 * rough[0]
    # Labels are those of the slice's middle; only the lattice starts elsewhere.
    assert (thin.labels.voxels != thick.labels.voxels).mean() < 0.005


def test_slabs_in_different_breaths_show_steps_and_labels_follow() -> None:
    """Every slab is the patient in one breath: its slices are those of a whole scan in that breath."""
    from ctfoundry.phantom import motion

    stepped = torso(1, z_range=(100.0, 400.0), breath_steps_mm=12.0, breath_mm=5.0)
    scan = stepped.spec.acquisition
    z = np.array([stepped.labels.world([d, 0, 0])[2] for d in range(len(stepped.labels.voxels))])
    parts = list(motion.slabs(scan, z))
    assert len(parts) >= 3
    part, then = max(parts, key=lambda item: abs(item[1].breath_mm - 5))
    whole = make(Spec(stepped.spec.subject, then))
    still = torso(1, z_range=(100.0, 400.0), breath_mm=5.0)
    middle = slice(part.start + 2, part.stop - 2)
    same = (whole.labels.voxels[middle] == stepped.labels.voxels[middle]).mean()
    held = (still.labels.voxels[middle] == stepped.labels.voxels[middle]).mean()
    assert same > 0.985
    assert held < same - 0.01


def test_impossible_breaths_and_moves_are_refused() -> None:
    for wrong in (
        {"breath_mm": 60.0},
        {"breath_mm": 35.0, "breath_steps_mm": 10.0},
        {"motion_mm": -1.0},
        {"rim_hu": 1e6},
    ):
        with pytest.raises(UsageError, match=r"breath_mm|motion_mm"):
            Acquisition(1, **wrong)
    with pytest.raises(SettingsError, match="blanket"):
        settings.from_data(Acquisition, {"seed": 1, "cover": "tent"})


def test_the_benchmark_reports_its_row() -> None:
    from ctfoundry.bench import phantom as bench

    (row,) = bench.run(repeats=1, voxel_mm=9.0)
    assert {"name", "ours_s", "other_s", "ratio", "max_error", "threads", "dtype"} == set(row)
    assert row["ratio"] == pytest.approx(row["other_s"] / row["ours_s"])
    assert bench.torso(0).acquisition.z_range == (-195.0, 500.0)
    assert bench.torso(0).acquisition.pixel_mm == pytest.approx(1.5)
