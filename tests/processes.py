"""Several processes that train together, with torchrun's variables."""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent

SERVER = """
import json, os, signal, sys, traceback
import torch
from torch.distributed import TCPStore
torch.set_num_threads(1)

def ranks(source, folder, count):
    left = {}
    for rank in range(count):
        pid = os.fork()
        if not pid:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
            if count > 1:
                os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True")
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{folder}/{name}-{rank}", os.O_WRONLY | os.O_CREAT), number)
            code = 0
            try:
                exec(compile(source, "script", "exec"), {"__name__": "__main__"})
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            os._exit(code)  # taking the interpreter down takes a second
        left[pid] = rank
    if count > 1:  # as torchrun's agent, which outlives what its processes have joined and left
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=True, wait_for_workers=False)
    while left:
        pid, status = os.wait()
        del left[pid]
        if status:
            for other in left:
                os.kill(other, signal.SIGKILL)
            os._exit(1)
    os._exit(0)

for line in sys.stdin:
    asked = json.loads(line)
    if "ctfoundry.train" in asked["source"]:
        import torch._dynamo  # here, because the first optimiser step would, in each process
        from ctfoundry.train.utilisation import peak_flops

        peak_flops("cpu", "fp32")  # measured once for all
    pid = os.fork()
    if not pid:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = ["script", *asked["arguments"]]
        ranks(asked["source"], asked["folder"], asked["count"])
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def run(script: str, count: int, *arguments: str | Path, timeout: float = 120) -> list[str]:
    """Run Python source in `count` processes, with tests/ on their path; what each printed. All must end well and in time.

    They are forks of one that has imported torch, once for all tests: that takes longer than most of what they do.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = _server()
    assert server.stdin is not None
    with tempfile.TemporaryDirectory() as folder:
        asked: dict[str, Any] = {
            "source": script,
            "folder": folder,
            "count": count,
            "arguments": list(map(str, arguments)),
            "environment": {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
        server.stdin.write(f"{json.dumps(asked)}\n".encode())
        pid = _said(server, timeout)
        assert pid is not None, "the server of processes does not answer"
        ended = _said(server, timeout)
        if ended is None:
            os.killpg(pid, 9)
            _said(server, timeout)
            raise TimeoutError(f"the processes have not ended within {timeout:g} s")
        errors = "\n".join(path.read_text() for path in sorted(Path(folder).glob("err-*")))
        assert ended == 0, errors
        return [(Path(folder) / f"out-{rank}").read_text() for rank in range(count)]


@cache
def _server() -> subprocess.Popen[bytes]:
    """Takes a request a line; answers with the id of the process that it has started, and with its exit code."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # a line that Python had read ahead would be one that `select` never tells of
    )
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    process.wait()


def _said(server: subprocess.Popen[bytes], timeout: float) -> int | None:
    """The next line; None when there is none in time."""
    assert server.stdout is not None
    if not select.select([server.stdout], [], [], timeout)[0]:
        return None
    return int(server.stdout.readline())
