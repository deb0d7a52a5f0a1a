"""``ctfoundry search``: the same place in other scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ctfoundry.cli.common import Device, Seed, finish, print_table, say, show, verb

Model = Annotated[str, typer.Option(help="name of the zoo, run folder or .safetensors")]
Weights = Annotated[str | None, typer.Option(help="for a name of the zoo: a .safetensors file, or 'random'")]
Scans = Annotated[
    list[str], typer.Argument(help="files, DICOM folders, FOLDER#SeriesInstanceUID, STORE#ID, or folders of scans")
]


@verb()
def search(
    query: Annotated[str, typer.Option(help="the scan that holds the point")],
    point: Annotated[str, typer.Option(help="x,y,z in world millimetres, RAS+")],
    target: Annotated[list[str], typer.Option(help="scans to search; may be repeated")],
    model: Model,
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="folder for heat maps (NIfTI)")] = None,
    method: Annotated[str, typer.Option(help="dense (one pass a scan) or windows (each window alone)")] = "dense",
    window: Annotated[str, typer.Option(help="for windows: DxHxW in prepared voxels")] = "16x64x64",
    overlap: Annotated[float, typer.Option(help="for windows: share by which they overlap")] = 0.625,
    levels: Annotated[str | None, typer.Option(help="for dense: levels, finest first, such as stage3,stage4")] = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """The same place in other scans: best point, similarity, and a heat map for each target."""
    from ctfoundry import io, zoo
    from ctfoundry.errors import CTFoundryError
    from ctfoundry.record import Record
    from ctfoundry.retrieval.search import seek
    from ctfoundry.retrieval.sources import resolve

    encoder = zoo.load_encoder(model, weights=weights, device=device, seed=seed)
    record = Record(
        ["search", "--model", encoder.card.name, "--point", point, "--method", method],
        {"seed": seed},
        str(encoder.device),
    )
    place = _point(point)
    source = resolve([query]).one(query)
    targets = resolve(target)
    names = tuple(levels.split(",")) if levels else None
    sought = seek(encoder, source.read(), place, method=method, window=triple(window), overlap=overlap, levels=names)
    record.inputs = {scan.id: scan.digest for scan in (source, *(found.scan for found in targets.scans))}
    hits: list[dict[str, Any]] = []
    failed = dict(targets.failed)
    for found in targets.scans:
        try:
            hit = sought.find(found.scan.read())
        except CTFoundryError as error:
            failed[found.scan.id] = error.what
            continue
        hits.append({"target": found.scan.id, "point": list(hit.point), "similarity": hit.similarity})
        if out is not None and hit.heatmap is not None:
            io.write(hit.heatmap, out / f"{found.scan.id}.nii.gz")
        say(f"searched {found.scan.id}")
    if out is not None:
        record.results = {"hits": hits}
        record.write(out, [f"{h['target']}.nii.gz" for h in hits])
    show(
        {"hits": hits, "failed": failed},
        lambda: print_table(
            ("target", "x", "y", "z", "similarity"),
            [(h["target"], *(f"{v:.1f}" for v in h["point"]), h["similarity"]) for h in hits],
        ),
    )
    finish(failed, len(hits), targets.paths)


def triple(text: str) -> tuple[int, int, int]:
    """A size from ``DxHxW``."""
    from ctfoundry.errors import UsageError

    parts = text.split("x")
    if len(parts) != 3 or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise UsageError(f"{text!r} is not of the form DxHxW with whole numbers")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _point(text: str) -> tuple[float, float, float]:
    from ctfoundry.errors import UsageError

    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{text!r} is not a point", do="give x,y,z in world millimetres, RAS+") from error
    return x, y, z
