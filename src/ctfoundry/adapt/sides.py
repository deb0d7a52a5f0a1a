"""Whether left is left: structures that come in pairs, by where they lie in a label map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Integer

    from ctfoundry.geometry import Affine

SAMPLED = 2_000_000
"""Voxels that are looked at in a map."""
FEWEST = 8
"""Sampled voxels of a structure below which its place says nothing."""
CROSSED_MM = 10.0
"""How far a left structure must lie to the right of its counterpart."""


def places(labels: Integer[np.ndarray, "d h w"], affine: Affine, names: Mapping[int, str]) -> dict[str, float]:
    """World x (mm, towards the patient's right) of the middle of each named structure that is there, from a sample of the voxels."""
    step = max(1, math.ceil((labels.size / SAMPLED) ** (1 / 3)))
    part = labels[::step, ::step, ::step]
    d, h, w = (step * a * np.arange(n) for a, n in zip(affine[0, :3], part.shape, strict=True))
    found = {}
    for value, name in names.items():
        if not _side(name):
            continue
        index = np.nonzero(part == value)
        if len(index[0]) >= FEWEST:
            found[name] = float(np.mean(d[index[0]] + h[index[1]] + w[index[2]]) + affine[0, 3])
    return found


def crossed(found: Mapping[str, float]) -> list[str]:
    """Left structures that lie to the right of their right counterparts, by `places`."""
    return [
        name
        for name, x in found.items()
        if _side(name) == "left" and x > found.get(_other(name), math.inf) + CROSSED_MM
    ]


def warning(id: str, found: Mapping[str, float]) -> list[str]:
    """What to say of a scan whose sides are crossed; nothing where they are not."""
    wrong = crossed(found)
    if not wrong:
        return []
    shown = ", ".join(wrong[:3])
    return [
        f"{id}: {shown} lie{'s' if len(wrong) == 1 else ''} on the patient's right of what is named right: a mirrored scan, or the"
        " numbers of another label system (TotalSegmentator's versions 1 and 2 differ from 7 on)"
    ]


def _side(name: str) -> str:
    return next((side for side in ("left", "right") if side in name.split("_")), "")


def _other(name: str) -> str:
    return "_".join({"left": "right", "right": "left"}.get(word, word) for word in name.split("_"))
