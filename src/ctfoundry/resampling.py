"""Resampling an array along its axes: one small linear operator per axis.

All regular resampling in the package (spacing changes, views for pretraining, maps back to the scan's grid) is separable:
output sample k of an axis lies at input position ``start + step * k``. `taps` writes that as a few weighted inputs per
output; `apply_taps` runs it over whole volumes, and `as_matrix` gives the dense matrix that views multiply with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Float64, Int64
    from torch import Tensor

    Three = tuple[float, float, float]

Rule = Literal["monai", "sitk", "antialias"]
TRUNCATED = 4.0
"""Smoothing kernels end at this many sigmas, as MONAI's do."""
MANY_TAPS = 8
"""With more inputs per output one dense matrix product is faster than a pass over the array for each input."""


@dataclass(frozen=True)
class Taps:
    """Output k = sum over t of ``weight[t, k] * input[index[t, k]]``; `inside[k]` says whether it lies within the input."""

    index: Int64[np.ndarray, "taps out"]
    weight: Float32[np.ndarray, "taps out"]
    inside: np.ndarray
    length: int

    def as_matrix(self) -> Float32[np.ndarray, "out in"]:
        """The same operator as a dense matrix."""
        matrix = np.zeros((self.index.shape[1], self.length), dtype=np.float32)
        for index, weight in zip(self.index, self.weight, strict=True):
            np.add.at(matrix, (np.arange(len(index)), index), weight)
        return matrix


def target_axis(length: int, old: float, new: float, rule: Rule) -> tuple[int, float, float]:
    """(samples, start, step) of an axis resampled from `old` to `new` millimetres, positions in input voxels.

    - ``monai``: first centres coincide, round((n-1)*old/new + 1) samples (MONAI's Spacing, align_corners off).
    - ``sitk``: first centres coincide, round(n*old/new) samples (the usual SimpleITK recipe, as FlexiCT's loaders use).
    - ``antialias``: the field of view is kept, round(n*old/new) samples of exactly `new` mm, centred on it.
    """
    step = new / old
    if rule == "monai":
        return int(np.round((length - 1) * old / new + 1)), 0.0, step
    count = max(int(np.round(length * old / new)), 1)
    if rule == "sitk":
        return count, 0.0, step
    return count, (length - count * step) / 2 + (step - 1) / 2, step


def taps(length: int, count: int, start: float, step: float, *, antialias: bool = False) -> Taps:
    """Linear interpolation of `count` samples at ``start + step * k`` from `length` inputs.

    Beyond the ends the last input is repeated. With `antialias` and ``abs(step) > 1`` the triangle is widened by the step and
    normalised, so that every input counts (as in PIL and in torch's antialiased interpolate).
    """
    position = start + step * np.arange(count, dtype=np.float64)
    inside = (position >= -0.5 - 1e-6) & (position <= length - 0.5 + 1e-6)
    width = max(abs(step), 1.0) if antialias else 1.0
    first = np.floor(position - width).astype(np.int64) + 1
    reach = np.arange(int(np.ceil(2 * width)) + (width > 1.0))
    index = first[None, :] + reach[:, None]
    weight = np.clip(1 - np.abs(index - position) / width, 0, None)
    if antialias and width > 1.0:
        weight = weight * ((index >= 0) & (index < length))
        lost = weight.sum(axis=0) <= 0
        weight[0, lost] = 1
    weight = weight / weight.sum(axis=0)
    return Taps(np.clip(index, 0, length - 1), weight.astype(np.float32), inside, length)


def is_identity(operator: Taps) -> bool:
    """Whether the operator copies its input unchanged."""
    count = operator.index.shape[1]
    if count != operator.length:
        return False
    return bool(
        np.allclose(operator.as_matrix() if count <= 64 else _diagonal(operator), np.eye(count) if count <= 64 else 1)
    )


def _diagonal(operator: Taps) -> np.ndarray:
    own = operator.index == np.arange(operator.length)
    return np.asarray((operator.weight * own).sum(axis=0))


def apply_taps(x: Float[Tensor, "..."], operator: Taps, axis: int) -> Float[Tensor, "..."]:
    """Apply one axis' operator; the result is floating, on the device of `x`."""
    x = x if x.is_floating_point() else x.float()
    if is_identity(operator):
        return x
    if len(operator.index) > MANY_TAPS:
        matrix = torch.from_numpy(operator.as_matrix()).to(x.device, x.dtype)
        return torch.tensordot(x, matrix, dims=([axis], [1])).movedim(-1, axis).contiguous()
    shape = [1] * x.ndim
    shape[axis] = -1
    out: Tensor | None = None
    for index, weight in zip(operator.index, operator.weight, strict=True):
        if not weight.any():
            continue
        part = _picked(x, index, axis)
        scale = torch.from_numpy(weight).to(x.device, x.dtype).reshape(shape)
        out = part.mul_(scale) if out is None else out.addcmul_(part, scale)
    assert out is not None
    return out


def _picked(x: Float[Tensor, "..."], index: Int64[np.ndarray, "out"], axis: int) -> Float[Tensor, "..."]:
    # torch's index_select takes 13 times as long as NumPy along the last axis of a CPU tensor
    if axis % x.ndim == x.ndim - 1 and x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad:
        return torch.from_numpy(np.take(x.numpy(), index, axis=-1))
    return x.index_select(axis, torch.from_numpy(index).to(x.device))


def resample(x: Float[Tensor, "... d h w"], operators: tuple[Taps, Taps, Taps]) -> Float[Tensor, "... d h w"]:
    """Apply the operators of the last three axes, the one that shrinks most first."""
    gain = [op.index.shape[1] / op.length for op in operators]
    for axis in sorted(range(3), key=lambda a: gain[a]):
        x = apply_taps(x, operators[axis], axis - 3)
    return x


def resample_labels(x: np.ndarray, operators: tuple[Taps, Taps, Taps], *, background: int = 0) -> np.ndarray:
    """Resample a label map class by class: each class' indicator is interpolated, the largest share wins.

    Only the box of each class is touched, so memory stays at two float32 arrays of the output plus one class. A tie
    goes to the smaller label.
    """
    shape = tuple(op.index.shape[1] for op in operators)
    best = np.zeros(shape, dtype=np.float32)
    winner = np.full(shape, background, dtype=x.dtype)
    labels = [int(v) for v in np.unique(x)]
    everything = (slice(None),) * 3
    boxes = {
        label: (everything, everything) if label == background else _reach(x == label, operators) for label in labels
    }
    for label in labels:
        source, target = boxes[label]
        if any(t.start == t.stop and t.stop is not None for t in target):
            continue  # too small to reach any output voxel
        part = [_restrict(op, s, t) for op, s, t in zip(operators, source, target, strict=True)]
        share = resample(torch.from_numpy((x[source] == label).astype(np.float32)), (part[0], part[1], part[2])).numpy()
        won = share > best[target]
        best[target][won] = share[won]
        winner[target][won] = label
    return winner


def _reach(mask: np.ndarray, operators: tuple[Taps, Taps, Taps]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The input box of a mask, grown to all inputs that its outputs use, and the output box that it can touch."""
    source, target = [], []
    for axis, op in enumerate(operators):
        hit = mask.any(axis=tuple(a for a in range(3) if a != axis))
        used_here = np.asarray(hit)[op.index] & (op.weight > 0)
        touched = np.flatnonzero(used_here.any(axis=0))
        if touched.size == 0:
            low, high = 0, 0
        else:
            low, high = int(touched[0]), int(touched[-1]) + 1
        used = op.index[:, low:high]
        target.append(slice(low, high))
        source.append(slice(int(used.min()), int(used.max()) + 1) if used.size else slice(0, 0))
    return tuple(source), tuple(target)


def _restrict(op: Taps, source: slice, target: slice) -> Taps:
    start, stop, _ = source.indices(op.length)
    return Taps(op.index[:, target] - start, op.weight[:, target], op.inside[target], stop - start)


def smoothing_operators(
    sigmas: Sequence[Three], size: Sequence[int], *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian smoothing of n arrays: one stack (n, size, size) an axis, float64.

    MONAI's "erf" kernel: the Gaussian's integral over each voxel, cut at 4 sigma, not normalised again; zeros beyond the array.
    """
    stacks = []
    for axis, n in enumerate(size):
        sigma = torch.tensor([v[axis] for v in sigmas], dtype=torch.float64, device=device).reshape(-1, 1)  # n 1
        voxel = torch.arange(n, device=device)
        t = math.sqrt(0.5) / sigma
        kernel = 0.5 * (torch.erf(t * (voxel + 0.5)) - torch.erf(t * (voxel - 0.5)))  # n distance
        kernel = kernel * (voxel <= (sigma * TRUNCATED).clamp_min(0.5).add(0.5).floor())
        stacks.append(kernel[:, (voxel[:, None] - voxel).abs()])  # n out in
    return stacks[0], stacks[1], stacks[2]


def affine_matrices(rotations: Sequence[Three], scales: Sequence[Three]) -> Float64[Tensor, "n 3 3"]:
    """Which offset from the centre, in voxels along d, h, w, each array reads for an offset of its own.

    ``R_d R_h R_w S``, as MONAI's RandAffine composes it: rotations in radians about the axes, then the scales. Axes count in
    voxels, so on a grid of 3x1x1 mm only the rotation about d is one of the patient; the others shear.
    """
    turned = []
    for axis, (a, b) in enumerate(((1, 2), (2, 0), (0, 1))):
        angle = torch.tensor([r[axis] for r in rotations], dtype=torch.float64)
        one = torch.eye(3, dtype=torch.float64).repeat(len(rotations), 1, 1)
        one[:, a, a] = one[:, b, b] = angle.cos()
        one[:, b, a] = angle.sin()
        one[:, a, b] = -angle.sin()
        turned.append(one)
    scale = torch.tensor([list(s) for s in scales], dtype=torch.float64).reshape(-1, 1, 3)
    return turned[0] @ turned[1] @ turned[2] * scale
