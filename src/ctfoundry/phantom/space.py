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
from ctfoundry.phantom.spec import Acquisition, Subject

if TYPE_CHECKING:
    from jaxtyping import Float, Float32

    Field = Float32[np.ndarray, "d h w"]

Slices = tuple[slice, slice, slice]

LATTICE_MM = 6.0
"""Distance of lattice points."""


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
    )
    return np.interp(z, [t[0] for t in table], [t[1] for t in table]) * kyphosis


def rotation(degrees: Sequence[float]) -> np.ndarray:
    """The matrix that turns about x, then y, then z."""
    a, b, c = np.radians(degrees)
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


@dataclass(frozen=True)
class Pose:
    """The map from world to body millimetres."""

    turn: np.ndarray
    pivot: np.ndarray
    origin: np.ndarray
    scale: np.ndarray
    swing_mm: float
    swing_phase: float
    waves: np.ndarray  # (n, 7): amplitude xyz, wave vector xyz, phase

    @classmethod
    def of(cls, subject: Subject, acquisition: Acquisition) -> Pose:
        """The pose of a patient in a scan; size, spine and warp belong to the patient, turn and place to the scan."""
        key = Key.of("phantom", subject.seed, "pose")
        amplitude = key("amplitude").normal((4, 3)).clip(-2, 2) * (4.0, 4.0, 5.0) * subject.variety
        wave = key("wave").normal((4, 3)).clip(-1.6, 1.6) * (2 * np.pi / 420)
        phase = key("phase").uniform(0, 2 * np.pi, (4, 1))
        middle = sum(acquisition.z_range) / 2 * subject.height
        return cls(
            turn=rotation(acquisition.tilt_deg),
            pivot=np.array([0.0, 10.0, middle]),
            origin=np.array(acquisition.origin_mm),
            scale=np.array([subject.width, subject.depth, subject.height]),
            swing_mm=subject.scoliosis_mm,
            swing_phase=float(key("swing").uniform(0, 2 * np.pi)),
            waves=np.concatenate([amplitude, wave, phase], axis=1),
        )

    def body(self, world: Float[np.ndarray, "3 ..."]) -> Float[np.ndarray, "3 ..."]:
        """Body millimetres of world points."""
        lead = (3,) + (1,) * (world.ndim - 1)
        centred = world - (self.origin + self.pivot).reshape(lead)
        p = np.tensordot(self.turn.T, centred, axes=1) + self.pivot.reshape(lead)
        p /= self.scale.reshape(lead)
        p[0] -= self.swing_mm * np.sin(2 * np.pi * p[2] / 480 + self.swing_phase)
        out = p.copy()
        for ax, ay, az, kx, ky, kz, phase in self.waves:
            wave = np.sin(kx * p[0] + ky * p[1] + kz * p[2] + phase)
            for axis, amplitude in enumerate((ax, ay, az)):
                out[axis] += amplitude * wave
        return out

    def world(self, body: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """World points of body millimetres, by fixed-point steps to 0.001 mm."""
        target = np.asarray(body, dtype=np.float64).T
        matrix = self.turn * self.scale
        guess = target
        world = np.zeros_like(target)
        for _ in range(60):  # the warp's slope is about a third: a dozen steps do
            world = matrix @ (guess - (self.pivot / self.scale)[:, None]) + (self.origin + self.pivot)[:, None]
            miss = target - self.body(world)
            if np.abs(miss).max() < 1e-3:
                break
            guess = guess + miss
        return np.asarray(world.T)


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

    @classmethod
    def of(cls, pose: Pose, axes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Space:
        """The space of voxels at world `axes` (z rising, y and x falling)."""
        steps = tuple(abs(float(a[1] - a[0])) if len(a) > 1 else 1.0 for a in axes)
        strides = tuple(max(1, round(LATTICE_MM / s)) for s in steps)
        points = []
        for axis, stride in zip(axes, strides, strict=True):
            count = -(-(len(axis) - 1) // stride) + 1
            step = axis[1] - axis[0] if len(axis) > 1 else 1.0
            points.append(axis[0] + step * stride * np.arange(max(count, 2)))
        z, y, x = np.meshgrid(*points, indexing="ij")
        lattice = pose.body(np.stack([x, y, z])).astype(np.float32)
        shape = (len(axes[0]), len(axes[1]), len(axes[2]))
        return cls(pose, shape, (steps[0], steps[1], steps[2]), axes, (strides[0], strides[1], strides[2]), lattice)

    @property
    def voxel_mm(self) -> float:
        """Edge of a cube with a voxel's volume."""
        return float(np.cbrt(np.prod(self.steps)))

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
        for values, a, b, scale in zip(self.lattice, low, high, self.pose.scale, strict=True):
            margin = LATTICE_MM / scale
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
