"""Model files: ``NAME.safetensors`` and its card ``NAME.json``. Strict: what does not fit is listed, never skipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ctfoundry import files
from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import WeightsError
from ctfoundry.settings import from_data, to_data
from ctfoundry.zoo import models

if TYPE_CHECKING:
    from torch import Tensor


def save_model(encoder: Encoder, path: Path) -> Card:
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
            "has no card beside it", where=path, do=f"put {beside.name} there; weights never travel without it"
        )
    try:
        return from_data(Card, json.loads(beside.read_text()), str(beside))
    except json.JSONDecodeError as error:
        raise WeightsError(f"is not JSON: {error}", where=beside) from error


def load_model(path: Path, *, device: torch.device | str = "cpu") -> Encoder:
    """The encoder of a weight file and its card; the file must be the very one that the card names."""
    if not path.is_file():
        raise WeightsError(
            "no weights there", where=path, do="is the run finished? `ctfoundry pretrain` writes them at its end"
        )
    card = read_card(path)
    network = models.build(card)
    digest = load_weights(network, path)
    if card.sha256 != digest:
        raise WeightsError(
            f"the weights have SHA-256 {digest[:12]}..., the card says {card.sha256[:12] or 'none'}...", where=path
        )
    return Encoder.of(network.to(device), card)


def load_weights(network: torch.nn.Module, path: Path) -> str:
    """Load a safetensors file strictly and return its SHA-256; raises WeightsError that lists every kind of misfit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError("no such file", where=path)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"is no whole safetensors file: {error}", where=path) from error
    check_state(network.state_dict(), state, path)
    network.load_state_dict(state)
    return files.sha256(path)


def check_state(expected: dict[str, Tensor], found: dict[str, Tensor], where: Path) -> None:
    """Raise WeightsError unless both hold the same names, shapes and finite values."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    broken = [name for name, value in found.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("not finite", broken),
        )
        if names
    ]
    if problems:
        raise WeightsError("the weights do not fit: " + "; ".join(problems), where=where)


def verify_model(path: Path) -> dict[str, str | int]:
    """Load a model strictly and say what it is."""
    encoder = load_model(path)
    count = sum(p.numel() for p in encoder.network.parameters())
    return {
        "name": encoder.card.name,
        "architecture": encoder.card.architecture,
        "parameters": count,
        "sha256": encoder.card.sha256,
    }
