"""Encoders: what features mean, where they lie, and that nothing else in the batch changes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import worlds
from ctfoundry.encoder import FeatureMap, Features, pool
from ctfoundry.errors import ContractError
from ctfoundry.geometry import make_affine, to_world
from ctfoundry.infer import passes
from ctfoundry.infer.passes import Extent
from ctfoundry.volume import Volume


def test_default_vector_is_the_mean_of_the_last_map():
    encoder, volume = worlds.tiny(), worlds.body()
    features = encoder(volume)
    prepared = encoder.prepare(volume)
    with torch.no_grad():
        expected = encoder.network(prepared.x[None])[-1][0]
    torch.testing.assert_close(features.grid.data, expected)
    torch.testing.assert_close(features.vector, expected.mean((1, 2, 3)))


def test_cells_lie_where_the_level_says():
    encoder, volume = worlds.tiny(), worlds.body(code="LAS", spacing=(2.0, 2.0, 6.0), shape=(72, 64, 24))
    prepared = encoder.prepare(volume)
    for level in encoder.levels:
        grid = encoder(volume, levels=[level.name]).grid
        cell = np.array([1, 1, 0]) if level.name == "stage4" else np.array([1, 2, 1])
        np.testing.assert_allclose(
            grid.world(cell), to_world(prepared.affine, cell * np.array(level.stride)), atol=1e-6
        )
        np.testing.assert_allclose(grid.cell(grid.world(cell)), cell, atol=1e-9)


def test_orientation_of_the_file_does_not_change_features():
    encoder, volume = worlds.tiny(), worlds.body()
    for code in ("LAS", "RPI", "ALS"):
        torch.testing.assert_close(encoder(volume.reorient(code)).vector, encoder(volume).vector)


def test_sampling_a_cell_centre_gives_that_cell():
    encoder = worlds.tiny()
    grid = encoder(worlds.body(), levels=["stage2"]).grid
    rows, centres = grid.cells()
    torch.testing.assert_close(grid.sample(centres[5:9]), rows[5:9], atol=1e-5, rtol=1e-4)


def test_sampling_between_cells_is_linear():
    data = torch.arange(4.0).reshape(1, 4, 1, 1)
    grid = FeatureMap(data, make_affine((10, 1, 1)), torch.ones(4, 1, 1, dtype=torch.bool), "x")
    np.testing.assert_allclose(grid.sample([[0, 0, 15.0], [0, 0, -50.0], [0, 0, 1e4]])[:, 0], [1.5, 0, 3], atol=1e-6)


@pytest.mark.parametrize("size", [(16, 32, 32), (16, 48, 64)])
def test_windows_are_independent_of_their_batch(monkeypatch, size):
    encoder, volume = worlds.tiny(), worlds.body()
    together = encoder.windows(volume, size, 0.5)
    monkeypatch.setattr(passes, "WINDOW_BATCH_VOXELS", 1)
    alone = encoder.windows(volume, size, 0.5)
    torch.testing.assert_close(together.vectors, alone.vectors, atol=1e-6, rtol=1e-5)
    assert len(alone.vectors) >= 4


def test_window_centres_in_world():
    encoder, volume = worlds.tiny(), worlds.body()
    found = encoder.windows(volume, (16, 32, 32), 0.0)
    affine = encoder.prepare(volume).affine
    np.testing.assert_allclose(found.centres[0], to_world(affine, [7.5, 15.5, 15.5]))


def test_one_window_over_everything_equals_the_whole():
    encoder, volume = worlds.tiny(), worlds.body()
    shape = encoder.prepare(volume).x.shape[1:]
    size = tuple(-(-n // 16) * 16 for n in shape)
    whole = encoder(volume, levels=["stage1"]).grid
    padded = worlds.tiny(extent=Extent("windows", size))
    padded = replace(
        padded, preparation=replace(padded.preparation, sizing=replace(padded.preparation.sizing, multiple=(1, 1, 1)))
    )
    one = padded(volume, levels=["stage1"]).grid
    assert one.data.shape == whole.data.shape
    # the window is padded with air where the whole scan ends, so only the border may differ
    inner = (slice(None), slice(0, 6), slice(0, 12), slice(0, 12))
    torch.testing.assert_close(one.data[inner], whole.data[inner], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("blend", ["mean", "gaussian"])
@pytest.mark.parametrize("mode", ["whole", "windows"])
def test_streamed_slabs_equal_the_map(mode, blend):
    extent = Extent("windows", (32, 32, 32), 0.5, blend) if mode == "windows" else Extent("whole")
    encoder, volume = worlds.tiny(extent=extent), worlds.body(shape=(72, 64, 72))
    whole = encoder(volume, levels=["stage2"]).grid
    slabs = list(encoder.stream(volume, "stage2", dtype=torch.float32, slab=2))
    assert len(slabs) > 2
    torch.testing.assert_close(torch.cat([s.data for s in slabs], 1), whole.data)
    np.testing.assert_allclose(slabs[1].world([0, 0, 0]), whole.world([slabs[0].data.shape[1], 0, 0]))


def test_blended_windows_against_a_literal_sum():
    extent = Extent("windows", (32, 32, 32), 0.5, "gaussian")
    encoder, volume = worlds.tiny(), worlds.body()
    x = encoder.prepare(volume).x
    padded = passes.pad_to_windows(x, (32, 32, 32), (16, 16, 16))
    level = encoder.level("stage3")
    total = torch.zeros(level.channels, *(n // 8 for n in padded.shape[1:]))
    mass = torch.zeros(total.shape[1:])
    profile = [torch.exp(-0.5 * ((torch.arange(n) + 0.5 - n / 2) / (n / 8)) ** 2) for n in (4, 4, 4)]
    weight = torch.einsum("i,j,k->ijk", *profile).clamp_min(1e-3)
    with torch.no_grad():
        for a in range(0, padded.shape[1] - 31, 16):
            for b in range(0, padded.shape[2] - 31, 16):
                for c in range(0, padded.shape[3] - 31, 16):
                    cells = encoder.raw(padded[None, :, a : a + 32, b : b + 32, c : c + 32], ["stage3"])[0]["stage3"][0]
                    at = (slice(a // 8, a // 8 + 4), slice(b // 8, b // 8 + 4), slice(c // 8, c // 8 + 4))
                    total[(slice(None), *at)] += cells * weight
                    mass[at] += weight
    grid = encoder(volume, levels=["stage3"], extent=extent).grid
    d, h, w = grid.data.shape[1:]
    torch.testing.assert_close(grid.data, (total / mass)[:, :d, :h, :w], atol=1e-5, rtol=1e-4)


def test_windows_must_hold_whole_cells():
    encoder = worlds.tiny()
    with pytest.raises(ContractError, match="whole cells"):
        encoder(worlds.body(), levels=["stage4"], extent=Extent("windows", (16, 24, 32)))
    with pytest.raises(ContractError, match=r"cannot overlap by 0\.5"):
        encoder(worlds.body(), levels=["stage1"], extent=Extent("windows", (16, 32, 32), 0.5))


def test_cube_is_the_centre():
    encoder, volume = worlds.tiny(), worlds.body()
    cube = encoder(volume, levels=["stage0"], extent=Extent("cube", (8, 16, 16))).grid
    prepared = encoder.prepare(volume)
    start = [(n - k) // 2 for n, k in zip(prepared.x.shape[1:], (8, 16, 16), strict=True)]
    np.testing.assert_allclose(cube.world([0, 0, 0]), to_world(prepared.affine, start))


def test_pooling_counts_measured_cells_only():
    data = torch.tensor([1.0, 3.0, 100.0]).reshape(1, 3, 1, 1)
    grid = FeatureMap(data, make_affine(), torch.tensor([True, True, False]).reshape(3, 1, 1), "x")
    assert float(pool(grid, "mean")) == 2
    assert float(pool(grid, "max")) == 3
    assert float(pool(grid, "min")) == 1


def test_roi_vectors_against_a_literal_mean():
    encoder, volume = worlds.tiny(), worlds.body()
    prepared = encoder.prepare(volume)
    mask = np.zeros(volume.shape, np.uint8)
    mask[:12] = 1
    mask[12:, :, :36] = 2
    roi = Volume(mask, volume.affine, "label", names={1: "low", 2: "right"})
    features = encoder(volume, levels=["stage0"], vectors=(), roi=roi)
    assert set(features.vectors) == {"roi:low", "roi:right"}
    fine = worlds.tiny()
    fine = replace(fine, card=replace(fine.card, level="stage0"))
    found = fine(volume, vectors=(), roi=roi)
    # on a grid of its own voxels the share of a label is 0 or 1
    index = np.rint(volume.index(to_world(prepared.affine, np.argwhere(np.ones(prepared.x.shape[1:]))))).astype(int)
    inside = mask[index[:, 0], index[:, 1], index[:, 2]] == 1
    expected = found.grid.data.flatten(1)[:, torch.from_numpy(inside)].mean(1)
    torch.testing.assert_close(found.vectors["roi:low"], expected, atol=1e-4, rtol=1e-3)


def test_projection_is_applied_to_cells():
    encoder, volume = worlds.tiny(), worlds.body()
    matrix = torch.randn(3, encoder.level("stage3").channels, generator=torch.Generator().manual_seed(0))
    plain = encoder(volume, levels=["stage3"]).grid
    small = encoder(volume, levels=["stage3"], project=lambda rows: rows @ matrix.T).grid
    torch.testing.assert_close(small.data, torch.einsum("kc,cdhw->kdhw", matrix, plain.data))


def test_refusals_name_the_reason():
    encoder = worlds.tiny()
    labels = Volume(np.ones((8, 8, 8), np.uint8), make_affine(), "label")
    with pytest.raises(ContractError, match="give the scan, not its label map"):
        encoder(labels)
    with pytest.raises(ContractError, match="nearest known one is 'mean'"):
        encoder(worlds.body(), vectors=["meen"])
    with pytest.raises(ContractError, match="stage9"):
        encoder(worlds.body(), levels=["stage9"])


def test_a_pass_that_cannot_fit_is_refused_before_it_starts(monkeypatch):
    import ctfoundry.encoder

    monkeypatch.setattr(ctfoundry.encoder, "WHOLE_CAP_BYTES", 1000)
    with pytest.raises(ContractError, match="use extent 'windows'"):
        worlds.tiny()(worlds.body())


def test_features_that_were_not_asked_for_are_named():
    features = worlds.tiny()(worlds.body(), levels=[])
    assert isinstance(features, Features)
    with pytest.raises(ContractError, match="not asked for"):
        _ = features.grid


def test_bf16_keeps_the_nearest_neighbour():
    encoder = worlds.tiny()
    full = torch.stack([encoder(worlds.body(seed)).vector for seed in range(6)])
    low = torch.stack([encoder(worlds.body(seed), precision="bf16").vector for seed in range(6)])
    assert not torch.equal(full, low)

    def nearest(x: torch.Tensor) -> list[int]:
        rows = torch.nn.functional.normalize(x, dim=1)
        return (rows @ rows.T).fill_diagonal_(-1).argmax(1).tolist()

    assert nearest(full) == nearest(low)
