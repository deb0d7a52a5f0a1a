"""The segmentation task with everything on: augmentation, background, rates by layer, frozen encoders, exact continuation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adapt.bodies import CLASSES, body, scans
from ctfoundry.adapt.augment import Changes
from ctfoundry.adapt.cases import IGNORE, scan_of
from ctfoundry.adapt.losses import agreement
from ctfoundry.adapt.prepared import Cases, PreparedCase, prepare_case
from ctfoundry.adapt.recipe import Augmentation
from ctfoundry.adapt.segmentation import CaseEntry, CaseSource, SegmentationTask, cut, freeze, layer_rates, stages
from ctfoundry.errors import ContractError, SettingsError
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.models.segresnet_ds import SegResNetDS
from ctfoundry.models.suprem import SuPreMEncoder
from ctfoundry.models.vit import FlexibleViT
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.train import LoopSettings, Optimiser, Schedule, fit

TINY = PREPARATIONS["ct-fm-tiny"]
ALWAYS = Augmentation(affine=1, smooth=1, scale=1, shift=1, noise=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cases() -> list[PreparedCase]:
    return list(Cases(scans(2), TINY, CLASSES))


def network() -> SegResNetDS:
    return initialise(SegResNetDS(4, filters=2, blocks=(1, 1, 1), blocks_up=(1, 1), depth=2), Key.of("net"))


def settings(steps: int = 6) -> LoopSettings:
    return LoopSettings(
        Schedule(steps),
        Optimiser(1e-2),
        batch=2,
        precision="fp32",
        log_every=3,
        checkpoint_every=2,
    )


def state_of(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def task(cases: list[PreparedCase], net: SegResNetDS | None = None, **more: Any) -> SegmentationTask:
    return SegmentationTask(net or network(), cases, (8, 16, 16), (4, 4, 4), **more)


def test_without_augmentation_a_crop_is_what_lies_there(cases: list[PreparedCase]) -> None:
    made = task(cases)
    drawn = [made.plan(Key.of(i), CaseEntry(str(i % 2))) for i in range(4)]
    x, labels = made.batch([], drawn, CPU)
    for i, draw in enumerate(drawn):
        assert draw.changes == Changes()
        expected, wanted = cut(cases[i % 2], draw.start, (8, 16, 16))
        assert torch.equal(x[i], expected)
        assert torch.equal(labels[i], wanted)


def test_crops_may_begin_before_the_scan(cases: list[PreparedCase]) -> None:
    case = cases[0]
    n = case.shape
    x, labels = cut(case, (-3, 5, -40), (9, 4, n[2] + 50))
    assert labels.shape == (9, 4, n[2] + 50)
    assert torch.equal(x[:, 3:, :, 40 : 40 + n[2]], case.x((slice(0, 6), slice(5, 9), slice(None))))
    outside = torch.ones_like(labels, dtype=torch.bool)
    outside[3:, :, 40 : 40 + n[2]] = False
    assert (labels[outside] == IGNORE).all()
    assert (x[0][outside] == case.low).all()
    assert (cut(case, (90, 90, 90), (4, 4, 4))[1] == IGNORE).all()  # wholly outside


def test_labels_move_with_the_image() -> None:
    """Where the image says what the label is, it still does after turning: bone is bright, fat dark."""
    case = prepare_case(scan_of("a", *body(0)), TINY, CLASSES)
    turned = SegmentationTask(
        nn.Identity(), [case], (16, 32, 32), augmentation=replace(ALWAYS, smooth=0.0, scale=0.0, shift=0.0, noise=0.0)
    )
    drawn = [turned.plan(Key.of(i), CaseEntry("0")) for i in range(8)]
    assert all(draw.labels is not None and draw.labels.numel() > 16 * 32 * 32 for draw in drawn)
    x, labels = turned.batch([], drawn, CPU)
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) <= {0, 1, 2, 3, IGNORE}
    hu = x[:, 0] * 3072 - 1024
    assert hu[labels == 1].median() > 500
    assert -160 < hu[labels == 2].median() < -40
    assert (labels[x[:, 0] == case.low] != 1).all()


def test_background_crops_are_centred_anywhere(cases: list[PreparedCase]) -> None:
    labels = np.zeros((16, 64, 64), dtype=np.uint8)
    labels[8, 60, 60] = 1  # in a corner
    case = replace(cases[0], labels=labels, quantised=np.zeros((1, 16, 64, 64), dtype=np.int16))
    for share in (0.0, 0.5, 1.0):
        made = SegmentationTask(nn.Identity(), [case], (8, 16, 16), background=share)
        held = [bool((made.plan(Key.of(i), CaseEntry("0")).labels == 1).any()) for i in range(150)]
        chance = 0.12  # of a crop anywhere: clamped into the scan, those at its end hold the corner
        assert abs(np.mean(held) - (1 - share + share * chance)) < 0.13


def test_augmented_runs_continue_to_the_bit(cases: list[PreparedCase], tmp_path: Path) -> None:
    def run(folder: Path, steps: int | None = None, workers: int = 2) -> None:
        net = network()
        made = task(cases, net, augmentation=ALWAYS, background=0.3, rates=layer_rates(net, net.encoder, 0.5))
        fit(made, CaseSource(cases), replace(settings(), workers=workers), folder, quiet=True, steps=steps)

    run(tmp_path / "one")
    run(tmp_path / "two", steps=3, workers=0)
    run(tmp_path / "two")
    assert state_of(tmp_path / "one", 6) == state_of(tmp_path / "two", 6)


def test_rates_by_layer_are_those_of_adam(cases: list[PreparedCase], tmp_path: Path) -> None:
    """The first AdamW step moves every weight by its rate: g / |g|, whatever the gradient."""
    net = network()
    rates = layer_rates(net, net.encoder, 0.5)
    assert rates == {
        "network.encoder.conv_init": 0.5**4,
        "network.encoder.layers.0": 0.5**3,
        "network.encoder.layers.1": 0.5**2,
        "network.encoder.layers.2": 0.5,
    }
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    own = replace(settings(1), optimiser=Optimiser(1e-2, weight_decay=0.0))
    fit(task(cases, net, rates=rates), CaseSource(cases), own, tmp_path, quiet=True)
    for name, p in net.named_parameters():
        factor = next((v for k, v in rates.items() if f"network.{name}".startswith(k + ".")), 1.0)
        moved = (p.detach() - before[name]).abs()
        if moved.max() > 0:  # a weight without gradient stays
            assert float(moved.max()) == pytest.approx(1e-2 * factor, rel=0.02), name
    with pytest.raises(SettingsError, match=r"'network\.encodr', where there is no parameter"):
        fit(task(cases, rates={"network.encodr": 0.5}), CaseSource(cases), own, tmp_path / "b", quiet=True)
    with pytest.raises(ContractError, match="no part of the network"):
        layer_rates(net, SegResNetEncoder(1, 2, (1, 1)), 0.5)


def test_stages_of_every_family() -> None:
    with torch.device("meta"):
        vit = FlexibleViT(axes=3, patch=8, size=(24, 3, 2))
        unet = SuPreMEncoder(1, 4)
    found = stages(vit)
    assert found[1:] == [["blocks.0"], ["blocks.1"], ["blocks.2", "norm"]]
    assert "cls_token" in found[0]
    assert stages(unet) == [["down_tr64"], ["down_tr128"], ["down_tr256"], ["down_tr512"]]
    for module in (vit, unet):  # every parameter has exactly one stage
        for name, _ in module.named_parameters():
            assert sum(name == p or name.startswith(p + ".") for part in stages(module) for p in part) == 1, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_encoder_stays_through_a_run_and_its_continuation(
    precision: Any, cases: list[PreparedCase], tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in network().state_dict().items()}
    for steps in (3, None):
        net = network()
        freeze(net.encoder)
        made = task(cases, net, augmentation=ALWAYS)
        fit(made, CaseSource(cases), replace(settings(), precision=precision), tmp_path, quiet=True, steps=steps)
        assert net.training
        assert not any(module.training for module in net.encoder.modules())
    after = net.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not {name for name in moved if name.startswith("encoder.")}
    assert {name for name in moved if name.startswith("up_layers.") and "running_mean" in name}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_loss_is_the_same_in_pieces_and_layouts(
    layout: torch.memory_format, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Key.of("loss")
    logits = torch.from_numpy(key.normal((2, 5, 4, 6, 8))).to(kind).to(memory_format=layout)
    target = torch.from_numpy(key("y").integers(0, 6, (2, 4, 6, 8))).to(torch.uint8)
    target[target == 5] = IGNORE
    exact = logits.double().requires_grad_()
    made = agreement(exact, target)
    made.loss.backward()
    for piece in (1 << 18, 70):
        monkeypatch.setattr("ctfoundry.adapt.losses.PIECE", {"cpu": piece})
        given = logits.clone(memory_format=torch.preserve_format).requires_grad_()
        own = agreement(given, target)
        own.loss.backward()
        assert own.loss.item() == pytest.approx(made.loss.item(), rel=1e-5)
        assert given.grad is not None
        assert exact.grad is not None
        worst = (given.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()
        assert worst < (1e-5 if kind == torch.float32 else 5e-3)
    present = [made.dice[b, k].item() for b in range(2) for k in range(1, 5) if (target[b] == k).any()]
    assert float(made.foreground) == pytest.approx(np.mean(present))
