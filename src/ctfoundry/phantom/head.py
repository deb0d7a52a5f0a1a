"""The head as a whole: skin, scalp and face, orbits, nose and throat, vessels; skull and brain in their order."""

from __future__ import annotations

import numpy as np

from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.brain import paint_brain
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.folds import sheets
from ctfoundry.phantom.frame import SHOULDER_SLOPE, SHOULDER_Z, HeadCanvas, head_size
from ctfoundry.phantom.neck import paint_neck, spine_offset
from ctfoundry.phantom.shapes import ellipsoid, smooth_min, tube
from ctfoundry.phantom.skull import (
    Skull,
    both,
    capsule,
    midline_path,
    paint_face,
    paint_sinuses,
    paint_skull,
    smooth_tube,
)
from ctfoundry.phantom.space import Patch, rotation
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.tissue import Tissue

_SCALP_MM = 5.5
_SKIN_MM = 2.0
# z: half width, front, back of the muscles' outer surface, head millimetres
_FACE = np.array([
    (-84, 30, 78, 10), (-72, 40, 88, 4), (-58, 49, 95, 0), (-40, 55, 98, 0), (-22, 60, 98, 0), (-5, 62, 97, 0),
    (15, 64, 94, 0), (35, 61, 90, 0), (55, 56, 92, 5), (75, 46, 88, 10)])  # fmt: skip
_NECK = np.array([
    (-150, 70, 34, -66), (-125, 60, 34, -62), (-105, 55, 34, -58), (-80, 52, 33, -56), (-55, 52, 30, -55),
    (-30, 54, 22, -57), (-8, 56, 16, -62), (12, 54, 12, -66)])  # fmt: skip


def paint_head_wall(head: HeadCanvas, body: Body, tissue: Tissue) -> None:
    """Skin, fat and muscles, before any bone is painted."""
    _paint_surface(head, Skull(body), tissue)


def paint_head(head: HeadCanvas, body: Body, tissue: Tissue) -> None:
    """Head and neck, as far as they are in view."""
    skull, part = Skull(body), head.canvas
    paint_neck(part, skull, tissue)
    if part.space.lattice[2].max() < -90:
        return
    _paint_glands(part, skull, tissue)
    paint_skull(part, skull)
    paint_face(part, skull)
    _paint_orbits(part, skull)
    paint_sinuses(part, skull)
    _paint_airway(part, skull)
    paint_brain(part, skull, tissue)
    _paint_veins(part, skull, tissue)
    _paint_arteries(part, skull, tissue)


def _column(table: np.ndarray, patch: Patch, power: float, y: np.ndarray) -> np.ndarray:
    half, front, back = (np.interp(patch.z, table[:, 0], table[:, i]).astype(np.float32) for i in (1, 2, 3))
    v = y - (front + back) / 2
    k = (np.abs(patch.x / half) ** power + np.abs(2 * v / (front - back)) ** power) ** (1 / power)
    r = np.hypot(patch.x, v)
    return np.asarray(np.where(k > 0.2, r - r / np.maximum(k, 0.2), (k - 1) * half))


def _surfaces(skull: Skull, patch: Patch) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the muscles' outer surface, and to the skin, of head and neck alone."""
    subject = skull.body.subject
    half, z = both(patch), patch.z
    vault = skull.vault(patch)
    under = (-80 + 0.24 * (98 - patch.y)) - z
    face = np.maximum(_column(_FACE, patch, 2.5, patch.y), np.maximum(under, z - 76))
    neck = _column(_NECK, patch, 2.3, patch.y - spine_offset(skull.body, z)) - 4 * (subject.muscle - 1)
    neck = np.maximum(neck, np.maximum(-136 - z, z - 12))
    if subject.sex == "male" and subject.age_years > 14:
        neck = smooth_min(
            neck, ellipsoid(patch, (0, 25 + float(spine_offset(skull.body, -70.0)), -70), (13, 15, 20)), 6
        )
    temple = ellipsoid(half, (57, 40, 36), (12, 30, 36))
    soft = smooth_min(face, neck, 16)
    muscle = np.minimum(np.minimum(soft, temple), vault + 1.5)
    fat = 3.5 + 0.2 * subject.fat_mm * (1 + 0.4 * np.exp(-(((z + 60) / 30) ** 2)))
    fat = fat * (1 - 0.45 * np.exp(-((patch.x / 26) ** 2) - ((z - 40) / 34) ** 2))  # thin over nose and brow
    skin = soft - fat - _SKIN_MM * 0.5
    nose = smooth_min(
        capsule(patch, (0, 98, 40), (0, 114, 8), 6, 9, mirror=False), ellipsoid(half, (9, 107, 1), (8, 10, 7.5)), 6
    )
    lips = ellipsoid(patch, (0, 99, -25), (25, 9.5, 13))
    chin = ellipsoid(patch, (0, 90, -62), (22, 13, 14))
    ear = ellipsoid(half, (75.5, -9, 20), (4.5, 16, 29), rotation((0, 12, 16)))
    lobe = ellipsoid(half, (74, -4, -2), (4.5, 9, 8))
    skin = smooth_min(smooth_min(skin, nose, 7), smooth_min(lips, chin, 8), 8)
    skin = smooth_min(skin, np.minimum(vault, temple) - _SCALP_MM, 9)
    skin = np.minimum(skin, smooth_min(np.minimum(ear, lobe), skin, 4))
    # Lips and nose are muscle and gristle, not fat.
    muscle = np.minimum(muscle, np.maximum(np.minimum(nose, np.minimum(lips, chin)), skin) + 2.5)
    return np.minimum(muscle, np.minimum(ear, lobe)), skin


def _paint_surface(head: HeadCanvas, skull: Skull, tissue: Tissue) -> None:
    """Skin, fat and muscles of head and neck, grown together with the trunk's."""
    body, canvas = skull.body, head.canvas
    reach = 0.3 * body.subject.fat_mm
    patch = canvas.space.patch((-105 - reach, -105 - reach, -128), (105 + reach, 140 + reach, 155))
    if patch is None:
        return
    there = head.in_body(patch)
    muscle, skin = _surfaces(skull, patch)
    trunk, cover = body.trunk(there)
    cover = np.maximum(cover, -98 - 0.75 * body.subject.fat_mm - there.y)
    # Above the shoulders the trunk ends; its border is the slope of the trapezius.
    end = SHOULDER_SLOPE * (there.z - SHOULDER_Z)
    fade = np.clip((patch.z + 128) / 20, 0.02, 1)
    muscle = smooth_min(muscle, np.maximum(trunk, end), 14 * fade)
    skin = smooth_min(skin, np.maximum(cover, end), 18 * fade)
    key = body.key("fat")
    own, fat = 15 + 10 * float(key("skin").normal()), -103 + 5 * float(key.normal().clip(-2, 2))
    grain = sample(key("grain"), there.x, there.y, there.z, blob_mm=22)
    parted = np.zeros(patch.x.shape, dtype=np.float32)
    near = muscle < 8
    parted[near] = sheets(key("sheets"), there.x[near], there.y[near], 0.35 * there.z[near], apart_mm=24)
    fibres = tissue("muscle") + np.minimum(grain + 0.6, 0) * (20 + 100 * max(1.02 - body.subject.muscle, 0))
    layer = np.maximum(muscle, skin + _SKIN_MM)
    for slab, planes in patch.slabs():
        outer = slab.fine(skin[planes])
        canvas.paint(slab.box, outer, own, "skin")
        canvas.paint(
            slab.box, outer + np.float32(_SKIN_MM), fat + np.float32(9) * slab.fine(grain[planes]), "subcutaneous_fat"
        )
        hu = slab.fine(fibres[planes])
        hu += canvas.share(np.abs(slab.fine(parted[planes])) - np.float32(0.35)) * (0.7 * fat - hu)
        canvas.paint(slab.box, slab.fine(layer[planes]), hu, "muscle")


def _paint_glands(canvas: Canvas, skull: Skull, tissue: Tissue) -> None:
    """Fat between the muscles of the face, and the salivary glands."""
    fat = -98.0
    for side in (-1, 1):
        for centre, radii, hu in (
            ((44, 60, -14), (8, 12, 15), fat),
            ((37, 47, 3), (8, 9, 14), fat),
            ((25, 27, -14), (4.5, 9, 17), fat),
            ((62, 48, 20), (4, 13, 12), fat),
            ((53, 3, -14), (11, 12, 23), -25 + skull.whim("parotid", 22)),
            ((28, 40, -58), (9, 15, 11), 38 + skull.whim("submandibular", 10)),
        ):
            place = (side * centre[0], centre[1], centre[2])
            patch = canvas.space.patch(
                [c - r - 4 for c, r in zip(place, radii, strict=True)],
                [c + r + 4 for c, r in zip(place, radii, strict=True)],
            )
            if patch is not None:
                d = ellipsoid(patch, place, radii) + skull.waves(f"face {centre[0]}", patch, 1.2, 22)
                canvas.paint(patch.box, patch.fine(d), hu, None, over=("muscle",))


def _paint_orbits(canvas: Canvas, skull: Skull) -> None:
    """Walls, fat, four straight muscles, globe with lens, optic nerve."""
    key, years = skull.key("orbit"), skull.body.subject.age_years
    size = (12.05 + skull.whim("eye", 0.2)) * float(np.interp(years, (0, 3, 12), (0.86, 0.95, 1.0)))
    size /= float(np.cbrt(np.prod(head_size(skull.body.subject))))  # eyes vary less than heads
    turn = float(key("gaze").normal().clip(-2, 2)) * 9
    for side, name in ((-1, "left"), (1, "right")):
        x = side * (31.0 + skull.whim("apart", 0.8))
        patch = canvas.space.patch((min(side * 6, side * 56), 36, 12), (max(side * 6, side * 56), 102, 60))
        if patch is None:
            continue
        cone = smooth_min(
            capsule(patch, (side * 18, 47, 37), (x, 70, 35), 4.5, 16.5, mirror=False),
            ellipsoid(patch, (x, 76, 35), (18, 12, 16.5)),
            4,
        )
        cone = np.maximum(cone, np.maximum(patch.y - 88, 1.8 - skull.cavity(patch)))
        d = patch.fine(cone)
        wall = np.maximum(d - np.float32(1.6), patch.fine(np.maximum(patch.y - 80, 1.0 - skull.cavity(patch))))
        canvas.paint(patch.box, wall, 900, "skull", over=("muscle", "subcutaneous_fat"))
        canvas.paint(
            patch.box,
            d,
            -98 + skull.whim("orbital fat", 4),
            "subcutaneous_fat",
            over=("muscle", "skull", "subcutaneous_fat"),
        )
        globe = (x, 78.0, 35.0)
        for dx, dz in ((-10.5, 0), (10.5, 0), (0, 10.5), (0, -10.5)):
            belly = [
                (side * 18, 47, 37, 1.2),
                (x + 0.75 * dx - side * 5, 58, 35 + 0.8 * dz, 2.2),
                (x + dx, 70, 35 + dz, 1.7),
                (x + dx, 76, 35 + dz, 0.9),
            ]
            smooth_tube(canvas, belly, 48, None, ("subcutaneous_fat",))
        view = rotation((0, 0, turn)) @ np.array([0, 1.0, 0])
        back = np.array(globe) - view * (size - 1)
        nerve = [
            (*back, 2.0),
            (side * 25, 57, 37.5, 2.1),
            (side * 17.5, 46, 39, 1.9),
            (side * 8, 35, 43, 1.9),
            (0, 28, 45, 2.2),
        ]
        smooth_tube(canvas, nerve, 34, "optic_nerve")
        ball = canvas.space.patch([g - 16 for g in globe], [g + 16 for g in globe])
        if ball is None:
            continue
        e = ball.fine(ellipsoid(ball, globe, (size, size, size)))
        cornea = np.array(globe) + view * 4.6
        e = np.minimum(e, ball.fine(ellipsoid(ball, cornea, (8.4, 8.4, 8.4))))
        canvas.paint(ball.box, e, 48, f"eye_{name}")
        canvas.paint(ball.box, e + np.float32(1.1), 9, f"eye_{name}")
        lens = np.array(globe) + view * 7.2
        shape = rotation((0, 0, turn))
        thin = ball.fine(ellipsoid(ball, lens, (4.6, 2.0, 4.6), shape))
        removed = float(key("cataract", side).uniform()) < np.interp(years, (60, 85), (0, 0.5))
        canvas.paint(ball.box, thin + np.float32(1.0 if removed else 0.0), 95, f"eye_{name}")


def _paint_airway(canvas: Canvas, skull: Skull) -> None:
    """Nasal cavity with septum and conchae, and the throat down to the larynx."""
    patch = canvas.space.patch((-20, 36, -12), (20, 122, 46))
    if patch is not None:
        x, y, z = patch.x, patch.y, patch.z
        wide = np.interp(z, (-4, 4, 18, 30, 40), (12.5, 13.5, 11, 5, 1.5))
        cave = np.maximum(
            np.abs(x) - wide,
            np.maximum(np.maximum(48 - y, y - 98 + 0.35 * np.clip(z, 0, 40)), np.maximum(-2.2 - z, z - 40)),
        )
        bend = skull.whim("septum", 2.2) * np.exp(-(((y - 78) / 16) ** 2) - ((z - 12) / 14) ** 2)
        swollen = float(skull.key("conchae").uniform())
        low = capsule(patch, (9.5, 56, 4), (9.5, 88, 5), 3.8 + swollen, 3.6 + swollen)
        mid = capsule(patch, (7.5, 58, 18), (7, 84, 20), 2.4 + 0.5 * swollen, 2.6 + 0.5 * swollen)
        wall = patch.fine(cave)
        canvas.paint(patch.box, wall - np.float32(1.6), 420, "skull", over=("muscle",))
        canvas.paint(patch.box, wall, 45, "upper_airway", over=("muscle", "skull", "subcutaneous_fat"))
        concha = patch.fine(np.minimum(low, mid))
        septum = patch.fine(np.abs(x - bend))
        air = np.maximum(wall + np.float32(1.0), np.maximum(np.float32(0.7) - concha, np.float32(1.5) - septum))
        canvas.paint(patch.box, air, -970, None, over=("upper_airway",))
        canvas.paint(patch.box, np.maximum(concha + np.float32(2.2), wall), 230, None, over=("upper_airway",))
        canvas.paint(patch.box, np.maximum(septum - np.float32(0.5), wall), 200, None, over=("upper_airway",))
        for side in (-1, 1):
            smooth_tube(
                canvas,
                [(side * 5, 92, 2, 3.6), (side * 6, 102, -1, 4.0), (side * 7.5, 108, -8, 3.2)],
                -985,
                "upper_airway",
            )


def _paint_veins(canvas: Canvas, skull: Skull, tissue: Tissue) -> None:
    """Sinuses of the dura along the inner table, out through the skull base."""
    hu = max(tissue("vein") + 8, 50 + skull.whim("blood", 4))
    top = midline_path(skull, canvas, np.linspace(38, 190, 26), 2.8)
    line = np.column_stack([top, np.linspace(1.6, 4.4, len(top))])
    found = tube(canvas.space, line[:, :3], line[:, 3])
    inside = ("subarachnoid_space", "brain", "cerebellum", "skull")
    soft = ("subarachnoid_space", "brain", "cerebellum")
    if found is not None:
        canvas.paint(*found, hu, "venous_sinus", over=soft)
    torcula = top[-1]
    straight = [(0, -22, 52, 1.8), (0, -46, 43, 2.2), (0, float(torcula[1]) + 1, float(torcula[2]), 2.8)]
    smooth_tube(canvas, straight, hu, "venous_sinus", soft)
    for side in (-1, 1):
        strong = 1 + side * 0.28 * float(skull.key("dominant").normal().clip(-2, 2))
        strong = float(np.clip(strong, 0.45, 1.5))
        path = _along_table(skull, side, torcula)
        radii = np.interp(np.linspace(0, 1, len(path)), (0, 0.7, 1), (3.2, 3.8, 4.2)) * strong
        smooth_tube(canvas, np.column_stack([path, radii]).tolist(), hu, "venous_sinus", inside)
        bulb = [
            (*path[-1], 4.0 * strong),
            (side * 36, -16, 3, 4.2 * strong),
            (side * 27, -10, 1, 4.4 * strong),
            (side * 30, -4, -16, 4.4),
        ]
        smooth_tube(canvas, bulb, hu, None, ("skull", "muscle", "subarachnoid_space"))


def _along_table(skull: Skull, side: int, torcula: np.ndarray) -> np.ndarray:
    """The transverse and sigmoid sinus: a chain of points just under the inner table."""
    r = np.arange(30.0, 100.0, 0.5)
    # Horizontal rays from a point in the posterior fossa, at the tentorium's height.
    turn = np.radians(np.linspace(4, 78, 9))[:, None]
    z = np.linspace(float(torcula[2]) - 1, 30, 9)[:, None] + 0 * r
    px, py = side * r * np.sin(turn), -8 - r * np.cos(turn)
    line = Patch((slice(0, 1),) * 3, px, py, z, (1, 1, 1))
    first = np.argmax(skull.cavity(line) > -2.6, axis=1)
    row = np.arange(9)
    path = np.stack([px[row, first], py[row, first], z[row, first]], axis=1)
    return np.concatenate([[torcula], path[1:], [(side * 50, -24, 16)], [(side * 44, -22, 6)]])


def _paint_arteries(canvas: Canvas, skull: Skull, tissue: Tissue) -> None:
    """Carotids through the base, the circle of Willis and the great cerebral arteries; vertebrals and basilar."""
    hu = tissue("artery")
    wall = float(np.clip((skull.body.subject.age_years - 55) / 25, 0, 1)) * float(skull.key("plaque").uniform())
    soft = ("subarachnoid_space", "brain", "brainstem", "ventricle")
    for side in (-1, 1):
        s = float(side)
        bony = [
            (s * 26, 4, -10, 2.5),
            (s * 25, 3, 8, 2.5),
            (s * 22, 8, 19, 2.5),
            (s * 14, 17, 24, 2.4),
            (s * 10, 21, 32, 2.4),
        ]
        smooth_tube(canvas, bony, hu, None, ("skull", "muscle", "subarachnoid_space"))
        siphon = [
            (s * 10, 21, 32, 2.4),
            (s * 11, 27, 34, 2.4),
            (s * 11.5, 33, 38, 2.3),
            (s * 11, 29, 43, 2.2),
            (s * 12, 25, 48, 2.0),
        ]
        smooth_tube(canvas, siphon, hu, None, (*soft, "skull"))
        if wall > 0.3:
            smooth_tube(canvas, [(s * 9, 27, 34.5, 0.9), (s * 9.5, 31, 36, 0.9)], 500 * wall, None, (*soft, "skull"))
        smooth_tube(
            canvas,
            [
                (s * 12, 25, 48, 1.5),
                (s * 20, 28, 47, 1.5),
                (s * 29, 29, 46, 1.4),
                (s * 35, 24, 52, 1.2),
                (s * 37, 14, 57, 0.9),
                (s * 41, 0, 64, 0.8),
            ],
            hu,
            None,
            soft,
        )
        smooth_tube(
            canvas,
            [
                (s * 12, 25, 48, 1.2),
                (s * 6, 31, 50, 1.2),
                (s * 1.8, 37, 52, 1.2),
                (s * 1.6, 52, 58, 1.1),
                (s * 1.6, 57, 70, 1.0),
                (s * 1.4, 46, 84, 0.9),
                (s * 1.4, 20, 92, 0.8),
            ],
            hu,
            None,
            soft,
        )
        smooth_tube(
            canvas,
            [
                (s * 0.5, 12, 40, 1.4),
                (s * 8, 9, 44, 1.2),
                (s * 16, -1, 46, 1.1),
                (s * 18, -16, 49, 1.0),
                (s * 12, -34, 54, 0.8),
            ],
            hu,
            None,
            soft,
        )
        smooth_tube(canvas, [(s * 11, 23, 47, 0.7), (s * 9, 12, 44, 0.7)], hu, None, soft)
        foot = [(s * 18, -20, -16, 1.7), (s * 12, -12, -6, 1.6), (s * 6, -5, 3, 1.6), (0, 1.5, 11, 1.7)]
        smooth_tube(canvas, foot, hu, None, (*soft, "muscle", "spinal_cord"))
    smooth_tube(canvas, [(0, 1.5, 11, 1.7), (0.6, 5, 22, 1.6), (0, 9, 32, 1.6), (0, 12, 40, 1.5)], hu, None, soft)
    smooth_tube(canvas, [(-1.8, 37, 52, 0.8), (1.8, 37, 52, 0.8)], hu, None, soft)
