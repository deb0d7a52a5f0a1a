"""Trees of files that were never meant to be read: nothing hangs, nothing crashes, and what is left out is said."""

from __future__ import annotations

import json
import os
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from ctfoundry import cli, geometry, io
from ctfoundry.errors import GeometryError, TruncatedError
from ctfoundry.io import objects
from ctfoundry.io.dicom_write import write_series
from ctfoundry.volume import Volume

AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))
VOXELS = np.random.default_rng(0).integers(-1000, 1500, (8, 16, 16)).astype(np.int16)
PREPARE = ["prepare", "--quiet", "--workers", "0", "--set", "min_slices=1", "--set", "min_cover_mm=1"]


Command = Callable[..., tuple[object, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """``ctfoundry ARGUMENTS`` here: its exit code and stdout."""
    monkeypatch.setenv("CTFOUNDRY_SALT", "test")

    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["ctfoundry", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().out

    return run


def raw(tag: int, value: str) -> Any:
    """A change to a data set that pydicom's own checks would refuse."""

    def change(data: Any, d: int) -> None:
        text = value.encode() + b" " * (len(value) % 2)
        data._dict[Tag(tag)] = RawDataElement(Tag(tag), "DS", len(text), text, 0, False, True)

    return change


@pytest.mark.parametrize("name", [b"new\nline.nii.gz", b"not \xff\xfe utf-8.nii.gz", b"\x1b[31mred.nii.gz"])
def test_names_that_are_no_text(name: bytes, command: Command, tmp_path: Path) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    io.write(Volume(VOXELS, AFFINE, "hu"), source / "a.nii.gz")
    os.rename(source / "a.nii.gz", os.path.join(os.fsencode(source), name))
    io.write(Volume(VOXELS[:2], AFFINE, "hu"), source / "small.nii.gz")
    code, said = command(*PREPARE, "--set", "min_slices=5", str(source), str(store))
    assert "1 added, 0 there already, 1 left out" in said
    code, said = command("inspect", "--quiet", "--json", "--paths", str(source))
    assert code == 0
    assert len(json.loads(said)["series"]) == 2


def test_a_refused_scan_with_a_name_that_is_no_text(command: Command, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    io.write(Volume(VOXELS, AFFINE, "hu"), source / "a.nii.gz")
    (source / "b.nii").write_bytes(b"\x5c\x01\0\0" + bytes(340) + b"n+1\0" + bytes(8))
    os.rename(source / "b.nii", os.path.join(os.fsencode(source), b"b\xff.nii"))
    _, said = command(*PREPARE, str(source), str(tmp_path / "store"))
    assert "1 added, 0 there already, 1 left out" in said


@pytest.mark.parametrize("number", ["nan", "inf", "1e300", "0", "1e30"])
def test_headers_with_impossible_places(number: str, tmp_path: Path) -> None:
    head = "NRRD0004\ntype: int16\ndimension: 3\nspace: LPS\nsizes: 16 16 8\nendian: little\nencoding: raw\n"
    lines = f"space directions: ({number},0,0) (0,{number},0) (0,0,1)\nspace origin: (0,0,0)\n\n"
    (tmp_path / "a.nrrd").write_bytes((head + lines).encode() + VOXELS.tobytes())
    fields = "ObjectType = Image\nNDims = 3\nDimSize = 16 16 8\nElementType = MET_SHORT\nOffset = 0 0 0\n"
    fields += f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = {number} {number} 1\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(fields.encode() + VOXELS.tobytes())
    io.write(Volume(VOXELS, AFFINE, "hu"), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<hh", content, 252, 0, 1)  # the sform alone
    value = min(float(number), 1e38) if number == "1e300" else float(number)
    struct.pack_into("<12f", content, 280, value, 0, 0, 0, 0, value, 0, 0, 0, 0, 1, 0)
    (tmp_path / "a.nii").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.nrrd", "a.mha", "a.nii"):
            with pytest.raises(GeometryError):
                io.read(tmp_path / name)
        assert all(isinstance(found.problem, GeometryError) for found in io.discover(tmp_path).found)


def test_numbers_that_json_has_no_word_for(command: Command, tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOXELS, AFFINE, series="1.1", change=raw(0x00180050, "nan"))
    write_series(tmp_path / "b", VOXELS, AFFINE, series="1.2", change=raw(0x00180060, "1e999"))
    code, said = command("inspect", "--quiet", "--json", str(tmp_path))
    assert code == 0
    assert len(json.loads(said)["series"]) == 2


def test_prepare_says_what_it_passed_over(command: Command, tmp_path: Path) -> None:
    """A series whose headers cannot be parsed is no scan any more, so nothing else would speak of it: it is left out, as a failure."""
    source = tmp_path / "source"
    write_series(source / "good", VOXELS, AFFINE, series="1.1")
    os.mkfifo(source / "pipe.dcm")
    code, said = command(*PREPARE, str(source), str(tmp_path / "store"))
    assert code == 0
    assert "passed over: 1 x pipe, socket or device" in said
    write_series(source / "bad", VOXELS, AFFINE, series="1.2", change=raw(0x00280030, "abc\\abc"))
    code, said = command(*PREPARE, "--json", str(source), str(tmp_path / "store"))
    assert code == 3
    found = json.loads(said)
    assert list(found["failed"].values()) == ["8 x damaged DICOM file"]
    assert found["passed_over"] == {"pipe, socket or device": 1}
    [id] = found["failed"]
    assert f"{id},unreadable,8 x damaged DICOM file" in (tmp_path / "store/quarantine.csv").read_text()
    assert json.loads((tmp_path / "store/private.json").read_text())[id] == str(source / "bad")


JUNK: dict[str, bytes] = {
    "notes.txt": b"hello", ".gitkeep": b"", "._ct.nii.gz": b"\0\5\x16\7" + bytes(60), "__MACOSX/._a.dcm": b"", "thesis.docx": b"",
}  # fmt: skip
LOST: dict[str, tuple[bytes, str]] = {
    "empty.nii.gz": (b"", "empty file"),
    "cut.nii.gz": (b"\x1f\x8b\x08\0\0\0\0\0\0\3", "not a scan file"),
    "error.nrrd": (b"<html>404</html>", "not a scan file"),
    "cut.zip": (b"PK\3\4" + bytes(40), "zip archive: ends before the directory of the archive"),
}


def test_what_is_called_like_a_scan_and_holds_none_is_missing(tmp_path: Path) -> None:
    """Downloads that broke off; not what an operating system leaves, and not files of other kinds."""
    for name, content in (JUNK | {name: content for name, (content, _) in LOST.items()}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = io.discover(tmp_path)
    assert {skip.path.name: skip.reason for skip in found.skips if skip.lost} == {n: r for n, (_, r) in LOST.items()}
    assert len(found.skips) == len(JUNK) + len(LOST)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in (*JUNK, *LOST):
            archive.write(tmp_path / name, name)
    inside = [skip for skip in io.discover(tmp_path).skips if skip.path.name == "all.zip"]
    assert {skip.member for skip in inside if skip.lost} == {"empty.nii.gz", "cut.nii.gz", "error.nrrd"}


def test_a_segmentation_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    """Mapped into memory, it would end the process with SIGBUS."""
    write_series(tmp_path / "ct", np.zeros((16, 64, 64), np.int16), AFFINE)
    labels = Volume(np.ones((16, 64, 64), np.uint8), AFFINE, "label", names={1: "liver"})
    io.write_seg(labels, tmp_path / "seg.dcm", tmp_path / "ct")
    found = objects.load(tmp_path / "seg.dcm")
    span = found.large[objects.PIXEL_DATA]
    assert len(found.part(span.start, span.stop)) == 16 * 64 * 64 // 8
    os.truncate(tmp_path / "seg.dcm", span.start + 100)
    with pytest.raises(TruncatedError, match="was cut while it was read"):
        found.part(span.start, span.stop)
    with pytest.raises(TruncatedError, match="ends too early"):
        objects.load(tmp_path / "seg.dcm")


def test_elements_that_go_on_behind_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "ct", np.zeros((16, 64, 64), np.int16), AFFINE)
    labels = Volume(np.ones((16, 64, 64), np.uint8), AFFINE, "label", names={1: "liver"})
    io.write_seg(labels, tmp_path / "seg.dcm", tmp_path / "ct")
    io.write_rtstruct(labels, tmp_path / "rs.dcm", tmp_path / "ct")
    whole = [objects.load(tmp_path / name) for name in ("seg.dcm", "rs.dcm")]
    monkeypatch.setattr(objects, "FIRST_LOOK", 600)
    for name, expected in zip(("seg.dcm", "rs.dcm"), whole, strict=True):
        found = objects.load(tmp_path / name)
        assert (found.data, found.large) == (expected.data, expected.large)
