"""``ctfoundry bench vit``: our transformer against the same network written with `nn.MultiheadAttention` in float32.

On a GPU where there is one, else on one thread. The published size; bfloat16 by autocast is a row of its own, since it is another
precision, and equal dtypes stand beside it. `max_error` compares unit CLS tokens with rotary positions switched off, which the
other side has not; what is timed has them. `ours_gib` and `other_gib` are what one pass takes at its peak on top of what was held
before it, weights among that (`peak_gib`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from ctfoundry.bench.baselines.vit import PlainViT
from ctfoundry.bench.memory import peak_gib
from ctfoundry.infer.passes import Precision, autocast
from ctfoundry.keys import Key
from ctfoundry.models.vit import FlexibleViT

Axes = Literal[2, 3]
Side = tuple[str, Precision]
Case = tuple[str, Axes, tuple[int, ...]]
CPU_CASES: tuple[Case, ...] = (
    ("one slice of 256x256, patch 8", 2, (256, 256)),
    ("one volume of 80x80x80, patch 8", 3, (80, 80, 80)),
)
CPU_ONCE: tuple[Case, ...] = (("one volume of 160x160x160, patch 8, one pass", 3, (160, 160, 160)),)
"""Cases that take minutes on one thread: a single pass a side, for its memory; its time is no median."""
GPU_CASES: tuple[Case, ...] = (
    ("one slice of 512x512, patch 8", 2, (512, 512)),
    ("one volume of 160x160x160, patch 8", 3, (160, 160, 160)),
)
PAIRS: tuple[tuple[Precision, Precision], ...] = (("bf16", "fp32"), ("fp32", "fp32"), ("bf16", "bf16"))
"""Precision of ours and of the other side; the first is the headline."""


def run(*, repeats: int = 3, threads: int = 1) -> list[dict[str, Any]]:
    """For each input a row in bfloat16 against float32 (the first is the headline), and rows of equal dtype."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows = []
    try:
        for case in GPU_CASES if on_gpu else CPU_CASES:
            rows += _case(case, device, repeats, threads)
        for case in () if on_gpu else CPU_ONCE:
            rows += _case(case, device, 0, threads, PAIRS[:2])
    finally:
        torch.set_num_threads(before)
    return rows


@torch.no_grad()
def _case(
    case: Case, device: torch.device, repeats: int, threads: int, pairs: Iterable[tuple[Precision, Precision]] = PAIRS
) -> list[dict[str, Any]]:
    """Rows of one input. The first pass of each side is measured in memory and counts in time only where it is the only one."""
    name, axes, shape = case
    ours = FlexibleViT(axes, 8, "base", rotary="bfloat16").initialise(Key.of("bench", "vit")).to(device).eval()
    for weight_name, weight in ours.named_parameters():
        if weight_name.endswith("gamma"):
            weight.fill_(0.1)  # at its starting value of 1e-5 no block would show in the result
    plain = PlainViT(ours).to(device).eval()
    x = torch.from_numpy(Key.of("bench", "vit", "x").normal((1, 1, *shape))).float().to(device)
    pairs = tuple(pairs)
    sides: list[Side] = list(
        dict.fromkeys([("ours", mine) for mine, _ in pairs] + [("other", theirs) for _, theirs in pairs])
    )
    times: dict[Side, list[float]] = {side: [] for side in sides}

    def timed(side: Side) -> None:
        who, precision = side
        _wait(device)
        start = time.perf_counter()
        _ours(ours, x, precision) if who == "ours" else _other(plain, x, precision)
        _wait(device)
        times[side].append(time.perf_counter() - start)

    memory = {side: peak_gib(partial(timed, side), device) for side in sides}
    for _ in range(repeats):
        for side in sides:
            timed(side)
    seconds = {side: float(np.median(values[1:] or values)) for side, values in times.items()}
    error = {p: _error(ours, plain, x, p) if repeats else None for p in dict.fromkeys(mine for mine, _ in pairs)}
    return [
        {
            "name": f"{name}: {mine} against {theirs}",
            "ours_s": seconds["ours", mine],
            "other_s": seconds["other", theirs],
            "ratio": seconds["other", theirs] / seconds["ours", mine],
            "max_error": error[mine],
            "threads": threads,
            "dtype": mine if mine == theirs else f"{mine} / {theirs}",
            "ours_gib": memory["ours", mine],
            "other_gib": memory["other", theirs],
        }
        for mine, theirs in pairs
    ]


def _ours(net: FlexibleViT, x: torch.Tensor, precision: Precision) -> torch.Tensor:
    with autocast(x.device, precision):
        return net(x)[0].cls


def _other(net: PlainViT, x: torch.Tensor, precision: Precision) -> torch.Tensor:
    with autocast(x.device, precision):
        return net(x)[:, 0]


def _error(ours: FlexibleViT, plain: PlainViT, x: torch.Tensor, precision: Precision) -> float:
    """Largest difference of unit CLS tokens, ours with `precision`, the other in float32, both without positions."""
    rope = ours.rope_embed_2D if ours.axes == 2 else ours.rope_embed_3D
    kept = rope.periods.clone()
    rope.periods.fill_(torch.inf)  # every angle is 0
    try:
        mine = _ours(ours, x, precision).float()
    finally:
        rope.periods.copy_(kept)
    unit = [torch.nn.functional.normalize(v, dim=1) for v in (mine, _other(plain, x, "fp32").float())]
    return float((unit[0] - unit[1]).abs().max())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
