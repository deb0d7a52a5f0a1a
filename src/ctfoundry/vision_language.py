"""Scans and texts in one space: FlexiCT's report stage, ready to use (reference, 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ctfoundry.encoder import Encoder
from ctfoundry.errors import ContractError
from ctfoundry.models.text import Tokenizer
from ctfoundry.models.vlm import ImageText
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

BATCH = 16
"""Texts that go through the tower together."""


@dataclass(frozen=True, eq=False)
class VisionLanguage:
    """An encoder whose network also reads texts, and the tokenizer that belongs to it.

    Texts are taken as they are: no instruction is put before them, and case is kept (training captions were lower case).
    """

    encoder: Encoder
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        if not isinstance(self.encoder.network, ImageText):
            raise ContractError(f"{self.encoder.card.name} reads no texts")
        if self.tokenizer.longest > self._network.text_model.longest:
            raise ContractError(
                f"texts of {self.tokenizer.longest} tokens, but the tower has places for {self._network.text_model.longest}"
            )

    @property
    def _network(self) -> ImageText:
        network = self.encoder.network
        assert isinstance(network, ImageText)
        return network

    @property
    def scale(self) -> float:
        """What cosines are multiplied with before a softmax."""
        return float(self._network.scale.detach())

    def image(self, volume: Volume) -> Float[Tensor, "c"]:
        """A scan in the common space, of unit length."""
        return self.encoder(volume, levels=(), vectors=("image",)).vectors["image"]

    @torch.no_grad()
    def text(self, texts: Sequence[str]) -> Float[Tensor, "n c"]:
        """Texts in the common space, of unit length; what stands beside a text in a batch does not change it."""
        if not texts:
            raise ContractError("no texts")
        device, found = self.encoder.device, []
        for start in range(0, len(texts), BATCH):
            ids, mask = self.tokenizer(texts[start : start + BATCH])
            found.append(self._network.text(ids.to(device), mask.to(device)))
        return torch.cat(found)

    def similarity(self, volume: Volume, texts: Sequence[str]) -> Float[Tensor, "n"]:
        """Cosine of a scan with each text; `scale` times it is what the training saw as logits."""
        return self.text(texts) @ self.image(volume)
