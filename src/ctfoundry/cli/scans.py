"""Verbs about scans and stores: convert, phantom, prepare, store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ctfoundry.cli.common import Seed, app, finish, print_table, say, show, verb


@verb()
def convert(
    scan: Annotated[str, typer.Argument(help="any readable scan")],
    out: Annotated[Path, typer.Argument(help="target: .nii, .nii.gz, .nrrd or .mha")],
) -> None:
    """One scan to another format; geometry and HU are kept."""
    from ctfoundry import io

    volume = io.read(scan)
    io.write(volume, out)
    show({"volume": repr(volume), "out": str(out)}, lambda: print(f"{volume!r} -> {out}"))


@verb()
def phantom(
    out: Annotated[Path, typer.Argument(help="folder")],
    count: Annotated[int, typer.Option(help="how many", min=1)] = 4,
    seed: Seed = 0,
) -> None:
    """Labelled synthetic torsos: NAME/ct.nii.gz, labels.nii.gz, labels.json, spec.json."""
    from ctfoundry.quickstart.phantoms import make_many
    from ctfoundry.record import Record

    record = Record(["phantom", "--count", str(count)], {"seed": seed})
    names = make_many(out, count, seed, say=say)
    record.results = {"phantoms": names}
    record.write(out)
    show({"phantoms": names}, lambda: print("\n".join(names)))


@verb()
def prepare(
    sources: Annotated[list[Path], typer.Argument(help="files or folders, then the STORE", metavar="SRC... STORE")],
    grid: Annotated[str, typer.Option(help="native, floor:1, ct-fm, flexict-3d, or mm as DxHxW")] = "floor:1",
) -> None:
    """Raw scans into a store: int16 HU, SPL, one grid. What is left out stands in quarantine.csv with its reason."""
    from ctfoundry.errors import UsageError
    from ctfoundry.ingest import prepare_store

    if len(sources) < 2:
        raise UsageError("give at least one source and the store", do="ctfoundry prepare SRC... STORE")
    outcome = prepare_store(sources[:-1], sources[-1], grid, say=say)

    def table() -> None:
        print(f"{len(outcome.added)} added, {len(outcome.skipped)} there already, {len(outcome.failed)} left out")

    show({"added": outcome.added, "skipped": outcome.skipped, "failed": outcome.failed}, table)
    finish(outcome.failed, len(outcome.added) + len(outcome.skipped))


store_app = typer.Typer(help="Check and describe a store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(store_app, name="store")


@verb(store_app, "verify")
def store_verify(store: Annotated[Path, typer.Argument(help="folder of the store")]) -> None:
    """Checksums, geometry and histograms of every scan; exit code 1 when something is wrong."""
    from ctfoundry.store import open_store

    opened = open_store(store)
    problems = [str(problem) for problem in opened.verify()]
    show(
        {"scans": len(opened.entries), "problems": problems},
        lambda: print("\n".join(problems) or f"{len(opened.entries)} scans, all whole"),
    )
    if problems:
        raise typer.Exit(1)


@verb(store_app, "stats")
def store_stats(store: Annotated[Path, typer.Argument(help="folder of the store")]) -> None:
    """Counts, shapes and sizes."""
    from ctfoundry.store import open_store

    opened = open_store(store)
    entries: list[Any] = list(opened.entries)
    rows = [(e.id, e.patient, e.collection, "x".join(map(str, e.shape))) for e in entries]
    data = {
        "scans": len(entries),
        "patients": len({e.patient for e in entries}),
        "voxels": int(sum(e.shape[0] * e.shape[1] * e.shape[2] for e in entries)),
        "bytes": sum(f.stat().st_size for f in store.rglob("*") if f.is_file()),
    }

    def table() -> None:
        print_table(("id", "patient", "collection", "shape"), rows)
        print(f"{data['scans']} scans of {data['patients']} patients, {data['bytes'] / 2**20:.1f} MiB")

    show(data, table)
