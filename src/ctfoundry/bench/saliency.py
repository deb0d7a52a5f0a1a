"""``ctfoundry bench saliency``: what an occlusion reaches against the whole network, box by box, on one thread.

Both sides hide the same boxes of 8x8x8 voxels in the same prepared phantom's chest (6x2x2 mm) and run the same network of
ct-fm-tiny's size with random weights. The other side's boxes are `BOXES` drawn among all that change anything, since all of them
take an hour; its time is scaled to all of them. Ours computes all, with the base pass. `correlation` is over the drawn boxes, as is
`max_error`: the largest difference over the largest deviation. The first row follows two convolutions of each stage (the default),
the second all of them. The third is flexict-tiny, where every box reaches everything: coarse to fine, `SHARE` of the
boxes, which is faster and not right: look at its correlation.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry import phantom, zoo
from ctfoundry.bench.baselines.saliency import deviations
from ctfoundry.encoder import Encoder
from ctfoundry.explain.saliency import Settings, measure
from ctfoundry.explain.saliency_target import target_of
from ctfoundry.keys import Key
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor

BOXES = 24
SHARE = 0.04
CASES: tuple[tuple[str, int | None], ...] = (("ct-fm-tiny", 2), ("ct-fm-tiny", None), ("flexict-tiny", None))


def chest(voxel_mm: float = 3.0) -> Volume:
    """A phantom's chest."""
    return phantom.make(phantom.draw(Key.of("bench", "saliency"), view="chest", voxel_mm=voxel_mm)).ct


def run(*, repeats: int = 1, threads: int = 1, voxel_mm: float = 3.0) -> list[dict[str, Any]]:
    """One row a case."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        volume = chest(voxel_mm)
        loaded = {name: zoo.load_encoder(name, weights="random") for name, _ in CASES}
        return [_row(loaded[name], volume, reach, repeats, threads) for name, reach in CASES]
    finally:
        torch.set_num_threads(before)


def _row(encoder: Encoder, volume: Volume, reach: int | None, repeats: int, threads: int) -> dict[str, Any]:
    prepared = encoder.prepare(volume)
    target, settings = (
        target_of(encoder, prepared),
        Settings(reach=reach, checked=0, share=SHARE if encoder.card.name.startswith("flexict") else None),
    )

    def vector(x: Tensor) -> Tensor:
        maps, tokens = encoder.raw(x, (target.level,))
        return tokens[target.name] if target.how == "token" else target.of_maps(maps[target.level])

    times: dict[str, list[float]] = {"ours": [], "other": []}
    for _ in range(repeats):
        start = time.perf_counter()
        found = measure(encoder, prepared, target, settings)
        times["ours"].append(time.perf_counter() - start)
        flat, scores = found.starts.reshape(-1, 3), found.scores.reshape(-1)
        able = np.flatnonzero(found.changes.reshape(-1) > 0)
        some = able[np.argsort(Key.of("bench", "boxes").uniform(0, 1, len(able)))[:BOXES]]
        start = time.perf_counter()
        true = deviations(vector, prepared.x, flat[some], 8, float(prepared.x.min()))
        times["other"].append((time.perf_counter() - start) * len(able) / len(some))
    ours, other = (float(np.median(times[side])) for side in ("ours", "other"))
    followed = "coarse to fine" if "coarse" in found.method else "all it reaches" if reach is None else f"reach {reach}"
    return {
        "name": f"{encoder.card.name}, {len(able)} boxes of 8x8x8 in {'x'.join(map(str, prepared.x.shape[1:]))}: {followed}",
        "ours_s": ours,
        "other_s": other,
        "ratio": other / ours,
        "max_error": float(np.abs(scores[some] - true).max() / true.max()),
        "correlation": float(np.corrcoef(scores[some], true)[0, 1]),
        "boxes_compared": len(some),
        "threads": threads,
        "dtype": "float32",
    }
