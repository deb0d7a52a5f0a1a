from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adapt.bodies import CLASSES, body, scans
from ctfoundry.adapt.cases import IGNORE, scan_of
from ctfoundry.adapt.prepared import Cases, prepare_case
from ctfoundry.adapt.segmentation import (
    CaseSource,
    SegmentationTask,
    anchors,
    cut,
    deep_supervision,
    dice_cross_entropy,
    draw_crop,
    freeze,
)
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.segresnet_ds import SegResNetDS
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.train import LoopSettings, Optimiser, Schedule, fit

TINY = PREPARATIONS["ct-fm-tiny"]


def sample(shape: tuple[int, ...] = (2, 8, 12, 10), classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape[0], classes, *shape[1:], generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes - 1, shape, generator=generator, dtype=torch.uint8)  # the last class is absent
    return logits.requires_grad_(), target


def literal(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The formula written out, one crop and class at a time."""
    p = logits.softmax(1)
    losses = []
    for crop in range(len(p)):
        for label in range(p.shape[1]):
            g = (target[crop] == label).double()
            q = p[crop, label]
            losses.append(1 - 2 * (q * g).sum() / (q.square().sum() + g.square().sum() + 1e-5))
    picked = torch.stack([p[crop, int(target[crop, d, h, w]), d, h, w] for crop, d, h, w in np.ndindex(target.shape)])
    return torch.stack(losses).mean() - picked.log().mean()


def test_loss_is_the_formula_in_float64() -> None:
    logits, target = sample((2, 3, 4, 5))
    ours, other = dice_cross_entropy(logits, target), literal(logits, target)
    assert abs((ours - other).item()) < 1e-12
    torch.testing.assert_close(*(torch.autograd.grad(v, logits)[0] for v in (ours, other)), rtol=1e-10, atol=1e-14)


@pytest.mark.monai
def test_loss_is_monais() -> None:
    from monai.losses.dice import DiceCELoss

    theirs = DiceCELoss(
        include_background=True, to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-5
    )
    logits, target = sample()
    sure = 200.0 * torch.nn.functional.one_hot(target.long(), 5).movedim(-1, 1).double()
    for given in (logits, sure.requires_grad_()):  # a sure and right one too: its absent class is not predicted
        ours, other = dice_cross_entropy(given, target), theirs(given, target[:, None].long())
        assert abs((ours - other).item()) < 1e-7  # MONAI's one-hot target is float32, whatever the input
        torch.testing.assert_close(*(torch.autograd.grad(v, given)[0] for v in (ours, other)), rtol=1e-6, atol=1e-10)


@pytest.mark.monai
def test_deep_supervision_of_the_reference_is_monais() -> None:
    from monai.losses.dice import DiceCELoss
    from monai.losses.ds_loss import DeepSupervisionLoss

    theirs = DeepSupervisionLoss(
        DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-5)
    )
    _, target = sample((2, 16, 16, 32))
    outputs = [sample((2, 16 // 2**i, 16 // 2**i, 32 // 2**i))[0].detach() for i in range(4)]
    ours = deep_supervision(outputs, target, places="reference")
    assert float(ours) == pytest.approx(
        float(theirs(outputs, target[:, None].double())), abs=1e-6
    )  # theirs adds up in float32
    # at the cells: the target of the voxel that a coarse cell is centred on
    expected = sum(0.5**i * dice_cross_entropy(o, target[:, :: 2**i, :: 2**i, :: 2**i]) for i, o in enumerate(outputs))
    assert float(deep_supervision(outputs, target)) == pytest.approx(float(expected), abs=1e-14)
    assert abs(float(deep_supervision(outputs, target) - ours)) > 1e-3


def test_voxels_that_nobody_asks_about_count_in_neither_part() -> None:
    logits, target = sample()
    hidden = target.clone()
    hidden[:, :, 6:] = IGNORE
    left = dice_cross_entropy(logits, hidden)
    alone = dice_cross_entropy(logits[:, :, :, :6], target[:, :, :6])
    assert left.item() == pytest.approx(alone.item(), abs=1e-12)
    (grad,) = torch.autograd.grad(left, logits)
    assert (grad[:, :, :, 6:] == 0).all()
    assert grad[:, :, :, :6].abs().max() > 0
    assert torch.isfinite(dice_cross_entropy(logits, torch.full_like(target, IGNORE)))


def test_crops_are_balanced_by_class_and_whole_in_cells() -> None:
    labels = np.zeros((20, 40, 40), dtype=np.uint8)
    labels[2:18, 4:36, 4:36] = 1  # 16,384 voxels
    labels[10, 20, 20:24] = 2  # 4 voxels
    labels[0, 0] = IGNORE
    found = anchors(labels)
    assert sorted(found) == [1, 2]
    assert len(found[1]) == 512
    assert (labels[tuple(found[1].T)] == 1).all()
    assert sorted(map(tuple, found[2].tolist())) == [(10, 20, x) for x in range(20, 24)]
    seen: Counter[int] = Counter()
    for i in range(300):
        start = draw_crop(Key.of("crop", i), found, (20, 40, 40), (8, 16, 16), (4, 8, 8))
        assert all(s % m == 0 for s, m in zip(start, (4, 8, 8), strict=True))
        part = labels[tuple(slice(s, s + n) for s, n in zip(start, (8, 16, 16), strict=True))]
        assert part.shape == (8, 16, 16)
        seen[2 if 2 in part else 1] += 1
    assert seen[2] > 150  # half by the draw, some by chance; a uniform voxel would hit it in a tenth of the crops
    # a scan smaller than the crop
    assert draw_crop(Key.of("a"), found, (20, 40, 40), (32, 64, 64), (4, 8, 8)) == (0, 0, 0)
    assert draw_crop(Key.of("a"), {}, (20, 40, 40), (8, 8, 8)) != draw_crop(Key.of("b"), {}, (20, 40, 40), (8, 8, 8))


def test_crops_beyond_the_scan_are_padded() -> None:
    case = prepare_case(scan_of("a", *body(0)), TINY, CLASSES)
    n = case.shape
    x, labels = cut(case, (8, 0, 0), (16, 48, 16))
    assert x.shape == (1, 16, 48, 16)
    assert torch.equal(x[:, : n[0] - 8, : n[1]], case.x()[:, 8:, :, :16])
    assert (labels[n[0] - 8 :] == IGNORE).all()
    assert (labels[:, n[1] :] == IGNORE).all()
    assert (x[:, n[0] - 8 :] == case.low).all()
    assert (labels[: n[0] - 8, : n[1]].numpy() == case.labels[8:, :, :16]).all()


class Recorder(nn.Module):
    """Notes what the loop's train mode does below it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.modes = network, []

    def forward(self, x: torch.Tensor) -> Any:
        self.modes.append(self.network.training)
        return self.network(x)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_stays_to_the_bit(frozen: bool, tmp_path: Path) -> None:
    network = initialise(SegResNetDS(4, filters=2, blocks=(1, 1, 1), blocks_up=(1, 1), depth=2), Key.of("net"))
    if frozen:
        freeze(network.encoder)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cases = Cases(scans(2), TINY, CLASSES)
    recorder = Recorder(network)
    task = SegmentationTask(recorder, cases, (8, 16, 16), (4, 4, 4))
    settings = LoopSettings(
        Schedule(6), Optimiser(1e-2), batch=2, precision="fp32", workers=0, log_every=3, checkpoint_every=6
    )
    summary = fit(task, CaseSource(cases), settings, tmp_path, quiet=True)
    assert summary.steps == 6
    assert recorder.modes == [True] * 6
    after = network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    encoder = {name for name in before if name.startswith("encoder.")}
    assert any("running_mean" in name for name in encoder)
    assert (moved & encoder == set()) is frozen
    assert {name for name in moved if name.startswith("up_layers.") and name.endswith("deconv.weight")}


def test_the_loop_learns_to_segment(tmp_path: Path) -> None:
    network = initialise(SegResNetDS(4, filters=4, blocks=(1, 1, 1), blocks_up=(1, 1), depth=2), Key.of("net"))
    cases = Cases(scans(3), TINY, CLASSES)
    task = SegmentationTask(network, cases, (16, 28, 32), (4, 4, 4))
    settings = LoopSettings(
        Schedule(60, warmup=6), Optimiser(2e-2), batch=2, precision="fp32", workers=0, log_every=10, checkpoint_every=60
    )
    fit(task, CaseSource(cases), settings, tmp_path, quiet=True)
    fresh = prepare_case(scan_of("new", *body(9)), TINY, CLASSES)
    x = torch.nn.functional.pad(fresh.x(), (0, -fresh.shape[2] % 4, 0, -fresh.shape[1] % 4, 0, -fresh.shape[0] % 4))
    with torch.no_grad():
        d, h, w = fresh.shape
        found = network.eval()(x[None])[0].argmax(0)[:d, :h, :w].numpy()
    for value in (1, 2):  # told by their HU
        ours, theirs = found == value, fresh.labels == value
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.7
