"""Every rule of NIfTI, NRRD and MetaImage headers, against nibabel, SimpleITK or bytes made by hand."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ctfoundry import geometry, io
from ctfoundry.errors import CTFoundryError, GeometryError, NotAScanError, ReadError, TooLargeError, TruncatedError
from ctfoundry.io import kinds, stream
from ctfoundry.volume import Volume

SHAPE = (5, 6, 7)
LAS = np.diag([-1.3, 0.8, 2.5, 1.0])
AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))


def voxels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, SHAPE).astype(np.int16)


# NIfTI ----------------------------------------------------------------------------------------------------------------


def nifti_1(data: np.ndarray, offset: float, *, order: str = "<", between: bytes = b"", **fields: Any) -> bytes:
    """A NIfTI-1 file byte by byte from the standard's table, `data` (k, j, i); nibabel and our writer play no part."""
    head = bytearray(348)
    codes = {"i2": (4, 16), "u2": (512, 16), "f4": (16, 32), "u1": (2, 8)}
    code, bits = codes[data.dtype.str[1:]]
    struct.pack_into(order + "i", head, 0, 348)
    struct.pack_into(order + "8h", head, 40, 3, *data.shape[::-1], 1, 1, 1, 1)
    struct.pack_into(order + "h", head, 68, fields.get("intent", 0))
    struct.pack_into(order + "hh", head, 70, code, bits)
    struct.pack_into(order + "8f", head, 76, 1, 1.3, 0.8, 2.5, 0, 0, 0, 0)
    struct.pack_into(order + "f", head, 108, offset)
    struct.pack_into(order + "ff", head, 112, *fields.get("scaling", (0, 0)))
    head[123] = fields.get("unit", 2)
    struct.pack_into(order + "hh", head, 252, 0, 1)
    struct.pack_into(order + "12f", head, 280, *LAS[:3].ravel())
    head[344:348] = b"n+1\0"
    body = data.astype(data.dtype.newbyteorder(order)).tobytes()
    return bytes(head) + between.ljust(int(offset) - 348, b"\0") + body


@pytest.mark.parametrize("offset", [352, 353, 359, 1000])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
def test_voxels_may_begin_at_any_byte_behind_the_header(offset: int, order: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    content = nifti_1(voxels(), offset, order=order)
    path.write_bytes(gzip.compress(content) if packed else content)
    volume = io.read(path)
    np.testing.assert_array_equal(volume.voxels, voxels())
    assert volume.voxels.dtype == np.int16  # in the machine's own order
    np.testing.assert_allclose(volume.affine, LAS[:, [2, 1, 0, 3]], atol=1e-6)
    image = nib.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), volume.voxels)
    np.testing.assert_allclose(image.affine[:, [2, 1, 0, 3]], volume.affine, atol=1e-6)


@pytest.mark.parametrize("offset", [0, 100, 348, 351])
def test_voxels_inside_the_header(offset: int, tmp_path: Path) -> None:
    content = bytearray(nifti_1(voxels(), 352))
    struct.pack_into("<f", content, 108, offset)
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ReadError, match=rf"cannot begin at byte {offset}, inside its header"):
        io.read(tmp_path / "a.nii")


@pytest.mark.parametrize("packed", [False, True])
def test_voxels_beyond_the_file(packed: bool, tmp_path: Path) -> None:
    content = bytearray(nifti_1(voxels(), 352))
    struct.pack_into("<f", content, 108, 4096)
    path = tmp_path / "a.nii"
    path.write_bytes(gzip.compress(bytes(content)) if packed else content)
    with pytest.raises(TruncatedError):
        io.read(path)


def test_header_extensions_are_passed_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels().transpose(2, 1, 0), LAS)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"\x01\x02\x03" * 1000))
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(io.read(tmp_path / "a.nii.gz").voxels, voxels())


@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_all_numbers_in_both_orders(dtype: str, kind: str, tmp_path: Path) -> None:
    stored = np.random.default_rng(2).integers(0, 100, SHAPE[::-1]).astype(dtype)
    for order in "<>":
        path = tmp_path / f"{order == '<'}.nii"
        header = getattr(nib, kind).header_class(endianness=order)
        header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
        image = getattr(nib, kind)(stored, LAS, header)
        image.set_sform(LAS, 1)
        nib.save(image, path)
        np.testing.assert_array_equal(io.read(path, kind="other").voxels.transpose(2, 1, 0), nib.load(path).get_fdata())


@pytest.mark.parametrize(
    "names", [("a.hdr", "a.img"), ("a.hdr.gz", "a.img.gz"), ("A.HDR", "A.IMG"), ("a.hdr", "a.img.gz")]
)
def test_pairs(names: tuple[str, str], tmp_path: Path) -> None:
    pair = nib.Nifti1Pair(voxels().transpose(2, 1, 0), LAS)
    nib.save(pair, tmp_path / "made.img")
    for name, made in zip(names, ("made.hdr", "made.img"), strict=True):
        content = (tmp_path / made).read_bytes()
        (tmp_path / made).unlink()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    volume = io.read(tmp_path / names[0])
    np.testing.assert_array_equal(volume.voxels, voxels())
    np.testing.assert_allclose(volume.affine, LAS[:, [2, 1, 0, 3]], atol=1e-6)
    with pytest.raises(ReadError, match=rf"(?s)the numbers of a NIfTI pair.*read .*{names[0]}"):
        io.read(tmp_path / names[1])


def test_analyze_is_refused_by_name(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(voxels().transpose(2, 1, 0), LAS), tmp_path / "old.img")
    with pytest.raises(ReadError, match=r"old\.hdr: is Analyze 7\.5, which does not say where its voxels lie"):
        io.read(tmp_path / "old.hdr")


def test_the_label_intent_is_believed_where_it_can_be_true(tmp_path: Path) -> None:
    """1,500 different parcels are too many for the rule by values; the header says what they are."""
    parcels = np.random.default_rng(0).permutation(1500).reshape(10, 10, 15).astype(np.uint16)
    for intent, kind in ((0, "other"), (1002, "label")):
        path = tmp_path / f"{intent}.nii"
        path.write_bytes(nifti_1(parcels, 352, intent=intent))
        assert io.read(path).kind == kind
        assert io.discover(tmp_path).found[-1].is_label == (kind == "label")
    path.write_bytes(nifti_1(voxels(), 352, intent=1002))
    assert io.read(path).kind == "hu"  # numbers below 0 are no labels, whatever the header says


@pytest.mark.parametrize(("intent", "words"), [(1006, "displacement field"), (1007, "vectors"), (2003, "colours")])
def test_intents_that_are_no_scan(intent: int, words: str, tmp_path: Path) -> None:
    field = nib.Nifti1Image(np.zeros((7, 6, 5, 1, 3), np.float32), LAS)
    field.header["intent_code"] = intent
    nib.save(field, tmp_path / "field.nii.gz")
    with pytest.raises(NotAScanError, match=rf"holds {'a ' * ('field' in words)}{words} \(intent {intent}\)"):
        io.read(tmp_path / "field.nii.gz")


@pytest.mark.parametrize(("unit", "noted"), [(1, True), (0, False), (2, False), (3, True)])
def test_units_that_make_no_scan_are_noted(unit: int, noted: bool, tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(nifti_1(voxels(), 352, unit=unit))
    notes = io.read(tmp_path / "a.nii").notes
    assert bool(notes) == noted
    assert all("unit of length" in note for note in notes)


@pytest.mark.parametrize("scaling", [(2.5, -1024), (1, -1024), (0, 99), (float("nan"), 1), (1e-3, 0.5), (-1, 0)])
def test_scaling_by_hand(scaling: tuple[float, float], tmp_path: Path) -> None:
    stored = np.random.default_rng(4).integers(0, 3000, SHAPE).astype(np.uint16)
    (tmp_path / "a.nii").write_bytes(nifti_1(stored, 352, scaling=scaling))
    slope, inter = (float(np.float32(v)) for v in scaling) if scaling[0] and scaling[0] == scaling[0] else (1.0, 0.0)
    wanted = stored.astype(np.float64) * slope + inter
    np.testing.assert_allclose(io.read(tmp_path / "a.nii", kind="other").voxels, wanted, atol=1e-3, rtol=0)


# NRRD -----------------------------------------------------------------------------------------------------------------

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


def nrrd(path: Path, body: bytes | None = None, drop: str = "", **fields: str) -> Path:
    lines = NRRD | {k.replace("_", " "): v for k, v in fields.items()}
    lines.pop(drop, None)
    head = "NRRD0005\n" + "".join(f"{k}: {v}\n" for k, v in lines.items()) + "\n"
    path.write_bytes(head.encode() + (voxels().tobytes() if body is None else body))
    return path


def itk_place(path: Path) -> np.ndarray:
    """RAS+ mm of voxel (d, h, w) = (4, 3, 2) as SimpleITK sees it."""
    return np.array(sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint((2, 3, 4))) * (-1, -1, 1)


TEXT = " ".join(map(str, voxels().ravel())).encode()
LINES = b"two\nlines\n"


@pytest.mark.parametrize(
    "change",
    [
        {"space": "right-anterior-superior"},
        {"space": "LAS"},
        {"space_directions": "(1.3,0,0) (0.3,0.8,0) (0,0.1,2.5)"},
        {"space_directions": "(0,1.3,0) (0,0,-0.8) (2.5,0,0)"},
        {"body": TEXT, "encoding": "ascii"},
        {"body": TEXT, "encoding": "ascii", "drop": "endian"},
        {"body": TEXT.replace(b" ", b"\n"), "encoding": "text"},
        {"body": LINES + voxels().tobytes(), "line_skip": "2"},
        {"body": LINES + b"xyz" + voxels().tobytes(), "line_skip": "2", "byte_skip": "3"},
        {
            "body": LINES + gzip.compress(b"xyz" + voxels().tobytes()),
            "line_skip": "2",
            "byte_skip": "3",
            "encoding": "gzip",
        },
        {"kinds": "domain domain domain", "thicknesses": "NaN NaN 2.5", "measurement_frame": "(1,0,0) (0,1,0) (0,0,1)"},
        {"body": voxels().astype(">i2").tobytes(), "endian": "big"},
        {"body": gzip.compress(voxels().astype(">i2").tobytes()), "endian": "big", "encoding": "gz"},
    ],
)
def test_nrrd_as_simpleitk_reads_it(change: dict[str, Any], tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", **change)
    volume = io.read(path)
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    if "0.3,0.8" not in str(change):  # ITK says of a sheared grid only that its directions are no right angles
        np.testing.assert_allclose(volume.world((4, 3, 2)), itk_place(path), atol=1e-9)
    np.testing.assert_array_equal(volume.voxels, voxels())


def test_a_sheared_nrrd_keeps_its_place(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", space_directions="(1.3,0,0) (0.3,0.8,0) (0,0.1,2.5)")
    lps = np.array([2 * 1.3 + 3 * 0.3 - 30, 3 * 0.8 + 4 * 0.1 - 40, 4 * 2.5 - 100])
    np.testing.assert_allclose(io.read(path).world((4, 3, 2)), lps * (-1, -1, 1), atol=1e-9)
    assert geometry.is_sheared(io.read(path).affine)


@pytest.mark.parametrize("streams", [1, 3])
def test_bzip2(streams: int, tmp_path: Path) -> None:
    body = voxels().tobytes()
    parts = np.array_split(np.frombuffer(body, np.uint8), streams)
    path = nrrd(tmp_path / "a.nrrd", b"".join(bz2.compress(p.tobytes()) for p in parts), encoding="bzip2")
    np.testing.assert_array_equal(io.read(path).voxels, voxels())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ReadError):
        io.read(path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"space": "3D-right-handed"}, GeometryError, "no space of the patient .3d-right-handed"),
        ({"space": "scanner-xyz"}, GeometryError, "no space of the patient"),
        ({"drop": "space", "space_dimension": "3"}, GeometryError, "no space of the patient"),
        ({"space": "left-posterior-superior-time"}, GeometryError, "no space of the patient"),
        ({"space_units": '"mm" "mm" "cm"'}, GeometryError, "counts space in 'cm', 'mm'"),
        ({"space_units": '"parsec" "parsec" "parsec"'}, GeometryError, "counts space in 'parsec'"),
        (
            {"dimension": "4", "sizes": "3 7 6 5", "space_directions": "none (1,0,0) (0,1,0) (0,0,1)", "kinds": "vector domain domain domain"},
            NotAScanError,
            "kinds vector",
        ),
        ({"sizes": "7 6 5\nsizes: 1 1 1"}, ReadError, "'sizes' twice"),
        ({"body": TEXT[:200], "encoding": "ascii"}, TruncatedError, "too few"),
        ({"body": TEXT[:700], "encoding": "ascii"}, TruncatedError, "of 210 numbers"),
        ({"body": b"x" + TEXT, "encoding": "ascii"}, ReadError, "no list of numbers"),
        ({"body": TEXT.replace(b" 1", b" 99999", 1), "encoding": "ascii"}, ReadError, "does not fit int16"),
        ({"body": b"9" * 5000 + b" " + TEXT, "encoding": "ascii"}, ReadError, "no list of numbers|of 210 numbers"),
        ({"line_skip": "-2"}, ReadError, "line skip"),
        ({"line_skip": "99999999999"}, ReadError, "line skip"),
        ({"sizes": "7 6 2147483648"}, ReadError, "axis of more than"),
        ({"sizes": "9" * 300 + " 6 5"}, ReadError, "axis of more than"),
        ({"sizes": "7 6 " + "9" * 5000}, ReadError, "garbles"),
        ({"sizes": "2000000000 2000000000 2000000000", "encoding": "gzip"}, TooLargeError, "over the cap"),
        ({"sizes": "0 6 5"}, ReadError, "sizes"),
        ({"byte_skip": "1000000000000000000000"}, ReadError, "byte skip"),
        ({"byte_skip": "999999999", "encoding": "gzip"}, ReadError, "953 MiB into its packed data"),
        ({"data_file": "slice%03d.raw 1 5 1"}, ReadError, "several files"),
        ({"data_file": "LIST\na.raw"}, ReadError, "several files"),
    ],
)  # fmt: skip
def test_nrrd_that_is_refused(change: dict[str, Any], error: type, message: str, tmp_path: Path) -> None:
    path = nrrd(tmp_path / "lie.nrrd", **change)
    with pytest.raises(error, match=message) as caught:
        io.read(path)
    assert caught.value.where == str(path)
    assert len(str(caught.value)) < 600


def test_numbers_beside_a_header_stay_inside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "a.raw").write_bytes(voxels().tobytes())
    secret = tmp_path / "secret.raw"
    secret.write_bytes(voxels().tobytes())
    (folder / "link.raw").symlink_to(secret)
    (folder / "loop.raw").symlink_to(folder / "loop.raw")
    os.mkfifo(folder / "pipe.raw")
    np.testing.assert_array_equal(io.read(nrrd(folder / "a.nhdr", b"", data_file="below/a.raw")).voxels, voxels())
    for name in ("../secret.raw", str(secret), "link.raw", "loop.raw", "pipe.raw", "below", "x" * 5000, "a\0b"):
        with pytest.raises(ReadError, match="no file of its own folder"):
            io.read(nrrd(folder / "b.nhdr", b"", data_file=name))
        head = META | {"ElementDataFile": name}
        (folder / "b.mhd").write_text("".join(f"{k} = {v}\n" for k, v in head.items()))
        with pytest.raises(ReadError, match="no file of its own folder"):
            io.read(folder / "b.mhd")


# MetaImage ------------------------------------------------------------------------------------------------------------

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
    "ElementDataFile": "LOCAL",
}


def meta(path: Path, body: bytes | None = None, drop: str = "", **fields: str) -> Path:
    lines = META | fields
    lines.pop(drop, None)
    lines["ElementDataFile"] = lines.pop("ElementDataFile")
    path.write_bytes(
        "".join(f"{k} = {v}\n" for k, v in lines.items()).encode() + (voxels().tobytes() if body is None else body)
    )
    return path


PACKED_BIG = zlib.compress(voxels().astype(">i2").tobytes())


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"AnatomicalOrientation": "LPI"},
        {"CenterOfRotation": "5 6 7"},
        {"ElementSize": "9 9 9"},
        {"drop": "ElementSpacing", "ElementSize": "1.3 0.8 2.5"},
        {"ElementSpacing": "-1.3 0.8 2.5"},
        {"TransformMatrix": "0 1 0 0 0 1 1 0 0"},
        {"TransformMatrix": "2 0 0 0 2 0 0 0 2"},
        {"body": voxels().astype(np.int32).tobytes(), "ElementType": "MET_LONG"},
        {"body": voxels().astype(">i2").tobytes(), "ElementByteOrderMSB": "True", "drop": "BinaryDataByteOrderMSB"},
        {"body": PACKED_BIG, "BinaryDataByteOrderMSB": "True", "CompressedData": "True", "CompressedDataSize": f"{len(PACKED_BIG)}"},
        {"body": b"junk" + voxels().tobytes(), "HeaderSize": "-1"},
    ],
)  # fmt: skip
def test_metaimage_as_simpleitk_reads_it(change: dict[str, Any], tmp_path: Path) -> None:
    path = meta(tmp_path / "a.mha", **change)
    volume = io.read(path)
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    np.testing.assert_array_equal(volume.voxels, voxels())
    np.testing.assert_allclose(volume.world((4, 3, 2)), itk_place(path), atol=1e-9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"drop": "ElementSpacing"}, GeometryError, "no ElementSpacing"),
        ({"ElementSpacing": "0 0.8 2.5"}, GeometryError, "span"),
        ({"ElementSpacing": "nan 0.8 2.5"}, GeometryError, "finite"),
        ({"ElementDataFile": "LIST"}, ReadError, "several files"),
        ({"DimSize": "7 6 2147483648"}, ReadError, "axis of more than"),
        ({"DimSize": "-7 -6 5"}, ReadError, "DimSize"),
        ({"HeaderSize": "9" * 40}, TruncatedError, "too few|of the"),
        ({"HeaderSize": "9" * 40, "CompressedData": "True"}, TruncatedError, "too few"),
        ({"DimSize": "2000000000 2000000000 2000000000", "CompressedData": "True"}, TooLargeError, "over the cap"),
    ],
)
def test_metaimage_that_is_refused(change: dict[str, Any], error: type, message: str, tmp_path: Path) -> None:
    path = meta(tmp_path / "lie.mha", **change)
    with pytest.raises(error, match=message) as caught:
        io.read(path)
    assert caught.value.where == str(path)


# Writing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_the_same_volume_gives_the_same_bytes(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(voxels(), AFFINE)
    io.write(volume, tmp_path / f"a{suffix}")
    monkeypatch.setattr("time.time", lambda: 4e9)
    io.write(volume, tmp_path / f"other-name{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"other-name{suffix}").read_bytes()


@pytest.mark.parametrize("dtype", ["int16", "uint8", "uint16", "uint32", "float32", "float64", "int64"])
def test_written_nifti_as_nibabel_reads_it(dtype: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 99, (3, 700, 800)).astype(dtype)  # more than one piece of packed input
    io.write(Volume(data, AFFINE, "other"), tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == data.dtype
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), data)
    np.testing.assert_allclose(image.affine[:, [2, 1, 0, 3]], AFFINE, atol=1e-6)
    packed = (tmp_path / "a.nii.gz").read_bytes()
    assert gzip.decompress(packed)[352:] == data.tobytes()
    assert packed[4:8] == b"\0\0\0\0"  # no time


def test_an_axis_too_long_for_nifti_1(tmp_path: Path) -> None:
    long = Volume(np.full((40000, 1, 1), -1000, np.int16), AFFINE)
    io.write(long, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").shape == (1, 1, 40000)
    np.testing.assert_array_equal(io.read(tmp_path / "a.nii.gz").voxels, long.voxels)
    with pytest.raises(CTFoundryError, match="no type for float16"):
        io.write(Volume(voxels().astype(np.float16), AFFINE), tmp_path / "b.nii")


def test_gzip_of_pieces_is_one_member() -> None:
    data = np.random.default_rng(0).integers(0, 9, 3 << 20).astype(np.uint8)
    packed = stream.gzipped(b"head", data.data)
    unpacker = zlib.decompressobj(31)
    assert unpacker.decompress(packed) == b"head" + data.tobytes()
    assert (unpacker.eof, unpacker.unused_data) == (True, b"")


# What is not HU -------------------------------------------------------------------------------------------------------

BALL = np.sqrt(sum(np.meshgrid(*[np.linspace(-1, 1, 24) ** 2] * 3))) < 0.8
NOISE = np.random.default_rng(5).normal(size=(24, 24, 24))
CT = np.where(BALL, 40 + 20 * NOISE, -1000).astype(np.int16)
MR = np.where(BALL, 300 + 400 * np.random.default_rng(6).random((24, 24, 24)) ** 2, 8 * abs(NOISE))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (((CT + 1024) / 1200).clip(0, 1).astype(np.float32), ": a normalised image"),
        ((CT / 1000.0).clip(-1, 1).astype(np.float32), ": a normalised image (-1 to 1)"),
        (((CT - CT.mean()) / CT.std()).astype(np.float32), "standard deviations (z-score)"),
        ((128 + 40 * NOISE).clip(0, 255).astype(np.uint8), "values from 0 to 255: an 8-bit image through a window"),
        ((CT + 1024).astype(np.uint16), "CT stored without its intercept of -1024 (HU + 1024)?"),
        (MR.astype(np.int16), "none below 0: MR, PET, or a picture of a CT?"),
        (MR.astype(np.float32) * 40, "none below 0: MR, PET, or a picture of a CT?"),
        (np.where(BALL, CT, 0), "there is no air in HU: not CT, or a CT cut down to soft tissue?"),
        ((1e6 * NOISE).astype(np.float32), "beyond HU"),
    ],
)
def test_the_reason_why_numbers_are_no_hu(array: np.ndarray, words: str, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), LAS), tmp_path / "a.nii.gz")
    volume = io.read(tmp_path / "a.nii.gz")
    assert volume.kind == "other"
    (note,) = volume.notes
    assert note.startswith("not HU: ")
    assert words in note
    forced = io.read(tmp_path / "a.nii.gz", kind="hu")
    assert forced.kind == "hu"
    assert forced.notes == (note.replace("not HU: ", kinds.TAKEN),)
    marked = kinds.as_hu(volume)
    assert (marked.kind, marked.notes) == (forced.kind, forced.notes)
    np.testing.assert_array_equal(marked.voxels, forced.voxels)
    assert volume.kind == "other"  # what was given stays as it was


def test_a_ct_in_hu_has_no_notes(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(CT.transpose(2, 1, 0), LAS), tmp_path / "a.nii.gz")
    for kind in (None, "hu"):
        assert io.read(tmp_path / "a.nii.gz", kind=kind).notes == ()
    assert kinds.as_hu(volume := io.read(tmp_path / "a.nii.gz")) is volume


def test_fill_in_what_is_taken_for_hu() -> None:
    voxels = np.where(BALL, 40, 0).astype(np.int16)
    voxels[0] = -2048
    marked = kinds.as_hu(Volume(voxels, AFFINE, "other"))
    assert marked.valid is not None
    assert (marked.voxels[0] == -1024).all()
    assert not marked.valid[0].any()
    assert (voxels[0] == -2048).all()
