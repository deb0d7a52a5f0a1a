"""What is common, is no lesion of ours, and looks like one to a histogram: emphysema, atelectasis, plaques, porous bone.

Patients of cohorts with lesions all have some of it (`Subject.wear`), those without a lesion as much as those with one, so
that amounts of air, water or calcium alone do not give a finding away. Labels stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.frame import HeadCanvas
from ctfoundry.phantom.names import GROUPS, IDS
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.thorax import LUNGS
from ctfoundry.phantom.tissue import Tissue
from ctfoundry.phantom.wall import CHEST_WALL_MM

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]

ODDS = {
    "emphysema": 0.6,
    "bullae": 0.6,
    "dependent": 0.9,
    "consolidation": 0.6,
    "ground-glass": 0.25,
    "oedema": 0.6,
    "plaques": 0.6,
    "granulomas": 0.4,
    "bruise": 1.0,
    "softening": 0.8,
}
"""How many patients with ``wear = 1`` have each; with less wear as many fewer."""
_BONES = (*GROUPS["vertebrae"], *GROUPS["ribs"], *GROUPS["pelvis"], "femur_left", "femur_right", "sternum")
_VESSELS = ("aorta", "iliac_artery_left", "iliac_artery_right")


def paint_wear(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """All of it, in place; nothing where ``wear`` is 0."""
    wear = body.subject.wear
    if wear == 0:
        return
    key = body.key("wear")
    has = {name: float(key(name).uniform()) < odds * wear for name, odds in ODDS.items()}
    for side in (-1, 1):
        _wear_lung(canvas, body, tissue, key, has, side)
    if has["oedema"]:
        _wear_fat(canvas, key)
    if has["plaques"]:
        _wear_vessels(canvas, key)
    _wear_head(canvas, body, key, has, wear)
    _wear_bones(canvas, key, wear)


def enclosed_air(body: Body) -> float:
    """HU of air within a chest: scatter and hardening lift it above -1000, by scan."""
    return -976 + 11 * float(body.key("wear", "air", body.acquisition.seed).normal().clip(-2, 2))


def _strength(key: Key, low: float, high: float) -> float:
    return float(key("strength").uniform(low, high))


def _wear_lung(canvas: Canvas, body: Body, tissue: Tissue, key: Key, has: dict[str, bool], side: int) -> None:
    patch = canvas.space.patch((min(0, side * 145), -115, 100), (max(0, side * 145), 115, 500))
    if patch is None:
        return
    lobes = tuple(lobe for lobe in LUNGS if lobe.endswith("left" if side < 0 else "right"))
    depth = -(body.cage(patch)[0] + CHEST_WALL_MM)  # under the costal pleura
    under = canvas.hu[patch.box]
    air = enclosed_air(body)

    def texture(name: str, blob_mm: float) -> np.ndarray:
        return sample(key(name, side), patch.x, patch.y, patch.z, blob_mm=blob_mm)

    # A shallow breath or full vessels make all of the lung denser, a deep one thinner.
    tone = 1 + body.subject.wear * float(key("tone").uniform(-0.25, 1.1))
    lung = np.isin(canvas.labels[patch.box], [IDS[name] for name in lobes]) & (under < -600)
    np.copyto(under, (under + 1000) * np.float32(tone) - 1000, where=lung)
    if has["emphysema"]:  # more in the upper lobes; vessels stay
        upper = _strength(key("emphysema"), -0.9, 0.5) + 0.006 * (patch.z - 340)
        holes = patch.fine(np.clip(1.3 * (texture("emphysema", 17) + upper), 0, 1))
        canvas.blend(patch.box, holes * np.float32(0.85) * (under < -650), air - 4, over=lobes)
    if has["bullae"]:
        apical = _strength(key("bullae", side), -0.6, 1.9) + np.clip((patch.z - 400) / 60, -1.5, 0.8)
        rind = np.clip((34 - depth) / 8, 0, 1)
        bubbles = patch.fine(np.clip(2.5 * (texture("bullae", 42) + apical - 1.1), 0, 1) * rind)
        canvas.blend(patch.box, bubbles, air, over=lobes)
    airless = (36.0, 55.0, 68.0, 60.0)[tissue.phase]
    if has["ground-glass"]:
        amount = _strength(key("ground-glass"), 0.4, 1.6)
        haze = patch.fine(np.clip(1.2 * (texture("ground-glass", 38) - amount), 0, 1))
        canvas.blend(patch.box, haze * np.float32(0.7) * (under < -400), -520.0, over=lobes)
    if has["dependent"]:  # airless lung along the back
        reach = _strength(key("dependent", side), 3, 24)
        back = np.clip((-patch.y - 18) / 30, 0, 1) * np.clip((370 - patch.z) / 60, 0, 1)
        dense = patch.fine(np.clip((reach * back * (1 + 0.35 * texture("dependent", 30)) - depth) / 3, 0, 1))
        value = float(key("dependent", "hu").uniform(-60, airless))
        canvas.blend(patch.box, dense * np.float32(0.9), value, over=lobes)
    if has["consolidation"] and float(key("consolidation", side).uniform()) < 0.6:
        lower = _strength(key("consolidation", side), 0.2, 1.6) + np.clip((patch.z - 290) / 120, 0, 1.5)
        filled = patch.fine(np.clip(2.2 * (texture("consolidation", 62) - lower), 0, 1))
        value = float(key("consolidation", "hu").uniform(5, airless))
        canvas.blend(patch.box, filled * np.float32(0.95), value, over=lobes)
    if has["granulomas"]:
        seeds = patch.fine(np.clip(5 * (texture("granulomas", 15) - 3.1), 0, 1))
        canvas.blend(patch.box, seeds, 420.0, over=lobes)


def _wear_fat(canvas: Canvas, key: Key) -> None:
    """Water in the fat under the skin, more where the patient lies on it."""
    labels = canvas.labels
    rows = np.flatnonzero((labels == IDS["subcutaneous_fat"]).any(axis=(0, 2)))
    if rows.size < 2:
        return
    box = (slice(0, labels.shape[0]), slice(int(rows[0]), int(rows[-1]) + 1), slice(0, labels.shape[2]))
    x, y, z = canvas.space.coordinates(box)
    amount = _strength(key("oedema"), -0.2, 1.0)
    low = np.clip((40 - y) / 120, 0, 1)
    wet = np.clip(0.55 * (sample(key("oedema"), x, y, 0.6 * z, blob_mm=15) + amount), 0, 0.95) * low
    canvas.blend(box, wet.astype(np.float32), 12.0, over=("subcutaneous_fat",))


def _wear_vessels(canvas: Canvas, key: Key) -> None:
    """Calcified plaques in the walls of aorta and iliac arteries."""
    import scipy.ndimage as ndi

    wanted = np.isin(canvas.labels, [IDS[name] for name in _VESSELS])
    if not wanted.any():
        return
    box = ndi.find_objects(wanted.astype(np.uint8))[0]
    mask = wanted[box]
    wall = mask & ~ndi.binary_erosion(mask, border_value=1)
    x, y, z = canvas.space.coordinates(box)
    amount = _strength(key("plaques"), 0.2, 1.6)
    plaque = np.clip(2 * (sample(key("plaques"), x, y, z, blob_mm=11) - amount), 0, 1) * wall
    share = min(1.6 / canvas.space.voxel_mm, 1.0)
    canvas.blend(box, (plaque * np.float32(share)).astype(np.float32), 700.0, over=_VESSELS)


def _wear_head(canvas: Canvas, body: Body, key: Key, has: dict[str, bool], wear: float) -> None:
    """Blood in the scalp, as after a fall without injury of the brain, and old softened brain; thin or thick blood, swelling."""
    head = HeadCanvas.of(canvas, body)
    patch = None if head is None else head.canvas.space.patch((-105, -125, -10), (105, 125, 165))
    if head is None or patch is None:
        return
    offset = 5 * wear * float(key("brain").uniform(-1, 1))
    head.canvas.hu[patch.box] += offset * np.isin(head.canvas.labels[patch.box], [IDS["brain"], IDS["cerebellum"]])
    if has["bruise"]:
        amount = _strength(key("bruise"), 0.2, 1.2)
        swollen = np.clip(2 * (sample(key("bruise"), patch.x, patch.y, patch.z, blob_mm=75) - amount), 0, 1)
        value = float(key("bruise", "hu").uniform(38, 72))
        soft = ("subcutaneous_fat", "muscle", "skin")
        head.canvas.blend(patch.box, patch.fine(swollen) * np.float32(0.95), value, over=soft)
    if has["softening"]:
        amount = _strength(key("softening"), 0.9, 1.9)
        soft_brain = np.clip(2 * (sample(key("softening"), patch.x, patch.y, patch.z, blob_mm=34) - amount), 0, 1)
        value = float(key("softening", "hu").uniform(10, 24))
        head.canvas.blend(patch.box, patch.fine(soft_brain) * np.float32(0.9), value, over=("brain",))


def _wear_bones(canvas: Canvas, key: Key, wear: float) -> None:
    """Porous or dense bone, and bony spurs' calcium."""
    change = 0.45 * wear * float(key("bones").uniform(-1, 1))
    bone = np.isin(canvas.labels, [IDS[name] for name in _BONES]) & (canvas.hu > 60)
    canvas.hu[bone] += (canvas.hu[bone] - 60) * np.float32(change)
