"""Aneurysms: a stretch of the aorta, widened, partly filled with thrombus, its wall calcified."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.disease import SEGMENT_Z, attribute
from ctfoundry.phantom.names import GROUPS, IDS
from ctfoundry.phantom.place import Atlas, Spot, box_around
from ctfoundry.phantom.spec import Lesion
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.tissue import Tissue

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64

    Field = Float32[np.ndarray, "d h w"]

_FIRM = (*GROUPS["vertebrae"], *GROUPS["ribs"], "sternum", "intervertebral_disc", "spinal_cord", "trachea", "skin")
"""What an aneurysm does not push aside."""
_HEALTHY_MM = 10.5
"""Radius at which an aneurysm's ends join the aorta."""


def vessel_line(
    chart: Atlas, name: str, heights: tuple[float, float], pick: str = "only"
) -> Float64[np.ndarray, "n 3"]:
    """Body points along a vessel that runs up, one for each plane of the atlas, smoothed; `pick` says which cut where there are two:
    "only" takes all voxels together, "front" and "back" the foremost or hindmost part."""
    import scipy.ndimage as ndi

    mask = chart.labels == IDS[name]
    points = []
    for plane in np.flatnonzero(mask.any(axis=(1, 2))):
        cut = mask[plane]
        if pick != "only":
            parts, count = ndi.label(cut)
            rows = [float(np.argwhere(parts == i + 1)[:, 0].mean()) for i in range(count)]
            cut = parts == 1 + int(np.argmin(rows) if pick == "front" else np.argmax(rows))
        middle = np.argwhere(cut).mean(0)
        points.append((plane, *middle))
    if len(points) < 4:
        return np.zeros((0, 3))
    line = chart.body(ndi.gaussian_filter1d(np.array(points, dtype=float), 1.5, axis=0, mode="nearest"))
    return np.asarray(line[(line[:, 2] >= heights[0]) & (line[:, 2] <= heights[1])])


def paint_aneurysm(canvas: Canvas, body: Body, tissue: Tissue, lesion: Lesion, mark: int, chart: Atlas) -> None:
    """A spindle along the aorta, bulging forwards and sideways more than towards the spine."""
    key = Key.of("phantom", "lesion", lesion.kind, lesion.seed)
    segment = attribute(lesion, "segment")
    middle = SEGMENT_Z[segment] + float(key("place").uniform(-12, 12))
    half = 0.85 * lesion.size_mm
    ends = {"infrarenal": (42, 250), "descending": (120, 372), "ascending": (322, 378)}[segment]
    line = vessel_line(chart, "aorta", ends, {"ascending": "front", "descending": "back"}.get(segment, "only"))
    if len(line) < 4:
        return
    world = canvas.space.pose.world(line[np.abs(line[:, 2] - middle) <= half + 12])
    box = None if len(world) == 0 else box_around(canvas.space, world, lesion.size_mm)
    if box is None:
        return
    x, y, z = canvas.space.coordinates(box)
    order = np.argsort(line[:, 2])
    cx, cy = (np.interp(z, line[order, 2], line[order, i]).astype(np.float32) for i in (0, 1))
    at = Spot.of(chart.pose, line[int(np.argmin(np.abs(line[:, 2] - middle)))])
    scale = np.linalg.norm(at.metric, axis=0).astype(np.float32)
    along = (z - middle) * scale[2]
    bulge = np.where(np.abs(along) < half, 0.5 + 0.5 * np.cos(np.pi * np.clip(along / half, -1, 1)), 0) ** 0.7
    radius = _HEALTHY_MM + (lesion.size_mm / 2 - _HEALTHY_MM) * bulge
    # Bone is behind: the sac grows forwards, and a little to the left.
    turn = float(key("turn").uniform(0.2, 0.9))
    shift = 0.82 * (radius - _HEALTHY_MM)
    u, v = (x - cx) * scale[0] + np.sin(turn) * shift, (y - cy) * scale[1] - np.cos(turn) * shift
    rho, angle = np.hypot(u, v), np.arctan2(v, u)
    lumpy = 1 + 0.035 * np.sin(2 * angle + float(key("a").uniform(0, 6))) * bulge
    lumpy += 0.03 * np.sin(3 * angle + z / 11 + float(key("b").uniform(0, 6))) * bulge
    distance = np.where(bulge > 0.02, rho - radius * lumpy, 99).astype(np.float32)
    free = [name for name in IDS if name not in _FIRM]
    canvas.paint(box, distance - np.float32(1.3), 38, None, over=("visceral_fat", "small_bowel", "colon", "duodenum"))
    blood = tissue("artery")
    if attribute(lesion, "thrombus") == "yes":
        grain = sample(key("grain"), x, y, z, blob_mm=9)
        canvas.paint(box, distance, 40 + 6 * grain, "aorta", over=free, mark=mark)
        # The stream stays near the healthy vessel's place; clot lines the rest, thickest in front.
        open_mm = 8.5 + 0.42 * (radius - _HEALTHY_MM)
        lumen = np.hypot(u - 0.3 * np.sin(turn) * shift, v + 0.3 * np.cos(turn) * shift) - open_mm
        lumen = np.maximum(lumen + 1.2 * grain, distance + 1.5)
        canvas.paint(box, lumen.astype(np.float32), blood, None, over=("aorta",))
    else:
        canvas.paint(box, distance, blood, "aorta", over=free, mark=mark)
    plaque = np.clip(2 * (sample(key("plaque"), x, y, z, blob_mm=12) - 0.5), 0, 1)
    canvas.blend(box, canvas.share(np.abs(distance + 0.9) - 0.8) * plaque, 620.0, over=("aorta",))
