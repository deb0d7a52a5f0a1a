"""How logits agree with labels: Dice and cross-entropy, as the reference has them (section 6), in little memory.

118 logits a voxel of eight crops of 96x160x160 are 9 GB in float32, and written with torch's own operations the loss keeps six such
arrays. Here it keeps none: probabilities are made a piece at a time, for the loss and again for its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from ctfoundry.adapt.cases import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor

SMOOTH = 1e-5
"""Added to Dice's denominator only, so that an empty class of an empty prediction counts as a miss (the reference's choice)."""
PIECE = {"cpu": 1 << 18}
"""Probabilities made at a time: what stays in the CPU's cache; elsewhere `PIECE_ELSEWHERE`."""
PIECE_ELSEWHERE = 1 << 27


@dataclass(frozen=True)
class Agreement:
    """How logits agree with their target: Dice of each crop and class, the target's voxels of each, and the mean cross-entropy."""

    dice: Float[Tensor, "b k"]
    voxels: Float[Tensor, "b k"]
    entropy: Float[Tensor, ""]

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Mean Dice loss over crops and classes + cross-entropy."""
        return (1 - self.dice).mean() + self.entropy

    @property
    def foreground(self) -> Float[Tensor, ""]:
        """Mean Dice of the classes that the crops hold, the background left out; 0 where they hold none."""
        there = (self.voxels[:, 1:] > 0).to(self.dice.dtype)
        return (self.dice[:, 1:].detach() * there).sum() / there.sum().clamp_min(1)


def agreement(logits: Float[Tensor, "b k d h w"], target: UInt8[Tensor, "b d h w"]) -> Agreement:
    """Dice and cross-entropy (MONAI's ``DiceCELoss(to_onehot_y, softmax, squared_pred, smooth_nr=0)``), in float32 or better.

    With probabilities p = softmax(logits) and one-hot targets g, Dice of each crop and class over its voxels is
    ``2 sum(p g) / (sum(p^2) + sum(g^2) + 1e-5)``; the cross-entropy is the mean of ``-log p[target]`` over voxels. Voxels whose
    target is IGNORE count in neither.
    """
    return Agreement(*_Agreement.apply(logits, target))


def dice_cross_entropy(logits: Float[Tensor, "b k d h w"], target: UInt8[Tensor, "b d h w"]) -> Float[Tensor, ""]:
    """Dice loss + cross-entropy, as in `agreement`."""
    return agreement(logits, target).loss


class _Agreement(torch.autograd.Function):
    """(dice, voxels, entropy), with the gradient of the first and the last."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, k = logits.shape[:2]
        kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
        both, squares, count = (torch.zeros(b, k, dtype=kind, device=logits.device) for _ in range(3))
        entropy = torch.zeros((), dtype=kind, device=logits.device)
        for crop, _, part, wanted, known in _pieces(logits, target):
            log_p = F.log_softmax(part.to(kind), 0)
            own = log_p.gather(0, wanted[None])[0]
            entropy -= (own * known).sum()
            both[crop].scatter_add_(0, wanted, own.exp() * known)
            count[crop].scatter_add_(0, wanted, known.to(kind))
            squares[crop] += log_p.mul_(2).exp_().mul_(known).sum(1)
        total = count.sum().clamp_min(1)
        over = squares + count + SMOOTH
        ctx.save_for_backward(logits, target, both, over, total)
        ctx.mark_non_differentiable(count)
        return 2 * both / over, count, entropy / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_dice: Tensor, _: Tensor, of_entropy: Tensor) -> tuple[Tensor, None]:
        logits, target, both, over, total = ctx.saved_tensors
        kind = over.dtype
        gradient = torch.empty_like(logits)
        flat = gradient.flatten(2)
        # d dice / d p = 2 g / over - 4 both p / over^2, and through the softmax d / d z = p (q - sum(q p))
        at_target, at_p = 2 * of_dice / over, -4 * of_dice * both / over**2
        share = of_entropy / total
        for crop, place, part, wanted, known in _pieces(logits, target):
            p = F.softmax(part.to(kind), 0)
            q = p * at_p[crop][:, None]
            q.scatter_add_(0, wanted[None], at_target[crop][wanted][None])
            made = q.sub_((q * p).sum(0)).add_(share).mul_(p)
            made.scatter_add_(0, wanted[None], (-share).expand(1, len(wanted)))
            flat[crop, :, place] = made.mul_(known).to(flat.dtype)
        if flat.data_ptr() != gradient.data_ptr():  # a layout whose voxels are no one axis: flatten has copied
            gradient = flat.view(logits.shape)
        return gradient, None


def _pieces(logits: Tensor, target: Tensor) -> Iterator[tuple[int, slice, Tensor, Tensor, Tensor]]:
    """Voxels a piece at a time: crop, place among its voxels, logits (k, n), classes (n) with 0 for IGNORE, and whether they are known."""
    flat, labels = logits.flatten(2), target.flatten(1)
    step = max(1, PIECE.get(logits.device.type, PIECE_ELSEWHERE) // logits.shape[1])
    for crop in range(len(flat)):
        for low in range(0, flat.shape[2], step):
            place = slice(low, low + step)
            wanted = labels[crop, place].long()
            known = wanted != IGNORE
            yield crop, place, flat[crop, :, place], torch.where(known, wanted, 0), known


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
    return supervised(outputs, target, places)[0]


def supervised(
    outputs: Sequence[Tensor], target: Tensor, places: Literal["cells", "reference"] = "cells"
) -> tuple[Float[Tensor, ""], Agreement]:
    """`deep_supervision`, and how the finest output agrees."""
    finest = agreement(outputs[0], target)
    total = finest.loss
    for i, logits in enumerate(outputs[1:], 1):
        if places == "reference":
            small = F.interpolate(target[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0].to(
                target.dtype
            )
        else:
            small = target[:, :: 2**i, :: 2**i, :: 2**i]
        total = total + 0.5**i * dice_cross_entropy(logits, small)
    return total, finest
