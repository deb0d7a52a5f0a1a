"""The contract between volumes and model tensors.

A `Preparation` says, as data, how a volume becomes model input: which kinds it accepts, orientation and spacing, intensity,
sizing. Weights never travel without it. `prepare` applies it; `Prepared` remembers where every voxel lies, so that each
result finds its way back to the scan.

Order: reorient, crop to the foreground, resample, clip and scale, pad and crop. The foreground box is found on the
reoriented source grid, so that crop and resampling are one interpolation (the reference does not record which of the two
its pretraining did first; the difference is below one output voxel at the border of the box).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from ctfoundry import geometry, resampling
from ctfoundry.errors import ContractError, SettingsError
from ctfoundry.geometry import Box, Grid, Vec3
from ctfoundry.resampling import Rule
from ctfoundry.settings import nearest
from ctfoundry.volume import AIR, Kind, Volume

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

PREPARED_CAP_BYTES = 12 * 2**30
"""Largest float32 tensor that `prepare` makes; larger scans are refused before anything is allocated."""

SAME_GRID_VOXELS = 1e-3
"""An axis is copied, not interpolated, when no voxel would move by more than this share of a voxel: spacings in files are
rounded (0.99999994 mm), and a pure crop should be one."""


@dataclass(frozen=True)
class Foreground:
    """The box of voxels above a HU, grown by a margin (voxels of the source grid).

    Cropping "before scaling" in the published pipelines is ``above=0``; "after scaling" is ``above`` the lower clip.
    """

    above: float
    margin: int = 0


@dataclass(frozen=True)
class Resampling:
    """Orientation code, millimetres per axis (None: keep), sample positions, HU outside, foreground crop."""

    orientation: str | None = "SPL"
    spacing: tuple[float | None, float | None, float | None] = (None, None, None)
    rule: Rule = "monai"
    outside: float = AIR
    foreground: Foreground | None = None


@dataclass(frozen=True)
class Intensity:
    """Clip range in HU, then either windows to 0..1 or one normalisation.

    norm: ``unit`` maps the clip range to 0..1; ``z-volume`` and ``z-slice`` subtract the mean and divide by the deviation
    (`ddof` 0 or 1) of the clipped values of the volume or of each slice along axis 0. A deviation under 1e-6 only centres.
    stack: several windows become channels, or lie one after the other along axis 0 (head CT).
    """

    clip: tuple[float, float] = (-1024.0, 2048.0)
    windows: tuple[tuple[float, float], ...] = ()
    norm: Literal["unit", "z-volume", "z-slice"] = "unit"
    ddof: int = 0
    stack: Literal["none", "axis0", "channel"] = "none"

    def __post_init__(self) -> None:
        if self.clip[0] >= self.clip[1] or any(low >= high for low, high in self.windows):
            raise ValueError(f"a window runs from a lower to a higher HU: clip {self.clip}, windows {self.windows}")
        if (self.stack == "none") is (len(self.windows) > 1):
            raise ValueError("several windows need stack 'axis0' or 'channel', one needs 'none'")


@dataclass(frozen=True)
class Sizing:
    """Smallest size, multiple and crop of the prepared tensor, in its voxels; `pad` is the value of added voxels.

    pad: ``air`` is what -1024 HU becomes, ``min`` the smallest prepared value, a number is taken as it is.
    at: ``centre`` pads and crops on both sides (as MONAI does: the end is padded by the odd voxel, and voxel ``n // 2`` stays
    voxel ``crop // 2``), ``end`` only there.
    """

    minimum: Vec3 | None = None
    multiple: Vec3 = (1, 1, 1)
    crop: Vec3 | None = None
    pad: float | Literal["min", "air"] = "air"
    at: Literal["centre", "end"] = "centre"


@dataclass(frozen=True)
class Preparation:
    """How a volume becomes model input. `version` grows whenever the result changes; caches are keyed by it."""

    name: str
    version: int
    accepts: tuple[Kind, ...] = ("hu",)
    resampling: Resampling = Resampling()
    intensity: Intensity = Intensity()
    sizing: Sizing = Sizing()


@dataclass(frozen=True)
class Placement:
    """Where the resampled voxels lie: voxel k of axis a on ``start[a] + step[a] * k`` of the reoriented source.

    `source` is the box of the reoriented source that is resampled; no voxel outside it counts, whatever lies there.
    """

    shape: Vec3
    start: tuple[float, float, float]
    step: tuple[float, float, float]
    affine: geometry.Affine
    rule: Rule
    source: Box

    def operators(self, box: Box, source: Box) -> tuple[resampling.Taps, resampling.Taps, resampling.Taps]:
        """Operators that give `box` of the result from `source`, a box of the source (`reads` says which is needed)."""
        made = [
            resampling.taps(s1 - s0, high - low, start + step * low - s0, step, antialias=self.rule == "antialias")
            for (low, high), (s0, s1), start, step in zip(box, source, self.start, self.step, strict=True)
        ]
        return made[0], made[1], made[2]

    def reads(self, box: Box) -> Box:
        """The box of the source that `box` of the result depends on."""
        ranges = []
        for (low, high), start, step, (s0, s1) in zip(box, self.start, self.step, self.source, strict=True):
            reach = max(abs(step), 1.0) if self.rule == "antialias" else 1.0
            first, last = start + step * low, start + step * (high - 1)
            a = int(np.clip(np.floor(min(first, last) - reach) + 1, s0, s1 - 1))
            b = int(np.clip(np.ceil(max(first, last) + reach), a + 1, s1))
            ranges.append((a, b))
        return ranges[0], ranges[1], ranges[2]


@dataclass(frozen=True)
class Prepared:
    """Model input and where it lies.

    Attributes
    ----------
    x : tensor (c, d, h, w), float32.
    affine : prepared voxel (d, h, w) to world millimetres. With windows stacked along axis 0 it is that of the first.
    valid : False where a voxel is padding or fill, (d, h, w).
    source : the grid of the scan as it was given.
    """

    x: Float[Tensor, "c d h w"]
    affine: geometry.Affine
    valid: Bool[Tensor, "d h w"]
    source: Grid

    def restore(self, data: Float[Tensor, "d h w"] | np.ndarray, order: Literal[0, 1] = 1) -> Volume:
        """A map on the prepared grid brought back to the scan's own grid.

        order 1: a continuous map, linear interpolation, kind "other". order 0: labels (whole numbers), class by class. Voxels
        of the scan that the preparation cut off get 0 and are invalid.
        """
        voxels = data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else np.asarray(data)
        volume = Volume(voxels, self.affine, "label" if order == 0 else "other")
        return volume.onto(self.source, antialias=False)


def foreground_box(voxels: np.ndarray, foreground: Foreground | None) -> Box:
    """The box that the foreground crop keeps; the whole volume when nothing is above the threshold."""
    found = None if foreground is None else geometry.bounding_box(voxels > foreground.above)
    return kept_box(found, foreground, voxels.shape)


def kept_box(found: Box | None, foreground: Foreground | None, shape: Sequence[int]) -> Box:
    """What the foreground crop keeps of `shape`, given the box of the voxels above its threshold (None: there are none)."""
    d, h, w = shape
    if found is None or foreground is None:
        return (0, d), (0, h), (0, w)
    m = foreground.margin
    grown = [(max(low - m, 0), min(high + m, n)) for (low, high), n in zip(found, shape, strict=True)]
    return grown[0], grown[1], grown[2]


def place(settings: Resampling, grid: Grid, box: Box | None = None) -> Placement:
    """Where the resampled voxels of `box` (default: all) of a reoriented grid lie."""
    if settings.orientation is not None and grid.orientation != settings.orientation:
        raise ContractError(f"the grid is {grid.orientation}, the preparation wants {settings.orientation}")
    ranges = box or ((0, grid.shape[0]), (0, grid.shape[1]), (0, grid.shape[2]))
    axes = [
        (high - low, 0.0, 1.0)
        if new is None or abs(new / old - 1) * (high - low) < SAME_GRID_VOXELS
        else resampling.target_axis(high - low, old, new, settings.rule)
        for (low, high), old, new in zip(ranges, grid.spacing, settings.spacing, strict=True)
    ]
    start = [low + axis[1] for (low, _), axis in zip(ranges, axes, strict=True)]
    shape, step = [a[0] for a in axes], [a[2] for a in axes]
    return Placement(
        (shape[0], shape[1], shape[2]),
        (start[0], start[1], start[2]),
        (step[0], step[1], step[2]),
        geometry.rescaled(grid.affine, step, start),
        settings.rule,
        ranges,
    )


def check(preparation: Preparation, volume: Volume) -> None:
    """Raise ContractError when `volume` is not what `preparation` was made for."""
    if volume.kind not in preparation.accepts:
        wanted = " or ".join(preparation.accepts)
        advice = {
            "label": "give the scan, not its label map",
            "other": "convert it to Hounsfield units; 0..1, 8-bit and MR images are not CT in HU",
            "hu": "choose a preparation that lists 'hu'",
        }[volume.kind]
        raise ContractError(
            "; ".join(
                (f"preparation {preparation.name!r} takes {wanted}, this volume is {volume.kind!r}", *volume.notes)
            ),
            where=volume.source or None,
            do=advice,
        )
    if np.issubdtype(volume.voxels.dtype, np.floating) and not np.isfinite(volume.voxels).all():
        bad = int((~np.isfinite(volume.voxels)).sum())
        raise ContractError(f"{bad} voxels are NaN or infinite", where=volume.source or None, do="repair the scan")


def scale(x: Float[Tensor, "... d h w"], settings: Intensity) -> Float[Tensor, "... d h w"]:
    """Clip and normalise HU (windows excepted), over the last three axes."""
    low, high = settings.clip
    x = x.clamp(low, high)
    if settings.norm == "unit":
        return (x - low) / (high - low)
    axes = (-3, -2, -1) if settings.norm == "z-volume" else (-2, -1)
    mean = x.mean(dim=axes, keepdim=True, dtype=torch.float64)
    count = float(np.prod([x.shape[a] for a in axes]))
    square = (x.double() - mean).square().sum(dim=axes, keepdim=True)
    deviation = (square / max(count - settings.ddof, 1.0)).sqrt()
    deviation = torch.where(deviation < 1e-6, torch.ones_like(deviation), deviation)
    return ((x - mean) / deviation).to(x.dtype)


def _channels(x: Float[Tensor, "d h w"], settings: Intensity) -> Float[Tensor, "c d h w"]:
    if not settings.windows:
        return scale(x, settings)[None]
    clipped = x.clamp(*settings.clip)
    views = [(clipped.clamp(low, high) - low) / (high - low) for low, high in settings.windows]
    return torch.cat(views, dim=0)[None] if settings.stack == "axis0" else torch.stack(views)


def padding(shape: Vec3, settings: Sizing) -> tuple[Vec3, Vec3]:
    """(offset, size): the sized tensor starts at voxel `offset` of the resampled one (negative: padding)."""
    offset, size = [], []
    for axis, n in enumerate(shape):
        m = settings.multiple[axis]
        want = -(-max(n, settings.minimum[axis] if settings.minimum else 1) // m) * m
        start = -((want - n) // 2) if settings.at == "centre" else 0
        if settings.crop is not None and settings.crop[axis] < want:
            keep = settings.crop[axis]
            start += want // 2 - keep // 2 if settings.at == "centre" else 0
            want = keep
        offset.append(start)
        size.append(want)
    return (offset[0], offset[1], offset[2]), (size[0], size[1], size[2])


def _turned(preparation: Preparation, volume: Volume) -> tuple[Volume, Box]:
    """The volume in the preparation's orientation, fill replaced, and the box of it that is kept."""
    check(preparation, volume)
    settings = preparation.resampling
    turned = volume if settings.orientation is None else volume.reorient(settings.orientation)
    if turned.valid is not None:
        # Scanners write anything outside their field of view; it is no foreground, and no neighbour may be mixed with it.
        fill = np.asarray(settings.outside, dtype=turned.voxels.dtype)
        turned = turned.with_voxels(np.where(turned.valid, turned.voxels, fill))
    return turned, foreground_box(turned.voxels, settings.foreground)


def prepared_shape(preparation: Preparation, volume: Volume) -> Vec3:
    """Voxels (d, h, w) of the scan as `prepare` sizes it, before windows are stacked; nothing is interpolated."""
    turned, box = _turned(preparation, volume)
    return padding(place(preparation.resampling, turned.grid, box).shape, preparation.sizing)[1]


def prepare(preparation: Preparation, volume: Volume, *, device: str | torch.device = "cpu") -> Prepared:
    """Apply `preparation` to `volume`; raises ContractError for a volume it was not made for or that is too large."""
    turned, box = _turned(preparation, volume)
    settings = preparation.resampling
    placement = place(settings, turned.grid, box)
    offset, size = padding(placement.shape, preparation.sizing)
    channels = max(len(preparation.intensity.windows), 1)
    need = 4 * channels * max(int(np.prod(size)), int(np.prod(placement.shape)))
    if need > PREPARED_CAP_BYTES:
        raise ContractError(
            f"the prepared tensor would take {need / 2**30:.0f} GiB (shape {placement.shape})",
            where=volume.source or None,
            do="crop the scan, or choose a preparation with a coarser spacing",
        )
    hu = torch.from_numpy(np.ascontiguousarray(turned.voxels[geometry.slices(box)])).to(device).float()
    everything: Box = ((0, placement.shape[0]), (0, placement.shape[1]), (0, placement.shape[2]))
    operators = placement.operators(everything, box)
    hu = resampling.resample(hu, operators)
    valid = torch.ones(placement.shape, dtype=torch.bool, device=device)
    if turned.valid is not None:
        known = torch.from_numpy(np.ascontiguousarray(turned.valid[geometry.slices(box)])).to(device).float()
        valid = resampling.resample(known, operators) > 0.5
        hu = torch.where(valid, hu, torch.as_tensor(settings.outside, dtype=hu.dtype, device=device))
    x = _channels(hu, preparation.intensity)
    x, valid = _sized(x, valid, offset, size, preparation)
    return Prepared(x, geometry.shifted(placement.affine, offset), valid, volume.grid)


def _sized(
    x: Float[Tensor, "c d h w"], valid: Bool[Tensor, "d h w"], offset: Vec3, size: Vec3, preparation: Preparation
) -> tuple[Float[Tensor, "c d h w"], Bool[Tensor, "d h w"]]:
    stacked = preparation.intensity.stack == "axis0"
    if stacked:
        count = len(preparation.intensity.windows)
        x = x.reshape(count, -1, *x.shape[2:])
    pad = preparation.sizing.pad
    if pad == "min":
        value = float(x.min())
    elif pad == "air":
        value = air_value(preparation.intensity)
    else:
        value = float(pad)
    width = []
    for axis in (2, 1, 0):
        n = valid.shape[axis]
        width += [-offset[axis], size[axis] + offset[axis] - n]
    x = torch.nn.functional.pad(x, width, value=value)
    valid = torch.nn.functional.pad(valid, width, value=False)
    if stacked:
        x = x.reshape(1, -1, *x.shape[2:])
    return x.contiguous(), valid


def air_value(intensity: Intensity) -> float:
    """What -1024 HU becomes; for z-scores, whose scale is the scan's own, choose ``pad="min"`` instead."""
    if intensity.windows:
        return 0.0
    if intensity.norm != "unit":
        raise ContractError("with a z-score the value of air is the scan's own; use pad='min' or a number")
    low, high = intensity.clip
    return float(np.clip((AIR - low) / (high - low), 0, 1))


_CT_FM = Preparation("ct-fm", 1, resampling=Resampling(spacing=(3.0, 1.0, 1.0), foreground=Foreground(above=0.0)))
_Z = Intensity(clip=(-1000.0, 1000.0), norm="z-volume", ddof=1)
_HEAD_WINDOWS = Intensity(
    clip=(-1024.0, 3071.0),
    windows=((0.0, 80.0), (-125.0, 175.0), (28.0, 36.0), (-900.0, 2100.0)),  # blood, subdural, stroke, bone
    stack="axis0",
)


def _head(name: str, orientation: str, spacing: tuple[float, float, float], crop: Vec3) -> Preparation:
    return Preparation(
        name,
        1,
        resampling=Resampling(orientation=orientation, spacing=spacing, foreground=Foreground(above=0.0)),
        intensity=_HEAD_WINDOWS,
        sizing=Sizing(minimum=crop, crop=crop, pad="min"),
    )


PREPARATIONS: dict[str, Preparation] = {
    p.name: p
    for p in (
        _CT_FM,
        replace(_CT_FM, name="ct-fm-tiny", resampling=replace(_CT_FM.resampling, spacing=(6.0, 2.0, 2.0))),
        Preparation(
            "ct-fm-1.5mm",
            1,
            resampling=Resampling(spacing=(1.5, 1.5, 1.5), foreground=Foreground(above=-1024.0, margin=10)),
            sizing=Sizing(multiple=(16, 16, 16)),
        ),
        Preparation(
            "ct-fm-0.8mm",
            1,
            resampling=Resampling(spacing=(1.0, 0.8, 0.8), foreground=Foreground(above=-1024.0, margin=10)),
            sizing=Sizing(multiple=(16, 16, 16)),
        ),
        Preparation("ct-fm-native", 1, resampling=Resampling(foreground=Foreground(above=-1024.0))),
        Preparation(
            "flexict-2d",
            1,
            intensity=replace(_Z, norm="z-slice"),
            sizing=Sizing(multiple=(1, 8, 8), pad="min"),
        ),
        Preparation(
            "flexict-3d",
            1,
            resampling=Resampling(spacing=(2.0, 2.0, 2.0), rule="sitk"),
            intensity=_Z,
            sizing=Sizing(minimum=(160, 160, 160), multiple=(8, 8, 8), pad="min"),
        ),
        Preparation(
            "flexict-tiny",
            1,
            resampling=Resampling(spacing=(4.0, 4.0, 4.0), rule="sitk"),
            intensity=_Z,
            sizing=Sizing(multiple=(8, 8, 8), pad="min"),
        ),
        Preparation(
            "suprem",
            1,
            resampling=Resampling(orientation="RAS", spacing=(1.5, 1.5, 1.5)),
            intensity=Intensity(clip=(-175.0, 250.0)),
            sizing=Sizing(multiple=(8, 8, 8)),
        ),
        _head("ct-fm-head", "SPL", (5.0, 2.0, 2.0), (48, 128, 128)),
        _head("ct-fm-head-tiny", "SPL", (10.0, 4.0, 4.0), (24, 64, 64)),
        _head("suprem-head", "RAS", (2.0, 2.0, 5.0), (128, 128, 48)),
    )
}
"""The published preparations by name (reference: ct-fm.md section 2, flexict.md section 2.2).

``ct-fm`` is that of pretraining and search, ``ct-fm-1.5mm`` that of whole-body segmentation, ``ct-fm-native`` that of the
public feature extractor's card, ``suprem`` that of SuPreM's training (ct-fm.md 3.5; CT-FM's papers evaluate it with
-1024..2048 HU instead). FlexiCT's loaders do not fix an orientation; ours use SPL, the array order that an axial
DICOM series has there.

``ct-fm-head`` and ``suprem-head`` are those of head triage: one input of 1x192x128x128 or 1x512x128x48. The paper lays the four
windows side by side "width-wise"; the code joins them along the first axis, which is superior-inferior for CT-FM and left-right for
SuPreM, and so do these. ``ct-fm-head-tiny`` is the same field of view at half the resolution, for two cores.
"""


def preparation(name: str) -> Preparation:
    """A published preparation by its name."""
    if name not in PREPARATIONS:
        raise SettingsError(f"no preparation is called {name!r}; {nearest(name, PREPARATIONS)}")
    return PREPARATIONS[name]
