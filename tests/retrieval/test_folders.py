"""Folders that many fill, search, thin and join at once; real processes, killed ones among them."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import duckdb
import h5py
import numpy as np
import pytest
import torch

import worlds
from ctfoundry import identity, zoo
from ctfoundry.errors import StoreError, UsageError
from ctfoundry.ingest import Inline, Local
from ctfoundry.retrieval import approximate, folders, matrix, parts
from ctfoundry.retrieval import embed as embedding
from ctfoundry.retrieval.cards import Settings
from ctfoundry.retrieval.embed import ModelOf, Scan, embed, load_index
from ctfoundry.retrieval.index import Index
from ctfoundry.retrieval.parts import vector_names
from ctfoundry.settings import to_data

C = 24


def scans(count: int, first: int = 0) -> list[Scan]:
    return [Scan(f"s{i}", f"digest{i}", partial(worlds.body, i)) for i in range(first, first + count)]


def vector(i: int) -> np.ndarray:
    return np.random.default_rng(i).normal(size=C).astype(np.float32) + 2


def filled(out: Path, *numbers: int, name: str = "mean", digest: str = "d") -> None:
    """A part of made-up vectors."""
    (out / "parts").mkdir(parents=True, exist_ok=True)
    if not (out / "card.json").is_file():
        card = {"model": to_data(worlds.tiny().card), "settings": to_data(Settings(("mean",)))}
        (out / "card.json").write_text(json.dumps(card))
    rows = [parts.Row(f"s{i}", f"{digest}{i}", name) for i in numbers]
    parts.write(out, rows, np.stack([vector(i) for i in numbers]))


def literal(out: Path, query: np.ndarray) -> list[str]:
    """Ids by cosine, from the parts alone."""
    found = {r["id"]: parts.vectors(out, r["part"])[r["row"]].astype(np.float64) for r in parts.rows(out)}
    return sorted(found, key=lambda id: -(found[id] @ query) / np.linalg.norm(found[id]))


def test_the_matrix_grows_with_the_parts(tmp_path):
    filled(tmp_path, *range(5))
    first = load_index(tmp_path)
    before = {p.name: p.stat().st_size for p in tmp_path.glob("matrix-*")}
    filled(tmp_path, 5, 6)
    second = load_index(tmp_path)
    after = {p.name: p.stat().st_size for p in tmp_path.glob("matrix-*")}
    assert set(before) == set(after), "extended, not made anew"
    assert sorted(second.ids) == [f"s{i}" for i in range(7)]
    assert len(first.ids) == len(first.rows) == 5, "who has it open keeps what it sees"
    query = vector(77)
    assert [n.id for n in second.nearest(torch.from_numpy(query), 7)] == literal(tmp_path, query)
    torch.testing.assert_close(second.vectors()[second.ids.index("s6")], torch.from_numpy(vector(6)))
    filled(tmp_path, *range(10, 60))
    load_index(tmp_path)
    assert {p.name for p in tmp_path.glob("matrix-*")} != set(after), "outgrown its centre"
    assert len(list(tmp_path.glob("matrix-mean-*"))) == len(matrix.FILES), "the old one is gone"


def test_a_killed_extension_is_overwritten(tmp_path):
    filled(tmp_path, 0, 1, 2)
    load_index(tmp_path)
    for place in tmp_path.glob("matrix-mean-*"):
        with open(place, "ab") as stream:
            stream.write(b"\x01" * 37)  # appended, and killed before the manifest
    assert len(load_index(tmp_path)) == 3
    filled(tmp_path, 3)
    index = load_index(tmp_path)
    torch.testing.assert_close(index.vectors()[index.ids.index("s3")], torch.from_numpy(vector(3)))


@pytest.mark.parametrize("damage", ["manifest", "gone", "part"])
def test_what_does_not_fit_is_made_anew(tmp_path, damage):
    filled(tmp_path, 0, 1)
    filled(tmp_path, 2)
    load_index(tmp_path)
    if damage == "manifest":
        (tmp_path / "matrix-mean.json").write_text("{")
    elif damage == "gone":
        next(tmp_path.glob("matrix-mean-*.bf16")).unlink()
    else:
        (tmp_path / "parts" / list(parts.names(tmp_path))[1]).unlink()
    assert set(load_index(tmp_path).ids) == ({"s0", "s1"} if damage == "part" else {"s0", "s1", "s2"})


def test_a_folder_of_an_earlier_version(tmp_path):
    from safetensors.numpy import save_file

    filled(tmp_path, 0)
    rows = [{"id": "old", "digest": "x", "vector": "mean", "centre": None, "box": None}]
    save_file(
        {"vectors": vector(9)[None]},
        tmp_path / "parts" / "000000-0123456789abcdef.safetensors",
        {"rows": json.dumps(rows)},
    )
    card = json.loads((tmp_path / "card.json").read_text())
    for key in ("slices", "roi"):
        del card["settings"][key]
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert set(load_index(tmp_path).ids) == {"old", "s0"}
    assert embedding.fits(tmp_path, worlds.tiny(), Settings(("mean",)))


def test_remove_and_come_back(tmp_path):
    filled(tmp_path, 0, 1, 2, 3)
    load_index(tmp_path)
    assert folders.remove(tmp_path, ["s1", "s3"]) == ["s1", "s3"]
    assert load_index(tmp_path).ids == ("s0", "s2")
    query = torch.from_numpy(vector(1))
    assert {n.id for n in load_index(tmp_path).nearest(query, 9)} == {"s0", "s2"}
    with pytest.raises(StoreError, match="holds no scan s1"):
        folders.remove(tmp_path, ["s0", "s1"])
    assert load_index(tmp_path).ids == ("s0", "s2")
    filled(tmp_path, 1)
    assert set(load_index(tmp_path).ids) == {"s0", "s1", "s2"}
    assert len(duckdb.sql(f"from '{tmp_path}/index.parquet'").fetchall()) == 2, "as of the last embed or remove"
    size = sum(parts.names(tmp_path).values())
    assert folders.compact(tmp_path) == size - sum(parts.names(tmp_path).values()) > 0
    assert set(load_index(tmp_path).ids) == {"s0", "s1", "s2"}
    assert sum(len(parts.vectors(tmp_path, name)) for name in parts.names(tmp_path)) == 3


def test_merge(tmp_path):
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    filled(a, 0, 1)
    filled(b, 1, 2, 3)
    folders.remove(b, ["s3"])
    assert list(folders.merge(c, [a, b]).values()) == [2, 1]
    assert set(load_index(c).ids) == {"s0", "s1", "s2"}
    assert list(folders.merge(c, [a, b]).values()) == [0, 0]
    filled(a, 3)
    folders.merge(a, [b])
    assert "s3" in load_index(a).ids, "what was taken out of a source stays in the other"
    card = json.loads((b / "card.json").read_text())
    card["model"]["seed"] = 99
    (b / "card.json").write_text(json.dumps(card))
    with pytest.raises(StoreError, match="other weights"):
        folders.merge(tmp_path / "new", [a, b])
    assert not (tmp_path / "new").exists()


def test_a_merge_that_is_killed_loses_no_place(tmp_path, monkeypatch):
    a, out, write = tmp_path / "a", tmp_path / "out", parts.write
    filled(a, 0, 1)
    identity.write_private(a, {"s0": "/there/0", "s1": "/there/1", "gone": "/there/2"})

    def killed(*given: object) -> None:
        write(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        folders.merge(out, [a])
    monkeypatch.setattr(parts, "write", write)
    folders.merge(out, [a])
    assert json.loads((out / identity.PRIVATE).read_text()) == {"s0": "/there/0", "s1": "/there/1"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_read_only_folder_is_searched_in_memory(tmp_path, monkeypatch, number):
    filled(tmp_path, 0, 1, 2)

    def refuse(*_: object, **__: object):
        raise OSError(number, "not here")

    monkeypatch.setattr(matrix.parts, "locked", refuse)
    assert load_index(tmp_path).ids == ("s0", "s1", "s2")
    assert not list(tmp_path.glob("matrix-*"))


def test_a_part_that_is_compacted_away_while_it_is_read(tmp_path, monkeypatch):
    filled(tmp_path, 0, 1)
    filled(tmp_path, 2)
    folders.remove(tmp_path, ["s1"])
    header = parts.header

    def late(out: Path, name: str) -> parts.Header:
        monkeypatch.setattr(parts, "header", header)
        folders.compact(tmp_path)
        return header(out, name)

    monkeypatch.setattr(parts, "header", late)
    assert set(load_index(tmp_path).ids) == {"s0", "s2"}


def test_time_bounds_what_a_kill_can_lose(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "PART_S", 0.0)
    embed(scans(3), worlds.tiny(), tmp_path)
    assert len(parts.names(tmp_path)) == 3


FILL = """
import sys, numpy as np
from pathlib import Path
from ctfoundry.retrieval import parts  # imports no torch
out, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for i in range(first, first + count, 2):
    rows = [parts.Row(f"s{j}", f"d{j}", "mean") for j in (i, i + 1)]
    vectors = [np.random.default_rng(j).normal(size=24).astype(np.float32) + 2 for j in (i, i + 1)]
    with parts.writing(out):
        parts.write(out, rows, np.stack(vectors))
    print(i, flush=True)
parts.write_index(out)
"""


def started(out: Path, first: int, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", FILL, str(out), str(first), str(count)], stdout=subprocess.PIPE)


def test_writers_and_readers_at_once_and_one_is_killed(tmp_path):
    filled(tmp_path, 999)
    writers = [started(tmp_path, 0, 30), started(tmp_path, 100, 30), started(tmp_path, 200, 1000)]
    killed = writers[2]
    assert killed.stdout is not None
    for _ in range(3):
        killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    seen = 0
    while any(w.poll() is None for w in writers):
        index = load_index(tmp_path)
        assert len(index) >= seen
        seen = len(index)
        found = index.nearest(torch.from_numpy(vector(999)), 3)
        assert (found[0].id, round(found[0].similarity, 6)) == ("s999", 1.0)
        time.sleep(0.1)
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()
        writer.wait()
    assert [w.returncode for w in writers] == [0, 0, -9]
    index = load_index(tmp_path)
    whole = {f"s{i}" for first in (0, 100) for i in range(first, first + 30)} | {"s999"}
    assert whole <= set(index.ids)
    for id, found in zip(index.ids, index.vectors(), strict=True):
        np.testing.assert_array_equal(found.numpy(), vector(int(id[1:])))
    parts.write_index(tmp_path)
    listed = {row[0] for row in duckdb.sql(f"select id from '{tmp_path}/index.parquet'").fetchall()}
    assert listed == set(index.ids)
    with parts.writing(tmp_path):
        assert not list((tmp_path / "parts").glob(".*")), "what the killed one left is swept"


def model(tmp_path: Path) -> ModelOf:
    zoo.save_model(worlds.tiny(), tmp_path / "m.safetensors")
    return ModelOf(str(tmp_path / "m.safetensors"))


def test_workers_give_what_one_process_gives(tmp_path):
    how = model(tmp_path)
    settings = Settings(("mean", "max"), window=(16, 32, 32), grids=True)
    bad = Scan("bad", "d", partial(worlds.body, 0, "nonsense"))  # type: ignore[arg-type]
    for executor, folder in ((Inline(), "inline"), (Local(2), "local")):
        outcome = embed([*scans(3), bad], how.load(), tmp_path / folder, settings, executor=executor, model=how)
        assert sorted(outcome.done) == ["s0", "s1", "s2"]
        assert list(outcome.failed) == ["bad"]
        again = embed(scans(3), how.load(), tmp_path / folder, settings, executor=executor, model=how)
        assert (again.done, again.skipped) == ([], ["s0", "s1", "s2"])
    embed(scans(3), how.load(), tmp_path / "alone", settings)
    for name in ("mean", "max", "window"):
        expected = load_index(tmp_path / "alone", name)
        for folder in ("inline", "local"):
            found = load_index(tmp_path / folder, name)
            for id in ("s0", "s1", "s2"):
                torch.testing.assert_close(found.of_id(id), expected.of_id(id), rtol=1e-4, atol=1e-5)
    assert len(list((tmp_path / "local" / "grids").glob("*.safetensors"))) == 3


def test_windows_slices_and_what_is_pooled_over_them(tmp_path):
    encoder = worlds.tiny()
    settings = Settings(("mean", "windows:min", "windows:max"), window=(16, 32, 32), slices=True)
    embed(scans(2), encoder, tmp_path, settings)
    windows = encoder.windows(worlds.body(0), (16, 32, 32))
    for name, expected in (("windows:min", windows.vectors.amin(0)), ("windows:max", windows.vectors.amax(0))):
        torch.testing.assert_close(load_index(tmp_path, name).of_id("s0")[0], expected)
    found = load_index(tmp_path, "window").nearest(windows.vectors[3], 2)
    assert found[0].id == "s0"
    np.testing.assert_allclose(found[0].centre, windows.centres[3])
    assert found[0].box == (*windows.starts[3], 16, 32, 32)
    index = load_index(tmp_path, "slice")
    volume = worlds.body(0)
    prepared = encoder.prepare(volume)
    one = encoder.embed(prepared.x[None, :, 5:6], "mean")[0]
    hit = index.nearest(one, 1)[0]
    assert (hit.id, hit.box[0]) == ("s0", 5)  # type: ignore[index]
    h, w = prepared.x.shape[2:]
    expected = prepared.affine @ [5, (h - 1) / 2, (w - 1) / 2, 1]
    np.testing.assert_allclose(hit.centre, expected[:3])
    assert vector_names(tmp_path) == ["mean", "windows:min", "windows:max", "window", "slice"]


def test_vectors_that_are_none_are_refused_before_anything_is_read(tmp_path):
    for settings in (Settings(("nonsense",)), Settings(("windows:min",)), Settings(("windows:cls",), (16, 32, 32))):
        with pytest.raises(UsageError):
            embed(scans(1), worlds.tiny(), tmp_path / "x", settings)


def test_tables(tmp_path):
    filled(tmp_path, 0, 1, 2)
    folders.remove(tmp_path, ["s1"])
    (tmp_path / "private.json").write_text(json.dumps({"s0": "/home/someone/Doe Jane.nii.gz", "s2": "/x/b.nii"}))
    expected = np.stack([vector(0), vector(2)])
    for kind in ("csv", "parquet"):
        (place,) = folders.export(tmp_path, kind)
        found = duckdb.sql(f"from '{place}' order by id").fetchall()
        assert [row[0] for row in found] == ["s0", "s2"]
        np.testing.assert_array_equal(np.array([row[1:] for row in found], np.float32), expected)
    (place,) = folders.export(tmp_path, "npy")
    np.testing.assert_array_equal(np.load(place), expected)
    assert place.with_suffix(".csv").read_text().split() == ["id", "s0", "s2"]
    assert not any("Doe" in p.read_text(errors="ignore") for p in (tmp_path / "tables").iterdir())
    (place,) = folders.export(tmp_path, "csv", names=True)
    assert place.stat().st_mode & 0o777 == 0o600
    assert place.name.startswith("private-")
    assert "Doe Jane.nii.gz" in place.read_text()


def test_the_challenges_layout(tmp_path):
    filled(tmp_path, 0, 1)
    (tmp_path / "private.json").write_text(json.dumps({"s0": "/x/amos_0007.nii.gz", "s1": "/x/amos_0008.nii.gz"}))
    places = folders.challenge_layout(tmp_path, names=True)
    assert sorted(p.name for p in places) == ["amos_0007.h5", "amos_0008.h5"]
    with h5py.File(tmp_path / "cvpr26" / "amos_0008.h5") as file:
        np.testing.assert_array_equal(file["y_hat"][:], vector(1))


def test_a_graph_says_how_good_it_is(tmp_path):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(rng.normal(size=(800, 16)).astype(np.float32))
    index = Index.of([f"s{i // 2}" for i in range(800)], vectors)
    found = approximate.approximate(index, tmp_path / "graph.hnsw")
    assert found.recall.value > 0.95
    assert "recall@10" in found.described()
    assert "measured on 200 queries" in found.described()
    again = approximate.approximate(index, tmp_path / "graph.hnsw")
    assert again.recall == found.recall
    (stored,) = tmp_path.glob("graph-*.hnsw")
    other = Index.of(index.ids, vectors.flip(0))  # as many, but others
    found = approximate.approximate(other, tmp_path / "graph.hnsw")
    assert found.nearest(vectors[0], 1)[0].id == "s399"
    assert found.recall.value > 0.95
    assert [p != stored for p in tmp_path.glob("graph-*.hnsw")] == [True], "the old graph is gone"
    found = approximate.approximate(index)
    for query in vectors[:20] + 0.1:
        exact, near = index.nearest(query, 5), found.nearest(query, 5)
        assert len({n.id for n in exact} & {n.id for n in near}) >= 4
        assert near[0].similarity == pytest.approx(exact[0].similarity, abs=1e-9)
        gone = [near[0].id]
        assert near[0].id not in {n.id for n in found.nearest(query, 5, without=gone)}
        assert found.nearest(query, 3, within={"s1"})[0].id == "s1"
    assert approximate.chosen(index) is index
    assert index.described() == "exact, 800 vectors"
    literal_recall = []
    for query, row in zip(vectors, range(40), strict=False):
        far = (torch.nn.functional.normalize(vectors, dim=1) @ query).argsort(descending=True)
        true = {i for i in far[:11].tolist() if i != row}
        got = approximate._ask(found.graph, query[None].numpy(), 11)[0]
        literal_recall.append(len(true & set(got.tolist())) / 10)
    assert np.mean(literal_recall) == pytest.approx(found.recall.value, abs=0.05)
