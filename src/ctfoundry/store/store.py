"""`Store`: many scans in one canonical form; crops are read without reading the whole.

The format, its limits and its invariants are in docs/store-format.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np

import ctfoundry
from ctfoundry import files, geometry
from ctfoundry.errors import StoreError
from ctfoundry.geometry import Box, Vec3
from ctfoundry.settings import to_data
from ctfoundry.store import grids, index
from ctfoundry.store.errors import (
    ArrayError,
    ContentError,
    DtypeError,
    GridMismatchError,
    LimitError,
    MissingArrayError,
    NotAStoreError,
    ShapeError,
    SidecarError,
    TruncatedArrayError,
)
from ctfoundry.store.index import Entries
from ctfoundry.store.meta import Meta, read_meta
from ctfoundry.store.sidecar import (
    FORMAT,
    ArrayFile,
    Entry,
    Histogram,
    Sidecar,
    SourceGrid,
    check_collection,
    check_id,
    check_notes,
    check_provenance,
    read_sidecar,
    rows,
)
from ctfoundry.volume import AIR, Volume

if TYPE_CHECKING:
    from jaxtyping import Int16

CHUNK: Vec3 = (32, 128, 128)
"""Voxels that are compressed together: 1 MB, so that a crop of 24x128x128 touches 2x2x2 at most."""
BLOCK: Vec3 = (4, 64, 64)
"""Voxels that are unpacked together: 32 kB, inside a core's cache; flat, so that single slices read fast too."""
AXIS_LIMIT = 32768
"""Most voxels along an axis."""
VOXEL_LIMIT = 2**31
"""Most voxels of a scan (4 GiB)."""


def create(path: str | os.PathLike[str], grid: str = "floor:1", *, salt_id: str = "") -> Store:
    """A new store, or the one that is there on the same grid with the same salt.

    Raises GridMismatchError when it is on another grid or its patients are hashed with another salt, and SettingsError for
    a grid that is none (`ctfoundry.store.grids`).
    """
    folder = Path(path)
    grids.resampling_onto(grid, (1.0, 1.0, 1.0))
    if salt_id:
        check_id(salt_id, "salt id")
    if (folder / "store.json").exists():
        store = open_store(folder)
        if (store.meta.grid, store.meta.salt_id) != (grid, salt_id):
            raise GridMismatchError(
                f"the store is on grid {store.meta.grid!r} with salt {store.meta.salt_id!r}, not {grid!r} with {salt_id!r}",
                where=folder,
                do="choose another folder, or ask for the grid and salt it has",
            )
        return store
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "scans").is_dir():
        raise NotAStoreError("the folder holds other files", where=folder, do="choose a new folder")
    (folder / "scans").mkdir(parents=True, exist_ok=True)
    meta = Meta(FORMAT, grid, salt_id, f"ctfoundry {ctfoundry.__version__}")
    files.write_json(folder / "store.json", to_data(meta))
    return open_store(folder)


def open_store(path: str | os.PathLike[str]) -> Store:
    """The store in a folder.

    Leftovers of killed writers are removed, unless another writer is at work or the folder is read-only; an index that is
    missing or lists other scans than there are sidecars is made again. Raises NotAStoreError, UnknownFormatError.
    """
    return Store(Path(path))


class Store:
    """Scans on disk; see `create` and `open_store`. Reading is safe from many threads and processes at once.

    Attributes
    ----------
    path : its folder.
    meta : grid, salt id, format version.
    broken : scans left out because their sidecar cannot be read, and why.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta = read_meta(path)
        self._scans = path / "scans"
        self._lock = threading.Lock()
        self._new: dict[str, np.ndarray] = {}
        self.broken: dict[str, StoreError] = {}
        self._sweep()
        self._entries = self._listed()

    @property
    def grid(self) -> str:
        """Name of the grid that all scans are on."""
        return self.meta.grid

    @property
    def entries(self) -> Entries:
        """All scans, sorted by id, with those that this object added."""
        with self._lock:
            if self._new:
                table = index.merged(self._entries._table, self._new.values())
                self._entries = Entries(table, self._scans, self.path.name)
                self._new = {}
            return self._entries

    def entry(self, id: str) -> Entry:
        """One scan; raises UnknownScanError."""
        return index.entry_of(self._row(id), self._scans)

    def _row(self, id: str) -> np.ndarray:
        """The index row of a scan, without merging what this object added into the table; raises UnknownScanError."""
        with self._lock:
            return self._new[id] if id in self._new else self._entries.row(id)

    def __contains__(self, id: str) -> bool:
        with self._lock:
            return id in self._new or self._entries.__contains__(id)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"Store({self.path.name}, {len(self)} scans on {self.grid})"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    # ------------------------------------------------------------------ writing

    def add(
        self,
        volume: Volume,
        id: str,
        *,
        patient: str,
        collection: str = "",
        provenance: Mapping[str, str | int | float | bool] | None = None,
        mark: Callable[[str], None] = lambda stage: None,
    ) -> Entry:
        """Put a scan into the store; a scan that is there already with the same content is left alone.

        The index file is written by `flush` (or at the end of a ``with`` block, or when the store is opened again), not here.

        Parameters
        ----------
        volume : a CT in HU, on any grid. Its notes are kept; they are no part of what an id stands for.
        id : 1 to 64 letters, digits, dots, underscores, dashes. Names files, so never a patient's name.
        patient : salted hash of the patient; scans of one patient share it.
        collection : public name of the collection.
        provenance : facts on the allow-list (`sidecar.PROVENANCE`).
        mark : called with the name of each stage when it is over ("resample", "compress", "write"), for clocks.

        Raises
        ------
        BadIdError, ProvenanceError, LimitError; ContractError for what is no CT in HU; ContentError when the id is taken by
        other voxels, another grid, patient, collection or provenance.
        """
        check_id(id)
        check_id(patient, "patient")
        check_collection(collection)
        facts, notes = check_provenance(provenance or {}), check_notes(volume.notes)
        hu = grids.canonical(volume, self.grid)
        mark("resample")
        if max(hu.shape) > AXIS_LIMIT or int(np.prod(hu.shape)) > VOXEL_LIMIT:
            raise LimitError(
                f"a scan of shape {hu.shape} is over the limit of {AXIS_LIMIT} voxels an axis, {VOXEL_LIMIT} in all",
                where=f"{self.path.name}#{id}",
                do="crop it, or choose a coarser grid",
            )
        digest = hashlib.sha256(hu.voxels.astype("<i2", copy=False).data).hexdigest()
        with self._writing(), self._claimed(id):
            place = self._scans / f"{id}.json"
            if place.exists():
                return self._same_or_error(
                    read_sidecar(place, f"{self.path.name}#{id}"), digest, hu, patient, collection, facts
                )
            data = _compress(hu.voxels)
            soft, body = geometry.bounding_box(hu.voxels > 0), geometry.bounding_box(hu.voxels > AIR)
            sidecar = Sidecar(
                FORMAT,
                id,
                patient,
                collection,
                self.grid,
                hu.shape,
                rows(hu.affine),
                hu.spacing,
                ArrayFile(len(data), hashlib.sha256(data).hexdigest()),
                digest,
                soft,
                body,
                Histogram.of([hu.voxels]).pack(),
                SourceGrid(volume.shape, rows(volume.affine)),
                facts,
                notes,
            )
            mark("compress")
            files.write_bytes(self._scans / f"{id}.b2nd", data)
            files.write_text(place, sidecar.to_json())
            mark("write")
        with self._lock:
            self._new[id] = index.row_of(sidecar)
        return self.entry(id)

    def _same_or_error(
        self, there: Sidecar, digest: str, hu: Volume, patient: str, collection: str, facts: Mapping[str, Any]
    ) -> Entry:
        pairs = {
            "voxels": (there.voxels_sha256, digest),
            "shape": (there.shape, hu.shape),
            "affine": (there.affine, rows(hu.affine)),
            "patient": (there.patient, patient),
            "collection": (there.collection, collection),
            "provenance": (there.provenance, dict(facts)),
            "grid": (there.grid, self.grid),
        }
        differ = [name for name, (a, b) in pairs.items() if a != b]
        if differ:
            raise ContentError(
                f"the id is taken by a scan with other {', '.join(differ)}",
                where=f"{self.path.name}#{there.id}",
                do="choose another id, or remove that scan first",
            )
        if there.id not in self:  # another process added it since this object was made
            with self._lock:
                self._new[there.id] = index.row_of(there)
        return self.entry(there.id)

    def remove(self, id: str) -> None:
        """Take a scan out; its sidecar goes first, so that a killed removal leaves no half scan. Raises UnknownScanError."""
        if check_id(id) not in self.broken:
            self._row(id)
        with self._writing():
            # Other processes learn of a removal by the index being gone: they make it again from the sidecars.
            (self.path / "index.npy").unlink(missing_ok=True)
            (self._scans / f"{id}.json").unlink(missing_ok=True)
            (self._scans / f"{id}.b2nd").unlink(missing_ok=True)
        table = self.entries._table
        with self._lock:
            self._entries = Entries(table[table["id"] != id.encode()], self._scans, self.path.name)
            self.broken.pop(id, None)

    def flush(self) -> None:
        """Write the index of all scans that are in the folder now, those of other writers too."""
        with self._writing():
            self._entries = self._listed(self.entries._table)

    # ------------------------------------------------------------------ reading

    def read(self, id: str, box: Box) -> Int16[np.ndarray, "d h w"]:
        """The voxels in `box` (half-open index ranges along d, h, w), int16 HU; what lies outside the scan is -1024.

        Only the chunks that the box touches are read. Raises UnknownScanError, MissingArrayError, TruncatedArrayError,
        ArrayError, DtypeError, ShapeError.
        """
        row = self._row(id)
        shape = row["shape"].tolist()
        wanted = [(int(low), int(high)) for low, high in box]
        if any(high <= low for low, high in wanted):
            raise StoreError(f"box {box} is empty", where=f"{self.path.name}#{id}")
        inner = [(max(low, 0), min(high, n)) for (low, high), n in zip(wanted, shape, strict=True)]
        if any(high <= low for low, high in inner):
            return np.full([high - low for low, high in wanted], AIR, dtype=np.int16)
        array = self._array(id, shape, int(row["bytes"]))
        try:
            part = array[tuple(slice(low, high) for low, high in inner)]
        except (RuntimeError, ValueError) as error:
            raise ArrayError(
                f"the chunks of {inner} cannot be unpacked ({error})",
                where=f"{self.path.name}#{id}",
                do="run store verify, then remove the scan and add it again",
            ) from error
        if inner == wanted:
            return part
        out = np.full([high - low for low, high in wanted], AIR, dtype=np.int16)
        target = tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(inner, wanted, strict=True))
        out[target] = part
        return out

    def volume(self, id: str) -> Volume:
        """A whole scan, with the notes of its sidecar."""
        entry = self.entry(id)
        d, h, w = entry.shape
        return Volume(self.read(id, ((0, d), (0, h), (0, w))), entry.affine, "hu", source=id, notes=entry.notes)

    def sidecar(self, id: str) -> Sidecar:
        """All that the store knows of a scan; raises UnknownScanError, SidecarError, UnknownFormatError."""
        self._row(id)
        return self._sidecar(id)

    def _sidecar(self, id: str) -> Sidecar:
        name = f"{self.path.name}#{id}"
        sidecar = read_sidecar(self._scans / f"{id}.json", name)
        if sidecar.id != id:
            raise SidecarError(f"the sidecar is that of {sidecar.id!r}", where=name, do="remove the scan")
        if sidecar.grid != self.grid:
            raise GridMismatchError(
                f"the scan is on grid {sidecar.grid!r}, the store on {self.grid!r}",
                where=name,
                do="remove the scan and add it again",
            )
        return sidecar

    def _array(self, id: str, shape: Sequence[int], size: int) -> Any:
        """The open array, checked against what the index says.

        It is opened anew for each read (0.06 ms): an open blosc2 array keeps scratch buffers, so threads cannot share one.
        The length is checked first, because reading past the end of a mapped file kills the process.
        """
        place, name = self._scans / f"{id}.b2nd", f"{self.path.name}#{id}"
        again = "remove the scan and add it again"
        try:
            there = place.stat().st_size
        except FileNotFoundError:
            raise MissingArrayError("the array file is missing", where=name, do=again) from None
        if there != size:
            raise TruncatedArrayError(f"the array file has {there} bytes instead of {size}", where=name, do=again)
        try:
            array = blosc2.open(str(place), mmap_mode="r", dparams=blosc2.DParams(nthreads=1))
        except Exception as error:  # blosc2 raises RuntimeError, ValueError, TypeError ... for damaged headers
            raise ArrayError(f"the file is no blosc2 array ({error})", where=name, do=again) from error
        if not isinstance(array, blosc2.NDArray):
            raise ArrayError("the file is no blosc2 array", where=name, do=again)
        if array.dtype != np.dtype("<i2"):
            raise DtypeError(f"the voxels are {array.dtype}, not int16", where=name, do=again)
        if tuple(array.shape) != tuple(shape):
            raise ShapeError(
                f"the array has shape {tuple(array.shape)}, its sidecar {tuple(shape)}", where=name, do=again
            )
        return array

    # ------------------------------------------------------------------ checking

    def verify(self, ids: Sequence[str] | None = None) -> list[StoreError]:
        """All broken invariants of the scans `ids` (default: all, and files that belong to no scan), as errors, not raised.

        Every voxel is read once, slab by slab.
        """
        from ctfoundry.store.verify import verify

        return verify(self, ids)

    # ------------------------------------------------------------------ housekeeping

    def _listed(self, known: np.ndarray | None = None) -> Entries:
        """The scans of the folder: from the index where it agrees with the sidecars; otherwise the index is written anew.

        A sidecar that cannot be read leaves its scan out, with a warning. A scan of the index whose sidecar vanished stays
        listed while its array is there, so that `verify` names it.
        """
        place = self.path / "index.npy"
        there = index.listed(self._scans)
        table = index.read(place)
        if table is not None and np.array_equal(table["id"], there):
            return Entries(table, self._scans, self.path.name)
        base = table if table is not None else known if known is not None else np.zeros(0, index.ROW)
        have = set(base["id"].tolist())
        found = []
        self.broken = {}
        for id in there.tolist():
            if id not in have:
                try:
                    found.append(index.row_of(self._sidecar(check_id(id.decode()))))
                except StoreError as error:
                    self.broken[id.decode()] = error
        for reason in self.broken.values():
            warnings.warn(f"a scan is left out: {reason}", stacklevel=4)
        on_disk = np.isin(base["id"], there)
        for k in np.flatnonzero(~on_disk):
            on_disk[k] = (self._scans / f"{base['id'][k].decode()}.b2nd").exists()
        whole = index.merged(base[on_disk], found)
        if table is None or not np.array_equal(table, whole):
            # under the writers' lock: another process that opens the store would take the unfinished table for a leftover
            with files.unless_read_only(), self._writing():
                index.write(place, whole)
        return Entries(whole, self._scans, self.path.name)

    def _sweep(self) -> None:
        """Remove what killed writers left: unfinished files, and arrays that neither a sidecar nor the index knows."""
        try:
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except PermissionError:
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # somebody is writing: their unfinished files are no leftovers
        else:
            files.sweep(self.path)
            files.sweep(self._scans)
            for claim in self._scans.glob(".*.claim"):
                claim.unlink(missing_ok=True)
            names = set(os.listdir(self._scans))
            orphans = {n[:-5] for n in names if n.endswith(".b2nd") and f"{n[:-5]}.json" not in names}
            if orphans:
                table = index.read(self.path / "index.npy")
                orphans -= set() if table is None else {id.decode() for id in table["id"].tolist()}
            for id in orphans:
                (self._scans / f"{id}.b2nd").unlink(missing_ok=True)
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Writers share this lock, which the kernel takes from a killed one; only `_sweep` wants it alone."""
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _claimed(self, id: str) -> Iterator[None]:
        """One writer at a time for an id, in whatever thread or process; the kernel frees the claim of a killed one."""
        place = self._scans / f".{id}.claim"
        while True:
            handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.stat(place).st_ino == os.fstat(handle).st_ino:
                    break
            os.close(handle)  # the one before removed the file while we waited for it
        try:
            yield
        finally:
            place.unlink(missing_ok=True)
            os.close(handle)


def _compress(voxels: Int16[np.ndarray, "d h w"]) -> bytes:
    chunk = [min(c, n) for c, n in zip(CHUNK, voxels.shape, strict=True)]
    block = [min(b, c) for b, c in zip(BLOCK, chunk, strict=True)]
    settings = blosc2.CParams(
        codec=blosc2.Codec.LZ4HC,
        clevel=5,
        typesize=2,
        nthreads=1,
        filters=[blosc2.Filter.SHUFFLE],  # unpacks in two thirds of bit shuffle's time, for 2 % more bytes
        filters_meta=[0],
    )
    array = blosc2.asarray(np.ascontiguousarray(voxels), chunks=chunk, blocks=block, cparams=settings, contiguous=True)
    return bytes(array.to_cframe())
