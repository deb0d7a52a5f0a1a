"""Verbs that train: pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctfoundry.cli.common import Device, print_table, show, state, verb


@verb()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="name of a recipe, or a YAML or JSON file")],
    store: Annotated[Path, typer.Option(help="store to train on")],
    run: Annotated[Path, typer.Option(help="folder of the run; an unfinished one is continued")],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, such as train.optimiser.rate=3e-4")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="stop after this time")] = None,
    steps: Annotated[int | None, typer.Option(help="stop after this many steps")] = None,
    device: Device = "auto",
) -> None:
    """Self-supervised pretraining from a store; continues a run it finds."""
    from dataclasses import asdict

    from ctfoundry.pretrain.run import pretrain as train

    done = train(
        recipe,
        store,
        run,
        minutes=minutes,
        steps=steps,
        changes=change or (),
        device=device,
        quiet=state.quiet,
        command=["pretrain", Path(recipe).name, *[f"--set {c}" for c in change or ()]],
    )
    data = {
        "recipe": done.recipe,
        "scans": done.scans,
        "patients": done.patients,
        "device": done.device,
        **asdict(done.train),
    }
    show(
        data,
        lambda: print_table(("what", "value"), [(k, v) for k, v in data.items() if isinstance(v, str | int | float)]),
    )
