"""A published folder, read with care: names that lead out of it, endless tables and damaged texts are named errors.

Nothing here reads voxels. Links are followed where they stay in the folder.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctfoundry.archive.adapters.dataset import DataSetError

TABLE_BYTES = 1 << 28
"""Most bytes of a table. CT-RATE's reports, the largest, are some tens of millions."""
TABLE_ROWS = 1_000_000
"""Most rows of a table; LUNA16's candidates have 754,975."""
JSON_BYTES = 1 << 26
"""Most bytes of a JSON file."""
ENTRIES = 1_000_000
"""Most entries of one folder."""
_COLUMNS = 4096
NIFTI = (".nii.gz", ".nii")
_AGAIN = "download it again, or repair it"

Row = Mapping[str, str]


@dataclass
class Tree:
    """A folder, and what was noticed while it was read.

    Attributes
    ----------
    root : the folder.
    notes : in words, for `DataSet.notes`.
    """

    root: Path
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._real = Path(os.path.realpath(self.root))

    def note(self, text: str) -> None:
        """Keep a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def note_missing(self, what: str, names: Sequence[str]) -> None:
        """A note about files that are listed and not there; nothing where `names` is empty."""
        if names:
            self.note(f"{len(names)} {what} not here, such as {names[0]}")

    def shown(self, path: Path) -> str:
        """A path relative to the folder, for messages."""
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return path.name

    def path(self, name: str, where: Path) -> Path:
        """The place that a table or JSON file `where` names, relative to the folder of that file; it need not exist.

        Raises DataSetError for absolute names, names with ``..`` and links out of the folder.
        """
        parts = name.split("/")
        if not name or "\0" in name or "\\" in name or name[0] in "/~" or re.match("[A-Za-z]:", name) or ".." in parts:
            raise DataSetError(
                f"names the file {name[:200]!r}, which does not lie below the data set's folder",
                where=where,
                do="data sets name their files relative to their folder; do not use this one",
            )
        return self._inside(where.parent.joinpath(*(p for p in parts if p not in ("", "."))))

    def _inside(self, path: Path) -> Path:
        try:
            real = Path(os.path.realpath(path))
        except OSError as error:
            raise DataSetError(f"cannot be followed ({error.strerror})", where=path) from error
        if real != self._real and self._real not in real.parents:
            raise DataSetError(
                "is a link out of the data set's folder",
                where=path,
                do="give the folder that really holds the data set, or copy the files into it",
            )
        return path

    # What is there ---------------------------------------------------------------------------------------------------

    def entries(self, folder: Path | None = None) -> list[os.DirEntry[str]]:
        """What lies in a folder, by name, without hidden entries (archives packed on a Mac are full of ``._NAME``)."""
        place = folder or self.root
        found = []
        try:
            with os.scandir(place) as each:
                for entry in each:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink():
                        self._inside(Path(entry.path))
                    found.append(entry)
                    if len(found) > ENTRIES:
                        raise DataSetError(f"holds more than {ENTRIES:,} entries", where=place)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataSetError(f"cannot be listed ({error.strerror})", where=place) from error
        return sorted(found, key=lambda entry: entry.name)

    def files(self, folder: Path, *suffixes: str) -> list[Path]:
        """Files of a folder with one of these endings (any case), by name; none where the folder is not there."""
        wanted = tuple(s.lower() for s in suffixes)
        return [Path(e.path) for e in self.entries(folder) if e.name.lower().endswith(wanted or ("",)) and e.is_file()]

    def folders(self, folder: Path | None = None, pattern: str = "") -> list[Path]:
        """Folders in a folder whose whole name matches the regular expression `pattern`, by name."""
        return [
            Path(e.path)
            for e in self.entries(folder)
            if e.is_dir() and (not pattern or re.fullmatch(pattern, e.name, re.IGNORECASE))
        ]

    def exists(self, *names: str) -> bool:
        """Whether the folder has all of these, as files or folders."""
        return all((self.root / name).exists() for name in names)

    def first(self, *names: str, beside: bool = False) -> Path | None:
        """The first of these files that is in the folder, or (with `beside`) next to it."""
        for name in names:
            if (self.root / name).is_file():
                return self._inside(self.root / name)
        for name in names if beside else ():
            if (self.root.parent / name).is_file() and not (self.root.parent / name).is_symlink():
                return self.root.parent / name
        return None

    # What it says ----------------------------------------------------------------------------------------------------

    def text(self, path: Path, limit: int) -> str:
        """A text file in UTF-8, at most `limit` bytes long."""
        try:
            with open(path, "rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise DataSetError(f"cannot be read ({error.strerror})", where=path) from error
        if len(data) > limit:
            raise DataSetError(f"is larger than {limit >> 20} MiB", where=path, do=_AGAIN)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataSetError(f"is not UTF-8 (byte {error.start})", where=path, do=_AGAIN) from error

    def json(self, path: Path, kind: type = dict) -> Any:
        """A JSON file whose outermost value is a `kind`."""
        try:
            value = json.loads(self.text(path, JSON_BYTES))
        except (ValueError, RecursionError) as error:
            raise DataSetError(f"is not JSON ({error})"[:300], where=path, do=_AGAIN) from error
        if not isinstance(value, kind):
            raise DataSetError(f"holds {type(value).__name__} where {kind.__name__} is expected", where=path, do=_AGAIN)
        return value

    def rows(self, path: Path, needs: Collection[str] = (), *, sep: str = ",") -> Iterator[Row]:
        """Rows of a table one by one; cells that are missing at a line's end are "".

        Raises DataSetError for a table without the columns `needs`, one that is too large or is no text, and lines longer than
        the header.
        """
        size = path.stat().st_size if path.is_file() else 0
        if size > TABLE_BYTES:
            raise DataSetError(f"is larger than {TABLE_BYTES >> 20} MiB", where=path, do=_AGAIN)
        try:
            with open(path, newline="", encoding="utf-8-sig") as stream:
                reader = csv.reader(stream, delimiter=sep)
                columns = [name.strip() for name in next(reader, [])]
                self._check_columns(path, columns, needs)
                for count, cells in enumerate(reader, 1):
                    if count > TABLE_ROWS:
                        raise DataSetError(f"has more than {TABLE_ROWS:,} rows", where=path, do=_AGAIN)
                    if len(cells) > len(columns) and any(cells[len(columns) :]):
                        raise DataSetError(
                            f"line {reader.line_num} has {len(cells)} cells, the header {len(columns)}",
                            where=path,
                            do=_AGAIN,
                        )
                    if any(cells):
                        cells += [""] * (len(columns) - len(cells))
                        yield dict(zip(columns, cells, strict=False))
        except UnicodeDecodeError as error:
            raise DataSetError(f"is not UTF-8 ({error.reason})", where=path, do=_AGAIN) from error
        except csv.Error as error:
            raise DataSetError(f"is not a table ({error})", where=path, do=_AGAIN) from error
        except OSError as error:
            raise DataSetError(f"cannot be read ({error.strerror})", where=path) from error

    def _check_columns(self, path: Path, columns: list[str], needs: Collection[str]) -> None:
        lost = [name for name in needs if name not in columns]
        if lost:
            raise DataSetError(
                f"has no column {', '.join(lost)} (it has: {', '.join(columns[:12])[:300] or 'none'})",
                where=path,
                do=_AGAIN,
            )
        named = [name for name in columns if name]
        if len(columns) > _COLUMNS or len(set(named)) != len(named):
            raise DataSetError("names a column twice, or has thousands of them", where=path, do=_AGAIN)

    def keyed(
        self,
        path: Path | None,
        key: str,
        wanted: Collection[str],
        what: str,
        *,
        sep: str = ",",
        as_id: Callable[[str], str] = str,
    ) -> dict[str, Row]:
        """Rows of a table by the cell `key`, for the ids that are `wanted`: the first row of each; a missing table is a note."""
        if path is None:
            self.note(f"no {what} here")
            return {}
        found: dict[str, Row] = {}
        for row in self.rows(path, (key,), sep=sep):
            id = as_id(row[key].strip())
            if id in wanted:
                found.setdefault(id, row)
        lost = sorted(set(wanted).difference(found))
        if lost:
            self.note(f"{len(lost)} of {len(set(wanted))} scans have no row in {self.shown(path)}, such as {lost[0]}")
        return found


_NUMBER = re.compile(r"[-+]?(?:0|[1-9]\d*|)(?:\.\d*)?(?:[eE][-+]?\d+)?")


def targets(rows: Mapping[str, Row], leave: Collection[str] = ()) -> dict[str, dict[str, str | float]]:
    """Cells of tables as targets, id by id: empty ones are left out, columns of numbers become numbers.

    >>> targets({"a": {"grade": "2", "stage": "1a"}, "b": {"grade": "3.5", "stage": "2"}})
    {'a': {'grade': 2.0, 'stage': '1a'}, 'b': {'grade': 3.5, 'stage': '2'}}
    """
    words: set[str] = set()
    for row in rows.values():
        words.update(name for name, cell in row.items() if cell.strip() and not _is_number(cell.strip()))
    return {
        id: {
            name: cell.strip() if name in words else float(cell)
            for name, cell in row.items()
            if name and name not in leave and cell.strip()
        }
        for id, row in rows.items()
    }


def _is_number(cell: str) -> bool:
    """A number that is no code: 007 is one, and so are nan and inf."""
    if not _NUMBER.fullmatch(cell) or not any(c.isdigit() for c in cell):
        return False
    return math.isfinite(float(cell))


def number(cell: str, where: Path, what: str) -> float:
    """A finite number; raises DataSetError that names the file and what was expected."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataSetError(f"has {cell[:40]!r} where {what} is expected", where=where, do=_AGAIN)
    return value


def stem(path: Path | str) -> str:
    """A file's name without ``.nii.gz`` or its one suffix.

    >>> stem("imagesTr/liver_0.nii.gz"), stem("a.b.mhd")
    ('liver_0', 'a.b')
    """
    name = Path(path).name
    return name[:-7] if name.lower().endswith(".nii.gz") else Path(name).stem


def names_of(value: Any, where: Path) -> dict[int, str]:
    """Names of labels from ``{"1": "liver"}`` or ``{"liver": 1}``, without the background.

    >>> names_of({"0": "background", "2": "cancer"}, Path("x")), names_of({"background": 0, "liver": 1}, Path("x"))
    ({2: 'cancer'}, {1: 'liver'})
    """
    try:
        pairs = (
            [(int(k), str(v)) for k, v in value.items()] if not _inverted(value) else [(v, k) for k, v in value.items()]
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise DataSetError("does not name labels by numbers", where=where, do='make it {"1": "liver"}') from error
    return {number: name for number, name in sorted(pairs) if number}


def _inverted(value: Any) -> bool:
    return bool(value) and all(isinstance(v, int) for v in value.values())
