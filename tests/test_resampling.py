"""Resampling against SciPy, torch, SimpleITK and a literal one-hot argmax."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ctfoundry import resampling
from ctfoundry.resampling import Taps, taps

STEPS = st.floats(0.1, 6).flatmap(lambda s: st.sampled_from((s, -s)))


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.floats(-5, 35), STEPS, st.integers(0, 99))
def test_linear_is_scipys(length, count, start, step, seed):
    x = np.random.default_rng(seed).normal(size=length)
    operator = taps(length, count, start, step)
    positions = start + step * np.arange(count)
    other = ndimage.map_coordinates(x, [positions], order=1, mode="nearest")
    np.testing.assert_allclose(operator.as_matrix() @ x, other, atol=1e-5)
    np.testing.assert_array_equal(operator.inside, (positions > -0.5 - 1e-6) & (positions < length - 0.5 + 1e-6))
    np.testing.assert_allclose(operator.weight.sum(axis=0), 1, atol=1e-6)


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(1, 60), st.integers(0, 99))
def test_antialiased_is_torchs(length, count, seed):
    """torch's antialiased bilinear resize keeps the field of view, as the rule does when the sizes divide it."""
    x = np.random.default_rng(seed).normal(size=(1, 1, length, 3)).astype(np.float32)
    other = torch.nn.functional.interpolate(torch.from_numpy(x), (count, 3), mode="bilinear", antialias=True)
    n, start, step = resampling.target_axis(length, 1.0, length / count, "antialias")
    assert n == count
    ours = taps(length, count, start, step, antialias=True).as_matrix() @ x[0, 0]
    np.testing.assert_allclose(ours, other[0, 0].numpy(), atol=2e-5)


@pytest.mark.parametrize("step", [1.0, 2.5, 9.0, 40.0])
def test_antialiased_counts_every_input(step):
    """A bright slice between the samples is seen, in proportion, however coarse the target is."""
    length = 200
    count, start, step = resampling.target_axis(length, 1.0, step, "antialias")
    weights = taps(length, count, start, step, antialias=True).as_matrix().sum(axis=0)
    inner = weights[int(2 * step) : length - int(2 * step)]
    np.testing.assert_allclose(inner, 1 / step, rtol=0.1)
    plain = taps(length, count, start, step).as_matrix().sum(axis=0)
    assert (plain.min() == 0) == (step > 2)


@settings(deadline=None)
@given(st.integers(2, 500), st.floats(0.3, 6), st.floats(0.3, 6))
def test_numbers_of_samples(length, old, new):
    """MONAI's and SimpleITK's rules as they are written there, and a field of view kept to half a voxel."""
    count, start, step = resampling.target_axis(length, old, new, "monai")
    assert (count, start, step) == (int(np.round((length - 1) * old / new + 1)), 0, new / old)
    count, start, step = resampling.target_axis(length, old, new, "sitk")
    assert (count, start) == (max(round(length * old / new), 1), 0)
    count, start, step = resampling.target_axis(length, old, new, "antialias")
    low, high = start - step / 2, start + step * (count - 0.5)
    assert low + high == pytest.approx(length - 1, abs=1e-9), "centred on the field of view"
    assert abs((high - low) - length) <= max(step / 2, step - length) + 1e-9


@settings(deadline=None, max_examples=40)
@given(st.tuples(*[st.integers(2, 9)] * 3), st.tuples(*[st.floats(0.5, 5)] * 3), st.integers(0, 99))
def test_three_axes_are_simpleitks_linear_resample(shape, new, seed):
    x = np.random.default_rng(seed).normal(0, 300, shape).astype(np.float32)
    axes = [resampling.target_axis(n, 1.3, s, "sitk") for n, s in zip(shape, new, strict=True)]
    ours = resampling.resample(
        torch.from_numpy(x), tuple(taps(n, *a) for n, a in zip(shape, axes, strict=True))
    ).numpy()
    image = SimpleITK.GetImageFromArray(x)
    image.SetSpacing([1.3] * 3)
    other = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(
            image,
            [a[0] for a in axes][::-1],
            SimpleITK.Transform(),
            SimpleITK.sitkLinear,
            (0, 0, 0),
            new[::-1],
            np.eye(3).ravel().tolist(),
            1e9,
        )
    )
    # SimpleITK fills beyond the last half voxel, where ours repeats the last one.
    assert ours.shape == other.shape
    inside = other < 1e8
    assert inside.any()
    np.testing.assert_allclose(ours[inside], other[inside], atol=0.02)


def test_many_axes_batches_and_dtypes():
    """Leading axes are carried along; int16 becomes float32; float64 stays; the input is not changed."""
    x = torch.randn(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ops = (taps(5, 4, 0.2, 1.1), taps(6, 9, -0.3, 0.7), taps(7, 3, 0.0, 2.5, antialias=True))
    kept = x.clone()
    ours = resampling.resample(x, ops)
    d, h, w = (torch.from_numpy(op.as_matrix()).double() for op in ops)
    torch.testing.assert_close(ours, torch.einsum("bcdhw,id,jh,kw->bcijk", x, d, h, w), atol=1e-6, rtol=1e-6)
    assert torch.equal(x, kept)
    assert resampling.resample(torch.ones(5, 6, 7, dtype=torch.int16), ops).dtype == torch.float32


@pytest.mark.parametrize("step", [1.0, 3.0, 30.0])
def test_few_and_many_taps_agree_with_the_matrix(step):
    x = torch.randn(4, 200, 3, generator=torch.Generator().manual_seed(0))
    op = taps(200, max(int(200 / step), 1), 0.3, step, antialias=True)
    other = torch.einsum("ahb,kh->akb", x, torch.from_numpy(op.as_matrix()))
    torch.testing.assert_close(resampling.apply_taps(x, op, 1), other, atol=1e-5, rtol=1e-5)


def test_identity_is_known_and_copies_nothing():
    x = torch.randn(3, 100)
    assert resampling.is_identity(taps(100, 100, 0.0, 1.0))
    assert resampling.is_identity(taps(7, 7, 0.0, 1.0, antialias=True))
    assert resampling.apply_taps(x, taps(100, 100, 0.0, 1.0), 1) is x
    for other in (taps(100, 100, 0.1, 1.0), taps(100, 99, 0.0, 1.0), taps(100, 100, 99.0, -1.0), taps(9, 9, 1.0, 1.0)):
        assert not resampling.is_identity(other)


def test_a_flip_is_a_negative_step():
    x = torch.arange(10.0)
    torch.testing.assert_close(resampling.apply_taps(x, taps(10, 10, 9.0, -1.0), 0), x.flip(0))


# ---------------------------------------------------------------------- labels


def one_hot_argmax(x, ops):
    """Every class' indicator interpolated in float64; the largest share wins, the smaller label on a tie."""
    labels = np.unique(np.append(x, 0))
    d, h, w = (op.as_matrix().astype(np.float64) for op in ops)
    shares = np.stack([np.einsum("dhw,id,jh,kw->ijk", (x == v).astype(np.float64), d, h, w) for v in labels])
    top = np.sort(shares, axis=0)
    clear = top[-1] - (top[-2] if len(labels) > 1 else 0) > 1e-5
    return labels[shares.argmax(axis=0)], clear


@settings(deadline=None, max_examples=80)
@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(1, 14)] * 3),
    st.tuples(*[st.floats(-2, 3)] * 3),
    st.tuples(*[STEPS] * 3),
    st.booleans(),
    st.sampled_from((np.uint8, np.int16, np.int32)),
    st.integers(0, 10**6),
)
def test_labels_are_a_literal_one_hot_argmax(shape, counts, starts, steps, antialias, dtype, seed):
    rng = np.random.default_rng(seed)
    values = np.array([0, 1, 2, 5, 77, 117], dtype)
    x = ndimage.zoom(rng.integers(0, 6, (3, 3, 3)), np.array(shape) / 3, order=0, grid_mode=True, mode="nearest")
    x = values[x if x.shape == shape else rng.integers(0, 6, shape)]
    ops = tuple(taps(n, m, s, t, antialias=antialias) for n, m, s, t in zip(shape, counts, starts, steps, strict=True))
    ours = resampling.resample_labels(x, ops)
    other, clear = one_hot_argmax(x, ops)
    assert ours.dtype == dtype
    assert ours.shape == counts
    np.testing.assert_array_equal(ours[clear], other[clear])
    assert set(np.unique(ours)) <= set(np.unique(x)) | {0}


def test_labels_never_gain_a_class_between_two():
    """Interpolated ids would make 50 between 0 and 100: a liver where bone meets air."""
    x = np.zeros((4, 16, 16), np.uint8)
    x[:, 4:12, 4:12] = 100
    for step in (0.37, 0.5, 1.5, 2.0):
        n = int(16 / step)
        ours = resampling.resample_labels(x, (taps(4, 4, 0, 1.0), taps(16, n, 0.1, step), taps(16, n, 0.1, step)))
        assert set(np.unique(ours)) == {0, 100}


@pytest.mark.parametrize("spacing", [0.5, 0.8, 1.0, 1.4])
def test_classes_survive_when_they_are_larger_than_a_voxel(spacing):
    """Each of 40 touching blocks of 3 voxels is still there, at its place, on a grid of up to half their size."""
    x = np.repeat(np.repeat(np.repeat(np.arange(1, 41, dtype=np.uint8).reshape(2, 4, 5), 3, 0), 3, 1), 3, 2)
    axes = [resampling.target_axis(n, 1.0, spacing, "antialias") for n in x.shape]
    ours = resampling.resample_labels(x, tuple(taps(n, *a, antialias=True) for n, a in zip(x.shape, axes, strict=True)))
    assert set(np.unique(ours)) == set(range(1, 41))
    for label in range(1, 41):
        before = np.argwhere(x == label).mean(0)
        after = np.array([a[1] for a in axes]) + spacing * np.argwhere(ours == label).mean(0)
        assert np.abs(before - after).max() <= spacing / 2 + 1e-6


def test_a_label_map_without_background():
    ops = tuple(taps(4, 8, -0.25, 0.5) for _ in range(3))
    assert (resampling.resample_labels(np.full((4, 4, 4), 3, np.uint8), ops) == 3).all()


def test_taps_are_data():
    op = taps(5, 3, 0.5, 1.5)
    assert isinstance(op, Taps)
    assert op.index.shape == op.weight.shape
    assert op.weight.dtype == np.float32
    assert op.index.min() >= 0
    assert op.index.max() < op.length == 5
