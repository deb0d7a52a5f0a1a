"""Saliency by occlusion: how far a scan's vector turns when a box of it is hidden (CT-FM, occlusion feature deviation).

The deviation of a box is 1 - cosine between the vector of the scan and that of the scan without the box, in float64 from
float32 vectors. What is asked of can be the scan's pooled vector, the vector of one labelled region, the features at a point, or
the similarity to another vector (then the deviation is the similarity that the box brings, and can be negative).

*exact* runs the encoder once a box. *fast* computes only what a box changes, where the architecture allows it. Some boxes, on which
nothing was fitted, are always computed both ways, and how well they agree is part of the result.
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
from ctfoundry.explain.saliency_passes import FILLS, PASSES, Fill, Way, exact_vectors, fast_vectors, hidden
from ctfoundry.explain.saliency_target import Target
from ctfoundry.geometry import Vec3
from ctfoundry.keys import Key
from ctfoundry.preparation import Prepared
from ctfoundry.settings import nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int
    from torch import Tensor

    Starts = Int[np.ndarray, "b 3"]

Mode = Literal["exact", "fast"]
SAVE_SECONDS = 15.0
VERSION = 2
"""Of how boxes are computed; grows when the same settings give other deviations, so that no kept ones are mixed with them."""
ROUNDING = 1e-12
"""Deviations below which vectors in float32, good to some 1e-7, tell nothing: a hundred times the square of that."""
AGREES, FAR = 0.95, 0.3
"""Correlation with exact boxes below which, and largest difference over the largest deviation above which, a fast map is doubted."""


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
    checked : boxes of the fast mode that are computed exactly too; nothing is fitted to them.
    """

    size: Vec3 = (8, 8, 8)
    stride: Vec3 = (8, 8, 8)
    fill: Fill = "air"
    mode: Mode = "fast"
    reach: int | None = 2
    checked: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise UsageError(f"no fill is called {self.fill!r}; {nearest(self.fill, FILLS)}")
        if self.mode not in get_args(Mode):
            raise UsageError(f"the mode is 'exact' or 'fast', not {self.mode!r}")
        if min(self.size) < 1 or any(not 1 <= s <= n for s, n in zip(self.stride, self.size, strict=True)):
            raise UsageError(f"boxes of {self.size} voxels need strides from 1 to their size, not {self.stride}")


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
    seconds : spent by this run on boxes and on what prepares for them, the check not counted.
    """

    scores: Float64[np.ndarray, "d h w"]
    changes: Float64[np.ndarray, "d h w"]
    map: Float[np.ndarray, "d h w"]
    starts: Int[np.ndarray, "d h w 3"]
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
    starts = grid_of(prepared, settings.stride)
    at = starts.reshape(-1, 3)
    differ = changes(prepared.x, filled, at, settings.size)
    drawn = shuffled(differ, settings.seed)
    check, rest = np.sort(drawn[: settings.checked]), drawn[settings.checked :]
    tell = progress or (lambda done, count: None)
    slow = Way(exact_vectors(encoder, prepared, target, filled), "one pass a box", PASSES)
    began = time.perf_counter()
    way = None
    if settings.mode == "fast":
        key = Key.of("saliency", "directions", settings.seed)
        way = fast_vectors(
            encoder, prepared, target, filled, settings.size, reach=settings.reach, some=at[rest], key=key, tell=tell
        )
    used = way or slow
    scores = ledger.table("boxes", len(at))
    scores[differ == 0] = 0.0
    left = np.flatnonzero(np.isnan(scores))
    for first in range(0, len(left), used.batch):
        part = left[first : first + used.batch]
        scores[part] = target.score(used.vectors(at[part], settings.size))
        ledger.save()
        tell(first + len(part), len(left))
    ledger.save(force=bool(len(left)))
    seconds = time.perf_counter() - began
    checked: dict[str, Any] = {"boxes": 0}
    if settings.mode == "fast" and len(check):
        checked = agreement(scores[check], target.score(slow.vectors(at[check], settings.size)))
    _, d, h, w = prepared.x.shape
    return Saliency(
        scores.reshape(starts.shape[:3]),
        differ.reshape(starts.shape[:3]),
        spread(scores, starts, settings.size, (d, h, w)),
        starts,
        used.method,
        len(left),
        len(at),
        seconds,
        checked,
    )


def shuffled(differ: Float64[np.ndarray, "..."], seed: int) -> Int[np.ndarray, "n"]:
    """Numbers of the boxes that change anything, in random order: the first are checked, the next ones fitted to."""
    able = np.flatnonzero(differ > 0)
    return able[np.argsort(Key.of("saliency", "checked", seed).uniform(0, 1, len(able)))]


def grid_of(prepared: Prepared, stride: Vec3) -> Int[np.ndarray, "d h w 3"]:
    """First voxels of all boxes."""
    rows = [np.arange(0, n, s) for n, s in zip(prepared.x.shape[1:], stride, strict=True)]
    return np.stack(np.meshgrid(*rows, indexing="ij"), -1)


def changes(
    x: Float[Tensor, "c d h w"], filled: Float[Tensor, "c d h w"], at: Starts, size: Vec3
) -> Float64[np.ndarray, "b"]:
    """Mean absolute change of the input by each box; 0: hiding it changes nothing."""
    table = (filled - x).abs().sum(0).double()
    for axis in range(3):
        table = table.cumsum(axis)
    table = torch.nn.functional.pad(table, (1, 0, 1, 0, 1, 0)).cpu()
    low, high = at, np.minimum(at + size, np.array(x.shape[1:]))
    total = np.zeros(len(at))
    for pick in itertools.product((0, 1), repeat=3):
        corner = np.where(np.array(pick) == 1, high, low)
        total += (-1) ** (3 - sum(pick)) * table[corner[:, 0], corner[:, 1], corner[:, 2]].numpy()
    # sums of many floats: what is left of an unchanged box is rounding
    return np.where(np.abs(total) < 1e-7 * np.prod(size), 0.0, total / np.prod(high - low, axis=1))


def agreement(ours: Float64[np.ndarray, "n"], true: Float64[np.ndarray, "n"]) -> dict[str, Any]:
    """Correlation of two lists of deviations, the largest true one, and their largest difference over it."""
    moved = len(true) > 2 and ours.std() > 0 and true.std() > 0
    return {
        "boxes": len(true),
        "largest": float(np.abs(true).max()),
        "correlation": float(np.corrcoef(ours, true)[0, 1]) if moved else None,
        "worst": float(np.abs(ours - true).max() / max(float(np.abs(true).max()), 1e-30)),
    }


def doubt(checked: dict[str, Any], most: float) -> str | None:
    """What to say where a map, whose largest deviation is `most`, is rounding, or does not agree with the boxes computed exactly;
    None where nothing is."""
    if most < ROUNDING:
        return f"no box turns the vector by more than float32 tells ({ROUNDING:g}): the map is rounding"
    if not checked["boxes"]:
        return None
    if checked["largest"] < ROUNDING:
        return (
            f"{checked['boxes']} boxes computed exactly turn the vector by less than float32 tells ({ROUNDING:g}), so they check "
            "nothing; a larger --checked may meet others"
        )
    together = checked["correlation"]  # None of one or two boxes, and where one side is the same everywhere
    if (together is None or together >= AGREES) and checked["worst"] <= FAR:
        return None
    how = "" if together is None else f"correlation {together:.2f}, "
    return (
        f"the fast map differs from {checked['boxes']} boxes computed exactly ({how}"
        f"largest difference {checked['worst']:.0%} of the largest); --mode exact does not"
    )


def spread(
    scores: Float64[np.ndarray, "..."], starts: Int[np.ndarray, "..."], size: Vec3, shape: Vec3
) -> Float[np.ndarray, "d2 h2 w2"]:
    """The boxes' deviations on voxels: the mean over the boxes that hold a voxel."""
    total, count = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    for value, start in zip(scores.reshape(-1), starts.reshape(-1, 3).tolist(), strict=True):
        part = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        total[part] += value
        count[part] += 1
    return np.asarray(total / np.maximum(count, 1))
