"""DICOM CT series out: for phantoms, benchmarks and tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import geometry
from ctfoundry.io.dicom import CT_CLASS
from ctfoundry.io.dicom_file import EXPLICIT

if TYPE_CHECKING:
    from pydicom import Dataset

UID = "1.2.826.0.1.3680043.10.1234"
"""Root of the UIDs given here; they name nothing outside a test."""


def write_series(
    folder: Path,
    stored: np.ndarray,
    affine: np.ndarray,
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
    syntax: str = EXPLICIT,
    series: str = "1",
    description: str = "",
    change: Callable[[Dataset, int], None] | None = None,
    name: Callable[[int], str] = "{:04d}.dcm".format,
) -> list[Path]:
    """Write one CT slice a file.

    Parameters
    ----------
    stored : pixel numbers (d, h, w) as they are stored, int16 or uint16.
    affine : (d, h, w) to RAS+ mm; any axis order and handedness. Where axis 0 leans over, slices are shifted in their plane
        from one to the next, as a tilted gantry leaves them.
    slope, intercept : rescale values of every slice (`change` may set each slice's own).
    syntax : an uncompressed transfer syntax UID.
    series : last piece of the Series Instance UID; series of one study and frame of reference otherwise.
    change : called with each data set and its index before it is written.
    name : file name of slice d.
    """
    import pydicom
    from pydicom.dataset import FileMetaDataset

    folder.mkdir(parents=True, exist_ok=True)
    lps = geometry.LPS_TO_RAS @ affine
    steps = np.array(geometry.spacing(affine))
    down, across = lps[:3, 1] / steps[1], lps[:3, 2] / steps[2]
    paths = []
    for d, pixels in enumerate(stored):
        data: Any = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = syntax
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.SOPClassUID, data.SOPInstanceUID = CT_CLASS, f"{UID}.{series}.{d + 1}"
        data.Modality, data.PatientID, data.PatientName = "CT", "P-1", "Made^Up"
        data.StudyInstanceUID, data.SeriesInstanceUID = f"{UID}.9", f"{UID}.{series}"
        data.FrameOfReferenceUID, data.SeriesDescription = f"{UID}.8", description
        data.InstanceNumber = len(stored) - d
        data.SliceThickness = f"{steps[0]:.10g}"
        data.ImagePositionPatient = [f"{v:.10g}" for v in lps[:3] @ (d, 0, 0, 1)]
        data.ImageOrientationPatient = [f"{v:.10g}" for v in (*across, *down)]
        data.PixelSpacing = [f"{v:.10g}" for v in steps[1:]]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.Rows, data.Columns = pixels.shape
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
        data.RescaleSlope, data.RescaleIntercept = f"{slope:.10g}", f"{intercept:.10g}"
        big = syntax == str(pydicom.uid.ExplicitVRBigEndian)
        data.PixelData = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
        if change is not None:
            change(data, d)
        paths.append(folder / name(d))
        pydicom.dcmwrite(paths[-1], data, enforce_file_format=True)
    return paths
