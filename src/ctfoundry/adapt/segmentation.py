"""Segmentation as a task for the one loop: class-balanced crops, and a network that learns from them.

The loss is that of `adapt.losses`, with deep supervision summed over resolutions weighted 1, 1/2, 1/4, 1/8. Crops are cut where they
are planned, in the loop's reading threads; augmentations run on the device (`adapt.augment`).
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ctfoundry.adapt import augment
from ctfoundry.adapt.augment import Changes
from ctfoundry.adapt.cases import IGNORE
from ctfoundry.adapt.losses import deep_supervision, dice_cross_entropy, supervised
from ctfoundry.adapt.prepared import PreparedCase
from ctfoundry.adapt.recipe import Augmentation
from ctfoundry.errors import ContractError
from ctfoundry.geometry import Box, Vec3, spacing
from ctfoundry.keys import Key

if TYPE_CHECKING:
    from jaxtyping import Float, Int32, UInt8
    from torch import Tensor

__all__ = [
    "CaseEntry",
    "CaseSource",
    "CropDraws",
    "SegmentationTask",
    "anchors",
    "cut",
    "deep_supervision",
    "dice_cross_entropy",
    "draw_crop",
    "freeze",
    "layer_rates",
    "stages",
]

ANCHORS = 512
"""Voxels of each class that crops may be centred on; more would change no draw much."""


def anchors(labels: UInt8[np.ndarray, "d h w"], most: int = ANCHORS) -> dict[int, Int32[np.ndarray, "n 3"]]:
    """Voxels of each foreground class that is present, at most `most`, evenly taken in the array's order."""
    flat = labels.ravel()
    order = np.argsort(flat, kind="stable")
    ends = np.cumsum(np.bincount(flat, minlength=256))
    found = {}
    for label in range(1, IGNORE):
        own = order[ends[label - 1] : ends[label]]
        if len(own):
            taken = own[np.unique(np.linspace(0, len(own) - 1, min(most, len(own))).astype(np.int64))]
            found[label] = np.stack(np.unravel_index(taken, labels.shape), 1).astype(np.int32)
    return found


def draw_crop(
    key: Key,
    found: Mapping[int, np.ndarray],
    shape: Vec3,
    patch: Vec3,
    multiple: Vec3 = (1, 1, 1),
    background: float = 0.0,
) -> Vec3:
    """First voxel of a crop around a voxel of a class drawn uniformly among those present (any voxel where none is).

    background : share of crops that are centred on any voxel instead, so that what holds no class is seen as often as it is met later.
    It starts on multiples of `multiple` (so that an encoder's cells are whole) and lies within the scan where that is large enough.
    """
    if found and not (background and key("background").uniform() < background):
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
    """The input and labels of a crop, which may start before the scan and end beyond it: there the input is the scan's lowest value,
    and labels are IGNORE."""
    ends = [(min(max(s, 0), n), min(max(s + p, 0), n)) for s, p, n in zip(start, patch, case.shape, strict=True)]
    box = (slice(*ends[0]), slice(*ends[1]), slice(*ends[2]))
    x, labels = case.x(box), torch.from_numpy(np.ascontiguousarray(case.labels[box]))
    missing = [(min(max(-s, 0), p), low, high, p) for s, p, (low, high) in zip(start, patch, ends, strict=True)]
    edges = [n for before, low, high, p in reversed(missing) for n in (before, p - before - (high - low))]
    if any(edges):
        x, labels = F.pad(x, edges, value=case.low), F.pad(labels, edges, value=IGNORE)
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


def stages(encoder: nn.Module) -> list[list[str]]:
    """The parameters of an encoder by stage, from the input to the output, as names or first parts of names.

    Where a list of layers is among the children (``layers`` of a SegResNet, ``blocks`` of a ViT) each of its entries is a stage;
    what comes before it is a stage of its own, what comes after goes with the last. Otherwise each child is one.
    """
    found: list[list[str]] = [[name for name, _ in encoder.named_parameters(recurse=False)]]
    lists = {
        name: child
        for name, child in encoder.named_children()
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1
    }
    begun = False
    for name, child in encoder.named_children():
        if not any(True for _ in child.parameters()):
            continue
        if name in lists:
            found += [[f"{name}.{i}"] for i, part in enumerate(lists[name]) if any(True for _ in part.parameters())]
            begun = True
        elif lists:
            found[-1 if begun else 0].append(name)
        else:
            found.append([name])
    return [stage for stage in found if stage]


def layer_rates(network: nn.Module, encoder: nn.Module, decay: float) -> dict[str, float]:
    """Factors of the learning rate for `SegmentationTask.rates`: 1 for what follows the encoder, `decay` for its last stage, and for
    each stage `decay` times that of the next one towards the output.

    encoder : a part of `network`. Raises ContractError where it is none.
    """
    home = next((name for name, module in network.named_modules() if module is encoder), None)
    if home is None:
        raise ContractError("the encoder is no part of the network", do="give the network's own sub-module")
    prefix = "network." + (f"{home}." if home else "")
    parts = stages(encoder)
    return {prefix + name: decay ** (len(parts) - i) for i, part in enumerate(parts) for name in part}


@dataclass(frozen=True, eq=False)
class CropDraws:
    """Which crop of which case, its voxels as they were read, and what is done to them."""

    case: int
    start: Vec3
    boxes: tuple[Box, ...] = ()
    changes: Changes = field(default_factory=Changes)
    x: Tensor | None = None
    labels: Tensor | None = None


class SegmentationTask:
    """Train a segmentation network on class-balanced crops of prepared cases.

    Parameters
    ----------
    network : logits, or a list of logits of falling resolution (deep supervision), of a batch (b, c, d, h, w).
    cases : to learn from. patch : voxels of a crop. multiple : crops start on multiples of it.
    augmentation : changes to crops; None for none.
    background : share of crops that are centred on any voxel instead of one of a class.
    rates : factors of the learning rate by the first parts of names below ``network.`` (`layer_rates`).
    """

    separable = False  # batch norm sees all crops of a step

    def __init__(
        self,
        network: nn.Module,
        cases: Sequence[PreparedCase],
        patch: Vec3,
        multiple: Vec3 = (1, 1, 1),
        *,
        augmentation: Augmentation | None = None,
        background: float = 0.0,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.modules = nn.ModuleDict({"network": network})
        self.cases, self.patch, self.multiple = cases, patch, multiple
        self.augmentation, self.background, self.rates = augmentation, background, dict(rates or {})
        self._anchors: dict[int, dict[int, np.ndarray]] = {}

    def plan(self, key: Key, entry: Any) -> CropDraws:
        """One crop of a case, read: larger than `patch` where it is turned (`augment.reach`)."""
        index = int(entry.id)
        case = self.cases[index]
        if index not in self._anchors:
            self._anchors[index] = anchors(case.labels)
        start = draw_crop(key, self._anchors[index], case.shape, self.patch, self.multiple, self.background)
        changes = Changes()
        if self.augmentation is not None:
            changes = augment.draw(key("augmentation"), self.augmentation, spacing(case.affine))
        size = augment.reach(changes.matrix, self.patch)
        d, h, w = (s - (n - p) // 2 for s, n, p in zip(start, size, self.patch, strict=True))
        x, labels = cut(case, (d, h, w), size)
        return CropDraws(index, start, (), changes, x, labels)

    def batch(self, reads: Any, draws: Sequence[CropDraws], device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs (b, c, d, h, w) and classes (b, d, h, w)."""
        pairs = [self._finished(draw, device) for draw in draws]
        return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])

    def _finished(self, draw: CropDraws, device: torch.device) -> tuple[Tensor, Tensor]:
        assert draw.x is not None
        assert draw.labels is not None
        x, labels, matrix = draw.x.to(device), draw.labels.to(device), draw.changes.matrix
        if matrix is not None:
            x = augment.warp(x, matrix, self.patch)
            labels = augment.warp(labels[None], matrix, self.patch, "nearest")[0]
        return augment.intensities(x, draw.changes), labels

    def losses(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        """``loss``, with deep supervision where the network gives it; of the finest output ``dice`` (mean over the classes that the
        crops hold) and ``entropy``."""
        x, target = batch
        out = self.modules["network"](x)
        loss, finest = supervised(out if isinstance(out, list) else [out], target)
        return {"loss": loss, "dice": finest.foreground, "entropy": finest.entropy.detach()}

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
