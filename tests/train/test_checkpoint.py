from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import processes
from ctfoundry.errors import SettingsError, WeightsError
from ctfoundry.train import checkpoint

TENSORS = {"modules": {"a": torch.arange(6.0).view(2, 3)}, "optimiser": {"step.a": torch.tensor(3.0)}}


def test_round_trip(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, 7, TENSORS, {"note": "x"})
    tensors, state = checkpoint.read(tmp_path, 7)
    assert torch.equal(tensors["modules"]["a"], TENSORS["modules"]["a"])
    assert state["step"] == 7
    assert state["note"] == "x"


def test_last_and_every_nth_are_kept(tmp_path: Path) -> None:
    for step in range(1, 11):
        checkpoint.write(tmp_path, step, TENSORS, {})
        checkpoint.prune(tmp_path, 4)
    assert checkpoint.steps(tmp_path) == [4, 8, 10]
    assert not list(tmp_path.glob(".part-*"))


def test_a_changed_byte_is_named(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, 7, TENSORS, {})
    data = bytearray((path / "modules.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "modules.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match=r"modules\.safetensors.*SHA-256(.|\n)*delete the folder step-00000007"):
        checkpoint.read(tmp_path, 7)


@pytest.mark.parametrize("name", ["modules.safetensors", "optimiser.safetensors", "state.json"])
def test_a_missing_or_cut_file_is_named(tmp_path: Path, name: str) -> None:
    path = checkpoint.write(tmp_path, 7, TENSORS, {})
    (path / name).write_bytes((path / name).read_bytes()[:20])
    with pytest.raises(WeightsError, match="step-00000007"):
        checkpoint.read(tmp_path, 7)
    (path / name).unlink()
    with pytest.raises(WeightsError, match="step-00000007"):
        checkpoint.read(tmp_path, 7)


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from ctfoundry.train import checkpoint

def write(folder, moment):
    calls = 0
    def counted(function):
        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return wrapper
    for name in ("rename", "replace", "fsync", "rmdir", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    one = {"modules": {"a": torch.ones(2)}, "optimiser": {"step.a": torch.tensor(1.0)}, "ema": {"a": torch.ones(2)}}
    checkpoint.write(folder, 2, one, {})
    checkpoint.prune(folder, 0)

moment, ended = 0, None
while ended != 0:
    moment += 1
    folder = Path(sys.argv[1]) / str(moment)
    tensors = {"modules": {"a": torch.zeros(2)}, "optimiser": {"step.a": torch.tensor(3.0)}}
    checkpoint.write(folder, 1, tensors, {})
    if not (pid := os.fork()):
        write(folder, moment)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ended in (0, -signal.SIGKILL)
print(moment)
"""


def test_a_kill_at_any_moment_of_writing_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """The writer is killed at its first, second, third ... call that changes the disk."""
    (out,) = processes.run(KILLED, 1, tmp_path)
    last = []
    for moment in range(1, int(out) + 1):
        folder = tmp_path / str(moment)
        last.append(checkpoint.steps(folder)[-1])
        tensors, _ = checkpoint.read(folder, last[-1])
        assert torch.equal(tensors["modules"]["a"], torch.full((2,), last[-1] - 1.0))
        checkpoint.prune(folder, 0)
        assert [path.name for path in folder.iterdir()] == [f"step-{last[-1]:08d}"]
    assert last == sorted(last)
    assert set(last) == {1, 2}
    assert len(last) > 15


def test_strict_loading_lists_every_misfit(tmp_path: Path) -> None:
    modules = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 1)})
    state = modules.state_dict()
    state["c"] = state.pop("a.weight")
    state["b.bias"] = torch.zeros(4)
    with pytest.raises(WeightsError, match=r"missing: a\.weight.*unexpected: c.*b\.bias is \(4,\), not \(1,\)"):
        checkpoint.load_strict(modules, state, tmp_path)


def test_changed_settings_are_named(tmp_path: Path) -> None:
    was = {"a": {"b": 1, "c": 2}, "free": 1}
    checkpoint.check_same(was, {"a": {"b": 1, "c": 2}, "free": 9}, tmp_path, free={"free"})
    with pytest.raises(SettingsError, match=r"a\.c = 2, not 3"):
        checkpoint.check_same(was, {"a": {"b": 1, "c": 3}}, tmp_path)


def test_paths_are_not_followed_outside(tmp_path: Path) -> None:
    """Leftovers of another kind in the folder are no checkpoints."""
    (tmp_path / "step-abc").mkdir()
    (tmp_path / "step-00000009").write_text("a file")
    assert checkpoint.steps(tmp_path) == []
    assert os.listdir(tmp_path)
