"""The stored graph while its index grows and shrinks: what is kept, what is added, what is made anew; beside the exact search."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ctfoundry import files
from ctfoundry.retrieval import approximate, embed, folders, parts
from ctfoundry.retrieval.index import Index
from ctfoundry.retrieval.parts import Row

faiss = pytest.importorskip("faiss")

RNG = np.random.default_rng(0)
VECTORS = torch.from_numpy((RNG.normal(size=(900, 24)) + 0.4).astype(np.float32))


def index_of(vectors):
    return Index.of([f"s{i}" for i in range(len(vectors))], vectors)


@pytest.fixture
def made(monkeypatch):
    """How many graphs were begun anew, and how many vectors were put into any."""
    counts = SimpleNamespace(begun=0, added=0)

    class Counted(faiss.IndexHNSWFlat):
        def __init__(self, *arguments):
            counts.begun += 1
            super().__init__(*arguments)

    original = faiss.IndexHNSWFlat.add

    def add(self, x):
        counts.added += len(x)
        return original(self, x)

    monkeypatch.setattr(faiss.IndexHNSWFlat, "add", add)
    monkeypatch.setattr(
        approximate,
        "_faiss",
        lambda: SimpleNamespace(
            IndexHNSWFlat=Counted,
            METRIC_INNER_PRODUCT=faiss.METRIC_INNER_PRODUCT,
            read_index=faiss.read_index,
            write_index=faiss.write_index,
        ),
    )
    return counts


def stored(folder):
    return sorted(path.name for path in folder.glob("*.hnsw"))


def agrees(found, vectors, queries, at_least=0.95):
    """The graph's answers are the literal nearest ones, in float64, and so is what it says of its recall."""
    unit = vectors.double() / vectors.double().norm(dim=1, keepdim=True)
    shares = []
    for query in queries:
        true = (unit @ (query.double() / query.double().norm())).argsort(descending=True)[:10].tolist()
        near = found.nearest(query, 10)
        assert [n.similarity for n in near] == sorted((n.similarity for n in near), reverse=True)
        shares.append(len({f"s{i}" for i in true} & {n.id for n in near}) / 10)
    assert np.mean(shares) >= at_least
    assert found.recall.value >= at_least
    assert f"{len(vectors):,} vectors" in found.described()


def test_rows_that_came_are_added_and_the_recall_is_measured_again(tmp_path, made, monkeypatch):
    cache, measured = tmp_path / "graph-mean.hnsw", []
    monkeypatch.setattr(
        approximate,
        "measured",
        lambda index, graph, of=approximate.measured: measured.append(len(index)) or of(index, graph),
    )
    approximate.approximate(index_of(VECTORS[:600]), cache)
    (first,) = stored(tmp_path)
    assert first.startswith("graph-mean-600-")
    assert (made.begun, made.added) == (1, 600)
    grown = approximate.approximate(index_of(VECTORS[:900]), cache)
    assert (made.begun, made.added) == (1, 900), "300 more, and no new graph"
    assert (grown.graph.ntotal, measured) == (900, [600, 900])
    (second,) = stored(tmp_path)
    assert second.startswith("graph-mean-900-")
    agrees(grown, VECTORS, torch.cat([VECTORS[880:] + 0.01, VECTORS[:20] + 0.01]))
    again = approximate.approximate(index_of(VECTORS), cache)
    assert (made.begun, made.added) == (1, 900), "read as it is"
    assert again.recall == grown.recall
    # as good as one that is made at once
    whole = approximate.approximate(index_of(VECTORS))
    assert grown.recall.value == pytest.approx(whole.recall.value, abs=0.03)


@pytest.mark.parametrize("what", ["first gone", "last gone", "one changed", "order", "other width"])
def test_anything_but_growth_is_made_anew(tmp_path, made, what):
    cache = tmp_path / "graph-mean.hnsw"
    approximate.approximate(index_of(VECTORS[:400]), cache)
    changed = VECTORS[:500].clone()
    changed[7] += 1e-6
    other = {
        "first gone": VECTORS[1:500],
        "last gone": VECTORS[:399],
        "one changed": changed,
        "order": VECTORS[:500].flip(0),
        "other width": VECTORS[:500, :20].contiguous(),
    }[what]
    found = approximate.approximate(index_of(other), cache)
    assert (made.begun, made.added) == (2, 400 + len(other))
    assert len(stored(tmp_path)) == 1, "the old graph is gone"
    agrees(found, other, other[:20] + 0.01)


def test_a_write_that_fails_leaves_the_old_graph_and_a_damaged_one_is_made_anew(tmp_path, made, monkeypatch):
    cache = tmp_path / "graph-mean.hnsw"
    approximate.approximate(index_of(VECTORS[:400]), cache)
    (old,) = stored(tmp_path)

    def broken(graph, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("disk full")

    with monkeypatch.context() as patch:
        known = approximate._faiss()
        known.write_index = broken
        patch.setattr(approximate, "_faiss", lambda: known)
        said: list[str] = []
        found = approximate.approximate(index_of(VECTORS[:500]), cache, say=said.append)
        assert said == ["the graph cannot be stored, so the next search makes it again (disk full)"]
        agrees(found, VECTORS[:500], VECTORS[:20] + 0.01)
    assert [path.name for path in tmp_path.iterdir()] == [old]
    agrees(approximate.approximate(index_of(VECTORS[:500]), cache), VECTORS[:500], VECTORS[:20] + 0.01)
    assert made.begun == 1, "the old one was there to be added to"
    (place,) = tmp_path.iterdir()
    place.write_bytes(place.read_bytes()[:1000])
    agrees(approximate.approximate(index_of(VECTORS[:500]), cache), VECTORS[:500], VECTORS[:20] + 0.01)
    assert made.begun == 2
    # two of them, as a kill between writing the new one and removing the old one leaves it: the larger is taken
    approximate.approximate(index_of(VECTORS[:300]), tmp_path / "aside" / "graph-mean.hnsw")
    (aside,) = (tmp_path / "aside").iterdir()
    aside.rename(tmp_path / aside.name)
    before = made.added
    assert approximate.approximate(index_of(VECTORS[:510]), cache).graph.ntotal == 510
    assert made.added == before + 10
    assert len(stored(tmp_path)) == 1
    # graphs of other vectors, and what only looks like one, are left alone
    for name in ("graph-mean-max-12-" + "a" * 16, "graph-mean-notes", "graph-max-12-" + "a" * 16):
        (tmp_path / f"{name}.hnsw").write_bytes(b"")
    approximate.approximate(index_of(VECTORS[:520]), cache)
    assert len(stored(tmp_path)) == 4


def test_a_folder_of_embeddings_that_grows_and_shrinks(tmp_path, made):
    (tmp_path / "parts").mkdir()
    files.write_json(
        tmp_path / "card.json",
        {"model": {"architecture": "x"}, "settings": {"vectors": ["mean"]}},
    )

    def put(first, last):
        rows = [Row(f"s{i}", "d", "mean") for i in range(first, last)]
        parts.write(tmp_path, rows, VECTORS[first:last].numpy())

    def searched():
        return approximate.approximate(embed.load_index(tmp_path), tmp_path / "graph-mean.hnsw")

    put(0, 300)
    searched()
    put(300, 420)
    found = searched()
    assert (made.begun, made.added) == (1, 420)
    agrees(found, VECTORS[:420], VECTORS[400:420] + 0.01)
    folders.remove(tmp_path, ["s5"])
    found = searched()
    assert (made.begun, found.graph.ntotal) == (2, 419)
    assert "s5" not in {n.id for n in found.nearest(VECTORS[5], 10)}


def test_a_graph_that_grows_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr(approximate, "SAY_S", 0.0)
    monkeypatch.setattr(approximate, "ADDED", 400)
    said = []
    searched = approximate.chosen(index_of(VECTORS), "hnsw", say=said.append)
    assert [line.partition(",")[0] for line in said] == [f"graph: {n} of 900 vectors" for n in (400, 800, 900)]
    assert searched.recall.value > 0.95


@pytest.mark.parametrize(
    ("reason", "said"), [("No space left on device", "the disk is full"), ("Input/output error", "Input/output error")]
)
def test_a_graph_that_cannot_be_stored_answers_all_the_same(tmp_path, monkeypatch, reason, said):
    """faiss tells a full disk by a RuntimeError; minutes of work must not be lost by it."""

    def full(graph, place):
        raise RuntimeError(f"Error: 'ret == (1)' failed: write error in {place}: 0 != 1 ({reason})")

    monkeypatch.setattr(faiss, "write_index", full)
    heard = []
    searched = approximate.chosen(index_of(VECTORS), "hnsw", tmp_path / "graph.hnsw", say=heard.append)
    assert heard == [f"the graph cannot be stored, so the next search makes it again ({said})"]
    assert searched.nearest(VECTORS[3], 1, without=["s3"]) == index_of(VECTORS).nearest(VECTORS[3], 1, without=["s3"])
    assert not list(tmp_path.iterdir())
