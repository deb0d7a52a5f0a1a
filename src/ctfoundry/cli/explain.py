"""``ctfoundry explain``: pictures of what an embedding sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctfoundry.cli.common import app, finish, say, show, verb
from ctfoundry.errors import CTFoundryError, UsageError

if TYPE_CHECKING:
    from ctfoundry.pretrain.seen import Seen

explain_app = typer.Typer(
    help="Pictures and maps of what an embedding sees.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(explain_app, name="explain")


@verb(explain_app, "views")
def explain_views(
    store: Annotated[Path, typer.Argument(help="store that is trained on")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the sheets")],
    recipe: Annotated[
        str | None, typer.Option(help="name of a recipe, or a YAML or JSON file (default: ct-fm)")
    ] = None,
    scan: Annotated[list[str] | None, typer.Option(help="ID of a scan; may be repeated (default: the first)")] = None,
    epoch: Annotated[int | None, typer.Option(help="pass over the store, counted from 0 (default: 0)")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the draws (default: the recipe's)")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, such as views.affine=0.2; may be repeated")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="run folder: show what it saw at --step, instead of a recipe")
    ] = None,
    step: Annotated[int | None, typer.Option(help="step of the run, counted from 1 as in metrics.jsonl")] = None,
    crops: Annotated[int, typer.Option(help="crops on a sheet", min=1)] = 5,
) -> None:
    """The crops of a scan and both views of each as training sees them, drawn again (PNG, HTML, JSON)."""
    from PIL import Image

    import ctfoundry
    from ctfoundry import files
    from ctfoundry.pretrain.recipe_files import load_recipe
    from ctfoundry.pretrain.seen import at_step, in_epoch, recipe_of
    from ctfoundry.pretrain.sheet import as_data, draw_sheet, make_page, overview
    from ctfoundry.pretrain.task import CropTask
    from ctfoundry.record import Record
    from ctfoundry.report import page
    from ctfoundry.settings import to_data, with_changes
    from ctfoundry.store import open_store

    own = {"--recipe": recipe, "--scan": scan, "--epoch": epoch, "--seed": seed, "--set": change}
    clash = [name for name, value in own.items() if value is not None]
    if run is not None and (clash or step is None):
        why = f"a run has {', '.join(clash)} of its own" if clash else "a run is shown at a step"
        raise UsageError(why, do="give --run and --step, and neither recipe nor scans")
    if run is None and step is not None:
        raise UsageError("a step is one of a run", do="give --run too, or --epoch")
    opened = open_store(store)
    if not len(opened):
        raise UsageError("the store has no scan", where=store, do="prepare scans into it first")
    chosen = recipe_of(run) if run is not None else with_changes(load_recipe(recipe or "ct-fm"), change or ())
    seed = chosen.train.seed if seed is None else seed
    command = ["explain", "views", "--recipe", chosen.name, *[f"--set {c}" for c in change or ()]]
    record = Record(command, {"train": seed})
    task = CropTask(chosen)
    shown = range(min(crops, chosen.crops))
    failed: dict[str, str] = {}

    def all_seen() -> Iterator[Seen]:
        if run is not None and step is not None:
            yield from at_step(task, opened, run, step)
            return
        for id in scan or [opened.entries[0].id]:
            try:
                yield in_epoch(task, opened, id, epoch or 0, seed)
            except CTFoundryError as error:
                failed[id] = str(error)

    sheets, written = [], []
    for seen in all_seen():
        picture = draw_sheet(seen, overview(opened, seen.entry.id), task.preparation, chosen, shown)
        name = f"{seen.entry.id}-epoch{seen.epoch}.png"
        with files.whole(out / name) as part:
            Image.fromarray(picture).save(part, "PNG")
        sheets.append((seen.without_voxels(), picture))
        written.append(name)
        say(name)
    if sheets:
        source = f"seed {seed}" + (f", step {step} of the run" if run is not None else "")
        footer = f"Made by ctfoundry {ctfoundry.__version__} explain views."
        page.write(out / "views.html", make_page(chosen, sheets, source=source, footer=footer))
        files.write_json(
            out / "views.json", {"recipe": to_data(chosen), "scans": [as_data(seen) for seen, _ in sheets]}
        )
        record.inputs = {"recipe": files.digest(to_data(chosen))}
        record.results = {
            "scans": [seen.entry.id for seen, _ in sheets],
            "epochs": [seen.epoch for seen, _ in sheets],
            "step": step,
            "failed": failed,
        }
        record.write(out, [*dict.fromkeys(written), "views.html", "views.json"])
    show(
        {"pictures": written, "page": "views.html" if sheets else None, "failed": failed},
        lambda: print("\n".join([*written, *(["views.html"] if sheets else [])])),
    )
    finish(failed, len(sheets))
