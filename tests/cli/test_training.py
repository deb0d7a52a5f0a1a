"""Verbs that train, as a stranger uses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from program import result, run

SMALL = ["--set", "crop=[8,16,16]", "--set", "crops=2", "--set", "model.filters=4", "--set", "model.blocks=[1,1]"]


def test_plan_says_days_memory_and_disk_as_json(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("like: ct-fm-tiny\nname: mine\ntrain: {schedule: {steps: 1000}, batch: 4}\n")
    made = result("plan", recipe, "--scans", 50, "--gpus", 2, "--seconds", 0.2, "--device", "cpu", *SMALL)
    assert (made["recipe"], made["gpus"], made["gpu"], made["steps"], made["passes"]) == ("mine", 2, "H100", 1000, 80)
    assert made["days"] * 86400 == pytest.approx(made["step_seconds"] * 1000)
    assert made["share_from"] == "stated"
    assert {"weights", "gradients", "AdamW", "all"} <= made["memory_gib"].keys()
    assert made["store_gb"] == pytest.approx(50 * 19.4e-3)


def test_plan_prints_what_was_measured_and_what_was_not() -> None:
    done = run("plan", "ct-fm-tiny", "--scans", 5, "--seconds", 0.2, "--device", "cpu", *SMALL)
    assert done.returncode == 0, done.stderr
    for word in ("time", "operations", "memory", "checkpoints", "8x16x16", "(measured)", "reading was not measured"):
        assert word in done.stdout, word


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.optimizer.rate=1", "nearest known one is 'optimiser'"),
        ("crops=2.5", "expected int, got 2.5"),
    ],
)
def test_changes_are_typed_and_unknown_ones_name_the_nearest(change: str, said: str) -> None:
    done = run("plan", "ct-fm-tiny", "--scans", 5, "--set", change)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
