"""Lungs with their lobes and vessel trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.shapes import smooth_min
from ctfoundry.phantom.space import Patch
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


def _lung(body: Body, patch: Patch, side: int) -> np.ndarray:
    """Distance to a lung; its parts are joined on the voxels (`_paint_lung`), where corners are sharper."""
    return np.asarray(np.maximum.reduce(_lung_sides(body, patch, side)))


def _lung_sides(body: Body, patch: Patch, side: int) -> tuple[np.ndarray, ...]:
    """Distances to chest wall, diaphragm, mediastinum and midline."""
    return (
        body.cage(patch)[0] + CHEST_WALL_MM,
        0.75 * (body.diaphragm(patch) + 4 - patch.z),
        1.5 - _mediastinum(body, patch, side),
        2 - side * patch.x,
    )


def _paint_lung(canvas: Canvas, body: Body, tissue: Tissue, patch: Patch, side: int) -> None:
    key = body.key("lung", side)
    sides = _lung_sides(body, patch, side)
    grain = sample(key, patch.x, patch.y, patch.z, blob_mm=16)
    # Denser where the lung hangs lowest; its mass stays when it breathes.
    base = -845 + 22 * float(body.key("lung").normal().clip(-2, 2))
    hu = (base - 0.45 * patch.y + 16 * grain + 1000) * canvas.space.shrinkage(patch) - 1000
    tilt, lift, level = key("fissure").normal(3).clip(-2, 2) * body.subject.variety
    oblique = patch.z - (330 + 9 * lift) - (0.95 + 0.12 * tilt) * (-12 - patch.y) - 0.12 * np.abs(patch.x)
    horizontal = patch.z - (338 + 8 * level) + 0.1 * patch.y
    for slab, planes in patch.slabs():
        distance = slab.fine(sides[0][planes])
        for part in sides[1:]:
            np.maximum(distance, slab.fine(part[planes]), out=distance)
        canvas.paint(slab.box, distance, slab.fine(hu[planes]), None)
        mask = canvas.share(distance) >= 0.5
        above = slab.fine(oblique[planes])
        upper = above > 0
        if side < 0:
            ids = np.where(upper, np.uint8(IDS[LUNGS[0]]), np.uint8(IDS[LUNGS[1]]))
        else:
            over = slab.fine(horizontal[planes])
            ids = np.where(over > 0, np.uint8(IDS[LUNGS[2]]), np.uint8(IDS[LUNGS[3]]))
            ids = np.where(upper, ids, np.uint8(IDS[LUNGS[4]]))
            _paint_fissure(canvas, slab, np.maximum(np.abs(over) - 0.5, -above), mask)
        np.copyto(canvas.labels[slab.box], ids, where=mask)
        _paint_fissure(canvas, slab, np.abs(above * np.float32(0.7)) - 0.5, mask)
    low, high = (min(0, side * 140), -110, 120), (max(0, side * 140), 110, 490)
    target = points_inside(key, lambda points: _lung(body, points, side), low, high, 170)
    if len(target) > 8:
        hilum = np.array([side * 24.0, 4 + float(body.spine(340.0)) + 28, 340])
        blood = 0.5 * (tissue("right_heart") + tissue("artery"))
        paint_tree(canvas, hilum, target, blood, over=LUNGS, leaf_mm=1.15)


def _paint_fissure(canvas: Canvas, patch: Patch, distance: np.ndarray, mask: np.ndarray) -> None:
    share = canvas.share(distance) * mask
    canvas.hu[patch.box] += share * np.float32(220)


def points_inside(
    key: Key, distance: Callable[[Patch], np.ndarray], low: Sequence[float], high: Sequence[float], count: int
) -> np.ndarray:
    """`count` body points spread at random in a shape within a box: the same in every scan of the patient."""
    points = key("targets").uniform(0, 1, (count * 12, 3)) * (np.array(high) - low) + low
    x, y, z = points.T.astype(np.float32)
    nowhere = Patch((slice(0), slice(0), slice(0)), x, y, z, (1, 1, 1))
    return np.asarray(points[distance(nowhere) < 0][:count])
