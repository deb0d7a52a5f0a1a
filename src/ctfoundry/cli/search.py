"""Verbs that use an encoder: embed, retrieve, search."""

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
def embed(
    scans: Scans,
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the embeddings; a part-filled one is continued")],
    weights: Weights = None,
    pool: Annotated[str | None, typer.Option(help="mean, max or min instead of the model's own vector")] = None,
    windows: Annotated[str | None, typer.Option(help="also each window alone: DxHxW in prepared voxels")] = None,
    overlap: Annotated[float, typer.Option(help="share by which windows overlap")] = 0.0,
    grids: Annotated[bool, typer.Option("--grids", help="also the feature map of each scan")] = False,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Embed scans into a folder that `retrieve` searches."""
    from ctfoundry import identity, zoo
    from ctfoundry.record import Record
    from ctfoundry.retrieval import embed as embedding
    from ctfoundry.retrieval.sources import resolve

    encoder = zoo.load_encoder(model, weights=weights, device=device, seed=seed)
    record = Record(["embed", "--model", encoder.card.name], {"seed": seed}, str(encoder.device))
    found = resolve(scans)
    settings = embedding.Settings((pool,) if pool else (), _triple(windows) if windows else None, overlap, grids)
    outcome = embedding.embed(
        [s.scan for s in found.scans], encoder, out, settings, progress=lambda id: say(f"{id} done")
    )
    identity.write_private(out, found.paths)
    record.inputs = {s.scan.id: s.scan.digest for s in found.scans}
    record.results = {"done": outcome.done, "skipped": outcome.skipped, "failed": outcome.failed}
    record.write(out, ["index.parquet", "card.json"])
    failed = outcome.failed | found.failed
    show(
        {"done": outcome.done, "skipped": outcome.skipped, "failed": failed},
        lambda: print(f"{len(outcome.done)} embedded, {len(outcome.skipped)} there already, {len(failed)} failed"),
    )
    finish(failed, len(outcome.done) + len(outcome.skipped), found.paths)


@verb()
def retrieve(
    index: Annotated[Path, typer.Option(help="folder that `embed` wrote")],
    query: Annotated[str, typer.Option(help="a scan, or an id of the index")],
    k: Annotated[int, typer.Option("-k", help="how many", min=1)] = 5,
    device: Device = "auto",
    model: Annotated[
        str | None, typer.Option(help="the model that made the index; needed when the query is a scan")
    ] = None,
    weights: Weights = None,
    seed: Seed = 0,
) -> None:
    """The scans most similar to the query, by cosine."""
    from ctfoundry.retrieval.embed import load_index
    from ctfoundry.retrieval.sources import query_in_index

    opened = load_index(index)
    vector, without = query_in_index(index, opened, query, model, weights, device, seed)
    found = opened.nearest(vector, k, without=without)
    show(
        {"neighbours": [{"id": n.id, "similarity": n.similarity} for n in found]},
        lambda: print_table(("rank", "id", "similarity"), [(i, n.id, n.similarity) for i, n in enumerate(found, 1)]),
    )


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
    sought = seek(encoder, source.read(), place, method=method, window=_triple(window), overlap=overlap, levels=names)
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


def _triple(text: str) -> tuple[int, int, int]:
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
