"""Children: proportions after growth facts, and anatomy in its place."""

from __future__ import annotations

import numpy as np
import pytest

from ctfoundry.errors import UsageError
from ctfoundry.keys import Key
from ctfoundry.phantom import GROUPS, IDS, LABELS, Acquisition, Phantom, Spec, Subject, draw, draw_subject, make
from ctfoundry.phantom.growth import growth, stature_mm
from ctfoundry.phantom.space import Pose, lying_mm

KEY = Key.of("test child")


def small_torso(years: float) -> Phantom:
    field = {5.0: 280.0, 50.0: 440.0}[years]
    scan = Acquisition(1, field_mm=field, matrix=90, spacing_mm=field / 90, thickness_mm=field / 90, noise_hu=0.0)
    return make(Spec(Subject(1, sex="male", age_years=years), scan))


@pytest.mark.parametrize("years", [1.0, 2.0, 5.0, 10.0, 15.0])
def test_the_body_follows_growth_facts(years: float) -> None:
    """Sitting height, leg length and head of the scaled reference against their medians at that age (rounded, within a tenth)."""
    sitting = np.interp(years, (1, 2, 5, 10, 15), (0.63, 0.60, 0.555, 0.53, 0.52)) * stature_mm(years, "male")
    child, adult = (Subject(1, age_years=a) for a in (years, 40.0))
    part = [(lying_mm(s, 740) - lying_mm(s, -195)) for s in (child, adult)]
    assert part[0] / part[1] == pytest.approx(sitting / (0.52 * 1760), rel=0.1)
    leg = [(lying_mm(s, -195) - lying_mm(s, -990)) for s in (child, adult)]
    assert leg[0] / leg[1] == pytest.approx((stature_mm(years, "male") - sitting) / (0.48 * 1760), rel=0.1)
    head = [(lying_mm(s, 740) - lying_mm(s, 620)) for s in (child, adult)]
    assert head[0] / head[1] == pytest.approx(np.interp(years, (1, 2, 5, 10, 15), (46, 48, 51, 53, 55)) / 56, rel=0.06)
    # Heads are large and legs short: the younger the more.
    assert head[0] / head[1] > part[0] / part[1] > leg[0] / leg[1] - 0.02


def test_scaling_is_smooth_rising_and_ends_with_adults() -> None:
    for years in (0.0, 3.0, 12.0, 17.9):
        grown = growth(years)
        assert grown is not None
        assert (np.diff(grown.along) > 0).all()
        assert np.interp(0.0, grown.z, grown.along) == pytest.approx(0, abs=1e-9)
    assert growth(17.999).size == pytest.approx(1, abs=1e-3)
    assert growth(18.0) is None
    pose = Pose.of(Subject(1, age_years=4.0), Acquisition(1, z_range=(-900, 700)))
    points = KEY("points").uniform(-1, 1, (300, 3)) * (120, 90, 750) + (0, 0, -100)
    np.testing.assert_allclose(pose.body(pose.world(points).T).T, points, atol=2e-3)


def test_a_child_holds_what_an_adult_holds_in_its_size() -> None:
    child, adult = small_torso(5.0), small_torso(50.0)
    assert child.ct.shape[0] * child.ct.spacing[0] < 0.62 * adult.ct.shape[0] * adult.ct.spacing[0]
    present = [{LABELS[i] for i in np.unique(p.labels.voxels).tolist() if i} for p in (child, adult)]
    assert present[1] - present[0] <= {"prostate", "portal_vein_and_splenic_vein"}
    litres = [
        {n: np.isin(p.labels.voxels, [IDS[x] for x in GROUPS[n]]).sum() * np.prod(p.ct.spacing) / 1e6 for n in GROUPS}
        for p in (child, adult)
    ]
    assert 0.3 < litres[0]["liver"] < 0.75  # about half a litre at five years
    for name in ("liver", "heart", "aorta", "lung_left", "ribs", "vertebrae", "stomach"):
        ratio = litres[0][name] / litres[1][name]
        assert 0.57 * 0.62 * 0.62 * 0.8 < ratio < 0.57 * 0.66 * 0.66 * 1.25, (name, ratio)  # tubes shrink as organs do


def test_bones_follow_age() -> None:
    hu = {}
    for years in (1.0, 25.0, 50.0, 85.0):
        scan = Acquisition(1, z_range=(60, 130), field_mm=360, matrix=120, spacing_mm=3, thickness_mm=3, noise_hu=0)
        p = make(Spec(Subject(1, age_years=years), scan))
        mask = np.isin(p.labels.voxels, [IDS[f"vertebrae_L{n}"] for n in (1, 2, 3)])
        hu[years] = float(np.percentile(p.ct.voxels[mask], 25))  # spongy bone, not the shell
    assert hu[25.0] > hu[50.0] + 30 > hu[85.0] + 60
    assert hu[1.0] < hu[25.0]


def test_draws_of_children() -> None:
    ages = [draw_subject(KEY(i), child=True).age_years for i in range(30)]
    assert min(ages) >= 1
    assert max(ages) < 16
    assert max(ages) - min(ages) > 8
    assert draw_subject(KEY(1)).age_years == 50
    small, large = (draw(KEY(3), view="torso", child=child) for child in (True, False))
    assert small.acquisition.field_mm < large.acquisition.field_mm
    with pytest.raises(UsageError, match="age_years"):
        Subject(1, age_years=-1)
