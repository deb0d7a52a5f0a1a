"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from ctfoundry.report.text import rate


class Progress:
    """A bar with rate and time left where stderr is a terminal and rich is installed; otherwise one line a log step.

    `unit` names what is counted.
    """

    def __init__(self, title: str, *, quiet: bool = False, unit: str = "step") -> None:
        self.title, self.quiet, self.unit = title, quiet, unit
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
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(self.title, total=1.0, rate="", text="")
        self._bar.start()
        return self

    @property
    def is_bar(self) -> bool:
        """Whether it is drawn again and again in one place, so that telling it often does not fill the screen."""
        return self._bar is not None

    def step(self, done: int, share: float, seconds: float) -> None:
        """`done` steps in `seconds`, which is `share` of the work."""
        if self._bar is not None:
            self._bar.update(
                self._task, completed=min(share, 1.0), rate=f"{self.unit} {done}, {rate(done / seconds)}/s"
            )

    def log(self, done: int, share: float, seconds: float, text: str) -> None:
        """The text of a log step."""
        if self._bar is not None:
            self._bar.update(self._task, text=text)
        elif not self.quiet:
            left = seconds * max(1 / share - 1, 0.0)
            said = f"{self.title}: {self.unit} {done}, {share:.0%}, {left:.0f} s left, {text}"
            print(said, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A warning; shown even when quiet."""
        if self._bar is not None:
            self._bar.console.print(f"warning: {text}", markup=False)
        else:
            print(f"{self.title}: warning: {text}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
