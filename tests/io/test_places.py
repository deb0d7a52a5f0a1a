"""A structure's centroid in millimetres survives every reader and writer, as other libraries see it too."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ctfoundry import geometry, io
from ctfoundry.io.dicom_write import write_series
from ctfoundry.volume import Volume

CODES = ["".join(letters) for axes in permutations(("LR", "PA", "IS")) for letters in product(*axes)]
SHAPE = (5, 6, 7)
SPACING = (2.5, 0.8, 1.3)
ORIGIN = (-31.2, 44.5, -612.75)


def rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


AFFINES = {code: geometry.make_affine(SPACING, code, ORIGIN) for code in CODES} | {
    f"oblique-{seed}": geometry.make_affine(SPACING, CODES[7 * seed], ORIGIN, rotation(seed)) for seed in range(6)
}


def scan(affine: np.ndarray) -> tuple[Volume, np.ndarray]:
    """A volume with one odd structure, and the structure's centroid in RAS+ mm."""
    voxels = np.full(SHAPE, -1000, dtype=np.int16)
    inside = [(1, 2, 3), (1, 2, 4), (1, 3, 4), (2, 3, 5), (3, 4, 5), (3, 4, 6)]
    for place in inside:
        voxels[place] = 300
    centre = np.mean(inside, axis=0)
    return Volume(voxels, affine), affine[:3, :3] @ centre + affine[:3, 3]


def centroid(volume: Volume) -> np.ndarray:
    index = np.argwhere(volume.voxels == 300).mean(axis=0)
    return volume.affine[:3, :3] @ index + volume.affine[:3, 3]


def itk_centroid(image: sitk.Image) -> np.ndarray:
    index = np.argwhere(sitk.GetArrayFromImage(image) == 300).mean(axis=0)[::-1]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index.tolist())) * (-1, -1, 1)


def test_there_are_48_orientations() -> None:
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("name", AFFINES)
def test_nifti(name: str, tmp_path: Path) -> None:
    volume, truth = scan(AFFINES[name])
    for suffix in (".nii", ".nii.gz"):
        path = tmp_path / f"scan{suffix}"
        io.write(volume, path)
        image = nib.load(path)
        theirs = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) == 300).mean(axis=0))
        np.testing.assert_allclose(theirs, truth, atol=0.01)
        np.testing.assert_allclose(itk_centroid(sitk.ReadImage(str(path))), truth, atol=0.01)
        back = io.read(path)
        np.testing.assert_allclose(centroid(back), truth, atol=0.01)
        np.testing.assert_array_equal(back.voxels, volume.voxels)
        assert back.grid.same(volume.grid)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("name", AFFINES)
def test_nrrd_and_metaimage(name: str, suffix: str, tmp_path: Path) -> None:
    volume, truth = scan(AFFINES[name])
    path = tmp_path / f"scan{suffix}"
    io.write(volume, path)
    image = sitk.ReadImage(str(path))
    np.testing.assert_allclose(itk_centroid(image), truth, atol=0.01)
    for other in (path, tmp_path / f"theirs{suffix}"):
        if other != path:
            sitk.WriteImage(image, str(other), useCompression=True)
        back = io.read(other)
        np.testing.assert_allclose(centroid(back), truth, atol=0.01)
        np.testing.assert_array_equal(back.voxels, volume.voxels)
        assert back.kind == "hu"


@pytest.mark.parametrize("name", AFFINES)
def test_dicom(name: str, tmp_path: Path) -> None:
    volume, truth = scan(AFFINES[name])
    write_series(tmp_path, volume.voxels, volume.affine)
    back = io.read(tmp_path)
    np.testing.assert_allclose(centroid(back), truth, atol=0.01)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    np.testing.assert_allclose(itk_centroid(image), truth, atol=0.01)
    np.testing.assert_array_equal(back.voxels, sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("name", AFFINES)
def test_tilted_dicom(name: str, axis: int, tmp_path: Path) -> None:
    """Linear interpolation keeps centres of mass, so they are exact to the rounding of HU."""
    affine = np.array(AFFINES[name])
    affine[:3, 0] += (
        affine[:3, axis] / np.linalg.norm(affine[:3, axis]) * 2.5 * np.tan(np.radians(-13 if axis == 1 else 21))
    )
    voxels = np.full((5, 10, 11), -1000, dtype=np.int16)
    inside = np.array([(1, 3, 4), (1, 3, 5), (2, 4, 5), (3, 6, 5), (3, 6, 6)])
    voxels[tuple(inside.T)] = 300
    write_series(tmp_path, voxels, geometry.as_affine(affine))
    back = io.read(tmp_path)
    assert not geometry.is_sheared(back.affine)
    assert back.valid is not None
    weight = np.where(back.valid, back.voxels + 1000.0, 0)
    places = back.world(np.argwhere(weight > 0))
    ours = (places * weight[weight > 0][:, None]).sum(axis=0) / weight.sum()
    np.testing.assert_allclose(ours, geometry.to_world(affine, inside.mean(axis=0)), atol=0.01)


def test_sheared_grids_keep_their_place_in_nifti_and_nrrd(tmp_path: Path) -> None:
    affine = np.array(geometry.make_affine(SPACING, "SPL", ORIGIN))
    affine[:3, 0] += (0, 0.9, 0)
    volume, truth = scan(geometry.as_affine(affine))
    for suffix in (".nii.gz", ".nrrd"):
        io.write(volume, tmp_path / f"scan{suffix}")
        np.testing.assert_allclose(centroid(io.read(tmp_path / f"scan{suffix}")), truth, atol=0.01)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_labels_come_back_as_labels(suffix: str, dtype: str, tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, dtype=dtype)
    labels[1:3] = {"uint8": 3, "uint16": 300, "uint32": 70000}[dtype]
    io.write(Volume(labels, AFFINES["SPL"], "label"), tmp_path / f"liver{suffix}")
    back = io.read(tmp_path / f"liver{suffix}")
    assert back.kind == "label"
    assert back.voxels.dtype == dtype
    assert back.names == {int(labels.max()): "liver"}
    np.testing.assert_array_equal(back.voxels, labels)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_fractions_come_back_as_float32(suffix: str, tmp_path: Path) -> None:
    voxels = np.linspace(-1000, 500, 210).reshape(SHAPE).astype(np.float32)
    io.write(Volume(voxels, AFFINES["SPL"]), tmp_path / f"a{suffix}")
    back = io.read(tmp_path / f"a{suffix}")
    assert (back.kind, back.voxels.dtype) == ("hu", np.float32)
    np.testing.assert_array_equal(back.voxels, voxels)
