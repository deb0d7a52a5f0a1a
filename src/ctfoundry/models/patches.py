"""Patch embedding whose patch size is chosen at run time (reference, 1.3; FlexiViT, arXiv 2212.08013)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ctfoundry.errors import ContractError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Size = tuple[int, ...]


@lru_cache(maxsize=32)
def resize_matrix(old: Size, new: Size) -> Float[Tensor, "new old"]:
    """The linear map that resizes a kernel: bicubic with antialiasing in 2D, trilinear without in 3D, half-pixel centres."""
    basis = torch.eye(prod(old)).reshape(prod(old), 1, *old)
    if len(old) == 2:
        made = F.interpolate(basis, size=new, mode="bicubic", align_corners=False, antialias=True)
    else:
        made = F.interpolate(basis, size=new, mode="trilinear", align_corners=False)
    return made.reshape(prod(old), prod(new)).T.contiguous()


@lru_cache(maxsize=32)
def _pseudo_inverse(old: Size, new: Size) -> Float[Tensor, "old new"]:
    return torch.linalg.pinv(resize_matrix(old, new))


def resize_kernel(weight: Float[Tensor, "o i ..."], new: Size) -> Float[Tensor, "o i ..."]:
    """The kernel at another patch size: of all kernels the one whose answer to resized patches is nearest to the old answer.

    >>> resize_kernel(torch.ones(3, 1, 8, 8), (16, 16)).shape
    torch.Size([3, 1, 16, 16])
    """
    old = tuple(weight.shape[2:])
    if old == new:
        return weight
    inverse = _pseudo_inverse(old, new).to(weight.device)
    with torch.autocast(weight.device.type, enabled=False):
        made = weight.float().flatten(2) @ inverse
    return made.reshape(*weight.shape[:2], *new).to(weight.dtype)


def inflate_depth(
    weight: Float[Tensor, "o i h w"], depth: int, how: Literal["average", "centre"] = "average"
) -> Tensor:
    """A 2D kernel as a 3D one: every slice a share of it, or the middle slice (``depth // 2``) all of it (reference, 1.4)."""
    if how == "average":
        return (weight / depth)[:, :, None].expand(-1, -1, depth, -1, -1).contiguous()
    made = weight.new_zeros(*weight.shape[:2], depth, *weight.shape[2:])
    made[:, :, depth // 2] = weight
    return made


def inflate_channels(weight: Float[Tensor, "o 1 ..."], channels: int) -> Float[Tensor, "o c ..."]:
    """A kernel for several images on one grid (CT and PET): each gets a share, so equal images give the old answer."""
    if weight.shape[1] != 1:
        raise ContractError(f"the kernel has {weight.shape[1]} channels already, not one")
    return (weight / channels).repeat(1, channels, *[1] * (weight.ndim - 2))


class PatchEmbed(nn.Module):
    """One linear map of every patch; `proj` holds kernel and bias as a convolution does, so published names fit."""

    def __init__(self, axes: int, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        kind = nn.Conv2d if axes == 2 else nn.Conv3d
        self.axes = axes
        self.proj = kind(in_channels, width, kernel_size=patch, stride=patch)

    @torch.no_grad()
    def with_channels(self, channels: int) -> PatchEmbed:
        """The embedding of several images on one grid (`inflate_channels`), its weights its own."""
        weight = inflate_channels(self.proj.weight, channels)
        other = PatchEmbed(self.axes, channels, len(weight), self.proj.kernel_size[0]).to(weight.device, weight.dtype)
        other.proj.weight.copy_(weight)
        if other.proj.bias is not None and self.proj.bias is not None:
            other.proj.bias.copy_(self.proj.bias)
        return other

    def forward(self, x: Float[Tensor, "b c ..."], patch: Size) -> Float[Tensor, "b n k"]:
        """Patches in row-major order. Raises ContractError for an input that the patch does not divide."""
        size = tuple(x.shape[2:])
        if x.ndim != 2 + self.axes or x.shape[1] != self.proj.in_channels:
            raise ContractError(
                f"an input of shape {tuple(x.shape)} has not {self.axes} axes behind batch and {self.proj.in_channels} channels"
            )
        if any(n % p for n, p in zip(size, patch, strict=True)):
            raise ContractError(
                f"an input of {size} voxels is no whole number of patches of {patch}",
                do="let the preparation pad it (sizing.multiple)",
            )
        weight = resize_kernel(self.proj.weight, patch)
        # A convolution whose stride is its kernel is one matrix product on patches, and much faster as that on the CPU.
        cut = [x.shape[0], x.shape[1]]
        for n, p in zip(size, patch, strict=True):
            cut += [n // p, p]
        grid = range(2, 2 + 2 * self.axes, 2)
        rows = x.reshape(cut).permute(0, *grid, 1, *[a + 1 for a in grid]).reshape(x.shape[0], -1, weight[0].numel())
        return F.linear(
            rows.to(weight.dtype) if not torch.is_autocast_enabled(x.device.type) else rows,
            weight.flatten(1),
            self.proj.bias,
        )


def as_size(patch: int | Sequence[int], axes: int) -> Size:
    """A patch size as one number an axis."""
    size = (patch,) * axes if isinstance(patch, int) else tuple(int(p) for p in patch)
    if len(size) != axes or min(size) < 1:
        raise ContractError(f"a patch of {axes} axes is one number or {axes}, each at least 1, not {patch}")
    return size
