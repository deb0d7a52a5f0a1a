"""Fine-tuning recipes of the package against the reference's numbers, and how they are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ctfoundry import structures
from ctfoundry.adapt.recipe import (
    Augmentation,
    ClassificationRecipe,
    SegmentationRecipe,
    finetune_recipe,
    finetune_recipe_names,
)
from ctfoundry.errors import SettingsError
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.settings import to_data, with_changes
from ctfoundry.train.schedule import rate
from ctfoundry.zoo import CARDS

OURS = [name for name in finetune_recipe_names() if isinstance(finetune_recipe(name), SegmentationRecipe)]


def segmentation(name: str) -> SegmentationRecipe:
    found = finetune_recipe(name)
    assert isinstance(found, SegmentationRecipe)
    return found


def test_every_recipe_has_its_own_name_and_a_tiny_twin() -> None:
    names = finetune_recipe_names()
    assert {"whole-body", "few-shot", "merlin", "lesions", "frozen", "msd-liver", "msd-lung", "msd-pancreas"} <= set(
        names
    )
    assert {f"group-{g}" for g in structures.system("totalsegmentator").groups} <= set(names)
    for name in names:
        found = finetune_recipe(name)
        assert found.name == name
        assert found.model in CARDS
        assert name.endswith("-tiny") or f"{name}-tiny" in names
        assert found.source


@pytest.mark.parametrize("name", OURS)
def test_recipes_fit_together(name: str) -> None:
    found = segmentation(name)
    if found.labels:
        assert structures.chosen(found.labels)
    assert found.preparation in PREPARATIONS
    assert all(n % 16 == 0 for n in found.patch)
    assert found.extent.size == found.patch
    assert found.train.schedule.steps % found.validate_every == 0 or not name.endswith("-tiny")
    assert found.augmentation.flip == 0
    if name.endswith("-tiny"):
        assert found.labels == segmentation(name.removesuffix("-tiny")).labels
        assert found.background == segmentation(name.removesuffix("-tiny")).background
        assert found.tuning == segmentation(name.removesuffix("-tiny")).tuning


def test_whole_body_is_what_the_reference_says() -> None:
    found = segmentation("whole-body")
    train = found.train
    assert (found.patch, found.extent.overlap, found.extent.blend) == ((96, 160, 160), 0.625, "gaussian")
    assert found.augmentation == Augmentation(
        affine=0.2, rotation=0.26, zoom=0.2, smooth=0.2, sigma=(0.5, 1.0), scale=0.5, factor=0.3, shift=0.5, offset=0.1,
        noise=0.2, deviation=0.1, flip=0.0,
    )  # fmt: skip
    assert (train.batch, train.optimiser.rate, train.optimiser.weight_decay) == (8, 2e-4, 1e-5)
    assert train.schedule.steps == 300 * (928 // 8)
    assert found.validate_every == 5 * (928 // 8)
    assert (found.background, found.tuning.mode, found.depth) == (0.0, "full", 4)
    preparation = PREPARATIONS[found.preparation]
    assert preparation.resampling.spacing == (1.5, 1.5, 1.5)
    assert preparation.resampling.foreground is not None
    assert preparation.resampling.foreground.margin == 10
    # MONAI's WarmupCosineSchedule stepped once an epoch: warm-up 3 from a tenth, end one per cent
    shares = [rate(train.schedule, 116 * epoch) for epoch in (0, 1, 2, 3, 299)]
    assert shares[:4] == pytest.approx([0.1, 0.4, 0.7, 1.0])
    assert shares[4] == pytest.approx(0.01)
    assert rate(train.schedule, 115) == rate(train.schedule, 0)


def test_others_differ_from_it_as_they_say() -> None:
    base = segmentation("whole-body")
    for name, labels in (
        ("merlin", "merlin"), *((f"group-{g}", f"totalsegmentator/{g}") for g in ("organs", "ribs")),
    ):  # fmt: skip
        found = segmentation(name)
        assert replace(found, name=base.name, source=base.source, labels=base.labels) == base
        assert found.labels == labels
    tumours = {name: segmentation(f"msd-{name}") for name in ("liver", "hepatic-vessel", "pancreas", "lung")}
    assert {t.train.optimiser.rate for t in tumours.values()} == {5e-4}
    assert {t.patch for t in tumours.values()} == {(144, 224, 224)}
    assert {t.background for t in tumours.values()} == {0.667}
    assert PREPARATIONS["ct-fm-0.8mm"].resampling.spacing == (1.0, 0.8, 0.8)
    assert segmentation("frozen").tuning.mode == "frozen"
    lesions = segmentation("lesions")
    assert (lesions.background, lesions.tuning.mode, lesions.labels) == (0.5, "full", "")


def test_a_recipe_says_of_which_kind_it_is(tmp_path: Path) -> None:
    whole = to_data(finetune_recipe("whole-body"))
    (tmp_path / "a.json").write_text(json.dumps(whole))
    assert finetune_recipe(tmp_path / "a.json") == finetune_recipe("whole-body")
    (tmp_path / "b.json").write_text(json.dumps({k: v for k, v in whole.items() if k != "task"}))
    with pytest.raises(
        SettingsError, match=r"b\.json: `task` says what kind .* segmentation or classification, not None"
    ):
        finetune_recipe(tmp_path / "b.json")
    (tmp_path / "c.yaml").write_text("like: whole-body\nname: c\ntask: classification\n")
    with pytest.raises(SettingsError, match="'classification' is not one of 'segmentation'"):
        finetune_recipe(tmp_path / "c.yaml")
    (tmp_path / "d.yaml").write_text("like: a.json\nname: d\ntuning: {mode: layerwise}\npooling: max\n")
    with pytest.raises(SettingsError, match=r"d\.yaml: unknown key 'pooling'"):
        finetune_recipe(tmp_path / "d.yaml")
    (tmp_path / "e.yaml").write_text(
        "task: classification\nname: e\nmodel: ct-fm-tiny\nvalidate_every: 5\ntrain: {schedule: {steps: 10}}\n"
    )
    assert isinstance(finetune_recipe(tmp_path / "e.yaml"), ClassificationRecipe)
    with pytest.raises(SettingsError, match="no recipe is called 'ct-fm'"):
        finetune_recipe("ct-fm")  # a pretraining recipe
    changed = with_changes(finetune_recipe("lesions"), ["tuning.mode=layerwise", "labels=totalsegmentator/ribs"])
    assert changed.tuning.mode == "layerwise"
    with pytest.raises(SettingsError, match="decay lies above 0"):
        with_changes(finetune_recipe("lesions"), ["tuning.decay=0"])
