from __future__ import annotations

import math

import pytest
import torch

from ctfoundry.train.schedule import Schedule, rate


def literal(epoch: float, warmup: float, total: float, start: float, end: float) -> float:
    """The formula of the reference, section 6, with a base rate of 1."""
    if epoch < warmup:
        return start + (1 - start) * epoch / warmup
    return max(end, 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (total - warmup))))


def test_published_schedule_changes_once_an_epoch_and_starts_at_zero() -> None:
    published = Schedule(steps=250_000, warmup=5_000, epoch=500)
    for step in (0, 499, 500, 4_999, 5_000, 5_001, 100_250, 249_999):
        assert rate(published, step) == literal(step // 500, 10, 500, 0.0, 0.0)
    assert rate(published, 0) == rate(published, 499) == 0.0
    # the published model is that of epoch 449: reference, section 6
    assert 1e-4 * rate(published, 449 * 500) == pytest.approx(2.6e-6, rel=0.02)


def test_per_step_schedule() -> None:
    schedule = Schedule(steps=40, warmup=8, start=0.1, end=0.01)
    for step in range(40):
        assert rate(schedule, step) == literal(step, 8, 40, 0.1, 0.01)
    assert rate(schedule, 400) == 0.01


@pytest.mark.monai
def test_equals_monai() -> None:
    from monai.optimizers import WarmupCosineSchedule

    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    theirs = WarmupCosineSchedule(optimiser, warmup_steps=5, t_total=30, end_lr=0.02, warmup_multiplier=0.1)
    ours = Schedule(steps=30, warmup=5, start=0.1, end=0.02)
    for step in range(30):
        assert optimiser.param_groups[0]["lr"] == pytest.approx(rate(ours, step), rel=1e-12)
        optimiser.step()
        theirs.step()


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter warm-up"):
        Schedule(steps=5, warmup=5)
