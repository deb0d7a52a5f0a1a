"""The gallery: pictures of what the package does, from real scans, with the credits that their licences ask for.

A folder of scans has one folder a data set and a ``SOURCES.csv`` (name, origin, licence). One scan of each data set is shown, and
only where its licence lets pictures be passed on under ours (`OPEN`). Nothing is chosen by how well it came out: the query is
the first named structure that lies wholly in the first scan, the target is the next scan.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import ctfoundry
from ctfoundry import files, io
from ctfoundry.body import body_box
from ctfoundry.encoder import Encoder
from ctfoundry.errors import CTFoundryError, UsageError
from ctfoundry.evaluate.landmarks import centroids
from ctfoundry.explain import clusters, clusters_page, pca, pca_page, saliency, saliency_page
from ctfoundry.explain.saliency_target import target_of
from ctfoundry.keys import Key
from ctfoundry.quickstart.pictures import WIDTH, sheet
from ctfoundry.record import Record
from ctfoundry.report.planes import body_centre, label_legend, three_planes
from ctfoundry.retrieval import search
from ctfoundry.retrieval.pages import hit_picture, query_picture
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from ctfoundry.geometry import Vec3
    from ctfoundry.segmenter import Segmenter

    Picture = UInt8[np.ndarray, "rows columns 3"]
    Say = Callable[[str], None]

OPEN = ("CC BY 3", "CC BY 4", "CC0", "Apache", "MIT", "BSD")
"""Licences (by how they begin) whose pictures may stand in our documents; share-alike and GPL ones are left out."""
MOST = 5
"""Scans shown, the largest fields of view first."""
LEAST_MM = 90.0
"""Scans of which an axis is shorter show too little."""
WANTED = ("liver", "heart", "aorta", "kidney_left", "spleen", "stomach", "lung_left")
"""Structures that are searched for, the first that the query's scan holds whole."""
OTHER_SIDE = 0.3
"""Share of the body's width by which an answer that lies elsewhere in the body differs from the query."""
VIEWS = ("head", "chest", "abdomen", "pelvis")
FOLDER = Path("images") / "gallery"


@dataclass(frozen=True, eq=False)
class Shown:
    """One scan with its data set's name, origin and licence, and the places that are known in it."""

    name: str
    origin: str
    licence: str
    volume: Volume
    known: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def credit(self) -> str:
        """One line for under a picture."""
        return f"`{self.name}` ({self.licence})"


@dataclass(frozen=True)
class Section:
    """A heading, a picture (file name in `FOLDER`), what it shows, and the command that makes it."""

    title: str
    picture: str
    text: str
    command: str


@dataclass
class Made:
    """Sections so far and what could not be made."""

    sections: list[Section] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def make(
    data: Path,
    encoder: Encoder,
    out: Path,
    *,
    random: Encoder | None = None,
    segmenter: Segmenter | None = None,
    trained_on: str = "",
    segmenter_on: str = "",
    phantoms: int = 8,
    seed: int = 0,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Write ``OUT/gallery.md`` and ``OUT/images/gallery``; returns the content of its ``run.json``.

    random : the same network with random weights, whose colours are then shown below. `trained_on`, `segmenter_on` : what the
    models were trained on, for the captions. `phantoms` : a part of the body, for the clusters. A picture that cannot be made is left out and named in the result. Raises UsageError for fewer than two scans.
    """
    record = Record(["explain", "gallery", "--model", encoder.card.name], {"seed": seed}, str(encoder.device))
    made = Made()
    scans = list(gather(data, made.failed, say))
    if len(scans) < 2:
        raise UsageError(f"holds {len(scans)} scans that can be shown, two are needed", where=data)
    steps: list[tuple[str, Callable[[], tuple[Picture, Section]]]] = [
        ("scans", lambda: _scans(scans)),
        ("pca", lambda: _pca(scans, encoder, random, seed)),
        ("search", lambda: _search(scans, encoder)),
        ("saliency", lambda: _saliency(scans, encoder, seed)),
        ("clusters", lambda: _clusters(encoder, phantoms, seed, out / FOLDER)),
    ]
    if segmenter is not None:
        steps.insert(3, ("segment", lambda: _segments(scans, segmenter, segmenter_on)))
    for name, step in steps:
        say(name)
        try:
            picture, section = step()
        except CTFoundryError as error:
            made.failed[name] = error.what
            continue
        with files.whole(out / FOLDER / section.picture) as part:
            Image.fromarray(picture).save(part, "WEBP", quality=84, method=6)
        made.sections.append(section)
        files.write_text(out / "gallery.md", _page(made.sections, scans, encoder, trained_on))
    record.inputs = {scan.name: files.digest([scan.origin, scan.licence]) for scan in scans}
    record.results = {"pictures": [s.picture for s in made.sections], "failed": made.failed}
    return record.write(out / FOLDER, [s.picture for s in made.sections])


def gather(data: Path, failed: dict[str, str], say: Say = lambda _: None) -> Iterator[Shown]:
    """The largest scan of each data set that may be shown, those with the largest field of view first, at most `MOST`."""
    found = []
    for name, (origin, licence) in sources(data).items():
        if not licence.startswith(OPEN):
            failed[name] = f"not shown: its licence is {licence}"
            continue
        try:
            shown = _largest(data / name, name, origin, licence)
        except CTFoundryError as error:
            failed[name] = error.what
            continue
        if shown is None:
            failed[name] = f"not shown: no CT in HU of {LEAST_MM:g} mm along every axis"
            continue
        say(f"{name}: {shown.volume!r}")
        found.append(shown)
    found.sort(key=lambda s: -_size(s.volume))
    return iter(found[:MOST])


def sources(data: Path) -> dict[str, tuple[str, str]]:
    """Name of each data set to its origin and licence, from ``SOURCES.csv``. Raises UsageError without one."""
    table = data / "SOURCES.csv"
    if not table.is_file():
        raise UsageError(
            "is missing: a gallery names the origin and licence of each picture",
            where=table,
            do="columns name, origin, licence",
        )
    with open(table, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"name", "origin", "licence"} <= set(rows[0]):
        raise UsageError("has not the columns name, origin, licence", where=table)
    return {row["name"]: (row["origin"], row["licence"]) for row in rows if (data / row["name"]).is_dir()}


def _largest(folder: Path, name: str, origin: str, licence: str) -> Shown | None:
    items = io.discover(folder).found
    images = [i for i in items if not i.is_label and i.problem is None]
    images.sort(key=lambda i: (-sum(p.stat().st_size for p in i.paths), i.name))
    for item in images[:1]:
        volume = item.read()
        long = min(n * s for n, s in zip(volume.shape, volume.spacing, strict=True)) >= LEAST_MM
        if volume.kind != "hu" or not long or float(volume.voxels.min()) > -500:
            continue
        known: dict[str, tuple[float, float, float]] = {}
        for label in (i for i in items if i.is_label and i.format != "dicom"):
            labels = label.read()
            if labels.names and labels.grid.same(volume.grid, tolerance=0.5):
                known |= centroids(labels)
        return Shown(name, origin, licence, volume, known)
    return None


def _size(volume: Volume) -> float:
    return float(np.prod([n * s for n, s in zip(volume.shape, volume.spacing, strict=True)]))


# The pictures ---------------------------------------------------------------------------------------------------------


def _scans(scans: Sequence[Shown]) -> tuple[Picture, Section]:
    pictures = [three_planes(s.volume, height=260) for s in scans]
    parts = np.array_split(np.arange(len(pictures)), max(len(pictures) // 2, 1))  # two a row, or three; never one
    rows = [[pictures[i] for i in part] for part in parts]
    listed = "; ".join(f"{s.credit}: {_words(s.volume)}" for s in scans)
    text = (
        "Axial, coronal and sagittal planes of each scan through the middle of the body, at one scale within a picture, "
        f"windowed by what the scan mostly holds. Row by row: {listed}."
    )
    return sheet(rows), Section("Scans of any origin", "scans.webp", text, "ctfoundry inspect FOLDER --html page.html")


def _pca(scans: Sequence[Shown], encoder: Encoder, random: Encoder | None, seed: int) -> tuple[Picture, Section]:
    shown, rows = scans[:2], []
    share: tuple[float, ...] = ()
    for number, model in enumerate([encoder, *([random] if random is not None else [])]):
        levels = [level.name for level in model.levels[-3:-1]]
        maps = [search.dense_map(model, s.volume, levels) for s in shown]
        masks = [pca.body_cells(m, s.volume) for m, s in zip(maps, shown, strict=True)]
        fitted = pca.fit(maps, masks, seed=seed)
        share = share if number else fitted.explained
        rows.append(
            [pca_page.picture(s.volume, fitted, m, mask) for s, m, mask in zip(shown, maps, masks, strict=True)]
        )
    text = (
        f"The three directions in which the features of these scans differ most ({', '.join(f'{100 * v:.0f} %' for v in share)} "
        "of the variance), fitted on all of them together, as lightness, green to red and blue to yellow. "
        + ("Above the model, below the same network with random weights. " if random is not None else "")
        + "Where the lower row shows the same structure, it is that of grey values and edges and nothing was learned. "
        f"Left to right: {', '.join(s.credit for s in shown)}."
    )
    return sheet(rows), Section(
        "What the features tell apart",
        "pca.webp",
        text,
        "ctfoundry explain pca SCAN... --model MODEL -o OUT",
    )


def _search(scans: Sequence[Shown], encoder: Encoder) -> tuple[Picture, Section]:
    order = sorted(range(len(scans)), key=lambda i: not set(WANTED) & set(scans[i].known))
    query, target = scans[order[0]], scans[order[1]]
    name = next((n for n in WANTED if n in query.known), "")
    x, y, z = (float(v) for v in (query.known[name] if name else body_centre(query.volume)))
    hit = search.find(encoder, query.volume, (x, y, z), target.volume)
    truth = target.known.get(name)
    what = f"the centre of the {name.replace('_', ' ')}" if name else "the middle of the body"
    if truth is not None:
        judged = f"The ring is the true place, {np.linalg.norm(np.array(hit.point) - truth):.0f} mm away."
    else:
        judged = "Nobody marked the true place in the second scan."
        far = _across(target.volume, hit.point) - _across(query.volume, (x, y, z))
        if abs(far) > OTHER_SIDE:
            judged += " The answer lies on another side of the body than the query: **a miss**."
    text = (
        f"A click on {what} in {query.credit} (above) and the most similar place in another patient, "
        f"{target.credit} (below), with the most similar tenth of all cells as a heat map; cosine {hit.similarity:.2f}. {judged} "
        "The structure was not chosen by how well it is found."
    )
    picture = sheet(
        [[query_picture(query.volume, (x, y, z), height=420)], [hit_picture(target.volume, hit, truth, height=420)]]
    )
    return picture, Section(
        "The same place in another patient",
        "search.webp",
        text,
        "ctfoundry search --model MODEL --query SCAN --point X,Y,Z --target SCAN -o OUT",
    )


def _across(volume: Volume, point: Sequence[float]) -> float:
    """Where between the body's right (0) and left (1) side a point lies."""
    low, high = body_box(volume)
    return float(1 - (point[0] - low[0]) / (high[0] - low[0]))


def _saliency(scans: Sequence[Shown], encoder: Encoder, seed: int) -> tuple[Picture, Section]:
    scan = scans[-1]  # the smallest: a pass a box
    prepared = encoder.prepare(scan.volume)
    box: Vec3 = (4, 16, 16)
    settings = saliency.Settings(size=box, stride=box, checked=0, seed=seed)
    found = saliency.measure(encoder, prepared, target_of(encoder, prepared), settings)
    point = saliency_page.peak(found, prepared, settings)
    coloured = saliency_page.picture(scan.volume, prepared, found, point, height=300)
    text = (
        f"How far the vector of {scan.credit} turns when a box of {box[0]} x {box[1]} x {box[2]} voxels is hidden by air: "
        "brighter boxes matter more to what the scan is taken for. Planes through the largest deviation, without and with the map."
    )
    return sheet([[three_planes(scan.volume, point=point, height=300), coloured]]), Section(
        "What a vector rests on", "saliency.webp", text, "ctfoundry explain saliency SCAN --model MODEL -o OUT"
    )


def _segments(scans: Sequence[Shown], segmenter: Segmenter, trained_on: str) -> tuple[Picture, Section]:
    shown = scans[:2]
    found = [segmenter(s.volume) for s in shown]
    rows = [[three_planes(s.volume, height=420, overlay=labels)] for s, labels in zip(shown, found, strict=True)]
    seen = sorted({int(v) for labels in found for v in np.unique(labels.voxels)} - {0})
    card, names = segmenter.card, {v: segmenter.names[v].replace("_", " ") for v in seen}
    patients, steps = card.training.get("patients", {}).get("train"), card.training.get("steps")
    trained = f", trained for {steps:,} steps on {patients} patients" if patients and steps else ""
    text = (
        f"Labels of `{card.name}`{trained}{f' ({trained_on})' if trained_on else ''}, over {' and '.join(s.credit for s in shown)}. "
        "No expert has checked them."
    )
    legend = label_legend(names, across=8, width=WIDTH)
    return np.concatenate([sheet(rows, width=legend.shape[1]), legend]), Section(
        "Every voxel named", "segment.webp", text, "ctfoundry segment SCAN --model MODEL -o OUT"
    )


def _clusters(encoder: Encoder, each: int, seed: int, folder: Path) -> tuple[Picture, Section]:
    from ctfoundry import phantom

    ids, rows, labels = [], [], []
    for view in VIEWS:
        for number in range(each):
            spec = phantom.draw(Key.of("gallery", seed, view, number), view=view, voxel_mm=6)  # type: ignore[arg-type]
            vector = encoder(phantom.make(spec).ct, levels=()).vector
            ids.append(f"{view}-{number}")
            rows.append(vector.cpu().double().numpy())
            labels.append(view)
    points = clusters.Points(ids, np.stack(rows), labels, ids)
    scores, _ = clusters.measure(points, min(5, each), seed=seed)
    sizes = [v for v in (5.0, 15.0, 30.0) if v < len(points)]
    panels = [
        clusters_page.Panel(f"t-SNE, perplexity {v:g}", clusters.project(points, "t-SNE", v, seed=seed)) for v in sizes
    ]
    with files.whole(folder / "clusters.png") as part:
        clusters_page.draw(points, panels, part)
    picture = np.asarray(Image.open(folder / "clusters.png").convert("RGB"))
    (folder / "clusters.png").unlink()
    told = ", ".join(f"{s.name} {s.interval.text()} (labels dealt out anew: {s.null:.2f})" for s in scores.values())
    text = (
        f"Vectors of {len(points)} phantoms (synthetic, one a patient), coloured by the part of the body, laid out at three "
        f"perplexities. Measured among the vectors: {told}. Parts of the body are easily told apart: this is a check, not a feat."
    )
    return picture, Section(
        "Clusters, and what they are worth",
        "clusters.webp",
        text,
        "ctfoundry explain clusters --index OUT --labels labels.csv -o OUT",
    )


# The page -------------------------------------------------------------------------------------------------------------


def _page(sections: Sequence[Section], scans: Sequence[Shown], encoder: Encoder, trained_on: str) -> str:
    lines = [
        "# Gallery",
        "",
        f"Made by one command, `make gallery`, from real scans (credits below). {_model(encoder, trained_on)} "
        "Nothing here is a medical finding.",
        "",
    ]
    for section in sections:
        lines += [
            f"## {section.title}",
            f"![{section.title}]({FOLDER.as_posix()}/{section.picture})",
            "",
            section.text,
            "",
            f"```sh\n{section.command}\n```",
            "",
        ]
    lines += ["## Credits", "", "| data set | licence | origin |", "|---|---|---|"]
    lines += [f"| {s.name} | {_cell(s.licence)} | {_cell(s.origin)} |" for s in scans]
    lines += [
        "",
        f"Pictures were rendered from these scans by ctfoundry {ctfoundry.__version__}; planes, windows and colours are ours.",
    ]
    return "\n".join(lines) + "\n"


def _model(encoder: Encoder, trained_on: str) -> str:
    card = encoder.card
    if card.weights == "random":
        return f"The model is `{card.name}` with **random weights**: nothing was learned."
    told = card.training
    text = f"The model is `{card.name}`"
    if {"steps", "scans", "seconds"} <= set(told):
        text += f", trained for {told['steps']:,} steps ({told['seconds'] / 60:.0f} minutes) on {told['scans']} scans"
    return text + (f" ({trained_on})." if trained_on else ".")


def _words(volume: Volume) -> str:
    size = " x ".join(f"{n * s:.0f}" for n, s in zip(volume.shape, volume.spacing, strict=True))
    return f"{' x '.join(str(n) for n in volume.shape)} voxels, {size} mm"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
