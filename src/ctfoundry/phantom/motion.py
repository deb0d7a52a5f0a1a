"""Patients who do not hold still: slabs in different breaths, and a jerk that doubles some slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.spec import Acquisition

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]

SLAB_MM = (50.0, 110.0)
"""Lengths from which those of the slabs are drawn."""
JERK_MM = (15.0, 45.0)
"""Length of body that is scanned while the patient moves."""


def slabs(scan: Acquisition, z: np.ndarray) -> Iterator[tuple[slice, Acquisition]]:
    """The thin slices at world heights `z` in pieces of one breath each, from below, with the scan as it was then."""
    if scan.breath_steps_mm == 0:
        yield slice(0, len(z)), scan
        return
    key, start, number = Key.of("phantom", scan.seed, "slabs"), 0, 0
    while start < len(z):
        long, off = float(key(number, "length").uniform(*SLAB_MM)), float(key(number).uniform(-1, 1))
        stop = max(int(np.searchsorted(z, z[start] + long)), start + 2)
        if stop > len(z) - 2:
            stop = len(z)
        breath = scan.breath_mm + off * scan.breath_steps_mm
        yield slice(start, stop), replace(scan, breath_mm=breath, breath_steps_mm=0.0)
        start, number = stop, number + 1


def jerk(hu: Field, z: np.ndarray, scan: Acquisition) -> None:
    """Blend some slices, in place, with themselves shifted aside by up to `motion_mm`: most in the middle of the moment."""
    if scan.motion_mm == 0 or len(z) < 2:
        return
    key = Key.of("phantom", scan.seed, "jerk")
    long, angle = float(key("length").uniform(*JERK_MM)), float(key("angle").uniform(0, 2 * np.pi))
    middle = float(key("place").uniform(z[0], z[-1]))
    for index in np.flatnonzero(np.abs(z - middle) < long / 2):
        part = np.cos(np.pi * (z[index] - middle) / long) ** 2
        shift = scan.motion_mm * part / scan.pixel_mm
        moved = _shifted(_shifted(hu[index], shift * np.cos(angle), 1), 0.6 * shift * np.sin(angle), 0)
        hu[index] += np.float32(0.5 * min(2 * part, 1.0)) * (moved - hu[index])


def _shifted(x: np.ndarray, by: float, axis: int) -> np.ndarray:
    """A picture moved by a fraction of pixels along an axis, linearly; its edge repeats."""
    whole = int(np.floor(by))
    share = np.float32(by - whole)
    count = x.shape[axis]
    near, far = (np.take(x, np.clip(np.arange(count) - whole - k, 0, count - 1), axis=axis) for k in (0, 1))
    return np.asarray(near + share * (far - near))
