"""Fixtures and rules for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import skips

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Before each test: tiny tensors stall when two workers fight for two cores, and what runs in the test's process with another number of
    threads than in a process of its own gives other bits. A test may have left another number behind."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_ct() -> Path:
    """The folder of real scans; skips aloud where it is absent."""
    folder = SHARED / "data" / "ct"
    if not folder.is_dir():
        pytest.skip(skips.SHARED_ABSENT)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("monai"):
            item.add_marker(pytest.mark.xdist_group("monai"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Turn a skip that is not on the list, or one for absent scans that stand there, into a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = (
            report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        )
        if reason not in skips.ALLOWED or (reason == skips.SHARED_ABSENT and SHARED.is_dir()):
            report.outcome = "failed"
            report.longrepr = f"skipped without leave: {reason}"
    return report
