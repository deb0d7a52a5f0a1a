"""Breathing as a smooth map of body millimetres that can be undone.

A map is given where it is used: for a point of the breathing body, `shift` is what leads back to the body at rest, as a
closed formula. The other direction is found by fixed-point steps (`undo`). Where the diaphragm has gone down by ``breath_mm``,
the anatomy at a point is that which lies ``breath_mm`` higher at rest. What moves, for a breath of 25 mm:

- inside the trunk, lungs, diaphragm and upper abdominal organs go down by up to 25 mm under the domes, kidneys by about half,
  nothing below the pelvic inlet or above the first rib;
- the spine and what lies beside it stands still; towards the chest wall the movement fades over four centimetres (organs slide
  there; a smooth map shears instead);
- ribs and breast bone go out by 2 to 4 mm and up by up to 3 mm, and the belly comes forward as much.

The determinant of the map's derivative is how much a piece of tissue has shrunk since rest: 0.5 to 1.7 for all allowed breaths
(tested). Lungs hold their mass, so it is also the factor on their density.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

LIMITS_MM = (-20.0, 40.0)
"""Breaths that the map is made for: full expiration to a very deep breath."""

_LOW, _HIGH = -100.0, 490.0
"""Body z between which anything moves."""


def smoothstep(t: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and a cubic with level ends between."""
    t = np.clip(t, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def shift(p: Float[np.ndarray, "3 ..."], breath_mm: float, kyphosis: float) -> Float[np.ndarray, "3 ..."]:
    """What leads from points of the breathing body (body millimetres) to where they are at rest."""
    out = np.zeros_like(p)
    if breath_mm == 0:
        return out
    moved = (p[2] > _LOW) & (p[2] < _HIGH)
    if not moved.all():
        if moved.any():
            out[:, moved] = shift(p[:, moved], breath_mm, kyphosis)
        return out
    x, y, z = p
    # The middle of the vertebral bodies, as a smooth curve within 4 mm of `space.spine_y`.
    spine = kyphosis * (8 * np.exp(-(((z - 75) / 70) ** 2)) - 28 * np.exp(-(((z - 355) / 110) ** 2)))
    ahead = y - spine
    # 0 at the vertebrae and all the way behind them, 1 from 62 mm on.
    beside = smoothstep((np.hypot(x, np.maximum(ahead, 0)) - 26) / 36)
    back = -60 - 0.17 * (z - 130)
    wall = np.hypot(x / 124, (2 * y - 94 - back) / (94 - back))
    inside = 1 - smoothstep((wall - 0.7) / 0.34)
    fall = smoothstep((z - _LOW) / 320) * (1 - smoothstep((z - 240) / 230))
    chest = smoothstep((z + 60) / 140) * (1 - smoothstep((z - 360) / 130))
    front = chest * smoothstep((ahead - 24) / 80)
    out[0] = -0.16 * breath_mm * chest * x * np.abs(x) / (x * x + 6400)
    out[1] = -0.16 * breath_mm * front
    out[2] = breath_mm * (fall * inside * beside - 0.12 * front * (1 - inside))
    return out


def undo(rest: Float[np.ndarray, "3 ..."], breath_mm: float, kyphosis: float) -> Float[np.ndarray, "3 ..."]:
    """Where points at rest lie in the breathing body, to 0.0001 mm."""
    if breath_mm == 0:
        return rest
    p = rest - shift(rest, breath_mm, kyphosis)
    for _ in range(80):
        miss = rest - p - shift(p, breath_mm, kyphosis)
        if np.abs(miss).max(initial=0) < 1e-4:
            break
        p = p + miss
    return p


def shrinkage(p: Float[np.ndarray, "3 ..."], breath_mm: float, kyphosis: float) -> Float[np.ndarray, "..."]:
    """Volume at rest over volume now, at points of the breathing body: the determinant of the map, by central differences."""
    if breath_mm == 0:
        return np.ones(p.shape[1:])
    columns = []
    for axis in range(3):
        step = np.zeros((3,) + (1,) * (p.ndim - 1))
        step[axis] = 0.5
        columns.append(shift(p + step, breath_mm, kyphosis) - shift(p - step, breath_mm, kyphosis))
    a, b, c = columns
    a[0] += 1
    b[1] += 1
    c[2] += 1
    return np.asarray(
        a[0] * (b[1] * c[2] - b[2] * c[1]) - b[0] * (a[1] * c[2] - a[2] * c[1]) + c[0] * (a[1] * b[2] - a[2] * b[1])
    )
