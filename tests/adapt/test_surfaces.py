"""Borders and lesions, beside MONAI and literal versions."""

from __future__ import annotations

import numpy as np
import pytest

from ctfoundry.adapt.surfaces import (
    LesionScores,
    border,
    lesion_scores,
    lesion_table,
    surface_scores,
    surface_table,
)
from ctfoundry.errors import GeometryError
from ctfoundry.keys import Key

SPACING = (3.0, 1.0, 1.5)


def blobs(seed: int, shape: tuple[int, int, int] = (14, 24, 20)) -> np.ndarray:
    """Some balls, one of which may touch the edge."""
    key, out = Key.of("blobs", seed), np.zeros(shape, dtype=bool)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    for i in range(3):
        centre = key("centre", i).uniform(0, 1, (3,)) * np.array(shape)
        out |= (((grid - centre) * SPACING) ** 2).sum(-1) < float(key("r", i).uniform(4, 7)) ** 2
    return out


@pytest.mark.monai
@pytest.mark.xdist_group("monai")
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_borders_agree_with_monai() -> None:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_surface_dice

    for seed in range(4):
        a, b = blobs(seed), np.roll(blobs(seed), 2, 1) | blobs(seed + 50)
        a[[0, -1]] = b[[0, -1]] = False  # MONAI's border leaves the array's edge out
        a[:, [0, -1]] = b[:, [0, -1]] = False
        a[:, :, [0, -1]] = b[:, :, [0, -1]] = False
        given = [torch.from_numpy(np.stack([~m, m])[None]).float() for m in (a, b)]
        found = surface_scores(a, b, SPACING, tolerance=1.6)
        # MONAI's symmetric distance is the same mean over both borders; its surface Dice counts border voxels
        theirs = compute_average_surface_distance(*given, symmetric=True, spacing=SPACING)
        assert found.distance == pytest.approx(float(theirs[0, 0]), rel=1e-5)
        share = compute_surface_dice(*given, class_thresholds=[1.6], spacing=SPACING, use_subvoxels=False)
        assert found.normalised == pytest.approx(float(share[0, 0]), rel=1e-5)


def test_borders_agree_with_all_pairs() -> None:
    a, b = blobs(7), blobs(8)
    edge = [np.argwhere(border(m)) * SPACING for m in (a, b)]
    apart = np.linalg.norm(edge[0][:, None] - edge[1][None], axis=-1)
    every = np.concatenate([apart.min(1), apart.min(0)])
    found = surface_scores(a, b, SPACING, tolerance=2.0)
    assert found.distance == pytest.approx(every.mean())
    assert found.normalised == pytest.approx((every <= 2.0).mean())
    # literal border: a voxel with one of its six neighbours outside
    padded = np.pad(a, 1)
    inner = a.copy()
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    np.testing.assert_array_equal(border(a), a & ~inner)


def test_what_an_empty_map_counts() -> None:
    a, nothing = blobs(1), np.zeros_like(blobs(1))
    missed = surface_scores(nothing, a, SPACING, tolerance=1)
    assert missed.distance == pytest.approx(np.linalg.norm(np.array(a.shape) * SPACING))
    assert (missed.normalised, missed.empty) == (0.0, "prediction")
    assert surface_scores(a, nothing, SPACING, tolerance=1, penalty=50.0).distance == 50
    unasked = surface_scores(nothing, nothing, SPACING, tolerance=1)
    assert np.isnan(unasked.distance)
    same = surface_scores(a, a, SPACING, tolerance=0)
    assert (same.distance, same.normalised) == (0, 1)
    table = surface_table([("p", same), ("p", missed), ("q", unasked)])
    assert table["normalised"].value == 0.5
    assert table["normalised"].patients == 1
    assert table["empty"] == {"prediction": 1, "reference": 0}
    with pytest.raises(GeometryError, match="differ"):
        surface_scores(a, a[:-1], SPACING, tolerance=1)


def test_lesions_one_by_one() -> None:
    reference, prediction = np.zeros((8, 12, 12), bool), np.zeros((8, 12, 12), bool)
    reference[1:3, 1:3, 1:3] = True  # 8 voxels, found with one voxel of two
    prediction[2, 2, 2:4] = True
    reference[5, 5, 5] = reference[6, 6, 6] = True  # one lesion: the voxels share a corner
    prediction[5, 5, 5] = prediction[6, 6, 6] = True
    reference[1:3, 9:11, 9:11] = True  # missed
    prediction[7, 0, 0] = True  # beside everything
    found = lesion_scores(prediction, reference, SPACING)
    assert [(v.voxels, v.hit) for v in found.lesions] == [(8, True), (8, False), (2, True)]
    assert [v.dice for v in found.lesions] == pytest.approx([2 / 10, 0, 1])
    assert found.lesions[0].volume == 8 * 4.5
    assert (found.false_positives, found.predicted) == (1, 3)
    # with a threshold the first (1 of 9) is missed, and what touches it is a false positive
    strict = lesion_scores(prediction, reference, SPACING, iou=0.2)
    assert [v.hit for v in strict.lesions] == [False, False, True]
    assert strict.false_positives == 2
    # a part too small to count hits nothing and is no false positive
    fewer = lesion_scores(prediction, reference, SPACING, smallest=2)
    assert (fewer.false_positives, fewer.predicted) == (0, 2)
    empty = lesion_scores(np.zeros_like(prediction), np.zeros_like(reference), SPACING)
    assert empty == LesionScores((), 0, 0)


def test_parts_that_join_lesions() -> None:
    """One predicted part over two lesions hits both, and is counted once."""
    reference, prediction = np.zeros((3, 3, 12), bool), np.zeros((3, 3, 12), bool)
    reference[1, 1, 1:4] = reference[1, 1, 6:9] = True
    prediction[1, 1, 1:9] = True
    found = lesion_scores(prediction, reference, SPACING, iou=0.1)
    assert [v.hit for v in found.lesions] == [True, True]
    assert [v.dice for v in found.lesions] == pytest.approx([6 / 11, 6 / 11])
    assert found.false_positives == 0


def test_tables_draw_patients() -> None:
    reference, hit = np.zeros((3, 3, 9), bool), np.zeros((3, 3, 9), bool)
    reference[1, 1, 1], reference[1, 1, 7] = True, True
    hit[1, 1, 1] = True
    one = lesion_scores(hit, reference, SPACING)
    none = lesion_scores(hit, np.zeros_like(reference), SPACING)
    table = lesion_table([(f"p{i}", one) for i in range(4)] + [("p0", one), ("q", none)])
    assert table.lesions == 10
    assert table.sensitivity is not None
    assert table.sensitivity.value == 0.5
    assert table.sensitivity.patients == 5
    assert table.false_positives.value == pytest.approx(1 / 5)
    assert table.dice is not None
    assert table.dice.patients == 4
    assert lesion_table([("q", none)]).sensitivity is None
