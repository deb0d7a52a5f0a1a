"""The picture under work: Hounsfield units and labels of all voxels, and how shapes are put on it.

A shape is a signed distance in world millimetres, negative inside. Where its surface crosses a voxel the voxel gets both
materials by share (partial volume); the label changes where the share passes one half. A voxel has one label, so nothing
can overlap; what is painted later covers what was there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.space import Slices, Space

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

    Field = Float32[np.ndarray, "d h w"]


_CHUNK = 1 << 16
"""Voxels painted at a time."""


@dataclass(frozen=True)
class Canvas:
    """Voxels of one scan before the scanner has seen them."""

    space: Space
    hu: Float32[np.ndarray, "d h w"]
    labels: UInt8[np.ndarray, "d h w"]

    @classmethod
    def of(cls, space: Space) -> Canvas:
        """Nothing but air."""
        return cls(space, np.full(space.shape, -1000, np.float32), np.zeros(space.shape, np.uint8))

    def share(self, distance: Field) -> Field:
        """How much of each voxel lies inside the surface, 0 to 1."""
        inside = distance * np.float32(-1 / self.space.voxel_mm)
        inside += np.float32(0.5)
        return np.clip(inside, 0, 1, out=inside)

    def paint(
        self, box: Slices, distance: Field, hu: float | Field, name: str | None, *, over: Sequence[str] = ()
    ) -> None:
        """Put a shape on the picture; with `over`, only where one of these structures is now. Without a name the label stays."""
        allowed = np.zeros(256, dtype=bool)
        allowed[[IDS[n] for n in over]] = True
        labels, under = self.labels[box], self.hu[box]
        rows = max(_CHUNK // max(labels[0].size, 1), 1)
        for start in range(0, len(labels), rows):  # what fits the cache is painted several times as fast
            part = slice(start, start + rows)
            share = self.share(distance[part])
            if over:
                share *= allowed[labels[part]]
            change = (hu[part] if isinstance(hu, np.ndarray) else np.float32(hu)) - under[part]
            change *= share
            under[part] += change
            if name is not None:
                np.copyto(labels[part], np.uint8(IDS[name]), where=share >= 0.5)
