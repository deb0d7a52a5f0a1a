from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctfoundry.errors import SettingsError
from ctfoundry.pretrain.recipe_files import load_recipe, recipe_names
from ctfoundry.settings import to_data, with_changes
from ctfoundry.zoo import CARDS


def test_every_recipe_of_the_package_loads() -> None:
    assert {"ct-fm", "ct-fm-tiny"} <= set(recipe_names())
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_ct_fm_is_what_the_reference_says() -> None:
    """Numbers of reference ct-fm.md 3.3, 4.1, 5 and 6."""
    recipe = load_recipe("ct-fm")
    assert (recipe.preparation, recipe.crop, recipe.crops, recipe.train.batch) == ("ct-fm", (32, 128, 128), 20, 16)
    assert (recipe.model.filters, recipe.model.blocks, recipe.model.head) == (32, (1, 2, 2, 4, 4), (256, 128))
    assert (recipe.loss.temperature, recipe.loss.symmetric, recipe.batch_norm) == (0.1, False, "per-crop-view")
    views = recipe.views
    assert (views.scale, views.flip, views.shift, views.control_points) == ((0.33, 1.0), 0.5, 0.5, 5)
    assert (views.smooth, views.sigma) == (0.5, (0.25, 1.5))
    assert (recipe.train.optimiser.rate, recipe.train.optimiser.weight_decay) == (1e-4, 1e-6)
    schedule = recipe.train.schedule
    assert (schedule.steps, schedule.warmup, schedule.epoch, schedule.start, schedule.end) == (
        250_000,
        5_000,
        500,
        0,
        0,
    )


def test_the_tiny_twin_keeps_the_physical_crop() -> None:
    from ctfoundry.preparation import PREPARATIONS

    full, tiny = load_recipe("ct-fm"), load_recipe("ct-fm-tiny")
    sizes = [
        [n * s for n, s in zip(r.crop, PREPARATIONS[r.preparation].resampling.spacing, strict=True)]
        for r in (full, tiny)
    ]
    assert sizes[0] == sizes[1] == [96.0, 128.0, 128.0]


def test_recipes_make_the_networks_of_the_zoo() -> None:
    for name in ("ct-fm", "ct-fm-tiny"):
        recipe, card = load_recipe(name), CARDS[name]
        assert card.arguments["filters"] == recipe.model.filters
        assert list(card.arguments["blocks"]) == list(recipe.model.blocks)
        assert card.preparation.name == recipe.preparation


def test_unknown_keys_and_names_name_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"unknown key 'crop_count' in 'crop_count'; .*'crop"):
        with_changes(load_recipe("ct-fm-tiny"), ["crop_count=3"])
    with pytest.raises(SettingsError, match=r"unknown key 'optimizer' in 'train\.optimizer\.rate'; .*'optimiser'"):
        with_changes(load_recipe("ct-fm-tiny"), ["train.optimizer.rate=1"])
    with pytest.raises(SettingsError, match=r"no recipe is called 'ct-fm-tny'; .*'ct-fm-tiny'"):
        load_recipe("ct-fm-tny")


def test_changes_are_typed() -> None:
    recipe = with_changes(load_recipe("ct-fm-tiny"), ["train.optimiser.rate=1e-4", "crop=[8,32,32]"])
    assert recipe.train.optimiser.rate == 1e-4
    assert recipe.crop == (8, 32, 32)
    with pytest.raises(SettingsError, match="crops"):
        with_changes(recipe, ["crops=many"])
    with pytest.raises(SettingsError, match="at least 2"):
        with_changes(recipe, ["crops=1"])
    with pytest.raises(SettingsError, match="no preparation is called 'ctfm'"):
        with_changes(recipe, ["preparation=ctfm"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: x\nnam: y\n", "unknown key 'nam'; the nearest known one is 'name'"),
        ("name: x\nname: y\n", "given twice"),
        ("name: [x\n", "is not YAML"),
        ("!!python/object/apply:os.system ['true']\n", "is not YAML"),
        ("- a\n", "expected a table for Recipe"),
        ("name: x\n", "missing key"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=problem) as caught:
        load_recipe(path)
    assert "bad.yaml" in str(caught.value)


def test_json_and_yaml_are_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("ct-fm")
    path = tmp_path / "r.json"
    path.write_text(json.dumps(to_data(recipe)))
    assert load_recipe(path) == recipe
    path.write_text("{")
    with pytest.raises(SettingsError, match="is not JSON"):
        load_recipe(path)
    with pytest.raises(SettingsError, match="no such file"):
        load_recipe(tmp_path / "absent.yaml")


def test_a_preparation_that_crops_cannot_follow_is_refused() -> None:
    """A z-score is the whole scan's; of a crop it would be another number than `prepare` gives."""
    with pytest.raises(SettingsError, match="flexict-3d"):
        with_changes(load_recipe("ct-fm-tiny"), ["preparation=flexict-3d"])
