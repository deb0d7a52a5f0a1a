"""``ctfoundry bench search``: one pass over a chest against window by window, both from a scan to the places found.

Both sides start from the same prepared scan of 3x1x1 mm (the published grid; a phantom's whole chest) and run the same
network of ct-fm-tiny's size with random weights. Ours makes one pass, whitens three levels and takes the best cells; the other side
embeds windows of 16x64x64 voxels that overlap by 0.625, as published, in batches. Queries are made beforehand on both sides and
not timed. `ours_mm` and `other_mm` are the median errors over the structures that both chests hold whole: of random weights, so
they only show that neither side is broken. What trained weights find stands in docs/search.md.

The second row has the published search on the other side: windows of 64x64x64 voxels on 1x1x1 mm, every 24. A batch of `SAMPLE`
windows is timed and scaled to their number; the rest of that side's work is not counted.
"""

from __future__ import annotations

import time
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry import geometry, phantom, zoo
from ctfoundry.bench.baselines.search import window_vectors
from ctfoundry.encoder import Encoder
from ctfoundry.evaluate.landmarks import centroids
from ctfoundry.infer.passes import window_starts, window_step
from ctfoundry.keys import Key
from ctfoundry.retrieval.search import Seen, window_at
from ctfoundry.retrieval.search_maps import OVERLAP, Looking, default_levels, scene
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor

    from ctfoundry.geometry import Vec3

SPACING = (3.0, 1.0, 1.0)
WINDOW = (16, 64, 64)
PHANTOM_MM = 3.0
PUBLISHED_SPACING, PUBLISHED_WINDOW = (1.0, 1.0, 1.0), (64, 64, 64)
SAMPLE = 8
"""Windows of the published search that are timed."""


def chest(seed: int) -> tuple[Volume, Volume]:
    """A phantom's chest and its labels."""
    made = phantom.make(phantom.draw(Key.of("bench", "search", seed), view="chest", voxel_mm=PHANTOM_MM))
    return made.ct, made.labels


def run(*, repeats: int = 3, threads: int = 1, model: Encoder | None = None) -> list[dict[str, Any]]:
    """Two rows; `model`: another encoder than ct-fm-tiny with random weights, on the published grids."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _rows(model or zoo.load_encoder("ct-fm-tiny", weights="random"), repeats, threads)
    finally:
        torch.set_num_threads(before)


def _on(model: Encoder, spacing: tuple[float, float, float]) -> Encoder:
    fine = replace(model.preparation, resampling=replace(model.preparation.resampling, spacing=spacing))
    return replace(model, preparation=fine, card=replace(model.card, preparation=fine))


def _rows(model: Encoder, repeats: int, threads: int) -> list[dict[str, Any]]:
    encoder = _on(model, SPACING)
    (query, query_labels), (target, target_labels) = chest(1), chest(2)
    asked, truth = centroids(query_labels), centroids(target_labels)
    looking = Looking(default_levels(encoder))
    seen = Seen.of(encoder, query, looking)
    assert seen.scene.feature is not None
    names = sorted(n for n in asked.keys() & truth.keys() if seen.scene.feature.holds(asked[n]))
    queries = [seen.query(asked[name]) for name in names]
    windows = torch.nn.functional.normalize(
        torch.stack([window_at(encoder, query, asked[name], WINDOW) for name in names]), dim=1
    )
    prepared = encoder.prepare(target)
    step = window_step(WINDOW, OVERLAP)
    level = encoder.card.level

    def network(x: Tensor) -> Tensor:
        return encoder.raw(x, (level,))[0][level]

    def ours() -> np.ndarray:
        there = scene(encoder, prepared, looking)
        rows = seen.likeness(there.rows)
        return np.array([one.find_in(there, rows=rows).point for one in queries])

    def other() -> np.ndarray:
        rows, centres = window_vectors(network, prepared.x[0], WINDOW, step)
        return geometry.to_world(prepared.affine, centres[(windows @ rows.T).argmax(1).numpy()])

    x = _on(model, PUBLISHED_SPACING).prepare(target).x[0]
    count = prod(
        len(starts) for starts in window_starts(_vec(x), PUBLISHED_WINDOW, window_step(PUBLISHED_WINDOW, OVERLAP))
    )
    some = x[tuple(slice(0, n) for n in PUBLISHED_WINDOW)].expand(SAMPLE, 1, *PUBLISHED_WINDOW).contiguous()

    @torch.no_grad()
    def published() -> np.ndarray:
        return network(some).flatten(2).mean(2).numpy()

    found: dict[str, np.ndarray] = {}
    times: dict[str, list[float]] = {"ours": [], "other": [], "published": []}
    for _ in range(repeats):
        for side, call in (("ours", ours), ("other", other), ("published", published)):
            start = time.perf_counter()
            found[side] = call()
            times[side].append(time.perf_counter() - start)
    ours_s, other_s, sample_s = (float(np.median(times[side])) for side in times)
    published_s = sample_s * count / SAMPLE
    places = np.array([truth[name] for name in names])
    error = {s: float(np.median(np.linalg.norm(found[s] - places, axis=1))) for s in ("ours", "other")}
    size = "x".join(str(n) for n in prepared.x.shape[1:])
    many = f"{len(names)} places in a chest of {size} voxels of 3x1x1 mm: one pass, against"
    common = {"ours_s": ours_s, "max_error": None, "ours_mm": error["ours"], "threads": threads, "dtype": "float32"}
    text = "x".join(map(str, WINDOW))
    return [
        {"name": f"{many} windows of {text}", "other_s": other_s, "ratio": other_s / ours_s, "other_mm": error["other"]}
        | common,
        {
            "name": f"{many} {count} windows of 64x64x64 on 1x1x1 mm, as published ({SAMPLE} timed)",
            "other_s": published_s,
            "ratio": published_s / ours_s,
            "other_mm": None,
        }
        | common,
    ]


def _vec(x: Tensor) -> Vec3:
    return x.shape[0], x.shape[1], x.shape[2]
