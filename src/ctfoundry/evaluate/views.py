"""Do two views of one place find each other among the other places of the scan? That is what pretraining trains.

From a scan that no training saw, `places` crops are drawn as in pretraining, two views each; a view is matched to the most
similar other-side view of the same scan (cosine), both ways. Chance is 1 in `places`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ctfoundry.encoder import Encoder
from ctfoundry.evaluate.localise import BANDS
from ctfoundry.geometry import Vec3
from ctfoundry.keys import Key
from ctfoundry.pretrain.views import ViewSettings, draw_view, make_views
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Places:
    """Two views (n, 1, d, h, w) of each of n places of one scan."""

    first: Float[Tensor, "n 1 d h w"]
    second: Float[Tensor, "n 1 d h w"]


def draw_places(
    encoder: Encoder, volume: Volume, crop: Vec3, key: Key, *, places: int = 16, settings: ViewSettings | None = None
) -> Places:
    """Crops at uniform places of the prepared scan (padded with air where it is smaller), two views of each."""
    chosen = settings or ViewSettings()
    x = encoder.prepare(volume).x[0]
    grow = [max(c - n, 0) for c, n in zip(crop, x.shape, strict=True)]
    x = torch.nn.functional.pad(x, (0, grow[2], 0, grow[1], 0, grow[0]), value=float(x.min()))
    crops = []
    for place in range(places):
        a, b, c = (
            int(key(place, "position", axis).integers(0, n - size + 1))
            for axis, (n, size) in enumerate(zip(x.shape, crop, strict=True))
        )
        crops.append(x[a : a + crop[0], b : b + crop[1], c : c + crop[2]])
    stack = torch.stack(crops)
    views = [
        make_views(stack, [draw_view(key(place, "view", side), chosen, crop) for place in range(places)])[:, None]
        for side in (0, 1)
    ]
    return Places(views[0], views[1])


def hits(first: Float[Tensor, "n c"], second: Float[Tensor, "n c"]) -> list[float]:
    """1 or 0 for each view: is its own place the most similar on the other side?"""
    similarity = torch.nn.functional.normalize(first, dim=1) @ torch.nn.functional.normalize(second, dim=1).T
    own = torch.arange(len(similarity), device=similarity.device)
    return [*(similarity.argmax(1) == own).float().tolist(), *(similarity.argmax(0) == own).float().tolist()]


def encoder_hits(encoder: Encoder, places: Places) -> list[float]:
    """`hits` of an encoder's default vector."""
    return hits(
        *(
            torch.cat([encoder.embed(part, encoder.card.vector) for part in side.split(16)])
            for side in (places.first, places.second)
        )
    )


def hu_hits(places: Places) -> list[float]:
    """`hits` of the trivial description: the share of voxels in each HU band."""

    def describe(x: Tensor) -> Tensor:
        hu = x.flatten(1) * 3072 - 1024
        shares = [((hu >= a) & (hu < b)).float().mean(1) for a, b in itertools.pairwise(BANDS)]
        return torch.stack(shares, 1)

    return hits(describe(places.first), describe(places.second))
