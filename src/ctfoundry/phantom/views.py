"""Scans of head, neck and legs: where they lie in this patient, and how hospitals scan them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.errors import UsageError
from ctfoundry.keys import Key
from ctfoundry.phantom.frame import HeadPose, head_size, rise
from ctfoundry.phantom.space import Pose
from ctfoundry.phantom.spec import Acquisition, Kernel, PartView, Phase, Subject, View, draw_acquisition

if TYPE_CHECKING:
    from jaxtyping import Float64

ANY_ODDS: tuple[tuple[View, float], ...] = (
    ("chest", 0.2),
    ("abdomen", 0.2),
    ("pelvis", 0.08),
    ("trunk", 0.1),
    ("torso", 0.05),
    ("head", 0.22),
    ("head-neck", 0.06),
    ("thigh", 0.03),
    ("knee", 0.03),
    ("lower-leg", 0.03),
)
"""How often `view="any"` draws each view: about as often as hospitals scan these regions."""

_RANGES: dict[PartView, tuple[tuple[float, float], tuple[float, float]]] = {
    "head": ((570, 592), (742, 758)),
    "head-neck": ((445, 500), (735, 758)),
    "thigh": ((-480, -330), (-190, -60)),
    "knee": ((-650, -600), (-490, -430)),
    "lower-leg": ((-1010, -850), (-620, -510)),
}
"""Ranges of the lower and the upper end, body millimetres."""
_PIXELS = {
    "head": (1.0, 1.6),
    "head-neck": (1.2, 2.2),
    "thigh": (1.3, 2.4),
    "knee": (0.8, 1.6),
    "lower-leg": (1.0, 2.2),
}
"""Pixels, about three times a scanner's (0.45 mm for a head), as in the torso."""


def _pick(key: Key, odds: tuple[tuple[object, float], ...]):  # type: ignore[no-untyped-def]
    edges = np.cumsum([weight for _, weight in odds])
    place = int(np.searchsorted(edges, float(key.uniform()) * edges[-1], side="right"))
    return odds[min(place, len(odds) - 1)][0]


def draw_part(key: Key, subject: Subject, *, view: View, voxel_mm: float | None = None) -> Acquisition:
    """A random scan of head, neck or legs ("any": of any part); the field is laid around what is scanned.

    Heads: nodding by up to 25 degrees either way (as a gantry's tilt along the canthomeatal line, and bad head rests),
    thick (5 mm) or thin slices, soft or bone kernel, mostly without contrast medium. Legs: one in the field or both.
    """
    if view == "any":
        return draw_acquisition(key, subject, view=_pick(key("any"), ANY_ODDS), voxel_mm=voxel_mm)
    part = _part(view)
    low, high = (float(key("end", i).uniform(*ends)) for i, ends in enumerate(_RANGES[part]))
    if part == "head":
        spacing = float(_pick(key("spacing"), ((5.0, 0.45), (2.5, 0.2), (1.5, 0.2), (1.0, 0.15))))
        phase: Phase = _pick(key("phase"), (("none", 0.75), ("arterial", 0.12), ("portal", 0.05), ("late", 0.08)))
        nod = 12.0
    elif part == "head-neck":
        spacing = float(_pick(key("spacing"), ((3.0, 0.45), (2.0, 0.3), (1.5, 0.25))))
        phase = _pick(key("phase"), (("none", 0.25), ("arterial", 0.4), ("portal", 0.35)))
        nod = 3.0
    else:
        spacing = float(_pick(key("spacing"), ((5.0, 0.25), (3.0, 0.4), (2.0, 0.35))))
        phase = _pick(key("phase"), (("none", 0.55), ("arterial", 0.25), ("portal", 0.1), ("late", 0.1)))
        nod = 2.0
    kernel: Kernel = _pick(key("kernel"), (("soft", 0.45), ("standard", 0.3), ("sharp", 0.25)))
    tilt = key("tilt").normal(3).clip(-2, 2) * (nod, 2.5, 4.0)
    place = key("origin").uniform(-1, 1, 3) * (20, 30, 700)
    noise = {"head": 2.6, "head-neck": 5.0}.get(part, 5.0) * math.exp(0.9 * float(key("noise").uniform()))
    noise *= {"soft": 0.8, "standard": 1.0, "sharp": 3.0}[kernel] * min(math.sqrt(3 / spacing), 1.6)
    pixel = float(key("pixel").uniform(*_PIXELS[part]))
    if voxel_mm is not None:
        pixel = spacing = voxel_mm
    scan = Acquisition(
        seed=key.seed() % 2**31,
        z_range=(low, high),
        spacing_mm=spacing,
        thickness_mm=spacing if voxel_mm else spacing * float(_pick(key("thickness"), ((1.0, 0.7), (1.25, 0.3)))),
        kernel=kernel,
        noise_hu=_round(noise),
        phase=phase,
        tilt_deg=_triple(tilt),
        breath_mm=_round(float(key("breath").uniform(-10, 10))),
        origin_mm=_triple(place),
    )
    field = _field(key, subject, part)
    scan = _aim(scan, subject, _middle(key, part, scan))
    shift = key("centre").normal(2).clip(-2, 2) * (6 if part == "head" else 10)
    x, y = scan.centre_mm
    matrix = max(round(field / pixel), 8)
    return replace(scan, field_mm=matrix * pixel, matrix=matrix, centre_mm=(_round(x + shift[0]), _round(y + shift[1])))


def _part(view: View) -> PartView:
    if view not in _RANGES:
        raise UsageError(f"view {view!r} is none of {', '.join(_RANGES)}, any", where="draw")
    return view


def _field(key: Key, subject: Subject, part: PartView) -> float:
    """Diameter of the field: 200 to 260 mm for an adult's head, wider with shoulders; one leg or both."""
    loose = float(key("field").uniform())
    size = float(head_size(subject).max())
    if part == "head":
        return (208 + 46 * loose) * size
    if part == "head-neck":
        return (230 + 160 * loose) * size
    grown = subject.width * rise(subject, -540.0) / rise(subject.__class__(0), -540.0)
    legs = {"thigh": (210, 400), "knee": (160, 330), "lower-leg": (170, 340)}[part]
    both = float(key("both").uniform()) < 0.5
    return (legs[both] + 50 * loose) * grown + 1.2 * subject.fat_mm


def _middle(key: Key, part: PartView, scan: Acquisition) -> Float64[np.ndarray, "3"]:
    """What the field is laid around: head millimetres for the head, body millimetres for the legs."""
    if part == "head":
        return np.array([0.0, 10.0, 60.0])
    if part == "head-neck":
        return np.array([0.0, 14.0, -10.0])
    z = sum(scan.z_range) / 2
    both = float(key("both").uniform()) < 0.5
    side = -1.0 if float(key("side").uniform()) < 0.5 else 1.0
    return np.array([0.0 if both else side * 92.0, 0.0 if part != "lower-leg" else 25.0, z])


def _aim(scan: Acquisition, subject: Subject, middle: Float64[np.ndarray, "3"]) -> Acquisition:
    """The scan with its field laid around `middle`, and its ends moved as far as this patient's head lies higher or lower."""
    low, high = scan.z_range
    pose = Pose.of(subject, scan)
    head = high > 600
    point = (HeadPose.at(pose, subject) if head else pose).world(middle[None])[0]
    moved = 0.0
    if head:
        expected = scan.origin_mm[2] + rise(subject, 594.0) + middle[2] * float(head_size(subject)[2])
        # Millimetres of the world to those of the body, above the neck.
        moved = float(point[2] - expected) / float(head_size(subject)[2])
    ends = (_round(low + moved), _round(min(high + moved, 799.0)))
    ox, oy, _ = scan.origin_mm
    return replace(scan, z_range=ends, centre_mm=(_round(point[0] - ox), _round(point[1] - oy - 10)))


def _round(value: float) -> float:
    return round(float(value), 3)


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    return _round(values[0]), _round(values[1]), _round(values[2])
