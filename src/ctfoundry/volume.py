"""`Volume`: voxels, where they lie, and what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ctfoundry import geometry, resampling
from ctfoundry.errors import GeometryError
from ctfoundry.geometry import Box, Grid, Vec3

if TYPE_CHECKING:
    from jaxtyping import Bool, Shaped

Kind = Literal["hu", "label", "other"]
"""hu: Hounsfield units; label: whole numbers that name classes; other: MR, PET, 0..1 or 8-bit images."""

AIR = -1024
"""HU of what no scanner measured: outside the field of view, padding."""


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """One scan, or one label map, on one grid.

    Attributes
    ----------
    voxels : array (d, h, w); HU as int16 or float32, labels as an integer type.
    affine : 4x4, voxel index to world millimetres (RAS+) of the voxel's centre.
    kind : "hu", "label" or "other".
    names : label value to structure name, for label maps.
    valid : False where a voxel is fill or padding rather than measured; None when all are measured.
    source : short public name of where it came from (never a path of the patient's).
    notes : what a person should know of how it was read, such as "gantry tilt of 12.0 degrees undone by a shear".
    """

    voxels: Shaped[np.ndarray, "d h w"]
    affine: geometry.Affine
    kind: Kind = "hu"
    names: Mapping[int, str] | None = None
    valid: Bool[np.ndarray, "d h w"] | None = None
    source: str = field(default="")
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3 or min(self.voxels.shape) < 1:
            raise GeometryError(f"a volume has three axes of at least one voxel, not shape {self.voxels.shape}")
        if self.kind == "label" and not np.issubdtype(self.voxels.dtype, np.integer):
            raise GeometryError(f"labels are whole numbers, not {self.voxels.dtype}")
        if self.valid is not None and self.valid.shape != self.voxels.shape:
            raise GeometryError(f"the valid mask has shape {self.valid.shape}, the voxels {self.voxels.shape}")
        object.__setattr__(self, "affine", geometry.as_affine(self.affine))

    @property
    def shape(self) -> Vec3:
        """(d, h, w)."""
        d, h, w = self.voxels.shape
        return d, h, w

    @property
    def grid(self) -> Grid:
        """Shape and affine."""
        return Grid(self.shape, self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres per voxel along d, h, w."""
        return geometry.spacing(self.affine)

    @property
    def orientation(self) -> str:
        """Orientation code, such as ``"SPL"``."""
        return geometry.orientation(self.affine)

    def world(self, index: Any) -> geometry.Points:
        """World millimetres (RAS+) of voxel indices (..., 3)."""
        return geometry.to_world(self.affine, index)

    def index(self, points: Any) -> geometry.Points:
        """Voxel indices, not rounded, of world millimetres (..., 3)."""
        return geometry.to_index(self.affine, points)

    def __repr__(self) -> str:
        grid = repr(self.grid)[5:-1]
        low, high = self.voxels.min(), self.voxels.max()
        if self.kind == "label":
            what = f"{np.unique(self.voxels).size} labels"
        else:
            what = f"{low:g}..{high:g}{' HU' if self.kind == 'hu' else ''}"
        return f"Volume({self.kind} {self.voxels.dtype}, {grid}, {what})"

    def with_voxels(self, voxels: Shaped[np.ndarray, "d h w"], kind: Kind | None = None) -> Volume:
        """The same grid with other voxels (same shape)."""
        if voxels.shape != self.voxels.shape:
            raise GeometryError(f"new voxels have shape {voxels.shape}, the grid {self.voxels.shape}")
        return replace(self, voxels=voxels, kind=kind or self.kind)

    def reorient(self, code: str = "SPL") -> Volume:
        """Axes permuted and flipped to `code`, without interpolation; oblique grids stay oblique."""
        order, flip = geometry.axes_to(self.affine, code)
        turn = tuple(slice(None, None, -1 if f else 1) for f in flip)
        return replace(
            self,
            voxels=np.ascontiguousarray(self.voxels.transpose(order)[turn]),
            affine=geometry.reordered(self.affine, self.shape, order, flip),
            valid=None if self.valid is None else np.ascontiguousarray(self.valid.transpose(order)[turn]),
        )

    def crop(self, box: Box) -> Volume:
        """The part inside `box` (half-open index ranges), which must lie within the volume."""
        for (low, high), n in zip(box, self.shape, strict=True):
            if not 0 <= low < high <= n:
                raise GeometryError(f"box {box} does not lie within a volume of shape {self.shape}")
        part = geometry.slices(box)
        return replace(
            self,
            voxels=np.ascontiguousarray(self.voxels[part]),
            affine=geometry.shifted(self.affine, [low for low, _ in box]),
            valid=None if self.valid is None else np.ascontiguousarray(self.valid[part]),
        )

    def pad(self, before: Sequence[int], after: Sequence[int], value: float | None = None) -> Volume:
        """`before` and `after` voxels added along each axis, filled with `value` (default: air, 0 for labels) and marked invalid."""
        if min(*before, *after) < 0:
            raise GeometryError(f"padding is not negative: {tuple(before)}, {tuple(after)}")
        width = list(zip(before, after, strict=True))
        fill = value if value is not None else {"hu": AIR, "label": 0}.get(self.kind, self.voxels.min())
        valid = self.valid if self.valid is not None else np.ones(self.shape, dtype=bool)
        return replace(
            self,
            voxels=np.pad(self.voxels, width, constant_values=fill),
            affine=geometry.shifted(self.affine, [-b for b in before]),
            valid=np.pad(valid, width, constant_values=False) if any(before) or any(after) else self.valid,
        )

    def resample(self, spacing: Sequence[float | None], rule: resampling.Rule = "antialias") -> Volume:
        """The volume at `spacing` millimetres (None: keep that axis); images by linear interpolation, labels class by class.

        `rule` says which sample positions are taken (`resampling.target_axis`). Images become float32.
        """
        axes = [
            (n, 0.0, 1.0) if new is None else resampling.target_axis(n, old, float(new), rule)
            for n, old, new in zip(self.shape, self.spacing, spacing, strict=True)
        ]
        affine = geometry.rescaled(self.affine, [a[2] for a in axes], [a[1] for a in axes])
        operators = tuple(
            resampling.taps(n, *axis, antialias=rule == "antialias") for n, axis in zip(self.shape, axes, strict=True)
        )
        return self._resampled(affine, (operators[0], operators[1], operators[2]), None)

    def onto(self, grid: Grid, *, fill: float | None = None, antialias: bool = True) -> Volume:
        """The volume on another grid whose axes run along the same lines (in any order and direction).

        Voxels that lie outside get `fill` (default: air, 0 for labels) and are invalid. Raises GeometryError for grids
        that are turned against each other.
        """
        turned = self.reorient(grid.orientation)
        step, start = parallel_steps(turned.affine, grid)
        operators = tuple(
            resampling.taps(n, m, b, s, antialias=antialias)
            for n, m, s, b in zip(turned.shape, grid.shape, step, start, strict=True)
        )
        value = fill if fill is not None else {"hu": AIR, "label": 0}.get(self.kind, 0.0)
        return turned._resampled(grid.affine, (operators[0], operators[1], operators[2]), value)

    def _resampled(
        self,
        affine: geometry.Affine,
        operators: tuple[resampling.Taps, resampling.Taps, resampling.Taps],
        fill: float | None,
    ) -> Volume:
        if self.kind == "label":
            voxels = resampling.resample_labels(self.voxels, operators)
        else:
            voxels = resampling.resample(torch.from_numpy(np.ascontiguousarray(self.voxels)).float(), operators).numpy()
        valid = None
        if self.valid is not None:
            valid = resampling.resample(torch.from_numpy(self.valid).float(), operators).numpy() > 0.5
        if fill is not None and not all(op.inside.all() for op in operators):
            inside = operators[0].inside[:, None, None] & operators[1].inside[:, None] & operators[2].inside
            voxels = np.where(inside, voxels, np.asarray(fill, dtype=voxels.dtype))
            valid = inside if valid is None else valid & inside
        return replace(self, voxels=voxels, affine=affine, valid=valid)


def parallel_steps(affine: geometry.Affine, grid: Grid) -> tuple[list[float], list[float]]:
    """(step, start) such that voxel k of `grid` lies on voxel ``start + step * k`` of `affine`, axis by axis.

    Raises GeometryError when the grids' axes do not run along the same lines.
    """
    relation = np.linalg.inv(affine) @ grid.affine
    matrix = relation[:3, :3]
    drift = np.abs(matrix - np.diag(np.diag(matrix))) * np.array(grid.shape)
    if drift.max() > 0.1:
        raise GeometryError(
            f"the grids are turned against each other (up to {drift.max():.2f} voxels)",
            do="resample with a rotation first",
        )
    return [float(v) for v in np.diag(matrix)], [float(v) for v in relation[:3, 3]]
