"""Slice profile, filters and noise, against SciPy and literal integrals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from ctfoundry.keys import Key
from ctfoundry.phantom import Acquisition, scanner, texture

KEY = Key.of("test scanner")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sigma", [0.2, 0.8, 3.0])
def test_smooth_equals_scipy(axis: int, sigma: float) -> None:
    x = KEY("x").normal((5, 9, 11)).astype(np.float32)
    weights = scanner.taps(sigma)
    assert weights.sum() == pytest.approx(1)
    if len(weights) // 2 > x.shape[axis] - 1:
        weights = weights[len(weights) // 2 - x.shape[axis] + 1 : len(weights) // 2 + x.shape[axis]]
    expected = scipy.ndimage.correlate1d(x.astype(np.float64), weights, axis=axis, mode="nearest")
    np.testing.assert_allclose(scanner.smooth(x, weights, axis), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("spacing", "thickness"), [(2.0, 2.0), (2.0, 3.0), (5.0, 5.0), (5.0, 2.0), (3.0, 7.5), (1.5, 4.0)]
)
def test_slices_average_their_thickness(spacing: float, thickness: float) -> None:
    scan = Acquisition(1, spacing_mm=spacing, thickness_mm=thickness)
    step, margin, count = scanner.sub_slices(scan), scanner.margin_slices(scan), 6
    assert step % 2 == 1
    fine = KEY("fine").normal((count - 1) * step + 1 + 2 * margin).astype(np.float32)[:, None, None]
    got = scanner.average_slices(fine, scan, count)[:, 0, 0]
    thin = spacing / step
    grid = np.linspace(-thickness / 2, thickness / 2, 40001)[:-1] + thickness / 80000
    for k in range(count):
        position = (grid + k * spacing) / thin + margin  # in thin slices, each constant over its width
        if margin == 0:
            assert got[k] == fine[k * step, 0, 0]
        else:
            assert got[k] == pytest.approx(float(fine[np.rint(position).astype(int), 0, 0].mean()), abs=2e-3)


def test_bell_is_nearly_normal() -> None:
    x = texture.bell(KEY("bell"), (60, 50, 40)).astype(np.float64)
    assert abs(x.mean()) < 0.01
    assert x.std() == pytest.approx(1, abs=0.01)
    assert abs((x**3).mean()) < 0.03
    assert (x**4).mean() == pytest.approx(2.7, abs=0.1)
    flat = x.ravel()
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 0.01
    assert np.array_equal(texture.bell(KEY("bell"), (60, 50, 40)), x.astype(np.float32))


def _correlation(x: np.ndarray, lag: int) -> float:
    return float(np.corrcoef(x[..., lag:].ravel(), x[..., :-lag].ravel())[0, 1])


def test_the_kernel_colours_the_noise() -> None:
    white = texture.bell(KEY("white"), (8, 128, 128))
    one, two = {}, {}
    for kernel in ("soft", "standard", "sharp"):
        scan = Acquisition(1, kernel=kernel, field_mm=128.0, matrix=128)
        x = scanner.colour(white, scan)[:, 8:-8, 8:-8]
        assert x.std() == pytest.approx(1, abs=0.05)
        one[kernel], two[kernel] = _correlation(x, 1), _correlation(x, 2)
    assert one["soft"] > one["standard"] + 0.1 > one["sharp"] + 0.3
    assert two["sharp"] < 0 < two["soft"]


def test_overlapping_slices_share_noise() -> None:
    apart = scanner.white_noise(KEY("z"), (40, 30, 30), Acquisition(1, spacing_mm=2, thickness_mm=2))
    overlap = scanner.white_noise(KEY("z"), (40, 30, 30), Acquisition(1, spacing_mm=2, thickness_mm=4))
    assert abs(_correlation(np.moveaxis(apart, 0, -1), 1)) < 0.02
    assert _correlation(np.moveaxis(overlap, 0, -1), 1) > 0.4
    assert overlap.std() == pytest.approx(1, abs=0.03)


def test_noise_has_the_deviation_asked_for() -> None:
    """Two scans that differ in their seed only: their difference is noise, in an average body's middle."""
    from ctfoundry.phantom import IDS, Spec, Subject, make

    common = {"z_range": (110.0, 190.0), "spacing_mm": 4.0, "thickness_mm": 4.0, "phase": "none"}
    scans = [make(Spec(Subject(1), Acquisition(seed, noise_hu=20.0, **common))) for seed in (1, 2)]
    liver = np.logical_and(*(p.labels.voxels == IDS["liver"] for p in scans))
    liver = scipy.ndimage.binary_erosion(liver, iterations=2)
    difference = scans[0].ct.voxels[liver].astype(float) - scans[1].ct.voxels[liver]
    assert difference.std() / np.sqrt(2) == pytest.approx(20, rel=0.3)


def test_the_rim_is_bright_where_the_patient_is_cut_off() -> None:
    from ctfoundry.phantom import IDS

    scan = Acquisition(1, field_mm=200.0, matrix=100, rim_hu=300.0)
    labels = np.zeros((2, 100, 100), dtype=np.uint8)
    labels[0, 30:70, 50:] = IDS["liver"]  # reaches the edge on one side
    labels[1, 90:] = IDS["table"]
    hu = np.zeros(labels.shape, dtype=np.float32)
    scanner.add_rim(hu, labels, scan)
    assert hu[0, 50, 99] == pytest.approx(300, rel=0.25)
    assert hu[0, 50, 95] == pytest.approx(300 * np.exp(-(4.5 + 0.5) * 2 / scanner.RIM_MM), rel=0.25)
    assert hu[0, 50, 70] == 0
    assert hu[0, 50, 1] == 0
    assert hu[0, 1, 50] == 0
    assert (hu[1] == 0).all()


@pytest.mark.parametrize("kind", ["blanket", "clothes"])
def test_a_cover_lies_on_the_patient_and_has_no_label(kind: str) -> None:
    from ctfoundry.phantom.cover import add_cover

    scan = Acquisition(3, field_mm=300.0, matrix=150, cover=kind)
    labels = np.zeros((20, 150, 150), dtype=np.uint8)
    y, x = np.meshgrid(np.arange(150) - 75, np.arange(150) - 75, indexing="ij")
    labels[:, (y / 45) ** 2 + (x / 60) ** 2 < 1] = 202
    hu = np.where(labels > 0, 40, -1000).astype(np.float32)
    before, named = hu.copy(), labels.copy()
    add_cover(hu, labels, np.arange(20) * 2.0, scan)
    changed = hu != before
    assert np.array_equal(labels, named)
    assert not changed[labels > 0].any()
    assert changed.any(axis=1).mean() > 0.75  # nearly all columns over the body, and a little beside it
    rows = np.argwhere(changed)[:, 1]
    assert rows.max() < 75
    surface = np.where((labels > 0).any(axis=1), (labels > 0).argmax(axis=1), 150)
    assert (surface[0, 75] - changed[0, :, 75].argmax()) * 2 < 30  # within 3 cm of the belly
    soft = hu[changed & (hu < 0)]
    assert -1000 < soft.min() <= soft.max() < -500


def test_a_jerk_doubles_some_slices_sideways() -> None:
    from ctfoundry.phantom import motion

    scan = Acquisition(5, field_mm=200.0, matrix=100, motion_mm=20.0)
    hu = np.zeros((60, 100, 100), dtype=np.float32)
    hu[:, 45:55, 45:55] = 100
    sharp = hu.copy()
    motion.jerk(hu, np.arange(60) * 2.0, scan)
    touched = np.flatnonzero((hu != sharp).any(axis=(1, 2)))
    assert 0 < len(touched) <= motion.JERK_MM[1] / 2 + 1
    assert np.array_equal(touched, np.arange(touched[0], touched[-1] + 1))
    np.testing.assert_allclose(hu.sum(axis=(1, 2)), sharp.sum(axis=(1, 2)), rtol=1e-4)  # nothing is lost
    worst = hu[np.abs(hu - sharp).sum(axis=(1, 2)).argmax()]
    values = np.unique(np.round(worst))
    assert 50 in values  # one place by half, the other by half
    assert worst.max() <= 100 + 1e-3


def test_slabs_of_one_breath_follow_each_other() -> None:
    from ctfoundry.phantom import motion

    z = np.arange(0, 400, 2.0)
    scan = Acquisition(7, breath_mm=10.0, breath_steps_mm=8.0)
    parts = list(motion.slabs(scan, z))
    assert [p.start for p, _ in parts] == [0, *(p.stop for p, _ in parts[:-1])]
    assert parts[-1][0].stop == len(z)
    breaths = [s.breath_mm for _, s in parts]
    assert len(parts) >= 4
    assert all(2 <= b <= 18 for b in breaths)
    assert len(set(breaths)) == len(parts)
    assert list(motion.slabs(Acquisition(7), z)) == [(slice(0, 200), Acquisition(7))]
