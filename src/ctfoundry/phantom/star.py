"""Lumpy star-shaped bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key

if TYPE_CHECKING:
    from jaxtyping import Float64


def sphere(count: int) -> Float64[np.ndarray, "n 3"]:
    """Points spread evenly over the unit sphere (a Fibonacci spiral)."""
    i = np.arange(count) + 0.5
    z, turn = 1 - 2 * i / count, np.pi * (1 + 5**0.5) * i
    return np.stack([np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z], axis=1)


class Star:
    """A lumpy star-shaped body of longest diameter 1.

    `lobes` : height of its lumps as a share of the radius; `flat` : deviation of the logarithms of its three axes.
    """

    def __init__(self, key: Key, lobes: float, flat: float, count: int = 14, sharp: float = 5.0) -> None:
        axes = np.linalg.qr(key("axes").normal((3, 3)))[0]
        stretch = np.exp(flat * key("flat").normal(3).clip(-1.5, 1.5))
        self._form = axes * (1 / stretch) @ axes.T
        where = key("lobes").normal((count, 3))
        self._where = (where / np.linalg.norm(where, axis=1, keepdims=True)).astype(np.float32)
        self._high, self._sharp = lobes * key("high").uniform(-0.6, 1.0, count), sharp
        self._scale = 1.0
        directions = sphere(500)
        surface = directions * self.radius(directions.T)[:, None]
        squares = (surface**2).sum(1)
        # the longest distance between two surface points
        self._scale = 1 / float(np.sqrt((squares[:, None] + squares - 2 * surface @ surface.T).max()))

    def radius(self, direction: np.ndarray) -> np.ndarray:
        """Distance of the surface from the centre along unit vectors (3, ...)."""
        base = 1 / np.sqrt((np.tensordot(self._form, direction, axes=1) ** 2).sum(0))
        lumps = np.zeros(direction.shape[1:], dtype=np.float32)
        for (x, y, z), high in zip(self._where, self._high, strict=True):
            cosine = direction[0] * x + direction[1] * y + direction[2] * z
            lumps += np.float32(high) * np.exp(np.float32(self._sharp) * (cosine - 1)).astype(np.float32)
        return np.asarray(self._scale * base * (1 + lumps))
