"""What an occlusion changes in a transformer that sees the whole scan: the box's own tokens followed, all others to first order.

A box changes a few tokens of many. They are followed through all blocks, batched over boxes, against the keys and values that the
base pass left. In each block every other token's attention is computed anew for the changed keys and values, softmax included;
what that does to the vector later on is taken to first order, by the gradient with respect to the block's attention in the base
pass. What is left out: how the changes of *other* tokens, each small, act on each other, and back on the box's own.

Such a gradient is of one number, and a vector has hundreds. So the vector's change is computed along the directions in which some
boxes, run exactly, turn it, and along the vector itself, on which the cosine depends. The length of what lies outside is
estimated by random directions: the mean square of a vector's products with normal directions is its squared length (the idea of
Hutch++, Meyer et al. 2021, arXiv 2010.09649).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry.geometry import Vec3
from ctfoundry.models.rotary import rotate

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Float64, Int
    from torch import Tensor

    from ctfoundry.explain.saliency_target import Target
    from ctfoundry.keys import Key
    from ctfoundry.models.vit import FlexibleViT

    Starts = Int[np.ndarray, "b 3"]

WEIGHT_BYTES = 2**27
"""Attention weights of a group of boxes that are held at a time."""
RANDOM = 12
"""Random directions that estimate the length of what the others leave out."""


@dataclass(frozen=True, eq=False)
class _Kept:
    """One block of the base pass: queries (scaled, rotated), keys (rotated), values, and each row's logarithm of its sum of exponentials."""

    q: Float[Tensor, "heads t k"]
    k: Float[Tensor, "heads t k"]
    v: Float[Tensor, "heads t k"]
    log_sum: Float[Tensor, "heads t 1"]


@dataclass(frozen=True, eq=False)
class _Gradients:
    """Of r numbers with respect to one block's attention: `to` (heads, t, r k), and their products with the attention (heads, t, r)."""

    to: Float[Tensor, "heads t rk"]
    along: Float[Tensor, "heads t r"]


class AttentionPass:
    """The base pass over one prepared scan, its gradients, and what hidden boxes change in the target's vector.

    Parameters
    ----------
    network : a transformer over volumes.
    x : the prepared scan; its shape is a whole number of patches.
    target : a token's vector, or a weighted mean of patches.
    turned : vectors of the target with some boxes hidden, computed exactly.
    key : of the random directions.
    tell : called after each gradient with how many are done and how many there are.

    It takes `held_bytes` of memory.
    """

    def __init__(
        self,
        network: FlexibleViT,
        x: Float[Tensor, "c d h w"],
        target: Target,
        turned: Float64[Tensor, "n c"],
        key: Key,
        tell: Callable[[int, int], None] = lambda done, count: None,
    ) -> None:
        self.network, self.x, self.target = network, x, target
        self.grid = np.array(x.shape[1:]) // network.patch
        self.prefix = 1 + network.storage_tokens.shape[1]
        self.depth = _depth(network, target)
        self.known, self.beside = directions(target, turned, key)
        self.tables = network.rope_embed_3D(self.grid.tolist())
        self._kept: list[_Kept] = []
        self._gradients: list[_Gradients] = []
        self._look(tell)

    @property
    def tokens(self) -> int:
        """Of the whole scan, CLS and storage included."""
        return self.prefix + int(self.grid.prod())

    # ------------------------------------------------------------------ the base pass

    def _look(self, tell: Callable[[int, int], None]) -> None:
        """The base pass under hooks, its gradients along all directions, and what of it boxes will need."""
        level = self.network.levels[self.depth - 1].name
        projected: list[Tensor] = []
        attended: list[Tensor] = []
        hooks = []
        for block in self._blocks():
            hooks.append(block.attn.qkv.register_forward_hook(lambda _m, _i, out: projected.append(out)))
            hooks.append(block.attn.proj.register_forward_pre_hook(lambda _m, given: attended.append(given[0])))
        try:
            with torch.enable_grad():
                # the input asks for gradients, so that frozen weights do as well as others
                maps, tokens = self.network.features(self.x[None].clone().requires_grad_(), (level,))
                vector = self.target.of_output(maps, tokens)[0]
        finally:
            for hook in hooks:
                hook.remove()
        self._patches = maps[level][0].detach().flatten(1).T
        if self.target.weight is not None:
            self._share = self.target.weight.flatten().double()
        else:
            share = 1 / len(self._patches) if self.target.name == "cls+mean" else 0.0
            self._share = torch.full((len(self._patches),), share).to(vector)
        wanted, heads = torch.cat([self.known, self.beside]), self._blocks()[0].attn.heads
        n, width = attended[0].shape
        rows = [vector.new_empty(heads, n, len(wanted), width // heads, dtype=x.dtype) for x in attended]
        for i, direction in enumerate(wanted):
            found = torch.autograd.grad(vector, attended, direction.to(vector.dtype), retain_graph=i + 1 < len(wanted))
            for row, part in zip(rows, found, strict=True):
                row[:, :, i] = part.view(n, heads, -1).transpose(0, 1)
            tell(i + 1, len(wanted))
        for row, qkv, seen in zip(rows, projected, attended, strict=True):
            self._keep(row, qkv.detach(), seen.detach())

    def _blocks(self) -> list[Any]:
        return list(self.network.blocks)[: self.depth]

    def _keep(self, to: Float[Tensor, "heads t r k"], qkv: Float[Tensor, "t c"], seen: Float[Tensor, "t c"]) -> None:
        heads, n, _, wide = to.shape
        q, k, v = qkv.view(1, n, 3, heads, wide).permute(2, 0, 3, 1, 4)
        q = rotate(q, *self.tables)[0] * wide**-0.5
        k, v = rotate(k, *self.tables)[0], v[0].contiguous()
        parts = [torch.logsumexp(part @ k.transpose(1, 2), -1) for part in q.split(512, 1)]
        self._kept.append(_Kept(q, k, v, torch.cat(parts, 1)[..., None]))
        along = (to @ seen.view(n, heads, wide, 1).transpose(0, 1))[..., 0]
        self._gradients.append(_Gradients(to.flatten(2), along))

    # ------------------------------------------------------------------ boxes

    @torch.no_grad()
    def vectors(self, filled: Float[Tensor, "c d h w"], at: Starts, size: Vec3) -> Float64[Tensor, "b c"]:
        """The target's vectors with the boxes from `at` on hidden by `filled`.

        Their cosines to the base and to the reference are meant: what lies outside the known directions has the estimated length and
        no direction of its own.
        """
        direct, others = self.changes(filled, at, size)
        base, r = self.target.base, len(self.known)
        vectors = base + (direct @ self.known.T + others[:, :r]) @ self.known
        if len(self.beside):
            own = direct @ self.beside.T  # known in full, so that its own length is not estimated
            rest = direct - direct @ self.known.T @ self.known
            length = rest.square().sum(1) + ((own + others[:, r:]).square() - own.square()).mean(1)
            vectors = vectors + length.clamp_min(0).sqrt()[:, None] * torch.nn.functional.normalize(
                self.beside[0], dim=0
            )
        return vectors

    @torch.no_grad()
    def changes(
        self, filled: Float[Tensor, "c d h w"], at: Starts, size: Vec3
    ) -> tuple[Float64[Tensor, "b c"], Float64[Tensor, "b r"]]:
        """What the boxes' own tokens change in the vector, and what all others change along `known` and `beside`."""
        patch, shape = np.array(self.network.patch), np.array(self.x.shape[1:])
        low, high = at // patch, -(-np.minimum(at + size, shape) // patch)
        many = (high - low).max(0)  # tokens of every box; one that has fewer takes unchanged ones beside
        low = np.minimum(low, self.grid - many)
        weights = 4 * 4 * len(self._kept[0].q) * int(many.prod()) * self.tokens
        group = max(1, WEIGHT_BYTES // weights)
        rows = [
            self._group(filled, at[i : i + group], size, low[i : i + group], many) for i in range(0, len(at), group)
        ]
        return torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows])

    def _group(
        self, filled: Tensor, at: Starts, size: Vec3, low: np.ndarray, many: np.ndarray
    ) -> tuple[Float64[Tensor, "b c"], Float64[Tensor, "b r"]]:
        place = _places(low, many, self.grid).to(self.x.device)  # b m, of patches
        b, m = place.shape
        x = self.network.patch_embed_3D(self._boxes(filled, at, size, low, many), self.network.patch)
        own = place + self.prefix
        free = torch.ones(b, self.tokens, dtype=torch.bool, device=x.device).scatter_(1, own, False)
        sin, cos = (table[place.flatten()] for table in self.tables)
        others = x.new_zeros(b, len(self.known) + len(self.beside))
        for block, kept, gradients in zip(self._blocks(), self._kept, self._gradients, strict=True):
            heads, wide = len(kept.q), kept.q.shape[2]
            q, k, v = block.attn.qkv(block.norm1(x)).view(1, b * m, 3, heads, wide).permute(2, 0, 3, 1, 4)
            q, k, v = rotate(q, sin, cos)[0] * wide**-0.5, rotate(k, sin, cos)[0], v[0]  # heads (b m) k
            others += _others(kept, gradients, k, v, own, free)
            seen = _own(kept, q, k, v, free)
            x = x + block.ls1(block.attn.proj(seen.transpose(0, 1).reshape(b, m, -1)))
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return self._direct(x, place), others.double()

    def _boxes(self, filled: Tensor, at: Starts, size: Vec3, low: np.ndarray, many: np.ndarray) -> Tensor:
        """Voxels of the boxes' tokens (b, c, ...), hidden where the boxes lie."""
        patch, boxes = np.array(self.network.patch), []
        for start, corner in zip(at, low * patch, strict=True):
            part = tuple(slice(int(a), int(a + n)) for a, n in zip(corner, many * patch, strict=True))
            inner = tuple(slice(int(a - c), int(a - c + n)) for a, c, n in zip(start, corner, size, strict=True))
            box = self.x[(slice(None), *part)].clone()
            box[(slice(None), *inner)] = filled[(slice(None), *part)][(slice(None), *inner)]
            boxes.append(box)
        return torch.stack(boxes)

    def _direct(self, x: Float[Tensor, "b m k"], place: Int[Tensor, "b m"]) -> Float64[Tensor, "b c"]:
        """What the boxes' own tokens change where they are in the vector themselves."""
        moved = self.network.norm(x).double() - self._patches[place].double()
        moved = (moved * self._share[place][..., None]).sum(1)
        if self.target.name == "cls+mean" and self.target.how == "token":
            return torch.nn.functional.pad(moved, (self.network.width, 0))
        return moved


def directions(
    target: Target, turned: Float64[Tensor, "n c"], key: Key
) -> tuple[Float64[Tensor, "r c"], Float64[Tensor, "s c"]]:
    """Orthonormal directions in which the vector's change is wanted, and random ones of unit variance in what those leave out.

    The first span the target's vector, its reference and the changes of some boxes. Where that leaves hardly any, all are wanted.
    """
    wide = len(target.base)
    fixed = [target.base] if target.reference is None else [target.base, target.reference.to(target.base)]
    known = torch.linalg.qr(torch.stack(fixed).T)[0].T
    left = turned - target.base
    left = left - left @ known.T @ known
    left = left / left.norm(dim=1, keepdim=True).clamp_min(1e-30).sqrt()  # large ones first, but not alone
    _, strength, basis = torch.linalg.svd(left, full_matrices=False)
    known = torch.cat([known, basis[strength > 1e-3 * strength[:1]]])
    if len(known) + RANDOM >= wide:
        return torch.eye(wide).to(known), known[:0]
    drawn = torch.from_numpy(key.normal((RANDOM, wide))).to(known)
    return known, drawn - drawn @ known.T @ known


def held_bytes(network: FlexibleViT, shape: Vec3, target: Target, count: int) -> int:
    """Memory of a base pass over a scan of `shape` with what its gradients need (some 32 rows of the width a block, measured), of `count`
    gradients and of what boxes need."""
    tokens = 1 + network.storage_tokens.shape[1] + int(np.prod(np.array(shape) // network.patch))
    return 4 * tokens * network.width * _depth(network, target) * (32 + 4 + count)


def _depth(network: FlexibleViT, target: Target) -> int:
    """Blocks that the target's vector has passed."""
    names = [level.name for level in network.levels]
    return len(names) if target.how == "token" else names.index(target.level) + 1


def _others(
    kept: _Kept,
    gradients: _Gradients,
    k: Float[Tensor, "heads bm k"],
    v: Float[Tensor, "heads bm k"],
    own: Int[Tensor, "b m"],
    free: Bool[Tensor, "b t"],
) -> Float[Tensor, "b r"]:
    """What all other tokens read anew from the boxes' changed keys and values, along the gradients.

    With a row's old weights w and new ones w' of the box's keys (in units of the row's old sum), its attention a becomes
    (a - w v + w' v') / (1 - w + w'), so it changes by (w' (v' - a) - w (v - a)) / (1 - w + w').
    """
    (b, m), (heads, n, wide), r = own.shape, kept.k.shape, gradients.along.shape[2]
    keys = torch.cat([kept.k[:, own.flatten()], k], 1)
    values = torch.stack([kept.v[:, own.flatten()], v], 1).view(heads, 2, b, m, wide, 1)
    w = torch.baddbmm(-kept.log_sum.transpose(1, 2), keys, kept.q.transpose(1, 2)).clamp_(max=60).exp_()
    w = w.view(heads, 2, b, m, n).mul_(free[:, None])
    more = (w[:, 1] - w[:, 0]).sum(2)  # heads b t
    total = (1 + more).clamp_min_(1e-6)
    w /= total[:, None, :, None]
    read = (w.view(heads, 2 * b * m, n) @ gradients.to).view(heads, 2, b, m, r, wide)
    old, new = (read @ values).sum((0, 3))[..., 0]
    return new - old - ((more / total) @ gradients.along).sum(0)


def _own(
    kept: _Kept,
    q: Float[Tensor, "heads bm k"],
    k: Float[Tensor, "heads bm k"],
    v: Float[Tensor, "heads bm k"],
    free: Bool[Tensor, "b t"],
) -> Float[Tensor, "heads bm k"]:
    """Attention of the boxes' tokens: to all others as the base pass left them, and to each other as they are now."""
    b, (heads, n, wide) = len(free), kept.k.shape
    q, k, v = (z.view(heads, b, -1, wide) for z in (q, k, v))
    far = (q.flatten(1, 2) @ kept.k.transpose(1, 2)).view(heads, b, -1, n).masked_fill(~free[:, None], -torch.inf)
    p = torch.cat([far, q @ k.transpose(2, 3)], -1).softmax(-1)
    seen = (p[..., :n].flatten(1, 2) @ kept.v).view_as(v) + p[..., n:] @ v
    return seen.flatten(1, 2)


def _places(low: np.ndarray, many: np.ndarray, grid: np.ndarray) -> Int[Tensor, "b m"]:
    """Numbers of the patches of each box."""
    step = np.stack(np.meshgrid(*(np.arange(n) for n in many), indexing="ij"), -1).reshape(-1, 3)
    return torch.from_numpy(np.ravel_multi_index(tuple(np.moveaxis(low[:, None] + step, -1, 0)), tuple(grid)))
