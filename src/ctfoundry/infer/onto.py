"""From a network's grid to the scan's own, slice by slice: outputs are resampled, then each voxel is decided; labels never are.

Blending, linear interpolation and a network's last layer (a convolution of one voxel) are all linear, and the weights of the first two sum
to one, so they may change places. Where a network has fewer features before its last layer than classes after it (CT-FM: 32 and
118), features are blended and resampled, and logits exist only for some thousand voxels at a time. The result is that of
blending and resampling all logits, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ctfoundry import geometry
from ctfoundry.geometry import Box, Grid, Vec3
from ctfoundry.resampling import Taps, apply_taps, taps
from ctfoundry.volume import parallel_steps

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    Slabs = Iterator[tuple[int, Float[Tensor, "n c h w"]]]
    """Slices of the prepared grid in order, each slab with the index of its first."""
    Decide = Callable[[Float[Tensor, "c v"]], Tensor]
    """The outputs of some voxels to what is kept of them: (v,) or (k, v)."""

SLAB_BYTES = 2**24
"""Memory of one slab of outputs, before or after it is resampled."""
LOGIT_BYTES = 2**22
"""Memory of the logits that exist at once on a CPU: they should stay in its cache."""
DEVICE_LOGIT_BYTES = 2**28
"""The same on an accelerator, which wants large pieces."""


@dataclass(frozen=True)
class Onto:
    """Where a scan's voxels lie on a prepared grid, axis by axis of the latter.

    Attributes
    ----------
    taps : interpolation of the scan's voxels inside the prepared grid.
    box : which of the scan's voxels those are; the others were cut off.
    order : axis i of the scan is axis ``order[i]`` of the prepared grid.
    shape : of the scan.
    """

    taps: tuple[Taps, Taps, Taps]
    box: Box
    order: Vec3
    shape: Vec3

    def turned(self, array: np.ndarray) -> np.ndarray:
        """A view of an array (..., d, h, w) on the scan's grid whose last axes are those of the prepared grid."""
        lead = array.ndim - 3
        return array.transpose(*range(lead), *(lead + int(axis) for axis in np.argsort(self.order)))

    def slab(self, channels: int) -> int:
        """How many prepared slices of so many channels SLAB_BYTES hold."""
        plane = max(int(np.prod([t.length for t in self.taps[1:]])), int(np.prod([b - a for a, b in self.box[1:]])))
        return max(1, SLAB_BYTES // max(4 * channels * plane, 1))


def onto(affine: geometry.Affine, shape: Vec3, grid: Grid) -> Onto:
    """Where the voxels of `grid` lie on the prepared grid of `affine` and `shape`.

    Raises GeometryError when the grids' axes do not run along the same lines.
    """
    order, flip = geometry.axes_to(affine, grid.orientation)
    step, start = parallel_steps(geometry.reordered(affine, shape, order, flip), grid)
    found: dict[int, tuple[Taps, tuple[int, int]]] = {}
    for i, axis in enumerate(order):
        n = shape[axis]
        place = (n - 1 - start[i], -step[i]) if flip[i] else (start[i], step[i])
        whole = taps(n, grid.shape[i], *place)
        there = np.flatnonzero(whole.inside)
        low, high = (int(there[0]), int(there[-1]) + 1) if there.size else (0, 0)
        found[axis] = _part(whole, np.arange(low, high)), (low, high)
    return Onto((found[0][0], found[1][0], found[2][0]), (found[0][1], found[1][1], found[2][1]), order, grid.shape)


def _part(operator: Taps, rows: np.ndarray, first: int = 0, length: int | None = None) -> Taps:
    """The operator for some of its outputs, given only inputs `first` and the `length - 1` after it."""
    n = operator.length if length is None else length
    index = np.clip(operator.index[:, rows] - first, 0, n - 1)
    return Taps(index, operator.weight[:, rows], operator.inside[rows], n)


def onto_rows(slabs: Slabs, place: Onto) -> Iterator[tuple[int, Float[Tensor, "c h w"]]]:
    """Resampled slices along the prepared grid's first axis, each once: (index within `place.box`, slice of the box).

    Only the slices that later rows still need are held. They come in the order of `slabs`, which may run against the scan's.
    """
    along = place.taps[0]
    count = along.index.shape[1]
    if not all(high > low for low, high in place.box):
        return
    used = along.weight > 0
    last = np.where(used, along.index, -1).max(0)
    first = np.where(used, along.index, along.length).min(0)
    order = np.argsort(last, kind="stable")
    # where rows become more, the plane is resampled once for each slice, not once for each row
    plane_first = count >= along.length
    kept: Tensor | None = None
    begin = 0
    for start, given in slabs:
        part = _plane(given, place) if plane_first else given
        if kept is None:
            kept, begin = part, start
        else:
            kept = torch.cat([kept, part])
        ready, order = np.split(order, [int(np.searchsorted(last[order], begin + len(kept)))])
        most = place.slab(kept.shape[1])
        for at in range(0, len(ready), most):
            rows = ready[at : at + most]
            low, high = int(first[rows].min()) - begin, int(last[rows].max()) + 1 - begin
            done = apply_taps(kept[low:high], _part(along, rows, begin + low, high - low), 0)
            done = done if plane_first else _plane(done, place)
            for k, row in zip(rows, done, strict=True):
                yield int(k), row
        if not order.size:
            return
        keep = int(first[order].min()) - begin
        if keep >= len(kept):
            kept = None
        elif keep > 0:
            kept, begin = kept[keep:].clone(), begin + keep  # a view would hold the whole slab


def _plane(x: Float[Tensor, "n c h w"], place: Onto) -> Float[Tensor, "n c p q"]:
    """Both axes of the plane, the one that shrinks most first; of equals the last, whose taps are dearest."""
    gain = {axis: place.taps[axis].index.shape[1] / place.taps[axis].length for axis in (2, 1)}
    for axis in sorted(gain, key=lambda a: gain[a]):
        x = apply_taps(x, place.taps[axis], axis + 1)
    return x


@dataclass(frozen=True, eq=False)
class Head:
    """A last layer that is linear voxel by voxel: logits = weight @ features + bias. Without weight, features are the logits."""

    weight: Float[Tensor, "k c"] | None = None
    bias: Float[Tensor, "k"] | None = None

    def blocks(self, x: Float[Tensor, "c v"]) -> Iterator[tuple[slice, Float[Tensor, "b k"]]]:
        """The logits of some voxels at a time, a voxel's side by side."""
        classes = x.shape[0] if self.weight is None else self.weight.shape[0]
        most = max(1, (LOGIT_BYTES if x.device.type == "cpu" else DEVICE_LOGIT_BYTES) // (4 * classes))
        for start in range(0, x.shape[1], most):
            part = x[:, start : start + most].T
            if self.weight is None:
                logits = part.contiguous()
            elif self.bias is None:
                logits = part @ self.weight.T
            else:
                logits = torch.addmm(self.bias, part, self.weight.T)
            yield slice(start, start + len(part)), logits


@dataclass(frozen=True, eq=False)
class Decided:
    """What is left of the logits of a scan.

    Attributes
    ----------
    labels : the class of the largest logit for each voxel (of equal ones the first); 0 where it is not kept or was cut off. None where
        nobody asked.
    shares : the softmax of some classes, among all of them; 0 where the scan was cut off.
    """

    labels: Int[np.ndarray, "d h w"] | None
    shares: Float[np.ndarray, "k d h w"]


def decide(
    slabs: Slabs, place: Onto, head: Head, kept: Sequence[bool] | None = None, classes: Sequence[int] = ()
) -> Decided:
    """Labels (of the classes that are `kept`; None: no labels) and probabilities (of `classes`) in one pass over the network's outputs."""
    kind = np.uint8 if kept is None or len(kept) <= 256 else np.uint16
    table = np.where(np.asarray(kept), np.arange(len(kept)), 0).astype(kind) if kept is not None else None
    labels = np.zeros(place.shape, dtype=kind) if table is not None else None
    shares = np.zeros((len(classes), *place.shape), dtype=np.float32)
    inner = geometry.slices(place.box)
    labels_into = None if labels is None else place.turned(labels)[inner]
    shares_into = place.turned(shares)[(slice(None), *inner)]
    wanted = torch.tensor(list(classes), dtype=torch.int64)
    for k, row in onto_rows(slabs, place):
        flat = row.reshape(row.shape[0], -1)
        best = np.empty(flat.shape[1], dtype=np.int64)
        share = torch.empty(len(classes), flat.shape[1])
        for at, logits in head.blocks(flat):
            if table is not None:
                # NumPy's argmax over neighbours is several times faster than torch's on a CPU
                best[at] = logits.numpy().argmax(1) if logits.device.type == "cpu" else logits.argmax(1).cpu().numpy()
            if classes:
                own = (logits[:, wanted.to(logits.device)] - logits.logsumexp(1, keepdim=True)).exp()
                share[:, at] = own.T.cpu()
        if labels_into is not None and table is not None:
            labels_into[k] = table[best].reshape(row.shape[1:])
        if classes:
            shares_into[:, k] = share.numpy().reshape(len(classes), *row.shape[1:])
    return Decided(labels, shares)
