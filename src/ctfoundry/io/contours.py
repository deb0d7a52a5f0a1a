"""Outlines and masks of one plane: which pixel centres a set of outlines holds, and the outlines of a mask.

Points are (row, column) in pixels, a pixel's centre at whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64

    Ring = Float64[np.ndarray, "n 2"]

_AT_ONCE = 1 << 22
"""Crossings of outlines with rows that are held in memory together."""
_FAR = 1e9
_MOST_NEAR = 32


def fill(rings: Sequence[Ring], shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels whose centres lie inside an odd number of `rings` (even-odd rule), each ring closed by its first point.

    So a ring in a ring is a hole, an island in a hole is inside again, and the channel of a keyhole outline, which runs to
    the hole and back on one line, encloses nothing. A centre on an outline counts as inside on the side of lower rows and
    columns, so that regions that share an outline share no pixel. Rings may reach beyond the image by any length.
    """
    rows, columns = shape
    out = np.zeros(shape, dtype=bool)
    if not rings:
        return out
    first = np.concatenate(list(rings))
    second = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    first, second = np.clip(first, -_FAR, _FAR), np.clip(second, -_FAR, _FAR)
    # The same two points make the same edge in either direction, to the last bit: channels cancel exactly.
    swap = (first[:, 0] > second[:, 0])[:, None]
    low, high = np.where(swap, second, first), np.where(swap, first, second)
    top = np.clip(np.ceil(low[:, 0]), 0, rows).astype(np.int64)
    stop = np.clip(np.ceil(high[:, 0]), 0, rows).astype(np.int64)  # rows r with low <= r < high
    count = stop - top
    crosses = count > 0
    low, high, top, count = low[crosses], high[crosses], top[crosses], count[crosses]
    if count.size == 0:
        return out
    slope = (high[:, 1] - low[:, 1]) / (high[:, 0] - low[:, 0])
    toggles = np.zeros((rows, columns + 1), dtype=np.uint8)
    groups = np.cumsum(count) // _AT_ONCE
    for begin, end in _runs(groups):
        some = slice(begin, end)
        edge = np.repeat(np.arange(begin, end), count[some])
        ends = np.cumsum(count[some])
        row = np.arange(ends[-1]) - np.repeat(ends - count[some], count[some]) + top[edge]
        column = low[edge, 1] + (row - low[edge, 0]) * slope[edge]
        at = np.clip(np.ceil(column), 0, columns).astype(np.int64)
        flat = np.bincount(row * (columns + 1) + at, minlength=toggles.size)
        toggles ^= (flat & 1).astype(np.uint8).reshape(toggles.shape)
    np.bitwise_xor.accumulate(toggles[:, :columns], axis=1, out=toggles[:, :columns])
    return toggles[:, :columns].astype(bool)


def _runs(groups: np.ndarray) -> list[tuple[int, int]]:
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(groups)], strict=True))


def trace(mask: Bool[np.ndarray, "h w"]) -> list[Ring]:
    """Outlines of a mask, halfway between the centres of pixels inside and outside, one ring for each connected region.

    A hole is joined to its region by a channel of no width (the keyhole technique, DICOM PS3.3 C.8.8.6.3), so that readers
    that take the union of outlines and readers that take their exclusive or get the same region. `fill` gives back the mask
    exactly: no centre is nearer to an outline than a third of a pixel, channels apart.
    """
    import contourpy

    hit_rows, hit_columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if hit_rows.size == 0:
        return []
    top, left = int(hit_rows[0]), int(hit_columns[0])
    part = mask[top : int(hit_rows[-1]) + 1, left : int(hit_columns[-1]) + 1]
    generator = contourpy.contour_generator(
        z=np.pad(part, 1).astype(np.float64), name="serial", fill_type=contourpy.FillType.OuterOffset
    )
    regions, offsets = cast("tuple[list[np.ndarray], list[np.ndarray]]", generator.filled(0.5, 2.0))
    result = []
    for points, at in zip(regions, offsets, strict=True):
        yx = np.asarray(points)[:, ::-1] + (top - 1, left - 1)
        rings = [_corners(yx[a : b - 1]) for a, b in pairwise(at)]  # the last point is the first
        result.append(_keyhole(rings))
    return result


def _corners(ring: Ring) -> Ring:
    """The ring without the points that lie on the line of their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]  # exact: all are halves
    return ring[turns]


def _keyhole(rings: list[Ring]) -> Ring:
    """One ring of an outer ring and its holes, each joined to what lies nearest of the rest, nearest hole first.

    Beyond `_MOST_NEAR` holes only the outer ring and the first of them are looked at; channels may then run through a hole,
    which changes nothing inside.
    """
    from scipy.spatial import cKDTree

    if len(rings) == 1:
        return rings[0]
    sizes = [len(ring) for ring in rings]
    points, owner = np.concatenate(rings), np.repeat(np.arange(len(rings)), sizes)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    distance, target = cKDTree(rings[0]).query(points)  # of each point to what is joined already
    left = np.arange(1, len(rings))
    joined: list[tuple[int, int, int]] = []  # (hole, its point, the point that it is joined to)
    while left.size:
        nearest = np.minimum.reduceat(distance, first)[left]
        hole = int(left[int(nearest.argmin())])
        own = slice(first[hole], first[hole] + sizes[hole])
        at = int(first[hole] + distance[own].argmin())
        joined.append((hole, at, int(target[at])))
        left = left[left != hole]
        if len(joined) < _MOST_NEAR and left.size:
            others = np.flatnonzero(np.isin(owner, left))
            closer, index = cKDTree(rings[hole]).query(points[others])
            better = closer < distance[others]
            distance[others[better]] = closer[better]
            target[others[better]] = first[hole] + index[better]
    detours: dict[int, list[np.ndarray]] = {}
    for hole, at, end in reversed(joined):  # whatever is joined to a hole came after it
        path = _walk(np.roll(np.arange(first[hole], first[hole] + sizes[hole]), first[hole] - at), detours)
        detours.setdefault(end, []).append(np.append(path, [at, end]))
    return points[_walk(np.arange(sizes[0]), detours)]


def _walk(ring: np.ndarray, detours: dict[int, list[np.ndarray]]) -> np.ndarray:
    """The points of a ring in order, with the detours that begin at them."""
    pieces, begin = [], 0
    for k in [k for k, point in enumerate(ring.tolist()) if point in detours]:
        pieces += [ring[begin : k + 1], *detours.pop(int(ring[k]))]
        begin = k + 1
    return np.concatenate([*pieces, ring[begin:]])


def between(first: np.ndarray, second: np.ndarray, share: float) -> Bool[np.ndarray, "h w"]:
    """The mask at `share` of the way from one mask to another (both True somewhere), by their signed distances.

    Shape-based interpolation (Raya and Udupa, IEEE Trans. Med. Imaging 9, 1990).
    """
    both = first | second
    box = tuple(
        slice(max(int(hit[0]) - 1, 0), int(hit[-1]) + 2)
        for hit in (np.flatnonzero(both.any(axis=1)), np.flatnonzero(both.any(axis=0)))
    )
    out = np.zeros_like(first)
    out[box] = (1 - share) * _signed(first[box]) + share * _signed(second[box]) > 0
    return out


def _signed(mask: np.ndarray) -> np.ndarray:
    """Distance to the outline in pixels, positive inside."""
    from scipy.ndimage import distance_transform_edt

    padded = np.pad(mask, 1)
    inside = distance_transform_edt(padded) - 0.5
    outside = distance_transform_edt(~padded) - 0.5
    return np.asarray(np.where(padded, inside, -outside)[1:-1, 1:-1])
