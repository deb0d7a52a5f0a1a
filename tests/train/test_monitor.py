from __future__ import annotations

import json
from pathlib import Path

import torch

from ctfoundry.train.monitor import CollapseRule, CollapseWatch, Meters, Metrics, read_metrics


def test_collapse_is_announced_once_after_patience_and_so_is_its_end() -> None:
    watch = CollapseWatch(CollapseRule(gap=0.02, rank_share=0.1, patience=3))
    bad, good = {"positive": 0.999, "negative": 0.998}, {"positive": 0.9, "negative": 0.2}
    said = [watch.see(row) for row in (bad, bad, good, bad, bad, bad, bad, good, bad, good, good, good, good)]
    assert [len(s) for s in said] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0]
    assert said[5][0].startswith("collapse (gap): views of one crop are only 0.001 more alike")
    assert said[11][0].startswith("recovered (gap)")


def test_low_rank_counts_as_collapse() -> None:
    watch = CollapseWatch(CollapseRule(rank_share=0.1, patience=1))
    assert watch.see({"rank": 7.4, "rank_of": 64.0}) == []
    assert watch.see({"rank": 6.0, "rank_of": 64.0}) == [
        "collapse (rank): effective rank 6.0 of 64 (below 7.3) for 1 log steps"
    ]


def test_lost_directions_are_a_collapse_where_a_slow_start_is_none() -> None:
    """Both end at an effective rank of 2 of 16: one had 12 before, the other never more than 2.3."""
    fallen, slow = CollapseWatch(CollapseRule(patience=2)), CollapseWatch(CollapseRule(patience=2))
    said = [
        [watch.see({"rank": rank, "rank_of": 16.0, "positive": 0.5, "negative": 0.3}) for rank in ranks]
        for watch, ranks in (
            (fallen, (12.0, 7.0, 2.0, 2.0, 2.0, 8.0, 8.0)),
            (slow, (2.3, 1.9, 2.0, 2.0, 2.0, 2.1, 2.0)),
        )
    ]
    assert said[0][3] == ["collapse (fall): effective rank has fallen from 12.0 to 2.0 (below 2.6) for 2 log steps"]
    assert said[0][6] == ["recovered (fall): not below 2.65 for 2 log steps"]
    assert not any(said[1])


def test_crops_that_come_together_are_a_collapse_whatever_the_rank_of_their_noise() -> None:
    watch, slow = CollapseWatch(CollapseRule(patience=2)), CollapseWatch(CollapseRule(patience=2))
    rows = [{"uniformity": u, "rank": 8.0, "rank_of": 16.0} for u in (-2.8, -1.0, -0.2, -0.1, -0.1)]
    said = [watch.see(row) for row in rows]
    assert [len(s) for s in said] == [0, 0, 0, 1, 0]
    assert said[3][0].startswith("collapse (uniformity): views of different crops come together")
    assert not any(slow.see({"uniformity": u}) for u in (-0.2, -0.1, -0.1, -0.15, -0.4))
    assert not any(slow.see({"uniformity": u}) for u in (float("nan"), None, float("nan")))


def test_what_there_was_to_lose_is_known_from_the_warm_up_and_from_before_a_checkpoint() -> None:
    watch, other = CollapseWatch(CollapseRule(patience=1)), CollapseWatch(CollapseRule(patience=1))
    assert watch.see({"rank": 13.0, "rank_of": 16.0, "uniformity": -3.0}, judge=False) == []
    assert watch.see({"rank": 2.0, "rank_of": 16.0, "uniformity": -0.1}, judge=False) == []
    other.load(json.loads(json.dumps(watch.state())))
    said = other.see({"rank": 2.0, "rank_of": 16.0, "uniformity": -0.1})
    assert [text.split(":")[0] for text in said] == ["collapse (fall)", "collapse (uniformity)"]


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
    with (tmp_path / "m").open("a") as file:
        file.write('{"step": 2, "lo')  # another process reads while this one is killed
    rows, warnings = read_metrics(tmp_path / "m")
    assert [len(rows), len(warnings)] == [1, 1]
    assert read_metrics(tmp_path / "none") == ([], [])


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
