"""The phantoms that the quickstart runs on where no data is given: scans of torsos, written by `layouts.plain`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ctfoundry.layouts import plain
from ctfoundry.layouts.cases import Cohort


def make_many(folder: Path, count: int, seed: int, *, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """Write `count` healthy phantoms; returns their names."""
    return plain.make_many(folder, Cohort(count, seed), say=say)
