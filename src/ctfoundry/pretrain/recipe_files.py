"""Pretraining recipes by name or file (`ctfoundry.recipes.load`)."""

from __future__ import annotations

from pathlib import Path

from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.recipes.load import DEPTH, load, names

__all__ = ["DEPTH", "load_recipe", "recipe_names"]


def recipe_names() -> list[str]:
    """Names of the pretraining recipes that come with the package."""
    return names()


def load_recipe(recipe: str | Path) -> Recipe:
    """A pretraining recipe by its name in the package, or from a YAML or JSON file; errors as `ctfoundry.recipes.load.load` has them."""
    return load(Recipe, recipe)
