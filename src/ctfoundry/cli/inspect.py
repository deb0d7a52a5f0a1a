"""``ctfoundry inspect``: what a file or folder holds, for a person's eyes or as JSON."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctfoundry.cli.common import say, show, verb

if TYPE_CHECKING:
    from ctfoundry.io import Discovery
    from ctfoundry.io.phi import Survey


@verb()
def inspect(
    path: Annotated[str, typer.Argument(help="file, folder, or FOLDER#SeriesInstanceUID")],
    html: Annotated[Path | None, typer.Option(help="write one page with three planes of every series")] = None,
    paths: Annotated[bool, typer.Option("--paths", help="say where each lies; paths may name patients")] = False,
    phi: Annotated[bool, typer.Option("--phi", help="list what may identify a person, values masked")] = False,
    phi_values: Annotated[
        bool, typer.Option("--phi-values", help="the same with the values, and patients' IDs")
    ] = False,
) -> None:
    """Every CT series under PATH, from headers: geometry, how it was taken, problems, and which represents its study."""
    from ctfoundry import io
    from ctfoundry.cli import inspect_rows
    from ctfoundry.io import phi as phi_room

    place, discovery = inspect_rows.look(path)
    rows = inspect_rows.rows(discovery, paths=paths or phi_values, patients=phi_values)
    data: dict[str, Any] = {"series": rows, "skipped": dict(discovery.skipped)}
    if html is not None:
        from ctfoundry.cli import inspect_page

        data["html"] = inspect_page.write(html, discovery, rows, say=say)
    found: Survey | None = None
    if phi or phi_values:
        found = phi_room.survey(place, progress=lambda done: say(f"{done} files looked into"))
        data["phi"] = _phi_data(found, values=phi_values)
    assert isinstance(discovery, io.Discovery)

    def table() -> None:
        _print_series(rows, discovery)
        if found is not None:
            _print_phi(found, values=phi_values)
        if html is not None:
            print(f"pictures: {html}")

    show(data, table)
    if not paths and not phi_values:
        _say_where(discovery, place)


# The table ------------------------------------------------------------------------------------------------------------

_ID = "patient_id"
Columns = Sequence[tuple[str, str, str]]

_COLUMNS: Columns = (
    # (header, key of a row's cell, table that it goes to where one is too wide)
    ("no", "no", "both"),
    ("study", "study", "what"),
    ("ser", "series", "what"),
    ("description", "description", "what"),
    ("part", "part", "what"),
    ("kernel", "kernel", "what"),
    ("kV", "kvp", "what"),
    ("contrast", "phase", "what"),
    ("represents", "represents", "what"),
    ("thick", "thick", "where"),
    ("step", "step", "where"),
    ("voxels", "shape", "where"),
    ("field mm", "field", "where"),
    ("z mm", "z", "where"),
    ("plane", "plane", "where"),
    ("axes", "axes", "where"),
    ("tilt", "tilt", "where"),
    ("values", "values", "where"),
)
_WIDEST = {"description": 28, "part": 20, "kernel": 10, "represents": 24, "phase": 13}
_SHRINK = ("description", "part")
"""Columns that give way where a terminal is narrow, down to `_LEAST`; `_WIDEST` bounds those with text of any length."""
_LEAST = 8


def cells(row: dict[str, Any]) -> dict[str, str]:
    """A row of the JSON as short texts for people."""
    from ctfoundry.cli.inspect_rows import plain

    def number(value: float | None, digits: int = 2) -> str:
        return "" if value is None else f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"

    field = row["field_mm"]
    return {
        "no": str(row["no"]),
        "study": row["study"] or "",
        "series": plain(row["number"]),
        "description": plain(row["description"]),
        "part": plain(row["part"]),
        "kernel": plain(row["kernel"]),
        "kvp": number(row["kvp"], 0),
        "phase": "given" if row["phase"] == "contrast" else row["phase"],
        "represents": plain(row["why_not"]) if not row["represents"] else "yes" if row["study"] else "",
        "thick": number(row["thickness_mm"]),
        "step": "" if row["spacing_mm"] is None else number(row["spacing_mm"][0]),
        "shape": "" if row["shape"] is None else "x".join(map(str, row["shape"])),
        "field": "" if field is None else f"{field[0]:.0f}x{field[1]:.0f}",
        "z": "" if row["coverage_mm"] is None else f"{row['coverage_mm']:.0f}",
        "plane": row["plane"] or "",
        "axes": row["orientation"] or "",
        "tilt": f"{row['tilt_deg']:.1f}" if row["tilt_deg"] else "",
        "values": row["values"],
    }


def _print_series(rows: Sequence[dict[str, Any]], discovery: Discovery) -> None:
    from ctfoundry.cli.inspect_rows import plain

    if rows:
        table, console = [cells(row) for row in rows], _console()
        used = [c for c in _COLUMNS if any(row[c[1]] for row in table)]
        parts = [used]
        if _total(_widths(used, table)) > console.width:
            parts = [[c for c in used if c[2] in (part, "both")] for part in ("what", "where")]
        for columns in parts:
            console.print(_table(columns, table, console.width))
            print()
    for row in rows:
        if "path" in row:
            print(f"{row['no']}: {plain(row['path'])}{f' (patient {plain(row[_ID])})' if row.get(_ID) else ''}")
    for row in rows:
        if row["problem"] is not None:
            print(f"{row['no']}: {row['problem_name']}: {plain(row['problem'])}")
        for note in row["notes"]:
            print(f"{row['no']}: note: {plain(note)}")
    for reason, count in sorted(discovery.skipped.items()):
        print(f"left out: {count} x {plain(reason)}")
    if not rows:
        print("no scan")


def _widths(columns: Columns, rows: Sequence[dict[str, str]]) -> dict[str, int]:
    """Characters of each column as it would like to be."""
    return {
        key: min(max(len(header), *(len(row[key]) for row in rows)), _WIDEST.get(key, 1000))
        for header, key, _ in columns
    }


def _total(widths: dict[str, int]) -> int:
    return sum(widths.values()) + 2 * len(widths)  # a blank and what the box puts between columns


def _table(columns: Columns, rows: Sequence[dict[str, str]], width: int) -> Any:
    """The table, no wider than `width` as far as the columns in `_SHRINK` can give way."""
    from rich import box
    from rich.table import Table

    widths = _widths(columns, rows)
    for key in _SHRINK:
        excess = _total(widths) - width
        if key in widths and excess > 0:
            widths[key] = max(widths[key] - excess, _LEAST)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for header, key, _ in columns:
        numbers = all(row[key].replace(".", "", 1).replace("-", "", 1).isdigit() for row in rows if row[key])
        table.add_column(
            header,
            justify="right" if numbers else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=widths[key],
            max_width=widths[key],
        )
    for row in rows:
        table.add_row(*(row[key] for _, key, _ in columns))
    return table


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, emoji=False)


def _say_where(discovery: Discovery, place: Path) -> None:
    """Which number is which, on stderr: paths may name patients."""
    from ctfoundry.cli.inspect_rows import plain

    sys.stdout.flush()
    for number, item in enumerate(discovery.found[:200], 1):
        shown = item.path.parent if len(item.paths) > 1 and not item.members else item.path
        with contextlib.suppress(ValueError):
            shown = shown.relative_to(place if place.is_dir() else place.parent)
        inside = f"#{item.members[0]}" if item.members else ""
        say(f"{number}: {plain(f'{shown}{inside}')}")
    if len(discovery.found) > 200:
        say(f"... and {len(discovery.found) - 200} more; --paths lists all")


# What may identify -----------------------------------------------------------------------------------------------------


def _phi_data(found: Survey, *, values: bool) -> dict[str, Any]:
    from ctfoundry.io.phi import masked, tidy

    return {
        "files": found.files,
        "unread": found.unread,
        "elements": [
            {
                "group": f.group,
                "where": f.where,
                "name": f.name if values else tidy(f.name),  # a private creator is a text like any other
                "why": f.why,
                "times": f.times,
                "different": len(f.values),
                "more": f.more,
                "values" if values else "masked": list(f.values) if values else sorted({masked(v) for v in f.values}),
            }
            for f in found.findings
        ],
    }


def _print_phi(found: Survey, *, values: bool) -> None:
    from ctfoundry.cli.common import print_table
    from ctfoundry.cli.inspect_rows import plain
    from ctfoundry.io.phi import masked, tidy

    print()
    print("What may identify a person" + ("" if values else " (values masked: first letter and length)"))
    rows = []
    for f in found.findings:
        shown = [plain(v) for v in (f.values if values else dict.fromkeys(map(masked, f.values)))]
        more = f" … {len(f.values)}{'+' if f.more else ''} different" if len(f.values) > min(len(shown), 3) else ""
        rows.append(
            (
                f.group,
                plain(f.where),
                plain(f.name if values else tidy(f.name)),
                f.times,
                ", ".join(shown[:3]) + more,
                f.why,
            )
        )
    print_table(("kind", "element", "name", "times", "values", "why"), rows)
    for reason, count in found.unread.items():
        print(f"not looked into: {count} x {plain(reason)}")
    files = sum(found.files.values())
    print(
        f"{len(found.findings)} findings in {files} files. Letters burned into pixels are not read; no list proves a folder clean."
    )
