"""What a run says at a log step: a line in ``metrics.jsonl``, the progress, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctfoundry import parallel
from ctfoundry.train.monitor import CollapseRule, CollapseWatch, Metrics
from ctfoundry.train.progress import Progress


class Journal:
    """Lines and warnings of a run continued after `step`; of several processes only the first says anything."""

    def __init__(self, run: Path, step: int, rule: CollapseRule, progress: Progress) -> None:
        self.speaks = parallel.rank() == 0
        self.watch, self.progress = CollapseWatch(rule), progress
        self.metrics = Metrics(run / "metrics.jsonl", step) if self.speaks else None

    def line(
        self, row: Mapping[str, Any], share: float, *, judged: bool, warnings: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Write a log line and `warnings`; returns the line as written.

        `share` is the done part of the work; `judged` lines count towards a collapse.
        """
        if self.metrics is None:
            return dict(row)
        line = self.metrics.write(dict(row))
        self.progress.log(row["step"], share, row["seconds"], text(row))
        for said in [*self.watch.see(row, judge=judged), *warnings]:
            self.metrics.write({"step": row["step"], "warning": said.split(":")[0], "text": said})
            self.progress.warn(said)
        return line


def text(row: Mapping[str, Any]) -> str:
    """A log line for people."""
    parts = [f"loss {row['loss']:.4f}"]
    if "positive" in row:
        parts.append(f"similarity {row['positive']:.3f} of views, {row['negative']:.3f} of others")
    if "rank" in row:
        parts.append(f"rank {row['rank']:.1f}")
    parts += [f"rate {row['rate']:.2g}", f"{row['samples_per_s']:.1f} scans/s", f"waiting {row['wait_share']:.0%}"]
    return ", ".join(parts)
