"""From slice positions to one grid, or to the error that says why there is none.

Slices are ordered by the projection of Image Position (Patient) on the normal of Image Orientation (Patient) (DICOM PS3.3
C.7.6.2.1.1), never by Instance Number, which counts whatever the maker liked to count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ctfoundry import geometry
from ctfoundry.errors import (
    DuplicateSlicesError,
    GeometryError,
    IrregularSpacingError,
    MissingSlicesError,
)
from ctfoundry.geometry import ORIENTATION_TOLERANCE, POSITION_TOLERANCE_MM, SAME_GRID_MM, SPACING_TOLERANCE, Grid
from ctfoundry.io.dicom_header import Header

LARGEST_TILT_DEG = 45.0
"""Gantries tilt by up to 30 degrees; slices that shift sideways by more than this are something else."""
WIDE_GAP = 1.5
"""Slice distances of more than so many steps are gaps: what is filled in there was not measured."""
MOST_FILLED = 10
"""Gaps are filled while that makes at most so many times as many slices."""

_SHOWN = 12  # positions listed in a message


@dataclass(frozen=True, eq=False)
class Plan:
    """How slices become one volume.

    Attributes
    ----------
    headers : the slices in the order of their positions along the normal.
    grid : the grid of the volume.
    shift : (slices, 2) how many (rows, columns) each slice is moved on that grid to undo a gantry tilt; None without one.
    between : (d,) for each layer of the grid the place among the slices that it is interpolated at; None where every layer
        is a slice.
    gaps : (d,) True for layers inside a gap; None where every layer is a slice.
    tilt_deg : angle of the gantry tilt, 0 without one.
    notes : what a person should know of it.
    """

    headers: list[Header]
    grid: Grid
    shift: np.ndarray | None = None
    between: np.ndarray | None = None
    gaps: np.ndarray | None = None
    tilt_deg: float = 0.0
    notes: tuple[str, ...] = ()


def group(headers: Iterable[Header]) -> list[list[Header]]:
    """Slices that could lie in one volume: of one series, size, in-plane spacing and orientation.

    Order: by series as met first, then by orientation as met first.
    """
    by_series: dict[str, list[list[Header]]] = {}
    exact: dict[tuple[object, ...], list[Header]] = {}
    for header in headers:
        key = (header.series, header.rows, header.columns, header.spacing, header.orientation)
        if key in exact:
            exact[key].append(header)
            continue
        stacks = by_series.setdefault(header.series, [])
        for stack in stacks:
            if _alike(stack[0], header):
                stack.append(header)
                break
        else:
            stack = [header]
            stacks.append(stack)
        exact[key] = stack
    return [stack for stacks in by_series.values() for stack in stacks]


def _alike(a: Header, b: Header) -> bool:
    if (a.rows, a.columns) != (b.rows, b.columns) or len(a.spacing) != len(b.spacing):
        return False
    drift = max((abs(x - y) for x, y in zip(a.spacing, b.spacing, strict=True)), default=0.0)
    if drift * max(a.rows, a.columns) > POSITION_TOLERANCE_MM:
        return False
    return all(abs(x - y) <= ORIENTATION_TOLERANCE for x, y in zip(a.orientation, b.orientation, strict=False))


def plan(headers: Sequence[Header], where: str, *, allow_gaps: bool = False) -> Plan:
    """The grid of slices of one group, in any order, and how they come onto it.

    Rules, with the tolerances of `geometry`: positions nearer than SAME_GRID_MM are duplicates; the line through the slices
    runs along their normal to ORIENTATION_TOLERANCE, else the gantry was tilted and the slices are moved back in their
    plane; no slice is further than POSITION_TOLERANCE_MM beside that line; distances differ from their median by no more
    than SPACING_TOLERANCE (or by what rounding positions to hundredths explains), whole multiples of it are missing slices.

    Parameters
    ----------
    allow_gaps : take missing slices and irregular distances: the grid then steps by the median distance (stretched so that
        both ends are met) and its layers are interpolated linearly.

    Raises DuplicateSlicesError, MissingSlicesError, IrregularSpacingError or GeometryError, with positions in mm along the
    normal.
    """
    first = headers[0]
    across, down, normal = axes(first, where)
    points = np.array([h.position for h in headers], dtype=np.float64)
    along = points @ normal
    order = np.argsort(along, kind="stable")
    points, along = points[order], along[order]
    ordered = [headers[k] for k in order]
    lps = np.eye(4)
    lps[:3, 1], lps[:3, 2], lps[:3, 3] = down * first.spacing[0], across * first.spacing[1], points[0]
    count, rows, columns = len(headers), first.rows, first.columns
    if count == 1:
        lps[:3, 0] = normal * _thickness(first, where)
        return Plan(ordered, _grid(count, rows, columns, lps))
    _check_duplicates(along, where)
    sideways = _sideways(points, along, normal, where)
    between, gaps, notes = None, None, []
    try:
        _check_distances(along, where)
    except (MissingSlicesError, IrregularSpacingError):
        if not allow_gaps:
            raise
        between, gaps, note = _filled(along, where)
        count = len(between)
        notes.append(note)
    shift, tilt = None, float(np.degrees(np.arctan(np.linalg.norm(sideways))))
    if np.linalg.norm(sideways) <= ORIENTATION_TOLERANCE:
        lps[:3, 0] = (points[-1] - points[0]) / (count - 1)
        tilt = 0.0
    else:
        lps[:3, 0] = normal * (along[-1] - along[0]) / (count - 1)
        per_mm = np.array([sideways @ down / first.spacing[0], sideways @ across / first.spacing[1]])
        shift = np.outer(along - along[0], per_mm)
        lowest = shift.min(axis=0)
        shift -= lowest
        grown = np.ceil(np.abs(shift).max(axis=0) - 1e-3).astype(int)
        rows, columns = rows + int(grown[0]), columns + int(grown[1])
        lps[:3, 3] = points[0] + lps[:3, 1:3] @ lowest
        notes.insert(0, f"gantry tilt of {tilt:.1f} degrees undone by a shear")
    return Plan(ordered, _grid(count, rows, columns, lps), shift, between, gaps, tilt, tuple(notes))


def _grid(count: int, rows: int, columns: int, lps: np.ndarray) -> Grid:
    return Grid((count, rows, columns), geometry.as_affine(geometry.LPS_TO_RAS @ lps))


def axes(header: Header, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along a row, down a column and along the normal, LPS."""
    if len(header.spacing) != 2 or not all(1e-4 < s < 1e3 for s in header.spacing):
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


def _sideways(points: np.ndarray, along: np.ndarray, normal: np.ndarray, where: str) -> np.ndarray:
    """How far slices shift in their plane per millimetre along the normal, LPS (3,): the tangent of a gantry tilt."""
    direction = (points[-1] - points[0]) / (along[-1] - along[0])
    shift = direction - normal
    tilt = float(np.degrees(np.arctan(np.linalg.norm(shift))))
    beside = np.linalg.norm(points - points[0] - np.outer(along - along[0], direction), axis=1)
    off = along[beside > POSITION_TOLERANCE_MM]
    if off.size:
        raise GeometryError(
            f"{off.size} slices lie up to {beside.max():.2f} mm beside the line through the others: "
            f"{_listed(off)} mm along the normal",
            where=where,
            do="check that the folder holds one acquisition",
        )
    if tilt > LARGEST_TILT_DEG:
        raise GeometryError(
            f"its slices are shifted sideways by {tilt:.1f} degrees as they advance; no gantry tilts that far",
            where=where,
            do="check its positions and orientation",
        )
    return np.asarray(shift)


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


def _filled(along: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray, str]:
    """(place of each layer among the slices, whether it lies in a gap, note) for slices at uneven positions `along`."""
    distances = np.diff(along)
    median = float(np.median(distances))
    length = float(along[-1] - along[0])
    count = round(length / median) + 1
    if count > MOST_FILLED * len(along):
        raise MissingSlicesError(
            f"its {len(along)} slices are so far apart that {count:,} would be needed at steps of {median:.3f} mm",
            where=where,
            do="read its pieces one by one",
        )
    step = length / (count - 1)
    layers = along[0] + step * np.arange(count)
    place = np.interp(layers, along, np.arange(len(along)))
    nearest = np.rint(place).astype(int)
    on = np.abs(layers - along[nearest]) <= max(SPACING_TOLERANCE * step, 2 * SAME_GRID_MM)
    place = np.where(on, nearest, place)
    wide = distances > WIDE_GAP * median
    gaps = ~on & wide[np.minimum(place.astype(int), len(wide) - 1)]
    at = ", ".join(f"{a:.2f} to {b:.2f}" for a, b in list(zip(along[:-1][wide], along[1:][wide], strict=True))[:_SHOWN])
    more = f" and {wide.sum() - _SHOWN} more" if wide.sum() > _SHOWN else ""
    note = f"{len(along)} slices at uneven distances resampled onto {count} at {step:.3f} mm"
    if wide.any():
        note += f"; nothing was measured from {at}{more} mm along the normal"
    return place, gaps, note


def _listed(values: Iterable[float]) -> str:
    numbers = [f"{v:.2f}" for v in values]
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return ", ".join(numbers[:_SHOWN]) + more
