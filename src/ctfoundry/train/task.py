"""What the loop asks of a task and of its data. SimCLR, fine-tuning and probes are all a `Task`.

Every random decision is made in `plan`, as a function of its key; `batch` and `losses` only compute. That is why workers
need no state and a killed run continues exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import nn

from ctfoundry.geometry import Box
from ctfoundry.keys import Key

if TYPE_CHECKING:
    import torch
    from jaxtyping import Int16
    from torch import Tensor


class Entry(Protocol):
    """One scan, as its store lists it; tasks ask their own stores for more than the name."""

    @property
    def id(self) -> str:
        """The scan's public ID."""
        ...

    @property
    def collection(self) -> str:
        """The collection it comes from, for sampling; asked for only where collections are evened out."""
        ...


class Source(Protocol):
    """Scans that boxes can be read from; a store is one. `read` is called from several threads."""

    @property
    def entries(self) -> Sequence[Any]:
        """The scans to train on, in a fixed order."""
        ...

    def read(self, id: str, box: Box) -> Int16[np.ndarray, "d h w"]:
        """Hounsfield units of a box; -1024 outside of the scan."""
        ...


class Draws(Protocol):
    """All random decisions about one sample."""

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The boxes of the stored scan that the sample needs."""
        ...


class Task(Protocol):
    """What is trained, on what, and how its loss is computed.

    Processes that train together each hold the samples of their own; what is minimised is the mean of their losses. A loss
    that compares samples of all of them gathers what it needs (`ctfoundry.parallel`). ``LoopSettings.compile`` needs an
    attribute ``encoder``, a network whose ``features`` (or ``forward``) is compiled. A task may have ``rates``: factors of the learning
    rate by the first parts of parameters' names in `modules` (`Updater`).
    """

    modules: nn.ModuleDict
    """Everything with weights or running statistics; saved, and moved to the device, by the loop."""

    separable: bool
    """Whether ``loss`` is a mean over samples that do not meet, in batch norm neither: then gradients of parts of a batch add up
    to those of the whole, and the loop may accumulate them."""

    def plan(self, key: Key, entry: Any) -> Any:
        """The `Draws` of one sample: a function of (seed, epoch, scan), made in a worker thread."""
        ...

    def batch(self, reads: Sequence[Sequence[np.ndarray]], draws: Sequence[Any], device: torch.device) -> Any:
        """Boxes in HU, one list a sample, to the device and to what `losses` takes, in the precision of the weights; nothing
        random is left."""
        ...

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Scalars on the device: ``loss`` is what is minimised, the others are logged. Runs under autocast; nothing here
        may wait for the device."""
        ...

    def measures(self) -> dict[str, float]:
        """Costlier monitors of the last batch (such as ``rank``), asked for at log steps only."""
        ...

    def after(self, step: int) -> None:
        """Called after each optimiser step: moving averages, clamps."""
        ...

    def state(self) -> dict[str, Any]:
        """What the task remembers beside its modules, as plain data for JSON."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        ...
