"""`inspect` as a person and a program meet it: table, JSON, page, privacy."""

from __future__ import annotations

import gc
import json
import os
import re
import runpy
import stat
import sys
import warnings
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pydicom.fileset
import pytest
import SimpleITK as sitk

import worlds
from ctfoundry import cli, io
from ctfoundry.errors import TruncatedError
from ctfoundry.geometry import make_affine
from ctfoundry.io import dicom, glance
from ctfoundry.io.dicom_write import UID, write_series
from ctfoundry.volume import Volume

SECRET = "Quillfeather^Tom"


def series(
    folder: Path, number: int, description: str, *, study: int = 1, patient: str = "XK-4711", kernel: str = "B30f", step: float = 2.0, slices: int = 24,
    hole: bool = False, **elements: object,
) -> None:  # fmt: skip
    """A body in a series with everything that scanners type."""
    body = worlds.body(number, (slices, 48, 56), (step, 3, 3))

    def change(data, d: int) -> None:
        data.PatientID, data.PatientName, data.StudyInstanceUID = patient, SECRET, f"{UID}.{study}"
        data.SeriesNumber, data.SeriesDescription, data.ConvolutionKernel, data.KVP = number, description, kernel, "120"
        data.Manufacturer, data.AcquisitionNumber, data.InstitutionName = "SIEMENS", 1, "Planted Clinic"
        for keyword, value in elements.items():
            setattr(data, keyword, value)

    paths = write_series(
        folder,
        (body.voxels + 1024).astype(np.uint16),
        body.affine,
        intercept=-1024,
        series=f"{study}.{number}",
        change=change,
    )
    if hole:
        paths[slices // 2].unlink()


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hospital")
    series(root / "Quillfeather" / "a", 1, "Thorax nativ", slices=30)
    series(
        root / "Quillfeather" / "b", 2, "Thorax portalvenös <script>x</script>", slices=30, ContrastBolusAgent="Imeron"
    )
    series(
        root / "Quillfeather" / "c",
        3,
        "Thorax portalvenös Lunge",
        slices=30,
        kernel="B70f",
        ContrastBolusAgent="Imeron",
    )
    series(root / "Quillfeather" / "d", 4, f"Kontrolle {SECRET}", study=2)
    series(root / "e", 5, "follow up", study=3, patient="XK-4712", hole=True)
    io.write(worlds.body(9, (20, 40, 44), (4, 3, 3)), root / "f" / "ct.nii.gz")
    mask = Volume(
        (worlds.body(9, (20, 40, 44), (4, 3, 3)).voxels > 0).astype(np.uint8), make_affine((4, 3, 3)), "label"
    )
    io.write(mask, root / "f" / "mask.nii.gz")
    (root / "letter.txt").write_text("x")
    return root


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def runner(*arguments: object, width: int | None = None) -> tuple[int, str, str]:
        from ctfoundry.cli import inspect as module

        if width is not None:
            from rich.console import Console

            monkeypatch.setattr(
                module, "_console", lambda: Console(width=width, highlight=False, markup=False, emoji=False)
            )
        monkeypatch.setattr(sys, "argv", ["ctfoundry", "inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out = capsys.readouterr()
        return int(stop.value.code or 0), out.out, out.err

    return runner


def rows(run, *arguments: object) -> list[dict]:
    code, out, _ = run(*arguments, "--json", "--quiet")
    assert code == 0
    return json.loads(out)["series"]


def test_rows_agree_with_simpleitk(run, hospital):
    """Geometry of every readable series and file against SimpleITK's own reading of it."""
    checked = 0
    for row in rows(run, hospital, "--paths"):
        place = Path(row["path"])
        if row["problem"] is not None:
            continue
        if place.is_dir():
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(place)))
            image = reader.Execute()
        else:
            image = sitk.ReadImage(str(place))
        assert row["shape"] == list(image.GetSize()[::-1])
        assert row["spacing_mm"] == pytest.approx(image.GetSpacing()[::-1], abs=1e-3)
        extent = np.abs(np.reshape(image.GetDirection(), (3, 3))) @ (np.array(image.GetSpacing()) * image.GetSize())
        assert row["coverage_mm"] == pytest.approx(extent[2], abs=0.06)
        assert row["field_mm"] == pytest.approx(
            [image.GetHeight() * image.GetSpacing()[1], image.GetWidth() * image.GetSpacing()[0]], abs=0.06
        )
        checked += 1
    assert checked == 6


def test_what_was_typed_at_the_scanner_is_shown(run, hospital):
    row = next(r for r in rows(run, hospital) if r["number"] == "2")
    expected = {
        "patient": "P1", "study": "P1.1", "description": "Thorax portalvenös <script>x</script>", "kernel": "B30f", "sharpness": "soft", "kvp": 120.0,
        "contrast": "Imeron", "phase": "portal venous", "thickness_mm": 2.0, "plane": "axial", "orientation": "SPL", "values": "HU", "kind": "scan",
        "files": 30, "format": "dicom", "modality": "CT", "tilt_deg": 0.0, "problem": None, "manufacturer": "SIEMENS", "represents": True, "why_not": "",
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected


def test_the_representative_and_why_the_others_lost(run, hospital):
    got = {(r["study"], r["number"]): r["why_not"] or r["represents"] for r in rows(run, hospital) if r["study"]}
    assert got == {
        ("P1.1", "1"): "native phase",
        ("P1.1", "2"): True,
        ("P1.1", "3"): "sharp kernel",
        ("P1.2", "4"): True,
        ("P2.1", "5"): "missing slices",
    }


def test_problems_and_what_was_left_out(run, hospital):
    code, out, _ = run(hospital, "--quiet")
    assert code == 0
    assert re.search(r"^\d+: missing slices: 1 slices are missing at ", out, re.MULTILINE)
    assert "left out: 1 x not a scan file" in out
    data = json.loads(run(hospital, "--json")[1])
    assert data["skipped"] == {"not a scan file": 1}


def test_no_name_no_id_no_path_unless_asked(run, hospital):
    """Planted in names of files and folders, IDs, and a description: stdout has none of them; stderr says where things lie."""
    for options in ((), ("--json",), ("--phi",), ("--phi", "--json")):
        code, out, err = run(hospital, *options)
        assert code == 0
        for secret in ("Quillfeather", "XK-4711", "XK-4712", "Planted Clinic", str(hospital), UID):
            assert secret not in out, (options, secret)
        assert "Quillfeather" in err
    assert "(withheld)" in run(hospital)[1]
    _, out, err = run(hospital, "--paths", "--quiet")
    assert "Quillfeather" in out
    assert err == ""


def test_phi_values_shows_them(run, hospital):
    code, out, _ = run(hospital, "--phi-values", "--json", "--quiet")
    data = json.loads(out)
    elements = {e["where"]: e for e in data["phi"]["elements"]}
    assert elements["(0010,0010)"]["values"] == [SECRET]
    assert elements["(0010,0020)"]["values"] == ["XK-4711", "XK-4712"]
    assert data["series"][0]["patient_id"] == "XK-4711"
    masked = json.loads(run(hospital, "--phi", "--json", "--quiet")[1])
    elements = {e["where"]: e for e in masked["phi"]["elements"]}
    assert elements["(0010,0010)"]["masked"] == [f"Q… ({len(SECRET)})"]
    assert elements["folder"]["masked"] == ["Q… (12)"]
    assert code == 0


@pytest.mark.parametrize("width", [80, 100, 120, 160, 200])
def test_the_table_fits_the_terminal(run, hospital, width):
    _, out, _ = run(hospital, "--quiet", width=width)
    lines = out.split("left out")[0].splitlines()
    table = [line for line in lines if not re.match(r"\d+: ", line)]
    assert max(map(len, table)) <= width
    for whole in ("sharp kernel", "native phase", "missing slices", "30x48x56", "144x168"):
        assert whole in out, whole


def test_typed_control_characters_and_tags_do_no_harm(run, tmp_path):
    evil = "Thorax\x1b[31m\x07 \u202e<b>[bold]x"
    series(tmp_path / "s", 1, evil, SpecificCharacterSet="ISO_IR 192")
    out = run(tmp_path, "--quiet")[1]
    assert "Thorax" in out
    assert not set(out) & {"\x1b", "\x07", "\u202e"}
    assert "[bold]" in out  # not taken for markup
    assert "\x1b" not in run(tmp_path, "--json", "--quiet")[1]
    page = tmp_path / "p.html"
    run(tmp_path, "--html", page, "--quiet")
    text = page.read_text()
    assert not set(text) & {"\x1b", "\x07", "\u202e"}
    assert "<b>[bold]" not in text


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_self_contained_and_private(run, hospital, tmp_path):
    target = tmp_path / "page.html"
    code, out, _ = run(hospital, "--html", target, "--json", "--quiet")
    assert code == 0
    data = json.loads(out)
    assert data["html"]["pictures"] == 6
    assert list(data["html"]["failed"].values()) == [next(r["problem"] for r in data["series"] if r["problem"])]
    assert [r["values"] for r in data["series"] if r["format"] == "nifti"] == ["HU", "labels"]
    assert data["html"]["bytes"] == target.stat().st_size
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    text = target.read_text()
    page = _Page(text)
    assert ("meta", "default-src 'none'") in [
        (tag, (a.get("content") or "").split(";")[0])
        for tag, a in page.tags
        if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    sources = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(sources) == 7
    assert all(source and source.startswith("data:image/webp;base64,") for source in sources)
    for secret in ("Quillfeather", "XK-4711", "Planted Clinic", str(hospital)):
        assert secret not in text
    assert "represents its study" in text
    assert "sharp kernel" in text


def test_headers_alone_are_read_without_a_page(run, hospital, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("pixels were read")

    monkeypatch.setattr(dicom, "read_stack", refused)
    monkeypatch.setattr("ctfoundry.io.raw.load", refused)
    assert len(rows(run, hospital)) == 7


def test_one_file_one_series_and_nothing(run, hospital, tmp_path):
    (alone,) = rows(run, hospital / "f" / "ct.nii.gz")
    assert alone["shape"] == [20, 40, 44]
    (its,) = rows(run, hospital / "Quillfeather" / "b" / "0003.dcm")
    assert (its["number"], its["files"]) == ("2", 30)
    (named,) = rows(run, f"{hospital}#{UID}.1.3")
    assert named["number"] == "3"
    code, out, _ = run(hospital / "letter.txt", "--quiet")
    assert (code, out.splitlines()) == (0, ["left out: 1 x not a scan file", "no scan"])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(empty, "--quiet")[1] == "no scan\n"
    code, _, err = run(tmp_path / "missing")
    assert code == 1
    assert "does not exist" in err


def test_archives_and_dicomdir_are_as_their_folder(run, hospital, tmp_path):
    archive = tmp_path / "scans.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted((hospital / "Quillfeather").rglob("*.dcm")):
            packed.write(path, path.relative_to(hospital))
        packed.write(hospital / "f" / "ct.nii.gz", "f/ct.nii.gz")
    expected = rows(run, hospital / "Quillfeather")
    keys = expected[0].keys() - {"no"}

    def plain(found: list[dict]) -> list[dict]:
        return sorted(({k: r[k] for k in keys} for r in found if r["format"] == "dicom"), key=lambda r: r["number"])

    got = rows(run, archive)
    assert len(got) == 5
    assert plain(got) == plain(expected)
    assert plain(rows(run, tmp_path)) == plain(expected)  # an archive in a folder is looked into
    (one,) = rows(run, f"{archive}#{UID}.1.2")
    assert one["number"] == "2"
    code, out, _ = run(archive, "--html", tmp_path / "p.html", "--json", "--quiet")
    assert (code, json.loads(out)["html"]["failed"]) == (0, {})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # pydicom leaves its temporary folder to the collector
        disc = pydicom.fileset.FileSet()
        for path in sorted((hospital / "Quillfeather" / "b").iterdir()):
            data = pydicom.dcmread(path)
            data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20240101", "120000", "1", ""
            disc.add(data)
        disc.write(tmp_path / "disc")
        del disc
        gc.collect()
    (listed,) = rows(run, tmp_path / "disc" / "DICOMDIR")
    assert (listed["number"], listed["shape"]) == ("2", [30, 48, 56])
    code, _, err = run(f"{archive}#nothing")
    assert code == 1
    assert "holds no such series" in err


def test_an_unreadable_page_target_is_an_error(run, hospital):
    code, _, err = run(hospital, "--html", "/proc/none/page.html", "--quiet")
    assert code == 1
    assert "Traceback" not in err


# Thinned reading ------------------------------------------------------------------------------------------------------


def long_volume(dtype: type, shape: tuple[int, int, int] = (70, 33, 41)) -> Volume:
    values = np.random.default_rng(0).integers(-1000, 1500, shape)
    values[::7] = -3024  # fill
    return Volume(values.astype(dtype), make_affine((1.0, 2.0, 3.0), "SPL", (5.0, -6.0, 7.0)), "hu")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_a_streamed_glance_is_the_thinned_volume(tmp_path, monkeypatch, name):
    monkeypatch.setattr(glance, "LONGEST", 10)
    io.write(long_volume(np.int16), tmp_path / name)
    found = io.discover(tmp_path).found[0]
    whole = io.read(tmp_path / name)
    monkeypatch.setattr(glance, "WHOLE", 1 << 13)
    taken = glance.glance(found)
    assert taken.shape == (10, 11, 11)
    assert (taken.voxels == whole.voxels[::7, ::3, ::4]).all()
    assert (taken.valid == whole.valid[::7, ::3, ::4]).all()
    index = np.array([[0, 0, 0], [3, 2, 1], [9, 10, 10]])
    assert taken.world(index) == pytest.approx(whole.world(index * [7, 3, 4]))


def test_a_series_is_read_at_every_kth_slice(tmp_path, monkeypatch):
    series(tmp_path, 1, "Thorax", slices=41)
    monkeypatch.setattr(glance, "LONGEST", 10)
    found = io.discover(tmp_path).found[0]
    read: list[int] = []
    stack = dicom.read_stack
    monkeypatch.setattr(
        dicom, "read_stack", lambda headers, *a, **k: read.append(len(headers)) or stack(headers, *a, **k)
    )
    taken = glance.glance(found)
    monkeypatch.undo()
    whole = found.read()
    assert read == [11]
    assert (taken.voxels == whole.voxels[::4, ::4, ::5]).all()
    assert taken.world([2, 3, 4]) == pytest.approx(whole.world([8, 12, 20]))


@pytest.mark.parametrize("shuffled", [False, True])
def test_frames_of_one_file(tmp_path, monkeypatch, shuffled):
    """Enhanced CT: every k-th frame where frames lie in order, the whole file otherwise; the same places either way."""
    enhanced = runpy.run_path(str(Path(__file__).parents[1] / "io" / "test_dicom_enhanced.py"))
    monkeypatch.setattr(glance, "LONGEST", 10)
    order = np.random.default_rng(1).permutation(30).tolist() if shuffled else None
    enhanced["write"](tmp_path / "e.dcm", enhanced["values"](count=30), order=order)
    (found,) = io.discover(tmp_path).found
    assert len(found.frames[0]) == 30
    taken, whole = glance.glance(found), io.read(tmp_path)
    assert (taken.voxels == whole.voxels[::3]).all()
    assert taken.world([4, 3, 2]) == pytest.approx(whole.world([12, 3, 2]))


def test_a_file_that_ends_early_is_named(tmp_path, monkeypatch):
    io.write(long_volume(np.int16), tmp_path / "a.nii.gz")
    found = io.discover(tmp_path).found[0]
    monkeypatch.setattr(glance, "WHOLE", 1 << 13)
    os.truncate(tmp_path / "a.nii.gz", (tmp_path / "a.nii.gz").stat().st_size // 2)
    with pytest.raises(TruncatedError):
        glance.glance(found)
