"""``ctfoundry export``: models for other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ctfoundry.cli.common import Seed, print_table, show, verb


@verb(name="export")
def export(
    model: Annotated[
        str, typer.Argument(help="run folder, .safetensors with its card, hf:// name, or name of the zoo")
    ],
    form: Annotated[str, typer.Option("--format", help="nnunet, monai-bundle or hub")],
    out: Annotated[Path, typer.Option("--out", "-o", help="new folder")],
    weights: Annotated[str | None, typer.Option(help="of a name of the zoo: file, hf:// name or random")] = None,
    dataset: Annotated[
        str, typer.Option(help="nnunet: data set that the plans are for, such as Dataset501_Liver")
    ] = "Dataset900_CTFoundry",
    patch: Annotated[str | None, typer.Option(help="nnunet: patch in voxels, DxHxW")] = None,
    spacing: Annotated[
        str | None, typer.Option(help="nnunet: mm, DxHxW, where the preparation keeps each scan's own")
    ] = None,
    batch: Annotated[int, typer.Option(help="nnunet: patches in a batch", min=1)] = 2,
    seed: Seed = 0,
) -> None:
    """A model as a folder for nnU-Net, as a MONAI bundle, or in the layout of CT-FM's hub repositories."""
    from ctfoundry.zoo import export as exporting
    from ctfoundry.zoo.models import CARDS

    sizes = None if patch is None else _numbers(patch, "--patch")
    options = exporting.Options(
        dataset=dataset,
        patch=None if sizes is None else (int(sizes[0]), int(sizes[1]), int(sizes[2])),
        spacing=None if spacing is None else _numbers(spacing, "--spacing"),
        batch=batch,
        seed=seed,
    )
    known = model if model in CARDS or model.startswith("hf://") else "MODEL"
    loaded = exporting.load(model, weights=weights, seed=seed)
    done = exporting.export(
        loaded, form, out, options=options, command=("export", known, "--format", form, "-o", "OUT")
    )
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    data = {
        "name": loaded.card.name,
        "format": form,
        "folder": str(done.path),
        "skipped": done.skipped,
        "files": list(done.files),
        "notes": list(done.notes),
    }
    rows = [(name, (done.path / name).stat().st_size) for name in done.files]
    show(data, lambda: print_table(("file", "bytes"), rows, title=f"{loaded.card.name} for {form}: {done.path}"))


def _numbers(text: str, option: str) -> tuple[float, float, float]:
    from ctfoundry.errors import UsageError

    try:
        d, h, w = (float(part) for part in text.split("x"))
    except ValueError:
        raise UsageError(f"{option} {text!r} is not three numbers", do="such as 96x160x160") from None
    if min(d, h, w) <= 0:
        raise UsageError(f"{option} {text!r}: all three must be above zero")
    return d, h, w
