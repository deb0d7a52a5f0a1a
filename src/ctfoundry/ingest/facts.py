"""What a sidecar may say of a scan's origin: values of closed lists and numbers, never a text as it was typed.

A header's texts are written by people: a name can stand in Manufacturer's Model Name as well as in Patient's Name. So nothing is
passed through: a text gives the entry of a list that it names, or nothing. Public are the texts and UIDs of a cohort: the
archive has published them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctfoundry import identity
from ctfoundry.errors import UsageError
from ctfoundry.io import Found, studies

Value = str | int | float | bool

MANUFACTURERS = {
    "SIEMENS": "Siemens", "GE": "GE", "GENERAL ELECTRIC": "GE", "PHILIPS": "Philips", "TOSHIBA": "Toshiba", "CANON": "Canon",
    "HITACHI": "Hitachi", "UNITED IMAGING": "United Imaging", "UIH": "United Imaging", "NEUSOFT": "Neusoft", "SAMSUNG": "Samsung",
    "NEUROLOGICA": "NeuroLogica", "ELSCINT": "Elscint", "PICKER": "Picker", "MARCONI": "Marconi", "SHIMADZU": "Shimadzu",
    "IMATRON": "Imatron", "FUJIFILM": "Fujifilm", "VARIAN": "Varian", "ELEKTA": "Elekta", "ACCURAY": "Accuray",
}  # fmt: skip
MODELS = (
    "Sensation", "Definition", "Emotion", "Volume Zoom", "Perspective", "Scope", "Spirit", "Balance", "Force", "Drive", "Edge",
    "go.Top", "go.All", "go.Up", "go.Now", "X.cite", "NAEOTOM Alpha", "Biograph", "SOMATOM", "LightSpeed", "HiSpeed", "CTi",
    "BrightSpeed", "Optima", "Discovery", "Revolution", "ProSpeed", "Brilliance", "Ingenuity", "iCT", "IQon", "Incisive", "Gemini",
    "Vereos", "Mx8000", "Aquilion ONE", "Aquilion PRIME", "Aquilion", "Asteion", "Alexion", "Activion", "Scenaria", "Eclos",
    "uCT", "NeuViz", "BodyTom", "CereTom", "TomoTherapy",
)  # fmt: skip
"""Families of scanners, the more special one first; SOMATOM stands for what says no more than that."""
BODY_PARTS = (
    "ABDOMEN", "ABDOMENPELVIS", "ANKLE", "ARM", "BLADDER", "BRAIN", "BREAST", "CHEST", "CHESTABDPELVIS", "CHESTABDOMEN", "COLON",
    "CSPINE", "EAR", "ELBOW", "ESOPHAGUS", "EXTREMITY", "FOOT", "HAND", "HEAD", "HEADNECK", "HEART", "HIP", "JAW", "KIDNEY", "KNEE",
    "LEG", "LIVER", "LSPINE", "LUNG", "NECK", "ORBIT", "OVARY", "PANCREAS", "PELVIS", "PROSTATE", "SHOULDER", "SKULL", "SPINE",
    "STOMACH", "THIGH", "THYROID", "TSPINE", "UTERUS", "WHOLEBODY", "WRIST",
)  # fmt: skip
"""Defined terms of Body Part Examined (DICOM PS3.16 annex L, those of CT), without blanks."""
_KERNEL = re.compile(
    r"[ABDHIJQSTU][A-Za-z]?\d\d[a-z]?|FC\d\d|Y?[A-F]|L|STANDARD|STND|SOFT|LUNG|BONE|BONEPLUS|DETAIL|EDGE|CHST|ULTRA|SMOOTH"
)


def of_header(found: Found, *, key: bytes | None = None) -> dict[str, Value]:
    """Allow-listed provenance of a scan by its header; UIDs as salted hashes."""
    facts: dict[str, Value] = {"reader": found.format}
    if found.modality is not None:
        facts["modality"] = "CT"
    for name, uid in (("study", found.study), ("series", found.series)):
        if uid:
            facts[name] = identity.name(name, uid, key=key)
    seen = found.facts
    if seen is None:
        return facts
    texts = {
        "manufacturer": manufacturer(seen.manufacturer),
        "model": model(seen.model),
        "kernel": kernel(seen.kernel),
        "body_part": body_part(seen.body_part),
        "contrast": studies.phase(seen, found.part),
    }
    facts |= {name: text for name, text in texts.items() if text}
    for name, number, most in (("kvp", seen.kvp, 300.0), ("slice_thickness_mm", seen.thickness_mm, 100.0)):
        if number is not None and math.isfinite(number) and 0 < number <= most:
            facts[name] = round(float(number), 3)
    return facts


def manufacturer(text: str) -> str:
    """The maker that a text names, or "".

    >>> manufacturer("GE MEDICAL SYSTEMS"), manufacturer("Doe^Jane")
    ('GE', '')
    """
    words = f" {re.sub(r'[^A-Z]+', ' ', text.upper())} "
    return next((name for word, name in MANUFACTURERS.items() if f" {word} " in words), "")


def model(text: str) -> str:
    """The family of scanners that a text names, or "".

    >>> model("SOMATOM Definition AS+"), model("LightSpeed VCT"), model("Doe^Jane")
    ('Definition', 'LightSpeed', '')
    """
    named = [name for name in MODELS if re.search(rf"(?<![A-Za-z]){re.escape(name)}", text, re.IGNORECASE)]
    return named[0] if named else ""


def kernel(text: str) -> str:
    r"""The kernel, where it has the form that makers give theirs; strengths of iterative reconstruction are left away.

    >>> kernel("Br40d\\3"), kernel("STANDARD"), kernel("Doe")
    ('Br40d', 'STANDARD', '')
    """
    first = re.split(r"[\\/,; ]", text.strip())[0]
    return first if _KERNEL.fullmatch(first) else ""


def body_part(text: str) -> str:
    """The defined term, or "".

    >>> body_part("chest"), body_part("Doe^Jane")
    ('CHEST', '')
    """
    word = re.sub(r"[^A-Z]", "", text.upper())
    return word if word in BODY_PARTS else ""


@dataclass(frozen=True)
class Origin:
    """What is known of the series of a public archive, by Series Instance UID.

    Attributes
    ----------
    series : UID to (collection, public Patient ID, provenance).
    name : file name of the cohort.
    """

    series: Mapping[str, tuple[str, str, Mapping[str, Value]]] = field(repr=False)
    name: str


def of_cohort(path: Path) -> Origin:
    """Collection, patient and provenance of each series of a cohort file; its UIDs, DOIs and licences are public.

    Raises ReadError for a file that is no cohort.
    """
    from ctfoundry.archive import read_cohort

    cohort = read_cohort(path)
    release = cohort.rules.version or int(cohort.index_version.partition(".")[0])
    known: dict[str, tuple[str, str, Mapping[str, Value]]] = {}
    for row in cohort.rows():
        known[row["series_uid"]] = (row["collection_id"], str(row["patient_id"]), _public(row, release))
    if not known:
        raise UsageError("lists no series", where=path)
    return Origin(known, path.name)


def _public(row: Mapping[str, Any], release: int) -> dict[str, Value]:
    texts = {"licence": row["licence"], "doi": row["doi"], "study": row["study_uid"], "series": row["series_uid"]}
    public: dict[str, Value] = {name: str(text)[:128] for name, text in texts.items() if text}
    return public | {"archive_version": release}
