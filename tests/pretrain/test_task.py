from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from ctfoundry import zoo
from ctfoundry.errors import SettingsError, UsageError
from ctfoundry.files import sha256
from ctfoundry.geometry import make_affine
from ctfoundry.keys import Key
from ctfoundry.preparation import PREPARATIONS, prepare
from ctfoundry.pretrain.nt_xent import nt_xent_intra
from ctfoundry.pretrain.recipe import LossSettings
from ctfoundry.pretrain.run import pretrain
from ctfoundry.pretrain.task import CropTask
from ctfoundry.settings import to_data
from ctfoundry.store import Store, create, open_store
from ctfoundry.train.monitor import read_metrics
from ctfoundry.volume import Volume
from pretrain.toys import PLAIN_VIEWS, loop, make_store, recipe, structured

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"))


def make_batch(task: CropTask, source: Store, keys: list[Key]) -> tuple[torch.Tensor, list]:
    entries = [source.entries[i % len(source)] for i in range(len(keys))]
    draws = [task.plan(key, entry) for key, entry in zip(keys, entries, strict=True)]
    reads = [[source.read(e.id, box) for box in d.boxes] for e, d in zip(entries, draws, strict=True)]
    return task.batch(reads, draws, CPU), draws


def test_a_plan_is_a_function_of_its_key_and_scan(scans: Store) -> None:
    task, other = CropTask(recipe()), CropTask(recipe())
    keys = [Key.of(1, "a"), Key.of(1, "b")]
    ahead = [task.plan(key, scans.entries[0]) for key in keys]
    back = [other.plan(key, scans.entries[0]) for key in reversed(keys)][::-1]
    for one, two in zip(ahead, back, strict=True):
        assert (one.starts, one.boxes, one.views) == (two.starts, two.boxes, two.views)
    assert ahead[0].starts != ahead[1].starts
    first, second = ahead[0].views[0]
    assert first != second


def test_crop_positions_are_uniform_in_the_foreground_box(scans: Store) -> None:
    """Chi-square per axis and over pairs of axes, with fixed keys; MONAI's RandSpatialCrop draws likewise."""
    task = CropTask(recipe(crops=40))
    entry = scans.entries[0]
    starts = np.array([s for k in range(60) for s in task.plan(Key.of("uniform", k), entry).starts])
    (d0, d1), (h0, h1), (w0, w1) = entry.box_soft
    room = [d1 - d0 - 8 + 1, h1 - h0 - 16 + 1, w1 - w0 - 16 + 1]
    for axis, count in enumerate(room):
        seen = np.bincount(starts[:, axis], minlength=count)
        assert len(seen) == count
        assert stats.chisquare(seen).pvalue > 0.01
    halves = starts >= np.array(room) // 2
    share = [np.where(halves[:, a], n - n // 2, n // 2) / n for a, n in enumerate(room)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        cells = halves[:, a] * 2 + halves[:, b]
        expected = [np.mean(share[a][cells == c] * share[b][cells == c]) * len(starts) for c in range(4)]
        assert stats.chisquare(np.bincount(cells, minlength=4), expected, sum_check=False).pvalue > 0.01


@pytest.mark.parametrize(("grid", "batch_norm"), [("6x2x2", "per-crop-view"), ("6x2x2", "per-scan"), ("native", "all")])
def test_crops_are_those_of_the_prepared_scan(tmp_path: Path, grid: str, batch_norm: str) -> None:
    source = make_store(tmp_path, grid=grid, count=2, shape=(24, 60, 64) if grid == "6x2x2" else (90, 70, 80))
    task = CropTask(recipe(views=PLAIN_VIEWS, batch_norm=batch_norm))
    x, draws = make_batch(task, source, [Key.of(0), Key.of(1)])
    assert x.shape == (4 * 2 * 2, 1, 8, 16, 16)
    for b, entry in enumerate(source.entries):
        whole = prepare(PREPARATIONS["ct-fm-tiny"], source.volume(entry.id)).x[0]
        for m, (i, j, k) in enumerate(draws[b].starts):
            for v in (0, 1):
                row = (b * 4 + m) * 2 + v if batch_norm == "per-scan" else (m * 2 + v) * 2 + b
                torch.testing.assert_close(x[row, 0], whole[i : i + 8, j : j + 16, k : k + 16], atol=2e-6, rtol=0)


def test_a_scan_smaller_than_the_crop_is_centred_and_padded_with_air(tmp_path: Path) -> None:
    scan = Volume(np.full((5, 40, 11), 500, np.int16), make_affine((6, 2, 2), "SPL"), "hu")
    with create(tmp_path, grid="6x2x2") as source:
        source.add(scan, "small", patient="p")
    x, draws = make_batch(CropTask(recipe(views=PLAIN_VIEWS)), open_store(tmp_path), [Key.of(0)])
    assert {(s[0], s[2]) for s in draws[0].starts} == {(-1, -2)}  # as SpatialPad: the end gets the odd voxel
    body = (x > 0).squeeze(1)
    assert body[0].any(2).any(1).nonzero().flatten().tolist() == [1, 2, 3, 4, 5]
    assert int(body[0].sum()) == 5 * 16 * 11
    assert x.unique().tolist() == pytest.approx([0.0, (500 + 1024) / 3072])


def test_batch_norm_averages_over_what_the_recipe_says(scans: Store) -> None:
    """Against the published loop: each crop-view of all scans is a forward pass of its own."""
    task = CropTask(recipe(batch_norm="per-crop-view", loss=LossSettings(symmetric=False)))
    literal = CropTask(recipe())
    x, _ = make_batch(task, scans, [Key.of(i) for i in range(3)])
    task.modules.train()
    literal.modules.train()
    loss = task.losses(x, 0)["loss"]
    crops = [
        [
            literal.modules["head"](literal.encoder(x[(m * 2 + v) * 3 : (m * 2 + v + 1) * 3])[-1].mean((2, 3, 4)))
            for v in (0, 1)
        ]
        for m in range(4)
    ]
    z = torch.stack([torch.stack(views, 1) for views in crops], 1)  # b m v c
    torch.testing.assert_close(loss, nt_xent_intra(z, 0.1))
    ours, theirs = task.encoder.state_dict(), literal.encoder.state_dict()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])
    assert task.losses(x, 0)["loss"] != CropTask(recipe()).losses(x, 0)["loss"]


def test_it_learns_to_tell_places_apart(scans: Store, tmp_path: Path) -> None:
    """With head_norm, which makes so few steps enough for any seed: without it one seed in three learns next to nothing."""
    own = recipe(train=loop(60, log_every=10), crops=6, model=replace(recipe().model, head_norm=True))
    done = pretrain(own, scans, tmp_path, device="cpu", quiet=True)
    rows, _ = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"]
    matching = [row["matching"] for row in rows]
    assert np.mean(matching[-3:]) > matching[0] + 0.03
    assert 1 <= rows[-1]["rank"] <= rows[-1]["rank_of"] == 8
    assert (done.scans, done.patients, done.train.steps) == (4, 2, 60)


@pytest.mark.parametrize("objective", ["simclr", "simsiam", "simsiam-intra", "vicreg", "vicreg-intra"])
def test_every_objective_trains(scans: Store, tmp_path: Path, objective: str) -> None:
    """A few steps through the loop; in chunks of the encoder's work where it has one crop a scan."""
    plain = not objective.endswith("-intra")
    model = replace(recipe().model, head=(16, 16), predictor=(8, 16) if "simsiam" in objective else None)
    own = recipe(
        objective=objective,
        model=model,
        crops=1 if plain else 3,
        chunk=4 if plain else 0,
        batch_norm="per-crop-view" if plain else "per-scan",
        train=loop(3, batch=4, log_every=1),
    )
    pretrain(own, scans, tmp_path, device="cpu", quiet=True)
    rows, _ = read_metrics(tmp_path / "metrics.jsonl")
    assert np.isfinite([[row[name] for name in ("loss", "positive", "negative", "rank")] for row in rows]).all()
    assert rows[-1]["skipped"] == 0
    assert zoo.load_encoder(tmp_path, device="cpu").card.training["recipe"]["objective"] == objective


def test_a_run_leaves_an_encoder_that_loads(scans: Store, tmp_path: Path) -> None:
    done = pretrain(recipe(), scans, tmp_path, device="cpu", quiet=True)
    encoder = zoo.load_encoder(tmp_path, device="cpu")
    features = encoder(structured(9, (24, 60, 64), (6.0, 2.0, 2.0)))
    assert features.vector.shape == (16,)
    assert bool(features.vector.isfinite().all())
    card = encoder.card
    assert (card.weights, card.name, card.preparation.name) == ("trained", "toy", "ct-fm-tiny")
    assert card.training["steps"] == 6
    assert (card.training["scans"], card.training["patients"], card.training["store_grid"]) == (4, 2, "6x2x2")
    assert card.sha256 == sha256(done.model)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["outputs"]["model.safetensors"] == card.sha256
    assert run["results"]["last"]["step"] == 6
    assert str(scans.path) not in json.dumps(run)


def test_stopping_and_going_on_gives_the_same_model(scans: Store, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    pretrain(recipe(), scans, one, device="cpu", quiet=True)
    pretrain(recipe(), scans, two, steps=3, device="cpu", quiet=True)
    assert sha256(one / "model.safetensors") != sha256(two / "model.safetensors")
    pretrain(recipe(), scans, two, changes=["train.workers=0"], device="cpu", quiet=True)
    assert sha256(one / "model.safetensors") == sha256(two / "model.safetensors")
    with pytest.raises(SettingsError, match=r"crops = 4, not 5"):
        pretrain(recipe(crops=5), scans, two, device="cpu", quiet=True)


def test_only_the_chosen_patients_are_trained_on(scans: Store, tmp_path: Path) -> None:
    done = pretrain(recipe(), scans, tmp_path, patients={"patient1"}, steps=1, device="cpu", quiet=True)
    assert (done.scans, done.patients) == (2, 1)
    with pytest.raises(UsageError, match="no scan to train on"):
        pretrain(recipe(), scans, tmp_path / "none", patients={"nobody"}, device="cpu", quiet=True)


BARE = """
import sys
blocked = {"nibabel", "SimpleITK", "pydicom", "scipy", "duckdb", "yaml", "matplotlib", "typer", "rich", "jinja2", "monai",
           "jaxtyping", "PIL"}
for name in blocked:
    sys.modules[name] = None  # importing it fails, and asking whether it is there says no
from ctfoundry.pretrain.recipe_files import load_recipe
from ctfoundry.pretrain.run import pretrain
done = pretrain(sys.argv[1], sys.argv[2], sys.argv[3], steps=3, device="cpu")
assert done.train.steps == 3
try:
    load_recipe("ct-fm")
except Exception as error:
    print(error)
"""


def test_a_bare_machine_pretrains(scans: Store, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(to_data(recipe())))
    arguments = [sys.executable, "-c", BARE, str(path), str(scans.path), str(tmp_path / "run")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "needs PyYAML" in done.stdout
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_head_norm_takes_away_what_all_embeddings_share(scans: Store) -> None:
    """A module of its own, so that the head's keys stay those of the public checkpoints; the encoder is the same."""
    plain = CropTask(recipe())
    normed = CropTask(recipe(model=replace(recipe().model, head_norm=True)))
    x, _ = make_batch(plain, scans, [Key.of(i) for i in range(3)])
    before, after = plain.losses(x, 0), normed.losses(x, 0)
    assert after["negative"] < before["negative"] - 0.2
    assert {name.split(".")[0] for name in normed.modules.state_dict()} == {"encoder", "head", "head_norm"}
    ours, theirs = plain.encoder.state_dict(), normed.encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
