"""Saliency by occlusion: how far a scan's vector turns when a box of it is hidden (CT-FM, occlusion feature deviation).

The deviation of a box is 1 - cosine between the vector of the scan and that of the scan without the box, in float64 from
float32 vectors. What is asked of can be the scan's pooled vector, the vector of one labelled region, the features at a point, or
the similarity to another vector (then the deviation is the similarity that the box brings, and can be negative).

*exact* runs the encoder once a box. *fast* computes only what a box can reach, where the architecture allows it; when asked to, it
works from coarse boxes to fine ones. Some boxes are always computed both ways, and how well they agree is part of the result.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from ctfoundry import files
from ctfoundry.encoder import Encoder
from ctfoundry.errors import UsageError
from ctfoundry.explain.saliency_passes import FILLS, Fill, exact_vectors, fast_vectors, hidden
from ctfoundry.explain.saliency_target import Target
from ctfoundry.geometry import Vec3
from ctfoundry.keys import Key
from ctfoundry.preparation import Prepared
from ctfoundry.settings import nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int
    from torch import Tensor

    from ctfoundry.explain.saliency_passes import Vectors

    Starts = Int[np.ndarray, "b 3"]

Mode = Literal["exact", "fast"]
SAVE_SECONDS = 15.0


@dataclass(frozen=True)
class Settings:
    """How boxes are laid and hidden.

    Attributes
    ----------
    size, stride : of the boxes, voxels of the prepared grid; boxes at the far ends are cut.
    fill : what stands in a hidden box: air (the smallest value), the mean of the scan, the scan blurred by a Gaussian of half the
        box, or noise of the scan's mean and deviation.
    mode : exact, or fast.
    reach : of the fast mode of SegResNets: convolutions of each stage after which the window of changed cells stops growing;
        None: never, which is exact up to rounding.
    share : of boxes computed at full resolution, coarse to fine; None: all. For encoders in which every box reaches everything this
        is the only way to be faster, and it can be badly wrong (docs/saliency.md), so it has to be asked for.
    checked : boxes of the fast mode that are computed exactly too.
    """

    size: Vec3 = (8, 8, 8)
    stride: Vec3 = (8, 8, 8)
    fill: Fill = "air"
    mode: Mode = "fast"
    reach: int | None = 2
    share: float | None = None
    checked: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise UsageError(f"no fill is called {self.fill!r}; {nearest(self.fill, FILLS)}")
        if self.mode not in get_args(Mode):
            raise UsageError(f"the mode is 'exact' or 'fast', not {self.mode!r}")
        if min(self.size) < 1 or any(not 1 <= s <= n for s, n in zip(self.stride, self.size, strict=True)):
            raise UsageError(f"boxes of {self.size} voxels need strides from 1 to their size, not {self.stride}")
        if self.share is not None and (not 0 < self.share <= 1 or self.mode == "exact"):
            raise UsageError("--share is above 0, at most 1, and of the fast mode")


@dataclass
class Ledger:
    """Deviations computed so far, kept in a file: a killed run continues. `key` names all that they depend on."""

    path: Path | None = None
    key: str = ""
    tables: dict[str, Float64[np.ndarray, "n"]] = field(default_factory=dict)
    saved: float = field(default_factory=time.time)

    @classmethod
    def at(cls, path: Path, key: str) -> Ledger:
        """The ledger of a file; empty where there is none, or one of other settings."""
        tables = {}
        if path.is_file():
            with np.load(path, allow_pickle=False) as held:
                if "key" in held and str(held["key"]) == key:
                    tables = {name: held[name] for name in held.files if name != "key"}
        return cls(path, key, tables)

    def table(self, name: str, count: int) -> Float64[np.ndarray, "n"]:
        """The deviations of one grid of boxes; NaN where not computed yet."""
        return self.tables.setdefault(name, np.full(count, np.nan))

    def save(self, force: bool = False) -> None:
        """Write it, at most every `SAVE_SECONDS`."""
        if self.path is None or (not force and time.time() - self.saved < SAVE_SECONDS):
            return
        with files.whole(self.path) as part, open(part, "wb") as stream:
            np.savez(stream, key=np.array(self.key), **self.tables)  # type: ignore[arg-type]
        self.saved = time.time()


@dataclass(frozen=True, eq=False)
class Saliency:
    """Deviations of all boxes of one scan.

    Attributes
    ----------
    scores : on the grid of boxes (d, h, w).
    changes : mean absolute change of the boxes' input, on the same grid: what a map of mere brightness would show.
    map : (d, h, w) of the prepared grid: the mean over the boxes that hold a voxel.
    method : how they were computed.
    computed : passes made; `boxes` that changed nothing are 0 without one.
    checked : boxes computed exactly as well, and `correlation`, `worst` (largest difference over the largest deviation) of them.
    seconds : spent on boxes by this run.
    """

    scores: Float64[np.ndarray, "d h w"]
    changes: Float64[np.ndarray, "d h w"]
    map: Float[np.ndarray, "d h w"]
    starts: Starts
    method: str
    computed: int
    boxes: int
    seconds: float
    checked: dict[str, Any]


def measure(
    encoder: Encoder,
    prepared: Prepared,
    target: Target,
    settings: Settings,
    *,
    ledger: Ledger | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Saliency:
    """Deviations of all boxes. `progress` is called with boxes done and boxes to do."""
    ledger = ledger or Ledger()
    filled = hidden(prepared, settings.fill, settings.size, Key.of("saliency", settings.seed))
    slow = exact_vectors(encoder, prepared, target, filled)
    fast = fast_vectors(encoder, prepared, target, filled, settings.reach) if settings.mode == "fast" else None
    vectors, method = fast or (slow, "one pass a box")
    share = settings.share or 1.0
    if share < 1:
        method += f", coarse to fine, {share:.0%} of the boxes"
    began = time.perf_counter()
    run = _Run(prepared.x, filled, target, vectors, ledger, progress)
    scores, starts = coarse_to_fine(run, settings, share) if share < 1 else run.all(settings, 1)
    seconds = time.perf_counter() - began
    flat = starts.reshape(-1, 3)
    differ = run.changes(flat, settings.size)
    checked: dict[str, Any] = {"boxes": 0}
    if settings.mode == "fast" and settings.checked > 0 and (differ > 0).any():
        able = np.flatnonzero(differ > 0)
        order = able[np.argsort(Key.of("saliency", "checked", settings.seed).uniform(0, 1, len(able)))]
        some = np.sort(order[: settings.checked])
        true = target.score(slow(flat[some], settings.size))
        checked = agreement(scores.reshape(-1)[some], true)
    return Saliency(
        scores,
        differ.reshape(scores.shape),
        spread(scores, starts, settings.size, (prepared.x.shape[1], prepared.x.shape[2], prepared.x.shape[3])),
        starts,
        method,
        run.computed,
        len(flat),
        seconds,
        checked,
    )


def agreement(ours: Float64[np.ndarray, "n"], true: Float64[np.ndarray, "n"]) -> dict[str, Any]:
    """Correlation of two lists of deviations, and their largest difference over the largest true one."""
    moved = len(true) > 2 and ours.std() > 0 and true.std() > 0
    return {
        "boxes": len(true),
        "correlation": float(np.corrcoef(ours, true)[0, 1]) if moved else None,
        "worst": float(np.abs(ours - true).max() / max(float(np.abs(true).max()), 1e-30)),
    }


@dataclass
class _Run:
    """Boxes of any size of one scan, each computed once."""

    x: Float[Tensor, "c d h w"]
    filled: Float[Tensor, "c d h w"]
    target: Target
    vectors: Vectors
    ledger: Ledger
    progress: Callable[[int, int], None] | None
    computed: int = 0

    def grid(self, stride: Vec3) -> tuple[Starts, Vec3]:
        rows = [range(0, n, s) for n, s in zip(self.x.shape[1:], stride, strict=True)]
        shape = (len(rows[0]), len(rows[1]), len(rows[2]))
        return np.array(list(itertools.product(*rows))).reshape(*shape, 3), shape

    def changes(self, at: Starts, size: Vec3) -> Float64[np.ndarray, "b"]:
        """Mean absolute change of the input by each box; 0: hiding it changes nothing."""
        table = (self.filled - self.x).abs().sum(0).double()
        for axis in range(3):
            table = table.cumsum(axis)
        table = torch.nn.functional.pad(table, (1, 0, 1, 0, 1, 0)).cpu()
        low, high = at, np.minimum(at + size, np.array(self.x.shape[1:]))
        total = np.zeros(len(at))
        for pick in itertools.product((0, 1), repeat=3):
            corner = np.where(np.array(pick) == 1, high, low)
            total += (-1) ** (3 - sum(pick)) * table[corner[:, 0], corner[:, 1], corner[:, 2]].numpy()
        # sums of many floats: what is left of an unchanged box is rounding
        return np.where(np.abs(total) < 1e-7 * np.prod(size), 0.0, total / np.prod(high - low, axis=1))

    def some(self, name: str, at: Starts, size: Vec3, which: np.ndarray) -> Float64[np.ndarray, "n"]:
        """Deviations of the boxes numbered `which`; those of others stay NaN, or what the ledger has."""
        table = self.ledger.table(name, len(at))
        table[which[self.changes(at[which], size) == 0]] = 0.0
        left = which[np.isnan(table[which])]
        for first in range(0, len(left), 16):
            part = left[first : first + 16]
            table[part] = self.target.score(self.vectors(at[part], size))
            self.computed += len(part)
            self.ledger.save()
            if self.progress is not None:
                self.progress(first + len(part), len(left))
        self.ledger.save(force=bool(len(left)))
        return table

    def all(self, settings: Settings, factor: int) -> tuple[Float64[np.ndarray, "d h w"], Starts]:
        """All boxes, `factor` times as large as the settings say."""
        size, stride = _times(settings.size, factor), _times(settings.stride, factor)
        starts, shape = self.grid(stride)
        found = self.some(f"x{factor}", starts.reshape(-1, 3), size, np.arange(int(np.prod(shape))))
        return found.reshape(shape), starts


def _times(size: Vec3, factor: int) -> Vec3:
    return size[0] * factor, size[1] * factor, size[2] * factor


def coarse_to_fine(run: _Run, settings: Settings, share: float) -> tuple[Float64[np.ndarray, "d h w"], Starts]:
    """Boxes four times and twice as large first; those that matter most are divided, `share` of the fine boxes in the end.

    A box that is not divided gives its parts its own deviation times what parts of divided boxes have of theirs, on average.
    """
    scores, _ = run.all(settings, 4)
    for factor in (2, 1):
        stride, size = _times(settings.stride, factor), _times(settings.size, factor)
        starts, shape = run.grid(stride)
        inside = np.stack(np.meshgrid(*(np.arange(n) // 2 for n in shape), indexing="ij"), -1)
        parent = scores[inside[..., 0], inside[..., 1], inside[..., 2]].reshape(-1)
        count = max(int(np.ceil(len(parent) * (share if factor == 1 else np.sqrt(share)))), 8)
        which = np.argsort(-np.abs(parent), kind="stable")[:count]
        own = run.some(f"x{factor}", starts.reshape(-1, 3), size, np.sort(which))
        done = np.isfinite(own)
        part = float(np.abs(own[done]).sum() / max(float(np.abs(parent[done]).sum()), 1e-30))
        scores = np.where(done, own, parent * part).reshape(shape)
    return scores, starts


def spread(
    scores: Float64[np.ndarray, "d h w"], starts: Starts, size: Vec3, shape: Vec3
) -> Float[np.ndarray, "d2 h2 w2"]:
    """The boxes' deviations on voxels: the mean over the boxes that hold a voxel."""
    total, count = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    for value, start in zip(scores.reshape(-1), starts.reshape(-1, 3).tolist(), strict=True):
        part = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        total[part] += value
        count[part] += 1
    return np.asarray(total / np.maximum(count, 1))
