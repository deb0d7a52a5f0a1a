"""Chambers of the heart, adrenals, branches of the arch, gluteal muscles, heads of the humeri: place, size and blood."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from ctfoundry.phantom import GROUPS, IDS, LABELS, Acquisition, Phantom, Spec, Subject, make

CHAMBERS = ("heart_ventricle_left", "heart_ventricle_right", "heart_atrium_left", "heart_atrium_right")
MILLILITRES = {
    # Normal adults on CT, widened by the cube of the patients' sizes (up to 2 deviations): cardiac CT (Lin et al. 2008,
    # Fuchs et al. 2016), adrenals (Schneller et al. 2014), gluteal muscles (Belzunce et al. 2020).
    "heart_myocardium": (55, 260),
    "heart_ventricle_left": (55, 240),
    "heart_ventricle_right": (50, 240),
    "heart_atrium_left": (20, 130),
    "heart_atrium_right": (35, 190),
    "atrial_appendage_left": (1.5, 20),
    "pulmonary_vein": (8, 45),
    "adrenal_gland_left": (2, 10),
    "adrenal_gland_right": (2, 10),
    "brachiocephalic_trunk": (2, 12),
    "subclavian_artery_left": (4, 20),
    "subclavian_artery_right": (4, 20),
    "brachiocephalic_vein_left": (3, 20),
    "brachiocephalic_vein_right": (2, 15),
    "gluteus_medius_left": (180, 480),
    "gluteus_medius_right": (180, 480),
    "gluteus_minimus_left": (40, 130),
    "gluteus_minimus_right": (40, 130),
    "humerus_left": (20, 80),
    "humerus_right": (20, 80),
}


@functools.cache
def torso(seed: int, phase: str = "arterial") -> Phantom:
    """A quiet upright adult."""
    scan = {"spacing_mm": 4.0, "thickness_mm": 4.0, "matrix": 140, "field_mm": 420.0, "noise_hu": 0.0, "kernel": "soft"}
    return make(Spec(Subject(seed), Acquisition(seed, z_range=(-195, 500), phase=phase, **scan)))


@functools.cache
def heart(seed: int, phase: str) -> Phantom:
    """The heart alone."""
    scan = {"spacing_mm": 3.0, "thickness_mm": 3.0, "matrix": 80, "field_mm": 240.0, "noise_hu": 0.0, "kernel": "soft"}
    return make(Spec(Subject(seed), Acquisition(seed, z_range=(240, 380), phase=phase, **scan)))


def points(phantom: Phantom, *names: str) -> np.ndarray:
    """World millimetres (Right, Anterior, Superior) of the voxels of structures."""
    found = np.argwhere(np.isin(phantom.labels.voxels, [IDS[n] for n in names]))
    assert len(found), names
    return phantom.labels.world(found)


def middle(phantom: Phantom, *names: str) -> np.ndarray:
    return points(phantom, *names).mean(axis=0)


def blood(phantom: Phantom, name: str) -> float:
    import scipy.ndimage as ndi

    inside = ndi.binary_erosion(phantom.labels.voxels == IDS[name], iterations=2)
    return float(np.median(phantom.ct.voxels[inside]))


@pytest.mark.parametrize("seed", [5, 6])
def test_volumes_are_those_of_adults(seed: int) -> None:
    p = torso(seed)
    count = np.bincount(p.labels.voxels.ravel(), minlength=256) * 0.036
    for name, (low, high) in MILLILITRES.items():
        assert low < count[IDS[name]] < high, (name, count[IDS[name]])
    # What no chamber's name covers (thin walls) is a small part of the heart.
    whole = sum(count[IDS[n]] for n in GROUPS["heart"])
    assert 250 < whole < 1000
    assert count[IDS["heart"]] < 0.3 * whole


@pytest.mark.parametrize("seed", [5, 6])
def test_all_lie_where_they_belong(seed: int) -> None:
    p = torso(seed)
    left_v, right_v, left_a, right_a = (middle(p, name) for name in CHAMBERS)
    assert left_v[0] < left_a[0] < right_a[0]  # x grows to the patient's right
    assert right_v[1] > left_v[1] > left_a[1]  # the right ventricle in front, the left atrium at the back
    assert right_a[1] > left_a[1]
    assert right_a[0] > right_v[0]
    base = 0.5 * (left_a + right_a)
    apex = 0.5 * (left_v + right_v)
    assert apex[0] < base[0] - 15
    assert apex[1] > base[1]
    assert middle(p, "atrial_appendage_left")[0] < left_a[0]
    veins = points(p, "pulmonary_vein")
    assert veins[:, 0].min() < left_a[0] - 25
    assert veins[:, 0].max() > left_a[0] + 25
    for stem, bone in (
        ("subclavian_artery", "vertebrae_T3"),
        ("humerus", "vertebrae_T3"),
        ("adrenal_gland", "vertebrae_T12"),
        ("gluteus_medius", "sacrum"),
        ("gluteus_minimus", "sacrum"),
    ):
        spine = middle(p, bone)[0]
        assert middle(p, f"{stem}_right")[0] > spine + 15, stem
        assert middle(p, f"{stem}_left")[0] < spine - 15, stem
    assert middle(p, "brachiocephalic_vein_right")[0] > middle(p, "brachiocephalic_vein_left")[0] + 10
    # The left brachiocephalic vein crosses in front of the arch's branches, which stand on the arch.
    assert middle(p, "brachiocephalic_vein_left")[1] > middle(p, "common_carotid_artery_left")[1]
    assert points(p, "brachiocephalic_trunk")[:, 2].min() > points(p, "aorta")[:, 2].max() - 25
    for side in ("left", "right"):
        assert points(p, f"common_carotid_artery_{side}")[:, 2].max() > middle(p, "vertebrae_T1")[2]
        smallest, medius, largest = (middle(p, f"gluteus_{m}_{side}") for m in ("minimus", "medius", "maximus"))
        assert abs(smallest[0]) < abs(medius[0])
        assert largest[1] < medius[1] < smallest[1] + 1
        assert abs(middle(p, f"humerus_{side}")[0]) > abs(middle(p, f"scapula_{side}")[0])


@pytest.mark.parametrize("seed", [5, 6])
def test_adrenals_lie_at_the_upper_poles(seed: int) -> None:
    p = torso(seed)
    for side in ("left", "right"):
        gland, kidney = points(p, f"adrenal_gland_{side}"), points(p, f"kidney_{side}")
        pole = kidney[kidney[:, 2] > kidney[:, 2].max() - 10].mean(axis=0)
        assert np.linalg.norm(gland - pole, axis=1).min() < 25, side
        assert abs(gland[:, 2].mean() - pole[2]) < 30, side
        assert gland.mean(axis=0)[1] > pole[1], side  # in front of the pole
        # Thin limbs: a ball of this volume would reach less than 12 mm, and hold all voxels that it spans.
        span = np.ptp(gland, axis=0) + (3, 3, 4)
        assert len(gland) * 36 < 0.45 * span.prod(), side
        assert span[2] > 24, side
    assert middle(p, "adrenal_gland_right")[1] < middle(p, "inferior_vena_cava")[1] + 25


def test_blood_follows_the_phase() -> None:
    pools = {
        phase: {name: blood(heart(5, phase), name) for name in (*CHAMBERS, "heart_myocardium")}
        for phase in ("none", "arterial", "portal", "late")
    }
    plain = pools["none"]
    assert max(plain.values()) - min(plain.values()) < 30  # chambers cannot be told apart without contrast
    assert all(20 < hu < 75 for hu in plain.values())
    early = pools["arterial"]
    for name in CHAMBERS:
        assert early[name] > plain[name] + 60, name
        assert early[name] > pools["portal"][name] > pools["late"][name] - 10 > plain[name], name
    assert early["heart_ventricle_left"] > early["heart_ventricle_right"] + 30
    assert early["heart_atrium_left"] > early["heart_atrium_right"] + 30
    assert early["heart_ventricle_left"] > early["heart_myocardium"] + 100
    spread = {phase: max(p[n] for n in CHAMBERS) - min(p[n] for n in CHAMBERS) for phase, p in pools.items()}
    assert spread["arterial"] > 2 * spread["portal"]


def test_the_septum_parts_the_ventricles() -> None:
    """No voxel of one ventricle touches the other one: the wall between is at least a voxel of 3 mm."""
    import scipy.ndimage as ndi

    voxels = heart(5, "arterial").labels.voxels
    left, right = (voxels == IDS[f"heart_ventricle_{side}"] for side in ("left", "right"))
    around = ndi.binary_dilation(left, iterations=1)
    outflow = voxels == IDS["aorta"]
    near_outflow = ndi.binary_dilation(outflow, iterations=6)
    assert (around & right & ~near_outflow).sum() == 0
    # From the middle of one to the middle of the other leads through myocardium.
    ends = [np.argwhere(m).mean(axis=0) for m in (left, right)]
    line = np.rint(np.linspace(*ends, 60)).astype(int)
    assert IDS["heart_myocardium"] in voxels[tuple(line.T)]


def test_names_and_groups() -> None:
    assert (IDS["adrenal_gland_right"], IDS["adrenal_gland_left"], IDS["pulmonary_vein"]) == (8, 9, 53)
    assert [LABELS[i] for i in (54, 55, 56, 59, 60, 61, 69, 70)] == [
        "brachiocephalic_trunk", "subclavian_artery_right", "subclavian_artery_left", "brachiocephalic_vein_left",
        "brachiocephalic_vein_right", "atrial_appendage_left", "humerus_left", "humerus_right",
    ]  # fmt: skip
    assert [LABELS[i] for i in range(82, 86)] == [
        f"gluteus_{m}_{s}" for m in ("medius", "minimus") for s in ("left", "right")
    ]
    assert set(CHAMBERS) | {"heart_myocardium", "heart"} == set(GROUPS["heart"])
    assert len(set(IDS.values())) == len(IDS)
    assert max(IDS.values()) < 255  # 255 is nothing's number in public layouts


def test_nothing_of_it_is_painted_where_the_field_ends() -> None:
    scan = Acquisition(5, z_range=(-60, 60), spacing_mm=4.0, thickness_mm=4.0, matrix=80, field_mm=400.0)
    present = {LABELS[i] for i in np.unique(make(Spec(Subject(5), scan)).labels.voxels).tolist() if i}
    assert not present & {*GROUPS["heart"], "humerus_left", "brachiocephalic_trunk", "pulmonary_vein"}
    assert "gluteus_medius_left" in present
