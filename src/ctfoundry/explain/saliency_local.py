"""What an occlusion changes in a SegResNet encoder, and nothing else.

In eval mode a SegResNet is convolutions and fixed factors, so a box of voxels reaches a growing window of cells, stage by stage;
all other cells keep the values of the base pass, which are kept here. Each convolution is computed on the window of cells that
it can change, its neighbours taken from the base pass, and the pooled vector is updated by the difference. Windows are moved
inwards at the ends of the grid, so all boxes of one size make one batch.

With `reach` the windows stop growing after so many convolutions of each stage: what is cut off is small, because a change
spreads thinly, and `saliency.measure` reports how much it matters by computing some boxes both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from ctfoundry.errors import ContractError
from ctfoundry.geometry import Vec3
from ctfoundry.models.segresnet import Block, SegResNetEncoder

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    Starts = Int[np.ndarray, "b 3"]

CAP_BYTES = 8 * 2**30
"""Memory for the kept maps of the base pass above which they are refused."""


@dataclass(frozen=True, eq=False)
class _Window:
    """Changed cells: `data` (b, c, *size) lies at cells `at` (b, 3) of each box's own map."""

    data: Float[Tensor, "b c d h w"]
    at: Starts

    @property
    def size(self) -> Vec3:
        return self.data.shape[2], self.data.shape[3], self.data.shape[4]


@dataclass(frozen=True, eq=False)
class _Kept:
    """One block of the base pass: its input, and what its two convolutions get, padded by one cell; all (d, h, w, c)."""

    stream: Tensor
    first: Tensor
    second: Tensor


class LocalPass:
    """The base pass over one prepared scan, and what occluded boxes change in the map of stage `deepest`.

    Raises ContractError where the kept maps would need more than `CAP_BYTES`.
    """

    def __init__(self, network: SegResNetEncoder, x: Float[Tensor, "c d h w"], deepest: int) -> None:
        shape = (x.shape[1], x.shape[2], x.shape[3])
        need = kept_bytes(network, shape, deepest)
        if need > CAP_BYTES:
            raise ContractError(
                f"the base pass over {shape} voxels keeps about {need / 2**30:.0f} GiB of maps",
                do="crop the scan, take a coarser preparation, or use the exact mode",
            )
        self.network, self.deepest = network, deepest
        self.blocks: list[list[_Kept]] = []
        self.downs: list[Tensor] = []
        with torch.no_grad():
            self.stem = _padded(x[None])
            y = network.conv_init(x[None])
            for number in range(deepest + 1):
                stage: Any = network.layers[number]
                kept = []
                for block in stage.blocks:
                    first = block.act1(block.norm1(y))
                    between = block.conv1(first)
                    second = block.act2(block.norm2(between))
                    kept.append(_Kept(_last(y), _padded(first), _padded(second)))
                    y = block.conv2(second) + y
                self.blocks.append(kept)
                if number < deepest:
                    self.downs.append(_padded(y))
                    y = stage.downsample(y)
        self.base: Float[Tensor, "c d h w"] = y[0]

    @torch.no_grad()
    def changed(
        self, boxes: Float[Tensor, "b c d h w"], at: Starts, reach: int | None = None
    ) -> tuple[Float[Tensor, "b c d2 h2 w2"], Starts]:
        """New cells of the deepest stage for inputs whose voxels from `at` on are `boxes`, and where they lie.

        Cells outside are as in `base`: exactly so without `reach`, and nearly with it.
        """
        window = _convolved(_Window(boxes, at), self.stem, self.network.conv_init, grow=True)
        for number, kept in enumerate(self.blocks):
            stage: Any = self.network.layers[number]
            for count, (block, base) in enumerate(zip(stage.blocks, kept, strict=True)):
                steps = None if reach is None else reach - 2 * count
                window = _through(block, window, base, steps)
            if number < self.deepest:
                window = _down(window, self.downs[number], stage.downsample)
        return window.data, window.at


def kept_bytes(network: SegResNetEncoder, shape: Vec3, deepest: int) -> int:
    """Memory of the maps that `LocalPass` keeps, without padding."""
    voxels, total = float(np.prod(shape)), 0.0
    for number in range(deepest + 1):
        stage: Any = network.layers[number]
        channels = network.filters * 2**number
        total += 4 * channels * (3 * len(stage.blocks) + (number < deepest)) * voxels / 8**number
    return int(total)


def _last(x: Float[Tensor, "1 c d h w"]) -> Float[Tensor, "d h w c"]:
    return x[0].permute(1, 2, 3, 0).contiguous()


def _padded(x: Float[Tensor, "1 c d h w"]) -> Float[Tensor, "d2 h2 w2 c"]:
    """With one cell of zeros all round, as the convolutions pad."""
    return _last(F.pad(x, (1, 1, 1, 1, 1, 1)))


def _cut(base: Float[Tensor, "d h w c"], at: Starts, size: Sequence[int]) -> Float[Tensor, "b c d2 h2 w2"]:
    """Windows of one map, a copy (channels last in memory)."""
    d, h, w = size
    parts = [base[i : i + d, j : j + h, k : k + w] for i, j, k in at.tolist()]
    return torch.stack(parts).permute(0, 4, 1, 2, 3)


def _paste(into: Tensor, window: _Window, offset: np.ndarray) -> Tensor:
    d, h, w = window.size
    for n, (i, j, k) in enumerate(offset.tolist()):
        into[n, :, i : i + d, j : j + h, k : k + w] = window.data[n]
    return into


def _grown(window: _Window, shape: Sequence[int], grow: bool) -> tuple[Starts, Vec3]:
    """The window with one more cell on all sides, moved inwards at the grid's ends and never larger than the grid."""
    if not grow:
        return window.at, window.size
    d, h, w = (min(s + 2, n) for s, n in zip(window.size, shape, strict=True))
    return np.clip(window.at - 1, 0, np.array(shape) - (d, h, w)), (d, h, w)


def _convolved(window: _Window, base: Tensor, convolution: torch.nn.Conv3d, *, grow: bool) -> _Window:
    """A convolution of padding 1, whose base input is `base` (padded), on the cells that `window` changes."""
    shape = [n - 2 for n in base.shape[:3]]
    at, size = _grown(window, shape, grow)
    patch = _paste(_cut(base, at, [n + 2 for n in size]), window, window.at - at + 1)
    return _Window(F.conv3d(patch, convolution.weight, convolution.bias), at)


def _through(block: Block, window: _Window, base: _Kept, steps: int | None) -> _Window:
    first = _Window(block.act1(block.norm1(window.data)), window.at)
    middle = _convolved(first, base.first, block.conv1, grow=steps is None or steps > 0)
    second = _Window(block.act2(block.norm2(middle.data)), middle.at)
    out = _convolved(second, base.second, block.conv2, grow=steps is None or steps > 1)
    beside = _paste(_cut(base.stream, out.at, out.size), window, window.at - out.at)
    return _Window(out.data + beside, out.at)


def _down(window: _Window, base: Tensor, convolution: torch.nn.Conv3d) -> _Window:
    """A convolution of stride 2: cell k sees cells 2k - 1 to 2k + 1."""
    shape = [(n - 1) // 2 for n in base.shape[:3]]  # ceil(n / 2) of the unpadded map
    size = [min((s + 1) // 2 + 1, n) for s, n in zip(window.size, shape, strict=True)]
    at = np.clip(window.at // 2, 0, np.array(shape) - size)
    patch = _paste(_cut(base, 2 * at, [2 * n + 1 for n in size]), window, window.at - 2 * at + 1)
    return _Window(F.conv3d(patch, convolution.weight, convolution.bias, stride=2), at)
