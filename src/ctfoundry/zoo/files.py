"""Model files: ``NAME.safetensors`` and its card ``NAME.json``. Strict: what does not fit is listed, never skipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ctfoundry import files
from ctfoundry.classifier import Classifier
from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import WeightsError
from ctfoundry.segmenter import Segmenter
from ctfoundry.settings import from_data, to_data
from ctfoundry.zoo import models
from ctfoundry.zoo.headers import check_size, read_json, read_safetensors

if TYPE_CHECKING:
    from torch import Tensor


def save_model(encoder: Encoder | Segmenter | Classifier, path: Path) -> Card:
    """Write the weights and the card beside them; returns the card with the weights' SHA-256."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in encoder.network.state_dict().items()}
    with files.whole(path) as part:
        save_file(state, part)
    card = replace(encoder.card, sha256=files.sha256(path))
    files.write_json(path.with_suffix(".json"), to_data(card))
    return card


def read_card(path: Path) -> Card:
    """The card beside a weight file."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise WeightsError(
            "has no card beside it",
            where=path,
            do=f"put {beside.name} there (weights never travel without it), or make both of a public checkpoint: `ctfoundry zoo convert`",
        )
    return from_data(Card, read_json(beside), str(beside))


def load_model(path: Path, *, device: torch.device | str = "cpu") -> Encoder:
    """The encoder of a weight file and its card; the file must be the very one that the card names."""
    network, card = _load(
        path, "encoder", "`load_segmenter` or `load_classifier`, `ctfoundry segment` or `ctfoundry classify`"
    )
    return Encoder.of(network.to(device), card)


def load_segmentation_model(path: Path, *, device: torch.device | str = "cpu") -> Segmenter:
    """The segmenter of a weight file and its card, as strict as `load_model`."""
    network, card = _load(path, "segmenter", "`load_encoder`")
    return Segmenter.of(network.to(device), card)


def _load(path: Path, kind: str, other: str) -> tuple[torch.nn.Module, Card]:
    if not path.is_file():
        raise WeightsError(
            "no weights there", where=path, do="is the run finished? `ctfoundry pretrain` writes them at its end"
        )
    card = read_card(path)
    if card.kind != kind:
        raise WeightsError(f"is no {kind}, its card says {card.kind!r}", where=path, do=f"use {other}")
    network = models.empty(card)
    digest = load_weights(network, path)
    if card.sha256 != digest:
        raise WeightsError(
            f"the weights have SHA-256 {digest[:12]}..., the card says {card.sha256[:12] or 'none'}...", where=path
        )
    return network, card


def load_weights(network: torch.nn.Module, path: Path) -> str:
    """Load a safetensors file strictly and return its SHA-256; raises WeightsError that lists every kind of misfit."""
    check_size(path)
    if path.suffix != ".safetensors":
        raise WeightsError("is no safetensors file", where=path, do="make one of it first: `ctfoundry zoo convert`")
    state = read_safetensors(path)
    check_state(network.state_dict(), state, path)
    network.load_state_dict(state)
    return files.sha256(path)


def check_state(
    expected: dict[str, Tensor], found: dict[str, Tensor], where: Path | str, *, types: bool = True
) -> None:
    """Raise WeightsError unless both hold the same names, shapes, number types (unless `types` is False) and finite values."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    common = [name for name in expected if name in found]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
        for name in common
        if found[name].shape != expected[name].shape
    ]
    kinds = [
        f"{name} is {found[name].dtype}, not {expected[name].dtype}"
        for name in common
        if types and found[name].dtype != expected[name].dtype
    ]
    # only where the shape is right: a file may claim a shape that no memory holds
    broken = [
        name
        for name in common
        if found[name].shape == expected[name].shape
        and found[name].is_floating_point()
        and not bool(found[name].isfinite().all())
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another type", kinds),
            ("not finite", broken),
        )
        if names
    ]
    if problems:
        raise WeightsError("the weights do not fit: " + "; ".join(problems), where=where)


def verify_model(path: Path) -> dict[str, str | int]:
    """Load a model strictly, compare it with its golden values, and say what it is and how its weights look."""
    from ctfoundry.zoo.classifiers import load_classification_model
    from ctfoundry.zoo.golden import check_golden
    from ctfoundry.zoo.looks import looks

    kind = read_card(path).kind if path.is_file() else "encoder"
    model: Encoder | Segmenter | Classifier
    if kind == "segmenter":
        model = load_segmentation_model(path)
    elif kind == "classifier":
        model = load_classification_model(path)
    else:
        model = load_model(path)
    card = model.card
    worst = check_golden(model)
    fresh = looks(model.network.state_dict())
    return {
        "name": card.name,
        "architecture": card.architecture,
        "preparation": card.preparation.name,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "sha256": card.sha256,
        "weights": card.weights,
        "looks": "; ".join(map(str, fresh)) or "trained",
        "golden": "none in the card"
        if worst is None
        else f"met to {worst:.2g} of {card.golden['tolerance']:.2g} allowed",
    }


def model_file(place: Path) -> Path:
    """The weight file of a run folder (``model.safetensors``), of a folder with one model, or the file itself."""
    if not place.is_dir():
        return place
    usual = place / "model.safetensors"
    there = [path for path in sorted(place.glob("*.safetensors")) if path.with_suffix(".json").is_file()]
    if usual.is_file() or not there:
        return usual
    if len(there) > 1:
        raise WeightsError(
            f"has {len(there)} models: {', '.join(p.name for p in there[:5])}", where=place, do="name one"
        )
    return there[0]
