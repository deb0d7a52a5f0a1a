"""Scans and texts: a model that reads both, with its tokenizer."""

from __future__ import annotations

from pathlib import Path

from ctfoundry.errors import UsageError
from ctfoundry.vision_language import VisionLanguage
from ctfoundry.zoo.models import load_encoder


def load_vision_language(
    model: str | Path,
    tokenizer: str | Path,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    longest: int = 8192,
) -> VisionLanguage:
    """A model of the report stage, ready to compare scans with texts.

    Parameters
    ----------
    model, weights, device, seed : as in `load_encoder`.
    tokenizer : a local folder with its ``tokenizer.json`` (Qwen3-Embedding-0.6B's for the published weights); nothing is fetched.
    longest : tokens after which a text is cut (8192 in the public wrapper; 768 and 256 in its training).
    """
    from ctfoundry.models.text import Tokenizer
    from ctfoundry.models.vlm import ImageText

    encoder = load_encoder(model, weights=weights, device=device, seed=seed)
    if not isinstance(encoder.network, ImageText):
        raise UsageError(f"{encoder.card.name} reads no texts", do="take flexict-vlm or a model converted from it")
    return VisionLanguage(encoder, Tokenizer(Path(tokenizer), longest=min(longest, encoder.network.text_model.longest)))
