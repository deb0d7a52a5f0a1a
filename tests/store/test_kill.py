"""A writer that is killed leaves no half scan."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from ctfoundry import geometry, store
from ctfoundry.volume import Volume

_WRITER = """
import sys, time, pathlib
import numpy as np
from ctfoundry import files, geometry, store
from ctfoundry.volume import Volume
folder, stop = sys.argv[1:]
rng = np.random.default_rng(0)
scans = store.create(folder, "native")
def hang(*_):
    print("here", flush=True)
    time.sleep(60)
replace, kept = pathlib.Path.replace, []
def patched(self, target):
    kept.append(target)
    if stop == "half-array" and str(target).endswith("b.b2nd"):
        self.write_bytes(self.read_bytes()[:100]); hang()
    if stop == "before-sidecar" and str(target).endswith("b.json"):
        hang()
    if stop == "before-index" and str(target).endswith("index.npy"):
        hang()
    return replace(self, target)
for id in ("a", "b"):
    if id == "b":
        pathlib.Path.replace = patched
    v = rng.normal(0, 300, (20, 30, 40)).round().astype(np.int16)
    scans.add(Volume(v, geometry.make_affine((3, 1, 1))), id, patient="p")
    if id == "a":
        scans.flush()
scans.flush()
hang()
"""


@pytest.mark.parametrize("stop", ["half-array", "before-sidecar", "before-index", "after"])
def test_killed_while_adding(tmp_path, stop):
    folder = tmp_path / "s"
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(folder), stop], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout.readline() == "here\n"
        # While the writer lives its unfinished files are its own: opening the store beside it removes nothing.
        before = sorted(p.name for p in (folder / "scans").iterdir())
        there = store.open_store(folder).entries.ids
        if stop != "before-index":
            assert sorted(p.name for p in (folder / "scans").iterdir()) == before
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    whole = ["a"] if stop in ("half-array", "before-sidecar") else ["a", "b"]
    assert there == whole
    scans = store.open_store(folder)
    assert scans.entries.ids == whole
    assert scans.verify() == []
    assert sorted(p.name for p in (folder / "scans").iterdir()) == sorted(
        f"{id}{end}" for id in whole for end in (".b2nd", ".json")
    )
    assert sorted(p.name for p in folder.iterdir()) == ["index.npy", "lock", "scans", "store.json"]
    # Running it again ends with the store that an undisturbed run makes, byte for byte.
    for name in (folder, tmp_path / "t"):
        rng = np.random.default_rng(0)
        with store.create(name, "native") as scans:
            for id in ("a", "b"):
                v = rng.normal(0, 300, (20, 30, 40)).round().astype(np.int16)
                scans.add(Volume(v, geometry.make_affine((3, 1, 1))), id, patient="p")

    def content(name):
        return {p.name: p.read_bytes() for p in name.rglob("*") if p.is_file()}

    assert content(folder) == content(tmp_path / "t")


def test_killed_at_any_moment(tmp_path):
    """Four writers, killed after times that cover starting, adding and flushing; every scan listed is whole."""
    folder = tmp_path / "s"
    code = """
import sys, numpy as np
from ctfoundry import geometry, store
from ctfoundry.volume import Volume
scans = store.create(sys.argv[1], "native")
print("go", flush=True)
rng = np.random.default_rng(0)
for k in range(1000):
    v = rng.normal(0, 300, (16, 16, 16)).round().astype(np.int16)
    scans.add(Volume(v, geometry.make_affine((3, 1, 1))), f"s{k:04d}", patient="p")
    if k % 3 == 0:
        scans.flush()
"""
    counts = []
    for k in range(4):
        writer = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        time.sleep(0.05 + 0.13 * k)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        scans = store.open_store(folder)
        assert scans.verify() == []
        assert not list((folder / "scans").glob(".*"))
        counts.append(len(scans))
    assert counts == sorted(counts)
    assert counts[-1] > 0
    rng = np.random.default_rng(0)
    for id in scans.entries.ids:
        np.testing.assert_array_equal(
            scans.volume(id).voxels, rng.normal(0, 300, (16, 16, 16)).round().astype(np.int16)
        )
