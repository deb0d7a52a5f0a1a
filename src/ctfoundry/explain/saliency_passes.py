"""The target's vectors of one scan with boxes hidden: one pass a box, or only what a box changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from ctfoundry.encoder import Encoder
from ctfoundry.explain.saliency_attention import RANDOM, AttentionPass, held_bytes
from ctfoundry.explain.saliency_local import LocalPass
from ctfoundry.explain.saliency_target import Target
from ctfoundry.geometry import Vec3
from ctfoundry.keys import Key
from ctfoundry.memory import machine_memory
from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.models.vit import FlexibleViT
from ctfoundry.preparation import Prepared

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int
    from torch import Tensor

    Starts = Int[np.ndarray, "b 3"]
    Vectors = Callable[[Starts, Vec3], Float64[Tensor, "b c"]]
    """Boxes (their first voxels and size) to the target's vectors with each of them hidden."""

Fill = Literal["air", "mean", "blurred", "noise"]
FILLS: tuple[Fill, ...] = get_args(Fill)

PASSES = 4
"""Boxes of one pass each that are done at a time: after them a run that is killed continues, and between them it says how far it is."""
FITTED = 8
"""Boxes that a transformer is run on exactly to learn in which directions its vector turns."""
WORTH = 100
"""Boxes below which that costs about as much as running it on all."""
SHARE_OF_MEMORY = 0.5
"""Of the device, which the base pass of a transformer and its gradients may take."""


@dataclass(frozen=True)
class Way:
    """How boxes become vectors, in words too, and how many boxes it takes at a time."""

    vectors: Vectors
    method: str
    batch: int = 16


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


def exact_vectors(encoder: Encoder, prepared: Prepared, target: Target, filled: Float[Tensor, "c d h w"]) -> Vectors:
    """The encoder run for each box: on batches where it sees the whole scan in one pass, else through its own extent."""
    batch = (
        1 if prepared.x.device.type == "cpu" else 4
    )  # one scan fills a core's caches: four together take a tenth longer

    @torch.no_grad()
    def vectors(at: Starts, size: Vec3) -> Float64[Tensor, "b c"]:
        rows = []
        for first in range(0, len(at), batch):
            scans = [_occluded(prepared.x, filled, start, size) for start in at[first : first + batch]]
            if encoder.extent.mode == "whole":
                maps, tokens = encoder.raw(torch.stack(scans), (target.level,))
                rows.append(target.of_output(maps, tokens))
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
    encoder: Encoder,
    prepared: Prepared,
    target: Target,
    filled: Float[Tensor, "c d h w"],
    size: Vec3,
    *,
    reach: int | None,
    some: Starts,
    key: Key,
    tell: Callable[[int, int], None] = lambda done, count: None,
) -> Way | None:
    """Only what a box changes; None where that is no faster than one pass a box.

    Parameters
    ----------
    size : of the boxes.
    reach : see `saliency.Settings`.
    some : boxes drawn at random that the way may be fitted to; none of them may serve as a check.
    key : of random directions.
    tell : called with preparatory passes done and all of them, where there are many.
    """
    network, extent = encoder.network, encoder.extent
    in_one = extent.mode == "whole"
    if isinstance(network, SegResNetEncoder) and in_one and target.how != "token":
        return _by_reach(encoder, prepared, target, filled, reach)
    if extent.mode == "slices":
        return Way(_by_slices(encoder, prepared, target, filled), "changed slices")
    if extent.mode == "cube" and extent.size is not None:
        in_one = all(n <= cube for n, cube in zip(prepared.x.shape[1:], extent.size, strict=True))
    able = in_one and target.how in ("token", "weights") and len(some) >= WORTH
    if able and isinstance(network, FlexibleViT) and network.axes == 3:
        shape = (prepared.x.shape[1], prepared.x.shape[2], prepared.x.shape[3])
        need = held_bytes(network, shape, target, 2 + FITTED + RANDOM)
        if need > SHARE_OF_MEMORY * _memory(prepared.x.device):
            slow = exact_vectors(encoder, prepared, target, filled)
            return Way(slow, f"one pass a box, because following tokens would take {need / 2**30:.3g} GiB", PASSES)
        return _by_tokens(encoder, prepared, target, filled, size, some[:FITTED], key, tell)
    return None


def _memory(device: torch.device) -> int:
    """Bytes that the device has in all."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else machine_memory()


def _by_reach(
    encoder: Encoder, prepared: Prepared, target: Target, filled: Float[Tensor, "c d h w"], reach: int | None
) -> Way:
    """Convolutions: the cells that a box can reach."""
    network, x = encoder.network, prepared.x
    assert isinstance(network, SegResNetEncoder)
    local = LocalPass(network, x, [level.name for level in encoder.levels].index(target.level))

    def vectors(at: Starts, size: Vec3) -> Float64[Tensor, "b c"]:
        kept = np.minimum(size, x.shape[1:])
        low = np.minimum(at, np.array(x.shape[1:]) - kept)  # a box cut at the end, with what lies before it
        boxes = [_box(x, filled, start, corner, kept) for start, corner in zip(at, low, strict=True)]
        data, cells = local.changed(torch.stack(boxes), low, reach)
        return target.of_windows(data, cells)

    return Way(vectors, "receptive field" + ("" if reach is None else f", {reach} convolutions a stage"))


def _by_tokens(
    encoder: Encoder,
    prepared: Prepared,
    target: Target,
    filled: Float[Tensor, "c d h w"],
    size: Vec3,
    fitted: Starts,
    key: Key,
    tell: Callable[[int, int], None],
) -> Way:
    """Attention: the box's tokens, and all others to first order."""
    assert isinstance(encoder.network, FlexibleViT)
    slow, rows = exact_vectors(encoder, prepared, target, filled), []
    for first in range(0, len(fitted), 4):
        rows.append(slow(fitted[first : first + 4], size))
        tell(first + len(rows[-1]), 2 * len(fitted) + RANDOM + 1)
    followed = AttentionPass(
        encoder.network,
        prepared.x,
        target,
        torch.cat(rows),
        key,
        lambda done, count: tell(len(fitted) + done, len(fitted) + count),
    )
    method = f"changed tokens, others to first order along {len(followed.known)} directions and {len(followed.beside)} random ones"
    return Way(lambda at, size: followed.vectors(filled, at, size), method, 64)


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
