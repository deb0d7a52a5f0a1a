"""What stored numbers mean: padding, bits, signs, greyscale, each slice's own rescaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.pixels import apply_modality_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from ctfoundry import geometry, io
from ctfoundry.errors import ReadError
from ctfoundry.io.dicom_write import write_series

AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))
SHAPE = (4, 7, 9)
SYNTAXES = pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=["little", "big", "deflated"],
)


def values(low: int, high: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, SHAPE).astype(dtype)


def itk(folder: Path) -> np.ndarray:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def by_pydicom(folder: Path) -> np.ndarray:
    """Rescaled pixels in the order of the positions along z."""
    slices = sorted((pydicom.dcmread(p) for p in folder.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    return np.stack([apply_modality_lut(d.pixel_array, d) for d in slices])


def test_monochrome1_is_not_inverted(tmp_path: Path) -> None:
    """PS3.3 C.7.6.3.1.2: it says that small values are shown white; what they measure is said by the rescale values."""
    stored = values(0, 3000, "uint16")
    write_series(
        tmp_path,
        stored,
        AFFINE,
        intercept=-1024,
        change=lambda data, d: setattr(data, "PhotometricInterpretation", "MONOCHROME1"),
    )
    voxels = io.read(tmp_path).voxels
    np.testing.assert_array_equal(voxels, stored.astype(int) - 1024)
    np.testing.assert_array_equal(voxels, by_pydicom(tmp_path))
    # SimpleITK turns the stored numbers round for display and rescales the result: 61,960 where there are 1527 HU.
    np.testing.assert_array_equal(itk(tmp_path), 65535 - stored.astype(int) - 1024)


@SYNTAXES
@pytest.mark.parametrize(
    ("dtype", "padding", "limit", "intercept"),
    [
        ("int16", -1200, None, 0),  # above the fill that is known by its value alone
        ("int16", -2000, None, -1024),
        ("uint16", 63536, None, -1024),  # would be 62512 HU
        ("uint16", 10, 40, -1024),
        ("int16", -1100, -1300, 0),  # the limit may lie on either side
        ("int16", 30000, None, 5000),
    ],
)
def test_padding_becomes_air_and_invalid(
    syntax: str, dtype: str, padding: int, limit: int | None, intercept: int, tmp_path: Path
) -> None:
    stored = values(100, 2000, dtype)
    inside = [padding] if limit is None else [padding, (padding + limit) // 2, limit]
    stored[0, :2] = padding
    stored[1] = padding
    stored[2, 3, :3] = np.resize(inside, 3)
    padded = np.isin(stored, inside)
    kind = "SS" if dtype == "int16" else "US"

    def change(data: Any, d: int) -> None:
        data.add_new(0x00280120, kind, padding)
        if limit is not None:
            data.add_new(0x00280121, kind, limit)

    write_series(tmp_path, stored, AFFINE, intercept=intercept, syntax=str(syntax), change=change)
    volume = io.read(tmp_path)
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.valid, ~padded)
    np.testing.assert_array_equal(volume.voxels, np.where(padded, -1024, stored.astype(int) + intercept))


def test_padding_that_would_be_tissue_is_said(tmp_path: Path) -> None:
    stored = values(1, 2000, "int16")
    stored[0, 0, :5] = 0
    write_series(tmp_path, stored, AFFINE, change=lambda data, d: data.add_new(0x00280120, "SS", 0))
    assert io.read(tmp_path).notes == ("5 voxels of a Pixel Padding Value that would be tissue became air",)


def test_padding_with_fractional_slopes(tmp_path: Path) -> None:
    stored = values(0, 3000, "uint16")
    stored[1, 2:4] = 65535
    write_series(
        tmp_path,
        stored,
        AFFINE,
        slope=0.5,
        intercept=-1000.25,
        change=lambda data, d: data.add_new(0x00280120, "US", 65535),
    )
    volume = io.read(tmp_path)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.valid, stored != 65535)
    np.testing.assert_allclose(volume.voxels, np.where(stored == 65535, -1024, stored * 0.5 - 1000.25))


def test_padding_above_the_stored_bits(tmp_path: Path) -> None:
    """Some scanners store 12 bits and pad with -2000 in all 16."""
    clean = values(0, 4096, "uint16")
    stored = clean.copy()
    stored[:, 0] = 63536

    def change(data: Any, d: int) -> None:
        data.BitsStored, data.HighBit = 12, 11
        data.add_new(0x00280120, "US", 63536)

    write_series(tmp_path, stored, AFFINE, intercept=-1024, change=change)
    volume = io.read(tmp_path)
    np.testing.assert_array_equal(volume.valid, stored != 63536)
    np.testing.assert_array_equal(volume.voxels, np.where(stored == 63536, -1024, clean.astype(int) - 1024))


def test_padding_where_nothing_says_hu(tmp_path: Path) -> None:
    """Numbers that are no HU keep what they are; padding is not valid all the same."""
    stored = values(1, 3000, "uint16")
    stored[0] = 0

    def change(data: Any, d: int) -> None:
        del data.RescaleSlope, data.RescaleIntercept
        data.add_new(0x00280120, "US", 0)

    write_series(tmp_path, stored, AFFINE, change=change)
    volume = io.read(tmp_path)
    assert volume.kind == "other"
    np.testing.assert_array_equal(volume.valid, stored != 0)
    np.testing.assert_array_equal(volume.voxels[1:], stored[1:])


@SYNTAXES
@pytest.mark.parametrize(("allocated", "signed"), [(8, False), (8, True), (32, False), (32, True)])
def test_8_and_32_bits(syntax: str, allocated: int, signed: bool, tmp_path: Path) -> None:
    high = 120 if allocated == 8 else 3000
    stored = values(-min(high, 800) if signed else 0, high, f"{'' if signed else 'u'}int{allocated}")
    if allocated == 8:  # an even number of bytes a slice, as OW has it
        stored = stored[:, :6]

    def change(data: Any, d: int) -> None:
        data.BitsAllocated = data.BitsStored = allocated
        data.HighBit, data.PixelRepresentation = allocated - 1, int(signed)
        if allocated == 8:
            data["PixelData"].VR = "OB"

    write_series(tmp_path, stored, AFFINE, intercept=-600, syntax=str(syntax), change=change)
    volume = io.read(tmp_path)
    np.testing.assert_array_equal(volume.voxels, stored.astype(int) - 600)
    np.testing.assert_array_equal(volume.voxels, by_pydicom(tmp_path))


def test_slopes_of_each_slice_as_pydicom_applies_them(tmp_path: Path) -> None:
    stored = values(-400, 900, "int16")

    def change(data: Any, d: int) -> None:
        data.RescaleSlope, data.RescaleIntercept = str((1, -1, 2, 0.25)[d]), str(-d)

    write_series(tmp_path, stored, AFFINE, change=change)
    voxels = io.read(tmp_path).voxels
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels, by_pydicom(tmp_path))


def test_a_garbled_instance_number_does_not_matter(tmp_path: Path) -> None:
    stored = values(-400, 900, "int16")
    for path in write_series(tmp_path, stored, AFFINE, change=lambda data, d: setattr(data, "InstanceNumber", 77)):
        path.write_bytes(path.read_bytes().replace(b"IS\x02\x0077", b"IS\x02\x00x7"))
    np.testing.assert_array_equal(io.read(tmp_path).voxels, stored)


def test_a_garbled_slope_is_an_error(tmp_path: Path) -> None:
    path, *_ = write_series(tmp_path, values(0, 900, "int16")[:1], AFFINE, slope=7)
    path.write_bytes(path.read_bytes().replace(b"DS\x02\x007 ", b"DS\x02\x00x "))
    with pytest.raises(ReadError, match="garbled"):
        io.read(path)
