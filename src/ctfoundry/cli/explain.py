"""``ctfoundry explain``: pictures of what an embedding sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctfoundry.cli.common import Device, Seed, app, finish, say, show, verb

explain_app = typer.Typer(
    help="Pictures and maps of what an embedding sees.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(explain_app, name="explain")


@verb(explain_app, "pca")
def explain_pca(
    scans: Annotated[list[str], typer.Argument(help="scans that share one colour scale")],
    model: Annotated[str, typer.Option(help="name of the zoo, run folder or .safetensors")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the pictures")],
    weights: Annotated[str | None, typer.Option(help="for a name of the zoo: a .safetensors file, or 'random'")] = None,
    levels: Annotated[str | None, typer.Option(help="levels, finest first, such as stage2,stage3")] = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Colour maps of the three directions in which features differ most, joint over the scans (PNG)."""
    from PIL import Image

    from ctfoundry import files, zoo
    from ctfoundry.explain import pca
    from ctfoundry.quickstart.pictures import colour_picture
    from ctfoundry.record import Record
    from ctfoundry.retrieval.search import dense_map
    from ctfoundry.retrieval.sources import resolve

    encoder = zoo.load_encoder(model, weights=weights, device=device, seed=seed)
    record = Record(["explain", "pca", "--model", encoder.card.name], {"seed": seed}, str(encoder.device))
    names = tuple(levels.split(",")) if levels else tuple(level.name for level in encoder.levels[-2:])
    found = resolve(scans)
    volumes = [s.scan.read() for s in found.scans]
    maps = [dense_map(encoder, volume, names) for volume in volumes]
    masks = [pca.body_cells(feature, volume) for feature, volume in zip(maps, volumes, strict=True)]
    fitted = pca.fit(maps, masks)
    written = []
    for scan, volume, feature, mask in zip(found.scans, volumes, maps, masks, strict=True):
        name = f"{scan.scan.id}.png"
        with files.whole(out / name) as part:
            Image.fromarray(colour_picture(volume, pca.colours(fitted, feature, mask), height=320)).save(part, "PNG")
        written.append(name)
        say(name)
    record.results = {"explained": list(fitted.explained)}
    record.write(out, written)
    show(
        {"pictures": written, "explained": list(fitted.explained), "failed": found.failed},
        lambda: print("\n".join(written)),
    )
    finish(found.failed, len(written), found.paths)
