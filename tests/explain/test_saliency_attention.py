"""Saliency of transformers: the parts that claim to be exact, exactly; the rest by derivatives and against one pass a box.

Networks here have LayerScale from 0.3 to 1 and large weights: with the usual random ones attention hardly matters and any linear
method would look perfect.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctfoundry import zoo
from ctfoundry.encoder import Encoder
from ctfoundry.explain import saliency, saliency_attention, saliency_passes
from ctfoundry.explain.saliency import Ledger, Settings, doubt, measure, shuffled
from ctfoundry.explain.saliency_attention import AttentionPass, _Gradients, _Kept, _others, directions
from ctfoundry.explain.saliency_passes import FILLS, Fill, exact_vectors, hidden
from ctfoundry.explain.saliency_target import Target, target_of
from ctfoundry.geometry import Grid, make_affine
from ctfoundry.infer.passes import Extent
from ctfoundry.keys import Key
from ctfoundry.models.vit import FlexibleViT
from ctfoundry.preparation import Prepared
from ctfoundry.volume import Volume

KEY = Key.of("test", "attention")


@torch.no_grad()
def attending(blocks: int = 3, patch: int = 4, width: int = 24, vector: str = "cls", double: bool = False) -> Encoder:
    """A narrow transformer whose attention matters."""
    arguments: dict[str, Any] = {"axes": 3, "patch": patch, "size": [width, blocks, 2], "rotary": "float32"}
    network = FlexibleViT(**arguments).initialise(KEY)
    for name, value in network.named_parameters():
        if name.endswith("gamma"):
            value.copy_(torch.from_numpy(KEY(name).uniform(0.3, 1, len(value))))
        elif name.startswith("blocks") and value.ndim == 2:
            value.mul_(10)
    card = replace(
        zoo.load_encoder("flexict-tiny", weights="random").card,
        arguments=arguments,
        level=f"block{blocks - 1}",
        vector=vector,
    )
    return Encoder.of(network.double() if double else network, card)


def scan(shape: tuple[int, int, int] = (16, 24, 32), double: bool = False) -> Prepared:
    """Smooth structures and noise, and a corner that is not valid."""
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    x = np.sin(axes[0] / 3) + np.cos(axes[1] / 5) * np.sin(axes[2] / 7) + KEY("scan").normal(shape) / 2
    valid = torch.ones(shape, dtype=torch.bool)
    valid[:, :, -6:] = False
    affine = make_affine((4.0, 4.0, 4.0), "SPL")
    made = torch.from_numpy(x).to(torch.float64 if double else torch.float32)
    return Prepared(made[None], affine, valid, Grid(shape, affine))


def region(prepared: Prepared) -> Volume:
    voxels = np.zeros(prepared.x.shape[1:], np.uint8)
    voxels[4:12, 8:20, 8:18] = 1
    return Volume(voxels, prepared.affine, "label", {1: "one"})


def asked(name: str, prepared: Prepared, **given: Any) -> tuple[Encoder, Target]:
    """An encoder and a target of each kind."""
    encoder = attending(vector=name if name in ("cls", "cls+mean") else "mean", **given)
    if name == "region":
        return encoder, target_of(encoder, prepared, roi=region(prepared))
    if name == "point":
        grid = encoder(prepared).grid
        return encoder, target_of(encoder, prepared, point=grid.world(np.array(grid.data.shape[1:]) * 0.4))
    if name == "similarity":
        other = torch.from_numpy(KEY("other").normal(24))
        return encoder, target_of(encoder, prepared, reference=other)
    return encoder, target_of(encoder, prepared)


TARGETS = ("cls", "cls+mean", "mean", "region", "point", "similarity")


def all_directions(target: Target) -> torch.Tensor:
    """Changes that span everything, so that no direction is left to estimates."""
    return target.base + torch.eye(len(target.base), dtype=torch.float64)


def test_what_others_read_is_attention_with_keys_and_values_replaced() -> None:
    """Against attention computed whole, with the changed rows in place, in float64."""
    heads, n, wide, r, own = 2, 11, 6, 3, np.array([[2, 5], [5, 6]])
    q, k, v, g = (torch.from_numpy(KEY(name).normal((heads, n, wide))) for name in "qkvg")
    grads = torch.stack([g, g.flip(0), g * 2 - 1], 2)  # heads t r k
    new = [torch.from_numpy(KEY("new", name).normal((heads, own.size, wide))) * 2 for name in "kv"]
    base = torch.softmax(q @ k.transpose(1, 2), -1) @ v
    kept = _Kept(q, k, v, torch.logsumexp(q @ k.transpose(1, 2), -1, keepdim=True))
    gradients = _Gradients(grads.reshape(heads, n, -1), (grads * base[:, :, None]).sum(-1))
    free = torch.ones(2, n, dtype=torch.bool).scatter_(1, torch.from_numpy(own), False)
    found = _others(kept, gradients, *new, torch.from_numpy(own), free)
    for i, places in enumerate(own):
        keys, values = k.clone(), v.clone()
        keys[:, places], values[:, places] = new[0][:, 2 * i : 2 * i + 2], new[1][:, 2 * i : 2 * i + 2]
        change = torch.softmax(q @ keys.transpose(1, 2), -1) @ values - base
        true = (change[:, :, None] * grads)[:, free[i]].sum((0, 1, 3))
        assert torch.allclose(found[i], true, rtol=1e-10, atol=1e-12)
    assert found.shape == (2, r)


@pytest.mark.parametrize("patch", [4, 8])
def test_a_boxs_own_tokens_are_exact_in_one_block(patch: int) -> None:
    """There no other token has changed when they look at it; the vector is the features of one of these tokens."""
    encoder, prepared = attending(1, patch, double=True, vector="mean"), scan(double=True)
    place = np.array([1, 1, 2]) * 4 // patch
    target = target_of(encoder, prepared, point=encoder(prepared).grid.world(place))
    filled = hidden(prepared, "noise", (8, 8, 8), KEY)
    at = np.maximum([place * patch - 3], 0)
    followed = AttentionPass(encoder.network, prepared.x, target, all_directions(target), KEY)
    direct, others = followed.changes(filled, at, (8, 8, 8))
    true = exact_vectors(encoder, prepared, target, filled)(at, (8, 8, 8)) - target.base
    # what the scan's own features, kept in float32, leave
    assert float((direct - true).abs().max()) < 1e-5 * float(true.abs().max())
    assert float(others.abs().max()) < 1e-5 * float(true.abs().max())


@pytest.mark.parametrize("patch", [4, 8, 16])
@pytest.mark.parametrize("name", TARGETS)
def test_small_changes_are_followed_to_first_order(name: str, patch: int) -> None:
    """Against central differences of the whole network: boxes across patches, at the ends, of one patch and of many."""
    prepared = scan((16, 32, 32), double=True)
    encoder, target = asked(name, prepared, patch=patch, double=True)
    followed = AttentionPass(encoder.network, prepared.x, target, all_directions(target), KEY)
    step = hidden(prepared, "noise", (8, 8, 8), KEY) - prepared.x
    at, size, e = np.array([(0, 0, 0), (3, 5, 6), (12, 29, 27), (4, 8, 8)]), (8, 8, 8), 1e-4

    def moved(by: float) -> torch.Tensor:
        return exact_vectors(encoder, prepared, target, prepared.x + by * step)(at, size)

    def ours(by: float) -> torch.Tensor:
        return sum(followed.changes(prepared.x + by * step, at, size))  # type: ignore[return-value]

    true, found = (moved(e) - moved(-e)) / (2 * e), (ours(e) - ours(-e)) / (2 * e)
    assert float(true.norm()) > 1e-4
    assert float((found - true).norm(dim=1).max()) < 1e-4 * float(true.norm(dim=1).max())


@pytest.mark.parametrize("name", TARGETS)
def test_hidden_boxes_turn_vectors_as_the_whole_network_says(name: str) -> None:
    """Every box hidden in full, scores of all of them against one pass a box."""
    prepared = scan()
    encoder, target = asked(name, prepared)
    settings = Settings(size=(4, 4, 4), stride=(4, 4, 4), checked=20)
    fast = measure(encoder, prepared, target, settings)
    exact = measure(encoder, prepared, target, replace(settings, mode="exact"))
    assert fast.method.startswith("changed tokens")
    assert exact.method == "one pass a box"
    assert np.corrcoef(fast.scores.ravel(), exact.scores.ravel())[0, 1] > 0.97
    assert fast.checked["boxes"] == 20
    assert fast.checked["correlation"] > 0.95


@pytest.mark.parametrize("fill", FILLS)
def test_boxes_that_overlap_and_lie_across_patches(fill: Fill) -> None:
    prepared = scan((16, 20, 20))
    encoder = attending(2, vector="mean")
    target = target_of(encoder, prepared)
    settings = Settings(size=(6, 6, 6), stride=(4, 5, 3), fill=fill, checked=0)
    fast = measure(encoder, prepared, target, settings)
    exact = measure(encoder, prepared, target, replace(settings, mode="exact"))
    assert fast.method.startswith("changed tokens")
    assert np.corrcoef(fast.scores.ravel(), exact.scores.ravel())[0, 1] > 0.97


def test_lengths_outside_the_known_directions_are_estimated_without_bias() -> None:
    encoder, prepared = attending(width=96), scan()
    target = target_of(encoder, prepared)
    turned = target.base + torch.from_numpy(KEY("turned").normal((5, 96)))
    known, beside = directions(target, turned, KEY)
    assert known.shape == (6, 96)
    assert torch.allclose(known @ known.T, torch.eye(6, dtype=torch.float64), atol=1e-9)
    for held in (target.base[None], turned):
        assert torch.allclose(held @ known.T @ known, held, atol=1e-9)
    assert float((beside @ known.T).abs().max()) < 1e-9
    change = torch.from_numpy(KEY("change").normal(96))
    squares = [(directions(target, turned, KEY(i))[1] @ change).square().mean() for i in range(400)]
    true = (change - change @ known.T @ known).square().sum()
    assert float(torch.stack(squares).mean() / true) == pytest.approx(1, abs=0.1)


def test_what_is_checked_was_not_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, prepared = attending(1), scan()
    fitted = []

    def spy(*given: Any, **named: Any) -> Any:
        fitted.append(named["some"])
        return saliency_passes.fast_vectors(*given, **named)

    monkeypatch.setattr(saliency, "fast_vectors", spy)
    found = measure(encoder, prepared, target_of(encoder, prepared), Settings((4, 4, 4), (4, 4, 4), checked=10))
    checked = found.starts.reshape(-1, 3)[shuffled(found.changes, 0)[:10]]
    rows = {tuple(row) for row in fitted[0].tolist()}
    assert len(rows) == found.boxes - 10
    assert not rows & {tuple(row) for row in checked.tolist()}


def test_a_killed_run_continues(tmp_path: Path) -> None:
    encoder, prepared = attending(2), scan()
    target, settings = target_of(encoder, prepared), Settings((4, 4, 4), (4, 4, 4), checked=0)
    whole = measure(encoder, prepared, target, settings)

    def stop(done: int, count: int) -> None:
        if count > 100 and done >= count // 2:
            raise KeyboardInterrupt

    ledger = Ledger.at(tmp_path / "part.npz", "a")
    ledger.saved = -1e9  # as after a long time
    with pytest.raises(KeyboardInterrupt):
        measure(encoder, prepared, target, settings, ledger=ledger, progress=stop)
    again = measure(encoder, prepared, target, settings, ledger=Ledger.at(tmp_path / "part.npz", "a"))
    assert 0 < again.computed < whole.computed
    assert np.allclose(again.scores, whole.scores, rtol=1e-3, atol=1e-6 * whole.scores.max())


def test_where_it_does_not_apply_one_pass_a_box_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, small = scan((8, 16, 16)), Settings((4, 4, 4), (4, 4, 4), checked=0)
    many = replace(small, size=(2, 4, 4), stride=(2, 4, 4))
    peaks, cube = attending(1, vector="max"), replace(attending(1), extent=Extent("cube", (8, 12, 16)))
    held = replace(attending(1), extent=Extent("cube", (8, 16, 16)))
    monkeypatch.setattr(saliency_passes, "WORTH", 40)
    for encoder, settings in ((attending(1), small), (peaks, many), (cube, many)):
        assert measure(encoder, prepared, target_of(encoder, prepared), settings).method == "one pass a box"
    assert measure(held, prepared, target_of(held, prepared), many).method.startswith("changed tokens")
    exact = measure(held, prepared, target_of(held, prepared), replace(many, mode="exact"))
    monkeypatch.setattr(saliency_passes, "machine_memory", lambda: 100_000)
    poor = measure(held, prepared, target_of(held, prepared), many)
    assert poor.method.startswith("one pass a box, because following tokens would take")
    assert np.array_equal(poor.scores, exact.scores)


def test_a_map_that_disagrees_is_doubted() -> None:
    fine = {"boxes": 12, "largest": 1e-5, "correlation": 0.99, "worst": 0.1}
    assert doubt(fine, 1e-4) is None
    assert doubt({"boxes": 0}, 1e-4) is None
    for wrong in ({"correlation": 0.5}, {"worst": 0.9}):
        assert "--mode exact" in str(doubt(fine | wrong, 1e-4))
    few = fine | {"boxes": 2, "correlation": None}  # which nothing can be said of but how far they lie apart
    assert doubt(few, 1e-4) is None
    assert "(largest difference 90% of the largest)" in str(doubt(few | {"worst": 0.9}, 1e-4))


def test_rounding_is_said_of_maps_and_boxes_without_meaning() -> None:
    still = {"boxes": 3, "largest": 1e-14, "correlation": 0.1, "worst": 2.0}
    for checked in (still, {"boxes": 0}):  # also where every box was exact
        assert "the map is rounding" in str(doubt(checked, 1e-13))
    # of the features at a point, say, which few boxes touch: none of the three
    assert "check nothing" in str(doubt(still, 1.7))


def test_places_are_numbered_row_by_row() -> None:
    grid = np.array([3, 4, 5])
    found = saliency_attention._places(np.array([[1, 2, 3]]), np.array([2, 1, 2]), grid)
    true = [(a * 4 + 2) * 5 + c for a, c in itertools.product((1, 2), (3, 4))]
    assert found.tolist() == [true]
