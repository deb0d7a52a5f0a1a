"""``ctfoundry search``: the same place in other scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctfoundry.cli.common import Device, Seed, finish, print_table, say, show, verb

if TYPE_CHECKING:
    from ctfoundry.report.page import Card
    from ctfoundry.retrieval.embed import Scan
    from ctfoundry.retrieval.search_maps import Scene

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
    index: Annotated[
        Path | None, typer.Option(help="folder of embed --grids: its maps in place of passes, for the same answers")
    ] = None,
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
    from ctfoundry.retrieval import grids, pages, search_confidence
    from ctfoundry.retrieval.embed import ModelOf
    from ctfoundry.retrieval.search import Seen, how_to_look
    from ctfoundry.retrieval.search_maps import grid_looking, grid_scene, scene
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
    named = levels.split(",") if levels else None
    if index is None:
        looking = how_to_look(
            encoder,
            method=method,
            window=triple(window),
            levels=named,
            overlap=overlap,
            shifts=triple(shifts),
            whiten=not plain,
            extent=Extent("windows", triple(within), 0.25) if within else None,
        )
    elif method == "dense" and shifts == "1x1x1" and within is None:
        looking = grid_looking(index, encoder, named, whiten=not plain)
    else:
        raise UsageError(
            "the maps of --index are of one pass over each scan",
            do="leave --method, --shifts and --within out, or --index",
        )
    source = resolve([query]).one(query)
    targets = resolve(target)
    beside = search_confidence.place_of(model)
    calibration = search_confidence.load(beside, encoder.card, looking)
    if calibration is None:
        stale = beside is not None and beside.is_file()
        why = f" ({beside.name} was made for other weights or another way to look)" if stale and beside else ""
        say(f"uncalibrated{why}: similarity is no probability (`ctfoundry evaluate search --calibrate` makes it one)")
    without_map: dict[str, str] = {}

    def stored(scan: Scan) -> Scene | None:
        """What the index knows of a scan; None where the scan itself has to be looked at."""
        if index is None:
            return None
        why = grids.lacking(index, scan.id, looking.levels, scan.digest)
        if why:
            without_map[scan.id] = why
            return None
        return grid_scene(index, scan.id, encoder, looking)

    seen = Seen.of(encoder, a_scan(source, query), looking, seen=stored(source), calibration=calibration)
    sought = seen.query(place, None if corners is None else (corners[:3], corners[3:]))
    record.inputs = {scan.id: scan.digest for scan in (source, *(found.scan for found in targets.scans))}
    hits: list[dict[str, Any]] = []
    cards: list[tuple[float, Card]] = []
    written: list[str] = []
    failed = dict(targets.failed)
    for number, found in enumerate(targets.scans, 1):
        try:
            there = stored(found.scan)
            volume = found.scan.read() if there is None or out is not None else None
            if there is None:
                assert volume is not None
                there = scene(encoder, volume, looking)
            hit = sought.find_in(
                there, places=places, grid=volume.grid if volume is not None and out is not None else None
            )
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
    if without_map:
        say(f"{len(without_map)} passed through the network instead: {next(iter(without_map.values()))}")
    if out is not None:
        asked = (source.id, seen.volume, sought.point, "the middle of the box" if point is None else "the point")
        made = pages.search_page(asked, cards, len(hits), encoder.card.name, calibrated=calibration is not None)
        page.write(out / "search.html", made)
        record.results = {"hits": hits, "calibrated": calibration is not None}
        record.write(out, [*written, "search.html"])
    columns = ("target", "place", "x", "y", "z", "similarity", "confidence")
    show(
        {"hits": hits, "failed": failed, "calibrated": calibration is not None, "without_map": without_map},
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
