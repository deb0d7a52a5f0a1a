"""Slices moved onto a right-angled, evenly spaced grid: gantry tilt undone, gaps filled in (`stack.Plan`).

A slice keeps its in-plane sampling: it is moved by a part of a pixel along its rows and columns, by linear interpolation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.io.stack import Plan

if TYPE_CHECKING:
    from jaxtyping import Bool, Shaped

_EPS = 1e-6


def regrid(
    plan: Plan,
    slices: Shaped[np.ndarray, "n h w"],
    valid: Bool[np.ndarray, "n h w"] | None,
    fill: float,
    each: Callable[[int, Callable[[int], None]], None],
) -> tuple[Shaped[np.ndarray, "d h2 w2"], Bool[np.ndarray, "d h2 w2"] | None]:
    """(voxels, valid) on `plan.grid` of slices in the plan's order.

    Interpolation takes valid voxels only; a voxel is valid when more than half of what it is made of is. What lies beside
    the slices gets `fill` and is not valid; nothing of a slice is cut. Layers in gaps are interpolated and not valid.
    Whole numbers stay whole: they are rounded to the nearest. `each` runs a function for 0..n-1.
    """
    if plan.shift is not None:
        slices, valid = _sheared(plan, slices, valid, fill, each)
    if plan.between is not None:
        slices, valid = _filled(plan, slices, valid, fill, each)
    return slices, valid


def _sheared(
    plan: Plan, slices: np.ndarray, valid: np.ndarray | None, fill: float, each: Callable
) -> tuple[np.ndarray, np.ndarray]:
    assert plan.shift is not None
    _, rows, columns = plan.grid.shape
    out = np.empty((len(slices), rows, columns), slices.dtype)
    mask = np.empty(out.shape, bool)

    def one(k: int) -> None:
        values = slices[k].astype(np.float64)
        weight = np.ones(values.shape) if valid is None else valid[k].astype(np.float64)
        values *= weight
        for axis, (size, by) in enumerate(zip((rows, columns), plan.shift[k], strict=True)):  # type: ignore[index]
            values, weight = _moved(values, axis, size, by), _moved(weight, axis, size, by)
        mask[k] = weight > 0.5
        out[k] = _quotient(values, weight, mask[k], fill, slices.dtype)

    each(len(slices), one)
    return out, mask


def _moved(image: np.ndarray, axis: int, size: int, by: float) -> np.ndarray:
    """`image` moved by `by` >= 0 pixels along `axis` into a frame of `size`; outside it is 0, edges count to their outer half."""
    image = np.moveaxis(image, axis, 0)
    out = np.zeros((size, *image.shape[1:]))
    place = np.arange(size) - by  # in pixels of the image
    n = len(image)
    inside = np.flatnonzero((place >= -0.5 - _EPS) & (place <= n - 0.5 + _EPS))
    place = np.clip(place[inside], 0, n - 1)
    low = np.minimum(np.floor(place + _EPS).astype(int), n - 1)
    part = np.clip(place - low, 0, 1)[:, None]
    out[inside] = image[low] * (1 - part) + image[np.minimum(low + 1, n - 1)] * part
    return np.moveaxis(out, 0, axis)


def _filled(
    plan: Plan, slices: np.ndarray, valid: np.ndarray | None, fill: float, each: Callable
) -> tuple[np.ndarray, np.ndarray | None]:
    assert plan.between is not None
    assert plan.gaps is not None
    place, gaps = plan.between, plan.gaps
    out = np.empty((len(place), *slices.shape[1:]), slices.dtype)
    mask = np.ones(out.shape, bool)

    def one(k: int) -> None:
        low = int(place[k])
        part = float(place[k]) - low
        if part == 0:
            out[k] = slices[low]
            mask[k] = True if valid is None else valid[low]
            return
        a, b = (np.ones(out.shape[1:]) if valid is None else valid[j].astype(np.float64) for j in (low, low + 1))
        a *= 1 - part
        b *= part
        weight = a + b
        measured = weight > 0.5
        out[k] = _quotient(slices[low] * a + slices[low + 1] * b, weight, measured, fill, slices.dtype)
        mask[k] = measured & ~gaps[k]

    each(len(place), one)
    return out, None if mask.all() else mask


def _quotient(values: np.ndarray, weight: np.ndarray, where: np.ndarray, fill: float, dtype: np.dtype) -> np.ndarray:
    result = np.full(values.shape, float(fill))
    np.divide(values, weight, out=result, where=where)
    return np.rint(result).astype(dtype) if dtype.kind in "iu" else result.astype(dtype)
