"""CT-FM's SegResNet as nnU-Net builds and drives its networks. Needs torch alone; nothing of ctfoundry.

``ctfoundry export --format nnunet`` puts a copy of this file beside the plans that name it. It must be importable wherever nnU-Net
trains or predicts with those plans (``PYTHONPATH``).

nnU-Net makes a network by ``cls(input_channels=, num_classes=, deep_supervision=, **arch_kwargs)``, switches
``network.decoder.deep_supervision``, wants a list of logits with the full resolution first while that is on and one tensor while it
is off, and leaves weights whose names hold ``.seg_layers.`` out when it loads pretrained ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _conv(channels: int, out: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(channels, out, 3, stride=stride, padding=1, bias=False)


class Block(nn.Module):
    """Two pre-activated convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm3d(channels), _conv(channels, channels)
        self.norm2, self.conv2 = nn.BatchNorm3d(channels), _conv(channels, channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        return x + self.conv2(self.act(self.norm2(self.conv1(self.act(self.norm1(x))))))


class Stage(nn.Module):
    """The blocks of one resolution, and the way down to the next."""

    def __init__(self, channels: int, blocks: int, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.downsample = nn.Identity() if last else _conv(channels, 2 * channels, stride=2)


class Encoder(nn.Module):
    """The maps of all stages, finest first."""

    def __init__(self, channels: int, filters: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv_init = _conv(channels, filters)
        self.layers = nn.ModuleList(Stage(filters * 2**i, n, last=i == len(blocks) - 1) for i, n in enumerate(blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps at strides 1, 2, 4 ..."""
        x, maps = self.conv_init(x), []
        for stage in self.layers:
            assert isinstance(stage, Stage)
            x = stage.blocks(x)
            maps.append(x)
            x = stage.downsample(x)
        return maps


class Up(nn.Module):
    """One step up: a transposed convolution, the encoder's map added, residual blocks."""

    def __init__(self, channels: int, out: int, blocks: int) -> None:
        super().__init__()
        self.upsample = nn.ModuleDict(
            {"deconv": nn.ConvTranspose3d(channels, out, 3, stride=2, padding=1, output_padding=1, bias=False)}
        )
        self.blocks = nn.Sequential(*(Block(out) for _ in range(blocks)))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """The features of this resolution."""
        return self.blocks(self.upsample["deconv"](x) + skip)


class Decoder(nn.Module):
    """Steps up, coarsest first; logits of each resolution while `deep_supervision` is on."""

    def __init__(self, classes: int, filters: int, blocks_up: Sequence[int], *, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        widths = [filters * 2**i for i in reversed(range(len(blocks_up)))]
        self.up_layers = nn.ModuleList(Up(2 * n, n, count) for n, count in zip(widths, blocks_up, strict=True))
        self.seg_layers = nn.ModuleList(nn.Conv3d(n, classes, 1) for n in widths)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Logits, full resolution first; only that one without deep supervision."""
        *skips, x = maps
        found = []
        for up, head, skip in zip(self.up_layers, self.seg_layers, reversed(skips), strict=True):
            x = up(x, skip)
            if self.deep_supervision or head is self.seg_layers[-1]:
                found.append(head(x))
        return found[::-1]


class SegResNet(nn.Module):
    """The network that the plans name.

    Parameters
    ----------
    input_channels, num_classes, deep_supervision : given by nnU-Net.
    filters, blocks, blocks_up : of the encoder's first stage, residual blocks of each stage and of each step up.
    strides : as nnU-Net's trainer reads them from the plans for its deep supervision: one entry a stage, all 2 but the first.
    flip : axes of the volume (0, 1, 2) that run the other way in nnU-Net's arrays than in the scans the weights were trained on.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        filters: int,
        blocks: Sequence[int],
        blocks_up: Sequence[int],
        strides: Sequence[Sequence[int]],
        flip: Sequence[int] = (),
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        if [list(s) for s in strides] != [[1, 1, 1]] + [[2, 2, 2]] * (len(blocks) - 1):
            raise ValueError(f"this network halves all axes between its {len(blocks)} stages; the plans say {strides}")
        self.flip = [axis + 2 for axis in flip]
        self.encoder = Encoder(input_channels, filters, blocks)
        self.decoder = Decoder(num_classes, filters, blocks_up, deep_supervision=deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits in nnU-Net's order of axes: a list with deep supervision, else those of full resolution.

        Sizes along flipped axes are multiples of the deepest stride, so a flip there and back moves no cell of full resolution; the
        cells of coarser logits lie up to one of their strides off nnU-Net's, as they do without a flip.
        """
        found = self.decoder(self.encoder(torch.flip(x, self.flip) if self.flip else x))
        if self.flip:
            found = [torch.flip(logits, self.flip) for logits in found]
        return found if self.decoder.deep_supervision else found[0]
