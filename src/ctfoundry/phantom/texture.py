"""Random textures that stick to the patient.

A texture is read from a periodic tile of smooth noise at body coordinates, so it moves with the organ. The tiles are the
same for all phantoms (made once a process, from a fixed key); each organ of each patient reads them from its own place.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft

from ctfoundry.keys import Key

if TYPE_CHECKING:
    from jaxtyping import Float32

SIDE = 128
"""Side of a tile in samples; a power of two, so that wrapping is a bit mask."""


@functools.cache
def _spectrum() -> np.ndarray:
    """The spectrum of white noise; its bits come straight from Philox, four 16-bit numbers to a word."""
    white = bell(Key.of("phantom", "tile"), (SIDE, SIDE, SIDE))
    return np.asarray(scipy.fft.rfftn(white, workers=1))


@functools.cache
def tile(grain: float) -> Float32[np.ndarray, "n n n"]:
    """Noise of mean 0 and deviation 1, band-passed around `grain` samples (blobs of that diameter), periodic."""
    f = np.fft.fftfreq(SIDE).astype(np.float32) ** 2
    radius = f[:, None, None] + f[:, None] + f[: SIDE // 2 + 1]
    radius[:, :, -1] = f[:, None] + f + 0.25
    # A blob of diameter g is half a wave: a Gaussian ring around the frequency 1 / (2 g).
    centre = 1 / (2 * grain)
    ring = np.exp(-0.5 * ((np.sqrt(radius) - centre) / (0.4 * centre)) ** 2)
    noise = scipy.fft.irfftn(_spectrum() * ring, s=(SIDE,) * 3, workers=1).astype(np.float32)
    noise /= noise.std()
    noise.setflags(write=False)
    return noise


def bell(key: Key, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """Nearly normal numbers (mean 0, deviation 1), fast: sums of four 16-bit words of Philox.

    Their kurtosis is 0.3 below a normal's and they end at 3.5; any filter over a few of them makes up for that.
    """
    count = int(np.prod(shape))
    bits = np.random.Philox(key=int.from_bytes(key.digest, "little"))
    out = np.empty(count, dtype=np.float32)
    for start in range(0, count, 1 << 16):  # what fits the cache is twice as fast
        total = out[start : start + (1 << 16)]
        words = np.asarray(bits.random_raw(len(total)), dtype="<u8").view("<u2").reshape(-1, 4)
        np.copyto(total, words[:, 0])
        for column in (1, 2, 3):
            total += words[:, column]
        total -= 2 * 65535.0
        total *= np.float32(np.sqrt(3.0) / 65536.0)
    return out.reshape(shape)


def sample(
    key: Key, x: np.ndarray, y: np.ndarray, z: np.ndarray, *, blob_mm: float, grain: float = 6.0
) -> Float32[np.ndarray, "..."]:
    """Texture with blobs of `blob_mm` at body millimetres; `key` says from where in the tile it is read.

    The tile of `grain` samples a blob is read by nearest sample: a coarser grain is blockier, a finer one repeats later.
    """
    noise = tile(grain)
    scale = np.float32(grain / blob_mm)
    offset = key.integers(0, SIDE, 3).astype(np.float32) + np.float32(SIDE * 64)
    index = [((c * scale + o).astype(np.int32) & (SIDE - 1)) for c, o in zip((z, y, x), offset, strict=True)]
    flat = index[0] * SIDE
    flat += index[1]
    flat *= SIDE
    flat += index[2]
    return noise.ravel().take(flat)


def smooth_sample(
    key: Key, x: np.ndarray, y: np.ndarray, z: np.ndarray, *, blob_mm: float, grain: float = 6.0
) -> Float32[np.ndarray, "..."]:
    """`sample`, interpolated linearly: for shapes, which must lie in one place whatever grid they are painted on."""
    noise = tile(grain).ravel()
    scale = np.float32(grain / blob_mm)
    offset = key.integers(0, SIDE, 3).astype(np.float32) + np.float32(SIDE * 64)
    at = [c * scale + o for c, o in zip((z, y, x), offset, strict=True)]
    low = [a.astype(np.int32) for a in at]
    part = [a - b.astype(np.float32) for a, b in zip(at, low, strict=True)]
    out = np.zeros(x.shape, dtype=np.float32)
    for corner in np.ndindex(2, 2, 2):
        i, j, k = ((b + c) & (SIDE - 1) for b, c in zip(low, corner, strict=True))
        u, v, w = (p if c else 1 - p for p, c in zip(part, corner, strict=True))
        out += noise.take((i * SIDE + j) * SIDE + k) * (u * v * w)
    return out
