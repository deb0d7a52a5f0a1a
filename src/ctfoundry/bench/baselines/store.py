"""Crops without a store: the whole file read and resampled, or an unpacked array mapped into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctfoundry import geometry
from ctfoundry.geometry import Box
from ctfoundry.volume import Volume


def write_nifti(volume: Volume, path: Path) -> None:
    """int16, gzip, by nibabel; axes (w, h, d) in the file, as converters write them."""
    import nibabel

    affine = np.array(volume.affine)[:, [2, 1, 0, 3]]
    nibabel.Nifti1Image(volume.voxels.transpose(2, 1, 0), affine).to_filename(path)


def nifti(path: Path, boxes: list[Box]) -> list[np.ndarray]:
    """SimpleITK reads and resamples (both faster than nibabel with SciPy, stack.md 7), once for all boxes; one thread."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = sitk.ReadImage(str(path))
    new = (1.0, 1.0, 3.0)
    size = [round((n - 1) * s / t + 1) for n, s, t in zip(image.GetSize(), image.GetSpacing(), new, strict=True)]
    image = sitk.Resample(
        image,
        size,
        sitk.Transform(),
        sitk.sitkLinear,
        image.GetOrigin(),
        new,
        image.GetDirection(),
        -1024,
        sitk.sitkInt16,
        True,
    )
    voxels = sitk.GetArrayViewFromImage(image)
    return [np.array(voxels[geometry.slices(box)]) for box in boxes]


def write_zarr(voxels: np.ndarray, path: Path, chunks: tuple[int, int, int]) -> None:
    """Zarr 3 with its default codec and the chunks of the store (its own default would be larger ones)."""
    import zarr

    array = zarr.create_array(path, shape=voxels.shape, chunks=chunks, dtype=voxels.dtype)
    array[:] = voxels


def zarr_crops(path: Path, boxes: list[Box]) -> list[np.ndarray]:
    """Opened once for all crops; one thread, and one chunk at a time."""
    import zarr

    with zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1}):
        array = zarr.open_array(path, mode="r")
        return [np.asarray(array[geometry.slices(box)]) for box in boxes]


def mapped(path: Path, boxes: list[Box]) -> list[np.ndarray]:
    """The resampled voxels, unpacked on the disk."""
    voxels = np.load(path, mmap_mode="r")
    return [np.array(voxels[geometry.slices(box)]) for box in boxes]
