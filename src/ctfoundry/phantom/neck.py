"""The neck: five vertebrae with their cord, airway, thyroid gland, vessels and muscles, in head millimetres (`frame`).

Heights of the vertebrae continue those of `anatomy` (16 mm with disc for C3 to C5; the axis 38 mm with its dens), sizes after
Panjabi et al. 1991: bodies 17 to 24 mm wide and 16 mm deep, canal 24 x 15 mm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.frame import JOINT_Z, joint
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.shapes import ellipsoid, smooth_min
from ctfoundry.phantom.skull import Skull, bone_field, both, capsule, smooth_tube
from ctfoundry.phantom.space import Patch
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.tissue import Tissue

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]

_EDGES = np.array([-94.0, -78.0, -62.0, -46.0])
"""Lower ends of C5, C4, C3 and C2."""
_IDS = np.array([IDS[f"vertebrae_C{n}"] for n in (5, 4, 3, 2)], dtype=np.uint8)
_CANAL = -17.0
"""From the middle of the vertebral bodies back to the middle of the canal."""


def spine_offset(body: Body, z: np.ndarray | float) -> np.ndarray:
    """Anterior offset of the vertebral bodies' middle at head height z; 0 at the top."""
    return body.spine(np.asarray(z) + JOINT_Z) - joint(body.subject)[1]


def paint_neck(canvas: Canvas, skull: Skull, tissue: Tissue) -> None:
    """Everything between the skull base and the root of the neck."""
    _paint_muscles(canvas, skull, tissue)
    _paint_vertebrae(canvas, skull)
    _paint_atlas(canvas, skull)
    _paint_vessels(canvas, skull, tissue)
    _paint_larynx(canvas, skull, tissue)
    _paint_cord(canvas, skull)


def _paint_muscles(canvas: Canvas, skull: Skull, tissue: Tissue) -> None:
    """Fat between the neck's muscles: behind the sternocleidomastoid, around the vessels, in the nuchal midline."""
    patch = canvas.space.patch((-62, -90, -128), (62, 60, 4))
    if patch is None:
        return
    half, z = both(patch), patch.z
    y = patch.y - spine_offset(skull.body, z)
    own = Patch(patch.box, half.x, y, z, patch.strides)
    much = 0.8 + 0.02 * skull.body.subject.fat_mm
    ends = np.maximum(z + 12, -126 - z)

    def sheet(a: tuple[float, float], b: tuple[float, float], thick: float) -> np.ndarray:
        """A vertical sheet whose section runs from a to b (x, y)."""
        ax, ay, bx, by = *a, *b
        length = (bx - ax) ** 2 + (by - ay) ** 2
        t = np.clip(((own.x - ax) * (bx - ax) + (own.y - ay) * (by - ay)) / length, 0, 1)
        return np.hypot(own.x - ax - t * (bx - ax), own.y - ay - t * (by - ay)) - thick * much

    parts = (
        sheet((20, 11), (33, 9), 4.5),  # around carotid and jugular
        sheet((33, 9), (44, -14), 1.8),  # under the sternocleidomastoid
        sheet((44, -14), (52, -26), 3.2),  # the posterior triangle
        sheet((26, -14), (46, -24), 1.2),
        sheet((5, -40), (40, -30), 0.9),  # between the layers of the nape
        sheet((4, -50), (36, -42), 0.9),
        sheet((0, -28), (0, -58), 0.9),
        sheet((10, 26), (30, 20), 1.0),
    )
    out = parts[0]
    for part in parts[1:]:
        out = smooth_min(out, part, 2)
    out = np.maximum(out + skull.waves("neck fat", patch, 0.7, 30), ends)
    canvas.paint(patch.box, patch.fine(out), -92, None, over=("muscle",))


def _paint_vertebrae(canvas: Canvas, skull: Skull) -> None:
    patch = canvas.space.patch((-36, -62, -96), (36, 16, -4))
    if patch is None:
        return
    offset = spine_offset(skull.body, patch.z)
    slope = (spine_offset(skull.body, patch.z + 5) - spine_offset(skull.body, patch.z - 5)) / 10
    back = patch.y - offset
    x, y, z = (patch.fine(c) for c in (patch.x, back, patch.z + slope * back))
    ax = np.abs(x)
    level = np.clip(np.searchsorted(_EDGES, z.ravel(), side="right").reshape(z.shape) - 1, 0, 3)
    height = np.array([16.0, 16.0, 16.0, 22.0], dtype=np.float32)[level]
    s = (z - _EDGES[level].astype(np.float32)) / height
    disc = np.array([0.27, 0.27, 0.27, -0.05], dtype=np.float32)[level]
    wide = np.array([11.6, 11.0, 10.4, 10.0], dtype=np.float32)[level]
    column = ((ax / wide) ** 2.6 + np.abs(y / 8.2) ** 2.6) ** (1 / 2.6) * 8.2 - 8.2
    outside = np.maximum(-94 - z, z + 24)
    grain = sample(skull.key("neck bones"), x, y, z, blob_mm=4)
    canvas.paint(patch.box, np.maximum(column, outside), 90 + 5 * grain, "intervertebral_disc")
    lip = np.clip((ax - 7) / 4, 0, 1) * 2.2  # the uncinate processes rise at the sides
    body = np.maximum(column, np.maximum((s - 1 + disc) * height - lip, -s * height + 0.4))
    body = np.where(level == 3, np.maximum(column, np.maximum(-s * height + 0.4, z + 27)), body)
    yc = y - np.float32(_CANAL)
    ring = (np.hypot(x / 1.55, yc) - 9.6) * 1.0
    arch = np.maximum(np.abs(ring) - 2.0, np.maximum(np.abs(s - 0.5) * height - 0.42 * height, yc - 3))
    long = np.array([16.0, 14.0, 14.0, 20.0], dtype=np.float32)[level]
    prong = np.abs(ax - np.clip((-yc - 16) * 0.35, 0, 4)) - np.where(level == 3, 3.4, 2.4)
    slant = s - 0.42 - (yc + 12) / 60
    spinous = np.maximum(np.maximum(prong, np.abs(slant) * height - 0.3 * height), np.maximum(yc + 9, -yc - 9 - long))
    # Articular pillars with slanted joints; bars around the hole of the vertebral artery.
    pillar = np.maximum(
        np.hypot((ax - 20.5) / 6.2, (y + 10) / 6.8) * 6.4 - 6.4,
        np.abs((s - 0.5) * height + 0.55 * (y + 10)) - 0.46 * height,
    )
    bar = np.maximum(
        np.maximum(np.abs(s - 0.42) * height - 4.2, ax - 26), np.maximum(8 - ax, np.abs(y + 3.0 + 0.12 * ax) - 6.0)
    )
    bar = np.maximum(bar, 3.4 - np.hypot(ax - 16.2, y + 5.0))
    parts = np.minimum(np.minimum(body, np.minimum(arch, spinous)), np.minimum(pillar, bar))
    dens = np.maximum(np.hypot(ax, y - 0.3) - 5.0 + 0.1 * np.abs(z + 20), np.abs(z + 24) - 15)
    shoulder = np.maximum(np.hypot((ax - 14) / 9, (y + 5) / 8) * 8 - 8, np.abs(z + 33 + 0.3 * (ax - 14)) - 5)
    bone = np.minimum(np.maximum(parts, outside), np.minimum(dens, shoulder))
    share = canvas.share(bone)
    under = canvas.hu[patch.box]
    under += share * (0.62 * bone_field(skull, bone, grain, table_mm=0.9) + 60 - under)
    np.copyto(canvas.labels[patch.box], _IDS[level], where=share >= 0.5)


def _paint_atlas(canvas: Canvas, skull: Skull) -> None:
    patch = canvas.space.patch((-44, -46, -34), (44, 18, -2))
    if patch is None:
        return
    x, y, z = (patch.fine(c) for c in (patch.x, patch.y, patch.z))
    ax = np.abs(x)
    turn = np.hypot(x / 23.5, (y + 10) / 20.5)
    ring = np.abs(turn - 1) * 21
    thick = np.interp(np.arange(-46, 20), (-46, -30, -10, 8, 20), (4.2, 4.0, 3.4, 4.2, 4.6))
    half = thick[np.clip(np.rint(y).astype(int) + 46, 0, len(thick) - 1)]
    arch = np.hypot(ring, z + 18) - half
    mass = np.hypot(np.hypot((ax - 19) / 6.5, (y + 3) / 9.5), (z + 18 + 0.25 * (ax - 19)) / 8.5) * 7 - 7
    wing = np.maximum(np.hypot((y + 6) / 5.5, (z + 19) / 4.2) * 4.5 - 4.5, np.maximum(18 - ax, ax - 38))
    wing = np.maximum(wing, 3.0 - np.hypot(ax - 28, y + 5.5))
    bone = np.minimum(np.minimum(arch, mass), wing).astype(np.float32)
    canvas.paint(
        patch.box,
        bone,
        0.7 * bone_field(skull, bone, -0.5, table_mm=1.0),
        "vertebrae_C1",
        over=("muscle", "subcutaneous_fat", "intervertebral_disc"),
    )


def _paint_cord(canvas: Canvas, skull: Skull) -> None:
    patch = canvas.space.patch((-20, -46, -100), (20, 4, -4))
    if patch is None:
        return
    y = patch.y - spine_offset(skull.body, patch.z) - np.interp(patch.z, (-40, -8), (_CANAL, -15.5))
    sac = np.maximum(np.hypot(patch.x / 1.45, y) - 7.2, np.maximum(-97 - patch.z, patch.z + 6))
    canvas.paint(patch.box, patch.fine(sac), 12, None)
    cord = np.maximum(np.hypot(patch.x / 1.4, y) - 4.3, np.maximum(-98 - patch.z, patch.z + 9))
    canvas.paint(patch.box, patch.fine(cord), 36, "spinal_cord")


def _paint_vessels(canvas: Canvas, skull: Skull, tissue: Tissue) -> None:
    artery, vein = tissue("artery"), tissue("vein")
    soft = ("muscle", "subcutaneous_fat")

    def off(z: float) -> float:
        return float(spine_offset(skull.body, z))

    for side, name in ((-1, "left"), (1, "right")):
        s = float(side)
        split = -62 + skull.whim(f"bifurcation {name}", 6)
        common = [
            (s * 15, off(-130) + 24, -130, 3.6),
            (s * 21, off(-105) + 19, -105, 3.5),
            (s * 24, off(-82) + 15, -82, 3.4),
            (s * 25, off(split) + 12, split, 4.0),
        ]
        smooth_tube(canvas, common, artery, f"common_carotid_artery_{name}", soft)
        inner = [
            (s * 25, off(split) + 12, split, 3.4),
            (s * 28, off(-45) + 9, -45, 2.6),
            (s * 27, 6, -26, 2.5),
            (s * 26, 4, -10, 2.5),
        ]
        smooth_tube(canvas, inner, artery, None, soft)
        outer = [
            (s * 25, off(split) + 12, split, 3.0),
            (s * 24, 20, -46, 2.2),
            (s * 34, 17, -28, 2.0),
            (s * 46, 6, -6, 1.6),
            (s * 50, 6, 12, 1.2),
        ]
        smooth_tube(canvas, outer, artery, None, soft)
        big = 1 + 0.22 * side * float(skull.key("jugular").normal().clip(-2, 2))
        jugular = [
            (s * 24, off(-130) + 22, -130, 6.0 * big),
            (s * 31, off(-105) + 16, -105, 6.2 * big),
            (s * 34, off(-80) + 11, -80, 5.8 * big),
            (s * 34, off(-50) + 7, -50, 5.2 * big),
            (s * 32, -1, -22, 4.6 * big),
            (s * 29, -6, -8, 4.4),
        ]
        smooth_tube(canvas, jugular, vein, "internal_jugular_vein", soft)
        vertebral = [
            (s * 15, off(-104) + 4, -104, 1.6),
            (s * 16.2, off(-88) - 5, -88, 1.7),
            (s * 16.2, off(-60) - 5, -60, 1.7),
            (s * 17, -5, -38, 1.7),
            (s * 28, -5.5, -24, 1.7),
            (s * 28, -6, -17, 1.7),
            (s * 21, -20, -11, 1.7),
            (s * 14, -19, -10, 1.7),
        ]
        smooth_tube(canvas, vertebral, artery, None, (*soft, "vertebrae_C1", "vertebrae_C2"))


def _paint_larynx(canvas: Canvas, skull: Skull, tissue: Tissue) -> None:
    """Throat, hyoid, thyroid and cricoid cartilage, windpipe, thyroid gland and gullet."""
    body = skull.body
    patch = canvas.space.patch((-40, -20, -126), (40, 64, 22))
    if patch is None:
        return
    z = patch.z
    y = patch.y - spine_offset(body, z)
    own = Patch(patch.box, patch.x, y, z, patch.strides)
    half = both(own)
    soft = ("muscle", "subcutaneous_fat")
    gland = smooth_min(ellipsoid(half, (14.5, 21, -104), (7.5, 9, 20)), ellipsoid(own, (0, 31, -108), (9, 3.2, 7)), 4)
    gland = gland + skull.waves("thyroid", patch, 0.8, 20)
    iodine = 100 + 12 * skull.whim("iodine", 1) + 0.45 * max(tissue("artery") - 42, 0) ** 0.92
    canvas.paint(
        patch.box,
        patch.fine(gland),
        iodine,
        "thyroid_gland",
        over=(*soft, "common_carotid_artery_left", "common_carotid_artery_right"),
    )
    gullet = np.maximum(np.hypot(patch.x + 3, (y - 14) * 1.5) - 6.5, np.maximum(z + 92, -128 - z))
    canvas.paint(patch.box, patch.fine(gullet), tissue("bowel"), "esophagus", over=(*soft, "thyroid_gland"))
    # The lumen: radius by height, wider from side to side in the throat.
    middle = np.interp(z, (-128, -95, -84, -76, -66, -52, -30, -12, 4, 20), (24, 24, 25, 26, 25, 22, 20, 22, 27, 34))
    across = np.interp(
        z, (-128, -95, -86, -78, -72, -60, -48, -30, -12, 4, 14), (8.5, 8.5, 7.5, 2.6, 5.5, 10, 12, 11.5, 12.5, 14, 10)
    )
    deep = np.interp(
        z, (-128, -95, -86, -78, -72, -60, -48, -30, -12, 4, 14), (8.5, 8.5, 8.5, 9.0, 7.5, 6.5, 6.5, 6.0, 7.5, 9, 8)
    )
    roof = z - 20 + 0.9 * np.clip(26 - patch.y, 0, 20)
    k = np.hypot(patch.x / across, (y - middle) / deep)
    lumen = np.maximum((k - 1) * np.minimum(across, deep), np.maximum(roof, -128 - z))
    wall = np.maximum(np.maximum((k - 1) * np.minimum(across, deep) - 3.5, roof - 3), -126 - z)
    d = patch.fine(lumen)
    canvas.paint(patch.box, patch.fine(wall), 55, None, over=soft)
    choana = capsule(patch, (6, 34, 8), (6.5, 52, 10), 6.5, 6.0)
    d = np.minimum(d, patch.fine(np.maximum(choana, 1.4 - np.abs(patch.x) * np.where(patch.y > 44, 1, 9))))
    fine_z = patch.fine(z)
    low = fine_z < -94
    free = ("muscle", "subcutaneous_fat", "skull", "thyroid_gland", "esophagus", "trachea")
    canvas.paint(patch.box, np.where(low, d, 9).astype(np.float32), -990, "trachea", over=free)
    canvas.paint(patch.box, np.where(low, 9, d).astype(np.float32), -985, "upper_airway", over=free)
    # The epiglottis: a leaf that leans back from the tongue's root.
    leaf = np.maximum(
        np.abs(y - 25 + 0.35 * (z + 52)) - 1.0, np.maximum(np.abs(patch.x) - 7 - 0.15 * (z + 52), np.abs(z + 54) - 9)
    )
    canvas.paint(patch.box, patch.fine(leaf), 60, None, over=("upper_airway", "muscle"))
    years = body.subject.age_years
    chalk = 90 + 260 * float(np.clip((years - 25) / 50, 0, 1)) * float(skull.key("cartilage").uniform(0.5, 1.3))
    shield = np.maximum(
        np.abs(0.62 * (y - 43) + half.x * 0.86) - 1.3, np.maximum(np.abs(z + 74) - 12, np.abs(y - 30) - 14)
    )
    ring = np.maximum(np.abs(np.hypot(patch.x, y - 25) - 11.0) - 1.7, np.abs(z + 90 + 0.25 * (y - 25)) - 4)
    fine_shape = patch.fine(np.minimum(shield, ring))
    canvas.paint(patch.box, fine_shape, chalk, None, over=soft)
    hyoid = [(-17, 16, -47, 1.6), (-13, 30, -51, 1.8), (0, 37, -53, 3.0), (13, 30, -51, 1.8), (17, 16, -47, 1.6)]
    smooth_tube(canvas, [(a, b + float(spine_offset(body, c)), c, r) for a, b, c, r in hyoid], 520, None, soft)
