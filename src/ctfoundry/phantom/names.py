"""Label ids and names: TotalSegmentator v2's where it has the structure, ids from 200 where it has none.

Source of ids 1 to 117: TotalSegmentator v2 ``map_to_binary.class_map["total"]``. Only structures that the phantoms can hold
are listed. Ids 208 to 229 are head, neck and legs; 230 to 249 lesions and devices.
"""

from __future__ import annotations

_THORACIC = {f"vertebrae_T{n}": 44 - n for n in range(1, 13)}
_LUMBAR = {f"vertebrae_L{n}": 32 - n for n in range(1, 6)}
_CERVICAL = {f"vertebrae_C{n}": 51 - n for n in range(1, 6)}
_RIBS = {f"rib_{side}_{n}": first + n for side, first in (("left", 91), ("right", 103)) for n in range(1, 13)}

IDS: dict[str, int] = {
    "spleen": 1,
    "kidney_right": 2,
    "kidney_left": 3,
    "gallbladder": 4,
    "liver": 5,
    "stomach": 6,
    "pancreas": 7,
    "lung_upper_lobe_left": 10,
    "lung_lower_lobe_left": 11,
    "lung_upper_lobe_right": 12,
    "lung_middle_lobe_right": 13,
    "lung_lower_lobe_right": 14,
    "esophagus": 15,
    "trachea": 16,
    "thyroid_gland": 17,
    "small_bowel": 18,
    "duodenum": 19,
    "colon": 20,
    "urinary_bladder": 21,
    "prostate": 22,
    "kidney_cyst_left": 23,
    "kidney_cyst_right": 24,
    "sacrum": 25,
    **_LUMBAR,
    **_THORACIC,
    "vertebrae_C7": 44,
    "vertebrae_C6": 45,
    **_CERVICAL,
    "heart": 51,
    "aorta": 52,
    "common_carotid_artery_right": 57,
    "common_carotid_artery_left": 58,
    "superior_vena_cava": 62,
    "inferior_vena_cava": 63,
    "portal_vein_and_splenic_vein": 64,
    "iliac_artery_left": 65,
    "iliac_artery_right": 66,
    "iliac_vena_left": 67,
    "iliac_vena_right": 68,
    "scapula_left": 71,
    "scapula_right": 72,
    "clavicula_left": 73,
    "clavicula_right": 74,
    "femur_left": 75,
    "femur_right": 76,
    "hip_left": 77,
    "hip_right": 78,
    "spinal_cord": 79,
    "gluteus_maximus_left": 80,
    "gluteus_maximus_right": 81,
    "autochthon_left": 86,
    "autochthon_right": 87,
    "iliopsoas_left": 88,
    "iliopsoas_right": 89,
    "brain": 90,
    "skull": 91,
    **_RIBS,
    "sternum": 116,
    "costal_cartilages": 117,
    "skin": 200,
    "subcutaneous_fat": 201,
    "muscle": 202,
    "visceral_fat": 203,
    "intervertebral_disc": 204,
    "table": 205,
    "pulmonary_artery": 206,
    "breast": 207,
    "mandible": 208,
    "teeth": 209,
    "eye_left": 210,
    "eye_right": 211,
    "optic_nerve": 212,
    "ventricle": 213,
    "subarachnoid_space": 214,
    "cerebellum": 215,
    "brainstem": 216,
    "venous_sinus": 217,
    "paranasal_sinus": 218,
    "upper_airway": 219,
    "internal_jugular_vein": 220,
    "patella": 221,
    "tibia": 222,
    "fibula": 223,
    "foot": 224,
    "quadriceps": 225,
    "hamstrings": 226,
    "adductors": 227,
    "calf": 228,
    "femoral_vessels": 229,
    "pleural_effusion": 230,
    "pneumothorax": 231,
    "epidural_haemorrhage": 232,
    "subdural_haemorrhage": 233,
    "parenchymal_haemorrhage": 234,
    "stent": 240,
    "screws": 241,
}
"""Structure name to label id. 0 is air."""

LABELS: dict[int, str] = {i: name for name, i in sorted(IDS.items(), key=lambda item: item[1])}
"""Label id to structure name, in the order of ids."""

HEAD: tuple[str, ...] = (
    "brain",
    "skull",
    "mandible",
    "teeth",
    "eye_left",
    "eye_right",
    "optic_nerve",
    "ventricle",
    "subarachnoid_space",
    "cerebellum",
    "brainstem",
    "venous_sinus",
    "paranasal_sinus",
)
"""Structures that lie above the neck only."""
NECK: tuple[str, ...] = (
    *_CERVICAL,
    "thyroid_gland",
    "common_carotid_artery_left",
    "common_carotid_artery_right",
    "upper_airway",
    "internal_jugular_vein",
)
"""Structures that lie in the neck, some of which reach into the head or down to the chest."""
LEGS: tuple[str, ...] = (
    "patella",
    "tibia",
    "fibula",
    "foot",
    "quadriceps",
    "hamstrings",
    "adductors",
    "calf",
    "femoral_vessels",
)
"""Structures of the legs beside the femora, which reach into the torso."""

GROUPS: dict[str, tuple[str, ...]] = {
    "lung_left": ("lung_upper_lobe_left", "lung_lower_lobe_left"),
    "lung_right": ("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"),
    "heart": ("heart",),
    "aorta": ("aorta",),
    "liver": ("liver",),
    "spleen": ("spleen",),
    "kidney_left": ("kidney_left",),
    "kidney_right": ("kidney_right",),
    "stomach": ("stomach",),
    "bowel": ("small_bowel", "duodenum", "colon"),
    "urinary_bladder": ("urinary_bladder",),
    "vertebrae": (*_LUMBAR, *_THORACIC, "vertebrae_C7", "vertebrae_C6", *_CERVICAL),
    "ribs": tuple(_RIBS),
    "pelvis": ("hip_left", "hip_right", "sacrum"),
    "muscle": (
        "muscle",
        "autochthon_left",
        "autochthon_right",
        "iliopsoas_left",
        "iliopsoas_right",
        "gluteus_maximus_left",
        "gluteus_maximus_right",
    ),
    "fat": ("subcutaneous_fat", "visceral_fat"),
    "skin": ("skin",),
    "table": ("table",),
}
"""Eighteen coarse structures of the torso. Difficulty is measured on these too, because two dozen ribs with one HU would flatter it."""

FOUND = (
    "kidney_cyst_left",
    "kidney_cyst_right",
    "pleural_effusion",
    "pneumothorax",
    "epidural_haemorrhage",
    "subdural_haemorrhage",
    "parenchymal_haemorrhage",
    "stent",
    "screws",
)
"""Labels that only patients with a lesion or a device have."""

WRAPS = ("muscle", "fat", "skin", "table")
"""Groups that surround all the others: their centroid is the body's own middle, so they are no places to find."""
