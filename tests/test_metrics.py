"""Metrics against SciPy, MONAI and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial.distance

from ctfoundry import metrics
from ctfoundry.errors import GeometryError
from ctfoundry.geometry import make_affine
from ctfoundry.keys import Key
from ctfoundry.volume import Volume

KEY = Key.of("test metrics")


def _maps(dtype=np.uint8):
    return (KEY(i).integers(0, 5, (7, 8, 9)).astype(dtype) for i in range(2))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_dice_equals_scipy(dtype) -> None:
    a, b = _maps(dtype)
    ours = metrics.dice(a, b, range(5))
    for label, value in ours.items():
        other = 1 - scipy.spatial.distance.dice((a == label).ravel(), (b == label).ravel())
        assert value == pytest.approx(other, abs=1e-12)


@pytest.mark.monai
def test_dice_equals_monai() -> None:
    import torch
    from monai.metrics import compute_dice

    a, b = _maps()
    hot = [torch.stack([torch.from_numpy(m == label) for label in range(6)])[None].float() for m in (a, b)]
    theirs = compute_dice(hot[0], hot[1], include_background=True)[0].tolist()
    ours = metrics.dice(a, b, range(6))
    assert all(math.isnan(o) == math.isnan(t) for o, t in zip(ours.values(), theirs, strict=True))
    np.testing.assert_allclose(list(ours.values())[:5], theirs[:5], atol=1e-6)


def test_dice_of_absent_labels() -> None:
    a, b = np.array([[[0, 1]]]), np.array([[[0, 0]]])
    result = metrics.dice(a, b, (0, 1, 250))
    assert result[0] == pytest.approx(2 / 3)
    assert result[1] == 0
    assert math.isnan(result[250])


def test_dice_refuses_two_grids() -> None:
    with pytest.raises(GeometryError, match="differ"):
        metrics.dice(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), (1,))


def test_centroid_equals_scipy() -> None:
    (a, _), affine = _maps(), make_affine((3, 1.5, 0.7), "SPL", (10, -20, 30))
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    for grid in (affine, make_affine((3, 1.5, 0.7), "LAI", (1, 2, 3), turn)):
        volume = Volume(a, grid, "label")
        for label in range(5):
            index = scipy.ndimage.center_of_mass(a == label)
            np.testing.assert_allclose(metrics.centroid(volume, label), grid[:3, :3] @ index + grid[:3, 3], atol=1e-9)
        assert np.isnan(metrics.centroid(volume, 9)).all()


def test_localisation_error() -> None:
    points, truth = KEY("points").normal((6, 3)), KEY("truth").normal((6, 3))
    expected = [math.dist(p, t) for p, t in zip(points, truth, strict=True)]
    np.testing.assert_allclose(metrics.localisation_error(points, truth), expected, rtol=1e-12)
    assert np.isnan(metrics.localisation_error([np.nan, 0, 0], [0, 0, 0]))
    with pytest.raises(GeometryError):
        metrics.localisation_error(points, truth[:, :2])
