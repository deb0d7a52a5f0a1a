"""The heart: four chambers and the left ventricle's wall, veins of the lungs, left appendage, coronary grooves with their fat.

Heart millimetres: origin in the middle of the ventricles and atria, a from the apex to the base along the septum, b across it
from the left ventricle to the right one, c upwards. Sizes after cardiac CT of adults in mid-diastole: left ventricle 80 to
160 ml with 90 to 180 ml of wall (8 to 10 mm), right ventricle 90 to 190 ml, atria 50 to 120 ml each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.shapes import ellipsoid, smooth_min, smooth_path, tube
from ctfoundry.phantom.space import Patch, rotation
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.thorax import LUNGS
from ctfoundry.phantom.tissue import Tissue
from ctfoundry.phantom.vessels import heart_base
from ctfoundry.phantom.wall import CHEST_WALL_MM

if TYPE_CHECKING:
    from jaxtyping import Float

_FREE = (*LUNGS, "visceral_fat")
_MITRAL, _TRICUSPID = 19.0, 15.0
"""Where the planes of the valves cross the long axis (a, mm)."""


@dataclass(frozen=True)
class Plan:
    """Where this patient's heart lies: middle (body mm), axes as columns a, b, c, and its size as a factor."""

    centre: Float[np.ndarray, "3"]
    axes: Float[np.ndarray, "3 3"]
    factor: Float[np.ndarray, "3"]
    turn: Float[np.ndarray, "3 3"]  # the patient's own turn, for what is planned in body axes

    @classmethod
    def of(cls, body: Body) -> Plan:
        """The heart on its diaphragm: half of the people's whims of the domes move it."""
        frame = body.frame("heart", (7, 5, 4), 0.09, 7)
        apex = 0.5 * sum(body.domes) - 260
        centre = np.array([-20.0, 39.0 + 0.6 * float(body.spine(300.0)) + 16, 301 + 0.9 * apex]) + frame.shift
        return cls(centre, frame.turn @ rotation((10, -22, -35)), 1.08 * frame.factor, frame.turn)

    @property
    def size(self) -> float:
        """Factor on lengths."""
        return float(self.factor.mean())

    def point(self, a: float, b: float, c: float) -> np.ndarray:
        """Body millimetres of a point in heart millimetres."""
        return np.asarray(self.centre + self.axes @ (np.array([a, b, c]) * self.size))

    def off(self, x: float, y: float, z: float) -> np.ndarray:
        """Body millimetres of an offset from the middle along the body's axes."""
        return np.asarray(self.centre + self.turn @ (np.array([x, y, z]) * self.size))

    @property
    def left_atrium(self) -> np.ndarray:
        """Middle of the left atrium, body millimetres."""
        return self.off(16, -25, 9)

    @property
    def right_atrium(self) -> np.ndarray:
        """Middle of the right atrium, body millimetres."""
        return self.off(43, 0, 8)


@dataclass(frozen=True)
class Pools:
    """HU of the blood in the chambers; contrast comes from the arm's veins and is diluted by the lower body's blood."""

    left: float
    left_atrium: float
    right: float
    right_atrium: float

    @classmethod
    def of(cls, tissue: Tissue) -> Pools:
        """The pools of one scan."""
        artery, right, vein = tissue("artery"), tissue("right_heart"), tissue("vein")
        return cls(artery, 0.9 * artery + 0.1 * right, right, 0.75 * right + 0.25 * vein)


def paint_heart(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """The heart in its fat. `heart` is what no chamber's name covers: walls of the atria and the right ventricle."""
    plan = Plan.of(body)
    patch = canvas.space.patch(plan.centre - 88, plan.centre + 88)
    if patch is None:
        return
    pools = Pools.of(tissue)
    _paint_chambers(canvas, body, tissue, plan, pools, patch)
    _paint_coronaries(canvas, body, plan, pools)
    _paint_lung_veins(canvas, body, plan, pools)


def _paint_chambers(canvas: Canvas, body: Body, tissue: Tissue, plan: Plan, pools: Pools, patch: Patch) -> None:
    key, size = body.key("heart"), plan.size
    wall = np.maximum(body.cage(patch)[0] + CHEST_WALL_MM + 2, 0.8 * (body.diaphragm(patch) + 3 - patch.z))
    lumps = body.lumps("heart", patch, 3, 60)
    sac = ellipsoid(patch, plan.centre, np.array([61.0, 46.0, 50.0]) * plan.factor, plan.axes) + lumps
    sac = np.maximum(sac, wall + 2)
    along = np.stack([patch.x - plan.centre[0], patch.y - plan.centre[1], patch.z - plan.centre[2]])
    a, b, _ = np.tensordot(plan.axes.T.astype(np.float32), along, axes=1)
    thick, fill = key("wall").normal(2).clip(-2, 2) * body.subject.variety
    muscle_mm, long = (8.8 + 1.1 * thick) * size, np.array([78.0, 33.5, 36.5]) * size * (1 + 0.04 * fill)
    ventricle = plan.point(_MITRAL - 3, -9, -2)
    left_wall = np.maximum(ellipsoid(patch, ventricle, long, plan.axes) + 0.5 * lumps, wall + 2)
    left = np.maximum(ellipsoid(patch, ventricle, long - muscle_mm, plan.axes) + 0.5 * lumps, wall + 2 + muscle_mm)
    right_wall = np.maximum(sac, np.maximum(-1 * size - b, -56 * size - a))
    middles = plan.left_atrium, plan.right_atrium
    wide = 1 + 0.06 * key("atria").normal(2).clip(-2, 2) * body.subject.variety
    left_atrium = ellipsoid(patch, middles[0], np.array([33, 22, 29]) * size * wide[0], plan.turn) + 0.5 * lumps
    right_atrium = ellipsoid(patch, middles[1], np.array([27, 29, 37]) * size * wide[1], plan.turn) - 0.5 * lumps
    apart = (middles[1] - middles[0]) / np.linalg.norm(middles[1] - middles[0])
    halfway = 0.5 * (middles[0] + middles[1])
    septum = sum(float(n) * (c - o) for n, c, o in zip(apart, (patch.x, patch.y, patch.z), halfway, strict=True))
    atria = np.maximum(smooth_min(left_atrium, right_atrium, 8) - 2.2, wall + 2)
    ventricles = np.maximum(smooth_min(left_wall, right_wall, 3), a - (_MITRAL + 4) * size)
    outer = smooth_min(ventricles, atria, 3)
    groove = np.maximum(np.abs(a - (_TRICUSPID + 2) * size) - 4.5, -10 * size - sac) + 0.3 * np.maximum(-sac - 5, 0)
    fat = np.maximum(sac - (2 + 7 * body.subject.visceral), wall)
    grain = sample(key, patch.x, patch.y, patch.z, blob_mm=18)
    muscle = tissue("myocardium")
    for slab, planes in patch.slabs():

        def fine(values: np.ndarray, slab: Patch = slab, planes: slice = planes) -> np.ndarray:
            return slab.fine(values[planes])

        base, rough = fine(a), fine(grain)
        canvas.paint(slab.box, fine(fat), -95, "visceral_fat", over=_FREE)
        canvas.paint(slab.box, fine(outer), muscle + 5 * rough, "heart", over=_FREE)
        shell = fine(left_wall)
        canvas.paint(
            slab.box,
            np.maximum(shell, base - np.float32(_MITRAL * size)),
            muscle + 5 * rough,
            "heart_myocardium",
            over=("heart",),
        )
        canvas.paint(slab.box, fine(groove), -90, "visceral_fat", over=("heart",))
        # Trabeculae make the ventricles' walls uneven.
        pool = np.maximum(fine(left) + rough, base - np.float32((_MITRAL - 1) * size))
        canvas.paint(slab.box, pool, pools.left, "heart_ventricle_left", over=("heart", "heart_myocardium"))
        pool = np.maximum(np.maximum(fine(right_wall) + np.float32(3.8) + rough, np.float32(0.5) - shell),
                          base - np.float32((_TRICUSPID - 1) * size))  # fmt: skip
        canvas.paint(slab.box, pool, pools.right, "heart_ventricle_right", over=("heart",))
        apart_mm, valve = fine(septum), np.float32(_MITRAL * size) - base
        pool = np.maximum(np.maximum(fine(left_atrium), apart_mm + np.float32(1.2)), valve + np.float32(1))
        canvas.paint(slab.box, pool, pools.left_atrium, "heart_atrium_left", over=("heart",))
        pool = np.maximum(np.maximum(fine(right_atrium), np.float32(1.2) - apart_mm),
                          np.float32((_TRICUSPID + 1) * size) - base)  # fmt: skip
        canvas.paint(slab.box, pool, pools.right_atrium, "heart_atrium_right", over=("heart", "heart_myocardium"))


def _tube(
    canvas: Canvas, points: list[np.ndarray], radii: list[float], hu: float, name: str | None, over: tuple[str, ...]
) -> None:
    line = smooth_path(np.concatenate([np.array(points), np.array(radii)[:, None]], axis=1), 4 * len(points))
    found = tube(canvas.space, line[:, :3], line[:, 3])
    if found is not None:
        canvas.paint(*found, hu, name, over=over)


def _paint_coronaries(canvas: Canvas, body: Body, plan: Plan, pools: Pools) -> None:
    """Outflow tracts to aorta and pulmonary trunk; right coronary artery in its groove, anterior descending one in front."""
    base, size = heart_base(body), plan.size
    walls = ("heart", "heart_myocardium", "visceral_fat")
    root = np.array([4.0, float(body.spine(330.0)) + 69, base - 8])
    _tube(canvas, [plan.point(4, -6, 2), root], [10 * size, 11 * size], pools.left, "heart_ventricle_left", walls)
    trunk = np.array([-22.0, float(body.spine(340.0)) + 84, base + 2])
    free = ("heart", "visceral_fat", *LUNGS)
    _tube(canvas, [plan.point(-6, 24, 16), trunk], [14 * size, 13.0], pools.right, "heart_ventricle_right", free)
    turn = np.radians(np.linspace(70, -100, 9))
    ring = [plan.point(_TRICUSPID + 2, 39 * np.cos(t), 45 * np.sin(t)) for t in turn]
    _tube(canvas, ring, [1.9] * len(ring), pools.left, None, ("visceral_fat",))
    down = [(14, 8, 40), (-4, 5, 40), (-26, 3, 35), (-46, 1, 24)]
    _tube(canvas, [plan.point(*p) for p in down], [1.9, 1.8, 1.6, 1.2], pools.left, None, ("visceral_fat", "heart"))


def _paint_lung_veins(canvas: Canvas, body: Body, plan: Plan, pools: Pools) -> None:
    """Two veins from each lung into the left atrium, and the atrium's appendage beside the pulmonary trunk."""
    middle, size = plan.left_atrium, plan.size
    over = (*LUNGS, "visceral_fat", "heart")
    finger = [(27, -20, 16), (17, -24, 36), (5, -16, 42), (-7, -4, 44)]
    _tube(
        canvas,
        [plan.point(*p) for p in finger],
        [9.0, 9.5, 9.0, 6.0],
        0.95 * pools.left_atrium,
        "atrial_appendage_left",
        over,
    )
    for side in (-1, 1):
        for offsets in (((26, 0, 11), (42, 4, 18), (62, 8, 30)), ((26, -6, -4), (42, -13, -9), (62, -20, -18))):
            path = [middle + np.array([side * x, y, z]) * size for x, y, z in offsets]
            _tube(canvas, path, [7.0, 6.5, 5.5], pools.left_atrium, "pulmonary_vein", over)
