"""The models by name, and how an encoder is made from a name, a run folder or a weight file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import UsageError, WeightsError
from ctfoundry.infer.passes import Extent
from ctfoundry.keys import Key
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.settings import nearest


def _ct_fm(name: str, filters: int, preparation: str) -> Card:
    return Card(
        name=name,
        kind="encoder",
        architecture="segresnet-encoder",
        arguments={"in_channels": 1, "filters": filters, "blocks": [1, 2, 2, 4, 4]},
        preparation=PREPARATIONS[preparation],
        extent=Extent("whole"),
        level="stage4",
        vector="mean",
        weights="random",
        origin="arXiv 2501.09001",
    )


def _flexict(name: str, extent: Extent, **arguments: Any) -> Card:
    blocks = 16 if arguments["size"] == "base" else arguments["size"][1]
    return Card(
        name=name,
        kind="encoder",
        architecture="flexible-vit",
        arguments=arguments,
        preparation=PREPARATIONS[name],
        extent=extent,
        level=f"block{blocks - 1}",
        vector="cls",
        weights="random",
        origin="arXiv 2605.21906",
    )


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        _ct_fm("ct-fm", 32, "ct-fm"),
        _ct_fm("ct-fm-small", 16, "ct-fm"),
        _ct_fm("ct-fm-tiny", 8, "ct-fm-tiny"),
        # The published weights were trained with rotary tables in bfloat16, so their networks keep them.
        _flexict("flexict-2d", Extent("slices"), axes=2, patch=8, size="base", rotary="bfloat16"),
        _flexict("flexict-3d", Extent("cube", (160, 160, 160)), axes=3, patch=8, size="base", rotary="bfloat16"),
        _flexict("flexict-tiny", Extent("whole"), axes=3, patch=8, size=[144, 4, 2], rotary="float32"),
    )
}
"""The zoo: architecture, preparation and extent by name. No weights are shipped."""


def _segresnet(arguments: dict[str, Any], key: Key) -> torch.nn.Module:
    from ctfoundry.models.initialisation import initialise
    from ctfoundry.models.segresnet import SegResNetEncoder

    return initialise(SegResNetEncoder(**arguments), key)


def _flexible_vit(arguments: dict[str, Any], key: Key) -> torch.nn.Module:
    from ctfoundry.models.vit import FlexibleViT

    return FlexibleViT(**arguments).initialise(key)


ARCHITECTURES: dict[str, Callable[[dict[str, Any], Key], torch.nn.Module]] = {
    "segresnet-encoder": _segresnet,
    "flexible-vit": _flexible_vit,
}
"""What a card may name: the network of some arguments, its weights drawn from a key."""


def build(card: Card) -> torch.nn.Module:
    """The network that a card describes, with random weights drawn from the card's seed (0 when it has none)."""
    if card.architecture not in ARCHITECTURES:
        raise WeightsError(
            f"card {card.name!r} names the unknown architecture {card.architecture!r}; known: {', '.join(ARCHITECTURES)}"
        )
    try:
        return ARCHITECTURES[card.architecture](dict(card.arguments), Key.of("initialise", card.seed or 0))
    except TypeError as error:
        raise WeightsError(f"card {card.name!r}: {error}") from error


def device_of(name: str) -> torch.device:
    """A torch device from ``auto``, ``cpu`` or ``cuda[:i]``; raises UsageError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is no device", do="use auto, cpu or cuda[:i]") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"{name!r} is no device that is used here", do="use auto, cpu or cuda[:i]")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(f"device {name!r} was asked for, but torch finds {count} CUDA devices", do="use auto or cpu")
    return device


def load_encoder(
    model: str | Path, *, weights: str | Path | None = None, device: str = "auto", seed: int = 0
) -> Encoder:
    """An encoder ready to use, in eval mode.

    Parameters
    ----------
    model : a name of the zoo, a run folder, or a ``.safetensors`` file with its card beside it.
    weights : for a name of the zoo, the ``.safetensors`` file to load, or ``"random"``; random weights come only when asked.
    device : ``auto``, ``cpu`` or ``cuda[:i]``.
    seed : of random weights.
    """
    from ctfoundry.zoo.files import load_model, load_weights

    place = device_of(device)
    if str(model) in CARDS:
        card = CARDS[str(model)]
        if weights is None:
            raise WeightsError(
                f"{model!r} names an architecture; no weights come with it",
                do="give weights=FILE.safetensors, or weights='random'",
            )
        if weights == "random":
            card = replace(card, seed=seed)
            return Encoder.of(build(card).to(place), card)
        network = build(card)
        digest = load_weights(network, Path(weights))
        return Encoder.of(network.to(place), replace(card, weights="trained", sha256=digest))
    path = Path(model)
    if not path.exists():
        raise UsageError(
            f"{str(model)!r} is neither a model of the zoo nor a file or folder; {nearest(str(model), CARDS)}"
        )
    if weights is not None:
        raise UsageError(
            f"{model}: a run or weight file brings its own weights; weights={weights!r} has no meaning here"
        )
    return load_model(path / "model.safetensors" if path.is_dir() else path, device=place)
