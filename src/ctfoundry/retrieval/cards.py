"""Whether two models, known by their cards as plain data, give the same vectors; and what to say where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAME_VECTORS = ("architecture", "arguments", "preparation", "extent", "level", "weights", "sha256", "seed")
"""What of a card decides the vectors; the rest (who trained it for how long) may differ."""


def same_model(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two cards, as plain data, give the same vectors."""
    return not _differences(a, b)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [key for key in SAME_VECTORS if _with_one_patch(a[key]) != _with_one_patch(b[key])]


def _with_one_patch(value: Any) -> Any:
    """A card's value, where a patch that is written for each axis is one number if all are equal: 8 means 8x8x8."""
    if not isinstance(value, Mapping):
        return value
    patch = value.get("patch")
    same = {"patch": patch[0]} if isinstance(patch, list) and len(set(patch)) == 1 else {}
    return {key: _with_one_patch(v) for key, v in value.items()} | same


def patch_of(card: Mapping[str, Any]) -> int | list[int] | None:
    """The patch of a card, as plain data: one number, or one an axis where they differ; None where the network has none."""
    arguments = _with_one_patch(card["arguments"])
    size: int | list[int] | None = arguments.get("vision", arguments).get("patch")  # of a pair, its vision network's
    return size


def how_they_differ(there: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, str]:
    """(what is wrong, what to do) where a folder's card is not `same_model` as the given one."""

    def patch(card: Mapping[str, Any]) -> str:
        size = patch_of(card)
        return "x".join(map(str, size)) if isinstance(size, list) else str(size or "")

    # a patch also decides what the preparation pads to, and how large a cube is
    if patch(there) != patch(given) and set(_differences(there, given)) <= {"arguments", "preparation", "extent"}:
        made = patch(there)
        return f"was made with a patch of {made}, not {patch(given)}", f"give --patch {made}"
    return (
        f"was made by {called(there)} with other weights or settings, not by this {called(given)}",
        "give --model the one that made it",
    )


def called(card: Mapping[str, Any]) -> str:
    """The name of a card's model, in quotes, and where its weights are random, their seed."""
    return repr(card["name"]) + (f" (random weights, seed {card['seed']})" if card["weights"] == "random" else "")
