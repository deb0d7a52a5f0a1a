"""``ctfoundry zoo``: named models and model files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctfoundry.cli.common import app, print_table, show, verb

zoo_app = typer.Typer(help="Named models, their cards, and model files.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(zoo_app, name="zoo")


@verb(zoo_app, "list")
def zoo_list() -> None:
    """The models by name."""
    from ctfoundry import zoo

    rows = [(c.name, c.architecture, c.preparation.name, c.extent.mode, c.origin) for c in zoo.CARDS.values()]
    data = [{"name": r[0], "architecture": r[1], "preparation": r[2], "extent": r[3], "origin": r[4]} for r in rows]
    show({"models": data}, lambda: print_table(("name", "architecture", "preparation", "extent", "origin"), rows))


@verb(zoo_app, "show")
def zoo_show(model: Annotated[str, typer.Argument(help="name of the zoo, run folder or .safetensors")]) -> None:
    """The card of a model."""
    from ctfoundry import zoo
    from ctfoundry.errors import UsageError
    from ctfoundry.settings import nearest, to_data
    from ctfoundry.zoo.files import read_card

    path = Path(model)
    if model not in zoo.CARDS and not path.exists():
        raise UsageError(f"{model!r} is neither a model of the zoo nor a file or folder; {nearest(model, zoo.CARDS)}")
    card = zoo.CARDS[model] if model in zoo.CARDS else read_card(path / "model.safetensors" if path.is_dir() else path)
    show(to_data(card))


@verb(zoo_app, "verify")
def zoo_verify(model: Annotated[Path, typer.Argument(help="run folder or .safetensors")]) -> None:
    """Load a model strictly: keys, shapes, finite values, SHA-256."""
    from ctfoundry import zoo

    found = zoo.verify_model(model / "model.safetensors" if model.is_dir() else model)
    show(found, lambda: print_table(("what", "value"), list(found.items())))
