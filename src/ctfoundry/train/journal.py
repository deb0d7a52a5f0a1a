"""What a run says at a log step: a line in ``metrics.jsonl`` and in the sinks, the progress, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctfoundry import parallel
from ctfoundry.settings import to_data
from ctfoundry.train.monitor import CollapseWatch, Metrics
from ctfoundry.train.options import LoopSettings
from ctfoundry.train.progress import Progress
from ctfoundry.train.sinks import check_sinks, open_sinks


class Journal:
    """Lines and warnings of a run continued after `step`; of several processes only the first says anything.

    A context manager that closes the sinks. Raises UsageError for a sink that is not installed.
    """

    def __init__(self, run: Path, step: int, settings: LoopSettings, progress: Progress, title: str) -> None:
        check_sinks(settings.sinks)
        self.speaks = parallel.rank() == 0
        self.watch, self.progress = CollapseWatch(settings.collapse), progress
        self.metrics = Metrics(run / "metrics.jsonl", step) if self.speaks else None
        names = settings.sinks if self.speaks else ()
        self.sinks = open_sinks(names, run, to_data(settings), title=title, step=step)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.sinks.close()

    def line(
        self, row: Mapping[str, Any], share: float, *, judged: bool, warnings: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Write a log line and `warnings`; returns the line as written.

        `share` is the done part of the work; `judged` lines count towards a collapse.
        """
        if self.metrics is None:
            return dict(row)
        line = self.metrics.write(dict(row))
        self.sinks.write(row["step"], line)
        self.progress.log(row["step"], share, row["seconds"], text(row))
        for said in [*self.watch.see(row, judge=judged), *warnings]:
            self.warn(row["step"], said)
        return line

    def warn(self, step: int, said: str) -> None:
        """Write a warning, "kind: text"."""
        if self.metrics is None:
            return
        row = {"step": step, "warning": said.split(":")[0], "text": said}
        self.sinks.write(step, self.metrics.write(row))
        self.progress.warn(said)


def text(row: Mapping[str, Any]) -> str:
    """A log line for people."""
    parts = [f"loss {row['loss']:.4f}"]
    if "positive" in row:
        parts.append(f"similarity {row['positive']:.3f} of views, {row['negative']:.3f} of others")
    if "rank" in row:
        parts.append(f"rank {row['rank']:.1f}")
    parts += [f"rate {row['rate']:.2g}", f"{row['samples_per_s']:.1f} scans/s", f"waiting {row['wait_share']:.0%}"]
    if "peak_share" in row:
        parts.append(f"{row['peak_share']:.0%} of peak")
    parts.append(f"{row['memory_gib']:.1f} GiB")
    return ", ".join(parts)
