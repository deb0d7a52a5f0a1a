"""From a label system and a data set to classes, and what the labels of some scans really hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ctfoundry import structures
from ctfoundry.adapt.cases import Classes, LabelledSet, chosen_classes
from ctfoundry.adapt.prepared import Cases
from ctfoundry.errors import CTFoundryError, UsageError

SHOWN = 6


def system_classes(data: LabelledSet, labels: str) -> tuple[Classes, tuple[str, ...]]:
    """The classes of a recipe's `labels` (a system, ``SYSTEM/GROUP``, or "" for what the data set names), and notes.

    Classes are numbered 1 to n in the order of the system's numbers, whatever the data set's own are: structures are found by
    name. All of a system's are there, also those that the data set lacks, so that outputs mean the same everywhere; a note names
    them. Raises UsageError where nothing names the labels, where they are those of another system, and where none is asked for.
    """
    if not labels:
        return chosen_classes(data), ()
    wanted, known = structures.chosen(labels), data.structures
    if not known:
        raise UsageError(
            f"nothing names the numbers of the labels, and {labels} is not taken for granted",
            where=data.name,
            do='write labels.json beside them: {"1": "liver"}; ctfoundry.structures.system(NAME).table is the one of a system',
        )
    other = structures.confused(labels, known)
    if other is not None:
        raise UsageError(
            f"the data set has the labels of {other.name} ({len(known)} structures), not of {labels}",
            where=data.name,
            do=f"set labels={other.name}, or one of its groups; labels= alone takes what the data set names",
        )
    lacking = [name for name in wanted if name not in known]
    if len(lacking) == len(wanted):
        raise UsageError(f"the data set names none of the {len(wanted)} structures of {labels}", where=data.name)
    notes = (
        ()
        if not lacking
        else (
            f"{len(lacking)} of the {len(wanted)} structures of {labels} are not among the labels: {_listed(lacking)}",
        )
    )
    return Classes.of(wanted), notes


@dataclass(frozen=True)
class Survey:
    """What the labels of some scans hold.

    Attributes
    ----------
    scans : how many were looked at.
    holding : class to the number of scans that hold it.
    failed : id to what is wrong, for scans that cannot be prepared.
    warnings : of single scans.
    """

    scans: int
    holding: Mapping[str, int]
    failed: Mapping[str, str]
    warnings: tuple[str, ...]

    @property
    def unseen(self) -> tuple[str, ...]:
        """Classes that no scan holds: nothing is learnt of them, or nothing measured."""
        return tuple(name for name, count in self.holding.items() if not count)

    def said(self, part: str) -> tuple[str, ...]:
        """Everything worth saying, with the name of the part of the data (such as ``training``)."""
        never = self.unseen
        text = f"{len(never)} of {len(self.holding)} classes are in none of the {self.scans} {part} scans: {_listed(never)}"
        return (*self.warnings, *([text] if never else []))


def survey(cases: Cases) -> Survey:
    """Prepare every case once (which fills their cache) and note what it holds; one that fails leaves the others alone.

    That labels belong to another scan of the same grid cannot be seen.
    """
    holding = dict.fromkeys(cases.classes.names, 0)
    failed: dict[str, str] = {}
    warnings: list[str] = []
    for i, scan in enumerate(cases.scans):
        try:
            case = cases[i]
        except CTFoundryError as error:
            failed[scan.id] = str(error)
            continue
        warnings += case.warnings
        for name in case.present:
            holding[name] += 1
    return Survey(len(cases) - len(failed), holding, failed, tuple(warnings))


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
