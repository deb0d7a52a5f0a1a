"""What a scan looks like to a search: rows of features with their places, from one pass, several shifted passes, or windows.

A *shifted pass* puts a few voxels of air before the prepared scan, so that all cells lie elsewhere. Passes shifted by equal parts
of the finest level's stride, interleaved, are one map of the same features on a finer grid. (a, b, c) shifts cost a*b*c passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ctfoundry import geometry, resampling
from ctfoundry.encoder import Encoder, FeatureMap
from ctfoundry.errors import StoreError, UsageError
from ctfoundry.geometry import Grid, Vec3
from ctfoundry.infer.passes import Extent, Precision
from ctfoundry.preparation import Prepared
from ctfoundry.retrieval import grids
from ctfoundry.retrieval.cards import held_levels, how_they_differ, read_card, same_model
from ctfoundry.settings import to_data
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

LEVELS = 3
"""How many of the encoder's last levels are taken unless told; the first of them sets the grid of answers."""
ONE_PASS: Vec3 = (1, 1, 1)
OVERLAP = 0.625
"""Share by which windows overlap, as published."""


@dataclass(frozen=True)
class Looking:
    """How scans are looked at: part of what a similarity means.

    Attributes
    ----------
    levels : for the dense way, finest first; each counts equally.
    shifts : passes along each axis.
    window, overlap : for the windows way: voxels of the preparation (None: dense), share by which windows overlap.
    whiten : whether features are whitened by the cells of the query's scan (`Likeness`).
    refine : whether the answer lies between cells, at the peak of a parabola through the best one and its neighbours.
    extent, precision : of the passes (extent None: the encoder's own).
    """

    levels: tuple[str, ...] = ()
    shifts: Vec3 = ONE_PASS
    window: Vec3 | None = None
    overlap: float = OVERLAP
    whiten: bool = True
    refine: bool = True
    extent: Extent | None = None
    precision: Precision = "fp32"


def default_levels(encoder: Encoder) -> tuple[str, ...]:
    """The last `LEVELS` levels, finest first."""
    return tuple(level.name for level in encoder.levels[-LEVELS:])


@dataclass(frozen=True, eq=False)
class Scene:
    """One scan as rows of raw features with their places.

    Attributes
    ----------
    rows : (n, c), the levels side by side.
    centres : world millimetres (n, 3).
    place : cell of the grid that each row stands on (n, 3); cells of padding have no row.
    grid : shape and affine of the cells.
    widths : channels of each level.
    feature : the map of the dense way, to sample between cells.
    """

    rows: Float[Tensor, "n c"]
    centres: geometry.Points
    place: Int[np.ndarray, "n 3"]
    grid: Grid
    widths: tuple[int, ...]
    feature: FeatureMap | None = None

    @classmethod
    def of_map(cls, feature: FeatureMap, widths: Sequence[int]) -> Scene:
        """The valid cells of a map."""
        rows, centres = feature.cells()
        place = feature.valid.nonzero().cpu().numpy()
        return cls(rows.float(), centres, place, feature.grid, tuple(widths), feature)

    def laid_out(self, scores: np.ndarray, fill: float) -> np.ndarray:
        """One number a row as an array over the grid."""
        grid = np.full(self.grid.shape, fill, dtype=np.float32)
        grid[tuple(self.place.T)] = scores
        return grid


def scene(encoder: Encoder, volume: Volume | Prepared, looking: Looking) -> Scene:
    """A scan as `looking` sees it. Raises UsageError for shifts that do not divide the finest level's stride."""
    if looking.window is not None:
        assert isinstance(volume, Volume)
        return _windows(encoder, volume, looking.window, looking)
    widths = [encoder.level(name).channels for name in looking.levels]
    return Scene.of_map(_shifted(encoder, volume, looking), widths)


def dense_map(
    encoder: Encoder,
    volume: Volume | Prepared,
    levels: Sequence[str],
    precision: Precision = "fp32",
    shifts: Vec3 = ONE_PASS,
) -> FeatureMap:
    """Levels side by side on the cells of the first (finest) one, each L2-normalised and weighted equally.

    shifts : passes along each axis; more than one makes the cells so many times finer.
    """
    raw = _shifted(encoder, volume, Looking(tuple(levels), shifts=shifts, precision=precision))
    parts = raw.data.split([encoder.level(name).channels for name in levels])
    joint = [torch.nn.functional.normalize(part, dim=0) for part in parts]
    return replace(raw, data=torch.cat(joint) / len(levels) ** 0.5)


def grid_looking(
    folder: Path, encoder: Encoder, levels: Sequence[str] | None = None, *, whiten: bool = True
) -> Looking:
    """How a search looks that takes the maps of an embeddings folder: one pass a scan, with the precision that made them.

    levels : finest first; by default those that any search takes. Raises StoreError where the folder is of another model, or
    does not hold them.
    """
    card, given = read_card(folder), to_data(encoder.card)
    if not same_model(card["model"], given):
        what, do = how_they_differ(card["model"], given)
        raise StoreError(what, where=folder, do=do)
    wanted, held = tuple(levels) if levels else default_levels(encoder), held_levels(card)
    for name in wanted:
        encoder.level(name)
    if not held:
        raise StoreError("stores no maps", where=folder, do="embed with --grids into another folder")
    missing = [name for name in wanted if name not in held]
    if missing:
        raise StoreError(
            f"stores maps of {', '.join(held)}; the search also takes {', '.join(missing)}",
            where=folder,
            do=f"embed with --grids --levels {','.join(wanted)} into another folder, or search in what is stored with "
            f"--levels {','.join(held)}: other answers, which a calibration for other levels does not speak about",
        )
    return Looking(wanted, whiten=whiten, precision=card["settings"]["precision"])


def grid_scene(folder: Path, id: str, encoder: Encoder, looking: Looking) -> Scene:
    """A scan as `looking` sees it, from the maps of an embeddings folder (``embed --grids``) instead of a pass.

    Raises StoreError where they are not stored, and UsageError for ways to look that other passes would be needed for.
    """
    if looking.window is not None or looking.shifts != ONE_PASS or looking.extent is not None:
        raise UsageError("stored maps are of one pass over a scan, not of windows or shifted passes")
    found = grids.read(folder, id, looking.levels)
    for one in found:
        if len(one.data) != encoder.level(one.level).channels:
            raise StoreError(
                f"the map of {one.level} has {len(one.data)} channels, not {encoder.level(one.level).channels}",
                where=grids.place(folder, id),
                do="remove it and embed again",
            )
    stored = [
        FeatureMap(
            torch.from_numpy(one.data).to(encoder.device).float(),
            one.affine,
            torch.from_numpy(one.valid).to(encoder.device),
            one.level,
        )
        for one in found
    ]
    return Scene.of_map(joined(stored), [len(one.data) for one in stored])


def with_air(prepared: Prepared, before: Sequence[int], after: Sequence[int] = (0, 0, 0)) -> Prepared:
    """The prepared scan with voxels of its smallest value (air) before and after it along each axis; they are not valid."""
    width = [v for b, a in zip(reversed(before), reversed(after), strict=True) for v in (b, a)]
    return replace(
        prepared,
        x=torch.nn.functional.pad(prepared.x, width, value=float(prepared.x.min())),
        valid=torch.nn.functional.pad(prepared.valid, width, value=False),
        affine=geometry.shifted(prepared.affine, [-b for b in before]),
    )


def _one_pass(encoder: Encoder, volume: Volume | Prepared, looking: Looking) -> FeatureMap:
    """Raw features of the levels side by side."""
    levels = looking.levels
    maps = encoder(volume, levels=levels, vectors=(), precision=looking.precision, extent=looking.extent).maps
    return joined([maps[name] for name in levels])


def joined(maps: Sequence[FeatureMap]) -> FeatureMap:
    """The levels of one pass, finest first, side by side on the cells of the first; coarser ones are linear between their cells."""
    finest = maps[0]
    parts = [finest.data, *(_between_cells(coarse, finest) for coarse in maps[1:])]
    return replace(finest, data=torch.cat(parts), level="+".join(one.level for one in maps))


def _between_cells(coarse: FeatureMap, fine: FeatureMap) -> Float[Tensor, "c d h w"]:
    """`coarse`, linear at the cells of `fine` (two maps of one pass: their axes are parallel), its border cell beyond."""
    first, second = (coarse.cell(fine.world((k, k, k))) for k in (0, 1))
    sizes = zip(coarse.data.shape[1:], fine.data.shape[1:], first, second - first, strict=True)
    d, h, w = (resampling.taps(n, count, float(start), float(step)) for n, count, start, step in sizes)
    return resampling.resample(coarse.data, (d, h, w))


def _shifted(encoder: Encoder, volume: Volume | Prepared, looking: Looking) -> FeatureMap:
    if looking.shifts == ONE_PASS:
        return _one_pass(encoder, volume, looking)
    stride = encoder.level(looking.levels[0]).stride
    if any(n < 1 or s % n for s, n in zip(stride, looking.shifts, strict=True)):
        raise UsageError(f"shifts {looking.shifts} do not divide the stride {stride} of {looking.levels[0]}")
    prepared = volume if isinstance(volume, Prepared) else encoder.prepare(volume)
    shape = prepared.x.shape[1:]
    count = [-(-n // s) for n, s in zip(shape, stride, strict=True)]
    finer = [n * k for n, k in zip(looking.shifts, count, strict=True)]
    first = _one_pass(encoder, prepared, looking)
    data = first.data.new_zeros((first.data.shape[0], *finer))
    valid = torch.zeros(finer, dtype=torch.bool, device=prepared.valid.device)
    for part in itertools.product(*(range(n) for n in looking.shifts)):
        before = [(s - i * s // n) % s for i, s, n in zip(part, stride, looking.shifts, strict=True)]
        # as many cells behind the first one as without air
        after = [(k + (b > 0)) * s - b - n for k, b, s, n in zip(count, before, stride, shape, strict=True)]
        found = _one_pass(encoder, with_air(prepared, before, after), looking) if any(before) else first
        keep = tuple(slice(int(b > 0), int(b > 0) + k) for b, k in zip(before, count, strict=True))
        cells = tuple(slice(i, None, n) for i, n in zip(part, looking.shifts, strict=True))
        data[(slice(None), *cells)] = found.data[(slice(None), *keep)]
        valid[cells] = found.valid[keep]
    affine = geometry.rescaled(first.affine, [1 / n for n in looking.shifts], (0, 0, 0))
    return FeatureMap(data, affine, valid, first.level)


def _windows(encoder: Encoder, volume: Volume, size: Vec3, looking: Looking) -> Scene:
    found = encoder.windows(volume, size, looking.overlap, precision=looking.precision)
    axes = [np.unique(found.starts[:, a]) for a in range(3)]
    # starts are multiples of one step along each axis; a single start has no step of its own
    step = [int(np.diff(a).min()) if len(a) > 1 else n for a, n in zip(axes, size, strict=True)]
    low = np.array([a[0] for a in axes])
    place = (found.starts - low) // np.array(step)
    first = [float(v) + (n - 1) / 2 for v, n in zip(low, size, strict=True)]
    shape = place.max(0) + 1
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), geometry.rescaled(found.affine, step, first))
    return Scene(found.vectors, found.centres, place, grid, (found.vectors.shape[1],))
