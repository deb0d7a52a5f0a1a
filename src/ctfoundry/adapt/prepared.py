"""Labelled scans prepared once, for every encoder that shares a preparation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import geometry
from ctfoundry.adapt.cases import IGNORE, Classes, LabelledScan, class_map
from ctfoundry.adapt.kept import MEMORY_BYTES, Kept, PreparedScan, preparation_digest, quantise
from ctfoundry.body import body_box
from ctfoundry.errors import ContractError
from ctfoundry.geometry import Grid, Vec3
from ctfoundry.preparation import Preparation, prepare
from ctfoundry.settings import to_data

if TYPE_CHECKING:
    from jaxtyping import UInt8


@dataclass(frozen=True, eq=False)
class PreparedCase(PreparedScan):
    """One scan and its classes on an encoder's prepared grid.

    Attributes
    ----------
    labels : classes (d, h, w); IGNORE where nothing is asked.
    affine : prepared voxel to world millimetres.
    body : lowest and highest world coordinates of the patient's body, (2, 3).
    preparation : digest of the preparation it was made with.
    classes : names of the classes.
    warnings : what a person should know of it.
    """

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
    case = PreparedCase(
        scan.id,
        scan.patient,
        *quantise(made.x),
        labels=labels,
        affine=made.affine,
        body=body_box(image),
        preparation=preparation_digest(preparation),
        classes=classes.names,
        warnings=tuple(warnings),
    )
    return case if case.present else replace(case, warnings=(*warnings, f"{scan.id}: holds none of the classes"))


class Cases(Kept[LabelledScan, PreparedCase]):
    """Prepared cases of some scans with one set of classes (`Kept`, `prepare_case`)."""

    def __init__(
        self,
        scans: Sequence[LabelledScan],
        preparation: Preparation,
        classes: Classes,
        *,
        cache: Path | None = None,
        memory: int = MEMORY_BYTES,
    ) -> None:
        super().__init__(scans, preparation, PreparedCase, cache=cache, memory=memory)
        self.classes = classes

    def make(self, scan: LabelledScan) -> PreparedCase:
        """`prepare_case`."""
        return prepare_case(scan, self.preparation, self.classes)

    def depends(self, scan: LabelledScan) -> list[Any]:
        """The names of the scan's labels, and the classes."""
        return [{str(number): name for number, name in scan.names.items()}, to_data(self.classes)]
