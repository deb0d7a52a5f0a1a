"""Solid organs, stomach, bowel and bladder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.phantom.adrenals import kidney_plan, paint_adrenals
from ctfoundry.phantom.anatomy import Body, Frame
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.shapes import ellipsoid, smooth_min, smooth_path, tube, tube_in_body
from ctfoundry.phantom.space import Patch, Slices, rotation
from ctfoundry.phantom.texture import sample, smooth_sample
from ctfoundry.phantom.thorax import points_inside
from ctfoundry.phantom.tissue import Tissue
from ctfoundry.phantom.vessels import paint_tree

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]

_FREE = ("visceral_fat",)


def paint_abdomen(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """All abdominal organs; what is painted first keeps its place."""
    _paint_kidneys(canvas, body, tissue)
    _paint_spleen(canvas, body, tissue)
    _paint_pancreas(canvas, body, tissue)
    _paint_gallbladder(canvas, body, tissue)
    _paint_liver(canvas, body, tissue)
    paint_adrenals(canvas, body, tissue)
    _paint_bladder(canvas, body, tissue)
    _paint_stomach(canvas, body, tissue)
    _paint_duodenum(canvas, body, tissue)
    _paint_colon(canvas, body, tissue)
    _paint_small_bowel(canvas, body, tissue)


def _within(body: Body, patch: Patch, distance: np.ndarray, gap: float = 1.5) -> Field:
    """A shape cut by the wall of the cavity, which stays `gap` millimetres away."""
    return np.maximum(patch.fine(distance), patch.fine(body.cavity(patch) + gap))


def _paint_liver(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    frame = body.frame("liver", (5, 5, 6), 0.09, 7)
    up = body.descent[0]
    centre = np.array([70.0, 8.0, 190 + 0.9 * up]) + frame.shift
    size = float(frame.factor.mean())
    low, high = (-120, -110, 20), (160, 115, body.domes[0] + 15)
    patch = canvas.space.patch(low, high)
    if patch is None:
        return

    def shape(patch: Patch) -> np.ndarray:
        return np.maximum(_liver(body, patch, centre, size, frame), body.cavity(patch) + 1.5)

    grain = patch.fine(sample(body.key("liver"), patch.x, patch.y, patch.z, blob_mm=14))
    canvas.paint(patch.box, patch.fine(shape(patch)), tissue("liver") + 4 * grain, "liver", over=_FREE)
    if (canvas.labels[patch.box] == IDS["liver"]).sum() > 500:
        porta = np.array([26.0, 32.0, centre[2] - 22])
        vein = np.array([26.0, 6.0, centre[2] + 62])
        for name, root, hu, count in (("portal", porta, tissue("portal"), 34), ("hepatic", vein, tissue("vein"), 22)):
            targets = points_inside(body.key("liver", name), shape, low, high, count)
            if len(targets) > 3:
                paint_tree(
                    canvas, root, targets, hu - (0 if hu > tissue("liver") + 15 else 6), over=("liver",), leaf_mm=1.25
                )


def _liver(body: Body, patch: Patch, centre: np.ndarray, size: float, frame: Frame) -> np.ndarray:
    """Distance to the liver but for the wall of the cavity."""
    right = ellipsoid(patch, centre, np.array([76, 88, 92]) * frame.factor, frame.turn @ rotation((0, 18, 0)))
    reach = float(body.key("liver", "left lobe").normal().clip(-2, 2))
    left = ellipsoid(
        patch,
        (-2 - 16 * reach, 56, centre[2] + 30),
        np.array([66 + 16 * reach, 42, 34]) * size,
        frame.turn @ rotation((0, -14, 12)),
    )
    d = smooth_min(right, left, 26) + body.lumps("liver", patch, 4, 90)
    # The visceral face: a slanted plane from the lower right up to the left.
    face = (centre[2] - 62) + 0.55 * (70 - patch.x) - 0.25 * patch.y - patch.z
    return np.maximum(d, np.maximum(0.8 * face, -60 - patch.y - 0.4 * patch.x + 40))


def _paint_gallbladder(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    frame = body.frame("gallbladder", (7, 7, 7), 0.15, 15)
    centre = np.array([48.0, 52.0, 148 + 0.9 * body.descent[0]]) + frame.shift
    patch = canvas.space.patch(centre - 45, centre + 45)
    if patch is not None:
        d = ellipsoid(patch, centre, np.array([15, 30, 17]) * frame.factor, frame.turn @ rotation((35, 0, -15)))
        canvas.paint(patch.box, _within(body, patch, d), tissue("bile"), "gallbladder", over=_FREE)


def _paint_spleen(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    frame = body.frame("spleen", (6, 12, 11), 0.17, 13)
    centre = np.array([-94.0, -34.0, 208 + 0.9 * body.descent[1]]) + frame.shift
    patch = canvas.space.patch(centre - (50, 85, 90), centre + (50, 85, 90))
    if patch is None:
        return
    d = ellipsoid(patch, centre, np.array([31, 46, 58]) * frame.factor, frame.turn @ rotation((28, 0, 24)))
    # The hilum is hollow, towards the stomach.
    hollow = ellipsoid(patch, centre + (38, 22, 0), np.array([30, 40, 56]) * frame.factor)
    d = np.maximum(d, -hollow) + body.lumps("spleen", patch, 2.5, 50)
    hu: float | Field = tissue("spleen")
    if tissue.mottled:
        hu = hu + patch.fine(28 * sample(body.key("spleen"), patch.x, patch.y, patch.z, blob_mm=16))
    canvas.paint(patch.box, _within(body, patch, d), hu, "spleen", over=_FREE)


def _paint_kidneys(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    for side, name in ((1, "right"), (-1, "left")):
        centre, turn, factor = kidney_plan(body, side)
        fat = body.subject.visceral
        patch = canvas.space.patch(centre - (55, 55, 85), centre + (55, 55, 85))
        if patch is None:
            continue
        d = ellipsoid(patch, centre, np.array([24, 29, 55]) * factor, turn) + body.lumps(
            f"kidney {name}", patch, 1.5, 35
        )
        hilum = centre + turn @ (np.array([-side * 20.0, 4, 0]) * factor)
        sinus = ellipsoid(patch, hilum, np.array([19, 13, 27]) * factor, turn)
        cavity = body.cavity(patch) + 1
        canvas.paint(
            patch.box, patch.fine(np.maximum(d - 6 - 6 * fat, cavity)), -104, "visceral_fat", over=("visceral_fat",)
        )
        kidney, hollow = patch.fine(np.maximum(d, cavity + 1)), patch.fine(sinus)
        outer = np.maximum(kidney, -hollow)
        # Pyramids: where the texture is high, between six and eighteen millimetres under the capsule.
        grain = patch.fine(sample(body.key("kidney", name), patch.x, patch.y, patch.z, blob_mm=22))
        pyramid = np.clip((grain + 0.35) * 2, 0, 1) * np.clip((-kidney - 6) / 3, 0, 1)
        hu = tissue("cortex") + (tissue("medulla") - tissue("cortex")) * pyramid
        canvas.paint(patch.box, outer, hu, f"kidney_{name}", over=_FREE)
        pelvis = ellipsoid(patch, hilum, np.array([11, 6, 13]) * factor, turn)
        canvas.paint(patch.box, patch.fine(pelvis), tissue("pelvis"), None, over=_FREE)


def _paint_pancreas(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    frame = body.frame("pancreas", (6, 4, 9), 0.12, 0)
    dx, dy, dz = frame.shift
    y = float(body.spine(150.0)) + 44 + dy
    low = 138 + 0.4 * body.descent[1] + dz
    line = smooth_path(
        [
            (34 + dx, y - 2, low - 14, 13),
            (26 + dx, y + 4, low + 4, 14),
            (2 + dx, y + 8, low + 14, 9),
            (-28 + dx, y - 4, low + 26, 10),
            (-62 + dx, y - 26, low + 44, 8),
        ],
        18,
    )
    found = tube_in_body(canvas.space, line[:, :3], line[:, 3] * frame.factor.mean())
    if found is not None:
        box, d = found
        x, yy, z = canvas.space.coordinates(box)
        grain = sample(body.key("pancreas"), x, yy, z, blob_mm=9)
        d = d + 2.2 * grain
        canvas.paint(box, d, tissue("pancreas") + 12 * np.minimum(grain, 0.3), "pancreas", over=_FREE)
    line = smooth_path([(20 + dx, y + 3, low - 4, 6), (10 + dx, y + 1, low + 8, 7), (28 + dx, y + 1, low + 40, 7)], 8)
    splenic = smooth_path(
        [(10 + dx, y - 3, low + 8, 5), (-28 + dx, y - 14, low + 22, 4.5), (-66, y - 36, low + 48, 4)], 10
    )
    for path in (line, splenic):
        found = tube(canvas.space, path[:, :3], path[:, 3])
        if found is not None:
            canvas.paint(*found, tissue("portal"), "portal_vein_and_splenic_vein", over=("visceral_fat", "pancreas"))


def _paint_bladder(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    frame = body.frame("bladder", (8, 6, 5), 0.06, 8)
    full = float(body.key("bladder", "full").uniform())
    radii = np.array([26 + 26 * full, 22 + 18 * full, 16 + 32 * full]) * frame.factor
    centre = np.array([0.0, 28, -136 + radii[2]]) + frame.shift
    patch = canvas.space.patch(centre - radii - 20, centre + radii + 20)
    if patch is not None:
        d = ellipsoid(patch, centre, radii, frame.turn) + body.lumps("bladder", patch, 2, 60)
        distance = _within(body, patch, d, 2)
        canvas.paint(
            patch.box, distance - np.float32(2.5 + 2 * (1 - full)), tissue("bowel"), "urinary_bladder", over=_FREE
        )
        urine = tissue("bladder") + 0.0
        hu: float | Field = urine
        if body.acquisition.phase == "late":  # contrast is heavy and sinks to the back
            hu = patch.fine(np.clip(urine - 9 * (patch.y - centre[1] + 0.5 * radii[1]), 5, 600))
        canvas.paint(patch.box, distance, hu, "urinary_bladder", over=("urinary_bladder", "visceral_fat"))
    if body.subject.sex == "male":
        size = float(np.exp(0.22 * body.key("prostate").normal().clip(-2, 2)))
        middle = (frame.shift[0] * 0.3, 18, -150)
        patch = canvas.space.patch((-40, -15, -185), (40, 55, -115))
        if patch is not None:
            d = ellipsoid(patch, middle, (24 * size, 16 * size, 18 * size))
            canvas.paint(
                patch.box,
                _within(body, patch, d),
                tissue("prostate"),
                "prostate",
                over=("visceral_fat", "urinary_bladder"),
            )


def _fill(
    canvas: Canvas,
    body: Body,
    tissue: Tissue,
    box: Slices,
    distance: Field,
    name: str,
    gas: float,
    wall_mm: float,
    blob_mm: float,
) -> None:
    """A hollow organ: wall, content with texture, and gas on top (the patient lies on the back), level as water is."""
    key = body.key(name, "inside")
    x, y, z = canvas.space.coordinates(box)
    grain = sample(key, x, y, z, blob_mm=blob_mm)
    content = 18 + 22 * float(key("content").uniform(-0.6, 1)) + 16 * grain
    before = canvas.labels[box].copy()
    canvas.paint(box, distance, tissue("bowel"), name, over=_FREE)
    own = (before == IDS["visceral_fat"]) & (canvas.labels[box] == IDS[name])
    lumen = distance + np.float32(wall_mm) + np.minimum(grain, 0) * np.float32(0.8)
    share = canvas.share(lumen) * own
    # Gas gathers in pockets that differ along the gut: a slow texture says where, and how deep it reaches.
    pocket = sample(key("gas"), x, np.zeros_like(y), z, blob_mm=90)
    level = gas + 14 * pocket
    world_y = canvas.space.axes[1][box[1]].astype(np.float32)[:, None]
    middle = _middle(own, world_y)
    above = np.clip(0.5 + (world_y - middle + level - 4) / canvas.space.steps[1], 0, 1)
    hu = content + (-960 - content) * above
    under = canvas.hu[box]
    under += share * (hu - under)


def _middle(own: np.ndarray, world_y: np.ndarray) -> np.ndarray:
    """World y of the middle of each column of a hollow organ, smoothed to one level per neighbourhood."""
    weight = own.sum(axis=1, dtype=np.float32)
    total = (own * world_y).sum(axis=1, dtype=np.float32)
    import scipy.ndimage as ndi

    total, weight = (ndi.uniform_filter(a, 15) for a in (total, weight))
    return (total / np.maximum(weight, 1e-3))[:, None, :]


def _paint_stomach(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    frame = body.frame("stomach", (9, 8, 11), 0.14, 0)
    dx, dy, dz = frame.shift
    up = body.descent[1]
    full = float(body.key("stomach", "full").uniform(0.6, 1.15))
    low = float(body.key("stomach", "low").uniform(60, 140))
    line = smooth_path(
        [
            (-56, -8, 232 + up, 34),
            (-64, 20, 205 + up, 36),
            (-54, 48, 172 + 0.7 * up, 28),
            (-26, 62, low + 20, 23),
            (6, 58, low, 19),
            (32, 44, low + 16, 13),
        ],
        26,
    )
    line[:, :3] += (dx, dy, dz)
    found = tube_in_body(canvas.space, line[:, :3], line[:, 3] * frame.factor.mean() * full)
    if found is not None:
        box, d = found
        x, y, z = canvas.space.coordinates(box)
        d = d + 2.0 * sample(body.key("rugae"), x, y, z, blob_mm=14)
        _fill(canvas, body, tissue, box, d, "stomach", -2.0, 3.5, 11)


def _paint_duodenum(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """The C around the pancreas' head, which moves with it."""
    dx, dy, dz = body.frame("pancreas", (6, 4, 9), 0.12, 0).shift
    z = 138 + 0.4 * body.descent[1] + dz
    y = float(body.spine(120.0)) + 36 + dy
    line = smooth_path(
        [
            (34 + dx, y + 16, z + 22, 13),
            (54 + dx, y + 4, z + 8, 13),
            (57 + dx, y - 6, z - 30, 12),
            (38 + dx, y - 4, z - 56, 12),
            (2 + dx, y + 4, z - 52, 11),
            (-26 + dx, y + 8, z - 30, 11),
        ],
        24,
    )
    found = tube_in_body(canvas.space, line[:, :3], line[:, 3])
    if found is not None:
        _fill(canvas, body, tissue, *found, "duodenum", -8.0, 2.6, 9)


def _paint_colon(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    key = body.key("colon", "course")
    move = key.normal((12, 3)).clip(-2, 2) * (7, 6, 10) * body.subject.variety
    sag = float(key("sag").uniform(0, 75))
    belly = body.belly_mm
    points = np.array([
        (86, 20, -42), (100, 12, 10), (100, 6, 70), (92, 14, 112), (52, 62 + 0.6 * belly, 105 - 0.6 * sag),
        (0, 74 + 0.8 * belly, 100 - sag), (-52, 60 + 0.6 * belly, 128 - 0.5 * sag), (-98, -6, 170), (-104, -10, 90),
        (-102, 4, 10), (-62, 28, -48), (-14, -10, -42)], dtype=float)  # fmt: skip
    points += move
    points[6:8, 2] += 0.5 * body.descent[1]
    points[2:4, 2] += 0.4 * min(body.descent[0], 0)
    points = np.concatenate([points, [(6, -52, -74), (0, -52, -120), (0, -40, -165)]])
    radius = np.interp(np.arange(15), (0, 2, 5, 8, 10, 12, 13, 14), (27, 25, 21, 17, 14, 15, 17, 11))
    radius = radius * float(np.exp(0.15 * key("wide").normal().clip(-2, 2)))
    path = smooth_path(np.concatenate([points, radius[:, None]], axis=1), 110)
    # Haustra: the radius swells and narrows every three to four centimetres.
    at = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1))])
    swell = 1 + 0.16 * np.sin(2 * np.pi * at / 36 + float(key("haustra").uniform(0, 6)))
    gas = float(body.key("colon", "gas").uniform(-14, 8))
    for start in range(0, len(path) - 1, 12):
        part = slice(start, start + 13)
        found = tube_in_body(canvas.space, path[part, :3], path[part, 3] * swell[part])
        if found is not None:
            _fill(canvas, body, tissue, found[0], found[1], "colon", gas, 2.2, 9)


def _paint_small_bowel(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """Loops: the shells of a slow texture's blobs, in the middle of the abdomen; the fat between is mesentery."""
    patch = canvas.space.patch((-110, -45, -125), (110, 115 + max(body.belly_mm, 0), 165))
    if patch is None:
        return
    key = body.key("small bowel")
    frame = body.frame("small bowel", (8, 5, 12), 0.12, 0)
    centre = np.array([-4.0, 40 + 0.5 * body.belly_mm, 22]) + frame.shift
    region = ellipsoid(patch, centre, np.array([92, 56 + 0.4 * body.belly_mm, 105]) * frame.factor)
    region = np.maximum(region, body.cavity(patch) + 3)
    loops, fold, pocket = (
        smooth_sample(k, patch.x, patch.y, patch.z, blob_mm=blob)
        for k, blob in ((key, 30), (key("fold"), 14), (key("gas"), 40))
    )
    mesentery = float(0.14 + 0.5 * body.subject.visceral)
    content = 15 + 20 * float(key("content").uniform())
    amount = float(key("amount").uniform(1.0, 2.6))
    for slab, planes in patch.slabs():
        # The texture changes by about one deviation in ten millimetres: that turns it into a distance.
        distance = (mesentery - np.abs(slab.fine(loops[planes]) + np.float32(0.2))) * np.float32(11)
        np.maximum(distance, slab.fine(region[planes]), out=distance)
        folds = slab.fine(fold[planes])
        canvas.paint(slab.box, distance, tissue("bowel") + 8 * folds, "small_bowel", over=_FREE)
        lumen = distance + np.float32(2.6) + np.float32(1.2) * folds
        canvas.paint(slab.box, lumen, content + 8 * folds, None, over=("small_bowel",))
        gas = np.maximum(lumen + 1, (amount - slab.fine(pocket[planes])) * 8)
        canvas.paint(slab.box, gas, -940, None, over=("small_bowel",))
