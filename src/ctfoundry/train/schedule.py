"""Learning rates as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine (MONAI's WarmupCosineSchedule; CT-FM's is given in the reference, section 6).

    Attributes
    ----------
    steps : length of the whole schedule.
    warmup : steps of the warm-up.
    start : share of the learning rate at step 0.
    end : share of it below which the cosine does not fall.
    epoch : steps over which the rate is held. 1 changes it at every step; the published runs change it once an epoch of
        500 steps (and, with ``start`` 0, train their first epoch at rate 0).
    """

    steps: int
    warmup: int = 0
    start: float = 0.0
    end: float = 0.0
    epoch: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.epoch < 1 or not 0 <= self.warmup < self.steps:
            raise ValueError(f"a schedule has at least one step and a shorter warm-up, not {self}")


def rate(schedule: Schedule, place: float) -> float:
    """The share of the learning rate at `place` of the schedule: the step (0 the first), or any point between steps.

    With e = place // epoch, w = warmup / epoch and T = steps / epoch: start + (1 - start) e/w before w, then
    max(end, (1 + cos(pi (e - w) / (T - w))) / 2), and after T what it was there.
    """
    e = min(place, schedule.steps) // schedule.epoch
    w, last = schedule.warmup / schedule.epoch, schedule.steps / schedule.epoch
    if e < w:
        return schedule.start + (1 - schedule.start) * e / max(1.0, w)
    return max(schedule.end, 0.5 * (1 + math.cos(math.pi * (e - w) / max(1.0, last - w))))
