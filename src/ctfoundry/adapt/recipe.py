"""Fine-tuning experiments as data: which encoder, which scans and labels, how it is trained, how it is validated."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ctfoundry.geometry import Vec3
from ctfoundry.infer.passes import Extent
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.recipes import load
from ctfoundry.settings import nearest
from ctfoundry.train.options import LoopSettings


@dataclass(frozen=True)
class Augmentation:
    """Changes to training crops, each with its probability; ranges are drawn uniformly (reference, section 6).

    Attributes
    ----------
    affine : rotation by up to `rotation` radians about each axis and scaling by 1 +- `zoom` along each; labels with it, nearest.
    smooth : Gaussian of `sigma` voxels, lowest to highest.
    scale : intensities times 1 +- `factor`.
    shift : intensities plus up to +- `offset` (of the prepared range 0..1).
    noise : Gaussian noise whose deviation is drawn up to `deviation`.
    flip : each axis on its own. 0 in every published recipe: left and right are told apart by most label systems.
    """

    affine: float = 0.2
    rotation: float = 0.26
    zoom: float = 0.2
    smooth: float = 0.2
    sigma: tuple[float, float] = (0.5, 1.0)
    scale: float = 0.5
    factor: float = 0.3
    shift: float = 0.5
    offset: float = 0.1
    noise: float = 0.2
    deviation: float = 0.1
    flip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("affine", "smooth", "scale", "shift", "noise", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        if min(self.rotation, self.factor, self.offset, self.deviation, *self.sigma) < 0 or not 0 <= self.zoom < 1:
            raise ValueError("ranges of augmentations are not below 0, and zoom lies below 1")


@dataclass(frozen=True)
class Tuning:
    """What of the encoder learns.

    Attributes
    ----------
    mode : ``full``: all at one rate; ``frozen``: nothing, running statistics included; ``layerwise``: a stage's rate is `decay`
        times that of the next one towards the output.
    """

    mode: Literal["full", "frozen", "layerwise"] = "full"
    decay: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay lies above 0 and at most at 1, not {self.decay}")


@dataclass(frozen=True)
class SegmentationRecipe:
    """Fine-tuning for segmentation.

    Attributes
    ----------
    name : of the recipe and of the model it makes.
    source : where its numbers come from.
    model : encoder of the zoo whose architecture is fine-tuned, unless ``--init`` names another model.
    labels : a label system, or one of its groups, such as ``totalsegmentator`` or ``totalsegmentator/ribs``
        (`ctfoundry.structures`); "" for what the data set names.
    patch : voxels of a training crop, on the prepared grid.
    extent : windows of validation and use.
    preparation : name of one; "" for the encoder's own.
    decoder : ``own``: the one that was published with the encoder's family (SegResNetDS, the SuPreM U-Net), where there is one, else
        ``unet``; ``unet``: skip connections from every level; ``light``: one convolution (`models.decoders`).
    depth : outputs that are supervised, finest first (own and unet).
    background : share of crops that are centred anywhere instead of on a class.
    validate_every : steps between validations on whole scans; the best one is kept.
    train : the loop's settings; ``train.batch`` is crops in a step.
    """

    name: str
    model: str
    patch: Vec3
    extent: Extent
    train: LoopSettings
    validate_every: int
    source: str = ""
    task: Literal["segmentation"] = "segmentation"
    labels: str = ""
    preparation: str = ""
    decoder: Literal["own", "unet", "light"] = "own"
    depth: int = 4
    background: float = 0.0
    tuning: Tuning = Tuning()
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        _check_preparation(self.preparation)
        if min(self.patch) < 1 or self.depth < 1 or self.validate_every < 1 or not 0 <= self.background <= 1:
            raise ValueError("patch, depth and validate_every are at least 1, and background is a share")
        if self.extent.mode not in ("whole", "windows"):
            raise ValueError(f"a segmenter sees the whole scan or windows of it, not {self.extent.mode!r}")


@dataclass(frozen=True)
class ClassificationRecipe:
    """Fine-tuning for labels of whole scans.

    Attributes
    ----------
    name, source, model, preparation, tuning, validate_every, train : as in `SegmentationRecipe`; ``train.batch`` is scans in a step.
    pool : how the encoder's map becomes one vector: mean, max, or a token of its network by name.
    hidden : width of the head's hidden layer; 0 for a linear head, -1 for half the encoder's channels (as published).
    dropout : before the last layer.
    size : voxels (d, h, w) that every prepared scan is padded and centre-cropped to; None: the preparation's own, or else those of the
        largest training scan.
    weights : ``balanced`` gives each class the same weight in the loss, by the counts of the training scans.
    validation, test : shares of the patients, where the table gives no splits.
    select : measure on validation patients by which the best step is kept.
    augmentation : only its affine part and its intensity changes; labels are of the whole scan.
    """

    name: str
    model: str
    train: LoopSettings
    validate_every: int
    source: str = ""
    task: Literal["classification"] = "classification"
    preparation: str = ""
    pool: str = "mean"
    hidden: int = -1
    dropout: float = 0.0
    size: Vec3 | None = None
    weights: Literal["none", "balanced"] = "none"
    validation: float = 0.2
    test: float = 0.2
    select: Literal["auroc", "loss"] = "auroc"
    tuning: Tuning = Tuning()
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(smooth=0.0, scale=0.0, shift=0.0, noise=0.0)
    )

    def __post_init__(self) -> None:
        _check_preparation(self.preparation)
        if self.hidden < -1 or not 0 <= self.dropout < 1 or self.validate_every < 1:
            raise ValueError("hidden is at least -1, dropout a share below 1, validate_every at least 1")
        if not 0 < self.validation < 1 or not 0 <= self.test < 1 or self.validation + self.test >= 1:
            raise ValueError("validation and test are shares of the patients that leave some to train on")
        if self.size is not None and min(self.size) < 1:
            raise ValueError("size is at least one voxel along each axis")


FinetuneRecipe = SegmentationRecipe | ClassificationRecipe
FOLDER = "finetune"
"""Of the recipes that come with the package."""


def finetune_recipe_names() -> list[str]:
    """Names of the fine-tuning recipes that come with the package."""
    return load.names(FOLDER)


def finetune_recipe(recipe: str | Path) -> FinetuneRecipe:
    """A fine-tuning recipe by its name in the package, or from a YAML or JSON file; its key ``task`` says of which kind it is.

    Raises SettingsError as `ctfoundry.recipes.load.load` does.
    """
    kinds: dict[str, type[FinetuneRecipe]] = {
        "segmentation": SegmentationRecipe,
        "classification": ClassificationRecipe,
    }
    return load.load(kinds, recipe, FOLDER)


def _check_preparation(name: str) -> None:
    if name and name not in PREPARATIONS:
        raise ValueError(f"no preparation is called {name!r}; {nearest(name, PREPARATIONS)}")
