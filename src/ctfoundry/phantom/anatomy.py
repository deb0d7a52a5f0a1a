"""The plan of one body: tables of the reference torso, and what this patient makes of them.

Body millimetres: x to the patient's Right, y Anterior (0 in the middle of the fourth lumbar vertebra), z Superior (0 at the
top of the sacrum). The tables are our own, drawn up from the proportions of an adult of 1.72 m: vertebral heights after
Panjabi et al. (Spine 1991, 1992), organ lengths within the normal ranges of radiology textbooks. They are a stage, not an
atlas: see docs/phantoms.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.shapes import ellipsoid
from ctfoundry.phantom.space import Patch, rotation, spine_y
from ctfoundry.phantom.spec import Acquisition, Subject

_LEVELS = (("L5", 36), ("L4", 36), ("L3", 36), ("L2", 35), ("L1", 34), ("T12", 31), ("T11", 29), ("T10", 27), ("T9", 26),
           ("T8", 25), ("T7", 24), ("T6", 23), ("T5", 22), ("T4", 21), ("T3", 21), ("T2", 20), ("T1", 20), ("C7", 17),
           ("C6", 17))  # fmt: skip
"""Vertebrae from below with their heights, disc included, in millimetres."""

LEVEL_NAMES = tuple("vertebrae_" + name for name, _ in _LEVELS)
LEVEL_EDGES = np.concatenate([[0.0], np.cumsum([height for _, height in _LEVELS])])
"""Lower end of each vertebra, and the upper end of the last."""

# z: half width, front, back of the muscles' outer surface
_TRUNK = np.array([
    (-260, 158, 70, -105), (-180, 165, 78, -112), (-120, 163, 86, -118), (-60, 148, 92, -112), (0, 140, 95, -92),
    (60, 132, 98, -80), (120, 132, 104, -80), (180, 138, 110, -88), (240, 146, 115, -97), (300, 151, 114, -106),
    (360, 153, 104, -112), (405, 156, 86, -111), (435, 164, 68, -104), (465, 182, 48, -94), (485, 165, 38, -86),
    (505, 108, 36, -80), (530, 72, 40, -74), (560, 60, 44, -68)])  # fmt: skip
# z: half width, front, back of the middle of the ribs
_CAGE = np.array([
    (130, 122, 86, -64), (160, 128, 94, -72), (200, 132, 99, -80), (250, 136, 103, -88), (300, 136, 100, -95),
    (350, 130, 90, -98), (400, 112, 70, -93), (430, 92, 50, -84), (455, 68, 33, -72), (478, 45, 20, -58),
    (500, 30, 12, -48)])  # fmt: skip
# z: half width, front, back of the abdominal and pelvic cavity
_CAVITY = np.array([
    (-185, 22, 30, -55), (-165, 34, 44, -68), (-120, 48, 62, -82), (-60, 76, 78, -74), (0, 108, 82, -38),
    (60, 112, 86, -44), (120, 115, 91, -58), (180, 121, 95, -72), (240, 128, 96, -81), (300, 130, 92, -88)])  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """Where one organ of this patient lies: shift (mm), factor on its radii, turn."""

    shift: np.ndarray
    factor: np.ndarray
    turn: np.ndarray


@dataclass(frozen=True)
class Body:
    """One patient at rest; `acquisition` decides contrast only, breathing and pose are maps of `space.Pose`."""

    subject: Subject
    acquisition: Acquisition

    @cached_property
    def key(self) -> Key:
        """Of everything that belongs to the patient."""
        return Key.of("phantom", self.subject.seed, "organs")

    def frame(self, organ: str, shift: tuple[float, float, float], grow: float = 0.1, turn: float = 10) -> Frame:
        """The organ's own whims: normal shifts (mm per axis), growth (share) and turns (degrees), cut at two deviations."""
        key, variety = self.key(organ, "frame"), self.subject.variety
        move, size, angle = key.normal((3, 3)).clip(-2, 2) * variety
        common = float(key("common").normal().clip(-2, 2)) * variety
        return Frame(move * shift, np.exp(grow * (0.5 * size + common)), rotation(angle * turn))

    @cached_property
    def domes(self) -> tuple[float, float]:
        """Heights of the diaphragm's domes at rest, right and left."""
        rest = 268 + self.key("domes").normal(2).clip(-2, 2) * 7 * self.subject.variety
        right, left = self.subject.diaphragm_mm
        return float(rest[0]) + right, float(rest[1]) - 12 + left

    @cached_property
    def descent(self) -> tuple[float, float]:
        """How far organs under each dome are moved up from the reference (mm)."""
        return self.domes[0] - 262, self.domes[1] - 250

    def _wall(self, table: np.ndarray, patch: Patch, power: float, belly: float = 0.0) -> tuple[np.ndarray, ...]:
        """Distance to a tube whose section at each height is a superellipse; also its normalised radius, and v/k."""
        half, front, back = (np.interp(patch.z, table[:, 0], table[:, i]) for i in (1, 2, 3))
        front = front + belly * np.exp(-(((patch.z - 70) / 120) ** 2))
        half = half + 0.45 * belly * np.exp(-(((patch.z - 90) / 120) ** 2))
        middle, depth = (front + back) / 2, (front - back) / 2
        y = patch.y - middle
        u, v = patch.x / half, y / depth
        k = (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)
        r = np.hypot(patch.x, y)
        safe = np.maximum(k, 0.2)
        distance = np.where(k > 0.2, r - r / safe, (k - 1) * np.minimum(half, depth))
        return distance, k, v / safe

    @cached_property
    def belly_mm(self) -> float:
        """How far visceral fat pushes the front wall."""
        return 55 * (self.subject.visceral - 0.35)

    def trunk(self, patch: Patch) -> tuple[np.ndarray, np.ndarray]:
        """Distance to the muscles' outer surface, and to the skin."""
        subject = self.subject
        d, _, v = self._wall(_TRUNK, patch, 2.35, self.belly_mm)
        bulk = 6 * (subject.muscle - 1)
        d = d - bulk
        hips = np.exp(-(((patch.z + 90) / 90) ** 2))
        waist = np.exp(-(((patch.z - 60) / 110) ** 2))
        front, back = np.clip(v, 0, 1), np.clip(-v, 0, 1)
        share = 0.62 + 0.4 * hips * (1 - 0.6 * front) + waist * (0.55 * front + 0.25) + 0.15 * back
        lump = 1 + 0.12 * np.sin(patch.x / 60 + subject.seed % 7) + 0.1 * np.sin(patch.z / 55 + subject.seed % 5)
        skin = d - (3.0 + subject.fat_mm * share * lump)
        if self.breasts:
            size = self.breast_size
            for side in (-1, 1):
                chest = [side * 80.0, 82.0 + 10 * size, 322.0]
                bump = ellipsoid(patch, chest, (60 * size, 50 * size, 60 * size))
                skin = np.minimum(skin, bump)
        return d, skin

    @cached_property
    def breasts(self) -> bool:
        """Whether this patient has breasts of a size to see."""
        return self.subject.sex == "female" and self.subject.age_years >= 13

    @cached_property
    def breast_size(self) -> float:
        """Factor on the breasts' radii."""
        return 0.85 + 0.2 * float(self.key("breast").normal().clip(-1.5, 1.5)) + 0.008 * self.subject.fat_mm

    def cage(self, patch: Patch) -> tuple[np.ndarray, np.ndarray]:
        """Distance to the middle of the ribs, and the normalised radius."""
        d, k, _ = self._wall(_CAGE, patch, 2.1)
        return d, k

    def diaphragm(self, patch: Patch) -> np.ndarray:
        """Height of the diaphragm over each lattice point: two domes with a saddle, steep towards the ribs."""
        _, k = self.cage(patch)
        right, left = self.domes
        side = 1 / (1 + np.exp(-patch.x / 12))
        saddle = 16 * np.exp(-((patch.x / 26) ** 2))
        top = left + (right - left) * side - saddle
        base = 172 + 0.33 * (patch.y + 60)
        flat = np.clip(k, 0, 1.15) ** 3.2
        return np.asarray(top + (np.minimum(base, top) - top) * flat)

    def cavity(self, patch: Patch) -> np.ndarray:
        """Distance to the abdominal cavity's wall, the diaphragm included."""
        d, _, _ = self._wall(_CAVITY, patch, 2.2, self.belly_mm)
        return np.maximum(d, 0.8 * (patch.z - self.diaphragm(patch)) + 3)

    def spine(self, z: np.ndarray | float) -> np.ndarray:
        """Anterior offset of the vertebral bodies' middle at height z."""
        return spine_y(np.asarray(z), self.subject.kyphosis)

    def lumps(self, organ: str, patch: Patch, amplitude: float, size_mm: float) -> np.ndarray:
        """A slow random field on the lattice that makes an ellipsoid look grown: six waves of about `size_mm`."""
        key = self.key(organ, "lumps")
        direction = key("wave").normal((6, 3))
        direction *= 2 * np.pi / (size_mm * np.linalg.norm(direction, axis=1, keepdims=True))
        phase = key("phase").uniform(0, 2 * np.pi, 6)
        waves = [
            np.sin(a * patch.x + b * patch.y + c * patch.z + p) for (a, b, c), p in zip(direction, phase, strict=True)
        ]
        return np.asarray(sum(waves) * (amplitude * self.subject.variety / np.sqrt(3)))
