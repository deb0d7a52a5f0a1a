"""Recipes: one experiment as data. No code, no expressions; a key that is unknown is an error that names the nearest one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ctfoundry.geometry import Vec3
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.pretrain.views import ViewSettings
from ctfoundry.settings import nearest
from ctfoundry.train import LoopSettings


@dataclass(frozen=True)
class ModelSettings:
    """The encoder (SegResNet) and its projection head.

    Attributes
    ----------
    filters, blocks : of the encoder.
    head : hidden and last width of the projection head.
    head_norm : batch norm without weights of its own before the head, over everything in the step. The published head has none.
        Untrained embeddings point nearly one way (cosines of 0.9 and more); taking away what they share lets runs of a
        few hundred steps learn.
    """

    filters: int = 32
    blocks: tuple[int, ...] = (1, 2, 2, 4, 4)
    head: tuple[int, int] = (256, 128)
    head_norm: bool = False


@dataclass(frozen=True)
class LossSettings:
    """NT-Xent. `symmetric` False takes only view 0 as anchor (as the public weights were trained), True both (the paper)."""

    temperature: float = 0.1
    symmetric: bool = False


@dataclass(frozen=True)
class Recipe:
    """One pretraining experiment.

    Attributes
    ----------
    name : of the recipe and of the model it makes.
    source : where its numbers come from.
    objective : what is trained.
    preparation : name of a published preparation.
    crop : voxels of a crop, on the prepared grid.
    crops : crops of a scan in a step; each has two views.
    views : how a crop becomes a view.
    loss, model : their settings.
    batch_norm : what training statistics average over. ``per-crop-view``: crop m, view v of all scans of the step, as
        published; ``all``: everything in the step.
    train : the loop's settings; ``train.batch`` is the number of scans in a step.
    """

    name: str
    preparation: str
    crop: Vec3
    crops: int
    train: LoopSettings
    views: ViewSettings = field(default_factory=ViewSettings)
    source: str = ""
    objective: Literal["simclr-intra"] = "simclr-intra"
    loss: LossSettings = LossSettings()
    model: ModelSettings = ModelSettings()
    batch_norm: Literal["per-crop-view", "all"] = "per-crop-view"

    def __post_init__(self) -> None:
        if self.preparation not in PREPARATIONS:
            raise ValueError(
                f"no preparation is called {self.preparation!r}; {nearest(self.preparation, PREPARATIONS)}"
            )
        intensity = PREPARATIONS[self.preparation].intensity
        if intensity.norm != "unit" or intensity.windows:
            raise ValueError(
                f"views are made of crops scaled to 0..1 by one clip; preparation {self.preparation!r} scales otherwise"
            )
        if self.crops < 2:
            raise ValueError("an intra-sample objective tells the crops of a scan apart: crops is at least 2")
        if min(self.crop) < 1:
            raise ValueError(f"a crop has at least one voxel along each axis, not {self.crop}")
