"""Labels of a whole scan as MONAI's parts make them: windows, all logits resampled to the scan's grid, argmax.

As well as they can be used: float32 (SpatialResample's default is float64), no tracked metadata, the network in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from ctfoundry.geometry import Grid
from ctfoundry.infer.passes import Extent
from ctfoundry.preparation import Prepared

if TYPE_CHECKING:
    from torch import Tensor


@torch.no_grad()
def monai_labels(
    network: Callable[[Tensor], Tensor], prepared: Prepared, extent: Extent, batch: int, grid: Grid
) -> np.ndarray:
    """The label of each voxel of `grid`, (d, h, w)."""
    from monai.data.meta_tensor import MetaTensor
    from monai.inferers.utils import sliding_window_inference
    from monai.transforms.spatial.array import SpatialResample

    assert extent.size is not None
    mode = "gaussian" if extent.blend == "gaussian" else "constant"
    found: Tensor = sliding_window_inference(prepared.x[None], extent.size, batch, network, extent.overlap, mode=mode)[
        0
    ]
    logits = MetaTensor(found, affine=torch.from_numpy(np.array(prepared.affine)))
    onto = SpatialResample(mode="bilinear", padding_mode="border", align_corners=False, dtype=torch.float32)
    placed = onto(logits, dst_affine=torch.from_numpy(np.array(grid.affine)), spatial_size=grid.shape)
    return placed.argmax(0).to(torch.uint8).cpu().numpy()


def monai_network(ours: torch.nn.Module, classes: int) -> torch.nn.Module:
    """MONAI's `SegResNetDS` of the published sizes with the weights of ours, which have the same names."""
    from monai.networks.nets.segresnet_ds import SegResNetDS

    network = SegResNetDS(init_filters=32, blocks_down=(1, 2, 2, 4, 4), norm="batch", dsdepth=4, out_channels=classes)
    network.load_state_dict({name: value.contiguous() for name, value in ours.state_dict().items()})
    return network.eval()
