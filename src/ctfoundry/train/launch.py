"""Many processes for one command: on this machine through torchrun's agent, on a cluster through Slurm (submitit).

A launcher runs the same command line again, once a process, with the variables from which torch learns who is who. Arguments are
lists from end to end, never a shell's text. A job that is stopped is queued again, and the same command continues the run.
"""

from __future__ import annotations

import os
import re
import runpy
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ctfoundry.errors import UsageError
from ctfoundry.settings import nearest

Launcher = Literal["local", "torchrun", "slurm"]
LAUNCHERS: tuple[Launcher, ...] = ("local", "torchrun", "slurm")
OPTIONS = ("--launcher", "--gpus", "--nodes", "--slurm")
"""Of the command line; each takes a value. The processes that a launcher starts do not get them."""

MINUTES = 24 * 60
"""Time limit of a job where none is said; it is queued again when the time is over."""

_OURS = {
    "array", "chdir", "error", "gpus", "gpus-per-node", "gpus-per-task", "gres", "input", "nodes", "ntasks",
    "ntasks-per-node", "open-mode", "output", "signal", "wrap",
}  # fmt: skip


@dataclass(frozen=True)
class Submitted:
    """A job that was handed in: its `id`, and the folder of its logs."""

    id: str
    logs: Path
    job: Any


def without_launcher(arguments: Sequence[str]) -> list[str]:
    """A command line without the options that choose a launcher.

    >>> without_launcher(["pretrain", "ct-fm", "--launcher", "slurm", "--slurm=time=60", "--set", "train.batch=8"])
    ['pretrain', 'ct-fm', '--set', 'train.batch=8']
    """
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument in OPTIONS:
            next(rest, None)
        elif not argument.startswith(tuple(f"{option}=" for option in OPTIONS)):
            kept.append(argument)
    return kept


def torchrun(arguments: Sequence[str], processes: int) -> int:
    """Run ``ctfoundry ARGUMENTS`` in `processes` processes of this machine; the exit code of the first that fails, else 0.

    When one fails the others are stopped. Each gets its share of the cores unless ``OMP_NUM_THREADS`` says otherwise.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        run_id=f"ctfoundry-{os.getpid()}",
        max_restarts=0,  # a run that stopped is continued by the same command
    )
    try:
        elastic_launch(config, sys.executable)("-m", "ctfoundry", *arguments)
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode or 1
    except SignalException as error:  # the agent has passed it on
        raise KeyboardInterrupt from error
    return 0


@dataclass(frozen=True)
class Job:
    """A command line as a task of a job: what submitit sends, and sends again when the job was stopped."""

    arguments: tuple[str, ...]
    folder: str

    def __call__(self) -> None:
        """Run it in this process, as ``python -m ctfoundry`` would; raises RuntimeError when it fails."""
        os.environ.update(_who_is_who())
        os.chdir(self.folder)
        sys.argv = ["ctfoundry", *self.arguments]
        try:
            runpy.run_module("ctfoundry", run_name="__main__", alter_sys=True)
        except SystemExit as leave:
            if leave.code not in (None, 0):
                raise RuntimeError(f"ctfoundry {self.arguments[0]} ended with exit code {leave.code}") from leave

    def checkpoint(self) -> Any:
        """Called when time is over or the job must make room: the same command continues from the run's last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _who_is_who() -> dict[str, str]:
    """What torchrun would have set, from the job that this process is a task of."""
    from submitit import JobEnvironment

    job = JobEnvironment()
    # The first node of the list; one node alone need not know itself by name.
    leader = job.hostnames[0] if job.num_nodes > 1 else "127.0.0.1"
    return {
        "MASTER_ADDR": leader,
        "MASTER_PORT": str(20000 + zlib.crc32(job.job_id.encode()) % 40000),  # the same in all tasks of a job
        "RANK": str(job.global_rank),
        "WORLD_SIZE": str(job.num_tasks),
        "LOCAL_RANK": str(job.local_rank),
        "LOCAL_WORLD_SIZE": str(job.num_tasks // job.num_nodes),
    }


def submit(
    arguments: Sequence[str],
    folder: Path,
    *,
    nodes: int = 1,
    processes: int = 1,
    gpu: bool = True,
    options: Mapping[str, str] | None = None,
    name: str = "ctfoundry",
) -> Submitted:
    """Hand ``ctfoundry ARGUMENTS`` to Slurm, to run in `nodes` x `processes` processes.

    When the time limit comes or the job is preempted, it is queued again and continues from its last checkpoint, as often as
    that happens.

    Parameters
    ----------
    folder : of the job's logs and of its description, which holds the command line; readable by the user alone.
    processes : on each node; with `gpu` each has one GPU.
    options : those of ``sbatch`` by their long names (`slurm_options`); ``time`` as Slurm writes it. ``cluster=local`` runs the
        job on this machine, without Slurm, to try it out.

    Raises UsageError when submitit is not installed, no Slurm is found, or an option is not ours to pass on.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            "--launcher slurm needs submitit, which is not installed here", do="pip install 'ctfoundry[slurm]'"
        ) from error
    given = dict(options or {})
    cluster = given.pop("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise UsageError(f"cluster is slurm or local, not {cluster!r}")
    if cluster == "local" and nodes > 1:
        raise UsageError("cluster=local is one node")
    minutes = _minutes(given.pop("time")) if "time" in given else MINUTES
    cpus = given.pop("cpus-per-task", "8")
    if not cpus.isdigit() or not int(cpus):
        raise UsageError(f"cpus-per-task is a whole number above 0, not {cpus!r}")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=1000)
    except RuntimeError as error:  # no srun on this machine
        raise UsageError(f"no Slurm was found here: {error}", do="submit from a login node of the cluster") from error
    executor.update_parameters(
        name=name,
        nodes=nodes,
        tasks_per_node=processes,
        gpus_per_node=processes if gpu else None,
        cpus_per_task=int(cpus),
        timeout_min=minutes,
        slurm_additional_parameters=given,
    )
    job = executor.submit(Job(tuple(arguments), os.getcwd()))
    return Submitted(str(job.job_id), folder, job)


def slurm_options(texts: Sequence[str]) -> dict[str, str]:
    """``key=value`` of the command line: long options of ``sbatch``, underscores as good as dashes.

    Raises UsageError for what is no option, for one that ``--gpus``, ``--nodes`` and the job itself decide, and for line
    breaks, which would begin a new line of the job's script.

    >>> slurm_options(["partition=gpu", "mem_per_gpu=64G"])
    {'partition': 'gpu', 'mem-per-gpu': '64G'}
    """
    found: dict[str, str] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        key = key.removeprefix("--").replace("_", "-")
        if not sign or not re.fullmatch(r"[a-z][a-z0-9-]*", key) or not value.isprintable() or not value:
            raise UsageError(f"{text!r} is not of the form key=value", where="--slurm", do="such as partition=gpu")
        if key in _OURS:
            raise UsageError(f"{key} follows from --gpus, --nodes and the run", where="--slurm", do="leave it out")
        found[key] = value
    return found


def check_launcher(launcher: str, processes: int, nodes: int, options: Sequence[str]) -> Launcher:
    """`launcher` where the rest fits to it; raises UsageError where it does not."""
    if launcher not in LAUNCHERS:
        raise UsageError(f"no launcher is called {launcher!r}; {nearest(launcher, LAUNCHERS)}")
    if processes < 1 or nodes < 1:
        raise UsageError("--gpus and --nodes are at least 1")
    if launcher == "local" and processes * nodes > 1:
        raise UsageError(
            "one process trains on one GPU", do="add --launcher torchrun, or --launcher slurm on a cluster"
        )
    if launcher == "torchrun" and nodes > 1:
        raise UsageError(
            "--launcher torchrun starts processes on this machine only",
            do="use --launcher slurm, or start torchrun on each node: torchrun ... -m ctfoundry pretrain ...",
        )
    if options and launcher != "slurm":
        raise UsageError("--slurm belongs to --launcher slurm")
    return next(known for known in LAUNCHERS if known == launcher)


def _minutes(text: str) -> int:
    """Minutes of a time as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    >>> [_minutes(t) for t in ("90", "90:30", "2:00:00", "1-12", "1-0:30", "0-0:0:1")]
    [90, 91, 120, 2160, 1470, 1]
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise UsageError(f"{text!r} is not a time", where="--slurm time", do="write minutes, H:M:S or D-H:M:S")
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if days:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    total = 1440 * int(days or 0) + 60 * hours + minutes + -(-seconds // 60)
    if not total:
        raise UsageError("a job of no time does nothing", where="--slurm time")
    return total
