"""Enhanced multi-frame CT: frames are slices, lies about their number are errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, encaps
from pydicom import Sequence as Items
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from ctfoundry import geometry, io
from ctfoundry.errors import (
    CTFoundryError,
    DuplicateSlicesError,
    MissingSlicesError,
    NotAScanError,
    ReadError,
    TooLargeError,
    TruncatedError,
)
from ctfoundry.io.dicom_write import UID, write_series

AFFINE = geometry.make_affine((2.5, 0.8, 1.3), "SPL", (30.0, 40.0, -100.0))
SHAPE = (6, 8, 10)
ENHANCED = "1.2.840.10008.5.1.4.1.1.2.1"


def values(seed: int = 0, count: int = SHAPE[0]) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 2000, (count, *SHAPE[1:])).astype(np.int16)


def item(**elements: Any) -> Dataset:
    data = Dataset()
    for name, value in elements.items():
        setattr(data, name, value)
    return data


def group(**elements: Any) -> Items:
    return Items([item(**elements)])


def write(
    path: Path,
    stored: np.ndarray,
    affine: np.ndarray = AFFINE,
    *,
    order: Sequence[int] | None = None,
    syntax: str = ExplicitVRLittleEndian,
    shared_orientation: bool = True,
    each: Callable[[Dataset, int], None] | None = None,
    change: Callable[[Any], None] | None = None,
) -> Path:
    """An Enhanced CT image after PS3.3 A.38, its frames in `order`; `each` changes a frame's functional groups."""
    lps = geometry.LPS_TO_RAS @ affine
    steps = np.array(geometry.spacing(affine))
    down, across = lps[:3, 1] / steps[1], lps[:3, 2] / steps[2]
    order = range(len(stored)) if order is None else order
    orientation = group(ImageOrientationPatient=[f"{v:.10g}" for v in (*across, *down)])
    data: Any = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID, data.SOPInstanceUID = ENHANCED, f"{UID}.77.{sum(path.stem.encode())}"
    data.ImageType, data.Modality, data.PatientID = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "CT", "P-1"
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{UID}.9", f"{UID}.1"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.NumberOfFrames, (data.Rows, data.Columns) = len(stored), stored.shape[1:]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    shared = item(
        PixelMeasuresSequence=group(PixelSpacing=[f"{v:.10g}" for v in steps[1:]], SliceThickness=f"{steps[0]:.10g}")
    )
    shared.PixelValueTransformationSequence = group(RescaleSlope="1", RescaleIntercept="0", RescaleType="HU")
    shared.CTReconstructionSequence = group(ConvolutionKernel="Br40")
    if shared_orientation:
        shared.PlaneOrientationSequence = orientation
    data.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for number, d in enumerate(order):
        frame = item(
            FrameContentSequence=group(FrameAcquisitionNumber=1, StackID="1", InStackPositionNumber=d + 1),
            PlanePositionSequence=group(ImagePositionPatient=[f"{v:.10g}" for v in lps[:3] @ (d, 0, 0, 1)]),
            CTImageFrameTypeSequence=group(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]),
        )
        if not shared_orientation:
            frame.PlaneOrientationSequence = orientation
        if each is not None:
            each(frame, number)
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = Items(frames)
    pixels = np.stack([stored[d] for d in order])
    if syntax in (RLELossless, JPEGLSLossless):
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.PixelData = pixels.astype("<i2").tobytes()
        data["PixelData"].VR = "OW"
        data.compress(syntax, generate_instance_uid=False)
    else:
        data.PixelData = pixels.astype(">i2" if syntax == ExplicitVRBigEndian else "<i2").tobytes()
        data["PixelData"].VR = "OW"
    if change is not None:
        change(data)
    path.parent.mkdir(exist_ok=True, parents=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
    ],
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("shared_orientation", [True, False])
def test_frames_in_any_order(syntax: Any, shared_orientation: bool, tmp_path: Path) -> None:
    stored = values()
    path = write(
        tmp_path / "scan", stored, order=[3, 0, 5, 1, 4, 2], syntax=syntax, shared_orientation=shared_orientation
    )
    (found,) = io.discover(tmp_path).found
    assert (found.paths, found.problem, found.part) == ((path,), None, "")
    assert found.facts is not None
    assert (found.facts.kernel, found.facts.acquisition) == ("Br40", "1")
    for volume in (
        io.read(path, threads=1),
        io.read(tmp_path, threads=1),
        found.read(threads=1),
        io.read(found.name, threads=1),
    ):
        assert volume.kind == "hu"
        np.testing.assert_array_equal(volume.voxels, stored)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


def test_written_by_highdicom(tmp_path: Path) -> None:
    """A legacy converted enhanced image, made of slices by another library, gives the volume of the slices."""
    from highdicom.legacy import LegacyConvertedEnhancedCTImage

    stored = values(3)

    def change(data: Any, d: int) -> None:
        data.RescaleIntercept = str(-d)
        data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = "20200101"
        data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = "101112"
        data.PatientBirthDate, data.PatientSex, data.AccessionNumber, data.StudyID = "", "O", "", ""
        data.ReferringPhysicianName, data.Manufacturer, data.SeriesNumber = "", "Maker", 3
        data.ManufacturerModelName, data.SoftwareVersions, data.DeviceSerialNumber = "M", "1", "1"
        data.PositionReferenceIndicator, data.PatientPosition, data.AcquisitionNumber = "", "HFS", 1
        data.BurnedInAnnotation, data.LossyImageCompression, data.PresentationIntentType = (
            "NO",
            "00",
            "FOR PRESENTATION",
        )

    paths = write_series(tmp_path / "slices", stored, AFFINE, change=change)
    slices = [pydicom.dcmread(p) for p in paths]
    made = LegacyConvertedEnhancedCTImage(slices, f"{UID}.50", 9, f"{UID}.50.1", 1)
    (tmp_path / "one").mkdir()
    made.save_as(tmp_path / "one" / "scan.dcm")
    theirs, ours = io.read(tmp_path / "slices"), io.read(tmp_path / "one")
    np.testing.assert_array_equal(ours.voxels, theirs.voxels)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-9)
    assert ours.kind == "hu"


def test_rescaling_of_each_frame(tmp_path: Path) -> None:
    def each(frame: Dataset, k: int) -> None:
        frame.PixelValueTransformationSequence = group(
            RescaleSlope=str(1 + k % 2), RescaleIntercept=str(-10 * k), RescaleType="HU"
        )

    stored = values() // 4
    path = write(tmp_path / "scan", stored, each=each)
    truth = np.stack([s.astype(int) * (1 + k % 2) - 10 * k for k, s in enumerate(stored)])
    np.testing.assert_array_equal(io.read(path).voxels, truth)


def test_padding_is_common_to_all_frames(tmp_path: Path) -> None:
    stored = values()
    stored[:, 0] = -1400
    path = write(tmp_path / "scan", stored, change=lambda data: data.add_new(0x00280120, "SS", -1400))
    volume = io.read(path)
    np.testing.assert_array_equal(volume.valid, stored != -1400)
    assert (volume.voxels[:, 0] == -1024).all()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless], ids=lambda s: s.name)
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (
            lambda p: {"FrameContentSequence": group(TemporalPositionIndex=p + 1)},
            ["temporal position 1", "temporal position 2"],
        ),
        (lambda p: {"FrameContentSequence": group(StackID=str(p + 1))}, ["stack 1", "stack 2"]),
        (lambda p: {"FrameContentSequence": group(FrameAcquisitionNumber=p + 7)}, ["acquisition 7", "acquisition 8"]),
        (
            lambda p: {"CardiacSynchronizationSequence": group(NominalPercentageOfCardiacPhase=(40.0, 75.0)[p])},
            ["phase 40%", "phase 75%"],
        ),
        (
            lambda p: {"CTReconstructionSequence": group(ConvolutionKernel=("Br40", "Br64")[p])},
            ["kernel Br40", "kernel Br64"],
        ),
        (lambda p: {"CTXRayDetailsSequence": group(KVP=("80", "140")[p])}, ["80 kV", "140 kV"]),
    ],
)
def test_volumes_in_one_file_are_split_and_named(syntax: Any, make: Any, names: list[str], tmp_path: Path) -> None:
    both = np.concatenate([values(1), values(2)])
    lps = geometry.LPS_TO_RAS @ AFFINE

    def each(frame: Dataset, k: int) -> None:
        position = lps[:3] @ (k % SHAPE[0], 0, 0, 1)
        frame.PlanePositionSequence = group(ImagePositionPatient=[f"{v:.10g}" for v in position])
        for name, value in make(k // SHAPE[0]).items():
            setattr(frame, name, value)

    path = write(tmp_path / "scan", both, each=each, syntax=syntax)
    found = sorted(io.discover(tmp_path).found, key=lambda f: names.index(f.part))
    assert [f.part for f in found] == names
    for item_, seed in zip(found, (1, 2), strict=True):
        assert item_.paths == (path,)
        np.testing.assert_array_equal(item_.read().voxels, values(seed))
        np.testing.assert_array_equal(io.read(item_.name).voxels, values(seed))
    for place in (path, tmp_path):
        with pytest.raises(NotAScanError, match="holds 2 stacks of slices") as error:
            io.read(place)
        assert all(f"@{name} (6 slices of 10x8)" in str(error.value) for name in names)


def test_one_volume_in_several_files(tmp_path: Path) -> None:
    """Files of a concatenation, or of a scanner that writes a hundred frames a file."""
    stored = values(0, 9)
    for k in range(3):
        affine = geometry.shifted(AFFINE, (3 * k, 0, 0))
        write(tmp_path / f"{k}", stored[3 * k : 3 * k + 3], affine)
    (found,) = io.discover(tmp_path).found
    assert len(found.paths) == 3
    np.testing.assert_array_equal(found.read().voxels, stored)
    np.testing.assert_array_equal(io.read(tmp_path).voxels, stored)


def test_fragments_by_offset_table_and_by_marker(tmp_path: Path) -> None:
    """Frames of several fragments each: told apart by the Basic Offset Table, or where it is empty by the JPEG marker."""
    stored = values()
    for pieces, has_table in ((3, True), (3, False), (1, False)):

        def change(data: Any, pieces: int = pieces, has_table: bool = has_table) -> None:
            frames = list(encaps.generate_frames(data.PixelData, number_of_frames=len(stored)))
            data.PixelData = encaps.encapsulate(frames, fragments_per_frame=pieces, has_bot=has_table)

        path = write(tmp_path / f"{pieces}{has_table}", stored, syntax=JPEGLSLossless, change=change)
        np.testing.assert_array_equal(io.read(path, threads=1).voxels, stored)


def test_missing_and_repeated_frames(tmp_path: Path) -> None:
    stored = values()
    path = write(
        tmp_path / "a" / "scan", stored, AFFINE, order=[0, 1, 2, 4, 5], change=lambda d: setattr(d, "NumberOfFrames", 5)
    )
    with pytest.raises(MissingSlicesError, match=r"at -92\.50 mm"):
        io.read(path)
    (found,) = io.discover(tmp_path / "a").found
    volume = found.read(allow_gaps=True)
    np.testing.assert_array_equal(volume.voxels[[0, 1, 2, 4, 5]], stored[[0, 1, 2, 4, 5]])
    path = write(tmp_path / "b" / "scan", stored, AFFINE, order=[0, 1, 2, 2, 3, 4])
    with pytest.raises(DuplicateSlicesError):
        io.read(path)


def test_localizer_frames_are_left_out(tmp_path: Path) -> None:
    def each(frame: Dataset, k: int) -> None:
        if k == 5:
            frame.CTImageFrameTypeSequence = group(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"])

    np.testing.assert_array_equal(io.read(write(tmp_path / "scan", values(), each=each)).voxels, values()[:5])


def set_frames(number: int) -> Callable[[Any], None]:
    return lambda data: setattr(data, "NumberOfFrames", number)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (set_frames(7), ReadError, "declares 7 frames and describes 6"),
        (set_frames(2_000_000_000), ReadError, "declares 2,000,000,000 frames"),
        (lambda d: setattr(d, "PixelData", d.PixelData[:-40]), TruncatedError, "where 10x8x6 need 960"),
        (lambda d: setattr(d, "Rows", 60000), TruncatedError, "where 10x60000x6 need"),
        (lambda d: delattr(d, "PerFrameFunctionalGroupsSequence"), ReadError, "declares 6 frames and describes 0"),
        (
            lambda d: delattr(d.PerFrameFunctionalGroupsSequence[2], "PlanePositionSequence"),
            NotAScanError,
            "no position in the patient",
        ),
    ],
)
def test_lies(change: Any, error: type[CTFoundryError], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "scan", values(), change=change)
    with pytest.raises(error, match=message):
        io.read(path)
    listed = io.discover(tmp_path)
    if error is NotAScanError:
        assert listed.skipped == {message: 1}
    else:
        (found,) = listed.found
        assert isinstance(found.problem, error)


def test_the_cap_comes_first(tmp_path: Path) -> None:
    def change(data: Any) -> None:
        data.Rows = data.Columns = 65535

    path = write(tmp_path / "scan", values(), change=change)
    with pytest.raises(TooLargeError):
        io.read(path)


def test_garbled_files_give_only_our_errors(tmp_path: Path) -> None:
    """Bytes replaced, and cut at every length."""
    good = write(tmp_path / "scan", values()).read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for k in range(250):
        bad = bytearray(good)
        if k < 150:
            for at in rng.integers(132, len(good) - 960, 3):
                bad[at : at + 4] = rng.choice(
                    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"9\\9\\", bytes(rng.integers(0, 256, 4, "u1"))]
                )
        else:
            del bad[rng.integers(0, len(bad)) :]
        (tmp_path / "scan").write_bytes(bad)
        for work in (lambda: io.read(tmp_path / "scan", cap=1 << 24), lambda: io.discover(tmp_path)):
            try:
                work()
                outcomes.add("fine")
            except CTFoundryError as error:
                outcomes.add("error" if str(tmp_path) in str(error) else f"nameless: {error}")
    assert outcomes == {"fine", "error"}


@pytest.mark.parametrize("marked", [False, True])
def test_sequences_nested_without_end(marked: bool, tmp_path: Path) -> None:
    """Forty sequences within each other: passed over where their lengths are known, refused where they must be followed down."""

    def nested() -> Items:
        inner = item(CodeValue="1")
        for _ in range(40):
            inner = item(DerivationImageSequence=Items([inner]))
            inner["DerivationImageSequence"].is_undefined_length = marked
            inner.is_undefined_length_sequence_item = marked
        return Items([inner])

    def each(frame: Dataset, k: int) -> None:
        frame.DerivationImageSequence = nested()
        frame["DerivationImageSequence"].is_undefined_length = marked

    path = write(tmp_path / "scan", values(), each=each)
    if marked:
        with pytest.raises(ReadError, match="more than 32 sequences within each other"):
            io.read(path)
    else:
        np.testing.assert_array_equal(io.read(path).voxels, values())
