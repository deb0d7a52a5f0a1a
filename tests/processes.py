"""Several processes that train together, started as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parent


def start(script: str, count: int, *arguments: str | Path) -> list[subprocess.Popen[str]]:
    """Run Python source in `count` processes that find each other by torchrun's variables; tests/ is on their path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes: Sequence[subprocess.Popen[str]], *, timeout: float = 60) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each; whoever still runs after `timeout` seconds is killed and the test fails."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def run(script: str, count: int, *arguments: str | Path, timeout: float = 60) -> list[str]:
    """What each of `count` processes printed; all must end well."""
    done = finish(start(script, count, *arguments), timeout=timeout)
    assert all(code == 0 for code, _, _ in done), "\n".join(err for _, _, err in done)
    return [out for _, out, _ in done]
