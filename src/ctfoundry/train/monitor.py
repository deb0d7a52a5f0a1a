"""What a run says about itself while it trains: one JSON line at each log step, and collapse announced as it happens."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctfoundry import files

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CollapseRule:
    """When embeddings count as collapsing. Judged at log steps after the warm-up; a slow start is none.

    Attributes
    ----------
    gap : smallest difference between positive and negative similarity (cosines); below it, all crops look alike.
    rank_share : smallest effective rank, as a share of the way from 1 (all vectors on one line) to the largest possible one
        (the smaller of the vectors' number and width); below it, the embedding lives in one direction.
    rank_fall : smallest effective rank, less 1, as a share of the highest that the run has had; below it, directions that were
        there are lost.
    uniformity_fall : the same for uniformity (a log, 0 where all vectors are one point), as a share of the lowest.
    patience : log steps in a row for which one of them must hold; as many without it are a recovery.

    The first two find embeddings that are one point or one line whatever came before. The last two find collapse on its way, and a
    few directions left of many (dimensional collapse), where similarities still differ by chance; a slow start, whose vectors
    are as much alike, but never were less so, breaks none of them.

    Seen with `ct-fm-tiny` (16 vectors, a rank of 16 at most) on phantoms and real scans, as the largest of five log steps in a row: in
    thirteen healthy runs (SimCLR, SimSiam, VICReg) a gap of 0.02 or more, 0.45 of the highest rank and 0.22 of the lowest
    uniformity; in the slowest starts that went on to learn a gap of 0.02 and a rank of 2.3, which nothing had gone before. SimSiam
    without stop-gradient: 0.11 of the rank and of the uniformity. VICReg without its variance term: 0.10 of the uniformity, a gap
    of 0.01. VICReg without its covariance term alone keeps 0.38 of the rank and is not announced. With 60 vectors a healthy
    SimSiam kept 0.39 and 0.33, one without stop-gradient 0.10 and 0.08; with hundreds nothing was measured.
    """

    gap: float = 0.01
    rank_share: float = 0.02
    rank_fall: float = 0.15
    uniformity_fall: float = 0.15
    patience: int = 5


class CollapseWatch:
    """Says when a `CollapseRule` is broken for long enough, and when it is no more."""

    def __init__(self, rule: CollapseRule) -> None:
        self.rule = rule
        self.broken = dict.fromkeys(("gap", "rank", "fall", "uniformity"), False)
        """What is announced as collapsed."""
        self.streaks = dict.fromkeys(self.broken, 0)
        """Log steps in a row that say otherwise."""
        self.best = {"rank": 1.0, "uniformity": 0.0}
        """The highest effective rank and the lowest uniformity so far."""

    def see(self, row: Mapping[str, Any], *, judge: bool = True) -> list[str]:
        """What to announce after a log line: a named sentence for each collapse and for each recovery.

        `judge` False (in the warm-up): only remember what there was to lose.
        """
        for name, better in (("rank", max), ("uniformity", min)):
            self.best[name] = better(self.best[name], row.get(name) or self.best[name])
        said = []
        for name, (value, limit, text) in self._readings(row).items() if judge else ():
            self.streaks[name] = self.streaks[name] + 1 if (value < limit) is not self.broken[name] else 0
            if self.streaks[name] == self.rule.patience:
                self.broken[name], self.streaks[name] = not self.broken[name], 0
                found = (
                    f"collapse ({name}): {text}" if self.broken[name] else f"recovered ({name}): not below {limit:.3g}"
                )
                said.append(f"{found} for {self.rule.patience} log steps")
        return said

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"broken": dict(self.broken), "streaks": dict(self.streaks), "best": dict(self.best)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, values in self.state().items():
            setattr(self, name, values | state[name])

    def _readings(self, row: Mapping[str, Any]) -> dict[str, tuple[float, float, str]]:
        found = {}
        if row.get("positive") is not None and row.get("negative") is not None:
            gap, limit = row["positive"] - row["negative"], self.rule.gap
            found["gap"] = gap, limit, f"views of one crop are only {gap:.3g} more alike than others (below {limit:g})"
        if row.get("rank") is not None and row.get("rank_of"):
            rank, limit = row["rank"], 1 + self.rule.rank_share * (row["rank_of"] - 1)
            found["rank"] = rank, limit, f"effective rank {rank:.1f} of {row['rank_of']:.0f} (below {limit:.2g})"
            limit, best = 1 + self.rule.rank_fall * (self.best["rank"] - 1), self.best["rank"]
            found["fall"] = rank, limit, f"effective rank has fallen from {best:.1f} to {rank:.1f} (below {limit:.2g})"
        if row.get("uniformity") is not None and self.best["uniformity"] < 0:
            now, best, limit = row["uniformity"], self.best["uniformity"], self.rule.uniformity_fall
            text = f"views of different crops come together, uniformity, once {best:.3g}, is {now:.2g}"
            found["uniformity"] = now / best, limit, f"{text} (less than {limit:g} of it)"
        return found


class Meters:
    """Means of what steps report, summed on the device: asking for a float at each step would wait for it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """The scalars of one step."""
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """For a checkpoint; numbers as text, because JSON knows no NaN."""
        return {"count": self.count, "sums": {name: repr(float(value)) for name, value in self.sums.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.count, self.sums = state["count"], {name: float(text) for name, text in state["sums"].items()}


class Metrics:
    """``metrics.jsonl``. On resume, lines beyond the step that is continued from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if path.is_file():
            lines = [line for line in path.read_text().splitlines() if _step(line) <= step]
            files.write_text(path, "".join(line + "\n" for line in lines))

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append a line and return it: six digits, and null for numbers that JSON has no name for."""
        line = {name: _plain(value) for name, value in row.items()}
        files.append_line(self.path, json.dumps(line))
        return line


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(log lines, warning lines) of a ``metrics.jsonl``."""
    rows = read_lines(path)
    return [r for r in rows if "warning" not in r], [r for r in rows if "warning" in r]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, without lines that a kill cut short; none where there is no file."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf  # a line that a kill cut short


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
