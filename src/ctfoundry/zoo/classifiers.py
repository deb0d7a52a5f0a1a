"""Classifiers by their files: strict, as all weights are."""

from __future__ import annotations

from pathlib import Path

import torch

from ctfoundry.classifier import Classifier, assemble, encoder_card
from ctfoundry.encoder import Encoder
from ctfoundry.errors import ContractError, UsageError, WeightsError
from ctfoundry.zoo import models
from ctfoundry.zoo.files import load_weights, model_file, read_card


def load_classifier(model: str | Path, *, device: str = "auto") -> Classifier:
    """A classifier ready to use, in eval mode.

    Parameters
    ----------
    model : a run folder, or a ``.safetensors`` file with its card beside it.
    device : ``auto``, ``cpu`` or ``cuda[:i]``.

    Raises WeightsError for a file that is no classifier's, or not the very one that its card names; an encoder of a registered family
    has to be registered before (docs/add-a-model.md).
    """
    place, path = models.device_of(device), Path(model)
    if not path.exists():
        raise UsageError(f"there is no file or folder {str(model)!r}", do="give a run folder or a .safetensors file")
    return load_classification_model(model_file(path), device=place)


def load_classification_model(path: Path, *, device: torch.device | str = "cpu") -> Classifier:
    """The classifier of a weight file and its card."""
    if not path.is_file():
        raise WeightsError(
            "no weights there", where=path, do="is the run finished? `ctfoundry finetune` writes them at its end"
        )
    card = read_card(path)
    if card.kind != "classifier":
        raise WeightsError(f"is no classifier, its card says {card.kind!r}", where=path)
    try:
        inner = encoder_card(card)
        classifier = assemble(card, Encoder.of(models.empty(inner), inner))
    except ContractError as error:
        raise WeightsError(error.what, where=path) from error
    digest = load_weights(classifier.network, path)
    if card.sha256 != digest:
        raise WeightsError(
            f"the weights have SHA-256 {digest[:12]}..., the card says {card.sha256[:12] or 'none'}...", where=path
        )
    classifier.network.to(device)
    return classifier
