"""What the scanner makes of the body: table, slice profile, resolution, noise, the edge of the field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.spec import Acquisition, Kernel
from ctfoundry.phantom.texture import bell
from ctfoundry.volume import AIR

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

    Field = Float32[np.ndarray, "d h w"]

FINE_MM = 2.6
"""Slices further apart than this are built from thinner ones (an odd number, so that one lies in the middle)."""

RESOLUTION_MM: dict[Kernel, float] = {"soft": 0.75, "standard": 0.5, "sharp": 0.35}
"""Standard deviation of the in-plane point spread (a Gaussian), millimetres."""
OVERSHOOT: dict[Kernel, float] = {"soft": 0.0, "standard": 0.0, "sharp": 0.35}
"""How much of the difference to a blurred copy a kernel adds at edges."""
GRAIN_MM: dict[Kernel, tuple[float, float]] = {"soft": (1.5, 0.0), "standard": (0.9, 0.0), "sharp": (0.45, 0.75)}
"""Noise colour: deviation of the Gaussian that smooths white noise (mm), and the share of a twice and a half wider copy taken off,
which empties the low frequencies as a ramp-like kernel does."""


def sub_slices(scan: Acquisition) -> int:
    """How many thin slices are built for each slice distance; odd."""
    return 2 * int(np.ceil((scan.spacing_mm / FINE_MM - 1) / 2)) + 1 if scan.spacing_mm > FINE_MM else 1


def margin_slices(scan: Acquisition) -> int:
    """Thin slices needed beyond the outermost slices' middle by the slice profile."""
    return int(np.ceil((scan.thickness_mm / (scan.spacing_mm / sub_slices(scan)) - 1) / 2 - 1e-9))


def average_slices(fine: Field, scan: Acquisition, count: int) -> Field:
    """Slices of `thickness_mm` from thin ones: a box profile, its ends weighted by the part of a thin slice they cover."""
    step, margin = sub_slices(scan), margin_slices(scan)
    if margin == 0:
        return fine[::step][:count]
    width = scan.thickness_mm / (scan.spacing_mm / step)
    out = np.zeros((count, *fine.shape[1:]), dtype=np.float32)
    for offset in range(-margin, margin + 1):
        weight = (
            min(0.5 * width, abs(offset) + 0.5) - min(0.5 * width, abs(offset) - 0.5) if offset else min(width, 1.0)
        )
        start = margin + offset
        out += np.float32(weight / width) * fine[start : start + (count - 1) * step + 1 : step]
    return out


def taps(sigma: float) -> np.ndarray:
    """A normalised Gaussian's weights; each weight is the Gaussian's share in one sample (exact for narrow ones)."""
    from scipy.special import erf

    reach = max(int(np.ceil(2.5 * sigma)), 1)
    edges = (np.arange(-reach, reach + 2) - 0.5) / max(sigma, 1e-3) / np.sqrt(2)
    weight = np.diff(erf(edges))
    return np.asarray(weight / weight.sum())


def smooth(x: Field, weights: np.ndarray, axis: int) -> Field:
    """Symmetric filter along one axis; beyond the ends the last sample is repeated."""
    reach = min(len(weights) // 2, x.shape[axis] - 1)
    centre = len(weights) // 2
    out = x * np.float32(weights[centre])
    scratch = np.empty_like(x)
    lead = (slice(None),) * axis
    first, last = x[(*lead, slice(0, 1))], x[(*lead, slice(-1, None))]
    for k in range(1, reach + 1):
        part = np.multiply(x, np.float32(weights[centre + k]), out=scratch)
        out[(*lead, slice(k, None))] += part[(*lead, slice(None, -k))]
        out[(*lead, slice(None, -k))] += part[(*lead, slice(k, None))]
        out[(*lead, slice(None, k))] += np.float32(weights[centre + k]) * first
        out[(*lead, slice(-k, None))] += np.float32(weights[centre + k]) * last
    return out


def in_plane(x: Field, weights: np.ndarray) -> Field:
    """The same filter along rows and columns."""
    return smooth(smooth(x, weights, 2), weights, 1)


def add_table(
    hu: Field, labels: UInt8[np.ndarray, "d h w"], y: np.ndarray, x: np.ndarray, middle: float, key: Key
) -> None:
    """A curved carbon shell filled with foam under the lowest point of the patient; only where there is air."""
    body = (labels > 0).any(axis=(0, 2))
    lowest = float(y[np.flatnonzero(body)[-1]]) if body.any() else float(y.mean())
    bend = float(key("bend").uniform(500, 1200))
    gap = float(key("mattress").uniform(2, 14))
    half = float(key("half").uniform(195, 230))
    step = abs(float(y[1] - y[0]))
    dx = (x - middle).astype(np.float32)
    surface = lowest - gap + (dx**2) / (2 * bend)
    depth = surface[None, :] - y.astype(np.float32)[:, None]
    thick = 28 * np.sqrt(np.clip(1 - (dx / half) ** 2, 0, 1)) + 3
    top, bottom = np.clip(0.5 + depth / step, 0, 1), np.clip(0.5 + (depth - thick) / step, 0, 1)
    shell = 3.0
    inner = np.clip(0.5 + (depth - shell) / step, 0, 1) - np.clip(0.5 + (depth - thick + shell) / step, 0, 1)
    share = (top - bottom) * (np.abs(dx) < half)
    inner = np.clip(inner, 0, 1) * (np.abs(dx) < half)
    slab = -1000 + share * (float(key("shell").uniform(750, 1000))) - inner * float(key("foam").uniform(700, 740))
    rows = np.flatnonzero((share > 0).any(axis=1))
    if rows.size == 0:
        return
    part = slice(int(rows[0]), int(rows[-1]) + 1)
    free = labels[:, part] == 0
    np.copyto(hu[:, part], np.maximum(hu[:, part], slab[part].astype(np.float32)), where=free)
    np.copyto(labels[:, part], np.uint8(IDS["table"]), where=free & (share[part] >= 0.5))


def white_noise(key: Key, shape: tuple[int, int, int], scan: Acquisition) -> Field:
    """White noise of deviation 1, correlated along z only as far as slices overlap."""
    out = bell(key, shape)
    overlap = min(scan.thickness_mm / scan.spacing_mm - 1, 1.0)
    if overlap > 0:
        weights = np.array([overlap / 2, 1.0, overlap / 2])
        out = smooth(out, weights / np.sqrt((weights**2).sum()), 0)
    return out


def colour(white: Field, scan: Acquisition) -> Field:
    """White noise coloured in the plane by the kernel; its deviation stays 1."""
    sigma, emptied = GRAIN_MM[scan.kernel]
    narrow, wide = taps(sigma / scan.pixel_mm), taps(2.5 * sigma / scan.pixel_mm)
    out = in_plane(white, narrow)
    kernel = np.outer(narrow, narrow)
    if emptied:
        out -= np.float32(emptied) * in_plane(out, wide)
        both = np.outer(np.convolve(narrow, wide), np.convolve(narrow, wide))
        kernel = np.pad(kernel, len(wide) // 2) - emptied * both
    out *= np.float32(1 / np.sqrt((kernel**2).sum()))
    return out


def attenuation(labels: UInt8[np.ndarray, "d h w"], scan: Acquisition) -> tuple[np.ndarray, np.ndarray]:
    """For each slice: the factor on its noise, and the share of it that streaks sideways.

    Photons fall by e for every 50 mm of water; the noise grows with the square root of the loss (Brooks and Di Chiro
    1976), tamed here by 0.55 because scanners raise the tube current with it. Streaks come where the body is much wider
    than deep (shoulders, hips).
    """
    body = (labels > 0) & (labels != IDS["table"])
    area = body.sum(axis=(1, 2)) * scan.pixel_mm**2
    width = body.any(axis=1).sum(axis=1) * scan.pixel_mm
    round_mm = np.sqrt(np.maximum(area, 1.0))
    factor = np.exp(0.55 * (round_mm - 270) / 100)
    streak = np.clip((width / np.maximum(area / np.maximum(width, 1), 60) - 1.75) * 0.6, 0, 0.6)
    return factor.clip(0.35, 4).astype(np.float32), streak.astype(np.float32)


def scan_body(hu: Field, labels: UInt8[np.ndarray, "d h w"], scan: Acquisition) -> Field:
    """Blur, edges, noise and the reconstructed circle, on averaged slices; the result is float32."""
    factor, streak = attenuation(labels, scan)
    white = white_noise(Key.of("phantom", scan.seed, "noise"), labels.shape, scan)
    h, w = labels.shape[1:]
    v = ((np.arange(h) - (h - 1) / 2) / (scan.matrix / 2))[:, None] ** 2
    radius = v + ((np.arange(w) - (w - 1) / 2) / (scan.matrix / 2)) ** 2
    # Far from the middle fewer tissues attenuate: the noise falls to two thirds at the edge.
    deviation = (scan.noise_hu * (1.1 - 0.45 * np.clip(radius, 0, 1))).astype(np.float32)
    out = np.empty(hu.shape, dtype=np.float32)
    for start in range(0, len(out), 8):  # a few slices at a time stay in the cache
        part = slice(start, start + 8)
        out[part] = _blur(hu[part], scan)
        if scan.noise_hu > 0:
            grain = _streaked(colour(white[part], scan), streak[part], scan)
            grain *= factor[part, None, None] * deviation
            out[part] += grain
    if scan.rim_hu > 0:
        add_rim(out, labels, scan)
    out[:, radius > 1] = AIR
    return out


RIM_MM = 9.0
"""Over this distance inwards the rim of a truncated patient falls by e."""


def add_rim(hu: Field, labels: UInt8[np.ndarray, "d h w"], scan: Acquisition) -> None:
    """The bright rim of filtered backprojection where the patient reaches beyond the field, in place.

    A projection cut off is a jump that the ramp filter answers with an overshoot; it falls inwards about exponentially
    (Ohnesorge et al. 2000). Only directions in which there is patient at the edge are brightened.
    """
    h, w = labels.shape[1:]
    half = scan.matrix / 2
    y, x = np.meshgrid(np.arange(h) - (h - 1) / 2, np.arange(w) - (w - 1) / 2, indexing="ij")
    inward = (1 - np.hypot(y, x) / half) * scan.field_mm / 2
    band = (inward >= 0) & (inward < 5 * RIM_MM)
    count = 180
    angle = (np.arctan2(y[band], x[band]) / (2 * np.pi) * count).astype(int) % count
    bright = (scan.rim_hu * np.exp(-inward[band] / RIM_MM)).astype(np.float32)
    turn = np.arange(count) * 2 * np.pi / count
    rows, columns = (np.rint(0.97 * half * f(turn) + (n - 1) / 2).astype(int) for f, n in ((np.sin, h), (np.cos, w)))
    at_edge = labels[:, rows.clip(0, h - 1), columns.clip(0, w - 1)]
    there = ((at_edge > 0) & (at_edge != IDS["table"])).astype(np.float32)
    there = sum(np.roll(there, k, axis=1) * np.float32(1 / 9) for k in range(-4, 5))  # soft ends
    for index in np.flatnonzero(there.any(axis=1)):
        hu[index][band] += bright * there[index][angle]


def _blur(hu: Field, scan: Acquisition) -> Field:
    out = in_plane(hu, taps(RESOLUTION_MM[scan.kernel] / scan.pixel_mm))
    if OVERSHOOT[scan.kernel]:
        out += np.float32(OVERSHOOT[scan.kernel]) * (out - in_plane(out, taps(1.4 / scan.pixel_mm)))
    return out


def _streaked(grain: Field, streak: np.ndarray, scan: Acquisition) -> Field:
    """Noise of which a share, slice by slice, is drawn out sideways; the deviation stays."""
    for index in np.flatnonzero(streak > 0.05):
        one = grain[index : index + 1]
        long = smooth(one, taps(9 / scan.pixel_mm), 2)
        long *= streak[index] / max(float(long.std()), 1e-6)
        grain[index] = one[0] * np.sqrt(1 - streak[index] ** 2) + long[0]
    return grain
