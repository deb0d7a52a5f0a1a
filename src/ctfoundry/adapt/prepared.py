"""Labelled scans prepared once, for every encoder that shares a preparation: in memory up to a bound, on disk where a folder is given."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ctfoundry import files, geometry
from ctfoundry.adapt.cases import IGNORE, Classes, LabelledScan, class_map
from ctfoundry.body import body_box
from ctfoundry.errors import ContractError
from ctfoundry.geometry import Grid, Vec3
from ctfoundry.preparation import Preparation, prepare
from ctfoundry.settings import from_data, to_data

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int16, UInt8

VERSION = 2
"""Of what a cached case holds; grows when preparing a case gives another result."""
MEMORY_BYTES = 4 * 2**30
"""Prepared cases held in memory at a time; beyond it the longest unused are read or made again."""


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One scan and its classes on an encoder's prepared grid.

    Attributes
    ----------
    id, patient : public names.
    quantised : the prepared input as int16 (c, d, h, w): ``x = low + step * (q + 32768)``, off by at most half a `step`
        (0.02 HU for CT-FM's window).
    labels : classes (d, h, w); IGNORE where nothing is asked.
    affine : prepared voxel to world millimetres.
    body : lowest and highest world coordinates of the patient's body, (2, 3).
    preparation : digest of the preparation it was made with.
    classes : names of the classes.
    warnings : what a person should know of it.
    """

    id: str
    patient: str
    quantised: Int16[np.ndarray, "c d h w"]
    low: float
    step: float
    labels: UInt8[np.ndarray, "d h w"]
    affine: geometry.Affine
    body: np.ndarray
    preparation: str
    classes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @cached_property
    def present(self) -> tuple[str, ...]:
        """The classes that some voxel has."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes) + 1)
        return tuple(name for i, name in enumerate(self.classes, 1) if counts[i])

    @property
    def shape(self) -> Vec3:
        """(d, h, w)."""
        d, h, w = self.labels.shape
        return d, h, w

    @property
    def bytes(self) -> int:
        """Memory that it holds."""
        return self.quantised.nbytes + self.labels.nbytes

    def x(self, box: tuple[slice, slice, slice] = (slice(None),) * 3) -> Float[torch.Tensor, "c d h w"]:
        """The network's input, or a box of it, as float32."""
        import torch

        part = torch.from_numpy(self.quantised[(slice(None), *box)].astype(np.float32))
        return part.add_(32768.0).mul_(self.step).add_(self.low)


def preparation_digest(preparation: Preparation) -> str:
    """What tells preparations apart, whatever they are called; the same for one that was read from a file."""
    whole = to_data(from_data(Preparation, to_data(preparation)))  # -1024 and -1024.0 are one number
    return files.digest({k: v for k, v in whole.items() if k != "name"})


def prepare_case(scan: LabelledScan, preparation: Preparation, classes: Classes) -> PreparedCase:
    """Read and prepare one scan with its labels (as labels: class by class, the largest share wins).

    Raises ContractError for labels off the image's grid, for an image that the preparation refuses (NaN among it), and for
    windows stacked along an axis, where a voxel has no one place.
    """
    if preparation.intensity.stack == "axis0":
        raise ContractError(
            f"preparation {preparation.name!r} lays windows one after the other; voxels have no labels there"
        )
    image = scan.image()
    classified, warnings = class_map(scan, image, classes)
    made = prepare(preparation, image)
    _, d, h, w = made.x.shape
    labels = classified.onto(Grid((d, h, w), made.affine)).voxels
    labels = np.where(made.valid.numpy(), labels, IGNORE).astype(np.uint8)
    x = made.x.numpy()
    low, high = float(x.min()), float(x.max())
    step = max(high - low, 1e-6) / 65535
    quantised = np.round((x - low) / step - 32768).clip(-32768, 32767).astype(np.int16)
    case = PreparedCase(
        scan.id,
        scan.patient,
        quantised,
        low,
        step,
        labels,
        made.affine,
        body_box(image),
        preparation_digest(preparation),
        classes.names,
        tuple(warnings),
    )
    return case if case.present else replace(case, warnings=(*warnings, f"{scan.id}: holds none of the classes"))


class Cases(Sequence[PreparedCase]):
    """Prepared cases of some scans, made when asked for and kept: in memory up to a bound, on disk where a folder is given.

    Several threads may ask.

    Parameters
    ----------
    scans, preparation, classes : see `prepare_case`.
    cache : folder for prepared cases, one file each under a hash of content, preparation and classes.
    memory : most bytes kept in memory.

    `warnings` by id and `sizes` in bytes by place are of the cases that were asked for so far.
    """

    def __init__(
        self,
        scans: Sequence[LabelledScan],
        preparation: Preparation,
        classes: Classes,
        *,
        cache: Path | None = None,
        memory: int = MEMORY_BYTES,
    ) -> None:
        self.scans, self.preparation, self.classes = tuple(scans), preparation, classes
        self.cache, self.memory = cache, memory
        self.warnings: dict[str, tuple[str, ...]] = {}
        self.sizes: dict[int, int] = {}
        self._held: OrderedDict[int, PreparedCase] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.scans)

    @overload
    def __getitem__(self, index: int) -> PreparedCase: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreparedCase]: ...
    def __getitem__(self, index: int | slice) -> PreparedCase | list[PreparedCase]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        with self._lock:
            if index in self._held:
                self._held.move_to_end(index)
                return self._held[index]
        case = self._load(self.scans[index])
        with self._lock:
            self.warnings[case.id], self.sizes[index] = case.warnings, case.bytes
            self._held[index] = case
            while len(self._held) > 1 and sum(c.bytes for c in self._held.values()) > self.memory:
                self._held.popitem(last=False)
        return case

    def __iter__(self) -> Iterator[PreparedCase]:
        return (self[i] for i in range(len(self)))

    def _load(self, scan: LabelledScan) -> PreparedCase:
        if self.cache is None:
            return prepare_case(scan, self.preparation, self.classes)
        key = files.digest(
            [VERSION, scan.content(), {str(k): v for k, v in scan.names.items()}, to_data(self.classes)]
            + [preparation_digest(self.preparation)]
        )
        path = self.cache / f"{key[:32]}.safetensors"
        if path.is_file():
            found = _read(path)
            if found is not None:
                return replace(found, id=scan.id, patient=scan.patient)
        case = prepare_case(scan, self.preparation, self.classes)
        _write(case, path)
        return case


def _write(case: PreparedCase, path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {"x": case.quantised, "labels": case.labels, "affine": np.array(case.affine), "body": case.body}
    rest = {
        "low": case.low,
        "step": case.step,
        "preparation": case.preparation,
        "classes": case.classes,
        "warnings": case.warnings,
    }
    with files.whole(path) as part:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, part, {"case": json.dumps(rest)})


def _read(path: Path) -> PreparedCase | None:
    """A cached case; None where the file is damaged, so that it is made again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            rest: dict[str, Any] = json.loads((file.metadata() or {})["case"])
            t = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, ValueError, OSError):
        return None
    return PreparedCase(
        "",
        "",
        t["x"],
        rest["low"],
        rest["step"],
        t["labels"],
        geometry.as_affine(t["affine"]),
        t["body"],
        rest["preparation"],
        tuple(rest["classes"]),
        tuple(rest["warnings"]),
    )
