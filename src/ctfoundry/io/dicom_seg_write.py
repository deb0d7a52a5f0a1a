"""DICOM segmentations out, by highdicom: a label map beside the image series that it was made of."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ctfoundry import files
from ctfoundry.errors import CTFoundryError, ReadError, UsageError
from ctfoundry.io import stack
from ctfoundry.io.datasets import data_set
from ctfoundry.io.references import Source, names_for, onto_source, source_of
from ctfoundry.io.seg_codes import colour, meaning
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""What objects refer to images by."""
_EMPTY = (  # Type 2: to be there, if only empty (PS3.3 C.7.1.1, C.7.2.1)
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
LONGEST_LABEL = 64
"""Characters of a segment label (LO)."""


def write_seg(
    labels: Volume,
    path: str | os.PathLike[str],
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    kind: Literal["BINARY", "LABELMAP"] = "BINARY",
    algorithm: str = "ctfoundry",
    made: Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"] = "AUTOMATIC",
) -> dict[int, int]:
    """Write a label map as a DICOM SEG, whole or not at all.

    Parameters
    ----------
    labels : on the grid of the image series as `io.read` gives it, in any axis order and direction; nothing is interpolated.
    path : the file.
    source : the image series: a folder with one, ``FOLDER#UID``, or its files. Patient, study and frame of reference are
        copied from its headers; nothing of paths is written.
    kind : BINARY (a bit plane for each segment; every viewer reads it; numbers run from 1 without gaps) or LABELMAP (keeps
        numbers; younger than most viewers).
    algorithm, made : what made the labels, and how.

    Returns
    -------
    dict : label to segment number. Empty slices are left out, as is usual; every named label becomes a segment.

    Raises
    ------
    UsageError : highdicom is missing; a volume that is no label map.
    GeometryError : the labels' grid is not that of the series; the difference is named.
    """
    try:
        import highdicom
    except ImportError as error:
        raise UsageError("writing DICOM SEG needs highdicom", do="pip install 'ctfoundry[seg]'") from error
    target = Path(path)
    series = source_of(source)
    array = onto_source(labels, series.grid, target)
    names = names_for(labels)
    if max(names) >= 1 << 16:
        raise UsageError(f"label {max(names)} is beyond what a segment number can be", where=target)
    numbers = {label: label if kind == "LABELMAP" else k for k, label in enumerate(names, 1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # highdicom and pydicom remark on the source's headers
        slices = source_headers(series)
        try:
            seg = highdicom.seg.Segmentation(
                source_images=slices,
                pixel_array=_numbered(array, numbers),
                segmentation_type=kind,
                segment_descriptions=[_description(numbers[k], name, algorithm, made) for k, name in names.items()],
                series_instance_uid=new_uid(),
                series_number=1,
                sop_instance_uid=new_uid(),
                instance_number=1,
                manufacturer="ctfoundry",
                manufacturer_model_name="ctfoundry",
                software_versions=version(),
                device_serial_number="1",
                content_label="SEGMENTATION",
                series_description="Segmentation",
                **_planes(series),
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise CTFoundryError(f"the segmentation cannot be built on this series ({error})", where=target) from error
        _add_sides(seg, {numbers[k]: name for k, name in names.items()})
        with files.whole(target) as part:
            seg.save_as(part)
    return numbers


def source_headers(series: Source) -> list[Dataset]:
    """The headers of an image series with the elements that objects made of it copy; each file once.

    Raises ReadError for slices without the UIDs that references are made of, or without a frame of reference, without which
    nothing can refer to their places.
    """
    result = []
    for path in dict.fromkeys(series.paths):
        data = data_set(path)
        missing = [keyword for keyword in _UIDS if not data.get(keyword)]
        if missing:
            raise ReadError(
                f"has no {', '.join(missing)}, so nothing can refer to it",
                where=path,
                do="export the series again: every image has these",
            )
        if not data.get("FrameOfReferenceUID"):
            raise ReadError(
                "names no frame of reference, so nothing can say that it lies in the same place",
                where=path,
                do="add a Frame of Reference UID to the series, the same for all its slices",
            )
        for keyword in _EMPTY:
            if keyword not in data:
                setattr(data, keyword, "")
        result.append(data)
    return result


def new_uid() -> str:
    """A UID that nothing else has (PS3.5 B.2: a random UUID below 2.25)."""
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=None))


def version() -> str:
    """The version that written objects name."""
    from ctfoundry import __version__

    return __version__


def planes(series: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float, float]]:
    """(positions (d, 3), unit vector along a row, down a column, millimetres along d, h, w) of the series' grid, LPS."""
    from ctfoundry import geometry

    across, down, _ = stack.axes(series.headers[0], str(series.paths[0]))
    d = np.arange(series.grid.shape[0])
    index = np.stack([d, np.zeros_like(d), np.zeros_like(d)], axis=1)
    positions = geometry.to_world(series.grid.affine, index) @ geometry.LPS_TO_RAS[:3, :3]
    return positions, across, down, series.grid.spacing


def _planes(series: Source) -> dict[str, Any]:
    import highdicom

    positions, across, down, spacing = planes(series)
    step = abs(float((positions[-1] - positions[0]) @ np.cross(across, down))) / max(len(positions) - 1, 1)
    thickness = series.headers[0].thickness or spacing[0]
    return {
        "pixel_measures": highdicom.PixelMeasuresSequence(
            pixel_spacing=spacing[1:], slice_thickness=thickness, spacing_between_slices=step or spacing[0]
        ),
        "plane_orientation": highdicom.PlaneOrientationSequence("PATIENT", (*across.tolist(), *down.tolist())),
        "plane_positions": [highdicom.PlanePositionSequence("PATIENT", p) for p in positions.tolist()],
    }


def _numbered(array: np.ndarray, numbers: dict[int, int]) -> np.ndarray:
    """Labels as segment numbers, in the smallest type."""
    table = np.zeros(max(numbers) + 1, dtype=np.uint8 if max(numbers.values()) < 1 << 8 else np.uint16)
    table[list(numbers)] = list(numbers.values())
    return table[array]


def _description(number: int, name: str, algorithm: str, made: str) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    found = meaning(name)
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:LONGEST_LABEL],
        segmented_property_category=found.category,
        segmented_property_type=found.type,
        algorithm_type=made,
        algorithm_identification=None
        if made == "MANUAL"
        else highdicom.AlgorithmIdentificationSequence(
            name=algorithm, family=codes.DCM.ArtificialIntelligence, version=version()
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*colour(number)),
    )


def _add_sides(seg: Dataset, names: dict[int, str]) -> None:
    """Left and right, which highdicom's segment descriptions have no argument for."""
    import highdicom

    for item in seg.SegmentSequence:
        name = names.get(int(item.SegmentNumber))
        side = None if name is None else meaning(name).side
        if side is not None:
            kind = item.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [
                highdicom.sr.CodedConcept(side.value, side.scheme_designator, side.meaning)
            ]
