"""CT-FM's segmentation network: the SegResNet encoder with a decoder of transposed convolutions and deep supervision.

After MONAI's `SegResNetDS` (batch norm, isotropic) with the same state keys, so that public CT-FM weights load as they are:
221 tensors, and 87,220,344 parameters at 118 outputs (reference, 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import nn

from ctfoundry.errors import ContractError
from ctfoundry.models.segresnet import Block, SegResNetEncoder

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Upsample(nn.Module):
    """A transposed convolution that doubles the grid: cell k of the input lies on cell 2k of the output."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose3d(channels, out, 3, stride=2, padding=1, output_padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b o d2 h2 w2"]:
        """Twice the cells."""
        return self.deconv(x)


class UpStage(nn.Module):
    """One step up: upsample, add the encoder's map, residual blocks; `head` gives this resolution's logits."""

    def __init__(self, channels: int, out: int, blocks: int, classes: int | None) -> None:
        super().__init__()
        self.upsample = Upsample(channels, out)
        self.blocks = nn.Sequential(*(Block(out) for _ in range(blocks)))
        self.head = nn.Identity() if classes is None else nn.Conv3d(out, classes, 1)

    def forward(
        self, x: Float[Tensor, "b c d h w"], skip: Float[Tensor, "b o d2 h2 w2"]
    ) -> Float[Tensor, "b o d2 h2 w2"]:
        """The features of this resolution."""
        return self.blocks(self.upsample(x) + skip)


class SegResNetDS(nn.Module):
    """Encoder and decoder with logits at several resolutions.

    Parameters
    ----------
    classes : outputs, the background among them.
    in_channels, filters, blocks : of the encoder.
    blocks_up : residual blocks of each step up, coarsest first.
    depth : how many resolutions, from the full one down, have logits (MONAI's ``dsdepth``; the public weights have 4).
    """

    def __init__(
        self,
        classes: int,
        in_channels: int = 1,
        filters: int = 32,
        blocks: Sequence[int] = (1, 2, 2, 4, 4),
        blocks_up: Sequence[int] = (1, 1, 1, 1),
        depth: int = 4,
    ) -> None:
        super().__init__()
        steps = len(blocks) - 1
        if len(blocks_up) != steps or not 1 <= depth <= steps:
            raise ValueError(f"{steps} steps up need as many entries of blocks_up and a depth of 1 to {steps}")
        self.classes, self.depth, self.multiple = classes, depth, (2**steps,) * 3
        self.encoder = SegResNetEncoder(in_channels, filters, blocks)
        self.up_layers = nn.ModuleList(
            UpStage(filters * 2 ** (i + 1), filters * 2**i, count, classes if i < depth else None)
            for i, count in zip(reversed(range(steps)), blocks_up, strict=True)
        )

    def outputs(self, x: Float[Tensor, "b c d h w"]) -> list[Float[Tensor, "b k di hi wi"]]:
        """Logits of the `depth` finest resolutions, full resolution first; their cells lie on voxels 0, s, 2s ... of stride s.

        Raises ContractError unless each axis is a multiple of the deepest stride (16 with five stages).
        """
        return [head(features) for head, features in self._features(x)][::-1]

    @property
    def head(self) -> nn.Conv3d:
        """What turns `trunk` into the logits of full resolution: linear, voxel by voxel."""
        return cast("nn.Conv3d", cast("UpStage", self.up_layers[-1]).head)

    def trunk(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b f d h w"]:
        """The features of full resolution: ``head(trunk(x))`` are the logits. There are as many as filters, fewer than most label
        systems have classes, so whole scans are stitched and resampled before the head (`infer.onto`)."""
        return self._features(x)[-1][1]

    def _features(self, x: Float[Tensor, "b c d h w"]) -> list[tuple[nn.Conv3d, Float[Tensor, "b f di hi wi"]]]:
        if any(n % self.multiple[0] for n in x.shape[2:]):
            raise ContractError(
                f"an input of {tuple(x.shape[2:])} voxels is no multiple of {self.multiple[0]}",
                do="pad it (`Sizing.multiple`) or use windows of such a size",
            )
        *skips, x = self.encoder(x)
        found = []
        for step, skip in zip(self.up_layers, reversed(skips), strict=True):
            stage = cast("UpStage", step)
            x = stage(x, skip)
            if isinstance(stage.head, nn.Conv3d):
                found.append((stage.head, x))
        return found

    def forward(
        self, x: Float[Tensor, "b c d h w"]
    ) -> list[Float[Tensor, "b k di hi wi"]] | Float[Tensor, "b k d h w"]:
        """In train mode `outputs`, in eval mode the logits of full resolution alone."""
        if self.training:
            return self.outputs(x)
        return self.head(self.trunk(x))
