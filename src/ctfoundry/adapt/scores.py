"""Dice of label maps by patient: voxel counts first, numbers and intervals from them; and how a segmenter fares on whole scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import stats
from ctfoundry.adapt.cases import IGNORE, Classes, LabelledScan, class_map
from ctfoundry.errors import ContractError, CTFoundryError
from ctfoundry.segmenter import Pass, Segmenter
from ctfoundry.stats import Interval
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8


@dataclass(frozen=True, eq=False)
class Scores:
    """Voxel counts of one method on some scans, and what follows from them.

    Attributes
    ----------
    method : what segmented.
    classes : names, without the background.
    patients : of each scan.
    counts : (scans, classes, 3) voxels that are hit, predicted and the reference's.
    seed : of the bootstrap.
    """

    method: str
    classes: tuple[str, ...]
    patients: tuple[str, ...]
    counts: Int64[np.ndarray, "scans classes 3"]
    seed: int = 0

    @cached_property
    def dice(self) -> np.ndarray:
        """Dice (scans, classes): NaN where neither prediction nor reference holds the class, 0 where only one does."""
        hit, taken, own = np.moveaxis(self.counts, 2, 0).astype(np.float64)
        with np.errstate(invalid="ignore"):
            return np.where(taken + own > 0, 2 * hit / (taken + own), np.nan)

    @cached_property
    def macro(self) -> Interval:
        """Mean over patients of the mean over the classes that a scan or its prediction holds, with a bootstrap interval."""
        values: dict[str, list[float]] = {}
        for patient, row in zip(self.patients, self.dice, strict=True):
            if np.isfinite(row).any():
                values.setdefault(patient, []).append(float(np.nanmean(row)))
        return stats.mean(values, seed=self.seed)

    @cached_property
    def micro(self) -> Interval:
        """Dice of all foreground voxels pooled over classes and scans, with a bootstrap interval over patients."""
        names = sorted(set(self.patients))
        table = np.zeros((len(names), 3))
        for patient, row in zip(self.patients, self.counts, strict=True):
            table[names.index(patient)] += row.sum(0)

        def pooled(weight: np.ndarray) -> float:
            hit, taken, own = weight @ table
            return float(2 * hit / (taken + own)) if taken + own else float("nan")

        return stats.resampled(len(names), pooled, int(self.counts[..., 2].sum()), seed=self.seed)

    @cached_property
    def labels(self) -> dict[str, Interval | None]:
        """Each class' mean Dice over the patients that it is asked of; None where no scan or prediction holds it."""
        found: dict[str, Interval | None] = {}
        for i, name in enumerate(self.classes):
            values: dict[str, list[float]] = {}
            for patient, value in zip(self.patients, self.dice[:, i], strict=True):
                if np.isfinite(value):
                    values.setdefault(patient, []).append(float(value))
            found[name] = stats.mean(values, seed=self.seed) if values else None
        return found

    def data(self) -> dict[str, Any]:
        """Plain values, for JSON; patients by number only."""
        return {
            "method": self.method,
            "macro": interval_data(self.macro),
            "micro": interval_data(self.micro),
            "labels": {name: None if i is None else interval_data(i) for name, i in self.labels.items()},
        }


def interval_data(interval: Interval) -> dict[str, Any]:
    """An interval as plain values."""
    return {
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "patients": interval.patients,
        "seed": interval.seed,
    }


def class_counts(
    prediction: UInt8[np.ndarray, "d h w"], reference: UInt8[np.ndarray, "d h w"], classes: int
) -> Int64[np.ndarray, "classes 3"]:
    """Voxels of each class that are hit, predicted and the reference's; IGNORE voxels of the reference count nowhere."""
    asked = reference != IGNORE
    ours, theirs = prediction[asked], reference[asked]
    size = classes + 1
    hit = np.bincount(theirs[ours == theirs], minlength=size)
    return np.stack([hit, np.bincount(ours, minlength=size), np.bincount(theirs, minlength=size)], 1)[1:size]


def class_table(names: Sequence[str], classes: Classes) -> UInt8[np.ndarray, "values"]:
    """The class of each label value of a segmenter: the class of that name, or the one that holds the structure; 0 for others.

    Raises ContractError when it has no name for some class.
    """
    wanted = {**classes.of_structure, **{name: i for i, name in enumerate(classes.names, 1)}}
    table = np.array([0, *(wanted.get(name, 0) for name in names[1:])], dtype=np.uint8)
    missing = [name for i, name in enumerate(classes.names, 1) if i not in table]
    if missing:
        raise ContractError(f"the segmenter has no structure for {', '.join(missing[:5])}")
    return table


def score(
    segmenter: Segmenter,
    scans: Sequence[LabelledScan],
    classes: Classes,
    *,
    method: str = "",
    settings: Pass | None = None,
    seed: int = 0,
    read: Callable[[LabelledScan], tuple[Volume, Volume]] | None = None,
    seen: Callable[[int], None] | None = None,
    failed: dict[str, str] | None = None,
    each: Callable[[LabelledScan, UInt8[np.ndarray, "d h w"], Volume], None] | None = None,
) -> Scores:
    """Segment whole scans and count voxels on their own grids, as `Segmenter` is used.

    Parameters
    ----------
    classes : to be told apart; the segmenter's names are matched by name, or by the structures that a class is made of.
    method : what the scores are called (default: the card's name).
    seed : of the bootstrap.
    read : the scan and its classes (default: reads both).
    seen : told the number of scans done.
    failed : where it is given, scans that cannot be read or segmented are put into it with the reason, and are in no score; else they raise.
    each : told each scan with its predicted classes and its reference, such as `borders.Borders.add`.
    """
    table, counts, patients = class_table(segmenter.names, classes), [], []
    for number, scan in enumerate(scans, 1):
        try:
            image, reference = read(scan) if read is not None else read_classes(scan, classes)
            found = table[segmenter(image, settings=settings).voxels]
        except (CTFoundryError, OSError) as error:
            if failed is None:
                raise
            failed[scan.id] = error.what if isinstance(error, CTFoundryError) else type(error).__name__
        else:
            counts.append(class_counts(found, reference.voxels, len(classes.names)))
            patients.append(scan.patient)
            if each is not None:
                each(scan, found, reference)
        if seen is not None:
            seen(number)
    rows = np.stack(counts) if counts else np.zeros((0, len(classes.names), 3), dtype=np.int64)
    return Scores(method or segmenter.card.name, classes.names, tuple(patients), rows, seed)


def read_classes(scan: LabelledScan, classes: Classes) -> tuple[Volume, Volume]:
    """A scan, and its classes on its own grid (IGNORE where nothing is asked)."""
    image = scan.image()
    return image, class_map(scan, image, classes)[0]
