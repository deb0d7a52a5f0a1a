"""One update of the weights: backward, clip, AdamW, their moving average; or, where a gradient is not finite, no update at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ctfoundry import parallel
from ctfoundry.errors import SettingsError, WeightsError
from ctfoundry.train.forward import agree_on_statistics

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Optimiser:
    """AdamW (Loshchilov and Hutter 2019). `clip`: largest norm of all gradients together; None leaves them as they are."""

    rate: float = 1e-4
    weight_decay: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None


class Updater:
    """AdamW over the trainable weights of `modules`, with loss scaling for fp16; never waits for the device.

    A step with a gradient that is not finite leaves no trace: the fused kernel is told on the device to do nothing, and
    running statistics are put back, since the forward pass that overflowed has spoiled them. Skipped steps are counted.
    All processes that train together skip together. `ema` is the share of the average of the weights that stays at each step.
    `rates` are factors of the learning rate by the first parts of parameters' names (``network.encoder``), of which the
    longest counts; 1 for all others.

    Raises SettingsError for a rate of no parameter.
    """

    def __init__(
        self,
        modules: nn.Module,
        settings: Optimiser,
        device: torch.device,
        *,
        scaled: bool,
        ema: float | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.settings, self.decay = settings, ema
        self.parameters = {name: p for name, p in modules.named_parameters() if p.requires_grad}
        self.average = {} if ema is None else {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimiser = torch.optim.AdamW(
            _groups(modules, self.parameters, rates or {}),
            settings.rate,
            settings.betas,
            settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self._modules = modules
        self._before: dict[str, Tensor] = {}
        self._skipped, self._streak, self._worst = (torch.zeros((), device=device) for _ in range(3))

    def begin(self, rate: float) -> None:
        """Before a step's first forward pass: set the learning rate, drop old gradients, remember running statistics."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimiser.zero_grad(set_to_none=True)
        self._before = {name: buffer.clone() for name, buffer in self._modules.named_buffers()}

    def backward(self, loss: Tensor) -> None:
        """After the forward pass of a part of a step, if there are several: add its gradients to those of the parts before."""
        self.scaler.scale(loss).backward()

    def end(self, loss: Tensor) -> None:
        """After the last forward pass: gradients, then update or skip."""
        self.backward(loss)
        self.scaler.unscale_(self.optimiser)
        with torch.no_grad():
            self._step()

    def _step(self) -> None:
        used = [p for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in used if p.grad is not None])
        if self.settings.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(used, self.settings.clip, norm)
        bad = (parallel.all_reduce_sum((~norm.isfinite()).float()) > 0).float()
        if not self.scaler.is_enabled():  # an enabled scaler tells the kernel itself
            self.optimiser.found_inf = bad  # type: ignore[attr-defined]
        self.scaler.step(self.optimiser)
        self.scaler.update()
        agree_on_statistics(self._modules, self._before)
        for name, buffer in self._modules.named_buffers():
            buffer.copy_(torch.where(bad.bool(), self._before[name], buffer))
        if self.decay is not None:
            new = (1 - self.decay) * (1 - bad)
            for name, average in self.average.items():
                average.lerp_(self.parameters[name], new.to(average.dtype))
        self._skipped += bad
        self._streak = (self._streak + 1) * bad
        self._worst = torch.maximum(self._worst, self._streak)

    def skipped(self) -> int:
        """Skipped steps so far; waits for the device."""
        return int(self._skipped)

    def streak(self) -> int:
        """The longest row of skipped steps since the last call; waits for the device."""
        worst = int(self._worst)
        self._worst = self._streak.clone()
        return worst

    def tensors(self) -> dict[str, Tensor]:
        """AdamW's state under ``WHAT.PARAMETER``."""
        state = self.optimiser.state
        return {f"{what}.{name}": v for name, p in self.parameters.items() for what, v in state.get(p, {}).items()}

    def load(self, tensors: dict[str, Tensor], scaler: dict[str, Any], where: Path) -> None:
        """Take back `tensors` and the scaler's state; raises WeightsError when they belong to other weights."""
        for key, value in tensors.items():
            what, _, name = key.partition(".")
            parameter = self.parameters.get(name)
            if parameter is None or (what != "step" and value.shape != parameter.shape):
                raise WeightsError(f"the optimiser state {key!r} {tuple(value.shape)} fits no parameter", where=where)
            # in the parameter's memory layout: the fused kernel walks both by address
            slot = torch.empty_like(parameter) if what != "step" else torch.empty((), device=parameter.device)
            self.optimiser.state[parameter][what] = slot.detach().copy_(value)
        missing = [name for name, p in self.parameters.items() if tensors and p not in self.optimiser.state]
        if missing:
            raise WeightsError(f"the optimiser state lacks {', '.join(missing[:5])}", where=where)
        if scaler:
            self.scaler.load_state_dict(scaler)

    def averaged(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the modules with averaged weights in place of the last ones; running statistics are the last."""
        return {**state, **self.average}

    def load_averaged(self, state: dict[str, Tensor], where: Path) -> None:
        """Take back the weights of `averaged`; raises WeightsError when one is missing or of another shape."""
        for name, average in self.average.items():
            if name not in state or state[name].shape != average.shape:
                raise WeightsError(f"the averaged weights lack {name!r} {tuple(average.shape)}", where=where)
            average.copy_(state[name])


def _groups(
    modules: nn.Module, parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """AdamW's groups, one a factor: parameters in their order, groups in that of their first parameters."""
    every = [name for name, _ in modules.named_parameters()]
    for prefix in rates:
        if not any(_below(name, prefix) for name in every):
            raise SettingsError(f"a learning rate is given for {prefix!r}, where there is no parameter", where="rates")
    groups: dict[float, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        own = max((prefix for prefix in rates if _below(name, prefix)), key=len, default=None)
        factor = 1.0 if own is None else float(rates[own])
        groups.setdefault(factor, {"params": [], "factor": factor})["params"].append(parameter)
    return list(groups.values())


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")
