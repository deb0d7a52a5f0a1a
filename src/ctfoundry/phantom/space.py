"""From voxels to body millimetres, coarsely and smoothly.

The map from the scanner to the body (turn, size, bent spine, a slow random warp) and all large organs are smooth on the
scale of centimetres. They are therefore evaluated on a lattice of about 6 mm only and brought to the voxels by linear
interpolation, one small matrix per axis. For a surface that bends with radius R the error is at most ``step**2 / (8 R)``:
0.1 mm at R = 50 mm. Only what is sharp (edges, ribs, vessels) is computed voxel by voxel, each in its own box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom import breathing
from ctfoundry.phantom.growth import Growth, growth
from ctfoundry.phantom.spec import Acquisition, Subject

if TYPE_CHECKING:
    from jaxtyping import Float, Float32

    Field = Float32[np.ndarray, "d h w"]

Slices = tuple[slice, slice, slice]

LATTICE_MM = 6.0
"""Distance of lattice points in an adult; children have a finer lattice."""

_POINTS = 1 << 15
"""Points brought to the world at a time."""

_SPINE = (-195.0, 500.0)
"""Body z between which the spine swings."""


def spine_y(z: np.ndarray, kyphosis: float) -> np.ndarray:
    """Anterior offset of the vertebral bodies' middle in the reference body, millimetres: lordosis, then kyphosis."""
    table = (
        (-120, -48),
        (-60, -28),
        (0, -2),
        (60, 9),
        (120, 5),
        (200, -8),
        (290, -24),
        (360, -29),
        (430, -22),
        (500, -4),
        (545, 5),
        (600, 9),
    )
    return np.interp(z, [t[0] for t in table], [t[1] for t in table]) * kyphosis


def lying_mm(subject: Subject, z: float) -> float:
    """How far above the top of the sacrum body height z lies in this patient, millimetres along the body."""
    grown = growth(subject.age_years)
    return subject.height * (z if grown is None else float(np.interp(z, grown.z, grown.along)))


def rotation(degrees: Sequence[float]) -> np.ndarray:
    """The matrix that turns about x, then y, then z."""
    a, b, c = np.radians(degrees)
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


@dataclass(frozen=True)
class Pose:
    """The map between world and body millimetres: place and turn, size, bent spine, slow warp, breath; each can be undone."""

    turn: np.ndarray
    pivot: np.ndarray
    origin: np.ndarray
    scale: np.ndarray
    growth: Growth | None
    swing_mm: float
    swing_phase: float
    waves: np.ndarray  # (n, 7): amplitude xyz, wave vector xyz, phase
    breath_mm: float
    kyphosis: float

    @classmethod
    def of(cls, subject: Subject, acquisition: Acquisition) -> Pose:
        """The pose of a patient in a scan; size, spine and warp belong to the patient, turn, place and breath to the scan."""
        key = Key.of("phantom", subject.seed, "pose")
        amplitude = key("amplitude").normal((4, 3)).clip(-2, 2) * (4.0, 4.0, 5.0) * subject.variety
        wave = key("wave").normal((4, 3)).clip(-1.6, 1.6) * (2 * np.pi / 420)
        phase = key("phase").uniform(0, 2 * np.pi, (4, 1))
        low, high = (lying_mm(subject, z) for z in acquisition.z_range)
        return cls(
            turn=rotation(acquisition.tilt_deg),
            pivot=np.array([0.0, 10.0, (low + high) / 2]),
            origin=np.array(acquisition.origin_mm),
            scale=np.array([subject.width, subject.depth, subject.height]),
            growth=growth(subject.age_years),
            swing_mm=subject.scoliosis_mm,
            swing_phase=float(key("swing").uniform(0, 2 * np.pi)),
            waves=np.concatenate([amplitude, wave, phase], axis=1),
            breath_mm=acquisition.breath_mm,
            kyphosis=subject.kyphosis,
        )

    def breathing(self, world: Float[np.ndarray, "3 ..."]) -> Float[np.ndarray, "3 ..."]:
        """Body millimetres of world points in the body as it breathes: `body` without the way back to rest."""
        lead = (3,) + (1,) * (world.ndim - 1)
        centred = world - (self.origin + self.pivot).reshape(lead)
        p = np.tensordot(self.turn.T, centred, axes=1) + self.pivot.reshape(lead)
        p /= self.scale.reshape(lead)
        if self.growth is not None:
            p[2] = np.interp(p[2], self.growth.along, self.growth.z)
            p[0] /= np.interp(p[2], self.growth.z, self.growth.wide)
            p[1] /= np.interp(p[2], self.growth.z, self.growth.deep)
        p[0] -= self._swing(p[2])
        out = p.copy()
        for ax, ay, az, kx, ky, kz, phase in self.waves:
            wave = np.sin(kx * p[0] + ky * p[1] + kz * p[2] + phase)
            for axis, amplitude in enumerate((ax, ay, az)):
                out[axis] += amplitude * wave
        return out

    def body(self, world: Float[np.ndarray, "3 ..."]) -> Float[np.ndarray, "3 ..."]:
        """Body millimetres, at rest, of world points."""
        out = self.breathing(world)
        out += breathing.shift(out, self.breath_mm, self.kyphosis)
        return out

    def world(self, body: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """World points of body millimetres at rest, by fixed-point steps to 0.001 mm."""
        points = np.asarray(body, dtype=np.float64)
        out = np.empty_like(points)
        for start in range(0, len(points), _POINTS):  # each piece stays in the cache and stops by itself
            part = slice(start, start + _POINTS)
            target = breathing.undo(points[part].T, self.breath_mm, self.kyphosis)
            guess = target.copy()
            for _ in range(60):  # the warp's slope is about a third: a dozen steps do
                world = self._place(guess)
                miss = target - self.breathing(world)
                if np.abs(miss).max(initial=0) < 2e-4:
                    break
                guess += miss
            out[part] = world.T
        return out

    def shrinkage(self, world: Float[np.ndarray, "3 ..."]) -> Float[np.ndarray, "..."]:
        """Volume at rest over volume in this breath, of the tissue at world points."""
        return breathing.shrinkage(self.breathing(world), self.breath_mm, self.kyphosis)

    def size(self, z: np.ndarray | float) -> np.ndarray:
        """How large the body is at body height z, as a factor on an adult's (1 for adults of any build)."""
        z = np.asarray(z, dtype=np.float64)
        return np.ones_like(z) if self.growth is None else np.interp(z, self.growth.z, self.growth.size)

    def _swing(self, z: np.ndarray) -> np.ndarray:
        """Sideways offset of the spine; head and legs follow its ends."""
        low, high = _SPINE
        over, under = np.maximum(z - high, 0), np.minimum(z - low, 0)
        z = np.clip(z, low, high) + 60 * (np.exp(under / 60) - np.exp(-over / 60))
        return np.asarray(self.swing_mm * np.sin(2 * np.pi * z / 480 + self.swing_phase))

    def _place(self, p: Float[np.ndarray, "3 n"]) -> Float[np.ndarray, "3 n"]:
        """World points of body millimetres in the breathing body, but for the warp."""
        q = p.copy()
        q[0] += self._swing(p[2])
        if self.growth is not None:
            q[0] *= np.interp(p[2], self.growth.z, self.growth.wide)
            q[1] *= np.interp(p[2], self.growth.z, self.growth.deep)
            q[2] = np.interp(p[2], self.growth.z, self.growth.along)
        q *= self.scale[:, None]
        return np.asarray(self.turn @ (q - self.pivot[:, None]) + (self.origin + self.pivot)[:, None])


@dataclass(frozen=True)
class Patch:
    """A box of voxels with its lattice; `x, y, z` are body millimetres on the lattice."""

    box: Slices
    x: Field
    y: Field
    z: Field
    strides: tuple[int, int, int]

    def fine(self, values: np.ndarray) -> Field:
        """Lattice values at the voxels of the box."""
        out = np.asarray(values, dtype=np.float32)
        for axis in (2, 1, 0):  # planes last: nearly all the work is then on contiguous memory
            out = _stretch(out, self.strides[axis], self.box[axis].stop - self.box[axis].start, axis)
        return out

    def slabs(self, planes: int = 4) -> Iterator[tuple[Patch, slice]]:
        """The patch in pieces of some lattice planes, with the planes of each: what fits the cache is several times faster."""
        return _slabs(self, planes)


def _slabs(patch: Patch, planes: int) -> Iterator[tuple[Patch, slice]]:
    box, stride, last = patch.box, patch.strides[0], patch.x.shape[0] - 1
    for first in range(0, last, planes):
        end = min(first + planes, last)
        start = box[0].start + first * stride
        stop = box[0].stop if end == last else min(box[0].start + end * stride, box[0].stop)
        if stop > start:
            part = slice(first, end + 1)
            yield (
                replace(patch, box=(slice(start, stop), *box[1:]), x=patch.x[part], y=patch.y[part], z=patch.z[part]),
                part,
            )


def _stretch(x: np.ndarray, stride: int, count: int, axis: int) -> np.ndarray:
    """Linear interpolation of `count` samples at 0, 1/stride, 2/stride, ... along one axis (no BLAS: its threads spin)."""
    if stride == 1:
        return x[(slice(None),) * axis + (slice(count),)]
    x = np.moveaxis(x, axis, 0)
    rise = np.empty_like(x)
    np.subtract(x[1:], x[:-1], out=rise[:-1])
    rise[-1] = 0
    shape = list(x.shape)
    shape[0] = count
    # Memory is laid out as the result will be read: the stretched axis keeps its place.
    order = [shape[1:][i] for i in range(axis)] + [count] + shape[1 + axis :]
    out = np.moveaxis(np.empty(order, dtype=np.float32), axis, 0)
    for part in range(stride):
        target = out[part::stride]
        if part == 0:
            target[:] = x[: len(target)]
        else:
            np.multiply(rise[: len(target)], np.float32(part / stride), out=target)
            target += x[: len(target)]
    return np.moveaxis(out, 0, axis)


@dataclass(frozen=True)
class Space:
    """The voxels of one scan (axes S, P, L) and where each lattice point lies in the body."""

    pose: Pose
    shape: tuple[int, int, int]
    steps: tuple[float, float, float]
    axes: tuple[np.ndarray, np.ndarray, np.ndarray]  # world z, y, x of the voxels
    strides: tuple[int, int, int]
    lattice: np.ndarray  # (3, dc, hc, wc): body x, y, z
    size: float = 1.0  # of the body in the middle of the view, as a factor on an adult's

    @classmethod
    def of(cls, pose: Pose, axes: tuple[np.ndarray, np.ndarray, np.ndarray], lattice_mm: float = LATTICE_MM) -> Space:
        """The space of voxels at world `axes` (z rising, y and x falling)."""
        steps = tuple(abs(float(a[1] - a[0])) if len(a) > 1 else 1.0 for a in axes)
        middle = np.array([[a[len(a) // 2]] for a in axes[::-1]])
        size = float(pose.size(pose.body(middle)[2, 0]))
        strides = tuple(max(1, round(lattice_mm * size / s)) for s in steps)
        points = []
        for axis, stride in zip(axes, strides, strict=True):
            count = -(-(len(axis) - 1) // stride) + 1
            step = axis[1] - axis[0] if len(axis) > 1 else 1.0
            points.append(axis[0] + step * stride * np.arange(max(count, 2)))
        z, y, x = np.meshgrid(*points, indexing="ij")
        lattice = pose.body(np.stack([x, y, z])).astype(np.float32)
        shape = (len(axes[0]), len(axes[1]), len(axes[2]))
        return cls(
            pose, shape, (steps[0], steps[1], steps[2]), axes, (strides[0], strides[1], strides[2]), lattice, size
        )

    @property
    def voxel_mm(self) -> float:
        """Edge of a cube with a voxel's volume, in body millimetres: distances are signed distances of the adult reference."""
        return float(np.cbrt(np.prod(self.steps))) / self.size

    def shrinkage(self, patch: Patch) -> Field:
        """On the lattice of a patch: volume at rest over volume in this breath, the factor on the density of the lungs."""
        if self.pose.breath_mm == 0:
            return np.ones(patch.x.shape, dtype=np.float32)
        points = []
        for axis, part, stride, count in zip(self.axes, patch.box, self.strides, patch.x.shape, strict=True):
            step = axis[1] - axis[0] if len(axis) > 1 else 1.0
            points.append(axis[0] + step * (part.start + stride * np.arange(count)))
        z, y, x = np.meshgrid(*points, indexing="ij")
        return self.pose.shrinkage(np.stack([x, y, z])).astype(np.float32)

    def coordinates(self, box: Slices) -> tuple[Field, Field, Field]:
        """Body x, y, z of the voxels of a box."""
        part, skip = [], []
        for s, stride in zip(box, self.strides, strict=True):
            part.append(slice(s.start // stride, (s.stop - 1) // stride + 2))
            skip.append(s.start % stride)
        wide = tuple(slice(s.start - k, s.stop) for s, k in zip(box, skip, strict=True))
        x, y, z = self.lattice[(slice(None), *part)]
        patch = Patch((wide[0], wide[1], wide[2]), x, y, z, self.strides)
        cut = tuple(slice(k, None) for k in skip)
        fx, fy, fz = (patch.fine(c)[cut] for c in (x, y, z))
        return fx, fy, fz

    def patch(self, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> Patch | None:
        """The box of voxels that holds the body box from `low` to `high` (x, y, z), or None when it is out of view."""
        inside = np.ones(self.lattice.shape[1:], dtype=bool)
        reach = max(LATTICE_MM, *(s * n / self.size for s, n in zip(self.steps, self.strides, strict=True)))
        if self.size != 1:  # a child's lattice fits its mean size; one axis may be half as much again
            reach *= 1.5
        for values, a, b, scale in zip(self.lattice, low, high, self.pose.scale, strict=True):
            margin = reach / scale
            inside &= values >= a - margin
            inside &= values <= b + margin
        ranges = []
        for axis in range(3):
            hit = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
            if hit.size == 0:
                return None
            first, last = max(int(hit[0]) - 1, 0), min(int(hit[-1]) + 1, inside.shape[axis] - 1)
            if last == first:
                first, last = max(first - 1, 0), max(last, 1)
            ranges.append((first, last))
        box = []
        for (first, last), stride, count in zip(ranges, self.strides, self.shape, strict=True):
            start, stop = first * stride, min(last * stride + 1, count)
            if stop <= start:
                return None
            box.append(slice(start, stop))
        part = tuple(slice(first, last + 1) for first, last in ranges)
        x, y, z = self.lattice[(slice(None), *part)]
        return Patch((box[0], box[1], box[2]), x, y, z, self.strides)
