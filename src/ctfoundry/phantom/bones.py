"""Bones: cortical shell and spongy inside; ribs and vertebrae numbered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.phantom.anatomy import LEVEL_EDGES, LEVEL_NAMES, Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.growth import bone_hu
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.shapes import smooth_path, tube
from ctfoundry.phantom.space import Patch, rotation
from ctfoundry.phantom.texture import sample

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]

_SOFT = ("muscle", "visceral_fat", "subcutaneous_fat", "autochthon_left", "autochthon_right")


class Bone:
    """HU of one patient's bones, by depth under the surface."""

    def __init__(self, body: Body) -> None:
        density, cortex = body.key("bone").normal(2).clip(-2, 2)
        spongy, shell = bone_hu(body.subject.age_years)
        self.spongy = float(165 + spongy + 42 * density)
        self.cortex = float(520 + shell + 110 * cortex)

    def hu(self, distance: Field, grain: Field | float = 0.0, shell_mm: float = 1.6) -> Field:
        """Spongy bone in a shell of `shell_mm`, with a soft border; `grain` (deviation 1) makes trabeculae."""
        depth = np.clip(-distance / np.float32(2 * shell_mm), 0, 1)
        inside = np.float32(self.spongy) + np.float32(45) * grain
        return np.asarray(self.cortex + (inside - self.cortex) * depth * depth, dtype=np.float32)


def paint_bones(canvas: Canvas, body: Body) -> None:
    """All bones."""
    bone = Bone(body)
    _paint_hips(canvas, body, bone)
    _paint_sacrum(canvas, body, bone)
    _paint_shoulders(canvas, body, bone)
    _paint_ribs(canvas, body, bone)
    _paint_spine(canvas, body, bone)


def _paint_spine(canvas: Canvas, body: Body, bone: Bone) -> None:
    patch = canvas.space.patch((-55, -125, -6), (55, 45, LEVEL_EDGES[-1]))
    if patch is None:
        return
    slope = (body.spine(patch.z + 5) - body.spine(patch.z - 5)) / 10
    back = patch.y - body.spine(patch.z)
    straight = patch.z + slope * back
    for slab, planes in patch.slabs(2):
        x, y, z = (slab.fine(c[planes]) for c in (patch.x, back, straight))
        # A third of the box can hold bone: bodies and spinous processes, and the transverse ones beside them.
        wide = np.abs(x)
        near = (wide < 32) & (y > -84) & (y < 24)
        near |= (wide < 44) & (y > -52) & (y < -8)
        inside = np.flatnonzero(near)
        if inside.size:
            _paint_vertebrae(
                canvas, body, bone, canvas.index(slab.box, inside), *(c.ravel()[inside] for c in (x, y, z))
            )


def _paint_vertebrae(
    canvas: Canvas, body: Body, bone: Bone, voxels: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray
) -> None:
    """Discs, vertebrae, canal and cord on `voxels` (flat indices) at x, y from the bodies' middle and z along the spine."""
    level = np.clip(np.searchsorted(LEVEL_EDGES, z, side="right") - 1, 0, len(LEVEL_NAMES) - 1)
    edge, height = LEVEL_EDGES[level].astype(np.float32), np.diff(LEVEL_EDGES).astype(np.float32)[level]
    s = (z - edge) / height
    size = np.interp(LEVEL_EDGES, (0, 180, 460, 550), (1.12, 0.98, 0.72, 0.6)).astype(np.float32)[level]
    disc = np.interp(LEVEL_EDGES, (0, 180, 460), (0.27, 0.2, 0.16)).astype(np.float32)[level]
    # Body: an elliptic column with a waist; the disc is the top of each level.
    waist = 1 - 0.13 * np.clip(4 * s * (1 - disc - s) / (1 - disc) ** 2, 0, 1)
    column = (np.hypot(x / (23 * size * waist), y / (16.5 * size * waist)) - 1) * 18 * size
    end = (s - (1 - disc)) * height
    outside = np.maximum(-z, z - np.float32(LEVEL_EDGES[-1]))
    grain = sample(body.key("spine"), x, y, z, blob_mm=5)
    discs = np.full(level.shape, IDS["intervertebral_disc"], dtype=np.uint8)
    canvas.put(voxels, np.maximum(column - 0.5, outside), 85 + 6 * grain, discs)
    vertebra = np.maximum(column, np.maximum(end, -s * height + 0.3))
    # Arch around the canal, spinous and transverse processes.
    yc = y + 16.5 * size + 8
    ring = np.maximum(np.abs(np.hypot(x / 1.25, yc) - 10.5) - 2.7, np.abs(s - 0.5) * height - 0.32 * height)
    slant = s - 0.42 - (yc + 10) / 70
    spinous = np.maximum(
        np.maximum(np.abs(x) - 3.2, np.abs(slant) * height - 0.24 * height), np.maximum(yc + 9, -yc - 38 * size - 4)
    )
    transverse = np.maximum(
        np.maximum(np.abs(yc + 1 + np.abs(x) / 9) - 4.0, np.abs(s - 0.55) * height - 5),
        np.maximum(11 - np.abs(x), np.abs(x) - 26 - 10 * size),
    )
    posterior = np.maximum(np.minimum(np.minimum(ring, spinous), transverse), outside)
    vertebra = np.minimum(np.maximum(vertebra, outside), posterior)
    ids = np.array([IDS[name] for name in LEVEL_NAMES], dtype=np.uint8)
    canvas.put(voxels, vertebra, bone.hu(vertebra, grain), ids[level])
    cord = np.maximum(np.hypot(x / 1.25, yc) - 7.6, outside)
    canvas.put(voxels, cord, 14, None)
    cord = np.maximum(np.hypot(x / 1.2, yc) - 4.8, np.maximum(outside, 130 - z))
    canvas.put(voxels, cord, 38, np.full(level.shape, IDS["spinal_cord"], dtype=np.uint8))


def _paint_ribs(canvas: Canvas, body: Body, bone: Bone) -> None:
    patch = canvas.space.patch((-150, -125, 60), (150, 120, 500))
    if patch is None:
        return
    distance, _ = body.cage(patch)
    middle = np.interp(patch.z, (130, 300, 478), (11, 2, -19))
    angle = np.arctan2(np.abs(patch.x), middle - patch.y)
    for slab, planes in patch.slabs(2):
        shell = slab.fine(distance[planes])
        near = np.flatnonzero(np.abs(shell.ravel()) < 8)
        if near.size:
            rest = (slab.fine(c[planes]).ravel()[near] for c in (angle, patch.z, patch.x))
            _paint_cage(canvas, body, bone, canvas.index(slab.box, near), shell.ravel()[near], *rest)


def _paint_cage(
    canvas: Canvas,
    body: Body,
    bone: Bone,
    voxels: np.ndarray,
    d: np.ndarray,
    phi: np.ndarray,
    z: np.ndarray,
    x: np.ndarray,
) -> None:
    """Ribs and cartilage on `voxels` (flat indices), at d from the middle of the ribs and the angle phi from the back."""
    # Ribs run down and forwards; the cartilage rises again to the sternum.
    steep = 1 + 0.12 * float(body.key("ribs").normal().clip(-2, 2))
    drop = (np.interp(z, (60, 200, 330, 440, 470), (95, 95, 82, 45, 30)) * steep).astype(np.float32)
    fall = np.interp(phi, (0, 0.25, 0.8, 1.5, 2.1, 2.4, 2.8, 3.15), (0, 0.0, 0.28, 0.66, 0.96, 1.0, 0.88, 0.72))
    heads = LEVEL_EDGES[5:17] + 14  # T12 .. T1
    u = np.interp(z + drop * fall, heads, np.arange(12, 0, -1), left=13.4, right=0)
    number = np.rint(u).astype(int)
    pitch = np.interp(number, np.arange(1, 13), np.diff(LEVEL_EDGES)[5:17][::-1])
    up = (u - number) * pitch
    half = np.where(number <= 2, 7.0, 6.3)
    shape = (np.hypot(up / half, d / 4.2) - 1) * 4.6
    ends = np.array([0, 2.35, 2.4, 2.42, 2.42, 2.4, 2.36, 2.3, 2.2, 2.1, 2.0, 1.45, 1.05, 0])[number.clip(0, 13)]
    valid = (number >= 1) & (number <= 12)
    rib = np.where(valid & (phi > 0.28) & (phi < ends), shape, 9).astype(np.float32)
    cartilage = np.where(valid & (number <= 9) & (phi >= ends) & (phi < 3.0), shape + 0.3, 9).astype(np.float32)
    first = np.where(x < 0, IDS["rib_left_1"], IDS["rib_right_1"]) - 1
    calcified = 95 + 60 * float(body.key("cartilage").uniform())
    costal = np.full(number.shape, IDS["costal_cartilages"], dtype=np.uint8)
    canvas.put(voxels, cartilage, calcified, costal)
    canvas.put(voxels, rib, bone.hu(rib, shell_mm=1.2), (first + number).astype(np.uint8))


def _plate(
    patch: Patch,
    centre: tuple[float, float, float],
    turn: np.ndarray,
    radii: tuple[float, float],
    half_mm: float,
    bend: float,
) -> Field:
    """A bent oval plate: local axes u, v in the plane, n across; `bend` is the rise of its rim in millimetres."""
    u, v, n = np.tensordot(
        turn.T.astype(np.float32), np.stack([patch.x - centre[0], patch.y - centre[1], patch.z - centre[2]]), axes=1
    )
    k = np.hypot(u / radii[0], v / radii[1])
    rim = (k - 1) * min(radii)
    across = n - bend * (u / radii[0]) ** 2
    edge = patch.fine(rim)
    # Thicker at the rim, as the iliac crest and the scapula's border are.
    half = np.float32(half_mm) * (1 + np.clip(edge / 12 + 1, 0, 1))
    return np.maximum(np.abs(patch.fine(across)) - half, edge)


def _paint_hips(canvas: Canvas, body: Body, bone: Bone) -> None:
    """Iliac wings, the bony ring of pubis and ischium, and the upper ends of the femora."""
    space = canvas.space
    wide = 1.06 if body.subject.sex == "female" else 1.0
    for side, name in ((-1, "left"), (1, "right")):
        x = side * wide
        path = smooth_path([(x * 50, -68, -25), (x * 70, -40, -65), (x * 92, -4, -112)], 8)
        pubis = smooth_path(
            [
                (x * 90, 6, -114),
                (x * 55, 46, -120),
                (x * 9, 60, -135),
                (x * 16, 52, -156),
                (x * 48, 4, -180),
                (x * 68, -42, -178),
                (x * 82, -32, -140),
                (x * 92, -10, -118),
            ],
            26,
        )
        radii = np.interp(np.linspace(0, 1, 26), (0, 0.1, 0.2, 0.4, 0.5, 0.7, 0.85, 1), (24, 12, 9, 10, 7, 15, 13, 22))
        patch = space.patch((min(0, x * 150), -90, -140), (max(0, x * 150), 70, 60))
        if patch is not None:
            plate = _plate(patch, (x * 100, -18, -8), _iliac_turn(side), (72, 58), 3.4, -10.0)
            canvas.paint(patch.box, plate, bone.hu(plate), f"hip_{name}", over=_SOFT)
        for points, thick in ((path, np.linspace(12, 22, 8)), (pubis, radii)):
            found = tube(space, points, thick)
            if found is not None:
                box, d = found
                canvas.paint(box, d, bone.hu(d, shell_mm=1.8), f"hip_{name}")
        joint = np.array([[x * 96, 2, -120], [x * 98, 2, -122]])
        for radius, head in ((27.0, False), (23.5, True)):  # the joint's cartilage and fluid first, the head into it
            found = tube(space, joint, radius)
            if found is not None:
                box, d = found
                canvas.paint(box, d, bone.hu(d) + 40 if head else 60.0, f"femur_{name}" if head else "muscle")
        shaft = [
            (x * 98, 2, -122, 22),
            (x * 120, -4, -138, 14),
            (x * 147, -8, -149, 17),
            (x * 143, -6, -195, 15.5),
            (x * 140, 0, -240, 14.5),
        ]
        line = smooth_path(shaft, 14)
        found = tube(space, line[:, :3], line[:, 3])
        if found is not None:
            box, d = found
            canvas.paint(box, d, bone.hu(d, shell_mm=2.5), f"femur_{name}")


def _paint_sacrum(canvas: Canvas, body: Body, bone: Bone) -> None:
    """A wedge between the hips, curved backwards, with its foramina."""
    patch = canvas.space.patch((-65, -110, -135), (65, 20, 8))
    if patch is not None:
        half = np.interp(patch.z, (-130, -60, 0), (14, 40, 56))
        depth = np.interp(patch.z, (-130, -60, 0), (5, 13, 20))
        y = body.spine(patch.z) - 4 - 10 * np.clip(1 - np.abs(patch.z + 60) / 60, 0, 1)
        d = patch.fine((np.hypot(patch.x / half, (patch.y - y) / depth) - 1) * depth)
        d = np.maximum(d, np.abs(patch.fine(patch.z + 0.45 * patch.y) + 66) - 62)
        holes = patch.fine(
            np.hypot((np.abs(patch.x) - np.interp(patch.z, (-130, 0), (12, 26))), 12 * np.sin(np.pi * patch.z / 27))
        )
        grain = sample(body.key("pelvis"), patch.fine(patch.x), patch.fine(patch.y), patch.fine(patch.z), blob_mm=5)
        canvas.paint(patch.box, d, bone.hu(d, grain), "sacrum")
        canvas.paint(patch.box, np.maximum(d + 3, holes - 4.5), -10, None)


def _iliac_turn(side: int) -> np.ndarray:
    """Columns u (along the crest, back to front and outwards), v (up), n (across, outwards)."""
    u = np.array([side * 0.62, 0.78, 0.05])
    v = np.array([side * 0.28, -0.16, 0.95])
    u /= np.linalg.norm(u)
    v -= u * (u @ v)
    v /= np.linalg.norm(v)
    n = np.cross(u, v) * side
    return np.stack([u, v, n], axis=1)


def _paint_shoulders(canvas: Canvas, body: Body, bone: Bone) -> None:
    space = canvas.space
    for side, name in ((-1, "left"), (1, "right")):
        patch = space.patch((min(0, side * 160), -125, 330), (max(0, side * 160), -30, 480))
        if patch is not None:
            turn = rotation((-14, 0, side * 28)) @ np.array([[side, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=float)
            plate = _plate(patch, (side * 104, -100, 405), turn, (42, 62), 1.8, 7.0)
            canvas.paint(patch.box, plate, bone.hu(plate, shell_mm=1.2), f"scapula_{name}", over=_SOFT)
        line = smooth_path(
            [(side * 20, 44, 442, 8), (side * 60, 38, 456, 6), (side * 105, 2, 466, 6), (side * 140, -24, 468, 7)], 12
        )
        found = tube(space, line[:, :3], line[:, 3])
        if found is not None:
            box, d = found
            canvas.paint(box, d, bone.hu(d), f"clavicula_{name}")
    path = smooth_path([(0, 46, 436, 9), (0, 66, 405, 8), (0, 84, 365, 7), (0, 96, 320, 7), (0, 99, 290, 5)], 16)
    for shift in (-9, 0, 9):
        found = tube(space, path[:, :3] + (shift, 0, 0), path[:, 3])
        if found is not None:
            box, d = found
            canvas.paint(box, d, bone.hu(d), "sternum")
