"""Segmenters by name of their files, and labels of a scan in one call."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ctfoundry import structures
from ctfoundry.classifier import Classifier
from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import SettingsError, UsageError, WeightsError
from ctfoundry.infer.passes import Extent
from ctfoundry.models.unet import deepest
from ctfoundry.preparation import Preparation
from ctfoundry.preparation import preparation as preparation_of
from ctfoundry.segmenter import Pass, Segmenter
from ctfoundry.volume import Volume
from ctfoundry.zoo.models import device_of

if TYPE_CHECKING:
    from torch import Tensor

    from ctfoundry.zoo import sources

PUBLISHED = Extent("windows", (96, 160, 160), 0.625, "gaussian")
"""Windows of CT-FM's segmentation models (reference, section 2)."""


WHOLE_BODY = "ct-fm-whole-body-segmenter"
"""The one segmenter that the zoo knows by name: CT-FM's, of the 117 structures of TotalSegmentator v2."""


SUPREM = {"suprem-unet-segmenter": "running", "suprem-unet-published-segmenter": "batch"}
"""SuPreM's whole U-Net by name, to begin a fine-tuning from, with its norm corrected or as published."""
UNTRAINED = ("background", "untrained output")
"""Outputs of a network whose last layer is drawn: its file has none of its own."""


def whole_body() -> Card:
    """The card of `WHOLE_BODY`, without weights."""
    from ctfoundry.zoo.models import CARDS

    encoder = CARDS["ct-fm-whole-body"]
    return Card(
        name=WHOLE_BODY,
        kind="segmenter",
        architecture="segresnet-ds",
        arguments={"classes": 118, **encoder.arguments, "blocks_up": [1, 1, 1, 1], "depth": 4},
        preparation=encoder.preparation,
        extent=PUBLISHED,
        level="",
        vector="",
        weights="random",
        origin=encoder.origin,
        names=structures.system("totalsegmentator").names,
    )


def load_segmenter(
    model: str | Path, *, weights: str | Path | None = None, device: str = "auto", seed: int = 0
) -> Segmenter:
    """A segmenter ready to use, in eval mode.

    Parameters
    ----------
    model : a run folder, a ``.safetensors`` file with its card beside it, `WHOLE_BODY`, or ``hf://owner/name[@revision][/file]`` of the
        same network, which is converted into our cache once and loaded from there.
    weights : for `WHOLE_BODY`: a ``.safetensors`` file, a hub name, or ``"random"``; random weights come only when asked.
    device : ``auto``, ``cpu`` or ``cuda[:i]``.
    seed : of random weights.
    """
    from ctfoundry.zoo import hub, models
    from ctfoundry.zoo.files import load_segmentation_model, load_weights, model_file

    place, path = device_of(device), Path(model)
    if hub.is_hub(model) and weights is None:
        return load_segmentation_model(_from_hub(str(model)), device=place)
    if str(model) == WHOLE_BODY:
        card = whole_body()
        if weights is None:
            raise WeightsError(
                f"{WHOLE_BODY!r} names a network; no weights come with it",
                do="give weights=FILE.safetensors, hf://project-lighter/whole_body_segmentation, or weights='random'",
            )
        if weights == "random":
            card = replace(card, seed=seed)
            return Segmenter.of(models.build(card).to(place), card)
        if hub.is_hub(weights):
            return load_segmentation_model(_from_hub(str(weights)), device=place)
        network = models.empty(card)
        digest = load_weights(network, Path(weights))
        return Segmenter.of(network.to(place), replace(card, weights="trained", sha256=digest))
    if not path.exists():
        raise UsageError(
            f"there is no file or folder {str(model)!r}",
            do=f"give a run folder, a .safetensors file, {WHOLE_BODY} with weights, or hf://owner/name",
        )
    if weights is not None:
        raise UsageError(
            f"{model}: a run or weight file brings its own weights; weights={weights!r} has no meaning here"
        )
    return load_segmentation_model(model_file(path), device=place)


def _from_hub(name: str) -> Path:
    """The converted file of a hub name, in our cache."""
    from ctfoundry.zoo import hub

    wanted = hub.parse(name)
    path = hub.converted_folder(wanted) / f"{WHOLE_BODY}.safetensors"
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        convert_segmenter(hub.fetch(wanted).path, path, whole_body().names)
    return path


def load_any(
    model: str | Path, *, weights: str | Path | None = None, device: str = "auto", seed: int = 0
) -> Encoder | Segmenter | Classifier:
    """An encoder, a segmenter or a classifier, whichever the model is; `load_encoder` says what it takes."""
    from ctfoundry.zoo.classifiers import load_classifier
    from ctfoundry.zoo.files import model_file, read_card
    from ctfoundry.zoo.models import CARDS, load_encoder

    path = Path(model)
    if str(model) == WHOLE_BODY:
        return load_segmenter(model, weights=weights, device=device, seed=seed)
    if str(model) not in CARDS and weights is None and path.exists() and model_file(path).is_file():
        kind = read_card(model_file(path)).kind
        if kind == "segmenter":
            return load_segmenter(path, device=device)
        if kind == "classifier":
            return load_classifier(path, device=device)
    return load_encoder(model, weights=weights, device=device, seed=seed)


def segment(
    volume: Volume,
    model: str | Path | Segmenter,
    *,
    labels: Sequence[str] | None = None,
    largest: bool | Collection[str] = False,
    settings: Pass | None = None,
    device: str = "auto",
) -> Volume:
    """The label map of a scan on its own grid (`Segmenter.__call__` says more).

    `model` is a segmenter, or what `load_segmenter` takes; the last one loaded is kept while its file stays the same.
    """
    if isinstance(model, Segmenter):
        ready = model
    else:
        from ctfoundry.zoo.files import model_file

        path = Path(model)
        file = model_file(path) if path.exists() else path
        stamp = file.stat() if file.is_file() else None
        ready = _kept(str(file.absolute()), (stamp.st_mtime_ns, stamp.st_size) if stamp else None, device)
    return ready(volume, labels=labels, largest=largest, settings=settings)


@lru_cache(maxsize=1)
def _kept(file: str, _stamp: tuple[int, int] | None, device: str) -> Segmenter:
    return load_segmenter(file, device=device)


def with_decoder(
    encoder: Encoder,
    names: Sequence[str],
    *,
    extent: Extent,
    decoder: Literal["own", "unet", "light"] = "own",
    depth: int = 4,
    preparation: Preparation | None = None,
    name: str = "",
    seed: int = 0,
) -> Card:
    """The card of a segmentation network around an encoder's architecture, its weights not trained (`zoo.build` makes it).

    Parameters
    ----------
    names : of the outputs in order, the background first.
    extent : windows of the segmenter, or the whole scan.
    decoder : ``own``: the one published with the family, where we have it, else ``unet``; ``unet`` or ``light`` (`EncoderDecoder`).
    depth : resolutions with logits in training, as far as the decoder has them.
    preparation : another one than the encoder's. For whole scans it is made to pad to what the network divides.

    Raises SettingsError for windows that do not hold whole cells of the network, or a preparation of other channels.
    """
    own = encoder.card
    chosen = preparation or encoder.preparation
    channels = _channels(chosen)
    wanted = int(own.arguments.get("vision", own.arguments).get("in_channels", 1))
    if channels != wanted:
        raise SettingsError(f"preparation {chosen.name!r} makes {channels} channels, the encoder takes {wanted}")
    largest = deepest(encoder.levels)
    if decoder == "own" and own.architecture == "segresnet-encoder":
        steps = len(own.arguments["blocks"]) - 1
        architecture = "segresnet-ds"
        arguments = {**own.arguments, "blocks_up": [1] * steps, "depth": min(depth, steps)}
    elif decoder == "own" and own.architecture == "suprem-unet":
        architecture, arguments = "suprem-unet-full", dict(own.arguments)
    else:
        architecture = "encoder-decoder"
        arguments = {
            "encoder": {"architecture": own.architecture, "arguments": dict(own.arguments)},
            "decoder": "light" if decoder == "light" else "unet",
            "in_channels": channels,
            "width": 16 if decoder == "light" else min(32, encoder.levels[0].channels),
            "depth": depth,
            "slices": encoder.extent.mode == "slices",
        }
    if extent.size is not None and any(n % m for n, m in zip(extent.size, largest, strict=True)):
        raise SettingsError(f"windows of {extent.size} voxels are no multiple of {largest}, which {own.name} needs")
    if extent.mode == "whole":
        d, h, w = (math.lcm(n, m) for n, m in zip(chosen.sizing.multiple, largest, strict=True))
        chosen = replace(chosen, sizing=replace(chosen.sizing, multiple=(d, h, w)))
    return Card(
        name=name or f"{own.name}-segmenter",
        kind="segmenter",
        architecture=architecture,
        arguments={"classes": len(names), **arguments},
        preparation=chosen,
        extent=extent,
        level="",
        vector="",
        weights="random",
        origin=own.origin,
        licence=own.licence,
        seed=seed,
        names=tuple(names),
    )


def _channels(preparation: Preparation) -> int:
    intensity = preparation.intensity
    return len(intensity.windows) if intensity.stack == "channel" else 1


def convert_segmenter(
    source: str | Path,
    out: str | Path,
    names: Sequence[str] | None = None,
    *,
    name: str = WHOLE_BODY,
    preparation: str | None = None,
    extent: Extent | None = None,
    licence: str = "",
    replace_other: bool = False,
) -> Card:
    """A public segmentation model, encoder and decoder, as a safetensors file with its card: CT-FM's `SegResNetDS`, or SuPreM's U-Net.

    SuPreM's published file has a head that text drives, and a last layer of one output without use. Where the outputs are not as many as
    the names, its last layer is drawn, and the card says so: such a model is to begin a fine-tuning from.

    Parameters
    ----------
    source : a weight file, or a hub folder with ``model.safetensors``; read safely, as `convert` does.
    out : the ``.safetensors`` file to write.
    names : of the outputs in order, the background first; the weights do not tell them. Default: the whole body's, or `UNTRAINED`.
    name, preparation, extent, licence : for the card; the defaults are those of the whole-body model, or of SuPreM by name (`SUPREM`).
    replace_other : whether a model of another source may be overwritten; one of the same source is not made again.

    Raises WeightsError for anything missing, unexpected or mis-shaped, and for another number of outputs than names; UsageError where
    something else lies in the place.
    """
    from ctfoundry.zoo import models, sources
    from ctfoundry.zoo.convert import finished
    from ctfoundry.zoo.files import check_state, save_model
    from ctfoundry.zoo.golden import golden_of

    target = Path(out)
    if target.suffix != ".safetensors":
        raise UsageError(f"{target}: name the file to write, NAME.safetensors")
    there = finished(Path(source), target, name, preparation, replace_other)
    if there is not None and (names is None or tuple(names) == there.card.names):
        return there.card
    if there is not None and not replace_other:
        raise UsageError(f"{target}: the same model with other names lies there", do="give another place, or --replace")
    raw = sources.read(Path(source))
    found = sources.find(raw)
    state = sources.with_decoder(found, raw.path)
    if raw.config is not None:
        sources.check_config(raw.config, found, raw.path)
    if (found.architecture == "suprem-unet") != (name in SUPREM):
        raise WeightsError(
            f"is a {found.architecture}, not {name}", where=raw.path, do=f"--as {next(iter(SUPREM))}, or {WHOLE_BODY}"
        )
    if name in SUPREM:
        made = _suprem(found, state, tuple(names or UNTRAINED), name)
        card = replace(
            made.card,
            preparation=made.preparation if preparation is None else preparation_of(preparation),
            extent=extent or made.extent,
            licence=licence or made.card.licence,
            source={"files": dict(raw.hashes), "preparation": preparation or ""},
        )
        made = Segmenter.of(made.network, card)
        return save_model(replace(made, card=replace(card, golden=golden_of(made))), target)
    names = tuple(names or whole_body().names)
    steps = len(found.arguments["blocks"]) - 1
    heads = [i for i in range(steps) if f"up_layers.{i}.head.weight" in state]
    blocks_up = [
        len({key.split(".")[3] for key in state if key.startswith(f"up_layers.{i}.blocks.")}) for i in range(steps)
    ]
    outputs = sources.classes(found)
    if outputs != len(names):
        raise WeightsError(f"has {outputs} outputs, but {len(names)} names were given", where=raw.path)
    card = Card(
        name=name,
        kind="segmenter",
        architecture="segresnet-ds",
        arguments={"classes": outputs, **found.arguments, "blocks_up": blocks_up, "depth": len(heads)},
        preparation=preparation_of(preparation or "ct-fm-1.5mm"),
        extent=extent or PUBLISHED,
        level="",
        vector="",
        weights="trained",
        origin="arXiv 2501.09001",
        licence=licence,
        tested_on=("names, shapes and types of all tensors", "all values finite"),
        not_tested_on=("published Dice", "scans"),
        source={"files": dict(raw.hashes), "preparation": preparation or ""},
        names=tuple(names),
    )
    network = models.empty(card)
    expected = network.state_dict()
    check_state(expected, state, raw.path, types=False)
    network.load_state_dict({key: value.to(expected[key].dtype) for key, value in state.items()})
    made = Segmenter.of(network, card)
    return save_model(replace(made, card=replace(card, golden=golden_of(made))), target)


def _suprem(found: sources.Found, state: Mapping[str, Tensor], names: tuple[str, ...], name: str) -> Segmenter:
    """SuPreM's whole U-Net; its last layer is the file's where that has as many outputs as names, else drawn."""
    from ctfoundry.zoo import models
    from ctfoundry.zoo.files import check_state

    base = models.CARDS["suprem-unet"]
    arguments = {"classes": len(names), **found.arguments, "norm": SUPREM[name]}
    card = Card(
        name=name,
        kind="segmenter",
        architecture="suprem-unet-full",
        arguments=arguments,
        preparation=base.preparation,
        extent=replace(base.extent, blend="gaussian"),
        level="",
        vector="",
        weights="trained",
        origin=base.origin,
        licence="not stated in the file; see github.com/MrGiovanni/SuPreM",
        tested_on=("names, shapes and types of all tensors", "all values finite"),
        not_tested_on=("published Dice", "scans"),
        seed=0,
        names=names,
    )
    network = models.build(card)
    expected, last = network.state_dict(), "out_tr.final_conv"
    drawn = {
        key for key in expected if key.startswith(last) and (key not in state or state[key].shape[0] != len(names))
    }
    check_state(
        {key: value for key, value in expected.items() if key not in drawn},
        {key: value for key, value in state.items() if key not in drawn},
        name,
        types=False,
    )
    network.load_state_dict(
        {key: value if key in drawn else state[key].to(value.dtype) for key, value in expected.items()}
    )
    note = (
        "its last layer is drawn, not trained: fine-tune it before use"
        if drawn
        else "its outputs were trained as sigmoids"
    )
    return Segmenter.of(network, replace(card, notes=(note,)))
