"""A series in every transfer syntax: lossless ones exact, lossy ones as SimpleITK decodes them; decoders that fail or fall silent."""

from __future__ import annotations

import io as memory
import os
import time
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom import encaps

from ctfoundry import geometry, io
from ctfoundry.errors import ReadError, TruncatedError
from ctfoundry.io import decoding, jpeg12
from ctfoundry.io.dicom_write import write_series

AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))


def smooth(low: int, high: int, dtype: str, shape: tuple[int, int, int] = (3, 48, 64)) -> np.ndarray:
    """Waves with noise from `low` to `high`: what lossy codecs are made for, and no two slices alike."""
    z, y, x = np.mgrid[tuple(slice(n) for n in shape)]
    waves = 0.5 + 0.5 * np.sin(x / 9 + z) * np.cos(y / 7)
    noise = np.random.default_rng(0).uniform(-0.01, 0.01, shape)
    return np.clip(low + (high - low) * (waves + noise), low, high).astype(dtype)


def bits(allocated: int, stored: int, signed: bool) -> Any:
    def change(data: Any, d: int) -> None:
        data.BitsAllocated, data.BitsStored, data.HighBit = allocated, stored, stored - 1
        data.PixelRepresentation = int(signed)
        if allocated == 8:
            data["PixelData"].VR = "OB"

    return change


def itk(folder: Path) -> np.ndarray:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def gdcm_compress(path: Path, syntax: str) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


@pytest.mark.parametrize(
    ("syntax", "allocated", "stored", "signed"),
    [
        ("JPEGLosslessProcess14", 16, 12, False),
        ("JPEGLosslessProcess14_1", 16, 16, True),
        ("JPEGLosslessProcess14_1", 8, 8, False),
        ("JPEGLSLossless", 16, 16, True),
        ("JPEGLSLossless", 16, 12, True),
        ("JPEG2000Lossless", 16, 16, True),
        ("JPEG2000Lossless", 16, 12, True),
        ("RLELossless", 16, 16, True),
        ("RLELossless", 8, 8, False),
    ],
)
def test_lossless_is_exact(syntax: str, allocated: int, stored: int, signed: bool, tmp_path: Path) -> None:
    low, high = (
        ((-1400 if signed else 0), 3000) if stored == 16 else (-(1 << 11), (1 << 11) - 1) if signed else (0, 255)
    )
    truth = smooth(low, high, {8: "uint8", 16: "int16" if signed else "uint16"}[allocated])
    for path in write_series(tmp_path, truth, AFFINE, intercept=600, change=bits(allocated, stored, signed)):
        gdcm_compress(path, syntax)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(io.read(tmp_path, threads=1).voxels, truth.astype(int) + 600)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ReadError, match=r"0002\.dcm"):
        io.read(tmp_path, threads=1)


def test_many_threads_decode_compressed_slices(tmp_path: Path) -> None:
    truth = smooth(-1000, 3000, "int16", (5, 24, 32))
    for path in write_series(tmp_path, truth, AFFINE):
        gdcm_compress(path, "JPEGLosslessProcess14_1")
    np.testing.assert_array_equal(io.read(tmp_path, threads=2).voxels, truth)


def encapsulated(make: Any, syntax: str) -> Any:
    """A `change` that replaces the pixels of each slice by one compressed frame."""

    def change(data: Any, d: int) -> None:
        pixels = np.frombuffer(data.PixelData, np.uint8 if data.BitsAllocated == 8 else np.uint16)
        data.PixelData = encaps.encapsulate([make(pixels.reshape(data.Rows, data.Columns))])
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
        data.file_meta.TransferSyntaxUID = syntax

    return change


def pillow_jpeg(pixels: np.ndarray) -> bytes:
    out = memory.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def pillow_jpeg2000(pixels: np.ndarray) -> bytes:
    out = memory.BytesIO()
    Image.fromarray(pixels).save(
        out, "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[8], no_jp2=True
    )
    return out.getvalue()


@pytest.mark.parametrize("syntax", [pydicom.uid.JPEGBaseline8Bit, pydicom.uid.JPEGExtended12Bit], ids=["50", "51"])
def test_jpeg_of_8_bits(syntax: str, tmp_path: Path) -> None:
    truth = smooth(0, 255, "uint8")

    def change(data: Any, d: int) -> None:
        bits(8, 8, False)(data, d)
        encapsulated(pillow_jpeg, syntax)(data, d)

    write_series(tmp_path, truth, AFFINE, intercept=-200, change=change)
    voxels = io.read(tmp_path, threads=1).voxels
    np.testing.assert_array_equal(voxels, itk(tmp_path))
    assert 0 < np.abs(voxels - (truth.astype(int) - 200)).max() <= 12  # it is lossy, and it is this image


def test_jpeg_2000_lossy(tmp_path: Path) -> None:
    truth = smooth(0, 4000, "uint16")
    write_series(tmp_path, truth, AFFINE, intercept=-1024, change=encapsulated(pillow_jpeg2000, pydicom.uid.JPEG2000))
    voxels = io.read(tmp_path, threads=1).voxels
    np.testing.assert_array_equal(voxels, itk(tmp_path))
    assert 0 < np.abs(voxels - (truth.astype(int) - 1024)).max() < 400


def test_jpeg_ls_near_lossless(tmp_path: Path) -> None:
    import jpeg_ls

    truth = smooth(0, 4000, "uint16")

    def make(pixels: np.ndarray) -> bytes:
        return bytes(jpeg_ls.encode_array(pixels, lossy_error=3))

    write_series(tmp_path, truth, AFFINE, intercept=-1024, change=encapsulated(make, pydicom.uid.JPEGLSNearLossless))
    voxels = io.read(tmp_path, threads=1).voxels
    np.testing.assert_array_equal(voxels, itk(tmp_path))
    assert np.abs(voxels - (truth.astype(int) - 1024)).max() == 3


def twelve_bits() -> tuple[bytes, Path]:
    """A JPEG Extended stream of 12 bits, 1024 x 256, from another maker's encoder, and its file."""
    path = Path(pydicom.data.get_testdata_file("JPGExtended.dcm"))
    return next(encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1)), path


def test_jpeg_extended_of_12_bits(tmp_path: Path) -> None:
    """Rounding of the inverse transform may differ by one."""
    stream, path = twelve_bits()
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0].astype(int)
    assert theirs.max() > 255
    syntax = pydicom.uid.JPEGExtended12Bit

    def change(data: Any, d: int) -> None:
        bits(16, 12, False)(data, d)
        encapsulated(lambda pixels: stream, syntax)(data, d)

    write_series(tmp_path, np.zeros((2, 1024, 256), "uint16"), AFFINE, change=change)
    voxels = io.read(tmp_path, threads=1).voxels
    for ours in voxels:
        difference = np.abs(ours - theirs)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


def test_damaged_jpeg_of_12_bits() -> None:
    stream, _ = twelve_bits()
    rng = np.random.default_rng(0)
    outcomes = set()
    for k in range(60):
        bad = bytearray(stream)
        if k % 2:
            bad[rng.integers(2, 400)] = rng.integers(256)
        else:
            del bad[rng.integers(2, len(bad)) :]
        try:
            assert jpeg12.decode(bytes(bad), 1024, 256).shape == (1024, 256)
            outcomes.add("read")
        except (ValueError, IndexError, KeyError):
            outcomes.add("refused")
    assert "refused" in outcomes
    with pytest.raises(ValueError, match="image of 12 bits"):
        jpeg12.decode(stream, 1024, 255)


def test_a_slice_in_several_fragments(tmp_path: Path) -> None:
    truth = smooth(-1000, 3000, "int16")
    for path in write_series(tmp_path, truth, AFFINE):
        gdcm_compress(path, "JPEGLSLossless")
        data = pydicom.dcmread(path)
        (frame,) = encaps.generate_frames(data.PixelData, number_of_frames=1)
        data.PixelData = encaps.encapsulate([frame], fragments_per_frame=4, has_bot=False)
        data.save_as(path)
    np.testing.assert_array_equal(io.read(tmp_path, threads=1).voxels, truth)


def test_a_decoder_that_falls_silent_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in write_series(tmp_path / "in", smooth(-1000, 3000, "int16"), AFFINE):
        gdcm_compress(path, "JPEGLosslessProcess14_1")
    (tmp_path / "child.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    )
    monkeypatch.setattr(decoding, "_CHILD", tmp_path / "child.py")
    monkeypatch.setattr(decoding, "SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(
        ReadError, match=r"0000\.dcm: its compressed pixels keep their decoder busy for more than 0\.5 s"
    ):
        io.read(tmp_path / "in", threads=1)
    assert time.monotonic() - start < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("cut", "error"),
    [
        (lambda data: data[:-30], TruncatedError),
        (lambda data: data.replace(b"\xfe\xff\xdd\xe0", b"\xfe\xff\x0d\xe0"), ReadError),
    ],
)
def test_fragments_that_lie(cut: Any, error: type[Exception], tmp_path: Path) -> None:
    *_, path = write_series(
        tmp_path, smooth(0, 3000, "uint16"), AFFINE, change=lambda data, d: data.compress(pydicom.uid.RLELossless)
    )
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(error, match=r"0002\.dcm"):
        io.read(tmp_path)
    (found,) = io.discover(tmp_path).found
    assert isinstance(found.problem, error)


def test_run_lengths_that_swell_are_refused(tmp_path: Path) -> None:
    """Two bytes of run-length unpack to 128: a megabyte for a slice of 6 KB is refused unread."""

    def change(data: Any, d: int) -> None:
        header = np.zeros(16, "<u4")
        header[:2] = 1, 64
        data.PixelData = encaps.encapsulate([header.tobytes() + b"\x81\x00" * (1 << 19)])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless

    write_series(tmp_path, smooth(0, 3000, "uint16"), AFFINE, change=change)
    with pytest.raises(ReadError, match=r"1,048,640 bytes of run-lengths for 6,144 of pixels"):
        io.read(tmp_path)
