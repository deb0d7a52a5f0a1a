"""Lungs with their vessel trees, airways, heart, and the great vessels from the heart to the groins."""

from __future__ import annotations

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.shapes import ellipsoid, smooth_min, smooth_path, tube, tube_in_world
from ctfoundry.phantom.space import Patch, rotation
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.tissue import Tissue
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
    wide = np.interp(z, (180, 290, 380, 440, 480), (34, 30, 34, 30, 40)) + 5 * float(body.key("mediastinum").normal().clip(-2, 2))
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


def paint_tree(
    canvas: Canvas, root: np.ndarray, targets: np.ndarray, hu: float, *, over: tuple[str, ...], leaf_mm: float
) -> None:
    """A tree of vessels from `root` to body points: targets are halved along their widest axis until one is left.

    A branch that feeds n leaves has the radius ``leaf_mm * n ** (1/3)`` (Murray's law).
    """
    todo, ends, radii = [(root, targets)], [], []
    while todo:
        start, group = todo.pop()
        centre = group.mean(axis=0)
        # Branch early for large groups, so that daughters leave at an angle.
        fork = centre if len(group) == 1 else start + (centre - start) * (0.35 if len(group) > 20 else 0.5)
        ends += [start, fork]
        radii.append(leaf_mm * len(group) ** (1 / 3))
        if len(group) > 1:
            axis = int(np.argmax(np.ptp(group, axis=0)))
            order = np.argsort(group[:, axis], kind="stable")
            half = len(group) // 2
            todo += [(fork, group[order[:half]]), (fork, group[order[half:]])]
    world = canvas.space.pose.world(np.array(ends)).reshape(-1, 2, 3)
    for line, radius in zip(world, radii, strict=True):
        found = tube_in_world(canvas.space, line, [radius, radius * 0.85])
        if found is not None:
            canvas.paint(*found, hu, None, over=over)


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


def paint_vessels(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """Aorta, caval veins, pulmonary trunk, iliac vessels, trachea with main bronchi, oesophagus."""
    frame = body.frame("aorta", (4, 4, 12), 0.1, 0)
    sx, sy, sz = frame.shift
    wide = float(frame.factor.mean())
    sink = 0.5 * sum(body.domes) - 260

    def front(z: float) -> float:
        return float(body.spine(z))

    def along(name: str, points: list[tuple[float, float, float, float]], hu: float, *, bend: float = 0.0) -> None:
        line = np.array(points, dtype=float)
        wiggle = body.key(name, "wiggle").normal((len(line), 3)).clip(-2, 2) * bend * body.subject.variety
        line[1:-1, :3] += wiggle[1:-1]
        path = smooth_path(line, 4 * len(line))
        found = tube(canvas.space, path[:, :3], path[:, 3] * wide)
        if found is not None:
            canvas.paint(found[0], found[1] - np.float32(1.3), tissue("bowel") * 0.3 + 20, None, over=("visceral_fat",))
            canvas.paint(*found, hu, name)

    heart_z = 330 + 0.5 * sink
    fork = 48 + 1.2 * sz
    vein, artery = tissue("vein"), tissue("artery")
    along("inferior_vena_cava", [(18, front(20) + 22, fork - 14, 11), (22, front(60) + 24, 60, 11), (24, front(120) + 28, 130, 12),
                                 (24, front(200) + 42, 205, 13), (26, front(260) + 50, 270 + 0.6 * sink, 13), (22, front(300) + 58, 300 + 0.6 * sink, 13)], vein, bend=3)  # fmt: skip
    along("superior_vena_cava", [(26, front(330) + 62, heart_z + 5, 10), (28, front(380) + 58, 385, 10), (20, front(425) + 52, 428, 9)],
          tissue("right_heart") * 1.1, bend=2)  # fmt: skip
    for side, name in ((-1, "left"), (1, "right")):
        along(f"iliac_vena_{name}", [(18, front(30) + 20, fork - 14, 8), (side * 34, front(0) + 18, -14, 7), (side * 58, 8, -62, 7), (side * 80, 56, -118, 6), (side * 84, 62, -150, 6)], vein)
    along("pulmonary_artery", [(-22, front(340) + 84, heart_z + 2, 13), (-20, front(360) + 72, heart_z + 26, 13), (-8, front(360) + 58, heart_z + 30, 11), (22, front(360) + 48, heart_z + 24, 9)],
          tissue("right_heart"))  # fmt: skip
    along("pulmonary_artery", [(-18, front(360) + 66, heart_z + 28, 11), (-32, front(350) + 36, heart_z + 24, 9)], tissue("right_heart"))
    arch = 392 + 0.6 * sz
    along("aorta", [(4, front(330) + 64, heart_z - 8, 15), (14, front(360) + 70, heart_z + 28, 16), (12, front(390) + 66, arch - 14, 15), (-2, front(390) + 50, arch + 4, 14),
                    (-18, front(390) + 22, arch - 4, 13), (-24 + sx, front(360) + 8, arch - 32, 12.5), (-22 + sx, front(310) + 10 + sy, 310, 12), (-16 + sx, front(250) + 18, 250, 11.5),
                    (-9 + sx, front(190) + 25 + sy, 190, 11), (-7 + sx, front(120) + 26, 120, 10), (-4, front(60) + 25, fork, 9)], artery, bend=2.5)  # fmt: skip
    for side, name in ((-1, "left"), (1, "right")):
        along(f"iliac_artery_{name}", [(-3, front(50) + 25, fork, 6.5), (side * 30, front(0) + 28, -8, 5.5), (side * 60, 20, -60, 5), (side * 84, 66, -118, 4.5), (side * 90, 68, -150, 4.5)], artery, bend=4)
    gullet = [(-3, front(470) + 18, 500, 6), (-5, front(420) + 18, 420, 6), (-4, front(350) + 22, 350, 6), (-10, front(280) + 32, 290, 7), (-24, front(240) + 40, 244, 7)]
    along("esophagus", gullet, tissue("bowel"), bend=2)
    carina = (3, front(375) + 32, 368 + 0.3 * sz)
    wind = [(2, front(470) + 32, 500, 8.5), (3, front(430) + 34, 430, 8.5), (*carina, 8.5)]
    along("trachea", wind, -1000, bend=1.5)
    for side in (-1, 1):
        along("trachea", [(*carina, 7), (side * 20, carina[1] - 4, carina[2] - 22, 6), (side * 38, carina[1] - 8, carina[2] - 34, 5)], -1000)
