"""The benchmark of the transformer runs, both sides are one network, and its memory is that of one pass alone."""

from __future__ import annotations

import sys

import pytest
import torch

from ctfoundry.bench import vit
from ctfoundry.bench.baselines.vit import PlainViT
from ctfoundry.bench.memory import peak_gib
from ctfoundry.keys import Key
from ctfoundry.models.vit import FlexibleViT

CPU = torch.device("cpu")


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(vit, "CPU_CASES", (("a slice", 2, (16, 24)), ("a volume", 3, (16, 8, 8))))
    monkeypatch.setattr(vit, "CPU_ONCE", (("another", 3, (16, 16, 16)),))
    monkeypatch.setattr("ctfoundry.models.vit.SIZES", {"base": (144, 2, 2)})
    rows = vit.run(repeats=1)
    assert [row["dtype"] for row in rows] == ["bf16 / fp32", "fp32", "bf16"] * 2 + ["bf16 / fp32", "fp32"]
    for row in rows:
        assert row["threads"] == 1
        assert row["ratio"] == pytest.approx(row["other_s"] / row["ours_s"])
    # without positions the two are one network: float32 to rounding, bfloat16 to its own
    assert [row["max_error"] < 1e-5 for row in rows[:6]] == [False, True, False] * 2
    assert all(row["max_error"] < 0.05 for row in rows[:6])
    assert rows[6]["max_error"] is None  # one pass, for its memory


@torch.no_grad()
def test_the_other_side_differs_by_its_positions_alone() -> None:
    ours = FlexibleViT(3, 4, (48, 2, 2), base_patch=4).initialise(Key.of("vit")).eval()
    for name, weight in ours.named_parameters():
        if name.endswith("gamma"):
            weight.fill_(0.5)
    x = torch.from_numpy(Key.of("x").normal((1, 1, 8, 8, 8))).float()
    plain = PlainViT(ours).eval()
    assert (ours(x)[0].cls - plain(x)[:, 0]).abs().max() > 1e-5
    ours.rope_embed_3D.periods.fill_(torch.inf)
    torch.testing.assert_close(ours(x)[0].patches, plain(x)[:, 5:], rtol=1e-4, atol=1e-5)


def test_the_peak_is_that_of_the_call_alone() -> None:
    """Neither an earlier, higher peak nor what is held already counts."""

    def take(mib: int) -> None:
        torch.ones(mib * 2**18)

    held = torch.ones(100 * 2**18)
    take(600)
    if not sys.platform.startswith("linux"):
        assert peak_gib(lambda: take(200), CPU) is None
        return
    assert peak_gib(lambda: take(200), CPU) == pytest.approx(200 / 1024, rel=0.1)
    assert peak_gib(lambda: None, CPU) == pytest.approx(0, abs=0.01)
    assert held[-1] == 1
