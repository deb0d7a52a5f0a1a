"""Signed distances, negative inside: on the lattice for what is smooth, voxel by voxel for tubes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.phantom.space import Patch, Slices, Space

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]


def tube(
    space: Space, points: np.ndarray, radii: float | Sequence[float] | np.ndarray, *, margin: float | None = None
) -> tuple[Slices, Field] | None:
    """Signed distance to a chain of round cones through body `points` (n, 3) with `radii` in millimetres, in its box.

    Between two points the radius changes linearly with the place of the nearest point of the axis. None: out of view.
    In a child radii shrink with the body and the distance is one of the adult reference, as those on the lattice are.
    """
    points = np.asarray(points, dtype=np.float64)
    radii = np.broadcast_to(np.asarray(radii, dtype=np.float64), len(points)) * space.pose.size(points[:, 2])
    return tube_in_world(space, space.pose.world(points), radii, margin=margin)


def tube_in_world(
    space: Space, world: np.ndarray, radii: float | Sequence[float] | np.ndarray, *, margin: float | None = None
) -> tuple[Slices, Field] | None:
    """`tube` for points and radii in world millimetres."""
    radii = np.broadcast_to(np.asarray(radii, dtype=np.float64), len(world))
    extra = 1.5 * max(space.steps) if margin is None else margin
    box = _box(space, world, float(radii.max()) + extra)
    if box is None:
        return None
    distance = np.full(tuple(s.stop - s.start for s in box), 99, dtype=np.float32)
    for a, b, ra, rb in zip(world[:-1], world[1:], radii[:-1], radii[1:], strict=True):
        part = _box(space, np.stack([a, b]), max(ra, rb) + extra)
        if part is not None:
            inner = tuple(slice(p.start - s.start, p.stop - s.start) for p, s in zip(part, box, strict=True))
            near = distance[inner]
            np.minimum(near, _cone(space, part, a, b, ra, rb), out=near)
    if space.size != 1:
        distance /= np.float32(space.size)
    return box, distance


def tube_in_body(
    space: Space, points: np.ndarray, radii: float | Sequence[float] | np.ndarray
) -> tuple[Slices, Field] | None:
    """`tube` measured in body millimetres: it bends, shears and breathes with what is around it.

    For wide organs; a narrow vessel's section stays round in `tube`, which costs a third of the time.
    """
    points = np.asarray(points, dtype=np.float64)
    radii = np.broadcast_to(np.asarray(radii, dtype=np.float64), len(points))
    corners = np.array(list(np.ndindex(3, 3, 3)), dtype=np.float64) - 1
    reach = radii + 1.5 * max(space.steps) / space.size
    hull = points[:, None] + reach[:, None, None] * corners[None]  # (n, 27, 3)
    world = space.pose.world(hull.reshape(-1, 3)).reshape(hull.shape)
    box = _box(space, world.reshape(-1, 3), 0.0)
    if box is None:
        return None
    coordinates = space.coordinates(box)
    distance = np.full(coordinates[0].shape, 99, dtype=np.float32)
    for k in range(len(points) - 1):
        part = _box(space, world[k : k + 2].reshape(-1, 3), 0.0)
        if part is not None:
            inner = tuple(slice(p.start - s.start, p.stop - s.start) for p, s in zip(part, box, strict=True))
            near = distance[inner]
            x, y, z = (c[inner] for c in coordinates)
            np.minimum(near, _cone_at(x, y, z, points[k], points[k + 1], radii[k], radii[k + 1]), out=near)
    return box, distance


def _cone_at(x: Field, y: Field, z: Field, a: np.ndarray, b: np.ndarray, ra: float, rb: float) -> Field:
    axis = (b - a).astype(np.float32)
    d = [c - np.float32(o) for c, o in zip((x, y, z), a, strict=True)]
    t = d[0] * axis[0]
    t += d[1] * axis[1]
    t += d[2] * axis[2]
    t *= np.float32(1 / max(float(axis @ axis), 1e-6))
    np.clip(t, 0, 1, out=t)
    out = np.zeros_like(t)
    for c, step in zip(d, axis, strict=True):
        c -= t * step
        c *= c
        out += c
    np.sqrt(out, out=out)
    out -= np.float32(ra) + t * np.float32(rb - ra)
    return out


def _box(space: Space, points: np.ndarray, margin: float) -> Slices | None:
    """The voxels within `margin` millimetres of the bounding box of world points."""
    box = []
    for axis, step, world, sign in zip(space.axes, space.steps, (2, 1, 0), (1, -1, -1), strict=True):
        place = (points[:, world] - axis[0]) * sign / step
        start = max(int(np.ceil(place.min() - margin / step)), 0)
        stop = min(int(np.floor(place.max() + margin / step)) + 1, len(axis))
        if stop <= start:
            return None
        box.append(slice(start, stop))
    return box[0], box[1], box[2]


def _cone(space: Space, box: Slices, a: np.ndarray, b: np.ndarray, ra: float, rb: float) -> Field:
    z, y, x = (axis[part].astype(np.float32) for axis, part in zip(space.axes, box, strict=True))
    axis = (b - a).astype(np.float32)
    dz, dy, dx = z - np.float32(a[2]), y - np.float32(a[1]), x - np.float32(a[0])
    length = max(float(axis @ axis), 1e-6)
    t = (dz * axis[2])[:, None, None] + (dy * axis[1])[:, None] + (dx * axis[0])
    t *= np.float32(1 / length)
    np.clip(t, 0, 1, out=t)
    out = (dx - t * axis[0]) ** 2
    out += (dy[:, None] - t * axis[1]) ** 2
    out += (dz[:, None, None] - t * axis[2]) ** 2
    np.sqrt(out, out=out)
    out -= np.float32(ra)
    if ra != rb:
        out -= t * np.float32(rb - ra)
    return out


def smooth_path(points: Sequence[Sequence[float]] | np.ndarray, count: int) -> np.ndarray:
    """`count` points along a Catmull-Rom curve through `points` (rows may hold a radius as a fourth number)."""
    p = np.asarray(points, dtype=np.float64)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    at = np.linspace(0, len(p) - 3 - 1e-9, count)
    i = at.astype(int)
    t = (at - i)[:, None]
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    return np.asarray(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))


def ellipsoid(
    patch: Patch,
    centre: Sequence[float] | np.ndarray,
    radii: Sequence[float] | np.ndarray,
    turn: np.ndarray | None = None,
) -> np.ndarray:
    """Distance to an ellipsoid on the lattice, exact along rays from its centre, body millimetres."""
    u = np.stack([patch.x - centre[0], patch.y - centre[1], patch.z - centre[2]])
    if turn is not None:
        u = np.tensordot(turn.T.astype(np.float32), u, axes=1)
    r = np.sqrt((u**2).sum(axis=0))
    k = np.sqrt(sum((u[i] / radii[i]) ** 2 for i in range(3)))
    # Towards the centre a ray's length depends on its direction; the blend keeps the field smooth there for interpolation.
    return np.asarray(np.where(k > 0.3, r - r / np.maximum(k, 0.3), (k - 1) * min(radii)))


def smooth_min(a: np.ndarray, b: np.ndarray, blend: float | np.ndarray) -> np.ndarray:
    """Union of two shapes with a fillet of about `blend` millimetres (polynomial smooth minimum, Quilez)."""
    h = np.clip(0.5 + 0.5 * (b - a) / blend, 0, 1)
    return np.asarray(b + (a - b) * h - blend * h * (1 - h))
