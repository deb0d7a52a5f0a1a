"""Raw scans into a store: found, read, checked, made canonical; what is left out is listed with its reason."""

from __future__ import annotations

import csv
import io as textio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ctfoundry import files, identity, io
from ctfoundry.errors import CTFoundryError
from ctfoundry.io import kinds
from ctfoundry.record import Record
from ctfoundry.volume import Volume

FEW_LEFT = 256
"""So few different whole numbers left of fractions, and a note says how many."""


@dataclass
class Outcome:
    """Ids added now or there already; what was left out, by id, with its reason; notes of what was added."""

    added: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    labels: int = 0
    notes: dict[str, list[str]] = field(default_factory=dict)


def prepare_store(
    sources: Sequence[Path],
    store_path: Path,
    grid: str,
    *,
    i_know: bool = False,
    allow_gaps: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Every CT under `sources` into the store; writes ``quarantine.csv``, ``run.json`` and the private list of paths.

    Scans are known by a salted hash of their content, patients by one of their DICOM ID or, without one, of their folder.
    Killed and run again, it continues.

    Parameters
    ----------
    sources : folders, files, zip archives, DICOMDIRs.
    grid : of the store (`ctfoundry.store.grids`).
    i_know : take for HU what does not look it (a 0..1 or 8-bit image, MR, CT without its intercept ...), marked in the store's
        notes and in ``run.json``. Label maps stay out.
    allow_gaps : resample series with missing slices or irregular distances, marked likewise.
    """
    from ctfoundry.store import create

    switches = [flag for flag, on in (("--i-know", i_know), ("--allow-gaps", allow_gaps)) if on]
    record = Record(["prepare", "--grid", grid, *switches, *["SRC"] * len(sources)])
    outcome, paths = Outcome(), dict[str, str]()
    with create(store_path, grid, salt_id=identity.salt_name()) as store:
        for item in (item for source in sources for item in _found(source)):
            try:
                digest = identity.digest_of(item.hashes())
            except (CTFoundryError, OSError) as error:  # gone or changed since it was found
                id = identity.name("scan", item.name)
                paths[id], outcome.failed[id] = (
                    item.name,
                    error.what if isinstance(error, CTFoundryError) else "cannot be read",
                )
                continue
            id = identity.name("scan", digest)
            if id in paths:
                say(f"{item.path}: a byte-for-byte copy of another scan, left out")
                continue
            paths[id] = item.name
            record.inputs[id] = identity.sealed(digest)
            if id in store:
                outcome.skipped.append(id)
                continue
            if item.is_label and item.format == "dicom":  # a SEG or RTSTRUCT: nothing to find out by reading it
                outcome.labels += 1
                continue
            try:
                volume = item.read(allow_gaps=allow_gaps)
                if volume.kind == "label":
                    outcome.labels += 1
                    continue
                if i_know and volume.kind == "other":
                    volume = _marked(volume)
                owner = f"dicom:{item.patient}" if item.patient else f"folder:{item.path.parent}"
                store.add(volume, id, patient=identity.name("patient", owner))
            except CTFoundryError as error:
                outcome.failed[id] = error.what
                say(f"{item.path}: left out: {error.what}")
            else:
                outcome.added.append(id)
                if volume.notes:
                    outcome.notes[id] = list(volume.notes)
                say(f"{len(outcome.added)} added")
    table = textio.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([("id", "reason"), *sorted(outcome.failed.items())])
    files.write_text(store_path / "quarantine.csv", table.getvalue())
    identity.write_private(store_path, paths)
    record.results = {
        "added": outcome.added,
        "skipped": outcome.skipped,
        "failed": outcome.failed,
        "label_maps": outcome.labels,
        "notes": outcome.notes,
    }
    record.write(store_path, ["quarantine.csv"])
    return outcome


def _marked(volume: Volume) -> Volume:
    """A volume of kind "other" as HU, with notes that say so and what rounding to whole HU would take away."""
    taken = kinds.as_hu(volume)
    if taken.voxels.dtype.kind != "f":
        return taken
    left = np.unique(np.rint(taken.voxels)).size
    if left > FEW_LEFT:
        return taken
    return replace(taken, notes=(*taken.notes, f"rounding to whole HU leaves {left} different values"))


def _found(source: Path) -> list[io.Found]:
    """What a folder, an archive or a DICOMDIR holds, or the one file."""
    if source.is_dir() or io.is_listing(source):
        return list(io.discover(source).found)
    inside = io.discover(source.parent, deep=False) if source.is_file() else None
    chosen = [item for item in inside.found if source in item.paths] if inside else []
    if not chosen:
        raise CTFoundryError("is neither a folder nor a scan", where=source)
    return chosen
