"""Log lines for TensorBoard and for Weights & Biases, beside ``metrics.jsonl``, which stays the truth.

A run that continues drops the lines of ``metrics.jsonl`` beyond the step it continues from, and the sinks follow: no step stands
in them twice. Nothing here uses a network unless ``WANDB_MODE`` says so.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from ctfoundry import files
from ctfoundry.errors import UsageError
from ctfoundry.train.monitor import read_metrics

SinkName = Literal["tensorboard", "wandb"]


class Sink(Protocol):
    """One place where log lines go."""

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """The line of a step: numbers, texts; None where a number was not finite."""
        ...

    def close(self) -> None:
        """The last line is written."""
        ...


class Sinks:
    """Several sinks as one; a context manager that closes them."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = list(sinks)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """The line of a step, to each sink; `row` may hold ``step`` too."""
        for sink in self.sinks:
            sink.write(step, {name: value for name, value in row.items() if name != "step" and value is not None})

    def close(self) -> None:
        """Close each sink."""
        for sink in self.sinks:
            sink.close()

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_sinks(names: Sequence[SinkName]) -> None:
    """Raise UsageError for a sink whose package is not installed: at the start, not at the first log line."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"the sink {name!r} needs the package {name}, which is not installed here",
                do="pip install 'ctfoundry[sinks]', or leave it out of train.sinks",
            )


def open_sinks(names: Sequence[SinkName], run: Path, config: Any, *, title: str = "", step: int = 0) -> Sinks:
    """The sinks of a run, continued after `step`.

    A sink that is new to the run gets the lines that ``metrics.jsonl`` has up to `step` first.

    Parameters
    ----------
    run : its folder; TensorBoard's files go to ``tensorboard/``, W&B's to ``wandb/``.
    config : settings as plain data, shown by W&B.
    title : what W&B calls the run; the folder's name by default.
    """
    check_sinks(names)
    rows = [row for found in read_metrics(run / "metrics.jsonl") for row in found if row["step"] <= step]
    rows.sort(key=lambda row: row["step"])
    makers: dict[SinkName, Callable[[], Sink]] = {
        "tensorboard": lambda: _TensorBoard(run / "tensorboard", step, rows),
        "wandb": lambda: _WandB(run, config, title or run.resolve().name, rows),
    }
    return Sinks([makers[name]() for name in names])


class _TensorBoard:
    def __init__(self, folder: Path, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        known = folder.is_dir() and any(folder.iterdir())
        # tells readers to forget what a killed process wrote beyond the step that is continued from
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if known else None)
        for row in () if known else rows:
            Sinks([self]).write(row["step"], row)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, str):
                self._writer.add_text(name, value, step)
            else:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a kill must lose no line that a checkpoint will count as written

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """One offline run a folder of ours, written anew when it continues, so that a single ``wandb sync`` sends each step once."""

    def __init__(self, run: Path, config: Any, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        offline = os.environ.get("WANDB_MODE", "offline") in ("offline", "dryrun")
        if offline:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # the client reports its own crashes by network
        import wandb

        self._folder, id = run / "wandb", _wandb_id(run, config)
        if offline:
            for old in self._folder.glob(f"offline-run-*-{id}"):
                shutil.rmtree(old)
        # no host, user, paths, source code or console output: only settings and numbers
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ctfoundry"),
            id=id,
            name=title,
            dir=str(run),
            config=config,
            mode="offline" if offline else None,  # None: as WANDB_MODE says
            resume=None if offline else "allow",  # online the server itself ignores steps it has
            settings=settings,
        )
        for row in rows if offline else ():
            Sinks([self]).write(row["step"], row)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        self._run.log(dict(row), step=step)

    def close(self) -> None:
        self._run.finish()
        for logs in self._folder.glob("offline-run-*/logs"):  # the client's own, full of this machine's paths
            shutil.rmtree(logs)
        for link in self._folder.glob("debug*.log"):
            link.unlink()


def _wandb_id(run: Path, config: Any) -> str:
    """The name by which W&B knows this run, made once."""
    path = run / "wandb" / "id.txt"
    if not path.is_file():
        files.create_once(path, files.digest([config, time.time_ns()])[:12].encode())
    return path.read_text()
