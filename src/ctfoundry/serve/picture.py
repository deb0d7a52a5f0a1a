"""A scan as the page draws it: int16 slices of its own voxels, and overlays on a coarse grid over them.

The page windows and scales; the server never resamples what is shown, so the number under the pointer is the voxel's own.
Axes are S, P, L (`Volume.reorient`), so that rows and columns of an axial slice are those of a radiological picture.
"""

from __future__ import annotations

import io as streams
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ctfoundry import geometry
from ctfoundry.errors import ContractError, UsageError
from ctfoundry.geometry import Grid
from ctfoundry.report import planes
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Int16

Plane = Literal["axial", "coronal", "sagittal"]
AXIS: dict[str, int] = {"axial": 0, "coronal": 1, "sagittal": 2}
"""The voxel axis that each plane's slices follow one another along."""
COUNT = 64
"""Most slices in one answer."""
ANSWER_BYTES = 16 << 20
"""Most bytes of one answer with slices."""
COARSE = 96
"""Most cells along an axis of an overlay."""
THUMB_ROWS = 132


@dataclass(frozen=True, eq=False)
class Shown:
    """A scan in memory, ready to be drawn.

    Attributes
    ----------
    volume : the scan, axes S, P, L.
    voxels : what is sent, int16; a number of the scan is ``voxels * slope + intercept``.
    unit : "HU", or nothing for other images.
    window : (centre, width) that suits the scan.
    box : lowest and highest x, y, z (mm) of the body: what the page shows first.
    """

    volume: Volume
    voxels: Int16[np.ndarray, "d h w"]
    slope: float
    intercept: float
    unit: str
    window: tuple[float, float]
    box: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def centre(self) -> tuple[float, float, float]:
        """World mm of the middle of the body."""
        x, y, z = ((a + b) / 2 for a, b in zip(*self.box, strict=True))
        return x, y, z

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        own = self.volume.voxels.nbytes if self.voxels is not self.volume.voxels else 0
        return self.voxels.nbytes + own + (0 if self.volume.valid is None else self.volume.valid.nbytes)

    def facts(self) -> dict[str, Any]:
        """What the page needs to know: no name, date or path is among it."""
        volume = self.volume
        return {
            "shape": list(volume.shape),
            "spacing": [float(v) for v in volume.spacing],
            "affine": np.asarray(volume.affine).tolist(),
            "kind": volume.kind,
            "unit": self.unit,
            "slope": self.slope,
            "intercept": self.intercept,
            "window": list(self.window),
            "centre": list(self.centre),
            "box": [list(corner) for corner in self.box],
            "oblique": round(geometry.obliquity(volume.affine), 1),
        }


def shown(volume: Volume) -> Shown:
    """The scan as the page draws it; raises ContractError for a label map."""
    if volume.kind == "label":
        raise ContractError("is a label map, not a scan", do="give the scan that it was drawn on")
    turned = volume.reorient("SPL")
    voxels, slope, intercept = turned.voxels, 1.0, 0.0
    if turned.kind == "hu":
        if voxels.dtype != np.int16:
            voxels = np.clip(np.round(voxels), -32768, 32767).astype(np.int16)
    else:
        low, high = float(voxels.min()), float(voxels.max())
        slope, intercept = max(high - low, 1e-6) / 65535, low + max(high - low, 1e-6) * 32768 / 65535
        voxels = np.clip(np.round((voxels.astype(np.float32) - intercept) / slope), -32768, 32767).astype(np.int16)
    centre, width = planes.choose_window(turned)
    first, last = planes.picture_box(turned)
    box = (tuple(float(v) for v in first), tuple(float(v) for v in last))
    unit = "HU" if turned.kind == "hu" else ""
    return Shown(turned, voxels, slope, intercept, unit, (float(centre), float(width)), box)


def slices(scan: Shown, plane: str, first: int, count: int, step: int = 1) -> bytes:
    """Slices `first`, `first + 1` ... of a plane, little-endian int16, each with its rows from the lower index on.

    `step` thins rows and columns. Raises UsageError for slices that the scan does not have, and for more than one answer holds.
    """
    if plane not in AXIS:
        raise UsageError(f"there is no plane {plane!r}", do="ask for axial, coronal or sagittal")
    axis = AXIS[plane]
    if not (first >= 0 and 1 <= count <= COUNT and 1 <= step <= 16 and first + count <= scan.voxels.shape[axis]):
        raise UsageError("the scan has no such slices", do=f"ask for 1 to {COUNT} slices that it has")
    part: list[slice] = [slice(None, None, step)] * 3
    part[axis] = slice(first, first + count)
    chosen = np.moveaxis(scan.voxels[tuple(part)], axis, 0)
    if chosen.size * 2 > ANSWER_BYTES:
        raise UsageError("that is too much for one answer", do="ask for fewer slices")
    return np.ascontiguousarray(chosen, dtype="<i2").tobytes()


def thumbnail(scan: Shown) -> bytes:
    """A PNG of the three planes through the middle of the body."""
    from PIL import Image

    picture = planes.three_planes(scan.volume, window=scan.window, height=THUMB_ROWS)
    stream = streams.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def coarse(grid: Grid, most: int = COARSE) -> Grid:
    """A grid over the same box with at most `most` cells along each axis."""
    d, h, w = (min(n, most) for n in grid.shape)
    step = [n / m for n, m in zip(grid.shape, (d, h, w), strict=True)]
    return Grid((d, h, w), geometry.rescaled(grid.affine, step, [(s - 1) / 2 for s in step]))


def overlay(cells: np.ndarray, affine: geometry.Affine, scan: Shown, fill: float) -> np.ndarray:
    """Values of feature cells (d, h, w) on the scan's coarse grid, linear between cells; `fill` beyond them."""
    made = Volume(cells.astype(np.float32), affine, "other")
    return made.onto(coarse(scan.volume.grid), fill=fill, antialias=False).voxels
