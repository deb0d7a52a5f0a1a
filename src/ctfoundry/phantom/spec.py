"""What a phantom is a function of: a patient, and one scan of that patient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ctfoundry.errors import UsageError
from ctfoundry.geometry import parse_code
from ctfoundry.keys import Key
from ctfoundry.phantom.growth import growth

Sex = Literal["female", "male"]
TorsoView = Literal["chest", "abdomen", "pelvis", "trunk", "torso"]
PartView = Literal["head", "head-neck", "thigh", "knee", "lower-leg"]
View = TorsoView | PartView | Literal["any"]
Kernel = Literal["soft", "standard", "sharp"]
Phase = Literal["none", "arterial", "portal", "late"]
Cover = Literal["none", "blanket", "clothes"]

Z_RANGE = (-1040.0, 800.0)
"""What the model holds, in body millimetres: from the toes to the vertex (about 740), with air beyond; 0 is the top of the sacrum."""
TORSO = (-195.0, 500.0)
"""The torso: from the ischial tuberosities to the root of the neck."""

_VIEWS: dict[TorsoView, tuple[tuple[float, float], tuple[float, float]]] = {
    "chest": ((60, 360), (370, 500)),
    "abdomen": ((-170, 180), (170, 440)),
    "pelvis": ((-195, -20), (-20, 240)),
    "trunk": ((-190, 170), (230, 495)),
    "torso": ((-195, -150), (470, 500)),
}
"""Ranges from which the lower and the upper end of a view are drawn, in body millimetres."""
_VIEW_ODDS: tuple[tuple[TorsoView, float], ...] = (
    ("chest", 0.28),
    ("abdomen", 0.28),
    ("pelvis", 0.14),
    ("trunk", 0.2),
    ("torso", 0.1),
)


LesionKind = Literal[
    "lung_nodule",
    "liver_lesion",
    "renal_cyst",
    "pleural_effusion",
    "pneumothorax",
    "aortic_aneurysm",
    "fracture",
    "epidural_haemorrhage",
    "subdural_haemorrhage",
    "parenchymal_haemorrhage",
    "soft_tissue_mass",
]
DeviceKind = Literal["stent", "screws"]


@dataclass(frozen=True)
class Lesion:
    """One abnormality of a patient.

    Attributes
    ----------
    kind : what it is.
    seed : of its place within `site` and of its shape; the same seed at another size is the same lesion grown.
    site : the structure it sits in or at, a key of `names.IDS` ("lung_upper_lobe_right", "rib_left_7", "brain").
    size_mm : longest diameter, or for collections (effusion, pneumothorax, extra-axial haemorrhage) the greatest thickness.
    attributes : what a report would say beside place and size, such as {"attenuation": "hypo", "margin": "spiculated"}.
    """

    kind: LesionKind
    seed: int
    site: str
    size_mm: float
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Device:
    """One implant of a patient: `kind`, `seed` of its place, `site` as for lesions."""

    kind: DeviceKind
    seed: int
    site: str


@dataclass(frozen=True)
class Subject:
    """One patient. What is not a field (each organ's place, size, turn, texture) is a function of `seed`.

    Attributes
    ----------
    seed : names the patient; two subjects with one seed and other factors are the same patient, otherwise built.
    sex : decides breasts, prostate and the width of the pelvis.
    height, width, depth : factors on the reference body along z, x and y.
    fat_mm : thickness of the subcutaneous fat at the flank, millimetres.
    visceral : 0 (none) to 1 (much): visceral fat, which also rounds the belly.
    muscle : factor on the muscles; low values come with fat between the fibres.
    scoliosis_mm : sideways swing of the spine; everything that hangs on it follows.
    kyphosis : factor on the curves of the spine in the sagittal plane.
    diaphragm_mm : how much higher than in the reference the two domes stand, (right, left), at rest.
    variety : factor on how far organs move, turn and grow independently of each other; 1 is the documented cohort.
    age_years : below 18 the body is a child's (`growth`): height, width and depth are then factors on the reference of that age,
        and body millimetres (`fat_mm`, `z_range`, lesions' sizes excepted) name the same anatomy as in adults. Bones follow age.
    wear : 0 (none) to 1: how much the patient may have of what is common and no lesion (`wear`): emphysema, plaques, porous bone ...
    lesions, devices : what this patient has beside a healthy body.
    """

    seed: int
    sex: Sex = "female"
    height: float = 1.0
    width: float = 1.0
    depth: float = 1.0
    fat_mm: float = 15.0
    visceral: float = 0.4
    muscle: float = 1.0
    scoliosis_mm: float = 0.0
    kyphosis: float = 1.0
    diaphragm_mm: tuple[float, float] = (0.0, 0.0)
    variety: float = 1.0
    age_years: float = 50.0
    wear: float = 0.0
    lesions: tuple[Lesion, ...] = ()
    devices: tuple[Device, ...] = ()

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.depth, self.muscle) <= 0:
            raise UsageError("height, width, depth and muscle are factors above 0", where="Subject")
        if self.fat_mm < 0 or not 0 <= self.visceral <= 1 or self.variety < 0:
            raise UsageError("fat_mm and variety are not negative, visceral lies in 0..1", where="Subject")
        if not 0 <= self.wear <= 1:
            raise UsageError(f"wear {self.wear} does not lie in 0..1", where="Subject")
        if not 0 <= self.age_years <= 110:
            raise UsageError(f"age_years {self.age_years} does not lie in 0..110", where="Subject")


@dataclass(frozen=True)
class Acquisition:
    """One scan of a patient.

    Attributes
    ----------
    seed : of the noise.
    z_range : lower and upper end in body millimetres (see `Z_RANGE`), so that it names the same anatomy in every body.
    field_mm : diameter of the reconstructed circle; `matrix` : pixels across it.
    spacing_mm : distance of slice centres; thickness_mm : of what one slice averages.
    kernel : reconstruction kernel: resolution, edges and the colour of the noise.
    noise_hu : standard deviation of the noise in an average body's middle; it grows with the patient.
    phase : of the contrast medium.
    centre_mm : where the middle of the field lies, (x, y), relative to the patient.
    tilt_deg : turn of the patient about x (nodding), y (leaning) and z (rolling).
    breath_mm : how much lower than at rest the diaphragm stands, -20 to 40 (a deep breath is 25); see `breathing`.
    breath_steps_mm : how far the breath differs between slabs of the scan, taken one after the other (0: breath held). Organs then
        show steps; labels follow them.
    motion_mm : how far the patient jerks aside within the scan. The slices of that moment show both places; labels show the first.
    rim_hu : how much too bright the edge of the field is where the patient reaches beyond it (truncation).
    cover : what lies on the patient: thin folds, with a zip where it is clothes. It has no label.
    origin_mm : world point (RAS+) of the patient's reference point.
    orientation : code of the array's axes, such as "SPL".
    """

    seed: int
    z_range: tuple[float, float] = TORSO
    field_mm: float = 440.0
    matrix: int = 220
    spacing_mm: float = 2.0
    thickness_mm: float = 2.0
    kernel: Kernel = "standard"
    noise_hu: float = 15.0
    phase: Phase = "portal"
    centre_mm: tuple[float, float] = (0.0, 0.0)
    tilt_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    breath_mm: float = 0.0
    breath_steps_mm: float = 0.0
    motion_mm: float = 0.0
    rim_hu: float = 0.0
    cover: Cover = "none"
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    orientation: str = "SPL"

    def __post_init__(self) -> None:
        low, high = self.z_range
        if not Z_RANGE[0] <= low < high <= Z_RANGE[1]:
            raise UsageError(f"z_range {self.z_range} does not lie within {Z_RANGE}", where="Acquisition")
        if min(self.field_mm, self.spacing_mm, self.thickness_mm) <= 0 or self.matrix < 8 or self.noise_hu < 0:
            raise UsageError("field_mm, spacing_mm, thickness_mm > 0, matrix >= 8, noise_hu >= 0", where="Acquisition")
        if (
            min(self.breath_mm, self.breath_mm - self.breath_steps_mm) < -20
            or self.breath_mm + self.breath_steps_mm > 40
        ):
            raise UsageError(
                "breath_mm, with breath_steps_mm taken off and added, lies in -20..40", where="Acquisition"
            )
        if not 0 <= self.motion_mm <= 50 or not 0 <= self.rim_hu <= 2000 or self.breath_steps_mm < 0:
            raise UsageError(
                "motion_mm lies in 0..50, rim_hu in 0..2000, breath_steps_mm is not negative", where="Acquisition"
            )
        parse_code(self.orientation)

    @property
    def pixel_mm(self) -> float:
        """Millimetres per pixel in the plane."""
        return self.field_mm / self.matrix


@dataclass(frozen=True)
class Spec:
    """All that a phantom is a function of."""

    subject: Subject
    acquisition: Acquisition


def draw(
    key: Key,
    *,
    view: View | None = None,
    voxel_mm: float | None = None,
    child: bool = False,
    lesions: bool = False,
    odds: Mapping[LesionKind, float] | None = None,
) -> Spec:
    """A random patient in a random scan.

    `view` fixes which part of the body is scanned (its ends still vary): one of the torso (without it, one of the five is
    drawn), "head", "head-neck", "thigh", "knee", "lower-leg", or "any" of all ten (`views.ANY_ODDS`); with these six,
    adults are 18 to 92 years old. `voxel_mm` fixes pixel, slice distance and thickness. Otherwise pixels of 1.3 to 3 mm
    (heads 1 mm) and slices of 1.5 to 6 mm are drawn: coarser than a scanner's, so that a phantom takes a second; give
    `Acquisition` a matrix of 512 for the real size.

    `child` draws a patient of 1 to 16 years instead of an adult of the documented cohort.

    With `lesions` the patient has an age, wear, lesions and devices where the scan is meant to show them (`disease.draw_lesions`,
    with its `odds`; `devices.draw_devices`). Build and scan are the same as without.
    """
    subject = draw_subject(key("subject"), child=child)
    if view is not None and view not in _VIEWS and not child:
        subject = replace(subject, age_years=_round(float(key("years").uniform(18, 92))))  # brains show their age
    spec = Spec(subject, draw_acquisition(key("acquisition"), subject, view=view, voxel_mm=voxel_mm))
    if not lesions:
        return spec
    from ctfoundry.phantom.disease import afflicted  # it knows about sites, which know about bodies

    return afflicted(key("disease"), spec, odds=odds)


def draw_subject(key: Key, *, child: bool = False) -> Subject:
    """A random patient; thin and obese, straight and bent ones, with ordinary people in between; or a child of 1 to 16 years."""
    u = {name: float(key(name).uniform()) for name in ("sex", "fat", "visceral", "muscle", "kyphosis", "bent")}
    h, w, d, curve, right, left = key("normal").normal(6).clip(-2.2, 2.2).tolist()
    # One patient in five has a spine that swings far, one in five a dome that stands high (paralysed, or full belly).
    raised = float(key("raised").uniform())
    subject = Subject(
        seed=key.seed() % 2**31,
        sex="male" if u["sex"] < 0.5 else "female",
        height=_round(1 + 0.06 * h),
        width=_round(1 + 0.06 * w),
        depth=_round(1 + 0.07 * d),
        fat_mm=_round(3 + 45 * u["fat"] ** 2.2),
        visceral=_round(0.2 + 0.8 * u["visceral"]),
        muscle=_round(0.75 + 0.5 * u["muscle"]),
        scoliosis_mm=_round((22 if u["bent"] < 0.2 else 6) * curve),
        kyphosis=_round(0.6 + 0.9 * u["kyphosis"]),
        diaphragm_mm=(
            _round(12 * right + (35 if raised < 0.1 else 0)),
            _round(12 * left + (40 if raised > 0.9 else 0)),
        ),
    )
    if not child:
        return subject
    return replace(
        subject,
        age_years=_round(float(key("age").uniform(1, 16))),
        fat_mm=_round(3 + 17 * u["fat"] ** 1.5),
        visceral=_round(0.3 * u["visceral"]),
        muscle=_round(0.75 + 0.3 * u["muscle"]),
        scoliosis_mm=_round(subject.scoliosis_mm / 2),
    )


def draw_acquisition(
    key: Key, subject: Subject, *, view: View | None = None, voxel_mm: float | None = None
) -> Acquisition:
    """A random scan of `subject`; the field follows the patient's size loosely, and cuts some patients off.

    Beyond the scanner's own: a blanket lies on 18 per cent of the patients and clothes on 12, 8 per cent jerk aside once, 6 breathe
    between slabs of the scan, and half of the fields that cut the patient off have a bright rim.
    """
    if view is not None and view not in _VIEWS:
        from ctfoundry.phantom.views import draw_part  # it needs to know where this patient's head and knees lie

        return draw_part(key, subject, view=view, voxel_mm=voxel_mm)
    torso = view or _choose(key("view"), _VIEW_ODDS)
    low, high = (float(key("end", i).uniform(*ends)) for i, ends in enumerate(_VIEWS[torso]))
    grown = growth(subject.age_years)
    small = 1.0 if grown is None else float(np.interp(sum(_VIEWS[torso][0]) / 2 + 150, grown.z, grown.wide))
    girth = 2 * (155 * subject.width + subject.fat_mm) * small
    # One scan in four is a small field on a part of the body, as for the spine or the heart.
    zoom = float(key("zoom").uniform()) < 0.25
    spread = (0.48, 0.75) if zoom else (0.92, 1.35)
    field = min(max(girth * float(key("field").uniform(*spread)), 180.0 * small), 500.0)
    matrix = int(_choose(key("matrix"), ((160, 0.3), (192, 0.3), (224, 0.25), (256, 0.15))))
    spacing = float(_choose(key("spacing"), ((1.5, 0.08), (2.0, 0.25), (2.5, 0.22), (3.0, 0.25), (5.0, 0.2))))
    thickness = spacing * float(_choose(key("thickness"), ((1.0, 0.6), (1.25, 0.2), (2.0, 0.2))))
    if voxel_mm is not None:
        matrix = max(round(field / voxel_mm), 8)
        field, spacing, thickness = matrix * voxel_mm, voxel_mm, voxel_mm
    roll = 25.0 if float(key("turned").uniform()) < 0.12 else 7.0
    tilt = key("tilt").normal(3).clip(-2, 2) * (3.0, 3.5, roll / 2)
    shift, place = (
        key("centre").normal(2).clip(-2, 2) * (38 if zoom else 18),
        key("origin").uniform(-1, 1, 3) * (20, 30, 700),
    )
    kernel: Kernel = _choose(key("kernel"), (("soft", 0.35), ("standard", 0.4), ("sharp", 0.25)))
    phase: Phase = _choose(key("phase"), (("none", 0.3), ("arterial", 0.22), ("portal", 0.33), ("late", 0.15)))
    breath = _round(float(key("breath").uniform(-10, 28)))
    moved, step = key("moved").uniform(shape=2).tolist(), float(key("step").uniform(4, 12))
    rim = float(key("rim").uniform(100, 600)) if zoom and float(key("cut").uniform()) < 0.5 else 0.0
    cover: Cover = _choose(key("cover"), (("none", 0.7), ("blanket", 0.18), ("clothes", 0.12)))
    noise = 7 * math.exp(1.3 * float(key("noise").uniform())) * {"soft": 0.8, "standard": 1.0, "sharp": 2.2}[kernel]
    return Acquisition(
        seed=key.seed() % 2**31,
        z_range=(_round(low), _round(max(high, low + 60))),
        field_mm=field,
        matrix=matrix,
        spacing_mm=spacing,
        thickness_mm=thickness,
        kernel=kernel,
        noise_hu=_round(noise),
        phase=phase,
        centre_mm=(_round(shift[0]), _round(shift[1])),
        tilt_deg=(_round(tilt[0]), _round(tilt[1]), _round(tilt[2])),
        breath_mm=breath,
        breath_steps_mm=_round(min(step, breath + 20, 40 - breath)) if moved[0] < 0.06 else 0.0,
        motion_mm=_round(float(key("jerk").uniform(4, 15))) if moved[1] < 0.08 else 0.0,
        rim_hu=_round(rim),
        cover=cover,
        origin_mm=(_round(place[0]), _round(place[1]), _round(place[2])),
    )


def _round(value: float) -> float:
    """Three digits are plenty, and read well in JSON."""
    return round(float(value), 3)


def _choose(key: Key, odds: tuple[tuple[object, float], ...]):  # type: ignore[no-untyped-def]
    """One of the options, with the odds beside them."""
    point = float(key.uniform()) * sum(weight for _, weight in odds)
    for option, weight in odds:
        point -= weight
        if point < 0:
            return option
    return odds[-1][0]
