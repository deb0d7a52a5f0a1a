"""Passes of a network over one prepared scan: whole, by slices, or by overlapping windows.

All of them yield `Piece`s: finished cells, a range along axis 0 at a time, so that a caller may keep, project or write them
without ever holding the whole map.
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


def window_batches(
    x: Float[Tensor, "c d h w"], size: Vec3, starts: list[tuple[int, int, int]]
) -> Iterator[tuple[list[tuple[int, int, int]], Float[Tensor, "b c d h w"]]]:
    """Windows at `starts` in batches of bounded size."""
    batch = max(1, WINDOW_BATCH_VOXELS // (size[0] * size[1] * size[2]))
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
    for row in rows:
        seen: dict[str, list[Tensor]] = {}
        for part, batch in window_batches(x, size, list(itertools.product([row], columns, lines))):
            maps, tokens = forward(batch)
            for blend in sums.values():
                blend.add(part, maps[blend.level.name])
            for name, vectors in tokens.items():
                seen.setdefault(name, []).append(vectors)
        final = row + step[0] if row != rows[-1] else None
        yield Piece(
            {name: blend.take(final) for name, blend in sums.items()}, {name: torch.cat(v) for name, v in seen.items()}
        )


class _Blend:
    """Weighted sums of overlapping windows' cells; holds only the cells that later windows can still touch."""

    def __init__(self, level: Level, shape: Vec3, size: Vec3, blend: str, x: Tensor) -> None:
        self.level, self.cells = level, cells(shape, level)
        self.covered = cells((x.shape[1], x.shape[2], x.shape[3]), level)
        self.window = cells(size, level)
        axes = [_profile(n, blend).to(x.device) for n in self.window]
        self.weight = axes[0][:, None, None] * axes[1][:, None] * axes[2]
        self.total = torch.zeros(level.channels, 0, *self.covered[1:], device=x.device)
        self.mass = torch.zeros(0, *self.covered[1:], device=x.device)
        self.first = 0

    def add(self, starts: list[tuple[int, int, int]], maps: Tensor) -> None:
        for start, data in zip(starts, maps, strict=True):
            a, b, c = (v // s for v, s in zip(start, self.level.stride, strict=True))
            grow = a + self.window[0] - self.first - self.total.shape[1]
            if grow > 0:
                self.total = torch.nn.functional.pad(self.total, (0, 0, 0, 0, 0, grow))
                self.mass = torch.nn.functional.pad(self.mass, (0, 0, 0, 0, 0, grow))
            at = (
                slice(a - self.first, a - self.first + self.window[0]),
                slice(b, b + self.window[1]),
                slice(c, c + self.window[2]),
            )
            self.total[(slice(None), *at)] += data.float() * self.weight
            self.mass[at] += self.weight

    def take(self, voxel: int | None) -> tuple[int, Tensor]:
        """The cells before `voxel` along axis 0 (all when None), cut to those of the unpadded scan."""
        start = self.first
        last = self.first + self.total.shape[1] if voxel is None else voxel // self.level.stride[0]
        count = last - start
        done = self.total[:, :count] / self.mass[:count]
        self.total, self.mass, self.first = self.total[:, count:], self.mass[count:], last
        return start, done[:, : max(self.cells[0] - start, 0), : self.cells[1], : self.cells[2]]


def _profile(n: int, blend: str) -> Float[Tensor, "n"]:
    """Weights along one axis of a window: all one, or a Gaussian of an eighth of the window, never below 1e-3 (as MONAI)."""
    if blend == "mean":
        return torch.ones(n)
    x = (torch.arange(n) + 0.5 - n / 2) / (0.125 * n)
    return torch.exp(-0.5 * x * x).clamp_min(1e-3)
