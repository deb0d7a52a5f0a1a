"""Making a phantom: seconds of processor time for a 1.5 mm torso, against one Gaussian filter of the same volume.

There is no other maker of labelled torsos to compare with, so the other side is what anybody can run: SciPy's
`gaussian_filter` (deviation 2 voxels, float32) once over as many voxels. A phantom is some hundreds of shapes, textures, a
slice profile, two filters and coloured noise; the ratio says how many such filters it costs, on whatever machine.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any, TypeVar

import numpy as np
import scipy.ndimage

from ctfoundry import phantom
from ctfoundry.keys import Key

T = TypeVar("T")

VOXEL_MM = 1.5
FIELD_MM = 435.0


def torso(number: int, voxel_mm: float = VOXEL_MM) -> phantom.Spec:
    """A random patient from the ischial tuberosities to the root of the neck, about 464 x 290 x 290 voxels."""
    spec = phantom.draw(Key.of("bench", "phantom", number), view="torso", voxel_mm=voxel_mm)
    matrix = round(FIELD_MM / voxel_mm)
    whole = replace(
        spec.acquisition, z_range=(-195.0, 500.0), matrix=matrix, field_mm=matrix * voxel_mm, breath_steps_mm=0.0
    )
    return phantom.Spec(spec.subject, whole)


def run(*, repeats: int = 5, voxel_mm: float = VOXEL_MM) -> list[dict[str, Any]]:
    """One row: medians over `repeats` patients, in turns with the filter; processor seconds of this process, so set one thread.

    The first phantom of a process makes the texture tiles; it is not counted. `ratio` is filter over phantom: below 1, because a
    phantom costs more. `max_error` is None: the two sides make different things.
    """
    shape = phantom.make(torso(repeats, voxel_mm)).ct.shape
    noise = Key.of("bench", "phantom").normal(int(np.prod(shape[1:]))).astype(np.float32).reshape(1, *shape[1:])
    volume = np.repeat(noise, shape[0], axis=0)
    scipy.ndimage.gaussian_filter(volume[:8], 2.0)
    seconds: tuple[list[float], list[float]] = ([], [])
    voxels = []
    for number in range(repeats):
        took, made = _processor_time(functools.partial(phantom.make, torso(number, voxel_mm)))
        voxels.append(made.ct.voxels.size)
        seconds[0].append(took)
        seconds[1].append(_processor_time(functools.partial(scipy.ndimage.gaussian_filter, volume, 2.0))[0])
    ours_s, other_s = (median(s) for s in seconds)
    other_s *= median(voxels) / volume.size  # patients differ in height
    return [
        {
            "name": f"phantom, {voxel_mm:g} mm torso of {median(voxels) / 1e6:.0f} million voxels: one Gaussian filter (SciPy)",
            "ours_s": ours_s,
            "other_s": other_s,
            "ratio": other_s / ours_s,
            "max_error": None,
            "threads": 1,
            "dtype": "float32",
        }
    ]


def _processor_time(work: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result
