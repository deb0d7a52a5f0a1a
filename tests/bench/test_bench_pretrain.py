"""The benchmark of a step runs, both sides compute the same loss, and the other side's loss is the formula's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ctfoundry.bench import pretrain
from ctfoundry.bench.baselines.loss import looped_nt_xent
from ctfoundry.bench.baselines.pretrain import nt_xent
from ctfoundry.pretrain.recipe_files import load_recipe
from ctfoundry.settings import with_changes

KEYS = {"name", "ours_s", "other_s", "ratio", "max_error", "threads", "dtype"}


@pytest.mark.monai
@pytest.mark.xdist_group("monai")
def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "FIELD_MM", (120.0, 80.0, 80.0))
    recipe = with_changes(
        load_recipe("ct-fm-tiny"),
        ["crops=3", "crop=[8,16,16]", "model.filters=4", "model.blocks=[1,1]", "model.head=[16,8]"],
    )
    recipe = replace(recipe, train=replace(recipe.train, precision="fp32"))
    rows = pretrain.run(repeats=1, device="cpu", recipe=recipe)
    assert [row["name"].strip() for row in rows[1:6]] == list(pretrain.PARTS)
    assert len(rows) == 1 + len(pretrain.PARTS) + len(pretrain.FORMS) - 1
    for row in rows:
        assert row.keys() >= KEYS
        assert (row["threads"], row["dtype"]) == (1, "fp32")
        assert row["ratio"] == pytest.approx(row["other_s"] / row["ours_s"])
    for row in (rows[0], *rows[6:]):
        assert row["max_error"] < 1e-4  # the same weights and views: MONAI's encoder and the other head, norm and loss
    assert sum(row["ours_s"] for row in rows[1:6]) == pytest.approx(rows[0]["ours_s"], rel=1e-6)
    assert all(row["ours_s"] > 0 for row in rows[1:6])


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_other_sides_loss_is_the_loop_over_anchors(symmetric: bool) -> None:
    z = torch.randn(3, 5, 2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = looped_nt_xent(z)
    if symmetric:
        expected = (expected + looped_nt_xent(z.flip(2))) / 2
    torch.testing.assert_close(nt_xent(z, 0.1, symmetric=symmetric), expected)


def test_the_share_of_convolutions_is_one_where_nothing_else_is_done() -> None:
    x, w = torch.randn(4, 16, 12, 24, 24), torch.randn(16, 16, 3, 3, 3)
    share = pretrain.convolution_share(lambda: _drop(torch.conv3d(x, w)))
    assert share > 0.9
    a = torch.randn(400, 400)
    assert pretrain.convolution_share(lambda: _drop(a @ a)) == 0


def _drop(_: object) -> None:
    return None
