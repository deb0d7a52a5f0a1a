"""One segmenter over many scans: label maps on each scan's own grid, DICOM objects, measures, and one page to look at.

``OUT/ID.nii.gz`` (names in ``labels.json``), ``ID.seg.dcm``, ``ID.rtstruct.dcm``, ``probabilities/ID-NAME.nii.gz``. ``scans/ID.json`` is written last
and says that a scan is finished; what it does not vouch for is done again. ``volumes.csv``, ``volumes.json`` and ``qc.html`` are made of all
finished scans of the folder.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ctfoundry import files, io
from ctfoundry.adapt import apply_page
from ctfoundry.adapt.apply_table import Measure, Measured, as_csv, flags, measure, middle, rows
from ctfoundry.errors import CTFoundryError, StoreError, UsageError
from ctfoundry.infer.many import overlapped
from ctfoundry.segmenter import Pass, Segmenter
from ctfoundry.settings import from_data, to_data
from ctfoundry.volume import Volume

SAME_MODEL = ("architecture", "arguments", "preparation", "extent", "weights", "sha256", "seed", "names")
"""What of a card decides the labels; the rest (who trained it for how long) may differ."""

SEG, RTSTRUCT = "DICOM SEG", "RTSTRUCT"
NO_SERIES = "the scan does not come from a DICOM series"


@dataclass(frozen=True)
class Item:
    """A scan to segment.

    Attributes
    ----------
    id : public name, that of its files. digest : of its content. read : gives it.
    series : the DICOM series that it comes from, as `io.write_seg` takes it; None where it comes from none.
    no_series : why there is none.
    """

    id: str
    digest: str
    read: Callable[[], Volume]
    series: str | Sequence[Path] | None = None
    no_series: str = NO_SERIES


@dataclass(frozen=True)
class Options:
    """What is made of each scan.

    Attributes
    ----------
    labels : the structures to write and measure; none: all.
    largest : keep the largest part of each structure alone.
    settings : how a scan goes through the network.
    probabilities : structures whose probability is written too.
    dicom_seg, rtstruct : also as DICOM objects, where the source is a DICOM series.
    """

    labels: tuple[str, ...] = ()
    largest: bool = False
    settings: Pass = field(default_factory=Pass)
    probabilities: tuple[str, ...] = ()
    dicom_seg: bool = False
    rtstruct: bool = False


@dataclass(frozen=True)
class Step:
    """How far the work is: scans through the network of all that are to do, and windows of the current one (0 of 0: one was written)."""

    scans: int
    of: int
    windows: int
    windows_of: int
    id: str

    @property
    def share(self) -> float:
        """Of all the work, as if every scan had as many windows."""
        return (self.scans + (self.windows / self.windows_of if self.windows_of else 0)) / max(self.of, 1)


@dataclass
class Outcome:
    """Ids whose label map was written now or was there already; `failed` says what could not be made and why (a scan whose label map is
    there stands in both when a DICOM object of it is missing). `table`: the rows of volumes.csv. `flagged`: what to
    look at, by scan."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    table: list[dict[str, Any]] = field(default_factory=list)
    flagged: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class _Given:
    """A scan that was read, or the label map that is there already when only DICOM objects are missing."""

    item: Item
    volume: Volume
    seconds: float
    only_dicom: bool


@dataclass
class _Made:
    given: _Given
    labels: Volume
    shares: dict[str, Volume]
    seconds: float


def segment_many(
    scans: Iterable[Item],
    segmenter: Segmenter,
    out: Path,
    options: Options = Options(),
    *,
    progress: Callable[[Step], None] = lambda _: None,
) -> Outcome:
    """Segment `scans` into `out`; one that fails is named in the outcome and leaves the others alone.

    The next scan is read and the last one written while the network runs. A killed call is continued by the same call: finished scans of
    the same model, settings and content are skipped, and when only a DICOM object is missing it is made of the label map that is there.

    Raises UsageError for structures that the model does not have and for missing packages, StoreError when `out` holds segmentations of
    another model or with other settings.
    """
    check(segmenter, options)
    _open(out, segmenter, options)
    outcome, todo = Outcome(), []
    items = {item.id: item for item in scans}
    for item in items.values():
        missing = _missing(out, item, options)
        if missing:
            todo.append((item, missing <= {SEG, RTSTRUCT}))
        else:
            outcome.skipped.append(item.id)
    through = 0

    def read(task: tuple[Item, bool]) -> _Given:
        item, only_dicom = task
        start = time.monotonic()
        volume = io.read(out / _labels_name(item.id), kind="label") if only_dicom else item.read()
        return _Given(item, volume, time.monotonic() - start, only_dicom)

    def work(given: _Given) -> _Made:
        nonlocal through
        start, id, before = time.monotonic(), given.item.id, through
        try:
            if given.only_dicom:
                return _Made(given, given.volume, {}, 0.0)
            labels, shares = segmenter.both(
                replace(given.volume, source=id),
                options.probabilities,
                labels=options.labels or None,
                largest=options.largest,
                settings=options.settings,
                progress=lambda done, count: progress(Step(before, len(todo), done, count, id)),
            )
            return _Made(given, labels, shares, time.monotonic() - start)
        finally:
            through += 1

    def write(_: tuple[Item, bool], made: _Made) -> None:
        _write(out, segmenter, options, made)

    for ended in overlapped(todo, read, work, write):
        item = ended.item[0]
        through += ended.stage == "read"
        if ended.error is None:
            outcome.done.append(item.id)
        else:
            outcome.failed[item.id] = said(ended.error)
        progress(Step(through, len(todo), 0, 0, item.id))
    for id in (*outcome.done, *outcome.skipped):
        lacking = _record(out, id).get("not_written", {})
        texts = [f"no {what}: {why}" for what, why in lacking.items() if what in _asked(options)]
        if texts:
            outcome.failed[id] = "; ".join(texts)
    _summarise(out, segmenter, outcome)
    return outcome


def said(error: BaseException) -> str:
    """An error in words without a path: they go into files that are shown around."""
    if isinstance(error, CTFoundryError):
        return error.what + (f" -> {error.do}" if error.do and os.sep not in error.do else "")
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, MemoryError):
        return "does not fit into this machine's memory"
    text = str(error).splitlines()[0] if str(error) else ""
    return type(error).__name__ + (f": {text}" if text and os.sep not in text else "")


def check(segmenter: Segmenter, options: Options) -> None:
    """Raise UsageError for what cannot be asked of this model or on this machine, before anything is written."""
    try:
        segmenter.values([*options.labels, *options.probabilities])
    except CTFoundryError as error:
        raise UsageError(error.what, where="--labels, --probabilities") from error
    names = [_safe(name) for name in options.probabilities]
    if len(set(names)) != len(names):
        raise UsageError(
            "names of two structures differ only in signs that file names cannot hold", where="probabilities"
        )
    if options.dicom_seg:
        try:
            import highdicom  # noqa: F401
        except ImportError as error:
            raise UsageError("writing DICOM SEG needs highdicom", do="pip install 'ctfoundry[seg]'") from error


def _open(out: Path, segmenter: Segmenter, options: Options) -> None:
    """Make the folder, or check that what it holds was made in the same way."""
    card = to_data(segmenter.card)
    way = to_data(replace(options.settings, batch=None))
    made = {
        "model": {key: card[key] for key in SAME_MODEL},
        "settings": {"labels": sorted(options.labels), "largest": options.largest, **way},
    }
    path = out / "model.json"
    if path.is_file():
        there = json.loads(path.read_text())
        there = {key: there.get(key) for key in made}
        if there != json.loads(json.dumps(made)):
            what = "another model" if there["model"] != json.loads(json.dumps(made["model"])) else "other settings"
            raise StoreError(f"holds segmentations of {what}", where=out, do="choose another folder")
    else:
        files.write_json(path, {"name": segmenter.card.name, **made})
    wanted = segmenter.values(list(options.labels)) if options.labels else range(1, len(segmenter.names))
    files.write_json(out / "labels.json", {str(v): segmenter.names[v] for v in sorted(wanted)})
    for folder in (out, out / "scans", out / "probabilities"):
        if folder.is_dir():
            files.sweep(folder)


def _labels_name(id: str) -> str:
    return f"{id}.nii.gz"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)


def _asked(options: Options) -> set[str]:
    shares = {f"probability of {name}" for name in options.probabilities}
    return {"labels", *shares} | ({SEG} if options.dicom_seg else set()) | ({RTSTRUCT} if options.rtstruct else set())


def _record(out: Path, id: str) -> dict[str, Any]:
    """What a finished scan's record says; empty where there is none."""
    try:
        found = json.loads((out / "scans" / f"{id}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _missing(out: Path, item: Item, options: Options) -> set[str]:
    """Which of the asked outputs of a scan are not there, whole and made of this content."""
    record = _record(out, item.id)
    asked = _asked(options)
    if record.get("digest") != item.digest:
        return asked
    there = set()
    for what, file in record["outputs"].items():
        path = out / file["name"]
        if path.is_file() and path.stat().st_size == file["bytes"]:
            there.add(what)
    if "labels" not in there:
        return asked
    # what no DICOM series is will not become one: that it was asked for is answered
    answered = {SEG, RTSTRUCT} & set(record["not_written"]) if item.series is None else set()
    return asked - there - answered


def _write(out: Path, segmenter: Segmenter, options: Options, made: _Made) -> None:
    """All outputs of a scan, its record last."""
    start = time.monotonic()
    item, old = made.given.item, _record(out, made.given.item.id)
    outputs: dict[str, str] = {}
    not_written: dict[str, str] = {}
    if not made.given.only_dicom:
        old = {}
        io.write(made.labels, out / _labels_name(item.id))
        outputs["labels"] = _labels_name(item.id)
        for name, share in made.shares.items():
            place = f"probabilities/{item.id}-{_safe(name)}.nii.gz"
            io.write(share, out / place)
            outputs[f"probability of {name}"] = place
    for what, wanted, suffix in ((SEG, options.dicom_seg, "seg"), (RTSTRUCT, options.rtstruct, "rtstruct")):
        if not wanted:
            continue
        if item.series is None:
            not_written[what] = item.no_series
            continue
        place = f"{item.id}.{suffix}.dcm"
        try:
            if what == SEG:
                io.write_seg(made.labels, out / place, item.series, algorithm=segmenter.card.name)
            else:
                io.write_rtstruct(made.labels, out / place, item.series)
            outputs[what] = place
        except CTFoundryError as error:
            not_written[what] = said(error)
    facts = {} if made.given.only_dicom else _facts(out, made)
    sizes = {what: {"name": name, "bytes": (out / name).stat().st_size} for what, name in outputs.items()}
    record = {"id": item.id, "digest": item.digest, **old, **facts}
    if facts:
        spent = {"read": made.given.seconds, "network": made.seconds, "write": time.monotonic() - start}
        record["seconds"] = {stage: round(seconds, 3) for stage, seconds in spent.items()}
    record["outputs"] = old.get("outputs", {}) | sizes
    record["not_written"] = {k: v for k, v in old.get("not_written", {}).items() if k not in sizes} | not_written
    files.write_json(out / "scans" / f"{item.id}.json", record)


def _facts(out: Path, made: _Made) -> dict[str, Any]:
    """What of a scan goes into the tables and the page."""
    scan, labels = made.given.volume, made.labels
    apply_page.save_picture(out / "scans" / f"{made.given.item.id}.png", scan, labels)
    return {
        "shape": list(scan.shape),
        "spacing": [round(s, 5) for s in scan.spacing],
        "orientation": scan.orientation,
        "notes": list(dict.fromkeys((*scan.notes, *labels.notes))),
        "middle": middle(scan) if scan.kind == "hu" else None,
        "measures": to_data(measure(scan, labels)),
    }


def finished(out: Path) -> list[dict[str, Any]]:
    """The records of all finished scans of a folder, by id."""
    records = [_record(out, path.stem) for path in sorted((out / "scans").glob("*.json"))]
    return [record for record in records if record and (out / _labels_name(record["id"])).is_file()]


def _summarise(out: Path, segmenter: Segmenter, outcome: Outcome) -> None:
    """volumes.csv, volumes.json and qc.html of all finished scans of the folder."""
    records = finished(out)
    batch = [
        Measured(
            record["id"],
            [from_data(Measure, m, record["id"]) for m in record["measures"]],
            None if record["middle"] is None else (record["middle"][0], record["middle"][1]),
        )
        for record in records
    ]
    found = flags(batch)
    outcome.table = rows(batch, found)
    for flag in (flag for flag in found if not flag.minor):
        outcome.flagged.setdefault(flag.scan, []).append(f"{flag.name}: {flag.what}" if flag.name else flag.what)
    files.write_text(out / "volumes.csv", as_csv(outcome.table))
    model = json.loads((out / "model.json").read_text())
    files.write_json(
        out / "volumes.json",
        {
            "model": model["name"],
            "sha256": model["model"]["sha256"],
            "settings": model["settings"],
            "rows": outcome.table,
        },
    )
    apply_page.write(out / "qc.html", out, segmenter, records, batch, found, outcome.failed)
