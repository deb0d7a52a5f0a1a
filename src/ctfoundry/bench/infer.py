"""``ctfoundry bench infer``: a whole scan to labels on its own grid, 118 classes, against MONAI's windows, resampling and argmax.

Both sides run the same windows of the same prepared scan. The first row's network is one convolution with CT-FM's 32
features and 118 classes, so that what stands around the network shows; the second's is CT-FM's own (87 million weights, random),
with smaller windows than published so that it ends. In these two both sides run the very same module, ours; in the third the other
side runs MONAI's own `SegResNetDS` with the same weights, as one does who stays with MONAI; the fourth is the second in bf16; the last
has the published windows, of which one takes minutes on a CPU: a scan that is one window, timed once. `max_error` is the share of voxels with another label: equal logits decide
differently after rounding. `ours_gib` and `other_gib` are each side's memory above what was held before.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry.bench.baselines.infer import monai_labels, monai_network
from ctfoundry.bench.memory import peak_gib
from ctfoundry.encoder import Card
from ctfoundry.errors import UsageError
from ctfoundry.geometry import Vec3, make_affine
from ctfoundry.infer.passes import Extent, Precision, autocast
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.segresnet_ds import SegResNetDS
from ctfoundry.preparation import PREPARATIONS, prepare
from ctfoundry.segmenter import Pass, Segmenter
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = 118
SPACING = (1.5, 0.85, 0.85)
CASES: tuple[tuple[str, Vec3, Vec3, float, Precision], ...] = (
    ("reduction", (96, 256, 256), (48, 80, 80), 0.5, "fp32"),
    ("network", (48, 160, 160), (32, 64, 64), 0.5, "fp32"),
    ("monai", (48, 160, 160), (32, 64, 64), 0.5, "fp32"),
    ("network", (48, 160, 160), (32, 64, 64), 0.5, "bf16"),
    ("published", (64, 188, 188), (96, 160, 160), 0.625, "fp32"),
)
"""What stands around and within the network, grid of the scan, windows, their overlap, precision of the network."""
WHAT = {
    "reduction": "one convolution",
    "network": "CT-FM's network",
    "monai": "CT-FM's network and MONAI's own",
    "published": "CT-FM's network as published",
}


class Thin(torch.nn.Module):
    """The least that has 32 features before 118 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = CLASSES
        self.body = torch.nn.Conv3d(1, 32, 1)
        self.head = torch.nn.Conv3d(32, CLASSES, 1)

    def trunk(self, x: Tensor) -> Tensor:
        """32 features of each voxel alone."""
        return self.body(x).mul_(20).sin_()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.trunk(x))


def run(*, repeats: int = 3, threads: int = 1) -> list[dict[str, Any]]:
    """One row a network; on a GPU where there is one, else on `threads` threads."""
    try:
        from monai.data.meta_obj import get_track_meta, set_track_meta
    except ImportError as error:
        raise UsageError("this benchmark needs MONAI", do="pip install 'ctfoundry[dev]'") from error

    before, tracked = torch.get_num_threads(), get_track_meta()
    torch.set_num_threads(threads)
    set_track_meta(True)  # SpatialResample takes the affine from it
    try:
        return [_row(*case, repeats, threads) for case in CASES]
    finally:
        torch.set_num_threads(before)
        set_track_meta(tracked)


def segmenter(kind: str, size: Vec3, overlap: float, device: torch.device) -> Segmenter:
    """CT-FM's segmentation network or the thin one, with random weights."""
    base = PREPARATIONS["ct-fm-1.5mm"]
    card = Card(
        name=kind,
        kind="segmenter",
        architecture="segresnet-ds",
        arguments={"classes": CLASSES},
        preparation=replace(base, resampling=replace(base.resampling, foreground=None)),
        extent=Extent("windows", size, overlap, "gaussian"),
        level="",
        vector="",
        weights="random",
        names=("background", *(f"part{k}" for k in range(1, CLASSES))),
    )
    network = Thin() if kind == "reduction" else SegResNetDS(CLASSES)
    return Segmenter.of(initialise(network, Key.of("bench", "infer")).to(device), card)


def _row(
    kind: str, shape: Vec3, size: Vec3, overlap: float, precision: Precision, repeats: int, threads: int
) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = segmenter(kind, size, overlap, device)
    key = Key.of("bench", "infer", "scan")
    coarse = torch.from_numpy(key.normal((1, 1, *(n // 8 for n in shape)))).float()
    hu = torch.nn.functional.interpolate(coarse, shape, mode="trilinear")[0, 0] * 600
    volume = Volume(hu.round().numpy().astype(np.int16), make_affine(SPACING, "SPL"))
    batch = 1 if kind == "published" else 2
    repeats = 1 if kind == "published" else repeats
    other = monai_network(made.network, CLASSES).to(device) if kind == "monai" else made.network

    def forward(x: Tensor) -> Tensor:
        with autocast(device, precision):
            found: Tensor = other(x)
        return found.float()  # windows are blended in float32 on both sides

    def ours() -> np.ndarray:
        return made(volume, settings=Pass(batch=batch, precision=precision)).voxels

    def theirs() -> np.ndarray:
        prepared = prepare(made.preparation, volume, device=device)
        return monai_labels(forward, prepared, made.extent, batch, volume.grid)

    found: dict[str, np.ndarray] = {}
    memory = {
        "ours": peak_gib(lambda: found.update(ours=ours()), device),
        "other": peak_gib(lambda: found.update(other=theirs()), device),
    }
    times: dict[str, list[float]] = {"ours": [], "other": []}
    for _ in range(repeats):
        for side, call in (("ours", ours), ("other", theirs)):
            start = time.perf_counter()
            call()
            times[side].append(time.perf_counter() - start)
    ours_s, other_s = (float(np.median(times[side])) for side in ("ours", "other"))
    return {
        "name": f"{CLASSES} classes on {'x'.join(map(str, shape))}: {WHAT[kind]}, windows of {'x'.join(map(str, size))}",
        "ours_s": ours_s,
        "other_s": other_s,
        "ratio": other_s / ours_s,
        "max_error": float((found["ours"] != found["other"]).mean()),
        "threads": threads,
        "dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision],
        "ours_gib": memory["ours"],
        "other_gib": memory["other"],
        "logits_gib": 4 * CLASSES * float(np.prod(shape)) / 2**30,
    }
