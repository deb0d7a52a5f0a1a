"""What metal does to a picture: beam hardening and photon starvation, from projections of the metal and the body.

Slices with metal are projected (parallel beams). The rays through metal are attenuated energy by energy; a scanner corrects
for water only, so it reads too little behind metal, and where hardly a photon comes through it reads noise. That error of
the sinogram, and nothing else, is filtered and projected back, and added to the slice: dark bands between screws, bright and
dark rays away from them. Attenuation coefficients are NIST's (XCOM) for water and titanium; the spectrum is a rough one of
a filtered 120 kV tube.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft

from ctfoundry.keys import Key
from ctfoundry.phantom.spec import Acquisition
from ctfoundry.phantom.texture import bell

if TYPE_CHECKING:
    from jaxtyping import Float32
    from scipy.sparse import csr_matrix

    Field = Float32[np.ndarray, "d h w"]

SPECTRUM = np.array([0.07, 0.15, 0.20, 0.18, 0.15, 0.12, 0.08, 0.05])
"""Shares of the photons at 40, 50, ... 110 keV."""
WATER = np.array([0.268, 0.227, 0.206, 0.193, 0.184, 0.177, 0.171, 0.166])
"""Attenuation of water at these energies, per cm."""
TITANIUM = np.array([9.98, 5.47, 3.45, 2.43, 1.83, 1.48, 1.23, 1.08])
"""The same of titanium (4.51 g/ml)."""
ANGLES = 144
"""Projections over half a turn."""
PHOTONS = 4e5
"""A ray's photons without a patient, at a noise of 10 HU; they go with the inverse square of the noise."""
_SIDE = 128
"""Pixels across at which the error is projected back; it is smooth between."""
_EDGE = 4


def add_streaks(hu: Field, metal: Field, scan: Acquisition, key: Key) -> None:
    """Add the artefacts of `metal` (share of each voxel) to averaged slices, in place."""
    planes = np.flatnonzero(metal.reshape(len(metal), -1).max(axis=1) > 0.05)
    if planes.size == 0:
        return
    step = max(round(scan.matrix / _SIDE), 1)
    pixel_cm = scan.pixel_mm * step / 10
    share = _binned(metal[planes], step)
    side = share.shape[1]
    density = np.clip(_binned(np.minimum(hu[planes], 1500), step), -1000, 1500) / 1000 + 1
    density = np.where(share > 0.05, 1.05, density)
    back, bins = _projector(side)
    # Path lengths in cm of water and of metal, for each ray (angles * bins) and slice.
    body = back.T @ density.reshape(len(planes), -1).T.astype(np.float32) * np.float32(pixel_cm)
    path = back.T @ share.reshape(len(planes), -1).T.astype(np.float32) * np.float32(pixel_cm)
    error = np.zeros_like(body)
    hit = np.flatnonzero((path > 1e-3).ravel())
    error.ravel()[hit] = _error(body.ravel()[hit], path.ravel()[hit], scan, key)
    sinogram = error.reshape(ANGLES, bins, -1)
    size = scipy.fft.next_fast_len(2 * bins, real=True)
    f = np.fft.rfftfreq(size)
    # Ramp, with a Hann window that takes the finest half of the frequencies down.
    ramp = (f * (0.5 + 0.5 * np.cos(2 * np.pi * f))).astype(np.float32)
    filtered = scipy.fft.irfft(
        scipy.fft.rfft(sinogram, size, axis=1, workers=1) * ramp[:, None], size, axis=1, workers=1
    )
    picture = back @ np.ascontiguousarray(filtered[:, :bins]).reshape(ANGLES * bins, -1).astype(np.float32)
    picture *= np.float32(1000 * np.pi / ANGLES / pixel_cm)
    change = _widened(picture.T.reshape(len(planes), side, side), step, hu.shape[1:])
    # Inside the metal itself the scale ends anyway; what lies outside the patient gets half.
    change = np.clip(change, -1200, 1200)
    hu[planes] += change * (1 - np.clip(metal[planes] * 2, 0, 1))


def _error(water_cm: np.ndarray, metal_cm: np.ndarray, scan: Acquisition, key: Key) -> np.ndarray:
    """What a scanner reads too much on rays through metal, in cm of water."""
    through = np.exp(-(water_cm[:, None] * WATER + metal_cm[:, None] * TITANIUM)) @ SPECTRUM
    table = np.linspace(0, 160, 400)
    read = np.interp(-np.log(through), -np.log(np.exp(-table[:, None] * WATER) @ SPECTRUM), table)
    true = water_cm + metal_cm * (TITANIUM[3] / WATER[3])
    photons = PHOTONS * (10 / max(scan.noise_hu, 3.0)) ** 2
    bare = np.exp(-water_cm[:, None] * WATER) @ SPECTRUM
    # The noise of the ray without metal is in the picture already.
    variance = 1 / np.maximum(photons * through, 2.0) - 1 / np.maximum(photons * bare, 2.0)
    noise = np.sqrt(np.maximum(variance, 0)) * bell(key, (water_cm.size,)) / WATER[3]
    return np.asarray(read - true + noise, dtype=np.float32)


@functools.lru_cache(maxsize=4)
def _projector(side: int) -> tuple[csr_matrix, int]:
    """Back-projection as a matrix, pixels by (angles * bins), with linear interpolation between bins one pixel wide."""
    from scipy.sparse import csr_matrix

    bins = int(np.ceil(side * 1.4143)) + 2 * _EDGE
    c = np.arange(side, dtype=np.float32) - (side - 1) / 2
    # Half a step off, so that no angle is 45 degrees, where the pixels of a diagonal fall on one bin.
    angle = (np.arange(ANGLES, dtype=np.float32) + 0.5) * np.float32(np.pi / ANGLES)
    place = (c[:, None, None] * np.sin(angle) + c[:, None] * np.cos(angle)).reshape(side * side, ANGLES) + bins / 2
    low = np.floor(place)
    weight = (place - low).astype(np.float32)
    first = low.astype(np.int32) + np.arange(ANGLES, dtype=np.int32) * bins
    index = np.stack([first, first + 1], axis=2).reshape(-1)
    value = np.stack([1 - weight, weight], axis=2).reshape(-1)
    start = np.arange(side * side + 1, dtype=np.int32) * (2 * ANGLES)
    return csr_matrix((value, index, start), shape=(side * side, ANGLES * bins)), bins


def _binned(x: np.ndarray, step: int) -> np.ndarray:
    """Means of step x step pixels of each slice, cropped to whole blocks and to a square."""
    side = min(x.shape[1:]) // step
    cut = x[:, : side * step, : side * step]
    return np.asarray(cut.reshape(len(x), side, step, side, step).mean(axis=(2, 4)))


def _widened(x: np.ndarray, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Back to the slices' pixels, linearly."""
    for axis, count in ((1, shape[0]), (2, shape[1])):
        at = np.clip((np.arange(count) + 0.5) / step - 0.5, 0, x.shape[axis] - 1)
        low = np.minimum(at.astype(int), max(x.shape[axis] - 2, 0))
        high = np.minimum(low + 1, x.shape[axis] - 1)
        weight = (at - low).astype(np.float32).reshape((-1, 1) if axis == 1 else (-1,))
        x = np.take(x, low, axis=axis) * (1 - weight) + np.take(x, high, axis=axis) * weight
    return x
