from __future__ import annotations

import importlib.util
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctfoundry import files
from ctfoundry.errors import UsageError
from ctfoundry.train import fit
from ctfoundry.train.monitor import Metrics, read_metrics
from ctfoundry.train.sinks import check_sinks, open_sinks
from train.toys import Regression, ToySource, settings

CONFIG = {"name": "toy", "train": {"batch": 3, "betas": [0.9, 0.98]}}


def train(run: Path, name: Any, begin: int, end: int, scale: float) -> None:
    """A run that logs each second step from `begin` to `end`; each leg has values of its own."""
    metrics = Metrics(run / "metrics.jsonl", begin)
    with open_sinks([name], run, CONFIG, step=begin) as sinks:
        for step in range(begin + 2, end + 1, 2):
            row = {"step": step, "loss": scale * step, "rank": step, "negative": float("nan")}
            sinks.write(step, metrics.write(row))
        sinks.write(end, metrics.write({"step": end, "warning": "collapse", "text": f"said at {end}"}))


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(e.step, e.value) for e in events.Scalars(tag)]


def history(run: Path) -> list[dict[str, Any]]:
    """All history lines of the offline runs of a folder: LevelDB's log format, records in protobuf."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # as a process does at its end: W&B's own process may still be writing after finish()
    rows = []
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        data, position, part = path.read_bytes(), 7, b""
        assert data[:4] == b":W&B"
        while position + 7 <= len(data):
            if 32768 - position % 32768 < 7:  # the rest of a block is padding
                position += 32768 - position % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[position : position + 7])
            part += data[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                record, part = Record.FromString(part), b""
                if record.WhichOneof("record_type") == "history":
                    items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
                    rows.append({k: v for k, v in items.items() if k not in ("_runtime", "_timestamp")})
    return rows


def test_tensorboard_reads_back_what_was_logged_and_no_step_twice(tmp_path: Path) -> None:
    train(tmp_path, "tensorboard", 0, 12, 1.0)  # killed at 12 with a checkpoint at 8
    train(tmp_path, "tensorboard", 8, 16, 10.0)
    assert scalars(tmp_path, "loss") == [(2, 2), (4, 4), (6, 6), (8, 8), (10, 100), (12, 120), (14, 140), (16, 160)]
    assert [step for step, _ in scalars(tmp_path, "rank")] == list(range(2, 17, 2))
    with pytest.raises(KeyError):
        scalars(tmp_path, "negative")  # never finite


def test_a_tensorboard_file_that_a_kill_cut_short_hides_no_later_one(tmp_path: Path) -> None:
    train(tmp_path, "tensorboard", 0, 8, 1.0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    train(tmp_path, "tensorboard", 8, 12, 1.0)
    assert scalars(tmp_path, "loss") == [(2, 2), (4, 4), (6, 6), (8, 8), (10, 10), (12, 12)]


def test_wandb_is_offline_reads_back_and_holds_no_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    train(tmp_path, "wandb", 0, 12, 1.0)
    train(tmp_path, "wandb", 8, 16, 10.0)
    rows = history(tmp_path)
    assert [row["_step"] for row in rows] == list(range(2, 17, 2))
    assert [row["loss"] for row in rows] == [2, 4, 6, 8, 100, 120, 140, 160]
    assert rows[-1]["text"] == "said at 16"
    assert not any("negative" in row for row in rows)
    written = b"".join(p.read_bytes() for p in (tmp_path / "wandb").rglob("*") if p.is_file())
    assert b"betas" in written
    assert str(tmp_path).encode() not in written
    assert str(Path.home()).encode() + b"/" not in written


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_sink_that_joins_late_gets_the_earlier_lines(tmp_path: Path, name: Any) -> None:
    files.write_text(tmp_path / "metrics.jsonl", '{"step": 2, "loss": 0.5}\n{"step": 4, "loss": 0.25}\n')
    with open_sinks([name], tmp_path, CONFIG, step=4) as sinks:
        sinks.write(6, {"step": 6, "loss": 0.125})
    wanted = [(2, 0.5), (4, 0.25), (6, 0.125)]
    found = scalars(tmp_path, "loss") if name == "tensorboard" else [(r["_step"], r["loss"]) for r in history(tmp_path)]
    assert found == wanted


def test_a_sink_that_is_not_installed_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package wandb(?s:.)*ctfoundry\[sinks\]"):
        check_sinks(["wandb"])
    with pytest.raises(UsageError):
        open_sinks(["tensorboard"], tmp_path, CONFIG)
    assert not any(tmp_path.iterdir())


def test_no_sinks_is_no_work(tmp_path: Path) -> None:
    with open_sinks([], tmp_path, CONFIG) as sinks:
        sinks.write(1, {"loss": 1.0})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [5, 7])
def test_a_run_that_goes_on_shows_what_its_metrics_say(tmp_path: Path, stop: int) -> None:
    own = settings(sinks=("tensorboard",), log_every=1, checkpoint_every=3)
    fit(Regression(), ToySource(), own, tmp_path, quiet=True, steps=stop)
    fit(Regression(), ToySource(), replace(own, log_every=2), tmp_path, quiet=True)
    rows, _ = read_metrics(tmp_path / "metrics.jsonl")
    for tag in ("loss", "samples_per_s", "memory_gib"):
        assert scalars(tmp_path, tag) == [(row["step"], pytest.approx(row[tag])) for row in rows]


def test_a_run_with_a_sink_that_is_missing_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    task = Regression()
    with pytest.raises(UsageError, match="not installed"):
        fit(task, ToySource(), settings(sinks=("wandb",)), tmp_path, quiet=True)
    assert task.batches == []
