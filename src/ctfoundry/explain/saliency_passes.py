"""The target's vectors of one scan with boxes hidden: one pass a box, or only what a box can reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from ctfoundry.encoder import Encoder
from ctfoundry.explain.saliency_local import LocalPass
from ctfoundry.explain.saliency_target import Target
from ctfoundry.geometry import Vec3
from ctfoundry.keys import Key
from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.preparation import Prepared

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int
    from torch import Tensor

    Starts = Int[np.ndarray, "b 3"]
    Vectors = Callable[[Starts, Vec3], Float64[Tensor, "b c"]]
    """Boxes (their first voxels and size) to the target's vectors with each of them hidden."""

Fill = Literal["air", "mean", "blurred", "noise"]
FILLS: tuple[Fill, ...] = get_args(Fill)


def hidden(prepared: Prepared, fill: Fill, size: Vec3, key: Key) -> Float[Tensor, "c d h w"]:
    """What a box shows when it is hidden, at every voxel of the scan."""
    x = prepared.x
    if fill == "air":
        return torch.full_like(x, float(x.min()))
    if fill == "blurred":
        from scipy import ndimage

        sigma = (0.0, *(n / 2 for n in size))
        return torch.from_numpy(ndimage.gaussian_filter(x.cpu().numpy(), sigma, truncate=3.0)).to(x.device)
    known = prepared.valid if bool(prepared.valid.any()) else torch.ones_like(prepared.valid)
    mean = x[:, known].mean(1)[:, None, None, None]
    if fill == "mean":
        return mean.expand_as(x).contiguous()
    grain = torch.from_numpy(key.normal(tuple(x.shape)).astype(np.float32)).to(x.device)
    return mean + grain * x[:, known].std(1)[:, None, None, None]


def exact_vectors(
    encoder: Encoder, prepared: Prepared, target: Target, filled: Float[Tensor, "c d h w"], batch: int = 4
) -> Vectors:
    """The encoder run for each box: on batches where it sees the whole scan in one pass, else through its own extent."""

    @torch.no_grad()
    def vectors(at: Starts, size: Vec3) -> Float64[Tensor, "b c"]:
        rows = []
        for first in range(0, len(at), batch):
            scans = [_occluded(prepared.x, filled, start, size) for start in at[first : first + batch]]
            if encoder.extent.mode == "whole":
                maps, tokens = encoder.raw(torch.stack(scans), (target.level,))
                rows.append(
                    tokens[target.name].double() if target.how == "token" else target.of_maps(maps[target.level])
                )
                continue
            for x in scans:
                names = (target.name,) if target.how == "token" else ()
                found = encoder(replace(prepared, x=x), levels=(target.level,), vectors=names)
                rows.append(found.vector.double()[None] if names else target.of_maps(found.grid.data[None]))
        return torch.cat(rows)

    return vectors


def _occluded(x: Tensor, filled: Tensor, start: Sequence[int] | np.ndarray, size: Vec3) -> Tensor:
    out = x.clone()
    part = (slice(None), *(slice(int(a), int(a) + n) for a, n in zip(start, size, strict=True)))
    out[part] = filled[part]
    return out


def fast_vectors(
    encoder: Encoder, prepared: Prepared, target: Target, filled: Float[Tensor, "c d h w"], reach: int | None
) -> tuple[Vectors, str] | None:
    """What a box can reach and nothing else, and how that is done; None where a box reaches everything."""
    network, x = encoder.network, prepared.x
    if isinstance(network, SegResNetEncoder) and encoder.extent.mode == "whole" and target.how != "token":
        names = [level.name for level in encoder.levels]
        local = LocalPass(network, x, names.index(target.level))

        def by_reach(at: Starts, size: Vec3) -> Float64[Tensor, "b c"]:
            rows = []
            for first in range(0, len(at), 16):
                part = at[first : first + 16]
                kept = np.minimum(size, x.shape[1:])
                low = np.minimum(part, np.array(x.shape[1:]) - kept)  # a box cut at the end, with what lies before it
                boxes = [_box(x, filled, start, corner, kept) for start, corner in zip(part, low, strict=True)]
                data, cells = local.changed(torch.stack(boxes), low, reach)
                rows.append(target.of_windows(data, cells))
            return torch.cat(rows)

        return by_reach, "receptive field" + ("" if reach is None else f", {reach} convolutions a stage")
    if encoder.extent.mode == "slices":
        return _by_slices(encoder, prepared, target, filled), "changed slices"
    return None


def _box(x: Tensor, filled: Tensor, start: np.ndarray, low: np.ndarray, size: np.ndarray) -> Tensor:
    """The voxels from `low` on, hidden from `start` on."""
    part = tuple(slice(int(a), int(a + n)) for a, n in zip(low, size, strict=True))
    inner = tuple(slice(int(a - b), None) for a, b in zip(start, low, strict=True))
    out = x[(slice(None), *part)].clone()
    out[(slice(None), *inner)] = filled[(slice(None), *part)][(slice(None), *inner)]
    return out


def _by_slices(encoder: Encoder, prepared: Prepared, target: Target, filled: Float[Tensor, "c d h w"]) -> Vectors:
    """Slices are seen alone, so only those that a box touches are computed again; exact."""
    x, count = prepared.x, prepared.x.shape[1]
    before: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def vectors(at: Starts, size: Vec3) -> Float64[Tensor, "b c"]:
        rows = []
        for start in at.tolist():
            low, high = start[0], min(start[0] + size[0], count)
            maps, tokens = encoder.raw(_occluded(x, filled, start, size)[None, :, low:high], (target.level,))
            if target.how == "token":
                if (low, high) not in before:
                    before[low, high] = encoder.raw(x[None, :, low:high], ())[1][target.name][0].double()
                change = tokens[target.name][0].double() - before[low, high]
                rows.append(target.base + change * (high - low) / count)
            else:
                rows.append(target.of_windows(maps[target.level], np.array([[low, 0, 0]]))[0])
        return torch.stack(rows)

    return vectors
