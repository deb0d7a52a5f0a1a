"""``ctfoundry datasets list`` and ``show``."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import typer

from ctfoundry.archive.adapters import ADAPTERS, DataSetError
from ctfoundry.cli.common import app
from program import result


@pytest.fixture
def datasets(capsys: pytest.CaptureFixture[str]) -> Any:
    """``ctfoundry datasets ARGUMENTS`` without a process; returns what it prints."""
    for module in ("datasets", "cohorts"):
        importlib.import_module(f"ctfoundry.cli.{module}")

    def run(*arguments: object) -> str:
        typer.main.get_command(app)(["datasets", *map(str, arguments)], standalone_mode=False)
        return capsys.readouterr().out

    return run


@pytest.fixture
def amos(tmp_path: Path) -> Path:
    for name in ("imagesTr/amos_0001", "labelsTr/amos_0001", "imagesVa/amos_0507"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    return tmp_path


def test_list(datasets: Any) -> None:
    listed = json.loads(datasets("list", "--json"))["datasets"]
    assert [item["name"] for item in listed] == list(ADAPTERS)
    assert all(item["licence"] and item["source"] for item in listed)
    assert "CC BY-NC-SA" in datasets("list")


def test_show(datasets: Any, amos: Path) -> None:
    found = json.loads(datasets("show", amos, "--json"))
    assert (found["name"], found["cases"], found["tested"]) == ("amos", 2, "never run on a real copy")
    assert found["splits"] == {"train": 1, "validation": 1}
    assert found["modalities"] == {"CT": 1, "MR": 1}
    assert found["labels"]["liver"] == 1
    assert any("dataset.json" in problem for problem in found["problems"])
    assert str(amos) not in json.dumps(found)
    text = datasets("show", amos)
    assert "2 scans of 2 patients" in text
    assert "and 3 more; --json lists all" in text
    with pytest.raises(DataSetError, match="not laid out like luna16"):
        datasets("show", amos, "--as", "luna16")


def test_in_a_process_of_its_own(amos: Path) -> None:
    assert result("datasets", "show", amos)["patients"] == 2
