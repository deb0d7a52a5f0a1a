"""The brain: folded cortex over white matter, deep nuclei, ventricles, brainstem, cerebellum, falx and tentorium.

Places of deep structures are given in a frame with 0 at the anterior commissure, y along the line to the posterior one
(`Brain.deep`), from common atlas knowledge; sizes of ventricles and sulci by age after the volumetry of healthy people
(about 20 ml of ventricles at 30 years, 45 ml at 75). HU: grey 36 to 40, white 27 to 31, fluid 4 to 12 (textbook values, 120 kV).

Sulci are the zero surfaces of a smooth noise that is read at points pushed out along rays from the middle of each
hemisphere, so the surfaces stand about upright on the brain's surface, wind as gyri do, and end at a drawn depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.folds import sheets
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.shapes import ellipsoid, smooth_min, smooth_path, tube
from ctfoundry.phantom.skull import Skull, both, capsule
from ctfoundry.phantom.space import Patch
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.tissue import Tissue

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]

_COMMISSURE = np.array([0.0, 19.0, 56.0])
_SHRINK = 0.92
"""Millimetres of the reference head to one of the atlas frame."""
_SIN, _COS = float(np.sin(np.radians(10))), float(np.cos(np.radians(10)))
_GYRUS_MM = 11.5
_CORTEX_MM = 2.7
_PARTS = ("brain", "subarachnoid_space", "cerebellum", "brainstem")


def deep(x: float, y: float, z: float) -> tuple[float, float, float]:
    """Head millimetres of a point of the atlas frame."""
    y, z = _SHRINK * y, _SHRINK * z
    return _SHRINK * x, _COMMISSURE[1] + _COS * y - _SIN * z, _COMMISSURE[2] + _COS * z + _SIN * y


def atlas(patch: Patch) -> Patch:
    """A patch of head millimetres in the atlas frame."""
    y, z = (patch.y - _COMMISSURE[1]) / _SHRINK, (patch.z - _COMMISSURE[2]) / _SHRINK
    return Patch(patch.box, patch.x / _SHRINK, _COS * y + _SIN * z, _COS * z - _SIN * y, patch.strides)


@dataclass(frozen=True)
class Brain:
    """One patient's brain."""

    skull: Skull

    @cached_property
    def loss(self) -> float:
        """Atrophy: 0 in the young, about 1 at 75 years, people differ by decades."""
        years = self.skull.body.subject.age_years
        return float(np.clip((years - 30) / 45 + self.skull.whim("atrophy", 0.2), 0, 1.4))

    @cached_property
    def ventricle(self) -> float:
        """Factor on the ventricles' radii."""
        return float((0.86 + 0.43 * self.loss) * np.exp(self.skull.whim("ventricle", 0.07)))

    def tentorium(self, patch: Patch) -> np.ndarray:
        """Height of the tentorium: a tent with its ridge in the midline, low at the sides."""
        ridge = np.interp(patch.y, (-72, -22, 16), (30, 52, 37))
        return np.asarray(ridge - 19 * (np.abs(patch.x) / 55) ** 1.3, dtype=np.float32)

    def below(self, patch: Patch) -> np.ndarray:
        """Negative under the tentorium and behind the petrous ridges."""
        edge = patch.y - 16 + 0.625 * (np.abs(patch.x) - 14)
        return np.maximum(0.9 * (patch.z - self.tentorium(patch)), 0.85 * edge)

    def stem(self, patch: Patch) -> np.ndarray:
        """Midbrain, pons and medulla."""
        flat = Patch(patch.box, 0.78 * patch.x, patch.y, patch.z, patch.strides)
        mid = ellipsoid(flat, (0, -2, 44), (13, 11, 12))
        feet = capsule(patch, (7, 5, 38), (13, 12, 50), 5.5, 4.5)
        pons = ellipsoid(patch, (0, -4, 25), (16.5, 11, 13))
        arms = capsule(patch, (10, -8, 25), (20, -26, 24), 8, 6)
        medulla = capsule(flat, (0, -9, 14), (0, -15, -14), 8.0, 5.6, mirror=False)
        out = smooth_min(smooth_min(mid, feet, 4), pons, 3)
        return smooth_min(smooth_min(out, arms, 4), medulla, 3)

    def cerebellum(self, patch: Patch, cavity: np.ndarray) -> np.ndarray:
        """Two hemispheres and the vermis, under the tentorium."""
        gap = 1.2 + 1.2 * self.loss
        lobes = smooth_min(
            ellipsoid(both(patch), (27, -37, 20), (34, 36, 30)), ellipsoid(patch, (0, -40, 28), (18, 28, 24)), 5
        )
        notch = (np.hypot(patch.x / 4, (patch.y + 70) / 9) - 1) * 4
        magna = ellipsoid(patch, (0, -36, -1), (10, 12, 7))
        inside = np.maximum(
            np.maximum(cavity + gap, self.below(patch) + 0.7 + 0.5 * self.loss), np.maximum(lobes, -notch)
        )
        return np.maximum(inside, -magna)

    def hull(self, patch: Patch, cavity: np.ndarray) -> np.ndarray:
        """Outer surface of the cerebral hemispheres, their fissures not yet cut."""
        gap = 0.4 + 1.3 * self.loss
        out = np.maximum(cavity + gap, 0.7 + 0.6 * self.loss - self.below(patch))
        half = both(patch)
        star = np.minimum(
            ellipsoid(patch, (0, 23, 47), (11, 8.5, 7)), capsule(patch, (8, 27, 46), (30, 31, 42), 3.0, 2.0)
        )
        # Around the midbrain and above it: ambient and quadrigeminal cisterns.
        ring = np.maximum(self.stem(patch) - 1.6, np.maximum(36 - patch.z, patch.z - 52))
        quad = ellipsoid(patch, (0, -17, 51), (8, 4.5, 6))
        crus = capsule(half, (13, 8, 44), (17, -10, 46), 2.2, 2.2)
        cut = np.minimum(np.minimum(star, ring), np.minimum(quad, crus))
        return np.maximum(out, -cut)

    def middle(self, patch: Patch) -> np.ndarray:
        """Negative where the hemispheres are joined: callosum and what lies under it."""
        a = atlas(patch)
        return np.asarray((np.hypot((a.y + 4) / 37, (a.z - 2) / 24.5) - 1) * 26 * _SHRINK)

    def core(self, patch: Patch) -> np.ndarray:
        """Negative where no sulcus reaches: nuclei, capsules, ventricles."""
        a = both(atlas(patch))
        return np.minimum(ellipsoid(a, (17, -8, 8), (19, 36, 21)), ellipsoid(a, (25, -44, 8), (9, 22, 9)))

    def fissure(self, patch: Patch) -> np.ndarray:
        """The Sylvian fissures: a slanted sheet from outside, and the sheet over the insula."""
        a = both(atlas(patch))
        line = -11 + 0.6 * (16 - a.y) + self.skull.waves("sylvius", patch, 2.6, 24)
        width = 0.2 + 0.8 * self.loss + 1.2 * np.exp(-(((a.y - 14) / 9) ** 2))
        sheet = np.maximum(0.86 * np.abs(a.z - line) - width, np.maximum(36.5 - a.x, np.abs(a.y + 8) - 28))
        bend = 37.5 + 0.004 * (a.y - 2) ** 2 + self.skull.waves("insula", patch, 0.8, 14)
        island = np.maximum(
            np.abs(a.x - bend) - 0.3 - 0.7 * self.loss, np.hypot((a.y - 1) / 24, (a.z - 6) / 16) * 16 - 16
        )
        return np.minimum(sheet, island) * _SHRINK


def paint_brain(canvas: Canvas, skull: Skull, tissue: Tissue) -> Brain:
    """Everything inside the inner table but vessels."""
    brain = Brain(skull)
    patch = canvas.space.patch((-72, -86, -20), (72, 92, 136))
    if patch is not None:
        cavity = skull.cavity(patch)
        _paint_hemispheres(canvas, brain, patch, cavity, tissue)
        _paint_hindbrain(canvas, brain, patch, cavity, tissue)
        _paint_ventricles(canvas, brain)
        _paint_membranes(canvas, brain, patch, cavity, tissue)
    return brain


def _grey(brain: Brain, tissue: Tissue) -> tuple[float, float]:
    """HU of grey and white matter; contrast medium lifts them a little, babies' white matter is wet."""
    skull, lift = brain.skull, max(tissue("artery") - 45, 0) * 0.012
    baby = max(2 - skull.body.subject.age_years, 0)
    return 38 + skull.whim("grey", 1.1) + 1.5 * lift - 3 * baby, 29 + skull.whim("white", 1.1) + lift - 5 * baby


def _nuclei(brain: Brain, patch: Patch) -> np.ndarray:
    """Thalamus, caudate, lentiform nucleus."""
    a = both(atlas(patch))
    lift = brain.ventricle - 1  # wide ventricles push the nuclei aside
    thalamus = ellipsoid(a, (10.5 + 2 * lift, -17, 8), (8, 14.5, 9))
    caudate = ellipsoid(a, (13 + 4 * lift, 14, 8), (5.0, 11, 9.5))
    tail = capsule(a, (14 + 4 * lift, 8, 17), (20 + 5 * lift, -22, 22), 3.6, 2.4)
    flat = Patch(a.box, (a.x - 25) * 1.0 + 0.22 * (a.y - 2), a.y, a.z, a.strides)
    lentiform = ellipsoid(flat, (0, 2, 2), (6.2, 17, 11))
    claustrum = np.maximum(
        np.abs(a.x - 33.6 - 0.004 * (a.y - 2) ** 2) - 0.8, np.hypot((a.y - 1) / 17, (a.z - 4) / 12) * 12 - 12
    )
    return np.minimum(np.minimum(np.minimum(thalamus, claustrum), smooth_min(caudate, tail, 3)), lentiform) * _SHRINK


def _paint_hemispheres(canvas: Canvas, brain: Brain, patch: Patch, cavity: np.ndarray, tissue: Tissue) -> None:
    skull, loss = brain.skull, brain.loss
    hull, fissure, nuclei = brain.hull(patch, cavity), brain.fissure(patch), _nuclei(brain, patch)
    wobble = skull.waves("falx", patch, 0.7, 60)
    joined, core = brain.middle(patch), brain.core(patch)
    # Rays from the middle of each hemisphere.
    dx, dy, dz = np.abs(patch.x) - 24, (patch.y - 2) * 0.8, patch.z - 66
    r = np.sqrt(dx**2 + dy**2 + dz**2) + 1
    push = (52 / r) ** 0.72
    warp = [skull.waves(f"gyri {i}", patch, 2.6, 30) for i in range(3)]
    fold = [c * push + w for c, w in zip((dx, dy * 1.25, dz), warp, strict=True)]
    reach = sample(skull.key("reach"), patch.x, patch.y, patch.z, blob_mm=26)
    grey, white = _grey(brain, tissue)
    wide = np.float32(0.55 * loss)
    near = np.exp(-np.abs(atlas(patch).z - 14) / 30) * np.exp(-np.maximum(core, 0) / 9)
    rarefied = -5.5 * max(loss - 0.55, 0) * near
    for slab, planes in patch.slabs(6):
        outer = slab.fine(hull[planes])
        if outer.min() > 2:
            continue
        flat_x = slab.fine(np.abs(patch.x[planes] + wobble[planes]))
        # The cleft between the hemispheres, then what is left of them.
        cleft = np.maximum(flat_x - np.float32(0.6 + 1.0 * loss), -slab.fine(joined[planes]))
        cleft = np.minimum(cleft, slab.fine(fissure[planes]))
        surface = np.maximum(outer, -cleft)
        depth = -surface
        deep_in = slab.fine(core[planes])
        work = np.flatnonzero(((outer < 1) & (deep_in > -2) & (depth > -1)).ravel())
        hu = np.full(outer.shape, white, dtype=np.float32)
        ribbon = depth - np.float32(_CORTEX_MM)
        if work.size:
            # Each hemisphere reads the tile from its own place.
            left = slab.fine(np.where(patch.x[planes] < 0, 1.0, 0.0)).ravel()[work] > 0.5
            fx, fy, fz = (slab.fine(f[planes]).ravel()[work] for f in fold)
            gap = np.abs(sheets(skull.key("folds"), fx + 37 * left, fy, fz, apart_mm=_GYRUS_MM))
            inward, here = depth.ravel()[work], deep_in.ravel()[work]
            limit = np.float32(16) + np.float32(5) * slab.fine(reach[planes]).ravel()[work]
            limit = np.clip(limit, 6, 26)
            end = np.maximum(inward - limit, 1.5 - here)
            sulcus = np.maximum(gap - wide - np.float32(0.35) * np.exp(-np.maximum(inward, 0) / 3), end)
            flat = surface.ravel()
            flat[work] = np.maximum(flat[work], -sulcus)
            ribbon.ravel()[work] = np.minimum(ribbon.ravel()[work], np.maximum(gap, end) - np.float32(_CORTEX_MM))
        hu += canvas.share(ribbon) * np.float32(grey - white)
        hu += canvas.share(slab.fine(nuclei[planes])) * np.float32(grey - 1 - white) * (ribbon > 0)
        hu += slab.fine(rarefied[planes]) * (ribbon > 0)
        share = canvas.share(surface)
        share *= canvas.labels[slab.box] == IDS["subarachnoid_space"]
        under = canvas.hu[slab.box]
        under += share * (hu - under)
        np.copyto(canvas.labels[slab.box], np.uint8(IDS["brain"]), where=share >= 0.5)


def _paint_hindbrain(canvas: Canvas, brain: Brain, patch: Patch, cavity: np.ndarray, tissue: Tissue) -> None:
    grey, white = _grey(brain, tissue)
    part = canvas.space.patch((-62, -78, -16), (62, 24, 58))
    if part is None:
        return
    skull = brain.skull
    d = part.fine(brain.cerebellum(part, skull.cavity(part)))
    # Leaves: fine layers around the vermis' middle, in the cortex only.
    r = np.hypot(part.y + 26, part.z - 24) + 0.35 * np.abs(part.x)
    angle = np.arctan2(part.z - 24, -(part.y + 26))
    leaves = part.fine(np.sin(angle * 15 + skull.waves("leaves", part, 0.8, 25) + 0.05 * np.abs(part.x)))
    pith = part.fine(np.minimum(ellipsoid(both(part), (22, -34, 20), (15, 12, 9)), 0.7 * (r - 9)))
    hu = np.float32(grey - 1.5) + np.float32(2.5) * leaves
    hu += canvas.share(pith * np.float32(0.35)) * (np.float32(white + 2) - hu)
    crack = (
        np.float32(0.9 + 0.9 * brain.loss) * np.clip((leaves - np.float32(0.55)) * 2.2, 0, 1) * np.clip(1 + d / 7, 0, 1)
    )
    d = d + crack
    canvas.paint(part.box, d, hu, "cerebellum", over=("subarachnoid_space", "brain"))
    stem = np.maximum(brain.stem(part), skull.cavity(part) + 1)
    canvas.paint(part.box, part.fine(stem), white + 2.5, "brainstem", over=_PARTS)


def _paint_ventricles(canvas: Canvas, brain: Brain) -> None:
    """Lateral ventricles with their horns, third and fourth, aqueduct; plexus and pineal calcified in some."""
    skull, grow = brain.skull, brain.ventricle
    fluid = 6 + skull.whim("ventricles", 1.5)
    uneven = skull.whim("side", 0.07)
    for side in (-1, 1):
        own = grow * (1 + side * uneven)
        main = [
            (13.5, 33, 0, 2.2), (11, 25, 8, 4.6), (8.5, 10, 15, 4.6), (9, -4, 20, 4.4), (13, -20, 22, 4.9), (19, -32, 18, 5.8),
            (25, -42, 10, 6.8), (26, -52, 6, 5.0), (23, -63, 4, 3.0), (21, -72, 3, 1.2),
        ]  # fmt: skip
        horn = [(25, -41, 10, 5.6), (31, -36, 0, 4.2), (34, -26, -9, 2.8), (33, -16, -15, 2.0), (30, -9, -18, 1.6)]
        for table in (main, horn):
            line = smooth_path(
                [(*deep(side * (x + 3.2 * (own - 1)), y, z), r * own * _SHRINK) for x, y, z, r in table], 6 * len(table)
            )
            found = tube(canvas.space, line[:, :3], line[:, 3])
            if found is not None:
                canvas.paint(*found, fluid, "ventricle", over=("brain", "subarachnoid_space"))
        # The caudate's head bulges into the frontal horn.
    patch = canvas.space.patch((-14, -34, -4), (14, 44, 84))
    if patch is not None:
        a = atlas(patch)
        slit = np.maximum(
            np.abs(a.x) - 1.7 * grow**1.6, (np.hypot((a.y + 12) / 13, (a.z - 0.5 - 0.1 * a.y) / 10.5) - 1) * 10.5
        )
        monro = capsule(a, (0, 0, 9), (7, 2, 13), 1.6, 1.8)
        fourth = np.maximum(
            ellipsoid(patch, (0, -19, 21), (6.5 * grow, 4.6 * grow, 11)),
            np.abs(patch.x) - 2.5 - 0.45 * (patch.z - 8).clip(0, 9),
        )
        duct = capsule(patch, (0, -8, 46), (0, -17, 30), 0.9, 1.3, mirror=False)
        d = np.minimum(np.minimum(slit * _SHRINK, monro * _SHRINK), np.minimum(fourth, duct))
        canvas.paint(patch.box, patch.fine(d), fluid, "ventricle", over=_PARTS)
    _paint_calcium(canvas, brain)


def _paint_calcium(canvas: Canvas, brain: Brain) -> None:
    key, years = brain.skull.key("calcium"), brain.skull.body.subject.age_years
    often = float(np.interp(years, (8, 20, 50, 80), (0, 0.3, 0.7, 0.85)))
    spots = [("pineal", (0.0, -31.0, 1.0), 2.6)] + [(f"plexus {s}", (s * 24.0, -42.0, 9.0), 3.0) for s in (-1, 1)]
    for name, place, radius in spots:
        u = key(name).uniform(shape=5)
        point = deep(place[0] + 2 * u[2] - 1, place[1] + 2 * u[3] - 1, place[2] + 2 * u[4] - 1)
        calcified = u[0] < often
        size = radius * (0.6 + 0.5 * u[1])
        found = tube(canvas.space, np.array([point, np.array(point) + (0, 1.5, 0.5)]), size)
        if found is not None:  # the soft tissue first
            canvas.paint(*found, 40, None, over=("ventricle", *_PARTS))
        if calcified:
            found = tube(canvas.space, np.array([point, np.array(point) + (0, 2.2, 0.8)]), [size * 0.55, size * 0.35])
            if found is not None:
                canvas.paint(*found, 90 + 190 * float(u[1]), None, over=("ventricle", *_PARTS))


def _paint_membranes(canvas: Canvas, brain: Brain, patch: Patch, cavity: np.ndarray, tissue: Tissue) -> None:
    """Falx and tentorium: sheets of 1 mm, a little denser than brain, enhancing with contrast medium."""
    hu = 46 + 0.25 * max(tissue("vein") - 42, 0)
    a = atlas(patch)
    inside = ("subarachnoid_space", "brain", "cerebellum")
    edge = np.hypot((a.y + 8) / 56, (a.z + 6) / 47) * 47 - 47  # its free edge, over the callosum
    under = np.where(patch.y < -22, brain.tentorium(patch), -40.0) - patch.z
    bounds, x = np.maximum(np.maximum(-edge, cavity), under), patch.x + brain.skull.waves("falx", patch, 0.7, 60)
    for slab, planes in patch.slabs(6):
        d = np.maximum(np.abs(slab.fine(x[planes])) - np.float32(0.5), slab.fine(bounds[planes]))
        if d.min() < 1:
            canvas.paint(slab.box, d, hu, None, over=inside)
    part = canvas.space.patch((-64, -80, 20), (64, 18, 56))
    if part is not None:
        opening = (np.hypot(part.x / 15, (part.y - 6) / 28) - 1) * 15
        behind = 0.85 * (part.y - 16 + 0.625 * (np.abs(part.x) - 14))
        bounds = np.maximum(np.maximum(-opening, behind), brain.skull.cavity(part))
        sheet = np.abs(part.fine(0.9 * (part.z - brain.tentorium(part)))) - np.float32(0.55)
        canvas.paint(part.box, np.maximum(sheet, part.fine(bounds)), hu, None, over=inside)
