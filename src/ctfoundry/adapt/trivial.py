"""What needs no encoder: single voxels' intensity, and position in the body. Printed beside every probe (DESIGN, decision 13)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry import geometry
from ctfoundry.adapt.cases import IGNORE
from ctfoundry.adapt.prepared import PreparedCase
from ctfoundry.adapt.scores import Scores, class_counts
from ctfoundry.phantom.difficulty import HU_EDGES, hu_counts
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import UInt8

NODES = 48
"""Edge of the atlas that `position_scores` votes on, in cells over the body box."""


@dataclass(frozen=True)
class _Voxels:
    """Voxels that are asked about, as `hu_counts` takes them."""

    ct: Volume
    labels: Volume


def intensity_scores(train: Sequence[PreparedCase], validation: Sequence[PreparedCase], *, seed: int = 0) -> Scores:
    """The best classifier of one voxel's prepared intensity (first channel): for HU in 0..1, of its HU.

    Each class takes the bins, of 512 over the training scans' range, that give the highest Dice on them
    (`phantom.difficulty.hu_classifier_dice`); classes do not compete for a voxel, which only helps it.
    """
    low = min(case.low for case in train)
    high = max(case.low + 65535 * case.step for case in train)
    edges = float(HU_EDGES[0]), float(HU_EDGES[-1])

    def voxels(case: PreparedCase) -> _Voxels:
        asked = case.labels != IGNORE
        x = case.x()[0].numpy()[asked]
        scaled = edges[0] + (x - low) / max(high - low, 1e-9) * (edges[1] - edges[0] - 1)
        grid = np.eye(4)
        return _Voxels(
            Volume(np.round(scaled).astype(np.int16)[:, None, None], grid),
            Volume(case.labels[asked][:, None, None], grid, "label"),
        )

    names = train[0].classes
    found = hu_counts(
        [voxels(c) for c in train], [voxels(c) for c in validation], {n: (i,) for i, n in enumerate(names, 1)}
    )
    counts = np.zeros((len(validation), len(names), 3), dtype=np.int64)
    for s, case in enumerate(validation):
        own = np.bincount(case.labels.ravel(), minlength=256)
        for i, name in enumerate(names):
            counts[s, i] = found[name][s] if name in found else (0, 0, own[i + 1])
    return Scores("one voxel's intensity", names, tuple(c.patient for c in validation), counts, seed)


def position_scores(train: Sequence[PreparedCase], validation: Sequence[PreparedCase], *, seed: int = 0) -> Scores:
    """The most frequent class at the same proportional position in the body box of the training scans.

    The box runs along the world's axes around the body (`body.body_box`); position is voted on a grid of NODES cells an axis.
    """
    votes = np.zeros((len(train[0].classes) + 1, NODES**3), dtype=np.uint16)
    middle = (np.arange(NODES) + 0.5) / NODES
    share = np.stack(np.meshgrid(middle, middle, middle, indexing="ij"), -1).reshape(-1, 3)
    for case in train:
        index = geometry.to_index(case.affine, case.body[0] + share * (case.body[1] - case.body[0]))
        whole = np.round(index).astype(np.int64)
        inside = np.asarray(((whole >= 0) & (whole < np.array(case.shape))).all(1))
        label = np.where(inside, case.labels[tuple(np.where(inside[:, None], whole, 0).T)], 0)
        asked = np.flatnonzero(label != IGNORE)
        votes[label[asked], asked] += 1
    atlas = votes.argmax(0).astype(np.uint8).reshape(NODES, NODES, NODES)
    names = train[0].classes
    counts = [
        sum(class_counts(atlas[place], case.labels[row : row + 1], len(names)) for row, place in _places(case))
        for case in validation
    ]
    return Scores("position in the body", names, tuple(c.patient for c in validation), np.stack(counts), seed)


def _places(case: PreparedCase) -> Iterator[tuple[int, tuple[UInt8[np.ndarray, "1 h w"], ...]]]:
    """For each slice its index and the atlas' cells of its voxels."""
    size = np.maximum(case.body[1] - case.body[0], 1e-3)
    rest = np.stack(np.meshgrid(np.arange(case.shape[1]), np.arange(case.shape[2]), indexing="ij"), -1)
    for row in range(case.shape[0]):
        index = np.concatenate([np.full((*rest.shape[:2], 1), row), rest], -1)
        share = (geometry.to_world(case.affine, index) - case.body[0]) / size
        cell = np.clip(np.floor(share * NODES), 0, NODES - 1).astype(np.int64)[None]
        yield row, (cell[..., 0], cell[..., 1], cell[..., 2])
