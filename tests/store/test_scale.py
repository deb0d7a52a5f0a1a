"""100,000 scans open in bounded memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from ctfoundry import store
from ctfoundry.store import index

COUNT = 100_000

_OPEN = """
import resource, sys
from ctfoundry import store
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scans = store.open_store(sys.argv[1])
entry = scans.entry("scan-077777")
collections = scans.entries.column("collection")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(scans), entry.patient, entry.shape[2], len(set(collections)), (after - before) // 1024)
"""


def test_a_store_of_100000_scans(tmp_path, scan):
    with store.create(tmp_path / "s", "native") as scans:
        scans.add(scan(shape=(8, 9, 10)), "zz", patient="p")
    row = scans.entries.row("zz")
    table = np.repeat(np.array([row], dtype=index.ROW), COUNT + 1)
    names = [f"scan-{k:06d}" for k in range(COUNT)]
    table["id"][:COUNT] = names
    table["patient"][:COUNT] = [f"p{k // 3}" for k in range(COUNT)]
    table["collection"][:COUNT] = [f"C{k % 69}" for k in range(COUNT)]
    table["shape"][:COUNT, 2] = 10 + np.arange(COUNT) % 500
    for name in names:
        (tmp_path / "s" / "scans" / f"{name}.json").touch()
    index.write(tmp_path / "s" / "index.npy", table)
    out = subprocess.run(
        [sys.executable, "-c", _OPEN, str(tmp_path / "s")], capture_output=True, text=True, check=True
    ).stdout.split()
    assert out[:4] == [str(COUNT + 1), f"p{77777 // 3}", str(10 + 77777 % 500), "70"]
    assert int(out[4]) < 200, "megabytes"
