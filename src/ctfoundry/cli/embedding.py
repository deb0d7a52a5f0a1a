"""Verbs of embeddings on disk: embed, retrieve, embeddings show|remove|merge|export|compact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ctfoundry.cli.common import Device, Seed, app, finish, print_table, say, show, verb
from ctfoundry.cli.search import Model, Patch, Scans, Weights, patch_size, triple

if TYPE_CHECKING:
    from ctfoundry.retrieval.index import Neighbour

Folder = Annotated[Path, typer.Argument(help="folder that `embed` wrote", metavar="OUT")]
Kind = Literal["npy", "parquet", "csv"]
Names = Annotated[
    bool, typer.Option("--names", help="original file names in tables; they may name patients (private, mode 0600)")
]


@verb()
def embed(
    scans: Scans,
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the embeddings; a part-filled one is continued")],
    weights: Weights = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            help="mean, max, min, a token such as cls, or windows:min; may be repeated; the first is searched"
        ),
    ] = None,
    roi: Annotated[
        Path | None,
        typer.Option(help="a vector a label: folder of label maps by id or file name, or a data set's folder"),
    ] = None,
    windows: Annotated[str | None, typer.Option(help="also each window alone: DxHxW in prepared voxels")] = None,
    overlap: Annotated[float, typer.Option(help="share by which windows overlap")] = 0.0,
    slices: Annotated[bool, typer.Option("--slices", help="also each slice alone")] = False,
    grids: Annotated[bool, typer.Option("--grids", help="also feature maps, for search --index and serve")] = False,
    levels: Annotated[
        str | None,
        typer.Option(help="with --grids: which maps, such as stage3,stage4 (default: those that a search takes)"),
    ] = None,
    patch: Patch = None,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="of the forward pass")] = "fp32",
    cohort: Annotated[Path | None, typer.Option(help="cohort file: only its series")] = None,
    workers: Annotated[
        int | None, typer.Option(help="processes, one thread each (default: this process, all threads)", min=1)
    ] = None,
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="processes of this machine, or a Ray cluster")
    ] = "local",
    address: Annotated[str | None, typer.Option(help="of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT")] = None,
    export: Annotated[Kind | None, typer.Option(help="also tables of the vectors, in OUT/tables")] = None,
    names: Names = False,
    layout: Annotated[
        Literal["cvpr26"] | None, typer.Option(help="also OUT/cvpr26/CASE.h5, as that challenge's scripts read it")
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Embed scans into a folder that `retrieve` searches. Many may fill one folder at once."""
    from ctfoundry.record import Record
    from ctfoundry.retrieval import embed as embedding
    from ctfoundry.retrieval import folders
    from ctfoundry.retrieval.cards import Settings
    from ctfoundry.retrieval.search_maps import default_levels
    from ctfoundry.retrieval.sources import resolve, with_regions

    how = embedding.ModelOf(model, weights, device, seed, patch_size(patch))
    encoder = how.load()
    record = Record(["embed", "--model", encoder.card.name], {"seed": seed}, str(encoder.device))
    found = resolve(scans, series=_series(cohort))
    if found.passed_over():
        say(f"left out: {found.passed_over()}")
    if roi is not None:
        from ctfoundry.retrieval.regions import open_regions

        with_regions(found, open_regions(roi))
    size = triple(windows) if windows else None
    settings = Settings(
        tuple(dict.fromkeys(pool or ())),
        size,
        overlap,
        grids,
        precision,
        slices,
        roi is not None,
        tuple(levels.split(",")) if levels else (),
    )
    outcome = embedding.embed(
        [s.scan for s in found.scans],
        encoder,
        out,
        settings,
        paths=found.paths,
        progress=_progress(len(found.scans)),
        executor=_executor(executor, address, workers),
        model=how,
        say=say,
    )
    tables = folders.export(out, export, names=names) if export else []
    cases = folders.challenge_layout(out, names=names) if layout else []
    failed = outcome.failed | found.failed
    record.inputs = {s.scan.id: s.scan.digest for s in found.scans}
    # why a file could not be opened may quote what its header says of a person
    record.results = {"done": outcome.done, "skipped": outcome.skipped, "failed": outcome.failed}
    record.results |= {"unreadable": sorted(found.failed), "doubtful": outcome.doubtful}
    for id, reason in outcome.doubtful.items():
        say(f"{id}: {reason}")
    maps = _maps(out, [*outcome.done, *outcome.skipped])
    if maps and not set(default_levels(encoder)) <= set(maps["levels"]):
        searched, held = ", ".join(default_levels(encoder)), ",".join(maps["levels"])
        say(f"search and serve look at {searched}; to use these maps, give them --levels {held}")
    record.write(out, ["index.parquet", "card.json"])

    def table() -> None:
        print(f"{len(outcome.done)} embedded, {len(outcome.skipped)} there already, {len(failed)} failed")
        if maps:
            print(_of_maps(maps))
        for place in (*tables, *([cases[0].parent] if cases else [])):
            print(place)

    data: dict[str, Any] = {
        "done": outcome.done,
        "skipped": outcome.skipped,
        "failed": failed,
        "doubtful": outcome.doubtful,
    }
    show(data | {"maps": maps, "tables": [t.name for t in tables], "cases": len(cases)}, table)
    finish(failed, len(outcome.done) + len(outcome.skipped), found.paths)


@verb()
def retrieve(
    index: Annotated[list[Path], typer.Option(help="folder that `embed` wrote; several are fused by rank")],
    query: Annotated[str, typer.Option(help="a scan, or an id of the index")],
    k: Annotated[int, typer.Option("-k", help="how many", min=1)] = 5,
    vector: Annotated[
        list[str] | None,
        typer.Option(
            help="which vectors: window and slice find a scan by its best one (default: the first); one an index"
        ),
    ] = None,
    table: Annotated[Path | None, typer.Option(help="CSV or Parquet with a column of ids, for --where")] = None,
    where: Annotated[str | None, typer.Option(help='only scans whose row meets this, such as "age > 60"')] = None,
    table_id: Annotated[str, typer.Option(help="the table's column of ids")] = "id",
    how: Annotated[
        Literal["auto", "exact", "hnsw"], typer.Option("--search", help="auto: exact up to a million vectors")
    ] = "auto",
    fuse_k: Annotated[float, typer.Option(help="constant of reciprocal rank fusion")] = 60.0,
    html: Annotated[
        Path | None,
        typer.Option(
            help="a page with pictures, read again by the folder's private list; as confidential as the scans"
        ),
    ] = None,
    device: Device = "auto",
    model: Annotated[
        list[str] | None,
        typer.Option(help="the model that made the index, where the query is a scan of its own; one an index"),
    ] = None,
    weights: Weights = None,
    seed: Seed = 0,
) -> None:
    """The scans most similar to the query, by cosine."""
    from ctfoundry.errors import UsageError
    from ctfoundry.retrieval import approximate, filters, fusion
    from ctfoundry.retrieval.embed import load_index
    from ctfoundry.retrieval.sources import query_in_index

    if (table is None) != (where is None):
        raise UsageError("--where needs --table, and the other way round")
    chosen = filters.where(table, where, id=table_id) if table is not None and where is not None else None
    vectors, models = _each(vector, len(index), "--vector"), _each(model, len(index), "--model")
    rankings: list[list[Neighbour]] = []
    described = []
    held: list[set[str]] = []
    deep = k if len(index) == 1 else max(10 * k, 100)
    for folder, name, own in zip(index, vectors, models, strict=True):
        opened = load_index(folder, name)
        if chosen is not None and table is not None and (differ := chosen.of(opened.ids, table)):
            say(f"{folder.name}: {differ}")
        asked, without = query_in_index(folder, opened, query, own, weights, device, seed)
        graph = folder / f"graph-{opened.vector.replace(':', '-')}.hnsw"
        searched = approximate.chosen(opened, how, graph, say=say)
        rankings.append(searched.nearest(asked, deep, without=without, within=None if chosen is None else chosen.ids))
        described.append(searched.described())
        held.append(set(opened.ids))
        say(f"{folder.name}: {searched.described()}")
    if len(index) == 1:
        rows = [_row(n) for n in rankings[0]]
        columns: tuple[str, ...] = ("id", "similarity")
    else:
        every, common = set[str]().union(*held), held[0].intersection(*held)
        if alone := len(every - common):
            described.append(f"{alone} of {len(every)} scans are not in every index: what an index lacks ranks lower")
            say(described[-1])
        fused = fusion.fuse([[n.id for n in ranking] for ranking in rankings], k=fuse_k)[:k]
        each = [{n.id: n.similarity for n in ranking} for ranking in rankings]
        rows = [{"id": id, "score": score, "similarities": [own.get(id) for own in each]} for id, score in fused]
        columns = ("id", "score", "similarities")
    if not rows:
        say("no scan meets the condition" if where is not None else "no other scan is in the index")
    if rows and rows[0].get("centre") is not None:
        columns += ("centre",)
    show(
        {"neighbours": rows, "search": described},
        lambda: (
            print_table(("rank", *columns), [(i, *(_text(r[c]) for c in columns)) for i, r in enumerate(rows, 1)])
            if rows
            else None
        ),
    )
    if html is not None:  # after the answer, which a query that cannot be read again must not lose
        _write_page(html, index, query, without, rows, "; ".join(described))


def _write_page(
    html: Path, index: list[Path], query: str, own: list[str], rows: list[dict[str, Any]], how: str
) -> None:
    """The query and what was found, with pictures of the scans that are still where the first folder says."""
    from ctfoundry.report import page
    from ctfoundry.retrieval.pages import SHOWN, retrieve_page
    from ctfoundry.retrieval.sources import in_folder, resolve

    shown = rows[:SHOWN]
    asked = next(in_folder(index[0], own))[1] if query in own else resolve([query]).one(query).read()

    def facts(row: dict[str, Any]) -> dict[str, str]:
        return {
            c: f"{row[c]:.3f}" if isinstance(row[c], float) else str(_text(row[c]))
            for c in ("similarity", "score", "similarities", "centre")
            if row.get(c) is not None
        }

    scans = in_folder(index[0], [row["id"] for row in shown])  # one by one: forty of them take gigabytes
    found = ((id, facts(row), scan, row.get("centre")) for row, (id, scan) in zip(shown, scans, strict=True))
    some = f"; pictures of the first {SHOWN} of {len(rows)}" if len(rows) > SHOWN else ""
    page.write(html, retrieve_page((own[0], asked), found, how + some))
    say(f"wrote {html}")


embeddings_app = typer.Typer(help="Folders of embeddings.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(embeddings_app, name="embeddings")


@verb(embeddings_app, "show")
def show_(out: Folder) -> None:
    """What a folder holds: model, settings, scans, vectors."""
    from ctfoundry.retrieval import parts
    from ctfoundry.retrieval.cards import read_card

    card = read_card(out)
    counts: dict[str, int] = {}
    for row in parts.rows(out):
        counts[row["vector"]] = counts.get(row["vector"], 0) + 1
    scans = len(parts.catalogue(out).scans())
    files = parts.names(out)
    data = {
        "model": card["model"]["name"],
        "settings": card["settings"],
        "scans": scans,
        "vectors": counts,
        "parts": len(files),
        "bytes": sum(files.values()),
        "maps": _maps(out),
    }

    def table() -> None:
        print(f"{scans} scans by {card['model']['name']}, {len(files)} parts, {sum(files.values()) / 2**20:.1f} MiB")
        if counts:
            print_table(("vector", "rows"), sorted(counts.items()))
        if data["maps"]:
            print(_of_maps(data["maps"]))

    show(data, table)


@verb(embeddings_app, "remove")
def remove_(
    out: Folder,
    ids: Annotated[list[str], typer.Argument(help="ids of scans")],
    compact: Annotated[bool, typer.Option("--compact", help="take their vectors off the disk too")] = False,
) -> None:
    """Take scans out; they are not found any more, until they are embedded again."""
    from ctfoundry.retrieval import folders

    gone = folders.remove(out, ids)
    freed = folders.compact(out) if compact else 0
    show({"removed": gone, "freed_bytes": freed}, lambda: print(f"{len(gone)} scans taken out"))


@verb(embeddings_app, "merge")
def merge_(
    sources: Annotated[list[Path], typer.Argument(help="folders, then the one to put them into", metavar="SRC... OUT")],
) -> None:
    """Put folders of the same model and settings together."""
    from ctfoundry.errors import UsageError
    from ctfoundry.retrieval import folders

    if len(sources) < 2:
        raise UsageError("give at least one source and the folder to put it into", do="embeddings merge SRC... OUT")
    counts = folders.merge(sources[-1], sources[:-1])
    show({"merged": list(counts.values())}, lambda: print_table(("scans", "from"), [(n, s) for s, n in counts.items()]))


@verb(embeddings_app, "export")
def export_(
    out: Folder, kind: Annotated[Kind, typer.Argument(help="csv, parquet or npy")], names: Names = False
) -> None:
    """Tables of all vectors in OUT/tables; they join to clinical tables by id."""
    from ctfoundry.retrieval import folders

    written = folders.export(out, kind, names=names)
    show({"tables": [place.name for place in written]}, lambda: print(*written, sep="\n"))


@verb(embeddings_app, "compact")
def compact_(out: Folder) -> None:
    """Take vectors that do not count any more off the disk."""
    from ctfoundry.retrieval import folders

    freed = folders.compact(out)
    show({"freed_bytes": freed}, lambda: print(f"{freed / 2**20:.1f} MiB freed"))


def _maps(out: Path, ids: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Which maps a folder stores and what they take, of all scans or of some; None where it stores none."""
    from ctfoundry.retrieval import cards
    from ctfoundry.retrieval import grids as stored

    held = cards.held_levels(cards.read_card(out))
    count, size = stored.size(out, ids)
    return {"levels": list(held), "scans": count, "bytes": size} if held else None


def _of_maps(maps: dict[str, Any]) -> str:
    scans, mib = maps["scans"], maps["bytes"] / 2**20
    return f"maps of {', '.join(maps['levels'])}: {mib / max(scans, 1):.2f} MiB a scan, {mib:,.1f} MiB of {scans} scans"


def _executor(name: str, address: str | None, workers: int | None) -> Any:
    from ctfoundry.errors import UsageError

    if name == "ray":
        from ctfoundry.ingest.cluster import Cluster

        return Cluster(address, workers)
    if address is not None:
        raise UsageError("belongs to --executor ray", where="--address")
    if workers is None:
        return None
    from ctfoundry.ingest import Local

    return Local(workers)


def _series(cohort: Path | None) -> set[str] | None:
    if cohort is None:
        return None
    from ctfoundry.archive import read_cohort

    return {str(row["series_uid"]) for row in read_cohort(cohort).rows()}


def _progress(total: int) -> Any:
    """Called with each id that is over: now and then a line with the rate and the time left."""
    import time

    from ctfoundry.ingest.workers import pace

    state = {"done": 0, "said": 0.0}
    started = time.monotonic()

    def step(id: str) -> None:
        state["done"] += 1
        now = time.monotonic()
        if now - state["said"] >= 2 or state["done"] == total:
            state["said"] = now
            how = pace(int(state["done"]), total, now - started)
            say(f"{state['done']:.0f} of {total} scans, {how} ({id})")

    return step


def _each(given: Sequence[str] | None, count: int, option: str) -> list[str | None]:
    from ctfoundry.errors import UsageError

    if not given:
        return [None] * count
    if len(given) not in (1, count):
        raise UsageError(f"give {option} once, or once for each --index")
    return [*given] * (count if len(given) == 1 else 1)


def _row(found: Neighbour) -> dict[str, Any]:
    row: dict[str, Any] = {"id": found.id, "similarity": found.similarity}
    if found.centre is not None:
        row |= {"centre": list(found.centre), "box": None if found.box is None else list(found.box)}
    return row


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join("" if v is None else f"{v:.4g}" for v in value)
    return value
