"""A step of contrastive pretraining as one writes it with MONAI: its transforms, its SegResEncoder, NT-Xent in plain torch, a plain loop.

The kindest form of it: scans are prepared beforehand and stay in memory, tensors carry no metadata, the loss is made of
matrix products (the public code loops over anchors), AdamW is the fused one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ctfoundry.pretrain.recipe import Recipe

    Mark = Callable[[str], None]


class Network(nn.Module):
    """MONAI's encoder, global average, SimCLR's head; batch norm before it where the recipe has that."""

    def __init__(self, recipe: Recipe) -> None:
        from monai.networks.nets.segresnet_ds import SegResEncoder

        super().__init__()
        model = recipe.model
        self.encoder = SegResEncoder(init_filters=model.filters, blocks_down=model.blocks)
        width = model.filters * 2 ** (len(model.blocks) - 1)
        hidden, out = model.head
        self.norm = nn.BatchNorm1d(width, affine=False) if model.head_norm else nn.Identity()
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))

    def pooled(self, x: Float[Tensor, "n 1 d h w"]) -> Float[Tensor, "n width"]:
        """The mean of the deepest map."""
        return F.adaptive_avg_pool3d(self.encoder(x)[-1], 1).flatten(1)

    def take(self, modules: nn.ModuleDict) -> None:
        """The weights of our modules, which have the same names."""
        self.encoder.load_state_dict(modules["encoder"].state_dict())
        self.head.load_state_dict({k.removeprefix("layers."): v for k, v in modules["head"].state_dict().items()})


def nt_xent(z: Float[Tensor, "b m 2 c"], temperature: float, *, symmetric: bool) -> Float[Tensor, ""]:
    """Scan by scan, by four products of the two views' vectors and one cross-entropy, as lightly does it for a batch."""
    losses = []
    for scan in F.normalize(z, dim=-1):
        one, two = scan.unbind(1)  # m c
        m = len(scan)
        others = ~torch.eye(m, dtype=torch.bool, device=z.device)
        across, back = one @ two.T / temperature, two @ one.T / temperature
        within = [(v @ v.T / temperature)[others].view(m, m - 1) for v in (one, two)]
        logits = [torch.cat([across, within[0]], 1)]
        if symmetric:
            logits.append(torch.cat([back, within[1]], 1))
        target = torch.arange(m, device=z.device).repeat(len(logits))
        losses.append(F.cross_entropy(torch.cat(logits), target))
    return torch.stack(losses).mean()


class RandomResizedCrop:
    """One scale for all axes, a random place, resized back: the public pipeline's own transform, made of MONAI's."""

    def __init__(self, size: Sequence[int], scale: tuple[float, float], random: np.random.RandomState) -> None:
        from monai.transforms import Resize

        self.size, self.scale, self.random = size, scale, random
        self.resize = Resize(spatial_size=size, mode="trilinear", align_corners=False)

    def __call__(self, x: Any) -> Any:
        """A view of the crop's size."""
        from monai.transforms import SpatialCrop

        scale = self.random.uniform(*self.scale)
        size = [math.ceil(scale * n) for n in self.size]
        start = [self.random.randint(n - s + 1) for n, s in zip(self.size, size, strict=True)]
        end = [a + s for a, s in zip(start, size, strict=True)]
        return self.resize(SpatialCrop(roi_start=start, roi_end=end)(x))


@dataclass(frozen=True)
class Form:
    """How the step is written.

    Attributes
    ----------
    batched : all views in one forward pass; False: each crop-view of the batch alone, as the public code does.
    channels_last : activations and weights in channels_last_3d.
    """

    batched: bool
    channels_last: bool = False


class Loop:
    """The plain loop of a recipe (intra-sample SimCLR) over prepared scans in memory."""

    def __init__(
        self, recipe: Recipe, scans: Sequence[Float[Tensor, "1 d h w"]], device: torch.device, form: Form, seed: int = 0
    ) -> None:
        from monai.transforms import Compose, RandFlip, RandGaussianSmooth, RandHistogramShift, RandSpatialCropSamples

        self.recipe, self.scans, self.device, self.form = recipe, scans, device, form
        views, sigma = recipe.views, recipe.views.sigma
        random = np.random.RandomState(seed)
        self.crops = RandSpatialCropSamples(recipe.crop, num_samples=recipe.crops, random_size=False)
        self.view = Compose(
            [
                RandomResizedCrop(recipe.crop, views.scale, random),
                RandFlip(prob=views.flip, spatial_axis=0),
                RandHistogramShift(num_control_points=views.control_points, prob=views.shift),
                RandGaussianSmooth(sigma_x=sigma, sigma_y=sigma, sigma_z=sigma, prob=views.smooth),
            ]
        )
        self.crops.set_random_state(seed)
        self.view.set_random_state(seed)
        self.network = Network(recipe).to(device).train()
        if form.channels_last:
            self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        optimiser = recipe.train.optimiser
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=optimiser.rate,
            betas=optimiser.betas,
            eps=optimiser.eps,
            weight_decay=optimiser.weight_decay,
            fused=True,
        )
        self.at = 0

    def loss(self, crops: list[list[Float[Tensor, "b 1 d h w"]]]) -> Float[Tensor, ""]:
        """Of the two views of each crop."""
        recipe, network = self.recipe, self.network
        views = [view for pair in crops for view in pair]  # (m 2) of b
        if self.form.batched:
            x = torch.cat(views)
            if self.form.channels_last:
                x = x.contiguous(memory_format=torch.channels_last_3d)
            pooled = network.pooled(x)
        else:
            pooled = torch.cat([network.pooled(view) for view in views])
        with torch.autocast(self.device.type, enabled=False):
            z = network.head(network.norm(pooled.float()))
            z = z.view(recipe.crops, 2, -1, z.shape[1]).permute(2, 0, 1, 3)  # b m 2 c
            return nt_xent(z, recipe.loss.temperature, symmetric=recipe.loss.symmetric)

    def step(self, precision: str, mark: Mark = lambda _: None) -> float:
        """One step; `mark` is called with the name of each part when it ends."""
        recipe = self.recipe
        batch = []
        for _ in range(recipe.train.batch):
            batch.append(self.crops(self.scans[self.at % len(self.scans)]))
            self.at += 1
        mark("data")
        pairs = [[(self.view(crop), self.view(crop)) for crop in crops] for crops in batch]  # b m 2
        crops = [
            [torch.stack([scan[m][v] for scan in pairs]).to(self.device) for v in (0, 1)] for m in range(recipe.crops)
        ]
        mark("views")
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            loss = self.loss(crops)
        mark("forward")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        mark("backward")
        self.optimiser.step()
        mark("optimiser")
        return float(loss.detach())
