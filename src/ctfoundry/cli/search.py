"""``ctfoundry search``: the same place in other scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctfoundry.cli.common import Device, Seed, finish, print_table, say, show, verb
from ctfoundry.cli.evaluate import evaluate_app

if TYPE_CHECKING:
    from ctfoundry.encoder import Encoder
    from ctfoundry.report.page import Card
    from ctfoundry.retrieval.search_maps import Looking

Model = Annotated[str, typer.Option(help="name of the zoo, run folder or .safetensors")]
Weights = Annotated[str | None, typer.Option(help="for a name of the zoo: a .safetensors file, or 'random'")]
Patch = Annotated[str | None, typer.Option(help="patch size of a ViT: one number, or one an axis as DxHxW")]
Method = Annotated[str, typer.Option(help="dense (one pass a scan) or windows (each window alone)")]
Window = Annotated[str, typer.Option(help="for windows: DxHxW in prepared voxels")]
Overlap = Annotated[float, typer.Option(help="for windows: share by which they overlap")]
Levels = Annotated[str | None, typer.Option(help="for dense: levels, finest first, such as stage3,stage4")]
Shifts = Annotated[str, typer.Option(help="for dense: passes along each axis, DxHxW: a finer grid")]
Plain = Annotated[bool, typer.Option("--plain", help="features as they are, not whitened by the query's scan")]
Scans = Annotated[
    list[str], typer.Argument(help="files, DICOM folders, FOLDER#SeriesInstanceUID, STORE#ID, or folders of scans")
]


@verb()
def search(
    query: Annotated[str, typer.Option(help="the scan that holds the point")],
    target: Annotated[list[str], typer.Option(help="scans to search; may be repeated")],
    model: Model,
    point: Annotated[str | None, typer.Option(help="x,y,z in world millimetres, RAS+")] = None,
    box: Annotated[str | None, typer.Option(help="x,y,z,x,y,z: two opposite corners, in place of a point")] = None,
    weights: Weights = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="folder for search.html and heat maps (NIfTI)")
    ] = None,
    places: Annotated[int, typer.Option(help="how many places in each target", min=1)] = 1,
    method: Method = "dense",
    window: Window = "16x64x64",
    overlap: Overlap = 0.625,
    levels: Levels = None,
    shifts: Shifts = "1x1x1",
    plain: Plain = False,
    within: Annotated[
        str | None, typer.Option(help="for dense: DxHxW voxels a pass, for scans too large for one pass")
    ] = None,
    index: Annotated[Path | None, typer.Option(help="folder of embed --grids: its maps in place of passes")] = None,
    patch: Patch = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """The same place in other scans: best places, similarity, confidence, and a heat map for each target."""
    from ctfoundry import io
    from ctfoundry.errors import CTFoundryError, UsageError
    from ctfoundry.infer.passes import Extent
    from ctfoundry.record import Record
    from ctfoundry.report import page
    from ctfoundry.retrieval import pages, search_confidence
    from ctfoundry.retrieval.embed import ModelOf
    from ctfoundry.retrieval.search import Seen, how_to_look
    from ctfoundry.retrieval.search_maps import grid_looking, grid_scene
    from ctfoundry.retrieval.sources import a_scan, resolve

    if (point is None) is (box is None):
        raise UsageError("a search starts from a --point or a --box")
    encoder = ModelOf(model, weights, device, seed, patch_size(patch)).load()
    started = ["--point", point] if box is None else ["--box", box]
    record = Record(
        ["search", "--model", encoder.card.name, *(str(v) for v in started), "--method", method],
        {"seed": seed},
        str(encoder.device),
    )
    place = None if point is None else _numbers(point, 3)
    corners = None if box is None else _numbers(box, 6)
    if index is None:
        looking = how_to_look(
            encoder,
            method=method,
            window=triple(window),
            levels=levels.split(",") if levels else None,
            overlap=overlap,
            shifts=triple(shifts),
            whiten=not plain,
            extent=Extent("windows", triple(within), 0.25) if within else None,
        )
    elif method == "dense" and levels is None and shifts == "1x1x1" and within is None:
        looking = grid_looking(index, encoder, whiten=not plain)
    else:
        raise UsageError("--index takes its maps as they are", do="leave --method, --levels, --shifts and --within out")
    source = resolve([query]).one(query)
    targets = resolve(target)
    beside = search_confidence.place_of(model)
    calibration = search_confidence.load(beside, encoder.card, looking)
    if calibration is None:
        stale = beside is not None and beside.is_file()
        why = f" ({beside.name} was made for other weights or another way to look)" if stale and beside else ""
        say(f"uncalibrated{why}: similarity is no probability (`ctfoundry evaluate search --calibrate` makes it one)")
    seen = Seen.of(
        encoder,
        a_scan(source, query),
        looking,
        seen=None if index is None else grid_scene(index, source.id, encoder),
        calibration=calibration,
    )
    sought = seen.query(place, None if corners is None else (corners[:3], corners[3:]))
    record.inputs = {scan.id: scan.digest for scan in (source, *(found.scan for found in targets.scans))}
    hits: list[dict[str, Any]] = []
    cards: list[tuple[float, Card]] = []
    written: list[str] = []
    failed = dict(targets.failed)
    for number, found in enumerate(targets.scans, 1):
        try:
            volume = found.scan.read() if index is None or out is not None else None
            if index is None:
                assert volume is not None
                hit = sought.find(volume, places=places, heatmap=out is not None)
            else:
                there = grid_scene(index, found.scan.id, encoder)
                hit = sought.find_in(there, places=places, grid=None if volume is None else volume.grid)
        except CTFoundryError as error:
            failed[found.scan.id] = error.what
            continue
        hits.append(
            {
                "target": found.scan.id,
                "point": list(hit.point),
                "similarity": hit.similarity,
                "confidence": hit.confidence,
                "present": hit.present,
                "places": [{"point": list(p.point), "similarity": p.similarity} for p in hit.places],
            }
        )
        if out is not None and volume is not None and hit.heatmap is not None:
            written.append(f"{found.scan.id}.nii.gz")
            io.write(hit.heatmap, out / written[-1])
            cards = pages.best([*cards, (hit.similarity, pages.hit_card(found.scan.id, volume, hit))])
        say(f"searched {number} of {len(targets.scans)}: {found.scan.id}")
    if out is not None:
        asked = (source.id, seen.volume, sought.point, "the middle of the box" if point is None else "the point")
        made = pages.search_page(asked, cards, len(hits), encoder.card.name, calibrated=calibration is not None)
        page.write(out / "search.html", made)
        record.results = {"hits": hits, "calibrated": calibration is not None}
        record.write(out, [*written, "search.html"])
    columns = ("target", "place", "x", "y", "z", "similarity", "confidence")
    show(
        {"hits": hits, "failed": failed, "calibrated": calibration is not None},
        lambda: print_table(columns, _rows(hits)) if hits else None,
    )
    finish(failed, len(hits), targets.paths)


def _rows(hits: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    rows = []
    for hit in hits:
        said = "uncalibrated" if hit["confidence"] is None else f"{hit['confidence']:.2f}"
        said += "" if hit["present"] in (None, True) else ", not in this scan"
        for rank, place in enumerate(hit["places"], 1):
            at = (f"{v:.1f}" for v in place["point"])
            rows.append((hit["target"], rank, *at, place["similarity"], said if rank == 1 else ""))
    return rows


@verb(evaluate_app, "search")
def evaluate_search(
    model: Annotated[str, typer.Argument(help="name of the zoo, run folder or .safetensors")],
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="folder for search.json and report.html")] = None,
    data: Annotated[Path | None, typer.Option(help="labelled scans: one folder a scan; default: phantoms")] = None,
    phantoms: Annotated[int, typer.Option(help="phantoms to make", min=2)] = 16,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="fit confidence on these scans and store it beside the model")
    ] = False,
    structure: Annotated[list[str] | None, typer.Option(help="only these; may be repeated")] = None,
    protocol: Annotated[str, typer.Option(help="ct-fm: as published (fixed source, heart, windows at 1 mm)")] = "",
    method: Method = "dense",
    window: Window = "16x64x64",
    overlap: Overlap = 0.625,
    levels: Levels = None,
    shifts: Shifts = "1x1x1",
    plain: Plain = False,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            help="another way to look, measured beside: windows=DxHxW, plain, shifts=DxHxW ... with commas; repeatable"
        ),
    ] = None,
    patch: Patch = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """How far a search's answers lie from the truth, beside random weights, HU, position and the best possible cell."""
    from ctfoundry.adapt.probe import random_twin
    from ctfoundry.errors import UsageError
    from ctfoundry.evaluate import search as measured
    from ctfoundry.evaluate.search_report import report, tables
    from ctfoundry.record import Record
    from ctfoundry.retrieval import search_confidence
    from ctfoundry.retrieval.embed import ModelOf
    from ctfoundry.retrieval.search import how_to_look

    if protocol not in ("", "ct-fm"):
        raise UsageError(f"no protocol is called {protocol!r}; known: ct-fm")
    if protocol and (calibrate or structure or beside):
        raise UsageError("the published protocol has its own structure and way to look, and no calibration")
    place = search_confidence.place_of(model)
    if calibrate and place is None:
        raise UsageError(
            "a calibration stands beside a model's file", where=model, do="give a run folder or a .safetensors"
        )
    if out is not None and place is not None and (out / "search.json").resolve() == place.resolve():
        raise UsageError("the calibration stands there as search.json", where=out, do="give another folder as --out")
    encoder = ModelOf(model, weights, device, seed, patch_size(patch)).load()
    random = random_twin(encoder, seed) if encoder.card.weights == "trained" else None
    record = Record(
        ["evaluate", "search", encoder.card.name, *([protocol] if protocol else [])],
        {"seed": seed},
        str(encoder.device),
    )
    looking = how_to_look(
        encoder,
        method=method,
        window=triple(window),
        levels=levels.split(",") if levels else None,
        overlap=overlap,
        shifts=triple(shifts),
        whiten=not plain,
    )
    cases = measured.labelled_cases(data) if data else measured.phantom_cases(phantoms, seed, say=say)
    made_from = {"data": "labelled scans" if data else "phantoms", "scans": len(cases), "seed": seed}
    if protocol:
        result = measured.published(encoder, random, cases, say=say)
    else:
        others = {text: _otherwise(text, looking, encoder) for text in beside or ()}
        methods = measured.ways(encoder, random, looking, others)
        if calibrate:  # nothing is compared, and the old calibration does not matter
            methods = {name: methods[name] for name in list(methods)[:1]}
        old = None if calibrate else search_confidence.load(place, encoder.card, looking)
        result = measured.measure(
            methods, cases, structure or (), seed=seed, calibration=old, made_from=made_from, say=say
        )
    if calibrate:
        assert place is not None
        search_confidence.save(measured.calibration_of(result, encoder.card, looking, made_from), place)
        say(f"calibrated on {len(cases)} scans; measure it on others: another --seed")
    if out is not None:
        files = report(result, cases, out)
        record.results = result.data()
        record.write(out, files)

    def shown() -> None:
        for table in tables(result):
            print_table(table.headers, table.rows, table.caption)

    show(result.data(), shown)


def _otherwise(text: str, first: Looking, encoder: Encoder) -> Looking:
    """The first way to look with the changes of `text`, such as ``windows=8x32x32,plain``."""
    from dataclasses import replace

    from ctfoundry.errors import UsageError
    from ctfoundry.retrieval.search_maps import default_levels

    looking = first
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name in ("plain", "whitened") and not value:
            looking = replace(looking, whiten=name == "whitened")
        elif name == "windows":
            looking = replace(looking, window=triple(value), levels=(), shifts=(1, 1, 1))
        elif name == "dense" and not value:
            looking = replace(looking, window=None, levels=default_levels(encoder))
        elif name == "levels":
            looking = replace(looking, window=None, levels=tuple(encoder.level(n).name for n in value.split("+")))
        elif name == "shifts":
            if looking.window is not None:
                raise UsageError("windows have no shifts", where="--beside", do="give dense,shifts=DxHxW, or --overlap")
            looking = replace(looking, shifts=triple(value))
        else:
            raise UsageError(
                f"{part!r} is no way to look",
                where="--beside",
                do="give windows=DxHxW, dense, levels=A+B, shifts=DxHxW, plain or whitened, with commas between",
            )
    return looking


def triple(text: str) -> tuple[int, int, int]:
    """A size from ``DxHxW``."""
    from ctfoundry.errors import UsageError

    parts = text.split("x")
    if len(parts) != 3 or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise UsageError(f"{text!r} is not of the form DxHxW with whole numbers")
    return int(parts[0]), int(parts[1]), int(parts[2])


def patch_size(text: str | None) -> tuple[int, ...] | None:
    """What ``--patch`` says: one number, or one an axis. Whether the model has a patch to choose, `ModelOf.load` finds out."""
    from ctfoundry.errors import UsageError

    parts = [] if text is None else text.split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{text!r} is no patch size", where="--patch", do="give one number, or one an axis as DxHxW")
    return tuple(map(int, parts)) or None


def _numbers(text: str, count: int) -> tuple[float, ...]:
    from ctfoundry.errors import UsageError

    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != count:
        form = "x,y,z" if count == 3 else "x,y,z,x,y,z"
        raise UsageError(
            f"{text!r} is not a {'point' if count == 3 else 'box'}", do=f"give {form} in world millimetres, RAS+"
        )
    return found
