"""Shoulder and hip girdle: heads of the humeri, middle and small gluteal muscles."""

from __future__ import annotations

import numpy as np

from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.bones import Bone
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.shapes import ellipsoid
from ctfoundry.phantom.space import Patch, rotation
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.tissue import Tissue


def paint_girdles(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """Gluteus medius and minimus on the iliac wings, and what the trunk holds of the humeri: arms are not modelled."""
    bulk = float(np.sqrt(body.subject.muscle))
    infiltration = max(1.05 - body.subject.muscle, 0) / 0.3
    bone = Bone(body)
    for side, name in ((-1, "left"), (1, "right")):
        wide = side * (1.06 if body.subject.sex == "female" else 1.0)
        patch = canvas.space.patch((min(wide * 68, wide * 165), -85, -155), (max(wide * 68, wide * 165), 50, 35))
        if patch is not None:
            grain = sample(body.key("gluteus_medius", name), patch.x, patch.y, patch.z, blob_mm=20)
            hu = patch.fine(tissue("muscle") + 3 * side + np.minimum(grain + 0.4, 0) * (14 + 70 * infiltration))
            for muscle, distance in (
                ("minimus", _minimus(patch, wide, side, bulk)),
                ("medius", _medius(body, patch, wide, side, bulk)),
            ):
                d = patch.fine(distance)
                canvas.paint(patch.box, d - np.float32(1.3), -82, None, over=("muscle",))
                canvas.paint(patch.box, d, hu, f"gluteus_{muscle}_{name}", over=("muscle",))
        _paint_humerus(canvas, body, bone, side, name)


def _medius(body: Body, patch: Patch, wide: float, side: int, bulk: float) -> np.ndarray:
    """A fan from the outer face of the wing to the greater trochanter."""
    turn = rotation((0, 0, side * -36)) @ rotation((0, side * -15, 0))
    d = ellipsoid(patch, (wide * 119, -21, -58), (23 * bulk, 54, 88), turn)
    trunk, _ = body.trunk(patch)
    return np.asarray(np.maximum(d, trunk + 3))


def _minimus(patch: Patch, wide: float, side: int, bulk: float) -> np.ndarray:
    turn = rotation((0, 0, side * -30)) @ rotation((0, side * -18, 0))
    return ellipsoid(patch, (wide * 112, -8, -78), (10.5 * bulk, 34, 50), turn)


def _paint_humerus(canvas: Canvas, body: Body, bone: Bone, side: int, name: str) -> None:
    """The head with the neck's beginning, cut off where the trunk ends: the arms are raised out of the field."""
    patch = canvas.space.patch((min(side * 105, side * 180), -75, 400), (max(side * 105, side * 180), 20, 490))
    if patch is None:
        return
    head = ellipsoid(patch, (side * 142, -30, 436), (22, 22, 23))
    neck = ellipsoid(patch, (side * 162, -28, 447), (26, 15, 17), rotation((0, side * -38, 0)))
    trunk, _ = body.trunk(patch)
    d = patch.fine(np.maximum(np.minimum(head, neck), trunk + 3))
    canvas.paint(
        patch.box, d, bone.hu(d, shell_mm=1.6), f"humerus_{name}", over=("muscle", "subcutaneous_fat", "visceral_fat")
    )
