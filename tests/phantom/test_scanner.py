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
