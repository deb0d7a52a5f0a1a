"""Scans prepared once and kept: as int16, in memory up to a bound of bytes, on disk where a folder is given."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np

from ctfoundry import files
from ctfoundry.adapt.cases import LabelledScan
from ctfoundry.memory import Memory
from ctfoundry.preparation import Preparation
from ctfoundry.settings import from_data, to_data

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int16

VERSION = 3
"""Of what a file holds; grows when preparing a scan gives another result."""
MEMORY_BYTES = 4 * 2**30
"""Prepared scans held in memory at a time; beyond it the longest unused are read or made again."""


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A network's input for one scan.

    Attributes
    ----------
    id, patient : public names.
    quantised : as int16 (c, d, h, w): ``x = low + step * (q + 32768)``, off by at most half a `step` (0.02 HU for CT-FM's window).
    """

    id: str
    patient: str
    quantised: Int16[np.ndarray, "c d h w"]
    low: float
    step: float

    @property
    def bytes(self) -> int:
        """Memory that its arrays hold."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def x(self, box: tuple[slice, slice, slice] = (slice(None),) * 3) -> Float[torch.Tensor, "c d h w"]:
        """The network's input, or a box of it, as float32."""
        import torch

        part = torch.from_numpy(self.quantised[(slice(None), *box)].astype(np.float32))
        return part.add_(32768.0).mul_(self.step).add_(self.low)


def quantise(x: Float[torch.Tensor, "c d h w"]) -> tuple[Int16[np.ndarray, "c d h w"], float, float]:
    """An input as a `PreparedScan` holds it: (quantised, low, step), over the range of its own values."""
    values = x.numpy()
    low, high = float(values.min()), float(values.max())
    step = max(high - low, 1e-6) / 65535
    return np.round((values - low) / step - 32768).clip(-32768, 32767).astype(np.int16), low, step


def preparation_digest(preparation: Preparation) -> str:
    """What tells preparations apart, whatever they are called; the same for one that was read from a file."""
    whole = to_data(from_data(Preparation, to_data(preparation)))  # -1024 and -1024.0 are one number
    return files.digest({k: v for k, v in whole.items() if k != "name"})


From = TypeVar("From", bound=LabelledScan)
Made = TypeVar("Made", bound=PreparedScan)


class Kept(Sequence[Made], Generic[From, Made]):
    """Prepared scans, made when asked for. Several threads may ask; for what one of them makes the others wait.

    Parameters
    ----------
    scans, preparation : of what. kind : what one becomes.
    cache : folder for prepared scans, one file each under a hash of content, preparation and what else `depends` names.
    memory : most bytes kept in memory.

    `sizes` in bytes by place are of those that were made or read so far.
    """

    def __init__(
        self, scans: Sequence[From], preparation: Preparation, kind: type[Made], *, cache: Path | None, memory: int
    ) -> None:
        self.scans, self.preparation, self.kind, self.cache = tuple(scans), preparation, kind, cache
        self.sizes: dict[int, int] = {}
        self.memory = memory
        self._held = Memory(memory)

    @abstractmethod
    def make(self, scan: From) -> Made:
        """Read and prepare one scan; raises what reading and preparing raise."""

    def depends(self, scan: From) -> list[Any]:
        """What a prepared scan depends on beside the files and the preparation, as plain values."""
        return []

    def __len__(self) -> int:
        return len(self.scans)

    @overload
    def __getitem__(self, index: int) -> Made: ...
    @overload
    def __getitem__(self, index: slice) -> list[Made]: ...
    def __getitem__(self, index: int | slice) -> Made | list[Made]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]

        def load() -> tuple[Made, int]:
            found = self._load(self.scans[place])
            self.sizes[place] = found.bytes
            return found, found.bytes

        made: Made = self._held.once(place, load)
        return made

    def __iter__(self) -> Iterator[Made]:
        return (self[i] for i in range(len(self)))

    def _load(self, scan: From) -> Made:
        if self.cache is None:
            return self.make(scan)
        key = files.digest([VERSION, scan.content(), preparation_digest(self.preparation), *self.depends(scan)])
        path = self.cache / f"{key[:32]}.safetensors"
        found = _read(path, self.kind) if path.is_file() else None
        if found is None:
            found = self.make(scan)
            _write(found, path)
        return replace(found, id=scan.id, patient=scan.patient)


def _write(made: PreparedScan, path: Path) -> None:
    """Arrays as tensors; everything else, numbers, words and rows of them, as JSON beside them."""
    from safetensors.numpy import save_file

    every = {field.name: getattr(made, field.name) for field in fields(made)}
    arrays = {name: np.ascontiguousarray(value) for name, value in every.items() if isinstance(value, np.ndarray)}
    rest = {name: value for name, value in every.items() if name not in arrays and name not in ("id", "patient")}
    with files.whole(path, mode=0o600) as part:
        save_file(arrays, part, {"rest": json.dumps(rest)})


def _read(path: Path, kind: type[Made]) -> Made | None:
    """What was written; None where the file is damaged or of something else, so that it is made again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            rest: dict[str, Any] = json.loads((file.metadata() or {})["rest"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        rest = {name: tuple(value) if isinstance(value, list) else value for name, value in rest.items()}
        return kind(id="", patient="", **arrays, **rest)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError):
        return None
