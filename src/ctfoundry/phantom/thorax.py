"""Lungs with their lobes and vessel trees, and the heart."""

from __future__ import annotations

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.shapes import ellipsoid, smooth_min
from ctfoundry.phantom.space import Patch, rotation
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.tissue import Tissue
from ctfoundry.phantom.vessels import paint_tree
from ctfoundry.phantom.wall import CHEST_WALL_MM

LUNGS = (
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
)


def paint_lungs(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """Both lungs, split into lobes by their fissures."""
    for side in (-1, 1):
        patch = canvas.space.patch((min(0, side * 140), -110, 120), (max(0, side * 140), 110, 490))
        if patch is not None:
            _paint_lung(canvas, body, tissue, patch, side)


def _mediastinum(body: Body, patch: Patch, side: int) -> np.ndarray:
    """Distance to what lies between the lungs, on one side: spine, vessels, and the fat around them."""
    z = patch.z
    wide = np.interp(z, (180, 290, 380, 440, 480), (34, 30, 34, 30, 40)) + 5 * float(
        body.key("mediastinum").normal().clip(-2, 2)
    )
    middle = body.spine(z) + np.interp(z, (180, 480), (52, 40))
    vessels = (np.hypot(patch.x / wide, (patch.y - middle) / 62) - 1) * 32
    spine = np.hypot(patch.x * 0.92, patch.y - body.spine(z) + 8) - 27
    return smooth_min(vessels, spine, 12)


def _paint_lung(canvas: Canvas, body: Body, tissue: Tissue, patch: Patch, side: int) -> None:
    key = body.key("lung", side)
    cage = patch.fine(body.cage(patch)[0] + CHEST_WALL_MM)
    floor = patch.fine(0.75 * (body.diaphragm(patch) + 4 - patch.z))
    inner = patch.fine(1.5 - _mediastinum(body, patch, side))
    distance = np.maximum(np.maximum(cage, floor), inner)
    np.maximum(distance, patch.fine(2 - side * patch.x), out=distance)
    grain = sample(key, patch.x, patch.y, patch.z, blob_mm=16)
    # Denser where the lung hangs lowest, and when the breath is shallow.
    base = -845 + 22 * float(body.key("lung").normal().clip(-2, 2)) - 1.2 * body.acquisition.breath_mm
    hu = patch.fine(base - 0.45 * patch.y + 16 * grain)
    canvas.paint(patch.box, distance, hu, None)
    mask = canvas.share(distance) >= 0.5
    tilt, lift, level = key("fissure").normal(3).clip(-2, 2) * body.subject.variety
    oblique = patch.fine(patch.z - (330 + 9 * lift) - (0.95 + 0.12 * tilt) * (-12 - patch.y) - 0.12 * np.abs(patch.x))
    labels = canvas.labels[patch.box]
    upper = oblique > 0
    if side < 0:
        ids = np.where(upper, IDS[LUNGS[0]], IDS[LUNGS[1]])
    else:
        horizontal = patch.fine(patch.z - (338 + 8 * level) + 0.1 * patch.y)
        ids = np.where(upper, np.where(horizontal > 0, IDS[LUNGS[2]], IDS[LUNGS[3]]), IDS[LUNGS[4]])
        _paint_fissure(canvas, patch, np.maximum(np.abs(horizontal) - 0.5, -oblique), mask)
    np.copyto(labels, ids.astype(np.uint8), where=mask)
    _paint_fissure(canvas, patch, np.abs(oblique * np.float32(0.7)) - 0.5, mask)
    target = points_inside(key, patch, mask, 130)
    if len(target) > 8:
        hilum = np.array([side * 24.0, 4 + float(body.spine(340.0)) + 28, 340 - 0.4 * body.acquisition.breath_mm])
        blood = 0.5 * (tissue("right_heart") + tissue("artery"))
        paint_tree(canvas, hilum, target, blood, over=LUNGS, leaf_mm=1.15)


def _paint_fissure(canvas: Canvas, patch: Patch, distance: np.ndarray, mask: np.ndarray) -> None:
    share = canvas.share(distance) * mask
    canvas.hu[patch.box] += share * np.float32(220)


def points_inside(key: Key, patch: Patch, mask: np.ndarray, count: int) -> np.ndarray:
    """Body points spread at random over a mask: the first `count` of many random lattice points that lie in it."""
    d, h, w = patch.x.shape
    pick = key("targets").integers(0, d * h * w, count * 12)
    index = np.stack(np.unravel_index(pick, (d, h, w)), axis=1)
    steps = [(n - 1) / (m - 1) for n, m in zip(mask.shape, (d, h, w), strict=True)]
    near = np.minimum(np.rint(index * steps).astype(int), np.array(mask.shape) - 1)
    inside = mask[near[:, 0], near[:, 1], near[:, 2]]
    place = pick[inside][:count]
    return np.stack([patch.x.ravel()[place], patch.y.ravel()[place], patch.z.ravel()[place]], axis=1)


def paint_heart(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """Heart with four chambers (seen with contrast only), in its fat."""
    frame = body.frame("heart", (7, 5, 4), 0.09, 7)
    apex = 0.5 * sum(body.domes) - 260
    centre = np.array([-20.0, 36.0 + 0.6 * float(body.spine(300.0)) + 16, 300 + 0.9 * apex]) + frame.shift
    radii = np.array([62.0, 43.0, 50.0]) * frame.factor
    patch = canvas.space.patch(centre - 90, centre + 90)
    if patch is None:
        return
    turn = frame.turn @ rotation((10, -22, -35))
    d = ellipsoid(patch, centre, radii, turn) + body.lumps("heart", patch, 3, 60)
    wall = np.maximum(body.cage(patch)[0] + CHEST_WALL_MM + 2, 0.8 * (body.diaphragm(patch) + 3 - patch.z))
    d = np.maximum(d, wall + 2)
    distance = patch.fine(d)
    free = (*LUNGS, "visceral_fat")
    fat_mm = 2 + 7 * body.subject.visceral
    canvas.paint(patch.box, patch.fine(np.maximum(d - fat_mm, wall)), -95, "visceral_fat", over=free)
    grain = patch.fine(sample(body.key("heart"), patch.x, patch.y, patch.z, blob_mm=18))
    canvas.paint(patch.box, distance, tissue("myocardium") + 5 * grain, "heart", over=free)
    for offset, size, hu in (
        ((-22, -2, 2), (33, 20, 23), tissue("artery")),  # left ventricle: along the axis, left and back
        ((4, 20, -6), (33, 14, 24), tissue("right_heart")),  # right ventricle: in front
        ((34, 4, 12), (19, 20, 26), tissue("right_heart")),  # right atrium
        ((14, -26, 16), (26, 14, 20), 0.7 * tissue("artery") + 0.3 * tissue("right_heart")),  # left atrium: at the back
    ):
        place = centre + turn @ (np.array(offset) * frame.factor)
        chamber = ellipsoid(patch, place, np.array(size) * frame.factor, turn)
        canvas.paint(patch.box, patch.fine(np.maximum(chamber, d + 4)), hu, None, over=("heart",))
