"""The card of an embeddings folder: which model with which settings made it, and whether another one would give the same.

Nothing here needs torch, so that commands about folders start at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctfoundry import files
from ctfoundry.errors import StoreError
from ctfoundry.geometry import Vec3
from ctfoundry.settings import to_data

if TYPE_CHECKING:
    from ctfoundry.infer.passes import Precision

SAME_VECTORS = ("architecture", "arguments", "preparation", "extent", "level", "weights", "sha256", "seed")
"""What of a card decides the vectors; the rest (who trained it for how long) may differ."""


def same_model(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two cards, as plain data, give the same vectors."""
    return not _differences(a, b)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [key for key in SAME_VECTORS if with_one_patch(a[key]) != with_one_patch(b[key])]


def with_one_patch(value: Any) -> Any:
    """A card's value, where a patch that is written for each axis is one number if all are equal: 8 means 8x8x8."""
    if not isinstance(value, Mapping):
        return value
    patch = value.get("patch")
    same = {"patch": patch[0]} if isinstance(patch, list) and len(set(patch)) == 1 else {}
    return {key: with_one_patch(v) for key, v in value.items()} | same


def patch_of(card: Mapping[str, Any]) -> int | list[int] | None:
    """The patch of a card, as plain data: one number, or one an axis where they differ; None where the network has none."""
    arguments = with_one_patch(card["arguments"])
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


@dataclass(frozen=True)
class Settings:
    """What is embedded of each scan.

    Attributes
    ----------
    vectors : of the whole scan: the network's tokens, mean, max or min, ``windows:mean|max|min``; by default the model's own.
    window, overlap : also each window alone, in voxels of the prepared scan.
    slices : also each slice along axis 0 of the prepared scan alone.
    roi : also a vector ``roi:NAME`` for each label of the scan's label map.
    grids : also maps of the scan, in a file a scan (`retrieval.grids`).
    levels : which maps; by default those that a search takes and the model's own, in a folder that has maps already the same as there.
    """

    vectors: tuple[str, ...] = ()
    window: Vec3 | None = None
    overlap: float = 0.0
    grids: bool = False
    precision: Precision = "fp32"
    slices: bool = False
    roi: bool = False
    levels: tuple[str, ...] = ()


STANDARD = Settings()
"""The model's own vector of each scan."""


def read_card(out: Path) -> dict[str, Any]:
    """``card.json`` of an embeddings folder: the model's card and the settings. Raises StoreError for any other folder."""
    try:
        card: dict[str, Any] = json.loads((out / "card.json").read_text())
        card["model"]["architecture"]
        # earlier versions had fewer settings, and maps of one level
        of_maps = {"levels": [card["model"]["level"]] if card["settings"].get("grids") else []}
        card["settings"] = to_data(STANDARD) | of_maps | card["settings"]
    except FileNotFoundError:
        raise StoreError(
            "is no embeddings folder: it has no card.json", where=out, do="make one with `ctfoundry embed`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"is no card of embeddings ({error})", where=out / "card.json") from error
    return card


def held_levels(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Levels of the maps that a folder with this card (`read_card`) stores, finest first; none where it stores no maps."""
    return tuple(card["settings"]["levels"])


def mark(card: Mapping[str, Any]) -> str:
    """A digest of what `check_same` compares, of a card as `read_card` gives it: parts say by it whose they are.

    Settings count where they are not the usual ones, so that one which comes later leaves the marks of older parts as they are.
    """
    model = {key: with_one_patch(card["model"].get(key)) for key in SAME_VECTORS}
    usual = to_data(STANDARD)
    settings = {key: value for key, value in card["settings"].items() if value != usual.get(key)}
    return files.digest({"model": model, "settings": settings})[:16]


def check_same(a: Path, b: Path) -> Sequence[str]:
    """The vectors' names of two folders that one model made with the same settings. Raises StoreError for others."""
    one, other = read_card(a), read_card(b)
    if not same_model(one["model"], other["model"]):
        raise StoreError(
            f"was made by {called(other['model'])} with other weights or preparation than {called(one['model'])}",
            where=b,
            do="embed its scans with the same model",
        )
    if one["settings"] != other["settings"]:
        raise StoreError("was made with other settings", where=b, do="embed its scans with the same settings")
    vectors: list[str] = one["settings"]["vectors"]
    return vectors
