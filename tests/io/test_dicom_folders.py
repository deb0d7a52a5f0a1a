"""Folders as hospitals hand them over: other objects, other modalities, pipes, links, files that cannot be opened."""

from __future__ import annotations

import os
import socket
import threading
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ctfoundry import geometry, io
from ctfoundry.errors import CTFoundryError, ReadError
from ctfoundry.io import dicom_header
from ctfoundry.io.dicom_write import UID, write_series

AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))


def values(seed: int = 0, count: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 2000, (count, 5, 7)).astype(np.int16)


def kind_of(sop_class: str, modality: str, *, pixels: bool = False) -> Any:
    def change(data: Any, d: int) -> None:
        data.SOPClassUID, data.Modality = sop_class, modality
        if not pixels:
            del data.PixelData

    return change


OTHERS = {
    "segmentation (SEG)": kind_of("1.2.840.10008.5.1.4.1.1.66.4", "SEG", pixels=True),
    "structure set (RTSTRUCT)": kind_of("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT"),
    "dose grid (RTDOSE)": kind_of("1.2.840.10008.5.1.4.1.1.481.2", "RTDOSE", pixels=True),
    "plan (RTPLAN)": kind_of("1.2.840.10008.5.1.4.1.1.481.5", "RTPLAN"),
    "document (PDF)": kind_of("1.2.840.10008.5.1.4.1.1.104.1", "DOC"),
    "structured report or dose sheet (SR)": kind_of("1.2.840.10008.5.1.4.1.1.88.67", "SR"),
    "secondary capture": kind_of("1.2.840.10008.5.1.4.1.1.7", "CT", pixels=True),
    "presentation state": kind_of("1.2.840.10008.5.1.4.1.1.11.1", "PR"),
    "not CT (MR)": kind_of("1.2.840.10008.5.1.4.1.1.4", "MR", pixels=True),
    "not CT (PT)": kind_of("1.2.840.10008.5.1.4.1.1.128", "PT", pixels=True),
    "localizer": lambda data, d: setattr(data, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    "colour image": lambda data, d: setattr(data, "SamplesPerPixel", 3),
    "multi-frame image": lambda data, d: setattr(data, "NumberOfFrames", 2),
    "no position in the patient": lambda data, d: delattr(data, "ImagePositionPatient"),
    "no pixels": lambda data, d: delattr(data, "PixelData"),
}


def test_everything_else_in_the_folder_is_named(tmp_path: Path) -> None:
    """All objects of one study, even of one series, in the folders of the slices."""
    stored = values()
    write_series(tmp_path / "a", stored[:3], AFFINE)
    write_series(tmp_path / "b" / "c", stored[3:], geometry.shifted(AFFINE, (3, 0, 0)), name="x{}".format)
    for k, (name, change) in enumerate(OTHERS.items()):
        folder = tmp_path / ("a" if k % 2 else "b/c")
        write_series(folder, values(9, 1), AFFINE, change=change, name=f"other{k}-{{}}".format)
        assert name
    found = io.discover(tmp_path)
    assert found.skipped == dict.fromkeys(sorted(OTHERS), 1) | {}
    (item,) = found.found
    np.testing.assert_array_equal(item.read().voxels, stored)
    np.testing.assert_array_equal(io.read(tmp_path).voxels, stored)
    np.testing.assert_array_equal(io.read(f"{tmp_path}#{UID}.1").voxels, stored)


@pytest.fixture
def in_time() -> Iterator[None]:
    """Ends the test run's patience: what blocks for ten seconds is a failure, by name."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 10


@pytest.mark.usefixtures("in_time")
def test_pipes_sockets_devices_and_links_do_not_block(tmp_path: Path) -> None:
    stored = values()
    write_series(tmp_path / "scan", stored, AFFINE)
    os.mkfifo(tmp_path / "scan" / "pipe.dcm")
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path / "scan")  # names of sockets are short
    try:
        server.bind("socket")
    finally:
        os.chdir(here)
    (tmp_path / "scan" / "zero").symlink_to("/dev/zero")
    (tmp_path / "scan" / "loop").symlink_to(tmp_path / "scan")
    (tmp_path / "scan" / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "scan" / "self").symlink_to(tmp_path / "scan" / "self")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "report.txt").write_text("text")
    (tmp_path / "scan" / "link.txt").symlink_to(tmp_path / "elsewhere" / "report.txt")
    result: list[Any] = []
    thread = threading.Thread(
        target=lambda: result.extend([io.discover(tmp_path / "scan"), io.read(tmp_path / "scan")]), daemon=True
    )
    thread.start()
    thread.join(9)
    server.close()
    assert len(result) == 2
    found, volume = result
    names = {s.path.name: s.reason for s in found.skips}
    assert names == {
        "pipe.dcm": "pipe, socket or device",
        "socket": "pipe, socket or device",
        "zero": "pipe, socket or device",
        "loop": "link to a folder",
        "nowhere": "broken link",
        "self": "cannot be opened (Too many levels of symbolic links)",
        "link.txt": "not a scan file",
    }
    np.testing.assert_array_equal(volume.voxels, stored)
    with pytest.raises(CTFoundryError, match=r"pipe\.dcm"):
        io.read(tmp_path / "scan" / "pipe.dcm")


def test_what_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_series(tmp_path, values(), AFFINE)
    (tmp_path / "closed").mkdir()
    true_open, true_scan = os.open, os.scandir

    def no_open(path: Any, *rest: Any) -> int:
        if str(path) == str(paths[2]):
            raise PermissionError(13, "Permission denied")
        return true_open(path, *rest)

    def no_scan(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return true_scan(path)

    monkeypatch.setattr(os, "open", no_open)
    monkeypatch.setattr(os, "scandir", no_scan)
    reasons = {s.path.name: s.reason for s in io.discover(tmp_path).skips}
    assert reasons == {
        "0002.dcm": "cannot be opened (Permission denied)",
        "closed": "cannot be opened (Permission denied)",
    }


def test_a_slice_that_vanishes_or_changes_after_the_search(tmp_path: Path) -> None:
    paths = write_series(tmp_path, values(), AFFINE)
    (found,) = io.discover(tmp_path).found
    paths[3].write_bytes(b"no more")
    with pytest.raises(ReadError, match=r"0003\.dcm: is not a DICOM file"):
        found.read()
    paths[3].unlink()
    with pytest.raises(ReadError, match="cannot be read"):
        found.read()


def test_memory_of_a_large_folder_is_small(tmp_path: Path) -> None:
    """A million files that are no scans, or a million slices, must not need more than 2 GB."""
    for k in range(1000):
        (tmp_path / f"some-usual-file-name-{k:06d}.txt").touch()
    io.discover(tmp_path)
    tracemalloc.start()
    try:
        found = io.discover(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.skipped == {"empty file": 1000}
    assert peak / 1000 < 1500


def test_headers_of_a_series_share_what_is_alike(tmp_path: Path) -> None:
    headers = [dicom_header.read_header(str(p)) for p in write_series(tmp_path, values(count=40), AFFINE)]
    for field in ("series", "study", "orientation", "spacing", "sop_class"):
        assert len({id(getattr(h, field)) for h in headers}) == 1


def test_private_sequences(tmp_path: Path) -> None:
    stored = values()

    def change(data: Any, d: int) -> None:
        inner = Dataset()
        inner.add_new(0x00091010, "LO", "x" * 50)
        data.add_new(0x00091001, "LO", "private")
        data.add_new(0x00091020, "SQ", [inner])
        data[0x00091020].is_undefined_length = True

    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        write_series(tmp_path / syntax, stored, AFFINE, change=change, syntax=str(syntax))
        np.testing.assert_array_equal(io.read(tmp_path / syntax).voxels, stored)


def test_sequences_of_unknown_kind_are_written_implicitly(tmp_path: Path) -> None:
    """As archives do with private sequences (PS3.5 6.2.2); the file itself is explicit."""
    stored, undefined = values(), b"\xff" * 4
    element = b"\x09\0\x10\x10" + (4).to_bytes(4, "little") + b"abcd"
    items = b"\xfe\xff\0\xe0" + undefined + element + b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)
    for path in write_series(tmp_path, stored, AFFINE):
        data = path.read_bytes()
        at = data.index(b"\x10\0\x10\0PN")
        path.write_bytes(data[:at] + b"\x09\0\x20\x10UN\0\0" + undefined + items + data[at:])
        assert pydicom.dcmread(path)[0x00091020].value[0][0x00091010].value
    np.testing.assert_array_equal(io.read(tmp_path).voxels, stored)


def test_elements_out_of_order_are_read_by_pydicom(tmp_path: Path) -> None:
    """Its pixels are still found where they are."""
    stored = values()
    for path in write_series(tmp_path, stored, AFFINE):
        data = path.read_bytes()
        name, image = data.index(b"\x10\0\x10\0PN"), data.index(b"\x08\0\x60\0CS")
        end, length = data.index(b"\x10\0\x20\0LO"), 10
        moved = data[image : image + length]
        path.write_bytes(data[:image] + data[image + length : name] + data[name:end] + moved + data[end:])
        assert dicom_header.read_header(str(path)).modality == "CT"
    np.testing.assert_array_equal(io.read(tmp_path).voxels, stored)


def test_a_deflated_meta_group_that_hides_is_not_inflated_by_pydicom(tmp_path: Path) -> None:
    """The transfer syntax behind 20 KB of private information, where the scanner gives up."""

    def change(data: Any, d: int) -> None:
        data.add_new(0x00091001, "LO", "private")
        data.add_new(0x00091011, "OB", bytes(1 << 24))

    path = write_series(tmp_path, values(count=1), AFFINE, change=change, syntax=str(DeflatedExplicitVRLittleEndian))[0]
    data = path.read_bytes()
    at = data.index(b"\x02\0\x10\0UI")
    info = b"\x02\0\x02\x01OB\0\0" + (20000).to_bytes(4, "little") + bytes(20000)
    path.write_bytes(data[:at] + info + data[at:])
    tracemalloc.start()
    try:
        with pytest.raises(ReadError, match="deflated data set is unusual"):
            io.read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 22


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ImagePositionPatient", ["1e300", "0", "-1e300"]),
        ("ImagePositionPatient", ["nan", "0", "0"]),
        ("ImagePositionPatient", ["1e7", "1e7", "1e7"]),
        ("ImageOrientationPatient", ["1e200", "0", "0", "0", "1e200", "0"]),
        ("ImageOrientationPatient", ["inf", "0", "0", "0", "1", "0"]),
        ("PixelSpacing", ["1e-300", "1"]),
        ("PixelSpacing", ["1e300", "1"]),
        ("SliceThickness", ["inf"]),
        ("RescaleSlope", "1e300"),
        ("RescaleSlope", "nan"),
        ("RescaleIntercept", "1e30"),
    ],
)
def test_numbers_beyond_all_sense(name: str, value: Any, tmp_path: Path) -> None:
    """An error of the package or a volume with finite places; warnings are errors here."""

    def change(data: Any, d: int) -> None:
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [x, float(y) + 0.4 * d, z]  # tilted, which divides by the spacing
        with pydicom.config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setattr(data, name, value)

    write_series(tmp_path, values(), AFFINE, change=change)
    io.discover(tmp_path)
    try:
        volume = io.read(tmp_path)
    except CTFoundryError as error:
        assert str(tmp_path) in str(error)  # noqa: PT017
    else:
        assert name == "SliceThickness"
        assert np.isfinite(volume.affine).all()


def test_a_series_beside_damaged_slices_says_so(tmp_path: Path) -> None:
    """Without its last slice a series is regular, and nothing says which series a damaged slice is of; so all of its folder may be short."""
    for name in ("a", "b", "apart"):
        write_series(
            tmp_path / ("apart" if name == "apart" else "both") / name,
            values(),
            AFFINE,
            series=f"1.{len(name)}{ord(name[0])}",
        )
    for path in sorted((tmp_path / "both").glob("*/*.dcm")):
        path.rename(tmp_path / "both" / f"{path.parent.name}-{path.name}")
    last = sorted((tmp_path / "both").glob("a-*"))[-1]
    last.write_bytes(last.read_bytes()[:400])
    note = "left out beside it, and perhaps slices of it: 1 x damaged DICOM file"
    found = {f.path.name[0] if f.path.parent.name == "both" else "apart": f for f in io.discover(tmp_path).found}
    assert {name: (len(f.paths), f.notes) for name, f in found.items()} == {
        "a": (5, (note,)), "b": (6, (note,)), "apart": (6, ()),
    }  # fmt: skip
    assert {name: f.read().notes for name, f in found.items()} == {"a": (note,), "b": (note,), "apart": ()}
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for path in (tmp_path / "both").glob("*.dcm"):
            archive.write(path, path.name)
    inside = io.discover(tmp_path / "both.zip").found
    assert [f.read().notes for f in inside] == [(note,), (note,)]


def test_of_another_modality_only_a_defined_term_is_repeated(tmp_path: Path) -> None:
    """Reasons stand in run.json, and the header's word may be anything."""
    for name, term in (("a", "XA"), ("b", "DOE JANE"), ("c", "")):
        write_series(tmp_path / name, values(0, 1), AFFINE, series=f"1.{ord(name)}", change=kind_of("1.2.3", term))
    assert io.discover(tmp_path).skipped == {
        "not CT (XA)": 1,
        "not CT (another modality)": 1,
        "not CT (no modality)": 1,
    }
