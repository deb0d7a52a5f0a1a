"""How other libraries read the same files, each used as well as it can be: the type asked for, no needless copy."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


def simpleitk_series(folder: Path, threads: int) -> np.ndarray:
    """SimpleITK's series reader, slices sorted by GDCM, int16 asked for, the array a view of the image."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    reader.SetOutputPixelType(sitk.sitkInt16)
    return np.asarray(_Held(reader.Execute()))


def simpleitk_file(path: Path) -> np.ndarray:
    """SimpleITK's file reader, the array a view of the image."""
    import SimpleITK as sitk

    return np.asarray(_Held(sitk.ReadImage(str(path))))


class _Held:
    """The voxels of a SimpleITK image without a copy, and the image, which must live as long as they do."""

    def __init__(self, image: Any) -> None:
        import SimpleITK as sitk

        self.image = image
        self.__array_interface__ = sitk.GetArrayViewFromImage(image).__array_interface__


def monai_series(folder: Path) -> np.ndarray:
    """MONAI's LoadImage with its pydicom reader, int16 asked for; axes brought to (d, h, w) without a copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _monai_reader()(str(folder))
    return np.asarray(image.numpy().transpose(2, 1, 0))


@cache
def _monai_reader() -> Any:
    from monai.transforms import LoadImage

    return LoadImage(reader="pydicomreader", image_only=True, dtype=np.int16, prune_metadata=True)


def nibabel_file(path: Path) -> np.ndarray:
    """nibabel's unscaled data object; axes brought to (d, h, w) without a copy."""
    import nibabel as nib

    image: Any = nib.load(path)
    return np.asanyarray(image.dataobj).transpose(2, 1, 0)


def nibabel_writer(voxels: np.ndarray, affine: np.ndarray) -> Callable[[Path], None]:
    """nibabel saving the array as it lies in memory, at its own level of compression."""
    import nibabel as nib

    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])
    return lambda path: nib.save(image, path)


def simpleitk_writer(voxels: np.ndarray) -> Callable[[Path], None]:
    """SimpleITK writing an image that it holds already, at its own level of compression."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(voxels)
    return lambda path: sitk.WriteImage(image, str(path), useCompression=True)


def pydicom_headers(tree: Path, tags: Sequence[str]) -> dict[str, list[str]]:
    """Folder to the names of its slices in the order of their positions: pydicom told which elements matter, no pixels."""
    import pydicom

    series: dict[str, list[tuple[float, str, str]]] = {}
    for parent, _, names in os.walk(tree):
        for name in names:
            data: Any = pydicom.dcmread(os.path.join(parent, name), stop_before_pixels=True, specific_tags=list(tags))
            row, column = np.array(data.ImageOrientationPatient, dtype=float).reshape(2, 3)
            along = float(np.cross(row, column) @ np.array(data.ImagePositionPatient, dtype=float))
            series.setdefault(data.SeriesInstanceUID, []).append((along, os.path.basename(parent), name))
    return {sorted(slices)[0][1]: [name for _, _, name in sorted(slices)] for slices in series.values()}


def gdcm_headers(tree: Path) -> dict[str, list[str]]:
    """The same by the scan of SimpleITK's series reader, folder by folder, sorted by GDCM."""
    import SimpleITK as sitk

    return {
        folder.name: [os.path.basename(p) for p in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)]
        for folder in sorted(tree.iterdir())
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    }
