"""Passes of a network over one prepared scan: whole, by slices, or by overlapping windows.

Those of encoders yield `Piece`s: finished cells, a range along axis 0 at a time, so that a caller may keep, project or write
them without ever holding the whole map. `dense`, for networks with one output a voxel, yields finished slices in the same way:
one loop over windows serves both, and what it holds is as thick as one window.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from ctfoundry.errors import ContractError
from ctfoundry.geometry import Vec3
from ctfoundry.models.levels import Level

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Forward = Callable[[Tensor], tuple[dict[str, Tensor], dict[str, Tensor]]]
    """A batch (b, c, d, h, w) to maps by level and token vectors."""

Precision = Literal["fp32", "bf16", "fp16"]
WINDOW_BATCH_VOXELS = 2**21
"""Voxels of one batch of windows or slices; about 1 GiB of activations for 32 filters."""


@dataclass(frozen=True)
class Extent:
    """How much of a scan the network sees at once: part of what a feature means.

    whole: the prepared scan in one pass. cube: one box of `size` voxels around its centre. windows: boxes of `size` with
    `overlap` (share of the size), overlapping cells averaged with `blend` weights. slices: each slice along axis 0 alone.
    """

    mode: Literal["whole", "cube", "windows", "slices"] = "whole"
    size: Vec3 | None = None
    overlap: float = 0.0
    blend: Literal["mean", "gaussian"] = "mean"

    def __post_init__(self) -> None:
        if (self.size is None) is (self.mode in ("cube", "windows")):
            raise ValueError(f"extent {self.mode!r} {'needs a' if self.size is None else 'has no'} size")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is a share from 0 to below 1, not {self.overlap}")


@dataclass(frozen=True)
class Piece:
    """Finished cells of some levels, each with the index of its first cell along axis 0; tokens of what was seen."""

    maps: dict[str, tuple[int, Float[Tensor, "c k h w"]]]
    tokens: dict[str, Float[Tensor, "n c"]]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The autocast context of a precision; fp32 switches it off."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(
        device.type, dtype=kind if precision != "fp32" else torch.bfloat16, enabled=precision != "fp32"
    )


def cells(shape: Vec3, level: Level) -> Vec3:
    """How many cells a level has over an input of `shape` (a partly covered last cell counts)."""
    d, h, w = (-(-n // s) for n, s in zip(shape, level.stride, strict=True))
    return d, h, w


def run(
    forward: Forward, x: Float[Tensor, "c d h w"], levels: tuple[Level, ...], extent: Extent, stride: Vec3
) -> Iterator[Piece]:
    """The pieces of one scan under `extent` (a cube has been cut out before).

    `stride` is the network's deepest one: windows start on its multiples, whichever levels are asked for.
    """
    if extent.mode in ("whole", "cube"):
        maps, tokens = forward(x[None])
        yield Piece({name: (0, data[0]) for name, data in maps.items()}, tokens)
    elif extent.mode == "slices":
        yield from _slices(forward, x)
    else:
        yield from _windows(forward, x, levels, extent, stride)


def _slices(forward: Forward, x: Float[Tensor, "c d h w"]) -> Iterator[Piece]:
    batch = max(1, WINDOW_BATCH_VOXELS // (x.shape[2] * x.shape[3]))
    for start in range(0, x.shape[1], batch):
        maps, tokens = forward(x[:, start : start + batch].transpose(0, 1)[:, :, None])
        yield Piece({name: (start, data[:, :, 0].transpose(0, 1)) for name, data in maps.items()}, tokens)


def window_step(size: Vec3, overlap: float, multiple: Vec3 = (1, 1, 1)) -> Vec3:
    """Distance between window starts: round(size * (1 - overlap)), down to a multiple of `multiple`.

    Raises ContractError where no multiple is left: that overlap needs larger windows.
    """
    step = [round(n * (1 - overlap)) // m * m for n, m in zip(size, multiple, strict=True)]
    if min(step) < 1:
        raise ContractError(
            f"windows of {size} voxels cannot overlap by {overlap:g}: their starts are whole cells of stride {multiple}",
            do="use larger windows or less overlap",
        )
    return step[0], step[1], step[2]


def window_starts(shape: Vec3, size: Vec3, step: Vec3) -> list[list[int]]:
    """Starts along each axis, from 0; the last window may reach past the end (the scan is padded there)."""
    return [list(range(0, max(n - p, 0) + s, s)) if n > p else [0] for n, p, s in zip(shape, size, step, strict=True)]


def pad_to_windows(x: Float[Tensor, "c d h w"], size: Vec3, step: Vec3) -> Float[Tensor, "c d h w"]:
    """Pad the far ends with the smallest value (air) until the last window fits."""
    starts = window_starts((x.shape[1], x.shape[2], x.shape[3]), size, step)
    grow = [s[-1] + p - n for s, p, n in zip(starts, size, x.shape[1:], strict=True)]
    if not any(grow):
        return x
    return torch.nn.functional.pad(x, (0, grow[2], 0, grow[1], 0, grow[0]), value=float(x.min()))


def shifted_starts(shape: Vec3, size: Vec3, overlap: float) -> list[list[int]]:
    """Starts along each axis as MONAI's sliding windows have them: steps of int(size * (1 - overlap)), at least 1, the last window
    moved back so that it ends with the scan."""
    found = []
    for n, p in zip(shape, size, strict=True):
        step = max(int(p * (1 - overlap)), 1)
        found.append([min(start, n - p) for start in range(0, n - p + step, step)] if n > p else [0])
    return found


def window_weight(window: Vec3, blend: str) -> Float[Tensor, "d h w"]:
    """Weights of a window's cells: all one, or a Gaussian with deviations of an eighth of the window, never below 1e-3 or its own
    smallest value, whichever is larger (as MONAI)."""
    if blend == "mean":
        return torch.ones(window)
    axes = [torch.exp(-0.5 * ((torch.arange(n) + 0.5 - n / 2) / (0.125 * n)) ** 2) for n in window]
    weight = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    return weight.clamp_min(max(float(weight.min()), 1e-3))


def window_batches(
    x: Float[Tensor, "c d h w"], size: Vec3, starts: list[tuple[int, int, int]], batch: int | None = None
) -> Iterator[tuple[list[tuple[int, int, int]], Float[Tensor, "b c d h w"]]]:
    """Windows at `starts` in batches of bounded size, or of `batch`."""
    batch = batch or max(1, WINDOW_BATCH_VOXELS // (size[0] * size[1] * size[2]))
    for first in range(0, len(starts), batch):
        part = starts[first : first + batch]
        yield part, torch.stack([x[:, a : a + size[0], b : b + size[1], c : c + size[2]] for a, b, c in part])


def _windows(
    forward: Forward, x: Float[Tensor, "c d h w"], levels: tuple[Level, ...], extent: Extent, stride: Vec3
) -> Iterator[Piece]:
    assert extent.size is not None
    size, shape = extent.size, (x.shape[1], x.shape[2], x.shape[3])
    if any(n % s for n, s in zip(size, stride, strict=True)):
        raise ContractError(f"windows of {size} voxels do not hold whole cells of stride {stride}")
    step = window_step(size, extent.overlap, stride)
    rows, columns, lines = window_starts(shape, size, step)
    x = pad_to_windows(x, size, step)
    sums = {level.name: _Blend(level, shape, size, extent.blend, x) for level in levels}
    for row, following in _rows(rows):
        seen: dict[str, list[Tensor]] = {}
        for part, batch in window_batches(x, size, list(itertools.product([row], columns, lines))):
            maps, tokens = forward(batch)
            for blend in sums.values():
                blend.add(part, maps[blend.level.name])
            for name, vectors in tokens.items():
                seen.setdefault(name, []).append(vectors)
        yield Piece(
            {name: _piece(blend, following) for name, blend in sums.items()},
            {name: torch.cat(v) for name, v in seen.items()},
        )


def dense(
    forward: Callable[[Tensor], Tensor],
    x: Float[Tensor, "c d h w"],
    extent: Extent,
    *,
    air: float = 0.0,
    batch: int | None = None,
    slab: Callable[[int], int] = lambda _: 8,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Float[Tensor, "n k h w"]]]:
    """What a network gives for each voxel, from overlapping windows: (first slice, slices) along axis 0, each slice once, in order.

    Blended, the slices are what MONAI's `sliding_window_inference` returns. They lie where `x` lies; `forward` may work
    elsewhere. At most as many slices as a window has are held, and one slab.

    Parameters
    ----------
    forward : a batch of windows (b, c, d, h, w) to outputs (b, k, d, h, w).
    extent : windows, or the whole scan as one.
    air : what a scan smaller than a window is padded with, on both sides (the far end gets the odd voxel).
    batch : windows in one pass (default: WINDOW_BATCH_VOXELS).
    slab : the most slices to yield at once, given the number of outputs k.
    progress : called with windows done and windows in all.
    """
    if extent.mode not in ("whole", "windows"):
        raise ContractError(f"each voxel needs an answer, which extent {extent.mode!r} does not give")
    shape: Vec3 = (x.shape[1], x.shape[2], x.shape[3])
    size = extent.size or shape
    before = [max(p - n, 0) // 2 for n, p in zip(shape, size, strict=True)]
    after = [max(p - n, 0) - b for n, p, b in zip(shape, size, before, strict=True)]
    if any(after):
        width = [v for b, a in zip(before[::-1], after[::-1], strict=True) for v in (b, a)]
        x = torch.nn.functional.pad(x, width, value=air)
    padded: Vec3 = (x.shape[1], x.shape[2], x.shape[3])
    rows, columns, lines = shifted_starts(padded, size, extent.overlap)
    blend = _Blend(Level("dense", 0, (1, 1, 1)), padded, size, extent.blend, x)
    done, count = 0, len(rows) * len(columns) * len(lines)
    inner = (slice(before[1], before[1] + shape[1]), slice(before[2], before[2] + shape[2]))
    for row, following in _rows(rows):
        for part, windows in window_batches(x, size, list(itertools.product([row], columns, lines)), batch):
            outputs = forward(windows)
            blend.add(part, outputs)
            done += len(part)
            if progress is not None:
                progress(done, count)
        for start, slices in blend.take(following, slab(outputs.shape[1])):
            low, high = max(start, before[0]), min(start + len(slices), before[0] + shape[0])
            if low < high:
                yield low - before[0], slices[low - start : high - start, :, *inner]


def _rows(starts: list[int]) -> Iterator[tuple[int, int | None]]:
    """Each start along axis 0 and the next one, before which all is finished (None after the last)."""
    return zip(starts, (*starts[1:], None), strict=True)


def _piece(blend: _Blend, voxel: int | None) -> tuple[int, Float[Tensor, "c k h w"]]:
    first = blend.first
    parts = [slices for _, slices in blend.take(voxel)]
    return first, (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(0, 1)


class _Blend:
    """Weighted sums of overlapping windows' cells, in a ring of slices as long as one window: all that later windows can still touch."""

    def __init__(self, level: Level, shape: Vec3, size: Vec3, blend: str, x: Tensor) -> None:
        self.level, self.cells = level, cells(shape, level)
        self.covered = cells((x.shape[1], x.shape[2], x.shape[3]), level)
        self.window = cells(size, level)
        self.weight = window_weight(self.window, blend).to(x.device)
        self.mass = torch.zeros(self.window[0], 1, *self.covered[1:], device=x.device)
        self.total: Tensor | None = None  # (slices, channels, h, w), when the channels are known
        self.first = 0

    def add(self, starts: list[tuple[int, int, int]], maps: Float[Tensor, "b c d h w"]) -> None:
        if self.total is None:
            self.total = self.mass.new_zeros(self.window[0], maps.shape[1], *self.covered[1:])
        maps = maps.to(self.mass.device, torch.float32)
        for start, data in zip(starts, maps, strict=True):
            a, b, c = (v // s for v, s in zip(start, self.level.stride, strict=True))
            plane = (slice(None), slice(b, b + self.window[1]), slice(c, c + self.window[2]))
            for low, place in self._places(a, a + self.window[0]):
                within = slice(low - a, low - a + place.stop - place.start)
                weight = self.weight[within][:, None]
                self.total[(place, *plane)].addcmul_(data[:, within].transpose(0, 1), weight)
                self.mass[(place, *plane)] += weight

    def _places(self, low: int, high: int, most: int | None = None) -> Iterator[tuple[int, slice]]:
        """Where slices `low` to `high` lie in the ring: (first slice, range), each range without a break and at most `most` long."""
        ring = self.window[0]
        while low < high:
            at = low % ring
            count = min(high - low, ring - at, most or ring)
            yield low, slice(at, at + count)
            low += count

    def take(self, voxel: int | None, most: int | None = None) -> Iterator[tuple[int, Float[Tensor, "n c h w"]]]:
        """The slices before `voxel` along axis 0 (all when None), cut to the unpadded scan, at most `most` at once; they leave the ring."""
        assert self.total is not None
        last = self.covered[0] if voxel is None else voxel // self.level.stride[0]
        begin, self.first = self.first, last
        for start, place in self._places(begin, last, most):
            done = self.total[place] / self.mass[place]
            self.total[place].zero_()
            self.mass[place].zero_()
            yield start, done[: max(self.cells[0] - start, 0), :, : self.cells[1], : self.cells[2]]
