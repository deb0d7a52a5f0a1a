"""A small index of phantoms, and the app over it on a real socket."""

from __future__ import annotations

import contextlib
import io as streams
import json
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import worlds
from ctfoundry import identity, io
from ctfoundry.io.dicom_write import write_series
from ctfoundry.retrieval.embed import embed
from ctfoundry.retrieval.sources import resolve
from ctfoundry.serve import opening
from ctfoundry.serve.guard import LOOPBACK
from ctfoundry.serve.reader import Reader
from ctfoundry.serve.uploads import STANDARD, Limits
from ctfoundry.serve.work import Engine
from ctfoundry.volume import Volume

TOKEN = "a-token-for-tests-only"
COUNT = 4


@dataclass
class Index:
    """Scans on the disk, embedded; `names` are their ids in the order of `files`."""

    folder: Path
    files: list[Path]
    names: list[str]


@dataclass
class Served:
    """The app on a loopback port."""

    engine: Engine
    port: int
    reported: list[BaseException] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **headers: str) -> httpx.Client:
        """A client that may do all that the page may."""
        known = {"authorization": f"Bearer {TOKEN}", "origin": self.url}
        return httpx.Client(base_url=self.url, headers=known | headers, timeout=30, trust_env=False)

    def job(self, **ask: Any) -> list[dict[str, Any]]:
        """All events of a job, until it is over."""
        with self.client() as client:
            started = client.post("/api/jobs", json=ask)
            assert started.status_code == 200, started.text
            return self.events(started.json()["job"])

    def events(self, job: str) -> list[dict[str, Any]]:
        with self.client() as client, client.stream("GET", f"/api/jobs/{job}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]


SERIES = (
    # slices, code of the voxel axes, spacing, kernel, kV
    (6, "SPL", (3.0, 0.8, 0.8), "B30f", 120),
    (9, "SPL", (2.0, 0.8, 0.8), "Doe^Jane", 120),
    (4, "PSL", (5.0, 1.0, 1.0), "STANDARD", 100),
)


def archive(folder: Path) -> tuple[bytes, list[Volume]]:
    """A zip archive with a DICOM series for each of `SERIES`, full of names, a damaged series and a report; and its volumes."""
    stream, volumes = streams.BytesIO(), []
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        for number, (depth, code, spacing, kernel, kvp) in enumerate(SERIES):
            volume = worlds.body(number, (depth, 28, 30), spacing, code)

            def change(data: Any, _: int, kernel: str = kernel, kvp: int = kvp) -> None:
                data.ConvolutionKernel, data.KVP, data.PatientName = kernel, kvp, "Doe^Jane"

            place = folder / f"Doe Jane {number}"
            written = write_series(
                place, volume.voxels, volume.affine, series=str(number), description="Doe Jane", change=change
            )
            for path in written:
                made.write(path, f"Doe Jane/{number}/{path.name}")
            volumes.append(volume)
        holes = write_series(folder / "holes", volumes[0].voxels, volumes[0].affine, series="77")
        for path in (*holes[:2], *holes[3:]):
            made.write(path, f"Doe Jane/77/{path.name}")
        made.writestr("Doe Jane/report.txt", "Doe Jane")
    return stream.getvalue(), volumes


def build(folder: Path, encoder: Any, count: int = COUNT) -> Index:
    files = [folder / "scans" / f"patient-{i}.nii.gz" for i in range(count)]
    for i, path in enumerate(files):
        path.parent.mkdir(exist_ok=True)
        io.write(worlds.body(i, code=("SPL", "RAS", "LPI", "SPL")[i % 4], shape=(20, 48, 52)), path)
    found = resolve([str(path) for path in files])
    embed([s.scan for s in found.scans], encoder, folder / "index")
    identity.write_private(folder / "index", found.paths)
    by_path = {path: id for id, path in found.paths.items()}
    return Index(folder / "index", files, [by_path[str(path)] for path in files])


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build(tmp_path_factory.mktemp("serve"), worlds.tiny())


class Kept(Reader):
    """A reader that several servers share: it does not end with one of them."""

    def close(self) -> None:
        """Not yet."""


READER = Kept()


@pytest.fixture(scope="session", autouse=True)
def _reader(index: Index) -> Iterator[None]:
    """The reader is started before anything with a time limit asks for it, and ended with the session."""
    READER.read(index.files[0], 1 << 30, 300)
    yield
    Reader.close(READER)


@contextlib.contextmanager
def starting(index: Index) -> Iterator[Callable[..., Served]]:
    """Starts servers, and ends them with the block; `encoder` and `limits` may be others."""
    running: list[tuple[Any, threading.Thread]] = []

    def start(*, encoder: Any = None, limits: Limits = STANDARD, folder: Path | None = None, **options: Any) -> Served:
        engine = opening.engine(folder or index.folder, worlds.tiny(), limits=limits, **options)
        if encoder is not None:
            engine = replace(engine, encoder=encoder)
        listener = opening.listening("127.0.0.1", 0)
        served = Served(engine, listener.getsockname()[1])
        server = opening.server(
            engine, listener, token=TOKEN, names=LOOPBACK, limits=limits, reader=READER, report=served.reported.append
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        end = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < end
            assert thread.is_alive()
            time.sleep(0.01)
        return served

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(10)
        assert not thread.is_alive(), "the server did not end"


@pytest.fixture
def serve(index: Index) -> Iterator[Callable[..., Served]]:
    """Starts servers of a test's own."""
    with starting(index) as start:
        yield start


@pytest.fixture(scope="module")
def served(index: Index) -> Iterator[Served]:
    """A server that all tests of a file share: they leave nothing in it."""
    with starting(index) as start:
        yield start()


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, to see that nothing stays there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder
