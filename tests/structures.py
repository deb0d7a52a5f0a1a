"""Image series, label maps and hand-made DICOM objects for the tests of SEG and RTSTRUCT; no code of the readers under test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from ctfoundry import geometry
from ctfoundry.io.dicom_write import UID, write_series
from ctfoundry.volume import Volume

FRAME = f"{UID}.77"
CODES = [
    "".join(letters) for order in itertools.permutations(("RL", "AP", "IS")) for letters in itertools.product(*order)
]
"""All 48 orientations."""


def series(folder: Path, affine: np.ndarray, shape: tuple[int, int, int], **more: Any) -> Path:
    """A CT series on a grid, with a frame of reference; its numbers, a ramp from air to water and again, do not matter."""

    def change(data: Dataset, _: int) -> None:
        data.FrameOfReferenceUID = FRAME

    start = 100 * int(more.get("series", "1"))  # no two series alike
    stored = ((np.arange(np.prod(shape)) + start) % 1000 - 1000).astype(np.int16).reshape(shape)
    write_series(folder, stored, affine, change=change, **more)
    return folder


def blobs(shape: tuple[int, int, int] = (7, 10, 12)) -> np.ndarray:
    """Labels 1, 2 and 5 without any symmetry, with a hole and a piece that touches by a corner."""
    labels = np.zeros(shape, np.uint8)
    labels[1:6, 1:7, 2:8] = 1
    labels[2:4, 3:5, 4:6] = 0
    labels[1:4, 7, 8] = labels[2, 8, 9] = 1
    labels[3:5, 7:9, 1:4] = 2
    labels[5, 0, 11] = 5
    return labels


def volume(affine: np.ndarray, labels: np.ndarray | None = None) -> Volume:
    """A label map with names."""
    names = {1: "liver", 2: "kidney_left", 5: "thing"}
    return Volume(blobs() if labels is None else labels, affine, "label", names=names)


def turned(labels: Volume, code_of: int) -> Volume:
    """The same labels with axes in another order and direction: the array is moved by hand, its affine with it."""
    order = list(itertools.permutations(range(3)))[code_of % 6]
    flips = [bool(code_of >> bit & 1) for bit in range(3)]
    affine = np.array(labels.affine)[:, [*order, 3]]
    array = labels.voxels.transpose(order)
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
            array = np.flip(array, axis)
    return Volume(np.ascontiguousarray(array), affine, "label", names=labels.names)


def places(array: np.ndarray, affine: np.ndarray, label: int) -> np.ndarray:
    """World millimetres of the voxels of a label, sorted, to 0.001 mm."""
    index = np.argwhere(array == label)
    world = np.round(index @ affine[:3, :3].T + affine[:3, 3], 3) + 0.0
    return world[np.lexsort(world.T)]


def same_places(a: Volume, b: Volume, pairs: Sequence[tuple[int, int]] = ((1, 1), (2, 2), (5, 5))) -> None:
    """Voxel for voxel the same structures in the patient; centroids to 0.01 mm."""
    for of_a, of_b in pairs:
        first, second = places(a.voxels, a.affine, of_a), places(b.voxels, b.affine, of_b)
        assert first.shape == second.shape != (0, 3)
        np.testing.assert_allclose(first.mean(axis=0), second.mean(axis=0), atol=0.01)
        distance = np.abs(first[:, None] - second[None]).max(axis=2).min(axis=1)
        assert distance.max() < 0.01


def rotation(degrees: float = 20.0) -> np.ndarray:
    """About an axis that is none of the body's."""
    axis = np.array([0.3, 0.8, 0.5])
    axis = axis / np.linalg.norm(axis)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def oblique(code: str = "SPL") -> np.ndarray:
    return geometry.make_affine((2.5, 0.8, 0.9), code, (30.0, 40.0, -100.0), rotation())


def _sequence(*items: Dataset) -> pydicom.Sequence:
    return pydicom.Sequence(items)


def _set(**values: Any) -> Dataset:
    data = Dataset()
    for name, value in values.items():
        setattr(data, name, value)
    return data


def seg_file(
    path: Path,
    frames: Sequence[tuple[Sequence[float], int, np.ndarray]],
    *,
    kind: str = "BINARY",
    names: Sequence[tuple[int, str]] = ((1, "liver"), (2, "spleen")),
    cosines: Sequence[float] = (1, 0, 0, 0, 1, 0),
    spacing: Sequence[float] = (0.8, 0.9),
    between: float | None = 2.5,
    syntax: str = ExplicitVRLittleEndian,
    pixels: bytes | None = None,
    bits: int | None = None,
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """A SEG by hand: (image position LPS, segment, (rows, columns) array) for each frame, in the order given."""
    data: Any = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66." + ("7" if kind == "LABELMAP" else "4")
    data.SOPInstanceUID, data.SeriesInstanceUID, data.StudyInstanceUID = f"{UID}.5.1", f"{UID}.5", f"{UID}.9"
    data.Modality, data.PatientID, data.PatientName, data.FrameOfReferenceUID = "SEG", "P-1", "Made^Up", FRAME
    data.ReferencedSeriesSequence = _sequence(_set(SeriesInstanceUID=f"{UID}.1"))
    data.SegmentationType = kind
    if kind == "FRACTIONAL":
        data.SegmentationFractionalType, data.MaximumFractionalValue = "PROBABILITY", 200
    data.SegmentSequence = _sequence(*(_set(SegmentNumber=k, SegmentLabel=name) for k, name in names))
    shape = np.shape(frames[0][2])
    data.NumberOfFrames, data.Rows, data.Columns, data.SamplesPerPixel = len(frames), *shape, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = bits or (1 if kind == "BINARY" else 8)
    data.HighBit, data.PixelRepresentation = data.BitsAllocated - 1, 0
    measures = _set(PixelSpacing=list(spacing), SliceThickness=2.5)
    if between is not None:
        measures.SpacingBetweenSlices = between
    data.SharedFunctionalGroupsSequence = _sequence(
        _set(
            PlaneOrientationSequence=_sequence(_set(ImageOrientationPatient=list(cosines))),
            PixelMeasuresSequence=_sequence(measures),
        )
    )
    groups = []
    for position, segment, _ in frames:
        item = _set(PlanePositionSequence=_sequence(_set(ImagePositionPatient=list(position))))
        if kind != "LABELMAP":
            item.SegmentIdentificationSequence = _sequence(_set(ReferencedSegmentNumber=segment))
        groups.append(item)
    data.PerFrameFunctionalGroupsSequence = _sequence(*groups)
    stacked = np.stack([array for _, _, array in frames])
    if pixels is None:
        if data.BitsAllocated == 1:
            pixels = np.packbits(stacked.astype(bool).ravel(), bitorder="little").tobytes()
        else:
            pixels = stacked.astype(f"<u{data.BitsAllocated // 8}").tobytes()
        pixels += b"\0" * (len(pixels) % 2)
    data.PixelData = pixels
    data["PixelData"].VR = "OB"
    if syntax not in pydicom.uid.UncompressedTransferSyntaxes:
        data["PixelData"].is_undefined_length = True
    if change is not None:
        change(data)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def rtstruct_file(
    path: Path,
    structures: Sequence[tuple[int, str, Sequence[tuple[str, np.ndarray]]]],
    *,
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """An RTSTRUCT by hand: (number, name, [(geometric type, (n, 3) points LPS)]) for each structure."""
    data: Any = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", f"{UID}.6.1"
    data.SeriesInstanceUID, data.StudyInstanceUID, data.PatientID = f"{UID}.6", f"{UID}.9", "P-1"
    data.Modality, data.StructureSetLabel = "RTSTRUCT", "BY HAND"
    series = _set(SeriesInstanceUID=f"{UID}.1")
    study = _set(RTReferencedSeriesSequence=_sequence(series))
    data.ReferencedFrameOfReferenceSequence = _sequence(
        _set(FrameOfReferenceUID=FRAME, RTReferencedStudySequence=_sequence(study))
    )
    data.StructureSetROISequence = _sequence(*(_set(ROINumber=k, ROIName=name) for k, name, _ in structures))
    data.ROIContourSequence = _sequence(
        *(
            _set(
                ReferencedROINumber=k,
                ContourSequence=_sequence(
                    *(
                        _set(
                            ContourGeometricType=kind,
                            NumberOfContourPoints=len(points),
                            ContourData=[f"{v:.8g}" for v in np.ravel(points)],
                        )
                        for kind, points in outlines
                    )
                ),
            )
            for k, _, outlines in structures
        )
    )
    if change is not None:
        change(data)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def enhanced_file(path: Path, affine: np.ndarray, shape: tuple[int, int, int]) -> Path:
    """An enhanced CT of air: all slices in one file."""
    lps, steps = np.diag([-1, -1, 1, 1]) @ affine, np.linalg.norm(affine[:3, :3], axis=0)
    data: Any = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2.1", f"{UID}.8.1"
    data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = f"{UID}.8", f"{UID}.9", FRAME
    data.Modality, data.PatientID, data.ImageType = "CT", "P-1", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.NumberOfFrames, data.Rows, data.Columns = shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.SharedFunctionalGroupsSequence = _sequence(
        _set(
            PlaneOrientationSequence=_sequence(
                _set(ImageOrientationPatient=[*(lps[:3, 2] / steps[2]), *(lps[:3, 1] / steps[1])])
            ),
            PixelMeasuresSequence=_sequence(_set(PixelSpacing=list(steps[1:]), SliceThickness=steps[0])),
            PixelValueTransformationSequence=_sequence(_set(RescaleSlope=1, RescaleIntercept=0, RescaleType="HU")),
        )
    )
    positions = [np.round(lps[:3] @ (k, 0, 0, 1), 6).tolist() for k in range(shape[0])]
    data.PerFrameFunctionalGroupsSequence = _sequence(
        *(_set(PlanePositionSequence=_sequence(_set(ImagePositionPatient=p))) for p in positions)
    )
    data.PixelData = np.full(shape, -1000, np.int16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path
