"""Many scans to a store: rules, copies, changed files, memory, workers that die, runs that are killed."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import deadly
import worlds
from ctfoundry import identity, io
from ctfoundry.archive import Rules, build, read_cohort
from ctfoundry.errors import UsageError
from ctfoundry.ingest import Checks, Inline, Local, prepare_store
from ctfoundry.ingest.pipeline import TooManyFailError
from ctfoundry.io.dicom_write import write_series
from ctfoundry.store import open_store
from deadly import content

LOOSE = {"failing_share": 1.0}


@pytest.fixture(scope="session")
def reference(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `mixed`, made in this process without a disturbance."""
    os.environ["CTFOUNDRY_SALT"] = "ingest-test"
    store = tmp_path_factory.mktemp("reference") / "store"
    prepare_store([mixed], store, "native", **LOOSE)
    return store


def table(store: Path) -> dict[str, dict[str, str]]:
    with open(store / "quarantine.csv", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


# Rules ----------------------------------------------------------------------------------------------------------------


def test_every_rule_leaves_out_its_scan_by_name(mixed: Path, reference: Path) -> None:
    private = json.loads((reference / identity.PRIVATE).read_text())
    by_place = {str(Path(private[id]).relative_to(mixed)): row for id, row in table(reference).items()}
    assert {place: row["rule"] for place, row in by_place.items()} == {
        "x-thin.nii.gz": "slices",
        "x-coarse.nii.gz": "spacing",
        "x-short.nii.gz": "coverage",
        "x-air.nii.gz": "body",
        "x-steep.nii.gz": "hu-range",
        "x-shifted.nii.gz": "not-hu",
        "x-cut.nii.gz": "truncated",
        "z-copy/ct.nii.gz": "copy",
        "n2/ct.nii.gz": "duplicate",  # its voxels came first in another file
    }
    kept = by_place["n2/ct.nii.gz"]["reason"].removeprefix("the same voxels as ")
    assert Path(private[kept]).name == "a-the-same-as-n2.mha"
    store = open_store(reference)
    assert len(store) == 10
    assert kept in store
    assert store.verify() == []
    assert (reference / "quarantine.csv").read_text().splitlines()[1:] == sorted(
        (reference / "quarantine.csv").read_text().splitlines()[1:]
    )


@pytest.mark.parametrize(
    ("checks", "rule"),
    [
        (Checks(min_slices=21), "slices"),
        (Checks(min_cover_mm=81), "coverage"),
        (Checks(spacing_mm=(3.5, 10)), "spacing"),
        (Checks(min_body=0.9), "body"),
        (Checks(plausible_hu=(-900, 4000)), "hu-range"),
    ],
)
def test_thresholds_are_data(checks: Checks, rule: str, tmp_path: Path) -> None:
    io.write(worlds.body(1, (20, 32, 36), (4, 3, 3)), tmp_path / "in" / "a.nii.gz")
    assert list(prepare_store([tmp_path / "in"], tmp_path / "ok", "native").rules) == []
    assert list(prepare_store([tmp_path / "in"], tmp_path / "s", "native", checks=checks).rules) == [rule]


def test_a_constant_scan_and_an_unknown_threshold(tmp_path: Path) -> None:
    affine = np.diag([-2.0, -2, 3, 1])
    nib.save(nib.Nifti1Image(np.full((8, 8, 20), -1000, np.int16), affine), tmp_path / "a.nii.gz")
    outcome = prepare_store([tmp_path / "a.nii.gz"], tmp_path / "s", "native")
    (reason,) = outcome.failed.values()
    assert (outcome.rules, reason) == ({"constant": 1}, "all voxels are -1000 HU")
    with pytest.raises(ValueError, match="no range"):
        Checks(spacing_mm=(3, 1))


def test_the_representative_of_each_study(tmp_path: Path) -> None:
    thick, thin = worlds.body(1, (20, 32, 36), (5, 2, 2)), worlds.body(2, (50, 32, 36), (2, 2, 2))
    write_series(tmp_path / "in" / "1", thick.voxels, thick.affine, series="1")
    write_series(tmp_path / "in" / "2", thin.voxels, thin.affine, series="2")
    outcome = prepare_store([tmp_path / "in"], tmp_path / "s", "native", representative=True)
    (left,) = outcome.left_out.values()
    assert (left.rule, left.reason) == ("representative", "does not represent its study: thicker (5 mm)")
    assert open_store(tmp_path / "s").entry(outcome.added[0]).shape == thin.shape
    assert outcome.failed == {}


def test_it_stops_when_too_many_fail_and_keeps_what_is_finished(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(TooManyFailError, match=r"4 of 19 scans fail, more than 20%"):
        prepare_store([mixed], tmp_path / "s", "native")
    assert len(table(tmp_path / "s")) >= 4
    assert open_store(tmp_path / "s").verify() == []
    again = prepare_store([mixed], tmp_path / "s", "native", failing_share=0.5)
    assert len(again.added) + len(again.skipped) == 10
    few = tmp_path / "few"
    few.mkdir()
    for name in ("x-air", "x-steep"):
        shutil.copy(mixed / f"{name}.nii.gz", few)
    assert prepare_store([few], tmp_path / "t", "native").rules == {
        "body": 1,
        "hu-range": 1,
    }  # of two no share is taken
    with pytest.raises(UsageError):
        prepare_store([few], tmp_path / "t", "native", failing_share=1.5)


# Hashes ---------------------------------------------------------------------------------------------------------------


def test_files_are_hashed_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(2):
        io.write(worlds.body(k, (20, 32, 36), (4, 3, 3)), tmp_path / "in" / f"{k}.nii.gz")
    hashed: list[str] = []
    plain = io.Found.hashes
    monkeypatch.setattr(io.Found, "hashes", lambda self: (hashed.append(self.path.name), plain(self))[1])
    first = prepare_store([tmp_path / "in"], tmp_path / "s", "native")
    assert sorted(hashed) == ["0.nii.gz", "1.nii.gz"]
    private = [p for p in (tmp_path / "s").iterdir() if p.name.startswith("private")]
    assert {p.name: p.stat().st_mode & 0o777 for p in private} == {"private.json": 0o600, "private-hashes.txt": 0o600}
    hashed.clear()
    again = prepare_store([tmp_path / "in"], tmp_path / "s", "native")
    assert (hashed, again.skipped, again.added) == ([], sorted(first.added), [])
    prepare_store([tmp_path / "in"], tmp_path / "s", "native", rehash=True)
    assert sorted(hashed) == ["0.nii.gz", "1.nii.gz"]
    hashed.clear()
    io.write(worlds.body(7, (20, 32, 36), (4, 3, 3)), tmp_path / "in" / "0.nii.gz")
    changed = prepare_store([tmp_path / "in"], tmp_path / "s", "native")
    assert hashed == ["0.nii.gz"]
    ((old, new),) = changed.changed.items()
    assert (changed.added, old in first.added) == ([new], True)
    assert len(open_store(tmp_path / "s")) == 3
    # The same size and time with other bytes: trusted, as documented, until --rehash.
    place = tmp_path / "in" / "1.nii.gz"
    stat, data = place.stat(), place.read_bytes()
    place.write_bytes(data[:4] + bytes([data[4] ^ 1]) + data[5:])  # gzip's time stamp: the voxels stay
    os.utime(place, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert prepare_store([tmp_path / "in"], tmp_path / "s", "native").added == []
    assert prepare_store([tmp_path / "in"], tmp_path / "s", "native", rehash=True).rules == {"duplicate": 1}


def test_an_older_scan_is_never_replaced_by_a_duplicate(tmp_path: Path) -> None:
    scan = worlds.body(1, (20, 32, 36), (4, 3, 3))
    io.write(scan, tmp_path / "in" / "b.nii.gz")
    (old,) = prepare_store([tmp_path / "in"], tmp_path / "s", "native").added
    io.write(scan, tmp_path / "in" / "a.mha")
    outcome = prepare_store([tmp_path / "in"], tmp_path / "s", "native")
    assert (outcome.rules, outcome.skipped, open_store(tmp_path / "s").entries.ids) == ({"duplicate": 1}, [old], [old])


# Workers --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_items(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Replaces what discovery finds: each file's `Found` by one of another class."""
    plain = io.discover

    def use(changes: dict[str, tuple[type, dict[str, Any]]]) -> None:
        def changed(root: Path, **options: Any) -> Any:
            seen = plain(root, **options)
            found = []
            for item in seen.found:
                kind, values = changes.get(item.path.name, (io.Found, {}))
                found.append(kind(**{f.name: getattr(item, f.name) for f in fields(io.Found)}, **values))
            return type(seen)(seen.root, tuple(found), seen.skips)

        monkeypatch.setattr("ctfoundry.ingest.pipeline.io.discover", changed)

    return use


def test_workers_that_die_or_take_too_much_memory_take_nothing_with_them(tmp_path: Path, with_items: Any) -> None:
    for k in range(6):
        io.write(worlds.body(k, (20, 32, 36), (4, 3, 3)), tmp_path / "in" / f"{k}.nii.gz")
    with_items({
        "1.nii.gz": (deadly.Deadly, {"tally": tmp_path / "once", "times": 1}),
        "2.nii.gz": (deadly.Deadly, {"tally": tmp_path / "ever", "times": 9, "how": signal.SIGSEGV}),
        "3.nii.gz": (deadly.Greedy, {}),
    })  # fmt: skip
    said: list[str] = []
    outcome = prepare_store(
        [tmp_path / "in"], tmp_path / "s", "native", executor=Local(2, 8 << 30), say=said.append, **LOOSE
    )
    assert len(outcome.added) == 4
    assert {(out.rule, out.reason) for out in outcome.left_out.values()} == {
        ("worker-died", "its worker died 2 times (SIGSEGV)"),
        ("memory", "needs more memory than a worker may take"),
    }
    assert (tmp_path / "once").stat().st_size == 2  # killed, and read by a fresh worker
    assert (tmp_path / "ever").stat().st_size == 2
    told = [line for line in said if "died" in line]
    assert sum("1.nii.gz: its worker (process " in line and "SIGKILL; tried once more" in line for line in told) == 1
    assert sum("2.nii.gz: its worker (process " in line for line in told) == 2
    assert open_store(tmp_path / "s").verify() == []


def test_what_declares_too_much_is_not_started(tmp_path: Path) -> None:
    io.write(worlds.body(0, (20, 32, 36), (4, 3, 3)), tmp_path / "in" / "0.nii.gz")
    outcome = prepare_store([tmp_path / "in"], tmp_path / "s", "1x1x1", executor=Local(1, 1 << 20))
    assert outcome.rules == {"memory": 1}
    assert "GiB" in next(iter(outcome.failed.values()))


# Killed at any moment -------------------------------------------------------------------------------------------------


def command(sources: Path, store: Path, *more: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "ctfoundry", "prepare", str(sources), str(store), "--grid", "native",
            "--failing-share", "1", "--json", *more]  # fmt: skip


def sidecars(store: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return sum(name.endswith(".json") and name[0] != "." for name in os.listdir(store / "scans"))
    return 0


def test_killed_at_any_moment_and_run_again_it_is_the_same_store(mixed: Path, reference: Path, tmp_path: Path) -> None:
    store = tmp_path / "s"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    delays = np.random.default_rng(int(time.time())).uniform(0, 0.02, 3)
    for wanted, delay, workers in zip((0, 3, 7), delays, ("0", "2", "0"), strict=True):
        with subprocess.Popen(
            command(mixed, store, "--workers", workers), env=env, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as run:  # fmt: skip
            while (sidecars(store) < wanted or not (store / "scans").is_dir()) and run.poll() is None:
                time.sleep(0.002)
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    done = sidecars(store)
    assert done > 0
    outcome = prepare_store([mixed], store, "native", **LOOSE)
    assert len(outcome.added) + len(outcome.skipped) == 10
    assert content(store) == content(reference)
    assert not list(store.glob("private-unfinished*"))


def test_sigterm_stops_cleanly_and_leaves_no_process(mixed: Path, reference: Path, tmp_path: Path) -> None:
    store = tmp_path / "s"
    with subprocess.Popen(
        command(mixed, store, "--workers", "2"), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as run:  # fmt: skip
        while sidecars(store) < 2 and run.poll() is None:
            time.sleep(0.002)
        run.terminate()
        _, errors = run.communicate(timeout=60)
    assert (run.returncode, errors.decode().splitlines()[-1]) == (
        130,
        "stopped; run the same command again to continue",
    )
    for _ in range(500):  # soon nobody of its group is left
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, 0)
            time.sleep(0.01)
            continue
        break
    else:
        pytest.fail("a process is left")
    assert len(np.load(store / "index.npy")) == sidecars(store)
    prepare_store([mixed], store, "native", executor=Inline(), **LOOSE)
    assert content(store) == content(reference)


@pytest.mark.xdist_group("ray")
def test_on_ray_with_a_node_killed_meanwhile_and_embeddings_there(tmp_path: Path) -> None:
    for k in range(8):
        scan = worlds.body(k, (64, 192, 192), (4, 2, 2))
        write_series(tmp_path / "in" / f"{k}", scan.voxels, scan.affine, series=f"{k}")
    prepare_store([tmp_path / "in"], tmp_path / "reference", "native")
    script = Path(__file__).with_name("on_ray.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path / "in"), str(tmp_path / "s"), "1"],
        capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert 0 < result["killed"] < 8
    assert any("its worker died" in line and line.endswith("tried once more") for line in result["said"])
    assert (result["added"], result["left_out"]) == (8, {})
    assert content(tmp_path / "s") == content(tmp_path / "reference")
    assert (result["embedded"], result["vectors"]) == (2, 2)


# Origin ---------------------------------------------------------------------------------------------------------------


def test_a_cohort_gives_collection_licence_and_public_uids(tmp_path: Path) -> None:
    build(Rules("two", collections=("rider_lung_ct",), per_patient=1), tmp_path / "c.parquet")
    row = next(read_cohort(tmp_path / "c.parquet").rows())
    scans = [worlds.body(k, (20, 32, 36), (4, 3, 3)) for k in range(2)]

    def published(data: Any, slice_: int) -> None:
        data.SeriesInstanceUID, data.StudyInstanceUID = row["series_uid"], row["study_uid"]
        data.Manufacturer, data.ManufacturerModelName, data.KVP = "GE MEDICAL SYSTEMS", "LightSpeed16", "120"
        data.ConvolutionKernel, data.BodyPartExamined = "LUNG", "CHEST"

    write_series(tmp_path / "in" / "1", scans[0].voxels, scans[0].affine, change=published)
    write_series(tmp_path / "in" / "2", scans[1].voxels, scans[1].affine, series="5")
    outcome = prepare_store([tmp_path / "in"], tmp_path / "s", "native", cohort=tmp_path / "c.parquet")
    assert outcome.rules == {"cohort": 1}
    (id,) = outcome.added
    sidecar = open_store(tmp_path / "s").sidecar(id)
    assert (sidecar.collection, sidecar.patient.startswith("patient-")) == ("rider_lung_ct", True)
    assert row["patient_id"] not in sidecar.to_json()
    assert sidecar.provenance == {
        "archive_version": 25, "body_part": "CHEST", "doi": row["doi"], "kernel": "LUNG", "kvp": 120.0, "licence": row["licence"],
        "manufacturer": "GE", "modality": "CT", "model": "LightSpeed", "reader": "dicom", "series": row["series_uid"],
        "slice_thickness_mm": 4.0, "study": row["study_uid"],
    }  # fmt: skip
    plain = prepare_store([tmp_path / "in" / "1"], tmp_path / "t", "native", collection="RIDER Lung CT")
    sidecar = open_store(tmp_path / "t").sidecar(plain.added[0])
    assert sidecar.collection == "RIDER Lung CT"
    assert row["series_uid"] not in sidecar.to_json()
    assert str(sidecar.provenance["series"]).startswith("series-")
