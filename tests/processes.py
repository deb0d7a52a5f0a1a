"""Several processes that train together, with torchrun's variables."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent

LAUNCHER = """
import os, signal, sys
import torch
if "ctfoundry.train" in sys.argv[1]:
    import torch._dynamo  # here, because the first optimiser step would, in each process
torch.set_num_threads(1)
source, folder, count, sys.argv = sys.argv[1], sys.argv[2], int(sys.argv[3]), ["script", *sys.argv[4:]]
left = {}
for rank in range(count):
    pid = os.fork()
    if not pid:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
        if count > 1:
            os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True")
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{name}-{rank}", os.O_WRONLY | os.O_CREAT), number)
        exec(compile(source, "script", "exec"), {"__name__": "__main__"})
        sys.exit()
    left[pid] = rank
if count > 1:  # as torchrun's agent, which outlives what its processes have joined and left
    from torch.distributed import TCPStore

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=True, wait_for_workers=False)
while left:
    pid, status = os.wait()
    del left[pid]
    if status:
        for other in left:
            os.kill(other, signal.SIGKILL)
        sys.exit(1)
"""


def run(script: str, count: int, *arguments: str | Path, timeout: float = 120) -> list[str]:
    """Run Python source in `count` processes, with tests/ on their path; what each printed. All must end well and in time.

    They are forks of one that has imported torch, which takes longer than most of what they do.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", LAUNCHER, script, folder, str(count), *map(str, arguments)]
        with subprocess.Popen(command, env=given, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
            try:
                _, said = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                raise
        errors = "\n".join(path.read_text() for path in sorted(Path(folder).glob("err-*")))
        assert process.returncode == 0, said + errors
        return [(Path(folder) / f"out-{rank}").read_text() for rank in range(count)]
