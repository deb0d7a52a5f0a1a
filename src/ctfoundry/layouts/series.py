"""A phantom's CT as a DICOM series, with the tags that data sets are told apart by."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.io.dicom_write import UID, write_series
from ctfoundry.layouts.cases import Case

if TYPE_CHECKING:
    from pydicom import Dataset

KERNELS = {"soft": "B30f", "standard": "B45f", "sharp": "B70f"}
"""Names of kernels as one maker writes them."""
AIR = 1024
"""Stored numbers are HU + 1024, unsigned, as most scanners write them."""


def uid(*path: object) -> str:
    """A UID that is a function of its path and names nothing outside phantoms.

    >>> uid("a", 1) == uid("a", 1), uid("a", 1) == uid("a", 2), len(uid("a", 1)) <= 64
    (True, False, True)
    """
    return f"{UID}.{int.from_bytes(blake2b(repr(path).encode(), digest_size=12).digest())}"


def write_ct(
    folder: Path,
    case: Case,
    *,
    patient: str | None = None,
    study: str = "",
    description: str = "CT",
    number: int = 1,
    name: Callable[[int], str] = "{:04d}.dcm".format,
) -> list[Path]:
    """Write a scan as one axial series, head first, supine (PS3.3 C.7.3.1.1.2); returns the files from feet to head.

    Parameters
    ----------
    patient : PatientID; default: the case's name.
    study : part of the study's UID; scans of one patient with the same `study` share it.
    description, number : of the series.
    name : file name of slice i.
    """
    ct = case.phantom.ct.reorient("SPL")
    scan = case.phantom.spec.acquisition
    who = patient or case.name
    series = uid("series", who, study, case.scan, number)

    def change(data: Dataset, index: int) -> None:
        data.PatientID = data.PatientName = who
        data.PatientSex, data.PatientAge, data.PatientPosition = case.sex, f"{case.age:03d}Y", "HFS"
        data.StudyInstanceUID, data.SeriesInstanceUID = uid("study", who, study), series
        data.FrameOfReferenceUID = uid("frame", who, study, case.scan)
        data.SOPInstanceUID = uid("slice", series, index)
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.SeriesNumber, data.AcquisitionNumber, data.SeriesDescription = number, 1, description
        data.StudyDate, data.StudyTime, data.AccessionNumber, data.StudyID = "20200101", "120000", "", "1"
        data.PatientBirthDate, data.ReferringPhysicianName = "", ""
        data.Manufacturer, data.ManufacturerModelName, data.KVP = "ctfoundry", "phantom", "120"
        data.ConvolutionKernel = KERNELS[scan.kernel]
        data.SliceThickness = f"{scan.thickness_mm:.10g}"
        if scan.phase != "none":
            data.ContrastBolusAgent = f"iodine {scan.phase}"

    for old in folder.glob("*.dcm"):
        old.unlink()  # slices of another scan would make one series of two
    stored = (ct.voxels.astype(np.int32) + AIR).astype(np.uint16)
    return write_series(folder, stored, ct.affine, intercept=-AIR, change=change, name=name)
