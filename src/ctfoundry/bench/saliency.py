"""``ctfoundry bench saliency``: what an occlusion changes against the whole network, box by box, on one thread.

Both sides hide the same boxes of 8x8x8 voxels in the same prepared phantom and run the same network. The other side's boxes are
`BOXES` drawn among all that change anything, since all of them take an hour; its time is scaled to all of them. Ours computes all,
with the base pass and what is fitted, to other boxes than those. `correlation` is over the drawn boxes, as is `max_error`: the
largest difference over the largest deviation. The first row follows two convolutions of each stage (the default), the second all of
them: ct-fm-tiny with random weights in a chest. The third is flexict-tiny in a torso. Its random weights hardly attend to
anything, which would flatter a method to first order, so they are made to (`attentive`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from ctfoundry import phantom, zoo
from ctfoundry.bench.baselines.saliency import deviations
from ctfoundry.encoder import Encoder
from ctfoundry.explain.saliency import Settings, measure, shuffled
from ctfoundry.explain.saliency_passes import FITTED
from ctfoundry.explain.saliency_target import target_of
from ctfoundry.keys import Key
from ctfoundry.models.vit import FlexibleViT
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor

BOXES = 48
CASES: tuple[tuple[str, int | None], ...] = (("ct-fm-tiny", 2), ("ct-fm-tiny", None), ("flexict-tiny", None))


def scan(view: Literal["chest", "torso"], voxel_mm: float = 3.0) -> Volume:
    """A phantom's chest or torso."""
    return phantom.make(phantom.draw(Key.of("bench", "saliency"), view=view, voxel_mm=voxel_mm)).ct


@torch.no_grad()
def attentive(encoder: Encoder) -> Encoder:
    """A transformer with random weights, in place, whose blocks matter: LayerScale from 0.1 to 1, linear weights four times as large."""
    network = cast(FlexibleViT, encoder.network)
    for name, value in network.named_parameters():
        if name.endswith("gamma"):
            value.copy_(torch.from_numpy(Key.of("bench", "saliency", name).uniform(0.1, 1, len(value))))
        elif name.startswith("blocks") and value.ndim == 2:
            value.mul_(4)
    return encoder


def run(*, repeats: int = 1, threads: int = 1, voxel_mm: float = 3.0) -> list[dict[str, Any]]:
    """One row a case."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = []
        for name, reach in CASES:
            encoder = zoo.load_encoder(name, weights="random")
            attends = isinstance(encoder.network, FlexibleViT)
            volume = scan("torso" if attends else "chest", voxel_mm)
            rows.append(_row(attentive(encoder) if attends else encoder, volume, reach, repeats, threads))
        return rows
    finally:
        torch.set_num_threads(before)


def _row(encoder: Encoder, volume: Volume, reach: int | None, repeats: int, threads: int) -> dict[str, Any]:
    prepared = encoder.prepare(volume)
    target = target_of(encoder, prepared)
    settings = Settings(reach=reach, checked=0)

    def vector(x: Tensor) -> Tensor:
        return target.of_output(*encoder.raw(x, (target.level,)))

    times: dict[str, list[float]] = {"ours": [], "other": []}
    for _ in range(repeats):
        start = time.perf_counter()
        found = measure(encoder, prepared, target, settings)
        times["ours"].append(time.perf_counter() - start)
        flat, scores = found.starts.reshape(-1, 3), found.scores.reshape(-1)
        able = shuffled(found.changes, settings.seed)
        some = able[FITTED : FITTED + BOXES]
        start = time.perf_counter()
        true = deviations(vector, prepared.x, flat[some], 8, float(prepared.x.min()))
        times["other"].append((time.perf_counter() - start) * len(able) / len(some))
    ours, other = (float(np.median(times[side])) for side in ("ours", "other"))
    followed = "changed tokens" if "tokens" in found.method else "all it reaches" if reach is None else f"reach {reach}"
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
