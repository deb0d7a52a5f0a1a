"""The models by name, and how an encoder is made from a name, a run folder or a weight file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import UsageError, WeightsError
from ctfoundry.infer.passes import Extent
from ctfoundry.keys import Key
from ctfoundry.models.text import QWEN3_EMBEDDING
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


def _flexict(name: str, extent: Extent, *, preparation: str = "", vector: str = "cls", **arguments: Any) -> Card:
    blocks = 16 if arguments["size"] == "base" else arguments["size"][1]
    return Card(
        name=name,
        kind="encoder",
        architecture="flexible-vit",
        arguments=arguments,
        preparation=PREPARATIONS[preparation or name],
        extent=extent,
        level=f"block{blocks - 1}",
        vector=vector,
        weights="random",
        origin="arXiv 2605.21906",
    )


def _suprem(name: str, architecture: str, level: str, **arguments: Any) -> Card:
    return Card(
        name=name,
        kind="encoder",
        architecture=architecture,
        arguments={"in_channels": 1, **arguments},
        preparation=PREPARATIONS["suprem"],
        extent=Extent("windows", (96, 96, 96), 0.25),
        level=level,
        vector="mean",
        weights="random",
        origin="SuPreM, ICLR 2024",
    )


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        _ct_fm("ct-fm", 32, "ct-fm"),
        _ct_fm("ct-fm-small", 16, "ct-fm"),
        _ct_fm("ct-fm-tiny", 8, "ct-fm-tiny"),
        # The encoder of the whole-body segmentation model: the same network, fine-tuned on scans of 1.5 mm.
        _ct_fm("ct-fm-whole-body", 32, "ct-fm-1.5mm"),
        # The published weights were trained with rotary tables in bfloat16, so their networks keep them.
        _flexict("flexict-2d", Extent("slices"), axes=2, patch=8, size="base", rotary="bfloat16"),
        _flexict("flexict-3d", Extent("cube", (160, 160, 160)), axes=3, patch=8, size="base", rotary="bfloat16"),
        # The eyes of the vision-language model; it projects the CLS token and the mean of the patches.
        _flexict(
            "flexict-vlm-vision",
            Extent("cube", (160, 160, 160)),
            preparation="flexict-3d",
            vector="cls+mean",
            axes=3,
            patch=8,
            size="base",
            rotary="bfloat16",
        ),
        Card(
            name="flexict-vlm",
            kind="encoder",
            architecture="flexict-vlm",
            arguments={
                "vision": {"axes": 3, "patch": 8, "size": "base", "rotary": "bfloat16"},
                "text": dict(QWEN3_EMBEDDING),
            },
            preparation=PREPARATIONS["flexict-3d"],
            extent=Extent("cube", (160, 160, 160)),
            level="block15",
            vector="image",
            weights="random",
            origin="arXiv 2605.21906",
        ),
        _flexict("flexict-tiny", Extent("whole"), axes=3, patch=8, size=[144, 4, 2], rotary="float32"),
        # Corrected, and as published: there the norm takes the statistics of its batch, in eval mode too.
        _suprem("suprem-unet", "suprem-unet", "down_tr512", filters=32, norm="running"),
        _suprem("suprem-unet-published", "suprem-unet", "down_tr512", filters=32, norm="batch"),
        _suprem("suprem-segresnet", "suprem-segresnet", "stage3", filters=16, blocks=[1, 2, 2, 4]),
    )
}
"""The zoo: architecture, preparation and extent by name. No weights are shipped."""


def _segresnet(arguments: dict[str, Any]) -> torch.nn.Module:
    from ctfoundry.models.segresnet import SegResNetEncoder

    return SegResNetEncoder(**arguments)


def _flexible_vit(arguments: dict[str, Any]) -> torch.nn.Module:
    from ctfoundry.models.vit import FlexibleViT

    return FlexibleViT(**arguments)


def _suprem_unet(arguments: dict[str, Any]) -> torch.nn.Module:
    from ctfoundry.models.suprem import SuPreMEncoder

    return SuPreMEncoder(**arguments)


def _suprem_segresnet(arguments: dict[str, Any]) -> torch.nn.Module:
    from ctfoundry.models.suprem import SuPreMSegResNetEncoder

    return SuPreMSegResNetEncoder(**arguments)


def _flexict_vlm(arguments: dict[str, Any]) -> torch.nn.Module:
    from ctfoundry.models.vlm import ImageText

    return ImageText(**arguments)


def _segresnet_ds(arguments: dict[str, Any]) -> torch.nn.Module:
    from ctfoundry.models.segresnet_ds import SegResNetDS

    return SegResNetDS(**arguments)


def _suprem_unet_full(arguments: dict[str, Any]) -> torch.nn.Module:
    from ctfoundry.models.suprem import SuPreMUNet

    return SuPreMUNet(**arguments)


def _encoder_decoder(arguments: dict[str, Any]) -> torch.nn.Module:
    return _combined(arguments, lambda architecture, inner: UNDRAWN[architecture](inner))


def _combined(arguments: dict[str, Any], make: Callable[[str, dict[str, Any]], torch.nn.Module]) -> torch.nn.Module:
    """A network of any encoder and a decoder; ``arguments["encoder"]`` has its architecture and arguments."""
    from ctfoundry.models.combined import EncoderDecoder

    inner = arguments.get("encoder", {})
    if not isinstance(inner, Mapping) or inner.get("architecture") not in ARCHITECTURES:
        raise WeightsError(
            f"the encoder has an unknown architecture: {inner!r}"[:200], do="register it first (docs/add-a-model.md)"
        )
    rest = {name: value for name, value in arguments.items() if name != "encoder"}
    return EncoderDecoder(make(inner["architecture"], dict(inner["arguments"])), **rest)


def _drawn_combined(arguments: dict[str, Any], key: Key) -> torch.nn.Module:
    from ctfoundry.models.initialisation import initialise

    network: Any = _combined(arguments, lambda architecture, inner: ARCHITECTURES[architecture](inner, key("encoder")))
    initialise(network.decoder, key("decoder"))
    return network


UNDRAWN: dict[str, Callable[[dict[str, Any]], torch.nn.Module]] = {
    "segresnet-encoder": _segresnet,
    "segresnet-ds": _segresnet_ds,
    "flexible-vit": _flexible_vit,
    "flexict-vlm": _flexict_vlm,
    "suprem-unet": _suprem_unet,
    "suprem-segresnet": _suprem_segresnet,
    "suprem-unet-full": _suprem_unet_full,
    "encoder-decoder": _encoder_decoder,
}
"""Our networks by name, whatever their weights: all that a state dict does not hold follows from the arguments."""


def _drawn(architecture: str) -> Callable[[dict[str, Any], Key], torch.nn.Module]:
    def make(arguments: dict[str, Any], key: Key) -> torch.nn.Module:
        from ctfoundry.models.initialisation import initialise

        network: Any = UNDRAWN[architecture](arguments)
        return network.initialise(key) if hasattr(network, "initialise") else initialise(network, key)

    return make


ARCHITECTURES: dict[str, Callable[[dict[str, Any], Key], torch.nn.Module]] = {name: _drawn(name) for name in UNDRAWN}
ARCHITECTURES["encoder-decoder"] = _drawn_combined
"""What a card may name: the network of some arguments, its weights drawn from a key. Add a family by adding a function."""


def register(architecture: str, make: Callable[[dict[str, Any], Key], torch.nn.Module], *cards: Card) -> None:
    """Add a family: how its networks are made of a card's arguments and a key, and cards by name (docs/add-a-model.md).

    Raises UsageError for a name that is taken, unless by the same card.
    """
    if architecture in UNDRAWN:
        raise UsageError(f"the architecture {architecture!r} is ours", do="give yours another name")
    for card in cards:
        if CARDS.get(card.name, card) != card:
            raise UsageError(f"a model called {card.name!r} is there already", do="give yours another name")
        if card.architecture != architecture:
            raise UsageError(f"card {card.name!r} names the architecture {card.architecture!r}, not {architecture!r}")
    ARCHITECTURES[architecture] = make
    CARDS.update({card.name: card for card in cards})


def build(card: Card) -> torch.nn.Module:
    """The network that a card describes, with random weights drawn from the card's seed (0 when it has none)."""
    return _made(card, ARCHITECTURES, Key.of("initialise", card.seed or 0))


def empty(card: Card, *, device: str = "cpu") -> torch.nn.Module:
    """The network that a card describes, its weights not drawn where that can be spared: to be loaded, or on ``meta`` for shapes."""
    inner = card.arguments.get("encoder", {}) if card.architecture == "encoder-decoder" else {}
    if card.architecture not in UNDRAWN or inner.get("architecture", card.architecture) not in UNDRAWN:
        return build(card).to(device)
    with torch.device("meta"):
        network = _made(card, UNDRAWN)
    kept = network.state_dict()
    lost = [name for name, _ in network.named_buffers() if name not in kept]
    restore = getattr(network, "restore_buffers", None)
    if lost and restore is None:
        raise WeightsError(f"{card.architecture} has buffers that no file holds: {', '.join(lost[:3])}")
    if device == "meta":
        return network
    network.to_empty(device=device)
    if restore is not None:
        restore()
    return network


def _made(card: Card, table: Mapping[str, Callable[..., torch.nn.Module]], *key: Key) -> torch.nn.Module:
    if card.architecture not in table:
        raise WeightsError(
            f"card {card.name!r} names the unknown architecture {card.architecture!r}; known: {', '.join(table)}"
        )
    try:
        return table[card.architecture](dict(card.arguments), *key)
    except TypeError as error:
        raise WeightsError(f"card {card.name!r}: {error}") from error


def with_patch(encoder: Encoder, patch: int | Sequence[int]) -> Encoder:
    """The encoder with another patch size, one number or one an axis; weights are shared, the card says the new size.

    The preparation pads to whole patches, and a cube or window that is none grows to the next one, so nothing is cut off. Golden
    values are those of the old size, so the card has none. Raises UsageError where the network has no patch to choose.
    """
    network: Any = encoder.network
    if not hasattr(network, "with_patch"):
        raise UsageError(f"{encoder.card.name} has no patch size to choose", do="take one of the flexict models")
    network, card, extent = network.with_patch(patch), encoder.card, encoder.extent
    d, h, w = network.levels[-1].stride
    size = getattr(network, "vision_model", network).patch
    arguments = dict(card.arguments)
    if "vision" in arguments:
        arguments["vision"] = {**arguments["vision"], "patch": list(size)}
    else:
        arguments["patch"] = list(size)
    if extent.size is not None:
        a, b, c = (-(-n // p) * p for n, p in zip(extent.size, (d, h, w), strict=True))
        extent = replace(extent, size=(a, b, c))
    preparation = replace(encoder.preparation, sizing=replace(encoder.preparation.sizing, multiple=(d, h, w)))
    card = replace(card, arguments=arguments, preparation=preparation, extent=extent, golden={})
    return Encoder.of(network, card)


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
    model : a name of the zoo, a run folder, a ``.safetensors`` file with its card beside it, or ``hf://owner/name[@revision][/file]``,
        which is converted into our cache once and loaded from there.
    weights : for a name of the zoo, the ``.safetensors`` file to load, a hub name, or ``"random"``; random weights come only when asked.
    device : ``auto``, ``cpu`` or ``cuda[:i]``.
    seed : of random weights.
    """
    from ctfoundry.zoo import hub
    from ctfoundry.zoo.convert import load_from_hub
    from ctfoundry.zoo.files import load_model, load_weights, model_file, read_card

    place = device_of(device)
    if hub.is_hub(model) and weights is None:
        return load_from_hub(str(model), device=place)
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
        if hub.is_hub(weights):
            return load_from_hub(str(weights), model=card.name, device=place)
        beside = Path(weights).with_suffix(".json")
        if beside.is_file() and (own := read_card(Path(weights))).preparation != card.preparation:
            raise WeightsError(
                f"its card says preparation {own.preparation.name!r}, {card.name} has {card.preparation.name!r}",
                where=weights,
                do="give the file itself as the model",
            )
        network = empty(card)
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
    return load_model(model_file(path), device=place)
