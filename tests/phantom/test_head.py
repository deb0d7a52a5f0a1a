"""Heads and necks: sizes within normal ranges, sides, what encloses what, HU, age; measured on the voxels alone."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import scipy.ndimage

from ctfoundry import metrics
from ctfoundry.errors import UsageError
from ctfoundry.keys import Key
from ctfoundry.phantom import IDS, LABELS, Acquisition, Phantom, Spec, Subject, draw, make
from ctfoundry.phantom.names import HEAD, NECK

BRAIN = ("brain", "cerebellum", "brainstem")
FLUID = ("ventricle", "subarachnoid_space")


@functools.cache
def head(seed: int = 1, *, low: float = 520.0, voxel: float = 2.5, field: float = 250.0, **changes: object) -> Phantom:
    """A quiet head and neck without contrast medium, 40 years old unless told otherwise."""
    scan = {"noise_hu": 0.0, "kernel": "soft", "phase": "none"}
    person: dict[str, object] = {"age_years": 40.0}
    for name, value in changes.items():
        (scan if name in {f.name for f in dataclasses.fields(Acquisition)} else person)[name] = value
    subject = Subject(seed, **person)
    grid = {"field_mm": field, "matrix": round(field / voxel), "spacing_mm": voxel, "thickness_mm": voxel}
    return make(Spec(subject, Acquisition(seed, z_range=(low, 770.0), **grid, **scan)))


def mask(phantom: Phantom, *names: str) -> np.ndarray:
    return np.isin(phantom.labels.voxels, [IDS[n] for n in names])


def millilitres(phantom: Phantom, *names: str) -> float:
    return float(mask(phantom, *names).sum() * np.prod(phantom.ct.spacing) / 1000)


def inside(phantom: Phantom, *names: str) -> np.ndarray:
    """HU at least one voxel away from a structure's edge."""
    return phantom.ct.voxels[scipy.ndimage.binary_erosion(mask(phantom, *names))]


def centre(phantom: Phantom, name: str) -> np.ndarray:
    point = metrics.centroid(phantom.labels, IDS[name])
    assert np.isfinite(point).all(), name
    return point


@pytest.mark.parametrize(("seed", "sex"), [(1, "female"), (2, "female"), (5, "male")])
def test_adults_volumes_are_normal(seed: int, sex: str) -> None:
    p = head(seed, sex=sex) if sex == "male" else head(seed)
    assert 1100 < millilitres(p, *BRAIN) < 1600
    assert 1200 < millilitres(p, *BRAIN, *FLUID) < 1800  # intracranial
    assert 100 < millilitres(p, "cerebellum") < 170
    assert 20 < millilitres(p, "brainstem") < 45
    assert 10 < millilitres(p, "ventricle") < 60
    for side in ("left", "right"):
        assert 5.8 < millilitres(p, f"eye_{side}") < 8.6
    assert 10 < millilitres(p, "venous_sinus") < 35


def test_all_structures_are_there_and_on_their_sides() -> None:
    p = head(3, low=440.0, field=300.0, sex="male")
    present = {LABELS[i] for i in np.unique(p.labels.voxels).tolist() if i}
    assert {*HEAD, *NECK} <= present
    middle = centre(p, "brainstem")[0]
    for name in ("eye", "common_carotid_artery"):
        assert centre(p, f"{name}_left")[0] < middle - 8
        assert centre(p, f"{name}_right")[0] > middle + 8
    # From behind to the front, and from below upwards.
    y = {n: centre(p, n)[1] for n in ("cerebellum", "brainstem", "eye_left", "spinal_cord", "upper_airway", "teeth")}
    assert y["cerebellum"] < y["brainstem"] < y["eye_left"]
    assert y["spinal_cord"] < y["upper_airway"] < y["teeth"]
    z = [centre(p, n)[2] for n in ("thyroid_gland", "vertebrae_C5", "vertebrae_C4", "vertebrae_C3", "vertebrae_C2",
                                   "vertebrae_C1", "brainstem", "ventricle", "brain")]  # fmt: skip
    assert z == sorted(z)
    lowest = {n: np.argwhere(mask(p, n))[:, 0].min() for n in ("mandible", "teeth")}
    assert lowest["mandible"] < lowest["teeth"]
    assert centre(p, "teeth")[2] < centre(p, "eye_right")[2]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_skull_encloses_the_brain(seed: int) -> None:
    p = head(seed, voxel=1.5, low=575.0, field=222.0)  # its thinnest walls are 2 mm
    # Nerves and veins leave through holes that they fill; the foramen magnum is sealed at the cerebellum's lower end.
    wall = mask(p, "skull", "optic_nerve", "venous_sinus")
    wall[: int(np.argwhere(mask(p, "cerebellum"))[:, 0].min()) + 2] = True
    wall = scipy.ndimage.binary_closing(np.pad(wall, 3, mode="edge"), iterations=2)[3:-3, 3:-3, 3:-3]
    filled = scipy.ndimage.binary_fill_holes(np.pad(wall, 1))[1:-1, 1:-1, 1:-1]
    assert (filled & mask(p, "brain")).sum() > 0.995 * mask(p, "brain").sum()
    outside = mask(p, "skin", "eye_left", "eye_right", "upper_airway")
    assert not (filled & ~wall & outside).any()
    # Without the scalp's fat on it the brain would be open: nothing of it touches air, skin or muscle.
    near = scipy.ndimage.binary_dilation(mask(p, "brain"))
    assert not (near & mask(p, "skin", "muscle", "paranasal_sinus")).any()
    assert not (near & (p.labels.voxels == 0)).any()


def test_ventricles_lie_inside_the_brain() -> None:
    p = head(2)
    hull = scipy.ndimage.binary_closing(mask(p, *BRAIN, "ventricle"), iterations=3)
    deep = scipy.ndimage.distance_transform_edt(hull, p.ct.spacing)[mask(p, "ventricle")]
    assert deep.min() > 0
    assert np.median(deep) > 25
    lateral = scipy.ndimage.label(mask(p, "ventricle"))[1]
    assert lateral <= 6  # two lateral ventricles, third and fourth; thin parts may fall between voxels


@pytest.mark.parametrize("seed", [1, 2])
def test_hu_of_the_head(seed: int) -> None:
    p = head(seed)
    for names, low, high in (
        (("brain",), 24, 42),
        (("cerebellum",), 26, 42),
        (("brainstem",), 24, 40),
        (("ventricle",), 0, 16),
        (("eye_left", "eye_right"), 2, 30),
        (("skull",), 450, 1900),
        (("mandible",), 250, 1900),
        (("teeth",), 1200, 3071),
        (("paranasal_sinus", "upper_airway"), -1024, -400),
        (("spinal_cord",), 25, 45),
        (("vertebrae_C3", "vertebrae_C4", "vertebrae_C5"), 150, 800),
        (("venous_sinus",), 40, 75),
        (("muscle",), 30, 75),
    ):
        value = float(np.median(inside(p, *names)))
        assert low < value < high, (names, value)


def test_grey_matter_is_denser_than_white_and_lies_outside() -> None:
    p = head(4, voxel=1.25, low=640.0, field=210.0, age_years=25.0)
    brain = mask(p, "brain")
    # Far from sulci and ventricles lies white matter; one to two millimetres under the outer surface cortex.
    depth = scipy.ndimage.distance_transform_edt(scipy.ndimage.binary_closing(brain, iterations=4), p.ct.spacing)
    outer = p.ct.voxels[brain & (depth > 1.5) & (depth < 2.6)]
    within = p.ct.voxels[brain & (depth > 20)]
    assert 4 < np.median(outer) - np.percentile(within, 25) < 14
    # Both tissues are there in plausible shares, and the histogram has a place between them.
    middle = 0.5 * (np.percentile(within, 25) + np.percentile(outer, 75))
    share = float((p.ct.voxels[brain & (depth > 1.5)] > middle).mean())
    assert 0.25 < share < 0.75


def test_vertebrae_and_cord_go_on_from_the_torso() -> None:
    p = head(3, low=440.0, field=300.0, sex="male")
    column = mask(p, *(f"vertebrae_C{n}" for n in range(2, 8)), "vertebrae_T1", "intervertebral_disc")
    parts, _ = scipy.ndimage.label(column)
    names = {
        LABELS[i] for i in np.unique(p.labels.voxels[parts == np.bincount(parts.ravel())[1:].argmax() + 1]).tolist()
    }
    assert {f"vertebrae_C{n}" for n in range(2, 8)} <= names
    cord = np.argwhere(mask(p, "spinal_cord", "brainstem"))
    assert set(range(int(cord[:, 0].min()), int(cord[:, 0].max()) + 1)) == set(cord[:, 0].tolist())
    parts, count = scipy.ndimage.label(mask(p, "spinal_cord", "brainstem"), np.ones((3, 3, 3)))
    assert np.bincount(parts.ravel())[1:].max() > 0.98 * len(cord), count
    # The airway is one tube from the nose to the windpipe.
    air = mask(p, "upper_airway", "trachea")
    parts, _ = scipy.ndimage.label(air, np.ones((3, 3, 3)))
    assert np.bincount(parts.ravel())[1:].max() > 0.9 * air.sum()


def test_contrast_shows_the_vessels() -> None:
    none, arterial = (head(2, phase=phase) for phase in ("none", "arterial"))
    names = ("common_carotid_artery_left", "common_carotid_artery_right")
    assert np.median(arterial.ct.voxels[mask(arterial, *names)]) > np.median(none.ct.voxels[mask(none, *names)]) + 80
    bright = mask(arterial, "subarachnoid_space") & (arterial.ct.voxels > 90) & (none.ct.voxels < 60)
    assert bright.sum() * np.prod(none.ct.spacing) > 300  # the circle of Willis, cubic millimetres
    assert np.array_equal(none.labels.voxels, arterial.labels.voxels)


def test_age_widens_ventricles_and_sulci() -> None:
    young, old = (head(1, voxel=3.0, low=560.0, age_years=years) for years in (25.0, 80.0))
    assert millilitres(old, "ventricle") > 1.3 * millilitres(young, "ventricle")
    assert millilitres(old, "subarachnoid_space") > 1.3 * millilitres(young, "subarachnoid_space")
    assert millilitres(old, *BRAIN) < millilitres(young, *BRAIN)


def test_children_have_smaller_heads_with_thinner_skulls() -> None:
    # Head circumference is 0.87 of an adult's at two and a half years: about two thirds of the volume, and more brain than fluid.
    child, adult = (head(1, voxel=3.0, low=560.0, age_years=years) for years in (2.5, 25.0))
    share = millilitres(child, *BRAIN, *FLUID) / millilitres(adult, *BRAIN, *FLUID)
    assert 0.55 < share < 0.85
    assert millilitres(child, "skull") < 0.7 * millilitres(adult, "skull")


@pytest.mark.parametrize(
    "body", [{"height": 0.88, "width": 1.12, "depth": 0.88}, {"scoliosis_mm": 40.0, "kyphosis": 1.4}]
)
def test_the_head_does_not_bend_with_the_body(body: dict[str, float]) -> None:
    p = head(1, voxel=3.0, low=560.0, **body)
    assert 1000 < millilitres(p, *BRAIN) < 1600
    # Length to breadth of the brain case: cephalic indices lie between 0.7 and 0.9 in almost all people.
    points = np.argwhere(mask(p, *BRAIN, *FLUID)) * p.ct.spacing
    axes = np.linalg.svd(points - points.mean(0), full_matrices=False)[2]
    extent = np.sort([np.ptp((points - points.mean(0)) @ a) for a in axes])
    assert 0.68 < extent[:2].mean() / extent[2] < 0.92


def test_seeds_make_other_brains_and_the_same_ones() -> None:
    spec = draw(Key.of("test head"), view="head", voxel_mm=5.0)
    a, b = make(spec), make(spec)
    assert np.array_equal(a.ct.voxels, b.ct.voxels)
    assert np.array_equal(a.labels.voxels, b.labels.voxels)
    one, two = head(1), head(2)
    assert abs(millilitres(one, *BRAIN) - millilitres(two, *BRAIN)) > 10
    count = min(len(one.labels.voxels), len(two.labels.voxels))
    first, second = (mask(p, "brain")[:count] for p in (one, two))
    assert (first & second).sum() < 0.95 * min(first.sum(), second.sum())


def test_views_hold_what_they_name() -> None:
    with pytest.raises(UsageError, match="head-neck"):
        draw(Key.of("x"), view="hand")  # type: ignore[arg-type]
    for i in range(2):
        p = make(draw(Key.of("test head views", i), view="head", voxel_mm=5.0))
        labels = p.labels.voxels
        assert mask(p, "brain").any()
        # The vertex is in view, and the field is laid around the brain.
        assert not mask(p, "brain")[-1].any()
        assert not mask(p, "skull")[-1].any()
        edge = np.concatenate([labels[:, :, 0], labels[:, :, -1], labels[:, 0].T[: labels.shape[1]].T], axis=1)
        assert not (edge == IDS["brain"]).any()
        assert 190 < p.spec.acquisition.field_mm < 290
    specs = [draw(Key.of("any", i), view="any") for i in range(60)]
    low = np.array([s.acquisition.z_range[0] for s in specs])
    assert (low > 540).any()
    assert (low < -200).any()
    assert ((low > -200) & (low < 200)).any()
    assert {draw(Key.of("nod", i), view="head").acquisition.spacing_mm for i in range(40)} >= {5.0, 1.0}


def test_without_a_view_the_cohort_is_of_torsos() -> None:
    for i in range(30):
        spec = draw(Key.of("cohort", i))
        assert spec.acquisition.z_range[0] >= -195
        assert spec.acquisition.z_range[1] <= 500
        assert spec.subject.age_years == 50.0
