"""The picture under work: Hounsfield units and labels of all voxels, and how shapes are put on it.

A shape is a signed distance in world millimetres, negative inside. Where its surface crosses a voxel the voxel gets both
materials by share (partial volume); the label changes where the share passes one half. A voxel has one label, so nothing
can overlap; what is painted later covers what was there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
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
    lesions: UInt8[np.ndarray, "d h w"]  # i + 1 where lesion i of the patient is
    metal: Float32[np.ndarray, "d h w"]  # share of each voxel that is metal

    @classmethod
    def of(cls, space: Space) -> Canvas:
        """Nothing but air."""
        empty = np.zeros(space.shape, np.uint8), np.zeros(space.shape, np.uint8), np.zeros(space.shape, np.float32)
        return cls(space, np.full(space.shape, -1000, np.float32), *empty)

    @classmethod
    def joined(cls, parts: Sequence[Canvas]) -> Canvas:
        """Canvases that follow each other along z as one; its space is that of the first one's pose."""
        if len(parts) == 1:
            return parts[0]
        space = parts[0].space
        z = np.concatenate([p.space.axes[0] for p in parts])
        whole = Space.of(space.pose, (z, *space.axes[1:]))
        names = [f.name for f in fields(cls) if f.name != "space"]
        return cls(whole, *(np.concatenate([getattr(p, n) for p in parts]) for n in names))

    def share(self, distance: Field) -> Field:
        """How much of each voxel lies inside the surface, 0 to 1."""
        inside = distance * np.float32(-1 / self.space.voxel_mm)
        inside += np.float32(0.5)
        return np.clip(inside, 0, 1, out=inside)

    def paint(
        self,
        box: Slices,
        distance: Field,
        hu: float | Field,
        name: str | None,
        *,
        over: Sequence[str] = (),
        mark: int = 0,
    ) -> None:
        """Put a shape on the picture; with `over`, only where one of these structures is now. Without a name the label stays.

        `mark` is the number of a lesion that the shape belongs to.
        """
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
            if mark:
                np.copyto(self.lesions[box][part], np.uint8(mark), where=share >= 0.5)

    def index(self, box: Slices, inside: np.ndarray) -> np.ndarray:
        """Flat indices in the whole picture of voxels given by their flat index in a box."""
        d, h, w = np.unravel_index(inside, tuple(s.stop - s.start for s in box))
        return np.asarray(
            ((d + box[0].start) * self.hu.shape[1] + h + box[1].start) * self.hu.shape[2] + w + box[2].start
        )

    def put(self, voxels: np.ndarray, distance: np.ndarray, hu: float | np.ndarray, ids: np.ndarray | None) -> None:
        """`paint` on single voxels (flat indices), with a label for each."""
        share = self.share(distance.astype(np.float32))
        flat, labels = self.hu.reshape(-1), self.labels.reshape(-1)
        under = flat[voxels]
        flat[voxels] = under + share * (hu - under)
        if ids is not None:
            chosen = share >= 0.5
            labels[voxels[chosen]] = ids[chosen]

    def blend(self, box: Slices, share: Field, hu: float | Field, *, over: Sequence[str]) -> None:
        """Mix a material into some structures by a given share of each voxel; labels stay."""
        allowed = np.zeros(256, dtype=bool)
        allowed[[IDS[n] for n in over]] = True
        under = self.hu[box]
        under += share * allowed[self.labels[box]] * (hu - under)
