"""Files are whole or not there, also when the writer is killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import duckdb
import numpy as np
import pytest
from safetensors.numpy import save_file

from ctfoundry import files
from ctfoundry.errors import DiskFullError, ReadError

_WRITER = """
import sys, time
from ctfoundry import files
with files.whole(sys.argv[1]) as part:
    with open(part, "wb") as stream:
        stream.write(b"half of it")
        stream.flush()
        print("here", flush=True)
        time.sleep(60)
"""


def killed_writer(target):
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(target)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "here\n"
    writer.kill()
    writer.wait()
    writer.stdout.close()


@pytest.mark.parametrize("before", [None, "old"])
def test_a_killed_writer_leaves_the_old_file_or_none(tmp_path, before):
    target = tmp_path / "x.json"
    if before is not None:
        target.write_text(before)
    killed_writer(target)
    assert (target.read_text() if target.exists() else None) == before
    assert len(list(tmp_path.iterdir())) == 1 + (before is not None)
    assert files.sweep(tmp_path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else ["x.json"])
    assert files.sweep(tmp_path) == 0


def test_sweep_leaves_other_files_and_folders_alone(tmp_path):
    (tmp_path / ".hidden").touch()
    (tmp_path / "below").mkdir()
    killed_writer(tmp_path / "below" / "x")
    assert files.sweep(tmp_path) == 0
    assert (tmp_path / ".hidden").exists()
    assert files.sweep(tmp_path / "below") == 1


def test_an_error_in_the_block_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.bin"
    files.write_bytes(target, b"old")

    def fail():
        with files.whole(target) as part:
            part.write_bytes(b"new")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_temporary_name_keeps_the_suffixes(tmp_path):
    with files.whole(tmp_path / "deep" / "x.nii.gz") as part:
        assert part.name.endswith("x.nii.gz")
        assert part.parent == tmp_path / "deep"
        part.write_bytes(b"1")
    assert (tmp_path / "deep" / "x.nii.gz").read_bytes() == b"1"


def test_a_writer_that_replaces_the_temporary_file_works_too(tmp_path):
    """Some libraries delete and make the file anew."""
    with files.whole(tmp_path / "x") as part:
        part.unlink()
        part.write_bytes(b"2")
    assert (tmp_path / "x").read_bytes() == b"2"


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_modes_hold_whatever_the_umask_and_the_old_file(tmp_path, mode):
    target = tmp_path / "x"
    target.touch(mode=0o777)
    old = os.umask(0o077)
    try:
        files.write_text(target, "secret", mode=mode)
    finally:
        os.umask(old)
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_a_private_file_is_private_from_its_first_byte(tmp_path):
    with files.whole(tmp_path / "x", mode=0o600) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600


def test_json_is_strict(tmp_path):
    files.write_json(tmp_path / "x.json", {"b": [1, 2.5, None], "a": "é"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"b": [1, 2.5, None], "a": "é"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", float("nan"))
    assert json.loads((tmp_path / "x.json").read_text())["a"] == "é"


def test_lines_of_many_writers_do_not_mix(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda k: files.append_line(tmp_path / "x.jsonl", json.dumps({"k": k, "pad": "x" * 2000})), range(400)
            )
        )
    lines = [json.loads(line)["k"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert sorted(lines) == list(range(400))
    with pytest.raises(ValueError, match="line break"):
        files.append_line(tmp_path / "x.jsonl", "a\nb")


def test_hashes(tmp_path):
    data = os.urandom(3_000_000)
    (tmp_path / "x").write_bytes(data)
    assert files.sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()
    assert files.digest({"b": 1, "a": [1.5, "x"]}) == hashlib.sha256(b'{"a":[1.5,"x"],"b":1}').hexdigest()
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1}) != files.digest({"a": 1, "b": 3})


def test_create_once_keeps_what_the_first_wrote(tmp_path):
    path = tmp_path / "folder" / "salt"
    files.create_once(path, b"first", mode=0o600)
    files.create_once(path, b"second", mode=0o600)
    assert path.read_bytes() == b"first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["salt"]


@pytest.mark.parametrize("write", [files.write_bytes, files.create_once])
def test_a_place_that_cannot_be_written_is_named_not_its_temporary_file(tmp_path, monkeypatch, write):
    def refuse(prefix, suffix="", dir=None):
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/{prefix}x{suffix}")

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        write(tmp_path / "out.json", b"x")
    assert caught.value.filename == str(tmp_path / "out.json")


def test_arrays_are_as_numpy_writes_them(tmp_path):
    row = np.dtype([("id", "S4"), ("n", "<i8", (2,))])
    for array in (np.arange(6.0).reshape(2, 3).T, np.zeros((0, 4), "<f4"), np.ones(3, row), np.array(5, ">i2")):
        files.write_npy(tmp_path / "a.npy", array)
        read = np.load(tmp_path / "a.npy", allow_pickle=False)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read, array)


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file of this process grows over 4 KiB: `ulimit -f`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "write",
    [
        lambda place: place.write_bytes(bytes(9_000)),
        lambda place: save_file({"a": np.zeros(2_000)}, place),
        lambda place: duckdb.sql(f"COPY (SELECT random() FROM range(2000)) TO '{place}' (FORMAT parquet)"),
    ],
    ids=["python", "safetensors", "duckdb"],
)
def test_where_a_file_cannot_grow_that_is_said_whoever_writes(tmp_path, write):
    said = r"a\.parquet: a file may not grow to that size\n  -> make room"
    with no_room(), pytest.raises(DiskFullError, match=said), files.whole(tmp_path / "a.parquet") as part:
        write(part)
    files.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [ReadError("No space left on device, it says"), OSError(2, "gone"), ValueError("bad")]
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, files.whole(tmp_path / "a"):
        raise error
    assert raised.value is error


def test_sweep_of_one_file_leaves_those_of_others(tmp_path):
    for name in (".ctfoundry-part-1-a.json", "tmp_.ctfoundry-part-2-a.json", ".ctfoundry-part-3-b.json", "a.json"):
        (tmp_path / name).touch()
    assert files.sweep(tmp_path, "a.json") == 2
    assert {place.name for place in tmp_path.iterdir()} == {".ctfoundry-part-3-b.json", "a.json"}
