"""Affines and orientation codes against nibabel, over all 48 axis orders and flips and random oblique grids."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ctfoundry import geometry
from ctfoundry.errors import GeometryError
from ctfoundry.geometry import Grid

CODES = [a + b + c for order in permutations(("RL", "AP", "SI")) for a, b, c in product(*order)]
SHAPE = (3, 4, 5)


def affines(max_degrees: float = 180.0):
    """Random affines: any order and flip, spacing 0.3 to 6 mm, turned by up to `max_degrees` about a random line."""

    def build(code, spacing, line, angle, origin):
        norm = np.linalg.norm(line)
        turn = np.eye(3) if norm < 1e-3 else Rotation.from_rotvec(np.radians(angle) * np.array(line) / norm).as_matrix()
        return geometry.make_affine(spacing, code, origin, turn)

    return st.builds(
        build,
        st.sampled_from(CODES),
        st.tuples(*[st.floats(0.3, 6)] * 3),
        st.tuples(*[st.floats(-1, 1)] * 3),
        st.floats(-max_degrees, max_degrees),
        st.tuples(*[st.floats(-500, 500)] * 3),
    )


def test_there_are_48_codes():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("code", CODES)
def test_codes_are_nibabels(code):
    affine = geometry.make_affine((3.0, 0.7, 0.9), code, (1, 2, 3))
    assert "".join(nib.aff2axcodes(affine)) == geometry.orientation(affine) == code
    np.testing.assert_allclose(geometry.spacing(affine), nib.affines.voxel_sizes(affine))
    assert geometry.obliquity(affine) == pytest.approx(0, abs=1e-5)
    assert not geometry.is_sheared(affine)


@settings(deadline=None)
@given(affines(max_degrees=35))
def test_codes_of_oblique_grids_are_nibabels(affine):
    assert geometry.orientation(affine) == "".join(nib.aff2axcodes(affine))
    np.testing.assert_allclose(geometry.spacing(affine), nib.affines.voxel_sizes(affine), rtol=1e-9)
    assert geometry.obliquity(affine) == pytest.approx(np.degrees(nib.affines.obliquity(affine)).max(), abs=1e-3)


@settings(deadline=None)
@given(affines(), st.lists(st.tuples(*[st.floats(-100, 100)] * 3), min_size=1, max_size=5))
def test_points_go_to_the_world_as_in_nibabel_and_back(affine, points):
    world = geometry.to_world(affine, points)
    np.testing.assert_allclose(world, nib.affines.apply_affine(affine, points), atol=1e-8)
    np.testing.assert_allclose(geometry.to_index(affine, world), points, atol=1e-6)


@pytest.mark.parametrize("target", ["SPL", "RAS", "LIP"])
@pytest.mark.parametrize("code", CODES)
def test_reordering_is_nibabels(code, target):
    """`axes_to` and `reordered` against io_orientation, apply_orientation and inv_ornt_aff."""
    affine = geometry.make_affine(
        (3.0, 0.7, 0.9), code, (10, -20, 30), Rotation.from_euler("xyz", (5, -9, 12), True).as_matrix()
    )
    data = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    order, flip = geometry.axes_to(affine, target)
    ours = data.transpose(order)[tuple(slice(None, None, -1 if f else 1) for f in flip)]
    moved = geometry.reordered(affine, SHAPE, order, flip)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(target)
    )
    np.testing.assert_array_equal(ours, nib.orientations.apply_orientation(data, turn))
    np.testing.assert_allclose(moved, affine @ nib.orientations.inv_ornt_aff(turn, SHAPE), atol=1e-9)
    assert geometry.orientation(moved) == target


@settings(deadline=None)
@given(affines(), st.sampled_from(CODES))
def test_reordering_keeps_every_voxel_where_it_is(affine, target):
    index = np.argwhere(np.ones(SHAPE))
    order, flip = geometry.axes_to(affine, target)
    moved = geometry.reordered(affine, SHAPE, order, flip)
    after = index[:, order]
    after = np.where(flip, np.array(SHAPE)[list(order)] - 1 - after, after)
    np.testing.assert_allclose(geometry.to_world(moved, after), geometry.to_world(affine, index), atol=1e-8)


@settings(deadline=None)
@given(affines())
def test_a_code_names_each_world_axis_once_and_reordering_reaches_it(affine):
    axes = geometry.world_axes(affine)
    assert sorted(w for w, _ in axes) == [0, 1, 2]
    assert geometry.orientation(geometry.reordered(affine, SHAPE, *geometry.axes_to(affine, "SPL"))) == "SPL"


@pytest.mark.parametrize(
    "angles", [(0, 0, 45), (45, 45, 0), (45, 0, 45), (45, 45, 45), (54.735610317, 0, 45), (90, 45, 0)]
)
def test_halfway_between_two_codes_every_reordering_is_reached(angles):
    """At 45 degrees two letters are equally true; which is taken may not depend on how the array is stored."""
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    for code, target in product(CODES[::5], CODES):
        affine = geometry.make_affine((1, 2, 3), code, rotation=turn)
        moved = geometry.reordered(affine, SHAPE, *geometry.axes_to(affine, target))
        assert geometry.orientation(moved) == target


def test_sheared_grids_get_a_code_and_are_known():
    """A gantry tilt of 20 degrees: slices slide along y."""
    affine = np.array(geometry.make_affine((2.5, 0.8, 0.8), "SPL"))
    affine[1, 0] = 2.5 * np.tan(np.radians(20))
    assert geometry.is_sheared(geometry.as_affine(affine))
    assert geometry.orientation(geometry.as_affine(affine)) == "".join(nib.aff2axcodes(affine)) == "SPL"


@settings(deadline=None)
@given(affines(), st.tuples(*[st.integers(-9, 9)] * 3), st.tuples(*[st.floats(0.2, 5)] * 3))
def test_shifted_and_rescaled(affine, offset, step):
    k = np.array([[0, 0, 0], [1, 2, 3], [7, 0, -4]])
    np.testing.assert_allclose(
        geometry.to_world(geometry.shifted(affine, offset), k), geometry.to_world(affine, k + offset), atol=1e-8
    )
    scaled = geometry.rescaled(affine, step, offset)
    np.testing.assert_allclose(
        geometry.to_world(scaled, k), geometry.to_world(affine, np.array(offset) + k * np.array(step)), atol=1e-8
    )
    np.testing.assert_allclose(geometry.spacing(scaled), np.array(geometry.spacing(affine)) * step, rtol=1e-9)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3), "4x4"),
        (np.full((4, 4), np.nan), "finite"),
        (np.diag([1, 1, 1, 2]), "last row"),
        (np.diag([1, 1, 0, 1]), "three dimensions"),
        ([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "three dimensions"),
    ],
)
def test_what_is_no_affine(matrix, message):
    with pytest.raises(GeometryError, match=message):
        geometry.as_affine(matrix)


def test_affines_are_copies_and_read_only():
    mine = np.eye(4)
    affine = geometry.as_affine(mine)
    mine[0, 0] = 7
    assert affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        affine[0, 0] = 2


@pytest.mark.parametrize("code", ["", "RA", "RASS", "RRS", "RLS", "XYZ", "ras"])
def test_what_is_no_code(code):
    with pytest.raises(GeometryError, match="orientation code"):
        geometry.parse_code(code)


def test_dicom_and_itk_count_the_other_way():
    """LPS (10, 20, 30) mm is RAS (-10, -20, 30) mm (DICOM PS3.3 C.7.6.2.1.1)."""
    assert (geometry.LPS_TO_RAS @ (10, 20, 30, 1)).tolist() == [-10, -20, 30, 1]


def test_grids_are_compared_by_their_corners():
    grid = Grid((100, 200, 300), geometry.make_affine((3, 1, 1)))
    near, far = np.array(grid.affine), np.array(grid.affine)
    near[0, 2] *= 1 + 2e-5  # 299 voxels of 20 nm: 0.006 mm
    far[0, 2] *= 1 + 2e-4
    assert grid.same(Grid(grid.shape, near))
    assert not grid.same(Grid(grid.shape, far))
    assert grid != Grid(grid.shape, near)
    assert grid == Grid(grid.shape, grid.affine)
    assert hash(grid) == hash(Grid(grid.shape, grid.affine))
    assert not grid.same(Grid((100, 200, 299), grid.affine))
    assert repr(grid) == "Grid(100x200x300, 3.00x1.00x1.00 mm, SPL)"
    with pytest.raises(GeometryError):
        Grid((1, 2, 0), grid.affine)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 7)), max_size=4))
def test_bounding_box(points):
    mask = np.zeros((6, 7, 8), bool)
    for p in points:
        mask[p] = True
    box = geometry.bounding_box(mask)
    if not points:
        assert box is None
        return
    hit = np.argwhere(mask)
    assert box == tuple(zip(hit.min(0).tolist(), (hit.max(0) + 1).tolist(), strict=True))
    assert mask[geometry.slices(box)].sum() == mask.sum()
