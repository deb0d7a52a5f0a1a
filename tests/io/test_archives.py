"""Zip archives and DICOMDIR: what they hold equals the files; what they claim is checked before it is acted on."""

from __future__ import annotations

import gc
import gzip
import hashlib
import os
import struct
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet
from pydicom.uid import RLELossless

from ctfoundry import geometry, io
from ctfoundry.errors import CTFoundryError, MissingSlicesError, NotAScanError, ReadError, TooLargeError, TruncatedError
from ctfoundry.io import archives, zip_directory
from ctfoundry.io.dicom_write import UID, write_series
from ctfoundry.volume import Volume

AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))


def voxels(seed: int = 0, depth: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, (depth, 6, 7)).astype(np.int16)


@pytest.fixture(autouse=True)
def _nothing_stays_behind(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every test ends without a file of ours among the temporary ones."""
    place = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    assert list(place.glob("ctfoundry*")) == []


def zipped(path: Path, folder: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder))
    return path


def of(path: Path, **contents: bytes) -> Path:
    """An archive of files with these contents; `__` in a name stands for a slash, the last `_` for a dot."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(".".join(name.replace("__", "/").rsplit("_", 1)), content)
    return path


def nifti(folder: Path, name: str = "ct.nii.gz", seed: int = 0) -> bytes:
    io.write(Volume(voxels(seed), AFFINE), folder / name)
    return (folder / name).read_bytes()


# What archives hold ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("packed", [False, True])
def test_a_zipped_series_equals_its_folder(method: int, packed: bool, tmp_path: Path) -> None:
    change = (lambda data, d: data.compress(RLELossless)) if packed else None
    write_series(tmp_path / "s" / "deep" / "er", voxels(), AFFINE, change=change)
    (tmp_path / "s" / "read me.txt").write_text("hello")
    path = zipped(tmp_path / "series.zip", tmp_path / "s", method)
    ours, plain = io.read(path), io.read(tmp_path / "s")
    np.testing.assert_array_equal(ours.voxels, voxels())
    np.testing.assert_array_equal(ours.affine, plain.affine)
    assert (ours.kind, ours.source, ours.notes) == (plain.kind, plain.source, plain.notes)
    inside, outside = io.discover(path), io.discover(tmp_path / "s")
    (found,), (other,) = inside.found, outside.found
    assert (found.grid, found.series, found.patient, found.facts) == (
        other.grid,
        other.series,
        other.patient,
        other.facts,
    )
    assert found.name == f"{path}#{UID}.1"
    assert found.hashes() == other.hashes()
    assert inside.skipped == outside.skipped == {"not a scan file": 1}
    for volume in (found.read(), io.read(found.name)):
        np.testing.assert_array_equal(volume.voxels, voxels())


def test_discovery_looks_into_archives_of_a_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "s", voxels(), AFFINE)
    zipped(tmp_path / "series.zip", tmp_path / "s")
    of(tmp_path / "other.zip", ct_nii=nifti(tmp_path, "x.nii.gz", seed=3), a__liver_nii=nifti(tmp_path, "y.nii.gz"))
    of(tmp_path / "junk.zip", a_txt=b"hello", b_txt=b"")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "series.zip").read_bytes()[:-30])
    found = io.discover(tmp_path)
    names = [f.name.removeprefix(f"{tmp_path}/") for f in found.found]
    assert names == [
        "other.zip#a/liver.nii",
        "other.zip#ct.nii",
        f"s#{UID}.1",
        f"series.zip#{UID}.1",
        "x.nii.gz",
        "y.nii.gz",
    ]
    assert found.skipped == {
        "zip archive: ends before the directory of the archive": 1,
        "zip archive without a scan": 1,
    }
    for item in found.found:
        assert item.read().grid == item.grid
    np.testing.assert_array_equal(io.read(f"{tmp_path}/other.zip#ct.nii").voxels, voxels(3))


def test_several_volumes_are_named(tmp_path: Path) -> None:
    for k in (1, 2):
        write_series(tmp_path / "s" / f"{k}", voxels(k), AFFINE, series=f"{k}")
    (tmp_path / "s" / "ct.nii.gz").write_bytes(nifti(tmp_path))
    path = zipped(tmp_path / "a.zip", tmp_path / "s")
    with pytest.raises(
        NotAScanError, match=rf"a\.zip: holds 3 volumes: .*{UID}\.1; .*{UID}\.2; .*a\.zip#ct\.nii\.gz\n"
    ):
        io.read(path)
    for k in (1, 2):
        np.testing.assert_array_equal(io.read(f"{path}#{UID}.{k}").voxels, voxels(k))
    np.testing.assert_array_equal(io.read(f"{path}#ct.nii.gz").voxels, voxels(0))
    with pytest.raises(NotAScanError, match="holds no scan other"):
        io.read(f"{path}#other")


def test_labels_in_archives_keep_their_names(tmp_path: Path) -> None:
    mask = np.zeros((5, 6, 7), np.int16)
    mask[1:3] = 1
    io.write(Volume(mask.astype(np.uint8), AFFINE, "label"), tmp_path / "m.nii.gz")
    path = of(
        tmp_path / "a.zip", **{"../x".replace("../", "organs__") + "liver_nii": (tmp_path / "m.nii.gz").read_bytes()}
    )
    volume = io.read(path)
    assert (volume.kind, volume.names) == ("label", {1: "xliver"})
    assert io.discover(path).found[0].is_label


def test_what_was_drawn_on_a_zipped_series(tmp_path: Path) -> None:
    write_series(
        tmp_path / "s" / "ct", voxels(), AFFINE, change=lambda data, d: setattr(data, "FrameOfReferenceUID", f"{UID}.5")
    )
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[1:3, 2:4, 2:5] = 1
    drawn = Volume(labels, AFFINE, "label", names={1: "liver"})
    io.write_seg(drawn, tmp_path / "s" / "seg.dcm", tmp_path / "s" / "ct")
    io.write_rtstruct(drawn, tmp_path / "s" / "rt.dcm", tmp_path / "s" / "ct")
    path = zipped(tmp_path / "a.zip", tmp_path / "s")
    np.testing.assert_array_equal(io.read(path).voxels, voxels())  # as of a folder: the image
    found = {f.modality: f for f in io.discover(path).found}
    assert set(found) == {"CT", "SEG", "RTSTRUCT"}
    for modality in ("SEG", "RTSTRUCT"):
        volume = found[modality].read()
        assert (volume.kind, volume.names) == ("label", {1: "liver"})
        np.testing.assert_array_equal(volume.voxels, labels)
        assert volume.grid.same(found["CT"].grid)
    np.testing.assert_array_equal(io.read(found["SEG"].name).voxels, labels)


def test_errors_speak_of_the_archive(tmp_path: Path) -> None:
    write_series(tmp_path / "gap", voxels(), AFFINE)
    (tmp_path / "gap" / "0002.dcm").unlink()
    path = zipped(tmp_path / "gap.zip", tmp_path / "gap")
    with pytest.raises(MissingSlicesError) as caught:
        io.read(path)
    assert caught.value.where == f"{path}#{UID}.1"
    problem = io.discover(path).found[0].problem
    assert isinstance(problem, MissingSlicesError)
    assert problem.where == f"{path}#{UID}.1"
    assert io.read(path, allow_gaps=True).shape == (5, 6, 7)
    bad = of(tmp_path / "bad.zip", ct_nii=gzip.decompress(nifti(tmp_path))[:400])
    with pytest.raises(TruncatedError, match=r"bad\.zip#ct\.nii: has 400 of the 772 bytes"):
        io.read(bad)
    pair = of(tmp_path / "pair.zip", a_mhd=b"ObjectType = Image\nNDims = 3\nDimSize = 7 6 5\nElementType = MET_SHORT\nElementDataFile = a.raw\n", a_raw=voxels().tobytes())  # fmt: skip
    with pytest.raises(ReadError, match=r"pair\.zip#a\.mhd: its voxels are said to be in what is no file"):
        io.read(pair)


def test_one_slice_in_an_archive(tmp_path: Path) -> None:
    write_series(tmp_path / "s", voxels(depth=1), AFFINE)
    path = zipped(tmp_path / "a.zip", tmp_path / "s")
    np.testing.assert_array_equal(io.read(path).voxels, voxels(depth=1))
    assert io.discover(path).skipped == {"single slice": 1}


def test_a_long_header_is_unpacked_until_its_end(tmp_path: Path) -> None:
    def change(data: Any, d: int) -> None:
        data.add_new(0x00091010, "LO", "private")
        data.add_new(0x00091011, "OB", np.random.default_rng(d).bytes(50_000))

    write_series(tmp_path / "s", voxels(), AFFINE, change=change)
    path = zipped(tmp_path / "a.zip", tmp_path / "s")
    assert io.discover(path).found[0].problem is None
    np.testing.assert_array_equal(io.read(path).voxels, voxels())


def test_looking_unpacks_only_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "s", np.repeat(voxels(depth=2), 64, axis=1).repeat(64, axis=2), AFFINE)  # 344 kB a slice
    path = zipped(tmp_path / "a.zip", tmp_path / "s")
    seen = []
    original = zip_directory.pieces

    def counted(*args: Any) -> Any:
        for piece in original(*args):
            seen.append(len(piece))
            yield piece

    monkeypatch.setattr(archives, "pieces", counted)
    assert io.discover(path).found[0].grid is not None
    assert sum(seen) <= 2 * io.reading.START
    with pytest.raises(TooLargeError, match="over the cap"):
        io.read(path, cap=100)


def test_archives_in_archives_are_named_not_opened(tmp_path: Path) -> None:
    inner = of(tmp_path / "inner.zip", ct_nii=nifti(tmp_path)).read_bytes()
    tar = bytearray(512)
    tar[257:262] = b"ustar"
    path = of(tmp_path / "a.zip", inner_zip=inner, b_tar=bytes(tar))
    found = io.discover(path)
    assert found.found == ()
    assert found.skipped == {"zip archive": 1, "tar archive": 1}
    with pytest.raises(NotAScanError, match=r"holds no scan \(it holds: 1 x .* archive, 1 x .* archive\)"):
        io.read(path)


def test_tar_is_refused_by_name(tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "ct.nii").write_bytes(gzip.decompress(nifti(tmp_path)))
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:  # type: ignore[call-overload]
            archive.add(tmp_path / "ct.nii", "ct.nii")
        with pytest.raises(ReadError, match=rf"{name}: is a tar archive"):
            io.read(tmp_path / name)


# What archives claim --------------------------------------------------------------------------------------------------


def refused(path: Path, message: str, error: type = ReadError) -> None:
    """Both doors refuse it, by name and without a temporary file; a folder that holds it can still be searched."""
    with pytest.raises(error, match=message) as caught:
        io.read(path)
    assert str(path) in str(caught.value)
    with pytest.raises(error, match=message):
        io.discover(path)
    assert any(str(s.reason).startswith("zip archive: ") for s in io.discover(path.parent).skips)


@pytest.mark.parametrize(
    "name",
    ["../evil.dcm", "a/../../evil.dcm", "/etc/evil.dcm", "C:\\evil.dcm", "..\\evil.dcm", "\\evil", "a/..", "c:x"],
)
def test_names_that_lead_out(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    refused(tmp_path / "a.zip", "names a file outside of its own folder")
    assert not (tmp_path.parent / "evil.dcm").exists()


def test_duplicate_names(tmp_path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a.dcm", b"x")
        archive.writestr("a.dcm", b"y")
    refused(tmp_path / "a.zip", "two files of one name")


@pytest.mark.parametrize(
    ("mode", "words"), [(0o120777, "a link"), (0o010644, "a device or pipe"), (0o020644, "a device or")]
)
def test_links_and_devices(mode: int, words: str, tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a.dcm")
    info.create_system, info.external_attr = 3, mode << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, b"/etc/passwd")
    refused(tmp_path / "a.zip", f"holds {words}")


def patched(path: Path, at: int, value: bytes, which: bytes = b"PK\1\2") -> Path:
    """The archive with bytes of its first central (or local) header replaced."""
    data = bytearray(path.read_bytes())
    start = data.find(which)
    data[start + at : start + at + len(value)] = value
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("bit", [0x1, 0x40, 0x2000])
def test_encrypted(bit: int, tmp_path: Path) -> None:
    path = of(tmp_path / "a.zip", ct_nii=nifti(tmp_path))
    refused(patched(path, 8, struct.pack("<H", bit)), "is encrypted")


def test_sizes_that_lie(tmp_path: Path) -> None:
    content = gzip.decompress(nifti(tmp_path))
    size = struct.pack("<L", len(content) - 100)
    with pytest.raises(ReadError, match="unpacks to more than the 672 bytes given"):
        io.read(patched(of(tmp_path / "a.zip", ct_nii=content), 24, size))
    larger = struct.pack("<L", len(content) + 100)
    with pytest.raises(TruncatedError, match="ends before the size"):
        io.read(patched(of(tmp_path / "b.zip", ct_nii=content), 24, larger))
    absurd = struct.pack("<L", 1 << 31)
    refused(patched(of(tmp_path / "c.zip", ct_nii=content), 24, absurd), "more than deflate can hold")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a.nii", content)
    refused(patched(tmp_path / "d.zip", 24, larger), "two different sizes")
    path = of(tmp_path / "e.zip", ct_nii=content)
    packed = zipfile.ZipFile(path).infolist()[0].compress_size
    with pytest.raises(ReadError, match="not packed as the archive says"):
        io.read(patched(path, 20, struct.pack("<L", packed - 7)))
    with pytest.raises(ReadError, match="another checksum"):
        io.read(patched(of(tmp_path / "f.zip", ct_nii=content), 16, b"\0\0\0\0"))


def test_local_headers_that_disagree(tmp_path: Path) -> None:
    content = gzip.decompress(nifti(tmp_path))
    for at, value in ((30, b"X"), (8, b"\0\0"), (0, b"QQ")):
        path = patched(of(tmp_path / "a.zip", ct_nii=content), at, value, b"PK\3\4")
        if at == 0:
            assert not zip_directory.is_zip(path.read_bytes()[:4])
            continue
        with pytest.raises(ReadError, match="another file than the archive says"):
            io.read(path)
    path = patched(of(tmp_path / "b.zip", ct_nii=content), 42, struct.pack("<L", 7))
    with pytest.raises(ReadError, match=r"share bytes|reach into|not where the archive says"):
        io.read(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_of_packing_are_named(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("a.nii", gzip.decompress(nifti(tmp_path)))
    refused(tmp_path / "a.zip", "is packed as (bzip2|LZMA)")


def test_truncated_and_garbled(tmp_path: Path) -> None:
    write_series(tmp_path / "s", voxels(), AFFINE)
    whole = zipped(tmp_path / "a.zip", tmp_path / "s").read_bytes()
    path = tmp_path / "b.zip"
    for length in range(4, len(whole) - 22, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(TruncatedError):
            io.read(path)
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(80):
        data = bytearray(whole)
        for _ in range(int(random.integers(1, 4))):
            data[int(random.integers(len(data) // 2, len(data)))] = int(random.integers(256))
        path.write_bytes(data)
        try:
            np.testing.assert_array_equal(io.read(path).voxels, voxels())
            outcomes.add("whole")
        except CTFoundryError:
            outcomes.add("error")
    assert outcomes == {"whole", "error"}  # and never other voxels: each file has a checksum


def entry(name: bytes, size: int, packed: int, offset: int, crc: int) -> bytes:
    fields = (20, 20, 0, 8, 0, 0x21, crc, packed, size, len(name), 0, 0, 0, 0, 0, offset)
    return struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields) + name


def local(name: bytes, size: int, packed: int, crc: int) -> bytes:
    return struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0x21, crc, packed, size, len(name), 0) + name


def ended(body: bytes, directory: bytes, count: int, claimed: int | None = None) -> bytes:
    listed = count if claimed is None else claimed
    return body + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, listed, listed, len(directory), len(body), 0)


def test_overlapping_files_of_a_bomb(tmp_path: Path) -> None:
    """Many directory entries for one packed kernel, as in the bombs that swell quadratically."""
    kernel, size = zlib.compress(bytes(1 << 22), 9)[2:-4], 1 << 22
    crc = zlib.crc32(bytes(1 << 22))
    body = local(b"0", size, len(kernel), crc) + kernel
    same = b"".join(
        entry(b"0", size, len(kernel), 0, crc).replace(b"\0\0\0\x000", b"\0\0\0\x00" + n) for n in (b"0", b"1", b"2")
    )
    (tmp_path / "a.zip").write_bytes(ended(body, same, 3))
    refused(tmp_path / "a.zip", "share bytes, as zip bombs do")


def test_bombs_by_ratio_and_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for k in range(3):
            with archive.open(f"{k}.nii", "w", force_zip64=True) as file:
                for _ in range(100):
                    file.write(bytes(1 << 20))
    refused(path, r"would unpack to 300 MiB, 1,0\d\d times its own size", TooLargeError)
    body = b"".join(local(b"%d" % k, 0, 0, 0) for k in range(3))
    (tmp_path / "b.zip").write_bytes(ended(body, b"", 0, claimed=60_000))
    refused(tmp_path / "b.zip", "lists 60,000 files, more than 50,000", TooLargeError)
    offsets = np.cumsum([0, *(len(local(b"%d" % k, 0, 0, 0)) for k in range(3))])
    listing = b"".join(entry(b"%d" % k, 0, 0, int(offsets[k]), 0) for k in range(3))
    (tmp_path / "c.zip").write_bytes(ended(body, listing, 3, claimed=1))
    refused(tmp_path / "c.zip", "says that it lists 1 files and lists 3")
    monkeypatch.setattr(zip_directory, "MEMBERS", 2)
    refused(tmp_path / "c.zip", "lists more than 2 files", TooLargeError)


def test_zip64_and_bytes_in_front(tmp_path: Path) -> None:
    content = gzip.decompress(nifti(tmp_path))
    path = tmp_path / "a.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("ct.nii", "w", force_zip64=True) as file,
    ):
        file.write(content)
    np.testing.assert_array_equal(io.read(path).voxels, voxels())
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("ct.nii", content)
    (tmp_path / "front.zip").write_bytes(b"PK\3\4 something that unpacks itself" + (tmp_path / "s.zip").read_bytes())
    np.testing.assert_array_equal(io.read(tmp_path / "front.zip").voxels, voxels())
    # A directory in the long form (APPNOTE 4.3.14 and 4.3.15), all of whose short fields are full.
    name, packed = b"ct.nii", zlib.compress(content)[2:-4]
    body = local(name, len(content), len(packed), zlib.crc32(content)) + packed
    extra = struct.pack("<2H3Q", 1, 24, len(content), len(packed), 0)
    full = 0xFFFFFFFF
    fields = (45, 45, 0, 8, 0, 0x21, zlib.crc32(content), full, full, len(name), len(extra), 0, 0, 0, 0, full)
    listing = struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields) + name + extra
    long = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(listing), len(body))
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(body) + len(listing), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, full, full, 0)
    path.write_bytes(body + listing + long + locator + end)
    assert zipfile.ZipFile(path).read("ct.nii") == content
    np.testing.assert_array_equal(io.read(path).voxels, voxels())
    path.write_bytes(body + listing.replace(extra, extra[:-8] + struct.pack("<Q", 1 << 63)) + long + locator + end)
    refused(path, "its directory is damaged")


def test_files_go_away_after_errors_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = of(tmp_path / "a.zip", ct_nii=nifti(tmp_path))
    item = io.discover(path).found[0]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io.reading, "read_file", full)
    with pytest.raises(ReadError, match=r"a\.zip: cannot be unpacked \(No space left on device\)"):
        item.read()  # the fixture looks whether the folder is empty
    assert hashlib.sha256(gzip.decompress(nifti(tmp_path))).hexdigest() not in item.hashes()


# DICOMDIR -------------------------------------------------------------------------------------------------------------


def medium(folder: Path, series: int = 1) -> Path:
    """A medium with a DICOMDIR, written by pydicom."""

    def change(data: Any, d: int) -> None:
        data.PatientName, data.StudyDate, data.StudyTime, data.StudyID = "Made^Up", "20000101", "120000", "1"
        data.SeriesNumber, data.AccessionNumber = 1, ""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # pydicom leaves its temporary folders to the collector
        files = FileSet()
        for k in range(1, series + 1):
            for path in write_series(folder / f"src{k}", voxels(k), AFFINE, series=f"{k}", change=change):
                files.add(path)
        files.write(folder / "cd")
        del files
        gc.collect()
    return folder / "cd" / "DICOMDIR"


def test_a_dicomdir_reads_what_it_lists(tmp_path: Path) -> None:
    path = medium(tmp_path)
    write_series(tmp_path / "cd" / "more", voxels(7), AFFINE, series="7")  # not in the list
    volume = io.read(path)
    np.testing.assert_array_equal(volume.voxels, voxels(1))
    assert [f.series for f in io.discover(path).found] == [f"{UID}.1"]
    whole = io.discover(path.parent)
    assert [f.series for f in whole.found] == [f"{UID}.1", f"{UID}.7"]
    assert whole.skipped == {"DICOMDIR": 1}
    with pytest.raises(NotAScanError, match="holds 2 stacks"):
        io.read(path.parent)


def test_a_dicomdir_of_several_series(tmp_path: Path) -> None:
    path = medium(tmp_path, 2)
    with pytest.raises(NotAScanError, match="holds 2 stacks of slices"):
        io.read(path)
    np.testing.assert_array_equal(io.read(f"{path}#{UID}.2").voxels, voxels(2))


def test_a_dicomdir_mounted_in_small_letters(tmp_path: Path) -> None:
    path = medium(tmp_path)
    for place in sorted(path.parent.rglob("*"), reverse=True):
        place.rename(place.with_name(place.name.lower()))
    np.testing.assert_array_equal(io.read(path.parent / "dicomdir").voxels, voxels(1))


def test_a_damaged_file_of_a_dicomdir_is_named(tmp_path: Path) -> None:
    """Without the first or last slice the rest would still be one regular volume."""
    path = medium(tmp_path)
    file = next(p for p in sorted(path.parent.rglob("*")) if p.is_file() and p != path)
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ReadError, match=rf"{file.name}: ends within its header"):
        io.read(path)


def test_missing_files_of_a_dicomdir_are_named(tmp_path: Path) -> None:
    path = medium(tmp_path)
    lost = sorted(p for p in path.parent.rglob("*") if p.is_file() and p != path)[:2]
    for file in lost:
        file.unlink()
    with pytest.raises(ReadError, match=rf"DICOMDIR: lists 2 files that are not in its folder\n.*{lost[0].name}"):
        io.read(path)


@pytest.mark.parametrize(
    "names", [["..", "secret"], ["/etc", "passwd"], ["A/../../secret"], ["A\\..\\secret"], ["..\\x"], ["."]]
)
def test_a_dicomdir_that_leads_out(names: list[str], tmp_path: Path) -> None:
    path = medium(tmp_path)
    write_series(tmp_path, voxels(depth=1), AFFINE, name=lambda d: "secret")
    data = pydicom.dcmread(path)
    for record in data.DirectoryRecordSequence:
        if record.DirectoryRecordType == "IMAGE":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                record.ReferencedFileID = names[0] if len(names) == 1 else names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path)
    for door in (io.read, io.discover):
        with pytest.raises(ReadError, match="DICOMDIR: lists a file outside of its folder"):
            door(path)


def test_a_dicomdir_with_a_link_that_leads_out(tmp_path: Path) -> None:
    path = medium(tmp_path)
    victim = sorted(p for p in path.parent.rglob("*") if p.is_file() and p != path)[0]
    victim.rename(tmp_path / "outside")
    victim.symlink_to(tmp_path / "outside")
    with pytest.raises(ReadError, match="DICOMDIR: lists a file outside of its folder"):
        io.read(path)


def test_damaged_dicomdirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = medium(tmp_path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        data = bytearray(whole)
        for at in random.integers(400, len(data), 3).tolist():
            data[at] = int(random.integers(256))
        path.write_bytes(data)
        try:
            io.read(path)
            outcomes.add("fine")
        except CTFoundryError:
            outcomes.add("error")
    assert "error" in outcomes
    monkeypatch.setattr(io.dicomdir, "LIMIT", 100)
    path.write_bytes(whole)
    with pytest.raises(ReadError, match="larger than a DICOMDIR"):
        io.read(path)


# What never ends ------------------------------------------------------------------------------------------------------


def test_pipes_and_devices_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ct.nii.gz")
    (tmp_path / "zero.dcm").symlink_to("/dev/zero")
    for name in ("ct.nii.gz", "zero.dcm"):
        with pytest.raises(ReadError, match=rf"{name}: is a pipe, socket or device, not a file"):
            io.read(tmp_path / name)
    assert io.discover(tmp_path).skipped == {"pipe, socket or device": 2}
    with pytest.raises(ReadError, match="is not a folder"):
        io.discover(tmp_path / "ct.nii.gz")
