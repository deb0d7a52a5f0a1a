"""From slice positions to one regular grid, or to the error that says why there is none.

Slices are ordered by the projection of Image Position (Patient) on the normal of Image Orientation (Patient) (DICOM PS3.3
C.7.6.2.1.1), never by Instance Number, which counts whatever the maker liked to count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry import geometry
from ctfoundry.errors import (
    DuplicateSlicesError,
    GeometryError,
    IrregularSpacingError,
    MissingSlicesError,
)
from ctfoundry.geometry import ORIENTATION_TOLERANCE, POSITION_TOLERANCE_MM, SAME_GRID_MM, SPACING_TOLERANCE
from ctfoundry.io.dicom_header import Header

if TYPE_CHECKING:
    from ctfoundry.geometry import Affine

_SHOWN = 12  # positions listed in a message


def group(headers: Iterable[Header]) -> list[list[Header]]:
    """Slices that could lie in one volume: of one series, size, in-plane spacing and orientation.

    Order: by series as met first, then by orientation as met first.
    """
    by_series: dict[str, list[list[Header]]] = {}
    for header in headers:
        stacks = by_series.setdefault(header.series, [])
        for stack in stacks:
            if _alike(stack[0], header):
                stack.append(header)
                break
        else:
            stacks.append([header])
    return [stack for stacks in by_series.values() for stack in stacks]


def _alike(a: Header, b: Header) -> bool:
    if (a.rows, a.columns) != (b.rows, b.columns) or len(a.spacing) != len(b.spacing):
        return False
    drift = max((abs(x - y) for x, y in zip(a.spacing, b.spacing, strict=True)), default=0.0)
    if drift * max(a.rows, a.columns) > POSITION_TOLERANCE_MM:
        return False
    return all(abs(x - y) <= ORIENTATION_TOLERANCE for x, y in zip(a.orientation, b.orientation, strict=False))


def arrange(headers: Sequence[Header], where: str) -> tuple[list[Header], Affine]:
    """The slices in the order of their positions and the affine (d, h, w) -> RAS+ mm of their grid.

    Rules, with the tolerances of `geometry`: positions nearer than SAME_GRID_MM are duplicates; the line through the slices
    runs along their normal to ORIENTATION_TOLERANCE, else the gantry was tilted; no slice is further than
    POSITION_TOLERANCE_MM beside it; distances differ from their median by no more than SPACING_TOLERANCE (or by what
    rounding positions to hundredths explains), whole multiples of it are missing slices.

    Raises DuplicateSlicesError, MissingSlicesError, IrregularSpacingError or GeometryError, with positions in mm along the
    normal.
    """
    first = headers[0]
    across, down, normal = _axes(first, where)
    points = np.array([h.position for h in headers], dtype=np.float64)
    along = points @ normal
    order = np.argsort(along, kind="stable")
    points, along = points[order], along[order]
    ordered = [headers[k] for k in order]
    if len(headers) == 1:
        step = normal * _thickness(first, where)
    else:
        _check_duplicates(along, where)
        _check_line(points, along, normal, where)
        _check_distances(along, where)
        step = (points[-1] - points[0]) / (len(points) - 1)
    lps = np.eye(4)
    lps[:3, 0] = step
    lps[:3, 1] = down * first.spacing[0]
    lps[:3, 2] = across * first.spacing[1]
    lps[:3, 3] = points[0]
    return ordered, geometry.as_affine(geometry.LPS_TO_RAS @ lps)


def _axes(header: Header, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along a row, down a column and along the normal, LPS."""
    if len(header.spacing) != 2 or not all(0 < s < 1e3 for s in header.spacing):
        raise GeometryError(f"has a pixel spacing of {header.spacing or 'nothing'}", where=where)
    across, down = np.array(header.orientation[:3]), np.array(header.orientation[3:])
    sizes = np.linalg.norm(across), np.linalg.norm(down)
    if not (abs(np.array(sizes) - 1) <= ORIENTATION_TOLERANCE).all() or abs(across @ down) > ORIENTATION_TOLERANCE:
        raise GeometryError(
            f"its image orientation {header.orientation} is no pair of right-angled unit vectors", where=where
        )
    normal = np.cross(across, down)
    return across / sizes[0], down / sizes[1], normal / np.linalg.norm(normal)


def _thickness(header: Header, where: str) -> float:
    if header.thickness is None or not 0 < header.thickness < 1e3:
        raise GeometryError("is a single slice without a thickness", where=where, do="give all slices of the series")
    return header.thickness


def _check_duplicates(along: np.ndarray, where: str) -> None:
    twice = along[1:][np.diff(along) < SAME_GRID_MM]
    if twice.size:
        raise DuplicateSlicesError(
            f"{twice.size} of {along.size} slices repeat a position: {_listed(twice)} mm along the normal",
            where=where,
            do="keep one copy, phase or reconstruction of each position in the folder",
        )


def _check_line(points: np.ndarray, along: np.ndarray, normal: np.ndarray, where: str) -> None:
    direction = (points[-1] - points[0]) / (along[-1] - along[0])  # per millimetre along the normal
    drift = float(np.linalg.norm(direction - normal))
    if drift > ORIENTATION_TOLERANCE:
        raise GeometryError(
            f"its slices are shifted sideways as they advance (gantry tilt of {np.degrees(np.arctan(drift)):.1f} degrees)",
            where=where,
            do="undo the tilt first, e.g. with dcm2niix; this version does not",
        )
    beside = np.linalg.norm(points - points[0] - np.outer(along - along[0], direction), axis=1)
    off = along[beside > POSITION_TOLERANCE_MM]
    if off.size:
        raise GeometryError(
            f"{off.size} slices lie up to {beside.max():.2f} mm beside the line through the others: "
            f"{_listed(off)} mm along the normal",
            where=where,
            do="check that the folder holds one acquisition",
        )


def _check_distances(along: np.ndarray, where: str) -> None:
    gaps = np.diff(along)
    median = float(np.median(gaps))
    tolerance = max(SPACING_TOLERANCE * median, 2 * SAME_GRID_MM)  # two positions, each rounded to a hundredth
    wrong = np.abs(gaps - median) > tolerance
    if not wrong.any():
        return
    steps = np.rint(gaps / median)
    # A missing slice leaves a gap of whole steps, to the tolerance of each step.
    missing = wrong & (steps >= 2) & (np.abs(gaps - steps * median) <= steps * tolerance)
    if (missing == wrong).all():
        lost = [
            float(a + median * k)
            for a, n in zip(along[:-1][missing], steps[missing], strict=True)
            for k in range(1, min(int(n), _SHOWN + 2))
        ]
        count = int((steps[missing] - 1).sum())
        raise MissingSlicesError(
            f"{count} slices are missing at {_listed(lost)} mm along the normal (steps of {median:.3f} mm)",
            where=where,
            do="copy the series again, all of it",
        )
    raise IrregularSpacingError(
        f"slice distances run from {gaps.min():.3f} to {gaps.max():.3f} mm (median {median:.3f}); irregular behind "
        f"{_listed(along[:-1][wrong])} mm along the normal",
        where=where,
        do="give one evenly spaced series",
    )


def _listed(values: Iterable[float]) -> str:
    numbers = [f"{v:.2f}" for v in values]
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return ", ".join(numbers[:_SHOWN]) + more
