"""Labelled scans for a task: from a folder, with patients, splits and classes, prepared once for every encoder that shares
a preparation.

What can be wrong is named: label maps that are not on their image's grid or hold fractions, one patient in two splits and NaN
are errors; numbers that nothing names, overlapping masks, crossed sides, and scans that hold none of the classes are warnings (`adapt.prepared`).
Labels of another scan on the same grid cannot be told from the right ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry import files
from ctfoundry.adapt import sides
from ctfoundry.archive.adapters import open_dataset
from ctfoundry.archive.adapters.dataset import Case, Cube, Series, Split
from ctfoundry.errors import ContractError, NotAScanError, SettingsError, UsageError
from ctfoundry.keys import Key
from ctfoundry.settings import nearest
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import UInt8

IGNORE = 255
"""Class of voxels that nobody asks about: padding, fill, and label numbers without a name."""
MOST_CLASSES = 254


@dataclass(frozen=True)
class Classes:
    """What is to be told apart: class ``i + 1`` is `names[i]`, made of the structures `parts[i]`; 0 is all the rest."""

    names: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        every = [part for parts in self.parts for part in parts]
        twice = sorted({part for part in every if every.count(part) > 1})
        if not self.names or len(self.names) != len(self.parts) or any(not parts for parts in self.parts):
            raise SettingsError("classes need a name and at least one structure each")
        if twice or len(set(self.names)) < len(self.names):
            raise SettingsError(
                f"a structure belongs to one class and a name is used once: {', '.join(twice) or 'names'}"
            )
        if len(self.names) > MOST_CLASSES:
            raise SettingsError(f"{len(self.names)} classes; at most {MOST_CLASSES} are told apart")

    @classmethod
    def of(cls, structures: Mapping[str, Sequence[str]] | Iterable[str]) -> Classes:
        """Groups of structures by name, or structures that are a class each.

        >>> Classes.of({"lungs": ["lung_left", "lung_right"]}).names, Classes.of(["liver", "spleen"]).parts
        (('lungs',), (('liver',), ('spleen',)))
        """
        groups = structures if isinstance(structures, Mapping) else {name: (name,) for name in structures}
        return cls(tuple(groups), tuple(tuple(parts) for parts in groups.values()))

    @property
    def count(self) -> int:
        """Classes with the background."""
        return len(self.names) + 1

    @property
    def of_structure(self) -> dict[str, int]:
        """Structure to class."""
        return {part: i for i, parts in enumerate(self.parts, 1) for part in parts}


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """One scan and its labels, not read yet.

    Attributes
    ----------
    id, patient : public names; `split` as given ("" where none is).
    image : reads the scan.
    maps : reads label maps. ``labels`` holds several structures by number, any other name is one structure's mask.
    names : number to structure, for ``labels``; where it is empty the map's own names count, else the numbers themselves.
    content : hash of what is read, for caches.
    """

    id: str
    patient: str
    image: Callable[[], Volume]
    maps: Mapping[str, Callable[[], Volume]]
    names: Mapping[int, str]
    content: Callable[[], str]
    split: Split = ""

    @property
    def structures(self) -> tuple[str, ...]:
        """What the labels may hold, as far as it is told without reading them."""
        return tuple(name for key in self.maps for name in (self.names.values() if key == "labels" else (key,)))


def scan_of(id: str, ct: Volume, labels: Volume, *, patient: str = "", split: Split = "") -> LabelledScan:
    """A labelled scan of volumes in memory, such as a phantom's."""

    def content() -> str:
        parts = [ct.voxels, ct.affine, labels.voxels, labels.affine]
        return files.digest([files_of_array(part) for part in parts])

    return LabelledScan(
        id, patient or id, lambda: ct, {"labels": lambda: labels}, dict(labels.names or {}), content, split
    )


def files_of_array(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes, type and shape."""
    from hashlib import sha256

    head = f"{array.dtype.str}{array.shape}".encode()
    return sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


@dataclass(frozen=True)
class LabelledSet:
    """Labelled scans of one data set. `notes` : what was left out, in words."""

    name: str
    scans: tuple[LabelledScan, ...]
    notes: tuple[str, ...] = ()

    @property
    def structures(self) -> tuple[str, ...]:
        """Every structure that some label names, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for scan in self.scans for name in scan.structures))


def open_labelled(folder: str | PathLike[str], name: str | None = None) -> LabelledSet:
    """The labelled CTs of any data set that `open_dataset` knows; no voxel is read.

    Scans without labels, and those that are no CT, are left out and counted in the notes. Raises UsageError when none is left.
    """
    data = open_dataset(folder, name)
    usable = [case for case in data.cases if case.labels and case.modality == "CT" and not isinstance(case.image, Cube)]
    if not usable:
        raise UsageError(
            f"none of the {len(data.cases)} scans has labels", where=folder, do="give a folder of labelled CT scans"
        )
    left = len(data.cases) - len(usable)
    notes = (*data.notes, *([f"{left} scans without labels, or no CT, are left out"] if left else []))
    return LabelledSet(data.name, tuple(_scan(case) for case in usable), notes)


def _scan(case: Case) -> LabelledScan:
    from ctfoundry import io
    from ctfoundry.identity import content_digest

    def reader(path: Path) -> Callable[[], Volume]:
        def read() -> Volume:
            try:
                return io.read(path, kind="label")
            except NotAScanError as error:
                raise ContractError(
                    f"the labels {path.name} are not whole numbers from 0 up: {error.what}",
                    where=case.id,
                    do="labels that were resampled linearly hold numbers of no structure: resample them as labels from the original",
                ) from error

        return read

    def content() -> str:
        image = case.image
        if isinstance(image, Series):
            scan = content_digest(image.files)
        else:
            assert isinstance(image, Path)
            inside = sorted(p for p in image.rglob("*") if p.is_file()) if image.is_dir() else [image]
            scan = content_digest(inside)
        return files.digest([scan, {name: files.sha256(path) for name, path in sorted(case.labels.items())}])

    maps = {name: reader(path) for name, path in case.labels.items()}
    return LabelledScan(case.id, case.patient, case.read, maps, dict(case.names), content, case.split)


@dataclass(frozen=True)
class Splits:
    """Scans to learn from, to choose by, and to report on; no patient is in two of them."""

    train: tuple[LabelledScan, ...]
    validation: tuple[LabelledScan, ...]
    test: tuple[LabelledScan, ...] = ()

    def __post_init__(self) -> None:
        where: dict[str, str] = {}
        for name in ("train", "validation", "test"):
            for scan in getattr(self, name):
                if where.setdefault(scan.patient, name) != name:
                    raise ContractError(
                        f"patient {scan.patient} is in {where[scan.patient]} and in {name}",
                        where=scan.id,
                        do="put all scans of a patient into one split",
                    )


def split(scans: Sequence[LabelledScan], *, seed: int = 0, validation: float = 0.3, test: float = 0.0) -> Splits:
    """The splits that the data set gives; what it does not give is drawn by patient from the training scans.

    A set that gives nothing is divided by the shares `validation` and `test`; one with training scans alone gives up a share
    for validation. Scans that a set leaves out of its splits are not used then. Raises ContractError for a patient in two
    splits, UsageError when a part stays empty.
    """
    given = {name: [s for s in scans if s.split == name] for name in ("train", "validation", "test")}
    pool = given["train"] if any(given.values()) else list(scans)
    parts: dict[str, list[LabelledScan]] = {**given, "train": pool}
    Splits(*(tuple(parts[name]) for name in ("train", "validation", "test")))
    patients = sorted({scan.patient for scan in pool})
    order = [patients[i] for i in Key.of("split", seed).permutation(len(patients))]
    for name, share in (("test", test), ("validation", validation)):
        if given[name] or not share:
            continue
        count = max(1, round(share * len(patients)))
        chosen, order = set(order[:count]), order[count:]
        parts[name] = [scan for scan in parts["train"] if scan.patient in chosen]
        parts["train"] = [scan for scan in parts["train"] if scan.patient not in chosen]
    if not parts["train"] or not parts["validation"]:
        raise UsageError(
            f"{len(patients)} patients do not divide into training and validation", do="give more labelled patients"
        )
    return Splits(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]))


def few(
    scans: Sequence[LabelledScan],
    shots: int,
    *,
    seed: int = 0,
    holds: Callable[[LabelledScan], bool] | None = None,
) -> tuple[LabelledScan, ...]:
    """One scan each of `shots` patients, both drawn at random; the draw of more shots with the same seed holds that of fewer.

    holds : passes over scans of no use, such as those without a structure of the group that is learnt; it is asked only until there
        are enough. The order of the scans plays no part (the reference takes the first rows of a table).
    """
    own: dict[str, list[LabelledScan]] = {}
    for scan in scans:
        own.setdefault(scan.patient, []).append(scan)
    key, patients = Key.of("shots", seed), sorted(own)
    drawn: list[LabelledScan] = []
    for i in key.permutation(len(patients)) if shots >= 1 else ():
        those = sorted(own[patients[i]], key=lambda scan: scan.id)
        order = (those[k] for k in key(patients[i]).permutation(len(those)))
        drawn += islice((scan for scan in order if holds is None or holds(scan)), 1)
        if len(drawn) == shots:
            return tuple(drawn)
    which = "" if holds is None else f", {len(drawn)} of them with what is to be learnt,"
    raise UsageError(
        f"{shots} shots are asked for and {len(patients)} training patients{which} are there", where="--shots"
    )


def class_map(scan: LabelledScan, image: Volume, classes: Classes) -> tuple[Volume, list[str]]:
    """The classes of a scan on its image's grid (uint8), and warnings."""
    table, warnings = classes.of_structure, []
    out = np.zeros(image.shape, dtype=np.uint8)
    overlap = 0
    where: dict[str, float] = {}
    for name, read in scan.maps.items():
        if name != "labels" and name not in table:
            continue
        labels = read()
        if not image.grid.same(labels.grid):
            raise ContractError(
                f"the labels {name!r} lie on another grid than the image: {labels.grid!r}, not {image.grid!r}",
                where=scan.id,
                do="resample the labels onto the image (as labels), or give those that were drawn on it",
            )
        if name != "labels":
            mask = labels.voxels > 0
            where |= sides.places(labels.voxels, image.affine, {int(labels.voxels.max()) or 1: name})
            overlap += int((mask & (out > 0)).sum())
            out[mask] = table[name]
            continue
        names = dict(scan.names or labels.names or {})
        values = _values(labels.voxels)
        unknown = [v for v in values if v and names and v not in names]
        if unknown:
            shown = ", ".join(map(str, unknown[:5]))
            warnings.append(f"{scan.id}: label values that nothing names are left out of training and scores: {shown}")
        new = {v: 0 if not v else IGNORE if v in unknown else table.get(names.get(v, str(v)), 0) for v in values}
        where |= sides.places(labels.voxels, image.affine, {v: names[v] for v in values if v in names})
        chosen = _renumbered(labels.voxels, new)
        overlap += int(((chosen > 0) & (out > 0)).sum())
        out = np.where(chosen > 0, chosen, out)
    if overlap:
        warnings.append(f"{scan.id}: {overlap} voxels lie in several masks; the last one counts")
    warnings += sides.warning(scan.id, where)
    return Volume(out, image.affine, "label", source=scan.id), warnings


def _values(labels: np.ndarray) -> list[int]:
    """The numbers that a label map holds, in rising order; sorting all its voxels would take twenty times as long."""
    if labels.dtype.itemsize > 2:
        return [int(v) for v in np.unique(labels)]
    low = int(labels.min())
    seen = np.zeros(int(labels.max()) - low + 1, dtype=bool)
    for part in labels:
        seen[part.astype(np.int64) - low] = True
    return [low + int(i) for i in np.flatnonzero(seen)]


def _renumbered(labels: np.ndarray, new: Mapping[int, int]) -> UInt8[np.ndarray, "d h w"]:
    """The new number of each voxel; `new` has every number that is there."""
    low, high = min(new), max(new)
    if high - low >= 1 << 16:
        keys = np.array(sorted(new))
        return np.array([new[int(v)] for v in keys], dtype=np.uint8)[np.searchsorted(keys, labels)]
    table = np.zeros(high - low + 1, dtype=np.uint8)
    table[[v - low for v in new]] = list(new.values())
    return np.stack([table[part.astype(np.int64) - low] for part in labels])


def chosen_classes(
    data: LabelledSet, labels: Sequence[str] = (), groups: Mapping[str, Sequence[str]] | None = None
) -> Classes:
    """Classes by `groups` (those of which the data set names a structure), by `labels`, or every structure that it names.

    Raises UsageError for a label that the data set does not name, and where it names none.
    """
    known = data.structures
    if groups is not None:
        found = {name: [p for p in parts if p in known] for name, parts in groups.items()}
        found = {name: parts for name, parts in found.items() if parts}
        if not found:
            raise UsageError(f"none of the groups holds a structure of the data set ({', '.join(known[:5])} ...)")
        return Classes.of(found)
    for label in labels:
        if label not in known:
            raise UsageError(f"no structure is called {label!r}; {nearest(label, known)}", where="--labels")
    if not known:
        raise UsageError("nothing names the labels", do='write labels.json beside them: {"1": "liver"}')
    return Classes.of(labels or known)
