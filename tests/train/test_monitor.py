from __future__ import annotations

import json
from pathlib import Path

import torch

from ctfoundry.train.monitor import CollapseRule, CollapseWatch, Meters, Metrics, read_metrics


def test_collapse_is_announced_once_after_patience_and_so_is_its_end() -> None:
    watch = CollapseWatch(CollapseRule(gap=0.02, rank_share=0.1, patience=3))
    bad, good = {"positive": 0.999, "negative": 0.998}, {"positive": 0.9, "negative": 0.2}
    said = [watch.see(row) for row in (bad, bad, good, bad, bad, bad, bad, good)]
    assert [len(s) for s in said] == [0, 0, 0, 0, 0, 1, 0, 1]
    assert said[5][0].startswith("collapse (gap): views of one crop are only 0.001 more alike")
    assert said[7][0].startswith("recovered (gap)")


def test_low_rank_counts_as_collapse() -> None:
    watch = CollapseWatch(CollapseRule(rank_share=0.1, patience=1))
    assert watch.see({"rank": 7.4, "rank_of": 64.0}) == []
    assert watch.see({"rank": 6.0, "rank_of": 64.0}) == [
        "collapse (rank): effective rank 6.0 of 64 (below 7.3) for 1 log steps"
    ]


def test_lines_beyond_the_resumed_step_and_cut_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, 0)
    for step in (1, 2, 3):
        metrics.write({"step": step, "loss": float("nan")})
    path.write_text(path.read_text() + '{"step": 2, "lo')
    Metrics(path, 2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": None},
        {"step": 2, "loss": None},
    ]


def test_warnings_are_apart_from_log_lines(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m", 0)
    metrics.write({"step": 1, "loss": 1.0})
    metrics.write({"step": 1, "warning": "collapse", "text": "x"})
    rows, warnings = read_metrics(tmp_path / "m")
    assert [len(rows), len(warnings)] == [1, 1]


def test_meters_survive_a_checkpoint_exactly() -> None:
    meters, other = Meters(), Meters()
    for value in (0.1, 0.7):
        meters.add({"loss": torch.tensor(value)})
    other.load(json.loads(json.dumps(meters.state())))
    for m in (meters, other):
        m.add({"loss": torch.tensor(torch.nan)})
    for m in (meters, other):
        assert str(m.take()) == "{'loss': nan}"
        assert m.count == 0
