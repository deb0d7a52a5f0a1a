"""The verb prepare: raw scans into a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctfoundry.cli.common import finish, say, show, verb


@verb()
def prepare(
    sources: Annotated[
        list[Path], typer.Argument(help="files, folders, zip archives, then the STORE", metavar="SRC... STORE")
    ],
    grid: Annotated[str, typer.Option(help="native, floor:1, ct-fm, flexict-3d, or mm as DxHxW")] = "floor:1",
    i_know: Annotated[
        bool, typer.Option("--i-know", help="take for HU what does not look it (8 bit, MR, 0..1 ...), marked")
    ] = False,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="resample series with missing or uneven slices, marked")
    ] = False,
) -> None:
    """Raw scans into a store: int16 HU, SPL, one grid. What is left out stands in quarantine.csv with its reason."""
    from ctfoundry.errors import UsageError
    from ctfoundry.ingest import prepare_store

    if len(sources) < 2:
        raise UsageError("give at least one source and the store", do="ctfoundry prepare SRC... STORE")
    outcome = prepare_store(sources[:-1], sources[-1], grid, i_know=i_know, allow_gaps=allow_gaps, say=say)

    def table() -> None:
        print(f"{len(outcome.added)} added, {len(outcome.skipped)} there already, {len(outcome.failed)} left out")
        for id, notes in outcome.notes.items():
            print(f"{id}: {'; '.join(notes)}")

    results = {"added": outcome.added, "skipped": outcome.skipped, "failed": outcome.failed, "notes": outcome.notes}
    show(results, table)
    finish(outcome.failed, len(outcome.added) + len(outcome.skipped))
