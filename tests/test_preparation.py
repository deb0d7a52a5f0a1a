"""Preparations against MONAI and literal float64 versions, their golden values, and the way back to the scan."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ctfoundry import geometry, preparation
from ctfoundry.errors import ContractError, SettingsError
from ctfoundry.preparation import PREPARATIONS, Foreground, Intensity, Preparation, Resampling, Sizing, prepare
from ctfoundry.volume import Volume

CODES = [a + b + c for order in permutations(("RL", "AP", "SI")) for a, b, c in product(*order)]


def torso(shape=(28, 50, 60), spacing=(2.5, 1.3, 1.3), code="LPS", turn=(3, -5, 8)):
    """An analytic body: no random generator, so that it is the same for ever. Rounded to whole HU, int16."""
    rotation = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    d, h, w = (np.linspace(-1, 1, n) for n in shape)
    d, h, w = d[:, None, None], h[None, :, None], w[None, None, :]
    r = (d / 0.9) ** 2 + (h / 0.7) ** 2 + ((w - 0.1) / 0.8) ** 2
    hu = np.where(r < 1, 45 + 60 * np.sin(9 * d) * np.cos(7 * h + 1) + 25 * np.sin(23 * w), -1000 - 24 * (r > 1.3))
    hu = np.where((d - 0.1) ** 2 + (h + 0.1) ** 2 + (w - 0.3) ** 2 < 0.04, -860.0, hu)
    hu = np.where((d + 0.3) ** 2 + (h - 0.4) ** 2 + (w + 0.1) ** 2 < 0.02, 1150.0, hu)
    affine = geometry.make_affine(spacing, "SPL", (12.5, -200, 31), rotation)
    return Volume(np.rint(hu).astype(np.int16), affine, "hu").reorient(code)


# ---------------------------------------------------------------------- against others


def monai_chain(volume, *steps):
    from monai.data import MetaTensor
    from monai.transforms import Compose, Orientation

    image = MetaTensor(torch.from_numpy(volume.voxels.astype(np.float32))[None], affine=np.array(volume.affine))
    return Compose([Orientation("SPL", labels=None), *steps])(image)


def crop_above(threshold, margin=0):
    from monai.transforms import CropForeground

    return CropForeground(lambda x: x > threshold, margin=margin, allow_smaller=True)


def unit():
    from monai.transforms import ScaleIntensityRange

    return ScaleIntensityRange(-1024, 2048, 0, 1, clip=True)


@pytest.mark.monai
@pytest.mark.parametrize("code", ["SPL", "LPS", "RAS", "AIR"])
@pytest.mark.parametrize(("name", "spacing"), [("ct-fm", (3, 1, 1)), ("ct-fm-tiny", (6, 2, 2))])
def test_ct_fm_is_monais_chain(name, spacing, code):
    from monai.transforms import Spacing

    volume = torso(code=code)
    other = monai_chain(volume, crop_above(0), Spacing(spacing, mode="bilinear"), unit())
    ours = prepare(preparation.preparation(name), volume)
    assert ours.x.shape == other.shape
    assert (ours.x - other.as_tensor()).abs().max() < 1e-4
    np.testing.assert_allclose(ours.affine, other.affine.numpy(), atol=1e-4)
    assert ours.valid.all()


@pytest.mark.monai
@pytest.mark.parametrize("code", ["SPL", "RAS"])
def test_ct_fm_native_is_monais_chain(code):
    volume = torso(code=code)
    other = monai_chain(volume, unit(), crop_above(0))
    ours = prepare(preparation.preparation("ct-fm-native"), volume)
    assert ours.x.shape == other.shape
    assert (ours.x - other.as_tensor()).abs().max() < 1e-6
    np.testing.assert_allclose(ours.affine, other.affine.numpy(), atol=1e-4)


@pytest.mark.monai
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (2.5, 1.3, 1.3)])
def test_ct_fm_segmentation_is_monais_chain(spacing):
    """Crop with margin 10 after scaling, 1.5 mm, padded with zeros to multiples of 16, the end getting the odd voxel."""
    from monai.transforms import DivisiblePad, Spacing

    volume = torso(spacing=spacing)
    other = monai_chain(
        volume, crop_above(-1024, margin=10), Spacing((1.5,) * 3, mode="bilinear"), unit(), DivisiblePad(16)
    )
    ours = prepare(preparation.preparation("ct-fm-1.5mm"), volume)
    assert ours.x.shape == other.shape
    assert (ours.x - other.as_tensor()).abs().max() < 1e-4
    np.testing.assert_allclose(ours.affine, other.affine.numpy(), atol=1e-4)
    assert (ours.x[0][~ours.valid] == 0).all()
    assert 0 < ours.valid.sum() < ours.valid.numel()


def z(x, axes):
    """The z-score of FlexiCT's loaders, literally, in float64: unbiased deviation, centred only when it is under 1e-6."""
    mean = x.mean(axes, keepdims=True)
    deviation = x.std(axes, keepdims=True, ddof=1)
    return (x - mean) / np.where(deviation < 1e-6, 1, deviation)


def test_flexict_2d_is_a_literal_z_score_of_each_slice():
    volume = torso(shape=(9, 50, 60))
    turned = volume.reorient("SPL")
    voxels = turned.voxels.copy()
    voxels[4] = -1024  # a slice of one value is only centred
    expected = z(np.clip(voxels.astype(np.float64), -1000, 1000), (1, 2))
    ours = prepare(preparation.preparation("flexict-2d"), turned.with_voxels(voxels))
    assert ours.x.shape == (1, 9, 56, 64)
    np.testing.assert_allclose(ours.x[0][:, 3:53, 2:62].numpy(), expected, atol=2e-6)
    assert (ours.x[0][4][3:53, 2:62] == 0).all()
    assert (ours.x[0][~ours.valid] == float(expected.astype(np.float32).min())).all()
    np.testing.assert_allclose(ours.affine[:3, 3], turned.world((0, -3, -2)), atol=1e-9)


def test_flexict_3d_is_simpleitk_and_a_literal_z_score():
    volume = torso().reorient("SPL")
    image = SimpleITK.GetImageFromArray(volume.voxels.astype(np.float64))
    image.SetSpacing(volume.spacing[::-1])
    size = [round(n * s / 2) for n, s in zip(volume.shape, volume.spacing, strict=True)]
    # Beyond the last half voxel SimpleITK fills; ours, like a border, repeats the last one: pad its input so.
    edge = SimpleITK.GetImageFromArray(np.pad(volume.voxels.astype(np.float64), ((0, 2),) * 3, mode="edge"))
    edge.SetSpacing(volume.spacing[::-1])
    other = SimpleITK.Resample(
        edge,
        size[::-1],
        SimpleITK.Transform(),
        SimpleITK.sitkLinear,
        (0, 0, 0),
        (2, 2, 2),
        np.eye(3).ravel().tolist(),
        -1024,
    )
    expected = z(np.clip(SimpleITK.GetArrayFromImage(other), -1000, 1000), (0, 1, 2))
    ours = prepare(preparation.preparation("flexict-3d"), volume)
    assert ours.x.shape == (1, 160, 160, 160)
    inner = geometry.bounding_box(ours.valid.numpy())
    assert tuple(b - a for a, b in inner) == tuple(size)
    assert [a for a, _ in inner] == [(160 - n) // 2 for n in size]
    got = ours.x[0][geometry.slices(inner)].numpy()
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert (ours.x[0][~ours.valid] == ours.x.min()).all()
    assert ours.x.min() == got.min()


@pytest.mark.parametrize("stack", ["axis0", "channel"])
def test_head_ct_windows(stack):
    """Blood, subdural, stroke and bone windows (ct-fm.md section 2), each to 0..1, literally."""
    windows = ((0.0, 80.0), (-125.0, 175.0), (28.0, 36.0), (-900.0, 2100.0))
    volume = torso().reorient("SPL")
    prep = Preparation(
        "head", 1, intensity=Intensity((-1024.0, 3000.0), windows, stack=stack), sizing=Sizing(multiple=(16, 1, 1))
    )
    ours = prepare(prep, volume)
    hu = volume.voxels.astype(np.float64)
    expected = np.stack([np.clip((hu - low) / (high - low), 0, 1) for low, high in windows])
    x = ours.x.reshape(4, 32, *volume.shape[1:])
    np.testing.assert_allclose(x[:, 2:30].numpy(), expected, atol=1e-6)
    assert (x[:, :2] == 0).all()
    assert (x[:, 30:] == 0).all()
    assert ours.x.shape == ((1, 128, 50, 60) if stack == "axis0" else (4, 32, 50, 60))
    assert ours.valid.shape == (32, 50, 60)


@pytest.mark.monai
@pytest.mark.parametrize("name", ["ct-fm-head", "suprem-head", "ct-fm-head-tiny"])
def test_head_triage_is_monais(name):
    """The published chain on a phantom head: foreground of HU > 0, spacing, four copies windowed, padded and cropped, joined."""
    from monai.data import MetaTensor
    from monai.transforms import CenterSpatialCrop, Compose, Orientation, ScaleIntensityRange, Spacing, SpatialPad

    from ctfoundry import phantom
    from ctfoundry.keys import Key

    prep = PREPARATIONS[name]
    volume = phantom.make(phantom.draw(Key.of("head", 3), view="head", voxel_mm=3.0)).ct
    image = MetaTensor(torch.from_numpy(volume.voxels.astype(np.float32))[None], affine=np.array(volume.affine))
    code, size = prep.resampling.orientation, prep.sizing.crop
    x = Compose([Orientation(code, labels=None), crop_above(0), Spacing(prep.resampling.spacing, mode="bilinear")])(
        image
    )
    parts = []
    for low, high in ((0, 80), (-125, 175), (28, 36), (-900, 2100)):
        part = ScaleIntensityRange(low, high, 0, 1, clip=True)(x)
        parts.append(CenterSpatialCrop(size)(SpatialPad(size, constant_values=float(part.min()))(part)))
    expected = torch.cat([part.as_tensor() for part in parts], 1)
    ours = prepare(prep, volume).x
    assert ours.shape == expected.shape == (1, 4 * size[0], *size[1:])
    assert ours.std() > 0.1
    # windows of 8 HU magnify a rounding of 1e-4 HU
    torch.testing.assert_close(ours, expected.float(), atol=2e-4, rtol=0)


def test_a_shape_without_preparing():
    for name, prep in PREPARATIONS.items():
        if name != "flexict-3d":
            assert preparation.prepared_shape(prep, torso()) == tuple(prepare(prep, torso()).valid.shape)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("norm", ["z-volume", "z-slice"])
def test_z_scores_are_float64_inside(norm, ddof):
    """A large volume far from zero: sums in float32 would lose the deviation."""
    x = torch.full((20, 200, 200), 900.0) + 0.01 * torch.randn(20, 200, 200, generator=torch.Generator().manual_seed(0))
    ours = preparation.scale(x, Intensity((-1000.0, 1000.0), norm=norm, ddof=ddof)).double().numpy()
    y = x.double().numpy()
    axes = (0, 1, 2) if norm == "z-volume" else (1, 2)
    expected = (y - y.mean(axes, keepdims=True)) / y.std(axes, keepdims=True, ddof=ddof)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.monai
@pytest.mark.parametrize("at", ["centre", "end"])
def test_sizing_is_monais_pad_and_crop(at):
    from monai.transforms import CenterSpatialCrop, SpatialCrop, SpatialPad

    hu = torch.arange(7 * 10 * 13, dtype=torch.float32).reshape(7, 10, 13).numpy()
    volume = Volume(hu.astype(np.int16), geometry.make_affine((3, 1, 2)), "hu")
    sizing = Sizing(minimum=(12, 4, 4), crop=(9, 7, 20), at=at)
    ours = prepare(Preparation("s", 1, sizing=sizing), volume)
    x = SpatialPad((12, 10, 13), method="symmetric" if at == "centre" else "end")(
        (torch.from_numpy(hu)[None] + 1024) / 3072
    )
    x = CenterSpatialCrop((9, 7, 13))(x) if at == "centre" else SpatialCrop(roi_start=(0, 0, 0), roi_end=(9, 7, 13))(x)
    torch.testing.assert_close(ours.x, x.as_tensor(), atol=1e-6, rtol=0)
    # Every voxel that was kept is where it was in the patient.
    first = np.argwhere(ours.valid.numpy())[0]
    value = round(float(ours.x[0][tuple(first)]) * 3072 - 1024)
    np.testing.assert_allclose(
        geometry.to_world(ours.affine, first), volume.world(np.argwhere(volume.voxels == value)[0]), atol=1e-9
    )


# ---------------------------------------------------------------------- golden values

GOLDEN = {
    ("ct-fm", 1): (
        (1, 20, 44, 62),
        (2.0558, -212.2199, 34.4122),
        (0.18473, 0.167039),
        (0.34993, 0.35851, 0.15551, 0.05339, 0.33282, 0.24852, 0.0),
    ),
    ("ct-fm-1.5mm", 1): (
        (1, 48, 48, 64),
        (21.0664, -195.6915, 30.4486),
        (0.061079, 0.129142),
        (0.34194, 0.35564, 0.36925, 0.06906, 0.34563, 0.3571, 0.0),
    ),
    ("ct-fm-0.8mm", 1): (
        (1, 80, 96, 112),
        (17.6942, -193.3056, 25.8111),
        (0.055195, 0.124157),
        (0.34626, 0.36054, 0.37009, 0.05339, 0.34968, 0.35671, 0.0),
    ),
    ("ct-fm-native", 1): (
        (1, 28, 40, 54),
        (5.738, -207.5052, 29.9813),
        (0.118927, 0.16502),
        (0.35124, 0.36133, 0.36979, 0.05339, 0.33366, 0.05339, 0.0),
    ),
    ("ct-fm-tiny", 1): (
        (1, 11, 22, 32),
        (2.0558, -212.2199, 34.4122),
        (0.165411, 0.167681),
        (0.34581, 0.35502, 0.24954, 0.05339, 0.32694, 0.05339, 0.0),
    ),
    ("suprem", 1): (
        (1, 56, 48, 48),
        (-56.4343, -276.872, 19.0839),
        (0.092622, 0.201432),
        (0.53164, 0.0, 0.54617, 0.53564, 0.45097, 0.42744, 0.0),
    ),
    ("flexict-2d", 1): (
        (1, 28, 56, 64),
        (14.5053, -195.7853, 31.4299),
        (-0.137333, 0.902291),
        (1.15655, 1.20393, 1.41426, -0.54669, 1.18118, 1.31513, 0.0),
    ),
    ("flexict-tiny", 1): (
        (1, 24, 16, 24),
        (21.3389, -198.1236, 19.7593),
        (-0.240355, 0.820653),
        (1.66723, 1.74687, 1.77799, 1.70579, 1.65273, 1.77898, -0.58663),
    ),
    ("flexict-3d", 1): (
        (1, 160, 160, 160),
        (122.2963, -48.9349, -75.2267),
        (-0.578948, 0.119485),
        (1.77864, 1.80918, 1.90161, -0.253, 1.77697, 1.83496, -0.58519),
    ),
    ("ct-fm-head", 1): (
        (1, 192, 128, 128),
        (88.6504, -88.3983, -41.229),
        (0.002639, 0.043058),
        (0.35577, 0.83173, 0.0, 0.0, 0.0, 0.0, 0.0),
    ),
    ("ct-fm-head-tiny", 1): (
        (1, 96, 64, 64),
        (88.1483, -91.0142, -31.385),
        (0.002751, 0.04378),
        (0.9625, 0.76612, 1.0, 0.0, 0.0, 0.0, 0.0),
    ),
    ("suprem-head", 1): (
        (1, 512, 128, 48),
        (-124.4548, -375.4005, -76.5778),
        (0.002645, 0.043111),
        (0.54519, 0.0, 0.44327, 0.70481, 0.13462, 0.70673, 0.0),
    ),
}
"""(name, version): shape, origin in mm, mean and deviation of x, and x at seven places, of `torso()`.

When a change makes this test fail, the result of a preparation has changed: features made before and after it must not be
mixed, and caches must not be reused. If the change is meant, give the preparation the next version in `PREPARATIONS` and add
its row here (the test prints it); never edit a row.
"""


def summary(prepared):
    x = prepared.x.double()
    box = geometry.bounding_box(prepared.valid.numpy())
    places = [tuple(int(a + f * (b - a - 1)) for (a, b), f in zip(box, at, strict=True)) for at in _PLACES]
    return (
        tuple(x.shape),
        tuple(round(float(v), 4) for v in prepared.affine[:3, 3]),
        (round(float(x.mean()), 6), round(float(x.std()), 6)),
        tuple(round(float(x[0][p]), 5) for p in places),
    )


_PLACES = [
    (0.5, 0.5, 0.5),
    (0.4, 0.6, 0.5),
    (0.6, 0.45, 0.52),
    (0.55, 0.5, 0.6),
    (0.45, 0.52, 0.4),
    (0.52, 0.4, 0.55),
    (0, 0, 0),
]


@pytest.mark.parametrize("name", sorted(PREPARATIONS))
def test_golden_values(name):
    prep = PREPARATIONS[name]
    got = summary(prepare(prep, torso()))
    row = f"    ({name!r}, {prep.version}): {got},"
    assert (name, prep.version) in GOLDEN, f"a new version needs its row:\n{row}"
    shape, origin, moments, values = GOLDEN[name, prep.version]
    same = shape == got[0] and all(
        np.allclose(a, b, rtol=0, atol=3e-5) for a, b in zip((origin, moments, values), got[1:], strict=True)
    )
    assert same, (
        f"the result of {name!r} changed: raise its version and add the row\n{row}\nVersion {prep.version} gave {GOLDEN[name, prep.version]}"
    )


# ---------------------------------------------------------------------- and back


def world_of(affine, shape):
    return geometry.to_world(affine, np.moveaxis(np.indices(shape), 0, -1))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(CODES),
    st.sampled_from(sorted(PREPARATIONS)),
    st.tuples(*[st.floats(-40, 40)] * 3),
    st.tuples(st.floats(1, 4), st.floats(0.8, 3), st.floats(0.8, 3)),
)
def test_a_map_comes_back_to_its_millimetres(code, name, turn, spacing):
    """A map that holds at each prepared voxel a linear function of its world point holds it on the scan's voxels too."""
    volume = torso((14, 20, 22), spacing, code, turn)
    prep = PREPARATIONS[name]
    if name == "flexict-3d":
        prep = replace(prep, sizing=Sizing(minimum=(40, 40, 40), multiple=(8, 8, 8), pad="min"))
    prepared = prepare(prep, volume)
    plane = np.array([0.5, -0.8, 1.1])
    back = prepared.restore(torch.from_numpy(world_of(prepared.affine, prepared.valid.shape) @ plane).float())
    assert back.grid == volume.grid
    assert back.kind == "other"
    index = geometry.to_index(prepared.affine, world_of(volume.affine, volume.shape))
    inside = ((index >= 0) & (index <= np.array(prepared.valid.shape) - 1)).all(-1)
    assert inside.mean() > 0.2
    wrong = np.abs(back.voxels - world_of(volume.affine, volume.shape) @ plane)
    assert wrong[inside].max() < 0.01
    if back.valid is not None:
        assert back.valid[inside].all()
        assert (back.voxels[~back.valid] == 0).all()


@pytest.mark.parametrize("name", sorted(set(PREPARATIONS) - {"flexict-3d"}))
@pytest.mark.parametrize("code", ["SPL", "LPS", "AIR"])
def test_labels_come_back_to_the_scan(name, code):
    """The bone ball, thresholded in the prepared tensor, is restored within half a voxel and with its own label only."""
    volume = torso(code=code)
    prepared = prepare(PREPARATIONS[name], volume)
    if name.startswith(("flexict", "suprem")) or "head" in name:
        # whose scale is another in each slice or scan, ends below bone, or is four windows
        bright = prepare(replace(PREPARATIONS[name], intensity=Intensity()), volume).x[0] > 0.6
    else:
        bright = prepared.x[0] > 0.6
    labels = prepared.restore(bright.to(torch.int16) * 117, order=0)
    assert labels.kind == "label"
    assert labels.grid == volume.grid
    assert set(np.unique(labels.voxels)) == {0, 117}
    expected = volume.world(np.argwhere(volume.voxels > 820)).mean(0)
    found = labels.world(np.argwhere(labels.voxels == 117)).mean(0)
    assert np.linalg.norm(found - expected) < 0.5 * max(*volume.spacing, *geometry.spacing(prepared.affine))


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 60)] * 3), st.tuples(*[st.integers(1, 16)] * 3), st.data())
def test_padding_is_centred_and_reaches_its_size(shape, multiple, data):
    minimum = data.draw(st.none() | st.tuples(*[st.integers(1, 70)] * 3))
    at = data.draw(st.sampled_from(("centre", "end")))
    offset, size = preparation.padding(shape, Sizing(minimum, multiple, at=at))
    for n, o, s, m, low in zip(shape, offset, size, multiple, minimum or (1, 1, 1), strict=True):
        assert s % m == 0
        assert s >= max(n, low)
        assert s - m < max(n, low)
        before, after = -o, s + o - n
        assert before == (0 if at == "end" else (s - n) // 2)
        assert after >= before or at == "end"


def test_a_placement_reads_no_more_and_no_less_than_it_needs():
    """Voxels outside `reads` may be anything; each slice inside it counts for some voxel of the box."""
    volume = torso().reorient("SPL")
    settings = Resampling(spacing=(3.0, 1.0, 2.1), rule="antialias", foreground=Foreground(0.0))
    kept = preparation.foreground_box(volume.voxels, settings.foreground)
    placed = preparation.place(settings, volume.grid, kept)
    box = ((2, 9), (10, 30), (3, 17))
    reads = placed.reads(box)
    assert all(k[0] <= r[0] < r[1] <= k[1] for k, r in zip(kept, reads, strict=True))
    for op, (low, high) in zip(placed.operators(box, reads), reads, strict=True):
        used = op.as_matrix().any(axis=0)
        assert used.shape == (high - low,)
        assert used[1:-1].all()


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kind", "advice"), [("label", "not its label map"), ("other", "convert it to Hounsfield units")]
)
@pytest.mark.parametrize("name", sorted(PREPARATIONS))
def test_what_is_no_ct_is_refused(name, kind, advice):
    volume = replace(torso(), kind=kind, source="public-1")
    with pytest.raises(
        ContractError, match=rf"public-1: preparation '{name}' takes hu, this volume is '{kind}'\n.*{advice}"
    ):
        prepare(PREPARATIONS[name], volume)


def test_other_kinds_pass_where_they_are_listed():
    prep = Preparation("mr", 1, accepts=("other",), intensity=Intensity((0.0, 100.0)))
    volume = Volume(np.full((3, 4, 5), 50, np.uint8), geometry.make_affine(), "other")
    assert (prepare(prep, volume).x == 0.5).all()
    with pytest.raises(ContractError, match="takes other"):
        prepare(prep, torso())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused(bad):
    volume = torso()
    voxels = volume.voxels.astype(np.float32)
    voxels[3, 4, 5] = voxels[6, 7, 8] = bad
    with pytest.raises(ContractError, match="2 voxels are NaN or infinite"):
        prepare(PREPARATIONS["ct-fm"], volume.with_voxels(voxels))


def test_too_large_is_refused_before_anything_is_made(monkeypatch):
    """A header may say 0.001 mm; the tensor's size is known before it is allocated."""
    affine = geometry.make_affine((3000, 1000, 1000))
    volume = Volume(np.full((20, 20, 20), 5, np.int16), affine, "hu")
    monkeypatch.setattr(torch, "from_numpy", lambda *_: pytest.fail("voxels were touched"))
    with pytest.raises(ContractError, match=r"would take \d+ GiB.*\n.*coarser"):
        prepare(PREPARATIONS["ct-fm"], volume)


def test_unknown_preparations_name_the_nearest():
    with pytest.raises(SettingsError, match=r"'ct-fm-2mm'; the nearest known one is 'ct-fm"):
        preparation.preparation("ct-fm-2mm")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"clip": (5.0, 5.0)},
        {"windows": ((80.0, 0.0),)},
        {"windows": ((0.0, 80.0), (1.0, 2.0))},
        {"windows": ((0.0, 80.0),), "stack": "axis0"},
    ],
)
def test_intensities_that_mean_nothing(kwargs):
    with pytest.raises(ValueError, match="window"):
        Intensity(**kwargs)


def test_air_of_a_z_score_is_unknown():
    prep = Preparation("z", 1, intensity=Intensity(norm="z-volume"), sizing=Sizing(multiple=(64, 64, 64)))
    with pytest.raises(ContractError, match="pad='min'"):
        prepare(prep, torso())


# ---------------------------------------------------------------------- fill


def test_fill_becomes_air_and_is_invalid():
    volume = torso(code="SPL")
    valid = np.ones(volume.shape, bool)
    valid[:, :10] = False
    voxels = volume.voxels.copy()
    voxels[:, :10] = 3000
    filled = replace(volume.with_voxels(voxels), valid=valid)
    ours = prepare(replace(PREPARATIONS["ct-fm-native"], resampling=Resampling()), filled)
    assert (ours.x[0][:, :10] == 0).all()
    assert torch.equal(ours.valid, torch.from_numpy(valid))
    torch.testing.assert_close(ours.x[0][:, 10:], (torch.from_numpy(volume.voxels[:, 10:]).float() + 1024) / 3072)


@pytest.mark.parametrize("name", ["ct-fm", "ct-fm-1.5mm", "flexict-3d"])
def test_fill_is_mixed_into_no_neighbour_and_is_no_foreground(name):
    """What a scanner wrote outside its field of view (here 3000 HU) does not matter at all."""
    volume = torso(code="SPL")
    valid = np.ones(volume.shape, bool)
    valid[:, :12] = valid[:, :, 50:] = False
    one, two = (
        prepare(
            PREPARATIONS[name],
            replace(volume.with_voxels(np.where(valid, volume.voxels, fill).astype(np.int16)), valid=valid),
        )
        for fill in (-1024, 3000)
    )
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.valid, two.valid)


def test_a_scan_of_nothing_but_air_is_prepared_whole():
    volume = Volume(np.full((6, 7, 8), -1024, np.int16), geometry.make_affine((3, 1, 1)), "hu")
    ours = prepare(PREPARATIONS["ct-fm"], volume)
    assert ours.x.shape == (1, 6, 7, 8)
    assert (ours.x == 0).all()
