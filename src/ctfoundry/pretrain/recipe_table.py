"""The recipes of the package side by side, as Markdown tables: what `docs/recipes.md` shows, made from the recipes themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.pretrain.recipe_files import load_recipe, recipe_names
from ctfoundry.settings import to_data

WORDS = ("name", "source")
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


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every setting under its dotted path, but for name and source."""

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


BEGIN, END = "<!-- tables: made by ctfoundry.pretrain.recipe_table -->", "<!-- end of tables -->"


def renewed(page: str) -> str:
    """A page with the tables between its two marks made anew; ValueError where the marks are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no place for tables: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"
