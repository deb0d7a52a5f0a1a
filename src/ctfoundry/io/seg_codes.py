"""Coded meaning of a segment: SNOMED CT for the organs that TotalSegmentator names, a stated general code for all else.

Codes are taken from pydicom's copy of the DICOM dictionaries (PS3.16 CID 7150 and others) by their keyword there, so no number
is typed here. Left and right are a modifier of the property type (CID 244), as the standard has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

GENERAL = "Tissue"
"""Property type of a structure that is not in the table."""

ORGANS = {
    "spleen": "Spleen",
    "kidney": "Kidney",
    "gallbladder": "Gallbladder",
    "liver": "Liver",
    "stomach": "Stomach",
    "pancreas": "Pancreas",
    "adrenal_gland": "AdrenalGland",
    "lung": "Lung",
    "lung_upper_lobe": "UpperLobeOfLung",
    "lung_middle_lobe": "MiddleLobeOfRightLung",
    "lung_lower_lobe": "LowerLobeOfLung",
    "esophagus": "Esophagus",
    "trachea": "Trachea",
    "thyroid_gland": "Thyroid",
    "small_bowel": "SmallIntestine",
    "duodenum": "Duodenum",
    "colon": "Colon",
    "prostate": "Prostate",
    "sacrum": "Sacrum",
    "heart": "Heart",
    "aorta": "Aorta",
    "pulmonary_artery": "PulmonaryArtery",
    "pulmonary_vein": "PulmonaryVein",
    "superior_vena_cava": "SuperiorVenaCava",
    "inferior_vena_cava": "InferiorVenaCava",
    "brachiocephalic_trunk": "BrachiocephalicTrunk",
    "common_carotid_artery": "CommonCarotidArtery",
    "subclavian_artery": "SubclavianArtery",
    "iliac_artery": "CommonIliacArtery",
    "iliac_vena": "CommonIliacVein",
    "humerus": "Humerus",
    "scapula": "Scapula",
    "clavicula": "Clavicle",
    "femur": "Femur",
    "rib": "Rib",
    "sternum": "Sternum",
    "skull": "Skull",
    "brain": "Brain",
    "spinal_cord": "SpinalCord",
    "autochthon": "ErectorSpinaeMuscle",
    **{f"vertebrae_{v}": f"{v}Vertebra" for v in [*(f"C{n}" for n in range(1, 8)), *(f"T{n}" for n in range(1, 13))]},
    **{f"vertebrae_L{n}": f"L{n}Vertebra" for n in range(1, 6)},
}
"""TotalSegmentator name without side and number, to the keyword of its code in pydicom's SNOMED CT dictionary."""


@dataclass(frozen=True)
class Meaning:
    """Category and type of a segment, and the side of the body where the name says one."""

    category: Code
    type: Code
    side: Code | None


def meaning(name: str) -> Meaning:
    """The codes of a structure's name; `GENERAL` for one that is not in the table.

    >>> found = meaning("kidney_left")
    >>> found.type.value, found.side.meaning
    ('64033007', 'Left')
    >>> meaning("thing").type.meaning
    'Tissue'
    """
    from pydicom.sr.codedict import codes

    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    sides = {"left": codes.SCT.Left, "right": codes.SCT.Right}
    found = re.search(r"_(left|right)(?=_|$)", plain)
    stem = plain if found is None else plain[: found.start()] + plain[found.end() :]
    table = {key.lower(): word for key, word in ORGANS.items()}
    word = table.get(stem) or table.get(re.sub(r"_\d+$", "", stem))
    if word is None:
        return Meaning(codes.SCT.AnatomicalStructure, getattr(codes.SCT, GENERAL), None)
    side = None if found is None else sides[found.group(1)]
    return Meaning(codes.SCT.AnatomicalStructure, getattr(codes.SCT, word), side)


def colour(number: int) -> tuple[int, int, int]:
    """A display colour (red, green, blue; 0 to 255) for a structure: hues far apart for neighbouring numbers.

    >>> colour(1) != colour(2)
    True
    """
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 0.95 - 0.2 * (number // 8 % 3))
    return round(red * 255), round(green * 255), round(blue * 255)
