"""RT structure sets out: the outlines of a label map, in the planes of the image's slices (DICOM PS3.3 A.19)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ctfoundry import files, geometry
from ctfoundry.errors import UsageError
from ctfoundry.geometry import Grid
from ctfoundry.io import contours, objects
from ctfoundry.io.dicom_seg_write import new_uid, source_headers, version
from ctfoundry.io.references import Source, names_for, onto_source, source_of
from ctfoundry.io.seg_codes import colour
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

_CONTOUR_DATA = 0x30060050
_DECIMALS = 5
"""Of a millimetre, in written coordinates."""


def write_rtstruct(
    labels: Volume,
    path: str | os.PathLike[str],
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    label: str = "ctfoundry",
    made: Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"] = "AUTOMATIC",
) -> dict[int, str]:
    """Write a label map as a DICOM RTSTRUCT, whole or not at all.

    Outlines run halfway between voxel centres, one for each connected region of a slice, holes joined by keyhole channels
    (`contours.trace`), in the planes of the image's slices. `read_rtstruct` gives back exactly these voxels.

    Parameters
    ----------
    labels : on the grid of the image series as `io.read` gives it, in any axis order and direction. Where a gantry tilt was
        undone that grid keeps the planes of the slices, so outlines refer to them as well.
    path : the file.
    source : the image series: a folder with one, ``FOLDER#UID``, or its files. Patient, study and frame of reference are
        copied from its headers; nothing of paths is written.
    label : Structure Set Label, at most 16 characters.
    made : how the labels were made.

    Returns
    -------
    dict : ROI number (the label) to name. Labels that are named and do not occur are listed without outlines.

    Raises
    ------
    GeometryError : the labels' grid is not that of the series; the difference is named.
    UsageError : no label map, or one that names and holds nothing.
    """
    target = Path(path)
    if len(label) > 16:
        raise UsageError(f"the structure set's label {label!r} is longer than 16 characters")
    series = source_of(source)
    array = onto_source(labels, series.grid, target)
    names = names_for(labels)
    headers = source_headers(series)
    data = _frame(headers[0], label)
    images = _images(headers, series)
    _add_references(data, headers)
    boxes = _boxes(array, list(names))
    for number, name in names.items():
        outlines = (
            _outlines(array[boxes[number]] == number, boxes[number], series.grid, images) if number in boxes else []
        )
        _add_structure(data, number, name, made, outlines)
    with files.whole(target) as part:
        data.save_as(part, enforce_file_format=True)
    return names


def _frame(first: Dataset, label: str) -> Dataset:
    """Everything of the file but the structures."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian

    now = datetime.now()
    day, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    data: Any = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    # Implicit, as planning systems write it: with explicit value representations an outline ends at 64 KiB of text.
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    if "SpecificCharacterSet" in first:
        data.SpecificCharacterSet = first.SpecificCharacterSet
    data.SOPClassUID, data.SOPInstanceUID = objects.RTSTRUCT_CLASS, new_uid()
    data.InstanceCreationDate, data.InstanceCreationTime = day, time
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber"),
        *("ReferringPhysicianName", "StudyID", "StudyInstanceUID", "FrameOfReferenceUID"),
    ):
        setattr(data, keyword, first.get(keyword, ""))
    data.PositionReferenceIndicator = ""
    data.Modality, data.SeriesInstanceUID, data.SeriesNumber, data.InstanceNumber = "RTSTRUCT", new_uid(), 1, 1
    data.SeriesDescription, data.OperatorsName = "Structures", ""
    data.Manufacturer, data.ManufacturerModelName, data.SoftwareVersions = "ctfoundry", "ctfoundry", version()
    data.StructureSetLabel, data.StructureSetDate, data.StructureSetTime = label, day, time
    data.StructureSetROISequence, data.ROIContourSequence, data.RTROIObservationsSequence = [], [], []
    data.ApprovalStatus = "UNAPPROVED"
    return data


def _images(headers: Sequence[Dataset], series: Source) -> list[Dataset]:
    """A reference to the image of each slice."""
    import pydicom

    by_path = dict(zip(dict.fromkeys(series.paths), headers, strict=True))
    result = []
    for header in series.headers:
        image: Any = pydicom.Dataset()
        of = by_path[Path(header.path)]
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = of.SOPClassUID, of.SOPInstanceUID
        if header.frames > 1:
            image.ReferencedFrameNumber = header.frame + 1
        result.append(image)
    return result


def _add_references(data: Any, headers: Sequence[Dataset]) -> None:
    import pydicom

    listed = []
    for header in headers:
        image: Any = pydicom.Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        listed.append(image)
    series: Any = pydicom.Dataset()
    series.SeriesInstanceUID, series.ContourImageSequence = headers[0].SeriesInstanceUID, listed
    study: Any = pydicom.Dataset()
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, as PS3.3 C.8.8.5 has it
    study.ReferencedSOPInstanceUID, study.RTReferencedSeriesSequence = headers[0].StudyInstanceUID, [series]
    frame: Any = pydicom.Dataset()
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = headers[0].FrameOfReferenceUID, [study]
    data.ReferencedFrameOfReferenceSequence = [frame]


def _add_structure(data: Any, number: int, name: str, made: str, outlines: list[Dataset]) -> None:
    import pydicom

    roi: Any = pydicom.Dataset()
    roi.ROINumber, roi.ReferencedFrameOfReferenceUID = number, data.FrameOfReferenceUID
    roi.ROIName, roi.ROIGenerationAlgorithm = name[:64], made
    drawn: Any = pydicom.Dataset()
    drawn.ROIDisplayColor, drawn.ReferencedROINumber = list(colour(number)), number
    if outlines:
        drawn.ContourSequence = outlines
    seen: Any = pydicom.Dataset()
    seen.ObservationNumber, seen.ReferencedROINumber = len(data.RTROIObservationsSequence) + 1, number
    seen.RTROIInterpretedType, seen.ROIInterpreter = "", ""
    data.StructureSetROISequence.append(roi)
    data.ROIContourSequence.append(drawn)
    data.RTROIObservationsSequence.append(seen)


def _boxes(array: np.ndarray, numbers: list[int]) -> dict[int, tuple[slice, slice, slice]]:
    """The box of each label that occurs."""
    from scipy.ndimage import find_objects

    if max(numbers) < 1 << 16:
        found = find_objects(array)  # one pass for all
        return {k: found[k - 1] for k in numbers if k <= len(found) and found[k - 1] is not None}
    boxes = {k: geometry.bounding_box(array == k) for k in numbers}
    return {k: geometry.slices(box) for k, box in boxes.items() if box is not None}


def _outlines(mask: np.ndarray, box: tuple[slice, slice, slice], grid: Grid, images: list[Dataset]) -> list[Dataset]:
    """The contour items of one structure, from its mask in `box`; slices are the first axis."""
    import pydicom

    result = []
    to_lps = geometry.LPS_TO_RAS @ grid.affine
    for k in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
        for ring in contours.trace(mask[k]):
            index = np.insert(ring, 0, k, axis=1) + [part.start for part in box]
            points = index @ to_lps[:3, :3].T + to_lps[:3, 3]
            contour: Any = pydicom.Dataset()
            contour.ContourImageSequence = [images[k + box[0].start]]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            text = "\\".join([f"{v:.{_DECIMALS}f}" for v in points.ravel().tolist()]).encode()
            text += b" " * (len(text) % 2)
            # As bytes: pydicom would make an object of each number; implicit files state no value representation.
            contour[_CONTOUR_DATA] = pydicom.DataElement(_CONTOUR_DATA, "OB", text)
            result.append(contour)
    return result
