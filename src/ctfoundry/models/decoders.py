"""Small decoders: from an encoder's maps back to one class for each input voxel.

Where a cell lies matters: cell k of a level is centred on voxel ``stride * k + offset`` (`Level`), so a SegResNet's maps
begin on voxel 0 and a ViT's half a patch later. Plain interpolation between grids of cells would shift the first by half a
cell; here every map is interpolated at the places where the finer cells really lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
SLAB_VOXELS = 2**19
"""Voxels of a slab whose logits are held at a time."""


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


class LightDecoder(nn.Module):
    """Each level to `width` channels, added up from coarse to fine on the input's voxels, one convolution, classes.

    Parameters
    ----------
    levels : of the encoder, finest first.
    classes : outputs, the background among them.
    width : channels that every level is brought to.
    linear : no convolution over neighbours and no nonlinearity: each level straight to classes, interpolated and added.

    Features of encoders differ in scale by orders of magnitude (those of CT-FM are not normalised), so each channel is
    standardised with fixed numbers (`standardise`), which are part of the state: a probe then does not measure scale.
    """

    def __init__(self, levels: Sequence[Level], classes: int, width: int = 16, *, linear: bool = False) -> None:
        super().__init__()
        self.levels, self.classes, self.linear = tuple(levels), classes, linear
        out = classes if linear else width
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

    def fused(self, maps: Mapping[str, Float[Tensor, "b c d h w"]], shape: Vec3) -> Float[Tensor, "b w d2 h2 w2"]:
        """All levels on the input's voxels, added."""
        total: Tensor | None = None
        for i in reversed(range(len(self.levels))):
            level = self.levels[i]
            if level.name not in maps:
                raise ContractError(f"the decoder needs level {level.name!r}, and got {', '.join(maps)}")
            own = self._projected(i, maps[level.name])
            if total is not None:
                own = own + upsample(total, self.levels[i + 1], level, cast("Vec3", tuple(own.shape[2:])))
            total = own
        assert total is not None
        return upsample(total, self.levels[0], INPUT, shape)

    def _projected(self, i: int, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b w d h w"]:
        # Standardising and projecting are one linear map: (W / s) x - W (m / s).
        projection = cast("nn.Conv3d", self.projections[i])
        weight = projection.weight / getattr(self, f"spread{i}").to(projection.weight)[:, None, None, None]
        shift = -(weight.flatten(1) @ getattr(self, f"centre{i}").to(weight))
        return F.conv3d(x, weight, shift if projection.bias is None else projection.bias + shift)

    def _classified(self, fused: Float[Tensor, "b w d h w"]) -> Float[Tensor, "b k d h w"]:
        return fused if self.linear else self.head(F.relu(self.norm(self.conv(fused))))

    def forward(self, maps: Mapping[str, Float[Tensor, "b c d h w"]], shape: Vec3) -> Float[Tensor, "b k d2 h2 w2"]:
        """Logits on the voxels of an input of `shape`; maps count from its first voxel. ContractError where a level is missing."""
        return self._classified(self.fused(maps, shape))

    @torch.no_grad()
    def segment(self, maps: Mapping[str, Float[Tensor, "1 c d h w"]], shape: Vec3) -> UInt8[Tensor, "d h w"]:
        """The class of each voxel of one scan, in slabs: the logits of a whole scan are never held. Eval mode only."""
        if self.training:
            raise ContractError("labels are made in eval mode", do="call .eval() first")
        fused = self.fused(maps, shape)
        out = torch.empty(shape, dtype=torch.uint8, device=fused.device)
        rows = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
        for start in range(0, shape[0], rows):
            stop = min(start + rows, shape[0])
            low, high = max(start - 1, 0), min(stop + 1, shape[0])  # one voxel more for the convolution
            logits = self._classified(fused[:, :, low:high])
            out[start:stop] = logits[0, :, start - low : stop - low].argmax(0).to(torch.uint8)
        return out
