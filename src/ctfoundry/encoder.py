"""`Encoder`: a network with its preparation, its extent and its card. A volume in, `Features` out.

Everything downstream is written against this file. A `FeatureMap` knows where each cell lies in the patient; vectors
pooled over a scan count measured cells only; a window embedded alone is pooled as it is, padding included.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from ctfoundry import geometry
from ctfoundry.errors import ContractError
from ctfoundry.geometry import Grid, Vec3
from ctfoundry.infer import passes
from ctfoundry.infer.passes import Extent, Precision
from ctfoundry.models.combined import by_slices
from ctfoundry.models.levels import Level
from ctfoundry.preparation import Preparation, Prepared, prepare
from ctfoundry.settings import nearest
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

Project = Callable[["Tensor"], "Tensor"]
"""Cells (n, c) to (n, k), applied slab by slab, so that a wide map need never be held."""

POOLS = ("mean", "max", "min")
WHOLE_CAP_BYTES = 16 * 2**30
"""Memory above which one pass over a whole scan is refused before it starts."""


@dataclass(frozen=True)
class Card:
    """What a model is, where it comes from, and what it was and was not tested on; stored as JSON beside the weights."""

    name: str
    kind: Literal["encoder", "segmenter", "classifier"]
    architecture: str
    arguments: Mapping[str, Any]
    preparation: Preparation
    extent: Extent
    level: str
    vector: str
    weights: Literal["random", "trained"]
    sha256: str = ""
    origin: str = ""
    licence: str = ""
    seed: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    tested_on: tuple[str, ...] = ()
    not_tested_on: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    golden: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Of a segmenter's outputs in order, the background first, or a classifier's classes; an encoder has none, the others have no
    `level` and no `vector`."""


def fast_layout(network: torch.nn.Module) -> None:
    """Kernels in channels-last order where all weights are on a CPU: oneDNN's 3D convolutions take about two thirds of the time then
    (docs/performance.md)."""
    if all(p.device.type == "cpu" for p in network.parameters()):
        for weight in network.parameters():
            if weight.ndim == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)


class Backbone(Protocol):
    """What an encoder asks of its network (an `nn.Module`): maps by level name and token vectors by name."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels it can return, finest first."""
        ...

    @property
    def tokens(self) -> tuple[str, ...]:
        """Names of vectors that are no pooled maps, such as ``cls``."""
        ...

    def features(self, x: Tensor, levels: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Maps (b, c, d, h, w) of the asked levels, and vectors (b, c)."""
        ...

    def peak_bytes(self, shape: Vec3) -> int:
        """Memory of one float32 forward pass over one input of `shape`."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class FeatureMap:
    """Features on a grid of cells.

    Attributes
    ----------
    data : (c, d, h, w).
    affine : cell index to world millimetres of the cell's centre.
    valid : False where a cell's centre lies on padding.
    level : name of the level it comes from.
    """

    data: Float[Tensor, "c d h w"]
    affine: geometry.Affine
    valid: Bool[Tensor, "d h w"]
    level: str

    @property
    def grid(self) -> Grid:
        """Shape and affine of the cells."""
        d, h, w = self.data.shape[1:]
        return Grid((d, h, w), self.affine)

    def world(self, cell: Any) -> geometry.Points:
        """World millimetres of cell indices (..., 3)."""
        return geometry.to_world(self.affine, cell)

    def cell(self, points: Any) -> geometry.Points:
        """Cell indices, not rounded, of world millimetres (..., 3)."""
        return geometry.to_index(self.affine, points)

    def holds(self, point: Sequence[float] | np.ndarray) -> bool:
        """Whether a world point lies in one of the cells."""
        cell = self.cell(point)
        return bool(((cell >= -0.5) & (cell <= np.array(self.data.shape[1:]) - 0.5)).all())

    def sample(self, points: Any) -> Float[Tensor, "n c"]:
        """Features at world points (n, 3), linear between cell centres, the border cell beyond them."""
        cells = np.atleast_2d(self.cell(points))
        size = np.array(self.data.shape[1:])
        scaled = 2 * (cells + 0.5) / size - 1
        place = torch.from_numpy(np.ascontiguousarray(scaled[:, ::-1])).to(self.data.device, torch.float32)
        found = torch.nn.functional.grid_sample(
            self.data[None].float(),
            place[None, :, None, None],
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        return found[0, :, :, 0, 0].T

    def cells(self) -> tuple[Float[Tensor, "n c"], geometry.Points]:
        """The valid cells as rows, and the world millimetres of their centres (n, 3)."""
        index = self.valid.nonzero().cpu().numpy()
        rows = self.data.flatten(1) if len(index) == self.valid.numel() else self.data[:, self.valid]
        return rows.T, self.world(index)

    def __repr__(self) -> str:
        return f"FeatureMap({self.level}, {self.data.shape[0]} channels, {repr(self.grid)[5:-1]})"


@dataclass(frozen=True, eq=False)
class Features:
    """Named vectors and named maps of one scan; `.vector` and `.grid` are the encoder's defaults."""

    vectors: Mapping[str, Float[Tensor, "c"]]
    maps: Mapping[str, FeatureMap]
    defaults: tuple[str, str] = ("mean", "")

    @property
    def vector(self) -> Float[Tensor, "c"]:
        """The encoder's default vector."""
        return _named(self.vectors, self.defaults[0], "vector")

    @property
    def grid(self) -> FeatureMap:
        """The map of the encoder's default level."""
        return _named(self.maps, self.defaults[1], "map")


def _named(table: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise ContractError(f"{what} {name!r} was not asked for; {nearest(name, table) if table else 'none was'}")
    return table[name]


@dataclass(frozen=True, eq=False, repr=False)
class Encoder:
    """A network with its preparation, extent, levels, vector names and card. Always in eval mode."""

    network: torch.nn.Module
    preparation: Preparation
    extent: Extent
    levels: tuple[Level, ...]
    vectors: tuple[str, ...]
    card: Card

    @classmethod
    def of(cls, network: torch.nn.Module, card: Card) -> Encoder:
        """The encoder that `card` describes, around `network`, which it takes over (eval mode, memory layout)."""
        backbone: Any = network
        fast_layout(network)
        return cls(
            network.eval(), card.preparation, card.extent, tuple(backbone.levels), (*backbone.tokens, *POOLS), card
        )

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.network.parameters())
        card = self.card
        return (
            f"Encoder({card.name}, {card.weights} weights, {weights:,} parameters, prepared as {self.preparation.name}, "
            f"{self.extent.mode}, level {card.level}, vector {card.vector})"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def level(self, name: str) -> Level:
        """A level by its name; raises ContractError when there is none."""
        table = {level.name: level for level in self.levels}
        if name not in table:
            raise ContractError(f"there is no level {name!r}; {nearest(name, table)}")
        return table[name]

    def raw(self, x: Float[Tensor, "b c d h w"], levels: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Maps and token vectors of a batch, differentiable, without preparation: for decoders, windows and probes.

        An encoder of slices sees each slice of the batch alone: maps are stacked again, vectors are means over the slices.
        """
        backbone: Any = self.network
        if self.extent.mode != "slices" or x.shape[2] == 1:
            return backbone.features(x, tuple(levels))
        return by_slices(backbone.features, x, tuple(levels))

    def prepare(self, volume: Volume) -> Prepared:
        """The volume as this encoder's input, on its device."""
        return prepare(self.preparation, volume, device=self.device)

    def __call__(
        self,
        volume: Volume | Prepared,
        *,
        levels: Sequence[str] | None = None,
        vectors: Sequence[str] | None = None,
        roi: Volume | None = None,
        project: Project | None = None,
        extent: Extent | None = None,
        precision: Precision = "fp32",
    ) -> Features:
        """Features of one scan.

        Parameters
        ----------
        volume : a scan, or one that `prepare` has prepared.
        levels : maps to return (default: the card's level).
        vectors : vectors to return (default: the card's): token names of the network, or mean, max, min over the valid
            cells of the card's level.
        roi : a label map; adds a vector ``roi:NAME`` for each label, the mean over its cells weighted by the label's share.
        project : applied to the cells of every returned map.
        extent : another extent than the card's.
        precision : of the forward pass; features are returned in float32.
        """
        wanted = tuple(levels) if levels is not None else (self.card.level,)
        names = tuple(vectors) if vectors is not None else (self.card.vector,)
        for name in names:
            if name not in self.vectors:
                raise ContractError(f"unknown vector {name!r}; {nearest(name, self.vectors)}")
        pooled = roi is not None or any(name in POOLS for name in names)
        needed = dict.fromkeys((*wanted, *((self.card.level,) if pooled else ())))
        prepared, used = self._seen(volume, extent)
        parts: dict[str, list[Tensor]] = {name: [] for name in needed}
        tokens: dict[str, list[Tensor]] = {}
        for piece in self._run(prepared, tuple(needed), used, precision):
            for name, (_, data) in piece.maps.items():
                parts[name].append(data.float())
            for name, vector in piece.tokens.items():
                tokens.setdefault(name, []).append(vector.float())
        maps = {name: self._placed(torch.cat(data, 1), name, prepared) for name, data in parts.items()}
        found = {
            name: pool(maps[self.card.level], name) if name in POOLS else torch.cat(tokens[name]).mean(0)
            for name in names
        }
        if roi is not None:
            found |= roi_vectors(maps[self.card.level], roi)
        kept = {name: maps[name] if project is None else projected(maps[name], project) for name in wanted}
        return Features(found, kept, (names[0] if names else "", wanted[0] if wanted else ""))

    def stream(
        self,
        volume: Volume,
        level: str,
        *,
        project: Project | None = None,
        dtype: torch.dtype = torch.float16,
        extent: Extent | None = None,
        precision: Precision = "fp32",
        slab: int = 16,
    ) -> Iterator[FeatureMap]:
        """The map of one level in slabs of at most `slab` cells along axis 0; the whole projected grid is never held."""
        prepared, used = self._seen(volume, extent)
        for piece in self._run(prepared, (level,), used, precision):
            first, data = piece.maps[level]
            for start in range(0, data.shape[1], slab):
                part = self._placed(data[:, start : start + slab], level, prepared, first + start)
                out = part if project is None else projected(part, project)
                yield replace(out, data=out.data.to(dtype))

    def windows(
        self,
        volume: Volume,
        size: Vec3,
        overlap: float = 0.0,
        *,
        vector: str | None = None,
        precision: Precision = "fp32",
    ) -> Windows:
        """Each window of the prepared scan embedded alone, as one vector; windows without a measured voxel are left out."""
        name = vector or self.card.vector
        prepared = self.prepare(volume)
        step = passes.window_step(size, overlap)
        rows = passes.window_starts(_shape(prepared.x), size, step)
        x = passes.pad_to_windows(prepared.x, size, step)
        known = prepared.valid
        starts = [
            (a, b, c)
            for a, b, c in itertools.product(*rows)
            if bool(known[a : a + size[0], b : b + size[1], c : c + size[2]].any())
        ]
        vectors = [self.embed(batch, name, precision) for _, batch in passes.window_batches(x, size, starts)]
        corner = np.array(starts, dtype=np.float64).reshape(-1, 3)
        centres = geometry.to_world(prepared.affine, corner + (np.array(size) - 1) / 2)
        return Windows(torch.cat(vectors), centres, corner.astype(np.int64), size, prepared.affine)

    @torch.no_grad()
    def embed(self, x: Float[Tensor, "b c d h w"], vector: str, precision: Precision = "fp32") -> Float[Tensor, "b c"]:
        """One vector for each tensor of a batch that is prepared already and holds no padding."""
        with passes.autocast(self.device, precision):
            maps, tokens = self.raw(x, (self.card.level,) if vector in POOLS else ())
        if vector not in POOLS:
            return tokens[vector].float()
        rows = maps[self.card.level].float().flatten(2)
        return rows.mean(2) if vector == "mean" else rows.amax(2) if vector == "max" else rows.amin(2)

    def _seen(self, volume: Volume | Prepared, extent: Extent | None) -> tuple[Prepared, Extent]:
        """The prepared scan, cut to the cube where the extent is one."""
        used, prepared = extent or self.extent, volume if isinstance(volume, Prepared) else self.prepare(volume)
        if used.mode != "cube":
            return prepared, used
        assert used.size is not None
        keep = [min(n, p) for n, p in zip(_shape(prepared.x), used.size, strict=True)]
        start = [(n - k) // 2 for n, k in zip(_shape(prepared.x), keep, strict=True)]
        part = tuple(slice(s, s + k) for s, k in zip(start, keep, strict=True))
        return replace(
            prepared,
            x=prepared.x[(slice(None), *part)],
            valid=prepared.valid[part],
            affine=geometry.shifted(prepared.affine, start),
        ), used

    def _run(
        self, prepared: Prepared, levels: tuple[str, ...], extent: Extent, precision: Precision
    ) -> Iterator[passes.Piece]:
        chosen = tuple(self.level(name) for name in levels)
        backbone: Any = self.network
        if extent.mode in ("whole", "cube"):
            need = backbone.peak_bytes(_shape(prepared.x))
            if need > WHOLE_CAP_BYTES:
                raise ContractError(
                    f"one pass over {_shape(prepared.x)} voxels takes about {need / 2**30:.0f} GiB",
                    do="use extent 'windows', a coarser preparation, or crop the scan",
                )

        @torch.no_grad()
        def forward(x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            with passes.autocast(self.device, precision):
                return self.raw(x, levels)

        d, h, w = (max(level.stride[axis] for level in self.levels) for axis in range(3))
        return passes.run(forward, prepared.x, chosen, extent, (d, h, w))

    def _placed(self, data: Tensor, name: str, prepared: Prepared, first: int = 0) -> FeatureMap:
        """Cells with their affine and validity; `first` is the index of the first cell along axis 0."""
        level = self.level(name)
        start = [o + s * f for o, s, f in zip(level.offset, level.stride, (first, 0, 0), strict=True)]
        affine = geometry.rescaled(prepared.affine, level.stride, start)
        valid = prepared.valid
        for axis in range(3):
            at = torch.arange(data.shape[axis + 1], device=valid.device) * level.stride[axis] + start[axis]
            valid = valid.index_select(axis, at.round().long().clamp_max(prepared.valid.shape[axis] - 1))
        return FeatureMap(data, affine, valid, name)


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one scan, each embedded alone.

    Attributes
    ----------
    vectors : (n, c).
    centres : world millimetres of the windows' centres (n, 3).
    starts : first voxel of each window in the prepared scan (n, 3).
    size : voxels of a window.
    affine : of the prepared scan.
    """

    vectors: Float[Tensor, "n c"]
    centres: geometry.Points
    starts: np.ndarray
    size: Vec3
    affine: geometry.Affine


def _shape(x: Float[Tensor, "c d h w"]) -> Vec3:
    return x.shape[1], x.shape[2], x.shape[3]


def projected(feature: FeatureMap, project: Project) -> FeatureMap:
    """A map with `project` applied to its cells as rows (n, c) -> (n, k)."""
    flat = project(feature.data.flatten(1).T)
    return replace(feature, data=flat.T.reshape(-1, *feature.data.shape[1:]))


def pool(feature: FeatureMap, how: str) -> Float[Tensor, "c"]:
    """Mean, max or min over the valid cells of a map; over all of them when none is valid."""
    rows = (
        feature.data.flatten(1)
        if bool(feature.valid.all() or not feature.valid.any())
        else feature.data[:, feature.valid]
    )
    return rows.mean(1) if how == "mean" else rows.amax(1) if how == "max" else rows.amin(1)


def roi_vectors(feature: FeatureMap, roi: Volume) -> dict[str, Float[Tensor, "c"]]:
    """Mean features of each label of a mask, cells weighted by the label's share of them; labels that miss all cells are left out."""
    if roi.kind != "label":
        raise ContractError(f"a region of interest is a label map, not kind {roi.kind!r}", where=roi.source or None)
    found = {}
    for label in (int(v) for v in np.unique(roi.voxels) if v != 0):
        share = replace(roi, voxels=(roi.voxels == label).astype(np.float32), kind="other").onto(feature.grid, fill=0.0)
        weight = torch.from_numpy(share.voxels).to(feature.data.device) * feature.valid
        if float(weight.sum()) > 0:
            name = (roi.names or {}).get(label, str(label))
            found[f"roi:{name}"] = (feature.data * weight).sum((1, 2, 3)) / weight.sum()
    return found
