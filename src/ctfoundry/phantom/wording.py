"""Phrases of radiology reports: data, no logic.

A phrase with ``{name}`` in it is expanded from the values at hand, else from one of the alternatives in `WORDS`, and "a(n)" becomes
the article that fits (`grammar`); which phrase is used where is decided in `reports`. The order of alternatives matters: the
key picks by number, so a change here changes the reports of given seeds. The phrases were written for this package; no report of
a patient was looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from ctfoundry.phantom.spec import LesionKind

WORDS: dict[str, tuple[str, ...]] = {
    "there_is": ("there is", "note is made of", "the scan shows", "images show", "one finds", "CT demonstrates"),
    "seen": ("seen", "noted", "identified", "present", "demonstrated", "visualised", "observed", "found"),
    "measures": ("measuring", "measuring up to", "with a longest diameter of", "which measures", "of", "sized"),
    "measured": ("measures", "measures up to", "has a longest diameter of", "is sized", "spans"),
    "thick": (
        "up to {size} thick",
        "with a maximum thickness of {size}",
        "measuring {size} in thickness",
        "{size} at its thickest",
        "with a depth of up to {size}",
    ),
    "wide": (
        "measuring up to {size}",
        "with a maximum extent of {size}",
        "up to {size} in longest dimension",
        "{size} at its largest",
    ),
    "no_evidence": ("no evidence of", "no sign of", "no CT evidence of", "no"),
    "not_seen": ("not seen", "not identified", "absent", "not present", "not demonstrated", "not observed"),
    "normal": ("unremarkable", "normal", "within normal limits", "of normal appearance", "without abnormality"),
    "plain": ("normal", "unremarkable"),
    "partly": (
        "it is only partly included, so this is a minimum",
        "its extent is cut off by the scan, so the true size may be larger",
        "incompletely imaged",
        "part of it lies outside the scan",
    ),
    "visible_part": (
        "in the included portion",
        "as far as included",
        "in the visible part",
        "within the limits of the scan",
    ),
    "cm_scan": ("previous scan", "prior examination", "earlier CT", "comparison study"),
}
"""Alternatives that every statement shares."""

MASS = (
    "{there_is} a(n) {size} {adj} {noun} {where}",
    "{there_is} a(n) {adj} {noun} {where}, {measures} {size}",
    "a(n) {adj} {noun} {where} {measured} {size}",
    "a(n) {size} {adj} {noun} is {seen} {where}",
    "{where}, {there_is} a(n) {adj} {noun}, {measures} {size}",
    "{adj} {noun} {where} ({size})",
    "{where}: {size} {adj} {noun}",
    "{size} {adj} {noun} {where}",
    "a(n) {adj} {noun}, {measures} {size}, is {seen} {where}",
)
"""Sentences about a thing with a diameter and a place."""

COLLECTION = (
    "{there_is} a(n) {adj} {side} {noun}, {thick}",
    "a(n) {adj} {side}-sided {noun} is {seen}, {thick}",
    "a(n) {adj} {noun} is {seen} on the {side}, {thick}",
    "on the {side} {there_is} a(n) {adj} {noun}, {thick}",
    "{adj} {side} {noun} ({size})",
    "{adj} {noun} on the {side}, {thick}",
    "{side}-sided {adj} {noun}, {thick}",
    "a(n) {adj} {noun} on the {side} is {thick}",
)
"""Sentences about what fills a space of one side."""

BLEED = (
    "{there_is} a(n) {adj} {noun} {where}, {thick}",
    "a(n) {adj} {noun} is {seen} {where}, {thick}",
    "{where}, {there_is} a(n) {adj} {noun}, {thick}",
    "{adj} {noun} {where} ({size})",
    "{adj} {noun} {where}, {thick}",
    "a(n) {adj} {noun} {where} is {thick}",
    "a(n) {size} thick {adj} {noun} is {seen} {where}",
)
"""Sentences about blood between skull and brain."""

BROKEN = (
    "{there_is} a(n) {adj} {noun} of {site}",
    "a(n) {adj} {noun} of {site} is {seen}",
    "{adj} {noun} of {site}",
    "{site}: {adj} {noun}",
    "{site} shows a(n) {adj} {noun}",
    "a(n) {adj} {noun} is {seen} at {site}",
    "{there_is} a(n) {adj} {noun} at {site}",
    "a(n) {adj} {noun} involves {site}",
)
"""Sentences about fractures: a place, and no size, because radiologists give none."""

WIDENED = (
    "{there_is} {noun} of {site}, {wide}",
    "{site} shows {noun}, {wide}",
    "{noun} of {site} ({size})",
    "{noun} of {site} is {seen}, {wide}",
    "{site} is aneurysmal, {wide}",
    "{there_is} an aneurysm of {site} of {size}",
    "an aneurysm of {site} {measured} {size}",
    "{site}: aneurysm, {wide}",
)
"""Sentences about an aneurysm."""


@dataclass(frozen=True)
class Phrases:
    """How one kind of lesion is written about.

    Attributes
    ----------
    region : of the report's findings.
    nouns : what it is called.
    frames : sentences that state it.
    absent : what is called absent.
    seen_in : structures (prefixes of names) one of which must be in the scan for the kind to be judged at all.
    importance : order in the impression, larger first.
    scale_mm : size at which one of the kind is as important as it gets.
    hedges : what the impression may add.
    """

    region: str
    nouns: tuple[str, ...]
    frames: tuple[str, ...]
    absent: tuple[str, ...]
    seen_in: tuple[str, ...]
    importance: float
    scale_mm: float
    hedges: tuple[str, ...] = ("",)


REGIONS = (
    "Brain",
    "Lungs and pleura",
    "Mediastinum and heart",
    "Liver and bile ducts",
    "Spleen and pancreas",
    "Kidneys and bladder",
    "Bowel",
    "Vessels",
    "Bones",
    "Soft tissues",
)
"""Regions of the findings, in the order of the report."""

PHRASES: dict[LesionKind, Phrases] = {
    "epidural_haemorrhage": Phrases(
        "Brain",
        ("epidural haematoma", "extradural haematoma", "epidural haemorrhage", "lentiform epidural collection"),
        BLEED,
        ("epidural haematoma", "extradural haemorrhage", "epidural collection"),
        ("brain",),
        11,
        40,
        ("", "neurosurgical opinion is advised"),
    ),
    "subdural_haemorrhage": Phrases(
        "Brain",
        ("subdural haematoma", "subdural haemorrhage", "crescentic subdural collection", "subdural blood collection"),
        BLEED,
        ("subdural haematoma", "subdural haemorrhage", "subdural collection"),
        ("brain",),
        10,
        30,
        ("", "neurosurgical opinion is advised"),
    ),
    "parenchymal_haemorrhage": Phrases(
        "Brain",
        (
            "intraparenchymal haemorrhage",
            "intracerebral haematoma",
            "parenchymal haematoma",
            "intra-axial haemorrhage",
        ),
        MASS,
        ("intraparenchymal haemorrhage", "intracerebral haemorrhage", "parenchymal haematoma"),
        ("brain",),
        9,
        60,
        ("", "neurosurgical opinion is advised"),
    ),
    "pneumothorax": Phrases(
        "Lungs and pleura",
        ("pneumothorax", "collection of pleural air"),
        COLLECTION,
        ("pneumothorax", "pleural air"),
        ("lung_",),
        8,
        50,
        ("", "clinical correlation is advised"),
    ),
    "aortic_aneurysm": Phrases(
        "Vessels",
        ("an aneurysm", "aneurysmal dilatation", "an aneurysmal widening", "a fusiform aneurysm"),
        WIDENED,
        ("aortic aneurysm", "aneurysmal dilatation of the aorta", "aneurysm of the aorta"),
        ("aorta",),
        7,
        80,
        ("", "vascular referral is suggested"),
    ),
    "fracture": Phrases(
        "Bones",
        ("fracture", "cortical break in keeping with a fracture", "fracture line"),
        BROKEN,
        ("fracture", "acute fracture", "displaced fracture or other fracture line"),
        (
            "vertebrae_",
            "rib_",
            "hip_",
            "femur_",
            "sternum",
            "clavicula_",
            "skull",
            "sacrum",
            "humerus_",
            "tibia",
            "fibula",
        ),
        6,
        100,
        ("", "correlate with trauma"),
    ),
    "soft_tissue_mass": Phrases(
        "Soft tissues",
        ("soft-tissue mass", "soft tissue mass", "mass of soft-tissue attenuation", "soft-tissue tumour"),
        MASS,
        ("soft-tissue mass", "soft tissue mass", "soft-tissue tumour"),
        ("autochthon_", "gluteus_", "iliopsoas_", "quadriceps", "hamstrings", "adductors"),
        5,
        120,
        ("", "indeterminate", "tissue sampling may be considered"),
    ),
    "lung_nodule": Phrases(
        "Lungs and pleura",
        ("nodule", "pulmonary nodule", "lung nodule", "nodular opacity"),
        MASS,
        ("pulmonary nodule", "lung nodule", "nodular opacity in the lungs"),
        ("lung_",),
        4,
        30,
        ("", "indeterminate", "follow-up is suggested"),
    ),
    "pleural_effusion": Phrases(
        "Lungs and pleura",
        ("pleural effusion", "effusion in the pleural space", "pleural fluid collection"),
        COLLECTION,
        ("pleural effusion", "pleural fluid"),
        ("lung_",),
        3,
        100,
    ),
    "liver_lesion": Phrases(
        "Liver and bile ducts",
        ("hepatic lesion", "liver lesion", "focal lesion", "hepatic mass"),
        MASS,
        ("focal liver lesion", "focal hepatic lesion", "liver mass"),
        ("liver",),
        2,
        60,
        ("", "indeterminate", "further characterisation may be considered"),
    ),
    "renal_cyst": Phrases(
        "Kidneys and bladder",
        ("renal cyst", "cortical cyst", "cyst", "cystic renal lesion"),
        MASS,
        ("renal cyst", "cystic renal lesion", "cyst of the kidneys"),
        ("kidney_",),
        1,
        80,
        ("", "most likely benign"),
    ),
}
"""What each kind of lesion is called, where it stands in the report, and how much it matters."""

VERTEBRAL = ("compression fracture", "wedge fracture", "vertebral compression fracture", "insufficiency fracture")
"""What a fracture of a vertebra is called."""

ABSENT = (
    "{no_evidence} {absent}",
    "there is {no_evidence} {absent}",
    "no {absent} is {seen}",
    "{absent} is {not_seen}",
    "negative for {absent}",
    "no {absent}",
    "{absent}: none",
    "no {absent} can be made out",
)
"""Sentences that negate."""

ABSENT_BESIDE = (
    "no {absent} on the {other}",
    "{no_evidence} {absent} on the {other} side",
    "no {other}-sided {absent}",
    "on the {other} no {absent} is {seen}",
)
"""Sentences that negate for the other side only."""

BOTH_SIDES = (
    "bilateral {many}, {right} on the right and {left} on the left",
    "{there_is} bilateral {many} (right {right}, left {left})",
    "{many} on both sides, right {right} and left {left} thick",
    "bilateral {many} are {seen}, up to {left} thick on the left and {right} thick on the right",
)
"""Sentences that state what is on both sides at once."""

MANY: dict[LesionKind, str] = {
    "epidural_haemorrhage": "epidural haematomas",
    "subdural_haemorrhage": "subdural haematomas",
    "parenchymal_haemorrhage": "intraparenchymal haemorrhages",
    "pneumothorax": "pneumothoraces",
    "aortic_aneurysm": "aortic aneurysms",
    "fracture": "fractures",
    "soft_tissue_mass": "soft-tissue masses",
    "lung_nodule": "pulmonary nodules",
    "pleural_effusion": "pleural effusions",
    "liver_lesion": "focal liver lesions",
    "renal_cyst": "renal cysts",
}
"""Plurals."""

NEGATED_TOGETHER: tuple[tuple[tuple[LesionKind, ...], tuple[str, ...]], ...] = (
    (
        ("epidural_haemorrhage", "subdural_haemorrhage", "parenchymal_haemorrhage"),
        ("intracranial haemorrhage", "acute intracranial haemorrhage", "intracranial bleeding"),
    ),
    (
        ("pleural_effusion", "pneumothorax"),
        (
            "pleural effusion or pneumothorax",
            "pneumothorax or pleural effusion",
            "pleural fluid or pneumothorax",
            "effusion or pneumothorax",
        ),
    ),
)
"""Kinds that one sentence negates together, where all of them are absent."""

ADJECTIVES: dict[tuple[str, str], tuple[str, ...]] = {
    ("attenuation", "hypo"): ("hypodense", "hypoattenuating", "low-attenuation", "low-density"),
    ("attenuation", "hyper"): ("hyperdense", "hyperattenuating", "high-attenuation"),
    ("attenuation", "hyperdense"): ("hyperdense", "high-attenuation"),
    ("attenuation", "water"): ("simple", "fluid-attenuation", ""),
    ("attenuation", "simple"): ("simple", "low-density", ""),
    ("attenuation", "dense"): ("dense", "high-attenuation"),
    ("attenuation", "solid"): ("solid",),
    ("attenuation", "part-solid"): ("part-solid", "subsolid"),
    ("attenuation", "ground-glass"): ("ground-glass", "pure ground-glass"),
    ("margin", "smooth"): ("smooth", "well-circumscribed", "well-defined", ""),
    ("margin", "lobulated"): ("lobulated",),
    ("margin", "spiculated"): ("spiculated",),
    ("calcification", "central"): ("centrally calcified",),
    ("calcification", "diffuse"): ("calcified", "diffusely calcified"),
    ("calcification", "yes"): ("partly calcified",),
    ("cavitation", "yes"): ("cavitating", "cavitary"),
    ("composition", "necrotic"): ("necrotic", "centrally necrotic"),
    ("composition", "fatty"): ("fat-containing", "fatty"),
    ("composition", "solid"): ("solid",),
    ("stage", "acute"): ("acute", "recent"),
    ("stage", "subacute"): ("subacute",),
    ("stage", "chronic"): ("chronic", "old"),
    ("stage", "healing"): ("healing", "subacute"),
}
"""(attribute, value) of a finding to what it is called; values that are not listed are left out of the text."""

TRAILING: dict[tuple[str, str], tuple[str, ...]] = {
    ("thrombus", "yes"): ("with mural thrombus", "partly thrombosed"),
    ("oedema", "yes"): ("with surrounding oedema", "with perifocal oedema"),
    ("calcification", "wall"): ("with mural calcification", "with a calcified wall"),
}
"""(attribute, value) to words that follow the statement."""

HEIGHT_LOSS = ("with {loss} % loss of height", "height loss of {loss} %", "height reduced by {loss} %")
DISPLACED = ("displaced by {step} mm", "with a step of {step} mm", "displacement {step} mm")
UNDISPLACED = ("undisplaced", "without relevant displacement", "not displaced")
"""Words that follow the statement of a fracture."""

GRADES = ("small", "moderate", "large")
"""Effusions and pneumothoraces by their thickness."""

OVER_BRAIN = (
    "over the {side} cerebral convexity",
    "along the {side} hemisphere",
    "on the {side}",
    "over the {side} hemisphere",
)
OVER_BRAIN_MIDLINE = ("over the convexity", "along the brain surface")
"""Places of blood between skull and brain, with a side and without one."""

IN_BRAIN = ("in the {side}cerebral hemisphere", "within the {side}hemisphere", "in the {side}brain parenchyma")
"""Places of blood within the brain; the side, where there is one, with a blank behind it."""

WITHIN = ("in", "within")

SEGMENTS: dict[str, tuple[str, ...]] = {
    "infrarenal": (
        "the infrarenal aorta",
        "the abdominal aorta below the renal arteries",
        "the infrarenal abdominal aorta",
    ),
    "descending": ("the descending thoracic aorta", "the descending aorta"),
    "ascending": ("the ascending aorta", "the ascending thoracic aorta"),
}
"""The attribute "segment" of an aneurysm to its place."""

SITES: dict[str, tuple[str, ...]] = {
    "lung_upper_lobe_left": ("the left upper lobe", "the upper lobe of the left lung", "the left upper lobe (LUL)"),
    "lung_lower_lobe_left": ("the left lower lobe", "the lower lobe of the left lung", "the left lower lobe (LLL)"),
    "lung_upper_lobe_right": ("the right upper lobe", "the upper lobe of the right lung", "the right upper lobe (RUL)"),
    "lung_middle_lobe_right": ("the middle lobe", "the right middle lobe", "the middle lobe of the right lung"),
    "lung_lower_lobe_right": ("the right lower lobe", "the lower lobe of the right lung", "the right lower lobe (RLL)"),
    "liver": ("the liver", "the hepatic parenchyma", "the liver parenchyma"),
    "aorta": ("the aorta",),
    "skull": ("the skull", "the calvarium"),
    "autochthon_left": ("the left erector spinae", "the left paraspinal muscles"),
    "autochthon_right": ("the right erector spinae", "the right paraspinal muscles"),
    "muscle": ("the musculature", "the muscles"),
    "subcutaneous_fat": ("the subcutaneous fat", "the subcutis"),
    "clavicula_left": ("the left clavicle",),
    "clavicula_right": ("the right clavicle",),
    "hip_left": ("the left hip bone", "the left hemipelvis"),
    "hip_right": ("the right hip bone", "the right hemipelvis"),
}
"""Structures whose words do not follow from their name."""

RIBS = (
    *("first", "second", "third", "fourth", "fifth", "sixth"),
    *("seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"),
)
"""Ordinals, from 1."""

AMERICAN = (
    ("haem", "hem"),
    ("Haem", "Hem"),
    ("visualised", "visualized"),
    ("characterisation", "characterization"),
    ("tumour", "tumor"),
    ("oedema", "edema"),
    ("oesophagus", "esophagus"),
)
"""British to American spelling."""


PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("head", ("brain",)),
    ("neck", ("vertebrae_C3", "vertebrae_C4", "vertebrae_C5")),
    ("chest", ("vertebrae_T4", "vertebrae_T5", "vertebrae_T6", "vertebrae_T7")),
    ("abdomen", ("vertebrae_L1", "vertebrae_L2")),
    ("pelvis", ("urinary_bladder",)),
    ("legs", ("quadriceps", "hamstrings", "tibia", "fibula", "foot")),
)
"""Parts of the body, head to foot, and structures of which one shows that the part was scanned."""

CONTRAST: dict[str, tuple[str, ...]] = {
    "none": (
        "without intravenous contrast",
        "without contrast medium",
        "unenhanced",
        "no intravenous contrast was given",
        "non-contrast technique",
    ),
    "arterial": (
        "arterial phase after intravenous contrast",
        "with intravenous contrast in the arterial phase",
        "contrast-enhanced, arterial phase",
    ),
    "portal": (
        "portal venous phase after intravenous contrast",
        "with intravenous contrast in the portal venous phase",
        "contrast-enhanced, portal venous phase",
    ),
    "late": (
        "delayed phase after intravenous contrast",
        "with intravenous contrast, late phase",
        "contrast-enhanced, delayed phase",
    ),
}

TECHNIQUE = (
    "CT of the {parts}, {contrast}. {recon}",
    "Computed tomography of the {parts} was performed, {contrast}. {recon}",
    "Axial images of the {parts} were acquired, {contrast}. {recon}",
    "{parts} CT, {contrast}. {recon}",
)

RECON = (
    "Slice thickness {mm} mm, {kernel} kernel",
    "Reconstructed with a {kernel} kernel at {mm} mm",
    "{mm} mm slices, {kernel} reconstruction kernel",
    "Images were reconstructed at {mm} mm with a {kernel} kernel",
)

MOTION = (
    "Motion artefacts limit the assessment",
    "Image quality is degraded by motion",
    "The patient moved during the scan",
    "Mild motion artefact",
)

STEATOSIS = (
    "the liver measures {liver} HU, the spleen {spleen} HU, in keeping with hepatic steatosis",
    "diffusely low attenuation of the liver ({liver} HU; spleen {spleen} HU), consistent with fatty change",
    "hepatic steatosis: {liver} HU against {spleen} HU of the spleen",
    "fatty liver, with an attenuation of {liver} HU compared with {spleen} HU in the spleen",
    "attenuation of the liver is reduced ({liver} HU, spleen {spleen} HU), suggesting steatosis",
)
STEATOSIS_SHORT = ("hepatic steatosis", "fatty liver", "steatosis of the liver", "diffuse hepatic steatosis")
LIVER_NORMAL = (
    "attenuation of the liver is normal ({liver} HU)",
    "normal liver attenuation of {liver} HU",
    "the liver has a normal attenuation ({liver} HU), without steatosis",
)

DEVICES: dict[str, tuple[str, ...]] = {
    "stent": (
        "a stent is {seen} in {site}",
        "stent in {site}",
        "{site} contains a metallic stent",
        "{there_is} a stent in {site}",
    ),
    "screws": (
        "pedicle screws are {seen} in {site}",
        "{site} holds metal screws with streak artefacts",
        "{there_is} screw fixation of {site}",
        "metallic screws in {site}, with beam-hardening streaks",
    ),
    "nail": (
        "an intramedullary nail is {seen} in {site}",
        "{site} holds a metal nail with streak artefacts",
        "{there_is} a nail in {site}",
        "intramedullary nail in {site}",
    ),
}
DEVICE_REGIONS = {"stent": "Vessels", "screws": "Bones"}

NORMAL = (
    "{organs} {are} {normal}",
    "{organs}: {normal}",
    "{organs} {look} {plain}",
    "{plain} appearance of {organs}",
    "no abnormality of {organs}",
)
"""Sentences about organs for which the model has no disease."""

ORGANS: dict[str, tuple[tuple[str, str], ...]] = {
    "Brain": (
        ("ventricle", "the ventricles"),
        ("eye_left", "the orbits"),
        ("paranasal_sinus", "the paranasal sinuses"),
    ),
    "Mediastinum and heart": (
        ("heart", "the heart"),
        ("trachea", "the trachea"),
        ("esophagus", "the oesophagus"),
        ("thyroid_gland", "the thyroid"),
    ),
    "Liver and bile ducts": (("gallbladder", "the gallbladder"),),
    "Spleen and pancreas": (
        ("spleen", "the spleen"),
        ("pancreas", "the pancreas"),
        ("adrenal_gland_left", "the adrenal glands"),
    ),
    "Kidneys and bladder": (("urinary_bladder", "the urinary bladder"), ("prostate", "the prostate")),
    "Bowel": (
        ("stomach", "the stomach"),
        ("duodenum", "the duodenum"),
        ("small_bowel", "the small bowel"),
        ("colon", "the colon"),
    ),
    "Vessels": (("inferior_vena_cava", "the inferior vena cava"), ("pulmonary_artery", "the pulmonary artery")),
}
"""Organs without modelled disease: (structure that shows it, what it is called)."""

GROWTH = {
    "larger": (
        "previously {before}, +{percent} %",
        "up from {before} (+{percent} %)",
        "was {before}, growth of {percent} %",
    ),
    "smaller": (
        "previously {before}, -{percent} %",
        "down from {before} (-{percent} %)",
        "was {before}, decrease of {percent} %",
    ),
    "stable": ("unchanged", "stable since the {cm_scan}", "no significant change", "without interval change"),
    "new": ("new since the {cm_scan}", "not seen on the {cm_scan}", "new"),
}
NOT_COMPARABLE = "comparison of size is limited because it is not fully included"
PRIOR = ("Prior CT.", "Previous scan of the same patient.", "Earlier CT.")
"""How a finding compares with an earlier scan, and what that is called."""

GONE = (
    "the {what} {where} described on the {cm_scan} has resolved",
    "the {what} {where} of the {cm_scan} has disappeared",
    "resolution of the {what} {where} of the {cm_scan}",
)

NOTHING_ACUTE = ("no acute abnormality", "no acute finding", "otherwise nothing of note", "no other abnormality")
NOTHING = (
    "no acute abnormality",
    "no acute finding",
    "normal CT of the {parts}",
    "no significant abnormality of the {parts}",
    "unremarkable CT of the {parts}",
    "nothing acute in the {parts}",
    "no abnormality {seen}",
    "no pathological finding in the {parts}",
)
"""Impressions of a scan without findings."""
