"""Blood within the skull: lenses and crescents along the inner table, clots in the brain; the brain gives way to them.

All in head millimetres (`frame`), bounded by the skull's own inner table, so every scan of a patient shows it in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.disease import attribute
from ctfoundry.phantom.frame import HeadCanvas, HeadPose, head_size
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.skull import MIDDLE, Skull
from ctfoundry.phantom.space import Patch
from ctfoundry.phantom.spec import Lesion
from ctfoundry.phantom.star import Star
from ctfoundry.phantom.texture import sample

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]

INSIDE = ("brain", "subarachnoid_space", "ventricle", "cerebellum", "brainstem", "venous_sinus")
"""What lies within the inner table."""
STAGE_HU = {"acute": (52.0, 72.0), "subacute": (31.0, 43.0), "chronic": (8.0, 22.0)}
"""Of clotted blood, by its age."""
_BONE_HU = 85.0
"""Above this a voxel within the skull holds some bone (or calcium, or contrast)."""
_DEEP_MM = 72.0
"""How far under the inner table the brain is moved."""


def paint_haemorrhage(canvas: Canvas, body: Body, lesion: Lesion, mark: int) -> None:
    """Epidural, subdural or parenchymal blood."""
    head = HeadCanvas.of(canvas, body)
    if head is None:
        return
    part, skull = head.canvas, Skull(body)
    patch = part.space.patch((-85, -100, -15), (85, 110, 150))
    if patch is None:
        return
    key = Key.of("phantom", "lesion", lesion.kind, lesion.seed)
    hu = float(key("hu").uniform(*STAGE_HU[attribute(lesion, "stage")]))
    if lesion.kind == "parenchymal_haemorrhage":
        _paint_clot(part, body, lesion, mark, patch, key, hu)
    else:
        _paint_layer(part, skull, lesion, mark, patch, key, hu)


def _on_table(skull: Skull, direction: np.ndarray) -> np.ndarray:
    """Where a ray from the vault's middle meets the inner table."""
    reach = np.linspace(20, 110, 181)
    x, y, z = (np.array(MIDDLE)[:, None] + direction[:, None] * reach).astype(np.float32)
    box = (slice(0, 1), slice(0, 1), slice(0, len(reach)))
    line = Patch(box, x.reshape(1, 1, -1), y.reshape(1, 1, -1), z.reshape(1, 1, -1), (1, 1, 1))
    inner = skull.cavity(line).ravel()
    return np.array(MIDDLE) + direction * reach[int(np.argmax(inner > 0))]


def _paint_layer(canvas: Canvas, skull: Skull, lesion: Lesion, mark: int, patch: Patch, key: Key, hu: float) -> None:
    """Under the inner table, as thick as `size_mm` in its middle: a lens that ends early, or a crescent over one hemisphere."""
    lens, size = lesion.kind == "epidural_haemorrhage", lesion.size_mm
    side = -1.0 if float(key("side").uniform()) < 0.5 else 1.0
    angle = key("place").uniform(-1, 1, 2)
    direction = np.array([side, 0.1 + 0.5 * angle[0], 0.12 + 0.42 * angle[1]])
    centre = _on_table(skull, direction / np.linalg.norm(direction))
    factors = head_size(skull.body.subject)
    out = (centre - MIDDLE) / np.linalg.norm(centre - MIDDLE)
    u = [(c - p) * f for c, p, f in zip((patch.x, patch.y, patch.z), centre, factors, strict=True)]
    along = sum(c * o for c, o in zip(u, out, strict=True))
    aside = np.sqrt(np.maximum(sum(c * c for c in u) - along**2, 0))
    # Positive under the vault's inner table; the base does not count, or blood would run along its ridges.
    depth = -(skull.vault(patch) + skull.thickness(patch)) * float(factors.mean())
    if lens:
        reach = 14 + 1.4 * size
        thick = size * np.clip(1 - (aside / reach) ** 2, 0, 1)
    else:
        # Elongated from front to back; not across the falx, not under the tentorium.
        oval = np.sqrt(np.maximum(aside**2 - (u[1] * 0.62) ** 2, 0))
        reach = 30 + 2.0 * size
        thick = size * np.clip(1 - (oval / reach) ** 3, 0, 1) * np.clip((patch.z - 36) / 18, 0, 1)
        thick = thick * np.clip((side * patch.x - 1.5) / 6, 0, 1)
    thick = thick * (along > -55)  # this side's wall only
    fine_thick, fine_depth = patch.fine(thick), patch.fine(depth)
    radial = [patch.x - MIDDLE[0], patch.y - MIDDLE[1], patch.z - MIDDLE[2]]
    # The brain under it is pressed together: what is now at a depth came from nearer to the skull.
    # The outermost two millimetres hold some bone and stay.
    before = 2 + np.clip((depth - thick) / np.maximum(_DEEP_MM - thick, 10), 0, 1) * (_DEEP_MM - 2)
    moved = np.where((depth > 0) & (depth < _DEEP_MM), np.maximum(depth - before, 0), 0) * (thick > 0.3)
    length = np.sqrt(sum(c * c for c in radial)) + 1e-3
    _move(canvas, patch, [moved * c / length for c in radial])
    grain = sample(key("grain"), patch.x, patch.y, patch.z, blob_mm=13)
    name = lesion.kind
    value = hu + patch.fine(grain) * np.float32(5 if attribute(lesion, "stage") == "acute" else 2)
    if not lens and attribute(lesion, "stage") == "chronic":  # sediment: denser where it lies low
        value = value + patch.fine(np.clip(-0.22 * (patch.y - centre[1]), -6, 16))
    distance = np.maximum(fine_depth - fine_thick, np.float32(0.5) - fine_thick)
    # Voxels that are bone in part stay so.
    under = canvas.hu[patch.box]
    value = np.where(under > _BONE_HU, under + (hu - 15) * canvas.share(-fine_depth), value).astype(np.float32)
    canvas.paint(patch.box, distance, value, name, over=INSIDE, mark=mark)


def _paint_clot(canvas: Canvas, body: Body, lesion: Lesion, mark: int, patch: Patch, key: Key, hu: float) -> None:
    """A lumpy clot in the basal ganglia or a lobe, with a dark rim of oedema."""
    side = -1.0 if float(key("side").uniform()) < 0.5 else 1.0
    a, b, c = key("place").uniform(0, 1, 3).tolist()
    if float(key("deep").uniform()) < 0.55:
        centre = (side * (23 + 9 * a), -8 + 20 * b, 53 + 12 * c)
    else:
        centre = (side * (28 + 12 * a), -42 + 84 * b, 68 + 22 * c)
    factors = head_size(body.subject)
    u = np.stack([(p - m) * f for p, m, f in zip((patch.x, patch.y, patch.z), centre, factors, strict=True)])
    rho = np.sqrt((u**2).sum(0))
    star = Star(key("shape"), 0.2, 0.16)
    reach = lesion.size_mm * star.radius(u / np.maximum(rho, 1e-3))
    # What was there is pushed outwards, most of it near the clot.
    wide = 14 + 0.5 * lesion.size_mm
    source = np.where(rho < reach, 0.55 * rho, 0.55 * reach + (rho - reach) * (0.45 * reach + wide) / wide)
    moved = np.where(rho < reach + wide, np.maximum(rho - source, 0), 0)
    _move(canvas, patch, [-moved * c / np.maximum(rho, 1e-3) / f for c, f in zip(u, factors, strict=True)])
    distance = patch.fine(rho - reach)
    acute = attribute(lesion, "stage")
    if attribute(lesion, "oedema") == "yes":
        halo = np.float32(2.5 + 0.14 * lesion.size_mm)
        grain = patch.fine(sample(key("oedema"), patch.x, patch.y, patch.z, blob_mm=15))
        canvas.blend(
            patch.box, np.clip(1 - distance / (halo * (1 + 0.4 * grain)).clip(1), 0, 1) * 0.85, 19.0, over=("brain",)
        )
    grain = patch.fine(sample(key("grain"), patch.x, patch.y, patch.z, blob_mm=9))
    value = hu + grain * np.float32(4 if acute == "acute" else 2)
    if acute == "subacute":  # the rim fades first
        value = value + 14 * np.clip(-distance / 8, 0, 1)
    canvas.paint(patch.box, distance, value, "parenchymal_haemorrhage", over=INSIDE, mark=mark)


def _move(canvas: Canvas, patch: Patch, shift: list[np.ndarray]) -> None:
    """What is at p comes from p + shift (head millimetres, on the lattice); bone and what is outside it stays."""
    import scipy.ndimage as ndi

    pose = canvas.space.pose
    matrix = pose.axes * pose.factors if isinstance(pose, HeadPose) else pose.turn * pose.scale
    world = np.tensordot(matrix, np.stack(shift), axes=1)
    labels, hu = canvas.labels[patch.box], canvas.hu[patch.box]
    inside = np.isin(labels, [IDS[name] for name in INSIDE])
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in labels.shape), indexing="ij", sparse=True)
    dz, dy, dx = canvas.space.steps
    source = [z + patch.fine(world[2]) / dz, y - patch.fine(world[1]) / dy, x - patch.fine(world[0]) / dx]
    at = [s[inside] for s in source]
    # Only what lies within the skull moves: a source outside it is replaced by the tissue itself.
    came = ndi.map_coordinates(labels, at, order=0, mode="nearest")
    fit = np.isin(came, [IDS[name] for name in INSIDE])
    values = ndi.map_coordinates(hu, at, order=1, mode="nearest")
    hu[inside] = np.where(fit & (values < 60), values, hu[inside])
    labels[inside] = np.where(fit, came, labels[inside])
