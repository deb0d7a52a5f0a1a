"""Two processes with gloo equal one process with the same batch, and end when one of them does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import processes
from ctfoundry import parallel
from ctfoundry.errors import SettingsError
from ctfoundry.store import Store
from ctfoundry.train import fit
from ctfoundry.train.monitor import read_metrics
from pretrain.toys import make_store
from train.together import STEPS, Watched, cases, train
from train.toys import Regression, ToySource, settings

SCRIPT = """
import sys
from pathlib import Path
from ctfoundry import parallel
from ctfoundry.store import open_store
from train.together import train_all
with parallel.joined("cpu", timeout=60):
    train_all(open_store(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def two(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two")
    processes.run(SCRIPT, 2, store.path, folder)
    return folder, [torch.load(folder / f"rank-{r}", weights_only=True) for r in range(2)]


def weights_of(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("name", cases())
def test_two_processes_equal_one(
    name: str, store: Store, two: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """In float64 the first step's gradients to 1e-9, weights after five steps to 1e-6, and running statistics with them."""
    done, task = train(cases()[name], store, tmp_path)
    first, second = (found[name] for found in two[1])
    assert any(value.abs().max() > 1e-3 for value in task.gradients.values())
    for key, value in task.gradients.items():
        torch.testing.assert_close(first["gradients"][key], value, rtol=1e-9, atol=1e-9)
        assert torch.equal(first["gradients"][key], second["gradients"][key])
    own, start = task.modules.state_dict(), Watched(cases()[name]).modules.state_dict()
    assert float((own["encoder.conv_init.weight"] - start["encoder.conv_init.weight"]).abs().max()) > 1e-3
    for key, value in own.items():
        assert torch.equal(first["weights"][key], second["weights"][key])
        torch.testing.assert_close(first["weights"][key], value, rtol=1e-6, atol=1e-6)
    assert first["last"].keys() == done.last.keys()
    for key in ("loss", "positive", "negative", "matching", "epoch", "step"):
        assert first["last"][key] == pytest.approx(done.last[key], rel=1e-5)


def test_the_first_process_writes_and_calls(two: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (first, second) = two
    assert (first["called"], second["called"]) == ([2], [])
    rows, _ = read_metrics(folder / "intra" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert [p.name for p in (folder / "intra" / "checkpoints").iterdir()] == [f"step-{STEPS:08d}"]
    assert set(weights_of(folder / "intra", STEPS)) == {
        "modules.safetensors",
        "optimiser.safetensors",
        "ema.safetensors",
    }


def test_two_processes_continue_to_the_bit(two: tuple[Path, list[dict[str, Any]]]) -> None:
    assert weights_of(two[0] / "stopped", STEPS) == weights_of(two[0] / "intra", STEPS)


def test_parts_equal_the_whole(store: Store, tmp_path: Path) -> None:
    """Gradients accumulated over two and four parts of a step, in float64."""
    chosen = cases()["parts"]
    _, whole = train(chosen, store, tmp_path / "1")
    for parts in (2, 4):
        _, task = train(replace(chosen, train=replace(chosen.train, accumulate=parts)), store, tmp_path / str(parts))
        for key, value in whole.gradients.items():
            torch.testing.assert_close(task.gradients[key], value, rtol=1e-10, atol=1e-10)
        for key, value in whole.modules.state_dict().items():  # running statistics too: scans come in the same order
            torch.testing.assert_close(task.modules.state_dict()[key], value, rtol=1e-9, atol=1e-9)


def test_a_coupled_loss_is_not_accumulated(store: Store, tmp_path: Path) -> None:
    for name in ("intra", "plain"):
        chosen = cases()[name]
        with pytest.raises(SettingsError, match=r"accumulate: .*compares the scans of a step(.|\n)*chunk"):
            train(replace(chosen, train=replace(chosen.train, accumulate=2)), store, tmp_path)


FAILING = """
import contextlib, json, os, signal, socket, sys, time
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from ctfoundry import parallel
from ctfoundry.errors import CTFoundryError
from ctfoundry.train import fit
from train.toys import Regression, ToySource, settings

def child(how, rank, port, folder):
    class Failing(Regression):
        def losses(self, batch, step):
            if step == 2 and rank == 1:
                if how == "raise":
                    raise ValueError("this rank fails")
                os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
            return super().losses(batch, step)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with open(folder / f"out-{rank}", "w") as out, contextlib.redirect_stdout(out):
        try:
            with parallel.joined("cpu", timeout=60):
                if how == "stop":  # after the start, which may take its time on a busy machine
                    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=2), dist.group.WORLD)
                fit(Failing(), ToySource(), settings(batch=4, checkpoint_every=1), folder, quiet=True)
        except (CTFoundryError, ValueError) as error:
            print(type(error).__name__, error)
            out.flush()
            os._exit(3)
    os._exit(0)

ranks = {}
for how in ("kill", "stop", "raise"):
    folder = Path(sys.argv[1]) / how
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(2):
        ranks[how, rank] = os.fork() or child(how, rank, port, folder)
found = {how: os.waitstatus_to_exitcode(os.waitpid(ranks[how, 0], 0)[1]) for how in ("kill", "stop", "raise")}
os.kill(ranks["stop", 1], signal.SIGKILL)
print(json.dumps(found))
"""


def test_when_one_fails_all_end(tmp_path: Path) -> None:
    """Killed, silent for longer than the timeout, or failing: the other ends with an error that says so."""
    (out,) = processes.run(FAILING, 1, tmp_path)
    assert json.loads(out) == {"kill": 3, "stop": 3, "raise": 3}
    for how in ("kill", "stop", "raise"):
        said = (tmp_path / how / "out-0").read_text()
        assert said.startswith("TrainingError process 0 of 2: another process of this training has ended"), said
        assert "continues from its last checkpoint" in said
        assert [path.name for path in (tmp_path / how / "checkpoints").iterdir()] == ["step-00000002"]
    assert (tmp_path / "raise" / "out-1").read_text().startswith("ValueError this rank fails")


def test_a_step_splits_evenly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parallel, "size", lambda: 3)
    with pytest.raises(
        SettingsError, match=r"batch: a step of 4 scans does not split evenly into 3 processes(.|\n)*multiple of 3"
    ):
        fit(Regression(), ToySource(), settings(batch=4), tmp_path, quiet=True)
