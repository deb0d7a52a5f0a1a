"""Intra-sample SimCLR, CT-FM's objective: a crop's two views find each other among the other crops *of the same scan*.

Per scan M crops lie uniformly in the foreground box of the prepared grid; each has two views; encoder, global average of the
deepest map, projection head, NT-Xent within the scan (reference, 3.3, 4.1 and 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ctfoundry.geometry import Box, Vec3
from ctfoundry.keys import Key
from ctfoundry.models.heads import ProjectionHead
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.norm import batch_norm_groups
from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.preparation import PREPARATIONS, Preparation, scale
from ctfoundry.pretrain.losses import effective_rank, intra_sample_nt_xent, similarities
from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.pretrain.views import ViewDraw, draw_view, make_views
from ctfoundry.resampling import Taps
from ctfoundry.store import Entry, make_crop, placement, plan_crop

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class ScanDraws:
    """All random decisions about one scan in one step.

    Attributes
    ----------
    starts : first voxel of each crop on the prepared grid; negative where the scan is smaller than the crop (padding).
    boxes : what to read of the stored scan for each crop.
    operators : of each crop, from what was read to the prepared grid.
    views : the two views of each crop.
    """

    starts: tuple[Vec3, ...]
    boxes: tuple[Box, ...]
    operators: tuple[tuple[Taps, Taps, Taps], ...]
    views: tuple[tuple[ViewDraw, ViewDraw], ...]


class IntraSampleSimCLR:
    """The `Task` of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.preparation: Preparation = PREPARATIONS[recipe.preparation]
        self.encoder = SegResNetEncoder(1, recipe.model.filters, recipe.model.blocks)
        self.level = self.encoder.levels[-1]
        width = self.level.channels
        self.modules = nn.ModuleDict({"encoder": self.encoder, "head": ProjectionHead(width, *recipe.model.head)})
        if recipe.model.head_norm:
            self.modules["head_norm"] = nn.BatchNorm1d(width, affine=False)
        initialise(self.modules, Key.of("initialise", recipe.train.seed))
        self._seen: Tensor | None = None

    def plan(self, key: Key, entry: Entry) -> ScanDraws:
        """Positions and views of all crops of a scan."""
        crop, count = self.recipe.crop, self.recipe.crops
        where = placement(entry, self.preparation.resampling)
        # uniform over all positions at which the crop lies within the prepared scan; a shorter scan is centred and padded
        room = np.array(where.shape) - crop
        starts = np.where(room < 0, -(-room // 2), np.floor(key("crops").uniform(shape=(count, 3)) * (room + 1)))
        corners = [(int(d), int(h), int(w)) for d, h, w in starts]
        crops = [plan_crop(where, _box(corner, crop)) for corner in corners]
        views = tuple(
            (
                draw_view(key("crop", m, "view", 0), self.recipe.views, crop),
                draw_view(key("crop", m, "view", 1), self.recipe.views, crop),
            )
            for m in range(count)
        )
        return ScanDraws(tuple(corners), tuple(c.reads for c in crops), tuple(c.operators for c in crops), views)

    def batch(
        self, reads: Sequence[Sequence[np.ndarray]], draws: Sequence[ScanDraws], device: torch.device
    ) -> Float[Tensor, "mvb 1 d h w"]:
        """Both views of all crops, ordered by crop, view, scan."""
        hu = torch.stack(
            [
                make_crop(torch.from_numpy(read).to(device), operators)
                for scan, scan_draws in zip(reads, draws, strict=True)
                for read, operators in zip(scan, scan_draws.operators, strict=True)
            ]
        )  # (b m) d h w
        crops = scale(hu, self.preparation.intensity)
        b, m = len(draws), self.recipe.crops
        index = torch.arange(b * m, device=device).view(b, m).T.repeat_interleave(2, 0).flatten()  # m v b
        views = [draws[i].views[j][v] for j in range(m) for v in (0, 1) for i in range(b)]
        return make_views(crops[index], views)[:, None]

    def losses(self, batch: Float[Tensor, "mvb 1 d h w"], step: int) -> dict[str, Tensor]:
        """``loss``, and how well views of one crop find each other: ``positive``, ``negative``, ``matching``."""
        m, loss = self.recipe.crops, self.recipe.loss
        groups = 2 * m if self.recipe.batch_norm == "per-crop-view" else 1
        if self.recipe.train.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last_3d)
        with batch_norm_groups(self.encoder, groups):
            maps, _ = self.encoder.features(batch, (self.level.name,))
        with torch.autocast(batch.device.type, enabled=False):  # means, similarities and logits are float32
            vectors = maps[self.level.name].float().mean((2, 3, 4))
            if self.recipe.model.head_norm:
                vectors = self.modules["head_norm"](vectors)
            z = self.modules["head"](vectors)  # (m v b) c
            z = z.view(m, 2, -1, z.shape[1]).permute(2, 0, 1, 3)  # b m v c
            self._seen = z.detach()
            return {
                "loss": intra_sample_nt_xent(z, loss.temperature, symmetric=loss.symmetric),
                **similarities(self._seen)._asdict(),
            }

    def measures(self) -> dict[str, float]:
        """Effective rank of the last step's projections, and the largest that it could be."""
        if self._seen is None:
            return {}
        z = self._seen.flatten(0, 2)
        return {"rank": float(effective_rank(z)), "rank_of": float(min(z.shape))}

    def after(self, step: int) -> None:
        """Nothing follows a step."""

    def state(self) -> dict[str, Any]:
        """Nothing is remembered beside the modules."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing is remembered beside the modules."""


def _box(start: Vec3, crop: Vec3) -> Box:
    d, h, w = ((s, s + c) for s, c in zip(start, crop, strict=True))
    return d, h, w
