"""Borders and lesions of segmented scans, class by class, beside their Dice: gathered scan by scan, told over patients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry.adapt.cases import IGNORE, LabelledScan
from ctfoundry.adapt.scores import interval_data
from ctfoundry.adapt.surfaces import (
    LesionScores,
    SurfaceScores,
    lesion_scores,
    lesion_table,
    surface_scores,
    surface_table,
)
from ctfoundry.errors import UsageError
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import UInt8

KINDS = ("surfaces", "lesions")
FEW = 4
"""Classes up to which borders are measured unasked: an exact distance transform for each costs about as much as segmenting."""
TOLERANCE = 2.0
"""Millimetres within which two borders agree."""
_LESION = re.compile(
    r"lesion|tumou?r|cancer|carcinoma|metasta|nodule|mass|haemorrhag|hemorrhag|bleed|cyst|edema", re.IGNORECASE
)


def kinds_for(names: Sequence[str], asked: Sequence[str] | None) -> tuple[str, ...]:
    """Which measures are made: those asked for; unasked (None), where few classes are told apart, surfaces, and lesions where one is called so."""
    for kind in asked or ():
        if kind not in KINDS:
            raise UsageError(f"no measure is called {kind!r}; known: {', '.join(KINDS)}", where="--measures")
    if asked is not None:
        return tuple(asked)
    if len(names) > FEW:
        return ()
    return KINDS if any(map(_LESION.search, names)) else KINDS[:1]


def lesion_names(names: Sequence[str]) -> tuple[str, ...]:
    """The classes whose parts are counted one by one: those that are called lesions, or all where none is."""
    found = tuple(name for name in names if _LESION.search(name))
    return found or tuple(names)


class Borders:
    """Measures of some classes on whole scans. `kinds` : of `KINDS`; lesions are those of `lesion_names`."""

    def __init__(self, names: Sequence[str], kinds: Sequence[str]) -> None:
        self.names, self.kinds = tuple(names), tuple(kinds)
        self.lesions = lesion_names(names) if "lesions" in kinds else ()
        self._surfaces: dict[str, list[tuple[str, SurfaceScores]]] = {name: [] for name in self.names}
        self._lesions: dict[str, list[tuple[str, LesionScores]]] = {name: [] for name in self.lesions}

    def add(self, scan: LabelledScan, found: UInt8[np.ndarray, "d h w"], reference: Volume) -> None:
        """A scan: its predicted classes and its reference on one grid; what nobody asks about is in neither."""
        asked = reference.voxels != IGNORE
        for i, name in enumerate(self.names, 1):
            ours, theirs = (found == i) & asked, reference.voxels == i
            if "surfaces" in self.kinds:
                made = surface_scores(ours, theirs, reference.spacing, tolerance=TOLERANCE)
                self._surfaces[name].append((scan.patient, made))
            if name in self._lesions:
                self._lesions[name].append((scan.patient, lesion_scores(ours, theirs, reference.spacing)))

    def data(self, seed: int = 0) -> dict[str, Any]:
        """``surfaces`` and ``lesions`` as asked, by class, as plain values."""
        made: dict[str, Any] = {}
        if "surfaces" in self.kinds:
            made["surfaces"] = {"tolerance_mm": TOLERANCE}
            for name, scans in self._surfaces.items():
                told = surface_table(scans, seed=seed)
                made["surfaces"][name] = {
                    key: interval_data(told[key]) if told[key] is not None else None
                    for key in ("distance", "normalised")
                } | {"empty": told["empty"]}
        if self.lesions:
            made["lesions"] = {}
            for name, each in self._lesions.items():
                table = lesion_table(each, seed=seed)
                made["lesions"][name] = {"lesions": table.lesions} | {
                    key: None if value is None else interval_data(value)
                    for key, value in (
                        ("sensitivity", table.sensitivity),
                        ("false_positives", table.false_positives),
                        ("dice", table.dice),
                    )
                }
        return made
