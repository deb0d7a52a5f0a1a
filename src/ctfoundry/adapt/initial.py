"""What a fine-tuning run begins with: a network whose encoder has the weights that were asked for, strictly, and a new decoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ctfoundry.adapt.prepared import PreparedCase
from ctfoundry.adapt.recipe import FinetuneRecipe, SegmentationRecipe
from ctfoundry.adapt.segmentation import anchors, cut, draw_crop
from ctfoundry.classifier import Classifier
from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import SettingsError, UsageError, WeightsError
from ctfoundry.geometry import Vec3
from ctfoundry.keys import Key
from ctfoundry.models.combined import EncoderDecoder
from ctfoundry.models.decoders import LightDecoder
from ctfoundry.preparation import preparation as preparation_of
from ctfoundry.segmenter import Segmenter
from ctfoundry.zoo.files import check_state
from ctfoundry.zoo.golden import golden_input
from ctfoundry.zoo.models import build, load_encoder
from ctfoundry.zoo.segmenters import load_any, with_decoder

if TYPE_CHECKING:
    from torch import Tensor

RANDOM = "random"
STANDARDISED_ON = 8
"""Crops whose features tell a light decoder the scale of the encoder's channels."""


@dataclass(frozen=True, eq=False)
class Start:
    """A network to train.

    Attributes
    ----------
    network : its encoder has the weights of `init`.
    card : of the segmenter that it becomes, its weights not trained yet.
    init : what it begins from: ``model``, ``weights`` (trained or random), ``sha256``, ``kind``.
    notes : what a person should know.
    """

    network: nn.Module
    card: Card
    init: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def multiple(self) -> Vec3:
        """Sizes of inputs are multiples of this."""
        network: Any = self.network
        d, h, w = network.multiple
        return d, h, w


def start(
    recipe: SegmentationRecipe,
    names: Sequence[str],
    init: str | Path | Encoder | Segmenter | Classifier | None,
    *,
    weights: str | Path | None = None,
) -> Start:
    """The network of a recipe with the weights of `init`, on the CPU.

    Parameters
    ----------
    names : of the outputs in order, the background first.
    init : an encoder, a segmenter, a classifier, or what `zoo.load_any` takes; ``random`` for the recipe's architecture drawn from its
        seed. A segmenter goes on with its own network; what depends on the number of classes is drawn anew when they differ. Of a
        classifier its encoder is taken.
    weights : for a name of the zoo.

    Raises UsageError where `init` is None, WeightsError for weights that do not fit, SettingsError for a patch or windows that the
    network does not divide.
    """
    model = opened(recipe, init, weights=weights)
    if isinstance(model, Classifier):
        inner = model.encoder
        model = replace(inner, card=replace(inner.card, name=model.card.name, sha256=model.card.sha256))
    preparation = preparation_of(recipe.preparation) if recipe.preparation else model.preparation
    if isinstance(model, Segmenter):
        begun = _continued(recipe, names, model)
    else:
        card = with_decoder(
            model,
            names,
            extent=recipe.extent,
            decoder=recipe.decoder,
            depth=recipe.depth,
            preparation=preparation,
            name=recipe.name,
            seed=recipe.train.seed,
        )
        network = build(card)
        put_encoder(network, model.network, model.card.name)
        begun = Start(network, card, _told(model.card))
    if preparation.name != model.preparation.name:
        begun = replace(
            begun,
            notes=(
                *begun.notes,
                f"{model.card.name} comes with preparation {model.preparation.name!r}; this recipe uses {preparation.name!r}",
            ),
        )
    if any(p % m for p, m in zip(recipe.patch, begun.multiple, strict=True)):
        raise SettingsError(
            f"a patch of {recipe.patch} voxels is no multiple of {begun.multiple}, which this network needs",
            where="patch",
        )
    return begun


def opened(
    recipe: FinetuneRecipe,
    init: str | Path | Encoder | Segmenter | Classifier | None,
    *,
    weights: str | Path | None = None,
) -> Encoder | Segmenter | Classifier:
    """The model that a run of any kind begins from, on the CPU; raises UsageError where none is named."""
    if init is None:
        raise UsageError(
            "say what the encoder begins with: nobody should train from random weights without knowing",
            where="--init",
            do=f"--init MODEL (a run folder, a .safetensors file, hf://owner/name, a name of the zoo with --weights), or --init {RANDOM}",
        )
    if isinstance(init, Encoder | Segmenter | Classifier):
        return init
    if str(init) == RANDOM:
        if weights is not None:
            raise UsageError(f"--init {RANDOM} takes no weights", where="--weights")
        return load_encoder(recipe.model, weights="random", device="cpu", seed=recipe.train.seed)
    return load_any(init, weights=weights, device="cpu", seed=recipe.train.seed)


def _told(card: Card) -> dict[str, str]:
    return {"model": card.name, "weights": card.weights, "sha256": card.sha256, "kind": card.kind}


def _continued(recipe: SegmentationRecipe, names: Sequence[str], model: Segmenter) -> Start:
    """The segmenter's own network for these classes."""
    own = model.card
    preparation = preparation_of(recipe.preparation) if recipe.preparation else own.preparation
    card = replace(
        own,
        name=recipe.name,
        arguments={**own.arguments, "classes": len(names)},
        names=tuple(names),
        extent=recipe.extent,
        preparation=preparation,
        seed=recipe.train.seed,
        weights="random",
        sha256="",
        training={},
        tested_on=(),
        not_tested_on=(),
        source={},
        golden={},
        notes=(),
    )
    network = build(card)
    state, given = network.state_dict(), model.network.state_dict()
    same = tuple(names) == model.names
    inner: Any = network
    encoder = {*inner.encoder.state_dict(), *(f"encoder.{key}" for key in inner.encoder.state_dict())}
    fresh = [k for k in state if not same and k not in encoder and k in given and _by_class(k, state[k], given[k])]
    check_state(
        {k: v for k, v in state.items() if k not in fresh}, {k: v for k, v in given.items() if k not in fresh}, own.name
    )
    network.load_state_dict({k: v for k, v in given.items() if k not in fresh}, strict=False)
    check_features(network, model.network, own.name)
    note = (
        f"{own.name} tells other structures apart ({len(model.names) - 1}, here {len(names) - 1}): {len(fresh)} tensors of its last layers "
        f"are drawn anew ({', '.join(fresh[:2])}{', ...' if len(fresh) > 2 else ''}), all others are its own"
    )
    return Start(network, card, _told(own), () if same else (note,))


def _by_class(key: str, here: Tensor, there: Tensor) -> bool:
    """Whether a tensor has a row for each class: its shape follows their number, or it is a last layer's."""
    return here.shape != there.shape or any(part in key for part in ("head", "final_conv", "projections"))


def put_encoder(network: nn.Module, encoder: nn.Module, where: str) -> None:
    """Give a network's encoder another's weights, and check that it answers as that one does.

    Raises WeightsError that lists what is missing, unexpected or of another shape, and where features differ.
    """
    inner: Any = network
    check_state(inner.encoder.state_dict(), encoder.state_dict(), where)
    inner.encoder.load_state_dict(encoder.state_dict())
    check_features(network, encoder, where)


@torch.no_grad()
def check_features(network: nn.Module, other: nn.Module, where: str) -> None:
    """Raise WeightsError unless the network's encoder gives, for a small input, exactly the features of `other` or its encoder."""
    ours: Any = network
    theirs: Any = getattr(other, "encoder", other)
    names = tuple(level.name for level in theirs.levels)
    d, h, w = (max(16, 2 * max(level.stride[axis] for level in theirs.levels)) for axis in range(3))
    flat = max(level.stride[0] for level in theirs.levels) == 1 and len({lv.stride for lv in theirs.levels}) == 1
    x = golden_input((1, int(getattr(theirs, "in_channels", 1)), 1 if flat else d, h, w))
    found = []
    for module in (ours.encoder, theirs):
        # copies of one memory layout: with another one, torch may take another kernel, which rounds differently
        alike = copy.deepcopy(module).eval().to(memory_format=torch.contiguous_format)
        found.append(alike.features(x.to(next(alike.parameters()).device), names)[0])
    for name in names:
        if not torch.equal(found[0][name].cpu(), found[1][name].cpu()):
            raise WeightsError(
                f"the features of level {name!r} are not those of the weights that were loaded", where=where
            )


def leave_unused(network: nn.Module) -> list[str]:
    """Freeze what of the encoder has no part in the answers, such as a text tower or the kernels of another kind of input.

    Returns the names. The optimiser, its state on disk and processes that train together all want a gradient of every weight.
    """
    if not isinstance(network, EncoderDecoder):
        return []
    d, h, w = (max(16, 2 * m) for m in network.multiple)
    in_channels = int(getattr(network.encoder, "in_channels", 1))
    modes = [(part, part.training) for part in network.modules()]
    maps = network.eval().maps(torch.zeros(1, in_channels, d, h, w, device=next(network.parameters()).device))
    torch.stack([data.float().mean() for data in maps.values()]).sum().backward()
    for part, training in modes:
        part.training = training
    unused = [name for name, weight in network.encoder.named_parameters() if weight.grad is None]
    for name, weight in network.encoder.named_parameters():
        weight.requires_grad_(name not in unused and weight.requires_grad)
        weight.grad = None
    return unused


@torch.no_grad()
def standardise(begun: Start, cases: Sequence[PreparedCase], patch: Vec3, seed: int) -> None:
    """Tell a light decoder the mean and deviation of each channel of the encoder, on some training crops."""
    network = begun.network
    if not isinstance(network, EncoderDecoder) or not isinstance(network.decoder, LightDecoder):
        return
    if begun.init["kind"] == "segmenter":
        return  # it goes on with the numbers that its decoder has learnt from
    network.eval()
    place = next(network.parameters()).device
    rows: dict[str, list[Tensor]] = {}
    for i in range(STANDARDISED_ON):
        case = cases[i % len(cases)]
        first = draw_crop(Key.of("standardise", seed, i), anchors(case.labels), case.shape, patch, begun.multiple)
        for name, data in network.maps(cut(case, first, patch)[0][None].to(place)).items():
            rows.setdefault(name, []).append(data[0].flatten(1).double())
    moments = {}
    for name, parts in rows.items():
        every = torch.cat(parts, 1)
        moments[name] = every.mean(1), every.std(1, correction=0)
    network.decoder.standardise(moments)
