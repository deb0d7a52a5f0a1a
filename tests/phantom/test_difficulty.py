"""The two trivial methods: right on small worlds, and too weak for the phantoms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from ctfoundry.body import body_box
from ctfoundry.errors import UsageError
from ctfoundry.geometry import make_affine
from ctfoundry.keys import Key
from ctfoundry.phantom import IDS, difficulty, draw, make
from ctfoundry.volume import Volume


@dataclass
class Scan:
    ct: Volume
    labels: Volume


def _scan(hu: np.ndarray, labels: np.ndarray, affine: np.ndarray | None = None) -> Scan:
    affine = make_affine((2, 2, 2)) if affine is None else affine
    return Scan(
        Volume(hu.astype(np.int16), affine), Volume(labels.astype(np.uint8), affine, "label", {1: "a", 2: "b", 3: "c"})
    )


def test_hu_classifier_on_a_world_it_can_solve() -> None:
    labels = Key.of("labels").integers(0, 3, (6, 6, 6))
    result = difficulty.hu_classifier_dice([_scan(labels * 100, labels)], [_scan(labels * 100, labels)])
    assert result.structures == {"a": 1.0, "b": 1.0}
    assert result.overall == 1.0


def test_hu_classifier_on_a_world_it_cannot_solve() -> None:
    """Two structures of one HU, 30 and 10 voxels of 100 (the rest is other): all 40 voxels are taken for each."""
    labels = np.zeros(100, int)
    labels[:30], labels[30:40] = 1, 2
    hu = np.where(labels > 0, 50, -1000)
    scan = _scan(hu.reshape(4, 5, 5), labels.reshape(4, 5, 5))
    result = difficulty.hu_classifier_dice([scan], [scan])
    assert result.structures["a"] == pytest.approx(2 * 30 / (40 + 30))
    assert result.structures["b"] == pytest.approx(2 * 10 / (40 + 10))


def test_hu_classifier_equals_a_search_over_all_sets_of_bins() -> None:
    from itertools import product

    key = Key.of("exhaustive")
    labels = key("labels").integers(0, 3, (8, 8, 8))
    hu = labels * 10 + key("hu").integers(0, 4, (8, 8, 8)) * 10
    scan = _scan(hu, labels)
    result = difficulty.hu_classifier_dice([scan], [scan])
    values = np.unique(hu)
    for name, label in (("a", 1), ("b", 2)):
        best = 0.0
        for chosen in product((False, True), repeat=len(values)):
            guess = np.isin(hu, values[list(chosen)])
            best = max(best, 2 * (guess & (labels == label)).sum() / (guess.sum() + (labels == label).sum()))
        assert result.structures[name] == pytest.approx(best)


def _box_world(low: tuple[int, int, int], affine: np.ndarray) -> Scan:
    """A body of 20x10x30 voxels with a 4x4x4 structure whose lowest corner is at `low` inside it, over a thin table."""
    hu, labels = np.full((30, 24, 40), -1000), np.zeros((30, 24, 40), int)
    hu[5:25, 4:14, 5:35] = 40
    hu[:, 18, :] = 200
    d, h, w = low
    labels[5 + d : 9 + d, 4 + h : 8 + h, 5 + w : 9 + w] = 1
    return _scan(hu, labels, affine)


def test_position_guess_on_a_small_world() -> None:
    a = _box_world((0, 0, 0), make_affine((2, 2, 2), origin=(5, 6, 7)))
    ends = a.ct.world([[5, 4, 5], [24, 13, 34]])
    np.testing.assert_allclose(body_box(a.ct), [ends.min(0), ends.max(0)])
    moved = _box_world((0, 0, 0), make_affine((2, 2, 2), origin=(100, -6, 900)))
    assert difficulty.position_guess_error([a], [moved]).overall == pytest.approx(0, abs=1e-9)
    other = _box_world((3, 0, 4), make_affine((2, 2, 2)))
    assert difficulty.position_guess_error([a], [other]).overall == pytest.approx(10)
    # Two training scans 6 mm apart along z: the guess lies between.
    pair = [_box_world((0, 0, 0), make_affine((2, 2, 2))), _box_world((3, 0, 0), make_affine((2, 2, 2)))]
    assert difficulty.position_guess_error(pair, [pair[0]]).overall == pytest.approx(3)
    # Twice the size, half the voxel numbers: proportions are kept.
    large = _box_world((0, 0, 0), make_affine((4, 4, 4)))
    assert difficulty.position_guess_error([a], [large]).overall == pytest.approx(0, abs=1e-9)


def test_nothing_to_learn_from_is_an_error() -> None:
    air = _scan(np.full((4, 4, 4), -1000), np.zeros((4, 4, 4)))
    with pytest.raises(UsageError, match="at least one"):
        difficulty.hu_classifier_dice([], [air])


def test_the_phantoms_are_harder_than_the_trivial_methods() -> None:
    """The limits of the project: never to be loosened. docs/phantoms.md has the numbers of a larger cohort."""
    scans = [make(draw(Key.of("difficulty", i), voxel_mm=4.0)) for i in range(24)]
    train, test = scans[:12], scans[12:]
    for structures in (None, difficulty.coarse_structures()):
        assert difficulty.hu_classifier_dice(train, test, structures).overall < 0.6
    for structures in (None, difficulty.coarse_structures(wraps=False)):
        assert difficulty.position_guess_error(train, test, structures).overall > 40
    assert set(difficulty.coarse_structures()["table"]) == {IDS["table"]}
