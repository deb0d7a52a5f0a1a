"""The skull: vault, cavity and base as smooth surfaces, and its bones, teeth and air cells painted from them.

All numbers are head millimetres of a man's skull (182 x 142 mm, basion to bregma 133 mm) with porion and orbital rim at one
height, drawn up by ourselves from textbook craniometry: Howells 1973 for the vault, cephalometric norms (saddle angle 130
degrees, sella to nasion 70 mm, nasion to menton 118 mm) for the base and the face. Wall thickness after Lynnerup 2001
(6 to 8 mm, the temporal squama half of it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.folds import waves
from ctfoundry.phantom.growth import bone_hu
from ctfoundry.phantom.shapes import ellipsoid, smooth_min, smooth_path, tube
from ctfoundry.phantom.space import Patch, rotation
from ctfoundry.phantom.texture import sample

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]

MIDDLE = (0.0, 5.0, 55.0)
"""Where the vault is widest and longest."""
_HALF = (71.0, 91.0, 79.0, 64.0)
"""The vault's outer half axes: x, y, up, down."""
_POWER = 2.35


def step(t: np.ndarray, soft: float) -> np.ndarray:
    """A smooth step from 0 to 1 at t = 0."""
    return np.asarray(1 / (1 + np.exp(np.clip(-t / soft, -30, 30))))


def capsule(
    patch: Patch, a: Sequence[float], b: Sequence[float], ra: float, rb: float, *, mirror: bool = True
) -> np.ndarray:
    """Distance to a round cone on the lattice; with `mirror` one on each side of x = 0."""
    x = np.abs(patch.x) if mirror else patch.x
    start, along = np.array(a, dtype=np.float32), np.array(b, dtype=np.float32) - np.array(a, dtype=np.float32)
    d = (x - start[0], patch.y - start[1], patch.z - start[2])
    t = np.clip(sum(d[i] * along[i] for i in range(3)) / float(along @ along), 0, 1)
    out = np.sqrt(sum((d[i] - t * along[i]) ** 2 for i in range(3)))
    return np.asarray(out - ra - t * (rb - ra))


def both(patch: Patch) -> Patch:
    """The patch folded over the midline, so that one shape stands on both sides."""
    return Patch(patch.box, np.abs(patch.x), patch.y, patch.z, patch.strides)


@dataclass(frozen=True)
class Skull:
    """One patient's skull, in head millimetres."""

    body: Body
    _done: dict[int, tuple[Patch, np.ndarray, np.ndarray, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def _walls(self, patch: Patch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`vault`, `thickness` and `over` of a patch, kept because every painter asks for them again."""
        known = self._done.get(id(patch))
        if known is None:
            if len(self._done) > 3:
                self._done.clear()
            vault, thick, over = (
                w.astype(np.float32) for w in (self._vault(patch), self._thickness(patch), self._over(patch))
            )
            known = self._done[id(patch)] = (patch, vault, thick, over)
        return known[1:]

    def vault(self, patch: Patch) -> np.ndarray:
        """Distance to the outer table, as if the vault were closed below too."""
        return self._walls(patch)[0]

    def thickness(self, patch: Patch) -> np.ndarray:
        """Thickness of the vault: thin temples, a thick ridge at the occiput, the rest uneven."""
        return self._walls(patch)[1]

    def over(self, patch: Patch) -> np.ndarray:
        """Distance to the cavity's floor: three fossae, each lower than the one in front, parted by ridges; < 0 above it."""
        return self._walls(patch)[2]

    @cached_property
    def key(self) -> Key:
        """Of everything in the head."""
        return self.body.key("head")

    def whim(self, name: str, spread: float) -> float:
        """A normal number of this patient with deviation `spread`, cut at two deviations."""
        return spread * float(self.key(name).normal().clip(-2, 2)) * self.body.subject.variety

    def waves(self, name: str, patch: Patch, amplitude: float, size_mm: float) -> np.ndarray:
        """A slow random field of this patient (`folds.waves`)."""
        return waves(self.key(name, "waves"), patch, amplitude * self.body.subject.variety, size_mm)

    @cached_property
    def wall_mm(self) -> float:
        """Mean thickness of the vault."""
        grown = float(np.interp(self.body.subject.age_years, (0, 2, 8, 18), (0.35, 0.5, 0.75, 1.0)))
        return 5.8 * float(np.exp(self.whim("wall", 0.13))) * grown

    def _vault(self, patch: Patch) -> np.ndarray:
        y, z = patch.y - MIDDLE[1], patch.z - MIDDLE[2]
        narrow = 1 - 0.13 * np.clip((patch.y + 25) / 115, 0, 1) ** 1.5 - 0.05 * np.clip((-patch.y - 30) / 60, 0, 1)
        tall = np.where(z > 0, _HALF[2] * (1 - 0.05 * np.clip(patch.y / 90, 0, 1)), np.float32(_HALF[3]))
        u = np.abs(patch.x / (_HALF[0] * narrow)) ** _POWER + np.abs(y / _HALF[1]) ** _POWER
        k = (u + np.abs(z / tall) ** _POWER) ** (1 / _POWER)
        r = np.sqrt(patch.x**2 + y**2 + z**2)
        d = np.where(k > 0.2, r - r / np.maximum(k, 0.2), (k - 1) * 64)
        # No head is even on both sides: the back is flattened on one, the forehead full or sloping.
        lean = self.whim("lean", 0.012) * patch.x * y / 80 + self.whim("brow", 1.6) * np.exp(
            -(((patch.y - 85) / 30) ** 2) - (((patch.z - 95) / 25) ** 2)
        )
        return np.asarray(d + lean + self.waves("vault", patch, 0.8, 110))

    def _thickness(self, patch: Patch) -> np.ndarray:
        x = np.abs(patch.x)
        temple = step(x - 48, 5) * np.exp(-(((patch.z - 30) / 24) ** 2) - ((patch.y - 20) / 38) ** 2)
        occiput = np.exp(-(((patch.y + 80) / 20) ** 2) - (((patch.z - 28) / 18) ** 2)) * (
            0.3 + 0.7 * np.exp(-((patch.x / 18) ** 2))
        )
        brow = np.exp(-(((patch.y - 92) / 14) ** 2) - ((patch.z - 56) / 14) ** 2)
        uneven = 1 + self.waves("skull", patch, 0.09, 60)
        share = (
            1
            - 0.5 * temple
            + 0.65 * occiput
            + 0.5 * brow
            + 0.12 * np.exp(-(((x - 38) / 14) ** 2)) * step(patch.z - 90, 8)
        )
        return np.asarray(np.maximum(self.wall_mm * share * uneven, 1.2))

    def _over(self, patch: Patch) -> np.ndarray:
        """Distance to the floor, negative above it: its height over the slope, so that steep walls are as thick as level ones."""
        floor = self._floor(patch)
        slope = [
            self._floor(Patch(patch.box, patch.x + dx, patch.y + dy, patch.z, patch.strides)) - floor
            for dx, dy in ((1.0, 0.0), (0.0, 1.0))
        ]
        return np.asarray((floor - patch.z) / np.sqrt(1 + slope[0] ** 2 + slope[1] ** 2))

    def _floor(self, patch: Patch) -> np.ndarray:
        x, y = np.abs(patch.x), patch.y
        front = 47 + 6 * np.exp(-(((x - 31) / 15) ** 2)) - 5 * np.exp(-((x / 8) ** 2)) + 0.08 * (y - 60)
        middle = 20 + 0.006 * (x - 38) ** 2
        back = 1 + 5 * np.exp(-((x / 9) ** 2)) * step(-38 - y, 4)
        edge = 16 - 0.625 * (x - 14)  # of the petrous ridge
        behind = step(edge - y, 2.5)
        out = behind * back + (1 - behind) * middle
        wing = step(y - 43 - 0.1 * x, 1.8)
        out = wing * front + (1 - wing) * out
        t = 0.85 * (y - edge)
        ridge = 36 + 0.06 * (x - 14) - np.where(t > 0, 0.85 * t, -2.3 * t) - 4 * np.clip(12 - x, 0, 20)
        out = smooth_min(-out, -ridge, 4)
        saddle = np.interp(y, (-6, 0, 18, 20, 21.5, 24, 30, 33, 46, 95), (-4, 1, 41, 42, 36, 34, 34, 41, 45, 44))
        middle_line = step(12.5 - x, 1.6) * step(y + 3, 1.0)
        return np.asarray((1 - middle_line) * -out + middle_line * saddle)

    def cavity(self, patch: Patch) -> np.ndarray:
        """Distance to the inner table: negative inside the cranial cavity, which is open at the foramen magnum."""
        inner = self.vault(patch) + self.thickness(patch)
        closed = -smooth_min(-inner, -self.over(patch), 5)
        hole = (np.hypot(patch.x / 15, (patch.y + 18) / 18) - 1) * 15
        return np.asarray(np.minimum(closed, np.maximum(hole, np.abs(patch.z + 2) - 10)))

    def bone(self, patch: Patch) -> np.ndarray:
        """Distance to the bones around the cavity: vault, base, petrous parts, clivus, mastoids; the cavity not cut out."""
        inner = self.vault(patch) + self.thickness(patch)
        vault = np.maximum(self.vault(patch), self.over(patch) - 2.4)
        plate = np.maximum(inner, self.over(patch)) - 3.2
        half = both(patch)
        petrous = smooth_min(
            capsule(patch, (15, 13, 22), (58, -13, 19), 8, 13), capsule(patch, (40, -4, 28), (60, -14, 22), 7, 10), 6
        )
        mastoid = smooth_min(ellipsoid(half, (54, -15, 4), (11, 14, 19)), ellipsoid(half, (58, 2, 20), (11, 12, 9)), 6)
        clivus = capsule(patch, (0, 4, 0), (0, 26, 30), 6, 9, mirror=False)
        body = ellipsoid(patch, (0, 37, 29), (19, 17, 13))
        condyle = ellipsoid(half, (17, -9, -6), (6.5, 11, 6.5), rotation((10, 0, -28)))
        out = np.minimum(np.minimum(vault, plate), np.minimum(petrous, condyle))
        out = smooth_min(out, mastoid, 5)
        return np.asarray(smooth_min(out, np.minimum(clivus, body), 5))


def bone_field(skull: Skull, distance: Field, grain: Field | float, table_mm: float = 1.5) -> Field:
    """HU of dense tables over spongy diploe, by depth under the surface.

    Tables 1150 to 1700 HU, diploe 350 to 800 HU (clinical CT, Lillie et al. 2015), by patient and age.
    """
    spongy, cortex = bone_hu(skull.body.subject.age_years)
    dense = 1420 + skull.whim("table", 130) + 1.4 * cortex
    loose = 560 + skull.whim("diploe", 90) + 0.8 * spongy
    depth = np.clip(-distance / np.float32(2 * table_mm), 0, 1)
    depth *= depth
    inside = np.float32(loose) + np.float32(110) * grain
    return np.asarray(dense + (inside - np.float32(dense)) * depth, dtype=np.float32)


def paint_skull(canvas: Canvas, skull: Skull) -> None:
    """Cranium with base and mastoid cells, then the cavity as cerebrospinal fluid."""
    patch = canvas.space.patch((-85, -98, -24), (85, 108, 145))
    if patch is None:
        return
    lattice = skull.bone(patch)
    cavity = skull.cavity(patch)
    dense = patch.fine(
        500 * np.exp(-(((np.abs(patch.x) - 30) / 11) ** 2) - ((patch.y - 2) / 9) ** 2 - ((patch.z - 22) / 8) ** 2)
    )
    grain = patch.fine(sample(skull.key("diploe"), patch.x, patch.y, patch.z, blob_mm=7))
    inner = patch.fine(cavity)
    d = np.maximum(patch.fine(lattice), -inner - np.float32(0.5))
    canvas.paint(patch.box, d, bone_field(skull, d, grain) + dense, "skull")
    _paint_mastoids(canvas, skull)
    canvas.paint(patch.box, inner, 9 + skull.whim("fluid", 2), "subarachnoid_space")


def _paint_mastoids(canvas: Canvas, skull: Skull) -> None:
    """Air cells behind the ear, the middle ear and the outer canal."""
    air = 0.75 + skull.whim("cells", 0.2)
    for side in (-1, 1):
        patch = canvas.space.patch((min(side * 28, side * 84), -36, -18), (max(side * 28, side * 84), 16, 40))
        if patch is None:
            continue
        bounds = np.minimum(
            ellipsoid(patch, (side * 54, -16, 6), np.array((7.5, 10, 17)) * air),
            ellipsoid(patch, (side * 48, -8, 20), np.array((13, 7, 8)) * air),
        )
        bounds = np.maximum(bounds, 2.5 - skull.cavity(patch))
        cells = sample(skull.key("cells", side), *(patch.fine(c) for c in (patch.x, patch.y, patch.z)), blob_mm=3.6)
        d = np.maximum(patch.fine(bounds), np.float32(0.9) * (np.float32(-0.25) - cells))
        canvas.paint(patch.box, d, -850, "paranasal_sinus", over=("skull",))
        canal = [(side * 82, -3, 17, 3.2), (side * 66, -2, 17, 3.2), (side * 52, 0, 19, 3.4), (side * 44, 1, 21, 3.8)]
        line = np.array(canal)
        found = tube(canvas.space, line[:, :3], line[:, 3])
        if found is not None:
            canvas.paint(*found, -950, None, over=("skull", "subcutaneous_fat", "muscle", "skin"))
        inner = np.array([(side * 22, -4, 23, 2.6), (side * 34, -1, 24, 2.2)])  # the internal acoustic canal
        found = tube(canvas.space, inner[:, :3], inner[:, 3])
        if found is not None:
            canvas.paint(*found, 10, None, over=("skull",))


def arch(x: np.ndarray, y: np.ndarray, front: float, half: float, depth: float) -> np.ndarray:
    """Distance in the plane to a parabola-like arch with its tip at `front`, `half` wide at `depth` behind it; > 0 outside."""
    u = np.abs(x) / half
    rise = depth * u**1.9
    slope = depth * 1.9 / half * u**0.9
    return np.asarray((y - front + rise) / np.sqrt(1 + slope**2))


def paint_face(canvas: Canvas, skull: Skull) -> None:
    """Upper jaw, palate, cheek bones, orbital rims, nose; then jaw and teeth."""
    patch = canvas.space.patch((-78, -6, -34), (78, 112, 66))
    if patch is not None:
        half = both(patch)
        x = half.x
        jaw = arch(patch.x, patch.y, 93, 31, 42)
        alveolar = np.maximum(np.abs(jaw + 1) - 6.0, np.maximum(np.abs(patch.z + 16) - 9, 46 - patch.y))
        palate = np.maximum(np.maximum(np.abs(patch.z + 5 - 0.002 * x**2) - 1.8, jaw - 3), 47 - patch.y)
        parts = [
            alveolar,
            palate,
            ellipsoid(half, (48, 71, 14), (11, 9, 11)),
            capsule(patch, (50, 68, 16), (66, 38, 17), 5.0, 3.0),
            capsule(patch, (66, 38, 17), (65, 10, 20), 3.0, 4.0),
            capsule(patch, (50, 71, 18), (50, 71, 56), 4.5, 4.5),
            capsule(patch, (13, 88, 52), (32, 84, 55), 4.0, 4.0),
            capsule(patch, (32, 84, 55), (50, 72, 54), 4.0, 4.2),
            capsule(patch, (16, 86, 24), (33, 83, 16), 2.6, 3.0),
            capsule(patch, (33, 83, 16), (48, 74, 16), 3.0, 4.5),
            capsule(patch, (9, 92, 48), (13, 88, 10), 3.0, 3.5),
            capsule(patch, (13, 88, 10), (17, 90, -12), 3.0, 3.5),
            capsule(patch, (3.5, 95, 48), (3.5, 106, 30), 2.8, 1.6),
            capsule(patch, (12, 44, 16), (14, 38, -9), 3.0, 2.0),
            capsule(patch, (18, 46, 24), (44, 56, 40), 2.0, 2.5),  # greater wing, behind the orbit
            capsule(patch, (20, 48, 45), (54, 50, 50), 1.6, 2.2),
            capsule(patch, (42, 58, 2), (46, 68, 8), 3.5, 5.0),
        ]
        out = parts[0]
        for part in parts[1:]:
            out = smooth_min(out, part, 4)
        d = patch.fine(out)
        grain = sample(skull.key("face"), patch.x, patch.y, patch.z, blob_mm=8)
        canvas.paint(patch.box, d, bone_field(skull, d, patch.fine(grain) - 1.5), "skull")
    _paint_mandible(canvas, skull)
    _paint_teeth(canvas, skull)


def _paint_mandible(canvas: Canvas, skull: Skull) -> None:
    patch = canvas.space.patch((-64, 4, -74), (64, 98, 20))
    if patch is None:
        return
    y, z = patch.y, patch.z
    plane = arch(patch.x, y, 90, 49, 72)
    lower = np.interp(y, (8, 16, 30, 60, 90), (-30, -42, -47, -57, -66))
    upper = np.interp(y, (9, 13, 20, 27, 36, 41, 50, 90), (13, 14, 3, 2, 11, 4, -28, -34))
    thick = np.interp(y, (8, 16, 24, 40, 55, 90), (4.2, 4.0, 3.0, 3.6, 6.0, 6.2))
    thick = thick - 0.12 * np.clip(-40 - z, 0, 30) + 2.0 * np.exp(-(((y - 88) / 6) ** 2) - ((z + 58) / 7) ** 2)
    outline = np.maximum(np.maximum(lower - z, z - upper) * 0.9, np.maximum(10 - y, y - 100))
    d = np.maximum(np.abs(plane + 1) - thick, outline)
    d = np.minimum(d, ellipsoid(both(patch), (51, 12, 12), (9, 5, 5.5), rotation((0, 0, 15))))
    fine = patch.fine(-smooth_min(-d, 6 - d, 2))
    grain = patch.fine(sample(skull.key("mandible"), patch.x, y, z, blob_mm=6))
    canvas.paint(patch.box, fine, bone_field(skull, fine, grain - 2.0, table_mm=1.8), "mandible")


def _paint_teeth(canvas: Canvas, skull: Skull) -> None:
    """Two rows of sixteen at most; some are missing, some are filled."""
    if skull.body.subject.age_years < 0.7:
        return
    key, years = skull.key("teeth"), skull.body.subject.age_years
    for row, (front, half, low, high, edge) in enumerate(
        ((92.0, 28.0, -31.5, -12.0, -22.0), (90.0, 27.0, -52.0, -32.5, -41.0))
    ):
        patch = canvas.space.patch((-36, 44, low - 3), (36, 98, high + 3))
        if patch is None:
            continue
        x, y, z = (patch.fine(c) for c in (patch.x, patch.y, patch.z))
        across = arch(x, y, front, half, 40)
        # Along the arch: its length from the middle, from the angle about the arch's focus.
        t = np.linspace(0, 44, 200)
        px = half * (t / 40) ** (1 / 1.9)
        length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(px), np.diff(t)))])
        angle = np.arctan2(px, (front - t) - 52)
        s = np.interp(np.arctan2(np.abs(x), y - 52), angle, length)
        edges = np.cumsum([0, 8.2, 6.6, 7.6, 7.0, 7.0, 9.8, 9.6, 8.5]) * 0.86
        number = np.clip(np.searchsorted(edges, s.ravel(), side="right").reshape(s.shape) - 1, 0, 7)
        middle, wide = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
        gap = np.abs(s - middle[number]) - wide[number] / 2
        thick = np.array([2.9, 2.9, 3.6, 4.0, 4.2, 4.9, 4.8, 4.4])[number]
        crown = (z - edge) * (1 if row else -1)  # > 0 at the crown
        body = np.abs(across) - thick * np.clip(1 + crown / 26, 0.3, 1)
        d = np.maximum(np.maximum(body, gap + 0.25 - np.minimum(crown, 0) * 0.1), np.maximum(low - z, z - high))
        loss = 0.04 + 0.25 * np.clip((years - 45) / 40, 0, 1)
        lost = key("lost", row).uniform(shape=16) < loss
        side = np.where(x < 0, 0, 8)
        d = np.where(lost[number + side], np.maximum(d, np.where(crown > -3, 9, d)), d)
        hu = np.where(crown > 0, np.clip(2500 + 350 * d, 1700, 2500), 1500).astype(np.float32)
        canvas.paint(patch.box, d.astype(np.float32), hu, "teeth")


def paint_sinuses(canvas: Canvas, skull: Skull) -> None:
    """Frontal, ethmoid, sphenoid and maxillary sinuses: a thin wall of bone, a film of mucosa, air; some hold fluid."""
    key = skull.key("sinuses")
    grown = float(np.interp(skull.body.subject.age_years, (0, 3, 12, 18), (0.25, 0.5, 0.85, 1.0)))
    patch = canvas.space.patch((-50, 24, -20), (50, 102, 86))
    if patch is None:
        return
    soft, x, z = skull.waves("sinus", patch, 1.6, 22), patch.x, patch.z
    sphenoid = ellipsoid(patch, (skull.whim("sphenoid", 2), 38, 29), np.array([13, 12, 8.5]) * grown) + soft
    sphenoid = np.maximum(sphenoid, 0.6 - np.abs(x - skull.whim("septum", 4)))
    sphenoid = np.maximum(sphenoid, skull.cavity(patch) * -1 + 2.0)
    shapes = [sphenoid]
    tall = float(np.clip(1 + skull.whim("frontal", 0.35), 0.35, 1.7)) * (
        grown if skull.body.subject.age_years > 6 else 0
    )
    for side in (-1, 1):
        own = 1 + 0.18 * float(key("frontal", side).normal().clip(-2, 2))
        if tall > 0:
            inner, outer = skull.cavity(patch), skull.vault(patch)
            flat = np.hypot((x - side * 12) / (14 * own), (z - 58) / (16 * tall * own)) * 14 - 14
            shapes.append(np.maximum(np.maximum(flat + soft, outer + 2.2), np.maximum(1.6 - inner, 74 - patch.y)))
        antrum = ellipsoid(patch, (side * 28, 67, 0.5), np.array([13.5, 17, 17]) * grown * (1 + 0.05 * own))
        shapes.append(np.maximum(antrum + soft, z - 15 - 0.25 * (np.abs(x) - 28)))
        cells = np.maximum(
            np.abs(np.abs(x) - 8.0) - 4.6,
            np.maximum(np.abs(patch.y - 67) - 20, np.abs(z - 36 - 0.05 * (patch.y - 60)) - 8.5),
        )
        shapes.append(np.where(side * x > 0, np.maximum(cells, 2.2 - skull.cavity(patch)), 9))
    out = shapes[0]
    for shape in shapes[1:]:
        out = np.minimum(out, shape)
    d = patch.fine(out)
    canvas.paint(patch.box, d - np.float32(1.2), 620, "skull")
    canvas.paint(patch.box, d, 40, "paranasal_sinus")
    fx, fy, fz = (patch.fine(c) for c in (patch.x, patch.y, patch.z))
    # Thin septa part the ethmoid cells.
    septa = np.abs(sample(key("cells"), fx, fy, fz, blob_mm=7)) * np.float32(4) - np.float32(0.8)
    ethmoid = (np.abs(fx) < 14) & (fz > 25) & (fz < 48) & (fy > 46) & (fy < 89)
    canvas.paint(
        patch.box, np.where(ethmoid, np.maximum(d, septa), 9).astype(np.float32), 320, None, over=("paranasal_sinus",)
    )
    lining = np.float32(0.6 + 2.2 * float(key("lining").uniform()) ** 3)
    full = float(key("fluid").uniform())
    air = np.where(ethmoid, np.maximum(d + np.float32(0.3), -septa), d + lining)
    if full < 0.12:  # a level, or a cyst's round dome, in one maxillary sinus of eight patients
        side = 1 if full < 0.06 else -1
        level = np.float32(52 + 20 * float(key("level").uniform()))
        air = np.where((side * fx > 14) & (fz < 20), np.maximum(air, level - fy), air)
    canvas.paint(patch.box, air.astype(np.float32), -960, None, over=("paranasal_sinus",))


def midline_path(skull: Skull, canvas: Canvas, angles: np.ndarray, inset: float) -> np.ndarray:
    """Points in the midline `inset` mm under the inner table, at angles (degrees) about the vault's middle: 0 front, 90 up."""
    t = np.radians(angles)[:, None]
    r = np.arange(40.0, 100.0, 0.5)
    y, z = MIDDLE[1] + r * np.cos(t), MIDDLE[2] + r * np.sin(t)
    line = Patch((slice(0, 1),) * 3, np.zeros_like(y), y, z, (1, 1, 1))
    inner = skull.cavity(line)
    first = np.argmax(inner > -inset, axis=1)
    row = np.arange(len(t))
    return np.stack([np.zeros(len(t)), y[row, first], z[row, first]], axis=1)


def smooth_tube(
    canvas: Canvas, points: Sequence[Sequence[float]], hu: float, name: str | None, over: tuple[str, ...] = ()
) -> None:
    """A tube with changing radius along a smooth curve of head millimetres."""
    line = smooth_path(points, 5 * len(points))
    found = tube(canvas.space, line[:, :3], line[:, 3])
    if found is not None:
        canvas.paint(*found, hu, name, over=over)
