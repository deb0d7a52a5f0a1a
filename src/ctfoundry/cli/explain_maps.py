"""``ctfoundry explain pca|consistency|clusters|gallery``: maps of what an embedding sees."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctfoundry.cli.common import Device, Seed, finish, print_table, say, show, verb
from ctfoundry.cli.explain import explain_app
from ctfoundry.errors import CTFoundryError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ctfoundry.encoder import Encoder, FeatureMap
    from ctfoundry.geometry import Vec3
    from ctfoundry.retrieval.embed import Scan

Model = Annotated[str, typer.Option(help="name of the zoo, run folder or .safetensors")]
Weights = Annotated[str | None, typer.Option(help="for a name of the zoo: a .safetensors file, or 'random'")]
Levels = Annotated[str | None, typer.Option(help="levels, finest first, such as stage2,stage3 (default: the last two)")]
Shifts = Annotated[str, typer.Option(help="shifted passes DxHxW: cells so many times finer, at that many passes")]


@verb(explain_app, "pca")
def explain_pca(
    scans: Annotated[list[str], typer.Argument(help="scans that share one colour scale")],
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the page and the pictures")],
    weights: Weights = None,
    levels: Levels = None,
    shifts: Shifts = "1x1x1",
    foreground: Annotated[
        str, typer.Option(help="what is coloured: body (above -300 HU) or features (first component, Otsu)")
    ] = "body",
    nifti: Annotated[bool, typer.Option("--nifti", help="also NIfTI files on each scan's grid")] = False,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Colour maps of the three directions in which features differ most, joint over the scans (PNG, HTML, NIfTI)."""
    from PIL import Image

    import ctfoundry
    from ctfoundry import files, zoo
    from ctfoundry.explain import pca, pca_files, pca_page
    from ctfoundry.record import Record
    from ctfoundry.report import page
    from ctfoundry.report.planes import three_planes
    from ctfoundry.retrieval.sources import resolve

    if foreground not in ("body", "features"):
        raise UsageError(f"is 'body' or 'features', not {foreground!r}", where="--foreground")
    encoder = zoo.load_encoder(model, weights=weights, device=device, seed=seed)
    names, steps = _levels(encoder, levels), _triple(shifts)
    command = ["explain", "pca", "--model", encoder.card.name, "--levels", ",".join(names), "--shifts", shifts]
    record = Record([*command, "--foreground", foreground], {"seed": seed}, str(encoder.device))
    found = resolve(scans)
    failed, kept = dict(found.failed), []
    out.mkdir(parents=True, exist_ok=True)
    with _spool(out) as spool:
        shelf = _Shelf(spool)
        for number, source in enumerate(found.scans, 1):
            try:
                volume = source.scan.read()
                feature = _map(encoder, volume, names, steps)
                shelf.put(source.scan.id, feature, pca.body_cells(feature, volume))
            except CTFoundryError as error:
                failed[source.scan.id] = error.what
                continue
            kept.append(source.scan)
            say(f"features of {number} of {len(found.scans)} scans: {feature!r}")
        if not kept:
            finish(failed, 0, found.paths)
            return
        cut = None
        if foreground == "features":
            cut = pca.fit_foreground((shelf.map(s.id) for s in kept), (shelf.body(s.id) for s in kept), seed=seed)

        def mask(scan: Scan) -> Tensor:
            return shelf.body(scan.id) if cut is None else cut.mask(shelf.map(scan.id))

        fitted = pca.fit((shelf.map(s.id) for s in kept), (mask(s) for s in kept), seed=seed)
        shown, written = [], []
        for scan in kept:
            volume, feature, inside = scan.read(), shelf.map(scan.id), mask(scan)
            picture = pca_page.picture(volume, fitted, feature, inside)
            with files.whole(out / f"{scan.id}.png") as part:
                Image.fromarray(picture).save(part, "PNG")
            made = pca_files.write(out, scan.id, fitted, feature, inside, volume) if nifti else []
            dice = pca.overlap(inside, shelf.body(scan.id))
            shown.append(
                pca_page.Shown(scan.id, three_planes(volume, height=320), picture, int(inside.sum()), dice, made)
            )
            written += [f"{scan.id}.png", *made]
            say(f"{scan.id}.png")
    settings = {
        "model": encoder.card.name,
        "weights": encoder.card.weights,
        "levels": ", ".join(names),
        "passes": shifts,
        "foreground": "body" if cut is None else f"first component above {cut.threshold:.3f} (Otsu)",
        "seed": str(seed),
        "scans": str(len(kept)),
    }
    made_by = f"Made by ctfoundry {ctfoundry.__version__} explain pca. Research software; not a medical device."
    page.write(
        out / "pca.html",
        pca_page.build(shown, fitted, settings, random=encoder.card.weights == "random", footer=made_by),
    )
    record.inputs = {scan.id: scan.digest for scan in kept}
    record.results = {
        "explained": list(fitted.explained),
        "threshold": None if cut is None else cut.threshold,
        "span": fitted.span.tolist(),
        "scans": {s.id: {"cells": s.cells, "dice with the body": s.dice if s.dice == s.dice else None} for s in shown},
        "failed": {id: failed[id] for id in failed if id not in found.failed},
        "unreadable": sorted(found.failed),  # ids alone: the reason may quote what a header says of a person
    }
    record.write(out, [*written, "pca.html"])
    pictures = [name for name in written if name.endswith(".png")]
    show(
        {"pictures": pictures, "page": "pca.html", "files": written, **record.results, "failed": failed},
        lambda: print("\n".join([*written, "pca.html"])),
    )
    finish(failed, len(kept), found.paths)


@verb(explain_app, "consistency")
def explain_consistency(
    model: Model,
    weights: Weights = None,
    levels: Levels = None,
    shifts: Shifts = "1x1x1",
    count: Annotated[int, typer.Option(help="phantoms, one a patient", min=2)] = 8,
    view: Annotated[str, typer.Option(help="part of the body")] = "chest",
    voxel: Annotated[float, typer.Option(help="millimetres")] = 3.0,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Whether PCA colours mean something: a structure's colour over phantoms, beside random weights and HU alone."""
    from dataclasses import asdict

    from ctfoundry import phantom, zoo
    from ctfoundry.evaluate.localise import hu_method
    from ctfoundry.explain import pca, pca_consistency
    from ctfoundry.keys import Key
    from ctfoundry.phantom.difficulty import coarse_structures

    encoder = zoo.load_encoder(model, weights=weights, device=device, seed=seed)
    names, steps = _levels(encoder, levels), _triple(shifts)
    card = encoder.card
    methods = {card.name if card.weights != "random" else "random weights": encoder}
    if card.weights != "random":
        methods["random weights"] = _random_twin(encoder, seed)
    hu = hu_method(encoder, names[0])
    groups = coarse_structures(wraps=False)
    maps: dict[str, list[FeatureMap]] = {name: [] for name in [*methods, "HU alone"]}
    bodies: dict[str, list[Tensor]] = {name: [] for name in maps}
    labels = []
    for number in range(count):
        case = phantom.make(phantom.draw(Key.of("consistency", seed, number), view=view, voxel_mm=voxel))  # type: ignore[arg-type]
        labels.append(_grouped(case.labels, groups))
        for name in maps:
            feature = hu(case.ct) if name == "HU alone" else _map(methods[name], case.ct, names, steps)
            maps[name].append(feature)
            bodies[name].append(pca.body_cells(feature, case.ct))
        say(f"{number + 1} of {count} phantoms")
    found = {}
    for name, features in maps.items():
        fitted = pca.fit(features, bodies[name], seed=seed)
        found[name] = [pca_consistency.means(fitted, f, one) for f, one in zip(features, labels, strict=True)]
    first = next(iter(found))
    rows: list[dict[str, Any]] = []
    for name, colours in found.items():
        measured = pca_consistency.measure(colours, seed=seed)
        gap = None if name == first else pca_consistency.difference(found[first], colours, seed=seed)
        rows.append({"features": name, **asdict(measured), "difference": None if gap is None else asdict(gap)})
        rows[-1]["text"] = [measured.ratio.text(), measured.right.text(), None if gap is None else gap.text()]
    data = {"phantoms": count, "view": view, "levels": list(names), "seed": seed, "results": rows}
    show(
        data,
        lambda: print_table(
            ["features", "within / between (lower is better)", "nearest colour right", f"{first} minus this"],
            [[row["features"], *row["text"]] for row in rows],
            f"{count} phantoms, {view}; chance for the nearest colour {rows[0]['chance']:.2f}",
        ),
    )


@verb(explain_app, "clusters")
def explain_clusters(
    index: Annotated[list[Path], typer.Option("--index", help="embeddings folder; several are shown side by side")],
    labels: Annotated[Path, typer.Option("--labels", help="CSV with id, label and, where known, patient")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the page and the picture")],
    column: Annotated[str, typer.Option(help="column of the labels")] = "label",
    vector: Annotated[str | None, typer.Option(help="which vectors (default: the model's own)")] = None,
    perplexity: Annotated[
        str, typer.Option(help="of the t-SNE maps, such as 5,30,100; 'none' for no map")
    ] = "5,30,100",
    umap: Annotated[str, typer.Option(help="numbers of neighbours of UMAP maps, such as 15,50")] = "none",
    k: Annotated[int, typer.Option(help="neighbours that purity looks at", min=1)] = 5,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="pictures of the scans, read again by the folder's private list")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Whether scans with one label lie together: silhouette and purity with intervals, and maps to move about in (HTML, PNG)."""
    from dataclasses import asdict

    import ctfoundry
    from ctfoundry import files
    from ctfoundry.explain import clusters, clusters_page
    from ctfoundry.record import Record
    from ctfoundry.retrieval.cards import read_card
    from ctfoundry.retrieval.embed import load_index

    known = clusters.read_labels(labels, column)
    indices = [(folder, load_index(folder, vector)) for folder in index]
    shared = set(known).intersection(*(set(found.ids) for _, found in indices))
    names = _encoder_names([read_card(folder)["model"] for folder, _ in indices])
    unknown = len(set(known) - shared)
    if unknown and shared:
        say(f"{unknown} of {len(known)} ids of {labels.name} are not in {'every' if len(index) > 1 else 'the'} folder")
    record = Record(["explain", "clusters", *names], {"seed": seed})
    sizes: list[tuple[clusters.Method, float]] = [("t-SNE", v) for v in _sizes(perplexity, "--perplexity")]
    sizes += [("UMAP", v) for v in _sizes(umap, "--umap")]
    panels, rows, points = [], [], None
    first: dict[str, Any] = {}
    for name, (folder, found) in zip(names, indices, strict=True):
        mine = {id: known[id] for id in shared}
        own = clusters.chosen(found.ids, found.vectors().numpy(), mine, seed=seed)
        if points is not None and list(own.ids) != list(points.ids):
            raise UsageError("holds other rows of the same scans", where=folder, do="compare vectors of one kind")
        points = points or own
        say(f"{name}: {len(own)} points of {own.people}")
        scores, values = clusters.measure(own, k, seed=seed)
        for what, score in scores.items():
            gap = clusters.difference(own, values[what], first[what], seed=seed) if first else None
            rows.append(clusters_page.Row(name, score, gap))
        first = first or values
        for method, size in sizes:
            if not 1 < size < len(own):
                say(f"no {method} map of {size:g}: there are {len(own)} points")
                continue
            word = "perplexity" if method == "t-SNE" else "neighbours"
            title = f"{method}, {word} {size:g}" + (f": {name}" if len(indices) > 1 else "")
            panels.append(clusters_page.Panel(title, clusters.project(own, method, size, seed=seed)))
            say(title)
    assert points is not None
    thumbs, failed = _thumbnails(index[0], points.ids) if thumbnails else ({}, {})
    settings = {
        "encoders": ", ".join(names),
        "vectors": indices[0][1].vector,
        "points": f"{len(points)} with a label in every folder, of {len(set(indices[0][1].ids))} scans in the first",
        "labels": f"{len(set(points.labels))} of column {column}",
        "patients": points.people,
        "permutations": str(clusters.PERMUTATIONS),
        "seed": str(seed),
    }
    made_by = f"Made by ctfoundry {ctfoundry.__version__} explain clusters. Research software; not a medical device."
    text = clusters_page.render(points, panels, rows, settings, thumbs=thumbs, footer=made_by)
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(out / "clusters.html", text)
    written = ["clusters.html"]
    if panels:
        with files.whole(out / "clusters.png") as part:
            clusters_page.draw(points, panels, part)
        written.append("clusters.png")
    record.inputs = {"labels": files.sha256(labels)}
    results = [
        {"encoder": r.encoder, **asdict(r.score), "difference": None if r.gap is None else asdict(r.gap)} for r in rows
    ]
    record.results = {"points": len(points), "results": results, "failed": failed}
    record.write(out, written)
    show(
        {"files": written, **record.results, "failed": failed},
        lambda: print_table(
            ["encoder", "measure", "value [95 %]", "permuted", "p", "minus the first"],
            [
                [r.encoder, r.score.name, r.score.interval.text(), f"{r.score.null:.2f}", f"{r.score.p:.3f}"]
                + [None if r.gap is None else r.gap.text()]
                for r in rows
            ],
        ),
    )
    finish(failed, len(points))


@verb(explain_app, "gallery")
def explain_gallery(
    data: Annotated[Path, typer.Option("--data", help="folder of data sets with SOURCES.csv (name, origin, licence)")],
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for gallery.md and images/gallery")],
    weights: Weights = None,
    segmenter: Annotated[str | None, typer.Option(help="run folder or .safetensors: also a segmentation")] = None,
    trained_on: Annotated[str, typer.Option(help="what the model was trained on, for the captions")] = "",
    segmenter_on: Annotated[str, typer.Option(help="what the segmenter was trained on, for its caption")] = "",
    phantoms: Annotated[int, typer.Option(help="phantoms of each part of the body, for the clusters", min=2)] = 8,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Pictures that a person would show, from scans whose licences allow it, with captions and credits (Markdown, WebP)."""
    from ctfoundry import zoo
    from ctfoundry.quickstart import gallery

    encoder = zoo.load_encoder(model, weights=weights, device=device, seed=seed)
    data_of = gallery.make(
        data,
        encoder,
        out,
        random=None if encoder.card.weights == "random" else _random_twin(encoder, seed),
        segmenter=None if segmenter is None else zoo.load_segmenter(segmenter, device=device),
        trained_on=trained_on,
        segmenter_on=segmenter_on,
        phantoms=phantoms,
        seed=seed,
        say=say,
    )
    results = data_of["results"]
    for name, reason in results["failed"].items():
        say(f"{name}: {reason}")
    show(results, lambda: print("\n".join(results["pictures"])))


# What the verbs share -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _spool(out: Path) -> Iterator[Path]:
    """A folder for maps that wait, removed in the end; those of killed runs, whose locks the kernel has freed, go first."""
    import shutil
    import tempfile

    from ctfoundry import files

    for left in out.glob(".maps-*"):
        with contextlib.suppress(OSError), files.alone(left):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".maps-", dir=out) as folder, files.alone(folder):
        yield Path(folder)


class _Shelf:
    """Maps of scans on disk (half precision), so that one at a time is in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._about: dict[str, tuple[Any, str]] = {}

    def put(self, id: str, feature: FeatureMap, body: Tensor) -> None:
        from safetensors.torch import save_file

        parts = {"data": feature.data.half(), "valid": feature.valid, "body": body}
        save_file({k: v.cpu().contiguous() for k, v in parts.items()}, self._folder / f"{id}.safetensors")
        self._about[id] = feature.affine, feature.level

    def map(self, id: str) -> FeatureMap:
        from ctfoundry.encoder import FeatureMap

        affine, level = self._about[id]
        return FeatureMap(self._part(id, "data").float(), affine, self._part(id, "valid"), level)

    def body(self, id: str) -> Tensor:
        return self._part(id, "body")

    def _part(self, id: str, name: str) -> Tensor:
        from safetensors import safe_open

        with safe_open(self._folder / f"{id}.safetensors", "pt") as stream:
            found: Tensor = stream.get_tensor(name)
        return found


def _levels(encoder: Encoder, levels: str | None) -> tuple[str, ...]:
    return tuple(levels.split(",")) if levels else tuple(level.name for level in encoder.levels[-2:])


def _triple(text: str) -> Vec3:
    try:
        a, b, c = (int(v) for v in text.split("x"))
    except ValueError:
        raise UsageError(f"{text!r} is not DxHxW, three whole numbers") from None
    return a, b, c


def _map(encoder: Encoder, volume: Any, names: tuple[str, ...], steps: Vec3) -> FeatureMap:
    from ctfoundry.retrieval.search import dense_map

    return dense_map(encoder, volume, names, shifts=steps)


def _random_twin(encoder: Encoder, seed: int) -> Encoder:
    """The same network with random weights."""
    from dataclasses import replace

    from ctfoundry import zoo
    from ctfoundry.encoder import Encoder

    card = replace(encoder.card, name="random weights", weights="random", sha256="", seed=seed)
    return Encoder.of(zoo.build(card).to(encoder.device), card)


def _grouped(labels: Any, groups: Any) -> Any:
    """Label map with one label a group."""
    from dataclasses import replace

    import numpy as np

    table = np.zeros(256, np.uint8)
    for number, ids in enumerate(groups.values(), 1):
        table[list(ids)] = number
    return replace(labels, voxels=table[labels.voxels], names=dict(enumerate(groups, 1)))


def _sizes(text: str, where: str) -> list[float]:
    try:
        return [] if text == "none" else [float(v) for v in text.split(",")]
    except ValueError:
        raise UsageError(f"{text!r} is no list of numbers", where=where) from None


def _encoder_names(cards: list[dict[str, Any]]) -> list[str]:
    """Names that differ: random weights are called so, and two folders that are still called alike are numbered."""
    names = [card["name"] + (", random weights" if card["weights"] == "random" else "") for card in cards]
    return [f"{n} {i}" if names.count(n) > 1 else n for i, n in enumerate(names, 1)]


def _thumbnails(folder: Path, ids: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Small pictures by id of scans that the folder's private list knows, and what could not be read."""
    from ctfoundry.explain.clusters_page import thumbnail
    from ctfoundry.retrieval.sources import in_folder

    made, failed = {}, {}
    for number, (id, scan) in enumerate(in_folder(folder, ids), 1):
        if isinstance(scan, str):
            failed[id] = scan
        else:
            made[id] = thumbnail(scan)
        if number % 50 == 0:
            say(f"{number} thumbnails")
    return made, failed
