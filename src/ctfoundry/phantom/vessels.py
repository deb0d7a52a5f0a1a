"""Tubes: vessel trees inside organs, the great vessels, airways and the oesophagus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.shapes import smooth_path, tube, tube_in_world
from ctfoundry.phantom.tissue import Tissue

_LUNGS = (
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
)

Points = Sequence[tuple[float, float, float, float]]
"""x, y, z and radius, body millimetres."""


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
    pose = canvas.space.pose
    world = pose.world(np.array(ends)).reshape(-1, 2, 3)
    for line, radius in zip(world, np.array(radii) * pose.size(np.array(ends)[::2, 2]), strict=True):
        found = tube_in_world(canvas.space, line, [radius, radius * 0.85])
        if found is not None:
            canvas.paint(*found, hu, None, over=over)


def _along(
    canvas: Canvas,
    body: Body,
    name: str,
    points: Points,
    hu: float,
    *,
    bend: float = 0.0,
    wide: float = 1.0,
    over: Sequence[str] = (),
) -> None:
    """A tube along a curve, in a film of soft tissue; `bend` is how far its inner points wander (mm)."""
    line = np.array(points, dtype=float)
    wiggle = body.key(name, "wiggle").normal((len(line), 3)).clip(-2, 2) * bend * body.subject.variety
    line[1:-1, :3] += wiggle[1:-1]
    path = smooth_path(line, 4 * len(line))
    found = tube(canvas.space, path[:, :3], path[:, 3] * wide)
    if found is not None:
        canvas.paint(found[0], found[1] - np.float32(1.3), 35, None, over=("visceral_fat",))
        canvas.paint(*found, hu, name, over=over)


def paint_vessels(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """Great veins and arteries of the trunk with the branches of the arch, oesophagus, trachea with main bronchi."""
    _paint_veins(canvas, body, tissue)
    _paint_arteries(canvas, body, tissue)
    _paint_branches(canvas, body, tissue)
    _paint_airways(canvas, body, tissue)


def _fork(body: Body) -> float:
    """Height at which the aorta splits; it varies by a vertebra between people."""
    return 48 + 14 * float(body.key("fork").normal().clip(-2, 2)) * body.subject.variety


def heart_base(body: Body) -> float:
    """Height at which the great vessels leave the heart, body millimetres."""
    return 330 + 0.5 * (0.5 * sum(body.domes) - 260)


_WHIMS = (4, 4, 8), 0.1, 0
"""Of the aorta: shift, growth and turn (`Body.frame`)."""


def arch_z(body: Body) -> float:
    """Height of the arch's upper part, body millimetres."""
    return 392 + 0.6 * float(body.frame("aorta", *_WHIMS).shift[2])


def _paint_veins(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    def s(z: float) -> float:
        return float(body.spine(z))

    base, fork = heart_base(body), _fork(body) - 14
    sink = 0.6 * (0.5 * sum(body.domes) - 260)
    lower = [
        (18, s(20) + 22, fork, 11),
        (22, s(60) + 24, 60 + 0.3 * fork, 11),
        (24, s(120) + 28, 130, 12),
        (24, s(200) + 42, 205, 13),
        (25, s(260) + 50, 262 + sink, 13),
        (23, s(290) + 56, 286 + sink, 13),
    ]
    wide = float(np.exp(0.15 * body.key("cava").normal().clip(-2, 2)))
    _along(canvas, body, "inferior_vena_cava", lower, tissue("vein"), bend=3, wide=wide)
    upper = [(26, s(330) + 62, base + 5, 10), (28, s(380) + 58, 385, 10), (25, s(425) + 51, 428, 9)]
    _along(canvas, body, "superior_vena_cava", upper, tissue("right_heart") * 1.1, bend=2)
    for side, name in ((-1, "left"), (1, "right")):
        iliac = [
            (18, s(30) + 20, fork, 8),
            (side * 34, s(0) + 18, -14, 7),
            (side * 58, 8, -62, 7),
            (side * 80, 56, -118, 6),
            (side * 84, 62, -150, 6),
        ]
        _along(canvas, body, f"iliac_vena_{name}", iliac, tissue("vein"))


def _paint_arteries(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    def s(z: float) -> float:
        return float(body.spine(z))

    frame = body.frame("aorta", *_WHIMS)
    dx, dy, _ = frame.shift
    base, fork = heart_base(body), _fork(body)
    trunk = [(-22, s(340) + 84, base + 2, 13), (-20, s(360) + 72, base + 26, 13), (-8, s(360) + 58, base + 30, 11)]
    for branch in ((22, s(360) + 48, base + 24, 9), (-34, s(350) + 36, base + 24, 9)):
        _along(canvas, body, "pulmonary_artery", [*trunk, branch], tissue("right_heart"))
    arch = arch_z(body)
    aorta = [
        (4, s(330) + 69, base - 8, 15),
        (14, s(360) + 72, base + 28, 16),
        (12, s(390) + 66, arch - 14, 15),
        (-2, s(390) + 50, arch + 4, 14),
        (-18, s(390) + 22, arch - 4, 13),
        (-24 + dx, s(360) + 8, arch - 32, 12.5),
        (-22 + dx, s(310) + 10 + dy, 310, 12),
        (-16 + dx, s(250) + 18, 250, 11.5),
        (-9 + dx, s(190) + 25 + dy, 190, 11),
        (-7 + dx, s(120) + 26, 120, 10),
        (-4, s(60) + 25, fork, 9),
    ]
    wide = float(frame.factor.mean())
    _along(canvas, body, "aorta", aorta, tissue("artery"), bend=2.5, wide=wide)
    for side, name in ((-1, "left"), (1, "right")):
        iliac = [
            (-3, s(50) + 25, fork, 6.5),
            (side * 30, s(0) + 28, -8, 5.5),
            (side * 60, 20, -60, 5),
            (side * 84, 66, -118, 4.5),
            (side * 90, 68, -150, 4.5),
        ]
        _along(canvas, body, f"iliac_artery_{name}", iliac, tissue("artery"), bend=4, wide=wide)


def _paint_branches(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """What leaves the arch of the aorta upwards, and the brachiocephalic veins; the neck (`neck`) carries on at z = 464."""

    def s(z: float) -> float:
        return float(body.spine(z))

    soft = ("visceral_fat", "muscle", "subcutaneous_fat", *_LUNGS)
    arch = arch_z(body)
    artery = tissue("artery")
    neck = s(464) + 24
    fork = (17, s(432) + 36, 436)
    trunk = [(8, s(395) + 58, arch, 7), (11, s(412) + 47, 0.5 * (arch + 436), 6.5), (*fork, 6)]
    _along(canvas, body, "brachiocephalic_trunk", trunk, artery, bend=1, over=soft)
    for side, name, start in ((1, "right", fork), (-1, "left", (-5, s(392) + 46, arch + 4))):
        carotid = [(*start, 4.2), (side * 15, s(448) + 28, 449), (side * 15, neck, 467)]
        line = [carotid[0], *((*p, 3.8) for p in carotid[1:])]
        _along(canvas, body, f"common_carotid_artery_{name}", line, artery, over=soft)
    for side, name, start in ((1, "right", fork), (-1, "left", (-17, s(392) + 25, arch))):
        x = float(side)
        first = [] if side > 0 else [(-22, s(430) + 16, 430, 5)]
        line = [
            (*start, 5.2),
            *first,
            (x * 34, s(455) + 16, 457, 5),
            (x * 62, 8, 462, 4.8),
            (x * 95, -10, 452, 4.5),
            (x * 124, -36, 430, 4),
        ]
        _along(canvas, body, f"subclavian_artery_{name}", line, artery, bend=1.5, over=soft)
    # Contrast comes by one arm: its vein is dense, the other one is not.
    arm = float(body.key("arm", body.acquisition.seed).uniform())
    full, none = tissue("right_heart") * 1.25, 0.5 * (tissue("right_heart") + tissue("vein"))
    right = [(27, s(462) + 25, 463, 6.5), (29, s(445) + 44, 446, 7), (25, s(425) + 51, 427, 8)]
    left = [
        (-27, s(462) + 25, 463, 6),
        (-26, s(450) + 42, 449, 6.5),
        (-4, s(432) + 56, 434, 6),
        (14, s(425) + 56, 427, 6.5),
        (24, s(420) + 52, 420, 7),
    ]
    veins = (*soft, "brachiocephalic_trunk")
    for name, line, dense in (("left", left, arm < 0.5), ("right", right, arm >= 0.5)):
        hu = full if dense else none
        _along(canvas, body, f"brachiocephalic_vein_{name}", line, hu, bend=1, over=veins)


def _paint_airways(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    def s(z: float) -> float:
        return float(body.spine(z))

    gullet = [
        (-3, s(470) + 18, 500, 6),
        (-5, s(420) + 18, 420, 6),
        (-4, s(350) + 21, 350, 5.5),
        (-9, s(300) + 22, 305, 5.5),  # between left atrium and spine
        (-14, s(270) + 29, 272, 7),
        (-24, s(240) + 40, 244, 7),
    ]
    _along(canvas, body, "esophagus", gullet, tissue("bowel"), bend=2)
    y, z = s(375) + 32, 368 + 5 * float(body.key("carina").normal().clip(-2, 2))
    _along(
        canvas,
        body,
        "trachea",
        [(2, s(470) + 32, 500, 8.5), (3, s(430) + 34, 430, 8.5), (3, y, z, 8.5)],
        -1000,
        bend=1.5,
    )
    for side in (-1, 1):
        main = [(3, y, z, 7), (side * 20, y - 4, z - 22, 6), (side * 38, y - 8, z - 34, 5)]
        _along(canvas, body, "trachea", main, -1000)
