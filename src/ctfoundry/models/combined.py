"""An encoder and a decoder as one network with an answer for each voxel, whatever the encoder's family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import nn

from ctfoundry.errors import ContractError
from ctfoundry.models.decoders import LightDecoder
from ctfoundry.models.unet import UNetDecoder, deepest

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ctfoundry.geometry import Vec3
    from ctfoundry.models.levels import Level

LIGHT = 4
"""Levels that the light decoder takes of an encoder whose maps all have one stride."""


class EncoderDecoder(nn.Module):
    """Any backbone of the zoo with a decoder; its state is ``encoder.*`` and ``decoder.*``.

    Parameters
    ----------
    encoder : a `Backbone`.
    classes : outputs, the background among them.
    decoder : ``unet`` (`UNetDecoder`) or ``light`` (`LightDecoder`).
    in_channels : of the input.
    width, depth : of the decoder; the light one has one output.
    slices : the encoder sees each slice alone (`Extent` of slices).
    """

    def __init__(
        self,
        encoder: nn.Module,
        classes: int,
        decoder: Literal["unet", "light"] = "unet",
        in_channels: int = 1,
        width: int = 32,
        depth: int = 4,
        *,
        slices: bool = False,
    ) -> None:
        super().__init__()
        levels: tuple[Level, ...] = cast("Any", encoder).levels
        self.encoder, self.classes, self.slices = encoder, classes, slices
        self.multiple = deepest(levels)
        if decoder == "unet":
            self.decoder: UNetDecoder | LightDecoder = UNetDecoder(levels, classes, in_channels, width, depth)
            self.names = self.decoder.names
        elif decoder == "light":
            used = spread(levels)
            self.decoder = LightDecoder(used, classes, width)
            self.names = tuple(level.name for level in used)
        else:
            raise ContractError(f"no decoder is called {decoder!r}", do="use unet or light")

    def maps(self, x: Float[Tensor, "b c d h w"]) -> dict[str, Tensor]:
        """The encoder's maps that the decoder needs; raises ContractError for sizes that are not whole cells of the deepest."""
        if any(n % m for n, m in zip(x.shape[2:], self.multiple, strict=True)):
            raise ContractError(
                f"an input of {tuple(x.shape[2:])} voxels is no multiple of {self.multiple}",
                do="pad it (`Sizing.multiple`) or use windows of such a size",
            )
        backbone: Any = self.encoder
        return by_slices(backbone.features, x, self.names)[0] if self.slices else backbone.features(x, self.names)[0]

    @property
    def head(self) -> nn.Conv3d | None:
        """What turns `trunk` into logits; None where the last layer is not linear voxel by voxel."""
        return self.decoder.head if isinstance(self.decoder, UNetDecoder) else None

    def trunk(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b f d h w"]:
        """The features of full resolution; ``head(trunk(x))`` are the logits (not with the light decoder, which has none)."""
        if not isinstance(self.decoder, UNetDecoder):
            raise ContractError("the light decoder has logits only")
        return self.decoder.features(x, self.maps(x))[0]

    def forward(
        self, x: Float[Tensor, "b c d h w"]
    ) -> list[Float[Tensor, "b k di hi wi"]] | Float[Tensor, "b k d h w"]:
        """In train mode logits at strides 1, 2, 4 ..., in eval mode those of full resolution alone."""
        if isinstance(self.decoder, LightDecoder):
            logits = self.decoder(self.maps(x), cast("Vec3", tuple(x.shape[2:])))
            return [logits] if self.training else logits
        if self.training:
            return self.decoder.outputs(x, self.maps(x))
        return self.decoder.head(self.trunk(x))

    @property
    def restore_buffers(self) -> Callable[[], None] | None:
        """Of the encoder, where it has buffers that no file holds."""
        return getattr(self.encoder, "restore_buffers", None)


def by_slices(
    features: Callable[[Tensor, tuple[str, ...]], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]],
    x: Float[Tensor, "b c d h w"],
    levels: tuple[str, ...],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features of each slice alone: maps are stacked again, vectors are means over the slices."""
    b, _, d, _, _ = x.shape
    maps, tokens = features(x.transpose(1, 2).flatten(0, 1)[:, :, None], levels)
    return (
        {name: data[:, :, 0].unflatten(0, (b, d)).transpose(1, 2) for name, data in maps.items()},
        {name: rows.unflatten(0, (b, d)).mean(1) for name, rows in tokens.items()},
    )


def spread(levels: Sequence[Level]) -> tuple[Level, ...]:
    """All levels of a pyramid; of maps of one stride at most LIGHT, evenly from the last backwards."""
    if len({level.stride for level in levels}) > 1 or len(levels) <= LIGHT:
        return tuple(levels)
    return tuple(levels[round((i + 1) * len(levels) / LIGHT) - 1] for i in range(LIGHT))
