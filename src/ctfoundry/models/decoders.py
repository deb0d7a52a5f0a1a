"""Small decoders: from an encoder's maps back to one class for each input voxel.

Where a cell lies matters: cell k of a level is centred on voxel ``stride * k + offset`` (`Level`), so a SegResNet's maps
begin on voxel 0 and a ViT's half a patch later. Plain interpolation between grids of cells would shift the first by half a
cell; here every map is interpolated at the places where the finer cells really lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn

from ctfoundry import resampling
from ctfoundry.errors import ContractError
from ctfoundry.models.convolution import Conv3x3x3
from ctfoundry.models.levels import Level
from ctfoundry.models.norm import GroupedBatchNorm3d

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor

    from ctfoundry.geometry import Vec3

INPUT = Level("input", 1, (1, 1, 1))
"""The voxels themselves."""
SLAB_BYTES = 2**30
"""Memory of the channels that `LightDecoder.segment` holds at a time."""


def upsample(x: Float[Tensor, "b c d h w"], source: Level, target: Level, shape: Vec3) -> Float[Tensor, "b c d2 h2 w2"]:
    """A map on the cells of `source`, linearly interpolated at the centres of `shape` cells of `target`.

    Both count from the same input voxel. Beyond the outermost centres the border cell is repeated. Differentiable.
    """
    places = [
        ((to - at) / step, fine / step)
        for at, step, to, fine in zip(source.offset, source.stride, target.offset, target.stride, strict=True)
    ]
    if all(start == 0 and (1 / by).is_integer() for start, by in places):
        # Centres coincide at the origin: torch's own kernel, in the convention in which first and last centres are corners.
        factor = [round(1 / by) for _, by in places]
        size = [n * f + 1 for n, f in zip(x.shape[2:], factor, strict=True)]
        if all(n <= m for n, m in zip(shape, size, strict=True)):
            if factor == [1, 1, 1]:
                return x[:, :, : shape[0], : shape[1], : shape[2]]
            padded = F.pad(x, (0, 1, 0, 1, 0, 1), mode="replicate")
            made = F.interpolate(padded, size=size, mode="trilinear", align_corners=True)
            return made[:, :, : shape[0], : shape[1], : shape[2]]
    operators = [
        resampling.taps(n, count, start, by) for n, count, (start, by) in zip(x.shape[2:], shape, places, strict=True)
    ]
    return resampling.resample(x, (operators[0], operators[1], operators[2]))


def crop_cells(
    data: Float[Tensor, "... d h w"], level: Level, start: Vec3, size: Vec3
) -> Float[Tensor, "... d2 h2 w2"]:
    """The cells that `size` voxels from voxel `start` (whole cells) on need: the next one too where there is a stride, and the one
    before where cells lie behind their first voxel. Fewer at the far end of the map, where it has no more; at its near end the
    border cell is repeated, so that the first cell always lies where the decoder expects it."""
    for axis, (s, n, stride, before) in enumerate(zip(start, size, level.stride, _before(level), strict=True)):
        first = s // stride - before
        last = min(s // stride - (-n // stride) + (stride > 1), data.shape[axis - 3])
        if (first, last) != (0, data.shape[axis - 3]):
            index = torch.arange(first, max(last, first + 1), device=data.device).clamp_min(0)
            data = data.index_select(axis - 3, index)
    return data


def _before(level: Level) -> tuple[bool, bool, bool]:
    d, h, w = (o > 0 for o in level.offset)
    return d, h, w


def _in_crop(level: Level) -> Level:
    """The level as its cells lie in `crop_cells`, whose first one may lie before the crop."""
    moved = [o - s * b for o, s, b in zip(level.offset, level.stride, _before(level), strict=True)]
    return replace(level, offset=(moved[0], moved[1], moved[2]))


class LightDecoder(nn.Module):
    """Each level brought to a few channels and added up from coarse to fine on the input's voxels; one convolution; classes.

    Parameters
    ----------
    levels : of the encoder, finest first.
    classes : outputs, the background among them.
    width : hidden channels: ``head(relu(norm(conv3x3x3(sum of levels))))``.
    linear : without them: logits are linear in the features.

    Beside the hidden channels each level reaches the classes directly. What is linear in the features is then learnt in some
    dozens of steps, and the convolution adds to it: without that path, 150 steps gave half the Dice on the training scans.

    Features of encoders differ in scale by orders of magnitude (those of CT-FM are not normalised), so each channel is
    standardised with fixed numbers (`standardise`), which are part of the state: a probe then does not measure scale.
    """

    def __init__(self, levels: Sequence[Level], classes: int, width: int = 16, *, linear: bool = False) -> None:
        super().__init__()
        self.levels, self.classes, self.width = tuple(levels), classes, 0 if linear else width
        out = classes + self.width
        self.projections = nn.ModuleList(
            nn.Conv3d(level.channels, out, 1, bias=i == 0) for i, level in enumerate(levels)
        )
        for i, level in enumerate(levels):
            self.register_buffer(f"centre{i}", torch.zeros(level.channels))
            self.register_buffer(f"spread{i}", torch.ones(level.channels))
        self.conv = nn.Identity() if linear else Conv3x3x3(width, width)
        self.norm = nn.Identity() if linear else GroupedBatchNorm3d(width)
        self.head = nn.Identity() if linear else nn.Conv3d(width, classes, 1)

    @torch.no_grad()
    def standardise(self, moments: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Set the mean and deviation (c,) of each level's channels; a channel that never differs is left at deviation 1."""
        for i, level in enumerate(self.levels):
            mean, deviation = moments[level.name]
            getattr(self, f"centre{i}").copy_(mean)
            getattr(self, f"spread{i}").copy_(torch.where(deviation > 1e-8, deviation, torch.ones_like(deviation)))

    def _projected(self, i: int, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:
        # Standardising and projecting are one linear map: (W / s) x - W (m / s).
        projection = cast("nn.Conv3d", self.projections[i])
        weight = projection.weight / getattr(self, f"spread{i}").to(projection.weight)[:, None, None, None]
        shift = -(weight.flatten(1) @ getattr(self, f"centre{i}").to(weight))
        return F.conv3d(x, weight, shift if projection.bias is None else projection.bias + shift)

    def forward(
        self, maps: Mapping[str, Float[Tensor, "b c d h w"]], shape: Vec3, *, crop: bool = False
    ) -> Float[Tensor, "b k d2 h2 w2"]:
        """Logits on the voxels of an input of `shape`; maps count from its first voxel, or are `crop_cells` of a larger input.

        Raises ContractError where a level is missing.
        """
        levels = [_in_crop(level) for level in self.levels] if crop else self.levels
        total: Tensor | None = None
        for i in reversed(range(len(levels))):
            if levels[i].name not in maps:
                raise ContractError(f"the decoder needs level {levels[i].name!r}, and got {', '.join(maps) or 'none'}")
            own = self._projected(i, maps[levels[i].name])
            if total is not None:
                own = own + upsample(total, levels[i + 1], levels[i], cast("Vec3", tuple(own.shape[2:])))
            total = own
        assert total is not None
        total = upsample(total, levels[0], INPUT, shape)
        if not self.width:
            return total
        hidden, direct = total[:, : self.width], total[:, self.width :]
        return direct + self.head(F.relu(self.norm(self.conv(hidden))))

    @torch.no_grad()
    def segment(self, maps: Mapping[str, Float[Tensor, "1 c d h w"]], shape: Vec3) -> UInt8[Tensor, "d h w"]:
        """The class of each voxel of one scan, in slabs where its channels would take more than SLAB_BYTES. Eval mode only."""
        if self.training:
            raise ContractError("labels are made in eval mode", do="call .eval() first")
        deepest = max(level.stride[0] for level in self.levels)
        rows = SLAB_BYTES // (4 * (self.classes + self.width) * shape[1] * shape[2])
        rows = max(rows // deepest - 1, 1) * deepest if rows < shape[0] else shape[0]
        out = torch.empty(shape, dtype=torch.uint8, device=next(iter(maps.values())).device)
        for start in range(0, shape[0], rows):
            stop = min(start + rows, shape[0])
            low, high = max(start - deepest, 0), min(stop + 1, shape[0])  # one voxel more for the convolution
            size: Vec3 = (high - low, shape[1], shape[2])
            cells = {v.name: crop_cells(maps[v.name], v, (low, 0, 0), size) for v in self.levels}
            logits = self(cells, size, crop=True)
            out[start:stop] = logits[0, :, start - low : stop - low].argmax(0).to(torch.uint8)
        return out
