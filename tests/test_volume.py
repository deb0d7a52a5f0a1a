"""Volumes keep their world points, whatever is done to them."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ctfoundry import geometry
from ctfoundry.errors import GeometryError
from ctfoundry.geometry import Grid
from ctfoundry.volume import AIR, Volume

CODES = [a + b + c for order in permutations(("RL", "AP", "SI")) for a, b, c in product(*order)]
PLANE = np.array([0.7, -1.3, 2.1])
"""HU per millimetre of a ramp: linear interpolation keeps it exactly, so any wrong affine shows in the values."""


def ramp(affine, shape, kind="hu"):
    """A volume whose voxel values are a linear function of where they lie in the world."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    return Volume((geometry.to_world(affine, index) @ PLANE).astype(np.float32), affine, kind)


def misplacement(volume, margin=0):
    """Largest difference between voxels and what their world points say, in HU."""
    inner = tuple(slice(margin, n - margin) for n in volume.shape)
    expected = ramp(volume.affine, volume.shape).voxels
    return float(np.abs(volume.voxels - expected)[inner].max())


def affines(max_degrees=180.0):
    def build(code, spacing, angles, origin):
        turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        return geometry.make_affine(spacing, code, origin, turn)

    return st.builds(
        build,
        st.sampled_from(CODES),
        st.tuples(*[st.floats(0.4, 5)] * 3),
        # whole micro-degrees: ITK's SVD of a direction matrix fails on subnormal numbers
        st.tuples(*[st.floats(-max_degrees, max_degrees).map(lambda angle: round(angle, 6))] * 3),
        st.tuples(*[st.floats(-300, 300)] * 3),
    )


SHAPES = st.tuples(*[st.integers(1, 9)] * 3)


@settings(deadline=None)
@given(affines(), SHAPES, st.sampled_from(CODES))
def test_reorient_keeps_world_points(affine, shape, code):
    turned = ramp(affine, shape).reorient(code)
    assert turned.orientation == code
    assert misplacement(turned) < 1e-2
    np.testing.assert_array_equal(np.sort(turned.voxels.ravel()), np.sort(ramp(affine, shape).voxels.ravel()))


@settings(deadline=None)
@given(affines(), SHAPES, st.sampled_from(CODES))
def test_reorient_and_back_is_the_same(affine, shape, code):
    volume = ramp(affine, shape)
    back = volume.reorient(code).reorient(volume.orientation)
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    assert back.grid.same(volume.grid)


@settings(deadline=None)
@given(affines(), st.data())
def test_crop_and_pad_keep_world_points(affine, data):
    shape = data.draw(SHAPES)
    box = tuple(sorted((data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1)))) for n in shape)
    box = tuple((a, b + 1) for a, b in box)
    before, after = data.draw(st.tuples(*[st.integers(0, 4)] * 3)), data.draw(st.tuples(*[st.integers(0, 4)] * 3))
    cropped = ramp(affine, shape).crop(box)
    assert misplacement(cropped) < 1e-2
    padded = cropped.pad(before, after)
    assert padded.shape == tuple(n + a + b for n, a, b in zip(cropped.shape, before, after, strict=True))
    if padded.valid is None:
        assert not any((*before, *after))
        return
    assert padded.valid.sum() == cropped.voxels.size
    assert (padded.voxels[~padded.valid] == AIR).all()
    inner = geometry.bounding_box(padded.valid)
    back = padded.crop(inner)
    np.testing.assert_array_equal(back.voxels, cropped.voxels)
    np.testing.assert_allclose(back.affine, cropped.affine, atol=1e-9)


@settings(deadline=None)
@given(
    affines(),
    st.tuples(*[st.integers(6, 14)] * 3),
    st.tuples(*[st.floats(0.5, 6) | st.none()] * 3),
    st.sampled_from(("monai", "sitk", "antialias")),
)
def test_resample_keeps_world_points(affine, shape, spacing, rule):
    """Inside, away from the borders where samples repeat the last voxel or the triangle is cut, a ramp stays that ramp."""
    volume = ramp(affine, shape)
    got = volume.resample(spacing, rule)
    wanted = [new or old for new, old in zip(spacing, volume.spacing, strict=True)]
    np.testing.assert_allclose(got.spacing, wanted, rtol=1e-9)
    index = volume.index(got.world(np.moveaxis(np.indices(got.shape), 0, -1)))
    reach = [
        max(new / old, 1.0) if rule == "antialias" else 0.0 for new, old in zip(wanted, volume.spacing, strict=True)
    ]
    inside = ((index >= np.array(reach) - 1e-6) & (index <= np.array(shape) - 1 - reach + 1e-6)).all(-1)
    wrong = np.abs(got.voxels - ramp(got.affine, got.shape).voxels)
    scale = max(float(np.abs(volume.voxels).max()), 1.0)
    if rule != "antialias" or all(w <= s for w, s in zip(wanted, volume.spacing, strict=True)):
        assert wrong[inside].max(initial=0) < 1e-5 * scale + 1e-2
    else:  # a triangle that samples whole voxels is not quite symmetric: up to an eighth of a voxel's ramp
        steps = np.abs(PLANE @ affine[:3, :3]).sum()
        assert wrong[inside].max(initial=0) < 1e-5 * scale + 0.13 * steps


@pytest.mark.parametrize("rule", ["monai", "sitk", "antialias"])
@pytest.mark.parametrize("code", CODES)
def test_a_structures_centroid_stays_in_all_48_orders(code, rule):
    rotation = Rotation.from_euler("xyz", (4, -7, 11), degrees=True).as_matrix()
    affine = geometry.make_affine((2.0, 1.0, 1.2), code, (5, -30, 200), rotation)
    index = np.moveaxis(np.indices((20, 40, 36)), 0, -1)
    blob = 1000 * np.exp(-0.5 * (((index - (9.3, 21.2, 16.8)) * (2.0, 1.0, 1.2)) ** 2).sum(-1) / 5**2)
    volume = Volume(blob.astype(np.float32), affine)

    def centroid(v):
        w = v.voxels.astype(np.float64)
        return (v.world(np.moveaxis(np.indices(v.shape), 0, -1)) * w[..., None]).sum((0, 1, 2)) / w.sum()

    got = volume.reorient("SPL").resample((1.5, 2.0, 1.7), rule)
    np.testing.assert_allclose(centroid(got), centroid(volume), atol=0.05)


@settings(deadline=None, max_examples=50)
@given(affines(40), st.tuples(*[st.integers(4, 10)] * 3), st.tuples(*[st.floats(0.6, 3)] * 3))
def test_sitk_rule_is_simpleitks_resample_on_oblique_grids(affine, shape, spacing):
    """SimpleITK gets the whole LPS geometry, so its result checks values and affine at once."""
    volume = Volume(np.random.default_rng(0).normal(0, 300, shape).astype(np.float32), affine)
    ours = volume.resample(spacing, "sitk")
    lps = geometry.LPS_TO_RAS @ affine
    columns = lps[:3, [2, 1, 0]]
    image = SimpleITK.GetImageFromArray(volume.voxels)
    image.SetSpacing(volume.spacing[::-1])
    image.SetDirection((columns / np.linalg.norm(columns, axis=0)).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    new = (geometry.LPS_TO_RAS @ ours.affine)[:3]
    other = SimpleITK.Resample(
        image,
        list(ours.shape[::-1]),
        SimpleITK.Transform(),
        SimpleITK.sitkLinear,
        new[:, 3].tolist(),
        ours.spacing[::-1],
        (new[:, [2, 1, 0]] / np.linalg.norm(new[:, [2, 1, 0]], axis=0)).ravel().tolist(),
        1e9,
    )
    other = SimpleITK.GetArrayFromImage(other)
    inside = other < 1e8
    assert inside.mean() > 0.2
    np.testing.assert_allclose(ours.voxels[inside], other[inside], atol=0.05)


@pytest.mark.monai
@pytest.mark.parametrize("code", ["SPL", "RAS", "LPI"])
@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (1.5, 1.5, 1.5), (6.0, 2.0, 2.0), (0.7, 0.5, 3.3)])
def test_monai_rule_is_monais_spacing(code, spacing):
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    rotation = Rotation.from_euler("xyz", (4, -7, 11), degrees=True).as_matrix()
    affine = geometry.make_affine((2.5, 0.8, 0.9), code, (5, -30, 200), rotation)
    volume = Volume(np.random.default_rng(0).normal(0, 300, (17, 40, 33)).astype(np.float32), affine)
    ours = volume.resample(spacing, "monai")
    other = Spacing(spacing, mode="bilinear")(
        MetaTensor(torch.from_numpy(volume.voxels)[None], affine=np.array(affine))
    )
    assert ours.shape == tuple(other.shape[1:])
    np.testing.assert_allclose(ours.affine, other.affine.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.voxels, other[0].numpy(), atol=0.02)


@settings(deadline=None)
@given(affines(), st.tuples(*[st.integers(5, 10)] * 3), st.sampled_from(CODES), st.data())
def test_onto_a_parallel_grid_keeps_world_points(affine, shape, code, data):
    """Any order, direction, finer spacing and shift of the axes; what lies outside is air and invalid."""
    volume = ramp(affine, shape)
    turned = volume.reorient(code)
    step = data.draw(st.tuples(*[st.floats(0.3, 1)] * 3))
    start = data.draw(st.tuples(*[st.floats(-3, 3)] * 3))
    grid = Grid(data.draw(SHAPES), geometry.rescaled(turned.affine, step, start))
    got = volume.onto(grid)
    assert got.grid == grid
    index = volume.index(got.world(np.moveaxis(np.indices(grid.shape), 0, -1)))
    outside = ((index < -0.5 - 1e-3) | (index > np.array(shape) - 0.5 + 1e-3)).any(-1)
    within = ((index >= -1e-6) & (index <= np.array(shape) - 1 + 1e-6)).all(-1)
    wrong = np.abs(got.voxels - ramp(grid.affine, grid.shape).voxels)
    assert wrong[within].max(initial=0) < 1e-5 * np.abs(volume.voxels).max() + 1e-2
    assert (got.voxels[outside] == AIR).all()
    if got.valid is None:
        assert not outside.any()
    else:
        assert not got.valid[outside].any()
        assert got.valid[within].all()


def test_onto_a_turned_grid_is_refused():
    volume = ramp(geometry.make_affine((1, 1, 1)), (20, 20, 20))
    turn = Rotation.from_euler("z", 3, degrees=True).as_matrix()
    with pytest.raises(GeometryError, match="turned against each other"):
        volume.onto(Grid((20, 20, 20), geometry.make_affine((1, 1, 1), rotation=turn)))


def test_labels_are_resampled_as_classes_and_keep_names():
    voxels = np.zeros((8, 16, 16), np.uint8)
    voxels[2:6, 4:12, 4:12] = 100
    volume = Volume(voxels, geometry.make_affine((2, 1, 1)), "label", names={100: "liver"})
    for got in (volume.resample((1.3, 0.7, 1.9)), volume.onto(ramp(geometry.make_affine((1, 2, 1)), (9, 9, 9)).grid)):
        assert got.voxels.dtype == np.uint8
        assert set(np.unique(got.voxels)) == {0, 100}
        assert got.names == {100: "liver"}
        assert got.kind == "label"
    size = volume.voxels.astype(bool).sum() * 2.0
    assert volume.resample((1.3, 0.7, 1.9)).voxels.astype(bool).sum() * 1.3 * 0.7 * 1.9 == pytest.approx(size, rel=0.2)


def test_valid_masks_travel_along():
    valid = np.zeros((6, 8, 10), bool)
    valid[1:5, 2:6, 3:9] = True
    volume = Volume(np.zeros((6, 8, 10), np.int16), geometry.make_affine((3, 1, 1), "RAS"), valid=valid)

    def box_mm(v):
        index = np.argwhere(v.valid)
        return np.sort(v.world(np.stack([index.min(0) - 0.5, index.max(0) + 0.5])), axis=0)

    for got in (volume.reorient("SPL"), volume.crop(((0, 6), (1, 8), (2, 10))), volume.pad((1, 0, 2), (0, 3, 0))):
        np.testing.assert_allclose(box_mm(got), box_mm(volume), atol=1e-6)
    np.testing.assert_allclose(box_mm(volume.resample((1.5, 0.5, 0.5))), box_mm(volume), atol=1.0)


def test_what_is_no_volume():
    eye = geometry.make_affine()
    for args, message in (
        ((np.zeros((2, 2)), eye), "three axes"),
        ((np.zeros((2, 0, 2)), eye), "three axes"),
        ((np.zeros((2, 2, 2)), eye, "label"), "whole numbers"),
        ((np.zeros((2, 2, 2)), np.zeros((4, 4))), "last row"),
        ((np.zeros((2, 2, 2)), eye, "hu", None, np.ones((1, 2, 2), bool)), "valid mask"),
    ):
        with pytest.raises(GeometryError, match=message):
            Volume(*args)
    volume = Volume(np.zeros((4, 5, 6), np.int16), eye)
    for box in (((0, 5), (0, 5), (0, 6)), ((-1, 2), (0, 5), (0, 6)), ((2, 2), (0, 5), (0, 6))):
        with pytest.raises(GeometryError, match="does not lie within"):
            volume.crop(box)
    with pytest.raises(GeometryError, match="not negative"):
        volume.pad((-1, 0, 0), (0, 0, 0))
    with pytest.raises(GeometryError, match="new voxels"):
        volume.with_voxels(np.zeros((1, 2, 3)))


def test_repr_is_geometry_first():
    volume = Volume(np.full((4, 5, 6), 7, np.int16), geometry.make_affine((3, 0.5, 1), "RAS"))
    assert repr(volume) == "Volume(hu int16, 4x5x6, 3.00x0.50x1.00 mm, RAS, 7..7 HU)"
    assert repr(Volume(np.eye(3, dtype=np.uint8)[None], geometry.make_affine(), "label")).endswith("2 labels)")
