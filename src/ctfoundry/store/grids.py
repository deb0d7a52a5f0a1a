"""The grids that a store can be on, and how a volume gets there.

``native``: the scan's own; ``floor:1``: no axis finer than 1 mm, averaged when it shrinks; ``ct-fm``: 3x1x1 mm and
``flexict-3d``: 2 mm, by the rules of those pipelines; ``6x2x2``: any millimetres along d, h, w, by MONAI's rule.
"""

from __future__ import annotations

import re

import numpy as np

from ctfoundry import geometry
from ctfoundry.errors import ContractError, SettingsError
from ctfoundry.preparation import Resampling
from ctfoundry.resampling import Rule
from ctfoundry.settings import nearest
from ctfoundry.volume import AIR, Volume

ORIENTATION = "SPL"
"""Axis order of every scan in a store: (d, h, w) grow to Superior, Posterior, Left."""
SPACING_MATCH_MM = 1e-3
"""An axis within this of its grid's spacing is on it."""

_NAMED = {
    "native": Resampling(orientation=ORIENTATION),
    "ct-fm": Resampling(orientation=ORIENTATION, spacing=(3.0, 1.0, 1.0), rule="monai"),
    "flexict-3d": Resampling(orientation=ORIENTATION, spacing=(2.0, 2.0, 2.0), rule="sitk"),
}
_NUMBER = r"(\d{1,3}(?:\.\d{1,4})?)"
_FLOOR = re.compile(f"floor:{_NUMBER}")
_EXPLICIT = re.compile("x".join([_NUMBER] * 3))


def resampling_onto(grid: str, spacing: tuple[float, float, float]) -> Resampling:
    """What brings a scan of `spacing` (mm along S, P, L) onto `grid`; raises SettingsError for an unknown grid.

    >>> resampling_onto("floor:1", (2.5, 0.7, 0.7)).spacing
    (None, 1.0, 1.0)
    """
    if grid in _NAMED:
        wanted, rule = _NAMED[grid].spacing, _NAMED[grid].rule
        return _kept(spacing, wanted, rule)
    if match := _FLOOR.fullmatch(grid):
        floor = _positive(grid, match.group(1))
        d, h, w = (None if have >= floor else floor for have in spacing)
        return _kept(spacing, (d, h, w), "antialias")
    if match := _EXPLICIT.fullmatch(grid):
        d, h, w = (_positive(grid, text) for text in match.groups())
        return _kept(spacing, (d, h, w), "monai")
    raise SettingsError(
        f"{grid!r} is no grid of a store; {nearest(grid, [*_NAMED, 'floor:1'])}",
        do="name one of them, or millimetres along d, h, w such as 6x2x2",
    )


def _positive(grid: str, text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 100:
        raise SettingsError(f"grid {grid!r}: a spacing lies between 0.05 and 100 mm")
    return value


def _kept(
    have: tuple[float, float, float], wanted: tuple[float | None, float | None, float | None], rule: Rule
) -> Resampling:
    """`wanted`, with axes that are there already left alone, so that adding such a scan changes no voxel."""
    d, h, w = (None if new is None or abs(new - old) < 1e-6 else new for old, new in zip(have, wanted, strict=True))
    return Resampling(orientation=ORIENTATION, spacing=(d, h, w), rule=rule)


def is_on(grid: str, spacing: tuple[float, float, float]) -> bool:
    """Whether a scan of `spacing` is on `grid`."""
    wanted = resampling_onto(grid, spacing).spacing
    return all(new is None or abs(new - have) < SPACING_MATCH_MM for new, have in zip(wanted, spacing, strict=True))


def canonical(volume: Volume, grid: str) -> Volume:
    """The volume as a store on `grid` holds it: int16 HU, SPL, fill at -1024; nothing cropped or clipped but to int16.

    Raises ContractError for a volume that is not in HU or holds NaN or infinities.
    """
    if volume.kind != "hu":
        raise ContractError(
            "; ".join((f"a store holds scans in Hounsfield units, this volume is {volume.kind!r}", *volume.notes)),
            where=volume.source or None,
            do="give the CT in HU (label maps, MR, 0..1 and 8-bit images have no place in a store); where you know that it is, "
            "read with kind='hu' or prepare with --i-know",
        )
    if np.issubdtype(volume.voxels.dtype, np.floating) and not np.isfinite(volume.voxels).all():
        bad = int((~np.isfinite(volume.voxels)).sum())
        raise ContractError(f"{bad} voxels are NaN or infinite", where=volume.source or None, do="repair the scan")
    turned = _filled(volume.reorient(ORIENTATION))
    settings = resampling_onto(grid, turned.spacing)
    if any(new is not None for new in settings.spacing):
        turned = _filled(turned.resample(settings.spacing, settings.rule))
    hu = turned.voxels
    if hu.dtype != np.int16:
        hu = np.clip(np.rint(hu), -32768, 32767).astype(np.int16)
    affine = geometry.as_affine(turned.affine)
    return Volume(np.ascontiguousarray(hu), affine, "hu", source=volume.source, notes=volume.notes)


def _filled(volume: Volume) -> Volume:
    """Fill set to air: scanners write -2000, 0 or anything there, and interpolation must not mix that in."""
    if volume.valid is None:
        return volume
    return volume.with_voxels(np.where(volume.valid, volume.voxels, np.asarray(AIR, dtype=volume.voxels.dtype)))
