"""A fine-tuning run, from labelled scans to a segmenter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import processes
from adapt.bodies import CLASSES, NAMES, body, scans
from ctfoundry import zoo
from ctfoundry.adapt import finetune as module
from ctfoundry.adapt.cases import scan_of
from ctfoundry.adapt.finetune import classes_of, finetune
from ctfoundry.adapt.recipe import Augmentation, SegmentationRecipe, Tuning
from ctfoundry.adapt.scores import read_classes, score
from ctfoundry.encoder import Encoder
from ctfoundry.errors import SettingsError, UsageError
from ctfoundry.infer.passes import Extent
from ctfoundry.metrics import dice
from ctfoundry.train import LoopSettings, Optimiser, Schedule
from ctfoundry.zoo.models import CARDS, build


def recipe(steps: int = 4, **changes: Any) -> SegmentationRecipe:
    loop = LoopSettings(
        Schedule(steps, warmup=1),
        Optimiser(3e-3),
        batch=2,
        precision="fp32",
        workers=0,
        log_every=2,
        checkpoint_every=2,
    )
    given: dict[str, Any] = {
        "name": "tiny", "model": "ct-fm-tiny", "patch": (16, 32, 32), "extent": Extent("windows", (16, 32, 32), 0.25, "gaussian"),
        "train": loop, "validate_every": 2, "depth": 3,
        "augmentation": Augmentation(affine=0, smooth=0, scale=0, shift=0, noise=0), **changes,
    }  # fmt: skip
    return SegmentationRecipe(**given)


SMALL = {"in_channels": 1, "filters": 4, "blocks": [1, 1, 1, 1, 1]}


def encoder(seed: int = 3, **changes: Any) -> Encoder:
    card = replace(CARDS["ct-fm-tiny"], arguments=SMALL, seed=seed, weights="trained", **changes)
    network = build(card)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, torch.nn.BatchNorm3d):
                norm.running_mean.fill_(0.05)
                norm.running_var.fill_(0.3)
    return Encoder.of(network, card)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]


def without_times(data: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in data]


def test_a_run_from_scans_to_a_segmenter(tmp_path: Path) -> None:
    zoo.save_model(encoder(), tmp_path / "init.safetensors")
    sha = json.loads((tmp_path / "init.json").read_text())["sha256"]
    run = tmp_path / "run"
    done = finetune(
        recipe(), scans(8), run, init=tmp_path / "init.safetensors", device="cpu", quiet=True, test_share=0.25
    )
    assert done.patients == {"train": 4, "validation": 2, "test": 2}
    assert done.init == {"model": "ct-fm-tiny", "weights": "trained", "sha256": sha, "kind": "encoder"}
    assert [row["step"] for row in rows(run)] == [2, 4]
    assert done.best == max(rows(run), key=lambda row: row["dice"])
    made = {path.name for path in run.iterdir()}
    assert {"recipe.json", "split.json", "run.json", "test.json", "report.html", "model.json", "metrics.jsonl"} <= made
    split = json.loads((run / "split.json").read_text())
    assert not set(split["train"]) & set(split["validation"])
    assert not set(split["test"]) & set(split["train"])

    # what is left is a segmenter of the best step, and it says what it is
    made_of = zoo.load_segmenter(run, device="cpu")
    card = made_of.card
    assert (card.kind, card.weights, card.names) == ("segmenter", "trained", ("background", *NAMES.values()))
    assert card.training["steps"] == done.best["step"]
    assert card.training["init"]["sha256"] == sha
    assert card.training["patients"] == done.patients
    assert "test patients" not in " ".join(card.not_tested_on)

    # the numbers are those of the segmenter on whole scans on their own grids, by another implementation of Dice
    for part, row in (("validation", done.best), ("test", done.test)):
        assert row is not None
        values = []
        for scan in scans(8):
            if scan.id in split[part]:
                found = dice(made_of(scan.image()).voxels, scan.maps["labels"]().voxels, (1, 2, 3))
                assert row["scans"][scan.id] == pytest.approx(np.nanmean(list(found.values())))
                values.append(np.nanmean(list(found.values())))
        assert row["dice"] == pytest.approx(np.mean(values))
        assert row["low"] is None  # two patients are examples

    # nothing is done twice: not the validations, not the test
    before = {
        p.name: p.read_bytes()
        for p in run.iterdir()
        if p.name in ("validation.jsonl", "test.json", "model.safetensors")
    }
    again = finetune(
        recipe(), scans(8), run, init=tmp_path / "init.safetensors", device="cpu", quiet=True, test_share=0.25
    )
    assert again.best == done.best
    assert again.test == done.test
    assert before == {name: (run / name).read_bytes() for name in before}


def test_the_test_is_not_looked_at_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = module.score
    monkeypatch.setattr(
        module, "score", lambda made, those, *a, **k: seen.extend(s.id for s in those) or real(made, those, *a, **k)
    )
    options: dict[str, Any] = {"init": encoder(), "device": "cpu", "quiet": True, "test_share": 0.25, "report": False}
    first = finetune(recipe(), scans(8), tmp_path, steps=3, **options)
    split = json.loads((tmp_path / "split.json").read_text())
    assert first.test is None
    assert not (tmp_path / "test.json").exists()
    assert set(seen) == set(split["validation"])
    last = finetune(recipe(), scans(8), tmp_path, **options)
    assert last.test is not None
    assert [name for name in seen if name in split["test"]] == split["test"]  # once each
    assert [row["step"] for row in rows(tmp_path)] == [2, 3, 4]


def test_few_shots_draw_by_the_seed(tmp_path: Path) -> None:
    drawn = []
    for number, (seed, shots) in enumerate([(0, 2), (0, 3), (1, 2)]):
        options: dict[str, Any] = {"init": encoder(), "device": "cpu", "quiet": True, "report": False, "steps": 1}
        own = tmp_path / str(number)
        done = finetune(recipe(), scans(9), own, shots=shots, changes=[f"train.seed={seed}"], **options)
        drawn.append(json.loads((own / "split.json").read_text()))
        assert done.patients["train"] == shots
    assert set(drawn[0]["train"]) < set(drawn[1]["train"])
    assert drawn[0]["validation"] == drawn[1]["validation"] != drawn[2]["validation"]


def test_the_best_step_is_kept_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, steps = module.score, iter([0.9, 0.2])

    def told(made: Any, those: Any, classes: Any, **options: Any) -> Any:
        scores = real(made, those, classes, **options)
        counts = np.tile(np.array([round(100 * next(steps)), 100, 100]), (*scores.counts.shape[:2], 1))
        return replace(scores, counts=counts)

    monkeypatch.setattr(module, "score", told)
    options: dict[str, Any] = {"changes": ["train.keep_every=1"], "device": "cpu", "quiet": True, "report": False}
    done = finetune(recipe(), scans(6), tmp_path, init=encoder(), **options)
    assert done.best is not None
    assert done.best["step"] == 2
    tensors, _ = module_checkpoint(tmp_path, 2)
    kept = zoo.load_segmenter(tmp_path, device="cpu").network.state_dict()
    last, _ = module_checkpoint(tmp_path, 4)
    assert all(torch.equal(kept[k], tensors[f"network.{k}"]) for k in kept)
    assert not all(torch.equal(kept[k], last[f"network.{k}"]) for k in kept)


def module_checkpoint(run: Path, step: int) -> tuple[dict[str, torch.Tensor], Any]:
    from ctfoundry.train import checkpoint

    tensors, rest = checkpoint.read(run / "checkpoints", step)
    return tensors["modules"], rest


KILLED = """
import os, signal, sys
from pathlib import Path
from adapt.bodies import scans
from adapt.test_finetune import encoder, recipe
from ctfoundry.adapt import finetune as module

for name in sys.argv[2:]:
    if not (pid := os.fork()):
        real = getattr(module, name)
        def killed(*a, **k):
            real(*a, **k)
            os.kill(os.getpid(), signal.SIGKILL)
        setattr(module, name, killed)
        options = {"init": encoder(), "device": "cpu", "quiet": True, "report": False}
        module.finetune(recipe(), scans(6), Path(sys.argv[1]) / name, **options)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
"""


def test_kill_nine_and_going_on_gives_the_same_model(tmp_path: Path) -> None:
    """Killed while it validates: after the weights are written and before the row is, or before both."""
    whole = tmp_path / "whole"
    options: dict[str, Any] = {"device": "cpu", "quiet": True, "report": False}
    processes.run(KILLED, 1, tmp_path, "save_model", "score")
    finetune(recipe(), scans(6), whole, init=encoder(), **options)
    for run in (tmp_path / "save_model", tmp_path / "score"):
        assert not (run / "validation.jsonl").exists()
        assert (run / "model.safetensors").exists() is (run.name == "save_model")
        finetune(recipe(), scans(6), run, init=encoder(), **options)
        assert without_times(rows(run)) == without_times(rows(whole))
        assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_frozen_and_layerwise_with_another_family_and_going_on(tmp_path: Path) -> None:
    """A transformer has weights without a part here; a run continues with them all the same."""
    from models.test_combined import encoder as of_family

    given = of_family("vit")
    for mode in ("frozen", "layerwise"):
        changed: Any = {"validate_every": 1, "decoder": "unet", "preparation": "flexict-tiny"}
        own = recipe(2, tuning=Tuning(mode), augmentation=Augmentation(), **changed)
        options: dict[str, Any] = {"device": "cpu", "quiet": True, "report": False}
        finetune(own, scans(4), tmp_path / mode, init=given, steps=1, **options)
        done = finetune(own, scans(4), tmp_path / mode, init=given, **options)
        assert [row["step"] for row in rows(tmp_path / mode)] == [1, 2]
        assert any("have no part" in text for text in done.warnings) is (mode == "layerwise")
        tensors, _ = module_checkpoint(tmp_path / mode, 2)
        moved = {
            k for k, v in given.network.state_dict().items() if not torch.equal(v, tensors[f"network.encoder.{k}"])
        }
        assert bool(moved) is (mode == "layerwise")
        assert not {name for name in moved if "2D" in name}


def test_what_is_wrong_with_the_data_is_said_before_training(tmp_path: Path) -> None:
    options: dict[str, Any] = {"init": encoder(), "device": "cpu", "quiet": True, "report": False}
    empty = [scan_of(f"e{i}", body(i)[0], replace(body(i)[1], voxels=0 * body(i)[1].voxels)) for i in range(4)]
    with pytest.raises(UsageError, match="validation scans holds one of the classes"):
        finetune(recipe(), empty, tmp_path / "empty", **options)
    assert not (tmp_path / "empty" / "checkpoints").exists()
    with pytest.raises(SettingsError, match="for classification"):
        finetune("classify-tiny", scans(4), tmp_path / "wrong", **options)
    finetune(recipe(), scans(4), tmp_path / "run", steps=1, **options)
    with pytest.raises(SettingsError, match="was begun with"):
        finetune(recipe(), scans(5), tmp_path / "run", steps=1, **options)
    with pytest.raises(SettingsError, match="init"):
        finetune(recipe(), scans(4), tmp_path / "run", steps=1, **{**options, "init": "random"})
    with pytest.raises(SettingsError, match="a flip exchanges left and right, and 'left_side'"):
        finetune(recipe(), scans(4), tmp_path / "flip", **options, changes=["augmentation.flip=0.5"])
    data = module.LabelledSet("bodies", tuple(scans(2)))
    classes, notes = classes_of(recipe(), data, groups={"dark": ("fat",), "rest": ("bone", "left_side")})
    assert classes.names == ("dark", "rest")
    assert not notes


def test_score_matches_names_and_parts(tmp_path: Path) -> None:
    finetune(recipe(), scans(4), tmp_path, init=encoder(), steps=1, device="cpu", quiet=True, report=False)
    made = zoo.load_segmenter(tmp_path, device="cpu")
    whole = score(made, scans(2), CLASSES)
    assert whole.dice.shape == (2, 3)
    grouped = score(made, scans(2), CLASSES.of({"both": ("bone", "fat")}))
    taken = [np.isin(made(scan.image()).voxels, (1, 2)) for scan in scans(2)]
    own = [np.isin(read_classes(scan, CLASSES)[1].voxels, (1, 2)) for scan in scans(2)]
    wanted = [[(a & b).sum(), a.sum(), b.sum()] for a, b in zip(taken, own, strict=True)]
    np.testing.assert_array_equal(grouped.counts[:, 0], wanted)


def broken(number: int) -> Any:
    def fails() -> Any:
        raise UsageError("the file is gone")

    return replace(scan_of(f"broken{number}", *body(50 + number)), image=fails, patient=f"broken{number}")


def test_broken_scans_are_left_out_and_borders_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the training scans when few are drawn, of the test scans at the end; nothing else stops."""
    given = [
        replace(s, split=part)
        for s, part in zip(scans(6), ("train",) * 2 + ("validation",) * 2 + ("test",) * 2, strict=True)
    ]  # type: ignore[arg-type]
    given += [replace(broken(0), split="train"), replace(broken(1), split="test")]
    options: dict[str, Any] = {"init": encoder(), "device": "cpu", "report": True, "shots": 2}
    done = finetune(recipe(2), given, tmp_path, **options)
    assert (
        json.loads((tmp_path / "split.json").read_text())["train"] == ["body0", "body1"] or done.patients["train"] == 2
    )
    assert "test scan broken1 is left out: the file is gone" in done.warnings
    assert done.test is not None
    assert (set(done.test["scans"]), set(done.test["failed"])) == ({"body4", "body5"}, {"broken1"})
    assert done.test["surfaces"].keys() == {"tolerance_mm", *NAMES.values()}
    assert "lesions" not in done.test
    assert "Borders and lesions" in (tmp_path / "report.html").read_text()
    assert done.best is not None
    assert done.best["precision"] == "fp32"
    assert "note:" not in capsys.readouterr().err  # nothing odd about the training data

    # another step is the best after the run went on by the clock: the test is not that of the old one
    row = json.loads((tmp_path / "test.json").read_text())
    (tmp_path / "test.json").write_text(json.dumps({**row, "step": 1, "dice": 0.99}))
    again = finetune(recipe(2), given, tmp_path, **options)
    assert again.test is not None
    assert (again.test["dice"], again.test["looked_at_before"]) == (done.test["dice"], [1])
    assert "looked at 2 times" in (tmp_path / "report.html").read_text()
    card = zoo.load_segmenter(tmp_path, device="cpu").card
    assert "looked at 2 times" in card.tested_on[-1]


def test_training_scans_beyond_memory_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctfoundry.adapt import prepared

    monkeypatch.setattr(prepared.Cases.__init__, "__kwdefaults__", {"cache": None, "memory": 1000})
    options: dict[str, Any] = {"init": encoder(), "device": "cpu", "quiet": True, "report": False, "steps": 1}
    done = finetune(recipe(), scans(4), tmp_path / "a", **options)
    assert any("--cache DIR" in text for text in done.warnings)
    kept = finetune(recipe(), scans(4), tmp_path / "b", cache=tmp_path / "cache", **options)
    assert not any("--cache DIR" in text for text in kept.warnings)
