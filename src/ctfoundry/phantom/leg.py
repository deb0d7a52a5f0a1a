"""The legs: outline, bones with marrow, muscle compartments, vessels, from the hip to the toes.

Body millimetres of the reference: knee joint at -551, ankle at -913, sole at -985, so that the femur is 0.264 and the tibia
0.215 of a stature of 1.72 m (Trotter and Gleser 1952) and the thigh 56 cm around. The tables are 10 mm shorter from the
knee down (`_drawn`). Legs lie straight, toes up, feet dropped
by 10 degrees. Everything is drawn for the right leg and folded over the midline.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.bones import Bone
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.folds import sheets
from ctfoundry.phantom.growth import bone_hu
from ctfoundry.phantom.shapes import ellipsoid, smooth_min, smooth_path, tube
from ctfoundry.phantom.skull import both, capsule
from ctfoundry.phantom.space import Patch, Slices, Space
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.tissue import Tissue

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]

# z: middle x, half width, front, back of the muscles' outer surface
_LEG = np.array([
    (-150, 86, 80, 74, -100), (-200, 89, 79, 72, -98), (-250, 91, 76, 69, -90), (-300, 92, 72, 66, -82), (-350, 92, 67, 62, -75),
    (-400, 91, 60, 58, -67), (-450, 91, 54, 54, -59), (-490, 92, 50, 52, -53), (-520, 93, 50, 52, -49), (-545, 93, 49, 49, -48),
    (-570, 94, 47, 41, -50), (-600, 95, 48, 35, -60), (-640, 96, 51, 32, -71), (-680, 97, 50, 29, -73), (-720, 98, 45, 27, -65),
    (-770, 99, 37, 24, -51), (-820, 100, 30, 21, -42), (-860, 101, 28, 20, -38), (-890, 102, 32, 22, -38), (-915, 102, 34, 30, -44),
    (-940, 102, 32, 40, -50)])  # fmt: skip
_CROTCH_Z = -206.0
_SHAFT = (
    (143, -5, -205, 15.2), (140, 0, -240, 14.5), (137, 3, -290, 13.8), (130, 4, -360, 13.4), (118, 4, -420, 13.6), (107, 1, -470, 16.0), (100, -3, -500, 20.0),
)  # fmt: skip
"""x, y, z and radius of the femur's shaft; above it the torso's own."""
_SOFT = ("muscle", "subcutaneous_fat", "quadriceps", "hamstrings", "adductors", "calf")


_BODY_Z, _DRAWN_Z = (-1200.0, -510.0, -300.0, 0.0), (-1190.0, -500.0, -300.0, 0.0)


def _drawn(patch: Patch) -> Patch:
    """A patch of body millimetres at the heights of the tables."""
    return replace(patch, z=np.interp(patch.z, _BODY_Z, _DRAWN_Z).astype(np.float32))


def _tube(space: Space, points: np.ndarray, radii: float | np.ndarray) -> tuple[Slices, Field] | None:
    """`shapes.tube` through points at the heights of the tables."""
    points = np.array(points, dtype=np.float64)
    points[:, 2] = np.interp(points[:, 2], _DRAWN_Z, _BODY_Z)
    return tube(space, points, radii)


def leg_surface(body: Body, patch: Patch) -> np.ndarray:
    """Distance to the muscles' outer surface of both legs."""
    patch = _drawn(patch)
    half = both(patch)
    x, wide, front, back = (np.interp(patch.z, _LEG[::-1, 0], _LEG[::-1, i]) for i in (1, 2, 3, 4))
    bulk = 1 + 0.1 * (body.subject.muscle - 1)
    v = patch.y - (front + back) / 2
    u = (half.x - x) / (wide * bulk)
    k = (np.abs(u) ** 2.1 + np.abs(2 * v / ((front - back) * bulk)) ** 2.1) ** (1 / 2.1)
    r = np.hypot(half.x - x, v)
    leg = np.where(k > 0.2, r - r / np.maximum(k, 0.2), (k - 1) * wide)
    leg = np.maximum(leg, np.maximum(patch.z + 120, -945 - patch.z))
    kneecap = ellipsoid(half, (94, 44, -512), (24, 14, 26))
    return smooth_min(smooth_min(leg, kneecap, 10), _foot(half), 14)


def _foot(half: Patch) -> np.ndarray:
    heel = ellipsoid(half, (103, -38, -945), (28, 28, 30))
    middle = capsule(half, (103, -20, -938), (106, 60, -945), 29, 26, mirror=False)
    ball = capsule(half, (98, 75, -958), (124, 60, -958), 16, 13, mirror=False)
    toes = capsule(half, (97, 90, -962), (98, 158, -972), 14, 9, mirror=False)
    small = capsule(half, (118, 70, -962), (117, 138, -974), 14, 8, mirror=False)
    out = smooth_min(smooth_min(heel, middle, 12), smooth_min(ball, smooth_min(toes, small, 8), 12), 12)
    sole = (-970 - 0.06 * (half.y - 20)) - half.z
    return np.maximum(out, sole)


def join_legs(body: Body, patch: Patch, trunk: np.ndarray, skin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The trunk's surfaces (muscle, skin) with legs below the crotch instead of the endless trunk."""
    if patch.z.min() > -170:
        return trunk, skin
    leg = leg_surface(body, patch)
    end = _CROTCH_Z - patch.z
    # Fat: much at the hips and inside of the thighs, little at shin and foot.
    share = np.interp(patch.z, (-960, -860, -680, -560, -400, -230), (0.22, 0.22, 0.38, 0.36, 0.6, 0.85))
    fat = 2.4 + body.subject.fat_mm * share * (1 - 0.45 * np.clip(patch.y / 60, 0, 1) * (patch.z < -540))
    cover = leg - fat
    blend = 22 * np.clip((-172 - patch.z) / 40, 0.02, 1)
    muscle = smooth_min(np.maximum(trunk, end), leg, blend)
    cover = smooth_min(np.maximum(skin, end - 8), cover, blend)
    # Where the thighs touch, their skins stay two.
    cleft = np.where(patch.z < _CROTCH_Z - 14, 1.1 - np.abs(patch.x), -9)
    inner = np.where(patch.z < -172, np.maximum(np.maximum(muscle, cover + 3), cleft + 4), muscle)
    return inner, np.maximum(cover, cleft)


def paint_legs(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """What lies inside the legs: muscle compartments, vessels, bones."""
    if canvas.space.lattice[2].min() > -190:
        return
    _paint_compartments(canvas, body, tissue)
    _paint_vessels(canvas, body, tissue)
    _paint_bones(canvas, body)


def _paint_compartments(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """Quadriceps, adductors, hamstrings and calf, parted by fat; the front of the shin stays `muscle`."""
    patch = canvas.space.patch((-200, -150, -945), (200, 110, -194))
    if patch is None:
        return
    leg = leg_surface(body, patch) + 1.2
    patch = _drawn(patch)
    half, z = both(patch), patch.z
    line = np.array([(s[2], s[0], s[1]) for s in _SHAFT] + [(-540, 94, -4)])[::-1]
    fx, fy = (np.interp(z, line[:, 0], line[:, i]) for i in (1, 2))
    u, v = half.x - fx, patch.y - fy
    # Septa run from the femur: lateral and backwards, medial and forwards, medial and backwards.
    lateral = -v * 0.86 - u * 0.5 - 10  # < 0 in front of the lateral septum
    front = v * 0.97 + u * 0.24 + np.interp(z, (-480, -420, -300, -200), (0, 9, 12, -4))
    behind = -v * 0.95 + u * 0.3 - np.interp(z, (-460, -380, -200), (4, 20, 38))
    quad = np.maximum(np.where(u > 0, lateral, -front), np.maximum(-488 - z, z + 198))
    tendon = np.where(z < -450, 0.35 * (-450 - z), 0.0)  # thins to the tendon above the knee
    quad = np.maximum(quad, leg + np.where(v > 0, tendon * 0.5, 0))
    adductors = np.maximum(np.maximum(front + 1.0, u + 5), np.maximum(behind, np.maximum(-455 - z, z + 198)))
    adductors = np.maximum(adductors, leg)
    hams = np.maximum(
        -np.where(u > 0, lateral, np.maximum(behind, v + 6)), np.maximum(leg, np.maximum(-548 - z, z + 198))
    )
    pit = np.hypot(half.x - 93, patch.y + 34) - np.interp(z, (-590, -545, -490, -450), (2, 15, 15, 4))  # popliteal fat
    hams = np.maximum(hams, np.where((z > -600) & (z < -440), 1 - pit, -9))
    tx = np.interp(z, (-900, -560), (100, 93))
    calf = np.maximum(np.maximum(patch.y + 14 + 0.25 * np.abs(half.x - tx), leg), np.maximum(z + 535, -845 - z))
    calf = np.maximum(calf, np.where(z > -600, 1 - pit, -9))
    achilles = np.maximum(
        np.hypot(half.x - 102, patch.y + 36 - 0.02 * (z + 860)) - np.interp(z, (-930, -800), (6.5, 8.5)),
        np.maximum(z + 790, -938 - z),
    )
    weak = max(1.05 - body.subject.muscle, 0) / 0.3
    key = body.key("legs")
    grain = sample(key("grain"), patch.x, patch.y, 0.5 * z, blob_mm=18)
    bellies = sheets(key("bellies"), patch.x, patch.y, 0.22 * z, apart_mm=30)
    own = tissue("muscle")
    for slab, planes in patch.slabs(6):
        outer = slab.fine(leg[planes])
        if outer.min() > 2:
            continue
        hu = own + np.minimum(slab.fine(grain[planes]) + np.float32(0.5), 0) * np.float32(12 + 60 * weak)
        hu += canvas.share(np.abs(slab.fine(bellies[planes])) - np.float32(0.25 + 0.5 * weak)) * (np.float32(-70) - hu)
        # The gaps between the compartments are fat.
        parts = [
            (name, slab.fine(shape[planes]))
            for name, shape in (("quadriceps", quad), ("adductors", adductors), ("hamstrings", hams), ("calf", calf))
        ]
        near = slab.fine(pit[planes])
        zone = slab.fine(z[planes])
        fat = np.where((zone > -600) & (zone < -440), near, 9).astype(np.float32)
        canvas.paint(slab.box, fat, -95, None, over=("muscle",))
        for _, d in parts:
            canvas.paint(slab.box, np.maximum(d - np.float32(0.9), zone + 199), -85, None, over=("muscle",))
        for name, d in parts:
            canvas.paint(slab.box, d + np.float32(0.5), hu, name, over=("muscle",))
        canvas.paint(slab.box, slab.fine(achilles[planes]), 95, None, over=("muscle", "calf", "subcutaneous_fat"))


def _paint_vessels(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """Femoral and popliteal artery and vein, the branches of the shin, the great saphenous vein."""
    artery, vein = tissue("artery"), tissue("vein")
    hard = float(np.clip((body.subject.age_years - 55) / 30, 0, 1)) * float(body.key("leg plaque").uniform())
    for s in (-1, 1):
        path = [
            (s * 90, 62, -160, 4.4), (s * 86, 50, -220, 4.2), (s * 84, 34, -290, 3.8), (s * 84, 14, -360, 3.6), (s * 88, -10, -420, 3.4),
            (s * 93, -34, -480, 3.2), (s * 93, -38, -540, 3.0), (s * 95, -36, -590, 2.8),
        ]  # fmt: skip
        veins = [(x - s * 3, y - 9, z, r * 1.25) for x, y, z, r in path]
        deep_one = [
            (s * 95, -36, -590, 2.4),
            (s * 97, -32, -680, 1.7),
            (s * 98, -26, -780, 1.5),
            (s * 92, -24, -890, 1.3),
        ]
        shin = [(s * 95, -36, -590, 2.0), (s * 106, -8, -620, 1.5), (s * 106, 4, -720, 1.4), (s * 101, 16, -880, 1.2)]
        skin = [
            (s * 74, 60, -180, 2.4),
            (s * 38, 30, -300, 2.2),
            (s * 42, -6, -420, 2.2),
            (s * 42, -24, -540, 2.0),
            (s * 54, 0, -680, 1.8),
            (s * 76, 16, -880, 1.6),
        ]
        for line, hu, name in (
            (veins, vein, "femoral_vessels"), (path, artery, "femoral_vessels"), (deep_one, artery, "femoral_vessels"),
            (shin, artery, "femoral_vessels"), (skin, vein, None),
        ):  # fmt: skip
            curve = smooth_path(line, 5 * len(line))
            found = _tube(canvas.space, curve[:, :3], curve[:, 3])
            if found is not None:
                if name is not None:
                    canvas.paint(
                        found[0],
                        found[1] - np.float32(1.4),
                        -80,
                        None,
                        over=("muscle", "quadriceps", "adductors", "hamstrings", "calf"),
                    )
                canvas.paint(*found, hu, name, over=_SOFT)
        if hard > 0.35:
            curve = smooth_path([(x + 2.4, y, z, 0.9) for x, y, z, _ in path[1:6]], 24)
            found = _tube(canvas.space, curve[:, :3], curve[:, 3])
            if found is not None:
                canvas.paint(*found, 700 * hard, None, over=("femoral_vessels",))


def _hollow(
    canvas: Canvas,
    body: Body,
    patch: Patch,
    d: Field,
    name: str,
    cortex_mm: Field | float,
    spongy: Field,
    upper: Field | float = 0.0,
    cut: Field | None = None,
) -> None:
    """A bone: dense cortex, spongy ends (`spongy` 1), fatty marrow in the shaft (0).

    `upper` is the share with which it is drawn as in the torso, so that the femur's parts pass into each
    other; where `cut` is above 0 another part goes on, without cortex between them.
    """
    loose, dense = bone_hu(body.subject.age_years)
    own = body.key("leg bone").normal(2).clip(-2, 2)
    hard = np.float32(1250 + 120 * own[0] + 1.5 * dense)
    inside = np.float32(-55) + spongy * np.float32(255 + 45 * own[1] + loose)
    depth = np.clip((-d - cortex_mm) / np.float32(1.2) + np.float32(0.5), 0, 1)
    hu = hard + (inside - hard) * depth
    # Thin cortex over spongy bone reads less than the shaft's.
    hu -= (np.float32(0.45) * spongy * (hard - 300)) * (1 - depth)
    hu += upper * (Bone(body).hu(d, shell_mm=2.5) - hu)
    canvas.paint(patch.box, d if cut is None else np.maximum(d, cut), hu, name)


def _paint_bones(canvas: Canvas, body: Body) -> None:
    old = 1 - 0.004 * max(body.subject.age_years - 40, 0)
    for s, side in ((-1, "left"), (1, "right")):
        _paint_femur(canvas, body, s, f"femur_{side}", old)
        _paint_shin(canvas, body, s, old)
        _paint_ankle(canvas, body, s)


def _box(canvas: Canvas, s: int, low: tuple[float, float, float], high: tuple[float, float, float]) -> Patch | None:
    x = (low[0], high[0]) if s > 0 else (-high[0], -low[0])
    patch = canvas.space.patch((x[0], low[1], low[2] - 10), (x[1], *high[1:]))
    return None if patch is None else _drawn(patch)


def _paint_femur(canvas: Canvas, body: Body, s: int, name: str, old: float) -> None:
    space = canvas.space
    line = smooth_path([(s * x, y, z, r) for x, y, z, r in _SHAFT], 26)
    found = _tube(space, line[:, :3], line[:, 3])
    grain_key = body.key("leg grain")
    if found is not None:
        box, d = found
        whole = _drawn(Patch(box, *space.coordinates(box), (1, 1, 1)))
        cut = np.maximum(whole.z + 218, -456 - whole.z)  # above it is the torso's, below it the knee's
        spongy = np.clip((-430 - whole.z) / 40, 0, 1).astype(np.float32)
        spongy = np.maximum(spongy, np.clip((whole.z + 262) / 30, 0, 1))
        cortex = (np.interp(whole.z, (-500, -450, -380, -300, -230), (1.6, 3.4, 6.4, 6.4, 4.2)) * old).astype(
            np.float32
        )
        upper = np.clip((whole.z + 300) / 75, 0, 1).astype(np.float32)
        _hollow(canvas, body, whole, d, name, cortex, spongy, upper, cut)
    patch = _box(canvas, s, (40, -48, -556), (146, 62, -448))
    if patch is None:
        return
    half = both(patch)
    joint = smooth_min(
        smooth_min(ellipsoid(half, (72, -10, -519), (20, 30, 23)), ellipsoid(half, (114, -8, -519), (20, 30, 22)), 6),
        capsule(half, (100, -4, -492), (94, 2, -512), 20, 29, mirror=False),
        10,
    )
    shaft = np.minimum(
        capsule(half, (118, 4, -420), (107, 1, -470), 13.6, 16.0, mirror=False),
        capsule(half, (107, 1, -470), (100, -3, -500), 16.0, 20.0, mirror=False),
    )
    joint = smooth_min(joint, shaft, 10)
    groove = np.maximum(np.hypot(half.x - 93, patch.y - 44) - 20, -9 * np.ones_like(half.x))
    notch = np.maximum(np.hypot(half.x - 93, patch.z + 548) - 15, patch.y + 2)
    end = np.maximum(np.maximum(joint, -groove + 2), -notch)
    fluid = np.minimum(np.maximum(joint, half.z + 490), ellipsoid(half, (94, 0, -546), (41, 26, 6)))
    canvas.paint(patch.box, patch.fine(fluid) - np.float32(2.5), 72, None, over=_SOFT)
    grain = patch.fine(sample(grain_key, patch.x, patch.y, patch.z, blob_mm=4))
    d = patch.fine(end)
    z = patch.fine(half.z)
    cortex = (np.interp(z, (-500, -450, -380), (1.2, 3.4, 6.4)) * old).astype(np.float32)
    spongy = np.clip((-430 - z) / 40, 0, 1).astype(np.float32) * np.clip(1 + np.float32(0.12) * grain, 0, 1.5)
    _hollow(canvas, body, patch, d, name, cortex, spongy, cut=z + np.float32(456))
    cap = patch.fine(ellipsoid(half, (94, 45, -512), (21, 9.5, 21)))
    _hollow(canvas, body, patch, cap, "patella", 1.6, np.float32(1.3) + 0 * cap)
    for a, b in (((94, 46, -494), (98, 44, -476)), ((94, 45, -530), (94, 34, -576))):  # tendons
        found = _tube(space, np.array([(s * a[0], *a[1:]), (s * b[0], *b[1:])]), 5.0)
        if found is not None:
            canvas.paint(*found, 92, None, over=_SOFT)


def _paint_shin(canvas: Canvas, body: Body, s: int, old: float) -> None:
    patch = _box(canvas, s, (44, -46, -934), (146, 46, -540))
    if patch is None:
        return
    half, z = both(patch), patch.z
    cx = np.interp(z, (-905, -700, -580, -545), (98, 91, 92, 93))
    cy = np.interp(z, (-905, -700, -600, -545), (-2, 8, 4, -4))
    wide = np.interp(z, (-908, -885, -850, -780, -660, -610, -580, -560, -545), (23, 20, 14, 11.5, 13, 17, 27, 37, 38))
    deep = np.interp(z, (-908, -885, -850, -780, -660, -610, -580, -560, -545), (18, 16, 12.5, 12, 15, 18, 22, 25, 24))
    u, v = half.x - cx, patch.y - cy
    # The shaft is a three-sided prism with its edge in front.
    edge = 1 - 0.3 * np.clip(v / 12, -0.6, 1) * np.interp(z, (-860, -800, -620, -570), (0, 1, 1, 0))
    k = np.hypot(u / (wide * edge), v / deep)
    tibia = np.maximum((k - 1) * np.minimum(wide, deep), np.maximum(z + 549, -903 - z))
    tibia = smooth_min(tibia, capsule(half, (79, 2, -890), (78, 2, -913), 8, 6, mirror=False), 5)
    tibia = smooth_min(tibia, ellipsoid(half, (94, 26, -584), (9, 7, 12)), 6)
    ends = np.clip(np.maximum((z + 640) / 60, (-835 - z) / 40), 0, 1)
    cortex = np.interp(z, (-905, -850, -780, -660, -600, -560), (1.3, 3.0, 5.0, 5.6, 2.6, 1.3)) * old
    grain = sample(body.key("leg grain"), patch.x, patch.y, patch.z, blob_mm=8)
    _hollow(canvas, body, patch, patch.fine(tibia), "tibia", patch.fine(cortex), patch.fine(ends * (1 + 0.12 * grain)))
    line = smooth_path([(s * 124, -20, -562, 9.5), (s * 124, -20, -580, 6.5), (s * 119, -17, -640, 6.2), (s * 120, -13, -760, 6.4), (s * 122, -10, -860, 6.6), (s * 123, -8, -905, 9.0), (s * 122, -9, -918, 6.5)], 34)  # fmt: skip
    found = _tube(canvas.space, line[:, :3], line[:, 3])
    if found is not None:
        box, d = found
        height = np.interp(canvas.space.coordinates(box)[2], _BODY_Z, _DRAWN_Z)
        tip = np.clip(np.maximum((height + 600) / 20, (-880 - height) / 15), 0, 1).astype(np.float32)
        _hollow(canvas, body, Patch(box, d, d, d, (1, 1, 1)), d, "fibula", np.float32(2.4) - np.float32(1.4) * tip, tip)


def _paint_ankle(canvas: Canvas, body: Body, s: int) -> None:
    """Heel bone, talus, the middle of the foot as one, five rays."""
    patch = _box(canvas, s, (70, -66, -985), (140, 70, -898))
    if patch is not None:
        half = both(patch)
        talus = smooth_min(
            ellipsoid(half, (100, 0, -914), (18, 20, 10)),
            capsule(half, (98, 10, -922), (95, 30, -927), 11, 11, mirror=False),
            4,
        )
        heel = smooth_min(
            capsule(half, (105, -40, -946), (108, 10, -938), 15, 13, mirror=False),
            capsule(half, (104, -44, -948), (104, -40, -938), 16, 16, mirror=False),
            4,
        )
        heel = np.maximum(heel, 1.0 - talus)
        middle = np.maximum(
            capsule(half, (97, 38, -930), (108, 52, -942), 13, 14, mirror=False), 1.2 - np.minimum(talus, heel)
        )
        d = patch.fine(np.minimum(np.minimum(talus, heel), middle))
        _hollow(canvas, body, patch, d, "foot", 1.2, np.ones_like(d))
    for ray in range(5):
        x, end = 92 + 8.5 * ray, 128 - 9 * ray
        bones = (
            [(x + 2, 58, -942), (x, end - 26, -958)],
            [(x, end - 22, -959), (x, end, -965)],
            [(x, end + 4, -966), (x, end + (26 if ray == 0 else 16), -970)],
        )
        for bone, (a, b) in enumerate(bones):
            r = (7.0 if ray == 0 else 4.6) - bone * 0.8
            found = _tube(canvas.space, np.array([(s * a[0], *a[1:]), (s * b[0], *b[1:])]), r)
            if found is not None:
                _hollow(
                    canvas,
                    body,
                    Patch(found[0], found[1], found[1], found[1], (1, 1, 1)),
                    found[1],
                    "foot",
                    1.6,
                    np.float32(0.6) + 0 * found[1],
                )
