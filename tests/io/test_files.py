"""NIfTI, NRRD and MetaImage: scaling, conflicts, lies, and the errors that name them."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ctfoundry import geometry, io
from ctfoundry.errors import (
    CTFoundryError,
    GeometryError,
    NotAScanError,
    ReadError,
    TooLargeError,
    TruncatedError,
    UsageError,
)
from ctfoundry.io import stream
from ctfoundry.volume import Volume

AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))
SHAPE = (5, 6, 7)
LAS = np.diag([-1.3, 0.8, 2.5, 1.0])  # what nibabel sees: columns i, j, k


def voxels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, SHAPE).astype(np.int16)


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = LAS, **fields: Any) -> Path:
    """A NIfTI file of `data` (i, j, k, ...) with header fields set afterwards, byte by byte where nibabel would refuse."""
    image = nib.Nifti1Image(data, affine)
    if affine is not None:
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
    raw = bytearray(image.to_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]))
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(raw), 1) if path.suffix == ".gz" else bytes(raw))
    return path


# NIfTI ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [1.0, 2.0, 0.5, 0.1, -1.0])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "float32", "float64", ">i2", ">f4"])
def test_scaling_equals_nibabel(slope: float, dtype: str, tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 120, SHAPE[::-1]).astype(dtype)
    path = save(tmp_path / "a.nii", data, scl_slope=slope, scl_inter=-1024)
    volume = io.read(path, kind="hu")
    theirs = nib.load(path).get_fdata(dtype=np.float64).transpose(2, 1, 0)
    assert volume.voxels.dtype == (np.int16 if float(theirs.min()).is_integer() and slope in (1, 2, -1) else np.float32)
    np.testing.assert_allclose(volume.voxels, theirs, atol=1e-4, rtol=0)


def test_cxr_style_offset_is_exact_int16(tmp_path: Path) -> None:
    stored = voxels().transpose(2, 1, 0) + np.int16(1024)
    volume = io.read(save(tmp_path / "a.nii.gz", stored, scl_slope=1, scl_inter=-1024))
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, voxels())


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_slope_zero_means_no_scaling(slope: float, tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", voxels().transpose(2, 1, 0), scl_slope=slope, scl_inter=7)
    np.testing.assert_array_equal(io.read(path).voxels, voxels())


def test_sform_and_qform_in_conflict(tmp_path: Path) -> None:
    data = voxels().transpose(2, 1, 0)
    image = nib.Nifti1Image(data, LAS)
    image.set_sform(LAS, 1)
    image.set_qform(np.diag([1.3, 0.8, 2.5, 1.0]), 1)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(GeometryError, match=r"a\.nii: sform and qform disagree by up to 15.6 mm\n.*set_qform"):
        io.read(tmp_path / "a.nii")
    near = LAS.copy()
    near[0, 3] += 0.3
    image.set_qform(near, 1)
    nib.save(image, tmp_path / "b.nii")
    np.testing.assert_allclose(io.read(tmp_path / "b.nii").affine, LAS[:, [2, 1, 0, 3]])  # the sform


def test_one_form_is_enough_and_none_is_an_error(tmp_path: Path) -> None:
    data = voxels().transpose(2, 1, 0)
    only_q = save(tmp_path / "q.nii", data, sform_code=0, srow_x=0)
    np.testing.assert_allclose(io.read(only_q).affine, LAS[:, [2, 1, 0, 3]], atol=1e-6)
    only_s = save(tmp_path / "s.nii", data, qform_code=0)
    np.testing.assert_allclose(io.read(only_s).affine, LAS[:, [2, 1, 0, 3]], atol=1e-6)
    with pytest.raises(GeometryError, match="sets neither sform nor qform"):
        io.read(save(tmp_path / "none.nii", data, sform_code=0, qform_code=0))


@pytest.mark.parametrize(("unit", "scale"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_units(unit: int, scale: float, tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", voxels().transpose(2, 1, 0), xyzt_units=unit)
    assert io.read(path).spacing == pytest.approx([2.5 * scale, 0.8 * scale, 1.3 * scale])


def test_pairs_and_nifti_2(tmp_path: Path) -> None:
    data = voxels().transpose(2, 1, 0)
    nib.save(nib.Nifti1Pair(data, LAS), tmp_path / "pair.img")
    nib.save(nib.Nifti2Image(data, LAS), tmp_path / "two.nii.gz")
    for name in ("pair.hdr", "two.nii.gz"):
        volume = io.read(tmp_path / name)
        np.testing.assert_array_equal(volume.voxels, voxels())
        np.testing.assert_allclose(volume.affine, LAS[:, [2, 1, 0, 3]], atol=1e-6)
    found = io.discover(tmp_path)
    assert [f.path.name for f in found.found] == ["pair.hdr", "two.nii.gz"]
    assert found.skipped == {}
    (tmp_path / "pair.img").unlink()
    with pytest.raises(ReadError, match=r"(?s)no file of its own folder.*pair\.img"):
        io.read(tmp_path / "pair.hdr")


def test_trailing_axes_of_one_and_four_dimensions(tmp_path: Path) -> None:
    data = voxels().transpose(2, 1, 0)
    np.testing.assert_array_equal(io.read(save(tmp_path / "a.nii", data[..., None, None])).voxels, voxels())
    with pytest.raises(NotAScanError, match=r"4d\.nii: holds 3 volumes \(axes 7x6x5x3\), not one"):
        io.read(save(tmp_path / "4d.nii", np.stack([data] * 3, axis=-1)))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"datatype": 128, "bitpix": 24}, NotAScanError, "not one value a voxel"),
        ({"datatype": 32, "bitpix": 64}, NotAScanError, "not one value a voxel"),
        ({"datatype": 77}, ReadError, "type of numbers is unknown"),
        ({"vox_offset": 0}, ReadError, "cannot begin at byte 0"),
        ({"vox_offset": -8}, ReadError, "cannot begin"),
        ({"vox_offset": np.nan}, ReadError, "cannot begin"),
        ({"vox_offset": 1e30}, ReadError, "cannot begin"),
        ({"dim": [3, 7, 6, -5, 1, 1, 1, 1]}, ReadError, "declares axes 7x6x-5"),
        ({"dim": [2, 7, 6, 1, 1, 1, 1, 1]}, ReadError, "declares axes 7x6"),
        ({"dim": [-3, 7, 6, 5, 1, 1, 1, 1]}, ReadError, "declares axes of no number"),
        ({"dim": [3, 7, 6, 9, 1, 1, 1, 1]}, TruncatedError, "of the 1,108 bytes"),
        ({"srow_x": np.nan}, GeometryError, "finite"),
        ({"srow_x": 0}, GeometryError, "do not span"),
        ({"quatern_b": 5}, GeometryError, "qform"),
        ({"xyzt_units": 6}, GeometryError, "unknown unit"),
        ({"scl_slope": 2, "scl_inter": np.inf}, ReadError, "scl_inter"),
    ],
)
def test_nifti_headers_that_lie(fields: dict[str, Any], error: type, message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "lie.nii", voxels().transpose(2, 1, 0), **fields)
    with pytest.raises(error, match=message) as caught:
        io.read(path)
    assert caught.value.where == str(path)
    assert isinstance(io.discover(tmp_path).found[0].problem, CTFoundryError)


def test_cap_is_compared_before_anything_is_allocated(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels().transpose(2, 1, 0), dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    with pytest.raises(TooLargeError, match="over the cap of 8,192 MiB"):
        io.read(path)
    with pytest.raises(TooLargeError, match="over the cap"):
        io.read(save(tmp_path / "b.nii", voxels().transpose(2, 1, 0)), cap=400)


def test_truncated_and_damaged_gzip(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", voxels().transpose(2, 1, 0))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(TruncatedError, match=r"a\.nii\.gz: ends after"):
        io.read(path)
    wrong_sum = bytearray(whole)
    wrong_sum[-6] ^= 1
    path.write_bytes(wrong_sum)
    with pytest.raises(ReadError, match="compressed data are damaged"):
        io.read(path)
    members = nib.load(save(tmp_path / "b.nii", voxels().transpose(2, 1, 0))).to_bytes()
    path.write_bytes(b"".join(gzip.compress(members[k : k + 100]) for k in range(0, len(members), 100)))
    np.testing.assert_array_equal(io.read(path).voxels, voxels())


def test_gzip_bomb_stops_where_its_header_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nib.Nifti1Image(voxels().transpose(2, 1, 0), LAS).to_bytes()
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(plain + bytes(1 << 28), 9))
    unpacked = []
    original = stream.Stream._unpacked
    monkeypatch.setattr(
        stream.Stream, "_unpacked", lambda self, limit: unpacked.append(p := original(self, limit)) or p
    )
    np.testing.assert_array_equal(io.read(path).voxels, voxels())
    assert sum(map(len, unpacked)) < 4 * len(plain)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named(bad: float, tmp_path: Path) -> None:
    data = voxels().astype(np.float32)
    data[2, 3, 4] = data[4, 5, 6] = bad
    path = save(tmp_path / "a.nii", data.transpose(2, 1, 0))
    with pytest.raises(ReadError, match=r"2 voxels are NaN or infinite, the first at \(2, 3, 4\)"):
        io.read(path)


def test_write_refuses_unknown_suffixes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no suffix"):
        io.write(Volume(voxels(), AFFINE), tmp_path / "a.png")


def test_what_is_no_scan_file(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_text("hello")
    (tmp_path / "b.nii").touch()
    with pytest.raises(ReadError, match=r"a\.nii: is no NIfTI, NRRD, MetaImage or DICOM file"):
        io.read(tmp_path / "a.nii")
    with pytest.raises(ReadError, match=r"b\.nii: is empty"):
        io.read(tmp_path / "b.nii")
    with pytest.raises(ReadError, match=r"c\.nii: does not exist"):
        io.read(tmp_path / "c.nii")
    with pytest.raises(
        NotAScanError, match=r"holds no DICOM CT series \(it holds: 1 x empty file, 1 x not a scan file\)"
    ):
        io.read(tmp_path)
    with pytest.raises(ReadError, match="is not a folder"):
        io.discover(tmp_path / "a.nii")


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    volume = Volume(voxels(), AFFINE)
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        io.write(volume, tmp_path / f"x{suffix}")
    for k, path in enumerate(sorted(tmp_path.iterdir())):
        path.rename(tmp_path / f"file{k}")
        np.testing.assert_array_equal(io.read(tmp_path / f"file{k}").voxels, voxels())
    assert sorted(f.format for f in io.discover(tmp_path).found) == ["metaimage", "nifti", "nifti", "nrrd"]


# NRRD and MetaImage ---------------------------------------------------------------------------------------------------


def itk_image(data: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(data)
    image.SetSpacing((1.3, 0.8, 2.5))
    image.SetOrigin((-30.0, -40.0, -100.0))
    return image


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.nii", "a.nii.gz"])
def test_files_by_itk(name: str, packed: bool, dtype: str, tmp_path: Path) -> None:
    data = np.random.default_rng(3).integers(0, 120, SHAPE).astype(dtype)
    sitk.WriteImage(itk_image(data), str(tmp_path / name), useCompression=packed)
    volume = io.read(tmp_path / name, kind="other")
    np.testing.assert_array_equal(volume.voxels, data)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    found = io.discover(tmp_path)
    assert len(found.found) == 1
    assert found.skipped == {}


NRRD = {
    "type": "int16",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "7 6 5",
    "space directions": "(1.3,0,0) (0,0.8,0) (0,0,2.5)",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-30,-40,-100)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "-30 -40 -100",
    "ElementSpacing": "1.3 0.8 2.5",
    "DimSize": "7 6 5",
    "ElementType": "MET_SHORT",
}


def nrrd(path: Path, body: bytes | None = None, drop: str = "", **fields: str) -> Path:
    lines = NRRD | {k.replace("_", " "): v for k, v in fields.items()}
    lines.pop(drop, None)
    head = "NRRD0004\n# by a test\n" + "".join(f"{k}: {v}\n" for k, v in lines.items()) + "key:=value\n\n"
    path.write_bytes(head.encode() + (voxels().tobytes() if body is None else body))
    return path


def meta(path: Path, body: bytes | None = None, drop: str = "", data: str = "LOCAL", **fields: str) -> Path:
    lines = META | fields
    lines.pop(drop, None)
    head = "".join(f"{k} = {v}\n" for k, v in lines.items()) + f"ElementDataFile = {data}\n"
    path.write_bytes(head.encode() + (voxels().tobytes() if body is None else body))
    return path


def test_text_headers_are_read(tmp_path: Path) -> None:
    big = voxels().astype(">i2").tobytes()
    files = [
        nrrd(tmp_path / "a.nrrd"),
        nrrd(tmp_path / "b.nrrd", gzip.compress(voxels().tobytes()), encoding="gzip"),
        nrrd(tmp_path / "c.nrrd", big, endian="big"),
        nrrd(tmp_path / "d.nrrd", b"junk" + voxels().tobytes(), byte_skip="4"),
        nrrd(tmp_path / "e.nrrd", b"junk" + voxels().tobytes(), byte_skip="-1"),
        nrrd(
            tmp_path / "f.nrrd",
            dimension="4",
            sizes="1 7 6 5",
            space_directions="none (1.3,0,0) (0,0.8,0) (0,0,2.5)",
        ),
        nrrd(
            tmp_path / "g.nrrd",
            space="RAS",
            space_directions="(-1.3,0,0) (0,-0.8,0) (0,0,2.5)",
            space_origin="(30,40,-100)",
        ),
        nrrd(
            tmp_path / "h.nrrd",
            space_units='"m" "m" "m"',
            space_directions="(.0013,0,0) (0,.0008,0) (0,0,.0025)",
            space_origin="(-.03,-.04,-.1)",
        ),
        meta(tmp_path / "a.mha"),
        meta(tmp_path / "b.mha", zlib.compress(voxels().tobytes()), CompressedData="True"),
        meta(tmp_path / "c.mha", big, BinaryDataByteOrderMSB="True"),
        meta(tmp_path / "d.mha", HeaderSize="-1"),
    ]
    (tmp_path / "numbers.raw").write_bytes(voxels().tobytes())
    files.append(meta(tmp_path / "e.mhd", b"", data="numbers.raw"))
    files.append(nrrd(tmp_path / "i.nhdr", b"", data_file="numbers.raw"))
    for path in files:
        volume = io.read(path)
        np.testing.assert_array_equal(volume.voxels, voxels(), err_msg=path.name)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-9, err_msg=path.name)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"body": b"\0" * 100}, TruncatedError, "bytes that its header declares"),
        ({"body": b"\0" * 100, "encoding": "gzip"}, ReadError, "damaged"),
        ({"body": gzip.compress(b"\0" * 100), "encoding": "gzip"}, TruncatedError, "ends after 100 of the 420"),
        ({"sizes": "70000 60000 50000", "encoding": "gzip"}, TooLargeError, "over the cap"),
        ({"sizes": "7 6"}, ReadError, "sizes"),
        ({"sizes": "7 6 -5"}, ReadError, "sizes"),
        ({"sizes": "7 6 x"}, ReadError, "garbles"),
        (
            {"dimension": "4", "sizes": "2 7 6 5", "space_directions": "none (1,0,0) (0,1,0) (0,0,1)"},
            NotAScanError,
            "2x7x6x5",
        ),
        ({"type": "block"}, ReadError, "block"),
        ({"encoding": "bzip2"}, ReadError, "damaged"),
        ({"encoding": "hex"}, ReadError, "packs its voxels as 'hex'"),
        ({"drop": "space"}, GeometryError, "names no space"),
        ({"drop": "space directions"}, GeometryError, "no space directions"),
        ({"drop": "space origin"}, GeometryError, "no space origin"),
        ({"drop": "endian"}, ReadError, "endian"),
        ({"space_directions": "(1,0,0) (0,1,0) (0,1,0)"}, GeometryError, "span"),
        ({"space_directions": "(nan,0,0) (0,1,0) (0,0,1)"}, GeometryError, "finite"),
        ({"data_file": "../secret.raw"}, ReadError, "no file of its own folder"),
        ({"data_file": "/etc/passwd"}, ReadError, "no file of its own folder"),
        ({"data_file": "LIST"}, ReadError, "several files"),
        ({"byte_skip": "-7"}, ReadError, "byte skip"),
        ({"line_skip": "3"}, ReadError, "line skip"),
    ],
)
def test_nrrd_headers_that_lie(change: dict[str, Any], error: type, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(voxels().tobytes())
    path = nrrd(folder / "lie.nrrd", **change)
    with pytest.raises(error, match=message) as caught:
        io.read(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"body": b"\0" * 100}, TruncatedError, "bytes that its header declares"),
        ({"CompressedData": "True"}, ReadError, "damaged"),
        ({"body": zlib.compress(b"\0" * 100), "CompressedData": "True"}, TruncatedError, "ends after 100 of the 420"),
        ({"DimSize": "70000 60000 50000", "CompressedData": "True"}, TooLargeError, "over the cap"),
        ({"DimSize": "7 6"}, ReadError, "DimSize"),
        ({"DimSize": "7 0 5"}, ReadError, "DimSize"),
        ({"NDims": "2", "DimSize": "7 30"}, NotAScanError, "7x30, not three"),
        ({"NDims": "4", "DimSize": "7 6 5 2"}, NotAScanError, "7x6x5x2, not three"),
        ({"ElementNumberOfChannels": "3"}, NotAScanError, "more than one number"),
        ({"ElementType": "MET_STRING"}, ReadError, "MET_STRING"),
        ({"ObjectType": "Tube"}, NotAScanError, "MetaIO Tube"),
        ({"BinaryData": "False"}, ReadError, "as text"),
        ({"ElementToIntensityFunctionSlope": "2"}, ReadError, "scales"),
        ({"drop": "TransformMatrix"}, GeometryError, "no TransformMatrix"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 1 0"}, GeometryError, "span"),
        ({"ElementSpacing": "1 1"}, ReadError, "ElementSpacing"),
        ({"data": "../secret.raw"}, ReadError, "no file of its own folder"),
        ({"data": "slice%03d.raw 1 5 1"}, ReadError, "several files"),
        ({"HeaderSize": "-5"}, ReadError, "HeaderSize"),
    ],
)
def test_metaimage_headers_that_lie(change: dict[str, Any], error: type, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(voxels().tobytes())
    path = meta(folder / "lie.mha", **change)
    with pytest.raises(error, match=message) as caught:
        io.read(path)
    assert caught.value.where == str(path)


# Kinds and names ------------------------------------------------------------------------------------------------------


def ball(n: int = 24) -> np.ndarray:
    axis = np.linspace(-1, 1, n)
    return np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)


REGIONS = np.kron(np.random.default_rng(6).integers(0, 40, (4, 4, 4)), np.ones((6, 6, 6))).astype(np.uint8)
NOISE = np.random.default_rng(5).normal(size=(24, 24, 24))


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        ((ball() < 0.5).astype(np.uint8), "label"),
        ((ball() < 0.5).astype(np.uint8) * 255, "label"),
        ((ball() < 0.5).astype(np.float64), "label"),
        (np.zeros((4, 4, 4), np.int16), "label"),
        (REGIONS, "label"),
        (REGIONS.astype(np.int32) * 70000, "label"),
        (REGIONS.astype(np.float32), "label"),
        (np.where(ball() < 0.8, 40 + 20 * NOISE, -1000).astype(np.int16), "hu"),
        (np.where(ball() < 0.8, 40 + 20 * NOISE, -1000), "hu"),
        (np.where(ball() < 0.8, 40, -1000), "hu"),
        (np.clip(128 + 20 * NOISE, 0, 255).astype(np.uint8), "other"),
        (np.where(ball() < 0.8, 1064 + 20 * NOISE, 24).astype(np.uint16), "other"),
        (np.clip(0.5 + 0.1 * NOISE, 0, 1).astype(np.float32), "other"),
        (np.clip(0.1 * NOISE, -1, 1).astype(np.float32), "other"),
        (np.where(ball() < 0.8, 40 + 20 * NOISE, 0).astype(np.int16), "other"),
        (1e6 * NOISE.astype(np.float32), "other"),
        (REGIONS.astype(np.int16) - 1, "other"),
    ],
)
def test_kinds(array: np.ndarray, kind: str, tmp_path: Path) -> None:
    assert io.recognise(array)[0] == kind
    path = save(
        tmp_path / "a.nii.gz", array.transpose(2, 1, 0) if array.dtype != np.int64 else array.T.astype(np.int32)
    )
    volume = io.read(path)
    assert volume.kind == kind
    np.testing.assert_allclose(volume.voxels, array, rtol=1e-6, atol=1e-4)


def test_the_callers_kind_is_taken_with_care(tmp_path: Path) -> None:
    mask = save(tmp_path / "mask.nii", (ball() < 0.5).astype(np.uint8))
    scan = save(tmp_path / "scan.nii", np.where(ball() < 0.8, 40 + 20 * NOISE, -1000).astype(np.int16))
    brain = save(tmp_path / "brain.nii", np.where(ball() < 0.8, 40 + 20 * NOISE, 0).astype(np.int16))
    with pytest.raises(NotAScanError, match=r"mask\.nii: is a label map \(2 different whole numbers\)"):
        io.read(mask, kind="hu")
    with pytest.raises(NotAScanError, match=r"scan\.nii: is no label map"):
        io.read(scan, kind="label")
    assert io.read(brain).kind == "other"
    assert io.read(brain, kind="hu").kind == "hu"
    assert io.read(mask, kind="other").kind == "other"


def test_names(tmp_path: Path) -> None:
    def names(name: str, array: np.ndarray) -> Any:
        return io.read(save(tmp_path / name, array.transpose(2, 1, 0))).names

    two = np.zeros(SHAPE, np.uint8)
    two[1], two[2] = 1, 2
    assert names("liver.nii.gz", two.clip(0, 1)) == {1: "liver"}
    assert names("mask.nii.gz", two.clip(0, 1)) is None
    assert names("empty_organ.nii.gz", two * 0) == {1: "empty_organ"}
    assert names("labels.nii.gz", two) is None
    (tmp_path / "structures.csv").write_text("group,structure,id\norgans,spleen,1\norgans,kidney,2\n")
    assert names("labels.nii.gz", two) == {1: "spleen", 2: "kidney"}
    (tmp_path / "labels.json").write_text(json.dumps({"1": "liver", "2": "heart", "3": "aorta"}))
    assert names("labels.nii.gz", two) == {1: "liver", 2: "heart", 3: "aorta"}
    assert names("mask.nii.gz", two.clip(0, 1)) == {1: "liver", 2: "heart", 3: "aorta"}
    assert names("labels.nii.gz", two * 4) is None
    (tmp_path / "labels.json").write_text("[1, 2]")
    with pytest.raises(ReadError, match=r"labels\.json: does not name labels"):
        names("labels.nii.gz", two)


def test_fill_in_files(tmp_path: Path) -> None:
    data = voxels()
    data[0], data[1, 1] = -2048, -1300
    volume = io.read(save(tmp_path / "a.nii", data.transpose(2, 1, 0)))
    assert volume.valid is not None
    assert (volume.voxels[0] == -1024).all()
    assert (volume.voxels[1, 1] == -1300).all()  # noise stays what it is
    np.testing.assert_array_equal(volume.valid, data != -2048)
