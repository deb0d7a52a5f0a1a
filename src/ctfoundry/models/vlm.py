"""FlexiCT's third stage: its 3D trunk and a text tower, joined in one space of 1024 dimensions (reference, 2.4)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ctfoundry.geometry import Vec3
from ctfoundry.keys import Key
from ctfoundry.models.levels import Level
from ctfoundry.models.text import QWEN3_EMBEDDING, Pooling, TextTower
from ctfoundry.models.vit import FlexibleViT

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64
    from torch import Tensor


class ImageText(nn.Module):
    """Trunk, text tower, projection and learned scale, named as in the published file: 741,545,409 parameters.

    As an encoder's network it has the trunk's maps and tokens, and ``image``: CLS and the mean of the patches, projected, of
    unit length, which texts are compared with.

    Parameters
    ----------
    vision : arguments of `FlexibleViT`.
    text : configuration of the tower (`TextTower`).
    pooling : of the tower.
    width : of the common space.
    """

    def __init__(
        self,
        vision: Mapping[str, Any],
        text: Mapping[str, Any] = QWEN3_EMBEDDING,
        *,
        pooling: Pooling = "last",
        width: int = 1024,
    ) -> None:
        super().__init__()
        self.vision_model = FlexibleViT(**vision)
        self.text_model = TextTower(text, pooling, width)
        self.vlm_vision_projection = nn.Linear(2 * self.vision_model.width, width, bias=False)
        self.logit_scale = nn.Parameter(torch.full((1,), 2.6593))  # exp of it is 1 / 0.07, where training began

    def initialise(self, key: Key) -> ImageText:
        """Draw all weights anew, in place; the text tower's as its library draws them."""
        self.vision_model.initialise(key("vision_model"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key("text_model").seed())
            self.text_model.backbone.apply(self.text_model.backbone._init_weights)
            for layer in (self.vlm_vision_projection, self.text_model.proj):
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
        return self

    def restore_buffers(self) -> None:
        """The text tower's."""
        self.text_model.restore_buffers()

    def with_patch(self, patch: int | Sequence[int]) -> ImageText:
        """This pair with another patch size of its trunk; all weights are shared."""
        other = copy.copy(self)
        other._modules = {**self._modules, "vision_model": self.vision_model.with_patch(patch)}
        return other

    @property
    def levels(self) -> tuple[Level, ...]:
        """The trunk's."""
        return self.vision_model.levels

    @property
    def tokens(self) -> tuple[str, ...]:
        """The trunk's, and ``image``."""
        return (*self.vision_model.tokens, "image")

    def features(
        self, x: Float[Tensor, "b c d h w"], levels: tuple[str, ...]
    ) -> tuple[dict[str, Float[Tensor, "b k d h w"]], dict[str, Float[Tensor, "b k"]]]:
        """As `FlexibleViT.features`, with ``image`` among the vectors."""
        maps, vectors = self.vision_model.features(x, levels)
        return maps, {**vectors, "image": self.image(vectors["cls+mean"])}

    def peak_bytes(self, shape: Vec3) -> int:
        """The trunk's."""
        return self.vision_model.peak_bytes(shape)

    def image(self, pooled: Float[Tensor, "b 2k"]) -> Float[Tensor, "b c"]:
        """CLS and mean patch, side by side, into the common space, of unit length."""
        return F.normalize(self.vlm_vision_projection(pooled).float(), dim=1)

    def text(self, ids: Int64[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b c"]:
        """Texts into the common space, of unit length."""
        return F.normalize(self.text_model(ids, mask).float(), dim=1)

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What cosines are multiplied with: exp of the learned scale; there is no bias."""
        return self.logit_scale.exp()[0]
