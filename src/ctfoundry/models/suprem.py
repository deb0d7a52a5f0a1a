"""SuPreM's networks: the 3D U-Net of Models Genesis and MONAI's `SegResNet`, with their published state keys.

After Li et al. (ICLR 2024, "How Well Do Supervised 3D Models Transfer to Medical Imaging Tasks?"), as described in the reference
(ct-fm.md, 3.5). The U-Net's published norm takes the statistics of its batch even in eval mode, so a scan's features depend on what
else is in the batch; ``norm="running"`` uses the stored statistics there, as a batch norm should.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import gcd
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ctfoundry.errors import ContractError
from ctfoundry.models.convolution import Conv3x3x3
from ctfoundry.models.levels import Level
from ctfoundry.settings import nearest

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ctfoundry.geometry import Vec3

    Maps = tuple[dict[str, Tensor], dict[str, Tensor]]

Norm = Literal["running", "batch"]
STAGES = ("down_tr64", "down_tr128", "down_tr256", "down_tr512")
"""The U-Net's stages by their published names, which also name its levels."""


class BatchStatisticsNorm3d(nn.BatchNorm3d):
    """`nn.BatchNorm3d`, same state, that always normalises with the statistics of its batch: SuPreM's, as published.

    The published one also moves the running statistics in eval mode; no output depends on them, so here eval changes nothing.
    """

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """Normalise."""
        if self.training:
            return super().forward(x)
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class Unit(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, channels: int, out: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = Conv3x3x3(channels, out, bias=True)
        self.bn1 = (BatchStatisticsNorm3d if norm == "batch" else nn.BatchNorm3d)(out)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b o d h w"]:
        """The unit's map."""
        return self.activation(self.bn1(self.conv1(x)))


class DownStage(nn.Module):
    """Two units of one resolution."""

    def __init__(self, channels: int, middle: int, out: int, norm: Norm) -> None:
        super().__init__()
        self.ops = nn.Sequential(Unit(channels, middle, norm), Unit(middle, out, norm))

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b o d h w"]:
        """The stage's map."""
        return self.ops(x)


class UpStage(nn.Module):
    """A transposed convolution that doubles the grid, the skipped map beside it, two units."""

    def __init__(self, channels: int, skip: int, norm: Norm) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(channels, channels, kernel_size=2, stride=2)
        self.ops = nn.Sequential(Unit(channels + skip, skip, norm), Unit(skip, skip, norm))

    def forward(self, x: Float[Tensor, "b c d h w"], skip: Float[Tensor, "b s d2 h2 w2"]) -> Tensor:
        """The stage's map, on the grid of `skip`."""
        return self.ops(torch.cat([self.up_conv(x), skip], 1))


class OutStage(nn.Module):
    """The 1x1x1 convolution to classes, without activation."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.final_conv = nn.Conv3d(channels, classes, kernel_size=1)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:
        """Logits."""
        return self.final_conv(x)


class SuPreMEncoder(nn.Module):
    """The U-Net's way down: with the defaults 56 state tensors and 7,027,776 parameters.

    Parameters
    ----------
    in_channels : of the input.
    filters : stage i has ``filters * 2**i`` channels after its first unit and twice that after its second.
    norm : statistics in eval mode: ``running`` (corrected) or ``batch`` (as published).
    """

    def __init__(self, in_channels: int = 1, filters: int = 32, norm: Norm = "running") -> None:
        super().__init__()
        if norm not in ("running", "batch"):
            raise ContractError(f"no norm is called {norm!r}; {nearest(norm, ('running', 'batch'))}")
        self.in_channels, self.filters = in_channels, filters
        self.pool = nn.MaxPool3d(2)
        for i, name in enumerate(STAGES):
            middle = filters * 2**i
            self.add_module(name, DownStage(middle if i else in_channels, middle, 2 * middle, norm))

    @property
    def levels(self) -> tuple[Level, ...]:
        """The stages, finest first. A max pool of 2 looks at voxels 2k and 2k + 1, so cell k is centred on ``s k + (s - 1) / 2``."""
        return tuple(
            Level(name, self.filters * 2 ** (i + 1), (2**i,) * 3, ((2**i - 1) / 2,) * 3)
            for i, name in enumerate(STAGES)
        )

    @property
    def tokens(self) -> tuple[str, ...]:
        """Vectors that are no pooled maps: none."""
        return ()

    def features(self, x: Float[Tensor, "b c d h w"], levels: tuple[str, ...]) -> Maps:
        """The asked maps by name, before the pooling behind them; nothing beyond the deepest asked stage is computed."""
        stages = _asked(x, self.in_channels, levels, STAGES)
        maps: dict[str, Tensor] = {}
        for i, name in enumerate(stages):
            x = self.get_submodule(name)(self.pool(x) if i else x)
            if name in levels:
                maps[name] = x
        return maps, {}

    def forward(self, x: Float[Tensor, "b c d h w"]) -> list[Tensor]:
        """The maps of all stages, finest first; each has floor(n / 2**i) cells an axis."""
        return list(self.features(x, STAGES)[0].values())

    def peak_bytes(self, shape: Vec3) -> int:
        """Memory of one float32 forward pass over one input: the first stage's maps, in and out of its second unit, and copies."""
        d, h, w = shape
        return 4 * d * h * w * (9 * self.filters + 14)


class SuPreMUNet(SuPreMEncoder):
    """The whole U-Net: with one class 106 state tensors and 19,073,665 parameters. Sizes of inputs are multiples of 8.

    Logits in train and in eval mode, of full resolution alone: it was published without deep supervision. `norm` as for the encoder.
    """

    def __init__(self, in_channels: int = 1, classes: int = 1, filters: int = 32, norm: Norm = "running") -> None:
        super().__init__(in_channels, filters, norm)
        self.classes, self.multiple = classes, (8, 8, 8)
        self.up_tr256 = UpStage(16 * filters, 8 * filters, norm)
        self.up_tr128 = UpStage(8 * filters, 4 * filters, norm)
        self.up_tr64 = UpStage(4 * filters, 2 * filters, norm)
        self.out_tr = OutStage(2 * filters, classes)

    @property
    def encoder(self) -> SuPreMEncoder:
        """The way down as a network of its own; weights are shared, and its state has the same names."""
        view = copy.copy(self)
        view.__class__ = SuPreMEncoder  # type: ignore[assignment]
        view._modules = {name: part for name, part in self._modules.items() if name in (*STAGES, "pool")}
        return view

    @property
    def head(self) -> nn.Conv3d:
        """What turns `trunk` into logits: linear, voxel by voxel."""
        return self.out_tr.final_conv

    def trunk(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b f d h w"]:
        """The features of full resolution; raises ContractError for sizes that 8 does not divide."""
        if any(n % 8 for n in x.shape[2:]):
            raise ContractError(
                f"an input of {tuple(x.shape[2:])} voxels is no multiple of 8", do="let the preparation pad it"
            )
        s64, s128, s256, deepest = self.features(x, STAGES)[0].values()
        return self.up_tr64(self.up_tr128(self.up_tr256(deepest, s256), s128), s64)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:  # type: ignore[override]
        """One number for each class and voxel."""
        return self.head(self.trunk(x))


class _Named(nn.Module):
    """A convolution under the name ``conv``, as MONAI wraps it."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv3x3x3(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self.conv(x)


class GroupBlock(nn.Module):
    """Two pre-activated convolutions beside an identity, normed in groups of channels: 8 where they divide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = gcd(8, channels)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.act = nn.ReLU(inplace=True)
        self.conv1 = _Named(channels, channels)
        self.conv2 = _Named(channels, channels)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """The residual sum."""
        return x + self.conv2(self.act(self.norm2(self.conv1(self.act(self.norm1(x))))))


class SuPreMSegResNetEncoder(nn.Module):
    """The way down of MONAI's `SegResNet` as SuPreM trained it: 16 filters, blocks 1, 2, 2, 4, 128 channels at stride 8."""

    def __init__(self, in_channels: int = 1, filters: int = 16, blocks: Sequence[int] = (1, 2, 2, 4)) -> None:
        super().__init__()
        self.in_channels, self.filters = in_channels, filters
        self.convInit = _Named(in_channels, filters)
        self.down_layers = nn.ModuleList()
        for i, count in enumerate(blocks):
            width = filters * 2**i
            first = _Named(width // 2, width, stride=2) if i else nn.Identity()
            self.down_layers.append(nn.Sequential(first, *(GroupBlock(width) for _ in range(count))))

    @property
    def levels(self) -> tuple[Level, ...]:
        """The stages, finest first; strided convolutions with padding 1, so no offset."""
        return tuple(Level(f"stage{i}", self.filters * 2**i, (2**i,) * 3) for i in range(len(self.down_layers)))

    @property
    def tokens(self) -> tuple[str, ...]:
        """Vectors that are no pooled maps: none."""
        return ()

    def features(self, x: Float[Tensor, "b c d h w"], levels: tuple[str, ...]) -> Maps:
        """The asked maps by name; nothing beyond the deepest asked stage is computed."""
        stages = _asked(x, self.in_channels, levels, [level.name for level in self.levels])
        maps: dict[str, Tensor] = {}
        x = self.convInit(x) if stages else x
        for name, layer in zip(stages, self.down_layers, strict=False):
            x = layer(x)
            if name in levels:
                maps[name] = x
        return maps, {}

    def forward(self, x: Float[Tensor, "b c d h w"]) -> list[Tensor]:
        """The maps of all stages, finest first."""
        return list(self.features(x, tuple(level.name for level in self.levels))[0].values())

    def peak_bytes(self, shape: Vec3) -> int:
        """Memory of one float32 forward pass over one input; see `SegResNetEncoder.peak_bytes`."""
        d, h, w = shape
        return 4 * d * h * w * (6 * self.filters + 14)


def _asked(x: Tensor, channels: int, levels: Sequence[str], names: Sequence[str]) -> list[str]:
    """The stages to compute, after the input and the names are checked."""
    if x.ndim != 5 or x.shape[1] != channels:
        raise ContractError(f"input is (b, {channels}, d, h, w), not {tuple(x.shape)}")
    for name in levels:
        if name not in names:
            raise ContractError(f"unknown level {name!r}; {nearest(name, names)}")
    deepest = max((list(names).index(name) for name in levels), default=-1)
    return list(names[: deepest + 1])
