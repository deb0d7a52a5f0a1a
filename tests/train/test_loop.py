from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ctfoundry.errors import SettingsError, UsageError
from ctfoundry.train import Optimiser, Schedule, Summary, fit
from ctfoundry.train.errors import TrainingError
from ctfoundry.train.loop import resolve_precision
from ctfoundry.train.monitor import read_metrics
from train.toys import Regression, ToySource, settings


def state_of(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {name: (folder / name).read_bytes() for name in ("modules.safetensors", "optimiser.safetensors")}


def train(run: Path, task: Regression | None = None, **kwargs: Any) -> Summary:
    own = kwargs.pop("settings", settings())
    return fit(task or Regression(), ToySource(), own, run, quiet=True, **kwargs)


def logged(run: Path) -> list[dict[str, Any]]:
    """Log lines without what a clock says."""
    clock = {"seconds", "wait_share", "samples_per_s", "memory_gib", "peak_share"}
    return [{k: v for k, v in row.items() if k not in clock} for row in read_metrics(run / "metrics.jsonl")[0]]


def test_it_learns_and_reports(tmp_path: Path) -> None:
    done = train(tmp_path, settings=settings(200, log_every=20, batch=7))
    rows, warnings = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(20, 201, 20))
    assert rows[-1]["loss"] < 0.1 * rows[0]["loss"]
    wanted = {
        "step",
        "epoch",
        "loss",
        "positive",
        "negative",
        "rate",
        "wait_share",
        "samples_per_s",
        "skipped",
        "seconds",
    }
    assert wanted <= rows[-1].keys()
    assert (done.steps, done.total, done.skipped, done.last["step"]) == (200, 200, 0, 200)
    assert rows[-1]["epoch"] == 200
    assert not [w for w in warnings if w["warning"] != "collapse (gap)"]


@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_stopping_and_going_on_gives_the_same_bits(tmp_path: Path, stop: int) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    own = settings(channels_last=True)
    train(one, settings=own)
    first = train(two, settings=own, steps=stop)
    assert first.steps == stop
    task = Regression()
    # other workers and another cadence of checkpoints on the second leg
    train(two, task, settings=replace(own, workers=0, checkpoint_every=3))
    assert task.seen == 12
    assert state_of(one, 12) == state_of(two, 12)
    assert logged(one)[-1] == logged(two)[-1]


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[3])
from train.toys import Regression, ToySource, settings
from ctfoundry.train import fit
class Killed(Regression):
    def losses(self, batch, step):
        if step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(batch, step)
fit(Killed(), ToySource(broken=frozenset({"scan4"})), settings(checkpoint_every=int(sys.argv[4])), Path(sys.argv[1]), quiet=True)
"""


@pytest.mark.parametrize(("killed", "every"), [(3, 2), (9, 4), (10, 1)])
def test_kill_nine_and_going_on_gives_the_same_bits(tmp_path: Path, killed: int, every: int) -> None:
    source, own = ToySource(broken=frozenset({"scan4"})), settings(checkpoint_every=every)
    fit(Regression(), source, own, tmp_path / "one", quiet=True)
    tests = str(Path(__file__).parents[1])
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "two"), str(killed), tests, str(every)]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    fit(Regression(), source, own, tmp_path / "two", quiet=True)
    assert state_of(tmp_path / "one", 12) == state_of(tmp_path / "two", 12)
    assert logged(tmp_path / "one") == logged(tmp_path / "two")


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    first = train(tmp_path)
    before = state_of(tmp_path, 12)
    task = Regression()
    again = train(tmp_path, task)
    assert task.batches == []
    assert (again.steps, again.last) == (first.steps, first.last)
    assert state_of(tmp_path, 12) == before


def test_a_run_is_not_continued_with_other_settings_scans_or_budget(tmp_path: Path) -> None:
    train(tmp_path, steps=3)
    with pytest.raises(SettingsError, match=r"optimiser\.rate = 0\.01, not 0\.1"):
        train(tmp_path, settings=settings(optimiser=Optimiser(rate=0.1)))
    with pytest.raises(UsageError, match="other scans"):
        fit(Regression(), ToySource(6), settings(), tmp_path, quiet=True)
    with pytest.raises(UsageError, match="follows steps, not minutes"):
        train(tmp_path, minutes=1)
    train(tmp_path, settings=settings(workers=0, log_every=1))


@pytest.mark.parametrize("budget", [{"minutes": 0}, {"minutes": -1}, {"steps": 0}, {"steps": -3}])
def test_a_budget_is_above_nothing(tmp_path: Path, budget: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="above 0"):
        train(tmp_path, **budget)


def test_a_budget_of_minutes_runs_the_whole_schedule_in_that_time(tmp_path: Path) -> None:
    own = settings(schedule=Schedule(1000, warmup=100), log_every=1)
    done = train(tmp_path, settings=own, minutes=0.01)
    rates = [row["rate"] for row in logged(tmp_path)]
    assert done.steps == len(rates) == done.total
    top = rates.index(max(rates))
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.2 * max(rates)
    again = train(tmp_path, settings=own, minutes=0.01)
    assert again.steps == done.steps


def test_steps_without_finite_gradients_leave_no_trace(tmp_path: Path) -> None:
    poisoned = Regression(poison=frozenset({2, 3}))
    done = train(tmp_path, poisoned, settings=settings(4, schedule=Schedule(4), log_every=1))
    assert done.skipped == 2
    assert [w.split(":")[0] for w in done.warnings].count("skipped") == 2
    clean = Regression()
    fit(clean, ToySource(), settings(4, schedule=Schedule(4)), tmp_path / "clean", steps=2, quiet=True)
    ours, theirs = poisoned.modules.state_dict(), clean.modules.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    optimiser = state_of(tmp_path, 4)["optimiser.safetensors"]
    assert optimiser == state_of(tmp_path / "clean", 2)["optimiser.safetensors"]


def test_too_many_of_them_stop_the_run(tmp_path: Path) -> None:
    poison = frozenset(range(6, 100))
    with pytest.raises(TrainingError, match=r"6 steps in a row.*step 12"):
        train(tmp_path, Regression(poison=poison), settings=settings(100, skip_limit=5))
    rows, _ = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[-1]["loss"] is None


def test_a_collapsing_run_is_announced_while_it_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = settings(60, log_every=2, batch=7, optimiser=Optimiser(rate=0.05))
    done = train(tmp_path, Regression(collapse=True), settings=own)
    rows, warnings = read_metrics(tmp_path / "metrics.jsonl")
    found = [w for w in warnings if w["warning"].startswith("collapse (gap)")]
    assert len(found) == 1
    assert found[0]["step"] < 60
    assert rows[-1]["positive"] - rows[-1]["negative"] < 0.01
    assert "warning: collapse (gap)" in capsys.readouterr().err
    assert any(text.startswith("collapse (gap)") for text in done.warnings)


def test_progress_is_plain_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Regression(), ToySource(), settings(), tmp_path, title="toy")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(",")[0] for line in err.splitlines() if "warning" not in line] == [
        "toy: step 4",
        "toy: step 8",
        "toy: step 12",
    ]


def test_clipping_bounds_the_gradients(tmp_path: Path) -> None:
    task = Regression()
    norms = []

    def after(step: int) -> None:
        grads = [p.grad for p in task.modules.parameters() if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))

    task.after = after  # type: ignore[method-assign]
    train(tmp_path, task, settings=settings(optimiser=Optimiser(clip=1e-3)))
    assert max(norms) <= 1e-3 * 1.001


def test_bf16_trains_and_its_weights_stay_float32(tmp_path: Path) -> None:
    task = Regression()
    done = train(tmp_path, task, settings=settings(precision="bf16"))
    assert done.precision == "bf16"
    assert {p.dtype for p in task.modules.parameters()} == {torch.float32}
    assert json.loads((tmp_path / "checkpoints/step-00000012/state.json").read_text())["state"]["precision"] == "bf16"


def test_precision_is_resolved_by_what_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for able, wanted in (({"avx512_bf16": True}, "bf16"), ({"avx512_bf16": False}, "fp32"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert resolve_precision("auto", cpu) == wanted
    with pytest.raises(UsageError, match="fp16 trains on GPUs only"):
        resolve_precision("fp16", cpu)


def test_no_scans(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scan"):
        fit(Regression(), ToySource(0), settings(), tmp_path, quiet=True)
