"""Head triage: the two scanners, the same heads for every method, and what tables and words say of made-up logits."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, recall_score, roc_auc_score

from ctfoundry import io, phantom, zoo
from ctfoundry.errors import UsageError
from ctfoundry.evaluate import triage, triage_heads, triage_report
from ctfoundry.evaluate.triage import FROZEN, HISTOGRAM, PRETRAINED, READ, SCRATCH, TUNED, Plan
from ctfoundry.evaluate.triage_report import AUROC
from ctfoundry.keys import Key
from ctfoundry.settings import to_data
from ctfoundry.stats import Interval
from ctfoundry.zoo.files import save_model

COUNTS = {"train": 2, "validation": 0, "test": 1}


def test_a_scanner_changes_the_scan_and_not_the_patient() -> None:
    spec = phantom.draw(Key.of("here", 0), view="head", lesions=True, odds=triage_heads.ODDS)
    one, other = (scanner.of(spec) for scanner in (triage_heads.SOURCE, triage_heads.TARGET))
    assert one.subject == other.subject == spec.subject
    assert one.acquisition.tilt_deg == other.acquisition.tilt_deg
    assert (one.acquisition.kernel, other.acquisition.kernel) == ("soft", "sharp")
    assert (one.acquisition.spacing_mm, other.acquisition.spacing_mm) == (2.5, 5.0)
    assert one.acquisition.pixel_mm == pytest.approx(1.5)
    assert abs(one.acquisition.field_mm - spec.acquisition.field_mm) < 1.5


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes takes longer than these few coarse heads."""
    monkeypatch.setattr(triage_heads, "in_processes", lambda work, jobs, say=None: [work(*job) for job in jobs])


def test_a_site_is_made_once_and_its_table_is_what_the_scans_show(tmp_path: Path) -> None:
    table = triage_heads.make_site(tmp_path, "source", COUNTS, coarser=5.0)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(r["scan"], r["split"]) for r in rows] == [
        ("train-000", "train"), ("train-001", "train"), ("test-000", "test"),
    ]  # fmt: skip
    assert len({r["patient"] for r in rows}) == 3
    for row in rows:
        made = triage_heads.made_again(tmp_path / row["scan"])
        assert int(row["abnormal"]) == int((made.lesions.voxels > 0).sum() > 0)
        assert np.array_equal(io.read(tmp_path / row["scan"] / "ct.nii.gz").voxels, made.ct.voxels)
    before = (tmp_path / "train-000" / "ct.nii.gz").stat().st_mtime_ns
    (tmp_path / "train-001" / "truth.json").unlink()
    triage_heads.make_site(tmp_path, "source", COUNTS, coarser=5.0)
    assert (tmp_path / "train-000" / "ct.nii.gz").stat().st_mtime_ns == before
    assert (tmp_path / "train-001" / "truth.json").is_file()


# ---------------------------------------------------------------------- numbers of made-up results


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triage_report, "REPEATS", 400)


def made_up(heads: int = 40, seeds: int = 2) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Pretrained tells blood well on the source and not on the target; the others do not tell it at all."""
    truth = {part: [int(i % 2) for i in range(heads)] for part in triage.PARTS}
    kinds = list(triage_report.KINDS)
    shown = [
        {
            "kind": kinds[i % 3],
            "size_mm": 9.0,
            "volume_ml": 4.0,
            "centre_mm": [0, 0, 0],
            "attributes": {"stage": "acute"},
        }
        for i in range(heads)
    ]
    setup = {
        "plan": {},
        "encoder": {"name": "x", "sha256": "y"},
        "train": [0, 1] * 8,
        "heads": {
            part: [{"name": f"test-{i:03d}", "abnormal": y, "findings": [shown[i]] * y} for i, y in enumerate(own)]
            for part, own in truth.items()
        },
    }  # fmt: skip
    results = []
    for share in (0.1, 1.0):
        for method in (*TUNED, *READ):
            for seed in range(seeds):
                logits = {
                    part: (
                        Key.of("made up", method, share, seed, part).normal(heads)
                        + np.array(truth[part]) * (3.0 if method == PRETRAINED and share == 1 and part != "target" else 0.0)
                    ).tolist()
                    for part in triage.PARTS
                }  # fmt: skip
                rule = {"kind": "binary", "thresholds": [0.7], "temperature": 2.0}
                tuned = {"steps": 3, "step": 3} if method in TUNED else {}
                results.append(
                    {"method": method, "share": share, "seed": seed, "seconds": 1.0, "rule": rule, "logits": logits, **tuned}
                )  # fmt: skip
    return results, setup


def test_measures_are_those_of_scikit_learn_averaged_over_seeds() -> None:
    results, setup = made_up()
    own = [r for r in results if (r["method"], r["share"]) == (PRETRAINED, 1.0)]
    truth = np.array([h["abnormal"] for h in setup["heads"]["source"]])
    method = triage_report.gathered(results, setup)[PRETRAINED, 1.0, "source"]
    z = np.array([r["logits"]["source"] for r in own])
    p, calm = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-z / 2))
    expected = {
        "auroc": np.mean([roc_auc_score(truth, row) for row in p]),
        "average_precision": np.mean([average_precision_score(truth, row) for row in p]),
        "brier": np.mean([brier_score_loss(truth, row) for row in p]),
        "brier_calibrated": np.mean([brier_score_loss(truth, row) for row in calm]),
        "f1": np.mean([f1_score(truth, row >= 0.7) for row in p]),
        "sensitivity": np.mean([recall_score(truth, row >= 0.7) for row in p]),
        "specificity": np.mean([recall_score(1 - truth, row < 0.7) for row in p]),
    }
    for name, value in expected.items():
        found = triage_report.interval(method, name)
        assert found.value == pytest.approx(value, abs=1e-12), name
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high


def test_words_follow_intervals_and_patients() -> None:
    results, setup = made_up()
    summary = triage_report.summarise(results, setup)
    paired = {(r["ours"], r["other"], r["share"], r["site"]): r for r in summary["paired"]}
    told = paired[PRETRAINED, SCRATCH, 1.0, "source"]["auroc"]
    assert AUROC.verdict(told) == "better"
    assert told.patients == 40
    assert AUROC.verdict(paired[PRETRAINED, SCRATCH, 1.0, "target"]["auroc"]) == "undecided"
    assert triage_report.MEASURES[-1].verdict(Interval(-0.1, -0.2, -0.05, 9, 9, 0)) == "better"
    moved = {(r["method"], r["share"]): r for r in summary["transfer"]}[PRETRAINED, 1.0]["auroc"]
    assert moved.high < 0
    words = triage_report.conclusions(summary)
    assert any(
        line.startswith("100% of the training heads, same scanner: pretrained minus from scratch") and "better" in line
        for line in words
    )
    assert any("chance" in line and HISTOGRAM in line for line in words)
    kinds = next(r for r in summary["kinds"] if (r["method"], r["site"]) == (PRETRAINED, "source"))
    assert sum(kinds[kind].patients for kind in triage_report.KINDS) == 20
    base = triage_report.base_rates(np.array([1, 1, 0, 0]))
    assert base["f1"] == pytest.approx(f1_score([1, 1, 0, 0], [1, 1, 1, 1]))


def test_an_unfit_plan_is_refused() -> None:
    with pytest.raises(UsageError, match="share"):
        Plan(shares=(0.01,))
    with pytest.raises(UsageError, match="at least 4"):
        Plan(test=2)


# ---------------------------------------------------------------------- from nothing to the page


def test_from_phantoms_to_the_page_and_again_from_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[np.ndarray] = []
    real = triage_report._picture

    def one(*given: Any) -> np.ndarray:
        """Pictures make their phantom again, which takes long: one does for all."""
        if not drawn:
            drawn.append(real(*given))
        return drawn[0]

    monkeypatch.setattr(triage_report, "_picture", one)
    plan = Plan(
        train=4, validation=4, test=4, cohort=3, shares=(1.0,), seeds=1, coarser=5.0,
        changes=("size=[16,32,32]", "train.batch=2", "train.schedule.steps=2", "train.schedule.warmup=0", "validate_every=2"),
    )  # fmt: skip
    encoder = zoo.load_encoder("ct-fm-tiny", weights="random", device="cpu", seed=5)
    save_model(replace(encoder, card=replace(encoder.card, weights="trained")), tmp_path / "encoder.safetensors")
    save_model(encoder, tmp_path / "random.safetensors")
    with pytest.raises(UsageError, match="say nothing"):
        triage.triage(tmp_path / "out", init=tmp_path / "random.safetensors", plan=plan)
    results = triage.triage(tmp_path / "out", init=tmp_path / "encoder.safetensors", plan=plan)
    assert [(r["method"], r["share"]) for r in results] == [(m, 1.0) for m in (*TUNED, *READ)]
    assert {(r["share"], r["shots"]) for r in results} == {(1.0, 4)}
    heads = triage.prepare(tmp_path / "out", plan)
    assert not {s.patient for s in heads.parts["train"]} & {s.patient for s in heads.parts["source"]}

    run = tmp_path / "out" / "runs" / "pretrained-4-s0"
    split = json.loads((run / "split.json").read_text())
    assert split["test"] == []
    assert set(split["train"]) == {s.id for s in heads.parts["train"]}
    model = zoo.load_classifier(run, device="cpu")
    result = next(r for r in results if (r["method"], r["share"]) == (PRETRAINED, 1.0))
    assert result["rule"] == json.loads(json.dumps(to_data(model.rule)))
    for part in ("source", "target"):  # what was kept is what the classifier says of the scan itself
        said = model(heads.parts[part][3].image()).logits["abnormal"]
        assert result["logits"][part][3] == pytest.approx(said, abs=2e-3)

    setup = json.loads((tmp_path / "out" / "setup.json").read_text())
    assert [h["abnormal"] for h in setup["heads"]["target"]] == [s.target[0] for s in heads.parts["target"]]
    triage_report.write_results(tmp_path / "out", results, setup, plan)
    page = (tmp_path / "out" / "report.html").read_text()
    text = (tmp_path / "out" / "triage.md").read_text()
    assert page.count("<img") >= 4
    assert FROZEN in text
    assert SCRATCH in text
    assert (tmp_path / "out" / "triage.png").read_bytes()[:4] == b"\x89PNG"
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert all(math.isfinite(row["auroc"]["value"]) for row in kept["measures"])

    stamp = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "results").iterdir()}
    (gone := tmp_path / "out" / "results" / "HU-histogram-4-s0.json").unlink()
    again = triage.triage(tmp_path / "out", init=tmp_path / "encoder.safetensors", plan=plan)
    assert [r["logits"] for r in again] == [r["logits"] for r in results]
    assert {p: p.stat().st_mtime_ns for p in stamp if p != gone} == {p: t for p, t in stamp.items() if p != gone}
