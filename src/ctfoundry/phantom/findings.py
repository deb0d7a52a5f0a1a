"""What a radiologist could find in a phantom: measured from its masks, so it is true to what the scan shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.phantom.space import Pose
from ctfoundry.phantom.spec import LesionKind

if TYPE_CHECKING:
    from jaxtyping import Bool

    from ctfoundry.phantom.make import Phantom

LEAST_VOXELS = 3
"""A lesion with fewer voxels in its mask is not seen."""
COLLECTIONS: tuple[LesionKind, ...] = (
    "pleural_effusion",
    "pneumothorax",
    "epidural_haemorrhage",
    "subdural_haemorrhage",
)
"""Kinds whose size is a greatest thickness."""
_DIRECTIONS = 48
"""Directions in a plane along which a width is measured."""


@dataclass(frozen=True)
class Finding:
    """One lesion as far as the scan shows it.

    Attributes
    ----------
    lesion : index into ``spec.subject.lesions``.
    kind, site : as in `spec.Lesion`; `side` : "left", "right" or "" for what has none.
    size_mm : longest diameter within the scan (collections: greatest thickness); `volume_ml` : of the mask.
    centre_mm : world centroid of the mask, RAS+.
    whole : whether all of it lies within the scan.
    attributes : as in `spec.Lesion`, with what was measured added.
    """

    lesion: int
    kind: LesionKind
    site: str
    side: str
    size_mm: float
    volume_ml: float
    centre_mm: tuple[float, float, float]
    whole: bool
    attributes: Mapping[str, str] = field(default_factory=dict)


def findings(phantom: Phantom) -> tuple[Finding, ...]:
    """The lesions that the scan shows with at least `LEAST_VOXELS` voxels, in their order, as measured from their masks.

    The longest diameter is the largest distance of two voxel centres plus a voxel's length along it. The thickness of a
    collection is the diameter of the largest ball in its mask (the scan's end does not end it). An aneurysm's size is the
    diameter across the aorta: over all axial cuts, the largest of the smallest widths. A lesion is whole if its mask touches
    neither the first nor the last slice nor the edge of the reconstructed circle.
    """
    spec, masks, ct = phantom.spec, phantom.lesions, phantom.ct
    spacing = np.array(masks.spacing)
    beyond = ct.voxels <= -1024
    pose = Pose.of(spec.subject, spec.acquisition)
    out = []
    for index, lesion in enumerate(spec.subject.lesions):
        hit = masks.voxels == index + 1
        if hit.sum() < LEAST_VOXELS:
            continue
        low, high = _bounds(hit)
        cut = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        mask = hit[cut]
        places = np.argwhere(mask) + low
        world = np.asarray(masks.world(places))
        centre = world.mean(0)
        if lesion.kind in COLLECTIONS:
            size = _thickness(hit, low, high, spacing)
        elif lesion.kind == "aortic_aneurysm":
            size = _across(world, float(np.cbrt(spacing.prod())))
        else:
            size = _longest(world, np.abs(masks.affine[:3, :3]))
        edge = any(a == 0 or b == n for a, b, n in zip(low, high, hit.shape, strict=True))
        rim = tuple(slice(max(a - 1, 0), b + 1) for a, b in zip(low, high, strict=True))
        edge = edge or bool((_grown(hit[rim]) & beyond[rim]).any())
        out.append(
            Finding(
                lesion=index,
                kind=lesion.kind,
                site=lesion.site,
                side=_side(lesion.kind, lesion.site, float(pose.body(centre[:, None])[0, 0])),
                size_mm=round(size, 2),
                volume_ml=round(float(hit.sum() * spacing.prod() / 1000), 3),
                centre_mm=(round(float(centre[0]), 2), round(float(centre[1]), 2), round(float(centre[2]), 2)),
                whole=not edge,
                attributes={**lesion.attributes, "mean_hu": f"{float(ct.voxels[cut][mask].mean()):.0f}"},
            )
        )
    return tuple(out)


def _side(kind: LesionKind, site: str, x: float) -> str:
    """By the structure's name; for what lies in the brain by its place in the patient."""
    for side in ("left", "right"):
        if f"_{side}" in site:
            return side
    if kind.endswith("haemorrhage") and abs(x) > 3:
        return "right" if x > 0 else "left"
    return ""


def _bounds(mask: Bool[np.ndarray, "d h w"]) -> tuple[list[int], list[int]]:
    hits = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return [int(h[0]) for h in hits], [int(h[-1]) + 1 for h in hits]


def _grown(mask: Bool[np.ndarray, "d h w"]) -> np.ndarray:
    """A mask with its neighbours by faces."""
    out = mask.copy()
    for axis in range(3):
        lead = (slice(None),) * axis
        out[(*lead, slice(1, None))] |= mask[(*lead, slice(None, -1))]
        out[(*lead, slice(None, -1))] |= mask[(*lead, slice(1, None))]
    return out


def _longest(world: np.ndarray, steps: np.ndarray) -> float:
    """Largest distance between two of the points, plus the length of a voxel along that line."""
    if len(world) > 60:  # only points of the hull can be ends; nearly flat sets have no hull in three dimensions
        from scipy.spatial import ConvexHull, QhullError

        try:
            world = world[ConvexHull(world).vertices]
        except QhullError:
            world = world[:: max(len(world) // 2000, 1)]
    apart = world[:, None] - world
    far = np.sqrt((apart**2).sum(-1))
    i, j = np.unravel_index(int(far.argmax()), far.shape)
    line = apart[i, j] / max(float(far[i, j]), 1e-9)
    along = np.abs(line) @ steps / np.maximum(np.sqrt((steps**2).sum(0)), 1e-9)  # cosines with the voxel's edges
    length = np.sqrt(((along * np.sqrt((steps**2).sum(0))) ** 2).sum())
    return float(far[i, j] + 0.5 * length)


def _thickness(mask: Bool[np.ndarray, "d h w"], low: list[int], high: list[int], spacing: np.ndarray) -> float:
    import scipy.ndimage as ndi

    box = tuple(slice(max(a - 1, 0), b + 1) for a, b in zip(low, high, strict=True))
    part = np.pad(mask[box], 6, mode="edge")  # where the scan ends, the collection goes on
    inside = ndi.distance_transform_edt(part, sampling=spacing)
    # From a voxel's centre to the first one outside: half a voxel too far on each side, and on average a quarter lost between.
    return float(2 * inside.max() - 0.5 * np.cbrt(spacing.prod()))


def _across(world: np.ndarray, voxel: float) -> float:
    turn = np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS
    axes = np.stack([np.cos(turn), np.sin(turn)])
    widths = []
    for z in np.unique(np.round(world[:, 2], 3)):
        points = world[np.abs(world[:, 2] - z) < 1e-2, :2] @ axes
        widths.append(float(np.ptp(points, axis=0).min()))
    return max(widths) + 0.5 * voxel
