"""Whole scans prepared once, for training and validation on labels of whole scans."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch

from ctfoundry import files, geometry
from ctfoundry.adapt.prepared import MEMORY_BYTES, preparation_digest
from ctfoundry.adapt.tables import TargetScan
from ctfoundry.preparation import Preparation, prepare

if TYPE_CHECKING:
    from jaxtyping import Float, Int16
    from torch import Tensor

VERSION = 1
"""Of what a cached input holds; grows when making it gives another result."""


@dataclass(frozen=True, eq=False)
class PreparedInput:
    """A prepared scan as int16, ``x = low + step * (q + 32768)``, off by at most half a `step`; `spacing` in mm of its voxels."""

    quantised: Int16[np.ndarray, "c d h w"]
    low: float
    step: float
    spacing: tuple[float, float, float]

    def x(self) -> Float[Tensor, "c d h w"]:
        """The network's input."""
        return torch.from_numpy(self.quantised.astype(np.float32)).add_(32768.0).mul_(self.step).add_(self.low)


def prepare_input(scan: TargetScan, preparation: Preparation) -> PreparedInput:
    """Read and prepare one scan; raises what reading and preparing raise."""
    made = prepare(preparation, scan.image())
    x = made.x.numpy()
    low, high = float(x.min()), float(x.max())
    step = max(high - low, 1e-6) / 65535
    quantised = np.round((x - low) / step - 32768).clip(-32768, 32767).astype(np.int16)
    a, b, c = geometry.spacing(made.affine)
    return PreparedInput(quantised, low, step, (float(a), float(b), float(c)))


class Inputs(Sequence[PreparedInput]):
    """Prepared inputs of some scans, made when asked for (from several threads too) and kept: in memory up to a bound, on disk in `cache`."""

    def __init__(
        self,
        scans: Sequence[TargetScan],
        preparation: Preparation,
        *,
        cache: Path | None = None,
        memory: int = MEMORY_BYTES,
    ) -> None:
        self.scans, self.preparation, self.cache, self.memory = tuple(scans), preparation, cache, memory
        self._held: OrderedDict[int, PreparedInput] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.scans)

    @overload
    def __getitem__(self, index: int) -> PreparedInput: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreparedInput]: ...
    def __getitem__(self, index: int | slice) -> PreparedInput | list[PreparedInput]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        with self._lock:
            if index in self._held:
                self._held.move_to_end(index)
                return self._held[index]
        found = self._load(self.scans[index])
        with self._lock:
            self._held[index] = found
            while len(self._held) > 1 and sum(i.quantised.nbytes for i in self._held.values()) > self.memory:
                self._held.popitem(last=False)
        return found

    def _load(self, scan: TargetScan) -> PreparedInput:
        if self.cache is None:
            return prepare_input(scan, self.preparation)
        key = files.digest([VERSION, scan.content(), preparation_digest(self.preparation)])
        path = self.cache / f"{key[:32]}.safetensors"
        found = _read(path) if path.is_file() else None
        if found is None:
            found = prepare_input(scan, self.preparation)
            _write(found, path)
        return found


def _write(made: PreparedInput, path: Path) -> None:
    from safetensors.numpy import save_file

    numbers = np.array([made.low, made.step, *made.spacing])
    with files.whole(path, mode=0o600) as part:
        save_file({"x": made.quantised, "numbers": numbers}, part)


def _read(path: Path) -> PreparedInput | None:
    """A cached input; None where the file is damaged, so that it is made again."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        low, step, a, b, c = (float(v) for v in tensors["numbers"])
        return PreparedInput(tensors["x"], low, step, (a, b, c))
    except (SafetensorError, KeyError, ValueError, OSError):
        return None
