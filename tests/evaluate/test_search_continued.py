"""`evaluate search` in bounded memory: killed and continued, nothing trusted that is of something else, bad scans aside, full disks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import worlds
from ctfoundry import files, io
from ctfoundry.adapt.cases import LabelledScan, scan_of
from ctfoundry.encoder import Encoder
from ctfoundry.errors import DiskFullError, ReadError, UsageError
from ctfoundry.evaluate import search as measured
from ctfoundry.evaluate import search_arrays
from ctfoundry.evaluate.search_cases import Gathered, know, labelled_scans, phantom_scans
from ctfoundry.evaluate.search_walk import Searched, Way, search_all
from ctfoundry.retrieval.search import Seen
from ctfoundry.retrieval.search_maps import Looking, scene
from ctfoundry.volume import Volume

SHAPE = (16, 40, 40)
LOOKING = Looking(("stage2", "stage3"))
WINDOWS = Looking(window=(8, 16, 16), overlap=0.0)


def labelled(number: int) -> tuple[Volume, Volume]:
    """A body with two labelled boxes."""
    volume = worlds.body(number, SHAPE)
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[6:10, 12:20, 12:20] = 1
    voxels[9:12, 22:30, 20:28] = 2
    return volume, Volume(voxels, volume.affine, "label", {1: "heart", 2: "liver"})


def scans(count: int = 4) -> list[LabelledScan]:
    """Labelled scans of different patients."""
    return [scan_of(f"p{n}", *labelled(n)) for n in range(count)]


def ways() -> dict[str, Way]:
    """The three kinds: maps, windows, HU."""
    return measured.ways(worlds.tiny(), None, LOOKING, {"windows": WINDOWS})


def searched(chosen: list[LabelledScan], parts: Path, methods: dict[str, Way] | None = None) -> Searched:
    """All searches between these."""
    failed: dict[str, str] = {}
    return search_all(know(chosen, parts, failed), methods or ways(), parts=parts, failed=failed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Searched:
    return searched(scans(), tmp_path_factory.mktemp("whole"))


class Stopped(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize("after", [1, 3, 6, 8, 11])
def test_stopped_anywhere_and_continued_it_gives_the_same(after, tmp_path, whole, monkeypatch):
    """`after` : files of looks and answers that were written: within the first way's looks, its answers, the second way ..."""
    count, look = 0, Way.look
    write = search_arrays.write_json

    def stop(path, data):
        nonlocal count
        write(path, data)
        count += path.parent.name in ("looks", "answers")
        if count == after:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(search_arrays, "write_json", stop)
        with pytest.raises(Stopped):
            searched(scans(), tmp_path)
    seen = []
    monkeypatch.setattr(Way, "look", lambda way, volume: seen.append(way) or look(way, volume))
    found = searched(scans(), tmp_path)
    assert found.answers == whole.answers
    before = min(after, 4) + max(0, min(after - 8, 4))  # four looks, four answers a way
    assert len(seen) == 3 * 4 - before
    assert {name: len(each) for name, each in found.seconds.items()} == dict.fromkeys(ways(), 4)
    assert not list(tmp_path.rglob("*.npy")), "cells are removed once their way is answered"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_search_continued as t
from ctfoundry.evaluate import search_arrays
from ctfoundry import files
import contextlib
whole, count = files.whole, 0
@contextlib.contextmanager
def killed(path, **rest):
    global count
    with whole(path, **rest) as part:
        yield part
        count += 1
        if count == {after}:
            os.kill(os.getpid(), signal.SIGKILL)
files.whole = killed
t.searched(t.scans(), Path({parts!r}))
"""


def test_killed_while_it_writes(tmp_path, whole):
    """In the middle of a scene, a temporary file lies half-written beside whole ones."""
    here = str(Path(__file__).parent)
    code = KILLED.format(tests=here, after=12, parts=str(tmp_path))
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([here, str(Path(here).parent), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.rglob(".ctfoundry-part-*"))
    assert searched(scans(), tmp_path).answers == whole.answers


def test_scenes_on_disk_are_those_that_were_seen(tmp_path):
    encoder, (volume, _) = worlds.tiny(), labelled(0)
    for looking in (LOOKING, WINDOWS, replace(LOOKING, shifts=(1, 2, 2))):
        seen = scene(encoder, volume, looking)
        vectors = {"a": seen.rows[0], "b": seen.rows[3]}
        search_arrays.write_scene(tmp_path / "s", seen, vectors)
        read = search_arrays.read_scene(tmp_path / "s", encoder.device)
        assert read.rows.equal(seen.rows)
        assert read.rows.stride() == seen.rows.stride(), "products of other strides differ in their last bits"
        np.testing.assert_array_equal(read.centres, seen.centres)
        np.testing.assert_array_equal(read.place, seen.place)
        np.testing.assert_array_equal(read.grid.affine, seen.grid.affine)
        assert (read.grid.shape, read.widths, read.feature) == (seen.grid.shape, seen.widths, None)
        again = search_arrays.read_vectors(tmp_path / "s", encoder.device)
        assert {name: row.tolist() for name, row in again.items()} == {n: r.tolist() for n, r in vectors.items()}
        assert Seen.of(encoder, None, looking, seen=read).own.equal(Seen.of(encoder, volume, looking).own)
        with open(tmp_path / "s" / "rows.npy", "r+b") as stream:
            stream.truncate(100)
        assert search_arrays.about(tmp_path / "s") is None


def test_work_of_other_weights_settings_or_scans_is_not_trusted(tmp_path, monkeypatch):
    """A run that was stopped after all was asked once: another one with one change looks again at all that the change touches."""
    seen, look = [], Way.look
    monkeypatch.setattr(Way, "look", lambda way, volume: seen.append(way) or look(way, volume))
    fresh = iter(range(99))

    def looked(chosen: list[LabelledScan], encoder: Encoder | None = None, looking: Looking = LOOKING) -> int:
        methods = {"a": Way(encoder or worlds.tiny(), looking)}
        alone = searched(chosen, tmp_path / f"fresh{next(fresh)}", methods).answers
        seen.clear()
        assert searched(chosen, tmp_path / "kept", methods).answers == alone
        return len(seen)

    assert looked(scans(3)) == 3
    assert looked(scans(3)) == 0
    assert looked(scans(3), worlds.tiny(seed=1)) == 3
    assert looked(scans(3), looking=replace(LOOKING, whiten=False)) == 3
    card = worlds.tiny().card
    other = replace(card.preparation, resampling=replace(card.preparation.resampling, spacing=(6.0, 3.0, 3.0)))
    assert looked(scans(3), replace(worlds.tiny(), card=replace(card, preparation=other), preparation=other)) == 3
    volume, labels = labelled(0)
    brighter = scan_of("p0", replace(volume, voxels=volume.voxels + np.int16(50)), labels)
    assert looked([brighter, *scans(3)[1:]]) == 3  # its own look, and the cells of the others, which were removed
    moved = scan_of("p0", volume, replace(labels, voxels=np.roll(labels.voxels, 1, axis=2)))
    assert looked([moved, *scans(3)[1:]]) == 3


def test_bad_scans_are_left_out_of_all_methods_and_named(tmp_path, monkeypatch):
    def refused():
        raise ReadError("ends in the middle", where="/secret/place")

    def unreadable():
        raise OSError(errno.EIO, "Input/output error", "/secret/place")

    broken = [replace(scans(6)[4], image=refused), replace(scans(6)[5], maps={"labels": unreadable})]
    look = Way.look

    def picky(way: Way, volume: Volume):
        if way.looking == WINDOWS and np.array_equal(volume.voxels, labelled(3)[0].voxels):
            raise ReadError("is too small for these windows")
        return look(way, volume)

    monkeypatch.setattr(Way, "look", picky)
    result = measured.measure(ways(), Gathered([broken[0], *scans(4), broken[1]], {"P09": "no label map"}))
    assert result.failed == {
        "P09": "no label map",
        "p4": "ends in the middle",
        "p5": "its files cannot be read (Input/output error)",
        "p3": "is too small for these windows",
    }
    assert result.data()["failed"] == ["P09", "p3", "p4", "p5"]
    assert [k.id for k in result.scans] == ["p0", "p1", "p2"]
    assert result.answers == measured.measure(ways(), Gathered(scans(3))).answers
    with pytest.raises(UsageError, match="two are needed") as error:
        measured.measure(ways(), Gathered([scans(1)[0], *broken]))
    assert "p4: ends in the middle" in str(error.value)


def test_a_full_disk_says_so_and_what_is_finished_stays(tmp_path, whole, monkeypatch):
    class Free:
        free = 1000

    with monkeypatch.context() as patch:
        patch.setattr(search_arrays.shutil, "disk_usage", lambda _: Free)
        with pytest.raises(DiskFullError, match="the cells of 3 more scans need about"):
            searched(scans(), tmp_path)
    written = files.whole

    def full(path, **rest):
        if Path(path).name == "centres.npy":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return written(path, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(files, "whole", full)
        with pytest.raises(DiskFullError, match="the disk is full"):
            searched(scans(), tmp_path)
    looks, look = [], Way.look
    monkeypatch.setattr(Way, "look", lambda way, volume: looks.append(way) or look(way, volume))
    assert searched(scans(), tmp_path).answers == whole.answers
    assert len(looks) == 3 * 4 - 1


def test_one_scan_of_cells_at_a_time(tmp_path, monkeypatch):
    """Of the scans' voxels and cells no more than those of two are alive, however many there are."""
    import weakref

    alive: list[weakref.ref] = []
    most = 0
    read, look = search_arrays.read_scene, Way.look

    def counted(made):
        nonlocal most
        alive.append(weakref.ref(made))
        most = max(most, sum(ref() is not None for ref in alive))
        return made

    monkeypatch.setattr(Way, "look", lambda way, volume: counted(look(way, volume)))
    monkeypatch.setattr(search_arrays, "read_scene", lambda *given: counted(read(*given)))
    searched(scans(5), tmp_path, {"a": Way(worlds.tiny(), LOOKING)})
    assert len(alive) == 5 + 5 + 5 * 4
    assert most <= 3, "the query's, a target's, and the next target's before the last one is let go"


def test_progress_counts_what_this_run_does(tmp_path):
    told: list[tuple[str, int, int]] = []
    search_all(know(scans(3), tmp_path, {}), {"a": Way(worlds.tiny(), LOOKING)}, parts=tmp_path, failed={},
               tell=lambda *given: told.append(given))  # fmt: skip
    assert told[:3] == [("a (1 of 1), looking", n, 3) for n in (1, 2, 3)]
    assert told[3:9] == [("a (1 of 1), searching", n, 6) for n in range(1, 7)]
    told.clear()
    search_all(know(scans(3), tmp_path, {}), {"a": Way(worlds.tiny(), LOOKING)}, parts=tmp_path, failed={},
               tell=lambda *given: told.append(given))  # fmt: skip
    assert {title for title, _, _ in told} == {"looking answers up in labels"}


def test_phantoms_are_made_once_and_are_those_that_are_drawn(tmp_path):
    from ctfoundry.layouts.cases import Cohort
    from ctfoundry.phantom import make

    (scan,) = phantom_scans(1, 3, tmp_path, voxel_mm=8.0).scans
    made = make(Cohort(1, 3, voxel_mm=8.0).specs(0)[0])
    np.testing.assert_array_equal(scan.image().voxels, made.ct.voxels)
    np.testing.assert_array_equal(scan.maps["labels"]().voxels, made.labels.voxels)
    np.testing.assert_array_equal(scan.image().affine, made.ct.affine)
    assert scan.maps["labels"]().names == made.labels.names
    assert scan.id == "phantom-3-000"
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert phantom_scans(1, 3, tmp_path, voxel_mm=8.0).scans[0].content() == scan.content()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == times


def test_folders_with_labels_are_scans_and_others_are_named(tmp_path):
    for name in ("a", "b", "c", "d"):
        volume, labels = labelled(ord(name))
        io.write(volume, tmp_path / name / "ct.nii.gz")
        if name != "c":
            io.write(labels, tmp_path / name / "labels.nii.gz")
            (tmp_path / name / "labels.json").write_text('{"1": "heart", "2": "liver"}')
    io.write(labelled(0)[0], tmp_path / "a" / "again" / "ct.nii.gz")
    (tmp_path / "d" / "ct.nii.gz").write_bytes(b"")
    gathered = labelled_scans(tmp_path)
    assert [scan.id for scan in gathered.scans] == ["P01", "P02"]
    assert gathered.failed.keys() == {"P03", "P04"}
    assert "1 CTs and 0 label maps" in gathered.failed["P03"]
    assert gathered.paths["P03"] == str(tmp_path / "c")
    assert gathered.scans[0].content() != gathered.scans[1].content()
    before = gathered.scans[0].content()
    (tmp_path / "a" / "labels.json").write_text('{"1": "heart", "2": "spleen"}')
    assert labelled_scans(tmp_path).scans[0].content() != before, "other names are other labels"
    with pytest.raises(UsageError, match="no such folder"):
        labelled_scans(tmp_path / "nowhere")
