"""``ctfoundry zoo``: named models and model files."""

from __future__ import annotations

import sys
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

    rows = [
        (c.name, c.architecture, c.preparation.name, c.extent.mode, c.origin)
        for c in (*zoo.CARDS.values(), zoo.whole_body())
    ]
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
    if model == zoo.WHOLE_BODY:
        show(to_data(zoo.whole_body()))
        return
    if model not in zoo.CARDS and not path.exists():
        raise UsageError(f"{model!r} is neither a model of the zoo nor a file or folder; {nearest(model, zoo.CARDS)}")
    card = zoo.CARDS[model] if model in zoo.CARDS else read_card(zoo.model_file(path))
    show(to_data(card))


@verb(zoo_app, "verify")
def zoo_verify(model: Annotated[Path, typer.Argument(help="run folder or .safetensors")]) -> None:
    """Load a model strictly: keys, shapes, finite values, SHA-256, golden values; and whether its weights look trained."""
    from ctfoundry import zoo

    found = zoo.verify_model(zoo.model_file(model))
    show(found, lambda: print_table(("what", "value"), list(found.items())))


@verb(zoo_app, "convert")
def zoo_convert(
    source: Annotated[str, typer.Argument(help="hub folder, weight file, or hf://owner/name[@revision][/file]")],
    out: Annotated[Path, typer.Argument(help="folder (NAME.safetensors is made in it) or .safetensors file")],
    name: Annotated[str | None, typer.Option("--as", help="name of the zoo; default: what the keys say")] = None,
    preparation: Annotated[str | None, typer.Option(help="another preparation than the zoo's for this name")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="overwrite a model of another source")] = False,
) -> None:
    """A public checkpoint as a model file and its card, strictly and without executing anything in it."""
    from ctfoundry import zoo
    from ctfoundry.record import Record

    if name == zoo.WHOLE_BODY or name in zoo.SUPREM:
        _segmenter(source, out, name, preparation, replace)
        return
    known = source if source.startswith("hf://") else "SRC"
    command = ("zoo", "convert", known, "OUT", *(("--as", name) if name else ()))
    record = Record(command=(*command, *(("--preparation", preparation) if preparation else ())))
    done = zoo.convert(source, out, name=name, preparation=preparation, replace_other=replace)
    card = done.card
    for look in done.looks:
        print(f"warning: {look}", file=sys.stderr)
    if not done.skipped and out.suffix != ".safetensors":
        record.inputs = {f"SRC/{file}": digest for file, digest in card.source["files"].items()}
        record.write(out, [done.path.name, done.path.with_suffix(".json").name])
    data = {
        "name": card.name,
        "model": str(done.path),
        "skipped": done.skipped,
        "architecture": card.architecture,
        "preparation": card.preparation.name,
        "weights": card.weights,
        "sha256": card.sha256,
        "dropped": dict(done.dropped),
        "types": dict(done.types),
        "looks": list(done.looks),
        "notes": list(card.notes),
    }
    rows = [(key, _words(value)) for key, value in data.items()]
    show(data, lambda: print_table(("what", "value"), rows))


def _segmenter(source: str, out: Path, name: str, preparation: str | None, replace: bool) -> None:
    """CT-FM's whole-body model with its decoder (outputs are the structures of TotalSegmentator v2), or SuPreM's whole U-Net."""
    from ctfoundry import zoo
    from ctfoundry.zoo import hub

    place = hub.fetch(hub.parse(source)).path if hub.is_hub(source) else Path(source)
    target = out if out.suffix == ".safetensors" else out / f"{name}.safetensors"
    card = zoo.convert_segmenter(place, target, name=name, preparation=preparation, replace_other=replace)
    for note in card.notes:
        print(f"note: {note}", file=sys.stderr)
    data = {"name": card.name, "model": str(target), "structures": len(card.names) - 1, "sha256": card.sha256}
    show(data, lambda: print_table(("what", "value"), list(data.items())))


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {count}" for key, count in value.items()) or "nothing"
    if isinstance(value, list):
        return "; ".join(value) or "nothing to say"
    return "already there, from the same source" if value is True else "no" if value is False else str(value)
