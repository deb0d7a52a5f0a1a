"""The one file that lists all scans, so that 100,000 of them open in a second.

It is a numpy structured array, one row for each scan, sorted by id, memory-mapped: a row is looked at when its scan is. The
sidecars are the truth; the index is made from them and can be deleted at any time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from ctfoundry import files
from ctfoundry.geometry import Box, Grid
from ctfoundry.store.errors import UnknownScanError
from ctfoundry.store.sidecar import NAME_LENGTH, Entry, Sidecar

ROW = np.dtype(
    [
        ("id", f"S{NAME_LENGTH}"),
        ("patient", f"S{NAME_LENGTH}"),
        ("collection", f"S{NAME_LENGTH}"),
        ("shape", "<i4", (3,)),
        ("affine", "<f8", (3, 4)),
        ("box_soft", "<i4", (3, 2)),
        ("box_body", "<i4", (3, 2)),
        ("bytes", "<i8"),
        ("sha256", "u1", (32,)),
    ]
)
"""One scan: 388 bytes. A box of -1 stands for none; `bytes` and `sha256` are those of the array file."""

_NONE = ((-1, -1),) * 3


_PARSING = threading.Lock()
"""numpy parses a header with `ast`, which in Python 3.11 raises SystemError where several threads do so at once."""


def row_of(sidecar: Sidecar) -> np.ndarray:
    """The index row of a sidecar, shape ()."""
    return np.array(
        (
            sidecar.id.encode(),
            sidecar.patient.encode(),
            sidecar.collection.encode(),
            sidecar.shape,
            sidecar.affine[:3],
            sidecar.box_soft or _NONE,
            sidecar.box_body or _NONE,
            sidecar.array.bytes,
            np.frombuffer(bytes.fromhex(sidecar.array.sha256), dtype=np.uint8),
        ),
        dtype=ROW,
    )


def merged(table: np.ndarray, rows: Iterable[np.ndarray]) -> np.ndarray:
    """The table with more rows, sorted by id."""
    whole = np.concatenate([table, np.array(list(rows), dtype=ROW)])
    return whole[np.argsort(whole["id"], kind="stable")]


def write(path: Path, table: np.ndarray) -> None:
    """Write the table as the whole file `path`."""
    files.write_npy(path, table)


def read(path: Path) -> np.ndarray | None:
    """The memory-mapped table, or None when the file is missing, cut off or of another layout."""
    try:
        with _PARSING:
            table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(table, np.ndarray) or table.dtype != ROW or table.ndim != 1:
        return None
    return table


def listed(scans: Path) -> np.ndarray:
    """Ids of all sidecars in a folder, sorted, as fixed-width bytes; unfinished and foreign files do not count."""
    names = [
        name[:-5].encode()
        for name in os.listdir(scans)
        if name.endswith(".json") and name[0] != "." and name.isascii() and len(name) <= NAME_LENGTH + 5
    ]
    return np.sort(np.array(names, dtype=f"S{NAME_LENGTH}"))


def entry_of(row: np.ndarray, scans: Path) -> Entry:
    """The scan of an index row; `scans` is the folder of the sidecars."""
    affine = np.eye(4)
    affine[:3] = row["affine"]
    d, h, w = row["shape"].tolist()
    id = row["id"].item().decode()
    return Entry(
        id,
        row["patient"].item().decode(),
        row["collection"].item().decode(),
        Grid((d, h, w), affine),
        _box(row["box_soft"]),
        _box(row["box_body"]),
        scans / f"{id}.json",
    )


class Entries(Sequence[Entry]):
    """The scans of a store, by position (sorted by id); an `Entry` is made when it is asked for."""

    def __init__(self, table: np.ndarray, scans: Path, name: str) -> None:
        self._table, self._scans, self._name = table, scans, name
        self._places: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Entries: ...
    def __getitem__(self, index: int | slice) -> Entry | Entries:
        if isinstance(index, slice):
            return Entries(self._table[index], self._scans, self._name)
        return entry_of(self._table[index], self._scans)

    @property
    def table(self) -> np.ndarray:
        """The index rows (`ROW`), sorted by id; read-only."""
        return self._table

    @property
    def ids(self) -> list[str]:
        """All ids, in order."""
        return self.column("id")

    def column(self, name: str) -> list[str]:
        """`id`, `patient` or `collection` of all scans, in order; for sampling weights and splits."""
        return [value.decode() for value in self._table[name].tolist()]

    def row(self, id: str) -> np.ndarray:
        """The index row of a scan; raises UnknownScanError."""
        if self._places is None:
            self._places = {name: place for place, name in enumerate(self.ids)}
        if id not in self._places:
            raise UnknownScanError(f"no scan has the id {id!r}", where=self._name)
        return self._table[self._places[id]]

    def of(self, id: str) -> Entry:
        """The scan with an id; raises UnknownScanError."""
        return entry_of(self.row(id), self._scans)

    def __contains__(self, id: object) -> bool:
        if isinstance(id, Entry):
            id = id.id
        try:
            self.row(str(id))
        except UnknownScanError:
            return False
        return True

    def __repr__(self) -> str:
        return f"Entries({len(self)} scans of {self._name})"


def _box(pairs: np.ndarray) -> Box | None:
    (a, b), (c, d), (e, f) = pairs.tolist()
    return None if b <= a else ((a, b), (c, d), (e, f))
