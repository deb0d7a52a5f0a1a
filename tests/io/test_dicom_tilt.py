"""Gantry tilt undone and gaps filled: balls of known place stay there, voxels equal an independent resampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from ctfoundry import geometry, io
from ctfoundry.errors import (
    DuplicateSlicesError,
    GeometryError,
    IrregularSpacingError,
    MissingSlicesError,
    TooLargeError,
)
from ctfoundry.io.dicom_write import write_series
from ctfoundry.volume import Volume

BALLS = np.array([[4.0, -6.0, 20.0], [-14.0, 9.0, 34.0], [11.0, 12.0, 48.0]])
RADIUS_MM, SOFT_MM = 7.0, 2.0
SHAPE, SPACING = (34, 44, 40), (2.0, 1.25, 1.5)


def ball(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """A ball of 1000 HU over its surroundings with a soft edge, as a function of world points (..., 3)."""
    distance = np.linalg.norm(points - centre, axis=-1)
    return 1000 * np.clip((RADIUS_MM - distance) / SOFT_MM + 0.5, 0, 1)


def scene(points: np.ndarray) -> np.ndarray:
    return -900 + sum(ball(points, centre) for centre in BALLS)


def tilted(code: str, degrees: float, axis: int, rotation: np.ndarray | None = None) -> np.ndarray:
    """An affine whose slices shift along `axis` (1: down, 2: across) by the tangent of the tilt; the scene in its middle."""
    affine = np.array(geometry.make_affine(SPACING, code, (0, 0, 0), rotation))
    inplane = affine[:3, axis] / np.linalg.norm(affine[:3, axis])
    affine[:3, 0] += inplane * SPACING[0] * np.tan(np.radians(degrees))
    affine[:3, 3] = BALLS.mean(axis=0) - affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return geometry.as_affine(affine)


def voxels_of(affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    return np.rint(scene(geometry.to_world(affine, index))).astype(np.int16)


def centres(volume: Volume) -> np.ndarray:
    """World centre of mass of each ball, from its surroundings' excess over the background."""
    points = volume.world(np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), axis=-1))
    out = []
    for centre in BALLS:
        near = np.linalg.norm(points - centre, axis=-1) < RADIUS_MM + 3.5
        weight = np.where(near, volume.voxels + 900.0, 0)
        out.append((points * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum())
    return np.array(out)


def rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


CASES = [(code, degrees, axis) for code in ("SPL", "IPL", "ARS") for degrees in (-22.0, 15.0) for axis in (1, 2)]


@pytest.mark.parametrize(("code", "degrees", "axis"), CASES)
def test_tilt_is_undone(code: str, degrees: float, axis: int, tmp_path: Path) -> None:
    affine = tilted(code, degrees, axis)
    stored = voxels_of(affine)
    write_series(tmp_path, stored, affine)
    volume = io.read(tmp_path)

    angle = f"{abs(degrees):.1f}"
    assert volume.notes == (f"gantry tilt of {angle} degrees undone by a shear",)
    assert volume.voxels.dtype == np.int16
    assert not geometry.is_sheared(volume.affine)
    np.testing.assert_allclose(volume.spacing, SPACING, rtol=1e-6)
    np.testing.assert_allclose(centres(volume), BALLS, atol=0.06)  # of voxels of 2 x 1.25 x 1.5 mm

    (found,) = io.discover(tmp_path).found
    assert (found.problem, found.notes) == (None, volume.notes)
    assert found.facts is not None
    assert found.facts.tilt_deg == pytest.approx(abs(degrees), abs=1e-6)
    assert found.grid is not None
    assert found.grid.same(volume.grid)

    # An independent resampling of what was written, at the world points of our voxels.
    index = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), axis=-1)
    at = geometry.to_index(affine, volume.world(index))
    theirs = ndimage.map_coordinates(stored.astype(np.float64), np.moveaxis(at, -1, 0), order=1, mode="nearest")
    assert volume.valid is not None
    np.testing.assert_allclose(volume.voxels[volume.valid], theirs[volume.valid], atol=0.5001)
    inside = np.all((at > -0.499) & (at < np.array(SHAPE) - 0.501), axis=-1)
    outside = np.any((at < -0.501) | (at > np.array(SHAPE) - 0.499), axis=-1)
    assert volume.valid[inside].all()
    assert not volume.valid[outside].any()
    assert (volume.voxels[~volume.valid] == -1024).all()


@pytest.mark.parametrize("degrees", [-18.0, 12.0])
def test_simpleitk_resamples_the_tilted_grid_alike(degrees: float, tmp_path: Path) -> None:
    """ITK takes no sheared direction, so the shear is a transform of its own there."""
    affine = tilted("SPL", degrees, 1)
    stored = voxels_of(affine)
    write_series(tmp_path, stored, affine)
    volume = io.read(tmp_path)
    image = sitk.GetImageFromArray(stored.astype(np.float64))  # in index space: (w, h, d) are its x, y, z
    grid = sitk.Image([int(n) for n in volume.shape[::-1]], sitk.sitkFloat64)
    relation = np.linalg.inv(affine) @ volume.affine  # our index to theirs, (d, h, w)
    turn = relation[:3, :3][::-1, ::-1]
    transform = sitk.AffineTransform(turn.ravel().tolist(), relation[:3, 3][::-1].tolist())
    theirs = sitk.GetArrayFromImage(sitk.Resample(image, grid, transform, sitk.sitkLinear, -5000.0))
    measured = theirs > -4000
    assert measured.mean() > 0.6
    np.testing.assert_allclose(volume.voxels[measured], theirs[measured], atol=0.5001)


@pytest.mark.parametrize("seed", range(4))
def test_oblique_and_tilted(seed: int, tmp_path: Path) -> None:
    affine = tilted("SPL", 20.0 - 10 * seed if seed != 2 else -9.0, 1 + seed % 2, rotation(seed))
    write_series(tmp_path, voxels_of(affine), affine)
    volume = io.read(tmp_path)
    assert any("gantry tilt" in note for note in volume.notes)
    np.testing.assert_allclose(centres(volume), BALLS, atol=0.06)


def test_fill_does_not_bleed_into_tilted_tissue(tmp_path: Path) -> None:
    """Interpolation takes valid voxels only."""
    affine = tilted("SPL", 17.0, 1)
    stored = np.full(SHAPE, 100, np.int16)
    stored[:, :, :5] = -2000
    stored[:, :7] = -3024
    write_series(tmp_path, stored, affine)
    volume = io.read(tmp_path)
    assert volume.valid is not None
    assert set(np.unique(volume.voxels[volume.valid])) == {100}
    assert set(np.unique(volume.voxels[~volume.valid])) == {-1024}


def test_fractional_hu_stay_fractional(tmp_path: Path) -> None:
    affine = tilted("SPL", 17.0, 2)
    stored = voxels_of(affine)
    write_series(tmp_path, stored, affine, slope=0.5, intercept=-0.25)
    volume = io.read(tmp_path)
    assert volume.voxels.dtype == np.float32
    assert volume.valid is not None
    assert volume.voxels[volume.valid].min() == pytest.approx(-450.25)


def test_no_gantry_tilts_that_far(tmp_path: Path) -> None:
    affine = tilted("SPL", 70.0, 1)
    write_series(tmp_path, voxels_of(affine)[:5], affine)
    with pytest.raises(GeometryError, match=r"sideways by 70\.0 degrees"):
        io.read(tmp_path)


def test_the_cap_counts_what_the_shear_adds(tmp_path: Path) -> None:
    affine = tilted("SPL", 40.0, 1)
    write_series(tmp_path, voxels_of(affine), affine)
    with pytest.raises(TooLargeError):
        io.read(tmp_path, cap=int(np.prod(SHAPE)) * 2 + 100)


# Gaps ----------------------------------------------------------------------------------------------------------------

AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))


def ramp(count: int) -> np.ndarray:
    """Slices whose HU are 100 times their number, plus a pattern."""
    pattern = np.random.default_rng(0).integers(0, 50, (6, 7))
    return np.stack([100 * k + pattern for k in range(count)]).astype(np.int16)


def found(folder: Path) -> io.Found:
    (one,) = io.discover(folder).found
    return one


def test_missing_slices_are_filled_in(tmp_path: Path) -> None:
    stored = ramp(14)
    paths = write_series(tmp_path, stored, AFFINE)
    for k in (4, 5, 9):
        paths[k].unlink()
    with pytest.raises(MissingSlicesError, match="3 slices are missing"):
        found(tmp_path).read()
    volume = found(tmp_path).read(allow_gaps=True)
    np.testing.assert_array_equal(volume.voxels, stored)  # it was linear
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.valid is not None
    assert np.flatnonzero(~volume.valid.all(axis=(1, 2))).tolist() == [4, 5, 9]
    assert volume.notes == (
        "11 slices at uneven distances resampled onto 14 at 2.500 mm; "
        "nothing was measured from -92.50 to -85.00, -80.00 to -75.00 mm along the normal",
    )


def test_irregular_slices_are_resampled_as_scipy_does(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(-900, 900, (12, 6, 7)).astype(np.int16)
    rng = np.random.default_rng(1)
    places = np.cumsum([0, *rng.uniform(1.7, 2.6, 11)])
    places[7:] += 4.0  # one gap

    def change(data: Any, d: int) -> None:
        x, y, _ = data.ImagePositionPatient
        data.ImagePositionPatient = [x, y, f"{places[d] - 50:.8g}"]

    write_series(tmp_path, stored, AFFINE, change=change)
    with pytest.raises(IrregularSpacingError):
        found(tmp_path).read()
    volume = found(tmp_path).read(allow_gaps=True)
    layers = volume.affine[2, 3] + 50 + volume.spacing[0] * np.arange(volume.shape[0])
    np.testing.assert_allclose(layers[[0, -1]], places[[0, -1]], atol=1e-6)
    assert volume.spacing[0] == pytest.approx(np.median(np.diff(places)), rel=0.05)
    place = np.interp(layers, places, np.arange(12))
    theirs = ndimage.map_coordinates(
        stored.astype(np.float64), np.stack(np.meshgrid(place, np.arange(6), np.arange(7), indexing="ij")), order=1
    )
    assert volume.valid is not None
    np.testing.assert_allclose(volume.voxels, theirs, atol=12)  # a layer within 1 % of a slice is that slice
    near = np.abs(place - np.rint(place)) > 0.01
    np.testing.assert_allclose(volume.voxels[near], theirs[near], atol=0.5001)
    gap = (layers > places[6] + 0.1) & (layers < places[7] - 0.1)
    assert gap.any()
    np.testing.assert_array_equal(volume.valid.all(axis=(1, 2)), ~gap)


def test_tilted_with_missing_slices(tmp_path: Path) -> None:
    affine = tilted("SPL", 14.0, 1)
    paths = write_series(tmp_path, voxels_of(affine), affine)
    paths[2].unlink()
    paths[30].unlink()
    volume = found(tmp_path).read(allow_gaps=True)
    assert len(volume.notes) == 2
    assert volume.shape[0] == SHAPE[0]
    np.testing.assert_allclose(centres(volume), BALLS, atol=0.08)


def test_gaps_do_not_allow_everything(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "twice", ramp(6), AFFINE)
    (tmp_path / "twice" / "again").write_bytes(paths[2].read_bytes())
    with pytest.raises(DuplicateSlicesError):
        found(tmp_path / "twice").read(allow_gaps=True)

    def far(data: Any, d: int) -> None:
        if d == 5:
            data.ImagePositionPatient = [*data.ImagePositionPatient[:2], 1e5]

    write_series(tmp_path / "far", ramp(6), geometry.make_affine((2.5, 1, 1), "SPL"), change=far)
    with pytest.raises(MissingSlicesError, match="so far apart"):
        found(tmp_path / "far").read(allow_gaps=True)


def test_regular_slices_stay_as_they_are_where_gaps_are_allowed(tmp_path: Path) -> None:
    write_series(tmp_path, ramp(6), AFFINE)
    volume = found(tmp_path).read(allow_gaps=True)
    np.testing.assert_array_equal(volume.voxels, ramp(6))
    assert (volume.valid, volume.notes) == (None, ())
