"""How hard a set of labelled scans is for methods that know no anatomy (DESIGN, decision 13), with intervals over patients.

Three measures stand beside every later result on phantoms: the macro Dice of the best classifier of single voxels' HU, the
median miss of a guess by proportional position in the body box, and how well a regression on the HU histogram tells scans
with a finding from the same scans without it. Each has a limit that the phantoms must keep; real scans can be measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from ctfoundry import io, phantom, stats
from ctfoundry.errors import UsageError
from ctfoundry.keys import Key
from ctfoundry.layouts.plain import in_processes
from ctfoundry.phantom import difficulty
from ctfoundry.phantom.difficulty import Labelled
from ctfoundry.phantom.disease import KINDS
from ctfoundry.phantom.spec import LesionKind, View
from ctfoundry.settings import nearest
from ctfoundry.stats import Interval
from ctfoundry.volume import Volume

WHAT = ("hu", "position", "findings")
LIMITS = {"hu": 0.6, "position": 40.0, "findings": 0.7}
"""Macro Dice and area under the curve stay below theirs, the miss (mm) above."""
NAMES = {"hu": "Dice by HU", "position": "miss by position, mm", "findings": "AUROC by HU histogram"}
_DIGITS = {"hu": 3, "position": 1, "findings": 2}
_ATTEMPTS = 40
_LEAST_PAIRS = 10
"""Two patients for each of five folds."""


@dataclass(frozen=True)
class Scan:
    """A scan with its label map, by any other name than a phantom."""

    ct: Volume
    labels: Volume


@dataclass(frozen=True)
class Row:
    """One measure on one set of structures, or on one kind of finding."""

    what: Literal["hu", "position", "findings"]
    structures: str
    interval: Interval

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        over = self.interval.value > LIMITS[self.what]
        return over if self.what == "position" else not over

    def data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        i = self.interval
        return {
            "measure": self.what,
            "structures": self.structures,
            "value": i.value,
            "low": i.low,
            "high": i.high,
            "limit": LIMITS[self.what],
            "holds": self.holds,
            "patients": i.patients,
            "values": i.values,
            "seed": i.seed,
        }

    def line(self) -> dict[str, Any]:
        """Texts, for a table."""
        sign = ">" if self.what == "position" else "<"
        return {
            "measure": NAMES[self.what],
            "structures": self.structures,
            "value": self.interval.text(_DIGITS[self.what]),
            "limit": f"{sign} {LIMITS[self.what]:g}",
            "verdict": "hard enough" if self.holds else "TOO EASY",
            "patients": self.interval.patients,
        }


def measure(
    what: Sequence[str],
    count: int,
    *,
    view: str = "",
    voxel_mm: float = 4.0,
    data: Path | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """The measures asked for, on `count` phantoms or on the labelled scans below `data`; the first half is learnt from.

    Intervals are bootstraps over the test patients, the training ones being what they are. Raises UsageError for an unknown
    measure, for findings on real scans, and for fewer than two scans.
    """
    for name in what:
        if name not in WHAT:
            raise UsageError(f"no measure is called {name!r}; {nearest(name, WHAT)}", where="--what")
    if data is not None and "findings" in what:
        if set(what) != set(WHAT):
            raise UsageError(
                "needs the same scans without their findings", where="--what findings", do="leave --data out"
            )
        what = [name for name in what if name != "findings"]
    if "findings" in what and count < _LEAST_PAIRS:
        raise UsageError(f"findings need at least {_LEAST_PAIRS} patients of each kind, not {count}", where="--count")
    rows: list[Row] = []
    if {"hu", "position"} & set(what):
        scans = read_scans(data) if data else phantoms(count, view=view, voxel_mm=voxel_mm, seed=seed, say=say)
        half = len(scans) // 2
        if not half:
            raise UsageError("needs at least two labelled scans", where=data or "--count")
        groups: list[tuple[str, Mapping[str, Sequence[int]] | None, bool]] = [("all labels", None, False)]
        if data is None:
            groups += [("coarse groups", difficulty.coarse_structures(), False)]
            groups += [("coarse groups that are places", difficulty.coarse_structures(wraps=False), True)]
        for name, structures, places in groups:
            parts = scans[:half], scans[half:], structures
            if "hu" in what and not places:
                rows += _hu(name, *parts, seed=seed)
            if "position" in what and name != "coarse groups":
                rows += _position(name, *parts, seed=seed)
    if "findings" in what:
        for kind in KINDS:
            jobs = [(kind, seed, n, view, voxel_mm) for n in range(count)]
            if histograms(*jobs[0]) is None:
                say(f"{kind}: not in this part of the body")
                continue
            pairs = [pair for pair in in_processes(histograms, jobs) if pair is not None]
            say(f"{kind}: {len(pairs)} pairs")
            found = difficulty.findings_auroc([p[0] for p in pairs], [p[1] for p in pairs], seed=seed)
            low, high = (found.low, found.high) if found.patients >= stats.MINIMUM_PATIENTS else (None, None)
            area = Interval(found.value, low, high, found.patients, 2 * found.patients, seed)
            rows.append(Row("findings", kind, area))
    return rows


def _hu(name: str, train: Sequence[Labelled], test: Sequence[Labelled], structures: Any, *, seed: int) -> list[Row]:
    counts = difficulty.hu_counts(train, test, structures)
    if not counts:
        return []
    table = np.stack(list(counts.values()))  # (structures, scans, 3)

    def macro(weight: np.ndarray) -> float:
        hit, taken, own = np.einsum("tsc,s->ct", table, weight)
        there = own > 0
        return float(np.mean(2 * hit[there] / (taken + own)[there])) if there.any() else float("nan")

    return [Row("hu", name, stats.resampled(len(test), macro, int((table[..., 2] > 0).sum()), seed=seed))]


def _position(
    name: str, train: Sequence[Labelled], test: Sequence[Labelled], structures: Any, *, seed: int
) -> list[Row]:
    found = [pair for pairs in difficulty.position_misses(train, test, structures).values() for pair in pairs]
    if not found:
        return []
    scan, miss = np.array([s for s, _ in found]), np.array([m for _, m in found])

    def middle(weight: np.ndarray) -> float:
        times = weight[scan].astype(int)
        return float(np.median(np.repeat(miss, times))) if times.any() else float("nan")

    return [Row("position", name, stats.resampled(len(test), middle, len(found), seed=seed))]


def phantoms(
    count: int, *, view: str = "", voxel_mm: float = 4.0, seed: int = 0, say: Callable[[str], None] = lambda _: None
) -> list[Scan]:
    """The cohort that difficulty is measured on, made by several processes."""
    return in_processes(one_phantom, [(seed, n, view, voxel_mm) for n in range(count)], say=say)


def one_phantom(seed: int, number: int, view: str, voxel_mm: float) -> Scan:
    """Scan `number` of the cohort of `seed`."""
    made = phantom.make(
        phantom.draw(Key.of("difficulty", seed * 1_000_000 + number), view=_view(view), voxel_mm=voxel_mm)
    )
    return Scan(made.ct, made.labels)


def histograms(
    kind: LesionKind, seed: int, number: int, view: str, voxel_mm: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """HU histograms of one patient's scan with a lesion of `kind` that it shows, and of the same scan without it.

    None where no scan of the view shows the kind.
    """
    for attempt in range(_ATTEMPTS):
        key = Key.of("difficulty", "findings", kind, seed, number, attempt)
        pair = difficulty.twins(kind, key, view=_view(view), voxel_mm=voxel_mm)
        if pair is not None:
            return difficulty.hu_histogram(pair[0].ct), difficulty.hu_histogram(pair[1].ct)
    return None


def _view(name: str) -> View | None:
    return cast("View | None", name or None)


def read_scans(root: Path) -> list[Scan]:
    """Labelled scans below a folder: each folder with one CT and one label map on its grid, in the order of their paths.

    Raises UsageError where a folder is missing; scans without a label map are left out.
    """
    if not root.is_dir():
        raise UsageError("no such folder", where=root)
    ct: dict[Path, list[Callable[[], Volume]]] = {}
    maps: dict[Path, list[Callable[[], Volume]]] = {}
    for item in io.discover(root).found:
        home = item.paths[0].parent
        if item.problem is None and not item.paths[0].name.startswith("lesions"):
            (maps if item.is_label else ct).setdefault(home, []).append(partial(item.read))
    scans = []
    for home in sorted(ct):
        if len(ct[home]) == 1 and len(maps.get(home, ())) == 1:
            image, labels = ct[home][0](), maps[home][0]()
            if image.grid.same(labels.grid) and image.kind == "hu":
                scans.append(Scan(image, labels))
    return scans
