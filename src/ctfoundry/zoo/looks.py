"""Do weights look as if nobody had trained them?

A loader that skips what does not fit leaves a network as it was first drawn, without a word, and features of such a network still
look like features. But first draws are easy to tell: norms are exactly 1 and 0, and kernels have the bounds and moments of the few
distributions that libraries draw from. Training moves both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

ENOUGH = 200
"""Numbers that a kernel must have before its moments are judged."""
ALONE = 5_000
"""Numbers that a single kernel without a norm must have before it is named beside trained parts: one kernel proves little."""
SAMPLE = 1_000_000
"""Numbers of a kernel, evenly spread, that its moments are taken of."""
ERRORS = 5.0
"""Standard errors by which deviation and kurtosis of a sample may miss those of a distribution."""


@dataclass(frozen=True)
class Look:
    """A part of a network that looks freshly initialised.

    Attributes
    ----------
    part : first name of its keys; empty for the whole network.
    kernels, norms : how many of its layers were judged.
    drawn : the distributions that its kernels look drawn from.
    numbers : in its kernels.
    """

    part: str
    kernels: int
    norms: int
    drawn: tuple[str, ...]
    numbers: int = 0

    def __str__(self) -> str:
        norms = f"; the {self.norms} norms are exactly 1 and 0" if self.norms else ""
        return (
            f"{self.part or 'the whole network'} looks freshly initialised: its {self.kernels} kernels look drawn from "
            f"{' and '.join(self.drawn)}{norms}"
        )


def looks(state: Mapping[str, Tensor]) -> tuple[Look, ...]:
    """The parts that look freshly initialised: one `Look` for the whole, one for each fresh part of a trained network, or none.

    A part is what shares the first name of its keys. It looks fresh when every kernel looks drawn from a known distribution
    and every norm, LayerScale and zero-started bias is exactly where it starts.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if value.is_floating_point():
            parts.setdefault(name.split(".")[0], {})[name] = value
    judged = {part: _judge(part, values) for part, values in parts.items()}
    fresh = [look for look in judged.values() if isinstance(look, Look)]
    if fresh and not any(look is False for look in judged.values()):
        drawn = tuple(dict.fromkeys(name for look in fresh for name in look.drawn))
        kernels, norms, numbers = (
            sum(getattr(look, name) for look in fresh) for name in ("kernels", "norms", "numbers")
        )
        return (Look("", kernels, norms, drawn, numbers),)
    return tuple(look for look in fresh if look.norms or look.kernels > 1 or look.numbers >= ALONE)


def _judge(part: str, values: Mapping[str, Tensor]) -> Look | bool | None:
    """The look of a fresh part; False for a trained one; None for one that tells nothing."""
    kernels, norms, numbers, drawn = 0, 0, 0, []
    for name, value in values.items():
        stem, _, last = name.rpartition(".")
        if last == "gamma" and value.ndim == 1:
            if not bool((value == value[0]).all()):
                return False
            norms += 1
        elif value.ndim == 1 and last == "weight":
            bias = values.get(stem + ".bias")
            if not bool((value == 1).all()) or (bias is not None and bool((bias != 0).any())):
                return False
            norms += 1
        elif value.ndim >= 2 and last == "weight" and value.numel() >= ENOUGH:
            found = distribution(value)
            bias = values.get(stem + ".bias")
            if found is None or (found in _ZERO_BIAS and bias is not None and bool((bias != 0).any())):
                return False
            kernels += 1
            numbers += value.numel()
            drawn.append(found)
    return Look(part, kernels, norms, tuple(dict.fromkeys(drawn)), numbers) if kernels else None


_NORMAL_02 = "a normal of deviation 0.02"
_CUT_02 = "a normal of deviation 0.02 cut at two deviations"
_ZERO_BIAS = (_NORMAL_02, _CUT_02)
_CUT_SHARE, _CUT_KURTOSIS = 0.8796257, 2.3655367  # deviation and kurtosis of a normal cut at two deviations


def distribution(kernel: Tensor) -> str | None:
    """The initial distribution that a kernel (out, in, ...) looks drawn from, or None.

    Known are torch's default (He et al. with a = sqrt 5: uniform in ±1/sqrt(fan in)), He and Glorot in both forms, and the normals of
    deviation 0.02 that vision transformers start from.
    """
    flat = kernel.detach().flatten()
    top = float(flat.abs().max())
    w = flat[:: -(-flat.numel() // SAMPLE)].double()
    n = w.numel()
    mean, deviation = float(w.mean()), float(w.std())
    if deviation == 0:
        return None
    kurtosis = float(((w - mean) ** 4).mean()) / deviation**4
    inside = math.prod(kernel.shape[2:])
    into, out = kernel.shape[1] * inside, kernel.shape[0] * inside
    uniform = {
        "±1/sqrt(fan in), torch's default": into**-0.5,
        "He's uniform": (6 / into) ** 0.5,
        "He's uniform of fan out": (6 / out) ** 0.5,
        "Glorot's uniform": (6 / (into + out)) ** 0.5,
    }
    normal = {
        "He's normal": (2 / into) ** 0.5,
        "He's normal of fan out": (2 / out) ** 0.5,
        "Glorot's normal": (2 / (into + out)) ** 0.5,
        _NORMAL_02: 0.02,
    }

    def near(expected: float, fourth: float) -> bool:
        error = ((fourth - 1) / (4 * n)) ** 0.5  # relative standard error of a sample's deviation
        return (
            abs(deviation / expected - 1) < ERRORS * error
            and abs(mean) < ERRORS * expected / n**0.5
            and abs(kurtosis - fourth) < ERRORS * (24 / n) ** 0.5
        )

    fitting = {
        n: bound / 3**0.5 for n, bound in uniform.items() if top <= bound * (1 + 1e-5) and near(bound / 3**0.5, 1.8)
    }
    if top <= 0.04 * (1 + 1e-5) and near(0.02 * _CUT_SHARE, _CUT_KURTOSIS):
        fitting[_CUT_02] = 0.02 * _CUT_SHARE
    fitting |= {n: expected for n, expected in normal.items() if near(expected, 3.0)}
    return min(fitting, key=lambda n: abs(deviation / fitting[n] - 1)) if fitting else None


def untouched_norms(state: Mapping[str, Tensor]) -> int:
    """Batch norms that never saw a batch: weight 1, bias 0, mean 0, variance 1, no batch counted."""
    count = 0
    for name, mean in state.items():
        if not name.endswith(".running_mean"):
            continue
        stem = name.removesuffix("running_mean")
        start = {"weight": 1.0, "bias": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}
        same = bool((mean == 0).all()) and all(
            bool((state[stem + key].to(torch.float64) == value).all())
            for key, value in start.items()
            if stem + key in state
        )
        count += same
    return count
