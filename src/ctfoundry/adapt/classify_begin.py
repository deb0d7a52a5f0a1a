"""What a classification run begins with: an encoder, one size for every scan, and which weights have a part in the answers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ctfoundry.adapt.initial import opened
from ctfoundry.adapt.recipe import ClassificationRecipe
from ctfoundry.adapt.tables import TargetScan
from ctfoundry.classifier import Classifier, fixed_size
from ctfoundry.encoder import Encoder
from ctfoundry.errors import CTFoundryError, UsageError
from ctfoundry.preparation import Preparation, prepared_shape
from ctfoundry.preparation import preparation as preparation_of
from ctfoundry.segmenter import Segmenter


def begin(
    recipe: ClassificationRecipe, init: str | Path | Encoder | Classifier | None, weights: str | Path | None
) -> tuple[Encoder, dict[str, str]]:
    """The encoder that a run begins from, on the CPU, and what is told of it; raises UsageError for a segmenter, and where none is named."""
    model = opened(recipe, init, weights=weights)
    if isinstance(model, Segmenter):
        raise UsageError(
            f"{model.card.name} is a segmenter, and labels of whole scans begin from an encoder",
            where="--init",
            do="give the encoder that it was made from",
        )
    card = model.card
    told = {"model": card.name, "weights": card.weights, "sha256": card.sha256}
    encoder = model.encoder if isinstance(model, Classifier) else model
    # a caller's own encoder must not learn: it may be the start of the next run
    return replace(encoder, network=copy.deepcopy(encoder.network)) if model is init else encoder, told


def size_for(recipe: ClassificationRecipe, encoder: Encoder, scans: Sequence[TargetScan]) -> Preparation:
    """The recipe's preparation (or the encoder's own) with one size for every scan: the recipe's, the preparation's, the encoder's cube, or
    along each axis that of the largest training scan, in whole cells of the encoder."""
    base = preparation_of(recipe.preparation) if recipe.preparation else encoder.preparation
    if recipe.size is not None:
        return fixed_size(base, recipe.size)
    if base.sizing.crop is not None:
        return fixed_size(base, base.sizing.crop)
    if encoder.extent.mode == "cube" and encoder.extent.size is not None:
        return fixed_size(base, encoder.extent.size)
    shapes = []
    for scan in scans:
        try:
            shapes.append(prepared_shape(base, scan.image()))
        except (CTFoundryError, OSError):
            continue  # the loop names it
    if not shapes:
        raise UsageError("no training scan can be read", do="`ctfoundry inspect` says what the folder holds")
    multiple = [max(level.stride[axis] for level in encoder.levels) for axis in range(3)]
    a, b, c = (-(-max(column) // m) * m for column, m in zip(zip(*shapes, strict=True), multiple, strict=True))
    return fixed_size(base, (a, b, c))


def leave_unused(classifier: Classifier) -> int:
    """Freeze weights of the encoder that have no part in the answers (a text tower, a token nobody asks for); returns how many tensors.

    The optimiser's state on disk and processes that train together want a gradient of every weight.
    """
    import torch

    size = [2 * max(level.stride[axis] for level in classifier.encoder.levels) for axis in range(3)]
    wanted = [p for p in classifier.network.parameters() if p.requires_grad]
    channels = int(getattr(classifier.encoder.network, "in_channels", 1))
    classifier.forward(torch.zeros(1, channels, *size, device=classifier.device)).sum().backward()
    unused = [p for p in wanted if p.grad is None]
    for weight in wanted:
        weight.requires_grad_(weight.grad is not None)
        weight.grad = None
    return len(unused)
