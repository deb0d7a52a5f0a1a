"""Segmentation as a task for the one loop: loss, class-balanced crops, and a network that learns from them.

Loss as in the reference (section 6): Dice with squared denominators over all classes, the background among them, averaged
over crops and classes, plus cross-entropy; with deep supervision the sum over resolutions weighted 1, 1/2, 1/4, 1/8.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ctfoundry.adapt.cases import IGNORE, PreparedCase
from ctfoundry.errors import ContractError
from ctfoundry.geometry import Box, Vec3
from ctfoundry.keys import Key

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, UInt8
    from torch import Tensor

SMOOTH = 1e-5
"""Added to Dice's denominator only, so that an empty class of an empty prediction counts as a miss (the reference's choice)."""
ANCHORS = 512
"""Voxels of each class that crops may be centred on; more would change no draw much."""


def dice_cross_entropy(logits: Float[Tensor, "b k d h w"], target: UInt8[Tensor, "b d h w"]) -> Float[Tensor, ""]:
    """Dice loss + cross-entropy (reference, section 6; MONAI's ``DiceCELoss(to_onehot_y, softmax, squared_pred, smooth_nr=0)``).

    With probabilities p = softmax(logits) and one-hot targets g, of each crop and class over its voxels:
    ``1 - 2 sum(p g) / (sum(p^2) + sum(g^2) + 1e-5)``, averaged; plus the mean of ``-log p[target]`` over voxels. Voxels whose target is
    IGNORE count in neither.
    """
    k = logits.shape[1]
    log_p = F.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), 1)
    wanted = target.long()
    known = wanted != IGNORE
    wanted = torch.where(known, wanted, 0)[:, None]  # (b, 1, d, h, w)
    own = log_p.gather(1, wanted)[:, 0]
    entropy = -(own * known).sum() / known.sum().clamp_min(1)
    p = log_p.exp() * known[:, None]
    # per class sums without a one-hot array: p at the target, and counts, scattered by class
    flat = wanted.flatten(2)[:, 0]
    mass = (own.exp() * known).flatten(1)
    both = torch.zeros(len(p), k, dtype=p.dtype, device=p.device).scatter_add(1, flat, mass)
    count = torch.zeros_like(both).scatter_add(1, flat, known.flatten(1).to(p.dtype))
    dice = 2 * both / (p.square().flatten(2).sum(2) + count + SMOOTH)
    return (1 - dice).mean() + entropy


def deep_supervision(
    outputs: Sequence[Float[Tensor, "b k di hi wi"]],
    target: UInt8[Tensor, "b d h w"],
    *,
    places: Literal["cells", "reference"] = "cells",
) -> Float[Tensor, ""]:
    """Loss of logits at strides 1, 2, 4 ..., weighted 1, 1/2, 1/4 ... and summed.

    places: the target of a coarse cell is that of the voxel it is centred on (``cells``: voxel s * k of stride s). ``reference``
    resizes the target with nearest-exact, as the published training did: voxel s * k + s // 2, half a cell off.
    """
    total = dice_cross_entropy(outputs[0], target)
    for i, logits in enumerate(outputs[1:], 1):
        if places == "reference":
            small = F.interpolate(target[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0].to(
                target.dtype
            )
        else:
            small = target[:, :: 2**i, :: 2**i, :: 2**i]
        total = total + 0.5**i * dice_cross_entropy(logits, small)
    return total


def anchors(labels: UInt8[np.ndarray, "d h w"], most: int = ANCHORS) -> dict[int, Int64[np.ndarray, "n 3"]]:
    """Voxels of each foreground class that is present, at most `most`, evenly taken in the array's order."""
    flat = labels.ravel()
    order = np.argsort(flat, kind="stable")
    ends = np.cumsum(np.bincount(flat, minlength=256))
    found = {}
    for label in range(1, IGNORE):
        own = order[ends[label - 1] : ends[label]]
        if len(own):
            taken = own[np.unique(np.linspace(0, len(own) - 1, min(most, len(own))).astype(np.int64))]
            found[label] = np.stack(np.unravel_index(taken, labels.shape), 1)
    return found


def draw_crop(key: Key, found: Mapping[int, np.ndarray], shape: Vec3, patch: Vec3, multiple: Vec3 = (1, 1, 1)) -> Vec3:
    """First voxel of a crop around a voxel of a class drawn uniformly among those present (any voxel where none is).

    It starts on multiples of `multiple` (so that an encoder's cells are whole) and lies within the scan where that is large enough.
    """
    if found:
        names = sorted(found)
        label = names[int(key("class").integers(0, len(names)))]
        centre = found[label][int(key("voxel").integers(0, len(found[label])))]
    else:
        centre = np.array([int(key("voxel", axis).integers(0, n)) for axis, n in enumerate(shape)])
    start = []
    for c, n, p, m in zip(centre.tolist(), shape, patch, multiple, strict=True):
        last = max(-(-(n - p) // m) * m, 0)  # the last start that still reaches the end
        start.append(min(max(round((c - p // 2) / m) * m, 0), last))
    return start[0], start[1], start[2]


def cut(case: PreparedCase, start: Vec3, patch: Vec3) -> tuple[Float[Tensor, "c d h w"], UInt8[Tensor, "d h w"]]:
    """The input and labels of a crop; beyond the scan the input is its lowest value and the labels are IGNORE."""
    box = tuple(slice(s, min(s + p, n)) for s, p, n in zip(start, patch, case.shape, strict=True))
    x = case.x((box[0], box[1], box[2]))
    labels = torch.from_numpy(np.ascontiguousarray(case.labels[box]))
    grow = [n for p, m in zip(reversed(patch), reversed(labels.shape), strict=True) for n in (0, p - m)]
    if any(grow):
        x, labels = F.pad(x, grow, value=case.low), F.pad(labels, grow, value=IGNORE)
    return x, labels


def freeze(module: nn.Module) -> nn.Module:
    """Freeze weights and running statistics for good: no gradients, and eval mode whatever its parents are put into.

    The loop puts everything into train mode, where batch norm would go on drifting (as the reference's does).
    """
    module.requires_grad_(False).eval()
    for part in module.modules():
        part.train = types.MethodType(lambda self, mode=True: self, part)  # type: ignore[method-assign]
    return module


@dataclass(frozen=True)
class CaseEntry:
    """A case as the loop lists it."""

    id: str
    collection: str = ""


@dataclass(frozen=True)
class CaseSource:
    """Prepared cases, or crops of their features, as a source of the loop. What is trained on is in them, so no box is ever read."""

    cases: Sequence[Any]

    @cached_property
    def entries(self) -> list[CaseEntry]:
        """One a case; `id` is its place, since scans of two data sets may share a name."""
        return [CaseEntry(str(i)) for i in range(len(self.cases))]

    def read(self, id: str, box: Box) -> np.ndarray:
        """Never asked for."""
        raise ContractError("what is prepared already is not read by boxes", where=id)


@dataclass(frozen=True)
class CropDraws:
    """Which crop of which case."""

    case: int
    start: Vec3
    boxes: tuple[Box, ...] = ()


class SegmentationTask:
    """Train a segmentation network on class-balanced crops of prepared cases.

    Parameters
    ----------
    network : logits, or a list of logits of falling resolution (deep supervision), of a batch (b, c, d, h, w).
    cases : to learn from. patch : voxels of a crop. multiple : crops start on multiples of it.
    """

    separable = False  # batch norm sees all crops of a step

    def __init__(
        self, network: nn.Module, cases: Sequence[PreparedCase], patch: Vec3, multiple: Vec3 = (1, 1, 1)
    ) -> None:
        self.modules = nn.ModuleDict({"network": network})
        self.cases, self.patch, self.multiple = cases, patch, multiple
        self._anchors: dict[int, dict[int, np.ndarray]] = {}

    def plan(self, key: Key, entry: Any) -> CropDraws:
        """One crop of a case."""
        index = int(entry.id)
        case = self.cases[index]
        if index not in self._anchors:
            self._anchors[index] = anchors(case.labels)
        return CropDraws(index, draw_crop(key, self._anchors[index], case.shape, self.patch, self.multiple))

    def batch(self, reads: Any, draws: Sequence[CropDraws], device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs (b, c, d, h, w) and classes (b, d, h, w)."""
        pairs = [cut(self.cases[d.case], d.start, self.patch) for d in draws]
        return torch.stack([x for x, _ in pairs]).to(device), torch.stack([y for _, y in pairs]).to(device)

    def losses(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        """``loss``, with deep supervision where the network gives it."""
        x, target = batch
        out = self.modules["network"](x)
        return {"loss": deep_supervision(out if isinstance(out, list) else [out], target)}

    def measures(self) -> dict[str, float]:
        """None."""
        return {}

    def after(self, step: int) -> None:
        """Nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing beside the network."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing."""
