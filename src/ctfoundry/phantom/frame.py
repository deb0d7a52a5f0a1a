"""The head's own coordinates: a skull does not bend with the back.

The map from the scanner to the body (`space.Pose`) stretches and bends patients by a tenth; fine for a belly, wrong for a
skull. Above the neck the body is therefore rigid: *head millimetres* (x Right, y Anterior, z Superior, 0 at the basion, the
front edge of the foramen magnum; porion and lower orbital rim at one height) are turned as the body is at the basion and have
sizes of their own. Between the third cervical vertebra and the skull base the two maps pass into each other, so that neck
and skull fit; below, head millimetres are body millimetres less `joint`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.growth import growth
from ctfoundry.phantom.space import Patch, Pose, Space, lying_mm, spine_y
from ctfoundry.phantom.spec import Subject

if TYPE_CHECKING:
    from jaxtyping import Float

    from ctfoundry.phantom.anatomy import Body

JOINT_Z = 594.0
"""Height of the basion in body millimetres."""
HEAD_LATTICE_MM = 3.0
"""Distance of lattice points in the head, whose walls are thinner than a torso's."""
SHOULDER_Z, SHOULDER_SLOPE = 510.0, 0.75
"""Where the trunk's outline ends above the shoulders, in body millimetres, and how softly."""
_START_Z = 462.0
"""Below this height nothing belongs to head or neck."""


def joint(subject: Subject) -> np.ndarray:
    """The basion in body millimetres."""
    return np.array([0.0, float(spine_y(np.asarray(600.0), subject.kyphosis)), JOINT_Z])


def head_size(subject: Subject) -> np.ndarray:
    """Factors on head millimetres along x, y, z.

    Heads vary less than bodies: length and breadth of adults' skulls have deviations of 4 per cent, and depend little on the
    height; women's are about 4 per cent smaller (Howells' means). Children's follow the head's growth.
    """
    key, variety = Key.of("phantom", subject.seed, "head"), subject.variety
    common, round_head, tall = (key("size").normal(3).clip(-2, 2) * variety).tolist()
    base = 1.022 + 0.2 * (subject.height - 1) + 0.15 * (subject.width - 1)
    base *= (0.972 if subject.sex == "female" else 1.0) * (1 + 0.016 * common)
    grown = growth(subject.age_years)
    base *= 1.0 if grown is None else float(np.interp(700.0, grown.z, grown.wide))
    return base * np.exp([0.022 * round_head, -0.022 * round_head, 0.015 * tall])


def rise(subject: Subject, z: float) -> float:
    """Height in the upright patient, world millimetres above the reference point, of body millimetres `z`."""
    return lying_mm(subject, min(z, JOINT_Z)) + max(z - JOINT_Z, 0.0) * float(head_size(subject)[2])


@dataclass(frozen=True, kw_only=True)
class HeadPose(Pose):
    """The map from world to head millimetres."""

    place: np.ndarray  # (3,) world point of the basion
    axes: np.ndarray  # (3, 3) columns: the head's x, y, z in the world
    factors: np.ndarray  # (3,) of `head_size`
    joint: np.ndarray  # (3,) the basion in body millimetres

    @classmethod
    def at(cls, pose: Pose, subject: Subject) -> HeadPose:
        """The head of a patient in a pose: turned as the body is at the basion."""
        point = joint(subject)
        around = point + 8.0 * np.concatenate([np.eye(3), -np.eye(3)])
        world = pose.world(np.concatenate([point[None], around]))
        slope = (world[1:4] - world[4:]).T / 16
        u, _, vt = np.linalg.svd(slope)
        own = {f.name: getattr(pose, f.name) for f in fields(pose)}
        return cls(**own, place=world[0], axes=u @ vt, factors=head_size(subject), joint=point)

    def body(self, world: Float[np.ndarray, "3 ..."]) -> Float[np.ndarray, "3 ..."]:
        """Head millimetres of world points."""
        return self.head(super().body(world), world)

    def head(self, body: Float[np.ndarray, "3 ..."], world: Float[np.ndarray, "3 ..."]) -> Float[np.ndarray, "3 ..."]:
        """Head millimetres of points given in body millimetres and in the world."""
        lead = (3,) + (1,) * (world.ndim - 1)
        neck = body - self.joint.reshape(lead)
        rigid = np.tensordot(self.axes.T, world - self.place.reshape(lead), axes=1) / self.factors.reshape(lead)
        return np.asarray(neck + self.rigid(body) * (rigid - neck))

    def rigid(self, body: Float[np.ndarray, "3 ..."]) -> Float[np.ndarray, "..."]:
        """How far points (body millimetres) belong to the rigid head: 0 below the neck, 1 in the skull."""
        _, y, z = (c - o for c, o in zip(body, self.joint, strict=True))
        level = z + np.clip(y - 5, 0, 95)  # the jaw hangs far down in front and belongs to the head
        share = np.clip(level / 45 + 1, 0, 1)
        return np.asarray(share * share * (3 - 2 * share))

    def size(self, z: np.ndarray | float) -> np.ndarray:
        """How large the body is at head height z, as a factor on an adult's."""
        return super().size(np.asarray(z, dtype=np.float64) + float(self.joint[2]))

    def world(self, body: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """World points of head millimetres, by fixed-point steps to 0.001 mm."""
        target = np.asarray(body, dtype=np.float64).T
        matrix = self.axes * self.factors
        world = matrix @ target + self.place[:, None]
        for _ in range(60):
            miss = target - self.body(world)
            if np.abs(miss).max() < 1e-3:
                break
            world = world + 0.9 * matrix @ miss
        return np.asarray(world.T)


@dataclass(frozen=True)
class HeadCanvas:
    """The upper part of a canvas, from the root of the neck, in head and in body millimetres.

    `canvas` shares its voxels with the whole; the lattices of `canvas.space` (head) and `body` are at the same points.
    """

    canvas: Canvas
    body: Space

    @classmethod
    def of(cls, canvas: Canvas, body: Body) -> HeadCanvas | None:
        """The part of a canvas that can hold head and neck; None when it is out of view."""
        space = canvas.space
        x, y, z = space.lattice
        reach = 20 + 0.3 * body.subject.fat_mm
        there = (z > _START_Z) & (np.abs(x) < 105 + reach) & (y > -105 - reach) & (y < 145 + reach)
        box = []
        for axis, (stride, count) in enumerate(zip(space.strides, space.shape, strict=True)):
            hit = np.flatnonzero(there.any(axis=tuple(a for a in range(3) if a != axis)))
            if hit.size == 0:
                return None
            start = min(max(int(hit[0]) - 1, 0) * stride, max(count - 2, 0))
            box.append(slice(start, min((int(hit[-1]) + 1) * stride + 1, count)))
        axes = (space.axes[0][box[0]], space.axes[1][box[1]], space.axes[2][box[2]])
        pose = HeadPose.at(space.pose, body.subject)
        plain = Space.of(space.pose, axes, HEAD_LATTICE_MM)
        points = [
            a[0] + (a[1] - a[0] if len(a) > 1 else 1.0) * stride * np.arange(n)
            for a, stride, n in zip(axes, plain.strides, plain.lattice.shape[1:], strict=True)
        ]
        world = np.stack(np.meshgrid(*points, indexing="ij")[::-1])
        head = replace(plain, pose=pose, lattice=pose.head(plain.lattice, world).astype(np.float32))
        voxels = {f.name: getattr(canvas, f.name)[tuple(box)] for f in fields(canvas) if f.name != "space"}
        return cls(replace(canvas, space=head, **voxels), plain)

    def in_body(self, patch: Patch) -> Patch:
        """The same box in body millimetres."""
        part = tuple(
            slice(b.start // s, b.start // s + n)
            for b, s, n in zip(patch.box, patch.strides, patch.x.shape, strict=True)
        )
        x, y, z = self.body.lattice[(slice(None), *part)]
        return Patch(patch.box, x, y, z, patch.strides)
