"""The encoder that evaluations pretrain for themselves."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ctfoundry.evaluate.pretrained import pretrained
from ctfoundry.zoo import load_encoder


def test_it_is_made_once_and_loads(tmp_path: Path) -> None:
    run = pretrained(tmp_path, 3, 2, heads=1)
    encoder = load_encoder(run, device="cpu")
    assert (encoder.card.weights, encoder.card.training["steps"], encoder.card.training["scans"]) == ("trained", 2, 3)
    names = sorted(p.name for p in (tmp_path / "pretraining" / "phantoms").iterdir() if p.is_dir())
    assert [name.split("-")[1] for name in names] == ["1000", "1000", "2000"]
    made = json.loads((run / "run.json").read_text())["outputs"]["model.safetensors"]
    again = load_encoder(pretrained(tmp_path, 3, 2, heads=1), device="cpu").network.state_dict()
    assert json.loads((run / "run.json").read_text())["outputs"]["model.safetensors"] == made
    assert all(torch.equal(value, again[name]) for name, value in encoder.network.state_dict().items())
