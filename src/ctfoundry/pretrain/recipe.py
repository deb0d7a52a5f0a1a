"""Recipes: one experiment as data. No code, no expressions; a key that is unknown is an error that names the nearest one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ctfoundry.errors import SettingsError
from ctfoundry.geometry import Vec3
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.pretrain.views import ViewSettings
from ctfoundry.settings import from_data, nearest
from ctfoundry.train import LoopSettings

if TYPE_CHECKING:
    from yaml import SafeLoader


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


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("ctfoundry") / "recipes"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(recipe: str | Path) -> Recipe:
    """A recipe by its name in the package, or from a YAML or JSON file; raises SettingsError for anything it does not know."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml", ".json"):
        if not path.is_file():
            raise SettingsError("no such file", where=path, do=f"known recipes: {', '.join(recipe_names())}")
        text, where = path.read_text(), str(path)
    else:
        names = recipe_names()
        if str(recipe) not in names:
            raise SettingsError(f"no recipe is called {str(recipe)!r}; {nearest(str(recipe), names)}")
        where = f"recipe {recipe}"
        text = (resources.files("ctfoundry") / "recipes" / f"{recipe}.yaml").read_text()
    try:
        data = json.loads(text) if path.suffix == ".json" else _yaml(text, where)
    except json.JSONDecodeError as error:
        raise SettingsError(f"is not JSON: {error}", where=where) from error
    return from_data(Recipe, data, where)


def _yaml(text: str, where: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise SettingsError(
            "reading YAML needs PyYAML, which is not installed here",
            where=where,
            do="install it, or write the recipe as JSON elsewhere (`RUN/recipe.json` is one)",
        ) from error
    try:
        return yaml.load(text, Loader=_strict_loader())
    except yaml.YAMLError as error:
        raise SettingsError(f"is not YAML: {error}".replace("\n", " "), where=where) from error


def _strict_loader() -> type[SafeLoader]:
    """A safe loader that refuses a key given twice and takes ``1e-4`` for the number that it is (YAML 1.2)."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
            return super().construct_mapping(node, deep=deep)

    number = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader
