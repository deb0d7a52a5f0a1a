from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import processes
from ctfoundry.errors import SettingsError, UsageError, WeightsError
from ctfoundry.train import Optimiser, Schedule, Summary, checkpoint, fit
from ctfoundry.train.errors import TrainingError
from ctfoundry.train.loop import resolve_precision
from ctfoundry.train.monitor import read_metrics
from train.toys import Regression, ToySource, settings


def state_of(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


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
    own = settings(channels_last=True, ema=0.9)
    train(one, settings=own)
    first = train(two, settings=own, steps=stop)
    assert first.steps == stop
    task = Regression()
    # other workers and another cadence of checkpoints on the second leg
    train(two, task, settings=replace(own, workers=0, checkpoint_every=3))
    assert task.seen == 12
    assert state_of(one, 12) == state_of(two, 12)
    assert logged(one)[-1] == logged(two)[-1]


KILLED = """
import os, signal, sys
from pathlib import Path
from ctfoundry.train import fit
from train.toys import Regression, ToySource, settings

class Killed(Regression):
    def losses(self, batch, step):
        if step == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(batch, step)

for killed, every in map(lambda case: map(int, case.split("-")), sys.argv[2:]):
    if not (pid := os.fork()):
        run = Path(sys.argv[1]) / f"{killed}-{every}"
        fit(Killed(), ToySource(broken=frozenset({"scan4"})), settings(checkpoint_every=every), run, quiet=True)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
"""
KILLS = ((3, 2), (9, 4), (10, 1))


def test_kill_nine_and_going_on_gives_the_same_bits(tmp_path: Path) -> None:
    """Killed in the middle of a step, at several of them, also in the middle of a pass over the scans."""
    processes.run(KILLED, 1, tmp_path, *(f"{killed}-{every}" for killed, every in KILLS))
    source = ToySource(broken=frozenset({"scan4"}))
    for killed, every in KILLS:
        own, run = settings(checkpoint_every=every), tmp_path / f"{killed}-{every}"
        assert checkpoint.steps(run / "checkpoints")[-1] == killed // every * every
        fit(Regression(), source, own, tmp_path / f"whole-{killed}", quiet=True)
        fit(Regression(), source, own, run, quiet=True)
        assert state_of(tmp_path / f"whole-{killed}", 12) == state_of(run, 12)
        assert logged(tmp_path / f"whole-{killed}") == logged(run)


def test_going_on_with_another_number_of_threads_is_said(tmp_path: Path) -> None:
    """Sums over a batch come in parts, one a thread: on a CPU their number is part of what the bits depend on."""
    train(tmp_path, steps=4)
    torch.set_num_threads(2)
    done = train(tmp_path, steps=8)
    assert len(done.warnings) == 1
    assert re.search(r"continued with 2, trained with 1 so far.*--threads 1", done.warnings[0])
    assert train(tmp_path).warnings == done.warnings  # said once
    torch.set_num_threads(1)
    assert train(tmp_path).warnings == done.warnings  # there was nothing left to train


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


def test_a_budget_that_starting_uses_up_still_buys_one_step(tmp_path: Path) -> None:
    done = train(tmp_path, minutes=1e-9)
    assert done.steps == 1
    assert done.last["step"] == 1
    assert checkpoint.steps(tmp_path / "checkpoints") == [1]
    assert train(tmp_path, minutes=1e-9).steps == 1


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


FORKS = """
import json, os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
from ctfoundry.train import fit
from ctfoundry.train.checkpoint import steps
from train.toys import Regression, ToySource, settings

own = settings(28, checkpoint_every=1, keep_every=7, ema=0.9, log_every=3)
source = ToySource(broken=frozenset({"scan4"}))

def train(folder, attempt):
    pid = os.fork()
    if not pid:
        fit(Regression(), source, replace(own, workers=attempt % 3), folder, quiet=True)
        os._exit(0)
    return pid

folder, chance = Path(sys.argv[1]), random.Random()
began = time.monotonic()
os.waitpid(train(folder / "whole", 2), 0)
step = (time.monotonic() - began) / 28
place, reached, kills = folder / "killed" / "checkpoints", 0, []
for attempt in range(100):
    pid = train(folder / "killed", attempt)
    if attempt < 6:  # a few steps further each time, so that hardly a run ends before its kill
        reached = min(reached + chance.randint(1, 3), 27)
        while max(steps(place), default=0) < reached:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, step))
        os.kill(pid, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        break
    reached = max(steps(place))
    kills.append({"steps": steps(place), "parts": len(list(place.glob(".part-*")))})
print(json.dumps(kills))
"""


def test_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    """One run is killed six times, half of its time being spent on checkpoints, and continued with other workers."""
    (out,) = processes.run(FORKS, 1, tmp_path, timeout=120)
    kills = json.loads(out)
    assert kills
    assert len({max(kill["steps"], default=0) for kill in kills}) > 1, kills
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == sorted(
        p.name for p in (killed / "checkpoints").iterdir()
    )
    for step in (7, 21, 28):
        assert state_of(whole, step) == state_of(killed, step)
        assert len(state_of(whole, step)) == 3
    assert logged(whole) == logged(killed)


def test_averaged_weights_follow_their_definition(tmp_path: Path) -> None:
    """Against the sum written out in float64; steps that are skipped do not count; running statistics are the last ones."""
    task = Regression(poison=frozenset({3}))
    name, seen = "body.0.weight", []
    start = Regression().modules.state_dict()[name].double()
    task.after = lambda step: seen.append(task.modules.state_dict()[name].double())  # type: ignore[method-assign]
    train(tmp_path, task, settings=settings(8, ema=0.8))
    kept = [w for step, w in enumerate(seen) if step != 3]
    n = len(kept)
    expected = 0.8**n * start + sum(0.2 * 0.8 ** (n - 1 - i) * w for i, w in enumerate(kept))
    found = checkpoint.averaged(tmp_path / "checkpoints")
    torch.testing.assert_close(found[name].double(), expected, rtol=1e-6, atol=1e-7)
    assert float((found[name] - task.modules.state_dict()[name]).abs().max()) > 1e-3
    assert torch.equal(found["body.1.running_mean"], task.modules.state_dict()["body.1.running_mean"])
    assert found.keys() == task.modules.state_dict().keys()
    fit(Regression(), ToySource(), settings(8), tmp_path / "plain", quiet=True)
    with pytest.raises(WeightsError, match="averages no weights"):
        checkpoint.averaged(tmp_path / "plain" / "checkpoints")


def test_what_is_done_between_steps_changes_no_bit(tmp_path: Path) -> None:
    task = Regression()
    called = []

    def call(step: int) -> None:
        called.append((step, checkpoint.steps(tmp_path / "two" / "checkpoints")[-1]))
        time.sleep(1.0 if step == 5 else 0.0)
        torch.manual_seed(step)
        torch.rand(3)
        with torch.no_grad():
            task.modules.eval()["body"](torch.rand(2, 1, 4, 4, 4))

    train(tmp_path / "one")
    before = torch.get_rng_state()
    train(tmp_path / "two", task, at=(5, call))
    assert torch.equal(torch.get_rng_state(), before)
    assert called == [(5, 5), (10, 10)]
    (slow,) = (r["samples_per_s"] for r in read_metrics(tmp_path / "two" / "metrics.jsonl")[0] if r["step"] == 8)
    assert slow > 4 * 3  # what is called takes a second, and no part in the rate
    assert state_of(tmp_path / "one", 12) == state_of(tmp_path / "two", 12)
    train(tmp_path / "three", steps=5)
    called.clear()  # a run that continues at such a step may have been killed before its call
    train(tmp_path / "three", at=(5, lambda step: called.append((step, 0))))
    assert called == [(5, 0), (10, 0)]


def test_skips_between_checkpoints_are_told(tmp_path: Path) -> None:
    done = train(tmp_path, Regression(poison=frozenset({1, 5})), settings=settings(checkpoint_every=1))
    assert done.skipped == 2
    assert [w for w in done.warnings if w.startswith("skipped")] == ["skipped: 1 steps without finite gradients"] * 2


def test_float64_trains_and_is_kept(tmp_path: Path) -> None:
    task, plain = Regression(), Regression()
    done = train(tmp_path / "double", task, settings=settings(precision="fp64"))
    train(tmp_path / "single", plain)
    assert done.precision == "fp64"
    for one, two in zip(task.modules.parameters(), plain.modules.parameters(), strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one.float(), two, rtol=1e-3, atol=1e-4)


def test_a_compiled_encoder_is_the_same_within_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through torch's tracing and its own gradients; the last step, C++ from a compiler, takes half a minute and is left out."""
    plain, task = Regression(), Regression()
    compiled = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or real(f, backend="aot_eager"))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    train(tmp_path / "plain", plain, settings=settings(3, schedule=Schedule(3)))
    train(tmp_path / "compiled", task, settings=settings(3, schedule=Schedule(3), compile=True))
    assert compiled == [task.encoder.forward]
    assert "forward" not in vars(task.encoder)
    ours, theirs = task.modules.state_dict(), plain.modules.state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


def test_compile_needs_an_encoder_and_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = settings(compile=True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="needs a C\\+\\+ compiler"):
        train(tmp_path, settings=own)
    monkeypatch.setattr(Regression, "encoder", None)
    with pytest.raises(SettingsError, match="no encoder to compile"):
        train(tmp_path, settings=own)


@pytest.mark.parametrize(
    ("change", "said"), [({"accumulate": 2}, "2 does not divide 3"), ({"ema": 1.0}, "between 0 and 1")]
)
def test_impossible_settings_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**change)
