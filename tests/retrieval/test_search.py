"""The same place in another scan."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import worlds
from ctfoundry.errors import UsageError
from ctfoundry.retrieval.search import dense_map, find, query_vector, window_at

LEVELS = ("stage1", "stage2")


def test_a_place_finds_itself():
    encoder, volume = worlds.tiny(), worlds.body()
    grid = dense_map(encoder, volume, LEVELS)
    point = grid.world([3, 8, 9])
    hit = find(encoder, volume, point, volume, levels=LEVELS)
    np.testing.assert_allclose(hit.centres[hit.scores.argmax()], point, atol=1e-6)
    # the answer lies between cells, at most half a cell of 4 x 4 x 12 mm away
    assert (np.abs(hit.point - point) <= np.array([2, 2, 6]) + 1e-6).all()
    assert hit.similarity == pytest.approx(1, abs=1e-5)


def test_a_moved_scan_is_found_in_its_own_world():
    """The same voxels at another place of the world: the answer moves along, and so does the heat map."""
    encoder, volume = worlds.tiny(), worlds.body()
    affine = np.array(volume.affine)
    affine[:3, 3] += (100.0, -50.0, 25.0)
    moved = type(volume)(volume.voxels, affine)
    point = dense_map(encoder, volume, LEVELS).world([4, 7, 9])
    hit = find(encoder, volume, point, moved, levels=LEVELS)
    unmoved = find(encoder, volume, point, volume, levels=LEVELS)
    np.testing.assert_allclose(np.array(hit.point) - unmoved.point, (100, -50, 25), atol=1e-3)
    best = hit.centres[hit.scores.argmax()]
    np.testing.assert_allclose(best - point, (100, -50, 25), atol=1e-6)
    assert hit.heatmap is not None
    assert hit.heatmap.grid == moved.grid
    peak = moved.world(np.unravel_index(int(hit.heatmap.voxels.argmax()), moved.shape))
    # the heat map is linear between cells of 12 x 4 x 4 mm, so its peak is the voxel nearest to the best cell's centre
    assert np.abs(peak - best).max() <= 3.0 + 1e-6


def test_levels_count_equally():
    encoder, volume = worlds.tiny(), worlds.body()
    grid = dense_map(encoder, volume, LEVELS)
    norms = grid.data.flatten(1).norm(dim=0)
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-4, rtol=0)


def test_match_is_the_literal_cosine():
    encoder, volume = worlds.tiny(), worlds.body()
    grid = dense_map(encoder, volume, LEVELS)
    point = grid.world([2, 5, 6])
    query = query_vector(grid, point)
    hit = find(encoder, worlds.body(), point, worlds.body(1), levels=LEVELS, whiten=False)
    rows, centres = dense_map(encoder, worlds.body(1), LEVELS).cells()
    cosine = [float(r.double() @ query.double() / r.double().norm() / query.double().norm()) for r in rows]
    assert hit.similarity == pytest.approx(max(cosine), abs=1e-5)
    # the answer may lie up to half a cell from its centre
    cell = dense_map(encoder, worlds.body(1), LEVELS).cell(hit.point)
    best = dense_map(encoder, worlds.body(1), LEVELS).cell(centres[int(np.argmax(cosine))])
    assert np.abs(cell - best).max() <= 0.5


def test_windows_find_the_window_the_point_is_the_centre_of():
    encoder, volume = worlds.tiny(), worlds.body()
    size = (16, 32, 32)
    found = encoder.windows(volume, size, 0.5)
    middle = len(found.centres) // 2
    hit = find(encoder, volume, found.centres[middle], volume, method="windows", window=size, overlap=0.5)
    assert hit.similarity == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(hit.point, found.centres[middle])
    assert hit.heatmap is not None
    assert hit.heatmap.grid == volume.grid


def test_a_window_at_the_border_is_padded_with_air():
    encoder, volume = worlds.tiny(), worlds.body()
    prepared = encoder.prepare(volume)
    corner = prepared.affine[:3, 3]
    size = (8, 16, 16)
    x = torch.nn.functional.pad(prepared.x, (8, 8, 8, 8, 4, 4), value=float(prepared.x.min()))
    # the corner voxel is voxel 4 (8, 8) of the padded scan; a window of even size has its centre half a voxel before
    box = x[:, 0:8, 0:16, 0:16]
    torch.testing.assert_close(window_at(encoder, volume, corner, size), encoder.embed(box[None], "mean")[0])


@pytest.mark.parametrize("method", ["dense", "windows"])
def test_points_outside_are_named(method):
    encoder, volume = worlds.tiny(), worlds.body()
    with pytest.raises(UsageError, match=r"5000\.0.* lies outside the query scan(.|\n)*is seen x -?\d+ to -?\d+, y"):
        find(encoder, volume, (5000, 0, 0), volume, method=method, window=(8, 16, 16), levels=LEVELS)


def test_unknown_method_and_missing_window():
    encoder, volume = worlds.tiny(), worlds.body()
    with pytest.raises(UsageError, match="'dense' or 'windows'"):
        find(encoder, volume, (0, 0, 0), volume, method="best")
    with pytest.raises(UsageError, match="needs a window size"):
        find(encoder, volume, (0, 0, 0), volume, method="windows")
