"""Scans whose reading ends the process, in a module that spawned workers can import; and what of a store must not differ."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctfoundry.io import Found
from ctfoundry.volume import Volume


@dataclass(frozen=True)
class Deadly(Found):
    """Reading it kills the process, `times` times; `tally` is a file that grows by a byte each time."""

    tally: Path = Path()
    times: int = 1
    how: int = signal.SIGKILL

    def read(self, **options: Any) -> Volume:
        with open(self.tally, "ab") as file:
            file.write(b".")
        if self.tally.stat().st_size <= self.times:
            os.kill(os.getpid(), self.how)
        return super().read(**options)


@dataclass(frozen=True)
class Greedy(Found):
    """Reading it takes far more memory than its header declares."""

    def read(self, **options: Any) -> Volume:
        import numpy as np

        np.ones(8 << 30, np.uint8)
        return super().read(**options)


def content(store: Path) -> dict[str, bytes]:
    """Every byte that has to be the same: all but the private files and the record of the run (times)."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path.name != "run.json" and not path.name.startswith("private")
    }
