"""The same patient again: the known displacement against labels, SciPy and SimpleITK's own warp."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pytest
import scipy.ndimage as ndi
import scipy.optimize

from ctfoundry import metrics, settings
from ctfoundry.errors import UsageError
from ctfoundry.geometry import to_index
from ctfoundry.keys import Key
from ctfoundry.phantom import GROUPS, IDS, Acquisition, Phantom, Spec, Subject, draw, make
from ctfoundry.phantom.repeat import CHANGES, again, displacement, points
from ctfoundry.phantom.space import Pose
from ctfoundry.phantom.spec import Lesion

KEY = Key.of("test repeat")
FIRST = Spec(
    Subject(4, scoliosis_mm=10.0),
    Acquisition(4, z_range=(-60, 400), field_mm=450, matrix=90, spacing_mm=5, thickness_mm=5, noise_hu=0, breath_mm=-4),
)


@functools.cache
def pair() -> tuple[Phantom, Phantom, np.ndarray]:
    """Two quiet scans of one patient, 25 mm of breath and some degrees apart, and the field from the first to the second."""
    second = again(FIRST, KEY("pair"), changes=["pose"])
    second = Spec(second.subject, dataclasses.replace(second.acquisition, breath_mm=21.0, tilt_deg=(3.0, -4.0, 6.0)))
    return make(FIRST), make(second), displacement(FIRST, second, make(FIRST).ct.grid)


def pull(volume: np.ndarray, moving: Phantom, fixed: Phantom, field: np.ndarray, order: int) -> np.ndarray:
    """The moving scan at p + u(p) for every voxel p of the fixed one; -2000 outside."""
    index = np.stack(np.meshgrid(*map(np.arange, fixed.ct.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    world = fixed.ct.world(index) + field.reshape(-1, 3)
    at = to_index(moving.ct.affine, world)
    out = ndi.map_coordinates(volume.astype(np.float32), at.T, order=order, cval=-2000)
    return out.reshape(fixed.ct.shape)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


def test_labels_warped_by_the_field_are_the_labels() -> None:
    a, b, field = pair()
    pulled = pull(b.labels.voxels, b, a, field, 0)
    away = np.subtract(b.spec.acquisition.origin_mm, a.spec.acquisition.origin_mm)
    still = pull(b.labels.voxels, b, a, np.broadcast_to(away, field.shape), 0)
    seen = pulled != -2000
    better = 0
    for name, parts in GROUPS.items():
        ids = [IDS[n] for n in parts]
        here, there, unmoved = (np.isin(x, ids) & seen for x in (a.labels.voxels, pulled, still))
        if name in ("table", "skin") or here.sum() < 200:
            continue
        assert dice(here, there) > (0.75 if name in ("ribs", "fat") else 0.82), name
        better += dice(here, unmoved) < dice(here, there) - 0.1
        # Where they differ, it is at a border: within a voxel and its diagonal.
        depth = np.where(here, ndi.distance_transform_edt(here), ndi.distance_transform_edt(~here))
        if name != "fat":  # sheets of fat thinner than a voxel come and go
            assert (depth[here ^ there] <= 1.74).mean() > 0.98, name
    assert better >= 9


def test_centroids_go_where_the_field_says() -> None:
    a, b, _ = pair()
    for name in (
        "liver",
        "spleen",
        "kidney_left",
        "kidney_right",
        "heart_myocardium",
        "vertebrae_T8",
        "vertebrae_L3",
        "stomach",
    ):
        mask = np.argwhere(a.labels.voxels == IDS[name])
        moved = points(a.spec, b.spec, a.ct.world(mask)).mean(axis=0)
        np.testing.assert_allclose(moved, metrics.centroid(b.labels, IDS[name]), atol=2.5, err_msg=name)


def test_simpleitk_warps_by_the_same_field() -> None:
    import SimpleITK as sitk

    a, b, field = pair()

    def image(p: Phantom, voxels: np.ndarray) -> sitk.Image:
        lps = np.diag([-1.0, -1, 1]) @ p.ct.affine[:3, :3][:, ::-1]  # columns x, y, z of the array's w, h, d
        out = sitk.GetImageFromArray(voxels)
        out.SetSpacing(np.linalg.norm(lps, axis=0).tolist())
        out.SetDirection((lps / np.linalg.norm(lps, axis=0)).ravel().tolist())
        out.SetOrigin((p.ct.affine[:3, 3] * (-1, -1, 1)).tolist())
        return out

    vectors = sitk.GetImageFromArray((field * (-1, -1, 1)).astype(np.float64), isVector=True)
    vectors.CopyInformation(image(a, a.ct.voxels))
    warp = sitk.DisplacementFieldTransform(sitk.Cast(vectors, sitk.sitkVectorFloat64))
    warped = sitk.Resample(image(b, b.labels.voxels), image(a, a.ct.voxels), warp, sitk.sitkNearestNeighbor, 255)
    got = sitk.GetArrayFromImage(warped)
    mine = pull(b.labels.voxels, b, a, field, 0)
    both = (got != 255) & (mine != -2000)
    assert both.mean() > 0.8
    assert (got == mine)[both].mean() > 0.999
    liver = a.labels.voxels == IDS["liver"]
    assert dice(liver & both, (got == IDS["liver"]) & both) > 0.9


def test_contents_and_textures_stay_with_the_patient() -> None:
    """Gas, faeces and vessels of the lungs are where they were, so HU agree after the warp."""
    a, b, field = pair()
    hu = pull(b.ct.voxels, b, a, field, 1)
    for names, least in ((("colon",), 0.75), (("stomach",), 0.75), (GROUPS["lung_right"], 0.6)):
        mask = np.isin(a.labels.voxels, [IDS[n] for n in names]) & (hu > -2000)
        mask = ndi.binary_erosion(mask)
        assert np.corrcoef(hu[mask], a.ct.voxels[mask])[0, 1] > least, names


def jacobian(field: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Determinant of the sampled map, by finite differences."""
    grad = [np.gradient(field.astype(np.float64), axis=k) for k in range(3)]
    return np.linalg.det(np.stack(grad, axis=-1) @ np.linalg.inv(affine[:3, :3]) + np.eye(3))


def test_lungs_hold_their_mass() -> None:
    """Where a piece of lung is twice as large it is half as dense."""
    a, b, field = pair()
    hu, growth = pull(b.ct.voxels, b, a, field, 1), jacobian(field, a.ct.affine)
    lungs = [IDS[n] for n in GROUPS["lung_left"] + GROUPS["lung_right"]]
    air = np.isin(a.labels.voxels, lungs) & (a.ct.voxels < -700) & (hu > -2000) & (hu < -700)
    air = ndi.binary_erosion(air)
    assert air.sum() > 1500
    thinner = (a.ct.voxels[air] + 1000.0) / (hu[air] + 1000)
    assert np.median(thinner / growth[air]) == pytest.approx(1, abs=0.03)
    assert np.median(growth[air]) > 1.08
    assert np.corrcoef(thinner, growth[air])[0, 1] > 0.5


@pytest.mark.parametrize("number", range(6))
def test_forth_and_back_is_where_it_was(number: int) -> None:
    subject = draw(KEY(number)).subject
    subject = dataclasses.replace(subject, age_years=(50.0, 6.0)[number % 2])
    first = Spec(subject, Acquisition(number, z_range=(-100, 400), breath_mm=-10.0))
    second = again(first, KEY("again", number))
    body = KEY("body", number).uniform(-1, 1, (400, 3)) * (160, 110, 290) + (0, 10, 150)
    world = Pose.of(subject, first.acquisition).world(body)
    there = points(first, second, world)
    assert np.linalg.norm(there - world, axis=1).min() > 1
    np.testing.assert_allclose(points(second, first, there), world, atol=0.01)


@pytest.mark.parametrize("years", [50.0, 3.0])
def test_heads_go_along_rigidly(years: float) -> None:
    """Points of a skull keep their distances in another pose; forth and back is where they were, in the neck too."""
    first = Spec(Subject(6, age_years=years), Acquisition(6, z_range=(450, 760)))
    second = again(first, KEY("head"))
    first = Spec(first.subject, dataclasses.replace(first.acquisition, tilt_deg=(-3.0, 2.0, -5.0)))
    middle = Pose.of(first.subject, first.acquisition).world(np.array([[0.0, 10, 640], [0, 0, 560]]))
    size = float(np.linalg.norm(np.subtract(*middle))) / 80
    around = KEY("head points").uniform(-1, 1, (200, 3)) * (70, 80, 50) * size
    skull, neck = middle[0] + around + (0, 0, 30 * size), middle[1] + 0.5 * around
    there = points(first, second, skull)
    far = np.linalg.norm(skull[:, None] - skull, axis=2)
    np.testing.assert_allclose(np.linalg.norm(there[:, None] - there, axis=2), far, atol=0.02)
    for some in (skull, neck):
        np.testing.assert_allclose(points(second, first, points(first, second, some)), some, atol=0.01)


def test_scipy_finds_the_same_world_points() -> None:
    spec = Spec(Subject(2, scoliosis_mm=30.0, kyphosis=1.5), Acquisition(2, breath_mm=28.0, tilt_deg=(4.0, 3.0, 20.0)))
    pose = Pose.of(spec.subject, spec.acquisition)
    for body in KEY("few").uniform(-1, 1, (12, 3)) * (120, 80, 250) + (0, 10, 200):
        found = scipy.optimize.root(lambda w, body=body: pose.body(w[:, None])[:, 0] - body, body * 1.0, tol=1e-10)
        assert found.success
        np.testing.assert_allclose(pose.world(body[None])[0], found.x, atol=2e-3)


def test_the_field_does_not_fold() -> None:
    """Jacobian determinant by finite differences of the sampled field, everywhere on the grid."""
    a, _, field = pair()
    det = jacobian(field, a.ct.affine)
    assert det.min() > 0.4
    assert det.max() < 2.2


def test_only_what_is_asked_for_changes() -> None:
    spec = draw(KEY("base"), view="torso", voxel_mm=3.0)
    still = again(spec, KEY(1), changes=())
    quiet = dataclasses.replace(spec.acquisition, motion_mm=0.0, breath_steps_mm=0.0, seed=still.acquisition.seed)
    assert still == Spec(spec.subject, quiet)
    owned = {
        "pose": {"tilt_deg", "origin_mm"},
        "breath": {"breath_mm"},
        "dose": {"noise_hu"},
        "kernel": {"kernel"},
        "thickness": {"spacing_mm", "thickness_mm"},
        "phase": {"phase"},
        "field": {"field_mm", "matrix", "centre_mm"},
        "range": {"z_range"},
    }
    assert set(owned) == set(CHANGES)
    for change, names in owned.items():
        scan = again(spec, KEY(1), changes=[change]).acquisition
        differ = {f.name for f in dataclasses.fields(scan) if getattr(scan, f.name) != getattr(quiet, f.name)}
        assert differ, change
        assert differ <= names, change
    full = again(spec, KEY(2))
    assert full == again(spec, KEY(2))
    assert full != again(spec, KEY(3))
    assert abs(full.acquisition.breath_mm - spec.acquisition.breath_mm) >= 5.999
    assert settings.from_data(Spec, json.loads(json.dumps(settings.to_data(full)))) == full


def test_lesions_grow_by_their_doubling_time() -> None:
    lesions = tuple(Lesion("renal_cyst", n, "kidney_left", 20.0) for n in range(3))
    spec = Spec(Subject(1, lesions=lesions), Acquisition(1))
    later = again(spec, KEY("growth"), days=400, doubling_days={0: 400.0, 2: -200.0}).subject.lesions
    assert (later[0].size_mm / 20) ** 3 == pytest.approx(2, rel=1e-3)
    assert later[1] == lesions[1]
    assert (later[2].size_mm / 20) ** 3 == pytest.approx(1 / 4, rel=1e-3)
    assert later[0].seed == 0


def test_what_cannot_be_matched_is_refused() -> None:
    spec = Spec(Subject(1), Acquisition(1))
    for other, match in (
        (Spec(Subject(2), Acquisition(1)), "two patients"),
        (Spec(Subject(1, height=1.1), Acquisition(1)), "built otherwise"),
        (Spec(Subject(1), Acquisition(1, breath_steps_mm=5.0)), "slabs"),
    ):
        with pytest.raises(UsageError, match=match):
            points(spec, other, np.zeros((1, 3)))
    with pytest.raises(UsageError, match="nearest"):
        again(spec, KEY(1), changes=("breth",))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="does not exist"):
        again(spec, KEY(1), days=10, doubling_days={0: 100.0})
    sick = Spec(Subject(1, lesions=(Lesion("renal_cyst", 1, "kidney_left", 20.0),)), Acquisition(1))
    with pytest.raises(UsageError, match="double in"):
        again(sick, KEY(1), days=10, doubling_days={0: 0.0})
    with pytest.raises(UsageError, match="doublings"):
        again(sick, KEY(1), days=10000, doubling_days={0: 1.0})
    assert points(spec, sick, np.zeros((1, 3))).shape == (1, 3)  # lesions do not make another patient


@pytest.mark.parametrize(
    ("kind", "site", "size", "ends"),
    [("renal_cyst", "kidney_left", 36.0, (60, 230)), ("soft_tissue_mass", "gluteus_maximus_left", 50.0, (-195, 30))],
)
def test_a_lesion_goes_with_its_organ_and_doubles(kind: str, site: str, size: float, ends: tuple[int, int]) -> None:
    subject = Subject(4, lesions=(Lesion(kind, 5, site, size),))
    scan = Acquisition(1, z_range=ends, spacing_mm=3, thickness_mm=3, matrix=130, field_mm=390, breath_mm=-5)
    first = Spec(subject, scan)
    second = again(first, KEY("lesion"), changes=["pose", "breath"], days=200, doubling_days={0: 200.0})
    a, b = make(first), make(second)
    here, there = (np.argwhere(p.lesions.voxels == 1) for p in (a, b))
    assert len(here) > 500
    assert len(there) / len(here) == pytest.approx(2, rel=0.1)
    moved = points(first, second, a.ct.world(here)).mean(axis=0)
    np.testing.assert_allclose(moved, b.ct.world(there).mean(axis=0), atol=1.5)
