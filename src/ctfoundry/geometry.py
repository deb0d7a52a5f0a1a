"""Where voxels lie in the patient.

Conventions, everywhere in the package: world points are millimetres in RAS+ (x to the patient's Right, y Anterior,
z Superior); an array is indexed (d, h, w) and its affine maps (d, h, w, 1) to (x, y, z, 1) of the voxel's *centre*; an
orientation code such as ``"SPL"`` names, axis by axis, the direction in which the index grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.errors import GeometryError

if TYPE_CHECKING:
    from jaxtyping import Float64

    Affine = Float64[np.ndarray, "4 4"]
    Points = Float64[np.ndarray, "... 3"]

Vec3 = tuple[int, int, int]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Half-open index ranges along d, h, w."""

SPACING_TOLERANCE = 0.01
"""Largest difference between slice distances, as a share of the median distance (1 %, as highdicom and IDC use)."""
POSITION_TOLERANCE_MM = 0.1
"""Largest distance of a slice's corner from the line through the others, in millimetres."""
ORIENTATION_TOLERANCE = 0.01
"""Largest difference of a direction cosine within a series, and from a right angle before a grid counts as sheared."""
SAME_GRID_MM = 0.01
"""Two grids are one when no corner voxel moves by more than this, in millimetres."""

_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM and ITK count x to the Left and y to the Posterior; multiply from the left to reach RAS+."""


def as_affine(matrix: Sequence[Sequence[float]] | np.ndarray) -> Affine:
    """A checked, read-only float64 copy; raises GeometryError when it is not an invertible 4x4 affine."""
    affine = np.array(matrix, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise GeometryError(f"an affine is 4x4 and finite, not {affine.tolist()}")
    if not np.allclose(affine[3], (0, 0, 0, 1)):
        raise GeometryError(f"the last row of an affine is 0 0 0 1, not {affine[3].tolist()}")
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths < 1e-6).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise GeometryError(f"voxel axes of lengths {lengths.tolist()} mm do not span three dimensions")
    affine.setflags(write=False)
    return affine


def make_affine(
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    code: str = "SPL",
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    rotation: np.ndarray | None = None,
) -> Affine:
    """The affine of a grid with `spacing` (mm per axis), orientation `code`, `origin` (mm of voxel 0) and an optional
    3x3 world rotation applied to the axes.

    >>> make_affine((3, 1, 1), "SPL").tolist()
    [[0.0, 0.0, -1.0, 0.0], [0.0, -1.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(parse_code(code)):
        affine[world, axis] = sign * spacing[axis]
    if rotation is not None:
        affine[:3, :3] = rotation @ affine[:3, :3]
    affine[:3, 3] = origin
    affine[3, 3] = 1
    return as_affine(affine + 0.0)


def parse_code(code: str) -> list[tuple[int, int]]:
    """(world axis, sign) for each letter of an orientation code; raises GeometryError for codes that are none."""
    pairs = [
        (w, s)
        for letter in code
        for w, pair in enumerate(_LETTERS)
        for s, c in zip((-1, 1), pair, strict=True)
        if c == letter
    ]
    if len(code) != 3 or len({w for w, _ in pairs}) != 3:
        raise GeometryError(f"{code!r} is not an orientation code: one letter each of R/L, A/P and S/I")
    return pairs


def spacing(affine: Affine) -> tuple[float, float, float]:
    """Distance of neighbouring voxel centres along d, h, w, in millimetres."""
    d, h, w = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return d, h, w


def world_axes(affine: Affine) -> list[tuple[int, int]]:
    """For each array axis the (world axis, sign) that it runs closest to, each world axis once.

    The assignment is made on the nearest rotation of the axes, largest cosine first, so that oblique and sheared grids
    get a code too. Where axes are equally near (45 degrees) what decides is how they lie, not their order or direction, so
    that a reordered array keeps its letters.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    u, _, v = np.linalg.svd(directions)
    cosines = u @ v
    free = np.round(np.abs(cosines), 6)
    x, y, z = cosines
    lie = np.round([*free, x * y, x * z, y * z], 6)  # the same for an axis and its opposite
    ranked = sorted(range(3), key=lambda axis: tuple(lie[:, axis]), reverse=True)
    left: dict[int, tuple[int, int]] = {}
    for _ in range(3):
        world, rank = np.unravel_index(int(np.argmax(free[:, ranked])), free.shape)
        axis = ranked[int(rank)]
        left[axis] = (int(world), 1 if cosines[world, axis] > 0 else -1)
        free[world, :] = free[:, axis] = -1
    return [left[axis] for axis in range(3)]


def orientation(affine: Affine) -> str:
    """The orientation code of the axes, such as ``"SPL"``.

    >>> orientation(make_affine((1, 1, 1), "LAS"))
    'LAS'
    """
    return "".join(_LETTERS[world][sign > 0] for world, sign in world_axes(affine))


def obliquity(affine: Affine) -> float:
    """Largest angle between an array axis and the world axis that its letter names, in degrees."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = [abs(directions[world, axis]) for axis, (world, _) in enumerate(world_axes(affine))]
    return float(np.degrees(np.arccos(np.clip(min(cosines), 0, 1))))


def is_sheared(affine: Affine) -> bool:
    """Whether two axes are further from a right angle than ORIENTATION_TOLERANCE."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > ORIENTATION_TOLERANCE)


def to_world(affine: Affine, index: np.ndarray | Sequence[float]) -> Points:
    """World millimetres of voxel indices, shape (..., 3); indices need not be whole."""
    return np.asarray(np.asarray(index, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3])


def to_index(affine: Affine, points: np.ndarray | Sequence[float]) -> Points:
    """Voxel indices (not rounded) of world millimetres, shape (..., 3)."""
    return to_world(np.linalg.inv(affine), points)


def shifted(affine: Affine, offset: Sequence[float]) -> Affine:
    """The affine after the first `offset` voxels along each axis were cut off (negative: added)."""
    moved = np.array(affine)
    moved[:3, 3] = to_world(affine, offset)
    return as_affine(moved)


def rescaled(affine: Affine, step: Sequence[float], start: Sequence[float]) -> Affine:
    """The affine of a grid whose voxel k lies on voxel ``start + step * k`` of the given one."""
    scaled = np.array(shifted(affine, start))
    scaled[:3, :3] = scaled[:3, :3] * np.asarray(step, dtype=np.float64)
    return as_affine(scaled)


def axes_to(affine: Affine, code: str) -> tuple[Vec3, tuple[bool, bool, bool]]:
    """(order, flip): array axis `order[i]`, reversed where `flip[i]`, becomes axis i of the orientation `code`."""
    have = world_axes(affine)
    order, flip = [], []
    for world, sign in parse_code(code):
        axis = next(a for a, (w, _) in enumerate(have) if w == world)
        order.append(axis)
        flip.append(have[axis][1] != sign)
    return (order[0], order[1], order[2]), (flip[0], flip[1], flip[2])


def reordered(affine: Affine, shape: Sequence[int], order: Vec3, flip: Sequence[bool]) -> Affine:
    """The affine after ``array.transpose(order)`` and reversing the axes marked in `flip` (flags of the new axes)."""
    moved = np.array(affine)
    moved[:3, :3] = affine[:3, list(order)]
    for new, old in enumerate(order):
        if flip[new]:
            moved[:3, 3] += moved[:3, new] * (shape[old] - 1)
            moved[:3, new] *= -1
    return as_affine(moved)


@dataclass(frozen=True)
class Grid:
    """The shape (d, h, w) and affine of an array, without its voxels."""

    shape: Vec3
    affine: Affine

    def __post_init__(self) -> None:
        object.__setattr__(self, "affine", as_affine(self.affine))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"a grid has three axes of at least one voxel, not {self.shape}")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres per voxel along d, h, w."""
        return spacing(self.affine)

    @property
    def orientation(self) -> str:
        """Orientation code, such as ``"SPL"``."""
        return orientation(self.affine)

    @property
    def corners(self) -> Points:
        """World millimetres of the eight corner voxels' centres, (8, 3)."""
        return to_world(
            self.affine,
            np.array(
                [
                    [d, h, w]
                    for d in (0, self.shape[0] - 1)
                    for h in (0, self.shape[1] - 1)
                    for w in (0, self.shape[2] - 1)
                ]
            ),
        )

    def same(self, other: Grid, tolerance: float = SAME_GRID_MM) -> bool:
        """Whether both grids have one shape and no corner further apart than `tolerance` millimetres."""
        return self.shape == other.shape and bool(np.abs(self.corners - other.corners).max() <= tolerance)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and bool((self.affine == other.affine).all())

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    def __repr__(self) -> str:
        size = "x".join(map(str, self.shape))
        steps = "x".join(f"{s:.2f}" for s in self.spacing)
        tilt = obliquity(self.affine)
        return f"Grid({size}, {steps} mm, {self.orientation}{f', oblique {tilt:.1f} deg' if tilt > 0.1 else ''})"


def bounding_box(mask: np.ndarray) -> Box | None:
    """The smallest box that holds all True voxels, or None when there are none."""
    ranges = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if hit.size == 0:
            return None
        ranges.append((int(hit[0]), int(hit[-1]) + 1))
    return ranges[0], ranges[1], ranges[2]


def slices(box: Box) -> tuple[slice, slice, slice]:
    """Index expression of a box."""
    return slice(*box[0]), slice(*box[1]), slice(*box[2])
