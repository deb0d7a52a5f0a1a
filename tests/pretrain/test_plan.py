from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import worlds
from ctfoundry.errors import SettingsError, UsageError
from ctfoundry.keys import Key
from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.pretrain.measure import MadeUp, measure, reading_rate
from ctfoundry.pretrain.plan import plan
from ctfoundry.pretrain.recipe_files import load_recipe
from ctfoundry.pretrain.run import pretrain
from ctfoundry.pretrain.task import CropTask
from ctfoundry.settings import with_changes
from ctfoundry.store import create
from ctfoundry.train.utilisation import counting, flops_of, published_peak

SMALL = ("crop=[8,16,16]", "crops=2", "model.filters=4", "model.blocks=[1,1]", "train.precision=fp32", "train.batch=4",
         "train.workers=1", "train.schedule.steps=1000", "train.keep_every=300")  # fmt: skip
HEAD = {"seconds": 0.3, "changes": SMALL, "device": "cpu"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "store"
    with create(folder, "ct-fm") as made:
        for seed in range(3):
            made.add(worlds.body(seed, (24, 60, 64), (6, 2, 2)), f"scan{seed}", patient=f"patient{seed}")
    return folder


def test_operations_of_a_part_stand_for_the_whole() -> None:
    """The plan's operations from a small crop against those of the whole step, which is run."""
    recipe = with_changes(load_recipe("ct-fm-tiny"), (*SMALL, "crop=[32,32,64]"))
    source, place = MadeUp(recipe.preparation), torch.device("cpu")
    part = measure(recipe, source, place, 4, 1e-3)
    assert (part.scans, part.crops, part.crop, part.full) == (1, 2, (16, 16, 32), False)
    task, keys = CropTask(recipe), [Key.of("x", i) for i in range(4)]
    draws = [task.plan(key, source.entries[0]) for key in keys]
    reads = [[source.read("x", box) for box in d.boxes] for d in draws]
    batch = task.batch(reads, draws, place)
    with counting() as whole:
        task.losses(batch, 0)["loss"].backward()
    times = 4 * 2 * 2 * 32 * 32 * 64 / part.voxels
    assert part.flops.forward * times == pytest.approx(whole.forward, rel=0.02)  # heads are not proportional to voxels
    assert part.flops.backward * times == pytest.approx(whole.backward, rel=0.02)


def test_a_plan_for_this_device_is_near_what_training_takes(store: Path, tmp_path: Path) -> None:
    changes = (*SMALL, "model.filters=8", "crop=[16,32,32]", "train.batch=2", "train.log_every=20")
    made = plan("ct-fm-tiny", store=store, seconds=8.0, changes=changes, device="cpu")
    assert (made.measured["scans"], made.notes) == (2, ())  # the whole step fitted
    began = time.monotonic()
    done = pretrain("ct-fm-tiny", store, tmp_path / "run", steps=20, changes=changes, device="cpu", quiet=True)
    took = time.monotonic() - began
    assert 0.2 < made.step_seconds * 20 / min(took, done.train.seconds) < 3
    assert made.days == pytest.approx(made.step_seconds * 1000 / 86400)
    assert made.reading_rate is not None
    assert made.reading_rate > 0


def test_memory_is_that_of_weights_and_what_the_views_take() -> None:
    made = plan("ct-fm-tiny", scans=10, **HEAD)
    task = CropTask(with_changes(load_recipe("ct-fm-tiny"), SMALL))
    weights = 4 * sum(p.numel() for p in task.modules.parameters()) / 2**30
    assert made.memory_gib["weights"] == pytest.approx(weights)
    assert made.memory_gib["AdamW"] == pytest.approx(2 * weights)
    assert made.memory_gib["all"] == pytest.approx(sum(made.memory_gib.values()) / 2)
    shared = plan("ct-fm-tiny", scans=10, gpus=4, **HEAD)
    views = "views and activations"
    assert shared.memory_gib[views] == pytest.approx(made.memory_gib[views] / 4, rel=0.3)
    chunked = plan("ct-fm-tiny", scans=10, **HEAD | {"changes": (*SMALL, "chunk=4", "batch_norm=per-crop-view")})
    assert chunked.memory_gib[views] == pytest.approx(made.memory_gib[views] / 4, rel=0.3)
    assert chunked.tera_again == pytest.approx(made.tera / 3, rel=0.1)  # each forward pass once more


def test_a_gpu_that_was_not_measured_is_planned_by_its_published_peak_and_says_so() -> None:
    made = plan("ct-fm-tiny", scans=500, gpus=2, gpu="A100", share=0.25, **HEAD)
    seconds = made.tera * 1e12 / 2 / (0.25 * published_peak("A100", "bf16"))
    assert made.step_seconds == pytest.approx(seconds)
    assert (made.gpu, made.share, made.share_from) == ("A100", 0.25, "stated")
    assert any("no A100 was measured" in note and "25%" in note for note in made.notes)
    assert any("between GPUs was not measured" in note for note in made.notes)
    assert any("reading was not measured" in note for note in made.notes)
    assert made.passes == 1000 * 4 / 500
    assert plan("ct-fm-tiny", scans=500, gpus=1, **HEAD).gpu == "H100"


def test_disk_is_what_the_files_take(store: Path, tmp_path: Path) -> None:
    made = plan("ct-fm-tiny", store=store, scans=3000, **HEAD)
    files = sum(path.stat().st_size for path in (store / "scans").iterdir())
    assert made.store_gb == pytest.approx(files / 3 * 3000 / 1e9)
    pretrain("ct-fm-tiny", store, tmp_path / "run", steps=1, changes=SMALL, device="cpu", quiet=True)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    tensors = sum(p.stat().st_size for p in checkpoint.glob("*.safetensors"))
    assert made.checkpoint_gb == pytest.approx(tensors / 1e9, rel=0.15)  # headers of so small a model
    assert made.checkpoints_kept == 4  # 300, 600, 900, 1000


def test_reading_that_is_too_slow_is_said(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctfoundry.pretrain.plan.reading_rate", lambda *_: 1e-3)
    made = plan("ct-fm-tiny", store=store, **HEAD)
    assert made.scans == 3
    assert any("reading would be too slow" in note for note in made.notes)


def test_the_reading_rate_counts_scans() -> None:
    recipe = with_changes(load_recipe("ct-fm-tiny"), SMALL)

    class Slow(MadeUp):
        def read(self, id, box):
            time.sleep(0.01)
            return super().read(id, box)

    assert 10 < reading_rate(recipe, Slow(recipe.preparation), 0.5) < 50  # two crops of a hundredth of a second


@pytest.mark.parametrize("name", ["ct-fm-tiny", "simsiam-tiny", "vicreg-tiny", "simclr-tiny", "vicreg-intra-tiny"])
def test_every_objective_has_a_smallest_step(name: str) -> None:
    recipe = load_recipe(name)
    model = replace(recipe.model, filters=2, blocks=(1, 1))
    step = measure(
        replace(recipe, model=model), MadeUp(recipe.preparation), torch.device("cpu"), recipe.train.batch, 1e-3
    )
    assert step.count == 1
    assert step.memory > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scans": 0}, "at least 1"),
        ({}, "number of scans"),
        ({"scans": 5, "gpus": 3}, "do not divide among 3"),
        ({"scans": 5, "gpus": -1}, "at least 0"),
        ({"scans": 5, "seconds": 0}, "above 0"),
        ({"scans": 5, "share": 1.5}, "at most 1"),
        ({"scans": 5, "gpu": "Voodoo"}, "no peak is known"),
    ],
)
def test_numbers_that_make_no_plan(options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan("ct-fm-tiny", **HEAD | options)


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(SettingsError, match="nearest known one is 'optimiser'"):
        plan("ct-fm-tiny", scans=5, changes=("train.optimizer.rate=1",))


def test_a_plan_is_plain_data() -> None:
    made = asdict(plan("ct-fm-tiny", scans=5, **HEAD))
    assert json.loads(json.dumps(made, allow_nan=False)).keys() == made.keys()


def test_a_step_that_a_gpu_would_share_is_no_more_than_the_batch() -> None:
    encoder = SegResNetEncoder(1, 4, (1, 1))
    made = plan("ct-fm-tiny", scans=5, gpus=4, **HEAD)
    x = torch.ones(2 * 2 * 4, 1, 8, 16, 16)
    whole = flops_of(lambda: encoder.features(x, ("stage1",))[0]["stage1"].sum().backward())
    assert made.tera * 1e12 == pytest.approx(whole, rel=0.02)  # of all four together
