"""How other libraries read the same files, each used as well as it can be: the type asked for, no needless copy."""

from __future__ import annotations

import warnings
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
