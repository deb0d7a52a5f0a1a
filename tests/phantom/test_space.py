"""Lattice, pose and shapes against literal computations."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.ndimage

from ctfoundry.keys import Key
from ctfoundry.phantom import Acquisition, Subject, breathing, draw, texture
from ctfoundry.phantom.shapes import ellipsoid, smooth_path, tube, tube_in_body
from ctfoundry.phantom.space import Pose, Space, spine_y

KEY = Key.of("test space")
STILL = Pose.of(Subject(1, variety=0.0), Acquisition(1, z_range=(0, 20)))


def _space(pose: Pose = STILL, step: float = 2.0, count: int = 50) -> Space:
    axis = (np.arange(count) - (count - 1) / 2) * step
    return Space.of(pose, (axis, -axis, -axis))


@pytest.mark.parametrize("seed", range(8))
def test_world_undoes_body(seed: int) -> None:
    spec = draw(KEY(seed))
    pose = Pose.of(dataclasses.replace(spec.subject, scoliosis_mm=45.0), spec.acquisition)
    points = KEY("points").uniform(-1, 1, (50, 3)) * (150, 100, 150) + (0, 10, 150)
    np.testing.assert_allclose(pose.body(pose.world(points).T).T, points, atol=0.01)


def test_patches_interpolate_linearly() -> None:
    space = _space(step=1.5, count=41)
    patch = space.patch((-20, -15, -10), (10, 20, 25))
    values = KEY("values").normal(patch.x.shape)
    got = patch.fine(values)
    grid = np.meshgrid(*(np.arange(n) / s for n, s in zip(got.shape, space.strides, strict=True)), indexing="ij")
    np.testing.assert_allclose(got, scipy.ndimage.map_coordinates(values, grid, order=1), atol=1e-5)
    assert space.patch((500, 0, 0), (600, 10, 10)) is None


def test_patch_holds_its_box_and_coordinates() -> None:
    space = _space(Pose.of(Subject(3), Acquisition(3, tilt_deg=(5, 4, 12), z_range=(0, 20))))
    low, high = np.array([-25.0, -20, -12]), np.array([20.0, 25, 18])
    patch = space.patch(low, high)
    z, y, x = np.meshgrid(*space.axes, indexing="ij")
    body = space.pose.body(np.stack([x, y, z]))
    wanted = np.all([(b >= a) & (b <= c) for a, b, c in zip(low, body, high, strict=True)], axis=0)
    covered = np.zeros(space.shape, dtype=bool)
    covered[patch.box] = True
    assert (covered | ~wanted).all()
    for mine, true in zip((patch.x, patch.y, patch.z), body, strict=True):
        assert np.abs(patch.fine(mine) - true[patch.box]).max() < 0.1
    box = (slice(7, 20), slice(3, 31), slice(11, 12))
    for mine, true in zip(space.coordinates(box), body, strict=True):
        assert mine.shape == true[box].shape
        assert np.abs(mine - true[box]).max() < 0.1


def test_tube_is_the_distance_to_a_chain_of_cones() -> None:
    space = _space()
    points = np.array([(-20.0, -10, -20), (5, 5, 0), (20, -8, 25)])
    box, got = tube(space, points, 6.0)
    world = space.pose.world(points)
    z, y, x = np.meshgrid(*(a[b] for a, b in zip(space.axes, box, strict=True)), indexing="ij")
    p = np.stack([x, y, z], axis=-1)
    expected = np.full(x.shape, np.inf)
    for a, b in itertools.pairwise(world):
        t = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        expected = np.minimum(expected, np.linalg.norm(p - a - t[..., None] * (b - a), axis=-1) - 6)
    near = expected < 2  # further away a segment's box ends
    np.testing.assert_allclose(got[near], expected[near], atol=1e-3)
    assert (got[~near] > 1.9).all()
    assert tube(space, points + 900, 6.0) is None


def test_ellipsoid_has_its_volume() -> None:
    space = _space()
    patch = space.patch((-40, -40, -40), (40, 40, 40))
    inside = patch.fine(ellipsoid(patch, (1, 10, 2), (30, 22, 18))) < 0
    assert inside.sum() * 8 == pytest.approx(4 / 3 * np.pi * 30 * 22 * 18, rel=0.03)


def test_smooth_path_passes_through_its_points() -> None:
    points = KEY("path").normal((6, 4))
    np.testing.assert_allclose(smooth_path(points, 5 * 7 + 1)[::7], points, atol=1e-6)


def test_texture_sticks_to_the_body_and_has_its_grain() -> None:
    noise = texture.tile(6.0)
    assert abs(float(noise.mean())) < 1e-3
    assert float(noise.std()) == pytest.approx(1, abs=1e-3)
    # A blob of diameter g is half a wave: the correlation at one diameter is negative, at a quarter clearly positive.
    lags = [float((noise * np.roll(noise, k, axis=0)).mean()) for k in (2, 6)]
    assert lags[0] > 0.4
    assert lags[1] < 0
    x = KEY("x").uniform(-100, 100, (3, 500)).astype(np.float32)
    a, b = (texture.sample(KEY("t"), *x, blob_mm=12) for _ in range(2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, texture.sample(KEY("u"), *x, blob_mm=12))


@pytest.mark.parametrize("breath", [-20.0, -8.0, 15.0, 28.0, 40.0])
def test_breathing_never_folds_and_stays_within_its_bounds(breath: float) -> None:
    """The determinant by finite differences of the sampled map; `shrinkage` is the same by its own steps."""
    axes = np.arange(-150, 151, 5.0), np.arange(-110, 131, 5.0), np.arange(-140, 521, 5.0)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    for kyphosis in (0.6, 1.0, 1.5):
        moved = grid + breathing.shift(grid, breath, kyphosis)
        slopes = np.stack([np.stack(np.gradient(c, *axes)) for c in moved])
        det = np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)))
        assert 0.5 < det.min() <= det.max() < 1.7
        own = breathing.shrinkage(grid, breath, kyphosis)
        assert 0.5 < own.min() <= own.max() < 1.7
        assert np.abs(det - own)[1:-1, 1:-1, 1:-1].max() < 0.12
        back = breathing.undo(moved, breath, kyphosis)
        np.testing.assert_allclose(back, grid, atol=1e-3)


def test_breathing_moves_what_breathes() -> None:
    def at(*point: float) -> np.ndarray:
        """Where a point at rest lies after a breath of 25 mm, less where it was."""
        p = np.array(point)[:, None]
        return (breathing.undo(p, 25.0, 1.0) - p)[:, 0]

    for side in (-70, 70):
        assert at(side, 20, 262)[2] == pytest.approx(-25, abs=1.5)  # the domes
    assert -20 < at(65, -12, 128)[2] < -6  # kidney
    for z in (20, 100, 200, 300, 400):  # the vertebral bodies' middle
        assert np.abs(at(0, float(spine_y(np.array(z), 1.0)), z)).max() < 0.3
    sternum = at(0, 96, 320)
    assert sternum[1] > 2
    assert sternum[2] > 0.5
    rib = at(130, 0, 250)
    assert 1 < rib[0] < 5
    for far in ((0, 20, -110), (60, 0, -500), (10, 30, 495), (0, 60, 700)):
        assert np.abs(at(*far)).max() == 0


def test_a_child_is_painted_in_millimetres_of_the_adult() -> None:
    """A tube of 6 mm through a body of half the size is 3 mm thick, and its distances are those of the reference."""
    pose = Pose.of(Subject(1, variety=0.0, age_years=4.0), Acquisition(1, z_range=(0, 20)))
    size = float(pose.size(10.0))
    assert 0.4 < size < 0.65
    space = _space(pose, step=1.0, count=61)
    found = tube(space, np.array([(-30.0, 0, 10), (30, 0, 10)]), 6.0)
    assert found is not None
    _, distance = found
    radius = np.sqrt((distance < 0).sum(axis=(0, 1)).max() / np.pi)
    assert radius == pytest.approx(6 * size, rel=0.1)
    assert distance.min() == pytest.approx(-6, abs=0.6)
    assert space.voxel_mm == pytest.approx(1 / size)
    _, bent = tube_in_body(space, np.array([(-30.0, 0, 10), (30, 0, 10)]), 6.0)
    assert bent.min() == pytest.approx(-6, abs=0.8)


def test_tube_in_body_is_the_distance_in_body_millimetres() -> None:
    pose = Pose.of(Subject(3), Acquisition(3, tilt_deg=(5, 4, 12), z_range=(0, 20), breath_mm=20.0))
    space = _space(pose, step=2.0, count=60)
    points = np.array([(-25.0, -10, -15), (0, 10, 5), (18, 20, 25)])
    box, got = tube_in_body(space, points, [8.0, 8, 8])
    z, y, x = np.meshgrid(*(a[b] for a, b in zip(space.axes, box, strict=True)), indexing="ij")
    p = np.moveaxis(pose.body(np.stack([x, y, z])), 0, -1)
    expected = np.full(x.shape, np.inf)
    for a, b in itertools.pairwise(points):
        t = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        expected = np.minimum(expected, np.linalg.norm(p - a - t[..., None] * (b - a), axis=-1) - 8)
    near = expected < 1.5
    assert near.sum() > 500
    np.testing.assert_allclose(got[near], expected[near], atol=0.25)
    inside = np.zeros(space.shape, dtype=bool)
    inside[box] = expected < 0
    zz, yy, xx = np.meshgrid(*space.axes, indexing="ij")
    every = np.moveaxis(pose.body(np.stack([xx, yy, zz])), 0, -1)
    close = np.linalg.norm(every - points[1], axis=-1) < 8
    assert inside[close].all()  # the box holds all of it


def test_smooth_texture_is_the_tile_interpolated_by_scipy() -> None:
    x = KEY("smooth").uniform(-100, 100, (3, 300)).astype(np.float32)
    got = texture.smooth_sample(KEY("t"), *x, blob_mm=24)
    offset = KEY("t").integers(0, texture.SIDE, 3)
    at = np.stack([x[2], x[1], x[0]]).astype(np.float64) * 6 / 24 + offset[:, None]
    expected = scipy.ndimage.map_coordinates(texture.tile(6.0), at, order=1, mode="grid-wrap")
    np.testing.assert_allclose(got, expected, atol=1e-2)
