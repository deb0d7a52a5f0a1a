"""DICOM series: voxels equal to SimpleITK's, and every defect by its own name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ctfoundry import geometry, io
from ctfoundry.errors import (
    DuplicateSlicesError,
    GeometryError,
    IrregularSpacingError,
    MissingSlicesError,
    NotAScanError,
    ReadError,
    TooLargeError,
    TruncatedError,
)
from ctfoundry.io import decoding, dicom_file, dicom_header
from ctfoundry.io.dicom_write import write_series

AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))
SHAPE = (6, 7, 8)


def values(low: int = -1024, high: int = 2000, dtype: str = "int16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, SHAPE).astype(dtype)


def itk(folder: Path) -> np.ndarray:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("dtype", ["int16", "uint16"])
@pytest.mark.parametrize("threads", [1, 3])
def test_plain_pixels_equal_simpleitk(syntax: Any, dtype: str, threads: int, tmp_path: Path) -> None:
    stored = values(0 if dtype == "uint16" else -1400, 4000, dtype)
    write_series(tmp_path, stored, AFFINE, intercept=-1024 if dtype == "uint16" else 0, syntax=str(syntax))
    volume = io.read(tmp_path, threads=threads)
    assert (volume.voxels.dtype, volume.kind, volume.valid) == (np.int16, "hu", None)
    np.testing.assert_array_equal(volume.voxels, itk(tmp_path))


def test_a_slice_that_kills_its_decoder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GDCM aborts its process on some damaged JPEG streams; the child that plays it here does so at once."""

    def mark(data: Any, d: int) -> None:
        data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + bytes(60)])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1

    write_series(tmp_path / "in", values(), AFFINE, change=mark)
    with pytest.raises(ReadError, match=r"0000\.dcm: its (pixels cannot be decoded|compressed pixels are so damaged)"):
        io.read(tmp_path / "in", threads=1)
    (tmp_path / "dies.py").write_text("import os; input(); os.abort()")
    monkeypatch.setattr(decoding, "_CHILD", tmp_path / "dies.py")
    with pytest.raises(ReadError, match=r"0000\.dcm: its compressed pixels are so damaged that they end their decoder"):
        io.read(tmp_path / "in", threads=1)


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    stored = values(0, 900, "uint16")

    def change(data: Any, d: int) -> None:
        data.RescaleSlope, data.RescaleIntercept = str(1 + d % 3), str(-1000 - d)

    write_series(tmp_path, stored, AFFINE, change=change)
    truth = np.stack([s.astype(int) * (1 + d % 3) - 1000 - d for d, s in enumerate(stored)])
    volume = io.read(tmp_path)
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, truth)


def test_fractional_slopes_give_float32(tmp_path: Path) -> None:
    stored = values(0, 4000, "uint16")
    write_series(tmp_path, stored, AFFINE, slope=0.37, intercept=-1024.5)
    volume = io.read(tmp_path)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.voxels, stored * 0.37 - 1024.5, atol=1e-3)
    np.testing.assert_allclose(volume.voxels, itk(tmp_path), atol=1e-3)


def test_values_beyond_16_bits_give_float32(tmp_path: Path) -> None:
    stored = values(0, 65535, "uint16")
    write_series(tmp_path, stored, AFFINE)
    volume = io.read(tmp_path)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels, stored)


@pytest.mark.parametrize("signed", [True, False])
def test_unused_high_bits_are_cleared(signed: bool, tmp_path: Path) -> None:
    clean = values(-2048, 2048) if signed else values(0, 4096, "uint16")
    stored = (clean.astype(np.int64) & 0x0FFF | 0xA000).astype(np.uint16)

    def change(data: Any, d: int) -> None:
        data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, int(signed)

    write_series(tmp_path, stored, AFFINE, intercept=-100, change=change)
    expected = clean.astype(int) - 100
    fill = expected <= io.kinds.FILL_HU
    volume = io.read(tmp_path)
    np.testing.assert_array_equal(volume.voxels, np.where(fill, -1024, expected))
    np.testing.assert_array_equal(itk(tmp_path), expected)


@pytest.mark.parametrize(("fill", "intercept"), [(-2000, -1024), (-32768, -1024), (-3024, 0), (-2048, 0)])
def test_scanner_fill_becomes_air_and_invalid(fill: int, intercept: int, tmp_path: Path) -> None:
    stored = values(0, 2000)
    stored[:, :2] = fill
    stored[0] = fill
    write_series(tmp_path, stored, AFFINE, intercept=intercept)
    volume = io.read(tmp_path)
    assert volume.voxels.dtype == np.int16
    assert volume.valid is not None
    np.testing.assert_array_equal(volume.valid, stored != fill)
    assert (volume.voxels[stored == fill] == -1024).all()
    np.testing.assert_array_equal(volume.voxels[volume.valid], stored[volume.valid].astype(int) + intercept)


def test_order_comes_from_positions_whatever_names_and_numbers_say(tmp_path: Path) -> None:
    stored = values()
    names = ["c", "a", "f", "b", "e", "d"]  # no extension either
    write_series(tmp_path, stored, AFFINE, name=names.__getitem__)  # InstanceNumber runs backwards
    volume = io.read(tmp_path)
    np.testing.assert_array_equal(volume.voxels, stored)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


def test_mixed_folder(tmp_path: Path) -> None:
    """Two series, a localizer, a report, junk: each named, one series read by its UID."""
    write_series(tmp_path / "a", values(seed=1), AFFINE, series="1")
    write_series(tmp_path / "b", values(seed=2), AFFINE, series="2")

    def localizer(data: Any, d: int) -> None:
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    def report(data: Any, d: int) -> None:
        data.SOPClassUID, data.Modality = "1.2.840.10008.5.1.4.1.1.88.67", "SR"

    def magnetic(data: Any, d: int) -> None:
        data.SOPClassUID, data.Modality = "1.2.840.10008.5.1.4.1.1.4", "MR"

    write_series(tmp_path / "c", values()[:1], AFFINE, series="3", change=localizer)
    write_series(tmp_path / "c", values()[:1], AFFINE, series="4", change=report, name="dose{}".format)
    write_series(tmp_path / "c", values()[:2], AFFINE, series="5", change=magnetic, name="mr{}".format)
    write_series(tmp_path / "c", values()[:1], AFFINE, series="6", name="lone{}".format)
    (tmp_path / "c" / "notes.txt").write_text("to do")
    (tmp_path / "c" / "nothing").touch()
    (tmp_path / "c" / "broken").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)

    found = io.discover(tmp_path)
    assert [f.series[-2:] for f in found.found if f.series] == [".1", ".2"]
    assert found.skipped == {
        "not CT (MR)": 2,
        "localizer": 1,
        "structured report or dose sheet (SR)": 1,
        "single slice": 1,
        "not a scan file": 1,
        "empty file": 1,
        "damaged DICOM file": 1,
    }
    for item, seed in zip(found.found, (1, 2), strict=True):
        assert (item.format, item.modality, item.patient, item.problem) == ("dicom", "CT", "P-1", None)
        assert item.grid is not None
        assert item.grid.shape == SHAPE
        np.testing.assert_array_equal(item.read().voxels, values(seed=seed))
        np.testing.assert_array_equal(io.read(f"{tmp_path}#{item.series}").voxels, values(seed=seed))
    with pytest.raises(NotAScanError, match=r"(?s)holds 2 stacks of slices.*FOLDER#SeriesInstanceUID") as error:
        io.read(tmp_path)
    assert error.value.where == str(tmp_path)
    with pytest.raises(NotAScanError, match="holds no DICOM CT series 7"):
        io.read(f"{tmp_path}#7")
    with pytest.raises(NotAScanError, match="is no CT slice: localizer"):
        io.read(tmp_path / "c" / "0000.dcm")


def test_two_orientations_in_one_series_are_two_stacks(tmp_path: Path) -> None:
    write_series(tmp_path, values(seed=1), AFFINE)
    coronal = geometry.make_affine((2.0, 1.0, 1.0), "AIL", (0.0, 0.0, 0.0))
    write_series(tmp_path, values(seed=2), coronal, name="x{}".format)
    found = io.discover(tmp_path).found
    assert sorted(f.grid.orientation for f in found if f.grid) == [
        "PIL",
        "SPL",
    ]  # along the normal, whatever was written
    assert len({f.series for f in found}) == 1


def test_one_slice(tmp_path: Path) -> None:
    paths = write_series(tmp_path, values()[:1], AFFINE)
    volume = io.read(paths[0])
    assert volume.shape == (1, *SHAPE[1:])
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert io.read(tmp_path).shape == volume.shape
    paths = write_series(tmp_path, values()[:3], AFFINE)
    with pytest.raises(NotAScanError, match="is one of 3 slices"):
        io.read(paths[0])


def test_missing_slices_are_listed(tmp_path: Path) -> None:
    paths = write_series(tmp_path, np.repeat(values(), 2, axis=0), AFFINE)
    for k in (4, 5, 8):
        paths[k].unlink()
    with pytest.raises(MissingSlicesError, match=r"3 slices are missing at -90.00, -87.50, -80.00 mm") as error:
        io.read(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert isinstance(io.discover(tmp_path).found[0].problem, MissingSlicesError)


def test_duplicate_slices_are_listed(tmp_path: Path) -> None:
    paths = write_series(tmp_path, values(), AFFINE)
    (tmp_path / "again").write_bytes(paths[2].read_bytes())
    with pytest.raises(DuplicateSlicesError, match=r"1 of 7 slices repeat a position: -95.00 mm"):
        io.read(tmp_path)


def moved(d: int, by: tuple[float, float, float]) -> Any:
    def change(data: Any, k: int) -> None:
        if k == d:
            data.ImagePositionPatient = [float(p) + b for p, b in zip(data.ImagePositionPatient, by, strict=True)]

    return change


def test_irregular_distances_are_listed(tmp_path: Path) -> None:
    write_series(tmp_path, values(), AFFINE, change=moved(2, (0, 0, 0.7)))
    with pytest.raises(IrregularSpacingError, match=r"from 1.800 to 3.200 mm.*behind -97.50, -94.30 mm"):
        io.read(tmp_path)


def test_positions_rounded_to_hundredths_are_regular(tmp_path: Path) -> None:
    def change(data: Any, d: int) -> None:
        data.ImagePositionPatient = [f"{float(v):.2f}" for v in data.ImagePositionPatient]

    write_series(tmp_path, values(), geometry.make_affine((0.625, 1, 1), "SPL"), change=change)
    assert io.read(tmp_path).spacing[0] == pytest.approx(0.625, abs=0.005)


def test_a_slice_beside_the_line_is_listed(tmp_path: Path) -> None:
    write_series(tmp_path, values(), AFFINE, change=moved(3, (0.5, 0, 0)))
    with pytest.raises(GeometryError, match=r"1 slices lie up to 0.50 mm beside.*-92.50 mm"):
        io.read(tmp_path)


def test_truncated_slice(tmp_path: Path) -> None:
    paths = write_series(tmp_path, values(), AFFINE)
    paths[3].write_bytes(paths[3].read_bytes()[:-20])
    with pytest.raises(TruncatedError, match=r"0003\.dcm"):
        io.read(tmp_path)


def test_declared_pixels_must_fit(tmp_path: Path) -> None:
    def change(data: Any, d: int) -> None:
        data.Rows = 14

    write_series(tmp_path, values(), AFFINE, change=change)
    with pytest.raises(TruncatedError, match="112 bytes of pixels, where 8x14 need 224"):
        io.read(tmp_path)


def test_cap_comes_before_allocation(tmp_path: Path) -> None:
    def change(data: Any, d: int) -> None:
        data.Rows = data.Columns = 65535

    write_series(tmp_path, values(), AFFINE, change=change)
    with pytest.raises(TooLargeError, match="over the cap"):
        io.read(tmp_path)
    with pytest.raises(TooLargeError, match="over the cap"):
        io.read(tmp_path, cap=100)


def test_without_rescale_the_values_decide(tmp_path: Path) -> None:
    def change(data: Any, d: int) -> None:
        del data.RescaleSlope, data.RescaleIntercept

    write_series(tmp_path / "hu", values(), AFFINE, change=change)
    write_series(tmp_path / "raw", values(0, 3000), AFFINE, change=change)
    assert io.read(tmp_path / "hu").kind == "hu"
    assert io.read(tmp_path / "raw").kind == "other"
    assert io.read(tmp_path / "raw", kind="hu").kind == "hu"


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("BitsStored", 20, "stores 20 bits in 16"),
        ("HighBit", 10, "below bit 10"),
        ("PhotometricInterpretation", "RGB", "is RGB"),
        ("RescaleSlope", "0", "rescale slope 0"),
        ("PixelSpacing", [0, 1], "pixel spacing"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "right-angled"),
    ],
)
def test_headers_that_lie(tag: str, value: Any, message: str, tmp_path: Path) -> None:
    write_series(tmp_path, values(), AFFINE, change=lambda data, d: setattr(data, tag, value))
    with pytest.raises((ReadError, GeometryError), match=message):
        io.read(tmp_path)


def test_bare_data_sets_without_preamble(tmp_path: Path) -> None:
    for path in write_series(tmp_path, values(), AFFINE, syntax=str(ImplicitVRLittleEndian)):
        data = pydicom.dcmread(path)
        del data.file_meta
        pydicom.dcmwrite(path, data, implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(io.read(tmp_path).voxels, values())


KEYWORDS = {
    "sop_class": "SOPClassUID",
    "modality": "Modality",
    "image_type": "ImageType",
    "patient": "PatientID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "photometric": "PhotometricInterpretation",
    "description": "SeriesDescription",
    "number": "SeriesNumber",
    "acquisition": "AcquisitionNumber",
    "kernel": "ConvolutionKernel",
    "contrast": "ContrastBolusAgent",
    "body_part": "BodyPartExamined",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "temporal": "TemporalPositionIdentifier",
    "content_time": "ContentTime",
    "acquisition_time": "AcquisitionTime",
    "position": "ImagePositionPatient",
    "orientation": "ImageOrientationPatient",
    "spacing": "PixelSpacing",
    "thickness": "SliceThickness",
    "kvp": "KVP",
    "slope": "RescaleSlope",
    "intercept": "RescaleIntercept",
    "instance": "InstanceNumber",
    "rows": "Rows",
    "columns": "Columns",
    "allocated": "BitsAllocated",
    "stored": "BitsStored",
    "high_bit": "HighBit",
    "samples": "SamplesPerPixel",
    "signed": "PixelRepresentation",
}


def same_as_pydicom(path: Path) -> None:
    ours, data = dicom_header.read_header(str(path)), pydicom.dcmread(path)
    for field, keyword in KEYWORDS.items():
        mine, theirs = getattr(ours, field), data.get(keyword)
        if theirs is None or theirs == "":
            assert mine in ("", None, ()), field
        elif field == "image_type":
            assert mine.split("\\") == list(theirs)
        elif isinstance(mine, str):
            assert mine == str(theirs), field
        else:
            assert mine == (tuple(theirs) if isinstance(mine, tuple) else theirs), field
    padding = data.get("PixelPaddingValue")
    assert ours.padding == (None if padding is None else (padding, padding))
    if not ours.start:
        assert path.read_bytes()[ours.pixels :][: ours.length] == data.PixelData
        values_, coding, pixels, length = dicom_file._with_pydicom(str(path), dicom_header.WANTED)
        assert dicom_header._header(str(path), values_, coding, pixels, length) == ours


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("undefined", [True, False])
def test_scanner_equals_pydicom(syntax: Any, undefined: bool, tmp_path: Path) -> None:
    """Nested sequences, private elements, long headers, odd text."""

    def change(data: Any, d: int) -> None:
        inner = pydicom.Dataset()
        inner.CodeValue, inner.Rows = "1", 99
        outer = pydicom.Dataset()
        outer.PurposeOfReferenceCodeSequence = pydicom.Sequence([inner, inner])
        outer.is_undefined_length_sequence_item = undefined
        data.ReferencedImageSequence = pydicom.Sequence([outer] * (1 + d))
        data["ReferencedImageSequence"].is_undefined_length = undefined
        data.DeidentificationMethodCodeSequence = pydicom.Sequence([])
        data.add_new(0x00091010, "LO", "private")
        data.add_new(0x00091011, "UN", b"x" * (7000 * d))
        data.SpecificCharacterSet, data.PatientID = "ISO_IR 100", "Müller"
        data.SeriesDescription, data.SeriesNumber, data.AcquisitionNumber = "Thorax 1.0 ü", 4, 2
        data.ConvolutionKernel, data.KVP, data.ContrastBolusAgent = "B30f", "120", "some"
        data.BodyPartExamined, data.Manufacturer, data.ManufacturerModelName = "CHEST", "Maker", "Model"
        data.TemporalPositionIdentifier, data.ContentTime, data.AcquisitionTime = 3, "101112.5", "101110"
        data.PixelPaddingValue = -2000

    for path in write_series(tmp_path, values(), AFFINE, syntax=str(syntax), change=change):
        same_as_pydicom(path)
    np.testing.assert_array_equal(io.read(tmp_path).voxels, values())


def test_scanner_equals_pydicom_on_real_files(shared_ct: Path) -> None:
    files = sorted((shared_ct / "sts-002-dicom" / "image").iterdir())
    assert len(files) == 48
    for path in files:
        same_as_pydicom(path)


# Reasons and losses ---------------------------------------------------------------------------------------------------


def test_dicom_that_is_no_hu_says_why(tmp_path: Path) -> None:
    def change(data: Any, d: int) -> None:
        data.RescaleType = "US"

    write_series(tmp_path / "raw", values(0, 3000), AFFINE, change=change)
    write_series(tmp_path / "hu", values(0, 3000), AFFINE)
    low, high = values(0, 3000).min(), values(0, 3000).max()
    reason = f"values from {low} to {high}, none below 0: MR, PET, or a picture of a CT?"
    assert io.read(tmp_path / "raw").notes == (f"not HU: {reason}",)
    forced = io.read(tmp_path / "raw", kind="hu")
    assert forced.kind == "hu"
    assert forced.notes == (f"taken as HU because the caller says so, but {reason}",)
    assert io.read(tmp_path / "hu", kind="hu").notes == ()  # the file says so itself


def test_only_hu_have_fill(tmp_path: Path) -> None:
    stored = values(-2000, 3000)
    write_series(tmp_path, stored, AFFINE)
    other = io.read(tmp_path, kind="other")
    np.testing.assert_array_equal(other.voxels, stored)
    assert other.valid is None
    np.testing.assert_array_equal(io.read(tmp_path).voxels, np.where(stored <= -1500, -1024, stored))


def test_slices_that_are_left_out_are_said(tmp_path: Path) -> None:
    """The last slice garbled, without a place, or of another size: what is left is regular, so only a note can tell."""

    def change(data: Any, d: int) -> None:
        if d == 5:
            data.Rows, data.PixelData = data.Rows - 1, data.PixelData[: -2 * data.Columns]
        if d == 4:
            del data.ImagePositionPatient

    paths = write_series(tmp_path, values(), AFFINE, change=change)
    paths[0].write_bytes(paths[0].read_bytes()[:400])
    volume = io.read(tmp_path)
    np.testing.assert_array_equal(volume.voxels, values()[1:4])
    assert volume.notes == (
        "1 slices of the series left out: each alone in its size, spacing or orientation",
        "left out beside it, and perhaps slices of it: 1 x damaged DICOM file, 1 x no position in the patient",
    )


def test_plain_pixels_without_a_length_are_refused(tmp_path: Path) -> None:
    """Only compressed pixels come in fragments; here pydicom would inflate the file, which may be a bomb, to look for them."""
    path = write_series(tmp_path, values()[:1], AFFINE)[0]
    data = path.read_bytes()
    at = data.rindex(b"\xe0\x7f\x10\0")
    item = b"\xfe\xff\0\xe0" + bytes(4) + b"\xfe\xff\0\xe0" + data[at + 8 : at + 12] + data[at + 12 :]
    path.write_bytes(data[: at + 8] + b"\xff" * 4 + item + b"\xfe\xff\xdd\xe0" + bytes(4))
    with pytest.raises(ReadError, match="give no length"):
        io.read(path)
