"""PCA maps as NIfTI files on the scan's own grid.

Components are interpolated, not colours: colours between two cells are then those of the features between them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ctfoundry import files
from ctfoundry.encoder import FeatureMap
from ctfoundry.explain import pca
from ctfoundry.explain.pca import Pca
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32
    from torch import Tensor

RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
"""NIfTI's RGB24 (datatype 128), which viewers show in colour."""
TOP = 32_000
"""Largest stored number of a component; the header's slope gives its value."""


def on_scan(
    fitted: Pca, feature: FeatureMap, mask: Bool[Tensor, "d h w"], scan: Volume
) -> tuple[Float32[np.ndarray, "3 d h w"], Bool[np.ndarray, "d h w"]]:
    """The three components on the scan's grid, linear between cells, and where they are foreground (nearest half)."""
    cells = pca.components(fitted, feature).data.cpu().numpy().astype(np.float32)
    found = np.stack(
        [Volume(c, feature.affine, "other").onto(scan.grid, fill=0.0, antialias=False).voxels for c in cells]
    )
    share = Volume(mask.cpu().numpy().astype(np.float32), feature.affine, "other")
    inside = share.onto(scan.grid, fill=0.0, antialias=False).voxels > 0.5
    return found * inside, inside


def write(
    folder: Path, name: str, fitted: Pca, feature: FeatureMap, mask: Bool[Tensor, "d h w"], scan: Volume
) -> list[str]:
    """``NAME-rgb.nii.gz`` (RGB24) and ``NAME-components.nii.gz`` (4D, int16 with a slope: components 1 to 3; 0 in the background)."""
    found, inside = on_scan(fitted, feature, mask, scan)
    colour = np.zeros((*inside.shape, 3), np.uint8)
    for k in range(len(inside)):  # a slice at a time: Lab of a whole scan is many gigabytes
        rows = torch.from_numpy(found[:, k].reshape(3, -1).T)
        rgb = pca.lab_to_srgb(pca.to_lab(_on_cpu(fitted), rows)).numpy()
        colour[k] = (rgb.reshape(*inside.shape[1:], 3) * 255 + 0.5).astype(np.uint8) * inside[k][..., None]
    scale = max(float(np.abs(found).max()), 1e-12) / TOP
    names = [f"{name}-rgb.nii.gz", f"{name}-components.nii.gz"]
    _save(folder / names[0], colour.view(RGB)[..., 0].transpose(2, 1, 0), scan)
    stored = np.rint(found / scale).astype(np.int16)
    _save(folder / names[1], stored.transpose(3, 2, 1, 0), scan, slope=scale)
    return names


def _on_cpu(fitted: Pca) -> Pca:
    return Pca(fitted.mean.cpu(), fitted.components.cpu(), fitted.span.cpu(), fitted.explained)


def _save(path: Path, voxels: np.ndarray, scan: Volume, slope: float = 1.0) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(voxels, scan.affine[:, [2, 1, 0, 3]], dtype=voxels.dtype)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0)
    with files.whole(path) as part:
        nib.save(image, part)
