"""The command line in the process of the tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ctfoundry import cli

Command = Callable[..., Any]


@pytest.fixture
def command(capsys, monkeypatch) -> Command:
    """``ctfoundry ARGUMENTS`` here: its JSON, or with `fails` the exit code and what it says on stderr."""
    monkeypatch.setenv("CTFOUNDRY_SALT", "test")

    def run(*arguments: object, fails: bool = False) -> Any:
        monkeypatch.setattr(sys, "argv", ["ctfoundry", *map(str, arguments), "--json", "--quiet"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        if fails:
            return ended.value.code, said.err
        assert ended.value.code == 0, said.err
        return json.loads(said.out)

    return run
