"""Fluid and air between lung and chest wall: effusion sinks, pneumothorax rises, the lung gives way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.disease import attribute
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.space import Patch
from ctfoundry.phantom.spec import Lesion
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.thorax import LUNGS
from ctfoundry.phantom.tissue import Tissue
from ctfoundry.phantom.wall import CHEST_WALL_MM
from ctfoundry.phantom.wear import enclosed_air

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]


@dataclass(frozen=True, eq=False)
class _Layer:
    """One pleural cavity: lattice patch, depth under the costal pleura (mm), cosine of the angle to straight down, lungs' ids."""

    patch: Patch
    depth: np.ndarray
    down: np.ndarray
    lungs: tuple[str, ...]


def _layer(canvas: Canvas, body: Body, lesion: Lesion) -> _Layer | None:
    side = -1 if lesion.site.endswith("left") else 1
    patch = canvas.space.patch((min(0, side * 145), -115, 100), (max(0, side * 145), 115, 500))
    if patch is None:
        return None
    # Down is where the patient lies, also when turned: the table's direction in the body.
    gravity = canvas.space.pose.turn.T @ np.array([0.0, -1.0, 0.0])
    dx, dy = patch.x - side * 62, patch.y - (body.spine(patch.z) + 30)
    away = np.maximum(np.hypot(dx, dy), 1.0)
    down = (dx * gravity[0] + dy * gravity[1]) / away
    name = "left" if side < 0 else "right"
    depth = -(body.cage(patch)[0] + CHEST_WALL_MM)
    return _Layer(patch, depth, down, tuple(lobe for lobe in LUNGS if lobe.endswith(name)))


def _at_the_wall(canvas: Canvas, layer: _Layer, value: Field, thick: Field) -> Field:
    """What a voxel holds with `value` in the place of lung: at the chest wall some of it is wall, and stays so.

    Voxels that are mostly wall, beside a layer of some thickness, get their share in place; the others are returned.
    """
    box = layer.patch.box
    lung = np.isin(canvas.labels[box], [IDS[name] for name in layer.lungs])
    under = canvas.hu[box]
    usual = float(np.median(under[lung])) if lung.any() else -850.0
    part = canvas.share(-layer.patch.fine(layer.depth))  # of the voxel that is lung
    wall = np.clip((under - part * usual) / np.maximum(1 - part, 0.02), -120, 400)
    mixed = np.asarray(wall + part * (value - wall), dtype=np.float32)
    np.copyto(under, mixed, where=~lung & (part > 0) & (part < 0.5) & (under < -120) & (thick > 1))
    return mixed


def _rise(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 at `low`, 1 at `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def paint_effusion(canvas: Canvas, body: Body, tissue: Tissue, lesion: Lesion, mark: int) -> None:
    """A layer along the back, thickest where the lung hangs lowest, thinning out sideways (meniscus) and towards the apex."""
    layer = _layer(canvas, body, lesion)
    if layer is None:
        return
    patch, size = layer.patch, lesion.size_mm
    key = Key.of("phantom", "lesion", lesion.kind, lesion.seed)
    reach = 0.25 + 0.007 * size  # a large one climbs further along the sides
    top = 285 + 2.0 * size
    wave = 1 - 0.04 * (1 + np.sin(patch.z / 17 + float(key("wave").uniform(0, 6))))
    thick = size * _rise(layer.down, 0.35 - reach, 0.8 - 0.5 * reach) * (1 - _rise(patch.z, top - 90, top + 50)) * wave
    distance = patch.fine(layer.depth - thick)
    np.maximum(distance, patch.fine(0.8 - thick), out=distance)  # nothing where the layer has thinned out
    grain = sample(key, patch.x, patch.y, patch.z, blob_mm=16)
    dense = attribute(lesion, "attenuation") == "dense"
    fluid = float(key("fluid").uniform(22, 48) if dense else key("fluid").uniform(-3, 24)) + 3 * patch.fine(grain)
    fluid = _at_the_wall(canvas, layer, fluid, patch.fine(thick))
    # The lung next to it is pressed airless, less so with distance.
    band = np.float32(2 + 0.45 * size)
    squeezed = np.clip(1.5 - 1.5 * distance / band, 0, 1) ** 1.5 * patch.fine(_rise(thick, 2, 12))
    airless = (34.0, 60.0, 78.0, 66.0)[tissue.phase]
    canvas.blend(patch.box, squeezed * 0.95, airless, over=layer.lungs)
    canvas.paint(patch.box, distance, fluid, "pleural_effusion", over=layer.lungs, mark=mark)


def paint_pneumothorax(canvas: Canvas, body: Body, lesion: Lesion, mark: int) -> None:
    """Air in front and at the apex, the lung's own thin line, and the lung behind it smaller and denser."""
    layer = _layer(canvas, body, lesion)
    if layer is None:
        return
    patch, size = layer.patch, lesion.size_mm
    front = _rise(-layer.down, 0.35 - 0.012 * size, 0.75 - 0.008 * size)
    front = front * (0.55 + 0.45 * _rise(patch.z, 200, 330))
    apex = _rise(patch.z, 395 - 1.2 * size, 450)
    thick = size * np.maximum(front, 0.75 * apex * (0.75 - 0.25 * layer.down))
    depth = patch.fine(layer.depth)
    distance = np.maximum(depth - patch.fine(thick), patch.fine(0.8 - thick))
    # The lung shrinks, so what is left holds its blood in less room: HU + 1000 goes with the density.
    before = canvas.hu[patch.box]
    lung = np.isin(canvas.labels[patch.box], [IDS[n] for n in layer.lungs])
    dense = (before + 1000) * np.float32(1 + 0.022 * size) - 1000
    np.copyto(before, np.minimum(dense, 60), where=lung & (before < 0))
    air = _at_the_wall(canvas, layer, np.full(distance.shape, enclosed_air(body), np.float32), patch.fine(thick))
    # The pleura is half a millimetre: a voxel on it holds as much of it as it is thick.
    voxel = canvas.space.voxel_mm
    line = np.clip(1 - np.abs(distance - np.float32(0.3)) / voxel, 0, 1) * np.float32(min(0.6 / voxel, 1.0))
    canvas.paint(patch.box, distance, air, "pneumothorax", over=layer.lungs, mark=mark)
    canvas.blend(patch.box, line * (distance > -0.5), 20.0, over=layer.lungs)
