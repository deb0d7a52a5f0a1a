"""Whether a text or a file's name looks as if it identified somebody: by its shape, or because it repeats what is known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ctfoundry.io.phi.notes import Notes

Known = re.Pattern[str] | None
"""Names and numbers of the patients as one pattern over lower-case text; None where nothing is known."""

REPEATS = "repeats a name or number of a patient"

_MONTHS = "jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez"
_CAPITAL = "A-ZÀ-ÞА-Я"
LOOKS: dict[str, re.Pattern[str]] = {
    "a name": re.compile(
        rf"\b[{_CAPITAL}][\w'’-]+\^[\w'’-]+"
        rf"|\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Herr|Frau|Hr|Fr|Mme|Mlle|Sr|Sra|Sig)\b\.? ?[{_CAPITAL}][\w'’-]{{2,}}"
    ),
    "a date": re.compile(
        r"(?<!\d)(?:19|20)\d\d[-./_ ]?(?:0[1-9]|1[0-2])[-./_ ]?(?:0[1-9]|[12]\d|3[01])(?!\d)"
        r"|(?<!\d)(?:0?[1-9]|[12]\d|3[01])[./-](?:0?[1-9]|1[0-2])[./-](?:19|20)\d\d(?!\d)"
        r"|(?<!\d)(?:0?[1-9]|1[0-2])/(?:0?[1-9]|[12]\d|3[01])/(?:19|20)?\d\d(?!\d)"
        rf"|(?<!\d)\d{{1,2}}[-. ]?(?:{_MONTHS})[a-zä]*[-. ,]*(?:19|20)\d\d(?!\d)",
        re.IGNORECASE,
    ),
    "a telephone number": re.compile(
        r"(?<![\w.])(?:\+\d{1,3}[ /.-]?\(?\d{2,5}\)?|\(0\d{1,5}\)|0\d{1,5}[ /-])[ /.-]?\d{2,5}(?:[ /.-]?\d{2,5}){1,4}(?![\w.])"
        r"|(?<!\d)\d{3}[-.]\d{3}[-.]\d{4}(?!\d)"
    ),
    "an address on the net": re.compile(r"[\w.+-]+@[\w-]+\.\w+|https?://\S+"),
    "a record number": re.compile(
        r"(?<![\d.])\d{6,12}(?![\d.])|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)|\b(?:MRN|PID|SSN|NHS)[ :#_-]*\w*\d\w*",
        re.IGNORECASE,
    ),
}
"""What a text may hold, by its shape alone."""

_UID = re.compile(r"(?<![\d.])[0-2](?:\.\d+){5,}")
_WORD = rf"(?:[{_CAPITAL}][a-zß-ÿа-я'’]+|[{_CAPITAL}]{{3,}})"
_TWO_WORDS = re.compile(rf"(?<![^\W\d_])({_WORD})[ _,.^-]+({_WORD})(?![^\W\d_])")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NO_NAMES = _set(
    "anonymous anonymized anonymised anon unknown none test patient phantom ct mr null dr prof doctor the and"
)
"""Words in name elements that name nobody."""
_PLAIN_WORDS = _set("""
    abdomen abd adrenal angio annulus aorta arm arterial artery atlas axial axialpairs baseline body bone brain breast cardiac case
    cases chest cohort colon contrast cor coronal coronary cranium data dataset delayed dicom dose elbow export femur file files foot
    followup full hand head heart hip hrct image images kidney knee label labels left leg legs lesion liver lobe lower lumen lung lungs
    mask masks matrix medical mediastinum native neck nifti nodule non organ pancreas part patient patients pelvis phantom phase plan
    planct portal prostate pulmonary raw recon release renal report results right sagittal sample scan scans seg segmentation series
    set sharp shoulder skull slice slices soft spine spleen standard structure study test thick thin thorax tissue totalsegmentator
    train training trunk tumor tumour unknown upper validation vein venous vertebra vertebrae volume whole with without anonymous
    anonymized
""")
"""Words of medicine and of folders that no name is made of, as far as this list goes."""


def known(notes: Notes) -> Known:
    """Whatever the headers say of the patients' names and numbers, as one pattern."""
    words = {w for w in notes.names if len(w) > 2 and w not in _NO_NAMES}
    words |= {n for n in notes.numbers if len(n) > 3 and any(c.isdigit() for c in n)}
    if not words:
        return None
    listed = "|".join(re.escape(w) for w in sorted(words, key=lambda w: (-len(w), w))[:20_000])
    return re.compile(rf"(?<![^\W_])(?:{listed})(?![^\W_])")


def looks(value: str, known: Known) -> Iterator[str]:
    """Why a text looks identifying: nothing, one reason or several."""
    if known is not None and known.search(value.lower()):
        yield REPEATS
    bare = _UID.sub("", value)
    for what, pattern in LOOKS.items():
        if pattern.search(bare):
            yield f"has the shape of {what}"


def name_looks(name: str, known: Known) -> Iterator[str]:
    """Why the name of a file or folder looks identifying. Numbers padded with noughts are counters."""
    if _UID.search(name):
        yield "holds a UID"
    bare = _UID.sub("", name)
    if known is not None and known.search(bare.lower()):
        yield REPEATS
    date = LOOKS["a date"]
    if date.search(bare.replace("_", " ")):
        yield "has the shape of a date"
    if any(not run.startswith("00") for run in re.findall(r"(?<!\d)\d{6,12}(?!\d)", date.sub(" ", bare))):
        yield "has the shape of a record number"
    if any(not {a.lower(), b.lower()} & _PLAIN_WORDS for a, b in _TWO_WORDS.findall(bare.split(".")[0])):
        yield "has the shape of a name"


def tidy(text: str, known: Iterable[str] = ()) -> str:
    """A text typed at a scanner as a report may show it: "(withheld)" where it has the shape of a name, a date, a telephone or
    record number or an address, or holds one of the `known` values of its patient; else the text.

    >>> tidy("Abdomen venous 1.5 B30f"), tidy("DOE^JOHN abdomen"), tidy("Abdomen 4711-x", ["4711-X"])
    ('Abdomen venous 1.5 B30f', '(withheld)', '(withheld)')
    """
    low = text.lower()
    if any(len(k) > 3 and k.lower() in low for k in known) or any(p.search(text) for p in LOOKS.values()):
        return "(withheld)"
    return text
