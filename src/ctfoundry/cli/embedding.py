"""Verbs of embeddings on disk: embed, retrieve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctfoundry.cli.common import Device, Seed, finish, print_table, say, show, verb
from ctfoundry.cli.search import Model, Scans, Weights, triple


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
    settings = embedding.Settings((pool,) if pool else (), triple(windows) if windows else None, overlap, grids)
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
