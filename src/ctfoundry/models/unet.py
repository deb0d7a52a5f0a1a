"""A decoder for any encoder: step by step from its deepest map to the input's voxels, with what finer maps add on the way.

Where a cell lies comes from the encoder's levels, so half cells and slices alone (stride 1 along one axis) need no special case. A
pyramid gives each step the map of its own stride. A transformer, whose maps all have one stride, gives earlier blocks to finer
steps (after UNETR, arXiv 2103.10504); what no map can tell, where a border runs between two patches, comes from a stem on the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from torch import nn

from ctfoundry.models.convolution import Conv3x3x3
from ctfoundry.models.decoders import INPUT, upsample
from ctfoundry.models.levels import Level
from ctfoundry.models.norm import GroupedBatchNorm3d
from ctfoundry.models.segresnet import Block

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ctfoundry.geometry import Vec3

WIDEST = 256
"""Channels that no step exceeds."""


def deepest(levels: Sequence[Level]) -> Vec3:
    """The largest stride along each axis: what sizes of inputs are multiples of."""
    d, h, w = (max(level.stride[axis] for level in levels) for axis in range(3))
    return d, h, w


def cells(shape: Vec3, level: Level) -> Vec3:
    """How many cells a level has over an input of `shape`."""
    d, h, w = (-(-n // s) for n, s in zip(shape, level.stride, strict=True))
    return d, h, w


def steps(levels: Sequence[Level], width: int) -> list[tuple[Level, Level | None]]:
    """The grids of a decoder, finest first, each with the encoder's level that it skips to (None: there is none).

    Strides are 1, 2, 4 ... below that of the deepest level, along no axis more than its own. Channels double from `width` on.
    """
    largest = deepest(levels)
    found: list[tuple[Level, Level | None]] = []
    by_stride = {level.stride: level for level in levels}
    count = (max(largest) - 1).bit_length()
    for i in range(count):
        stride = cast("Vec3", tuple(min(2**i, s) for s in largest))
        skip = by_stride.get(stride)
        if len(by_stride) == 1 and i:  # one resolution: the finer the step, the earlier the block
            skip = levels[max(len(levels) - 1 - round((count - i) * len(levels) / count), 0)]
        own = by_stride.get(stride, INPUT).offset
        found.append((Level(f"step{i}", min(width * 2**i, WIDEST), stride, own), skip))
    return found


def _projection(channels: int, out: int) -> nn.Sequential:
    """To other channels and to one scale: maps of encoders differ by orders of magnitude."""
    return nn.Sequential(nn.Conv3d(channels, out, 1, bias=False), GroupedBatchNorm3d(out))


class Step(nn.Module):
    """From the grid below to `grid`, plus the skipped map, then a residual block."""

    def __init__(self, below: Level, grid: Level, skip: Level | None, in_channels: int) -> None:
        super().__init__()
        self.below, self.grid, self.skipped = below, grid, skip
        self.up = _projection(below.channels, grid.channels)
        self.skip = _projection(skip.channels, grid.channels) if skip else None
        fresh = skip is None and grid.stride == (1, 1, 1)
        self.stem = (
            nn.Sequential(
                Conv3x3x3(in_channels, grid.channels),
                GroupedBatchNorm3d(grid.channels),
                nn.ReLU(inplace=True),
                Conv3x3x3(grid.channels, grid.channels),
                GroupedBatchNorm3d(grid.channels),
            )
            if fresh
            else None
        )
        self.block = Block(grid.channels)

    def forward(
        self, x: Float[Tensor, "b c d h w"], maps: Mapping[str, Tensor], image: Float[Tensor, "b i d3 h3 w3"]
    ) -> Float[Tensor, "b g d2 h2 w2"]:
        """The features of this grid."""
        shape = cells(cast("Vec3", tuple(image.shape[2:])), self.grid)
        out = upsample(self.up(x), self.below, self.grid, shape)
        if self.skip is not None and self.skipped is not None:
            out = out + upsample(self.skip(maps[self.skipped.name]), self.skipped, self.grid, shape)
        if self.stem is not None:
            out = out + self.stem(image)
        return self.block(out)


class UNetDecoder(nn.Module):
    """Steps from the deepest map to the input's voxels, and logits of the finest resolutions.

    Parameters
    ----------
    levels : of the encoder, finest first; `names` are those that it needs.
    classes : outputs, the background among them.
    in_channels : of the input.
    width : channels at the input's resolution; they double with each step below, up to WIDEST.
    depth : how many resolutions have logits, full resolution first, as far as there are steps.
    """

    def __init__(
        self, levels: Sequence[Level], classes: int, in_channels: int = 1, width: int = 32, depth: int = 4
    ) -> None:
        super().__init__()
        self.bottom = max(levels, key=lambda level: max(level.stride))
        self.bottom = [level for level in levels if level.stride == self.bottom.stride][-1]
        # an encoder whose maps all have the input's own stride still gets one step
        plan = steps(levels, width) or [(Level("step0", width, (1, 1, 1)), None)]
        below, made = self.bottom, []
        for grid, skip in reversed(plan):
            made.append(Step(below, grid, skip, in_channels))
            below = grid
        self.steps = nn.ModuleList(made)
        self.heads = nn.ModuleList(nn.Conv3d(grid.channels, classes, 1) for grid, _ in plan[:depth])
        self.names = tuple(dict.fromkeys([self.bottom.name, *(skip.name for _, skip in plan if skip)]))

    @property
    def head(self) -> nn.Conv3d:
        """What turns the features of full resolution into logits: linear, voxel by voxel."""
        return cast("nn.Conv3d", self.heads[0])

    def features(self, image: Float[Tensor, "b i d h w"], maps: Mapping[str, Tensor]) -> list[Tensor]:
        """The features of all steps, full resolution first."""
        x, found = maps[self.bottom.name], []
        for step in self.steps:
            x = step(x, maps, image)
            found.append(x)
        return found[::-1]

    def outputs(
        self, image: Float[Tensor, "b i d h w"], maps: Mapping[str, Tensor]
    ) -> list[Float[Tensor, "b k di hi wi"]]:
        """Logits at strides 1, 2, 4 ..., whose cells lie on voxels 0, s, 2s ..."""
        shape = cast("Vec3", tuple(image.shape[2:]))
        found = []
        for i, (head, x) in enumerate(zip(self.heads, self.features(image, maps), strict=False)):
            place = Level("logits", 0, (2**i, 2**i, 2**i))
            found.append(upsample(head(x), cast("Step", self.steps[-1 - i]).grid, place, cells(shape, place)))
        return found
