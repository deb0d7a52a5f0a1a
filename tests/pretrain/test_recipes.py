from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ctfoundry.errors import SettingsError
from ctfoundry.keys import Key
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.pretrain.recipe_files import DEPTH, load_recipe, recipe_names
from ctfoundry.pretrain.recipe_table import renewed
from ctfoundry.pretrain.task import CropTask
from ctfoundry.settings import to_data, with_changes
from ctfoundry.store import Store
from ctfoundry.train.schedule import rate
from ctfoundry.zoo import CARDS
from pretrain.toys import make_store

FULL = sorted(name for name in recipe_names() if not name.endswith("-tiny"))
ABLATIONS = ["simclr", "simclr-intra", "simsiam", "simsiam-intra", "vicreg", "vicreg-intra"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("recipes") / "store", count=2)


def test_every_recipe_of_the_package_loads() -> None:
    """Each under its own name, each with a source that it states, each with a twin."""
    assert {"ct-fm", "ct-fm-main", "ct-fm-paper", *ABLATIONS} <= set(FULL)
    assert {f"{name}-tiny" for name in FULL} | set(FULL) == set(recipe_names())
    found = [load_recipe(name) for name in recipe_names()]
    assert [recipe.name for recipe in found] == recipe_names()
    assert all(recipe.source and not recipe.source.endswith(", changed") for recipe in found)


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


@pytest.mark.parametrize(
    ("name", "crops", "crop", "rate"),
    [
        ("simclr", 1, (64, 320, 320), 1e-4),
        ("simclr-intra", 15, (32, 128, 128), 1e-4),
        ("simsiam", 1, (64, 320, 320), 1e-4),
        ("simsiam-intra", 15, (32, 128, 128), 1e-4),
        ("vicreg", 1, (64, 320, 320), 5 * 3 / 256 * 7e-4),
        ("vicreg-intra", 12, (32, 128, 128), 5 * 3 / 256 * 7e-4),
    ],
)
def test_ablations_are_what_the_reference_says(name: str, crops: int, crop: tuple[int, int, int], rate: float) -> None:
    """Numbers of reference ct-fm.md 3.3, 4.2, 5 and 6."""
    recipe = load_recipe(name)
    assert recipe.objective == name
    assert (recipe.crops, recipe.crop, recipe.preparation) == (crops, crop, "ct-fm")
    assert (recipe.train.batch, recipe.train.schedule.steps, recipe.train.schedule.epoch) == (15, 12_500, 500)
    assert recipe.train.optimiser.rate == pytest.approx(rate, rel=1e-12)
    assert (recipe.train.optimiser.weight_decay, recipe.loss.temperature) == (1e-6, 0.1)
    assert (recipe.loss.invariance, recipe.loss.variance, recipe.loss.covariance) == (25, 25, 1)
    heads = {
        "simclr": ((256, 128), None),
        "simsiam": ((2048, 2048, 2048), (512, 2048)),
        "vicreg": ((8192, 8192, 8192), None),
    }
    assert (recipe.model.head, recipe.model.predictor) == heads[recipe.family]
    assert (recipe.model.filters, recipe.model.blocks, recipe.model.head_norm) == (32, (1, 2, 2, 4, 4), False)
    assert recipe.views == load_recipe("ct-fm").views
    assert recipe.loss.stop_gradient
    assert recipe.loss.symmetric is (name == "simclr")
    assert recipe.batch_norm == "per-crop-view"


def test_main_and_paper_differ_from_the_final_run_as_documented() -> None:
    final, main, paper = (load_recipe(name) for name in ("ct-fm", "ct-fm-main", "ct-fm-paper"))
    assert with_changes(final, ["crops=15", f"name={main.name}", f"source={json.dumps(main.source)}"]) == main
    assert (paper.crop, paper.crops, paper.loss.symmetric) == ((24, 128, 128), 20, True)
    assert paper.views.affine > 0
    assert paper.views.intensity_scale > 0
    assert final.views.affine == final.views.intensity_scale == final.views.intensity_shift == 0


def test_matched_recipes_change_the_objective_alone() -> None:
    for family in ("simclr", "simsiam", "vicreg"):
        for twin in ("", "-tiny"):
            intra, plain = load_recipe(f"{family}-intra{twin}"), load_recipe(f"{family}-matched{twin}")
            words = [f"name={plain.name}", f"source={json.dumps(plain.source)}"]
            assert with_changes(intra, [f"objective={family}", *words]) == plain


def test_the_crop_count_series() -> None:
    for twin in ("", "-tiny"):
        intra = load_recipe(f"simclr-intra{twin}")
        for count in (5, 10, 15, 20):
            one = load_recipe(f"simclr-intra-{count}{twin}")
            words = [f"name={one.name}", f"source={json.dumps(one.source)}"]
            assert with_changes(intra, [f"crops={count}", *words]) == one


@pytest.mark.parametrize("name", ["ct-fm", *ABLATIONS])
def test_rates_are_those_of_section_6(name: str) -> None:
    """Epoch e of T, warm-up w: base (m + (1 - m) e/w), then max(end, base (1 + cos(pi (e - w)/(T - w)))/2), held for an epoch."""
    recipe = load_recipe(name)
    base, w, m, end, last = (1e-4, 0, 0.0, 1e-6, 25)
    if name == "ct-fm":
        base, w, m, end, last = (1e-4, 10, 0.0, 0.0, 500)
    elif recipe.family == "vicreg":
        base = 5 * 3 / 256 * 7e-4
        w, m, end = (3, 0.1, base / 100)
    for e in (0, 1, 2, 3, 9, 10, 12, 24, 250, 449, 499):
        if e >= last:
            continue
        if e < w:
            expected = base * (m + (1 - m) * e / w)
        else:
            expected = max(end, base * 0.5 * (1 + math.cos(math.pi * (e - w) / (last - w))))
        for step in (500 * e, 500 * e + 499):
            found = recipe.train.optimiser.rate * rate(recipe.train.schedule, step)
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-18), (e, step)
    if name == "ct-fm":
        assert 1e-4 * rate(recipe.train.schedule, 225_000) == pytest.approx(
            2.6e-6, rel=0.03
        )  # the published checkpoint


@pytest.mark.monai
@pytest.mark.parametrize("name", ["ct-fm", "simclr", "vicreg-intra"])
def test_rates_are_monais(name: str) -> None:
    from monai.optimizers.lr_scheduler import WarmupCosineSchedule

    recipe = load_recipe(name)
    base, schedule = recipe.train.optimiser.rate, recipe.train.schedule
    epochs = schedule.steps // schedule.epoch
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    theirs = WarmupCosineSchedule(
        optimiser,
        warmup_steps=schedule.warmup // schedule.epoch,
        t_total=epochs,
        end_lr=base * schedule.end,
        warmup_multiplier=schedule.start,
    )
    for e in range(epochs):
        assert base * rate(schedule, e * schedule.epoch) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimiser.step()
        theirs.step()


@pytest.mark.parametrize("name", FULL)
def test_full_recipes_build(name: str) -> None:
    """On no device: shapes and sizes without memory. The encoder is the published one (reference, 3.1), and so are the heads (3.3)."""
    recipe = load_recipe(name)
    with torch.device("meta"):
        task = CropTask(recipe)
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in task.modules.items()}
    assert counts["encoder"] == 77_760_992
    a, b, c = 512, 2048, 8192
    expected = {
        "simclr": {"head": a * 256 + 256 + 256 * 128 + 128},
        "simsiam": {"head": a * b + 2 * b + b * b + 2 * b + b * b, "predictor": b * 512 + 2 * 512 + 512 * b + b},
        "vicreg": {"head": a * c + 2 * c + c * c + 2 * c + c * c + c},
    }
    assert {part: n for part, n in counts.items() if part != "encoder"} == expected[recipe.family]


@pytest.mark.parametrize("name", FULL)
def test_tiny_twins_train(name: str, scans: Store) -> None:
    """Two steps each, of fewer and much smaller crops: weights move, nothing is infinite."""
    twin = load_recipe(f"{name}-tiny")
    recipe = with_changes(twin, [f"crops={min(twin.crops, 3)}", "crop=[8,16,16]", "train.batch=2"])
    task = CropTask(recipe)
    optimiser = torch.optim.AdamW(task.modules.train().parameters(), recipe.train.optimiser.rate)
    before = [p.detach().clone() for p in task.modules.parameters()]
    for step in range(2):
        draws = [task.plan(Key.of("test", step, i), entry) for i, entry in enumerate(scans.entries)]
        reads = [
            [scans.read(entry.id, box) for box in drawn.boxes]
            for entry, drawn in zip(scans.entries, draws, strict=True)
        ]
        loss = task.losses(task.batch(reads, draws, torch.device("cpu")), step)["loss"]
        assert math.isfinite(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, task.modules.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


@pytest.mark.parametrize("name", FULL)
def test_the_tiny_twin_keeps_the_physical_crop(name: str) -> None:
    full, tiny = load_recipe(name), load_recipe(f"{name}-tiny")
    assert _millimetres(full) == _millimetres(tiny)
    assert full.objective == tiny.objective
    kept = ("scale", "flip", "shift", "smooth", "sigma", "affine", "intensity_scale")
    assert all(getattr(full.views, key) == getattr(tiny.views, key) for key in kept)
    assert tiny.model.filters == 8


def _millimetres(recipe: Recipe) -> list[float]:
    spacing = PREPARATIONS[recipe.preparation].resampling.spacing
    assert spacing is not None
    return [n * s for n, s in zip(recipe.crop, spacing, strict=True)]


def test_the_page_shows_the_recipes_as_they_are() -> None:
    page = Path(__file__).parents[2] / "docs" / "recipes.md"
    assert renewed(page.read_text()) == page.read_text(), "make it anew: ctfoundry.pretrain.recipe_table.renewed"


def test_like_merges_tables_and_replaces_the_rest(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("like: ct-fm\nname: base\ncrops: 7\ntrain: {optimiser: {rate: 3e-4}}\n")
    (tmp_path / "mine.yaml").write_text("like: base.yaml\nname: mine\nmodel: {blocks: [1, 1]}\ntrain: {batch: 2}\n")
    found = load_recipe(tmp_path / "mine.yaml")
    published = load_recipe("ct-fm")
    assert (found.name, found.source) == ("mine", "as base, changed")
    assert (found.crops, found.train.batch, found.train.optimiser.rate) == (7, 2, 3e-4)
    assert (found.model.blocks, found.model.head) == ((1, 1), published.model.head)
    assert (found.train.schedule, found.views) == (published.train.schedule, published.views)
    assert "like" not in to_data(found)
    (tmp_path / "mine.json").write_text(
        json.dumps({"like": "simsiam-tiny", "name": "mine", "model": {"head": [8, 256]}})
    )
    assert load_recipe(tmp_path / "mine.json").model.predictor == (64, 256)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("like: a.yaml\nname: a\n", r"goes round: .*a\.yaml -> .*a\.yaml"),
        ("like: b.yaml\nname: a\n", r"goes round: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"),
        ("like: c0.yaml\nname: a\n", f"more than {DEPTH} recipes"),
        ("like: ct-fn\nname: a\n", "no recipe is called 'ct-fn'; the nearest known one is 'ct-fm'"),
        ("like: absent.yaml\nname: a\n", "absent.yaml, which is not in this folder"),
        ("like: ../a.yaml\nname: a\n", "in the same folder"),
        ("like: [ct-fm]\nname: a\n", "name of a recipe or of a file"),
        ("like: ct-fm\n", "needs a `name` of its own"),
        ("like: ct-fm\nname: a\nlike: simclr\n", "given twice"),
        ("like: bad.yaml\nname: a\n", r"bad\.yaml: unknown key 'train\.optimiser\.rat'; .*'train\.optimiser\.rate'"),
        ("like: ct-fm\nname: a\nrate: 1e-4\n", r"unknown key 'rate'; it is 'train\.optimiser\.rate'"),
        ("like: ct-fm\nname: a\nloss: {like: simclr}\n", r"unknown key 'loss\.like'"),
        ("like: ct-fm\nname: a\ntrain: 3\n", "expected a table for LoopSettings"),
        ("like: ct-fm\nname: a\nmodel: {head: [1, x]}\n", r"model\.head\[1\]: expected int"),
    ],
)
def test_what_is_wrong_with_like_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text("like: a.yaml\nname: b\n")
    (tmp_path / "bad.yaml").write_text("like: ct-fm\nname: bad\ntrain: {optimiser: {rat: 1}}\n")
    for i in range(DEPTH):
        below = f"c{i + 1}.yaml" if i + 1 < DEPTH else "ct-fm"
        (tmp_path / f"c{i}.yaml").write_text(f"like: {below}\nname: c{i}\n")
    with pytest.raises(SettingsError, match=problem):
        load_recipe(tmp_path / "a.yaml")


def test_files_that_no_recipe_is(tmp_path: Path) -> None:
    """Errors, not minutes or gigabytes."""
    path = tmp_path / "bomb.yaml"
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40))]
    path.write_text("\n".join(lines))
    with pytest.raises(SettingsError, match="an alias"):
        load_recipe(path)
    path.write_text("[" * 5000)
    with pytest.raises(SettingsError, match="nested more deeply"):
        load_recipe(path)
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(SettingsError, match="UTF-8"):
        load_recipe(path)
    path.write_text("#" * 1_000_001)
    with pytest.raises(SettingsError, match="larger than"):
        load_recipe(path)


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
