"""Which lesions a patient has: kinds, sites, sizes and stages, drawn from the distributions written down here.

Sizes are log-normal, ``median * exp(sigma * z)`` with z standard normal, cut to a range (the value is clipped to it). How
often a kind occurs is a parameter (`odds`), so that cohorts can be balanced; the default is `ODDS`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import get_args

from ctfoundry.errors import UsageError
from ctfoundry.keys import Key
from ctfoundry.phantom.spec import Acquisition, Lesion, LesionKind, Spec, Subject

KINDS: tuple[LesionKind, ...] = get_args(LesionKind)

ODDS: dict[LesionKind, float] = {
    "lung_nodule": 0.25,
    "liver_lesion": 0.2,
    "renal_cyst": 0.25,
    "pleural_effusion": 0.15,
    "pneumothorax": 0.06,
    "aortic_aneurysm": 0.07,
    "fracture": 0.12,
    "epidural_haemorrhage": 0.06,
    "subdural_haemorrhage": 0.1,
    "parenchymal_haemorrhage": 0.1,
    "soft_tissue_mass": 0.08,
}
"""Probability that a patient has a kind, where the scan shows its site; kinds are drawn independently."""


@dataclass(frozen=True)
class Sizes:
    """``median * exp(sigma * z)`` millimetres, clipped to `low` .. `high`; the number of lesions is 1 + geometric(`more`)."""

    median: float
    sigma: float
    low: float
    high: float
    more: float = 0.0
    most: int = 1


SIZES: dict[LesionKind, Sizes] = {
    "lung_nodule": Sizes(8, 0.5, 3, 30, 0.35, 5),
    "liver_lesion": Sizes(18, 0.55, 6, 60, 0.4, 5),
    "renal_cyst": Sizes(18, 0.6, 5, 80, 0.3, 3),
    "pleural_effusion": Sizes(10, 0.65, 4, 60, 0.3, 2),
    "pneumothorax": Sizes(7.5, 0.6, 4, 50),
    "aortic_aneurysm": Sizes(45, 0.2, 35, 80),
    "fracture": Sizes(16, 0.25, 10, 30, 0.35, 3),
    "epidural_haemorrhage": Sizes(8, 0.5, 3, 25),
    "subdural_haemorrhage": Sizes(6, 0.5, 3, 25, 0.15, 2),
    "parenchymal_haemorrhage": Sizes(25, 0.4, 16, 64, 0.1, 2),
    "soft_tissue_mass": Sizes(40, 0.5, 10, 120),
}
"""Longest diameter; greatest thickness of collections; an aneurysm's diameter across the aorta; the length of a fracture's zone."""

CHOICES: dict[LesionKind, dict[str, tuple[tuple[str, float], ...]]] = {
    "lung_nodule": {
        "attenuation": (("solid", 0.7), ("part-solid", 0.12), ("ground-glass", 0.18)),
        "margin": (("smooth", 0.45), ("lobulated", 0.3), ("spiculated", 0.25)),
        "calcification": (("none", 0.78), ("central", 0.12), ("diffuse", 0.1)),
        "cavitation": (("no", 0.88), ("yes", 0.12)),
    },
    "liver_lesion": {"attenuation": (("hypo", 0.7), ("hyper", 0.3))},
    "renal_cyst": {
        "attenuation": (("water", 0.88), ("hyperdense", 0.12)),
        "calcification": (("none", 0.85), ("wall", 0.15)),
    },
    "pleural_effusion": {"attenuation": (("simple", 0.75), ("dense", 0.25))},
    "pneumothorax": {},
    "aortic_aneurysm": {
        "segment": (("infrarenal", 0.68), ("descending", 0.22), ("ascending", 0.1)),
        "thrombus": (("yes", 0.65), ("no", 0.35)),
    },
    "fracture": {"stage": (("acute", 0.65), ("healing", 0.35))},
    "epidural_haemorrhage": {"stage": (("acute", 0.75), ("subacute", 0.25))},
    "subdural_haemorrhage": {"stage": (("acute", 0.35), ("subacute", 0.35), ("chronic", 0.3))},
    "parenchymal_haemorrhage": {
        "stage": (("acute", 0.7), ("subacute", 0.2), ("chronic", 0.1)),
        "oedema": (("yes", 0.7), ("no", 0.3)),
    },
    "soft_tissue_mass": {
        "composition": (("solid", 0.4), ("necrotic", 0.4), ("fatty", 0.2)),
        "calcification": (("no", 0.8), ("yes", 0.2)),
    },
}
"""Attributes of each kind with their odds; the first is what a lesion without the attribute is."""

HEIGHTS: dict[LesionKind, tuple[float, float]] = {
    "lung_nodule": (140, 500),
    "liver_lesion": (40, 330),
    "renal_cyst": (0, 260),
    "pleural_effusion": (140, 500),
    "pneumothorax": (140, 500),
    "aortic_aneurysm": (0, 440),
    "fracture": (-320, 500),
    "epidural_haemorrhage": (520, 800),
    "subdural_haemorrhage": (520, 800),
    "parenchymal_haemorrhage": (520, 800),
    "soft_tissue_mass": (-320, 330),
}
"""Body heights (mm) between which a kind's sites lie: how much of the patient is looked at to place it."""

_BOTH = ("left", "right")
_RIB_Z = {3: 400, 4: 385, 5: 360, 6: 335, 7: 310, 8: 285, 9: 260, 10: 235}
_SPINE_Z = {"T6": 348, "T7": 325, "T8": 301, "T9": 276, "T10": 249, "T11": 221, "T12": 192, "L1": 160, "L2": 125,
            "L3": 90, "L4": 54}  # fmt: skip
SITES: dict[LesionKind, dict[str, tuple[float, float]]] = {
    "lung_nodule": {
        "lung_upper_lobe_left": (0.22, 370),
        "lung_lower_lobe_left": (0.2, 270),
        "lung_upper_lobe_right": (0.26, 390),
        "lung_middle_lobe_right": (0.1, 290),
        "lung_lower_lobe_right": (0.22, 270),
    },
    "liver_lesion": {"liver": (1, 205)},
    "renal_cyst": {f"kidney_{side}": (1, 130) for side in _BOTH},
    "pleural_effusion": {f"lung_lower_lobe_{side}": (w, 250) for side, w in (("left", 0.45), ("right", 0.55))},
    "pneumothorax": {f"lung_upper_lobe_{side}": (w, 380) for side, w in (("left", 0.42), ("right", 0.58))},
    "aortic_aneurysm": {"aorta": (1, 95)},
    "fracture": {
        **{f"rib_{side}_{n}": (1, z) for side in _BOTH for n, z in _RIB_Z.items()},
        **{f"vertebrae_{name}": (0.8 if name in ("T12", "L1") else 0.35, z) for name, z in _SPINE_Z.items()},
        **{f"femur_{side}": (1.5, -150) for side in _BOTH},
    },
    "epidural_haemorrhage": {"brain": (1, 640)},
    "subdural_haemorrhage": {"brain": (1, 640)},
    "parenchymal_haemorrhage": {"brain": (1, 640)},
    "soft_tissue_mass": {
        **{f"gluteus_maximus_{side}": (1, -95) for side in _BOTH},
        **{f"iliopsoas_{side}": (1.2, 30) for side in _BOTH},
        **{f"autochthon_{side}": (0.5, 120) for side in _BOTH},
    },
}
"""Sites of each kind: weight, and the body height (mm) near which it lies in the reference body."""
SEGMENT_Z = {"infrarenal": 95.0, "descending": 290.0, "ascending": 350.0}
"""Heights of the aorta's segments."""


def attribute(lesion: Lesion, name: str) -> str:
    """An attribute of a lesion; where it is not given, the most usual value."""
    return lesion.attributes.get(name, CHOICES[lesion.kind][name][0][0])


def draw_lesions(
    key: Key,
    subject: Subject,
    acquisition: Acquisition | None = None,
    *,
    odds: Mapping[LesionKind, float] | None = None,
    kinds: Collection[LesionKind] | None = None,
) -> tuple[Lesion, ...]:
    """The lesions of a random patient.

    Parameters
    ----------
    key : names the draw; one kind's draw does not depend on the others'.
    subject : whose lesions; only the size of the body matters.
    acquisition : with it, only sites whose middle the scan is meant to show (by height); None for the whole body.
    odds : probability of each kind, in place of `ODDS`; kinds left out do not occur.
    kinds : only these.

    Raises
    ------
    UsageError : for odds outside 0..1 or unknown kinds.
    """
    chances = dict(ODDS if odds is None else odds)
    unknown = (set(chances) | set(kinds or ())) - set(KINDS)
    if unknown:
        raise UsageError(f"unknown kinds {sorted(unknown)}: there are {', '.join(KINDS)}", where="draw_lesions")
    if not all(0 <= chance <= 1 for chance in chances.values()):
        raise UsageError("odds are probabilities between 0 and 1", where="draw_lesions")
    found: list[Lesion] = []
    for kind in KINDS:
        own = key(kind)
        if (kinds is None or kind in kinds) and float(own.uniform()) < chances.get(kind, 0.0):
            found += _draw_kind(own, kind, subject, acquisition)
    return tuple(found)


def afflicted(key: Key, spec: Spec, *, odds: Mapping[LesionKind, float] | None = None) -> Spec:
    """A spec with lesions (`draw_lesions`), devices (`devices.draw_devices`) wear (0..1) and age (20 to 90 years, both
    uniform) of a random adult."""
    from ctfoundry.phantom.devices import draw_devices  # it knows how bodies are painted

    subject, scan = spec.subject, spec.acquisition
    return replace(
        spec,
        subject=replace(
            subject,
            age_years=round(float(key("age").uniform(20, 90)), 1),
            wear=round(float(key("wear").uniform()), 3),
            lesions=draw_lesions(key("lesions"), subject, scan, odds=odds),
            devices=draw_devices(key("devices"), scan),
        ),
    )


def _draw_kind(key: Key, kind: LesionKind, subject: Subject, scan: Acquisition | None) -> list[Lesion]:
    sizes = SIZES[kind]
    count = 1
    while count < sizes.most and float(key("more", count).uniform()) < sizes.more:
        count += 1
    found: list[Lesion] = []
    for index in range(count):
        own = key("lesion", index)
        attributes = {name: _choose(own(name), options) for name, options in CHOICES[kind].items()}
        sites = {site: weight for site, (weight, z) in SITES[kind].items() if _shown(scan, z)}
        if kind == "aortic_aneurysm":
            segments = tuple((s, w) for s, w in CHOICES[kind]["segment"] if _shown(scan, SEGMENT_Z[s]))
            sites = {"aorta": 1.0} if segments else {}
            attributes["segment"] = _choose(own("segment"), segments) if segments else ""
        if kind in ("pleural_effusion", "pneumothorax"):  # one on each side
            sites = {site: weight for site, weight in sites.items() if site not in {f.site for f in found}}
        if not sites:
            continue
        site = _choose(own("site"), tuple(sites.items()))
        size = sizes.median * float(pow(2.718281828459045, sizes.sigma * float(own("size").normal())))
        size = min(max(size, sizes.low), sizes.high)
        _refine(own, kind, site, size, attributes)
        found.append(Lesion(kind, own.seed() % 2**31, site, round(size, 2), attributes))
    return found


def _refine(key: Key, kind: LesionKind, site: str, size: float, attributes: dict[str, str]) -> None:
    """Attributes that depend on others: a lesion says only what it has."""
    if kind == "lung_nodule":
        if attributes["attenuation"] != "solid" or size < 5:
            attributes["calcification"] = "none"
        if attributes["attenuation"] != "solid" or size < 12 or attributes["calcification"] != "none":
            attributes["cavitation"] = "no"
        if size < 6 or attributes["attenuation"] == "ground-glass" or attributes["calcification"] != "none":
            attributes["margin"] = "smooth"
    elif kind == "fracture":
        if site.startswith("vertebrae"):
            attributes["height_loss_percent"] = str(round(12 + 38 * float(key("loss").uniform())))
        else:
            displacement = min(max(2.5 * pow(2.718281828459045, 0.6 * float(key("step").normal())), 0.5), 10.0)
            attributes["displacement_mm"] = f"{displacement:.1f}"
    elif kind == "soft_tissue_mass" and attributes["composition"] == "fatty":
        attributes["calcification"] = "no"


def _shown(scan: Acquisition | None, z: float) -> bool:
    return scan is None or scan.z_range[0] + 5 <= z <= scan.z_range[1] - 5


def _choose(key: Key, options: tuple[tuple[str, float], ...]) -> str:
    point = float(key.uniform()) * sum(weight for _, weight in options)
    for option, weight in options:
        point -= weight
        if point < 0:
            return option
    return options[-1][0]
