"""The benchmark of search runs, and its other side is the windows of `Encoder.windows`."""

from __future__ import annotations

import numpy as np
import torch

import worlds
from ctfoundry import geometry
from ctfoundry.bench import search
from ctfoundry.bench.baselines.search import window_vectors
from ctfoundry.infer.passes import window_step


def test_the_other_side_embeds_the_windows_that_ours_would():
    encoder, volume = worlds.tiny(), worlds.body()
    size, overlap = (8, 24, 24), 0.5
    ours = encoder.windows(volume, size, overlap)
    prepared = encoder.prepare(volume)
    level = encoder.card.level
    rows, centres = window_vectors(
        lambda x: encoder.raw(x, (level,))[0][level].detach(), prepared.x[0], size, window_step(size, overlap), 7
    )
    np.testing.assert_allclose(geometry.to_world(prepared.affine, centres), ours.centres)
    normal = torch.nn.functional.normalize(ours.vectors, dim=1)
    torch.testing.assert_close(rows, normal, atol=1e-4, rtol=1e-3)


def test_it_runs(monkeypatch):
    monkeypatch.setattr(search, "PHANTOM_MM", 5.0)
    monkeypatch.setattr(search, "SPACING", (9.0, 4.0, 4.0))
    monkeypatch.setattr(search, "WINDOW", (8, 24, 24))
    monkeypatch.setattr(search, "PUBLISHED_SPACING", (6.0, 4.0, 4.0))
    monkeypatch.setattr(search, "PUBLISHED_WINDOW", (16, 24, 24))
    row, published = search.run(repeats=1, model=worlds.tiny())
    assert published["ours_s"] == row["ours_s"]
    assert published["other_s"] > 0
    assert row["ratio"] == row["other_s"] / row["ours_s"]
    assert 0 <= row["ours_mm"] < 300
    assert 0 <= row["other_mm"] < 300
