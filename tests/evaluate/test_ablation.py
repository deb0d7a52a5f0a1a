"""The ablation: equal voxels in every arm, and what its tables and words say of made-up measurements."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctfoundry.errors import UsageError
from ctfoundry.evaluate import ablation, ablation_report
from ctfoundry.evaluate.ablation import ARMS, RANDOM, Plan
from ctfoundry.keys import Key
from ctfoundry.pretrain.recipe_files import load_recipe
from ctfoundry.stats import Interval
from evaluate.coarse import coarser


def test_every_arm_sees_as_many_voxels_and_differs_in_what_it_is_named_for() -> None:
    plan = Plan(forwards=3600)
    recipes = {arm: load_recipe(f"{arm}-tiny") for arm in ARMS}
    for recipe in recipes.values():
        seen = plan.steps(recipe) * 2 * recipe.train.batch * recipe.crops * math.prod(recipe.crop)
        assert seen == pytest.approx(3600 * 16 * 64 * 64, rel=0.02)
        assert recipe.preparation == "ct-fm-tiny"
        assert recipe.model.filters == 8
    for family in ("simclr", "simsiam", "vicreg"):
        intra, published = (recipes[f"{family}{kind}"] for kind in ("-intra", ""))
        matched = load_recipe(f"{family}-matched-tiny")
        assert (intra.objective, matched.objective, published.objective) == (f"{family}-intra", family, family)
        assert (matched.crop, matched.crops, matched.train.batch) == (intra.crop, intra.crops, intra.train.batch)
        assert published.crops == 1
        assert math.prod(published.crop) == 12.5 * math.prod(intra.crop)
    assert [recipes[f"simclr-intra{n}"].crops for n in ("-5", "-10", "", "-20")] == [5, 10, 15, 20]


def measured(arm: str, seed: int, gain: float) -> dict[str, Any]:
    """Measurements of an encoder that is better by `gain` at everything, on eight patients."""
    noise = Key.of("noise", arm, seed).normal((8, 4)) * 0.001
    dice = {f"p{i}": {"macro": 0.4 + gain + noise[i, 0], "micro": 0.5 + gain + noise[i, 1]} for i in range(8)}
    searches = [
        [method, "liver", f"p{i}", f"p{j}", 50 - 100 * gain + float(noise[i, 2]) if method == "encoder" else 60.0, float(i > 3)]
        for method in (["encoder"] if arm != RANDOM or seed else ["encoder", "position in the body box"])
        for i in range(8)
        for j in range(8)
        if i != j
    ]  # fmt: skip
    views = {
        "encoder": {f"r{i}": [1.0] * round(8 * (0.5 + gain)) + [0.0] * (8 - round(8 * (0.5 + gain))) for i in range(6)}
    }
    training = {
        "batch": 2,
        "crops": 15,
        "crop": [16, 64, 64],
        "steps": 3,
        "seconds": 1.0,
        "warnings": ["collapse (rank): x"],
    }
    return {
        "arm": arm, "seed": seed, "dice": {"encoder": dice}, "searches": searches, "views": views,
        "training": {} if arm == RANDOM else training,
    }  # fmt: skip


GAINS = {RANDOM: 0.0, "simclr": 0.2, "simclr-intra": 0.1, "simclr-intra-5": 0.1, "vicreg": 0.0, "vicreg-intra": 0.25}


def results() -> list[dict[str, Any]]:
    return [measured(arm, seed, gain) for seed in range(3) for arm, gain in GAINS.items()]


def test_intervals_hold_what_was_put_in() -> None:
    summary = ablation_report.summarise(results())
    assert list(summary.arms) == [RANDOM, *(arm for arm in ARMS if arm in GAINS)]
    for arm, gain in GAINS.items():
        found = summary.arms[arm]
        macro, miss = found["dice_macro"], found["miss_mm"]
        assert macro is not None
        assert miss is not None
        assert macro.value == pytest.approx(0.4 + gain, abs=0.002)
        assert macro.patients == 8
        assert miss.value == pytest.approx(50 - 100 * gain, abs=0.01)
        inside = found["inside"]
        assert inside is not None
        assert inside.value == pytest.approx(50.0)
        if arm != RANDOM:
            change = summary.gains[arm]["dice_micro"]
            assert change is not None
            assert change.value == pytest.approx(gain, abs=0.002)
    position = summary.others["position in the body box"]
    assert position["miss_mm"] is not None
    assert position["miss_mm"].value == 60
    assert position["dice_macro"] is None


def test_words_follow_the_interval_and_the_direction() -> None:
    words = dict(zip("abc", ablation_report.conclusions(ablation_report.summarise(results()))[:3], strict=True))
    assert "`simclr` to `simclr-intra`: the paper's order is **reversed**" in words["a"]
    assert "miss of a search, mm: worse" in words["a"]  # it grew by 10 mm
    assert "`vicreg` to `vicreg-intra`: the paper's order is reproduced" in words["b"]
    assert "not reproduced (undecided)" in words["c"].replace("**", "")
    few = [
        {
            **result,
            "dice": {
                method: {patient: value for patient, value in own.items() if patient in list(own)[:3]}
                for method, own in result["dice"].items()
            },
        }
        for result in results()
    ]
    first = ablation_report.conclusions(ablation_report.summarise(few))[0]
    assert "nothing can be said of the paper's order (too few patients)" in first
    lower = ablation_report.MEASURES[2]
    assert lower.verdict(Interval(-3, -4, -2, 8, 8, 0)) == "better"
    assert lower.verdict(Interval(-3, None, None, 2, 8, 0)) == "too few patients"
    assert lower.verdict(None) == "not measured"


def test_a_method_without_learning_that_is_as_good_is_named() -> None:
    made = results()
    first = next(r for r in made if r["arm"] == RANDOM and r["seed"] == 0)
    first["dice"]["one voxel's HU"] = {f"p{i}": {"macro": 0.9, "micro": 0.1} for i in range(8)}
    said = ablation_report.conclusions(ablation_report.summarise(made))[3:]
    assert len(said) == 2  # and the position, which is inside as often as any encoder
    assert "inside the structure, %: **position in the body box** alone (50.0)" in said[1]
    assert "mean of structures: **one voxel's HU** alone (0.900)" in said[0]
    assert "(`vicreg-intra`, 0.65" in said[0]


def test_pages_are_written(tmp_path: Path) -> None:
    ablation_report.write_results(tmp_path, results(), Plan())
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "ablation.md").read_text()
    for arm in GAINS:
        assert ARMS.get(arm, arm) in text
    assert "collapse (rank)" in text
    assert page.count("<svg") >= 5
    data = json.loads((tmp_path / "ablation.json").read_text())
    assert data["change_from_random"]["vicreg-intra"]["dice_macro"]["low"] > 0.2
    assert np.isfinite(data["arms"][RANDOM]["views"]["value"])


def test_an_unknown_arm_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="simclr-intra"):
        ablation.ablation(tmp_path, arms=["simclr-inta"])
    assert not list(tmp_path.iterdir())


def test_an_arm_from_phantoms_to_its_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest real one, in this process: phantoms, stores, a run, and all that is measured of it; then again from what is there."""
    from ctfoundry.adapt import probe

    coarser(monkeypatch)
    monkeypatch.setattr(probe, "ProbeSettings", partial(probe.ProbeSettings, steps=5, crops=2))
    plan = Plan(phantoms=7, voxel_mm=8.0, forwards=30, shots=2, seeds=1)
    ablation.prepare(tmp_path, plan, None, None)
    known = json.loads((tmp_path / "patients.json").read_text())
    assert (len(known["train"]), len(known["held_out"]), known["real_held_out"]) == (5, 2, [])
    assert not set(known["train"]) & set(known["held_out"])
    jobs = [ablation.Job(tmp_path, arm, 0, plan, 1, "cpu") for arm in (RANDOM, "simclr-intra-5")]
    for job in jobs:
        assert ablation.work(job) == job.name
        assert ablation._is_done(job)
    random, trained = (json.loads(job.result.read_text()) for job in jobs)
    assert trained["training"]["steps"] == plan.steps(load_recipe("simclr-intra-5-tiny")) == 2
    assert set(random["dice"]) == {"encoder", "one voxel's HU", "position in the body box"}
    assert set(trained["dice"]) == {"encoder"}
    assert set(trained["dice"]["encoder"]) == set(known["held_out"])
    methods = {row[0] for row in random["searches"]}
    assert methods == {"encoder", "HU around the cell", "position in the body box", "best possible cell"}
    assert all(row[5] in (0.0, 1.0) and row[4] >= 0 for row in random["searches"])
    other = ablation.Job(
        tmp_path, "simclr-intra-5", 0, Plan(phantoms=7, voxel_mm=8.0, forwards=60, shots=2, seeds=1), 1, "cpu"
    )
    assert not ablation._is_done(other)
    summary = ablation_report.summarise([random, trained])
    assert summary.others["best possible cell"]["miss_mm"] is not None
