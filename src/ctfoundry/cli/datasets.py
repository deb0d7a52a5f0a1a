"""Verbs about published data sets in folders: list, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctfoundry.cli.common import app, print_table, show, verb

datasets_app = typer.Typer(
    help="Published data sets as they lie in a folder.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(datasets_app, name="datasets")

_SHOWN = 12


@verb(datasets_app, "list")
def list_() -> None:
    """Data sets whose folders are understood: where they are had, licence, whether a real copy was ever read."""
    from ctfoundry.archive.adapters import ADAPTERS

    columns = ("name", "title", "home", "licence", "looks_for", "source", "tested")
    data = [{column: getattr(adapter, column) for column in columns} for adapter in ADAPTERS.values()]

    def table() -> None:
        print_table(
            ("name", "data set", "where", "licence"), [(a.name, a.title, a.home, a.licence) for a in ADAPTERS.values()]
        )

    show({"datasets": data}, table)


@verb(datasets_app, "show")
def show_(
    folder: Annotated[Path, typer.Argument(help="where the data set was unpacked")],
    name: Annotated[str, typer.Option("--as", help="which data set it is, where its layout does not tell")] = "",
) -> None:
    """What a folder holds: scans, patients, splits, labels, targets, pairs, and what is missing. No voxel is read."""
    from ctfoundry.archive.adapters import open_dataset

    found = open_dataset(folder, name or None)
    data = {
        "name": found.name,
        "title": found.title,
        "home": found.home,
        "licence": found.licence,
        "citation": found.citation,
        "tested": found.tested,
        "cases": len(found.cases),
        "patients": found.patients,
        "splits": dict(found.splits),
        "modalities": {m: sum(c.modality == m for c in found.cases) for m in sorted({c.modality for c in found.cases})},
        "labels": dict(found.labels),
        "targets": dict(found.targets),
        "reports": sum(case.report is not None for case in found.cases),
        "points": sum(len(case.points) for case in found.cases),
        "pairs": len(found.pairs),
        "problems": list(found.notes),
    }

    def table() -> None:
        print(f"{found.title}\n{found.home}; licence: {found.licence}; {found.tested}")
        print(f"{len(found.cases)} scans of {found.patients} patients")
        if set(found.splits) != {""}:
            print_table(("split", "scans"), [(split or "(none)", n) for split, n in found.splits.items()])
        for what, counts in (("label", found.labels), ("target", found.targets)):
            if counts:
                print_table((what, "scans"), list(counts.items())[:_SHOWN])
                if len(counts) > _SHOWN:
                    print(f"  and {len(counts) - _SHOWN} more; --json lists all")
        for what in ("reports", "points", "pairs"):
            if data[what]:
                print(f"{data[what]} {what}")
        for note in found.notes:
            print(f"note: {note}")

    show(data, table)
