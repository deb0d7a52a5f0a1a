"""Exact search against brute force in float64, with every kind of data that could make a half-precision pass lose a neighbour."""

from __future__ import annotations

import errno
import itertools

import numpy as np
import pytest
import torch

from ctfoundry.errors import StoreError, UsageError
from ctfoundry.keys import Key
from ctfoundry.retrieval import index as indices
from ctfoundry.retrieval import matrix, parts
from ctfoundry.retrieval.index import Index

N, C = 1500, 40


@pytest.fixture(params=["few rows", "many rows"])
def _both_ways(request, monkeypatch) -> None:
    if request.param == "many rows":
        monkeypatch.setattr(indices, "SMALL", 0)


def data(kind: str) -> np.ndarray:
    key = Key.of("index", kind)
    noise = key("noise").normal((N, C))
    if kind == "random":
        found = noise
    elif kind == "alike":  # as pooled features of CTs are: a common direction, cosines above 0.99
        found = 10 * np.abs(key("common").normal((1, C))) + 0.3 * noise
    elif kind == "near ties":  # differ in what bfloat16 cannot hold
        found = key("one").normal((1, C)) + 1e-5 * noise
    elif kind == "ties":
        found = noise[key("which").integers(0, 50, N)]
    elif kind == "lengths":
        found = noise * 10.0 ** key("length").uniform(-12, 12, (N, 1))
    elif kind == "clusters":
        found = key("centres").normal((20, C))[key("which").integers(0, 20, N)] + 1e-3 * noise
    elif kind == "one direction":
        found = np.ones((N, 1)) * key("one").normal((1, C))
    else:
        found = np.maximum(noise, 0)
        found[::7] = 0  # no direction at all
    return found.astype(np.float32)


def brute(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    rows, q = vectors.astype(np.float64), query.astype(np.float64)
    norms = np.sqrt((rows**2).sum(1))
    return (rows * (q / np.sqrt((q**2).sum()))).sum(1) / np.where(norms > 0, norms, 1)


KINDS = ("random", "alike", "near ties", "ties", "lengths", "clusters", "one direction", "zeros")


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", ["rows", "others", "opposite"])
def test_no_neighbour_is_lost(kind, asked):
    vectors = data(kind)
    index = Index.of([str(i) for i in range(N)], torch.from_numpy(vectors))
    key = Key.of("queries", kind)
    if asked == "others":
        queries = key.normal((9, C)).astype(np.float32)
    else:
        queries = vectors[[i for i in key.integers(0, N, 200) if vectors[i].any()][:9]]
        queries = -queries if asked == "opposite" else queries
    for together in (torch.from_numpy(queries), *torch.from_numpy(queries)[:3, None]):
        for query, (rows, scores) in zip(together.numpy(), index.top(together, 17), strict=True):
            expected = brute(vectors, query)
            order = np.argsort(-expected, kind="stable")[:17]
            # the same similarities, to the last bits that the order of a sum may change
            np.testing.assert_allclose(scores, expected[order], atol=1e-14, rtol=0)
            np.testing.assert_allclose(expected[rows], expected[order], atol=1e-14, rtol=0)
            assert (np.diff(scores) <= 0).all()
            for a, b in itertools.pairwise(rows):
                assert a < b or (vectors[a] != vectors[b]).any(), "equal rows keep their order"


def test_what_the_pass_may_be_wrong_by_bounds_what_it_is_wrong_by():
    for kind in KINDS:
        vectors = data(kind)
        index = Index.of([str(i) for i in range(N)], torch.from_numpy(vectors))
        queries = torch.nn.functional.normalize(torch.from_numpy(Key.of("slack", kind).normal((5, C))), dim=1)
        asked, slack = index._asked(queries)
        for passed in (torch.stack([torch.mv(index.matrix.half, q) for q in asked]), asked @ index.matrix.half.T):
            centre = torch.from_numpy(index.matrix.centre)
            exact = np.stack([brute(vectors, q) for q in queries.numpy()]) - (queries @ centre).numpy()[:, None]
            wrong = np.abs(passed.double().numpy() - exact)
            allowed = slack.numpy()[:, None] + 2.0**-8 * 1.01 * np.abs(passed.double().numpy())
            assert (wrong <= allowed).all(), kind


def test_few_of_alike_vectors_need_a_second_look():
    vectors = data("alike")
    index = Index.of([str(i) for i in range(N)], torch.from_numpy(vectors))
    (places,) = index._candidates(torch.nn.functional.normalize(torch.from_numpy(vectors[:1]).double()), 10, [])
    assert len(places) < N / 10, "without the centre nearly all would be left"


@pytest.mark.usefixtures("_both_ways")
def test_left_out_and_chosen_ids():
    vectors = data("random")
    index = Index.of([str(i) for i in range(N)], torch.from_numpy(vectors))
    query = torch.from_numpy(vectors[5])
    expected = [str(i) for i in np.argsort(-brute(vectors, vectors[5]), kind="stable")]
    gone = expected[:3]
    assert [n.id for n in index.nearest(query, 4, without=gone)] == expected[3:7]
    few, many = set(expected[10:1000:50]), set(expected[::2])
    for within in (few, many):
        chosen = [id for id in expected if id in within and id != expected[10]]
        assert [n.id for n in index.nearest(query, 5, within=within, without=[expected[10]])] == chosen[:5]
    assert len(index.nearest(query, 10**6)) == N
    assert index.nearest(query, 3, within=set()) == []
    assert index.nearest(query, 3, within={"unknown"}) == []


@pytest.mark.usefixtures("_both_ways")
def test_a_scan_counts_by_its_best_row():
    vectors = data("clusters")
    ids = [f"s{i // 100}" for i in range(N)]
    index = Index.of(ids, torch.from_numpy(vectors))
    scores = brute(vectors, vectors[0])
    best = {id: max(scores[i] for i in range(N) if ids[i] == id) for id in set(ids)}
    expected = sorted(best, key=lambda id: (-best[id], int(id[1:])))
    assert [n.id for n in index.nearest(torch.from_numpy(vectors[0]), 12)] == expected[:12]
    assert len(index.nearest(torch.from_numpy(vectors[0]), 99)) == 15


def test_wrong_queries_are_refused():
    index = Index.of(["a"], torch.ones(1, 4))
    with pytest.raises(UsageError, match="of 4 numbers"):
        index.nearest(torch.ones(5))
    with pytest.raises(UsageError, match="not finite"):
        index.nearest(torch.tensor([1.0, float("nan"), 0, 0]))
    assert Index.of([], torch.zeros(0, 4)).nearest(torch.ones(4)) == []


@pytest.mark.parametrize("order", [(4, 6), (6, 4)])
def test_parts_of_two_models_are_named(tmp_path, order):
    """A part that somebody copied in from another folder, before the first query."""
    (tmp_path / "parts").mkdir()
    names = [
        parts.write(tmp_path, [parts.Row(f"s{i}", "d", "mean")], np.ones((1, width))) for i, width in enumerate(order)
    ]
    with pytest.raises(StoreError, match=f"{names[1]}: its vectors have {order[1]} numbers, the others {order[0]}"):
        matrix.open_matrix(tmp_path, "mean")


def test_a_full_disk_takes_no_search(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    parts.write(tmp_path, [parts.Row(f"s{i}", "d", "mean") for i in range(3)], np.eye(3))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(matrix.os, "fsync", full)
        found = matrix.open_matrix(tmp_path, "mean")
    assert found.raw.tolist() == np.eye(3).tolist()
    assert [id for id, _, _ in found.scans] == ["s0", "s1", "s2"]
    assert not list(tmp_path.glob("matrix-*"))  # nothing half made takes what little room there is
    assert matrix.open_matrix(tmp_path, "mean").raw.tolist() == np.eye(3).tolist()
    assert (tmp_path / "matrix-mean.json").is_file()
