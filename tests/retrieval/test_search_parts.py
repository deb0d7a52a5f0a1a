"""Whitening, shifted passes, peaks, boxes, maps from an embeddings folder, confidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import worlds
from ctfoundry import zoo
from ctfoundry.encoder import Encoder
from ctfoundry.errors import StoreError, UsageError
from ctfoundry.geometry import Grid
from ctfoundry.keys import Key
from ctfoundry.retrieval import search_confidence as confidence
from ctfoundry.retrieval.search import APART, find, seek
from ctfoundry.retrieval.search_confidence import Evidence
from ctfoundry.retrieval.search_maps import Looking, Scene, scene, with_air
from ctfoundry.retrieval.search_peaks import Likeness, best_places, between_cells
from ctfoundry.settings import to_data

LEVELS = ("stage1", "stage2")


def test_whitened_rows_have_the_covariance_of_white_noise():
    """Before normalisation, by NumPy's own covariance: all directions alike."""
    mixing = np.eye(6) + 0.3 * Key.of("mix").normal((6, 6))
    rows = Key.of("rows").normal((4000, 6)) @ mixing + 5
    made = Likeness.whitened(torch.from_numpy(rows).float(), (6,))
    white = (rows - made.mean[0].numpy()) @ made.matrix[0].numpy()
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(6), atol=0.02)


def test_whitening_is_the_mahalanobis_cosine():
    rows = Key.of("rows", 1).normal((500, 4)) * (1, 2, 3, 4)
    made = Likeness.whitened(torch.from_numpy(rows).float(), (4,))
    ours = made(torch.from_numpy(rows[:2]).float())
    a, b = rows[:2] - rows.mean(0)
    inverse = np.linalg.inv(np.cov(rows.T, bias=True))
    literal = a @ inverse @ b / np.sqrt((a @ inverse @ a) * (b @ inverse @ b))
    assert float(ours[0] @ ours[1]) == pytest.approx(literal, abs=2e-3)  # FLOOR bends it a little


def test_shared_directions_do_not_drown_what_differs():
    """All rows share one large component: plain cosine is near 1 for all, whitened it is not."""
    rows = torch.from_numpy(Key.of("rows", 2).normal((300, 5))).float()
    rows[:, 0] = 100 + rows[:, 0]
    plain, white = Likeness((5,)), Likeness.whitened(rows, (5,))
    assert float((plain(rows) @ plain(rows)[0]).min()) > 0.99
    assert float((white(rows) @ white(rows)[0]).median().abs()) < 0.3


def test_shifted_passes_are_the_passes_interleaved():
    encoder, volume = worlds.tiny(), worlds.body()
    once = scene(encoder, volume, Looking(("stage2",)))
    finer = scene(encoder, volume, Looking(("stage2",), shifts=(2, 1, 2)))
    assert once.feature is not None
    assert finer.feature is not None
    torch.testing.assert_close(finer.feature.data[:, ::2, :, ::2], once.feature.data)
    # cells of the second pass lie half a stride on, and are those of the scan moved by as much
    np.testing.assert_allclose(finer.feature.world([1, 3, 4]), once.feature.world([0.5, 3, 2]), atol=1e-9)
    moved = scene(encoder, with_air(encoder.prepare(volume), (2, 0, 0), (2, 0, 0)), Looking(("stage2",)))
    assert moved.feature is not None
    torch.testing.assert_close(finer.feature.data[:, 1::2, :, ::2], moved.feature.data[:, 1:])
    np.testing.assert_allclose(moved.feature.world([1, 3, 2]), finer.feature.world([1, 3, 4]), atol=1e-9)


def test_cells_of_shifted_passes_beyond_the_scan_are_left_out():
    volume = worlds.body(shape=(22, 64, 72))
    encoder = worlds.tiny()
    count = encoder.prepare(volume).x.shape[1]
    found = scene(encoder, volume, Looking(("stage2",), shifts=(4, 1, 1)))
    assert found.grid.shape[0] >= count
    assert found.place[:, 0].max() == count - 1


def test_shifts_that_do_not_divide_the_stride_are_refused():
    with pytest.raises(UsageError, match="do not divide the stride"):
        scene(worlds.tiny(), worlds.body(), Looking(("stage2",), shifts=(3, 1, 1)))


def line(scores: list[float], spacing: float = 10.0) -> tuple[np.ndarray, Scene]:
    """Cells in a row along axis 2 (world x), and one missing neighbour on either side along the others."""
    n = len(scores)
    centres = np.stack([np.arange(n) * spacing, np.zeros(n), np.zeros(n)], 1)
    place = np.stack([np.zeros(n, int), np.zeros(n, int), np.arange(n)], 1)
    affine = np.array([[0, 0, spacing, 0], [0, spacing, 0, 0], [spacing, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
    return np.array(scores, np.float32), Scene(torch.zeros(n, 1), centres, place, Grid((1, 1, n), affine), (1,))


def test_the_peak_of_a_parabola_is_found_between_cells():
    truth = 2.3
    scores, made = line([-((k - truth) ** 2) for k in range(6)])
    point = between_cells(made.laid_out(scores, np.nan), made, int(scores.argmax()))
    np.testing.assert_allclose(point, (10 * truth, 0, 0), atol=1e-4)


def test_a_flat_or_cut_peak_stays_on_its_cell():
    for values in ([3.0, 1, 0], [0, 2.0, 2.0, 0]):
        scores, made = line(values)
        best = int(scores.argmax())
        np.testing.assert_allclose(between_cells(made.laid_out(scores, np.nan), made, best), made.centres[best])


def test_places_keep_their_distance():
    scores, made = line([0.9, 0.8, 0.1, 0.7, 0.2, 0.6])
    found = best_places(scores, made, 9, apart=25, refine=False)
    assert [round(p.similarity, 1) for p in found] == [0.9, 0.7]
    assert [p.point[0] for p in best_places(scores, made, 3, apart=15, refine=False)] == [0, 30, 50]


def test_best_places_of_a_search():
    encoder, volume = worlds.tiny(), worlds.body()
    hit = find(encoder, volume, volume.world([12, 30, 30]), worlds.body(1), levels=LEVELS, places=3)
    assert hit.places[0].point == hit.point
    similarity = [p.similarity for p in hit.places]
    assert similarity == sorted(similarity, reverse=True)
    points = np.array([p.point for p in hit.places])
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2)[~np.eye(len(points), dtype=bool)]
    assert gaps.min() > APART - 15  # refinement moves each by at most half a cell of 12 x 4 x 4 mm


def test_a_box_is_the_mean_of_its_points_and_finds_itself():
    encoder, volume = worlds.tiny(), worlds.body()
    centre = volume.world([12, 32, 36])
    query = seek(encoder, volume, box=(centre - 6, centre + 6), levels=LEVELS)
    np.testing.assert_allclose(query.point, centre)
    hit = query.find(volume)
    assert np.linalg.norm(np.array(hit.point) - centre) < 15
    assert hit.evidence is not None
    assert hit.evidence.cycle_mm < 15
    tiny = seek(encoder, volume, box=(centre, centre + 1e-9), levels=LEVELS)
    point = seek(encoder, volume, centre, levels=LEVELS)
    torch.testing.assert_close(tiny.vector, point.vector, atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match="a point or a box"):
        seek(encoder, volume, levels=LEVELS)


def evidence(count: int, seed: int = 0) -> tuple[list[Evidence], list[float | None]]:
    """Searches whose chance to be right grows with similarity and falls with the cycle."""
    key = Key.of("evidence", seed)
    values = key.uniform(0, 1, (count, 4))
    chance = 1 / (1 + np.exp(-(6 * values[:, 0] - 3 - values[:, 3])))
    right = key("right").uniform(0, 1, count) < chance
    gone = key("gone").uniform(0, 1, count) < 0.4 * (1 - chance)
    made = [Evidence(a, b, c, 100 * d) for a, b, c, d in values]
    return made, [None if g else 5.0 if r else 200.0 for r, g in zip(right, gone, strict=True)]


def test_the_logistic_map_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    made, errors = evidence(800)
    x = np.array([e.values() for e in made])
    y = np.array([e is not None and e < 40 for e in errors])
    ours = confidence.fit_logistic(x.tolist(), y.tolist())
    z = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(C=1 / (confidence.RIDGE * len(x)), tol=1e-10, max_iter=1000).fit(z, y)
    np.testing.assert_allclose(ours.weights, theirs.coef_[0], atol=1e-4)
    np.testing.assert_allclose(ours(x.tolist()), theirs.predict_proba(z)[:, 1], atol=1e-4)


def test_a_calibration_goes_to_disk_and_fits_its_model_alone(tmp_path):
    encoder = worlds.tiny()
    looking = Looking(LEVELS)
    made = confidence.calibrate(*evidence(600), encoder.card, looking, {"scans": 3})
    confidence.save(made, tmp_path / "search.json")
    read = confidence.load(tmp_path / "search.json", encoder.card, looking)
    assert read == made
    assert confidence.load(tmp_path / "search.json", worlds.tiny(seed=1).card, looking) is None
    assert confidence.load(tmp_path / "search.json", encoder.card, replace(looking, shifts=(2, 2, 2))) is None
    assert confidence.load(tmp_path / "none.json", encoder.card, looking) is None
    (tmp_path / "search.json").write_text("{}")
    with pytest.raises(StoreError, match="is no calibration"):
        confidence.load(tmp_path / "search.json", encoder.card, looking)
    with pytest.raises(StoreError, match="all right or all wrong"):
        confidence.fit_logistic([[0.0], [1.0]], [True, True])


def test_confidence_is_said_where_there_is_a_calibration():
    encoder, volume = worlds.tiny(), worlds.body()
    made = confidence.calibrate(*evidence(600), encoder.card, Looking(LEVELS), {})
    point = volume.world([12, 32, 36])
    without = find(encoder, volume, point, worlds.body(1), levels=LEVELS)
    assert without.confidence is None
    assert without.present is None
    hit = find(encoder, volume, point, worlds.body(1), levels=LEVELS, calibration=made)
    assert hit.confidence is not None
    assert 0 <= hit.confidence <= 1
    assert hit.present is (float(made.presence([hit.evidence.values()])[0]) >= made.threshold)  # type: ignore[union-attr]


def test_a_patch_that_is_the_models_own_is_no_other_way():
    """`--patch 8` of a model whose patch is 8 writes [8, 8, 8] into the card."""
    card = zoo.CARDS["flexict-tiny"]
    encoder = Encoder.of(zoo.build(card), card)
    own = zoo.with_patch(encoder, encoder.level(encoder.card.level).stride)
    assert to_data(own.card)["arguments"] != to_data(encoder.card)["arguments"]
    looking = Looking((encoder.card.level,))
    made = confidence.calibrate(*evidence(600), encoder.card, looking, {})
    assert made.fits(encoder.card, looking)
    assert made.fits(own.card, looking)
    assert confidence.calibrate(*evidence(600), own.card, looking, {}).fits(encoder.card, looking)
    assert not made.fits(zoo.with_patch(encoder, (16, 16, 16)).card, looking)
