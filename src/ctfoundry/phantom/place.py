"""Where a lesion sits: the same point of the patient in every scan, found on a coarse map of the patient at rest.

A lesion is given by a seed and a structure, not by a point. Its place is looked up on an `Atlas`: the patient's own label
map at 4 mm, painted without contrast, turn or breath. The chosen point is kept in body millimetres, so it follows pose and
breath, and depends neither on the scan nor on the lesion's size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.space import Pose, Slices, Space
from ctfoundry.phantom.spec import Z_RANGE, Acquisition, Subject
from ctfoundry.phantom.tissue import Tissue

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Float64, UInt8

Paint = Callable[[Canvas, Body, Tissue], None]
"""Paints all of a healthy body."""

STEP_MM = 4.0
"""Voxels of an atlas."""
HALF_FIELD_MM = 230.0
"""What an atlas holds on each side of the patient's middle."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """Where a patient's structures lie at rest: labels (d, h, w) on voxels at world `axes` (z rising, y and x falling)."""

    labels: UInt8[np.ndarray, "d h w"]
    axes: tuple[np.ndarray, np.ndarray, np.ndarray]
    pose: Pose

    def mask(self, names: Collection[str]) -> Bool[np.ndarray, "d h w"]:
        """Voxels of these structures."""
        wanted = np.zeros(256, dtype=bool)
        wanted[[IDS[n] for n in names]] = True
        return wanted[self.labels]

    def body(self, index: np.ndarray) -> Float64[np.ndarray, "n 3"]:
        """Body millimetres (x, y, z) of voxel coordinates (n, 3), which may lie between voxels."""
        z, y, x = (a[0] + (a[1] - a[0]) * i for a, i in zip(self.axes, np.asarray(index, dtype=float).T, strict=True))
        return np.asarray(self.pose.body(np.stack([x, y, z])).T)


@functools.lru_cache(maxsize=6)
def _atlas(subject: Subject, low: float, high: float, paint: Paint) -> Atlas:
    scan = Acquisition(seed=0, z_range=(low, high), phase="none", noise_hu=0.0)
    pose = Pose.of(subject, scan)
    z = np.arange(low * subject.height, high * subject.height + STEP_MM, STEP_MM)
    across = np.arange(HALF_FIELD_MM, -HALF_FIELD_MM, -STEP_MM)
    canvas = Canvas.of(Space.of(pose, (z, across + 10, across)))
    body = Body(subject, scan)
    paint(canvas, body, Tissue(body))
    canvas.labels.setflags(write=False)
    return Atlas(canvas.labels, canvas.space.axes, pose)


def atlas(subject: Subject, heights: tuple[float, float], paint: Paint) -> Atlas:
    """The atlas of a patient between two body heights (mm); the last few are kept."""
    healthy = dataclasses.replace(subject, wear=0.0, lesions=(), devices=())
    return _atlas(healthy, max(heights[0], Z_RANGE[0]), min(heights[1], Z_RANGE[1]), paint)


@dataclass(frozen=True)
class Spot:
    """A point of the patient: body millimetres, and the matrix from body steps to millimetres of the patient at rest."""

    point: Float64[np.ndarray, "3"]
    metric: Float64[np.ndarray, "3 3"]

    @classmethod
    def of(cls, pose: Pose, point: np.ndarray) -> Spot:
        """The spot at a body point; `pose` is the one at rest."""
        steps = pose.world(np.concatenate([point + np.eye(3) * 2, point - np.eye(3) * 2]))
        return cls(point, np.asarray((steps[:3] - steps[3:]).T / 4))

    def box(self, space: Space, reach: float) -> Slices | None:
        """The voxels within `reach` millimetres, or None out of view."""
        return box_around(space, space.pose.world(self.point[None]), reach)

    def offsets(self, space: Space, box: Slices) -> Float32[np.ndarray, "3 d h w"]:
        """Millimetres from the spot at rest (x, y, z) of the voxels of a box."""
        u = np.stack(space.coordinates(box)) - self.point[:, None, None, None].astype(np.float32)
        return np.asarray(np.tensordot(self.metric.astype(np.float32), u, axes=1))


def box_around(space: Space, world: np.ndarray, reach: float) -> Slices | None:
    """The voxels within `reach` millimetres of the bounding box of world points (n, 3), or None out of view."""
    box = []
    for axis, step, column, sign in zip(space.axes, space.steps, (2, 1, 0), (1, -1, -1), strict=True):
        place = (world[:, column] - axis[0]) * sign / step
        start = max(int(np.ceil(place.min() - reach / step)), 0)
        stop = min(int(np.floor(place.max() + reach / step)) + 1, len(axis))
        if stop <= start:
            return None
        box.append(slice(start, stop))
    return box[0], box[1], box[2]


def choose(
    chart: Atlas, key: Key, site: Collection[str], over: Collection[str], *, room_mm: float, rim_mm: float | None = None
) -> Spot | None:
    """A random point of `site` with room around it, or None where the patient has no such structure.

    Room is the distance to what is not in `over`: `room_mm`, or where no tenth of the site has that much, what the roomiest
    tenth has. With `rim_mm` only points of the site within that distance of its surface are taken.
    """
    import scipy.ndimage as ndi

    inside = chart.mask(site)
    if not inside.any():
        return None
    reach = int(np.ceil((room_mm + 8) / STEP_MM))
    found = ndi.find_objects(inside.astype(np.uint8))[0]
    box = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in found)
    inside, allowed = inside[box], chart.mask({*site, *over})[box]
    candidates = inside if rim_mm is None else inside & (ndi.distance_transform_edt(inside) * STEP_MM <= rim_mm)
    room = np.where(candidates, ndi.distance_transform_edt(allowed) * STEP_MM, 0)
    enough = min(room_mm, float(np.quantile(room[candidates], 0.9)))
    place = np.argwhere(room >= enough)
    index = place[int(key("place").integers(0, len(place)))] + key("jitter").uniform(-0.5, 0.5, 3)
    return Spot.of(chart.pose, chart.body((index + [s.start for s in box])[None])[0])
