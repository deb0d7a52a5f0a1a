"""The same transformer as one writes it with torch's own parts: `nn.MultiheadAttention`, one input size, no rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from ctfoundry.models.vit import FlexibleViT

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma1, self.gamma2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
        y = self.norm1(x)
        x = x + self.gamma1 * self.attention(y, y, y, need_weights=False)[0]
        return x + self.gamma2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PlainViT(nn.Module):
    """`FlexibleViT` with its weights, for volumes or slices of one patch size; `nn.MultiheadAttention` cannot turn queries and
    keys, so it does less work than ours."""

    def __init__(self, ours: FlexibleViT) -> None:
        super().__init__()
        embed = ours.patch_embed_2D if ours.axes == 2 else ours.patch_embed_3D
        self.embed = embed.proj
        self.prefix = nn.Parameter(torch.cat([ours.cls_token, ours.storage_tokens], 1).detach().clone())
        self.blocks = nn.ModuleList()
        for block in ours.blocks:
            mine = _Block(ours.width, block.attn.heads)  # type: ignore[union-attr, arg-type]
            state = block.state_dict()
            mine.norm1.load_state_dict({k: state[f"norm1.{k}"] for k in ("weight", "bias")})
            mine.norm2.load_state_dict({k: state[f"norm2.{k}"] for k in ("weight", "bias")})
            mine.attention.in_proj_weight.data.copy_(state["attn.qkv.weight"])
            mine.attention.in_proj_bias.data.zero_()
            mine.attention.out_proj.load_state_dict({k: state[f"attn.proj.{k}"] for k in ("weight", "bias")})
            mine.fc1.load_state_dict({k: state[f"mlp.fc1.{k}"] for k in ("weight", "bias")})
            mine.fc2.load_state_dict({k: state[f"mlp.fc2.{k}"] for k in ("weight", "bias")})
            mine.gamma1.data.copy_(state["ls1.gamma"])
            mine.gamma2.data.copy_(state["ls2.gamma"])
            self.blocks.append(mine)
        self.norm = nn.LayerNorm(ours.width, eps=1e-6)
        self.norm.load_state_dict(ours.norm.state_dict())

    def forward(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b n k"]:
        """All tokens after the last norm."""
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
