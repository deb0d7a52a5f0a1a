"""The adrenal glands: thin lambdas in the fat above the kidneys."""

from __future__ import annotations

import numpy as np

from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.shapes import ellipsoid
from ctfoundry.phantom.space import rotation
from ctfoundry.phantom.tissue import Tissue

# Segments in the gland's own axial plane: outwards (lateral) and forwards, millimetres, from, to, and half thickness there.
_RIGHT = (((0, 9), (1, 2), 3.6, 3.2), ((1, 2), (7, -15), 2.6, 1.8), ((1, 2), (-3, -16), 2.6, 1.7))
_LEFT = (((0, 11), (0, 2), 4.0, 3.4), ((0, 2), (11, -12), 2.7, 1.8), ((0, 2), (-5, -15), 2.7, 1.7))
_HALF_MM = 17.0
"""Half the height of a gland."""


def paint_adrenals(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """Both glands: a body in front with two limbs running backwards, like a lambda; each of 3 to 6 ml, in a film of fat.

    Heights and lengths follow CT studies of normal glands (Vincent et al. 1994: body 6 to 8 mm, limbs 3 to 4 mm thick).
    """
    for side, name, limbs in ((1, "right", _RIGHT), (-1, "left", _LEFT)):
        kidney, axes, factor = kidney_plan(body, side)
        pole = kidney + axes @ (np.array([0.0, 0, 55]) * factor)
        frame = body.frame(f"adrenal {name}", (1.5, 1.5, 2.5), 0.09, 8)
        back = float(body.spine(pole[2]))
        centre = pole + frame.shift + (0, 14, 3 if side > 0 else -5)
        centre[0] = side * np.clip(side * centre[0] - 9, 30, 45 if side > 0 else 48)  # beside the crus
        centre[1] = np.clip(centre[1], back + 9, back + (17 if side > 0 else 26))
        patch = canvas.space.patch(centre - 30, centre + 30)
        if patch is None:
            continue
        turn = frame.turn @ rotation((10, 0, side * -12))
        size = float(frame.factor.mean())
        across = np.stack(canvas.space.coordinates(patch.box)) - centre.astype(np.float32)[:, None, None, None]
        x, y, z = np.tensordot(turn.T.astype(np.float32), across, axes=1) / np.float32(size)
        x = x * np.float32(side)
        # Limbs are longest in the middle of the gland's height; the body ends first at the top.
        short = 1 - 0.45 * np.clip(np.abs(z) / _HALF_MM, 0, 1) ** 2
        distance = np.full(x.shape, 99, dtype=np.float32)
        for (ax, ay), (bx, by), thick, thin in limbs:
            dx, dy = (bx - ax) * short, (by - ay) * short
            t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
            near = np.hypot(x - ax - t * dx, y - ay - t * dy) - (thick + (thin - thick) * t)
            np.minimum(distance, near, out=distance)
        ends = np.abs(z + np.float32(0.25) * y) - np.float32(_HALF_MM)
        distance = np.maximum(distance, ends).astype(np.float32) * np.float32(size)
        soft = ("visceral_fat", "liver", "spleen")
        if side > 0:  # the space behind the liver, between kidney, crus and diaphragm, holds fat
            space = ellipsoid(patch, centre + (-13, -14, -4), (21, 22, 24))
            canvas.paint(patch.box, patch.fine(space), -100, "visceral_fat", over=("liver",))
        canvas.paint(patch.box, distance - np.float32(2.2), -100, "visceral_fat", over=soft)
        canvas.paint(patch.box, distance, tissue("adrenal"), f"adrenal_gland_{name}", over=soft)


def kidney_plan(body: Body, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middle (body mm), axes as columns and factors of the right (1) or left (-1) kidney, an ellipsoid of 24 x 29 x 55 mm."""
    name = "right" if side > 0 else "left"
    frame = body.frame(f"kidney {name}", (6, 6, 15), 0.12, 10)
    height = 128 + 0.45 * body.descent[0 if side > 0 else 1] + (0 if side > 0 else 12)
    centre = np.array([side * (60 + 8 * body.subject.visceral), float(body.spine(height)) - 12, height]) + frame.shift
    turn = frame.turn @ rotation((-14, side * -14, side * 34))
    return centre, turn, frame.factor
