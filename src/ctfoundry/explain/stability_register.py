"""Two scans of one patient laid over each other: a rigid transform (SimpleITK), and measures of whether it can be believed.

A registration always gives *some* transform. What is asked of it here: that it leads back to where it started when it is done the
other way round, that the two bodies then look alike, and that enough of one lies in the other. Otherwise the pair is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import geometry
from ctfoundry.body import BODY_HU, largest_part
from ctfoundry.errors import ContractError
from ctfoundry.geometry import Grid
from ctfoundry.volume import AIR, Volume

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64

MM = 4.0
"""Voxels of the copies that are registered."""
LEAST_CORRELATION = 0.6
LEAST_OVERLAP = 0.3
MOST_INCONSISTENCY_MM = 8.0
"""Beyond these a pair is refused (docs/results/stability.md says how repeat scans and wrong pairs lie on either side)."""

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Registration:
    """Where the anatomy of one scan lies in the other.

    Attributes
    ----------
    matrix : world points (RAS+ mm) of the fixed scan to those of the moving one.
    correlation : of HU (clipped to -1000..500) in the fixed body, where both scans are.
    overlap : share of the fixed body that the moving scan holds.
    inconsistency_mm : median over the fixed body of how far there and back again ends from the start.
    """

    matrix: Float64[np.ndarray, "4 4"]
    correlation: float
    overlap: float
    inconsistency_mm: float

    def points(self, world: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        """World points of the fixed scan in the moving one."""
        return np.asarray(world @ self.matrix[:3, :3].T + self.matrix[:3, 3])

    @property
    def doubt(self) -> str:
        """Why it is not to be believed, or nothing."""
        if self.overlap < LEAST_OVERLAP:
            return f"only {self.overlap:.0%} of the body lies in both scans (at least {LEAST_OVERLAP:.0%})"
        if self.correlation < LEAST_CORRELATION:
            return f"the bodies do not look alike: correlation {self.correlation:.2f} (at least {LEAST_CORRELATION})"
        if self.inconsistency_mm > MOST_INCONSISTENCY_MM:
            return f"there and back again ends {self.inconsistency_mm:.0f} mm off (at most {MOST_INCONSISTENCY_MM:.0f})"
        return ""

    def data(self) -> dict[str, float]:
        """The measures as JSON has them."""
        return {k: round(float(getattr(self, k)), 4) for k in ("correlation", "overlap", "inconsistency_mm")}


@dataclass(frozen=True, eq=False)
class _Coarse:
    """A scan at `MM`, clipped, and its body."""

    volume: Volume
    body: Bool[np.ndarray, "d h w"]

    @property
    def middle(self) -> Float64[np.ndarray, "3"]:
        return np.asarray(self.volume.world(np.argwhere(self.body).mean(0)))

    def image(self) -> Any:
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(self.volume.voxels)
        affine = _LPS @ self.volume.affine
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetSpacing((MM, MM, MM))
        image.SetDirection((affine[:3, [2, 1, 0]] / MM).ravel().tolist())
        return image


def register(fixed: Volume, moving: Volume, *, seed: int = 0) -> Registration:
    """The rigid transform between two scans of one patient, and how far it can be trusted (`Registration.doubt`).

    Raises ContractError for a scan without a body.
    """
    one, two = _coarse(fixed), _coarse(moving)
    there, back = _rigid(one, two, seed), _rigid(two, one, seed)
    points = one.volume.world(np.argwhere(one.body)[:: max(1, int(one.body.sum()) // 4000)])
    matrix = _ras(there)
    moved = points @ matrix[:3, :3].T + matrix[:3, 3]
    undone = _ras(back)
    again = moved @ undone[:3, :3].T + undone[:3, 3]
    correlation, overlap = _alike(one, two, matrix)
    return Registration(matrix, correlation, overlap, float(np.median(np.linalg.norm(again - points, axis=1))))


def _coarse(volume: Volume) -> _Coarse:
    from scipy import ndimage

    turned = volume.reorient("SPL")
    size = [max(round(n * s / MM), 1) for n, s in zip(turned.shape, turned.spacing, strict=True)]
    step = [MM / s for s in turned.spacing]
    start = [(n - 1 - (k - 1) * s) / 2 for n, k, s in zip(turned.shape, size, step, strict=True)]
    grid = Grid((size[0], size[1], size[2]), geometry.rescaled(turned.affine, step, start))
    voxels = turned.onto(grid, fill=AIR).voxels.astype(np.float32).clip(-1000, 500)
    body = voxels > BODY_HU
    if not body.any():
        raise ContractError("no body was found in the scan", where=volume.source or None)
    body = largest_part(body)
    for plane in body:  # lungs and bowel gas belong to it
        plane[:] = ndimage.binary_fill_holes(plane)
    return _Coarse(Volume(voxels, grid.affine, "other"), body)


def _rigid(fixed: _Coarse, moving: _Coarse, seed: int) -> Any:
    """SimpleITK's rigid transform (LPS): started from the bodies' middles and some steps up and down, the best one improved."""
    import SimpleITK as sitk

    first, second = fixed.image(), moving.image()
    mask = sitk.GetImageFromArray(fixed.body.astype(np.uint8))
    mask.CopyInformation(first)

    def method(shrink: list[int], smooth: list[float], share: float, steps: int) -> Any:
        made = sitk.ImageRegistrationMethod()
        made.SetNumberOfThreads(1)  # sums in one order: the same transform every time
        made.SetMetricAsCorrelation()
        made.SetMetricFixedMask(mask)
        made.SetMetricSamplingStrategy(made.RANDOM)
        made.SetMetricSamplingPercentage(share, seed + 1)
        made.SetInterpolator(sitk.sitkLinear)
        made.SetOptimizerAsRegularStepGradientDescent(
            2.0, 0.01, steps, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-9
        )
        made.SetOptimizerScalesFromPhysicalShift()
        made.SetShrinkFactorsPerLevel(shrink)
        made.SetSmoothingSigmasPerLevel(smooth)
        made.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        return made

    found = []
    for up in (-60.0, -30.0, 0.0, 30.0, 60.0):
        start = sitk.Euler3DTransform()
        start.SetCenter((fixed.middle * (-1, -1, 1)).tolist())
        start.SetTranslation(((moving.middle - fixed.middle + (0, 0, up)) * (-1, -1, 1)).tolist())
        rough = method([4], [8.0], 1.0, 30)
        rough.SetInitialTransform(start, inPlace=True)
        try:
            rough.Execute(first, second)
        except RuntimeError:  # a start from which nothing overlaps
            continue
        found.append((rough.GetMetricValue(), up, start))
    if not found:
        raise ContractError("the two scans could not be laid over each other", do="give two scans of one body part")
    best = min(found, key=lambda item: item[:2])[2]
    fine = method([2, 1], [4.0, 0.0], 0.1, 60)
    fine.SetInitialTransform(best, inPlace=True)
    try:
        fine.Execute(first, second)
    except RuntimeError as error:
        raise ContractError(
            "the two scans could not be laid over each other", do="give two scans of one body part"
        ) from error
    return best


def _ras(transform: Any) -> Float64[np.ndarray, "4 4"]:
    turn, centre = np.array(transform.GetMatrix()).reshape(3, 3), np.array(transform.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - turn @ centre
    return np.asarray(_LPS @ matrix @ _LPS)


def _alike(fixed: _Coarse, moving: _Coarse, matrix: Float64[np.ndarray, "4 4"]) -> tuple[float, float]:
    """Correlation in the fixed body where the moving scan is, and the share of the body where it is."""
    from scipy import ndimage

    index = np.argwhere(fixed.body)
    world = fixed.volume.world(index) @ matrix[:3, :3].T + matrix[:3, 3]
    place = moving.volume.index(world)
    inside = ((place >= 0) & (place <= np.array(moving.volume.shape) - 1)).all(axis=1)
    if inside.sum() < 100:
        return 0.0, float(inside.mean())
    theirs = ndimage.map_coordinates(moving.volume.voxels, place[inside].T, order=1, prefilter=False)
    ours = fixed.volume.voxels[tuple(index[inside].T)]
    return float(np.corrcoef(ours, theirs)[0, 1]), float(inside.mean())
