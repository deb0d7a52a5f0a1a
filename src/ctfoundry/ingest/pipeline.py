"""`prepare_store`: from sources to a store, once for all executors.

What decides is a function of the sources and of what the store held before, never of the order in which workers finish or of
how often a run was killed: so the same sources give the same store, byte for byte.
"""

from __future__ import annotations

import csv
import io as textio
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ctfoundry import files, identity, io
from ctfoundry.errors import CTFoundryError, UsageError
from ctfoundry.ingest import facts, rules
from ctfoundry.ingest.facts import Origin, Value
from ctfoundry.ingest.hashes import Hashes
from ctfoundry.ingest.rules import CHOICES, Checks, LeftOut
from ctfoundry.ingest.task import STAGES, Job, Result, memory_of
from ctfoundry.ingest.workers import Executor, Inline, pace
from ctfoundry.io import Found, zip_directory
from ctfoundry.io.skips import Missing
from ctfoundry.record import Record
from ctfoundry.settings import to_data
from ctfoundry.store import Store, create, open_store

FEWEST_JUDGED = 10
"""Of fewer scans no share that fails is taken."""
SIGMAS = 3.0
"""While work goes on it is stopped when the share that fails is over its limit by so many standard errors."""
SAY_S = 2.0
"""Seconds between two lines of progress."""
UNFINISHED = "private-unfinished.json"
"""Ids that the store held before a run that has not ended yet: those are never taken for a copy of something newer."""


class TooManyFailError(CTFoundryError):
    """More of the scans fail than was allowed; what was finished stays."""


@dataclass
class Outcome:
    """What a run did.

    Attributes
    ----------
    added, skipped : ids stored now, and there already.
    left_out : id to rule and reason; `failed` are those of them that break a rule of quality.
    labels, passed_over : label maps; files that are no scan, by reason (those that may be one are left out, `io.Skip.lost`).
    notes : of what was added.
    changed : id in the store to the new id of the same file, whose content is another now. Both are in the store.
    seconds, bytes_in, bytes_out, voxels, peak_mib : of all work on `added`: sums over the workers, and the largest worker.
    """

    added: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    labels: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    notes: dict[str, list[str]] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    bytes_in: int = 0
    bytes_out: int = 0
    voxels: int = 0
    peak_mib: int = 0

    @property
    def failed(self) -> dict[str, str]:
        """Id to reason of what breaks a rule of quality; copies and what was not chosen are no failures."""
        return {id: out.reason for id, out in sorted(self.left_out.items()) if out.rule not in CHOICES}

    @property
    def rules(self) -> dict[str, int]:
        """How many scans each rule left out, most first."""
        return dict(Counter(out.rule for out in self.left_out.values()).most_common())


def prepare_store(
    sources: Sequence[Path],
    store_path: Path,
    grid: str = "floor:1",
    *,
    checks: Checks | None = None,
    i_know: bool = False,
    allow_gaps: bool = False,
    representative: bool = False,
    collection: str = "",
    cohort: Path | None = None,
    rehash: bool = False,
    failing_share: float = 0.2,
    executor: Executor | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Every CT under `sources` into the store; writes ``quarantine.csv``, ``run.json`` and the private files.

    Scans are known by a salted hash of their content, patients by one of their DICOM ID or, without one, of their folder.
    Killed and run again, it continues, and ends with the same store.

    Parameters
    ----------
    sources : folders, files, zip archives, DICOMDIRs.
    grid : of the store (`ctfoundry.store.grids`).
    checks : thresholds of the rules.
    i_know : take for HU what does not look it (a 0..1 or 8-bit image, MR, CT without its intercept ...), marked in the store's
        notes and in ``run.json``. Label maps stay out.
    allow_gaps : resample series with missing slices or irregular distances, marked likewise.
    representative : only the series that represents each study (`io.studies`).
    collection : public name of the collection that all of it belongs to.
    cohort : file of `ctfoundry.archive`; only its series are taken, with collection, licence, DOI and public UIDs.
    rehash : do not trust hashes that are known from the size and time of files.
    failing_share : with more than this share of at least `FEWEST_JUDGED` scans failing it stops.
    executor : where the work is done; by default in this process.

    Raises
    ------
    TooManyFailError; UsageError for a source that is none; StoreError for a folder that is another store.
    """
    if not 0 <= failing_share <= 1:
        raise UsageError("a share lies between 0 and 1", where="--failing-share")
    origin = facts.of_cohort(cohort) if cohort is not None else None
    run = _Run(executor or Inline(), checks or Checks(), failing_share, i_know, allow_gaps, collection, origin, say)
    command = _command(grid, len(sources), run, representative, cohort is not None)
    try:
        with create(store_path, grid, salt_id=identity.salt_name()) as store:
            run.prepare(sources, store, representative=representative, rehash=rehash)
    except TooManyFailError:
        _write(run, store_path, command)
        raise
    _write(run, store_path, command)
    (store_path / UNFINISHED).unlink(missing_ok=True)
    return run.outcome


def _command(grid: str, sources: int, run: _Run, representative: bool, cohort: bool) -> list[str]:
    """The command as ``run.json`` has it: without a path."""
    switches = {"--i-know": run.i_know, "--allow-gaps": run.allow_gaps, "--representative": representative}
    told = [flag for flag, on in switches.items() if on]
    told += ["--collection", run.collection] if run.collection else []
    return ["prepare", "--grid", grid, *told, *(["--cohort", "FILE"] if cohort else []), *["SRC"] * sources]


def _write(run: _Run, store: Path, command: list[str]) -> None:
    outcome = run.outcome
    table = textio.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("id", "rule", "reason"))
    writer.writerows((id, out.rule, out.reason) for id, out in sorted(outcome.left_out.items()))
    files.write_text(store / "quarantine.csv", table.getvalue())
    identity.write_private(store, run.paths)
    run.hashes.tidy()
    record = Record(command, started=run.started, inputs=run.inputs)
    record.results = {
        "added": outcome.added,
        "skipped": outcome.skipped,
        "left_out": {id: to_data(out) for id, out in sorted(outcome.left_out.items())},
        "label_maps": outcome.labels,
        "passed_over": dict(outcome.passed_over),
        "notes": dict(sorted(outcome.notes.items())),
        "checks": to_data(run.checks),
        "work": measured(outcome),
    }
    record.write(store, ["quarantine.csv"])


def measured(outcome: Outcome) -> dict[str, Any]:
    """Seconds of each stage, bytes and memory of the scans that were added, as data."""
    return {
        "scans": len(outcome.added),
        "seconds": {stage: round(seconds, 3) for stage, seconds in outcome.seconds.items()},
        "bytes_in": outcome.bytes_in,
        "bytes_out": outcome.bytes_out,
        "voxels": outcome.voxels,
        "peak_memory_mib_of_a_worker": outcome.peak_mib,
    }


@dataclass
class _Run:
    """One run: what it was asked for, and what is known so far."""

    executor: Executor
    checks: Checks
    failing_share: float
    i_know: bool
    allow_gaps: bool
    collection: str
    origin: Origin | None
    say: Callable[[str], None]
    outcome: Outcome = field(default_factory=Outcome)
    paths: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    hashes: Hashes = field(init=False)
    copies: list[tuple[Found, str]] = field(default_factory=list)
    label_ids: set[str] = field(default_factory=set)

    def prepare(self, sources: Sequence[Path], store: Store, *, representative: bool, rehash: bool) -> None:
        """Discovery, rules of headers, the work, copies."""
        key = identity.salt()
        files.sweep(store.path)
        self.hashes = Hashes(store.path, key, fresh=rehash)
        before = self._before(store)
        there = set(store.entries.ids)
        marks: dict[int, str] = {}
        jobs: list[Job] = []
        for found in self._chosen(sources, representative):
            number = len(marks)
            try:
                marks[number] = self.hashes.mark(found)
            except OSError as error:  # gone since it was found
                self._leave(found, rules.of_error(error, found))
                continue
            jobs.append(self._job(number, found, store, key, self.hashes.get(marks[number])))
        judge = _Judge(self.failing_share, len(self.outcome.failed), len(jobs))
        judge.now()
        self.say(f"{len(jobs)} scans to look at, {len(self.outcome.left_out)} left out by their headers")
        order: dict[str, int] = {}
        with self.executor:
            jobs = self._hashed(jobs, marks)
            jobs = self._without_copies(jobs, key)
            progress = _Progress(self.say, len(jobs))
            for job, result in self.executor.run(jobs, self.say):
                if result.digest:
                    self.hashes.put(marks[job.number], result.digest)
                self._settle(job, result, there)
                if result.id:
                    order[result.id] = job.number
                judge.add(result)
                progress.step(len(self.outcome.left_out))
        for found, id in self.copies:
            if id in self.label_ids:
                self.outcome.labels += 1
            else:
                self.say(f"{found.name}: a byte-for-byte copy of another scan, left out")
                self._leave(found, LeftOut("copy", f"the same bytes as {id}"), "copy")
        open_store(store.path)  # which removes what workers that died have left
        store.flush()
        self._duplicates(store, order, before)
        self._changes(store)
        for ids in (self.outcome.added, self.outcome.skipped):
            ids.sort()
        judge.end()

    # ------------------------------------------------------------------ before the work

    def _before(self, store: Store) -> set[str]:
        """Ids that were there before this run, or before the unfinished one that it continues."""
        place = store.path / UNFINISHED
        try:
            return set(json.loads(place.read_text()))
        except (FileNotFoundError, ValueError):
            ids = store.entries.ids
            files.write_json(place, ids, mode=0o600)
            return set(ids)

    def _chosen(self, sources: Sequence[Path], representative: bool) -> Iterator[Found]:
        """What may be read of what the sources hold, in an order that they alone decide."""
        found: list[Found] = []
        seen = set()
        for source in sources:
            for item in self._found(source):
                name = (tuple(map(str, item.files)), item.members, item.frames, item.part)
                if name not in seen:  # sources may overlap
                    seen.add(name)
                    found.append(item)
        losers = rules.judged(found) if representative else {}
        for k, item in enumerate(found):
            if item.is_label and item.format == "dicom":  # a SEG or RTSTRUCT: nothing to find out by reading it
                self.outcome.labels += 1
            elif self.origin is not None and item.series not in self.origin.series:
                self._leave(item, LeftOut("cohort", "is no series of the cohort"))
            elif k in losers and not item.is_label:
                reason = f"does not represent its study: {rules.public(losers[k], item)}"
                self._leave(item, LeftOut("representative", reason))
            elif refused := rules.by_header(item, self.checks, allow_gaps=self.allow_gaps):
                self._leave(item, refused, detail=str(item.problem or ""))
            else:
                yield item

    def _found(self, source: Path) -> list[Found]:
        """What a folder, an archive or a DICOMDIR holds, or the one file."""
        if source.is_dir() or io.is_listing(source):
            inside = io.discover(source)
            self._missing(inside.missing)
            self.outcome.passed_over.update(inside.passed_over)
            return list(inside.found)
        beside = io.discover(source.parent, deep=False) if source.is_file() else None
        chosen = [item for item in beside.found if source in item.paths] if beside else []
        if not chosen:
            raise CTFoundryError("is neither a folder nor a scan", where=source)
        return chosen

    def _job(self, number: int, found: Found, store: Store, key: bytes, digest: str) -> Job:
        provenance: dict[str, Value] = facts.of_header(found, key=key)
        collection, owner = self.collection, ""
        if self.origin is not None:
            collection, patient, public = self.origin.series[found.series or ""]
            provenance |= public
            owner = f"archive:{collection}:{patient}"
        elif found.patient:
            owner = f"dicom:{collection}:{found.patient}" if collection else f"dicom:{found.patient}"
        else:
            owner = f"folder:{found.path.parent.resolve()}"
        return Job(
            number, store.path.resolve(), store.grid, found, identity.name("patient", owner, key=key), collection,
            provenance, self.checks, key, self.i_know, self.allow_gaps, digest, memory=memory_of(found, store.grid),
        )  # fmt: skip

    def _hashed(self, jobs: list[Job], marks: Mapping[int, str]) -> list[Job]:
        """The jobs, with digests of all that could be copies of each other by their sizes; the others are hashed as they are read."""
        sizes = defaultdict(list)
        for job in jobs:
            sizes[_size_of(job.found)].append(job.number)
        twins = {number for group in sizes.values() if len(group) > 1 for number in group}
        todo = [replace(job, only_hash=True) for job in jobs if job.number in twins and not job.digest]
        digests: dict[int, str] = {}
        if todo:
            self.say(f"{len(todo)} scans have the size of another one; hashing them first")
        for job, result in self.executor.run(todo, self.say):
            if result.digest and result.left_out is None:
                digests[job.number] = result.digest
                self.hashes.put(marks[job.number], result.digest)
        return [replace(job, digest=job.digest or digests.get(job.number, "")) for job in jobs]

    def _without_copies(self, jobs: list[Job], key: bytes) -> list[Job]:
        """The jobs, less those whose files are byte for byte those of an earlier one."""
        kept, first = [], dict[str, str]()
        for job in jobs:
            if job.digest and job.digest in first:
                self.copies.append((job.found, first[job.digest]))
                continue
            if job.digest:
                first[job.digest] = identity.name("scan", job.digest, key=key)
            kept.append(job)
        return kept

    def _leave(self, found: Found, out: LeftOut, kind: str = "", detail: str = "") -> None:
        """Leave out what has not been hashed, or has the hash of another."""
        id = identity.name(kind, found.name) if kind else _name_of(found)
        self.outcome.left_out[id] = out
        self.paths[id] = found.name
        if out.rule not in CHOICES:
            self.say(f"{found.path}: left out: {out.rule}: {detail or out.reason}")

    def _missing(self, missing: Sequence[Missing]) -> None:
        """Leave out what could not even be recognised."""
        for lost in missing:
            id = identity.name("lost", str(lost.place), lost.reason)
            self.outcome.left_out[id] = LeftOut("unreadable", lost.told)
            self.paths[id] = str(lost.place)
            first = "" if lost.paths == (lost.place,) else f", {lost.paths[0].name} first"
            self.say(f"{lost.place}: left out: unreadable: {lost.told}{first}")

    # ------------------------------------------------------------------ after the work

    def _settle(self, job: Job, result: Result, there: set[str]) -> None:
        found, outcome = job.found, self.outcome
        id = result.id or _name_of(found)
        if result.label:
            outcome.labels += 1
            self.label_ids.add(id)
            return
        self.paths[id] = found.name
        if result.left_out is not None:
            outcome.left_out[id] = result.left_out
            self.say(f"{found.path}: left out: {result.left_out.rule}: {result.detail or result.left_out.reason}")
            return
        self.inputs[id] = identity.sealed(result.digest)
        if id in there:
            outcome.skipped.append(id)
            return
        outcome.added.append(id)
        if result.notes:
            outcome.notes[id] = list(result.notes)
        for stage, seconds in result.seconds.items():
            outcome.seconds[stage] += seconds
        outcome.bytes_in += result.bytes_in
        outcome.bytes_out += result.bytes_out
        outcome.voxels += result.voxels
        outcome.peak_mib = max(outcome.peak_mib, result.peak_mib)

    def _duplicates(self, store: Store, order: Mapping[str, int], before: set[str]) -> None:
        """Take out scans of this run with the voxels of another one: what was there before stays, then the first in order.

        The same voxels make the same array file, whose SHA-256 the index holds.
        """
        same: dict[bytes, list[str]] = defaultdict(list)
        table = store.entries.table
        for id, digest in zip(table["id"].tolist(), table["sha256"], strict=True):
            same[digest.tobytes()].append(id.decode())
        gone = False
        for group in same.values():
            if len(group) < 2:
                continue
            ranked = sorted(group, key=lambda id: (id in order and id not in before, order.get(id, 0), id))
            for id in ranked[1:]:
                if id in before or id not in order:
                    continue
                store.remove(id)
                gone = True
                self.outcome.left_out[id] = LeftOut("duplicate", f"the same voxels as {ranked[0]}")
                self.say(f"{self.paths[id]}: the same voxels as another scan, left out")
                for ids in (self.outcome.added, self.outcome.skipped):
                    if id in ids:
                        ids.remove(id)
                self.outcome.notes.pop(id, None)
                self.inputs.pop(id, None)
        if gone:
            store.flush()

    def _changes(self, store: Store) -> None:
        """Files whose content is another than when they were put in."""
        place = store.path / identity.PRIVATE
        known = json.loads(place.read_text()) if place.is_file() else {}
        now = {path: id for id, path in self.paths.items()}
        for id, path in sorted(known.items()):
            new = now.get(path, id)
            if new != id and id in store and new in store:
                self.outcome.changed[id] = new
                self.say(f"{path}: has changed since it was put in as {id}; it is {new} now, and both are in the store")


def _name_of(found: Found) -> str:
    """Names a scan whose files need not be hashed because it is left out: by its series, or its path."""
    return identity.name("series", found.series, found.part) if found.series else identity.name("file", found.name)


def _size_of(found: Found) -> int:
    """Bytes of its files, those in an archive unpacked; the same for copies, however they are packed."""
    try:
        if found.members:
            names = set(found.members)
            return sum(member.size for member in zip_directory.members(found.path) if member.name in names)
        return sum(path.stat().st_size for path in found.files)
    except (CTFoundryError, OSError):
        return 0


class _Judge:
    """Whether too many fail: `total` scans wait, `failed` are out by their headers already."""

    def __init__(self, share: float, failed: int, total: int) -> None:
        self.share, self.failed, self.total, self.read, self.bad = share, failed, failed + total, 0, 0

    def add(self, result: Result) -> None:
        """Count a result; raises TooManyFailError when the share is over its limit beyond chance."""
        if result.label:
            self.total -= 1
            return
        self.read += 1
        self.bad += result.left_out is not None
        excess = self.bad - self.share * self.read
        if self.read >= FEWEST_JUDGED and excess > SIGMAS * math.sqrt(self.read * self.share * (1 - self.share)):
            self._stop(self.bad, self.read)
        self.now()

    def now(self) -> None:
        """Raise where the share is over its limit whatever comes; label maps among those that wait only lower the count."""
        if self.total >= FEWEST_JUDGED and self.failed + self.bad > self.share * self.total:
            self._stop(self.failed + self.bad, self.total)

    end = now

    def _stop(self, failed: int, of: int) -> None:
        raise TooManyFailError(
            f"{failed} of {of} scans fail, more than {self.share:.0%}; what is finished stays",
            do="read the reasons above; mend the sources or the rules, or allow more with --failing-share, and run it again",
        )


class _Progress:
    """A line now and then: how many, how fast, how long still."""

    def __init__(self, say: Callable[[str], None], total: int) -> None:
        self._say, self._total, self._done = say, total, 0
        self._started = self._last = time.monotonic()

    def step(self, left_out: int) -> None:
        """One more is done."""
        self._done += 1
        now = time.monotonic()
        if now - self._last < SAY_S and self._done < self._total:
            return
        self._last = now
        how = pace(self._done, self._total, now - self._started)
        self._say(f"{self._done} of {self._total} scans, {how}, {left_out} left out")
