"""The benchmark of whole scans runs, and both sides give the same labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import worlds
from ctfoundry.bench import infer
from ctfoundry.bench.baselines.infer import monai_labels
from ctfoundry.infer.passes import Extent
from ctfoundry.preparation import prepare
from infer import networks


@pytest.mark.monai
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows(monkeypatch, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(infer, "CASES", (("reduction", (24, 40, 40), (12, 16, 16), 0.5, precision),))
    (row,) = infer.run(repeats=1)
    assert row["ratio"] == pytest.approx(row["other_s"] / row["ours_s"])
    # in bf16 the other side rounds its logits to 8 bits, as autocast has it; ours makes them of features in float32
    assert row["max_error"] < {"fp32": 1e-3, "bf16": 1e-2}[precision]
    assert row["threads"] == 1
    assert row["logits_gib"] == pytest.approx(118 * 24 * 40 * 40 * 4 / 2**30)


@pytest.mark.monai
def test_the_other_side_gives_our_labels():
    size = (16, 32, 32)
    made = networks.segmenter(6, networks.resampled((1.5, 1.5, 1.5)), Extent("windows", size, 0.5, "gaussian"))
    volume = worlds.body(2, (30, 40, 44), (2.0, 1.0, 1.2))
    theirs = monai_labels(made.network, prepare(made.preparation, volume), made.extent, 2, volume.grid)
    ours = made(volume).voxels
    inside = ours > 0  # outside the foreground box theirs repeats the border
    assert inside.mean() > 0.2
    assert (ours != theirs)[inside].mean() < 1e-3
    assert np.unique(theirs).size > 3
