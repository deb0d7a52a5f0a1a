"""DICOM SEG in and out: every voxel in its place, whatever the orientation, the order of frames and the coding."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

from ctfoundry import geometry, io
from ctfoundry.errors import (
    CTFoundryError,
    GeometryError,
    IrregularSpacingError,
    NotAScanError,
    ReadError,
    TooLargeError,
    TruncatedError,
    UsageError,
)
from ctfoundry.geometry import Grid
from ctfoundry.io import seg_codes
from ctfoundry.io.dicom_seg import read_seg, read_seg_masks, seg_header
from ctfoundry.io.dicom_seg_write import write_seg
from ctfoundry.io.overlaps import OverlapError
from ctfoundry.volume import Volume
from structures import CODES, blobs, oblique, same_places, seg_file, series, turned, volume

PAIRS = {"BINARY": ((1, 1), (2, 2), (5, 3)), "LABELMAP": ((1, 1), (2, 2), (5, 5))}
AFFINE = geometry.make_affine((2.5, 0.8, 0.9), "SPL", (30.0, 40.0, -100.0))


def highdicom_volume(path: Path) -> Volume:
    """What highdicom's own reader makes of a SEG."""
    import highdicom

    loaded = highdicom.seg.segread(path).get_volume(combine_segments=True)
    return Volume(loaded.array.astype(np.uint8), geometry.LPS_TO_RAS @ loaded.affine, "label")


def check_out_and_in(folder: Path, labels: Volume, source: Path, kind: Any = "BINARY") -> Path:
    path = folder / "seg.dcm"
    numbers = write_seg(labels, path, source, kind=kind)
    assert tuple(numbers.items()) == PAIRS[kind]
    same_places(labels, read_seg(path), PAIRS[kind])
    same_places(labels, highdicom_volume(path), PAIRS[kind])
    onto = read_seg(path, onto=labels.grid)
    expected = labels.voxels.copy()
    for old, new in PAIRS[kind]:
        expected[labels.voxels == old] = new
    np.testing.assert_array_equal(onto.voxels, expected)
    assert onto.names == {new: labels.names[old] for old, new in PAIRS[kind]}  # type: ignore[index]
    return path


@pytest.mark.parametrize("code", CODES)
def test_48_orientations(code: str, tmp_path: Path) -> None:
    """The series runs in every orientation, and the labels come in another axis order and direction."""
    affine = geometry.make_affine((2.5, 0.8, 0.9), code, (30.0, 40.0, -100.0))
    source = series(tmp_path / "ct", affine, blobs().shape)
    k = CODES.index(code)
    labels = turned(volume(affine), (7 * k) % 48)
    check_out_and_in(tmp_path, labels, source, "LABELMAP" if k % 2 else "BINARY")


@pytest.mark.parametrize("code", ["SPL", "IAR", "PLS"])
def test_oblique(code: str, tmp_path: Path) -> None:
    affine = oblique(code)
    check_out_and_in(tmp_path, turned(volume(affine), 11), series(tmp_path / "ct", affine, blobs().shape))


def tilted(degrees: float = 15.0) -> np.ndarray:
    """Slices that shift down the table as they advance."""
    affine = np.array(AFFINE)
    affine[:3, 0] += affine[:3, 1] / 0.8 * 2.5 * np.tan(np.radians(degrees))
    return affine


def test_tilted_series_takes_labels_of_the_untilted_grid(tmp_path: Path) -> None:
    source = series(tmp_path / "ct", tilted(), blobs().shape)
    scan = io.read(source)
    assert scan.shape != blobs().shape  # wider: the tilt was undone
    labels = np.zeros(scan.shape, np.uint8)
    labels[:7, 2:12, 1:][:, :10, :11] = blobs()[:, :, :11]
    labels[5, 2, 11] = 5
    check_out_and_in(tmp_path, volume(scan.affine, labels), source)


def test_tilted_seg_comes_onto_the_untilted_grid(tmp_path: Path) -> None:
    """Frames that lie where the tilted slices lie: each voxel keeps its place to half a pixel within its slice."""
    affine = tilted()
    lps = geometry.LPS_TO_RAS @ affine
    array = blobs()
    frames = [(np.round(lps[:3] @ (k, 0, 0, 1), 6).tolist(), 1, array[k] == 1) for k in range(1, 6)]
    path = seg_file(tmp_path / "seg.dcm", frames, cosines=(1, 0, 0, 0, 1, 0), between=2.5)
    alone = read_seg(path)
    assert "15.0 degrees" in alone.notes[0]
    same_places(volume(affine), alone, ((1, 1),))
    grid = io.read(series(tmp_path / "ct", affine, array.shape)).grid
    onto = read_seg(path, onto=grid)
    assert any("nearest" in note for note in onto.notes)
    for k in range(1, 6):  # exactly the shift of each slice, rounded to pixels
        shift = (lps[:3] @ (k, 0, 0, 1) - (geometry.LPS_TO_RAS @ grid.affine)[:3] @ (k, 0, 0, 1)) / 0.8
        rows = int(np.rint(shift[1]))
        np.testing.assert_array_equal(onto.voxels[k][rows : rows + 10], array[k] == 1)


def test_negative_cosines_by_hand(tmp_path: Path) -> None:
    """Rows run to the right, columns to the front: two marked pixels, and their places worked out on paper."""
    first, second = np.zeros((4, 16), bool), np.zeros((4, 16), bool)
    first[1, 3] = second[2, 5] = True
    frames = [((10, 20, 5), 2, second), ((10, 20, 0), 1, first)]
    labels = read_seg(seg_file(tmp_path / "seg.dcm", frames, cosines=(-1, 0, 0, 0, -1, 0), between=5.0))
    # LPS: 10 - 3 * 0.9, 20 - 1 * 0.8, 0 for the first; RAS turns the first two signs.
    np.testing.assert_allclose(labels.world(np.argwhere(labels.voxels == 1)[0]), (-7.3, -19.2, 0.0), atol=1e-9)
    np.testing.assert_allclose(labels.world(np.argwhere(labels.voxels == 2)[0]), (-5.5, -18.4, 5.0), atol=1e-9)
    assert (labels.kind, labels.names) == ("label", {1: "liver", 2: "spleen"})


# Frames ----------------------------------------------------------------------------------------------------------------


def dots(shape: tuple[int, int] = (8, 16), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.3


def test_frames_in_any_order_fill_the_grid_that_they_imply(tmp_path: Path) -> None:
    a, b = dots(seed=1), dots(seed=2)
    b &= ~a
    frames = [((0, 0, 10), 1, a), ((0, 0, 2.5), 2, b), ((0, 0, 2.5), 1, a), ((0, 0, 0), 1, a)]
    labels = read_seg(seg_file(tmp_path / "seg.dcm", frames))
    assert labels.shape == (5, 8, 16)
    np.testing.assert_array_equal(labels.voxels[1], a + 2 * b)
    np.testing.assert_array_equal(labels.voxels[2:4], 0)
    np.testing.assert_array_equal(labels.voxels[4], a)
    grid = Grid((9, 8, 16), geometry.shifted(labels.affine, (-3, 0, 0)))
    onto = read_seg(tmp_path / "seg.dcm", onto=grid)
    np.testing.assert_array_equal(onto.voxels[3:8], labels.voxels)
    assert not onto.voxels[:3].any()
    assert not onto.voxels[8:].any()
    less = read_seg(tmp_path / "seg.dcm", onto=Grid((3, 8, 16), labels.affine))
    np.testing.assert_array_equal(less.voxels, labels.voxels[:3])
    assert less.notes == (f"{int(a.sum()):,} labelled voxels lie outside the image's grid",)


@pytest.mark.parametrize("between", [None, 7.0])
def test_slice_distance_is_inferred_where_none_is_true(between: float | None, tmp_path: Path) -> None:
    frames = [((0, 0, z), 1, dots()) for z in (0.0, 4.0, 10.0)]
    labels = read_seg(seg_file(tmp_path / "seg.dcm", frames, between=between))
    assert labels.spacing[0] == pytest.approx(2.0)
    assert labels.shape[0] == 6
    assert "2.000 mm inferred" in labels.notes[0]


def test_resampled_class_by_class(tmp_path: Path) -> None:
    array = np.zeros((8, 16), bool)
    array[2:6, 4:12] = True
    path = seg_file(tmp_path / "seg.dcm", [((0, 0, 2.5 * k), 1, array) for k in range(4)])
    labels = read_seg(path)
    fine = Grid((4, 16, 32), geometry.rescaled(labels.affine, (1, 0.5, 0.5), (0, -0.25, -0.25)))
    onto = read_seg(path, onto=fine)
    np.testing.assert_array_equal(onto.voxels, labels.voxels.repeat(2, axis=1).repeat(2, axis=2))
    assert any("class by class" in note for note in onto.notes)
    assert not any("outside" in note for note in onto.notes)
    less = read_seg(path, onto=Grid((2, 8, 32), fine.affine))  # two of four slices, rows 0 to 3 of 8
    assert f"{2 * 4 * 8 + 2 * 2 * 8} labelled voxels lie outside the image's grid" in less.notes
    turned_grid = Grid(
        (4, 16, 32), geometry.make_affine((2.5, 0.8, 0.9), "SPL", rotation=oblique()[:3, :3] / (2.5, 0.8, 0.9))
    )
    with pytest.raises(GeometryError, match="turned against each other"):
        read_seg(path, onto=turned_grid)


@pytest.mark.parametrize("shape", [(5, 7), (8, 16), (3, 3)])
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_bits_of_any_size_and_coding(shape: tuple[int, int], syntax: Any, undefined: bool, tmp_path: Path) -> None:
    """Frames whose bits begin within a byte, sequences of defined and undefined length."""

    def change(data: Dataset) -> None:
        if undefined:
            data["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
            for item in data.PerFrameFunctionalGroupsSequence:
                item.is_undefined_length_sequence_item = True
                item["PlanePositionSequence"].is_undefined_length = True
                item.PlanePositionSequence[0].is_undefined_length_sequence_item = True

    arrays = [dots(shape, seed) for seed in range(5)]
    frames = [((0, 0, 2.5 * k), 1, array) for k, array in enumerate(arrays)]
    more = {} if syntax is None else {"syntax": str(syntax)}
    labels = read_seg(seg_file(tmp_path / "seg.dcm", frames, change=change, **more))
    np.testing.assert_array_equal(labels.voxels, np.stack(arrays))


@pytest.mark.parametrize("bits", [8, 16])
def test_run_lengths(bits: int, tmp_path: Path) -> None:
    from pydicom.pixels.encoders import RLELosslessEncoder

    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 3, (8, 16)).astype(f"<u{bits // 8}") * (300 if bits == 16 else 1) for _ in range(3)]
    packed = [
        RLELosslessEncoder.encode(
            a, rows=8, columns=16, samples_per_pixel=1, bits_allocated=bits, bits_stored=bits,
            pixel_representation=0, photometric_interpretation="MONOCHROME2", number_of_frames=1,
        )
        for a in arrays
    ]  # fmt: skip
    names = [(int(k), f"segment {k}") for k in np.unique(arrays) if k]
    frames = [((0, 0, 2.5 * k), 0, array) for k, array in enumerate(arrays)]
    path = seg_file(
        tmp_path / "seg.dcm", frames, kind="LABELMAP", bits=bits, names=names, syntax=RLELossless,
        pixels=encapsulate(packed),
    )  # fmt: skip
    labels = read_seg(path)
    np.testing.assert_array_equal(labels.voxels, np.stack(arrays))
    assert labels.voxels.dtype == (np.uint8 if bits == 8 else np.uint16)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(TruncatedError):
        read_seg(path)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_deflated_frames(kind: str, tmp_path: Path) -> None:
    arrays = [dots(seed=seed) for seed in range(3)]

    def deflate(data: bytes) -> bytes:
        packer = zlib.compressobj(wbits=-15)
        out = packer.compress(data) + packer.flush()
        return out + b"\0" * (len(out) % 2)

    raw = [np.packbits(a, bitorder="little") if kind == "BINARY" else a.astype(np.uint8) for a in arrays]
    path = seg_file(
        tmp_path / "seg.dcm", [((0, 0, 2.5 * k), 1, a) for k, a in enumerate(arrays)], kind=kind,
        syntax=JPEGLSLossless, pixels=encapsulate([deflate(r.tobytes()) for r in raw]),
    )  # fmt: skip
    # pydicom does not know this transfer syntax yet, so it stands in for another of its length.
    path.write_bytes(path.read_bytes().replace(JPEGLSLossless.encode(), b"1.2.840.10008.1.2.8.1\0", 1))
    np.testing.assert_array_equal(read_seg(path).voxels, np.stack(arrays))


def test_jpeg_ls_by_a_decoder_in_a_process_of_its_own(tmp_path: Path) -> None:
    from pydicom.pixels.encoders import JPEGLSLosslessEncoder

    arrays = [np.random.default_rng(seed).integers(0, 3, (16, 16)).astype(np.uint8) for seed in range(2)]
    packed = [
        JPEGLSLosslessEncoder.encode(
            a, rows=16, columns=16, samples_per_pixel=1, bits_allocated=8, bits_stored=8, number_of_frames=1,
            pixel_representation=0, photometric_interpretation="MONOCHROME2",
        )
        for a in arrays
    ]  # fmt: skip
    path = seg_file(
        tmp_path / "seg.dcm", [((0, 0, 2.5 * k), 0, a) for k, a in enumerate(arrays)], kind="LABELMAP",
        syntax=JPEGLSLossless, pixels=encapsulate(packed),
    )  # fmt: skip
    np.testing.assert_array_equal(read_seg(path).voxels, np.stack(arrays))


def test_fractional_needs_a_threshold(tmp_path: Path) -> None:
    shares = np.arange(128, dtype=np.uint8).reshape(8, 16)
    path = seg_file(tmp_path / "seg.dcm", [((0, 0, 0), 1, shares)], kind="FRACTIONAL")
    with pytest.raises(NotAScanError, match=r"FRACTIONAL.*0 to 200.*probability.*\n.*threshold=0.5"):
        read_seg(path)
    labels = read_seg(path, threshold=0.5)
    np.testing.assert_array_equal(labels.voxels[0], shares >= 100)  # a share of the stated maximum, 200
    mask = next(iter(read_seg_masks(path, threshold=0.5).values()))
    np.testing.assert_array_equal(mask.voxels, labels.voxels)
    assert labels.notes == mask.notes == ("fractional segments cut at a share of 0.5",)
    with pytest.raises(UsageError, match=r"not 1\.5"):
        read_seg(path, threshold=1.5)


def test_one_slice_takes_its_thickness_from_the_header(tmp_path: Path) -> None:
    path = seg_file(tmp_path / "seg.dcm", [((0, 0, 3), 1, dots())], between=None)
    assert read_seg(path).spacing[0] == 2.5


# Overlaps --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def overlapping(tmp_path: Path) -> Path:
    big, small = np.zeros((8, 16), bool), np.zeros((8, 16), bool)
    big[1:7, 1:15], small[2:5, 3:6] = True, True
    return seg_file(tmp_path / "seg.dcm", [((0, 0, 0), 2, small), ((0, 0, 0), 1, big), ((0, 0, 2.5), 1, big)])


def test_overlaps_are_named(overlapping: Path) -> None:
    with pytest.raises(OverlapError, match=r"liver and spleen in 9 voxels\n.*names="):
        read_seg(overlapping)


@pytest.mark.parametrize(("overlap", "spleen"), [("smallest", 9), (["spleen"], 9), ([1, 2], 0), (["liver"], 0)])
def test_overlaps_by_rule(overlap: Any, spleen: int, overlapping: Path) -> None:
    labels = read_seg(overlapping, overlap=overlap)
    assert int((labels.voxels == 2).sum()) == spleen
    assert int((labels.voxels > 0).sum()) == 2 * 84
    assert "liver and spleen in 9 voxels" in labels.notes[-1]


def test_masks_and_choice_of_segments(overlapping: Path) -> None:
    masks = read_seg_masks(overlapping)
    assert {name: int((m.voxels > 0).sum()) for name, m in masks.items()} == {"liver": 168, "spleen": 9}
    assert masks["spleen"].names == {2: "spleen"}
    only = read_seg(overlapping, names=["spleen"])
    assert (only.names, int((only.voxels == 2).sum())) == ({2: "spleen"}, 9)
    with pytest.raises(UsageError, match="holds 0 structures 'heart'; it has 1 liver, 2 spleen"):
        read_seg(overlapping, names=["heart"])


def test_labels_that_stand_twice_get_their_number(tmp_path: Path) -> None:
    path = seg_file(tmp_path / "seg.dcm", [((0, 0, 0), 1, dots())], names=((1, "node"), (2, "node"), (3, "")))
    assert read_seg(path).names == {1: "node 1", 2: "node 2", 3: "segment 3"}


# Bad input -------------------------------------------------------------------------------------------------------------


def drop(name: str) -> Any:
    return lambda data: data.pop(name)


def put(**values: Any) -> Any:
    def change(data: Dataset) -> None:
        for name, value in values.items():
            setattr(data, name, value)

    return change


def position(*values: float) -> Any:
    def change(data: Dataset) -> None:
        data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = list(values)

    return change


BAD = {
    "pixels are short": (put(PixelData=b"\0" * 10), TruncatedError, "10 bytes of pixels, where its frames need 48"),
    "no pixels": (drop("PixelData"), TruncatedError, "no pixels"),
    "frames lie": (put(NumberOfFrames=7), ReadError, "declares 7 frames and lists 3"),
    "many frames": (put(NumberOfFrames=2**31 - 1), ReadError, "lists 3"),
    "no frames": (drop("PerFrameFunctionalGroupsSequence"), NotAScanError, "of no frame where it lies"),
    "no segments": (drop("SegmentSequence"), ReadError, "describes no segment"),
    "no type": (drop("SegmentationType"), ReadError, "segmentation type 'nothing'"),
    "no rows": (drop("Rows"), ReadError, "how many frames of which size"),
    "huge": (put(Rows=65535, Columns=65535), TooLargeError, "over the cap"),
    "far": (position(0, 0, 2.5e9), TooLargeError, "over the cap"),
    "nan": (position(0, 0, float("nan")), GeometryError, "image position of .*nan"),
    "irregular": (position(0, 0, 1.137), IrregularSpacingError, "no multiples of one slice distance"),
    "beside": (position(0, 3, 10), GeometryError, "beside the line|sideways"),
    "bits": (put(BitsAllocated=32), ReadError, "BINARY with 32 bits"),
    "no orientation": (drop("SharedFunctionalGroupsSequence"), GeometryError, "pixel spacing of nothing"),
    "class": (put(SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), NotAScanError, "is no DICOM segmentation"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    change, error, words = BAD[name]
    frames = [((0, 0, 2.5 * k), 1, dots()) for k in range(3)]
    path = seg_file(tmp_path / "seg.dcm", frames, change=change)
    with pytest.raises(error, match=words) as caught:
        read_seg(path)
    assert str(path) in str(caught.value)


def test_frames_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = seg_file(tmp_path / "a.dcm", [((0, 0, 0), 9, dots())])
    with pytest.raises(ReadError, match="segment 9, which it does not describe"):
        read_seg(path)
    path = seg_file(tmp_path / "b.dcm", [((0, 0, 0), 1, dots()), ((0, 0, 0), 1, dots())])
    with pytest.raises(ReadError, match="2 frames of liver in slice 0"):
        read_seg(path)
    path = seg_file(tmp_path / "c.dcm", [((0, 0, 0), 0, np.full((8, 16), 7))], kind="LABELMAP")
    with pytest.raises(ReadError, match=r"the numbers \[7\]"):
        read_seg(path)
    with pytest.raises(ReadError, match="not a DICOM file"):
        read_seg(Path(__file__))
    with pytest.raises(ReadError, match="No such file"):
        read_seg(tmp_path / "none.dcm")


def test_cap_and_deflate_bomb(tmp_path: Path) -> None:
    frames = [((0, 0, 2.5 * k), 1, dots()) for k in range(3)]
    path = seg_file(tmp_path / "seg.dcm", frames)
    with pytest.raises(TooLargeError, match="over the cap"):
        read_seg(path, cap=300)
    with pytest.raises(TooLargeError, match="over the cap"):
        read_seg(path, cap=500, onto=Grid((5, 8, 16), AFFINE))
    assert len(read_seg_masks(path, cap=1000)) == 2
    with pytest.raises(TooLargeError, match="over the cap"):
        read_seg_masks(path, cap=700)
    bomb = seg_file(
        tmp_path / "bomb.dcm", frames, syntax=str(DeflatedExplicitVRLittleEndian), pixels=b"\0" * (64 << 20)
    )
    with pytest.raises(TooLargeError, match="swell"):
        read_seg(bomb, cap=1 << 20)


def test_damaged_bytes_raise_only_our_errors(tmp_path: Path) -> None:
    path = seg_file(tmp_path / "seg.dcm", [((0, 0, 2.5 * k), 1 + k % 2, dots(seed=k)) for k in range(4)])
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for k in range(150):
        data = bytearray(whole)
        if k % 3 == 0:
            data = data[: rng.integers(1, len(whole))]
        else:
            for at in rng.integers(132, len(whole), rng.integers(1, 6)):
                data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            outcomes.add(read_seg(path, cap=1 << 24, overlap="smallest").kind)
        except CTFoundryError as error:
            outcomes.add(type(error).__name__)
    assert {"label", "ReadError", "TruncatedError"} <= outcomes


# Out -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Dataset]:
    source = series(tmp_path / "ct", AFFINE, blobs().shape)
    write_seg(volume(AFFINE), tmp_path / "seg.dcm", source)
    return source, pydicom.dcmread(tmp_path / "seg.dcm")


def test_references_and_patient_are_those_of_the_source(written: tuple[Path, Dataset], tmp_path: Path) -> None:
    source, data = written
    slices = [pydicom.dcmread(p) for p in sorted(source.iterdir())]
    assert data.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert (data.PatientID, data.StudyInstanceUID) == (slices[0].PatientID, slices[0].StudyInstanceUID)
    assert data.SeriesInstanceUID != slices[0].SeriesInstanceUID
    header = seg_header(tmp_path / "seg.dcm")
    assert header.references.series == (str(slices[0].SeriesInstanceUID),)
    assert set(header.references.instances) == {str(s.SOPInstanceUID) for s in slices}
    by_uid = {s.SOPInstanceUID: s for s in slices}
    for frame in data.PerFrameFunctionalGroupsSequence:
        of = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        here = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(np.array(here, float), np.array(by_uid[of].ImagePositionPatient, float), atol=1e-4)
    assert str(tmp_path).encode() not in (tmp_path / "seg.dcm").read_bytes()


def test_codes(written: tuple[Path, Dataset]) -> None:
    liver, kidney, thing = written[1].SegmentSequence
    assert [s.SegmentLabel for s in (liver, kidney, thing)] == ["liver", "kidney_left", "thing"]
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == codes.SCT.Liver.value == "10200004"
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert thing.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"


def test_every_code_of_the_table_is_in_the_dictionary() -> None:
    for name in seg_codes.ORGANS:
        found = seg_codes.meaning(name)
        assert found.type.scheme_designator == "SCT"
        assert found.type.meaning != "Tissue"
    assert seg_codes.meaning("rib_right_7").side == codes.SCT.Right
    assert seg_codes.meaning("rib_right_7").type == codes.SCT.Rib
    assert seg_codes.meaning("vertebrae_T12").type.value == "23215003"
    assert seg_codes.meaning("lung_upper_lobe_left").side == codes.SCT.Left


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: geometry.shifted(a, (0, 0.5, 0)), "first voxel lies 0.40 mm away"),
        (lambda a: geometry.rescaled(a, (1, 1.1, 1), (0, 0, 0)), "spacing 2.5x0.88x0.9 instead of 2.5x0.8x0.9"),
        (lambda a: geometry.shifted(a, (1, 0, 0)), r"begins at voxel \(1, 0, 0\)"),
        (lambda a: oblique(), "turned by"),
    ],
)
def test_another_grid_is_an_error_that_names_the_difference(change: Any, words: str, tmp_path: Path) -> None:
    source = series(tmp_path / "ct", AFFINE, blobs().shape)
    target = tmp_path / "seg.dcm"
    target.write_bytes(b"what was there")
    with pytest.raises(GeometryError, match=words):
        write_seg(volume(change(AFFINE)), target, source)
    with pytest.raises(GeometryError, match="6x10x12 voxels instead of 7x10x12"):
        write_seg(volume(AFFINE, blobs()[:6]), target, source)
    assert target.read_bytes() == b"what was there"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ct", "seg.dcm"]


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = series(tmp_path / "ct", AFFINE, blobs().shape)
    target = tmp_path / "seg.dcm"
    with pytest.raises(UsageError, match="not kind 'hu'"):
        write_seg(io.read(source), target, source)
    with pytest.raises(UsageError, match="empty and names nothing"):
        write_seg(Volume(0 * blobs(), AFFINE, "label"), target, source)
    with pytest.raises(ReadError, match="is not a folder"):
        write_seg(volume(AFFINE), target, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAScanError, match="holds no DICOM CT series"):
        write_seg(volume(AFFINE), target, tmp_path / "empty")
    files = sorted(source.iterdir())
    write_seg(volume(AFFINE), target, files)  # files in any order do, too
    data = pydicom.dcmread(files[0])
    del data.FrameOfReferenceUID
    data.save_as(files[0])
    with pytest.raises(ReadError, match="names no frame of reference"):
        write_seg(volume(AFFINE), target, source)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UsageError, match=r"needs highdicom\n.*pip install 'ctfoundry\[seg\]'"):
        write_seg(volume(AFFINE), target, source)
