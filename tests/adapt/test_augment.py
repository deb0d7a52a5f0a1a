"""Augmentations against MONAI's transforms and SciPy with the same drawn numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from ctfoundry.adapt.augment import Changes, changed, draw, intensities, reach, warp
from ctfoundry.adapt.recipe import Augmentation
from ctfoundry.keys import Key
from ctfoundry.resampling import affine_matrices

KEY = Key.of("test", "augment")
ALWAYS = Augmentation(affine=1, smooth=1, scale=1, shift=1, noise=1)
OFF = Augmentation(affine=0, smooth=0, scale=0, shift=0, noise=0)


def image(shape: tuple[int, ...] = (1, 13, 20, 17)) -> torch.Tensor:
    """Smooth, so that interpolation differs from what it approximates by little."""
    return torch.from_numpy(ndimage.gaussian_filter(KEY("image").uniform(shape=shape), (0, 1.5, 1.5, 1.5)))


def test_draws_are_of_their_key_alone_and_in_their_ranges() -> None:
    drawn = [draw(KEY(i), ALWAYS) for i in range(300)]
    assert drawn[7] == draw(KEY(7), ALWAYS)
    assert len(set(drawn)) == 300
    for values, low, high in (
        ([c.gain for c in drawn], 0.7, 1.3),
        ([c.offset for c in drawn], -0.1, 0.1),
        ([c.deviation for c in drawn], 0.0, 0.1),
        ([s for c in drawn for s in c.sigma or ()], 0.5, 1.0),
        ([float(np.linalg.norm(np.array(c.matrix)[:, 0])) for c in drawn], 0.8, 1.2),
    ):
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high >= max(values) > high - 0.1 * (high - low)
    assert {draw(KEY(i), OFF) == Changes(noise=draw(KEY(i), OFF).noise) for i in range(50)} == {True}
    rates = Augmentation()
    some = [draw(KEY(i), rates) for i in range(2000)]
    for share, expected in (
        (sum(c.matrix is not None for c in some), 0.2),
        (sum(c.sigma is not None for c in some), 0.2),
        (sum(c.gain != 1 for c in some), 0.5),
        (sum(c.offset != 0 for c in some), 0.5),
        (sum(c.deviation != 0 for c in some), 0.2),
    ):
        assert abs(share / 2000 - expected) < 0.04
    # one switched off: the others stay as they were
    without = [draw(KEY(i), replace(ALWAYS, affine=0.0)) for i in range(20)]
    assert without == [replace(c, matrix=None) for c in drawn[:20]]


def test_flips_are_exact() -> None:
    x = image()
    changes = draw(KEY, replace(OFF, flip=1.0))
    assert torch.allclose(changed(x, changes, 0.0), x.flip(1, 2, 3), atol=1e-12)
    assert reach(changes.matrix, (13, 20, 17)) == (15, 22, 19)


@pytest.mark.monai
def test_affine_is_monais() -> None:
    from monai.transforms.spatial.array import Affine

    x, size = image().float(), (13, 20, 17)
    labels = torch.from_numpy(KEY("labels").integers(0, 5, (1, *size))).to(torch.uint8)
    for i in range(4):
        turn = KEY(i, "turn").uniform(-0.26, 0.26, 3).tolist()
        zoom = KEY(i, "zoom").uniform(0.8, 1.2, 3).tolist()
        matrix = tuple(map(tuple, affine_matrices([tuple(turn)], [tuple(zoom)])[0].tolist()))
        theirs = Affine(rotate_params=turn, scale_params=zoom, padding_mode="zeros", image_only=True)
        expected = torch.as_tensor(np.asarray(theirs(x.numpy(), mode="bilinear")))
        ours = changed(x, Changes(matrix=matrix), 0.0)
        # theirs fades over the voxel beyond the edge in the same way: it too interpolates towards zeros
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)
        named = torch.as_tensor(np.asarray(theirs(labels.numpy().astype(np.float32), mode="nearest")))
        grown = reach(matrix, size)
        edges = [(n - k) // 2 for n, k in zip(reversed(grown), reversed(size), strict=True)]
        padded = torch.nn.functional.pad(labels, [n for e in edges for n in (e, e)])
        mine = warp(padded, matrix, size, "nearest")
        assert (mine != named).float().mean() < 1e-3  # ties of rounding


@pytest.mark.monai
def test_intensities_are_monais() -> None:
    from monai.transforms.intensity.array import GaussianSmooth, RandScaleIntensity, ShiftIntensity

    x = image((1, 14, 22, 19)).float()
    sigma = (0.5, 0.77, 1.0)
    expected = torch.as_tensor(np.asarray(GaussianSmooth(sigma, approx="erf")(x)))
    ours = intensities(x, Changes(sigma=sigma))
    inner = (slice(None), *(slice(5, -5),) * 3)
    torch.testing.assert_close(ours[inner], expected[inner], atol=5e-4, rtol=0)  # their kernel does not sum to 1
    assert (ours[:, 0] - expected[:, 0]).mean() > 0.05  # zeros leak in at their faces
    assert torch.allclose(intensities(torch.ones(1, 6, 7, 8), Changes(sigma=sigma)), torch.ones(1, 6, 7, 8))
    scaled = RandScaleIntensity(0.3, prob=1.0)
    scaled.set_random_state(3)
    theirs = torch.as_tensor(np.asarray(scaled(x)))
    torch.testing.assert_close(intensities(x, Changes(gain=1 + scaled.factor)), theirs)
    theirs = torch.as_tensor(np.asarray(ShiftIntensity(-0.07)(theirs)))
    torch.testing.assert_close(intensities(x, Changes(gain=1 + scaled.factor, offset=-0.07)), theirs)


def test_a_turned_crop_sees_the_scan_beyond_its_edge() -> None:
    """Against SciPy reading the whole scan at the turned places."""
    whole = image((1, 40, 44, 48))
    size, start = (10, 12, 14), (14, 15, 16)
    for i in range(5):
        matrix = draw(KEY(i), ALWAYS).matrix
        assert matrix is not None
        grown = reach(matrix, size)
        low = [s - (n - k) // 2 for s, n, k in zip(start, grown, size, strict=True)]
        box = tuple(slice(a, a + n) for a, n in zip(low, grown, strict=True))
        ours = warp(whole[(slice(None), *box)], matrix, size)[0]
        centre = np.array(start) + (np.array(size) - 1) / 2
        offsets = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij"))
        places = np.einsum("ij,j...->i...", np.array(matrix), offsets) + centre[:, None, None, None]
        expected = ndimage.map_coordinates(whole[0].numpy(), places, order=1)
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-9)
        assert max(places.reshape(3, -1).max(1) - np.array(start) - np.array(size)) > 0  # it does read beyond
        # nothing that is read lies outside of the box
        assert (places.reshape(3, -1).min(1) >= low).all()
        assert (places.reshape(3, -1).max(1) <= np.array(low) + np.array(grown) - 1).all()


def test_turns_are_those_of_the_patient() -> None:
    """On a grid of 6x2x2 mm distances in millimetres stay what they are."""
    matrix = draw(KEY, replace(ALWAYS, zoom=0.0), (6.0, 2.0, 2.0)).matrix
    mm = np.diag([6.0, 2.0, 2.0])
    turn = mm @ np.array(matrix) @ np.linalg.inv(mm)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)


def test_noise_comes_from_its_counter() -> None:
    x = torch.zeros(1, 30, 30, 30, dtype=torch.float64)
    made = [intensities(x, Changes(deviation=0.05, noise=n)) for n in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert abs(float((made[0] * made[2]).mean())) < 1e-4
    assert float(made[0].std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(made[0].mean())) < 1e-3
