"""Stability: places, comparisons and registrations against what is known."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ctfoundry import io
from ctfoundry.explain import stability, stability_page
from ctfoundry.explain.stability import ByHu, compare, window_places
from ctfoundry.explain.stability_register import register
from ctfoundry.geometry import make_affine
from ctfoundry.keys import Key
from ctfoundry.phantom import draw, make, repeat
from ctfoundry.volume import Volume


def test_comparison_is_what_scikit_learn_says() -> None:
    key = Key.of("test", "stability")
    points = key("p").uniform(0, 200, (30, 3))
    one = key("a").normal((30, 5))
    two = one + 0.7 * key("b").normal((30, 5))
    others = key("c").normal((50, 5))
    found = compare(one, two, points, 60.0, others)
    assert found is not None
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (one, two, others)]
    far = np.array([np.linalg.norm(p - points, axis=1) >= 60 for p in points])
    own = np.array([a @ b for a, b in zip(unit[0], unit[1], strict=True)])
    scores = np.concatenate([own, (unit[0] @ unit[1].T)[far]])
    assert found.auroc == pytest.approx(roc_auc_score(np.arange(len(scores)) < 30, scores))
    strange = np.concatenate([own, (unit[0] @ unit[2].T).ravel()])
    assert found.auroc_other == pytest.approx(roc_auc_score(np.arange(len(strange)) < 30, strange))
    assert np.allclose(found.cosine, own)
    assert np.allclose(found.mse, ((one - two) ** 2).mean(1))
    assert compare(one[:3], two[:3], points[:3], 60.0) is None
    assert compare(one, two, points * 0, 60.0) is None


def test_unrelated_vectors_are_at_chance() -> None:
    key = Key.of("test", "chance")
    points = key("p").uniform(0, 300, (60, 3))
    found = compare(key("a").normal((60, 8)), key("b").normal((60, 8)), points, 60.0)
    assert found is not None
    assert 0.4 < found.auroc < 0.6


def test_windows_are_centred_on_points_and_lie_wholly_inside() -> None:
    affine = make_affine((6.0, 2.0, 2.0), "SPL")
    volume = Volume(np.zeros((10, 20, 30), np.int16), affine)
    points = volume.world(np.array([[5.0, 9.5, 15.5], [0.0, 9.5, 15.5]]))
    at, inside = window_places(affine, (10, 20, 30), (5, 4, 4), points)
    assert at[0].tolist() == [3, 8, 14]
    assert inside.tolist() == [True, False]


def test_hu_shares_are_of_the_box() -> None:
    voxels = np.full((10, 20, 20), -1000, np.int16)
    voxels[:, 10:] = 40
    seen = ByHu(Volume(voxels, make_affine((4.0, 4.0, 4.0), "SPL")), (24, 24, 24), (8, 8, 8))
    rows, inside = seen.windows(seen.volume.world(np.array([[5, 9.5, 10], [5, 15, 10], [50, 0, 0]])))
    assert inside.tolist() == [True, True, False]
    assert rows[0, 0] == pytest.approx(0.5)
    assert rows[1, 7] == pytest.approx(1.0)


def test_rows_are_means_over_patients() -> None:
    found = {"cosine": [0.5, 0.7], "mse": [1.0, 3.0], "places": [], "mse_elsewhere": 4.0, "auroc": 0.9}
    pairs = [
        {"patient": f"P{n}", "factor": "dose", "found": {"HU": {"windows": found | {"auroc_other": None}}}}
        for n in range(4)
    ]
    (row,) = stability.rows(pairs)
    assert (row.cosine.value, row.mse_share.value, row.auroc.value) == pytest.approx((0.6, 0.5, 0.9))
    assert row.auroc_other is None
    assert row.cosine.low is not None
    (few,) = stability.rows(pairs[:2])
    assert few.cosine.low is None
    headers, (line,), caption = stability_page.table([few], "windows")
    assert "2 patients: examples" in caption
    assert dict(zip(headers, line, strict=True)) == {
        "what differs": "dose", "described by": "HU", "AUROC, same patient": "0.900", "cosine": "0.600",
        "squared error, share of elsewhere": "0.500",
    }, "no column without a number, no interval that there is not"  # fmt: skip
    headers, _, caption = stability_page.table([row], "windows")
    assert "4 patients, with 95 % intervals" in caption
    text = str(stability_page.make_page([few], {}, {}, {}, "HU", "", "ct-fm-tiny").subtitle)
    assert text == "ct-fm-tiny"


def test_gains_are_paired_by_patient() -> None:
    """Against the plain mean of differences; a patient whose other side has no AUROC is left out."""
    base = {"cosine": [0.5], "mse": [1.0], "places": [], "mse_elsewhere": 4.0, "auroc_other": None}
    ours, other = [0.9, 0.8, 0.99, 0.7, 0.6], [0.7, 0.75, 0.5, 0.9, None]
    pairs = [
        {
            "patient": f"P{n}",
            "factor": "dose",
            "found": {"trained": {"windows": base | {"auroc": a}}, "HU": {"windows": base | {"auroc": b}}},
        }
        for n, (a, b) in enumerate(zip(ours, other, strict=True))
    ]
    first, second = stability.rows(pairs)
    assert (first.name, first.gain) == ("trained", None)
    assert second.gain is not None
    assert second.gain.value == pytest.approx(np.mean(np.subtract(ours[:4], np.array(other[:4], float))))
    assert second.gain.patients == 4
    assert second.gain.low is not None
    assert second.gain.low < second.gain.value
    headers, lines, _ = stability_page.table([first, second], "windows")
    assert lines[1][headers.index("first minus this")] == second.gain.text(3)
    assert lines[0][headers.index("first minus this")] is None


def test_a_moved_patient_is_found_and_a_wrong_pair_refused() -> None:
    """The truth is known: the phantom's own map. Other anatomy must not pass."""
    key = Key.of("test", "register")
    first = draw(key, view="chest", voxel_mm=5)
    second = repeat.again(first, key("again"), changes=("pose",))
    fixed, moving = make(first).ct, make(second).ct
    found = register(fixed, moving)
    points = stability.body_points(fixed, 40.0, 30, key)
    off = np.linalg.norm(repeat.points(first, second, points) - found.points(points), axis=1)
    assert np.median(off) < 2.0
    assert not found.doubt
    head = make(draw(key("head"), view="head", voxel_mm=5)).ct
    assert register(fixed, head).doubt


def test_the_real_pair_comes_closer(shared_ct: Path) -> None:
    """Ten landmarks of the pair, as its origin gives them (index points)."""
    folder = shared_ct / "elastix-lung-pair"
    fixed, moving = (io.read(folder / f"3DCT_lung_{name}.mha") for name in ("baseline", "followup"))

    def landmarks(name: str, volume: Volume) -> np.ndarray:
        lines = (folder / f"3DCT_lung_{name}.txt").read_text().splitlines()[2:]
        return volume.world(np.array([[float(v) for v in line.split()] for line in lines if line.strip()])[:, ::-1])

    one, two = landmarks("baseline", fixed), landmarks("followup", moving)
    found = register(fixed, moving)
    before, after = (float(np.linalg.norm(p - two, axis=1).mean()) for p in (one, found.points(one)))
    assert after < before
    assert asdict(found)["correlation"] > 0
