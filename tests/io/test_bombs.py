"""Files that swell: every way of packing stops where its header says that the voxels end, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ctfoundry import geometry, io
from ctfoundry.errors import NotAScanError, ReadError, TooLargeError, TruncatedError
from ctfoundry.io import stream
from ctfoundry.io.dicom_write import write_series
from ctfoundry.io.stream import Stream
from ctfoundry.volume import Volume

SHAPE = (5, 6, 7)
AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))
VOXELS = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)
SWELLS = 1 << 26
"""Bytes of zeros behind the voxels of a bomb; some ten thousand on the disk."""


def plain(tmp_path: Path) -> bytes:
    io.write(Volume(VOXELS, AFFINE), tmp_path / "plain.nii")
    return (tmp_path / "plain.nii").read_bytes()


def nrrd(encoding: str, body: bytes, sizes: str = "7 6 5") -> bytes:
    lines = ["NRRD0004", "type: int16", "dimension: 3", "space: LPS", f"sizes: {sizes}", "endian: little"]
    lines += [
        "space directions: (1.3,0,0) (0,0.8,0) (0,0,2.5)",
        "space origin: (-30,-40,-100)",
        f"encoding: {encoding}",
    ]
    return "\n".join(lines).encode() + b"\n\n" + body


def meta(body: bytes, sizes: str = "7 6 5") -> bytes:
    lines = ["ObjectType = Image", "NDims = 3", "CompressedData = True", "TransformMatrix = 1 0 0 0 1 0 0 0 1"]
    lines += ["Offset = -30 -40 -100", "ElementSpacing = 1.3 0.8 2.5", f"DimSize = {sizes}", "ElementType = MET_SHORT"]
    return "\n".join(lines).encode() + b"\nElementDataFile = LOCAL\n" + body


RAW = VOXELS.tobytes()
BOMBS: dict[str, Callable[[Path], bytes]] = {
    "one.nii.gz": lambda p: gzip.compress(plain(p) + bytes(SWELLS), 9),
    "members.nii.gz": lambda p: gzip.compress(plain(p), 9) + gzip.compress(bytes(SWELLS), 9) * 3,
    "empty-members.nii.gz": lambda p: gzip.compress(b"") * 2000 + gzip.compress(plain(p)) + gzip.compress(b"") * 2000,
    "a.nrrd": lambda p: nrrd("gzip", gzip.compress(RAW + bytes(SWELLS), 9)),
    "b.nrrd": lambda p: nrrd("bzip2", bz2.compress(RAW + bytes(SWELLS), 9)),
    "a.mha": lambda p: meta(zlib.compress(RAW + bytes(SWELLS), 9)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_unpacked_no_further_than_its_voxels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(BOMBS[name](tmp_path))
    unpacked = []
    original = Stream._unpacked
    monkeypatch.setattr(Stream, "_unpacked", lambda self, limit: unpacked.append(p := original(self, limit)) or p)
    np.testing.assert_array_equal(io.read(tmp_path / name).voxels, VOXELS)
    assert 0 < sum(map(len, unpacked)) < 4 * (len(RAW) + 352)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii.gz", lambda p: gzip.compress(plain(p)) + b"trailing garbage"),
        ("b.nii.gz", lambda p: gzip.compress(plain(p)) + b"\x1f\x8b and no member"),
        ("a.nrrd", lambda p: nrrd("bzip2", bz2.compress(RAW) + b"trailing garbage")),
        ("a.mha", lambda p: meta(zlib.compress(RAW) + b"trailing garbage")),
        ("gz-in-a.mha", lambda p: meta(gzip.compress(RAW) + b"trailing garbage")),
    ],
)
def test_garbage_behind_a_packed_stream(name: str, content: Callable[[Path], bytes], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content(tmp_path))
    if name.startswith("b."):
        with pytest.raises(ReadError, match="damaged"):
            io.read(tmp_path / name)
    else:
        np.testing.assert_array_equal(io.read(tmp_path / name).voxels, VOXELS)


@pytest.mark.parametrize("packing", ["gzip", "zlib", "deflate", "bzip2"])
@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 20])
def test_streams_give_the_same_bytes_in_any_steps(packing: Any, step: int, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 5, 20_000 if step < 100 else 1_500_000).astype(np.uint8).tobytes()
    pack: dict[str, Callable[[bytes], bytes]] = {
        "gzip": lambda b: gzip.compress(b, 1),
        "zlib": zlib.compress,
        "deflate": lambda b: zlib.compress(b)[2:-4],
        "bzip2": bz2.compress,
    }
    (tmp_path / "a").write_bytes(pack[packing](data) + b"behind")
    got = bytearray()
    with Stream(tmp_path / "a", packing) as source:
        while piece := source.take(step):
            got += piece
        assert got == data
        assert source.ended
        assert source.consumed == (tmp_path / "a").stat().st_size - len(b"behind")


def test_few_packed_bytes_cannot_hold_what_is_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before anything is allocated: a byte of deflate stands for 1,032 bytes at most."""
    monkeypatch.setattr(np, "empty", lambda *_, **__: pytest.fail("something was allocated"))
    for name, content in (
        ("a.nrrd", nrrd("gzip", gzip.compress(RAW), "1000 1000 1000")),
        ("a.mha", meta(zlib.compress(RAW), "1000 1000 1000")),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TruncatedError, match="packed bytes cannot hold the 2,000,000,000"):
            io.read(tmp_path / name)
        with pytest.raises(TooLargeError, match="declares 1,908 MiB of voxels, over the cap of 1 MiB"):
            io.read(tmp_path / name, cap=1 << 20)
    most = len(zlib.compress(bytes(1 << 26), 9))
    assert (1 << 26) / most < stream.DEFLATE_RATIO


def test_hostile_sizes_are_no_numbers_to_choke_on(tmp_path: Path) -> None:
    for k, n in enumerate(("-1", "0", "2147483648", "9223372036854775808", "1" + "0" * 400, "1e9", "0x10", "+5", "٣")):
        for name, content in ((f"{k}.nrrd", nrrd("gzip", b"", f"7 6 {n}")), (f"{k}.mha", meta(b"", f"7 6 {n}"))):
            (tmp_path / name).write_bytes(content)
            with pytest.raises((ReadError, NotAScanError)) as caught:
                io.read(tmp_path / name)
            assert len(str(caught.value)) < 500
    assert all(item.problem is not None for item in io.discover(tmp_path).found if "+5" not in str(item))


LIMITED = """
import resource, sys
from ctfoundry import io
from ctfoundry.errors import CTFoundryError
io.read(sys.argv[1])  # what is imported on the way is there before the limit
with open("/proc/self/statm") as statm:
    now = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (48 << 20),) * 2)
for path in sys.argv[2:]:
    try:
        print("voxels", int(io.read(path, cap=1 << 24).voxels.sum(dtype="int64")))
    except CTFoundryError as error:
        print("error", type(error).__name__)
"""


def test_bombs_under_a_limit_of_memory(tmp_path: Path) -> None:
    """48 MiB beyond what the imports took; each bomb would take more than that unpacked."""
    plain(tmp_path)
    paths = [str(tmp_path / "plain.nii")]
    for name in BOMBS:
        (tmp_path / name).write_bytes(BOMBS[name](tmp_path))
        paths.append(str(tmp_path / name))
    for name, content in (("lie.nrrd", nrrd("bzip2", bz2.compress(bytes(1 << 28)), "2000 2000 2000")), ("lie.mha", meta(zlib.compress(bytes(1 << 26)), "2000 2000 2000"))):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        paths.append(str(tmp_path / name))
    import zipfile

    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("a.nii", plain(tmp_path) + bytes(SWELLS))
    paths.append(str(tmp_path / "bomb.zip"))
    done = subprocess.run([sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total = f"voxels {int(VOXELS.sum(dtype=np.int64))}"
    assert done.stdout.splitlines() == [total] * len(BOMBS) + ["error TooLargeError"] * 3


# Beside the readers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swelling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series whose first slice unpacks to a quarter of a gigabyte behind its pixels."""
    folder = tmp_path_factory.mktemp("swelling")

    def change(data: Any, d: int) -> None:
        if d == 0:
            data.add_new(0x7FE10010, "LO", "private")
            data.add_new(0x7FE11001, "OB", bytes(1 << 28))

    stored = np.zeros((3, 6, 7), np.int16)
    write_series(folder, stored, AFFINE, change=change, syntax=str(DeflatedExplicitVRLittleEndian))
    return folder


@contextmanager
def memory(limit: int) -> Iterator[None]:
    """Fails where more bytes than `limit` are held at one time within."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_a_structure_set_without_series_beside_a_series_that_swells(swelling: Path, tmp_path: Path) -> None:
    """Its frame of reference is looked up in the series' headers."""
    write_series(tmp_path / "ct", np.zeros((3, 6, 7), np.int16), AFFINE)
    labels = Volume(np.ones((3, 6, 7), np.uint8), AFFINE, "label", names={1: "liver"})
    io.write_rtstruct(labels, tmp_path / "study" / "rs.dcm", tmp_path / "ct")
    data: Any = pydicom.dcmread(tmp_path / "study" / "rs.dcm")
    del data.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
    data.save_as(tmp_path / "study" / "rs.dcm")
    shutil.copytree(swelling, tmp_path / "study" / "ct")
    with memory(1 << 28):
        found = {f.modality: f for f in io.discover(tmp_path / "study").found}
        assert found["RTSTRUCT"].image == found["CT"].series


def test_labels_written_beside_a_series_that_swells(swelling: Path, tmp_path: Path) -> None:
    labels = Volume(np.ones((3, 6, 7), np.uint8), AFFINE, "label", names={1: "liver"})
    with memory(1 << 28):
        io.write_rtstruct(labels, tmp_path / "rs.dcm", swelling)
    written: Any = pydicom.dcmread(tmp_path / "rs.dcm")
    assert written.PatientID == "P-1"


def test_a_deflated_dicomdir_that_hides_its_coding(tmp_path: Path) -> None:
    """The transfer syntax behind two kilobytes of the meta group, where a look at the first bytes misses it."""

    def element(tag: bytes, vr: bytes, value: bytes) -> bytes:
        long = vr in (b"OB", b"UN")
        return tag + vr + (b"\0\0" + struct.pack("<I", len(value)) if long else struct.pack("<H", len(value))) + value

    group = (
        element(b"\2\0\2\0", b"UI", b"1.2.840.10008.1.3.10")
        + element(b"\2\0\2\1", b"OB", bytes(2048))
        + element(b"\2\0\x10\0", b"UI", b"1.2.840.10008.1.2.1.99")
    )
    pack = zlib.compressobj(9, wbits=-15)
    body = pack.compress(
        element(b"\x09\0\x10\0", b"LO", b"private ") + b"\x09\0\1\x10OB\0\0" + struct.pack("<I", 1 << 28)
    )
    body += b"".join(pack.compress(bytes(1 << 24)) for _ in range(16)) + pack.flush()
    path = tmp_path / "DICOMDIR"
    path.write_bytes(bytes(128) + b"DICM" + group + body)
    with memory(1 << 28), pytest.raises(ReadError, match="deflated DICOMDIR"):
        io.read(path)


def test_a_huge_number_of_a_structure_costs_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", np.zeros((3, 6, 7), np.int16), AFFINE)
    labels = Volume(np.ones((3, 6, 7), np.uint8), AFFINE, "label", names={1: "liver"})
    io.write_rtstruct(labels, tmp_path / "rs.dcm", tmp_path / "ct")
    data: Any = pydicom.dcmread(tmp_path / "rs.dcm")
    data.StructureSetROISequence[0].ROINumber = data.ROIContourSequence[0].ReferencedROINumber = (1 << 31) - 1
    data.save_as(tmp_path / "rs.dcm")
    with memory(1 << 28):
        read = io.read_rtstruct(tmp_path / "rs.dcm", labels.grid, overlap="smallest")
    assert np.unique(read.voxels).tolist() == [(1 << 31) - 1]
