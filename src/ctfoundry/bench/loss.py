"""``ctfoundry bench loss``: the vectorised intra-sample NT-Xent against a loop over anchors, forward and backward."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from ctfoundry.bench.baselines.loss import looped_nt_xent
from ctfoundry.keys import Key
from ctfoundry.pretrain.nt_xent import nt_xent_intra

SHAPE = (16, 20, 2, 128)
"""Scans, crops, views and channels of one published step."""
CALLS = 20
"""Calls of ours for each of the loop, which takes so much longer."""


def run(*, repeats: int = 5, threads: int = 1) -> list[dict[str, Any]]:
    """One row: medians of alternating runs in float32; `max_error` is the gradients' largest difference over their largest value."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        z = torch.from_numpy(Key.of("bench", "loss").normal(SHAPE)).float().requires_grad_()
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats + 1):
            for _ in range(CALLS):
                start = time.perf_counter()
                (ours,) = torch.autograd.grad(nt_xent_intra(z), z)
                times[0].append(time.perf_counter() - start)
            start = time.perf_counter()
            (theirs,) = torch.autograd.grad(looped_nt_xent(z), z)
            times[1].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    ours_s, other_s = (
        float(np.median(times[0][CALLS:])),
        float(np.median(times[1][1:])),
    )  # the first round warms both up
    return [
        {
            "name": "loss, forward and backward, {} scans x {} crops x {} views x {}".format(*SHAPE),
            "ours_s": ours_s,
            "other_s": other_s,
            "ratio": other_s / ours_s,
            "max_error": float((ours - theirs).abs().max() / theirs.abs().max()),
            "threads": threads,
            "dtype": "float32",
        }
    ]
