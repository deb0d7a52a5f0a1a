"""``ctfoundry bench vit``: our transformer against the same network written with `nn.MultiheadAttention` in float32.

On a GPU where there is one, else on one thread. The published size; bfloat16 by autocast is a row of its own, since it is another
precision, and equal dtypes stand beside it. `max_error` compares unit CLS tokens with rotary positions switched off, which the
other side has not; what is timed has them.
"""

from __future__ import annotations

import resource
import time
from typing import Any, Literal

import numpy as np
import torch

from ctfoundry.bench.baselines.vit import PlainViT
from ctfoundry.infer.passes import Precision, autocast
from ctfoundry.keys import Key
from ctfoundry.models.vit import FlexibleViT

CPU_CASES: tuple[tuple[str, Literal[2, 3], tuple[int, ...]], ...] = (
    ("one slice of 256x256, patch 8", 2, (256, 256)),
    ("one volume of 80x80x80, patch 8", 3, (80, 80, 80)),
)
GPU_CASES: tuple[tuple[str, Literal[2, 3], tuple[int, ...]], ...] = (
    ("one slice of 512x512, patch 8", 2, (512, 512)),
    ("one volume of 160x160x160, patch 8", 3, (160, 160, 160)),
)


def run(*, repeats: int = 3, threads: int = 1) -> list[dict[str, Any]]:
    """For each input a row in bfloat16 against float32 (the first is the headline), and rows of equal dtype; then memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows = []
    try:
        for name, axes, shape in GPU_CASES if device.type == "cuda" else CPU_CASES:
            rows += _case(name, axes, shape, device, repeats, threads)
    finally:
        torch.set_num_threads(before)
    return rows


@torch.no_grad()
def _case(
    name: str, axes: Literal[2, 3], shape: tuple[int, ...], device: torch.device, repeats: int, threads: int
) -> list[dict[str, Any]]:
    ours = FlexibleViT(axes, 8, "base", rotary="bfloat16").initialise(Key.of("bench", "vit")).to(device).eval()
    for weight_name, weight in ours.named_parameters():
        if weight_name.endswith("gamma"):
            weight.fill_(0.1)  # at its starting value of 1e-5 no block would show in the result
    plain = PlainViT(ours).to(device).eval()
    x = torch.from_numpy(Key.of("bench", "vit", "x").normal((1, 1, *shape))).float().to(device)
    sides = {
        ("ours", "fp32"): lambda: _ours(ours, x, "fp32"),
        ("ours", "bf16"): lambda: _ours(ours, x, "bf16"),
        ("other", "fp32"): lambda: _other(plain, x, "fp32"),
        ("other", "bf16"): lambda: _other(plain, x, "bf16"),
    }
    times: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    for _ in range(repeats + 1):
        for side, call in sides.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            times[side].append(time.perf_counter() - start)
    seconds = {side: float(np.median(values[1:])) for side, values in times.items()}
    error = {p: _error(ours, plain, x, p) for p in ("fp32", "bf16")}
    memory = (
        torch.cuda.max_memory_allocated(device) / 2**30
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    return [
        {
            "name": f"{name}: {mine} against {theirs}",
            "ours_s": seconds["ours", mine],
            "other_s": seconds["other", theirs],
            "ratio": seconds["other", theirs] / seconds["ours", mine],
            "max_error": error[mine],
            "threads": threads,
            "dtype": mine if mine == theirs else f"{mine} / {theirs}",
            "peak_gib": round(memory, 2),
        }
        for mine, theirs in (("bf16", "fp32"), ("fp32", "fp32"), ("bf16", "bf16"))
    ]


def _ours(net: FlexibleViT, x: torch.Tensor, precision: Precision) -> torch.Tensor:
    with autocast(x.device, precision):
        return net(x)[0].cls


def _other(net: PlainViT, x: torch.Tensor, precision: Precision) -> torch.Tensor:
    with autocast(x.device, precision):
        return net(x)[:, 0]


def _error(ours: FlexibleViT, plain: PlainViT, x: torch.Tensor, precision: str) -> float:
    """Largest difference of unit CLS tokens, ours with `precision`, the other in float32, both without positions."""
    rope = ours.rope_embed_2D if ours.axes == 2 else ours.rope_embed_3D
    kept = rope.periods.clone()
    rope.periods.fill_(torch.inf)  # every angle is 0
    try:
        mine = _ours(ours, x, "bf16" if precision == "bf16" else "fp32").float()
    finally:
        rope.periods.copy_(kept)
    unit = [torch.nn.functional.normalize(v, dim=1) for v in (mine, _other(plain, x, "fp32").float())]
    return float((unit[0] - unit[1]).abs().max())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
