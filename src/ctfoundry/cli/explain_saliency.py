"""``ctfoundry explain saliency``: which parts of a scan its vector rests on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ctfoundry.cli.common import Device, Seed, finish, print_table, say, show, state, verb
from ctfoundry.cli.explain import explain_app


@verb(explain_app, "saliency")
def explain_saliency(
    scans: Annotated[list[str], typer.Argument(help="scans")],
    model: Annotated[str, typer.Option(help="name of the zoo, run folder or .safetensors")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for maps, pictures, page and numbers")],
    weights: Annotated[str | None, typer.Option(help="for a name of the zoo: a .safetensors file, or 'random'")] = None,
    size: Annotated[str, typer.Option(help="of a box, DxHxW in voxels of the prepared scan")] = "8x8x8",
    stride: Annotated[str | None, typer.Option(help="between boxes, DxHxW (default: their size)")] = None,
    fill: Annotated[str, typer.Option(help="what hides a box: air, mean, blurred or noise")] = "air",
    mode: Annotated[str, typer.Option(help="fast, or exact: one pass a box")] = "fast",
    reach: Annotated[
        int,
        typer.Option(help="of the fast mode of SegResNets: convolutions of a stage that are followed; -1: all, exact"),
    ] = 2,
    checked: Annotated[int, typer.Option(help="boxes of the fast mode computed exactly as well", min=0)] = 12,
    roi: Annotated[Path | None, typer.Option(help="label map on the scan's grid: watch one region's vector")] = None,
    label: Annotated[str | None, typer.Option(help="name or number of the region in --roi")] = None,
    point: Annotated[str | None, typer.Option(help="x,y,z mm RAS+: watch the features there")] = None,
    to: Annotated[str | None, typer.Option(help="another scan: watch the similarity to it")] = None,
    to_point: Annotated[str | None, typer.Option(help="x,y,z mm RAS+ in --to (default: its vector)")] = None,
    random: Annotated[bool, typer.Option(help="the map of random weights beside (twice the time)")] = True,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """How far hiding each box of a scan turns its vector: a map on the scan's grid (NIfTI), pictures, a page, numbers."""
    from PIL import Image

    import ctfoundry
    from ctfoundry import files, io, zoo
    from ctfoundry.adapt.probe import random_twin
    from ctfoundry.cli.search import triple
    from ctfoundry.encoder import Encoder
    from ctfoundry.errors import CTFoundryError, UsageError
    from ctfoundry.explain import saliency_page
    from ctfoundry.explain.saliency import VERSION, Ledger, Saliency, Settings, measure
    from ctfoundry.explain.saliency_target import target_of
    from ctfoundry.record import Record
    from ctfoundry.report import page
    from ctfoundry.report.text import rate
    from ctfoundry.retrieval.sources import resolve
    from ctfoundry.settings import to_data
    from ctfoundry.train.progress import Progress
    from ctfoundry.volume import Volume

    limit = None if reach < 0 else reach
    settings = Settings(triple(size), triple(stride or size), cast(Any, fill), cast(Any, mode), limit, checked, seed)
    if roi is not None and point is not None:
        raise UsageError("a map is of one region or of one point", do="give --roi or --point")
    if (label and roi is None) or (to_point and to is None):
        raise UsageError("--label is of --roi, and --to-point of --to")
    encoder = zoo.load_encoder(model, weights=weights, device=device, seed=seed)
    twin = random_twin(encoder, seed + 1) if random and encoder.card.weights == "trained" else None
    record = Record(
        ["explain", "saliency", "--model", encoder.card.name, "--mode", mode], {"seed": seed}, str(encoder.device)
    )
    found = resolve(scans)
    labels = None if roi is None else io.read(roi, kind="label")
    place = None if point is None else _point(point)
    other = None if to is None else resolve([to]).one(to).read()
    aim = {"point": point, "to_point": to_point, "label": label, "roi": roi and files.sha256(roi)}
    aim["to"] = None if to is None else resolve([to]).one(to).digest

    def one(used: Encoder, volume: Volume, digest: str, part: Path, title: str) -> tuple[Saliency, Any, str]:
        prepared = used.prepare(volume)
        reference = None
        if other is not None:
            features = used(other)
            reference = features.vector if to_point is None else features.grid.sample([_point(to_point)])[0]
        target = target_of(used, prepared, roi=labels, label=label, point=place, reference=reference)
        ledger = Ledger.at(part, files.digest([VERSION, digest, to_data(used.card), to_data(settings), aim]))
        began = time.time()
        with Progress(title, quiet=state.quiet, unit="box") as bar:
            told = [0.0]

            def tell(done: int, count: int) -> None:
                took = max(time.time() - began, 1e-6)
                bar.step(done, done / count, took)
                if took - told[0] > 10:
                    told[0] = took
                    bar.log(done, done / count, took, f"{rate(done / took)} boxes/s")

            return measure(used, prepared, target, settings, ledger=ledger, progress=tell), prepared, target.name

    rows, written, results = [], [], {}
    failed = dict(found.failed)
    for scan in found.scans:
        id = scan.scan.id
        parts = [out / f".{id}{name}.part.npz" for name in ("", "-random")]
        try:
            volume = scan.scan.read()
            own, prepared, name = one(encoder, volume, scan.scan.digest, parts[0], id)
            beside = None if twin is None else one(twin, volume, scan.scan.digest, parts[1], f"{id}, random weights")[0]
        except CTFoundryError as error:
            failed[id] = error.what
            continue
        numbers = saliency_page.summary(own, beside, prepared, settings)
        at = saliency_page.peak(own, prepared, settings)
        picture = saliency_page.picture(volume, prepared, own, at)
        pale = None if beside is None else saliency_page.picture(volume, prepared, beside, at)
        io.write(prepared.restore(own.map), out / f"{id}.nii.gz")
        for file, image in ((f"{id}.png", picture), (f"{id}-random.png", pale)):
            if image is not None:
                with files.whole(out / file) as part:
                    Image.fromarray(image).save(part, "PNG")
                written.append(file)
        written.append(f"{id}.nii.gz")
        rows.append((id, name, numbers, picture, pale))
        results[id] = numbers | {"target": name}
        say(f"{id}: {numbers['method']}, {numbers['seconds']:.0f} s")
        for doubted in numbers["doubts"]:
            say(f"warning: {id}: {doubted}")
    if rows:
        data = {"model": encoder.card.name, "settings": to_data(settings), "scans": results}
        files.write_json(out / "saliency.json", data)
        footer = f"Made by ctfoundry {ctfoundry.__version__} explain saliency."
        page.write(out / "saliency.html", saliency_page.make_page(rows, settings, encoder.card.name, footer))
        record.inputs = {s.scan.id: s.scan.digest for s in found.scans}
        record.results = results
        record.write(out, [*written, "saliency.json", "saliency.html"])
        for id in results:  # what a killed run would have continued from
            for path in (out / f".{id}.part.npz", out / f".{id}-random.part.npz"):
                path.unlink(missing_ok=True)
    columns = ("scan", "target", "boxes", "seconds", "largest", "like random weights", "like input")
    show(
        {"scans": results, "failed": failed},
        lambda: print_table(columns, [_row(id, r) for id, r in results.items()]),
    )
    finish(failed, len(rows), found.paths)


def _row(id: str, r: dict[str, Any]) -> list[Any]:
    rank = r["rank_correlation"]
    return [id, r["target"], r["boxes"], r["seconds"], r["largest"], rank["random_weights"], rank["input_change"]]


def _point(text: str) -> tuple[float, float, float]:
    from ctfoundry.errors import UsageError

    try:
        x, y, z = (float(v) for v in text.split(","))
    except ValueError as error:
        raise UsageError(f"a point is x,y,z in millimetres, not {text!r}") from error
    return x, y, z
