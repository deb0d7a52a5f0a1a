"""How good a ranking is, as the papers' code counts it, with intervals over patients.

`organ_mnist`: CT-FM's retrieval on OrganMNIST3D. `mir_3d`: its retrieval on 3D-MIR. `staged`: FlexiCT's retrieval by stage or
grade. Each takes vectors and labels of queries and gallery; definitions and where paper and code differ stand at each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ctfoundry import stats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

Distance = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class Ranked:
    """Rankings of queries.

    Attributes
    ----------
    order : places in the gallery, nearest first, (queries, k); equal distances in the order of the gallery.
    hits : whether each of them has the query's label.
    distance : what they are ranked by.
    """

    order: Int64[np.ndarray, "queries k"]
    hits: Bool[np.ndarray, "queries k"]
    distance: Distance


def ranked(
    queries: Float[np.ndarray, "q c"],
    gallery: Float[np.ndarray, "n c"],
    query_labels: Sequence[object],
    gallery_labels: Sequence[object],
    k: int | None = None,
    distance: Distance = "cosine",
) -> Ranked:
    """The `k` nearest of the gallery (default: all of it) for each query, in float64.

    distance : ``euclidean`` between vectors as they are, or ``cosine`` (1 minus the cosine).
    """
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f"distance is 'euclidean' or 'cosine', not {distance!r}")
    if len(queries) != len(query_labels) or len(gallery) != len(gallery_labels):
        raise ValueError("one label for each vector")
    if not len(gallery):
        raise ValueError("an empty gallery")
    asked, known = queries.astype(np.float64), gallery.astype(np.float64)
    if distance == "cosine":
        asked, known = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300) for v in (asked, known))
    k = min(k or len(gallery), len(gallery))
    order = np.empty((len(asked), k), np.int64)
    for i, query in enumerate(asked):
        far = ((known - query) ** 2).sum(1) if distance == "euclidean" else -(known * query).sum(1)
        order[i] = np.argsort(far, kind="stable")[:k]
    labels = np.array(gallery_labels, dtype=object)
    wanted = np.array(query_labels, dtype=object)
    hits = (labels[order] == wanted[:, None]).astype(bool) if len(order) else np.zeros((0, k), bool)
    return Ranked(order, hits, distance)


def average_precision(hits: Bool[np.ndarray, "q k"], k: int) -> Float[np.ndarray, "q"]:
    """AP at k: mean over the hits among the first k of (hits so far / rank); 0 without a hit.

    Divided by the hits that were found, so what is missing beyond k costs nothing. That is what CT-FM's OrganMNIST3D notebook
    counts, and what scikit-learn's `average_precision_score` gives for k retrieved items with falling scores (3D-MIR).
    """
    some = hits[:, :k].astype(np.float64)
    precision = np.cumsum(some, 1) / np.arange(1, some.shape[1] + 1)
    found = some.sum(1)
    return np.asarray((precision * some).sum(1) / np.where(found > 0, found, 1.0))


def hit_rate(hits: Bool[np.ndarray, "q k"], k: int) -> Float[np.ndarray, "q"]:
    """1 where any of the first k is a hit, else 0 (HR at k; FlexiCT calls it Recall at k)."""
    return np.asarray(hits[:, :k].any(1), dtype=np.float64)


def f1(hits: Bool[np.ndarray, "q k"], k: int) -> Float[np.ndarray, "q"]:
    """Harmonic mean of a query's AP at k and HR at k; 0 where both are. (CT-FM's notebook; no F1 of labels.)"""
    precision, rate = average_precision(hits, k), hit_rate(hits, k)
    total = precision + rate
    return np.asarray(2 * precision * rate / np.where(total > 0, total, 1.0))


def precision(hits: Bool[np.ndarray, "q k"], k: int) -> Float[np.ndarray, "q"]:
    """Share of hits among the first k; where fewer were retrieved, among those."""
    return np.asarray(hits[:, :k].astype(np.float64).mean(1))


MEASURES: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "AP": average_precision,
    "HR": hit_rate,
    "F1": f1,
    "P": precision,
}


@dataclass(frozen=True)
class Score:
    """One number of a protocol: ``AP@5`` with its interval over the queries' patients, and the distance it was ranked by."""

    name: str
    interval: stats.Interval
    distance: Distance


def scored(found: Ranked, wanted: Sequence[tuple[str, int]], patients: Sequence[str], *, seed: int = 0) -> list[Score]:
    """Means over queries of measures (name in `MEASURES`, k), with bootstrap intervals over the patients of the queries.

    `value` is the mean over queries, as the papers have it; draws are of patients, who bring all their queries. Repeats draw
    from the queries alone: the gallery is given.
    """
    if len(patients) != len(found.hits):
        raise ValueError("one patient for each query")
    names = sorted(set(patients))
    place = {name: i for i, name in enumerate(names)}
    owner = np.array([place[p] for p in patients])
    scores = []
    for name, k in wanted:
        each = MEASURES[name](found.hits, k)

        def mean(weight: np.ndarray, each: np.ndarray = each) -> float:
            counted = weight[owner]
            return float((counted * each).sum() / counted.sum())

        interval = stats.resampled(len(names), mean, len(each), seed=seed)
        scores.append(Score(f"{name}@{k}", interval, found.distance))
    return scores


def organ_mnist(
    queries: Float[np.ndarray, "q c"],
    gallery: Float[np.ndarray, "n c"],
    query_labels: Sequence[object],
    gallery_labels: Sequence[object],
    patients: Sequence[str],
    *,
    distance: Distance = "euclidean",
    seed: int = 0,
) -> list[Score]:
    """CT-FM on OrganMNIST3D: AP, HR and F1 at 3, 5 and 10; gallery is the training split, queries validation and test.

    The published notebook ranks by Euclidean distance between vectors as they are; the paper says cosine. The default is the
    notebook's, since the published numbers come from it.
    """
    found = ranked(queries, gallery, query_labels, gallery_labels, 10, distance)
    return scored(found, [(m, k) for m in ("AP", "HR", "F1") for k in (3, 5, 10)], patients, seed=seed)


def mir_3d(
    queries: Float[np.ndarray, "q c"],
    gallery: Float[np.ndarray, "n c"],
    query_labels: Sequence[object],
    gallery_labels: Sequence[object],
    patients: Sequence[str],
    *,
    cohorts: tuple[Sequence[str], Sequence[str]] | None = None,
    seed: int = 0,
) -> list[Score]:
    """CT-FM on 3D-MIR: precision at 3, 5 and 10, and AP over the ten retrieved, by cosine distance.

    cohorts : of queries and of the gallery; a query is ranked against its own cohort alone. A neighbour counts when its label
    equals the query's, "no lesion" too. The scan's vector there is ``windows:min`` (`retrieval.embed`).
    """
    own, theirs = cohorts or ([""] * len(queries), [""] * len(gallery))
    hits = np.zeros((len(queries), 10), bool)
    order = np.full((len(queries), 10), -1)
    for cohort in sorted(set(own)):
        asked = [i for i, c in enumerate(own) if c == cohort]
        among = np.array([i for i, c in enumerate(theirs) if c == cohort])
        if len(among) < 10:
            raise ValueError(f"the gallery of cohort {cohort!r} has {len(among)} scans; ten are retrieved")
        found = ranked(
            queries[asked], gallery[among], [query_labels[i] for i in asked], [gallery_labels[i] for i in among], 10
        )
        hits[asked], order[asked] = found.hits, among[found.order]
    return scored(Ranked(order, hits, "cosine"), [("P", 3), ("P", 5), ("P", 10), ("AP", 10)], patients, seed=seed)


def staged(
    queries: Sequence[Float[np.ndarray, "q c"]],
    gallery: Sequence[Float[np.ndarray, "n c"]],
    query_labels: Sequence[object],
    gallery_labels: Sequence[object],
    patients: Sequence[str],
    *,
    k: float = 60.0,
    seed: int = 0,
) -> list[Score]:
    """FlexiCT's retrieval of tumours by stage or grade: HR and precision at 1, 3 and 5, AP over the whole ranking.

    Several vectors a case (crops of several sizes) are ranked by cosine each and fused: sum of ``1 / (k + rank)``, rank from 0;
    `k` is 60 for lung stages (RADIO), 20 for kidney grades (C4KC-KiTS).
    """
    if not queries or len(queries) != len(gallery):
        raise ValueError("the same kinds of vectors for queries and gallery")
    count = len(gallery[0])
    total = np.zeros((len(queries[0]), count))
    for asked, known in zip(queries, gallery, strict=True):
        order = ranked(asked, known, query_labels, gallery_labels).order
        np.put_along_axis(total, order, np.take_along_axis(total, order, 1) + 1 / (k + np.arange(count)), 1)
    order = np.argsort(-total, axis=1, kind="stable")
    labels = np.array(gallery_labels, dtype=object)
    hits = (labels[order] == np.array(query_labels, dtype=object)[:, None]).astype(bool)
    wanted = [(m, at) for m in ("HR", "P") for at in (1, 3, 5)] + [("AP", count)]
    return scored(Ranked(order, hits, "cosine"), wanted, patients, seed=seed)
