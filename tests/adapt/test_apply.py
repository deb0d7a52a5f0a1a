"""Many scans through one segmenter: what is written, measured and flagged; what is done again and what is not; whose error is whose."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from adapt import levels
from ctfoundry import geometry, io
from ctfoundry.adapt import apply
from ctfoundry.adapt.apply import RTSTRUCT, SEG, Item, Options, Step, segment_many
from ctfoundry.adapt.apply_page import best_point
from ctfoundry.adapt.apply_table import Measure, Measured, flags, measure, partner
from ctfoundry.errors import ReadError, StoreError, UsageError
from ctfoundry.segmenter import Pass
from ctfoundry.volume import Volume
from structures import blobs, oblique

AFFINE = geometry.make_affine((2.5, 0.8, 0.9), "SPL", (30.0, 40.0, -100.0))
PUBLIC = ("labels.json", "model.json", "volumes.csv", "volumes.json", "qc.html")


@pytest.fixture
def three(tmp_path: Path) -> list[Item]:
    return [levels.nifti(tmp_path / "Secret^Name" / f"s{k}.nii.gz", levels.scan(AFFINE, seed=k)) for k in range(3)]


def written(folder: Path) -> dict[str, bytes]:
    """Every byte but the times."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.parent.name == "scans" and path.suffix == ".json":
            record = json.loads(data)
            record.pop("seconds")
            data = json.dumps(record).encode()
        found[str(path.relative_to(folder))] = data
    return found


def test_what_is_written(three: list[Item], tmp_path: Path) -> None:
    out, steps = tmp_path / "out", list[Step]()
    outcome = segment_many(
        three, levels.segmenter(), out, Options(probabilities=("kidney_left",)), progress=steps.append
    )
    assert outcome.done == ["s0", "s1", "s2"]
    assert outcome.failed == {}
    for k in range(3):
        labels = io.read(out / f"s{k}.nii.gz")
        assert labels.kind == "label"
        assert labels.names == dict(enumerate(levels.NAMES[1:], 1))
        np.testing.assert_array_equal(labels.voxels, blobs())
        share = io.read(out / "probabilities" / f"s{k}-kidney_left.nii.gz", kind="other")
        assert ((share.voxels > 0.5) == (blobs() == 2)).all()
    assert json.loads((out / "labels.json").read_text()) == {str(k): n for k, n in enumerate(levels.NAMES) if k}
    with open(out / "volumes.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 3 * 5
    liver = next(r for r in table if (r["scan"], r["name"]) == ("s1", "liver"))
    assert int(liver["voxels"]) == int((blobs() == 1).sum())
    assert float(liver["volume_ml"]) == pytest.approx((blobs() == 1).sum() * 2.5 * 0.8 * 0.9 / 1000)
    empty = next(r for r in table if (r["scan"], r["name"]) == ("s1", "gap"))
    assert (empty["voxels"], empty["mean_hu"], empty["x_min_mm"]) == ("0", "", "")
    assert json.loads((out / "volumes.json").read_text())["rows"] == outcome.table
    page = (out / "qc.html").read_text()
    assert page.count("data:image/webp") == 4  # a scan each, and the legend
    assert (out / "qc.html").stat().st_mode & 0o77 == 0
    # progress: windows of each scan up to all, then the scan; shares grow to 1
    shares = [step.share for step in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert {s.id for s in steps if s.windows and s.windows == s.windows_of} == {"s0", "s1", "s2"}
    # nobody's name or path in what may be shown around
    for name in PUBLIC:
        assert b"Secret" not in (out / name).read_bytes(), name
    assert not any(b"Secret" in data for name, data in written(out / "scans").items() if name.endswith("json"))


def test_asked_labels_alone(three: list[Item], tmp_path: Path) -> None:
    outcome = segment_many(three[:1], levels.segmenter(), tmp_path / "out", Options(labels=("thing", "liver")))
    labels = io.read(tmp_path / "out" / "s0.nii.gz")
    np.testing.assert_array_equal(labels.voxels, np.where(blobs() == 2, 0, blobs()))
    assert labels.names == {1: "liver", 5: "thing"}
    assert [row["name"] for row in outcome.table] == ["liver", "thing"]
    with pytest.raises(UsageError, match="no structure 'livr'; the nearest known one is 'liver'"):
        segment_many(three, levels.segmenter(), tmp_path / "new", Options(labels=("livr",)))
    assert not (tmp_path / "new").exists()


def counted(three: list[Item]) -> tuple[list[Item], list[str]]:
    read: list[str] = []

    def noted(item: Item) -> Callable[[], Volume]:
        def call() -> Volume:
            read.append(item.id)
            return item.read()

        return call

    return [replace(item, read=noted(item)) for item in three], read


def test_finished_scans_are_skipped_and_others_done_again(three: list[Item], tmp_path: Path) -> None:
    out, segmenter = tmp_path / "out", levels.segmenter()
    items, read = counted(three)
    segment_many(items, segmenter, out)
    before = written(out)
    read.clear()
    again = segment_many(items, segmenter, out)
    assert (again.done, again.skipped, read) == ([], ["s0", "s1", "s2"], [])
    assert written(out) == before
    (out / "s0.nii.gz").write_bytes(b"half")  # damaged
    (out / "scans" / "s1.json").write_text("{")  # a record that vouches for nothing
    items[2] = replace(items[2], digest="other bytes")
    assert segment_many(items, segmenter, out).done == ["s0", "s1", "s2"]
    assert read == ["s0", "s1", "s2"]
    read.clear()
    assert segment_many(items, segmenter, out, Options(probabilities=("liver",))).done == ["s0", "s1", "s2"]
    assert read == ["s0", "s1", "s2"]
    for options in (Options(labels=("liver",)), Options(largest=True), Options(settings=Pass(precision="bf16"))):
        with pytest.raises(StoreError, match="holds segmentations of other settings"):
            segment_many(items, segmenter, out, options)
    other = replace(segmenter, card=replace(segmenter.card, sha256="0" * 64))
    with pytest.raises(StoreError, match="holds segmentations of another model"):
        segment_many(items, other, out)


def test_dicom_objects_that_are_asked_for_later_need_no_network(tmp_path: Path) -> None:
    out, segmenter = tmp_path / "out", levels.segmenter()
    items = [levels.dicom(tmp_path / "in" / "a", levels.scan(AFFINE), 1)]
    segment_many(items, segmenter, out)
    passes = segmenter.network.passes
    assert passes > 0
    outcome = segment_many(items, segmenter, out, Options(dicom_seg=True, rtstruct=True))
    assert (outcome.done, outcome.failed, segmenter.network.passes) == (["a"], {}, passes)
    at_once = segment_many(items, segmenter, tmp_path / "once", Options(dicom_seg=True, rtstruct=True))
    assert at_once.table == outcome.table
    for name in ("out", "once"):
        seg = io.read_seg(tmp_path / name / "a.seg.dcm", onto=io.read(tmp_path / "in" / "a").grid)
        np.testing.assert_array_equal(seg.voxels, blobs())
    (out / "a.seg.dcm").unlink()
    assert segment_many(items, segmenter, out, Options(dicom_seg=True, rtstruct=True)).done == ["a"]
    assert (out / "a.seg.dcm").is_file()
    assert segment_many(items, segmenter, out, Options(dicom_seg=True)).skipped == ["a"]


def test_a_scan_without_a_series_says_why_it_has_no_dicom_object(three: list[Item], tmp_path: Path) -> None:
    items = [three[0], replace(three[1], no_series="it comes from a store"), levels.dicom(tmp_path / "d", levels.scan(AFFINE), 1)]  # fmt: skip
    for run in ("first", "again"):
        outcome = segment_many(items, levels.segmenter(), tmp_path / "out", Options(dicom_seg=True, rtstruct=True))
        assert sorted((*outcome.done, *outcome.skipped)) == ["d", "s0", "s1"]
        assert (run == "first") == bool(outcome.done)
        assert outcome.failed == {
            "s0": f"no {SEG}: {apply.NO_SERIES}; no {RTSTRUCT}: {apply.NO_SERIES}",
            "s1": f"no {SEG}: it comes from a store; no {RTSTRUCT}: it comes from a store",
        }
    assert segment_many(items, levels.segmenter(), tmp_path / "out").failed == {}  # nobody asked for them


def test_an_empty_segmentation_is_one(tmp_path: Path) -> None:
    item = levels.dicom(tmp_path / "d", levels.scan(AFFINE, np.zeros((7, 10, 12), np.uint8)), 1)
    outcome = segment_many([item], levels.segmenter(), tmp_path / "out", Options(dicom_seg=True, rtstruct=True))
    assert outcome.done == ["d"]
    assert outcome.flagged == {"d": ["no structure was found"]}
    assert [row["voxels"] for row in outcome.table] == [0] * 5
    assert outcome.failed == {}
    grid = io.read(tmp_path / "d").grid
    assert not io.read_seg(tmp_path / "out" / "d.seg.dcm", onto=grid).voxels.any()
    assert not io.read_rtstruct(tmp_path / "out" / "d.rtstruct.dcm", grid).voxels.any()


def test_one_scans_error_is_its_own(three: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file() -> Volume:
        raise ReadError("ends within its header", where="/home/Secret^Name/a.nii", do="copy /home/Secret^Name again")

    def no_scan() -> Volume:
        return Volume(blobs(), AFFINE, "label")

    def gone() -> Volume:
        raise FileNotFoundError(2, "No such file or directory", "/home/Secret^Name")

    odd = {"bad": no_file, "labels": no_scan, "gone": gone}
    items = [three[0], *(Item(id, id, read) for id, read in odd.items()), three[1], three[2]]
    real = apply.io.write

    def full(volume: Volume, path: Path) -> None:
        if path.name == "s1.nii.gz":
            raise OSError(28, "No space left on device", str(path))
        real(volume, path)

    monkeypatch.setattr(apply.io, "write", full)
    outcome = segment_many(items, levels.segmenter(), tmp_path / "out")
    assert outcome.done == ["s0", "s2"]
    assert outcome.failed["bad"] == "ends within its header"
    assert outcome.failed["gone"] == "No such file or directory"
    assert outcome.failed["s1"] == "No space left on device"
    assert "label" in outcome.failed["labels"]
    for name in PUBLIC:
        assert b"Secret" not in (tmp_path / "out" / name).read_bytes()
    assert "ends within its header" in (tmp_path / "out" / "qc.html").read_text()


def test_reading_network_and_writing_overlap(
    three: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network of the second scan waits until the third is being read and the first is being written: one after the other, none of
    them would ever end."""
    meeting, real, segmenter = threading.Barrier(3, timeout=30), apply.io.write, levels.segmenter()
    read = {item.id: item.read for item in three}
    forward = segmenter.network.forward
    passes = [0]

    def third() -> Volume:
        meeting.wait()
        return read["s2"]()

    def network(x: Any) -> Any:
        passes[0] += 1
        if passes[0] == first + 1:
            meeting.wait()
        return forward(x)

    def write(volume: Volume, path: Path) -> None:
        if path.name == "s0.nii.gz":
            meeting.wait()
        real(volume, path)

    segment_many(three[:1], segmenter, tmp_path / "count")
    first = segmenter.network.passes
    monkeypatch.setattr(apply.io, "write", write)
    monkeypatch.setattr(segmenter.network, "forward", network)
    items = [three[0], three[1], replace(three[2], read=third)]
    assert segment_many(items, segmenter, tmp_path / "out").done == ["s0", "s1", "s2"]


KILLED = """
import json, os, signal, sys
from pathlib import Path
from adapt import levels
from ctfoundry import geometry
from ctfoundry.adapt.apply import segment_many
affine = geometry.make_affine((2.5, 0.8, 0.9), "SPL", (30.0, 40.0, -100.0))
real = Path.replace

def run(root, at):
    writes = 0
    def replace(self, target):
        nonlocal writes
        if Path(target).is_relative_to(root / "out"):
            writes += 1
            if writes == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(self, target)
    Path.replace = replace
    items = [levels.nifti(root / "in" / f"s{k}.nii.gz", levels.scan(affine, seed=k)) for k in range(3)]
    segment_many(items, levels.segmenter(), root / "out")
    (root / "writes").write_text(str(writes))

found = []
for job in sys.argv[1:]:
    root, at = job.split("@")
    pid = os.fork()
    if not pid:
        run(Path(root), int(at))
        os._exit(0)
    found.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(json.dumps(found))
"""


def runs(*jobs: str) -> list[int]:
    """Exit codes of runs into a folder, each killed right before its n-th file takes its name (FOLDER@N; 0: not)."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *jobs],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_killed_at_any_write_and_continued(tmp_path: Path) -> None:
    """kill -9 right before a file takes its name; the same call then gives the bytes of an undisturbed one."""
    whole = tmp_path / "whole"
    at = (3, 4, 9, 13)
    codes = runs(f"{whole}@0", *(job for n in at for job in (f"{tmp_path / str(n)}@{n}", f"{tmp_path / str(n)}@0")))
    assert codes == [0, *[-signal.SIGKILL, 0] * len(at)]
    assert int((whole / "writes").read_text()) == 14
    expected = written(whole / "out")
    for n in at:
        assert written(tmp_path / str(n) / "out") == expected
        assert int((tmp_path / str(n) / "writes").read_text()) < 14 or n < 6  # what was finished was not done again


# Measures and flags ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [AFFINE, geometry.make_affine((2.5, 0.8, 0.9), "RAI"), oblique("IAR")])
def test_measures_are_those_of_plain_numpy(affine: np.ndarray) -> None:
    scan = levels.scan(affine)
    labels = Volume(blobs(), affine, "label", names=dict(enumerate(levels.NAMES[1:], 1)))
    found = {m.label: m for m in measure(scan, labels)}
    for value in (1, 2, 5):
        m, mask = found[value], blobs() == value
        hu = scan.voxels[mask].astype(np.float64)
        assert (m.voxels, m.mean, m.median) == (mask.sum(), pytest.approx(hu.mean()), np.median(hu))
        assert m.sd == pytest.approx(hu.std())
        assert m.volume_ml == pytest.approx(mask.sum() * 2.5 * 0.8 * 0.9 / 1000)
        index = np.argwhere(mask)
        corners = np.array([(d, h, w) for d in (-0.5, 0.5) for h in (-0.5, 0.5) for w in (-0.5, 0.5)])
        world = (index[:, None] + corners).reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
        np.testing.assert_allclose(m.box, (world.min(0), world.max(0)), atol=1e-3)
        np.testing.assert_allclose(m.centre, world.mean(0), atol=1e-3)
        sizes = np.bincount(ndimage.label(mask)[0].ravel())[1:]
        assert (m.parts, m.largest) == ((sizes >= 0.01 * mask.sum()).sum(), sizes.max() / mask.sum())
    assert found[4] == Measure(4, "gap", 0, 0.0)


def test_where_a_structure_touches_the_border() -> None:
    scan = levels.scan(AFFINE)
    labels = Volume(blobs(), AFFINE, "label", names={1: "liver", 5: "thing"})
    cut = {m.name: m.cut_at for m in measure(scan, labels)}
    assert cut == {
        "liver": "",
        "thing": "AL",
    }  # voxel (5, 0, 11) of 7 x 10 x 12, rows run to the back, columns to the left
    touched = np.zeros((7, 10, 12), np.uint8)
    touched[0] = 1
    (m,) = measure(scan, Volume(touched, AFFINE, "label", names={1: "a"}))
    assert set(m.cut_at) == set("IPARL")


def test_fill_counts_for_volume_and_not_for_hu() -> None:
    scan = levels.scan(AFFINE)
    fill = scan.voxels.copy()
    fill[1:3, 1:7, 2:8] = -1024
    valid = np.ones(scan.shape, bool)
    valid[1:3, 1:7, 2:8] = False
    labels = Volume(blobs(), AFFINE, "label", names={1: "liver"})
    (plain,) = measure(scan, labels)
    (m,) = measure(replace(scan, voxels=fill, valid=valid), labels)
    assert m.voxels == plain.voxels
    assert m.median == pytest.approx(plain.median, abs=10)
    (other,) = measure(replace(scan, kind="other"), labels)
    assert (other.mean, other.voxels) == (None, plain.voxels)


def one(id: str, ml: float, **more: Any) -> Measured:
    return Measured(id, [Measure(1, "liver", 10, ml, centre=(50.0, 0.0, 0.0), **more)], (0.0, 300.0))


def test_volumes_far_from_the_batch() -> None:
    usual = [one(f"s{k}", 1500.0 + 20 * k) for k in range(8)]
    assert flags(usual) == []
    (flag,) = flags([*usual, one("large", 2500.0)])
    assert (flag.scan, flag.name) == ("large", "liver")
    assert "above the batch's median of 1580 ml" in flag.what
    # median 1580, absolute deviations 0 20 20 40 40 60 60 80 920: median 40
    assert f"{(2500 - 1580) / (1.4826 * 40):.1f} robust deviations" in flag.what
    assert flags([*usual[:6], one("large", 2500.0)]) == []  # seven are no batch
    cut = flags([*usual, one("cut", 300.0, cut_at="S")])
    assert [f.what for f in cut] == ["touches the border of the scan (S): incomplete"]


def test_pieces_and_nothing_at_all() -> None:
    (many,) = flags([one("a", 1.0, parts=9, largest=0.31)])
    assert many.what == "lies in 9 parts, the largest holds 31%"
    (none,) = flags([Measured("b", [Measure(1, "liver", 0, 0.0)])])
    assert (none.name, none.what) == ("", "no structure was found")


def sided(**x: float) -> list[str]:
    measures = [Measure(k, name, 5, 1.0, centre=(at, 0.0, 0.0)) for k, (name, at) in enumerate(x.items(), 1)]
    return [f"{f.name}: {f.what}" for f in flags([Measured("a", measures, (10.0, 300.0))])]


def test_sides_of_the_body() -> None:
    """x grows to the patient's right; the body's middle is at 10 mm, its width 300."""
    assert sided(kidney_left=-60, kidney_right=70, liver=80, spleen=-90, heart_ventricle_right=-8) == []
    assert sided(kidney_left=70, kidney_right=-60) == [
        "kidney_left: lies 60 mm on the right side",
        "kidney_left: lies further right than kidney_right",
        "kidney_right: lies 70 mm on the left side",
    ]
    assert sided(liver=-70) == ["liver: lies 80 mm on the left side"]
    assert sided(rib_left_3=15, rib_right_3=12) == ["rib_left_3: lies further right than rib_right_3"]
    assert partner("Left Kidney") == "right Kidney"
    assert partner("aorta") == "aorta"


def test_the_planes_that_cut_most_structures() -> None:
    labels = np.zeros((20, 30, 40), np.uint8)
    labels[2:8, 3:9, 4:10] = 1
    labels[6:15, 7:20, 8:30] = 2
    labels[7:8, 8:9, 30:39] = 3
    point = best_point(Volume(labels, AFFINE, "label"))
    assert point is not None
    index = np.round(geometry.to_index(AFFINE, point)).astype(int)
    assert index[0] == 7
    assert index[1] == 8
    assert index[2] in (8, 9)
    assert best_point(Volume(labels * 0, AFFINE, "label")) is None
