"""How well a search finds: every structure of every scan looked for in every scan of another patient.

Errors are distances to the structure's centroid in mm; a structure that the target does not hold at all must be answered with "not in
this scan"; one that is cut by the target's border is left out. Labels stay on their own grid: nothing is resampled, a place lies
in a structure where its voxel says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import UsageError
from ctfoundry.evaluate.localise import hu_method
from ctfoundry.evaluate.search_cases import Gathered, Known, Tell, know, quiet
from ctfoundry.evaluate.search_summary import Answer, Summary, as_data, reliability, summarise
from ctfoundry.evaluate.search_walk import Searched, Way, enough, search_all
from ctfoundry.retrieval.search_confidence import RIGHT_MM, Calibration, calibrate
from ctfoundry.retrieval.search_maps import Looking, Scene
from ctfoundry.settings import to_data
from ctfoundry.volume import Volume

HU = "HU around the cell"
LEVEL_OF_HU = 3
"""Where windows are searched with, HU cells are those of this level from the last."""


def ways(
    encoder: Encoder, random: Encoder | None, looking: Looking, beside: Mapping[str, Looking] = {}
) -> dict[str, Way]:
    """The encoder, and how else it may look (`beside`); its twin with random weights, and cells described by their HU, both looked
    at in the first way."""
    found = {encoder.card.name: Way(encoder, looking)}
    found |= {f"{encoder.card.name}, {name}": Way(encoder, other) for name, other in beside.items()}
    if random is not None:
        found["random weights"] = Way(random, looking)
    hu = hu_method(encoder, looking.levels[0] if looking.levels else encoder.levels[-LEVEL_OF_HU].name)
    plain = replace(looking, window=None, levels=looking.levels or (encoder.levels[-LEVEL_OF_HU].name,))

    def describe(volume: Volume) -> Scene:
        feature = hu(volume)
        return Scene.of_map(feature, (feature.data.shape[0],))

    return found | {HU: Way(encoder, plain, describe)}


@dataclass
class Result:
    """What `measure` and `published` found. `scans` took part; `failed` says by id what is wrong with the others."""

    answers: list[Answer]
    summary: Summary
    right_mm: float
    settings: dict[str, Any]
    made_from: dict[str, Any]
    reliability: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    scans: list[Known] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """Plain values, for JSON; of scans that failed their ids alone, because a reason may quote what a header says."""
        return as_data(self.summary) | {
            "right_mm": self.right_mm, "settings": self.settings, "made_from": self.made_from,
            "reliability": self.reliability, "notes": list(self.notes), "failed": sorted(self.failed),
        }  # fmt: skip


def measure(
    methods: Mapping[str, Way],
    gathered: Gathered,
    structures: Sequence[str] = (),
    *,
    seed: int = 0,
    calibration: Calibration | None = None,
    made_from: Mapping[str, Any] = {},
    parts: Path | None = None,
    tell: Tell = quiet,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """All methods over all pairs; with a calibration, how true its words are (unless it was made from these very scans).

    parts : folder in which the work stays (`search_all`); None: one that is gone afterwards.
    """
    failed = dict(gathered.failed)
    with _folder(parts) as folder:
        known = know(gathered.scans, folder, failed, tell)
        found = search_all(enough(known, failed), methods, structures, parts=folder, failed=failed, tell=tell, say=say)
    answers, first = found.answers, next(iter(methods))
    made = {**made_from, "scans": len(found.scans)}
    notes: tuple[str, ...] = ()
    judged = None
    if calibration is None:
        notes += ("No calibration: similarity is no probability.",)
    elif calibration.made_from == made:
        notes += ("The calibration was made from these very scans, so its reliability is not measured here.",)
    else:
        judged = reliability([a for a in answers if a.method == first], calibration, seed)
    right = calibration.right_mm if calibration else RIGHT_MM
    settings = {name: to_data(way.looking) for name, way in methods.items()}
    summary = _timed(summarise(answers, right, seed), found)
    return Result(answers, summary, right, settings, made, judged, notes, found.scans, failed)


@contextmanager
def _folder(parts: Path | None) -> Iterator[Path]:
    if parts is not None:
        yield parts
        return
    with tempfile.TemporaryDirectory(prefix="ctfoundry-search-") as folder:
        yield Path(folder)


def _timed(summary: Summary, found: Searched) -> Summary:
    seconds = {method: float(np.median(each)) for method, each in found.seconds.items()}
    return replace(summary, seconds=seconds, looked={method: len(each) for method, each in found.seconds.items()})


def calibration_of(result: Result, card: Card, looking: Looking) -> Calibration:
    """The calibration that the first method's answers give."""
    first = result.answers[0].method
    rows = [(a.evidence, a.error) for a in result.answers if a.method == first and a.evidence is not None]
    return calibrate([e for e, _ in rows], [e for _, e in rows], card, looking, result.made_from)


PUBLISHED = Looking(window=(64, 64, 64), overlap=0.625, whiten=False, refine=False)
DEFECTS = (
    "As published: one fixed source scan, the heart alone, windows of 64 voxels at 1 mm every 24, plain cosine.",
    "Not as published, because it would be wrong: labels stay on their own grid (theirs are interpolated linearly and then compared for "
    "equality, which erodes them); the query is the heart's centroid (theirs is truncated to whole voxels); 'inside' looks the voxel up "
    "(theirs accepts a place that shares any one coordinate with any voxel of the heart, which nearly all do); the network sees scans in its "
    "training orientation (theirs are turned to RAS).",
    "One source patient: the interval says nothing about other sources.",
)


def published(
    encoder: Encoder,
    random: Encoder | None,
    gathered: Gathered,
    *,
    parts: Path | None = None,
    tell: Tell = quiet,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """CT-FM's protocol (reference facts 7.5): the first scan with a whole heart is the source of all searches. See `measure`."""

    def at_one_mm(made: Encoder) -> Encoder:
        fine = replace(made.preparation, resampling=replace(made.preparation.resampling, spacing=(1.0, 1.0, 1.0)))
        return replace(made, preparation=fine, card=replace(made.card, preparation=fine))

    methods = {encoder.card.name: Way(at_one_mm(encoder), PUBLISHED)}
    if random is not None:
        methods["random weights"] = Way(at_one_mm(random), PUBLISHED)
    failed = dict(gathered.failed)
    with _folder(parts) as folder:
        known = enough(know(gathered.scans, folder, failed, tell), failed)
        source = next((k.id for k in known if "heart" in k.landmarks), None)
        if source is None:
            raise UsageError("no scan holds a whole structure named heart", where="--protocol ct-fm")
        found = search_all(known, methods, ["heart"], source, parts=folder, failed=failed, tell=tell, say=say)
    answers = [a for a in found.answers if a.error is not None]
    summary = _timed(summarise(answers, RIGHT_MM), found)
    settings = {encoder.card.name: to_data(PUBLISHED)}
    made_from = {"protocol": "ct-fm", "scans": len(found.scans)}
    return Result(answers, summary, RIGHT_MM, settings, made_from, None, DEFECTS, found.scans, failed)
