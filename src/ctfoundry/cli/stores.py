"""Verbs about stores: verify, stats, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctfoundry.cli.common import app, finish, print_table, say, show, verb

if TYPE_CHECKING:
    from ctfoundry.store.describe import Description

store_app = typer.Typer(help="Check, describe and take out of a store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(store_app, name="store")

Folder = Annotated[Path, typer.Argument(help="folder of the store", metavar="STORE")]


@verb(store_app, "verify")
def verify(store: Folder) -> None:
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
def stats(
    store: Folder,
    html: Annotated[Path | None, typer.Option(help="a page with the counts drawn")] = None,
) -> None:
    """Counts, spacings, sizes and HU of what a store holds, from its index and sidecars."""
    from ctfoundry.store import open_store
    from ctfoundry.store.describe import HU_EDGES, describe

    opened = open_store(store)
    found = describe(opened, say=say)
    names = ("least", "p5", "median", "p95", "largest")
    axes = ("S", "P", "L")
    data = {
        "grid": opened.grid,
        "scans": found.scans,
        "patients": found.patients,
        "collections": dict(found.collections),
        "voxels": found.voxels,
        "bytes": found.bytes,
        "spacing_mm": {n: row.tolist() for n, row in zip(names, found.spacing_mm, strict=True)} if found.scans else {},
        "extent_mm": {n: row.tolist() for n, row in zip(names, found.extent_mm, strict=True)} if found.scans else {},
        "shape": {n: row.tolist() for n, row in zip(names, found.shape, strict=True)} if found.scans else {},
        "hu_edges": HU_EDGES.tolist(),
        "hu": {name: counts.tolist() for name, counts in found.hu.items()},
        "unread": dict(found.unread),
    }
    if html is not None:
        _page(opened.path.name, opened.grid, found, html)
        say(f"the page: {html}")

    def table() -> None:
        print_table(("collection", "scans"), [(name or "(none)", n) for name, n in found.collections.items()])
        if found.scans:
            rows = [
                (f"{what} along {axis}", *(f"{v:.4g}" for v in spread[:, a]))
                for what, spread in (("mm a voxel", found.spacing_mm), ("mm", found.extent_mm), ("voxels", found.shape))
                for a, axis in enumerate(axes)
            ]
            print_table(("", *names), rows)
        raw = 2 * found.voxels
        print(
            f"{found.scans} scans of {found.patients} patients on grid {opened.grid}, {found.bytes / 2**20:.1f} MiB"
            + (f", {100 * found.bytes / raw:.0f} % of the raw voxels" if raw else "")
        )
        for id, reason in found.unread.items():
            print(f"unread: {id}: {reason}")

    show(data, table)


def _page(name: str, grid: str, found: Description, path: Path) -> None:
    import numpy as np

    from ctfoundry.report import charts, page
    from ctfoundry.store.describe import HU_EDGES

    middle = (HU_EDGES[:-1] + HU_EDGES[1:]) / 2
    inside = (middle > -950) & (middle < 1500)  # without the air around the patient, which would dwarf all else
    largest = sorted(found.hu, key=lambda c: -found.collections.get(c, 0))[:6]
    shares = {
        c or "(no collection)": (middle[inside], 100 * found.hu[c][inside] / max(found.hu[c][inside].sum(), 1))
        for c in largest
    }
    raw = max(2 * found.voxels, 1)
    rows: list[tuple[str | float, ...]] = [
        (f"{what} along {axis}", *(float(np.round(v, 2)) for v in spread[:, a]))
        for what, spread in (("mm a voxel", found.spacing_mm), ("mm", found.extent_mm), ("voxels", found.shape))
        for a, axis in enumerate(("S", "P", "L"))
    ]
    sections: list[page.Section] = [
        page.Numbers(
            (
                (f"{found.scans:,}", "scans"),
                (f"{found.patients:,}", "patients"),
                (f"{found.bytes / 1e9:.2f} GB", f"{100 * found.bytes / raw:.0f} % of the raw voxels"),
                (grid, "grid"),
            )
        ),
        page.Heading("Scans of each collection"),
        page.Figure(
            charts.bars(
                {c or "(none)": float(n) for c, n in list(found.collections.items())[:60]}, xlabel="scans", digits=0
            ),
            "Without a public name a scan belongs to no collection.",
            "Bars of the number of scans of each collection",
        ),
    ]
    if found.scans:
        sections += [
            page.Heading("Spacing and size"),
            page.Table(("", "least", "5 %", "median", "95 %", "largest"), rows),
            page.Heading("Hounsfield units"),
            page.Figure(
                charts.lines(shares, xlabel="HU", ylabel="% of voxels"),
                "Voxels between -950 and 1500 HU by collection, in bins of 25 HU; the six largest collections.",
                "Lines of the share of voxels over HU, one for each collection",
            ),
        ]
    page.write(path, page.Page(title=f"Store {name}", sections=sections))


@verb(store_app, "export")
def export(
    store: Folder,
    out: Annotated[Path, typer.Argument(help="folder")],
    id: Annotated[list[str] | None, typer.Option(help="only this scan (repeat); default: all")] = None,
    suffix: Annotated[str, typer.Option(help=".nii.gz, .nii, .nrrd or .mha")] = ".nii.gz",
) -> None:
    """Scans as files OUT/ID.nii.gz, voxel for voxel; what is there already is kept."""
    from ctfoundry import io
    from ctfoundry.errors import CTFoundryError, UsageError
    from ctfoundry.store import open_store

    if suffix not in (".nii.gz", ".nii", ".nrrd", ".mha"):
        raise UsageError(f"no file ends in {suffix!r}", do="choose .nii.gz, .nii, .nrrd or .mha")
    opened = open_store(store)
    wanted = list(id) if id else opened.entries.ids
    for name in wanted:
        opened.entry(name)  # an unknown one is an error before anything is written
    out.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    skipped: list[str] = []
    failed: dict[str, str] = {}
    for name in wanted:
        target = out / f"{name}{suffix}"
        if target.exists():
            skipped.append(name)
            continue
        try:
            io.write(opened.volume(name), target)
            written.append(name)
            say(f"{len(written)} of {len(wanted)} written")
        except CTFoundryError as error:
            failed[name] = error.what
    show(
        {"written": written, "skipped": skipped, "failed": failed},
        lambda: print(f"{len(written)} written, {len(skipped)} there already, {len(failed)} failed -> {out}"),
    )
    finish(failed, len(written) + len(skipped))
