"""Small scans for the tests of the store."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ctfoundry import geometry
from ctfoundry.volume import Volume


def make_scan(
    seed: int = 0,
    shape: tuple[int, int, int] = (40, 90, 100),
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.8),
    code: str = "SPL",
    tilt: float = 0.0,
    dtype: type = np.int16,
) -> Volume:
    """An ellipsoid of tissue with smooth texture and a bone, in air."""
    rng = np.random.default_rng(seed)
    d, h, w = (np.linspace(-1, 1, n) for n in shape)
    r = (d[:, None, None] / 0.8) ** 2 + (h[:, None] / 0.7) ** 2 + ((w - 0.1) / 0.6) ** 2
    texture = rng.normal(0, 40, shape)
    hu = np.where(r < 1, 40 + texture, -1024)
    hu[r < 0.02] = 900
    hu[(r > 1) & (r < 1.15)] = -300
    rotation = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine = geometry.make_affine(spacing, code, origin=(-30.0, 12.5, 700.25), rotation=rotation)
    return Volume(np.ascontiguousarray(np.rint(hu).astype(dtype)), affine, "hu")


@pytest.fixture(scope="session")
def scan() -> Callable[..., Volume]:
    return make_scan
