"""The steps of the main job, in order. Each continues what it finds finished."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import identity, stats
from ctfoundry.errors import CTFoundryError, UsageError
from ctfoundry.evaluate import gather as gathering
from ctfoundry.evaluate import localise, views
from ctfoundry.evaluate.gather import Gathered, Scan, Split, fill_store
from ctfoundry.explain import pca
from ctfoundry.keys import Key
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.record import Record
from ctfoundry.retrieval import embed as embedding
from ctfoundry.retrieval import search

if TYPE_CHECKING:
    from ctfoundry.encoder import Encoder
    from ctfoundry.pretrain.recipe import Recipe
    from ctfoundry.store import Store
    from ctfoundry.volume import Volume

RECIPE = "ct-fm-tiny"
PHANTOMS = 24
PLACES = 16
DRAWS = 4
"""Times that PLACES places of a scan are drawn: one draw leaves a patient's share of hits uncertain by 7 points."""
LEVELS = ("stage2", "stage3", "stage4")
"""Levels that dense search describes a cell by; the finest sets its grid (24 x 8 x 8 mm at 6 x 2 x 2 mm)."""
MOST_CASES = 12
"""Held-out scans that localisation is measured on: the number of searches grows with the square."""
MOST_VIEWED = 40


@dataclass
class Results:
    """What the report shows."""

    gathered: Gathered
    split: Split
    phantoms: bool
    minutes: float
    seed: int
    device: str
    pretraining: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    view_hits: dict[str, stats.Interval] = field(default_factory=dict)
    view_gain: stats.Interval | None = None
    localisation: dict[str, stats.Interval] = field(default_factory=dict)
    localisation_gain: stats.Interval | None = None
    landmarks: dict[str, int] = field(default_factory=dict)
    neighbours: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    retrieval: dict[str, stats.Interval] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    colours: list[tuple[str, Volume, Any]] = field(default_factory=list)
    explained: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Example:
    """One search shown in the report."""

    landmark: str
    query: str
    target: str
    query_volume: Volume
    target_volume: Volume
    point: tuple[float, float, float]
    truth: tuple[float, float, float] | None
    hit: search.Hit


def quickstart(
    out: Path,
    *,
    data: Path | None = None,
    patients: Path | None = None,
    minutes: float = 1.5,
    seed: int = 0,
    device: str = "auto",
    command: Sequence[str] = ("quickstart",),
    quiet: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run the main job into `out` and return the content of its ``run.json``.

    Raises UsageError when there are fewer than two usable scans, or no minutes.
    """
    from ctfoundry import zoo
    from ctfoundry.pretrain.recipe_files import load_recipe
    from ctfoundry.quickstart.page import write_overview, write_report

    if not 0 < minutes < math.inf:
        raise UsageError(f"minutes is a number above 0, not {minutes}")
    out.mkdir(parents=True, exist_ok=True)
    record = Record(command, {"seed": seed}, device)
    clock = _Clock(say)
    source = data or _phantoms(out, seed, clock)
    with clock("read scans"):
        gathered = gathering.gather(source, patients, say=clock.detail)
        identity.write_private(out, gathered.paths)
    if len(gathered.scans) < 2:
        raise UsageError(
            f"found {len(gathered.scans)} usable CT scan(s), two are needed; left out: {dict(gathered.left_out)}",
            where=source,
        )
    split = gathering.hold_out(gathered, seed)
    results = Results(gathered, split, data is None, minutes, seed, device)
    recipe = load_recipe(RECIPE)
    with clock("fill the store"):
        store = fill_store(
            out / "store", gathered.scans, PREPARATIONS[recipe.preparation].resampling.spacing, clock.detail
        )
    with clock("pretrain"):
        _pretrain(store, out / "run", results, quiet)
    trained = zoo.load_encoder(out / "run", device=device)
    random = zoo.load_encoder(RECIPE, weights="random", device=device, seed=seed)
    results.device = str(trained.device)
    encoders = {"pretrained": trained, "random weights": random}
    with clock("embed and retrieve"):
        _retrieve(results, encoders, out / "embeddings", clock.detail)
    with clock("match views"):
        _match_views(results, encoders, recipe, seed, clock.detail)
    with clock("search landmarks"):
        _localise(results, encoders, clock.detail)
    with clock("colour maps"):
        _colours(results, trained)
    results.seconds = clock.seconds
    with clock("write the report"):
        write_report(results, out / "report.html")
        write_overview(results, out / "overview.png")
    record.device = results.device
    record.inputs = {scan.id: identity.sealed(scan.digest) for scan in gathered.scans}
    record.results = summary(results)
    return record.write(out, ["report.html"])


class _Clock:
    """Announces the steps and notes how long each took."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.seconds = say, dict[str, float]()
        self._step, self._start, self._last = "", 0.0, 0.0

    def __call__(self, step: str) -> _Clock:
        self._step = step
        return self

    def __enter__(self) -> None:
        self._start = time.monotonic()
        self.say(f"{self._step} ...")

    def __exit__(self, *_: object) -> None:
        self.seconds[self._step] = time.monotonic() - self._start
        self.say(f"{self._step}: {self.seconds[self._step]:.1f} s")

    def detail(self, text: str) -> None:
        """A line of progress, at most one every five seconds."""
        if time.monotonic() - self._last > 5:
            self._last = time.monotonic()
            self.say(f"  {text}")


def _phantoms(out: Path, seed: int, clock: _Clock) -> Path:
    from ctfoundry.layouts import plain
    from ctfoundry.layouts.cases import Cohort

    with clock("make phantoms"):
        plain.make_many(out / "phantoms", Cohort(PHANTOMS, seed), say=clock.detail)
    return out / "phantoms"


def _pretrain(store: Store, run: Path, results: Results, quiet: bool) -> None:
    """Train on the patients that are not held out; what came of it goes into the results."""
    from ctfoundry.pretrain.run import pretrain
    from ctfoundry.train.monitor import read_metrics

    done = pretrain(
        RECIPE,
        store,
        run,
        minutes=results.minutes,
        changes=[f"train.seed={results.seed}"],
        device=results.device,
        patients=results.split.train,
        quiet=quiet,
    )
    results.metrics, _ = read_metrics(run / "metrics.jsonl")
    results.pretraining = {
        "recipe": done.recipe,
        "steps": done.train.steps,
        "seconds": round(done.train.seconds, 1),
        "precision": done.train.precision,
        "scans": done.scans,
        "patients": done.patients,
        "warnings": list(done.train.warnings),
    }


def _retrieve(results: Results, encoders: Mapping[str, Encoder], out: Path, say: Callable[[str], None]) -> None:
    """Nearest other patients of every held-out scan, and how much anatomy they share where labels tell."""
    scans = {scan.id: scan for scan in results.gathered.scans}
    listed = [embedding.Scan(s.id, identity.sealed(s.digest), s.read) for s in scans.values()]
    shared: dict[str, dict[str, list[float]]] = {}
    known = results.gathered.shared_landmarks
    for method, encoder in encoders.items():
        folder = out / ("pretrained" if method == "pretrained" else "random")
        if not embedding.fits(folder, encoder):  # more minutes made another encoder
            shutil.rmtree(folder)
        outcome = embedding.embed(listed, encoder, folder, progress=lambda _: say("embedding"))
        if outcome.failed:
            raise CTFoundryError(
                f"{len(outcome.failed)} scans could not be embedded: {next(iter(outcome.failed.values()))}",
                where=folder,
            )
        index = embedding.load_index(folder)
        gone = set(index.ids) - scans.keys()  # embedded from this folder's earlier data
        for place, id in enumerate(index.ids):
            if id in gone or scans[id].patient not in results.split.held_out:
                continue
            scan = scans[id]
            own = gone | {s.id for s in scans.values() if s.patient == scan.patient}
            near = index.nearest(index.rows[place], 4, without=own)
            if method == "pretrained":
                results.neighbours[id] = [(n.id, n.similarity) for n in near]
            value = _overlap(scan, scans[near[0].id], known) if near else None
            if value is not None:
                shared.setdefault(method, {}).setdefault(scan.patient, []).append(value)
            if method == "pretrained":
                others = [_overlap(scan, s, known) for s in scans.values() if s.patient != scan.patient]
                if measured := [v for v in others if v is not None]:
                    shared.setdefault("any other scan", {}).setdefault(scan.patient, []).append(
                        float(np.mean(measured))
                    )
    results.retrieval = {method: stats.mean(values, seed=results.seed) for method, values in shared.items()}


def _overlap(a: Scan, b: Scan, shared: Collection[str]) -> float | None:
    """Jaccard index of the structures that lie wholly inside two scans, of those that several patients have at all."""
    first, second = a.landmarks.keys() & shared, b.landmarks.keys() & shared
    return len(first & second) / len(first | second) if first and second else None


def _match_views(
    results: Results, encoders: Mapping[str, Encoder], recipe: Recipe, seed: int, say: Callable[[str], None]
) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    held = [s for s in results.gathered.scans if s.patient in results.split.held_out][:MOST_VIEWED]
    for number, scan in enumerate(held, 1):
        volume = scan.read()
        for draw in range(DRAWS):
            key = Key.of("places", seed, scan.digest, draw)
            places = views.draw_places(
                encoders["pretrained"], volume, recipe.crop, key, places=PLACES, settings=recipe.views
            )
            for method, encoder in encoders.items():
                found.setdefault(method, {}).setdefault(scan.patient, []).extend(views.encoder_hits(encoder, places))
            found.setdefault("HU bands of the crop", {}).setdefault(scan.patient, []).extend(views.hu_hits(places))
        say(f"views of {number} of {len(held)} scans")
    results.view_hits = {method: stats.mean(values, seed=seed) for method, values in found.items()}
    results.view_gain = stats.difference(found["pretrained"], found["random weights"], seed=seed)


def _localise(results: Results, encoders: Mapping[str, Encoder], say: Callable[[str], None]) -> None:
    cases = _cases(results)
    methods = {name: localise.encoder_method(encoder, LEVELS) for name, encoder in encoders.items()}
    methods["HU around the cell"] = localise.hu_method(encoders["pretrained"], LEVELS[0])
    if len(cases) > 1:
        errors = localise.localise(cases, methods)
        table = localise.by_method(errors)
        if table:
            results.localisation = {name: stats.pairs(values, seed=results.seed) for name, values in table.items()}
            results.localisation_gain = stats.pair_difference(
                table["pretrained"], table["random weights"], seed=results.seed
            )
        for error in errors:
            if error.method == "pretrained":
                results.landmarks[error.landmark] = results.landmarks.get(error.landmark, 0) + 1
        say(f"{len(errors)} searches")
    results.examples = _examples(results, cases, encoders["pretrained"])


def _cases(results: Results) -> list[localise.Case]:
    """Held-out scans with landmarks that another patient's scan has too, at most MOST_CASES of them."""
    shared = results.gathered.shared_landmarks
    chosen = [
        scan
        for scan in results.gathered.scans
        if scan.patient in results.split.held_out and scan.landmarks.keys() & shared
    ]
    return [localise.Case(s.id, s.patient, s.read(), s.landmarks) for s in chosen[:MOST_CASES]]


def _examples(results: Results, cases: Sequence[localise.Case], encoder: Encoder) -> list[Example]:
    """The first few searches in a fixed order (not the best ones); without landmarks, from the centre of a scan."""
    names = {scan.id: scan.name for scan in results.gathered.scans}
    chosen: list[Example] = []
    for query, target in zip(cases, [*cases[1:], *cases[:1]], strict=True):
        common = sorted(query.landmarks.keys() & target.landmarks.keys())
        if not common or query.patient == target.patient:
            continue
        landmark = common[Key.of("example", results.seed, query.id).integers(0, len(common))]
        point = query.landmarks[landmark]
        hit = search.find(encoder, query.volume, point, target.volume, levels=LEVELS)
        chosen.append(
            Example(
                landmark,
                names[query.id],
                names[target.id],
                query.volume,
                target.volume,
                point,
                target.landmarks[landmark],
                hit,
            )
        )
        if len(chosen) == 4:
            return chosen
    if not chosen:
        held = [s for s in results.gathered.scans if s.patient in results.split.held_out][:2]
        if len(held) == 2:
            first, second = held[0].read(), held[1].read()
            x, y, z = first.world((np.array(first.shape) - 1) / 2).tolist()
            hit = search.find(encoder, first, (x, y, z), second, levels=LEVELS)
            chosen.append(
                Example("centre of the scan", held[0].name, held[1].name, first, second, (x, y, z), None, hit)
            )
    return chosen


def _colours(results: Results, encoder: Encoder) -> None:
    """PCA colours of up to four held-out patients, the largest fields of view first, fitted jointly on them."""
    patients: dict[str, Scan] = {}
    for scan in results.gathered.scans:
        if scan.patient in results.split.held_out:
            patients.setdefault(scan.patient, scan)
    shown = sorted(patients.values(), key=lambda scan: -scan.size_mm3)[:4]
    volumes = [scan.read() for scan in shown]
    maps = [search.dense_map(encoder, volume, LEVELS[:2]) for volume in volumes]
    masks = [pca.body_cells(feature, volume) for feature, volume in zip(maps, volumes, strict=True)]
    if not any(bool(mask.any()) for mask in masks):
        return
    model = pca.fit(maps, masks)
    results.explained = model.explained
    results.colours = [
        (scan.name, volume, pca.colours(model, feature, mask))
        for scan, volume, feature, mask in zip(shown, volumes, maps, masks, strict=True)
    ]


def summary(results: Results) -> dict[str, Any]:
    """The numbers of the report as plain data."""

    def plain(value: stats.Interval | None) -> dict[str, Any] | None:
        return (
            None
            if value is None
            else {
                "value": value.value,
                "low": value.low,
                "high": value.high,
                "patients": value.patients,
                "values": value.values,
                "seed": value.seed,
            }
        )

    return {
        "scans": len(results.gathered.scans),
        "patients": len(results.gathered.patients),
        "held_out_patients": len(results.split.held_out) if results.split.honest else 0,
        "left_out": dict(results.gathered.left_out),
        "near_duplicates": len(results.gathered.twins),
        "view_matching": {name: plain(value) for name, value in results.view_hits.items()},
        "view_matching_gain": plain(results.view_gain),
        "localisation_mm": {name: plain(value) for name, value in results.localisation.items()},
        "localisation_gain_mm": plain(results.localisation_gain),
        "shared_anatomy_of_nearest": {name: plain(value) for name, value in results.retrieval.items()},
        "pretraining": results.pretraining,
        "seconds": {name: round(value, 1) for name, value in results.seconds.items()},
    }
