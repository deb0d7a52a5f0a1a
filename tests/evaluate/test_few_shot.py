"""The few-shot curves: which structures are told apart, who teaches and who tests, and what the page says of made-up counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctfoundry import zoo
from ctfoundry.errors import UsageError
from ctfoundry.evaluate import few_shot, few_shot_report
from ctfoundry.evaluate.few_shot import INTENSITY, POSITION, PRETRAINED, SCRATCH, Job, Plan
from ctfoundry.phantom.names import FOUND, GROUPS, IDS
from ctfoundry.zoo.files import save_model
from evaluate.coarse import coarser

TINY = Plan(
    shots=(1, 2),
    seeds=1,
    phantoms=8,
    voxel_mm=8.0,
    structures=4,
    frozen=False,
    changes=(
        "train.schedule.steps=2",
        "train.schedule.warmup=1",
        "validate_every=2",
        "patch=[16, 32, 32]",
        'extent={"mode": "whole"}',
    ),
)


def test_the_structures_are_those_that_most_scans_hold() -> None:
    scans = [{"liver": 900.0, "aorta": 0.5}, {"liver": 900.0, "aorta": 80.0, "small_bowel": 0.6, "colon": 0.6}]
    groups, held = few_shot.commonest(scans, 2)
    assert held == {
        "aorta": 1,
        "liver": 2,
    }  # of the equals aorta and bowel, the earlier one; half a millilitre is not held
    assert groups["liver"] == ("liver",)
    assert few_shot.commonest(scans, 3)[1]["bowel"] == 1  # 1.2 ml together


def test_every_structure_of_a_phantom_is_in_one_candidate_but_lesions_and_the_table() -> None:
    parts = [part for own in few_shot.candidates().values() for part in own]
    assert sorted(parts) == sorted(set(IDS) - set(FOUND) - set(GROUPS["table"]))


def test_a_plan_divides_its_phantoms_and_runs_whole_curves_first() -> None:
    plan = Plan()
    assert (plan.pool, plan.validation, plan.test) == (56, 4, 24)
    runs = plan.runs()
    assert len(runs) == len(set(runs)) == 3 * 4 * 4 + 3 * 2 * 2
    assert {seed for _, _, seed in runs[:16]} == {0}
    with pytest.raises(UsageError, match="60 shots"):
        Plan(shots=(5, 60))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]]]:
    """A folder with all results of the tiny plan, and the model they began with."""
    root = tmp_path_factory.mktemp("few-shot")
    with pytest.MonkeyPatch.context() as patch:
        coarser(patch)
        encoder = zoo.load_encoder("ct-fm-tiny", weights="random", device="cpu", seed=1)
        model = root / "model.safetensors"
        save_model(replace(encoder, card=replace(encoder.card, weights="trained")), model)
        out = root / "out"
        of = few_shot.prepare(out, TINY, zoo.load_encoder(model, device="cpu"))
        for arm, shots, seed in TINY.runs():
            few_shot.work(Job(out, arm, shots, seed, TINY, of, model, "cpu", 1))
        return out, model, few_shot.few_shot(out, init=model, plan=TINY)  # nothing is left to do


def test_methods_share_their_shots_and_the_test_scans_teach_nobody(
    made: tuple[Path, Path, list[dict[str, Any]]],
) -> None:
    out, model, results = made
    setup = json.loads((out / "setup.json").read_text())
    assert [(r["arm"], r["shots"], r["seed"]) for r in results] == TINY.runs()
    for shots in TINY.shots:
        drawn = [r["learnt_from"] for r in results if r["shots"] == shots]
        assert len(drawn) == 4
        assert all(own == drawn[0] for own in drawn)
        assert set(drawn[0]) <= set(setup["pool"])
    few, more = (next(set(r["learnt_from"]) for r in results if r["shots"] == n) for n in TINY.shots)
    assert few < more
    assert not set(setup["test"]) & {*setup["pool"], *setup["validation"]}
    split = json.loads((out / "runs" / "pretrained-1-s0" / "split.json").read_text())
    assert split["test"] == []  # what chooses the step never sees a test scan
    assert split["init"]["sha256"] == zoo.load_encoder(model, device="cpu").card.sha256
    other = json.loads((out / "runs" / "from-scratch-1-s0" / "split.json").read_text())
    assert (other["train"], other["validation"]) == (split["train"], split["validation"])
    assert other["init"]["weights"] == "random"
    own = [np.array(r["counts"])[..., 2] for r in results if r["arm"] in (PRETRAINED, SCRATCH)]
    assert all(np.array_equal(own[0], counts) for counts in own)  # the reference's voxels are everyone's


def test_a_result_of_another_plan_is_made_again(made: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    out, model, _ = made
    of = json.loads((out / "results" / "pretrained-1-s0.json").read_text())["of"]
    job = Job(out, PRETRAINED, 1, 0, TINY, of, model, "cpu", 1)
    assert few_shot.finished(job) is not None
    assert few_shot.finished(replace(job, of="another")) is None


def test_random_weights_are_no_pretrained_model(tmp_path: Path) -> None:
    encoder = zoo.load_encoder("ct-fm-tiny", weights="random", device="cpu", seed=1)
    save_model(encoder, tmp_path / "random.safetensors")
    with pytest.raises(UsageError, match="random weights"):
        few_shot.few_shot(tmp_path / "out", init=tmp_path / "random.safetensors", plan=TINY)


CLASSES = {"liver": ["liver"], "ribs": ["rib_left_1"], "skin": ["skin"]}


def result(arm: str, shots: int, seed: int, gain: float) -> dict[str, Any]:
    """Ten test patients of 100 voxels a class, hit to a share of 0.5 + gain +- a little."""
    hits = [[round(100 * (0.5 + gain) + patient % 3) for _ in CLASSES] for patient in range(10)]
    return {
        "arm": arm,
        "shots": shots,
        "seed": seed,
        "learnt_from": [],
        "classes": list(CLASSES),
        "patients": [f"p{i}" for i in range(10)],
        "counts": [[[hit, 100, 100] for hit in row] for row in hits],
    }


def test_the_page_says_which_is_higher_and_leaves_unpaired_runs_out(tmp_path: Path) -> None:
    results = [
        result(arm, n, seed, gain)
        for n, gains in ((5, (0.2, 0.0)), (50, (0.1, 0.1)))
        for seed in range(2)
        for arm, gain in ((PRETRAINED, gains[0]), (SCRATCH, gains[1]), (INTENSITY, 0.3), (POSITION, -0.3))
    ]
    results.append(result(PRETRAINED, 5, 2, 0.4))  # from scratch has not been run with this seed
    setup = {
        "plan": {"voxel_mm": 3.0, "cohort": 7000},
        "recipe": {
            "name": "r",
            "patch": [16, 64, 64],
            "train": {"schedule": {"steps": 2}, "batch": 2, "optimiser": {"rate": 0.002}},
        },
        "model": {"name": "m", "sha256": "0" * 64, "training": {}},
        "pool": ["a"] * 56,
        "validation": ["b"] * 4,
        "structures": {name: {"parts": parts, "held_by": 40} for name, parts in CLASSES.items()},
    }
    summary = few_shot_report.write_results(tmp_path, results, setup)
    gain = summary.differences[PRETRAINED, SCRATCH, 5]
    assert gain.value == pytest.approx(0.2)
    assert few_shot_report.DICE.verdict(gain) == "better"
    assert few_shot_report.DICE.verdict(summary.differences[PRETRAINED, SCRATCH, 50]) == "undecided"
    assert few_shot_report.DICE.verdict(summary.differences[PRETRAINED, INTENSITY, 5]) == "worse"
    assert summary.seeds == {5: [0, 1], 50: [0, 1]}
    assert summary.groups == {
        "organs": ("liver",),
        "ribs and sternum": ("ribs",),
        few_shot_report.OTHER: ("skin",),
    }
    # Dice of 100 voxels taken of 100 is the share that is hit
    assert summary.macro[PRETRAINED, 5].value == pytest.approx(np.mean([0.7 + 0.01 * (i % 3) for i in range(10)]))
    page = (tmp_path / "few-shot.md").read_text()
    assert "5 shots: **better**" in page
    assert f"{INTENSITY}, from the same shots: the pretrained network is not above it at 5, 50 shots." in page
    assert (tmp_path / "report.html").is_file()
    assert json.loads((tmp_path / "results.json").read_text())["differences"]
    few = [{**r, "patients": r["patients"][:3], "counts": r["counts"][:3]} for r in results]
    words = few_shot_report.conclusions(few_shot_report.summarise(few, CLASSES))
    assert f"{INTENSITY}, from the same shots: the pretrained network is measured on too few patients to say." in words
