"""Raw scans into a store: found, read, checked, made canonical; what is left out is listed with its reason."""

from __future__ import annotations

import csv
import io as textio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctfoundry import files, identity, io
from ctfoundry.errors import CTFoundryError
from ctfoundry.record import Record


@dataclass
class Outcome:
    """Ids added now or there already; what was left out, by id, with its reason."""

    added: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    labels: int = 0


def prepare_store(
    sources: Sequence[Path], store_path: Path, grid: str, *, say: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Every CT under `sources` into the store; writes ``quarantine.csv``, ``run.json`` and the private list of paths.

    Scans are known by a salted hash of their content, patients by one of their DICOM ID or, without one, of their folder.
    Killed and run again, it continues.
    """
    from ctfoundry.store import create

    record = Record(["prepare", "--grid", grid, *["SRC"] * len(sources)])
    outcome, paths = Outcome(), dict[str, str]()
    with create(store_path, grid, salt_id=identity.salt_name()) as store:
        for item in (item for source in sources for item in _found(source)):
            digest = identity.content_digest(item.files)
            id = identity.name("scan", digest)
            if id in paths:
                say(f"{item.path}: a byte-for-byte copy of another scan, left out")
                continue
            paths[id] = item.name
            record.inputs[id] = identity.sealed(digest)
            if id in store:
                outcome.skipped.append(id)
                continue
            try:
                volume = item.read()
                if volume.kind == "label":
                    outcome.labels += 1
                    continue
                owner = f"dicom:{item.patient}" if item.patient else f"folder:{item.path.parent}"
                store.add(volume, id, patient=identity.name("patient", owner))
            except CTFoundryError as error:
                outcome.failed[id] = error.what
                say(f"{item.path}: left out: {error.what}")
            else:
                outcome.added.append(id)
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
    }
    record.write(store_path, ["quarantine.csv"])
    return outcome


def _found(source: Path) -> list[io.Found]:
    """What a folder holds, or the one file."""
    if source.is_dir():
        return list(io.discover(source).found)
    inside = io.discover(source.parent, deep=False) if source.is_file() else None
    chosen = [item for item in inside.found if source in item.paths] if inside else []
    if not chosen:
        raise CTFoundryError("is neither a folder nor a scan", where=source)
    return chosen
