"""The elements of DICOM files that may identify somebody, sequences and private ones included."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctfoundry.io.datasets import data_set
from ctfoundry.io.phi import tags
from ctfoundry.io.phi.notes import LARGE, Group, Notes, Tally


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_TEXT_VRS = _set("AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UN UR UT")
_FREE_VRS = _set("AE CS LO LT SH ST UC UN UR UT")
_DATE_VRS = _set("DA DT TM")
_DEEPEST = 16  # nested sequences
_REGISTERED = "1.2.840.10008."
"""Root of the UIDs that the standard itself gives out: classes, syntaxes, coding schemes."""
_GROUP_OF: dict[str, Group] = {
    tags.PATIENT: "patient",
    tags.PERSON: "name",
    tags.PLACE: "place",
    tags.DEVICE: "device",
    tags.NUMBER: "number",
    tags.TRIAL: "trial",
    tags.TEXT: "text",
    tags.PICTURE: "picture",
    tags.HISTORY: "text",
}
_NUMBERS = frozenset((0x00100020, 0x00080050, 0x00101000, 0x00101090, 0x00380010, 0x00200010))
"""Patient and other IDs, accession number, record locator, admission and study ID: looked for in all other texts."""
_OF_PROGRAMS = frozenset((0x00020012, 0x00020013, 0x00020100))
"""Elements of the file's meta group that name a program."""
_DOCUMENTS = {  # SOP classes (PS3.4 B.5), by their beginnings
    "1.2.840.10008.5.1.4.1.1.88.": "structured report, often a dose sheet",
    "1.2.840.10008.5.1.4.1.1.104.": "document inside DICOM (PDF and the like)",
    "1.2.840.10008.5.1.4.1.1.7": "secondary capture, a picture of a screen or paper",
    "1.2.840.10008.5.1.4.1.1.11.": "presentation state, may hold notes",
    "1.2.840.10008.5.1.4.1.1.9.": "waveform",
    "1.2.840.10008.1.3.10": "DICOMDIR, which lists patients and files",
}
_REGION = frozenset((0x00180015, 0x00081030, 0x0008103E, 0x00181030))
"""Body part, study and series description, protocol name: they say where the scan was taken."""
_HEAD = re.compile(
    r"HEAD|BRAIN|SKULL|FACE|FACIAL|SINUS|ORBIT|NECK|JAW|MANDIB|MAXILL|\bIAC\b|\bEAR\b|TEMPORAL|CRANI|CEREB|NEURO|WHOLE ?BODY"
    r"|KOPF|SCHÄDEL|SCHAEDEL|HALS|GESICHT|CRANE|CRÂNE|\bTETE\b|TÊTE|CABEZA|CRÁNEO|TESTA|CABEÇA|ГОЛОВ|头|頭|颅"
)


@dataclass(frozen=True, slots=True)
class Element:
    """One element that is not empty.

    `where` names it and the sequences around it without their item numbers, `value` is bytes where pydicom has not looked at it
    yet, `reason` is the profile's for it or for a sequence around it, `depth` counts the sequences.
    """

    where: str
    tag: int
    name: str
    vr: str
    value: Any
    reason: str | None
    depth: int


def look(path: Path, start: bytes, notes: Notes) -> None:
    """Put everything that may identify somebody in one file into the notes; its pixels are not read."""
    data = data_set(path, defer_size=LARGE)
    top: dict[int, Element] = {}
    head = False
    for element in _elements(data):
        if element.depth == 0:
            top[element.tag] = element
        head |= element.tag in _REGION and bool(_HEAD.search(decoded(element.value, element.vr).upper()))
        _count(element, notes)
    meta = getattr(data, "file_meta", None)
    for element in _elements(meta) if meta is not None else ():
        if element.tag not in _OF_PROGRAMS:
            _count(element, notes)
    if start[128:132] == b"DICM" and any(start[:128]):
        notes.entry("picture", "preamble", "first 128 bytes", "not empty: another file may hide there").add()
    _picture_risk(top, notes)
    if head:
        notes.entry("face", "pixels", "scan of head or neck", "a face can be rebuilt from its voxels").add()


def _elements(data: Any, around: str = "", inherited: str | None = None, depth: int = 0) -> Iterator[Element]:
    """All elements that are not empty, those inside sequences behind their sequence."""
    for key in sorted(data.keys()):
        tag = int(key)
        element = data.get_item(key, keep_deferred=True)
        vr = _vr(element.VR, tag)
        where = f"{around}({tag >> 16:04x},{tag & 0xFFFF:04x})"
        name = _private_name(tag, data) if tag >> 16 & 1 else _name(tag)
        reason = tags.reason_of(tag) or inherited
        value = element.value
        if vr == "SQ":
            if reason in (tags.PICTURE, tags.HISTORY) and len(data[key].value):
                yield Element(where, tag, name, vr, "", reason, depth)
            for item in data[key].value if depth < _DEEPEST else ():
                yield from _elements(item, f"{where} ", reason, depth + 1)
        elif value is None and getattr(element, "length", None):  # large, so left in the file
            yield Element(where, tag, name, "OB", f"{element.length} bytes", reason, depth)
        elif value is not None and not (hasattr(value, "__len__") and len(value) == 0):
            yield Element(where, tag, name, vr, value, reason, depth)


def _vr(vr: str | None, tag: int) -> str:
    """The value representation; the dictionary's where the file does not say it."""
    if vr is not None and vr != "UN":
        return vr
    from pydicom.datadict import dictionary_VR

    try:
        return dictionary_VR(tag)[:2]
    except KeyError:
        return "UN"


def _name(tag: int) -> str:
    from pydicom.datadict import dictionary_description

    try:
        return dictionary_description(tag)
    except KeyError:
        return "unknown element"


def _private_name(tag: int, data: Any) -> str:
    """Who defined a private element (PS3.5 7.8.1): the creator that reserved its block."""
    group, number = tag >> 16, tag & 0xFFFF
    if 0x10 <= number <= 0xFF:
        return "private creator"
    place = (group, number >> 8)
    return decoded(data.get_item(place).value or "", "LO") if place in data else "no creator"


def decoded(value: Any, vr: str) -> str:
    """Text of any value; bytes as UTF-8 where they are that, else byte by byte, so that nothing which stands there is lost."""
    if isinstance(value, bytes):
        if vr == "UN" and any(c < 32 and c not in (9, 10, 13) for c in value.rstrip(b"\0")):
            return ""  # numbers
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = value.decode("latin-1")
    elif isinstance(value, str):
        text = value
    else:
        text = (
            "\\".join(map(str, value))
            if hasattr(value, "__iter__") and not hasattr(value, "family_name")
            else str(value)
        )
    return text.strip(" \0")


def _count(element: Element, notes: Notes) -> None:
    """Count one element where it belongs; one met before, byte for byte, at once."""
    value = element.value
    if not (isinstance(value, bytes) and len(value) <= 256):
        _sort(element, notes)
        return
    key = (f"{element.where}{element.name}", element.vr, value)
    tallies = notes.cache.get(key)
    if tallies is None:
        notes.remember(key, _sort(element, notes))
    else:
        for tally in tallies:
            tally.times += 1


def _sort(element: Element, notes: Notes) -> list[Tally]:
    """What an element counts in."""
    tag, vr = element.tag, element.vr
    text = decoded(element.value, vr) if vr in _TEXT_VRS else ""
    found: list[Tally] = []

    def put(group: Group, why: str, shown: str) -> None:
        found.append(notes.entry(group, element.where, element.name, why).add(shown))

    if tag >> 16 & 1:
        if element.name != "private creator":
            block = f"{element.where.rpartition('(')[0]}({tag >> 16:04x},{tag >> 8 & 0xFF:02x}xx)"
            found.append(notes.entry("private", block, element.name, "private elements may hold anything").add(text))
        if vr in _FREE_VRS and text:
            found.append(notes.text(element.where, element.name, text))
            return found
    if vr == "PN":
        put("name", "name of a person", text)
        notes.names.update(word for word in re.split(r"[\W\d_]+", text.lower()) if word)
    elif vr in _DATE_VRS:
        put("date", "date or time", text)
    elif vr == "UI":
        if text and not all(uid.startswith(_REGISTERED) for uid in text.split("\\")):
            put("uid", "links to its archive", text)
    elif element.reason is not None or vr == "AS":
        reason = element.reason or tags.PATIENT
        put(_GROUP_OF[reason], reason, text or (element.value if isinstance(element.value, str) else ""))
        if tag in _NUMBERS:
            notes.numbers.update(part.strip().lower() for part in text.split("\\"))
    elif vr in _FREE_VRS and text:
        found.append(notes.text(element.where, element.name, text))
    return found


def _picture_risk(top: dict[int, Element], notes: Notes) -> None:
    """Documents, and letters in pixels as far as the header says."""

    def value(tag: int) -> str:
        return decoded(top[tag].value, "CS").upper() if tag in top else ""

    kind = next((name for begin, name in _DOCUMENTS.items() if value(0x00080016).startswith(begin)), "")
    if kind:
        notes.entry("document", "(0008,0016)", kind, "made for people to read").add()
    if value(0x00280302) == "YES":
        notes.entry("face", "(0028,0302)", "Recognizable Visual Features", "YES: somebody may be recognised").add()
    if 0x00280010 not in top:
        return  # no picture
    captured = kind.startswith("secondary") or 0x00080064 in top or "SCREEN" in value(0x00080008)
    said = {"YES": "YES: letters stand in the pixels", "NO": "NO"}.get(value(0x00280301), "not stated")
    if captured and not said.startswith("YES"):
        said = f"{said}, and the picture is a capture: letters are likely"
    if said != "NO":
        notes.entry("picture", "(0028,0301)", "Burned In Annotation", said).add()
