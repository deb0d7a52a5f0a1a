"""The recipes of the package side by side, as Markdown tables: what `docs/recipes.md` shows, made from the recipes themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ctfoundry.adapt.recipe import (
    ClassificationRecipe,
    FinetuneRecipe,
    SegmentationRecipe,
    finetune_recipe,
    finetune_recipe_names,
)
from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.pretrain.recipe_files import load_recipe, recipe_names
from ctfoundry.settings import to_data

WORDS = ("name", "source", "task")
"""Keys that say nothing about the training."""
PUBLISHED = ("ct-fm", "ct-fm-main", "ct-fm-paper")
"""The final run, the public configuration, and the text of the paper."""


def tables() -> str:
    """Three tables: every recipe; where final run, configuration and paper disagree; the tiny twins."""
    full = [name for name in recipe_names() if not name.endswith("-tiny")]
    twins = [name for name in recipe_names() if name.endswith("-tiny")]
    return "\n\n".join(
        [
            "### Published size\n\n" + _overview(full, "ct-fm"),
            "### Where paper and code disagree\n\n" + _side_by_side(PUBLISHED),
            "### Tiny twins\n\n" + _overview(twins, "ct-fm-tiny"),
        ]
    )


def finetune_tables() -> str:
    """Three tables: segmentation, its tiny twins, labels of whole scans."""
    each = [finetune_recipe(name) for name in finetune_recipe_names()]
    segment = [recipe for recipe in each if isinstance(recipe, SegmentationRecipe)]
    classify = [recipe for recipe in each if isinstance(recipe, ClassificationRecipe)]
    tiny = [recipe for recipe in segment if recipe.name.endswith("-tiny")]
    full = [recipe for recipe in segment if recipe not in tiny]
    parts = [
        "### Segmentation\n\n" + _finetuning(full, "whole-body"),
        "### Segmentation, tiny twins\n\n" + _finetuning(tiny, "whole-body-tiny"),
    ]
    if classify:
        parts.append("### Labels of whole scans\n\n" + _finetuning(classify, classify[0].name))
    return "\n\n".join(parts)


def _finetuning(recipes: Sequence[FinetuneRecipe], base: str) -> str:
    head = ("recipe", "labels", "grid", "crop", "a step", "rate", "steps", f"otherwise unlike `{base}`")
    shown = {
        "labels", "preparation", "patch", "extent.size", "train.batch", "train.optimiser.rate", "train.schedule.steps",
        "train.schedule.warmup", "train.schedule.epoch", "train.checkpoint_every", "validate_every",
    }  # fmt: skip
    against = flat(finetune_recipe(base))
    rows = []
    for recipe in sorted(recipes, key=lambda recipe: (recipe.name != base, recipe.name)):
        own = {k: v for k, v in flat(recipe).items() if v != against.get(k) and k not in shown}
        crop = recipe.patch if isinstance(recipe, SegmentationRecipe) else ()
        labels = recipe.labels if isinstance(recipe, SegmentationRecipe) else ""
        rows.append(
            [
                f"`{recipe.name}`",
                labels or "the data's own",
                recipe.preparation or recipe.model,
                "x".join(map(str, crop)) or "whole",
                f"{recipe.train.batch}",
                f"{recipe.train.optimiser.rate:.3g}",
                f"{recipe.train.schedule.steps:,}",
                ", ".join(f"{key} {_text(value)}" for key, value in own.items()),
            ]
        )
    return _markdown(head, rows)


def _overview(names: Sequence[str], base: str) -> str:
    head = ("recipe", "objective", "a step", "crop", "rate", "steps", f"otherwise unlike `{base}`")
    shown = {
        "objective", "crops", "crop", "train.batch", "train.optimiser.rate", "train.schedule.steps",
        "train.checkpoint_every", "train.keep_every",
    }  # fmt: skip
    against = flat(load_recipe(base))
    rows = []
    for name in names:
        recipe = load_recipe(name)
        own = {k: v for k, v in flat(recipe).items() if v != against[k] and k not in shown}
        rows.append(
            [
                f"`{name}`",
                recipe.objective,
                f"{recipe.train.batch} x {recipe.crops}",
                "x".join(map(str, recipe.crop)),
                f"{recipe.train.optimiser.rate:.3g}",
                f"{recipe.train.schedule.steps:,}",
                ", ".join(f"{key} {_text(value)}" for key, value in own.items()),
            ]
        )
    return _markdown(head, rows)


def _side_by_side(names: Sequence[str]) -> str:
    """Every key in which recipes differ, one column a recipe."""
    each = [flat(load_recipe(name)) for name in names]
    keys = [key for key in each[0] if any(data[key] != each[0][key] for data in each)]
    rows = [[f"`{key}`", *(_text(data[key]) for data in each)] for key in keys]
    return _markdown(("key", *(f"`{name}`" for name in names)), rows)


def flat(recipe: Recipe | FinetuneRecipe) -> dict[str, Any]:
    """Every setting under its dotted path, but for name, source and task."""

    def walk(data: Any, path: str) -> Iterable[tuple[str, Any]]:
        if isinstance(data, dict):
            for key, value in data.items():
                yield from walk(value, f"{path}.{key}" if path else key)
        else:
            yield path, data

    return {key: value for key, value in walk(to_data(recipe), "") if key not in WORDS}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return {True: "yes", False: "no", None: "none"}[value] if value is None or isinstance(value, bool) else f"{value}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


END = "<!-- end of tables -->"
MARKS = {
    "<!-- tables: made by ctfoundry.pretrain.recipe_table -->": tables,
    "<!-- fine-tuning: made by ctfoundry.pretrain.recipe_table -->": finetune_tables,
}


def renewed(page: str) -> str:
    """A page with the tables after each of `MARKS` made anew; ValueError where a mark is missing."""
    for begin, made in MARKS.items():
        before, found, rest = page.partition(begin)
        _, end, after = rest.partition(END)
        if not (found and end):
            raise ValueError(f"the page has no place for tables: {begin} ... {END}")
        page = f"{before}{begin}\n\n{made()}\n\n{END}{after}"
    return page
