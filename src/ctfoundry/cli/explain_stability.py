"""``ctfoundry explain stability``: how much an embedding changes when a patient is scanned again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ctfoundry.cli.common import Device, Seed, finish, print_table, say, show, verb
from ctfoundry.cli.explain import explain_app


@verb(explain_app, "stability")
def explain_stability(
    model: Annotated[str, typer.Option(help="name of the zoo, run folder or .safetensors")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for page, pictures and numbers")],
    scans: Annotated[
        list[str] | None, typer.Argument(help="scans, two by two of one patient: FIRST SECOND FIRST SECOND ...")
    ] = None,
    phantoms: Annotated[int, typer.Option(help="in place of scans: so many phantom patients", min=0)] = 0,
    weights: Annotated[str | None, typer.Option(help="for a name of the zoo: a .safetensors file, or 'random'")] = None,
    window: Annotated[str, typer.Option(help="of a window, DxHxW in voxels of the prepared scan")] = "8x32x32",
    count: Annotated[int, typer.Option(help="places compared in a pair, at most", min=4)] = 40,
    voxel: Annotated[float, typer.Option(help="of phantoms, mm")] = 3.0,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Windows and cells at corresponding places of two scans of a patient, beside other places, other patients, random weights and HU."""
    import numpy as np
    from PIL import Image

    import ctfoundry
    from ctfoundry import files, geometry, zoo
    from ctfoundry.adapt.probe import random_twin
    from ctfoundry.cli.search import triple
    from ctfoundry.errors import CTFoundryError, UsageError
    from ctfoundry.explain import stability, stability_page
    from ctfoundry.explain.stability import ByEncoder, ByHu, Others
    from ctfoundry.explain.stability_pairs import Pair, measure_pair, phantom_pairs
    from ctfoundry.keys import Key
    from ctfoundry.record import Record
    from ctfoundry.report import page
    from ctfoundry.retrieval.sources import resolve
    from ctfoundry.settings import to_data
    from ctfoundry.volume import Volume

    if bool(scans) is bool(phantoms):
        raise UsageError("stability is of scans, two by two, or of --phantoms N")
    encoder = zoo.load_encoder(model, weights=weights, device=device, seed=seed)
    size = triple(window)
    record = Record(["explain", "stability", "--model", encoder.card.name], {"seed": seed}, str(encoder.device))
    if phantoms:
        pairs = phantom_pairs(phantoms, seed=seed, voxel_mm=voxel)
        identity = f"phantoms {seed} {voxel:g}"
    else:
        found = [resolve([text]).one(text) for text in scans or ()]
        if len(found) % 2:
            raise UsageError(
                f"{len(found)} scans are no pairs", do="name two scans of each patient, one after the other"
            )
        if twice := sorted({scan.id for scan in found if sum(other.id == scan.id for other in found) > 1}):
            raise UsageError(
                f"names the same content twice: {', '.join(twice)}",
                do="each pair is two different scans of one patient, and counts as a patient",
            )
        pairs = [
            Pair(f"P{n + 1:02d}-second", f"P{n + 1:02d}", "second scan", a.read, b.read)
            for n, (a, b) in enumerate(zip(found[::2], found[1::2], strict=True))
        ]
        record.inputs = {scan.id: scan.digest for scan in found}
        identity = files.digest([scan.digest for scan in found])
    twin = random_twin(encoder, seed + 1) if encoder.card.weights == "trained" else None
    names = [
        "trained" if twin is not None else "random weights",
        *(["random weights"] if twin is not None else []),
        "HU",
    ]
    stride = encoder.level(encoder.card.level).stride
    settings = files.digest([identity, to_data(encoder.card), size, count, seed])

    def describe(volume: Volume) -> dict[str, Any]:
        made: dict[str, Any] = {names[0]: ByEncoder(encoder, volume, size)}
        if twin is not None:
            made[names[1]] = ByEncoder(twin, volume, size)
        spacing = geometry.spacing(made[names[0]].prepared.affine)
        boxes = [[n * s for n, s in zip(k, spacing, strict=True)] for k in (size, stride)]
        return made | {"HU": ByHu(volume, *boxes)}

    # the first scan of every patient, before any pair: so that each pair meets the same other patients
    others, failed = Others(), {}
    todo = [p for p in pairs if not _done(out, p.name, settings)]
    if todo:
        for patient in dict.fromkeys(p.patient for p in pairs):
            first = next(p for p in pairs if p.patient == patient)
            try:
                volume = first.fixed()
                points = stability.body_points(volume, 32.0, count, Key.of("stability", "points", seed))
                for name, seen in describe(volume).items():
                    for kind in stability.KINDS:
                        rows, inside = getattr(seen, kind)(points)
                        others.add(name, kind, patient, rows[inside])
            except CTFoundryError as error:
                failed.update({p.name: error.what for p in todo if p.patient == patient})
                say(f"{patient}: {error.what}")
                continue
            say(f"{patient}: first scan embedded")
    fixed: tuple[str, Volume, dict[str, Any]] | None = None
    for number, pair in enumerate(todo, 1):
        if pair.name in failed:
            continue
        try:
            if fixed is None or fixed[0] != pair.patient:
                volume = pair.fixed()
                fixed = (pair.patient, volume, describe(volume))
            moving = pair.moving()
            seen = describe(moving)
            made = measure_pair(
                pair, fixed[1], moving, {n: _given(seen[n]) for n in names}, others,
                apart_mm=float(np.max(np.array(size) * _spacing(fixed[2][names[0]]))),
                count=count, seed=seed, known=fixed[2],
            )  # fmt: skip
        except CTFoundryError as error:
            failed[pair.name] = error.what
            say(f"{number} of {len(todo)}: {pair.name}: {error.what}")
            continue
        with files.whole(out / "pairs" / f"{pair.name}.png") as part:
            Image.fromarray(made.picture).save(part, "PNG")
        files.write_json(out / "pairs" / f"{pair.name}.json", {"settings": settings} | made.data)
        say(f"{number} of {len(todo)}: {pair.name}")
    data = {p.name: kept for p in pairs if (kept := _done(out, p.name, settings)) is not None}
    lines = stability.rows(list(data.values()), seed=seed)
    if data:
        pictures = {n: np.asarray(Image.open(out / "pairs" / f"{n}.png").convert("RGB")) for n in data}
        called = encoder.card.name + (", random weights" if twin is None else "")
        footer = f"Made by ctfoundry {ctfoundry.__version__} explain stability."
        page.write(
            out / "stability.html", stability_page.make_page(lines, data, pictures, failed, names[0], footer, called)
        )
        record.results = {
            "rows": [line.data() for line in lines],
            "registration": {k: v.text(3) for k, v in stability_page.registration(data).items()},
            "outliers": stability_page.outliers(data, names[0]),
            "failed": failed,
        }
        files.write_json(out / "stability.json", record.results)
        record.write(out, ["stability.json", "stability.html"])
    show({"results": [line.data() for line in lines], "failed": failed}, lambda: _print(lines))
    finish(failed, len(data))


def _print(lines: Any) -> None:
    from ctfoundry.explain import stability, stability_page

    for kind in stability.KINDS if lines else ():
        print_table(*stability_page.table(lines, kind))


def _spacing(seen: Any) -> Any:
    """Millimetres of the prepared voxels of a described scan."""
    import numpy as np

    from ctfoundry import geometry

    return np.array(geometry.spacing(seen.prepared.affine))


def _given(seen: Any) -> Any:
    return lambda _: seen


def _done(out: Path, name: str, settings: str) -> dict[str, Any] | None:
    """A finished pair of the same settings."""
    path = out / "pairs" / f"{name}.json"
    if not path.is_file():
        return None
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return held if held.pop("settings") == settings else None
