"""Recipes on disk: those of the package, and a user's own YAML or JSON. No code, no expressions; unknown keys name the nearest one."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctfoundry.errors import SettingsError
from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.settings import from_data, nearest

if TYPE_CHECKING:
    from yaml import SafeLoader


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
