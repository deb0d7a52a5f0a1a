"""The verb classify, end to end, on a classifier that was never trained."""

from __future__ import annotations

import json

import pytest

from adapt.heads import write_heads
from ctfoundry import zoo
from ctfoundry.classifier import Rule, assemble, fixed_size, make_card
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.preparation import PREPARATIONS
from program import run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    encoder = zoo.load_encoder("ct-fm-tiny", weights="random", device="cpu")
    preparation = fixed_size(PREPARATIONS["ct-fm-head-tiny"], (8, 32, 32))
    made = assemble(make_card("c", encoder.card, preparation, "mean", ("bleed",), Rule("binary", (0.5,))), encoder)
    initialise(made.head, Key.of("head"))
    path = tmp_path_factory.mktemp("model") / "c.safetensors"
    zoo.save_model(made, path)
    return path


def test_classify_continues_and_a_bad_scan_leaves_others_alone(model, tmp_path):
    scans = write_heads(tmp_path / "scans", 3)
    (scans / "head001.nii.gz").write_bytes((scans / "head001.nii.gz").read_bytes()[:4000])
    out = tmp_path / "out"
    command = ["classify", str(scans), "--model", str(model), "-o", str(out), "--device", "cpu", "--json"]
    found = run(*command)
    assert found.returncode == 3, found.stderr
    data = json.loads(found.stdout)
    assert len(data["predictions"]) == 2
    assert len(data["failed"]) == 1
    lines = (out / "predictions.csv").read_text().splitlines()
    assert lines[0] == "id,probability,calibrated,called"
    assert len(lines) == 3
    for name in ("predictions.csv", "predictions.json", "predictions.jsonl", "run.json", "card.json"):
        assert "head0" not in (out / name).read_text()
    again = run(*command)
    assert json.loads(again.stdout)["predictions"] == data["predictions"]
    assert len(json.loads((out / "run.json").read_text())["results"]["skipped"]) == 2
    # another model is not mixed in
    other = zoo.load_classifier(model, device="cpu").with_rule(Rule("binary", (0.4,)))
    zoo.save_model(other, tmp_path / "other.safetensors")
    refused = run("classify", str(scans), "--model", str(tmp_path / "other.safetensors"), "-o", str(out))
    assert refused.returncode == 2
    assert "predictions of another model" in refused.stderr


def test_finetune_learns_from_a_table(tmp_path):
    """The verb itself: rows for people, JSON for programs, and options of segmentation refused."""
    heads = write_heads(tmp_path / "scans", 12)
    changes = [
        "size=[8,32,32]",
        "train.batch=2",
        "train.schedule.steps=2",
        "train.schedule.warmup=0",
        "validate_every=2",
        "train.workers=0",
    ]
    command = ["finetune", "head-triage-tiny", "--data", str(heads), "--table", str(heads / "labels.csv"), "--run", str(tmp_path / "run"),
               "--init", "random", "--device", "cpu", *(part for change in changes for part in ("--set", change))]  # fmt: skip
    found = run(*command)
    assert found.returncode == 0, found.stderr
    for word in ("validation", "test, HU histogram alone", "looked at once", "bleed", "called from", "sensitivity"):
        assert word in found.stdout
    assert "head0" not in found.stdout + (tmp_path / "run" / "run.json").read_text()
    again = run(*command, "--json")
    assert json.loads(again.stdout)["test"]["classes"]["bleed"]["positive"] > 0
    refused = run(*command, "--test-share", "0.2", "--labels", "bleed")
    assert refused.returncode == 2
    assert "--labels, --test-share" in refused.stderr
