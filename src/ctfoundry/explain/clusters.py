"""Do scans with one label lie together? Measured among the vectors themselves; maps in two dimensions are for the eye only.

A map by t-SNE or UMAP makes clusters of noise as well, and distances between clusters mean nothing in it. Silhouette and purity
are therefore taken in the embedding space, by cosine, and never count two scans of one patient as alike (leave one patient out).
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ctfoundry import stats
from ctfoundry.errors import UsageError
from ctfoundry.keys import Key
from ctfoundry.settings import nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64

MOST = 5000
"""Points that are measured and drawn; of more, a seeded sample."""
PERMUTATIONS = 200
Method = Literal["t-SNE", "UMAP"]


@dataclass(frozen=True, eq=False)
class Points:
    """Vectors (n, c) with the id, label and patient of each."""

    ids: Sequence[str]
    vectors: Float[np.ndarray, "n c"]
    labels: Sequence[str]
    patients: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def people(self) -> str:
        """How many patients, in words: where the table names none, that they are not known."""
        if list(self.ids) == list(self.patients):
            return (
                f"{len(set(self.ids))} scans, each taken for a patient of its own, because the table names no patients"
            )
        return f"{len(set(self.patients))} patients"


@dataclass(frozen=True)
class Score:
    """A measure with its interval over patients, and what the same measure gives when labels are dealt out anew.

    Attributes
    ----------
    name : ``silhouette`` or ``purity@k``.
    interval : mean over patients.
    null, null_high : mean and 95 % quantile over permutations.
    p : share of permutations that reach the value, the value itself counted as one of them.
    left_out : points whose label no other patient has.
    """

    name: str
    interval: stats.Interval
    null: float
    null_high: float
    p: float
    left_out: int


def read_labels(table: Path, column: str = "label") -> dict[str, tuple[str, str]]:
    """Id to (label, patient) of a CSV with the columns ``id``, `column`, and ``patient`` where it has one.

    Commas, semicolons or tabs part the columns. Without patients each scan is its own. Rows with an empty label are left out.
    Raises UsageError for other tables and for an id with two labels.
    """
    found: dict[str, tuple[str, str]] = {}
    try:
        with open(table, newline="", encoding="utf-8-sig") as stream:
            head = stream.readline()
            stream.seek(0)
            # what spreadsheets write where a comma parts whole numbers from fractions
            rows = csv.DictReader(stream, delimiter=max(",;\t", key=head.count))
            for name in ("id", column):
                if name not in (rows.fieldnames or ()):
                    raise UsageError(f"has no column {name!r}; {nearest(name, rows.fieldnames or ())}", where=table)
            for row in rows:
                id, label = (row["id"] or "").strip(), (row[column] or "").strip()
                if not id or not label:
                    continue
                new = label, (row.get("patient") or "").strip() or id
                if found.setdefault(id, new) != new:
                    raise UsageError(f"gives {id!r} two labels or patients", where=table)
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", where=table) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"is no CSV in UTF-8 ({error})", where=table, do="save it as CSV, UTF-8") from error
    return found


def chosen(
    ids: Sequence[str], vectors: Float[np.ndarray, "n c"], known: Mapping[str, tuple[str, str]], *, seed: int = 0
) -> Points:
    """The points that have a label, at most `MOST` of them, in the order of ids. Raises UsageError for fewer than three."""
    rows = [i for i, id in enumerate(ids) if id in known]
    if len(rows) < 3:
        raise UsageError(
            f"{len(rows)} of {len(ids)} vectors have a label, three are needed",
            do="the table's ids are those of `embed`; beside file names: `ctfoundry embeddings export OUT csv --names`",
        )
    rows.sort(key=lambda i: (ids[i], i))
    if len(rows) > MOST:
        rows = [rows[i] for i in np.sort(Key.of("clusters", seed).permutation(len(rows))[:MOST])]
    return Points(
        [ids[i] for i in rows],
        vectors[rows],
        [known[ids[i]][0] for i in rows],
        [known[ids[i]][1] for i in rows],
    )


def silhouette(points: Points, labels: Sequence[str] | None = None) -> Float64[np.ndarray, "n"]:
    """Silhouette (Rousseeuw 1987) of each point by cosine distance, other patients' points only; NaN where a label has none.

    Where each patient has one point this is scikit-learn's `silhouette_samples`.
    """
    own, groups = _numbers(points.labels if labels is None else labels)
    person, people = _numbers(points.patients)
    unit = _unit(points.vectors)
    # a mean cosine distance to a group is one minus the cosine with the group's summed unit vectors over their number
    sums, counts = np.zeros((groups, unit.shape[1])), np.zeros(groups)
    np.add.at(sums, own, unit)
    np.add.at(counts, own, 1)
    pair = person * groups + own
    mine, mine_of = np.unique(pair, return_inverse=True)
    part, number = np.zeros((len(mine), unit.shape[1])), np.zeros(len(mine))
    np.add.at(part, mine_of, unit)
    np.add.at(number, mine_of, 1)
    total, left = unit @ sums.T, np.tile(counts, (len(unit), 1))
    held: list[list[int]] = [[] for _ in range(people)]
    for k, code in enumerate(mine.tolist()):
        held[code // groups].append(k)
    for who in range(people):  # take the patient's own points out of every group
        rows = np.flatnonzero(person == who)
        for k in held[who]:
            group = mine[k] % groups
            total[rows, group] -= unit[rows] @ part[k]
            left[rows, group] -= number[k]
    with np.errstate(divide="ignore", invalid="ignore"):
        far = np.where(left > 0.5, 1 - total / left, np.nan)
    inner = far[np.arange(len(unit)), own].copy()
    far[np.arange(len(unit)), own] = np.inf
    outer = np.where(np.isnan(far), np.inf, far).min(1)
    outer[~np.isfinite(outer)] = np.nan
    widest = np.maximum(inner, outer)
    with np.errstate(invalid="ignore"):
        return np.where(
            widest > 0, (outer - inner) / np.where(widest > 0, widest, 1.0), np.where(np.isnan(widest), np.nan, 0.0)
        )


def neighbours(points: Points, k: int) -> Int64[np.ndarray, "n k"]:
    """The `k` nearest points of other patients by cosine, nearest first; -1 where there are fewer."""
    unit = _unit(points.vectors)
    person, _ = _numbers(points.patients)
    found = np.full((len(unit), k), -1, np.int64)
    for start in range(0, len(unit), 512):
        near = unit[start : start + 512] @ unit.T
        near[person[start : start + 512, None] == person] = -np.inf
        order = np.argsort(-near, axis=1, kind="stable")[:, :k]
        other = np.take_along_axis(near, order, axis=1) > -np.inf
        found[start : start + 512, : order.shape[1]] = np.where(other, order, -1)
    return found


def purity(
    points: Points, k: int, labels: Sequence[str] | None = None, near: Int64[np.ndarray, "n k"] | None = None
) -> Float64[np.ndarray, "n"]:
    """Share of each point's `k` nearest points of other patients that have its label; NaN where no other patient has it."""
    own, groups = _numbers(points.labels if labels is None else labels)
    person, _ = _numbers(points.patients)
    near = neighbours(points, k) if near is None else near
    same = (own[near] == own[:, None]) & (near >= 0)
    share = same.sum(1) / np.maximum((near >= 0).sum(1), 1)
    pairs = np.unique(np.stack([own, person]), axis=1)
    owners = np.bincount(pairs[0], minlength=groups)
    return np.where(owners[own] > 1, share, np.nan)


def measure(
    points: Points, k: int = 5, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> tuple[dict[str, Score], dict[str, Float64[np.ndarray, "n"]]]:
    """Silhouette and purity with intervals and permutation baselines, and the value of each point.

    Where a patient has one label, labels are dealt out to patients, else to points. Raises UsageError for fewer than two labels
    and where no label belongs to two patients.
    """
    if len(set(points.labels)) < 2:
        raise UsageError("all vectors have one label, two are needed")
    near = neighbours(points, k)
    measures: dict[str, Callable[[Sequence[str]], np.ndarray]] = {
        "silhouette": lambda labels: silhouette(points, labels),
        f"purity@{k}": lambda labels: purity(points, k, labels, near),
    }
    scores, values = {}, {}
    for name, each in measures.items():
        found = each(points.labels)
        if np.isnan(found).all():
            raise UsageError(
                "no label belongs to two patients", do="give a patient column with more than one patient a label"
            )
        null = [_mean(points, each(dealt)) for dealt in dealt_out(points, permutations, seed)]
        null = [v for v in null if np.isfinite(v)]
        interval = stats.mean(_by_patient(points, found), seed=seed)
        reached = sum(v >= interval.value - 1e-12 for v in null)
        high = float(np.quantile(null, 0.95)) if null else float("nan")
        scores[name] = Score(
            name,
            interval,
            float(np.mean(null)) if null else float("nan"),
            high,
            (1 + reached) / (1 + len(null)),
            int(np.isnan(found).sum()),
        )
        values[name] = found
    return scores, values


def difference(
    points: Points, ours: Float64[np.ndarray, "n"], other: Float64[np.ndarray, "n"], *, seed: int = 0
) -> stats.Interval:
    """Paired difference of a measure of two encoders on the same points."""
    return stats.difference(_by_patient(points, ours), _by_patient(points, other), seed=seed)


def dealt_out(points: Points, count: int, seed: int) -> list[list[str]]:
    """Labels dealt out anew `count` times: among patients where each has one label, else among points."""
    key = Key.of("permuted labels", seed)
    of: dict[str, set[str]] = {}
    for label, patient in zip(points.labels, points.patients, strict=True):
        of.setdefault(patient, set()).add(label)
    if any(len(group) > 1 for group in of.values()):
        return [[points.labels[j] for j in key(i).permutation(len(points))] for i in range(count)]
    people = sorted(of)
    own = [next(iter(of[p])) for p in people]
    dealt = []
    for i in range(count):
        table = {people[a]: own[b] for a, b in enumerate(key(i).permutation(len(people)))}
        dealt.append([table[p] for p in points.patients])
    return dealt


def project(points: Points, method: Method, size: float, *, seed: int = 0) -> Float64[np.ndarray, "n 2"]:
    """A map in two dimensions, within -1..1: t-SNE (`size` is the perplexity) or UMAP (the number of neighbours), by cosine.

    Raises UsageError where there are too few points for `size`, and where the package is missing.
    """
    if not 1 < size < len(points):
        what = "perplexity" if method == "t-SNE" else "number of neighbours"
        raise UsageError(f"a {what} of {size:g} for {len(points)} points", do="give one between 1 and their number")
    unit = _unit(points.vectors)
    number = Key.of("map", seed).seed() % 2**32
    if method == "t-SNE":
        try:
            from sklearn.manifold import TSNE
            from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]
        except ImportError as error:
            raise UsageError("t-SNE needs scikit-learn", do="pip install 'ctfoundry[maps]'") from error
        # squared Euclidean distances of unit vectors are twice their cosine distances
        with threadpool_limits(1):  # sums of several threads come in any order
            found = TSNE(2, perplexity=size, init="pca", random_state=number, n_jobs=1).fit_transform(unit)
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ImportWarning)  # that Tensorflow, which we do not use, is missing
                import umap
        except ImportError as error:
            raise UsageError("UMAP needs umap-learn", do="pip install 'ctfoundry[umap]'") from error
        start = "random" if len(points) < 16 else "spectral"  # too few for its eigenvectors
        reducer = umap.UMAP(n_neighbors=int(size), metric="cosine", init=start, random_state=number % 2**31, n_jobs=1)
        found = reducer.fit_transform(unit.astype(np.float32))
    found = np.asarray(found, np.float64)
    found -= (found.min(0) + found.max(0)) / 2
    return np.asarray(found / max(float(np.abs(found).max()), 1e-12))


def _by_patient(points: Points, values: Float64[np.ndarray, "n"]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for patient, value in zip(points.patients, values.tolist(), strict=True):
        if np.isfinite(value):
            found.setdefault(patient, []).append(value)
    return found


def _mean(points: Points, values: Float64[np.ndarray, "n"]) -> float:
    each = [np.mean(v) for v in _by_patient(points, values).values()]
    return float(np.mean(each)) if each else float("nan")


def _numbers(names: Sequence[str]) -> tuple[Int64[np.ndarray, "n"], int]:
    table = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.array([table[name] for name in names], np.int64), len(table)


def _unit(vectors: Float[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
    rows = vectors.astype(np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300))
