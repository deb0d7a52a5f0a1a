"""Measures of retrieval against literal loops, scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import average_precision_score

from ctfoundry.keys import Key
from ctfoundry.retrieval import fusion, measures


def cases(q: int = 30, n: int = 80, c: int = 6, classes: int = 4):
    key = Key.of("measures")
    vectors = key("q").normal((q, c)), key("n").normal((n, c)) * key("length").uniform(0.1, 3, (n, 1))
    labels = key("ql").integers(0, classes, q).tolist(), key("nl").integers(0, classes, n).tolist()
    return *vectors, *labels


def notebook(hits: list[bool]) -> tuple[float, float, float]:
    """AP, HR and F1 of one query as the notebook counts them, word by word (ct-fm.md 7.3)."""
    found, total = 0, 0.0
    for i, hit in enumerate(hits, 1):
        if hit:
            found += 1
            total += found / i
    ap = total / found if found else 0.0
    hr = 1.0 if found else 0.0
    return ap, hr, 2 * ap * hr / (ap + hr) if ap + hr else 0.0


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_organ_mnist_is_the_notebook(distance):
    queries, gallery, ql, nl = cases()
    found = measures.organ_mnist(queries, gallery, ql, nl, [f"p{i}" for i in range(len(ql))], distance=distance)
    far = cdist(queries, gallery, distance)
    for k in (3, 5, 10):
        rows = [notebook([nl[j] == y for j in np.argsort(row)[:k]]) for row, y in zip(far, ql, strict=True)]
        for name, value in zip(("AP", "HR", "F1"), np.mean(rows, 0), strict=True):
            (score,) = [s for s in found if s.name == f"{name}@{k}"]
            assert score.interval.value == pytest.approx(value, abs=1e-12)
            assert score.interval.low <= value <= score.interval.high
            assert score.distance == distance


def test_the_two_distances_rank_differently():
    queries, gallery, ql, nl = cases()
    orders = [measures.ranked(queries, gallery, ql, nl, 10, d).order for d in ("euclidean", "cosine")]
    assert (orders[0] != orders[1]).any()


def test_mir_is_scikit_learn_within_cohorts():
    queries, gallery, ql, nl = cases()
    own = ["liver" if i % 2 else "lung" for i in range(len(ql))]
    theirs = ["liver" if i % 3 else "lung" for i in range(len(nl))]
    found = measures.mir_3d(queries, gallery, ql, nl, own, cohorts=(own, theirs))
    far = cdist(queries, gallery, "cosine")
    rows = []
    for i, y in enumerate(ql):
        order = [j for j in np.argsort(far[i]) if theirs[j] == own[i]][:10]
        hits = [nl[j] == y for j in order]
        ap = average_precision_score(hits, range(10, 0, -1)) if any(hits) else 0.0
        rows.append([np.mean(hits[:3]), np.mean(hits[:5]), np.mean(hits), ap])
    for name, value in zip(("P@3", "P@5", "P@10", "AP@10"), np.mean(rows, 0), strict=True):
        assert next(s for s in found if s.name == name).interval.value == pytest.approx(value, abs=1e-12)
    assert all(s.interval.low is None for s in found), "two patients give no interval"


def test_a_small_cohort_is_refused():
    queries, gallery, ql, nl = cases(n=9)
    with pytest.raises(ValueError, match="ten are retrieved"):
        measures.mir_3d(queries, gallery, ql, nl, ["p"] * len(ql))


def test_patients_are_what_is_drawn():
    hits = np.zeros((40, 1), bool)
    hits[:20] = True
    found = measures.Ranked(np.zeros((40, 1), int), hits, "cosine")
    alone = measures.scored(found, [("P", 1)], [str(i) for i in range(40)])[0].interval
    few = measures.scored(found, [("P", 1)], [str(i // 10) for i in range(40)])[0].interval
    assert alone.value == few.value == 0.5
    assert few.high - few.low > 1.5 * (alone.high - alone.low)


def test_staged_fuses_rankings():
    queries, gallery, ql, nl = cases(q=12, n=20)
    other = gallery[:, ::-1].copy(), queries[:, ::-1].copy() + 0.3
    found = measures.staged([queries, other[1]], [gallery, other[0]], ql, nl, [str(i) for i in range(12)], k=20)
    far = [cdist(queries, gallery, "cosine"), cdist(other[1], other[0], "cosine")]
    aps, hits_3 = [], []
    for i, y in enumerate(ql):
        score = np.zeros(20)
        for matrix in far:
            for rank, j in enumerate(np.argsort(matrix[i])):
                score[j] += 1 / (20 + rank)
        order = np.argsort(-score, kind="stable")
        aps.append(average_precision_score([nl[j] == y for j in order], range(20, 0, -1)) if y in nl else 0.0)
        hits_3.append(any(nl[j] == y for j in order[:3]))
    values = {s.name: s.interval.value for s in found}
    assert values["AP@20"] == pytest.approx(np.mean(aps), abs=1e-12)
    assert values["HR@3"] == pytest.approx(np.mean(hits_3), abs=1e-12)


def test_fusion_by_hand():
    fused = fusion.fuse([["a", "b", "c"], ["b", "d"]])
    assert fused == [("b", 1 / 62 + 1 / 61), ("a", 1 / 61), ("d", 1 / 62), ("c", 1 / 63)]
    assert fusion.fuse([["a"]], k=20, first=0) == [("a", 1 / 20)]
    with pytest.raises(ValueError, match="twice"):
        fusion.fuse([["a", "a"]])
