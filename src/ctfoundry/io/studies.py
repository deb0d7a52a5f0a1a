"""Which series represents a study: one stated rule over what `discover` found, from headers alone.

A study holds many reconstructions of the same minutes: thick and thin, soft and sharp, before and after contrast, scouts, dose
sheets, projections. `judge` names the one that a study is best represented by and says of every other why it is not, in a
few words. The rule (docs/inspect.md has it in prose):

1. Out are label maps, series with a problem, what is no CT, scouts and bolus monitoring, projections and spectral maps, stacks of
   fewer than `LEAST_SLICES` slices or less than `LEAST_COVER_MM`.
2. Of the rest the better one is, in this order: reconstructed from the measurement rather than from other images; axial; covering
   at least `COVER_SHARE` of what the widest covers; with a full field of view; in the thinner class of slices (`THIN_MM`,
   `THICK_MM`); of a softer kernel; of the better contrast phase (`PHASES`); not finer than `FINEST_MM`; then thinner slices, the
   longer coverage, the lower series number, the smaller UID.

The reason of a loser is the first of these points at which it falls behind the chosen one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import acos, degrees, inf
from typing import Literal

import numpy as np

from ctfoundry.io.discovery import Facts, Found

LEAST_SLICES = 16
"""Fewer slices are a monitoring scan, a sample or a rest; the published corpora ask for 20 to 50."""
LEAST_COVER_MM = 40.0
"""Less than this along the patient is no region of the body."""
COVER_SHARE = 0.6
"""A series that covers less than this share of the widest one shows a part of the study only."""
FIELD_SHARE = 0.75
"""A field of view narrower than this share of the widest one is a targeted reconstruction."""
WIDEST_FIELD_MM = 400.0
"""Wider fields of view add air and arms, not patient, so they make no other field narrow."""
THIN_MM, THICK_MM = 3.0, 5.0
"""Classes of slices by the larger of thickness and spacing: up to 3 mm thin, up to 5 mm (as reported) medium, thicker ones thick."""
FINEST_MM = 0.5
"""Below this a slice is mostly noise, made for small bones."""
AXIAL_DEG = 35.0
"""Slices whose normal is nearer than this to the body's axis are axial; gantry tilts reach 30 degrees."""
MODEST = 1.05
"""Lengths within 5 % count as equal."""

Plane = Literal["axial", "coronal", "sagittal", "oblique"]
Sharpness = Literal["soft", "medium", "sharp", ""]
Phase = Literal["portal venous", "contrast", "arterial", "delayed", "native", ""]

PHASES: tuple[Phase, ...] = ("portal venous", "contrast", "arterial", "delayed", "native", "")
"""Contrast phases, best first: most organs and vessels stand out in the portal venous one. "" is not known."""


@dataclass(frozen=True)
class Verdict:
    """What the rule says of one series.

    Attributes
    ----------
    found : the series.
    study : key of its study: the Study Instance UID, or what names it where it has none. Private.
    chosen : whether it represents its study.
    out : whether it could not represent any study.
    reason : why it does not, in a few words; "" for the chosen one.
    """

    found: Found
    study: str
    chosen: bool
    out: bool
    reason: str


def representatives(found: Sequence[Found]) -> dict[str, Found]:
    """Study key to the series that represents it; studies of which nothing can be used are absent."""
    return {verdict.study: verdict.found for verdict in judge(found) if verdict.chosen}


def judge(found: Sequence[Found]) -> tuple[Verdict, ...]:
    """A verdict for each, in the order given; the same whatever that order is."""
    studies: dict[str, list[int]] = {}
    for k, item in enumerate(found):
        studies.setdefault(study_of(item), []).append(k)
    verdicts: dict[int, Verdict] = {}
    for study, members in studies.items():
        reasons = {k: unfit(found[k]) for k in members}
        usable = [k for k in members if not reasons[k]]
        points = _points([found[k] for k in usable])
        order = sorted(zip(usable, points, strict=True), key=lambda pair: [rank for rank, _ in pair[1]])
        for k in members:
            verdicts[k] = Verdict(found[k], study, False, True, reasons[k])
        for place, (k, own) in enumerate(order):
            best = order[0][1]
            reason = next((why for (a, why), (b, _) in zip(own, best, strict=True) if a != b), "the same again")
            verdicts[k] = Verdict(found[k], study, place == 0, False, reason if place else "")
    return tuple(verdicts[k] for k in range(len(found)))


def study_of(found: Found) -> str:
    """What tells studies apart: the Study Instance UID; a file that has none is a study of its own."""
    return found.study or found.series or str(found.path)


def unfit(found: Found) -> str:
    """Why a series can represent no study, "" where it can."""
    if found.is_label:
        return "label map"
    if found.modality not in (None, "CT"):
        return f"not CT ({found.modality})"
    if found.problem is not None:
        return problem_name(found.problem)
    facts = found.facts or Facts()
    words = _words(facts.description)
    for name, values, pattern in _NO_SCANS:
        if values & _values(facts) or pattern.search(words):
            return name
    if found.grid is None:
        return "no geometry"
    if found.grid.shape[0] < LEAST_SLICES:
        return f"{found.grid.shape[0]} slices"
    if extent_mm(found) < LEAST_COVER_MM:
        return f"covers {extent_mm(found):.0f} mm"
    return ""


def problem_name(problem: Exception) -> str:
    """The name of an error as words: `MissingSlicesError` is "missing slices".

    >>> from ctfoundry.errors import MissingSlicesError
    >>> problem_name(MissingSlicesError("..."))
    'missing slices'
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(problem).__name__.removesuffix("Error"))
    return words.lower()


# What a header says, in the rule's terms ------------------------------------------------------------------------------


def extent_mm(found: Found) -> float:
    """Millimetres along the patient's axis (world z) that its voxels take, to their edges; 0 without a grid."""
    if found.grid is None:
        return 0.0
    return float(np.abs(found.grid.affine[2, :3]) @ np.array(found.grid.shape))


def field_mm(found: Found) -> tuple[float, float]:
    """Millimetres of a slice: its rows' and its columns' length (down, across); zeros without a grid."""
    if found.grid is None:
        return 0.0, 0.0
    (_, h, w), (_, down, across) = found.grid.shape, found.grid.spacing
    return h * down, w * across


def plane(found: Found) -> tuple[Plane, float]:
    """(nearest plane of its slices, degrees between the slices' normal and that plane's); ("oblique", 0) without a grid."""
    if found.grid is None:
        return "oblique", 0.0
    down, across = found.grid.affine[:3, 1], found.grid.affine[:3, 2]
    normal = np.cross(down, across)
    shares = np.abs(normal) / np.linalg.norm(normal)
    axis = int(np.argmax(shares))
    names: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
    off = degrees(acos(min(1.0, float(shares[axis]))))
    return (names[axis] if off <= AXIAL_DEG else "oblique"), off


def thickness_mm(found: Found) -> float:
    """The larger of slice thickness and spacing between slices; infinity when neither is known."""
    step = found.grid.spacing[0] if found.grid is not None else 0.0
    stated = found.facts.thickness_mm if found.facts is not None else None
    return max(step, stated or 0.0) or inf


def sharpness(kernel: str) -> Sharpness:
    r"""What a vendor's kernel name says.

    Siemens: the first two digits, whatever letters stand before (B30f, I31f, Br40d\3, Hr44): to 44 soft, 45 to 49 medium, from
    50 on sharp (SOMATOM operating instructions: B10 to B41 for soft tissue, B50 to B80 for higher sharpness). Canon: FC01-29,
    40-49 and 60-69 are made for soft tissue of body and head, FC30-39, 50-59 and 80-89 for bone, ear and lung. Philips: A, B and C
    are smooth to standard, D and later letters, L and all Y sharp. GE and others: words (SOFT, STANDARD, DETAIL, LUNG, BONE, EDGE,
    ...). The National Lung Screening Trial pairs soft and sharp alike: STANDARD and BONE, B30 and B50, C and D, FC10 and FC51.

    >>> [sharpness(k) for k in ("B30f", "Bl57d", "STANDARD", "BONEPLUS", "FC51", "YB", "")]
    ['soft', 'sharp', 'soft', 'sharp', 'sharp', 'sharp', '']
    """
    name = re.split(r"[\\/,;]", kernel.strip().upper())[0].strip()
    canon = re.fullmatch(r"FC[-_ ]?(\d{1,2}).*", name)
    if canon:
        tens = int(canon.group(1)) // 10
        return "soft" if tens in (0, 1, 2, 4, 6) else "sharp" if tens in (3, 5, 8) else ""
    siemens = re.fullmatch(r"[ABDHIJQSU][A-Z]?(\d\d)[A-Z]*(?:[-_ ]?\d+)?", name)
    if siemens:
        number = int(siemens.group(1))
        return "soft" if number < 45 else "medium" if number < 50 else "sharp"
    philips = re.fullmatch(r"(Y[A-F]|[UE]?[A-F]|L)", name)
    if philips:
        letter = name[-1]
        return "sharp" if name[0] == "Y" or letter in "DEFL" else "soft"
    for level, pattern in _KERNEL_WORDS:
        if pattern.search(name):
            return level
    return ""


_KERNEL_WORDS: tuple[tuple[Sharpness, re.Pattern[str]], ...] = (
    ("sharp", re.compile(r"LUNG|BONE|EDGE|ULTRA|SHARP|OSS|HIGH.?RES|HRES|INNER.?EAR|KNOCHEN")),
    ("medium", re.compile(r"DETAIL|MEDIUM")),
    ("soft", re.compile(r"SOFT|STANDARD|STND|\bSTD\b|SMOOTH|CHST|BRAIN|BODY|WEICH")),
)


def phase(facts: Facts, part: str = "") -> Phase:
    """The contrast phase that description and contrast element name, in the languages of `_PHASE_WORDS`; "" when not known.

    >>> phase(Facts(description="Abdomen portalvenös 1.5")), phase(Facts(description="THORAX NATIV"))
    ('portal venous', 'native')
    """
    words = _words(f"{facts.description} {part}")
    for name, pattern in _PHASE_WORDS:
        if pattern.search(words):
            return name
    agent = facts.contrast.strip().lower()
    if agent and not re.fullmatch(r"(no|none|nein|non|ohne|sans|n|0|-|without.*|w/?o.*|native?|plain)\W*", agent):
        return "contrast"
    return "native" if agent else ""


def _words(text: str) -> str:
    """Lower case, signs between words as single blanks, with a blank at either end."""
    return " " + _SIGNS.sub(" ", text.lower()).strip() + " "


_SIGNS = re.compile(r"[\s_/.,;:()+|^-]+")


def _values(facts: Facts) -> set[str]:
    return {value.strip().upper() for value in facts.image_type}


_NO_SCANS: tuple[tuple[str, frozenset[str], re.Pattern[str]], ...] = (
    (
        "scout",
        frozenset({"LOCALIZER"}),
        re.compile(r" (scouts?|topo|topogram\w*|surview\w*|locali[sz]er\w*|scano\w*|pilot|übersicht\w*|scanogramm\w*|定位像?) "),
    ),
    (
        "bolus monitoring",
        frozenset(),
        re.compile(r" ((pre)?monitoring|smart ?prep|care ?bolus|bolus ?track\w*|tracker|sure ?start|test ?bolus|timing( bolus)?) "),
    ),
    (
        "projection",
        frozenset({"MIP", "MINIP", "MIN_IP", "MAX_IP", "MAXIP", "PROJECTION IMAGE", "VRT", "VOLREN", "SSD", "CPR", "CURVED", "AVERAGE"}),
        re.compile(r" (mips?|min ?ips?|vrt|3d ?vr|vr|cpr|curved|volume render\w*|batch 3d) "),
    ),
    ("protocol page", frozenset(), re.compile(r" (dose (report|info|sheet)|patient protocol|dosis\w*|exam summary|screen save) ")),
    (
        "spectral map",
        frozenset({"IODINE", "ZEFF", "EFF_Z", "VNC", "VNCA", "MATERIAL_SPECIFIC", "ELECTRON_DENSITY"}),
        re.compile(r" (iodine( map)?|jod(karte)?|vnc|virtual non contrast|z ?eff\w*|electron density|uric acid|perfusion|cbf|cbv|mtt|tmax) "),
    ),
)  # fmt: skip
"""(reason, values of Image Type, words of the description) of what is no scan to represent a study."""

_MADE_FROM_IMAGES = frozenset({"MPR", "REFORMATTED", "RESAMPLED", "CSA MPR", "CSAMANIPULATED", "FUSED"})
_MPR_WORDS = re.compile(r" (mprs?|reformat\w*|reform|cor|coronal\w*|koronar\w*|sag|sagittal\w*|sagitt?ale?) ")

_PHASE_WORDS: tuple[tuple[Phase, re.Pattern[str]], ...] = (
    (
        "native",
        re.compile(
            r" (nati[vf]e?|nativo|native?s|plain|unenhanced|non ?contrast|non ?con|nc|ncct|noncon\w*|without( contrast)?|wo( iv)?|w o"
            r"|ohne( km)?|pre ?contrast|sans( (injection|contraste|iv|pdc))?|spc|sin (contraste|civ)|senza( mdc)?|sem contraste|s c"
            r"|нативн\w*|без контраста|平扫|単純|비조영) "
        ),
    ),
    (
        "portal venous",
        re.compile(
            r" (portal\w*|porto\w*|pv|pvp|pvc|ven|venous|venös|venoes|venosa?|veineu[xs]e?|venoso|vein|veins|port ven|6[05]s|7[05]s|8[05]s|90s"
            r"|венозн\w*|портальн\w*|门脉期?|門脈相?|静脉期?|静脈相?) "
        ),
    ),
    (
        "arterial",
        re.compile(
            r" (art|arterial\w*|arteriel\w*|artériel\w*|arterios[ao]|cta|angio\w*|ctpa|early|früh\w*|2[05]s|3[05]s|40s"
            r"|артериальн\w*|动脉期?|動脈相?) "
        ),
    ),
    (
        "delayed",
        re.compile(
            r" (delay\w*|late|spät\w*|spaet\w*|tardi\w*|excret\w*|uro\w*|equilibri\w*|nephro\w*|5 ?min|10 ?min"
            r"|отсроченн\w*|延迟期?|遅延相?|平衡相?) "
        ),
    ),
    ("contrast", re.compile(r" (contrast|with|w contrast|mit km|km|ce|cect|iv|kontrast|contraste|injection|injecté|mdc|civ|post ?contrast|増強|增强|造影) ")),
)  # fmt: skip
"""Words that name a phase, in English, German, French, Italian, Spanish, Portuguese, Russian, Chinese, Japanese; first match wins."""


def _points(group: Sequence[Found]) -> list[list[tuple[float | str, str]]]:
    """For each series the (rank, reason when behind) of every point of the rule; lower ranks are better."""
    widest = max((extent_mm(f) for f in group), default=0.0)
    field = min(max((min(field_mm(f)) for f in group), default=0.0), WIDEST_FIELD_MM)
    return [_points_of(found, widest, field) for found in group]


def _points_of(found: Found, widest: float, field: float) -> list[tuple[float | str, str]]:
    facts = found.facts or Facts()
    thick, where, cover = thickness_mm(found), plane(found)[0], extent_mm(found)
    kernel, shown = sharpness(facts.kernel), phase(facts, found.part)
    values = _values(facts)
    derived = "DERIVED" in values and not values & {"AXIAL"}
    reformatted = bool(values & _MADE_FROM_IMAGES) or derived or bool(_MPR_WORDS.search(_words(facts.description)))
    tier = 0 if thick <= THIN_MM * MODEST else 1 if thick <= THICK_MM * MODEST else 2
    return [
        (reformatted, "reformatted"),
        (where != "axial", f"{where}, not axial"),
        (cover < COVER_SHARE * widest, f"covers {cover:.0f} of {widest:.0f} mm"),
        (min(field_mm(found)) < FIELD_SHARE * field, f"narrow field ({min(field_mm(found)):.0f} mm)"),
        (tier, f"thicker ({thick:.3g} mm)"),
        ({"soft": 0, "": 1, "medium": 1, "sharp": 2}[kernel], f"{kernel or 'unknown'} kernel"),
        (_PHASE_RANK[shown], f"{shown or 'unknown'} phase"),
        (thick < FINEST_MM / MODEST, f"very thin ({thick:.3g} mm)"),
        (round(thick, 2) if thick < inf else inf, f"thicker ({thick:.3g} mm)"),
        (-round(cover), f"covers {cover:.0f} mm"),
        (_number(facts.number), "later series"),
        (f"{found.series or ''} {found.part} {found.path}", "later series"),
    ]


_PHASE_RANK = {name: k for k, name in enumerate(PHASES)}
_PHASE_RANK[""] = _PHASE_RANK["native"]  # nothing said: most often nothing given


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return inf
