"""Public checkpoints in, through a strict door: a source becomes ``NAME.safetensors`` and its card.

Every tensor of the network must be there, in its shape, finite; nothing unknown may lie beside it. What is dropped or converted on
purpose is said in the card. Weights that look untrained, and those of another model than the one asked for, are named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ctfoundry import __version__, files
from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import CTFoundryError, UsageError, WeightsError
from ctfoundry.preparation import preparation as preparation_of
from ctfoundry.settings import nearest
from ctfoundry.zoo import hub, models, sources
from ctfoundry.zoo.files import check_state, read_card, save_model
from ctfoundry.zoo.golden import golden_of
from ctfoundry.zoo.looks import Look, looks, untouched_norms
from ctfoundry.zoo.sources import Found

if TYPE_CHECKING:
    from torch import Tensor

WHOLE_BODY = 118
"""Classes of CT-FM's whole-body segmentation model."""

_LICENCES = {
    "segresnet-encoder": "Apache-2.0, as reported for the public weights; see the source",
    "flexible-vit": "CC BY-NC-ND 4.0, as stated for the public weights: no commercial use, no sharing of changed copies",
    "flexict-vlm": "CC BY-NC-ND 4.0, as stated for the public weights; the text tower is Qwen3-Embedding (Apache-2.0), fine-tuned",
    "suprem-unet": "not stated in the file; see github.com/MrGiovanni/SuPreM",
    "suprem-segresnet": "not stated in the file; see github.com/MrGiovanni/SuPreM",
}
_NOTES = {
    "ct-fm": (
        "prepared on the grid of pretraining (SPL, 3x1x1 mm, cropped to HU > 0); the public card of the feature extractor shows "
        "native spacing, which is another input than the weights were trained on: convert with preparation 'ct-fm-native' to follow it"
    ),
    "ct-fm-native": (
        "prepared at native spacing (SPL, cropped to HU > -1024), as the public card of the feature extractor shows; the weights were "
        "trained on 3x1x1 mm, so features depend on the scan's spacing"
    ),
    "ct-fm-1.5mm": "prepared on 1.5 mm (SPL, margin 10), the grid of the segmentation data; the public card omits the spacing",
    "flexict-2d": "slices are z-scored one by one; orientation SPL is ours, the public loaders fix none",
    "flexict-3d": "orientation SPL is ours, the public loaders fix none",
    "suprem": "clipped to -175..250 HU at 1.5 mm as SuPreM was trained; CT-FM's comparison gave it -1024..2048 HU",
}


@dataclass(frozen=True)
class Converted:
    """What a conversion came to.

    Attributes
    ----------
    path : the weights; the card lies beside them.
    card : as written.
    skipped : whether it was there already, from the same source.
    dropped : tensors left out, by prefix and what they are.
    types : tensors whose number type changed, by kind of change.
    looks : parts that look freshly initialised, in words.
    """

    path: Path
    card: Card
    skipped: bool
    dropped: Mapping[str, int]
    types: Mapping[str, int]
    looks: tuple[str, ...]


def convert(
    source: str | Path,
    out: Path,
    *,
    name: str | None = None,
    preparation: str | None = None,
    replace_other: bool = False,
) -> Converted:
    """Make a model file of a public checkpoint.

    Parameters
    ----------
    source : a hub folder, a weight file, or ``hf://owner/name[@revision][/file]``.
    out : a ``.safetensors`` file, or a folder in which ``NAME.safetensors`` is made.
    name : of the zoo; None: what the keys say. Another name needs a `preparation` and is for SegResNet encoders of any width.
    preparation : another published preparation than the zoo's for this name.
    replace_other : whether a model from another source may be overwritten.

    Raises UsageError and WeightsError; nothing is written then. The same source with the same settings is not converted again.
    """
    fetched = None
    place = Path(source)
    if hub.is_hub(source):
        fetched = hub.fetch(hub.parse(str(source)))
        place = fetched.path
    origin = hub.parse(str(source)) if fetched else None
    if name is not None and (found := finished(place, out, name, preparation, replace_other)):
        return found
    raw = sources.read(place)
    network = sources.find(raw)
    if raw.config is not None:
        sources.check_config(raw.config, network, place)
    hint = " ".join([raw.path.name, *([origin.repo] if origin else [])])
    chosen = name or _guess(network, hint, raw.path)
    if (
        chosen in models.CARDS
        and models.CARDS[chosen].architecture == "flexict-vlm"
        and network.architecture == "flexible-vit"
    ):
        network = sources.with_text(network)
    target = _target(out, chosen)
    if name is None and (found := finished(place, out, chosen, preparation, replace_other)):
        return found
    card = _card(chosen, preparation, network, raw.path)
    state, types = _fitted(card, network, raw.path)
    fresh = looks(state)
    _check_place(card, network, fresh, raw.path)
    made = models.empty(card)
    made.load_state_dict(state)
    whole = any(not look.part for look in fresh)
    words = (*map(str, fresh), *(() if whole else map(str, _looks_beside(network))))
    card = replace(
        card,
        weights="random" if whole else "trained",
        licence=_LICENCES[card.architecture],
        source={
            "format": raw.path.suffix.lstrip(".") or "file",
            "files": dict(raw.hashes),
            "entry": raw.container,
            "other_entries": list(raw.others[:50]),
            "dropped": dict(network.dropped),
            "types": dict(types),
            "preparation": preparation or "",
            "converted_by": f"ctfoundry {__version__}",
            **({"hub": str(origin), "commit": fetched.commit} if origin and fetched else {}),
        },
        notes=(
            *((_NOTES[card.preparation.name],) if card.preparation.name in _NOTES else ()),
            *words,
            *_seen(state, whole),
        ),
        tested_on=("names, shapes and types of all tensors against the published list", "all values finite"),
        not_tested_on=("published benchmark numbers", "scans"),
    )
    encoder = Encoder.of(made, card)
    encoder = replace(encoder, card=replace(card, golden=golden_of(encoder)))
    return Converted(target, save_model(encoder, target), False, network.dropped, types, words)


def load_from_hub(name: str, *, model: str | None = None, device: torch.device | str = "cpu") -> Encoder:
    """The encoder of a hub name: converted once, strictly, and from then on loaded from our cache and checked against its card.

    `model` says what it is where the keys cannot (FlexiCT's 2D and 3D files have the same).
    """
    from ctfoundry.zoo.files import load_model

    wanted = hub.parse(name)
    folder = hub.converted_folder(wanted)
    known = model or hub.KNOWN.get(wanted.repo)
    there = [folder / f"{known}.safetensors"] if known else sorted(folder.glob("*.safetensors"))
    for path in there[:1]:
        if path.is_file() and path.with_suffix(".json").is_file():
            return load_model(path, device=device)
    done = convert(name, folder, name=known)
    return load_model(done.path, device=device)


def _target(out: Path, name: str) -> Path:
    return out if out.suffix == ".safetensors" else out / f"{name}.safetensors"


def finished(place: Path, out: Path, name: str, preparation: str | None, replace_other: bool) -> Converted | None:
    """The finished work of an earlier run with the same source and settings; raises UsageError over that of another."""
    path = _target(out, name)
    if not path.is_file():
        return None
    weights, config = sources.weight_file(place)
    hashes = {weights.name: files.sha256(weights)} | ({} if config is None else {"config.json": files.sha256(config)})
    try:
        card = read_card(path)
    except CTFoundryError:
        card = None
    if card is None or card.sha256 != files.sha256(path):
        if replace_other or (card is not None and card.source.get("files") == hashes):
            return None  # half of an earlier run: made again
        raise UsageError(f"{path}: a file that is no finished model lies there", do="give another place, or --replace")
    same = (
        card.source.get("files") == hashes
        and card.name == name
        and card.source.get("preparation") == (preparation or "")
    )
    if same:
        kept: Any = card.source
        words = tuple(note for note in card.notes if "looks freshly initialised" in note)
        return Converted(path, card, True, kept.get("dropped", {}), kept.get("types", {}), words)
    if not replace_other:
        raise UsageError(
            f"{path}: another model lies there ({card.name}, of a source with other files or settings)",
            do="give another place, or --replace",
        )
    return None


def _guess(found: Found, hint: str, where: Path) -> str:
    """The zoo's name of what a source holds."""
    if found.architecture == "flexible-vit":
        if any(key.split(".")[0] == "text_model" or ".text_model." in key for key in found.beside):
            return "flexict-vlm"
        match = re.search(r"(?<![0-9a-z])([23])d(?![0-9a-z])", hint.lower().replace("_", " "))
        if match:
            return f"flexict-{match[1]}d"
        raise WeightsError(
            "FlexiCT's 2D and 3D files have the same keys, so they do not say which this is",
            where=where,
            do="say it: --as flexict-2d or --as flexict-3d",
        )
    if sources.classes(found) == WHOLE_BODY:
        return "ct-fm-whole-body"
    fitting = _fitting(found)
    if not fitting:
        raise WeightsError(
            f"is {describe(found)}, which has no name in the zoo", where=where, do="give --as and --preparation"
        )
    return fitting[0]


def _card(name: str, preparation: str | None, found: Found, where: Path) -> Card:
    if name in models.CARDS:
        card = models.CARDS[name]
        if card.architecture != found.architecture:
            raise WeightsError(
                f"is {describe(found)}, not {name}, which is a {card.architecture}", where=where, do=_advice(found)
            )
    elif preparation is None:
        raise UsageError(
            f"no model of the zoo is called {name!r}; {nearest(name, models.CARDS)}",
            do="another name needs a --preparation",
        )
    elif found.architecture != "segresnet-encoder":
        raise UsageError(f"a name of your own is for SegResNet encoders; this is {describe(found)}", do=_advice(found))
    else:
        card = replace(models.CARDS["ct-fm"], name=name, arguments=dict(found.arguments), origin="")
        card = replace(card, level=f"stage{len(found.arguments['blocks']) - 1}")
    return card if preparation is None else replace(card, preparation=preparation_of(preparation))


def _fitted(card: Card, found: Found, where: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The network's tensors in its own number types; raises WeightsError that lists every misfit."""
    expected = models.empty(card, device="meta").state_dict()
    try:
        check_state(expected, found.state, where, types=False)
    except WeightsError as error:
        fitting = [other for other in _fitting(found) if other != card.name]
        do = f"the shapes are those of {' or '.join(fitting)}: --as {fitting[0]}" if fitting else None
        raise WeightsError(f"as {card.name}, {error.what}", where=where, do=do) from error
    types: Counter[str] = Counter()
    state = {}
    for name, value in found.state.items():
        kind = expected[name].dtype
        if value.dtype != kind:
            if value.is_floating_point() is not kind.is_floating_point:
                raise WeightsError(f"{name} is {_short(value.dtype)}, not {_short(kind)}", where=where)
            types[f"{_short(value.dtype)} -> {_short(kind)}"] += 1
            if not bool(value.to(kind).isfinite().all()):
                raise WeightsError(f"{name} is not finite as {_short(kind)}", where=where)
        state[name] = value.to(kind)
    return state, dict(types)


def _check_place(card: Card, found: Found, fresh: tuple[Look, ...], where: Path) -> None:
    """Raise WeightsError for an encoder from the wrong repository: one whose keys fit and whose weights are another model's."""
    segments = sources.classes(found)
    if card.name == "ct-fm" and segments == WHOLE_BODY:
        raise WeightsError(
            "is CT-FM's whole-body segmentation model (118 classes): its encoder was fine-tuned on 1.5 mm and is not the "
            "feature extractor",
            where=where,
            do="--as ct-fm-whole-body, or take hf://project-lighter/ct_fm_feature_extractor",
        )
    if card.name == "ct-fm-whole-body" and segments != WHOLE_BODY:
        what = "has no decoder" if segments is None else f"has {segments} classes"
        raise WeightsError(
            f"is not CT-FM's whole-body segmentation model: it {what}, not 118 classes",
            where=where,
            do="--as ct-fm, if it is the feature extractor",
        )
    axes = int(card.arguments.get("axes", 0))
    needed = f"patch_embed_{axes}D"
    if axes and any(look.part == needed for look in fresh):
        raise WeightsError(
            f"is trained, but its {needed} looks freshly initialised: these are weights for {5 - axes}D input, not {card.name}",
            where=where,
            do="give the other file, or --as the other model",
        )


def _fitting(found: Found) -> list[str]:
    """Names of the zoo whose network has exactly these keys and shapes."""
    names = []
    for name, card in models.CARDS.items():
        if card.architecture != found.architecture:
            continue
        expected = models.empty(card, device="meta").state_dict()
        if {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in found.state.items()}:
            names.append(name)
    return names


def describe(found: Found) -> str:
    """What a source holds, in words."""
    arguments = found.arguments
    if found.architecture == "flexict-vlm":
        return "FlexiCT's transformer with its text tower"
    if found.architecture == "flexible-vit":
        text = " with its text tower" if any("text_model" in key for key in found.beside) else ""
        return f"a FlexiCT transformer ({arguments.get('width')} wide, {arguments.get('blocks')} blocks){text}"
    if found.architecture.startswith("suprem"):
        return "SuPreM's U-Net" if found.architecture == "suprem-unet" else "SuPreM's SegResNet"
    count = sources.classes(found)
    if count == WHOLE_BODY:
        return "CT-FM's whole-body segmentation model (118 classes)"
    decoder = f" with a decoder of {count} classes" if count else ""
    return f"a CT-FM encoder ({arguments.get('filters')} filters){decoder}"


def _advice(found: Found) -> str | None:
    fitting = _fitting(found)
    return f"--as {' or --as '.join(fitting)}" if fitting else None


def _looks_beside(found: Found) -> list[Look]:
    """Parts that were dropped and look freshly initialised, such as a random decoder beside a trained encoder."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in found.beside.items():
        label = next(
            label
            for label in (text.split(" (")[0] for text in found.dropped)
            if key == label or key.startswith(label + ".")
        )
        groups.setdefault(label, {})[f"part.{key}"] = value
    return [replace(look, part=label) for label, group in groups.items() for look in looks(group)]


def _seen(state: Mapping[str, Tensor], whole: bool) -> tuple[str, ...]:
    """A note on batch norms that never counted a batch in a network that is trained otherwise."""
    count = untouched_norms(state)
    return (f"{count} batch norms never saw a batch (mean 0, variance 1)",) if count and not whole else ()


def _short(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
