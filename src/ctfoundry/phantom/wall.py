"""What wraps and carries the organs: skin, fat, muscles, and the fat-filled cavities that the organs are put into."""

from __future__ import annotations

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.frame import SHOULDER_SLOPE, SHOULDER_Z
from ctfoundry.phantom.leg import join_legs
from ctfoundry.phantom.shapes import ellipsoid
from ctfoundry.phantom.space import Patch, rotation
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.tissue import Tissue

SKIN_MM = 2.2
CHEST_WALL_MM = 6.0
"""From the middle of the ribs to the pleura: half a rib, the inner intercostal muscles and the pleura."""


def paint_wall(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """Skin, subcutaneous fat, breasts, the muscle mass, and the two cavities filled with fat."""
    low, high = canvas.space.lattice.reshape(3, -1).min(1), canvas.space.lattice.reshape(3, -1).max(1)
    reach = body.subject.fat_mm * 1.6 + 12
    patch = canvas.space.patch(
        (-185 - reach, -122 - reach, low[2]), (185 + reach, 165 + reach + body.belly_mm, high[2])
    )
    if patch is None:
        return
    trunk, skin = body.trunk(patch)
    # The patient lies: what is lowest is pressed flat against the table.
    back = -98 - 0.75 * body.subject.fat_mm
    skin = np.maximum(np.maximum(skin, back - patch.y), SHOULDER_SLOPE * (patch.z - SHOULDER_Z))
    trunk, skin = join_legs(body, patch, trunk, skin)
    fat_key = body.key("fat")
    own, fat = 15 + 10 * float(fat_key("skin").normal()), -103 + 5 * float(fat_key.normal().clip(-2, 2))
    grain = sample(fat_key("grain"), patch.x, patch.y, patch.z, blob_mm=22)
    for slab, planes in patch.slabs():
        outer = slab.fine(skin[planes])
        canvas.paint(slab.box, outer, own, "skin")
        texture = fat + np.float32(9) * slab.fine(grain[planes])
        canvas.paint(slab.box, outer + np.float32(SKIN_MM), texture, "subcutaneous_fat")
    if body.breasts:
        _paint_breasts(canvas, body, fat_key)
    muscle = tissue("muscle") - 14 * max(1 - body.subject.muscle, 0) / 0.25
    # Fat lies between the fibres of weak muscles: the texture then dips deep.
    fibres = muscle + np.minimum(grain + 0.6, 0) * (20 + 120 * max(1.02 - body.subject.muscle, 0))
    # Muscles are parted by thin sheets of fat, along the body's long axis: where a slow texture passes through 0.
    sheets = sample(fat_key("sheets"), patch.x, patch.y, 0.35 * patch.z, blob_mm=42) * np.float32(13)
    layer = np.maximum(trunk, skin + SKIN_MM + 2)
    for slab, planes in patch.slabs():
        hu = slab.fine(fibres[planes])
        hu += canvas.share(np.abs(slab.fine(sheets[planes])) - np.float32(0.7)) * (0.75 * fat - hu)
        canvas.paint(slab.box, slab.fine(layer[planes]), hu, "muscle")
    _paint_cavities(canvas, body, fat)


def _paint_breasts(canvas: Canvas, body: Body, key: Key) -> None:
    size = body.breast_size
    for side in (-1, 1):
        centre = (side * 80.0, 86 + 16 * size, 322.0)
        patch = canvas.space.patch([c - 45 for c in centre], [c + 45 for c in centre])
        if patch is not None:
            gland = ellipsoid(patch, centre, (34 * size, 24 * size, 32 * size)) + body.lumps("breast", patch, 5, 30)
            canvas.paint(
                patch.box,
                patch.fine(gland),
                25 + 10 * float(key("breast").uniform()),
                "breast",
                over=("subcutaneous_fat",),
            )


def _paint_cavities(canvas: Canvas, body: Body, fat: float) -> None:
    patch = canvas.space.patch((-150, -105, -190), (150, 112 + max(body.belly_mm, 0), 310))
    if patch is not None:
        canvas.paint(patch.box, patch.fine(body.cavity(patch)), fat - 4, "visceral_fat")
    patch = canvas.space.patch((-145, -110, 150), (145, 112, 500))
    if patch is not None:
        inner = np.maximum(body.cage(patch)[0] + CHEST_WALL_MM, 0.8 * (body.diaphragm(patch) - patch.z))
        canvas.paint(patch.box, patch.fine(inner), fat - 2, "visceral_fat")


def paint_muscles(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """The muscles with names of their own: erector spinae, psoas, gluteus maximus; with a film of fat around each."""
    bulk = float(np.sqrt(body.subject.muscle))
    infiltration = max(1.05 - body.subject.muscle, 0) / 0.3
    for side, name in ((-1, "left"), (1, "right")):
        for organ, low, high, shape in (
            ("autochthon", (-70, -125, -110), (70, -20, 460), _autochthon),
            ("iliopsoas", (-110, -60, -160), (110, 70, 185), _psoas),
            ("gluteus_maximus", (-175, -150, -195), (175, -30, 30), _gluteus),
        ):
            x = (low[0], 0) if side < 0 else (0, high[0])
            patch = canvas.space.patch((x[0], *low[1:]), (x[1], *high[1:]))
            if patch is None:
                continue
            distance = patch.fine(shape(body, patch, side, bulk))
            grain = patch.fine(sample(body.key(organ, name), patch.x, patch.y, patch.z, blob_mm=20))
            hu = tissue("muscle") + 3 * side + np.minimum(grain + 0.4, 0) * (14 + 70 * infiltration)
            inside = ("muscle", "visceral_fat")
            canvas.paint(patch.box, distance - np.float32(1.2), -80, None, over=inside)
            canvas.paint(patch.box, distance, hu, f"{organ}_{name}", over=inside)


def _autochthon(body: Body, patch: Patch, side: int, bulk: float) -> np.ndarray:
    z = patch.z
    width = np.interp(z, (-110, -40, 60, 180, 300, 460), (14, 24, 31, 29, 23, 17)) * bulk
    depth = np.interp(z, (-110, -40, 60, 180, 300, 460), (10, 17, 22, 19, 14, 11)) * bulk
    y = body.spine(z) - np.interp(z, (-110, 60, 300, 460), (34, 46, 47, 40))
    k = np.hypot((patch.x - side * (width + 5)) / width, (patch.y - y) / depth)
    return np.asarray(np.maximum((k - 1) * depth, np.abs(z - 175) - 285))


def _psoas(body: Body, patch: Patch, side: int, bulk: float) -> np.ndarray:
    z = patch.z
    size = np.interp(z, (-160, -110, -40, 30, 110, 180), (13, 20, 24, 22, 14, 4)) * bulk
    x = np.interp(z, (-160, -110, -40, 30, 110, 180), (92, 88, 66, 50, 38, 28))
    y = np.interp(z, (-160, -110, -40, 30), (36, 40, 32, 6)) + np.where(z > 30, body.spine(z) - body.spine(30.0), 0)
    k = np.hypot((patch.x - side * x) / size, (patch.y - y) / size)
    return np.asarray((k - 1) * size)


def _gluteus(body: Body, patch: Patch, side: int, bulk: float) -> np.ndarray:
    centre = (side * 82.0, -92.0, -95.0)
    d = ellipsoid(patch, centre, (66 * bulk, 26 * bulk, 88), rotation((0, 0, side * 24)))
    trunk, _ = body.trunk(patch)
    return np.asarray(np.maximum(d, trunk + 1))
