"""Whole scans prepared once, for training and validation on labels of whole scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctfoundry import geometry
from ctfoundry.adapt.kept import MEMORY_BYTES, Kept, PreparedScan, quantise
from ctfoundry.adapt.tables import TargetScan
from ctfoundry.preparation import Preparation, prepare


@dataclass(frozen=True, eq=False)
class PreparedInput(PreparedScan):
    """A prepared scan; `spacing` in mm of its voxels."""

    spacing: tuple[float, float, float]


def prepare_input(scan: TargetScan, preparation: Preparation) -> PreparedInput:
    """Read and prepare one scan; raises what reading and preparing raise."""
    made = prepare(preparation, scan.image())
    return PreparedInput(scan.id, scan.patient, *quantise(made.x), spacing=geometry.spacing(made.affine))


class Inputs(Kept[TargetScan, PreparedInput]):
    """Prepared inputs of some scans (`Kept`)."""

    def __init__(
        self,
        scans: Sequence[TargetScan],
        preparation: Preparation,
        *,
        cache: Path | None = None,
        memory: int = MEMORY_BYTES,
    ) -> None:
        super().__init__(scans, preparation, PreparedInput, cache=cache, memory=memory)

    def make(self, scan: TargetScan) -> PreparedInput:
        """`prepare_input`."""
        return prepare_input(scan, self.preparation)
