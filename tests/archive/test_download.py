"""Downloads through the real s5cmd from an S3 service on loopback."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archive.conftest import Archive
from ctfoundry.archive import Rules, build, read_cohort
from ctfoundry.archive import download as downloads
from ctfoundry.archive.cohort import Cohort
from ctfoundry.archive.download import Transfer, download, manifest
from ctfoundry.errors import DiskFullError, UsageError

pytestmark = pytest.mark.xdist_group("s3")
BUCKET = "made-up-bucket"


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, Any]]:
    """(address, client) of moto's server."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    client.create_bucket(Bucket=BUCKET, ACL="public-read")  # as the archive's are: requests come unsigned
    yield address, client
    server.stop()


def content(k: int, n: int) -> bytes:
    return np.random.default_rng((k, n)).bytes(2000 + 17 * n)


@pytest.fixture
def made(archive: Archive, tmp_path: Path, service: tuple[str, Any]) -> Cohort:
    """Three series of 5 files, in the bucket and in a cohort."""
    _, client = service
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    for k in range(1, 4):
        archive.add(f"1.2.{k}", series_aws_url=f"s3://{BUCKET}/series-{k}/*", instanceCount=5, series_size_MB=0.011)
        for n in range(5):
            client.put_object(Bucket=BUCKET, Key=f"series-{k}/{n}.dcm", Body=content(k, n), ACL="public-read")
    return build(Rules("t"), tmp_path / "c.parquet", archive.indexes())


def folder(out: Path, k: int) -> Path:
    return out / "liver_study" / "1.2" / f"1.2.{k}"


def fast(service: tuple[str, Any], **more: Any) -> Transfer:
    return Transfer(endpoint=service[0], attempts=2, pause_s=0.05, reserve_gb=0, **more)


def check_whole(out: Path, series: tuple[int, ...] = (1, 2, 3)) -> None:
    for k in series:
        assert sorted(p.name for p in folder(out, k).iterdir()) == [f"{n}.dcm" for n in range(5)]
        for n in range(5):
            assert (folder(out, k) / f"{n}.dcm").read_bytes() == content(k, n)
    assert not list(out.rglob(".part-*"))


def test_download_then_again(made: Cohort, tmp_path: Path, service: tuple[str, Any]) -> None:
    lines: list[str] = []
    first = download(made, tmp_path / "out", fast(service), say=lines.append)
    assert first.failed == {}
    assert sorted(first.fetched) == ["1.2.1", "1.2.2", "1.2.3"]
    assert first.failed == {}
    assert first.bytes == sum(len(content(k, n)) for k in (1, 2, 3) for n in range(5))
    assert "3 of 3 series" in lines[-1]
    assert "MB/s" in lines[-1]
    check_whole(tmp_path / "out")
    again = download(made, tmp_path / "out", fast(service))
    assert (sorted(again.skipped), again.fetched, again.bytes) == (["1.2.1", "1.2.2", "1.2.3"], [], 0)
    (folder(tmp_path / "out", 2) / "3.dcm").unlink()
    (folder(tmp_path / "out", 3) / "1.dcm").write_bytes(b"cut")
    third = download(made, tmp_path / "out", fast(service))
    assert sorted(third.fetched) == ["1.2.2", "1.2.3"]
    check_whole(tmp_path / "out")


def test_the_manifest_is_s5cmds(made: Cohort, tmp_path: Path, service: tuple[str, Any]) -> None:
    (tmp_path / "m.s5cmd").write_text(manifest(made))
    (tmp_path / "plain").mkdir()
    tool = Path(sys.executable).with_name("s5cmd")
    subprocess.run(
        [tool, "--no-sign-request", "--endpoint-url", service[0], "run", tmp_path / "m.s5cmd"],
        cwd=tmp_path / "plain",
        check=True,
        capture_output=True,
    )
    check_whole(tmp_path / "plain")


def test_damaged_files_of_an_earlier_attempt_are_fetched_again(
    made: Cohort, tmp_path: Path, service: tuple[str, Any]
) -> None:
    part = folder(tmp_path / "out", 1).parent / ".part-1.2.1"
    part.mkdir(parents=True)
    (part / "0.dcm").write_bytes(content(1, 0))
    (part / "1.dcm").write_bytes(b"\0" * len(content(1, 1)))  # the size is right, the bytes are not
    (part / "foreign.dcm").write_bytes(b"of another release")
    assert download(made, tmp_path / "out", fast(service)).failed == {}
    check_whole(tmp_path / "out")


def test_what_fails_is_listed_and_the_rest_arrives(made: Cohort, tmp_path: Path, service: tuple[str, Any]) -> None:
    _, client = service
    client.delete_object(Bucket=BUCKET, Key="series-2/4.dcm")  # fewer than the index says
    for n in range(5):
        client.delete_object(Bucket=BUCKET, Key=f"series-3/{n}.dcm")
    outcome = download(made, tmp_path / "out", fast(service))
    assert outcome.fetched == ["1.2.1"]
    assert "the bucket holds 4 files, the index says 5 (after 2 attempts)" in outcome.failed["1.2.2"]
    assert "no object found" in outcome.failed["1.2.3"]
    check_whole(tmp_path / "out", (1,))
    assert not folder(tmp_path / "out", 2).exists()
    rows = list(csv.DictReader((tmp_path / "out" / "failed.csv").read_text().splitlines()))
    assert [row["series_uid"] for row in rows] == ["1.2.2", "1.2.3"]
    client.put_object(Bucket=BUCKET, Key="series-2/4.dcm", Body=content(2, 4), ACL="public-read")
    assert download(made, tmp_path / "out", fast(service)).fetched == ["1.2.2"]


def test_a_service_that_comes_back_is_asked_again(
    made: Cohort, tmp_path: Path, service: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt of each series meets a closed port."""
    seen: dict[str, int] = {}
    real = downloads._s5cmd

    def flaky(tool: str, transfer: Transfer, arguments: list[str]) -> str:
        seen[arguments[-1]] = seen.get(arguments[-1], 0) + 1
        if arguments[0] == "ls" and seen[arguments[-1]] == 1:
            return real(tool, Transfer(endpoint="http://127.0.0.1:9", reserve_gb=0), ["ls", "--etag", arguments[-1]])
        return real(tool, transfer, arguments)

    monkeypatch.setattr(downloads, "_s5cmd", flaky)
    assert download(made, tmp_path / "out", fast(service)).failed == {}
    check_whole(tmp_path / "out")


def test_a_full_disk_is_told_before_and_during(
    made: Cohort, tmp_path: Path, service: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    free = iter([10**4])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    with pytest.raises(DiskFullError, match="all series need"):
        download(made, tmp_path / "out", fast(service))
    assert not list((tmp_path / "out").rglob("*.dcm"))
    free = iter([10**9, 10**9, 10**9, 100])  # room at first, then somebody else fills the disk
    with pytest.raises(DiskFullError, match="a series need"):
        download(made, tmp_path / "out", fast(service, jobs=1))
    monkeypatch.undo()
    assert len(download(made, tmp_path / "out", fast(service)).skipped) == 2  # finished work stayed
    check_whole(tmp_path / "out")


def test_killed_and_called_again(made: Cohort, tmp_path: Path, service: tuple[str, Any]) -> None:
    code = (
        "import sys; from pathlib import Path; from ctfoundry.archive import read_cohort\n"
        "from ctfoundry.archive.download import Transfer, download\n"
        "t = Transfer(endpoint=sys.argv[3], jobs=1, reserve_gb=0)\n"
        "download(read_cohort(sys.argv[1]), Path(sys.argv[2]), t)"
    )
    arguments = [sys.executable, "-c", code, str(made.path), str(tmp_path / "out"), service[0]]
    child = subprocess.Popen(arguments, start_new_session=True, stderr=subprocess.DEVNULL)
    log = tmp_path / "out" / "download.jsonl"
    end = time.monotonic() + 30
    while time.monotonic() < end and not log.exists() and child.poll() is None:
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    before = len(log.read_text().splitlines())
    assert before >= 1
    outcome = download(read_cohort(made.path), tmp_path / "out", fast(service))
    assert len(outcome.skipped) >= before
    assert outcome.failed == {}
    check_whole(tmp_path / "out")


def test_a_torn_log_line_is_looked_at_again(made: Cohort, tmp_path: Path, service: tuple[str, Any]) -> None:
    download(made, tmp_path / "out", fast(service))
    log = tmp_path / "out" / "download.jsonl"
    log.write_text(log.read_text()[:-10])
    assert len(download(made, tmp_path / "out", fast(service)).fetched) == 1
    assert all(json.loads(line) for line in log.read_text().splitlines()[:2])


@pytest.mark.parametrize(
    "bad",
    [
        {"StudyInstanceUID": "../../etc"},
        {"SeriesInstanceUID": ".."},
        {"collection_id": "a/b"},
        {"series_aws_url": "s3://bucket/x/*\nrm s3://bucket/*"},
        {"series_aws_url": "--help"},
        {"series_aws_url": "/etc/*"},
    ],
)
def test_names_that_are_none_never_become_paths(archive: Archive, tmp_path: Path, bad: dict[str, str]) -> None:
    archive.add(bad.pop("SeriesInstanceUID", "1.2.3"), **bad)
    made = build(Rules("t"), tmp_path / "c.parquet", archive.indexes())
    with pytest.raises(UsageError, match="address that is none"):
        manifest(made)
    with pytest.raises(UsageError, match="address that is none"):
        download(made, tmp_path / "out")
