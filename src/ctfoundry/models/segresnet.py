"""The SegResNet encoder of CT-FM: residual stages of 3x3x3 convolutions that halve the grid and double the channels.

After Myronenko (2018, arXiv 1810.11654) as MONAI's `SegResEncoder` has it, with the same state keys, so that public CT-FM
weights load as they are. Input -> conv -> [blocks -> map -> strided conv] x 5; a block is pre-activated:
``x + conv(relu(norm(conv(relu(norm(x))))))``. There is no norm after the last block: features are signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from ctfoundry.errors import ContractError
from ctfoundry.models.convolution import Conv3x3x3
from ctfoundry.models.levels import Level
from ctfoundry.models.norm import GroupedBatchNorm3d
from ctfoundry.models.recompute import recomputed
from ctfoundry.settings import nearest

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ctfoundry.geometry import Vec3


class Block(nn.Module):
    """Two pre-activated convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = GroupedBatchNorm3d(channels)
        self.act1 = nn.ReLU(inplace=True)  # overwrites the norm's output, which its backward pass does not need
        self.conv1 = Conv3x3x3(channels, channels)
        self.norm2 = GroupedBatchNorm3d(channels)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = Conv3x3x3(channels, channels)

    def forward(self, x: Float[Tensor, "b c d h w"], *, checkpoint: bool = False) -> Float[Tensor, "b c d h w"]:
        """The residual sum. With `checkpoint` what convolutions get is not kept but made again for the backward pass."""

        def first(x: Tensor) -> Tensor:
            return self.conv1(self.act1(self.norm1(x)))

        def second(x: Tensor) -> Tensor:
            return self.conv2(self.act2(self.norm2(x)))

        out = recomputed(self, second, recomputed(self, first, x)) if checkpoint else second(first(x))
        out += x
        return out


class Stage(nn.Module):
    """The blocks of one resolution, and the way down to the next (None after the last)."""

    def __init__(self, channels: int, blocks: int, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.downsample = None if last else Conv3x3x3(channels, 2 * channels, stride=2)


class SegResNetEncoder(nn.Module):
    """CT-FM's encoder (reference, 3.1): with the defaults 161 state tensors and 77,760,992 parameters.

    Parameters
    ----------
    in_channels : of the input.
    filters : channels of the first stage; stage i has ``filters * 2**i``.
    blocks : residual blocks of each stage.

    Attributes
    ----------
    checkpoint : keep half as much for the backward pass: norms and activations are computed again there, convolutions are not.
    """

    checkpoint = False

    def __init__(self, in_channels: int = 1, filters: int = 32, blocks: Sequence[int] = (1, 2, 2, 4, 4)) -> None:
        super().__init__()
        self.in_channels, self.filters = in_channels, filters
        self.conv_init = Conv3x3x3(in_channels, filters)
        self.layers = nn.ModuleList(
            Stage(filters * 2**i, count, last=i == len(blocks) - 1) for i, count in enumerate(blocks)
        )

    @property
    def levels(self) -> tuple[Level, ...]:
        """The stages, finest first. A strided convolution with padding 1 centres cell k on voxel 2k: no offset."""
        return tuple(Level(f"stage{i}", self.filters * 2**i, (2**i, 2**i, 2**i)) for i in range(len(self.layers)))

    @property
    def tokens(self) -> tuple[str, ...]:
        """Vectors that are no pooled maps: none."""
        return ()

    def forward(self, x: Float[Tensor, "b c d h w"]) -> list[Float[Tensor, "b ci di hi wi"]]:
        """The maps of all stages, finest first; each axis has ceil(n / 2**i) cells."""
        maps, _ = self.features(x, tuple(level.name for level in self.levels))
        return list(maps.values())

    def features(
        self, x: Float[Tensor, "b c d h w"], levels: tuple[str, ...]
    ) -> tuple[dict[str, Float[Tensor, "b ci di hi wi"]], dict[str, Float[Tensor, "b c"]]]:
        """The asked maps by name; and ``mean``, the global average of the last stage, when that stage is asked for.

        Nothing beyond the deepest asked stage is computed. Raises ContractError for an unknown name or a wrong shape.
        """
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise ContractError(f"input is (b, {self.in_channels}, d, h, w), not {tuple(x.shape)}")
        names = [level.name for level in self.levels]
        for name in levels:
            if name not in names:
                raise ContractError(f"unknown level {name!r}; {nearest(name, names)}")
        maps: dict[str, Tensor] = {}
        vectors: dict[str, Tensor] = {}
        if not levels:
            return maps, vectors
        deepest = max(map(names.index, levels))
        x = self.conv_init(x)
        for i, stage in enumerate(self.layers):
            assert isinstance(stage, Stage)
            for block in stage.blocks:
                x = block(x, checkpoint=self.checkpoint)
            if names[i] in levels:
                maps[names[i]] = x
            if i == deepest:
                break
            assert stage.downsample is not None
            x = stage.downsample(x)
        if deepest == len(names) - 1:
            vectors["mean"] = x.mean((2, 3, 4))
        return maps, vectors

    def peak_bytes(self, shape: Vec3) -> int:
        """Memory of one float32 forward pass without gradients over one input of `shape`, weights not counted.

        The first stage decides: three of its maps are alive and oneDNN holds copies of two more. Measured on the CPU with 4 to
        32 filters: 5 maps and up to 14 channels.
        """
        d, h, w = shape
        return 4 * d * h * w * (5 * self.filters + 14)
