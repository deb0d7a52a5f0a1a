"""`Case` and `DataSet`: what an adapter makes of a published folder; `Adapter`: what it knows of the data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ctfoundry.errors import CTFoundryError

if TYPE_CHECKING:
    from ctfoundry.archive.adapters.tree import Tree
    from ctfoundry.volume import Volume

Split = Literal["train", "validation", "test", ""]
"""As the data set publishes it; "" where it publishes none."""

NEVER = "never run on a real copy"
"""What is said of an adapter until it has been."""


class DataSetError(CTFoundryError):
    """A folder is not the data set that it is taken for, or a file of it breaks the published layout."""


@dataclass(frozen=True)
class Series:
    """One DICOM series, or the part of one that is a volume.

    Attributes
    ----------
    name : what `io.read` accepts for it, ``FOLDER#UID``.
    files : its slices from the first position to the last.
    """

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Cube:
    """One volume of an array (n, d, h, w) in a NumPy archive.

    Attributes
    ----------
    file, array, index : archive, name of the array in it, which of the n.
    spacing_mm : edge of a voxel; None where the source does not say (it is then written as 1).
    note : what the source says of window and orientation.
    """

    file: Path
    array: str
    index: int
    spacing_mm: float | None = None
    note: str = ""


Image = Path | Series | Cube
"""A file, or a folder with one DICOM series; a series; one volume of an array."""


@dataclass(frozen=True)
class Point:
    """A place that the data set marks.

    Attributes
    ----------
    at_mm : world millimetres, RAS+.
    label : what it marks; `size_mm` : its diameter where given.
    """

    at_mm: tuple[float, float, float]
    label: str
    size_mm: float | None = None


@dataclass(frozen=True)
class Case:
    """One scan with what belongs to it.

    Attributes
    ----------
    id : unique in the data set; `patient` : the data set's own public name, the same for all scans of a patient.
    image : the scan; `others` : further images of the same scan by name ("PET", "CT").
    labels : name to mask file. A map with several numbers stands under "labels", and `names` says what they mean.
    names : number to structure, for "labels".
    split : as published.
    report : the radiologist's words; None where there are none.
    targets : what tables say of the scan: findings, grades, survival ... Numbers where the whole column is numbers.
    points : places that the data set marks.
    modality : "CT", or "MR" for the magnetic resonance parts of mixed sets.
    """

    id: str
    patient: str
    image: Image
    labels: Mapping[str, Path] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    split: Split = ""
    report: str | None = None
    targets: Mapping[str, str | float] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    others: Mapping[str, Image] = field(default_factory=dict)
    modality: str = "CT"

    def read(self) -> Volume:
        """The scan's voxels, as `io.read` gives them; a `Cube` as kind "other" with the source's facts as notes."""
        from ctfoundry import io

        if isinstance(self.image, Cube):
            from ctfoundry.archive.adapters.cubes import read_cube

            return read_cube(self.image)
        return io.read(self.image.name if isinstance(self.image, Series) else self.image)


@dataclass(frozen=True)
class Pair:
    """Two scans that belong together.

    Attributes
    ----------
    first, second : ids. For registration the fixed and the moving one.
    kind : "registration" or "test-retest".
    """

    first: str
    second: str
    kind: Literal["registration", "test-retest"]
    split: Split = ""


@dataclass(frozen=True)
class DataSet:
    """A published data set as it lies in one folder.

    Attributes
    ----------
    name : of the adapter.
    title, home, licence, citation : its own words; home is a DOI or a project page.
    cases : sorted by id.
    pairs : scans that belong together.
    notes : what is missing or was left out, in words; names of files are relative to the folder.
    tested : on which real copies the adapter has been run.
    """

    name: str
    title: str
    home: str
    licence: str
    citation: str
    cases: tuple[Case, ...]
    pairs: tuple[Pair, ...] = ()
    notes: tuple[str, ...] = ()
    tested: str = NEVER

    def __repr__(self) -> str:
        return f"DataSet({self.name}, {len(self.cases)} cases of {self.patients} patients)"

    @property
    def patients(self) -> int:
        """How many."""
        return len({case.patient for case in self.cases})

    @property
    def splits(self) -> Mapping[str, int]:
        """Split to number of cases."""
        return dict(sorted(Counter(case.split for case in self.cases).items()))

    @property
    def labels(self) -> Mapping[str, int]:
        """Structure to number of cases whose masks may hold it (that a mask is empty is not seen)."""
        return _counted(
            (case.names.values() if name == "labels" and case.names else (name,))
            for case in self.cases
            for name in case.labels
        )

    @property
    def targets(self) -> Mapping[str, int]:
        """Target to number of cases that have it."""
        return _counted(case.targets for case in self.cases)


def _counted(groups: Iterable[Iterable[str]]) -> dict[str, int]:
    return dict(sorted(Counter(name for group in groups for name in group).items()))


@dataclass(frozen=True)
class Parts:
    """What an adapter reads from a folder."""

    cases: list[Case]
    pairs: list[Pair] = field(default_factory=list)


@dataclass(frozen=True)
class Adapter:
    """What is known of a data set, and how to read its folder.

    Attributes
    ----------
    name : short name; title, home, licence, citation : see `DataSet`. "read their page" where we have not read the licence.
    looks_for : what a folder must hold to be recognised, in words.
    source : where the folder tree was read up.
    is_it : whether a folder looks like it, by names alone.
    read : cases and pairs; notes go to the tree. Raises DataSetError.
    tested : on which real copies it has been run.
    """

    name: str
    title: str
    home: str
    licence: str
    citation: str
    looks_for: str
    source: str
    is_it: Callable[[Tree], bool]
    read: Callable[[Tree], Parts]
    tested: str = NEVER
