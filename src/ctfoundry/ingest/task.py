"""The work on one scan, wherever it runs: hash, read, check, make canonical, compress, write.

A task is a function of its job alone and writes nothing but the scan's two files, so it can be run again anywhere.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ctfoundry import geometry, identity
from ctfoundry.ingest.facts import Value
from ctfoundry.ingest.rules import Checks, LeftOut, by_grid, by_voxels, of_error
from ctfoundry.io import Found, kinds
from ctfoundry.record import peak_memory_mib
from ctfoundry.store import Store, open_store
from ctfoundry.store.grids import ORIENTATION, resampling_onto
from ctfoundry.volume import Volume

FEW_LEFT = 256
"""So few different whole numbers left of fractions, and a note says how many."""
BYTES_READ, BYTES_MADE = 14, 16
"""Most memory of a task per voxel of the file and per voxel of the store's grid, measured (docs/prepare.md)."""
STAGES = ("hash", "read", "check", "resample", "compress", "write")


@dataclass(frozen=True)
class Job:
    """All that the work on one scan needs; goes to workers on this and other machines.

    Attributes
    ----------
    number : place in the order of discovery.
    store, grid : folder of the store, which every worker can write to, and its grid.
    found : the scan's files.
    patient, collection, provenance : as the sidecar will have them.
    key : the salt of the machine that started the run; kept out of every text.
    digest : of the content where that is known, else "".
    only_hash : stop there.
    memory : bytes that it may take, by its header; 0 where that does not say.
    """

    number: int
    store: Path
    grid: str
    found: Found = field(repr=False)
    patient: str
    collection: str
    provenance: Mapping[str, Value]
    checks: Checks
    key: bytes = field(repr=False)
    i_know: bool = False
    allow_gaps: bool = False
    digest: str = ""
    only_hash: bool = False
    memory: int = 0

    @property
    def place(self) -> str:
        """Its path, for stderr."""
        return str(self.found.path)

    def work(self) -> Result:
        """Do it (`work`)."""
        return work(self)

    def lost(self, out: LeftOut) -> Result:
        """Its result where it is not done."""
        return Result(digest=self.digest, left_out=out)


@dataclass
class Result:
    """What came of a job.

    Attributes
    ----------
    id, digest : of the scan; the digest is private.
    stored : whether the store holds it now.
    label : it was a label map.
    left_out : the rule that it breaks.
    detail : the whole text of an error, for stderr alone: it may hold paths.
    notes : of the volume, as the sidecar has them.
    seconds : of each stage.
    bytes_in, bytes_out, voxels : of its files, of its array, on the store's grid; 0 where it did not come to that.
    peak_mib : largest memory that the worker had so far.
    """

    id: str = ""
    digest: str = ""
    stored: bool = False
    label: bool = False
    left_out: LeftOut | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    voxels: int = 0
    peak_mib: int = 0


_stores: dict[Path, Store] = {}


def forget() -> None:
    """Open stores anew: another may stand in the same folder now."""
    _stores.clear()


def work(job: Job) -> Result:
    """Do a job; errors are results, so nothing but the end of the process keeps a result from coming."""
    result = Result(digest=job.digest)
    clock = time.perf_counter()

    def mark(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        result.seconds[stage] = result.seconds.get(stage, 0.0) + now - clock
        clock = now

    try:
        if not result.digest:
            result.digest = identity.digest_of(job.found.hashes())
            mark("hash")
        result.id = identity.name("scan", result.digest, key=job.key)
        if not job.only_hash:
            _into_store(job, result, mark)
    except Exception as error:  # a defect in reading one scan must not take the others with it
        result.left_out = of_error(error, job.found)
        result.detail = f"{type(error).__name__}: {error}"
    result.peak_mib = peak_memory_mib()
    return result


def _into_store(job: Job, result: Result, mark: Callable[[str], None]) -> None:
    if (job.store / "scans" / f"{result.id}.json").exists():
        result.stored = True
        return
    result.bytes_in = sum(os.path.getsize(path) for path in job.found.files)
    volume = job.found.read(allow_gaps=job.allow_gaps, threads=1)
    mark("read")
    if volume.kind == "label":
        result.label = True
        return
    if job.i_know and volume.kind == "other":
        volume = _marked(volume)
    result.left_out = _checked(volume, job.checks)
    mark("check")
    if result.left_out is not None:
        return
    if job.store not in _stores:
        _stores.clear()
        _stores[job.store] = open_store(job.store)
    entry = _stores[job.store].add(
        volume, result.id, patient=job.patient, collection=job.collection, provenance=job.provenance, mark=mark
    )
    result.stored, result.notes = True, volume.notes
    result.voxels = math.prod(entry.shape)
    result.bytes_out = entry.sidecar.with_suffix(".b2nd").stat().st_size


def _checked(volume: Volume, checks: Checks) -> LeftOut | None:
    if volume.kind != "hu":
        return LeftOut("not-hu", "; ".join(note.removeprefix(kinds.NOT_HU) for note in volume.notes) or "not in HU")
    return by_grid(volume.grid, checks) or by_voxels(volume, checks)


def _marked(volume: Volume) -> Volume:
    """A volume of kind "other" as HU, with notes that say so and what rounding to whole HU would take away."""
    taken = kinds.as_hu(volume)
    if taken.voxels.dtype.kind != "f":
        return taken
    left = np.unique(np.rint(taken.voxels)).size
    if left > FEW_LEFT:
        return taken
    return replace(taken, notes=(*taken.notes, f"rounding to whole HU leaves {left} different values"))


def memory_of(found: Found, grid: str) -> int:
    """Bytes that reading and resampling a scan may take, by its header; 0 where that says no size."""
    if found.grid is None:
        return 0
    order, _ = geometry.axes_to(found.grid.affine, ORIENTATION)
    shape = [found.grid.shape[axis] for axis in order]
    d, h, w = (found.grid.spacing[axis] for axis in order)
    wanted = resampling_onto(grid, (d, h, w)).spacing
    made = math.prod(n * old / (new or old) for n, old, new in zip(shape, (d, h, w), wanted, strict=True))
    return int(BYTES_READ * math.prod(shape) + BYTES_MADE * made)
