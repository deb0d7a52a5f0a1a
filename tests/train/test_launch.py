from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import worlds
from ctfoundry.errors import UsageError
from ctfoundry.pretrain.run import pretrain
from ctfoundry.store import create
from ctfoundry.train import launch
from ctfoundry.train.launch import check_launcher, slurm_options, submit, without_launcher
from ctfoundry.train.monitor import read_metrics
from program import run

CHANGES = (
    "crop=[8,16,16]", "crops=2", "model.filters=4", "model.blocks=[1,1]", "train.precision=fp32", "train.batch=2",
    "train.log_every=1", "train.workers=1", "train.optimiser.eps=1e-3",
)  # fmt: skip
"""A recipe of a second; AdamW with a large eps, so that gradients near 0 do not decide the sign of a whole step."""
SMALL = [word for change in CHANGES for word in ("--set", change)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch") / "store"
    with create(folder, "ct-fm") as made:
        for seed in range(3):
            made.add(worlds.body(seed, (24, 60, 64), (6, 2, 2)), f"scan{seed}", patient=f"patient{seed}")
    return folder


@pytest.fixture
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CTFOUNDRY_SALT", "test")


@pytest.fixture(scope="module")
def alone(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps in one process."""
    folder = tmp_path_factory.mktemp("launch") / "run with 'quotes' and $HOME"  # an argument is never a shell's text
    pretrain("ct-fm-tiny", store, folder, steps=2, changes=CHANGES, device="cpu", quiet=True)
    return folder


@pytest.mark.usefixtures("_environment")
def test_a_job_of_two_processes_continues_a_run(store: Path, alone: Path, tmp_path: Path) -> None:
    """submitit's local mode: the job, its environment and its processes are those of a cluster, Slurm alone is missing."""
    folder = tmp_path / alone.name
    shutil.copytree(alone, folder)
    command = ["pretrain", "ct-fm-tiny", "--store", str(store), "--run", str(folder), "--device", "cpu", *SMALL]
    options = {"cluster": "local", "time": "5"}
    handed = submit([*command, "--steps", "4"], folder / "job", processes=2, gpu=False, options=options)
    assert handed.job.results() == [None, None]
    rows, _ = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["peak_share"] > 0 for row in rows)  # of one process, and of the first of two
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    assert (folder / "job").stat().st_mode & 0o777 == 0o700
    out, other = ((folder / "job" / f"{handed.id}_{i}_log.out").read_text() for i in (0, 1))
    assert "steps" in out
    assert "steps" not in other  # one result of one run


@pytest.mark.usefixtures("_environment")
def test_a_job_that_fails_says_so(tmp_path: Path) -> None:
    from submitit.core.utils import FailedJobError

    handed = submit(["pretrain", "ct-fn"], tmp_path / "job", gpu=False, options={"cluster": "local", "time": "5"})
    with pytest.raises(FailedJobError, match="exit code 2"):
        handed.job.result()


def test_torchrun_trains_as_one_process_does_and_prints_one_result(store: Path, alone: Path, tmp_path: Path) -> None:
    two = run(
        "pretrain", "ct-fm-tiny", "--run", tmp_path / "two", "--launcher", "torchrun", "--gpus=2", "--json", "--quiet",
        "--store", store, "--device", "cpu", "--steps", 2, *SMALL,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout)["steps"] == 2
    a, b = load_file(alone / "model.safetensors"), load_file(tmp_path / "two" / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).abs().max() < 1e-5, name


@pytest.mark.usefixtures("_environment")
def test_torchrun_passes_the_exit_code_on() -> None:
    assert launch.torchrun(["pretrain", "ct-fn"], 2) == 2  # no store is given


@pytest.mark.parametrize(
    ("launcher", "gpus", "nodes", "options", "said"),
    [
        ("local", 2, 1, [], "add --launcher torchrun"),
        ("slrum", 1, 1, [], "nearest known one is 'slurm'"),
        ("torchrun", 1, 2, [], "this machine only"),
        ("torchrun", 1, 1, ["time=5"], "belongs to --launcher slurm"),
        ("torchrun", 0, 1, [], "at least 1"),
        ("slurm", 1, -1, [], "at least 1"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(
    launcher: str, gpus: int, nodes: int, options: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        check_launcher(launcher, gpus, nodes, options)


def test_a_batch_that_processes_cannot_share_ends_before_they_begin(store: Path, tmp_path: Path) -> None:
    done = run(
        "pretrain",
        "ct-fm-tiny",
        "--store",
        store,
        "--run",
        tmp_path / "run",
        *SMALL,
        "--launcher",
        "torchrun",
        "--gpus",
        3,
    )
    assert done.returncode == 2
    assert "2 scans a step do not divide among 3 processes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_without_slurm_there_is_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="no Slurm was found"):
        submit(["doctor"], tmp_path / "job")


def test_what_slurm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script that sbatch would get, from a stand-in that writes its arguments down."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text("#!/bin/sh\n")
    (tools / "sbatch").write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/script\necho Submitted batch job 12345\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    options = slurm_options(["partition=gpu; rm -rf x", "time=1-12", "mem_per_gpu=64G", "cpus-per-task=6"])
    handed = submit(["pretrain", "$(touch x)"], tmp_path / "job", nodes=2, processes=4, options=options)
    assert handed.id == "12345"
    script = (tmp_path / "script").read_text().splitlines()
    flags = {line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH")}
    assert {
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--cpus-per-task=6",
        "--mem-per-gpu=64G",
        "--time=2160",
        "--partition='gpu; rm -rf x'",
    } <= flags
    assert "touch" not in "\n".join(script)  # arguments travel in the job's own file


def test_a_stopped_job_asks_for_the_same_again() -> None:
    job = launch.Job(("pretrain", "ct-fm"), "/somewhere")
    assert job.checkpoint().function == job


def test_options_of_the_launcher_do_not_reach_the_processes() -> None:
    line = [
        "pretrain",
        "x",
        "--gpus",
        "2",
        "--set",
        "a=--gpus",
        "--nodes=3",
        "--slurm",
        "k=v",
        "--launcher=slurm",
        "--json",
    ]
    assert without_launcher(line) == ["pretrain", "x", "--set", "a=--gpus", "--json"]
    probing = [
        "--probe-every",
        "5",
        "--probe-data=d",
        "--probe-shots",
        "2",
        "--probe-groups",
        "g",
        "--probe-set",
        "k=v",
    ]
    assert without_launcher([*line, *probing]) == ["pretrain", "x", "--set", "a=--gpus", "--json", *probing]


def test_what_the_job_decides_itself_is_refused() -> None:
    with pytest.raises(UsageError, match="follows from --gpus"):
        slurm_options(["gres=gpu:2"])


@pytest.mark.parametrize("text", ["partition", "=gpu", "partition=", "a b=c", "comment=a\n#SBATCH --uid=0", "Time=3"])
def test_what_is_no_option_of_sbatch_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not of the form key=value"):
        slurm_options([text])


@pytest.mark.parametrize("time", ["", "soon", "1:2:3:4", "0", "1-", "-5"])
def test_what_is_no_time_is_refused(tmp_path: Path, time: str) -> None:
    with pytest.raises(UsageError, match="time"):
        submit(["doctor"], tmp_path / "job", options={"cluster": "local", "time": time})
