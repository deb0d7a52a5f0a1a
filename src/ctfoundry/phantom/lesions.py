"""Lesions on the picture: which painter draws which kind, and the solid ones (nodules, liver lesions, cysts, masses).

A solid lesion is star-shaped: from its centre the surface lies at ``size_mm * r(direction)``, where r is fixed by the seed
and scaled so that the longest diameter is 1. A grown lesion therefore holds the smaller one, and centre and shape stay.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.aneurysm import paint_aneurysm
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.disease import HEIGHTS, attribute
from ctfoundry.phantom.fracture import paint_fracture
from ctfoundry.phantom.haemorrhage import paint_haemorrhage
from ctfoundry.phantom.place import Atlas, Paint, Spot, atlas, choose
from ctfoundry.phantom.pleura import paint_effusion, paint_pneumothorax
from ctfoundry.phantom.space import Slices
from ctfoundry.phantom.spec import Lesion, LesionKind
from ctfoundry.phantom.star import Star, sphere
from ctfoundry.phantom.texture import sample
from ctfoundry.phantom.thorax import LUNGS
from ctfoundry.phantom.tissue import Tissue

if TYPE_CHECKING:
    from jaxtyping import Float32

    Field = Float32[np.ndarray, "d h w"]

MUSCLES = tuple(
    f"{muscle}_{side}" for muscle in ("autochthon", "iliopsoas", "gluteus_maximus") for side in ("left", "right")
)
_BELLY = ("visceral_fat", "small_bowel", "colon", "duodenum", "stomach", "pancreas", "gallbladder", "urinary_bladder")
OVER: dict[LesionKind, tuple[str, ...]] = {
    "lung_nodule": LUNGS,
    "liver_lesion": ("liver",),
    "renal_cyst": ("kidney_left", "kidney_right", "liver", "spleen", *_BELLY),
    "soft_tissue_mass": ("muscle", "subcutaneous_fat", "kidney_left", "kidney_right", *MUSCLES, *_BELLY),
}
"""What a solid lesion may replace; at the border of anything else it ends."""
_ROOM: dict[LesionKind, tuple[float, float | None]] = {
    "lung_nodule": (16.0, None),
    "liver_lesion": (28.0, None),
    "renal_cyst": (30.0, 9.0),
    "soft_tissue_mass": (45.0, None),
}
"""Room asked for around the centre (mm), and how deep in the site it may lie."""


def paint_lesions(canvas: Canvas, body: Body, tissue: Tissue, paint: Paint) -> None:
    """All lesions of the patient, in their order: where two meet, the later one has the voxel. `paint` paints the healthy body."""
    for index, lesion in enumerate(body.subject.lesions):
        low, high = HEIGHTS[lesion.kind]
        chart = functools.partial(atlas, body.subject, (low, high), paint)
        mark = index + 1
        if lesion.kind in OVER:
            _paint_solid(canvas, body, tissue, lesion, mark, chart())
        elif lesion.kind == "pleural_effusion":
            paint_effusion(canvas, body, tissue, lesion, mark)
        elif lesion.kind == "pneumothorax":
            paint_pneumothorax(canvas, body, lesion, mark)
        elif lesion.kind == "aortic_aneurysm":
            paint_aneurysm(canvas, body, tissue, lesion, mark, chart())
        elif lesion.kind == "fracture":
            paint_fracture(canvas, body, lesion, mark, chart())
        else:
            paint_haemorrhage(canvas, body, lesion, mark)


def spot_of(lesion: Lesion, chart: Atlas) -> Spot | None:
    """The centre of a solid lesion; None where the patient has no such structure."""
    room, rim = _ROOM[lesion.kind]
    key = Key.of("phantom", "lesion", lesion.kind, lesion.seed)
    return choose(chart, key, (lesion.site,), OVER[lesion.kind], room_mm=room, rim_mm=rim)


_SHAPES: dict[LesionKind, tuple[float, float]] = {
    "lung_nodule": (0.12, 0.1),
    "liver_lesion": (0.16, 0.14),
    "renal_cyst": (0.03, 0.04),
    "soft_tissue_mass": (0.22, 0.18),
}


def _paint_solid(canvas: Canvas, body: Body, tissue: Tissue, lesion: Lesion, mark: int, chart: Atlas) -> None:
    spot = spot_of(lesion, chart)
    box = None if spot is None else spot.box(canvas.space, 0.75 * lesion.size_mm + 12)
    if spot is None or box is None:
        return
    key = Key.of("phantom", "lesion", lesion.kind, lesion.seed)
    lobes, flat = _SHAPES[lesion.kind]
    lobulated = lesion.attributes.get("margin") == "lobulated"
    star = Star(key("shape"), lobes * (2.2 if lobulated else 1), flat)
    u = spot.offsets(canvas.space, box)
    rho = np.sqrt((u**2).sum(0))
    direction = u / np.maximum(rho, 1e-3)
    reach = np.float32(lesion.size_mm) * star.radius(direction).astype(np.float32)
    distance = rho - reach
    inner = rho / np.maximum(reach, 1e-3)  # 0 in the middle, 1 on the surface
    grain = sample(key("grain"), u[0], u[1], u[2], blob_mm=max(4.0, 0.16 * lesion.size_mm))
    draw = {
        "lung_nodule": _nodule,
        "liver_lesion": _liver_lesion,
        "renal_cyst": _cyst,
        "soft_tissue_mass": _mass,
    }[lesion.kind]
    draw(canvas, tissue, lesion, mark, box, _Form(key, distance, inner, grain, u))


class _Form:
    """What the painters need of a shape: its key, distance, relative depth, texture, and offsets from the centre (3, ...)."""

    def __init__(self, key: Key, distance: Field, inner: Field, grain: Field, u: np.ndarray) -> None:
        self.key, self.distance, self.inner, self.grain, self.u = key, distance, inner, grain, u


def _enhanced(tissue: Tissue, most: float, part: float) -> float:
    """HU that contrast adds to a tumour: `part` of what the muscle-to-vessel range allows, late in the scan more than early."""
    return {0: 0.0, 1: 0.55, 2: 1.0, 3: 0.9}[tissue.phase] * most * part


def _nodule(canvas: Canvas, tissue: Tissue, lesion: Lesion, mark: int, box: Slices, form: _Form) -> None:
    kind, margin = attribute(lesion, "attenuation"), attribute(lesion, "margin")
    if margin == "spiculated":  # fine strands into the lung; drawn, but not measured, as is the custom
        _spicules(canvas, lesion, box, form)
    solid = 32 + 8 * form.grain + _enhanced(tissue, 30, float(form.key("enhance").uniform(0.2, 1)))
    ground = -590 + 60 * form.grain
    edge = np.clip(-form.distance / 2.5, 0, 1)
    if kind == "ground-glass":
        under = canvas.hu[box]
        hu = np.maximum(ground * edge + (1 - edge) * -760, under)  # vessels stay visible in it
    elif kind == "part-solid":
        core = np.clip((0.5 - form.inner) * 6 + 0.5, 0, 1)
        hu = np.maximum(ground, canvas.hu[box]) * (1 - core) + solid * core
    else:
        hu = solid
    calcified = attribute(lesion, "calcification")
    if calcified == "central":
        hu = hu + (480 - hu) * np.clip((0.5 - form.inner) * 5 + 0.5, 0, 1)
    elif calcified == "diffuse":
        hu = hu + 380 + 60 * form.grain
    if attribute(lesion, "cavitation") == "yes":
        hole = np.clip((0.52 + 0.05 * form.grain - form.inner) * 8 + 0.5, 0, 1)
        hu = hu + (-970 - hu) * hole
    canvas.paint(box, form.distance, np.asarray(hu, dtype=np.float32), None, over=OVER[lesion.kind], mark=mark)


def _spicules(canvas: Canvas, lesion: Lesion, box: Slices, form: _Form) -> None:
    rays = sphere(26)[form.key("rays").permutation(26)[:13]].astype(np.float32)
    long = form.key("long").uniform(0.5, 1.0, len(rays))
    rho = np.maximum(np.sqrt((form.u**2).sum(0)), 1e-3)
    strands = np.zeros(rho.shape, dtype=np.float32)
    for ray, length in zip(rays, long, strict=True):
        along = np.tensordot(ray, form.u, axes=1)
        aside = np.sqrt(np.maximum(rho**2 - along**2, 0))
        reach = np.float32(4 + 0.45 * lesion.size_mm * length)
        width = 0.35 + 0.11 * lesion.size_mm * np.clip(1 - form.distance / reach, 0, 1) ** 1.5
        share = canvas.share(aside - width.clip(0, 2.2)) * (along > 0) * (form.distance < reach)
        np.maximum(strands, share, out=strands)
    canvas.blend(box, strands, -60.0, over=OVER["lung_nodule"])


def _liver_lesion(canvas: Canvas, tissue: Tissue, lesion: Lesion, mark: int, box: Slices, form: _Form) -> None:
    liver = tissue("liver")
    rim = np.clip(1 - np.abs(form.distance + 3) / 3.5, 0, 1)
    own = float(form.key("hu").uniform(-6, 6))
    if attribute(lesion, "attenuation") == "hyper":  # bright in the arterial phase only, washed out afterwards
        contrast = {0: -9.0, 1: 58.0, 2: -10.0, 3: -22.0}[tissue.phase]
        capsule = {0: 0.0, 1: 0.0, 2: 22.0, 3: 26.0}[tissue.phase]
        hu = liver + contrast + own + 14 * form.grain * (tissue.phase == 1) + capsule * rim
        scar = np.clip((0.3 + 0.1 * form.grain - form.inner) * 6 + 0.5, 0, 1) * (lesion.size_mm > 25)
        hu = hu - 0.4 * contrast * scar
    else:
        # below the liver in every phase, the more the liver takes up; necrosis in the middle of large ones
        contrast = {0: -16.0, 1: -24.0, 2: -48.0, 3: -26.0}[tissue.phase]
        ring = {0: 0.0, 1: 26.0, 2: 18.0, 3: 4.0}[tissue.phase] * float(form.key("rim").uniform(0, 1))
        dead = np.clip((0.55 + 0.12 * form.grain - form.inner) * 5, 0, 1) * np.clip((lesion.size_mm - 15) / 20, 0, 1)
        hu = liver + contrast + own + 5 * form.grain + ring * rim
        hu = hu + (np.minimum(18.0, liver + contrast) - hu) * 0.8 * dead
    canvas.paint(box, form.distance, np.asarray(hu, dtype=np.float32), None, over=OVER[lesion.kind], mark=mark)


def _cyst(canvas: Canvas, tissue: Tissue, lesion: Lesion, mark: int, box: Slices, form: _Form) -> None:
    dense = attribute(lesion, "attenuation") == "hyperdense"
    fluid = float(form.key("fluid").uniform(55, 85) if dense else form.key("fluid").uniform(-2, 16))
    name = f"kidney_cyst_{'left' if lesion.site.endswith('left') else 'right'}"
    # A thin wall, drawn first a millimetre wider, parts the cyst from the fat.
    canvas.paint(box, form.distance - np.float32(0.8), 28, None, over=("visceral_fat",))
    canvas.paint(box, form.distance, fluid, name, over=OVER[lesion.kind], mark=mark)
    if attribute(lesion, "calcification") == "wall":
        shell = canvas.share(np.abs(form.distance + 0.8) - 0.7) * np.clip(2 * (form.grain - 0.6), 0, 1)
        canvas.blend(box, shell, 450.0, over=(name,))


def _mass(canvas: Canvas, tissue: Tissue, lesion: Lesion, mark: int, box: Slices, form: _Form) -> None:
    kind = attribute(lesion, "composition")
    muscle = tissue("muscle")
    solid = 34 + 0.1 * muscle + 9 * form.grain + _enhanced(tissue, 48, float(form.key("enhance").uniform(0.3, 1)))
    if kind == "fatty":  # well differentiated liposarcoma or lipoma: fat, septa, some solid nodules
        septa = np.clip(1 - np.abs(form.grain) * 5, 0, 1)
        nodules = np.clip((form.grain - 1.3) * 3, 0, 1)
        hu = -95 + 70 * septa
        hu = hu + (solid - hu) * nodules
    else:
        share = 0.72 if kind == "necrotic" else 0.0
        slow = sample(form.key("necrosis"), form.u[0], form.u[1], form.u[2], blob_mm=max(10.0, 0.4 * lesion.size_mm))
        dead = np.clip((share + 0.2 * slow - form.inner) * 7, 0, 1) if share else np.zeros_like(form.inner)
        hu = solid + (14 + 3 * form.grain - solid) * dead
        if attribute(lesion, "calcification") == "yes":
            hu = hu + np.clip((form.grain - 1.7) * 2, 0, 1) * 420
    capsule = 1.0 if kind == "fatty" else 0.0
    canvas.paint(box, form.distance - np.float32(capsule), 30, None, over=("visceral_fat", "subcutaneous_fat"))
    canvas.paint(box, form.distance, np.asarray(hu, dtype=np.float32), lesion.site, over=OVER[lesion.kind], mark=mark)
