"""All searches between scans, in bounded memory, and continued when they were cut off.

A way to look sees each scan once; the cells go to the disk (`search_arrays`), beside the raw features of the scan's landmarks. Then
every scan asks all others, two scans' cells mapped at a time. What a look took and the answers of one scan are small files under
hashes of all that they depend on: the scans' and labels' content, the model's card with the weights' SHA-256, the way to look. So a
run that was cut off begins with what is missing, and files of other scans or settings are never read. Cells are removed as soon as
their way is answered.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry import __version__, files
from ctfoundry.encoder import Encoder
from ctfoundry.errors import UsageError
from ctfoundry.evaluate import search_arrays
from ctfoundry.evaluate.landmarks import Point
from ctfoundry.evaluate.localise import inside
from ctfoundry.evaluate.search_cases import VERSION, Known, Tell, labels_of, quiet, tried
from ctfoundry.evaluate.search_summary import Answer
from ctfoundry.retrieval.search import Query, Seen
from ctfoundry.retrieval.search_confidence import Evidence
from ctfoundry.retrieval.search_maps import Looking, Scene, scene
from ctfoundry.retrieval.search_peaks import Likeness
from ctfoundry.settings import to_data
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

POSITION = "position in the body box"
BEST_CELL = "best possible cell"
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Way:
    """An encoder and how it looks; `describe` gives the scene of a scan in place of the encoder, on its grid."""

    encoder: Encoder
    looking: Looking
    describe: Callable[[Volume], Scene] | None = None

    def look(self, volume: Volume) -> Scene:
        """The cells of a scan."""
        return self.describe(volume) if self.describe else scene(self.encoder, volume, self.looking)

    def digest(self) -> str:
        """Hash of what its cells and answers depend on beside the scans; other programs may give other digits."""
        how = [__version__, torch.__version__, to_data(self.looking), self.describe is None, self.encoder.device.type]
        return files.digest([VERSION, to_data(self.encoder.card), *how])


@dataclass(frozen=True)
class Look:
    """What is left of one look.

    Attributes
    ----------
    held : landmarks that the way can be asked for: its preparation, or the last whole cell, may cut others off.
    nearest : centre of the cell nearest to each landmark.
    seconds : what it took, preparation included, reading not.
    """

    held: frozenset[str]
    nearest: Mapping[str, Point]
    seconds: float


@dataclass
class Searched:
    """Answers in one order, the scans that took part, and what each method's looks took."""

    answers: list[Answer] = field(default_factory=list)
    scans: list[Known] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)


def search_all(
    known: Sequence[Known],
    methods: Mapping[str, Way],
    structures: Sequence[str] = (),
    source: str | None = None,
    *,
    parts: Path,
    failed: dict[str, str],
    tell: Tell = quiet,
    say: Say = lambda _: None,
) -> Searched:
    """Answers of all methods for all ordered pairs of patients, in one order; then the position guess and the best possible cell of
    the first method.

    structures : only these. source : only from the scan of this id (as published). parts : folder of the work; called again
    with it, what is finished there is kept. failed : takes scans that cannot be used, which then have no part in any method.
    Raises UsageError for fewer than two scans, DiskFullError where the disk is too small for the cells of one way.
    """
    alive = list(known)
    wanted = {k.id: {n for n in k.landmarks if not structures or n in structures} for k in known}
    names, nearest = dict(wanted), dict[str, Mapping[str, Point]]()
    found = Searched()
    for number, (method, way) in enumerate(methods.items(), 1):
        enough(alive, failed)
        title = f"{method} ({number} of {len(methods)})"
        desk = _Desk(way, parts / "ways" / way.digest()[:32], title, failed, tell, say)
        looks = desk.looks(alive, wanted)
        names = {k.id: names[k.id] & looks[k.id].held for k in alive}
        if number == 1:
            nearest = {id: look.nearest for id, look in looks.items()}
        asking = [k for k in alive if source is None or k.id == source]
        found.answers += [replace(answer, method=method) for answer in desk.answers(asking, alive, names, wanted)]
        found.seconds[method] = [looks[k.id].seconds for k in alive]
    first = next(iter(methods))
    # names that a later way does not hold are asked of none
    found.answers = [a for a in _among(found.answers, alive) if a.structure in names[a.query]]
    place = {k.id: k for k in alive}
    for a in [a for a in found.answers if a.method == first and a.error is not None]:
        query, target = place[a.query], place[a.target]
        share = (np.array(query.landmarks[a.structure]) - query.box[0]) / (query.box[1] - query.box[0])
        guess = target.box[0] + share * (target.box[1] - target.box[0])
        found.answers.append(_answer(POSITION, a.structure, query, target, guess))
        found.answers.append(_answer(BEST_CELL, a.structure, query, target, nearest[a.target][a.structure]))
    _look_up(found.answers, alive, failed, tell)
    found.scans = enough([k for k in alive if k.id not in failed], failed)
    found.answers = _among(found.answers, found.scans)
    return found


def enough(scans: list[Known], failed: Mapping[str, str]) -> list[Known]:
    """The scans; raises UsageError where there are fewer than two, with what is wrong with the others."""
    if len(scans) < 2:
        reasons = "; ".join(f"{id}: {reason}" for id, reason in failed.items())
        raise UsageError(f"{len(scans)} labelled scans: two are needed", do=reasons or None)
    return scans


class _Desk:
    """One way's work: looks and answers, as they lie in its folder."""

    def __init__(self, way: Way, folder: Path, title: str, failed: dict[str, str], tell: Tell, say: Say) -> None:
        self.way, self.folder, self.title, self.failed = way, folder, title, failed
        self.tell, self.say = tell, say
        self.written: list[int] = []  # bytes of the scenes of this run

    def looks(self, alive: list[Known], wanted: Mapping[str, set[str]]) -> dict[str, Look]:
        """What is left of each scan's look; those that are missing are made, and scans that cannot be seen leave `alive`."""
        self._see([k for k in alive if self._look(k, wanted) is None], wanted)
        alive[:] = [k for k in alive if k.id not in self.failed]
        return {k.id: look for k in alive if (look := self._look(k, wanted)) is not None}

    def answers(
        self,
        asking: Sequence[Known],
        alive: list[Known],
        names: Mapping[str, set[str]],
        wanted: Mapping[str, set[str]],
    ) -> Iterator[Answer]:
        """Answers of one scan after the other, without a method; those that are missing are looked for, then all cells are removed."""

        def left() -> list[Known]:
            return [q for q in asking if q.id not in self.failed and self._read(q, alive, names) is None]

        if left():
            gone = [k for k in alive if search_arrays.about(self._cells(k)) is None]
            self._see(gone, wanted)  # of a run whose scenes were removed or damaged
            alive[:] = [k for k in alive if k.id not in self.failed]
        todo, done = left(), 0
        count = sum(len(self._targets(q, alive, names)) for q in todo)
        for query in todo:
            rows: list[Any] = []
            for target, found in self._ask(query, alive, names):
                rows += [[name, target.id, point, evidence] for name, point, evidence in found]
                done += 1
                self.tell(f"{self.title}, searching", done, count)
            search_arrays.write_json(self._place(query, alive, names), rows)
        shutil.rmtree(self.folder / "cells", ignore_errors=True)
        place = {k.id: k for k in alive}
        for query in asking:
            for name, target, point, evidence in self._read(query, alive, names) or ():
                yield _answer("", name, query, place[target], point, Evidence(*evidence))

    def _see(self, scans: Sequence[Known], wanted: Mapping[str, set[str]]) -> None:
        for number, known in enumerate(scans, 1):
            made = tried(known.id, partial(self._seen, known, sorted(wanted[known.id])), self.failed)
            if made is not None:
                there, look, vectors = made
                self.written.append(search_arrays.write_scene(self._cells(known), there, vectors))
                data = {"held": sorted(look.held), "nearest": look.nearest, "seconds": look.seconds}
                search_arrays.write_json(self._look_place(known, wanted), data)
                self._room(len(scans) - number, len(scans))
            self.tell(f"{self.title}, looking", number, len(scans))

    def _seen(self, known: Known, names: Sequence[str]) -> tuple[Scene, Look, dict[str, Float[Tensor, "c"]]]:
        """Look at a scan: its cells, what stays of the look, and the raw features of its landmarks."""
        volume = known.scan.image()
        began = time.perf_counter()
        there = self.way.look(volume)
        seconds = time.perf_counter() - began
        # nothing is compared yet, so the rows are taken as they are
        seen = Seen(self.way.encoder, volume, self.way.looking, there, Likeness(there.widths), there.rows)
        vectors = {name: seen.feature(known.landmarks[name]) for name in names if seen.holds(known.landmarks[name])}
        nearest = {name: _nearest(there.centres, known.landmarks[name]) for name in names}
        return there, Look(frozenset(vectors), nearest, seconds), vectors

    def _room(self, left: int, count: int) -> None:
        mean = sum(self.written) / len(self.written)
        if len(self.written) == 1 and mean * count > 1e9:
            self.say(
                f"{self.title}: cells of {count} scans take some {mean * count / 1e9:.0f} GB of disk until it is done"
            )
        search_arrays.check_room(self.folder, mean * left, f"the cells of {left} more scans")

    def _ask(
        self, query: Known, alive: Sequence[Known], names: Mapping[str, set[str]]
    ) -> Iterator[tuple[Known, list[tuple[str, Point, list[float]]]]]:
        targets = self._targets(query, alive, names)
        if not targets:
            return
        device = self.way.encoder.device
        there = search_arrays.read_scene(self._cells(query), device)
        seen = Seen.of(self.way.encoder, None, self.way.looking, seen=there)
        vectors = search_arrays.read_vectors(self._cells(query), device)
        asked = {
            name: Query(seen, seen.likeness(vectors[name][None])[0], query.landmarks[name])
            for name in sorted(names[query.id])
        }
        for target in targets:
            other, found = search_arrays.read_scene(self._cells(target), device), []
            rows = seen.likeness(other.rows)
            for name, one in asked.items():
                if name not in target.landmarks and name in target.held:
                    continue  # cut by the border: where its centre would be is not known
                hit = one.find_in(other, rows=rows)
                assert hit.evidence is not None
                evidence = hit.evidence
                values = [evidence.similarity, evidence.margin, evidence.prominence, evidence.cycle_mm]
                found.append((name, hit.point, values))
            yield target, found

    def _targets(self, query: Known, alive: Sequence[Known], names: Mapping[str, set[str]]) -> list[Known]:
        return [t for t in alive if t.patient != query.patient] if names[query.id] else []

    def _cells(self, known: Known) -> Path:
        return self.folder / "cells" / known.content[:32]

    def _look_place(self, known: Known, wanted: Mapping[str, set[str]]) -> Path:
        return self.folder / "looks" / f"{files.digest([known.content, sorted(wanted[known.id])])[:32]}.json"

    def _look(self, known: Known, wanted: Mapping[str, set[str]]) -> Look | None:
        data = search_arrays.read_json(self._look_place(known, wanted))
        if data is None:
            return None
        nearest = {name: (x, y, z) for name, (x, y, z) in data["nearest"].items()}
        return Look(frozenset(data["held"]), nearest, data["seconds"])

    def _place(self, query: Known, alive: Sequence[Known], names: Mapping[str, set[str]]) -> Path:
        targets = [[t.id, t.content] for t in self._targets(query, alive, names)]
        key = files.digest([query.id, query.content, sorted(names[query.id]), targets])
        return self.folder / "answers" / f"{key[:32]}.json"

    def _read(self, query: Known, alive: Sequence[Known], names: Mapping[str, set[str]]) -> list[Any] | None:
        found: list[Any] | None = search_arrays.read_json(self._place(query, alive, names))
        return found


def _nearest(centres: np.ndarray, point: Point) -> Point:
    x, y, z = centres[np.linalg.norm(centres - np.array(point), axis=1).argmin()].tolist()
    return x, y, z


def _among(answers: Sequence[Answer], scans: Sequence[Known]) -> list[Answer]:
    ids = {k.id for k in scans}
    return [a for a in answers if a.query in ids and a.target in ids]


def _answer(
    method: str, name: str, query: Known, target: Known, point: Sequence[float], evidence: Evidence | None = None
) -> Answer:
    truth = target.landmarks.get(name)
    error = None if truth is None else float(np.linalg.norm(np.asarray(point) - np.array(truth)))
    x, y, z = (float(v) for v in point)
    return Answer(method, name, query.id, target.id, (query.patient, target.patient), (x, y, z), error, None, evidence)


def _look_up(answers: list[Answer], scans: Sequence[Known], failed: dict[str, str], tell: Tell) -> None:
    """Whether each answer lies in its structure: the labels of one target after the other."""
    of: dict[str, list[int]] = {}
    for place, answer in enumerate(answers):
        if answer.error is not None:
            of.setdefault(answer.target, []).append(place)
    for number, target in enumerate(scans, 1):
        labels = tried(target.id, partial(labels_of, target.scan), failed) if target.id in of else None
        if labels is not None:
            for place in of[target.id]:
                hit = inside(labels, answers[place].structure, np.array([answers[place].point]))
                answers[place] = replace(answers[place], inside=None if hit is None else float(hit[0]))
        tell("looking answers up in labels", number, len(scans))
