"""Published data sets as they lie in a folder: recognised, listed as cases with labels, splits and targets.

>>> from ctfoundry.archive.adapters import ADAPTERS
>>> sorted(ADAPTERS)[:4]
['3d-mir', 'amos', 'autopet', 'c4kc-kits']
"""

from __future__ import annotations

from collections import Counter
from os import PathLike
from pathlib import Path

from ctfoundry.archive.adapters import (
    abdomens,
    autopet,
    decathlon,
    heads,
    kits,
    learn2reg,
    luna16,
    medmnist,
    mir,
    plain,
    reports,
    tcia,
    totalsegmentator,
)
from ctfoundry.archive.adapters.dataset import Adapter, Case, Cube, DataSet, DataSetError, Pair, Parts, Point, Series
from ctfoundry.archive.adapters.tree import Tree
from ctfoundry.errors import UsageError
from ctfoundry.settings import nearest

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Case",
    "Cube",
    "DataSet",
    "DataSetError",
    "Pair",
    "Point",
    "Series",
    "open_dataset",
    "recognised",
]

_FAMILIES = (totalsegmentator, decathlon, abdomens, kits, autopet, learn2reg, heads, medmnist, mir, reports, luna16)

ADAPTERS: dict[str, Adapter] = {a.name: a for family in (*_FAMILIES, tcia, plain) for a in family.ADAPTERS}
"""Name to adapter; ``plain`` is taken only where no other one fits."""

_STAGES = (_FAMILIES, (tcia,), (plain,))
"""The next families are asked only where none of those before fits: DICOM trees are searched in depth, and plain fits many."""
_OVER = {"3d-mir": "msd"}
"""Adapters whose folders also look like those of another one."""
_CHILDREN = 64


def recognised(folder: Path) -> list[str]:
    """Names of the adapters that a folder looks like, by names of files alone."""
    tree = Tree(folder)
    for stage in _STAGES:
        found = [a.name for family in stage for a in family.ADAPTERS if a.is_it(tree)]
        if found:
            return [name for name in found if name not in {_OVER.get(other) for other in found}]
    return []


def open_dataset(folder: str | PathLike[str], name: str | None = None) -> DataSet:
    """The data set in a folder, or in the one folder below it that holds one.

    No voxel is read: cases come from names, tables and DICOM headers. `name` says which data set it is; without it the layout decides.

    Raises DataSetError for a folder that is none (it lists what was looked for), one that looks like several, and for files that
    break the layout; UsageError for an unknown `name`.
    """
    place = Path(folder)
    if not place.is_dir():
        raise DataSetError("is not a folder", where=place, do="give the folder that holds the data set")
    if name is not None and name not in ADAPTERS:
        raise UsageError(f"no data set is called {name!r}; {nearest(name, ADAPTERS)}", where="--as")
    place, found = _placed(place, name)
    if len(found) != 1:
        raise DataSetError(
            f"looks like several data sets: {', '.join(found)}", where=place, do=f"say which one (--as {found[0]})"
        )
    adapter, tree = ADAPTERS[found[0]], Tree(place)
    parts: Parts = adapter.read(tree)
    if not parts.cases:
        raise DataSetError(
            f"looks like {adapter.name} but holds none of its scans{': ' + '; '.join(tree.notes) if tree.notes else ''}",
            where=place,
            do=f"expected: {adapter.looks_for}",
        )
    ids = [case.id for case in parts.cases]
    if len(set(ids)) != len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise DataSetError(f"has two scans called {twice}", where=place, do="remove one of the copies")
    cases = tuple(sorted(parts.cases, key=lambda case: case.id))
    return DataSet(
        adapter.name,
        adapter.title,
        adapter.home,
        adapter.licence,
        adapter.citation,
        cases,
        tuple(parts.pairs),
        tuple(tree.notes),
        adapter.tested,
    )


def _placed(place: Path, name: str | None) -> tuple[Path, list[str]]:
    """The folder itself, or its one child, that looks like `name` (or like anything); raises DataSetError."""

    def fits(folder: Path) -> list[str]:
        if name is None:
            return recognised(folder)
        return [name] if ADAPTERS[name].is_it(Tree(folder)) else []

    found = fits(place)
    if found and found != ["plain"]:
        return place, found
    children = [(child, fits(child)) for child in Tree(place).folders()[:_CHILDREN]]
    children = [(child, names) for child, names in children if names and (names != ["plain"] or name)]
    if len(children) == 1 and not found:
        return children[0]
    if found:
        return place, found
    if children:
        listed = "; ".join(f"{child.name}: {', '.join(names)}" for child, names in children[:8])
        raise DataSetError(f"holds several data sets ({listed})", where=place, do="give one of these folders")
    looked = [ADAPTERS[name]] if name else list(ADAPTERS.values())
    raise DataSetError(
        "is not laid out like " + (f"{name}" if name else "any data set that is known here"),
        where=place,
        do="looked for:\n     " + "\n     ".join(f"{a.name}: {a.looks_for}" for a in looked),
    )
