"""What the network is asked for: the same place in other scans, colours of what it tells apart, the most similar scans.

Each is a generator of events for a `jobs.Job`. Maps of scans are made once and kept, in half precision, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry.encoder import Encoder, FeatureMap
from ctfoundry.errors import CTFoundryError, UsageError
from ctfoundry.explain import pca
from ctfoundry.memory import Memory
from ctfoundry.retrieval import grids
from ctfoundry.retrieval.index import Index
from ctfoundry.retrieval.search import Query, Seen
from ctfoundry.retrieval.search_confidence import Calibration
from ctfoundry.retrieval.search_maps import Looking, Scene, grid_scene, scene
from ctfoundry.serve.jobs import Event, Job
from ctfoundry.serve.library import Library
from ctfoundry.serve.picture import Shown, overlay

if TYPE_CHECKING:
    from jaxtyping import Bool, UInt8
    from torch import Tensor

FITTED_ON = 4
"""Scans that the colours are fitted on, the first of the list that are there, so that a link shows the same colours again."""
FIT_CELLS = 20_000
"""Most cells of a scan that the colours are fitted on."""


@dataclass(frozen=True, eq=False)
class Heat:
    """Similarities of a target's cells to the place that was sought, and where the cells lie."""

    cells: np.ndarray
    affine: np.ndarray
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Engine:
    """An encoder, the scans and the index, and what was computed so far.

    Attributes
    ----------
    index : None while nothing is embedded.
    looking : how scans are searched; its levels are those of the maps.
    folder : of the embeddings, and `held` the levels of the maps that it stores: they are used where they are all that is looked at.
    vector : the name of the vectors in the index.
    calibration : what turns the evidence for an answer into a confidence, where there is one for this model.
    """

    encoder: Encoder
    library: Library
    index: Index | None
    memory: Memory
    looking: Looking
    folder: Path
    held: tuple[str, ...] = ()
    vector: str = "mean"
    calibration: Calibration | None = None

    @property
    def uses_stored(self) -> bool:
        """Whether the maps of `embed --grids` are what is searched."""
        return bool(self.held) and set(self.looking.levels) <= set(self.held)

    @cached_property
    def stored(self) -> int:
        """How many scans of the index have a map on the disk."""
        return sum(self.library.is_indexed(id) for id in grids.ids(self.folder))

    # Maps ---------------------------------------------------------------------------------------------------------------

    def feature_map(self, id: str) -> FeatureMap:
        """The levels of a scan side by side, in half precision where that keeps them, on the CPU."""

        def make() -> tuple[FeatureMap, int]:
            on_disk = self.uses_stored and self.library.is_indexed(id)
            if on_disk and not grids.lacking(self.folder, id, self.looking.levels, self.library.content(id)):
                found = grid_scene(self.folder, id, self.encoder, self.looking).feature
            else:
                found = scene(self.encoder, self.library.scan(id).volume, self.looking).feature
            assert found is not None  # the dense way has one
            levels = [grids.in_half(level) for level in found.data.cpu().split(list(self._widths))]
            kept = replace(found, data=torch.cat(levels), valid=found.valid.cpu())
            return kept, kept.data.numel() * kept.data.element_size() + kept.valid.numel()

        return self.memory.once(("map", id), make)

    def _scene(self, id: str) -> Scene:
        return Scene.of_map(self.feature_map(id), self._widths)

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(self.encoder.level(name).channels for name in self.looking.levels)

    def _seen(self, id: str) -> Seen:
        def make() -> tuple[Seen, int]:
            seen = Seen.of(
                self.encoder,
                self.library.scan(id).volume,
                self.looking,
                seen=self._scene(id),
                calibration=self.calibration,
            )
            return seen, 8 * seen.own.numel() + seen.volume.voxels.nbytes

        return self.memory.once(("seen", id), make)

    # The same place -----------------------------------------------------------------------------------------------------

    def search(self, id: str, point: Sequence[float], targets: Sequence[str]) -> Any:
        """Work that looks for a place (world mm) of one scan in others: events ``hit``, ``missed`` and ``progress``.

        The scan itself comes first, for the heat map over it; then the targets whose maps are there, then the others.
        """

        def work(job: Job) -> Iterator[Event]:
            order = sorted((t for t in targets if t != id), key=lambda t: ("map", t) not in self.memory)
            yield {"type": "progress", "done": 0, "total": len(order) + 1, "scan": id}
            query = self._seen(id).query(point)
            for done, target in enumerate((id, *order)):
                if done:
                    yield {"type": "progress", "done": done, "total": len(order) + 1, "scan": target}
                try:
                    yield self._hit(job, query, target)
                except CTFoundryError as error:
                    yield {"type": "missed", "scan": target, "what": error.what}

        return work

    def _hit(self, job: Job, query: Query, target: str) -> Event:
        found = self._scene(target)
        hit = query.find_in(found)
        low, high = float(np.quantile(hit.scores, 0.5)), float(hit.scores.max())
        heat = Heat(found.laid_out(hit.scores, low).astype(np.float16), found.grid.affine, low, max(high, low + 1e-6))
        self.memory.put(("heat", job.id, target), heat, heat.cells.nbytes + 128)
        return {
            "type": "hit",
            "scan": target,
            "point": [round(v, 2) for v in hit.point],
            "similarity": round(hit.similarity, 4),
            "confidence": None if hit.confidence is None else round(hit.confidence, 3),
            "present": hit.present,
            "low": round(heat.low, 4),
            "high": round(heat.high, 4),
        }

    def heat(self, job: str, id: str) -> tuple[tuple[int, int, int], bytes] | None:
        """(shape, 8 bit) similarity over a target of a search, 0 at its median and 255 at its best; None where it was dropped."""
        heat: Heat | None = self.memory.get(("heat", job, id))
        if heat is None:
            return None
        values = overlay(heat.cells, heat.affine, self.library.scan(id), heat.low)
        share = np.clip((values - heat.low) / (heat.high - heat.low), 0, 1)
        d, h, w = share.shape
        return (d, h, w), np.round(share * 255).astype(np.uint8).tobytes()

    # Colours ------------------------------------------------------------------------------------------------------------

    def colours(self, id: str) -> Any:
        """Work that colours a scan by the three directions in which the cells of some scans differ most: event ``colours``."""

        def work(_: Job) -> Iterator[Event]:
            if ("colours", id) not in self.memory:
                fitted = self.memory.get(("pca",))
                if fitted is None:
                    used = self._fitted_on(id)
                    maps, masks = [], []
                    for done, other in enumerate(used):
                        yield {"type": "progress", "done": done, "total": len(used) + 1, "scan": other}
                        maps.append(self._normal(other))
                        masks.append(_thinned(pca.body_cells(maps[-1], self.library.scan(other).volume)))
                    fitted = pca.fit(maps, masks)
                    self.memory.put(("pca",), fitted, fitted.components.numel() * 4)
                yield {"type": "progress", "done": 1, "total": 2, "scan": id}
                made = _coloured(fitted, self._normal(id), self.library.scan(id))
                self.memory.put(("colours", id), made, made.nbytes)
            yield {"type": "colours", "scan": id}

        return work

    def _normal(self, id: str) -> FeatureMap:
        """The map with each level L2-normalised and of equal weight, as `retrieval.search.dense_map` gives it."""
        raw = self.feature_map(id)
        parts = [torch.nn.functional.normalize(part.float(), dim=0) for part in raw.data.split(list(self._widths))]
        return replace(raw, data=torch.cat(parts) / len(parts) ** 0.5)

    def _fitted_on(self, id: str) -> list[str]:
        """The first scans of the index that can be read; the scan itself where there is none."""
        used = []
        for other in self.library.ids:
            if self.library.is_indexed(other) and self.library.readable(other):
                used.append(other)
            if len(used) == FITTED_ON:
                break
        return used or [id]

    def colours_of(self, id: str) -> tuple[tuple[int, int, int], bytes] | None:
        """(shape, RGBA) of a coloured scan; None where it was not coloured, or dropped."""
        made: UInt8[np.ndarray, "d h w 4"] | None = self.memory.get(("colours", id))
        if made is None:
            return None
        d, h, w, _ = made.shape
        return (d, h, w), made.tobytes()

    # Similar scans ------------------------------------------------------------------------------------------------------

    def neighbours(self, id: str, k: int) -> list[dict[str, Any]] | None:
        """The `k` most similar scans of the index; None where the scan has no vector yet."""
        indexed = self.index is not None and self.library.is_indexed(id)
        vector = self.index.of_id(id)[0] if self.index is not None and indexed else self.memory.get(("vector", id))
        if vector is None:
            return None
        found = self.index.nearest(vector, k, without=[id]) if self.index is not None else []
        return [{"id": n.id, "similarity": round(n.similarity, 4)} for n in found]

    def similar(self, id: str, k: int) -> Any:
        """Work that embeds a scan that the index does not hold: event ``neighbours``."""

        def work(_: Job) -> Iterator[Event]:
            yield {"type": "progress", "done": 0, "total": 1, "scan": id}
            if self.neighbours(id, k) is None:
                features = self.encoder(self.library.scan(id).volume, levels=(), vectors=(self.vector,))
                vector = features.vectors[self.vector].cpu()
                self.memory.put(("vector", id), vector, vector.numel() * 4)
            found = self.neighbours(id, k)
            if found is None:
                raise UsageError("there is no room to keep the scan's vector", do="start the server with more --memory")
            yield {"type": "neighbours", "scan": id, "neighbours": found}

        return work


def _thinned(mask: Bool[Tensor, "d h w"]) -> Bool[Tensor, "d h w"]:
    """Every n-th of the cells, so that at most `FIT_CELLS` are left."""
    place = mask.flatten().nonzero()[:, 0]
    kept = torch.zeros_like(mask).flatten()
    kept[place[:: 1 + len(place) // FIT_CELLS]] = True
    return kept.reshape(mask.shape)


def _coloured(fitted: pca.Pca, feature: FeatureMap, scan: Shown) -> UInt8[np.ndarray, "d h w 4"]:
    mask = pca.body_cells(feature, scan.volume)
    rgb = pca.colours(fitted, feature, mask).data.numpy()
    share = overlay(mask.numpy(), np.asarray(feature.affine), scan, 0.0)
    # dividing by the share keeps colours true beside cells that hold none
    bands = [overlay(band, np.asarray(feature.affine), scan, 0.0) / np.maximum(share, 1e-3) for band in rgb]
    return (np.clip(np.stack([*bands, (share > 0.5).astype(np.float32)], -1), 0, 1) * 255 + 0.5).astype(np.uint8)
