"""The command line in a process of its own, as a stranger starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``ctfoundry ARGUMENTS``, warnings as errors, with a salt of the tests' own."""
    env = os.environ | {"CTFOUNDRY_SALT": "test", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", "ctfoundry", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=300)


def result(*arguments: object) -> Any:
    """What a verb that succeeds gives as JSON."""
    done = run(*arguments, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
