"""Pretraining on crops: what is the same for every objective.

Per scan M crops lie uniformly in the foreground box of the prepared grid; each has two views; encoder, global average of the
deepest map, heads, loss (reference, 3.3, 4 and 5). What an objective has of its own is in the file of its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ctfoundry import parallel
from ctfoundry.errors import ContractError, SettingsError
from ctfoundry.geometry import Box, Vec3
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.norm import GroupedBatchNorm1d, batch_norm_groups
from ctfoundry.models.recompute import recomputed
from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.preparation import PREPARATIONS, Preparation, scale
from ctfoundry.pretrain import nt_xent, simsiam, vicreg
from ctfoundry.pretrain.embeddings import one_scan, precise
from ctfoundry.pretrain.monitors import measures, similarities
from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.pretrain.views import ViewDraw, draw_view, make_views
from ctfoundry.resampling import Taps
from ctfoundry.store import Entry, make_crop, placement, plan_crop

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

HEADS = {"simclr": nt_xent.heads, "simsiam": simsiam.heads, "vicreg": vicreg.heads}
"""Of a family of objectives: the modules on top of the pooled vector, ``head`` and perhaps ``predictor``."""


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


class CropTask:
    """The `Task` of a recipe.

    `separable` says whether the loss is a mean over scans that do not meet, in batch norm neither: then gradients of parts of the
    batch add up to those of the whole.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.preparation: Preparation = PREPARATIONS[recipe.preparation]
        self.encoder = SegResNetEncoder(1, recipe.model.filters, recipe.model.blocks)
        self.encoder.checkpoint = recipe.model.checkpoint
        self.level = self.encoder.levels[-1]
        width = self.level.channels
        self.modules = nn.ModuleDict({"encoder": self.encoder, **HEADS[recipe.family](width, recipe.model)})
        if recipe.model.head_norm:
            self.modules["head_norm"] = GroupedBatchNorm1d(width, affine=False)
        initialise(self.modules, Key.of("initialise", recipe.train.seed))
        self.separable = recipe.batch_norm == "per-scan" and (recipe.intra or recipe.family == "simsiam")
        self._seen: tuple[Tensor, Tensor] | None = None
        self._chunk(2 * recipe.crops * max(1, recipe.train.batch // parallel.size()))  # refused before anything is read

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
    ) -> Float[Tensor, "bmv 1 d h w"]:
        """Both views of all crops, so that what batch norm averages over lies together: ordered by crop, view, scan; with
        ``batch_norm: per-scan`` by scan, crop, view."""
        hu = torch.stack(
            [
                make_crop(torch.from_numpy(read).to(device), operators)
                for scan, scan_draws in zip(reads, draws, strict=True)
                for read, operators in zip(scan, scan_draws.operators, strict=True)
            ]
        )  # (b m) d h w
        crops = scale(hu, self.preparation.intensity)
        b, m = len(draws), self.recipe.crops
        places = torch.arange(b * m * 2).view(b, m, 2)  # numbered by scan, crop, view
        if self.recipe.batch_norm != "per-scan":
            places = places.permute(1, 2, 0)
        order = places.flatten()
        views = [draws[i // (2 * m)].views[i // 2 % m][i % 2] for i in order.tolist()]
        return make_views(crops[(order // 2).to(device)], views)[:, None]

    def losses(self, batch: Float[Tensor, "bmv 1 d h w"], step: int) -> dict[str, Tensor]:
        """``loss``, and how well views of one crop find each other: ``positive``, ``negative``, ``matching``."""
        recipe, modules = self.recipe, self.modules
        batch = batch.to(self.encoder.conv_init.weight.dtype)
        if recipe.train.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last_3d)
        vectors = self._embed(batch)
        with torch.autocast(batch.device.type, enabled=False):  # means, similarities and logits are float32
            pooled = self._by_scan(vectors.detach())
            if recipe.model.head_norm:
                scans = len(batch) // (2 * recipe.crops) if recipe.batch_norm == "per-scan" else 1
                with self._groups(modules["head_norm"], scans):
                    vectors = modules["head_norm"](vectors)
            with self._groups(modules, len(batch) // self._group(len(batch))):
                z = modules["head"](vectors)
                p = modules["predictor"](z) if "predictor" in modules else z
            z, p = self._by_scan(z), self._by_scan(p)
            self._seen = pooled, z.detach()
            seen = z.detach() if recipe.intra else one_scan(z.detach())
            return {"loss": self._loss(z, p), **similarities(seen)._asdict()}

    def _embed(self, batch: Float[Tensor, "bmv 1 d h w"]) -> Float[Tensor, "bmv k"]:
        """The pooled vectors, all at once or a chunk at a time.

        Chunks pass twice: first for their vectors alone; then, once the loss has told what it wants of every vector, again for
        their gradients. Batch norm's groups never straddle chunks, so this is the one large pass to the last digit of the sums.
        """
        group, chunk = self._group(len(batch)), self._chunk(len(batch))

        def pool(part: Float[Tensor, "n 1 d h w"]) -> Float[Tensor, "n k"]:
            with self._groups(self.encoder, len(part) // group):
                maps, _ = self.encoder.features(part, (self.level.name,))
            with torch.autocast(part.device.type, enabled=False):
                return precise(maps[self.level.name]).mean((2, 3, 4))

        if chunk == len(batch):
            return pool(batch)
        return torch.cat([recomputed(self.encoder, pool, part) for part in batch.split(chunk)])

    def _group(self, rows: int) -> int:
        """How many of a batch's crop-views batch norm averages over (on each rank)."""
        views = 2 * self.recipe.crops
        if not rows or rows % views:
            raise ContractError(f"a batch of {rows} crop-views is no whole number of scans of {views}")
        return {"per-crop-view": rows // views, "per-scan": views, "all": rows}[self.recipe.batch_norm]

    def _chunk(self, rows: int) -> int:
        """How many of a batch's crop-views go through the encoder at a time; raises SettingsError where that cuts a group."""
        group, chunk = self._group(rows), self.recipe.chunk or rows
        if chunk < rows and chunk % group:
            raise SettingsError(
                f"batch norm averages over {group} crop-views on each device, which chunks of {chunk} cut",
                where="chunk",
                do=f"take a multiple of {group}, or 0",
            )
        return min(chunk, rows)

    def _groups(self, network: nn.Module, groups: int) -> AbstractContextManager[None]:
        """Batch norm by groups; those of one scan are not averaged over ranks."""
        return batch_norm_groups(network, groups, sync=self.recipe.batch_norm != "per-scan")

    def _by_scan(self, x: Float[Tensor, "bmv c"]) -> Float[Tensor, "b m 2 c"]:
        """Rows in the order of `batch`, by scan, crop and view."""
        m = self.recipe.crops
        if self.recipe.batch_norm == "per-scan":
            return x.view(-1, m, 2, x.shape[1])
        return x.view(m, 2, -1, x.shape[1]).permute(2, 0, 1, 3)

    def _loss(self, z: Float[Tensor, "b m 2 c"], p: Float[Tensor, "b m 2 c"]) -> Float[Tensor, ""]:
        recipe, loss = self.recipe, self.recipe.loss
        if recipe.family == "simclr":
            contrast = nt_xent.nt_xent_intra if recipe.intra else nt_xent.nt_xent
            return contrast(z, loss.temperature, symmetric=loss.symmetric)
        if recipe.family == "simsiam":
            return simsiam.simsiam(z, p, stop_gradient=loss.stop_gradient)
        regularise = vicreg.vicreg_intra if recipe.intra else vicreg.vicreg
        return regularise(z, loss.invariance, loss.variance, loss.covariance)

    def measures(self) -> dict[str, float]:
        """Monitors of the last step's projections and pooled vectors (`ctfoundry.pretrain.monitors`), of this rank's scans."""
        return {} if self._seen is None else measures(*self._seen)

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
