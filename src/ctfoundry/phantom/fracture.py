"""Fractures: what is beyond the break is moved aside, the gap is dark, an old one is wrapped in callus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import LEVEL_EDGES, LEVEL_NAMES, Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.disease import attribute
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.place import STEP_MM, Atlas, Spot
from ctfoundry.phantom.space import Slices
from ctfoundry.phantom.spec import Lesion
from ctfoundry.phantom.texture import sample

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]

_SOFT = ("muscle", "visceral_fat", "subcutaneous_fat", "autochthon_left", "autochthon_right", "gluteus_maximus_left",
         "gluteus_maximus_right", "gluteus_medius_left", "gluteus_medius_right", "gluteus_minimus_left",
         "gluteus_minimus_right", "iliopsoas_left", "iliopsoas_right")  # fmt: skip


def paint_fracture(canvas: Canvas, body: Body, lesion: Lesion, mark: int, chart: Atlas) -> None:
    """A broken rib or femur, or a wedge of a vertebra."""
    if lesion.site.startswith("vertebrae"):
        _paint_wedge(canvas, body, lesion, mark, chart)
    else:
        _paint_break(canvas, lesion, mark, chart)


def _axis(chart: Atlas, lesion: Lesion, key: Key) -> tuple[Spot, np.ndarray, float] | None:
    """A point in the middle of a long bone, the bone's direction there (mm at rest), and its half width."""
    voxels = np.argwhere(chart.labels == IDS[lesion.site]).astype(float)
    if len(voxels) < 12:
        return None
    spread = voxels - voxels.mean(0)
    main = np.linalg.svd(spread, full_matrices=False)[2][0]
    place = spread @ main
    low, high = (0.25, 0.75) if lesion.site.startswith("rib") else (0.3, 0.6)
    centre = voxels[int(np.argsort(place, kind="stable")[int(float(key("place").uniform(low, high)) * len(place))])]
    for _ in range(3):  # to the middle of the bone near by
        near = voxels[np.linalg.norm(voxels - centre, axis=1) * STEP_MM < 16]
        centre = near.mean(0)
    local = voxels[np.linalg.norm(voxels - centre, axis=1) * STEP_MM < 26]
    direction = np.linalg.svd(local - local.mean(0), full_matrices=False)[2][0]
    aside = (local - centre) - np.outer((local - centre) @ direction, direction)
    half = STEP_MM * (1.4 * float(np.sqrt((aside**2).sum(1).mean())) + 0.3)
    spot = Spot.of(chart.pose, chart.body(centre[None])[0])
    ends = chart.body(np.stack([centre - direction * 2, centre + direction * 2]))
    along = spot.metric @ (ends[1] - ends[0])
    return spot, along / np.linalg.norm(along), half


def _paint_break(canvas: Canvas, lesion: Lesion, mark: int, chart: Atlas) -> None:
    key = Key.of("phantom", "lesion", lesion.kind, lesion.seed)
    found = _axis(chart, lesion, key)
    if found is None:
        return
    spot, axis, half_width = found
    box = spot.box(canvas.space, 46.0)
    if box is None:
        return
    u = spot.offsets(canvas.space, box)
    # The break runs aslant.
    slant = key("slant").normal(3)
    slant = axis + 0.35 * (slant - axis * (slant @ axis)) / np.linalg.norm(slant)
    across = np.cross(slant, key("across").normal(3))
    across /= np.linalg.norm(across)
    grain = sample(key("grain"), u[0], u[1], u[2], blob_mm=5)
    plane = np.tensordot(slant / np.linalg.norm(slant), u, axes=1).astype(np.float32) + 0.7 * grain
    along = np.tensordot(axis, u, axes=1)
    aside = np.sqrt(np.maximum((u**2).sum(0) - along**2, 0))
    healing = attribute(lesion, "stage") == "healing"
    displacement = float(lesion.attributes.get("displacement_mm", "2"))
    # One side is moved, most at the break, and less the further away; tissue around follows.
    fade = np.clip(1.25 - np.abs(along) / 34, 0, 1) * np.clip(2 - aside / (half_width + 6), 0, 1)
    moved = displacement * np.clip(plane / 1.0 + 0.5, 0, 1) * fade
    _warp(canvas, box, spot, moved[None] * across[:, None, None, None].astype(np.float32))
    ids = IDS[lesion.site]
    bone = canvas.labels[box] == ids
    long = (
        np.sqrt(max(lesion.size_mm**2 - (1.6 * half_width) ** 2, 9.0)) / 2
        if lesion.site.startswith("rib")
        else lesion.size_mm / 2
    )
    if healing:
        cuff = np.hypot(along / (long * 1.05), aside / (half_width + 4 + 0.4 * displacement)) - 1
        cuff = (cuff * half_width + 0.8 * grain).astype(np.float32)
        canvas.paint(box, cuff, 300 + 60 * grain, None, over=_SOFT)
        gap = canvas.share(np.abs(plane) - np.float32(0.5))
        canvas.blend(box, gap, 190.0, over=(lesion.site,))
        np.copyto(
            canvas.labels[box],
            np.uint8(ids),
            where=(cuff < -0.5) & np.isin(canvas.labels[box], [IDS[n] for n in _SOFT]),
        )
        bone = canvas.labels[box] == ids
    else:
        width = np.float32(0.7 + 0.25 * min(displacement, 4))
        gap = canvas.share(np.abs(plane) - width)
        canvas.blend(box, gap, 52.0, over=(lesion.site,))
        swelling = (np.hypot(along / (long * 1.3), aside / (half_width + 6)) - 1) * (half_width + 6)
        canvas.blend(
            box,
            canvas.share(swelling.astype(np.float32)) * np.float32(0.7),
            48.0,
            over=("visceral_fat", "subcutaneous_fat"),
        )
    zone = bone & (np.abs(along) <= long) & (aside <= half_width + 4 + displacement)
    np.copyto(canvas.lesions[box], np.uint8(mark), where=zone)


def _warp(canvas: Canvas, box: Slices, spot: Spot, shift_mm: np.ndarray) -> None:
    """Move what is in a box by `shift_mm` (x, y, z at rest), a displacement that is 0 at the box's border."""
    import scipy.ndimage as ndi

    turned = np.tensordot(canvas.space.pose.turn, shift_mm, axes=1)  # the patient's axes to the world's
    z, y, x = np.meshgrid(*(np.arange(s.stop - s.start, dtype=np.float32) for s in box), indexing="ij", sparse=True)
    dz, dy, dx = canvas.space.steps
    source = np.stack([z - turned[2] / dz, y + turned[1] / dy, x + turned[0] / dx])
    canvas.hu[box] = ndi.map_coordinates(canvas.hu[box], source, order=1, mode="nearest")
    canvas.labels[box] = ndi.map_coordinates(canvas.labels[box], source, order=0, mode="nearest")


def _paint_wedge(canvas: Canvas, body: Body, lesion: Lesion, mark: int, chart: Atlas) -> None:
    """The upper end plate sinks, in front most; under it the crushed bone is dense, and the front wall steps out."""
    level = LEVEL_NAMES.index(lesion.site)
    low, high = float(LEVEL_EDGES[level]), float(LEVEL_EDGES[level + 1])
    y = float(body.spine((low + high) / 2))
    spot = Spot.of(chart.pose, np.array([0.0, y, (low + high) / 2]))
    box = spot.box(canvas.space, 52.0)
    if box is None:
        return
    key = Key.of("phantom", "lesion", lesion.kind, lesion.seed)
    bx, by, bz = canvas.space.coordinates(box)
    slope = float(body.spine((low + high) / 2 + 5) - body.spine((low + high) / 2 - 5)) / 10
    back = by - body.spine(bz).astype(np.float32)
    s = (bz + slope * back - low) / (
        high - low
    )  # 0 at the lower end, about 0.8 at the upper end plate, 1 at the next level
    top = 1 - float(np.interp(low, (0, 180, 460), (0.27, 0.2, 0.16)))
    loss = float(lesion.attributes.get("height_loss_percent", "25")) / 100
    front = np.clip(0.62 + back / 34, 0.12, 1)
    if float(key("form").uniform()) < 0.4:  # biconcave: the middle sinks
        front = np.clip(1 - ((back + 1) / 19) ** 2, 0.1, 1) * np.clip(1.15 - (bx / 26) ** 2, 0.2, 1)
    inside = np.clip(2.2 - np.hypot(bx / 22, (back + 1) / 17), 0, 1)
    sink = loss * front * inside * top * (high - low)
    # From the lower end plate up everything is pressed together; the disc above is stretched to fill what is lost.
    sunk = top - sink / (high - low)
    up = np.where(
        s < sunk, s / np.maximum(sunk, 0.1) * top - s, (1.12 - s) / np.maximum(1.12 - sunk, 0.05) * (top - sunk)
    )
    up = np.where((s < 0) | (s > 1.12), 0, up) * (high - low)
    zscale = float(np.linalg.norm(spot.metric[:, 2]))
    moved = np.zeros((3, *up.shape), dtype=np.float32)
    moved[2] = -up * zscale
    _warp(canvas, box, spot, moved)
    bone = canvas.labels[box] == IDS[lesion.site]
    column = np.hypot(bx / 25, (back + 1) / 19) < 1.05
    acute = attribute(lesion, "stage") == "acute"
    grain = sample(key("grain"), bx, by, bz, blob_mm=6)
    depth = (sunk - s) * (high - low)
    crushed = np.clip(1 - np.abs(depth - 4) / (4 + 10 * loss), 0, 1) * (sink > 1.0)
    canvas.hu[box] += crushed * bone * column * np.float32(170 if acute else 100) * (1 + 0.3 * grain)
    if acute:  # a dark cleft under the plate, and blood beside the front wall
        cleft = canvas.share(np.abs(depth - 6 - 1.2 * grain) - np.float32(0.7)) * (np.abs(bx) < 15) * (back > -4)
        canvas.blend(box, cleft * np.float32(0.8), 60.0, over=(lesion.site,))
        hem = np.maximum(np.hypot(bx / 29, (back - 1) / 22) - 1, np.abs(s - 0.5) - 0.55) * 20
        canvas.blend(box, canvas.share(hem.astype(np.float32)) * np.float32(0.75), 45.0, over=("visceral_fat",))
    # The zone is a ball around the crushed plate, within the vertebra's body.
    u = spot.offsets(canvas.space, box)
    ball = np.sqrt(u[0] ** 2 + (u[1] - 3) ** 2 + ((depth - 5) * zscale * 0.9) ** 2) <= lesion.size_mm / 2
    np.copyto(canvas.lesions[box], np.uint8(mark), where=bone & column & ball)
