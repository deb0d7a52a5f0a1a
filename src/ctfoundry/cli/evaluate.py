"""``ctfoundry evaluate``: what is measured, beside what trivial methods reach."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ctfoundry.cli.common import Seed, app, print_table, say, show, verb

evaluate_app = typer.Typer(help="Measure, beside trivial methods.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(evaluate_app, name="evaluate")


@verb(evaluate_app, "difficulty")
def difficulty(
    what: Annotated[list[str] | None, typer.Option(help="hu, position or findings; all three where not given")] = None,
    count: Annotated[int, typer.Option(help="phantoms, half of them to learn from", min=2)] = 48,
    view: Annotated[str, typer.Option(help="part of the body; default: the torso's five views")] = "",
    voxel: Annotated[float, typer.Option(help="mm of the phantoms", min=0.4)] = 4.0,
    data: Annotated[Path | None, typer.Option(help="labelled scans in place of phantoms: one folder a scan")] = None,
    seed: Seed = 0,
) -> None:
    """How much trivial methods find: single voxels' HU, position in the body box, the HU histogram."""
    from ctfoundry.evaluate.difficulty import WHAT, measure

    rows = measure(what or WHAT, count, view=view, voxel_mm=voxel, data=data, seed=seed, say=say)
    results: list[dict[str, Any]] = [row.data() for row in rows]

    def table() -> None:
        columns = ("measure", "structures", "value", "limit", "verdict", "patients")
        print_table(columns, [[row.line()[c] for c in columns] for row in rows])

    show({"results": results, "seed": seed, "voxel_mm": None if data else voxel}, table)
