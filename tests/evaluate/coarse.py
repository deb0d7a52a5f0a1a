"""What makes whole comparisons small: a coarser grid for the tiny CT-FM model, and phantoms made in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from ctfoundry.preparation import PREPARATIONS
from ctfoundry.zoo.models import CARDS

NAME = "ct-fm-tiny"


def one_process(
    work: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], *, say: Callable[[str], None] = lambda _: None
) -> list[Any]:
    """In place of `layouts.plain.in_processes`: starting processes takes longer than a few coarse phantoms."""
    return [work(*job) for job in jobs]


def coarser(patch: pytest.MonkeyPatch, spacing: tuple[float, float, float] = (12.0, 6.0, 6.0)) -> None:
    """`NAME` sees voxels of so many millimetres in this process (a twentieth of its own), whatever asks for it."""
    own = PREPARATIONS[NAME]
    coarse = replace(own, resampling=replace(own.resampling, spacing=spacing))
    patch.setitem(PREPARATIONS, NAME, coarse)
    patch.setitem(CARDS, NAME, replace(CARDS[NAME], preparation=coarse))
    patch.setattr("ctfoundry.layouts.plain.in_processes", one_process)
