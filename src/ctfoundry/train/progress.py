"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """A bar with rate and time left where stderr is a terminal and rich is installed; otherwise one line a log step."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.title, self.quiet = title, quiet
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.quiet or not sys.stderr.isatty():
            return self
        try:
            from rich import progress
            from rich.console import Console
        except ImportError:  # a bare machine trains too
            return self
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(self.title, total=None, rate="", text="")
        self._bar.start()
        return self

    def step(self, done: int, total: int, seconds: float) -> None:
        """`done` of `total` steps; `seconds` is what a step takes."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, rate=f"{1 / seconds:.2g} steps/s")

    def log(self, done: int, total: int, seconds: float, text: str) -> None:
        """The text of a log step."""
        if self._bar is not None:
            self._bar.update(self._task, text=text)
        elif not self.quiet:
            left = (total - done) * seconds
            print(f"{self.title}: {done}/{total} steps, {left:.0f} s left, {text}", file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A warning; shown even when quiet."""
        if self._bar is not None:
            self._bar.console.print(f"warning: {text}", markup=False)
        else:
            print(f"{self.title}: warning: {text}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
