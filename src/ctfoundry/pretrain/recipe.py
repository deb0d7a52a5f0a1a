"""Recipes: one experiment as data. No code, no expressions; a key that is unknown is an error that names the nearest one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ctfoundry.geometry import Vec3
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.pretrain.views import ViewSettings
from ctfoundry.settings import nearest
from ctfoundry.train import LoopSettings

Objective = Literal["simclr", "simclr-intra", "simsiam", "simsiam-intra", "vicreg", "vicreg-intra"]
BatchNorm = Literal["per-crop-view", "per-scan", "all"]


@dataclass(frozen=True)
class ModelSettings:
    """The encoder (SegResNet) and the heads that its objective needs (reference, 3.3).

    Attributes
    ----------
    filters, blocks : of the encoder.
    head : widths of the projection head's layers. Published: SimCLR (256, 128), SimSiam (2048, 2048, 2048), VICReg (8192, 8192, 8192).
    predictor : SimSiam's, hidden and last width (published: 512, 2048); the last is that of the head. None for the others.
    head_norm : batch norm without weights of its own before the head, over everything in the step (with ``batch_norm: per-scan``,
        over each scan). The published heads have none there. Untrained embeddings point nearly one way (cosines of 0.9 and
        more); taking away what they share lets runs of a few hundred steps learn.
    checkpoint : keep half as much of the encoder for the backward pass and make the rest again there: norms and activations, no
        convolutions. The same results in a fifth more time. Not with ``train.compile``, which does not see through it. `chunk`
        saves more.
    """

    filters: int = 32
    blocks: tuple[int, ...] = (1, 2, 2, 4, 4)
    head: tuple[int, ...] = (256, 128)
    predictor: tuple[int, int] | None = None
    head_norm: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if not self.blocks or not self.head or min(self.filters, *self.blocks, *self.head, *(self.predictor or ())) < 1:
            raise ValueError(
                "filters, blocks and the widths of head and predictor are at least 1, and no list is empty"
            )


@dataclass(frozen=True)
class LossSettings:
    """Numbers of the losses; each objective takes its own and leaves the others alone.

    Attributes
    ----------
    temperature : of NT-Xent.
    symmetric : NT-Xent: False takes only view 0 as anchor (as the public weights were trained), True both (the paper, and lightly's
        plain form).
    stop_gradient : SimSiam: False lets the gradient through to the targets too, which collapses; only to show that.
    invariance, variance, covariance : weights of VICReg's three terms.
    """

    temperature: float = 0.1
    symmetric: bool = False
    stop_gradient: bool = True
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature is above 0, not {self.temperature}")
        if min(self.invariance, self.variance, self.covariance) < 0:
            raise ValueError("weights of VICReg's terms are not below 0")


@dataclass(frozen=True)
class Recipe:
    """One pretraining experiment.

    Attributes
    ----------
    name : of the recipe and of the model it makes.
    source : where its numbers come from.
    objective : what is trained. Plain: crops of all scans of the step, over all devices, are told apart (or decorrelated);
        ``-intra``: the crops of each scan among themselves, averaged over scans.
    preparation : name of a published preparation.
    crop : voxels of a crop, on the prepared grid.
    crops : crops of a scan in a step; each has two views.
    views : how a crop becomes a view.
    loss, model : their settings.
    batch_norm : what training statistics average over, in encoder and heads. ``per-crop-view``: crop m, view v of all scans of
        the step, as published; ``per-scan``: both views of all crops of one scan; ``all``: everything in the step.
    chunk : crop-views that go through the encoder at a time, on each device; they are computed again, as many at a time, in the backward
        pass. Exact for every loss, in a third more time. A multiple of what batch norm averages over. 0: all at once.
    train : the loop's settings; ``train.batch`` is the number of scans in a step.
    """

    name: str
    preparation: str
    crop: Vec3
    crops: int
    train: LoopSettings
    views: ViewSettings = field(default_factory=ViewSettings)
    source: str = ""
    objective: Objective = "simclr-intra"
    loss: LossSettings = LossSettings()
    model: ModelSettings = ModelSettings()
    batch_norm: BatchNorm = "per-crop-view"
    chunk: int = 0

    @property
    def family(self) -> str:
        """``simclr``, ``simsiam`` or ``vicreg``."""
        return self.objective.removesuffix("-intra")

    @property
    def intra(self) -> bool:
        """Whether crops are compared within their scan only."""
        return self.objective.endswith("-intra")

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
        if min(self.crop) < 1:
            raise ValueError(f"a crop has at least one voxel along each axis, not {self.crop}")
        self._check_numbers()
        self._check_model()

    def _check_numbers(self) -> None:
        """How many crops there are for the objective, for batch norm, and at a time."""
        if self.crops < 1 or (self.intra and self.crops < 2):
            least = "an intra-sample objective compares the crops of a scan: crops is at least 2"
            raise ValueError(f"{least if self.intra else 'crops is at least 1'}, not {self.crops}")
        if self.crops * self.train.batch < 2:
            raise ValueError(f"{self.objective} compares crops across scans: crops times train.batch is at least 2")
        if self.chunk < 0:
            raise ValueError(f"chunk is a number of crop-views, 0 for all, not {self.chunk}")
        views = 2 * self.crops
        if self.chunk and self.batch_norm == "all":
            raise ValueError("with batch_norm 'all' no part of the step can go through the encoder alone: chunk is 0")
        if self.batch_norm == "per-scan" and self.chunk % views:
            raise ValueError(
                f"with batch_norm 'per-scan' chunk is a multiple of a scan's {views} crop-views, not {self.chunk}"
            )
        if self.family != "simclr" and self.batch_norm == "per-crop-view" and self.train.batch < 2:
            raise ValueError(
                f"the heads of {self.objective} have batch norm, which 'per-crop-view' averages over scans: train.batch is at least 2"
            )

    def _check_model(self) -> None:
        """What only some objectives have, and what of the model goes together."""
        model = self.model
        if model.checkpoint and self.train.compile:
            raise ValueError(
                "torch cannot compile what is computed again inside of the encoder: take chunk instead of model.checkpoint"
            )
        if self.family == "simsiam":
            if model.predictor is None or model.predictor[1] != model.head[-1]:
                raise ValueError(
                    f"{self.objective} needs model.predictor, [hidden, {model.head[-1]}]: it predicts the head's output"
                )
        elif model.predictor is not None:
            raise ValueError(f"{self.objective} has no predictor: model.predictor is null")
        elif not self.loss.stop_gradient:
            raise ValueError(f"{self.objective} stops no gradient: loss.stop_gradient is SimSiam's")
