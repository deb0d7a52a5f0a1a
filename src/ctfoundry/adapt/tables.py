"""Labels of whole scans: columns of a CSV, or what a data set's own tables say, joined to scans.

No voxel is read here. Every mismatch is named: a row without a scan, a scan without a row, two rows of one scan, values that are no labels,
one class only, one patient in two splits.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from ctfoundry import identity, io
from ctfoundry.adapt.cases import LabelledScan, Splits
from ctfoundry.archive.adapters import open_dataset
from ctfoundry.archive.adapters.dataset import Case, Cube, DataSetError, Series, Split
from ctfoundry.archive.adapters.tree import stem
from ctfoundry.classifier import Kind
from ctfoundry.errors import CTFoundryError, UsageError
from ctfoundry.settings import nearest
from ctfoundry.volume import Volume

SCAN, PATIENT, SPLIT = ("scan", "path", "file", "id"), "patient", "split"
"""Columns that are no labels: the first of SCAN that is there says which scan a row is about."""
MISSING = {"", "na", "n/a", "nan", "none", "null", "?"}
_YES, _NO = {"1", "1.0", "yes", "y", "true", "positive"}, {"0", "0.0", "no", "n", "false", "negative"}
_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test", "": "",
}  # fmt: skip
MOST_CLASSES = 100
SHOWN = 5


class TableError(CTFoundryError):
    """Labels and scans do not fit together."""


@dataclass(frozen=True, eq=False)
class TargetScan(LabelledScan):
    """A scan with labels of the whole. `target` : the class' number, or for ``binary`` and ``multilabel`` 0 or 1 for each class."""

    target: tuple[int, ...] = ()
    place: str = ""
    """Where it lies. Private."""


@dataclass(frozen=True, eq=False)
class TargetSet:
    """Scans with labels. `classes` : names of a classifier's outputs. `notes` : what was inferred and what was left out, in words."""

    name: str
    scans: tuple[TargetScan, ...]
    kind: Kind
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Known:
    """A scan that may have a row: the names that a table may call it by, and its raw patient."""

    names: tuple[str, ...]
    patient: str
    image: Callable[[], Volume]
    content: Callable[[], str]
    place: str
    id: str = ""
    split: Split = ""
    targets: Mapping[str, str | float] = field(default_factory=dict)


def open_targets(
    data: str | Path, table: str | Path | None = None, target: str | None = None, *, dataset: str | None = None
) -> TargetSet:
    """Scans with labels of the whole.

    Parameters
    ----------
    data : a store, a folder of scans, or a data set that `open_dataset` knows.
    table : CSV (comma, semicolon or tab) with a column scan (path relative to `data`, file or folder name, id or SeriesInstanceUID),
        optional columns patient and split, and labels. None: what the data set's own tables say.
    target : column or columns, separated by commas; may be left out where there is one. Of a data set with several readers
        (``R1:ICH``), ``ICH`` is positive where any of them says anything but 0, and ``any`` where any reading is.
    dataset : name of the data set, where its layout is not clear.

    Raises UsageError for what cannot be used as labels, TableError for rows and scans that do not fit together.
    """
    place = Path(data)
    if not place.is_dir():
        raise UsageError("is no folder", where=place, do="give a store, a folder of scans or a data set")
    asked = tuple(name.strip() for name in target.split(",") if name.strip()) if target else ()
    notes: list[str] = []
    if table is None:
        known = _of_dataset(place, dataset, notes)
        cells = _told(known, asked, place, notes)
        rows = [(scan, cells[i]) for i, scan in enumerate(known)]
        columns = tuple(rows[0][1])
    else:
        columns, rows = _joined(Path(table), place, dataset, asked, notes)
    kind, classes, coded = _coded(columns, [cells for _, cells in rows], notes)
    scans = [
        _public(scan, value) for (scan, _), value in zip(rows, coded, strict=True) if value is not None
    ]  # fmt: skip
    lost = [scan.place for (scan, _), value in zip(rows, coded, strict=True) if value is None]
    if lost:
        notes.append(f"{len(lost)} scans without a value are left out: {_some(identity.name('scan', p) for p in lost)}")
    scans = _once(scans, notes)
    _checked(scans, kind, classes)
    Splits(*(tuple(s for s in scans if s.split == part) for part in ("train", "validation", "test")))
    told = table is not None and PATIENT in read_rows(Path(table))[0]
    if not told and len({scan.patient for scan in scans}) == len(scans):
        notes.append("nothing says that two scans are of one patient: each scan counts as a patient")
    return TargetSet(place.name, tuple(scans), kind, classes, tuple(notes))


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")


# Scans that there are


def _of_dataset(place: Path, name: str | None, notes: list[str]) -> list[_Known]:
    data = open_dataset(place, name)
    usable = [case for case in data.cases if case.modality == "CT" and not isinstance(case.image, Cube)]
    notes += [f"{data.name}: {note}" for note in data.notes]
    if len(usable) < len(data.cases):
        notes.append(f"{len(data.cases) - len(usable)} images that are no CT are left out")
    if not usable:
        raise UsageError("holds no CT scan", where=place)
    return [_of_case(case, place) for case in usable]


def _of_case(case: Case, root: Path) -> _Known:
    if isinstance(case.image, Series):
        paths, where = case.image.files, case.image.name
    else:
        assert isinstance(case.image, Path)
        inside = sorted(p for p in case.image.rglob("*") if p.is_file()) if case.image.is_dir() else [case.image]
        paths, where = tuple(inside), str(case.image)
    named = (case.id, Path(case.id).name, *_names(Path(where.split("#")[0]), root))
    return _Known(
        tuple(dict.fromkeys(named)), case.patient, case.read, cache(lambda: identity.content_digest(paths)), where,
        split=case.split, targets=case.targets,
    )  # fmt: skip


def _names(path: Path, root: Path) -> list[str]:
    """What a table may call a file or folder: its path below the root, its name, both without the suffix."""
    inside = path.resolve().is_relative_to(root.resolve())
    relative = path.resolve().relative_to(root.resolve()).as_posix() if inside else path.as_posix()
    bare = relative.removesuffix(".nii.gz") if relative.endswith(".nii.gz") else str(Path(relative).with_suffix(""))
    return [relative, bare, path.name, stem(path), str(path)]


def _scans_in(place: Path, dataset: str | None, notes: list[str]) -> list[_Known]:
    """All scans of a store, a known data set or a plain folder."""
    from ctfoundry.store import open_store

    if (place / "store.json").is_file():
        store = open_store(place)

        def volume_of(id: str) -> Callable[[], Volume]:
            return lambda: store.volume(id)

        def content_of(id: str) -> Callable[[], str]:
            return lambda: store.sidecar(id).voxels_sha256

        return [
            _Known((e.id,), e.patient, volume_of(e.id), content_of(e.id), f"{place}#{e.id}", id=e.id)
            for e in store.entries
        ]
    try:
        return _of_dataset(place, dataset, notes)
    except DataSetError:
        if dataset is not None:
            raise
    found = [item for item in io.discover(place).found if not item.is_label and item.problem is None]
    homes = Counter(item.folder or item.path.parent for item in found)
    known = []
    for item in found:
        home = item.folder or item.path.parent
        names = [item.name, *([item.series] if item.series and not item.part else [])]
        if item.format != "dicom":
            names += _names(item.path, place)
        if homes[home] == 1 and home.resolve() != place.resolve():
            names += _names(home, place)
        digest = cache(lambda item=item: identity.digest_of(item.hashes()))
        known.append(_Known(tuple(dict.fromkeys(names)), item.patient or "", item.read, digest, item.name))
    return known


# Rows


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a table in UTF-8 with commas, semicolons or tabs, whichever its header has most of.

    Raises UsageError for what is no table: not there, no text, a column twice, a line longer than the header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"cannot be read as a table: {reason}", where=path) from error
    lines = text.splitlines()
    header = lines[0] if lines else ""
    sign = max(",;\t", key=header.count)
    try:
        reader = csv.reader(lines, delimiter=sign, strict=True)
        columns = [name.strip() for name in next(reader, [])]
        rows = []
        for cells in reader:
            if len(cells) > len(columns) and any(cells[len(columns) :]):
                raise UsageError(
                    f"line {reader.line_num} has {len(cells)} cells, the header {len(columns)}", where=path
                )
            if any(cell.strip() for cell in cells):
                filled = [cell.strip() for cell in cells[: len(columns)]] + [""] * (len(columns) - len(cells))
                rows.append(dict(zip(columns, filled, strict=True)))
    except csv.Error as error:
        raise UsageError(f"cannot be read as a table: {error}", where=path) from error
    twice = [name for name, count in Counter(columns).items() if count > 1 and name]
    if twice:
        raise UsageError(f"names the column {twice[0]!r} twice", where=path)
    if not rows:
        raise UsageError("holds no rows", where=path)
    return columns, rows


def _joined(
    table: Path, place: Path, dataset: str | None, asked: tuple[str, ...], notes: list[str]
) -> tuple[tuple[str, ...], list[tuple[_Known, dict[str, str]]]]:
    """Label columns, and each scan that has a row with its cells."""
    columns, rows = read_rows(table)
    key = next((name for name in SCAN if name in columns), None)
    if key is None:
        raise UsageError(
            f"has no column {SCAN[0]!r} (it has: {', '.join(columns[:12])})", where=table, do="name each row's scan"
        )
    free = [name for name in columns if name and name not in (*SCAN, PATIENT, SPLIT)]
    for name in asked:
        if name not in free:
            raise UsageError(f"has no column {name!r}; {nearest(name, free)}", where=table)
    chosen = asked or tuple(free)
    if not asked and len(free) != 1:
        raise UsageError(
            f"has {len(free)} columns that may be labels: {', '.join(free[:12]) or 'none'}",
            where=table,
            do="choose: --target NAME, or --target NAME,NAME for several labels of a scan",
        )
    known = _scans_in(place, dataset, notes)
    by_name: dict[str, list[int]] = {}
    for i, scan in enumerate(known):
        for name in scan.names:
            by_name.setdefault(name, []).append(i)
    found: dict[int, dict[str, str]] = {}
    absent, vague, double = [], [], []
    for row in rows:
        name = row[key].rstrip("/").removeprefix("./")
        hits = by_name.get(name) or by_name.get(str((place / name).resolve()), [])
        if not hits:
            absent.append(name or "(empty)")
        elif len(hits) > 1:
            vague.append(name)
        elif hits[0] in found:
            double.append(name)
        else:
            found[hits[0]] = row
    if vague:
        raise TableError(
            f"{_some(vague)}: several scans have this name", where=table, do="write the path below the folder"
        )
    if double:
        raise TableError(
            f"{len(double)} scans have two rows: {_some(double)}", where=table, do="leave one row for each scan"
        )
    if not found:
        raise TableError(
            f"none of its {len(rows)} rows names a scan of {place.name} ({_some(absent)})",
            where=table,
            do=f"scans there are called, for example, {_some(s.names[0] for s in known[:SHOWN]) or 'nothing: there are none'}",
        )
    if absent:
        notes.append(f"{len(absent)} rows name no scan and are left out, such as row {rows_of(rows, key, absent[0])}")
    if len(found) < len(known):
        notes.append(f"{len(known) - len(found)} scans have no row and are left out")
    given = [
        (replace_given(known[i], row, columns, table), {name: row[name] for name in chosen}) for i, row in found.items()
    ]
    return chosen, given


def rows_of(rows: Sequence[Mapping[str, str]], key: str, name: str) -> int:
    """The line (the header is 1) of the first row whose scan is `name`; lines may be said aloud, names of files may not."""
    return next((n for n, row in enumerate(rows, 2) if row[key].rstrip("/").removeprefix("./") == name), 0)


def replace_given(scan: _Known, row: Mapping[str, str], columns: Sequence[str], table: Path) -> _Known:
    """A scan with the patient and the split that its row gives."""
    if SPLIT in columns:
        said = row[SPLIT].lower()
        if said not in _SPLITS:
            raise UsageError(f"the split {row[SPLIT]!r} is none of train, validation, test", where=table)
        scan = replace(scan, split=_SPLITS[said])
    if PATIENT in columns:
        if not row[PATIENT]:
            raise UsageError(
                "a row has no patient, others have one", where=table, do="fill the column, or leave it out"
            )
        scan = replace(scan, patient=row[PATIENT])
    return scan


def _told(known: Sequence[_Known], asked: tuple[str, ...], place: Path, notes: list[str]) -> list[dict[str, str]]:
    """Cells of the asked targets of a data set; readings of several readers are put together."""
    names = sorted({name for scan in known for name in scan.targets})
    readers = [name for name in names if re.match(r"^R\d+:", name)]
    signs = sorted({name.partition(":")[2] for name in readers})
    choices = [name for name in names if name not in readers] + signs + (["any"] if readers else [])
    if not choices:
        raise UsageError("its tables say nothing of whole scans", where=place, do="give your own: --table labels.csv")
    if not asked:
        if "abnormal" not in choices:
            raise UsageError(f"has several targets: {', '.join(choices)}", where=place, do="choose: --target NAME")
        asked = ("abnormal",)
    sources: dict[str, list[str]] = {}
    for name in asked:
        if name in names:
            sources[name] = [name]
        elif name in choices:
            sources[name] = readers if name == "any" else [r for r in readers if r.partition(":")[2] == name]
            notes.append(f"{name}: positive where any of {len(sources[name])} readings is not 0")
        else:
            raise UsageError(f"no target is called {name!r}; {nearest(name, choices)}", where=place)
    return [{name: _any(scan.targets, parts) for name, parts in sources.items()} for scan in known]


def _any(told: Mapping[str, str | float], parts: Sequence[str]) -> str:
    """One reading as it is; of several whether any is not 0; "" where none is there."""
    if len(parts) == 1 and not re.match(r"^R\d+:", parts[0]):
        return _plain(told.get(parts[0], ""))
    there = [_plain(told[name]) for name in parts if name in told]
    return "" if not there else "1" if any(value not in _NO for value in there) else "0"


def _plain(value: str | float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


# Values


def _coded(
    columns: tuple[str, ...], cells: Sequence[Mapping[str, str]], notes: list[str]
) -> tuple[Kind, tuple[str, ...], list[tuple[int, ...] | None]]:
    """The kind of the labels, the classes, and each scan's target; None where a value is missing."""
    whole = [None if any(row[c].lower() in MISSING for c in columns) else [row[c] for c in columns] for row in cells]
    values = [{row[i] for row in whole if row is not None} for i in range(len(columns))]
    answers = [{v.lower() for v in distinct} <= _YES | _NO for distinct in values]
    for name, distinct in zip(columns, values, strict=True):
        if len(distinct) < 2:
            only = f"only {next(iter(distinct))!r}" if distinct else "no value"
            raise UsageError(f"target {name!r} holds {only}: there is nothing to tell apart")
    if all(answers):
        kind: Kind = "binary" if len(columns) == 1 else "multilabel"
        notes.append(f"{', '.join(columns)}: 0/1 or yes/no, so {kind}")
        return kind, columns, [None if row is None else tuple(int(v.lower() in _YES) for v in row) for row in whole]
    if len(columns) > 1:
        odd = columns[answers.index(False)]
        raise UsageError(
            f"target {odd!r} holds more than 0/1 or yes/no ({_some(values[columns.index(odd)])})",
            do="several labels of a scan are each there or not; train a model for this one alone",
        )
    distinct = values[0]
    numbers = all(re.fullmatch(r"-?\d+(\.0*)?", v) for v in distinct)
    if numbers:  # 1 and 1.0 are one class
        whole = [None if row is None else [str(int(float(row[0])))] for row in whole]
        distinct = {row[0] for row in whole if row is not None}
    elif all(re.fullmatch(r"-?\d*\.?\d+([eE][-+]?\d+)?", v) for v in distinct):
        raise UsageError(
            f"target {columns[0]!r} holds measurements ({_some(distinct)}), not classes", do="make classes of them"
        )
    if len(distinct) > MOST_CLASSES or 2 * len(distinct) > len(whole):
        raise UsageError(
            f"target {columns[0]!r} has {len(distinct)} different values in {len(whole)} scans ({_some(distinct)})",
            do="classes come back in several scans; is it a name or a measurement?",
        )
    names = sorted(distinct, key=(lambda v: (float(v), v)) if numbers else None)
    notes.append(
        f"{columns[0]}: {len(names)} {'whole numbers' if numbers else 'words'}, so multiclass ({', '.join(names[:8])})"
    )
    return "multiclass", tuple(names), [None if row is None else (names.index(row[0]),) for row in whole]


def _public(scan: _Known, target: tuple[int, ...]) -> TargetScan:
    """A scan under public names; reading its bytes once gives it an id."""
    digest = scan.content()
    id = scan.id or identity.name("scan", digest)
    if re.fullmatch(r"patient-[0-9a-f]{12}", scan.patient):
        patient = scan.patient  # a store's, salted already
    else:
        patient = identity.name("patient", scan.patient or digest)
    return TargetScan(id, patient, scan.image, {}, {}, lambda: digest, scan.split, target, scan.place)


def _once(scans: Sequence[TargetScan], notes: list[str]) -> list[TargetScan]:
    """Each content once; the same bytes under two labels or patients are an error."""
    first: dict[str, TargetScan] = {}
    again = []
    for scan in scans:
        other = first.setdefault(scan.content(), scan)
        if other is scan:
            continue
        if (other.target, other.split) != (scan.target, scan.split):
            raise TableError(f"{scan.id}: two files hold the same scan, with other labels or splits", do="remove one")
        again.append(scan.id)
    if again:
        notes.append(f"{len(again)} scans are there twice and count once: {_some(again)}")
    return list(first.values())


def _checked(scans: Sequence[TargetScan], kind: Kind, classes: tuple[str, ...]) -> None:
    for i, name in enumerate(classes):
        states = {s.target[i] for s in scans} if kind != "multiclass" else {int(s.target[0] == i) for s in scans}
        if len(states) < 2:
            raise UsageError(f"{name!r} is {'in every scan' if states == {1} else 'in no scan'}: nothing to tell apart")
