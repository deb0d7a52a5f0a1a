"""Winding sheets, as sulci and the fat between muscles are: where a smooth noise passes through zero."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.space import Patch
from ctfoundry.phantom.texture import SIDE, tile

if TYPE_CHECKING:
    from jaxtyping import Float32

GRAIN = 12.0
"""Samples from one sheet to the next."""


@functools.cache
def _tile() -> Float32[np.ndarray, "n n n"]:
    """Signed distance, in samples, to the zero surface of a noise tile; levels off half a sheet's distance away."""
    g = tile(GRAIN)
    slope = sum((np.roll(g, -1, axis) - np.roll(g, 1, axis)) ** 2 for axis in range(3)) * np.float32(0.25)
    out = g / np.sqrt(slope + (g * np.float32(1 / (0.6 * GRAIN))) ** 2 + np.float32(1e-6))
    out.setflags(write=False)
    return np.asarray(out, dtype=np.float32)


def sheets(key: Key, x: np.ndarray, y: np.ndarray, z: np.ndarray, *, apart_mm: float) -> Float32[np.ndarray, "..."]:
    """Signed distance in millimetres to sheets about `apart_mm` from each other, linear between the tile's samples."""
    scale = np.float32(GRAIN / apart_mm)
    start = (key.uniform(0, SIDE, 3) + 64 * SIDE).astype(np.float32)
    flat, out = _tile().ravel(), np.zeros(np.shape(x), dtype=np.float32)
    places, parts = [], []
    for c, o, stride in zip((z, y, x), start, (SIDE * SIDE, SIDE, 1), strict=True):
        at = c * scale + o
        low = np.floor(at)
        i = low.astype(np.int32)
        places.append(((i & (SIDE - 1)) * stride, ((i + 1) & (SIDE - 1)) * stride))
        part = (at - low).astype(np.float32)
        parts.append((1 - part, part))
    for a in (0, 1):
        for b in (0, 1):
            base, weight = places[0][a] + places[1][b], parts[0][a] * parts[1][b]
            for corner in (0, 1):
                out += weight * parts[2][corner] * flat.take(base + places[2][corner])
    return np.asarray(out / scale)


def waves(key: Key, patch: Patch, amplitude: float, size_mm: float) -> Float32[np.ndarray, "..."]:
    """A slow random field on the lattice, as `Body.lumps`, in single precision: six waves of about `size_mm`."""
    direction = key("wave").normal((6, 3))
    direction *= 2 * np.pi / (size_mm * np.linalg.norm(direction, axis=1, keepdims=True))
    phase = key("phase").uniform(0, 2 * np.pi, 6)
    out = np.zeros(patch.x.shape, dtype=np.float32)
    for (a, b, c), p in zip(direction.astype(np.float32), phase.astype(np.float32), strict=True):
        out += np.sin(a * patch.x + b * patch.y + c * patch.z + p)
    out *= np.float32(amplitude / np.sqrt(3))
    return out
