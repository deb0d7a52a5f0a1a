"""How much trivial methods find: labels by Hounsfield units alone or by position alone, and lesions by the HU histogram.

Nothing is claimed for a representation that these do too (DESIGN, decision 13): later rooms print them beside their own
numbers. All take any scans, phantoms or real ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ctfoundry.body import body_box, largest_part
from ctfoundry.errors import UsageError
from ctfoundry.keys import Key
from ctfoundry.phantom.disease import ODDS, afflicted
from ctfoundry.phantom.findings import findings
from ctfoundry.phantom.make import Phantom, make
from ctfoundry.phantom.names import GROUPS, IDS, WRAPS
from ctfoundry.phantom.spec import LesionKind, View, draw
from ctfoundry.volume import Volume

HU_EDGES = np.arange(-1025, 1531, 5)
"""Bins of the HU classifier: 5 HU wide; what lies outside falls into the first or the last one."""
SMALLEST_VOXELS = 20
"""Structures with fewer voxels in a scan have no centroid there."""


HISTOGRAM_EDGES = np.concatenate(
    [np.arange(-1025, -225, 50), np.arange(-225, 225, 10), np.arange(225, 1626, 100), [4000]]
)
"""Bins of the histogram that findings are regressed on: narrow where soft tissue lies."""
VIEWS: dict[LesionKind, View] = {
    "lung_nodule": "chest",
    "liver_lesion": "abdomen",
    "renal_cyst": "abdomen",
    "pleural_effusion": "chest",
    "pneumothorax": "chest",
    "aortic_aneurysm": "trunk",
    "fracture": "trunk",
    "epidural_haemorrhage": "head",
    "subdural_haemorrhage": "head",
    "parenchymal_haemorrhage": "head",
    "soft_tissue_mass": "pelvis",
}
"""Which part of the body is scanned to look for a kind."""
PENALTIES = (0.3, 3.0, 30.0, 300.0)
"""Weights of the squared coefficients among which the regression chooses, by cross-validation within its training part."""

_KEY = Key.of("findings")


class Labelled(Protocol):
    """A scan with its label map, such as a `Phantom`."""

    @property
    def ct(self) -> Volume:
        """HU."""

    @property
    def labels(self) -> Volume:
        """Labels on the grid of `ct`."""


@dataclass(frozen=True)
class Difficulty:
    """A number over all structures, and one for each of them."""

    overall: float
    structures: Mapping[str, float]


def structures_of(scans: Iterable[Labelled]) -> dict[str, tuple[int, ...]]:
    """Every labelled structure of the scans: name to its single id."""
    found: dict[str, tuple[int, ...]] = {}
    for scan in scans:
        names = scan.labels.names or {}
        for label in np.unique(scan.labels.voxels).tolist():
            if label:
                found[names.get(label, str(label))] = (int(label),)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def coarse_structures(*, wraps: bool = True) -> dict[str, tuple[int, ...]]:
    """The eighteen groups of `names.GROUPS` with their ids; without `wraps` the fourteen that are places."""
    return {name: tuple(IDS[p] for p in parts) for name, parts in GROUPS.items() if wraps or name not in WRAPS}


def hu_classifier_dice(
    train: Sequence[Labelled], test: Sequence[Labelled], structures: Mapping[str, Sequence[int]] | None = None
) -> Difficulty:
    """Macro Dice of the best classifier that sees one voxel's HU and nothing else.

    For each structure it takes the HU bins whose pooled training voxels give the highest Dice against the rest: bins in the
    order of the structure's share, as many as pay. That is the Dice-optimal rule (Lipton et al. 2014), so a Bayes
    classifier, which never chooses small structures, cannot do better on the training scans. Dice is pooled over the voxels
    of all test scans; the overall number is the mean over structures that occur in both cohorts.
    """
    result = {}
    for name, counts in hu_counts(train, test, structures).items():
        hit, taken, own = counts.sum(axis=0)
        result[name] = float(2 * hit / (taken + own))
    overall = float(np.mean(list(result.values()))) if result else float("nan")
    return Difficulty(overall, result)


def hu_counts(
    train: Sequence[Labelled], test: Sequence[Labelled], structures: Mapping[str, Sequence[int]] | None = None
) -> dict[str, np.ndarray]:
    """What `hu_classifier_dice` counts: for each structure, (test scans, 3) voxels that are hit, taken, and the structure's own."""
    _need(train, test)
    structures = structures or structures_of(train)
    seen, targets = _histograms(train), np.stack([_histograms([scan]) for scan in test])
    result = {}
    for name, ids in structures.items():
        own, other = seen[:, list(ids)].sum(axis=1), targets[:, :, list(ids)].sum(axis=2)
        if own.sum() == 0 or other.sum() == 0:
            continue
        chosen = dice_optimal(own, seen.sum(axis=1))
        parts = other[:, chosen].sum(axis=1), targets[:, chosen].sum(axis=(1, 2)), other.sum(axis=1)
        result[name] = np.stack(parts, axis=1)
    return result


def dice_optimal(own: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Which bins to take for the highest Dice: those with the largest shares `own` / `total`, as many as pay (Lipton et al. 2014)."""
    order = np.argsort(-own / np.maximum(total, 1), kind="stable")
    hit, taken = np.cumsum(own[order]), np.cumsum(total[order])
    return np.asarray(order[: int(np.argmax(2 * hit / (taken + own.sum()))) + 1])


def position_guess_error(
    train: Sequence[Labelled], test: Sequence[Labelled], structures: Mapping[str, Sequence[int]] | None = None
) -> Difficulty:
    """Median miss, in millimetres, of a guess by position in the body box.

    The guess for a structure is the mean, over training scans that hold it, of its centroid in coordinates proportional to
    the body box (0 to 1 from Left to Right, Posterior to Anterior, Inferior to Superior), laid into the test scan's body
    box. The overall number is the median over all structures of all test scans; each structure's is its own median.
    """
    misses = {name: [miss for _, miss in found] for name, found in position_misses(train, test, structures).items()}
    overall = float(np.median(np.concatenate(list(misses.values())))) if misses else float("nan")
    return Difficulty(overall, {name: float(np.median(values)) for name, values in misses.items()})


def position_misses(
    train: Sequence[Labelled], test: Sequence[Labelled], structures: Mapping[str, Sequence[int]] | None = None
) -> dict[str, list[tuple[int, float]]]:
    """What `position_guess_error` takes medians of: for each structure, (test scan, miss in millimetres)."""
    _need(train, test)
    structures = structures or structures_of(train)
    places: dict[str, list[np.ndarray]] = {name: [] for name in structures}
    for scan in train:
        low, size = _body_frame(scan.ct)
        for name, point in _centroids(scan, structures).items():
            places[name].append((point - low) / size)
    misses: dict[str, list[tuple[int, float]]] = {}
    for number, scan in enumerate(test):
        low, size = _body_frame(scan.ct)
        for name, point in _centroids(scan, structures).items():
            if places[name]:
                guess = low + np.mean(places[name], axis=0) * size
                misses.setdefault(name, []).append((number, float(np.linalg.norm(guess - point))))
    return misses


@dataclass(frozen=True)
class Auroc:
    """Area under the receiver operating characteristic with a 95 % bootstrap interval over `patients`."""

    value: float
    low: float
    high: float
    patients: int


def hu_histogram(ct: Volume) -> np.ndarray:
    """Square roots of the shares of the body's voxels in `HISTOGRAM_EDGES`; the body with what it encloses slice by slice."""
    from scipy import ndimage

    body = largest_part(ct.voxels > -300)
    body = np.stack([ndimage.binary_fill_holes(cut) for cut in body])
    counts = np.histogram(np.clip(ct.voxels[body], -1025, 3999), HISTOGRAM_EDGES)[0]
    return np.sqrt(counts / max(int(counts.sum()), 1))


def findings_auroc(
    present: Sequence[np.ndarray], absent: Sequence[np.ndarray], *, folds: int = 5, repeats: int = 4, seed: int = 0
) -> Auroc:
    """How well a regression on the HU histogram tells scans with a finding from scans without.

    L2-regularised logistic regression on standardised histograms (mean and deviation of the training part; penalty of
    `PENALTIES` by an inner cross-validation), in `folds` parts of the patients, `repeats` times over. The area is the share
    of pairs of a scan with and a scan without that are ordered rightly, over pairs of one test part.

    Parameters
    ----------
    present, absent : histograms (`hu_histogram`) of scans with and without. Where scan i of both is of one patient (the same scan
        made with and without its lesion, which is how nothing else can differ), both lists have the same order and length: they
        then share a part, and are not compared with each other.

    Raises
    ------
    UsageError : if the lists differ in length or hold fewer than two patients a fold.
    """
    count = len(present)
    if count != len(absent) or count < 2 * folds:
        raise UsageError(f"needs as many scans with as without, at least {2 * folds}", where="findings_auroc")
    x = np.concatenate([np.stack(present), np.stack(absent)])
    y, patient = np.repeat([1.0, 0.0], count), np.tile(np.arange(count), 2)
    right, compared = np.zeros((count, count)), np.zeros((count, count))
    for repeat in range(repeats):
        part = Key.of("findings", seed, repeat).permutation(count) % folds
        for fold in range(folds):
            test = part[patient] == fold
            key = Key.of("findings", seed, repeat, fold)
            score = histogram_log_odds(x[~test], y[~test], patient[~test], x, folds=folds - 1, key=key)
            who = np.flatnonzero(part == fold)
            own, other = score[:count][who], score[count:][who]
            pairs = np.ix_(who, who)
            right[pairs] += (own[:, None] > other) + 0.5 * (own[:, None] == other)
            compared[pairs] += 1
    np.fill_diagonal(right, 0)
    np.fill_diagonal(compared, 0)
    draws = Key.of("findings", seed, "bootstrap").integers(0, count, (1000, count))
    areas = []
    for drawn in draws:
        weight = np.bincount(drawn, minlength=count).astype(float)
        areas.append(weight @ right @ weight / max(weight @ compared @ weight, 1e-9))
    low, high = np.quantile(areas, (0.025, 0.975))
    return Auroc(float(right.sum() / compared.sum()), float(low), float(high), count)


def histogram_log_odds(
    x: np.ndarray, y: np.ndarray, patient: np.ndarray, new: np.ndarray, *, folds: int = 4, key: Key = _KEY
) -> np.ndarray:
    """Log odds of new histograms (rows of `new`) by a regression on those of labelled scans, `x` with `y` 0 or 1 and their patients.

    L2-regularised logistic regression on standardised histograms; the penalty of `PENALTIES` is that with the smallest log loss on
    `folds` parts of the patients that were left out.
    """
    return _scores(x, y, new, _penalty(x, y, patient, folds, key))


def twins(
    kind: LesionKind,
    key: Key,
    *,
    view: View | None = None,
    voxel_mm: float = 5.0,
    odds: Mapping[LesionKind, float] | None = None,
) -> tuple[Phantom, Phantom] | None:
    """One scan of one random patient with a kind of lesion and without it: other lesions and wear are in both.

    The scan is of `view`, or of a part of the body where the kind occurs (`VIEWS`), with voxels of `voxel_mm`. None where it does not show the
    lesion (no `Finding`): its site lies outside a small field, or the lesion is smaller than the voxels.
    """
    spec = afflicted(
        key("disease"),
        draw(key, view=view or VIEWS[kind], voxel_mm=voxel_mm),
        odds={**(ODDS if odds is None else odds), kind: 1.0},
    )
    sick = dataclasses.replace(spec, subject=dataclasses.replace(spec.subject, devices=()))
    others = tuple(lesion for lesion in sick.subject.lesions if lesion.kind != kind)
    if len(others) == len(sick.subject.lesions):
        return None
    present = make(sick)
    if not any(finding.kind == kind for finding in findings(present)):
        return None
    return present, make(dataclasses.replace(sick, subject=dataclasses.replace(sick.subject, lesions=others)))


def _penalty(x: np.ndarray, y: np.ndarray, patient: np.ndarray, folds: int, key: Key) -> float:
    """The penalty with the smallest log loss on parts that were left out."""
    names = np.unique(patient)
    part = dict(zip(names.tolist(), (key.permutation(len(names)) % folds).tolist(), strict=True))
    where = np.array([part[p] for p in patient.tolist()])
    loss = dict.fromkeys(PENALTIES, 0.0)
    for fold in range(folds):
        test = where == fold
        for penalty in PENALTIES:
            score = _scores(x[~test], y[~test], x[test], penalty)
            loss[penalty] += float(np.logaddexp(0, -(2 * y[test] - 1) * score).sum())
    return min(PENALTIES, key=lambda penalty: loss[penalty])


def _scores(x: np.ndarray, y: np.ndarray, new: np.ndarray, penalty: float) -> np.ndarray:
    """Log odds of new rows by a logistic regression fitted to the others, by Newton steps in the space of the samples."""
    mean, spread = x.mean(0), x.std(0)
    scale = np.where(spread > 1e-6, spread, np.inf)  # a bin that never differs says nothing
    a, b = (x - mean) / scale, (new - mean) / scale
    a, b = np.hstack([a, np.ones((len(a), 1))]), np.hstack([b, np.ones((len(b), 1))])
    ridge = np.full(a.shape[1], penalty)
    ridge[-1] = 1e-6
    w = np.zeros(a.shape[1])
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(a @ w, -30, 30)))
        slope = a.T @ (chance - y) + ridge * w
        curve = (a.T * (chance * (1 - chance))) @ a
        curve[np.diag_indices_from(curve)] += ridge
        step = np.linalg.solve(curve, slope)
        w -= step
        if np.abs(step).max() < 1e-6:
            break
    return np.asarray(b @ w)


def _body_frame(ct: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Lowest world point and size of the body box along the world's axes."""
    low, high = body_box(ct)
    return low, np.maximum(high - low, 1e-3)


def _centroids(scan: Labelled, structures: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """World centroid of each structure present with at least `SMALLEST_VOXELS` voxels."""
    voxels = scan.labels.voxels
    size = int(voxels.max()) + 1
    count = np.bincount(voxels.ravel(), minlength=size).astype(np.float64)
    sums = np.zeros((size, 3))
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = -1
        index = np.broadcast_to(np.arange(voxels.shape[axis], dtype=np.float64).reshape(shape), voxels.shape)
        sums[:, axis] = np.bincount(voxels.ravel(), weights=index.ravel(), minlength=size)
    found = {}
    for name, ids in structures.items():
        held = [i for i in ids if i < size]
        total = count[held].sum()
        if total >= SMALLEST_VOXELS:
            found[name] = np.asarray(scan.labels.world(sums[held].sum(axis=0) / total))
    return found


def _histograms(scans: Sequence[Labelled]) -> np.ndarray:
    """Voxel counts by HU bin and label, (bins, labels)."""
    total = np.zeros((len(HU_EDGES) - 1, 256), dtype=np.int64)
    for scan in scans:
        hu = np.clip(scan.ct.voxels, HU_EDGES[0], HU_EDGES[-1] - 1).astype(np.int64)
        both = (hu - HU_EDGES[0]) // (HU_EDGES[1] - HU_EDGES[0]) * 256 + scan.labels.voxels
        total += np.bincount(both.ravel(), minlength=total.size).reshape(total.shape)
    return total


def _need(train: Sequence[Labelled], test: Sequence[Labelled]) -> None:
    if not train or not test:
        raise UsageError("needs at least one training and one test scan", where="difficulty")
