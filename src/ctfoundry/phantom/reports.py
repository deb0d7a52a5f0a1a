"""A radiology report of a phantom: true to its masks, worded in many ways.

What may be said comes from two places only: `Finding` objects, which are measured from the lesion mask, and `Facts`, which
are measured from the label map and the HU. A kind of lesion is negated only where an organ that can hold it is in the scan
and nothing of that kind is. The words come from `wording`; which of them is decided by the key alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from ctfoundry.keys import Key
from ctfoundry.phantom import wording
from ctfoundry.phantom.facts import Facts, facts, negatives
from ctfoundry.phantom.findings import Finding
from ctfoundry.phantom.grammar import pick, say, sentence, site_words
from ctfoundry.phantom.spec import LesionKind
from ctfoundry.phantom.wording import PHRASES

if TYPE_CHECKING:
    from ctfoundry.phantom.make import Phantom

CHANGE = 0.1
"""Relative change of size from which a lesion is called larger or smaller; growth below it is within reading error."""


@dataclass(frozen=True)
class Report:
    """A report in sections: `technique`, `findings` by region, `impression` with the most important first, `comparison`."""

    technique: str
    findings: Mapping[str, tuple[str, ...]]
    impression: tuple[str, ...]
    comparison: str = field(default="")

    @property
    def text(self) -> str:
        """The whole report as plain text."""
        lines = ["Technique", self.technique, ""]
        if self.comparison:
            lines += ["Comparison", self.comparison, ""]
        lines.append("Findings")
        lines += [f"{region}: {' '.join(sentences)}" for region, sentences in self.findings.items()]
        lines += ["", "Impression"]
        lines += [f"{number}. {item}" for number, item in enumerate(self.impression, 1)]
        return "\n".join(lines) + "\n"


def importance(finding: Finding) -> float:
    """Order of the impression: by kind, and within a kind by size."""
    phrases = PHRASES[finding.kind]
    return phrases.importance + 0.9 * min(finding.size_mm / phrases.scale_mm, 1.0)


def report(
    phantom: Phantom | Facts, findings: Sequence[Finding], key: Key, *, prior: Sequence[Finding] | None = None
) -> Report:
    """The report of a scan.

    Parameters
    ----------
    phantom : the scan, or what is known of it.
    findings : all that the scan shows; sizes, sides and sites are written as they stand there.
    key : decides the words and nothing else.
    prior : findings of an earlier scan of the same patient (same `lesion` numbers); changes are then stated in per cent.
    """
    known = phantom if isinstance(phantom, Facts) else facts(phantom, findings)
    before = None if prior is None else {finding.lesion: finding for finding in prior}
    places: dict[str, list[str]] = {region: [] for region in wording.REGIONS}
    for group in _together(key("bilateral"), findings, before):
        region, here = PHRASES[group[0].kind].region, key("finding", group[0].lesion)
        text = _stated(here, group[0], before) if len(group) == 1 else _on_both_sides(here, *group)
        places[region].append(text)
    if before is not None:
        for finding in _gone(known, findings, before):
            places[PHRASES[finding.kind].region].append(_resolved(key("gone", finding.lesion), finding))
    for region, text in (*_incidental(key, known), *_negated(key, known, findings), *_normal(key, known)):
        places[region].append(text)
    written = {region: tuple(_shuffled(key("order", region), texts)) for region, texts in places.items() if texts}
    result = Report(
        technique=_technique(key("technique"), known),
        findings=written,
        impression=tuple(_impression(key("impression"), known, findings, before)),
        comparison="" if before is None else pick(key("comparison"), wording.PRIOR),
    )
    return _americanised(result) if float(key("spelling").uniform()) < 0.5 else result


def _size(key: Key, mm: float) -> str:
    """A size in whole millimetres, or in centimetres with one decimal."""
    whole = max(round(mm), 1)
    centimetres = float(key("unit").uniform()) < (0.1 if whole < 10 else 0.45)
    return f"{whole / 10:.1f} cm" if centimetres else f"{whole} mm"


def _where(key: Key, finding: Finding) -> str:
    """A place such as "in the right upper lobe"."""
    if finding.kind in ("epidural_haemorrhage", "subdural_haemorrhage"):
        places = wording.OVER_BRAIN if finding.side else wording.OVER_BRAIN_MIDLINE
        return pick(key, places).replace("{side}", finding.side)
    if finding.kind == "parenchymal_haemorrhage":
        return pick(key, wording.IN_BRAIN).replace("{side}", f"{finding.side} " if finding.side else "")
    words = pick(key, site_words(finding.site))
    if finding.side and finding.side not in finding.site:
        words += f" on the {finding.side}"
    return f"{pick(key('in'), wording.WITHIN)} {words}"


def _adjective(key: Key, finding: Finding) -> str:
    """Attributes that have words, none to all of them in any order; effusions and pneumothoraces are graded by thickness."""
    known = [(name, value) for name, value in finding.attributes.items() if (name, value) in wording.ADJECTIVES]
    words = [pick(key(name), wording.ADJECTIVES[name, value]) for name, value in known]
    words = [words[i] for i in key("order").permutation(len(words))]
    if finding.kind in ("pleural_effusion", "pneumothorax"):
        grade = wording.GRADES[(finding.size_mm >= 20) + (finding.size_mm >= 50)]
        words.append(pick(key("grade"), (grade, "")))
    return ", ".join(w for w in words if w)


def _trailing(key: Key, finding: Finding) -> str:
    """What follows a statement: thrombus, oedema, loss of height, displacement."""
    known = finding.attributes
    words = [pick(key(*item), wording.TRAILING[item]) for item in known.items() if item in wording.TRAILING]
    if finding.kind == "fracture" and "height_loss_percent" in known:
        words.append(pick(key("loss"), wording.HEIGHT_LOSS).replace("{loss}", known["height_loss_percent"]))
    if finding.kind == "fracture" and "displacement_mm" in known:
        step = float(known["displacement_mm"])
        text = pick(key("step"), wording.DISPLACED if step >= 2 else wording.UNDISPLACED)
        words.append(text.replace("{step}", f"{step:.0f}"))
    return "".join(f", {w}" for w in words)


def _site(key: Key, finding: Finding) -> str:
    """The place with its article; an aneurysm's segment where it is known."""
    segment = finding.attributes.get("segment", "")
    return pick(key, wording.SEGMENTS.get(segment) or site_words(finding.site))


def _collapsed(finding: Finding) -> bool:
    return finding.kind == "fracture" and finding.site.startswith("vertebrae_")


def _slots(key: Key, finding: Finding) -> dict[str, str]:
    return {
        "size": _size(key("size"), finding.size_mm),
        "adj": _adjective(key("adjective"), finding),
        "noun": pick(key("noun"), wording.VERTEBRAL if _collapsed(finding) else PHRASES[finding.kind].nouns),
        "where": _where(key("where"), finding),
        "site": _site(key("site"), finding),
        "side": finding.side,
    }


def _frames(finding: Finding) -> tuple[str, ...]:
    frames = PHRASES[finding.kind].frames
    if finding.side or frames is not wording.COLLECTION:
        return frames
    return wording.MASS


def _stated(key: Key, finding: Finding, before: Mapping[int, Finding] | None) -> str:
    """One sentence that says all about a finding: what, where, how large, how changed, whether all of it was seen."""
    text = pick(key("frame"), _frames(finding)) + _trailing(key("trailing"), finding)
    if not finding.whole:
        text += f"; {pick(key('partly'), wording.WORDS['partly'])}"
    if before is not None:
        text += f"; {_change(key('change'), finding, before)}"
    return say(key("words"), text, _slots(key, finding))


def _together(key: Key, findings: Sequence[Finding], before: Mapping[int, Finding] | None) -> list[tuple[Finding, ...]]:
    """Findings one by one; a left and a right one that fill the pleural space, wholly seen, sometimes as a pair."""
    groups: list[tuple[Finding, ...]] = []
    done: set[LesionKind] = set()
    for finding in findings:
        pair = [other for other in findings if other.kind == finding.kind]
        sides = sorted(other.side for other in pair)
        fits = PHRASES[finding.kind].frames is wording.COLLECTION and sides == ["left", "right"]
        if fits and before is None and all(f.whole for f in pair) and float(key(finding.kind).uniform()) < 0.6:
            if finding.kind not in done:
                groups.append(tuple(pair))
            done.add(finding.kind)
        else:
            groups.append((finding,))
    return groups


def _on_both_sides(key: Key, first: Finding, second: Finding) -> str:
    values = {finding.side: _size(key("size", finding.side), finding.size_mm) for finding in (first, second)}
    frame = pick(key("frame"), wording.BOTH_SIDES)
    return say(key("words"), frame, {**values, "many": wording.MANY[first.kind]})


def _change(key: Key, finding: Finding, before: Mapping[int, Finding]) -> str:
    """How a finding compares with the earlier scan; nothing in per cent where one of them is cut off."""
    old = before.get(finding.lesion)
    if old is None:
        return pick(key, wording.GROWTH["new"])
    percent = growth(old, finding)
    if not (old.whole and finding.whole):
        return wording.NOT_COMPARABLE
    how = "stable" if abs(percent) < 100 * CHANGE else "larger" if percent > 0 else "smaller"
    text = pick(key, wording.GROWTH[how])
    return text.replace("{before}", _size(key("before"), old.size_mm)).replace("{percent}", f"{abs(percent):.0f}")


def growth(old: Finding, new: Finding) -> float:
    """Change of size in per cent, from the sizes as they are written (whole millimetres)."""
    first, second = max(round(old.size_mm), 1), max(round(new.size_mm), 1)
    return 100 * (second - first) / first


def _gone(known: Facts, findings: Sequence[Finding], before: Mapping[int, Finding]) -> list[Finding]:
    """Earlier findings whose site is in the scan but that are not there any more."""
    now = {finding.lesion for finding in findings}
    return [
        f for n, f in sorted(before.items()) if n not in now and f.site in known.present and f.kind not in known.unsure
    ]


def _resolved(key: Key, finding: Finding) -> str:
    values = {"what": PHRASES[finding.kind].nouns[0], "where": _where(key("where"), finding)}
    return say(key, pick(key("frame"), wording.GONE), values)


def _negated(key: Key, known: Facts, findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """(region, sentence) for each kind that is absent, some of them together."""
    left = list(negatives(known, findings))
    result = []
    for kinds, nouns in wording.NEGATED_TOGETHER:
        together = key("together", kinds[0])
        if all(kind in left for kind in kinds) and float(together.uniform()) < 0.6:
            result.append((PHRASES[kinds[0]].region, _denied(together, nouns, known, kinds[0])))
            left = [kind for kind in left if kind not in kinds]
    result += [(PHRASES[kind].region, _denied(key("absent", kind), PHRASES[kind].absent, known, kind)) for kind in left]
    for kind in {f.kind: None for f in findings if PHRASES[f.kind].frames is wording.COLLECTION and f.side}:
        sides = {f.side for f in findings if f.kind == kind}
        other = "left" if sides == {"right"} else "right" if sides == {"left"} else ""
        beside = key("beside", kind)
        if other and _lung_seen(known, other) and float(beside.uniform()) < 0.5:
            values = {"absent": pick(beside("noun"), PHRASES[kind].absent), "other": other}
            result.append((PHRASES[kind].region, say(beside, pick(beside("frame"), wording.ABSENT_BESIDE), values)))
    return result


def _lung_seen(known: Facts, side: str) -> bool:
    return any(name.startswith("lung_") and name.endswith(side) for name in known.present)


def _denied(key: Key, nouns: Sequence[str], known: Facts, kind: LesionKind) -> str:
    """A negation; of an organ that the scan cuts off, sometimes with the limit stated."""
    text = pick(key("frame"), wording.ABSENT)
    cut = any(name.startswith(PHRASES[kind].seen_in) for name in known.cut)
    if cut and float(key("cut").uniform()) < 0.5:
        text += f" {pick(key('limit'), wording.WORDS['visible_part'])}"
    return say(key("words"), text, {"absent": pick(key("noun"), nouns)})


def _incidental(key: Key, known: Facts) -> list[tuple[str, str]]:
    """(region, sentence) about a fatty liver and about implants."""
    result = []
    if known.steatosis is not None:
        values = {"liver": f"{known.liver_hu:.0f}", "spleen": f"{known.spleen_hu:.0f}"}
        frames = wording.STEATOSIS if known.steatosis else wording.LIVER_NORMAL
        result.append(("Liver and bile ducts", say(key("steatosis"), pick(key("liver"), frames), values)))
    for n, device in enumerate(known.devices):
        site = pick(key("device site", n), site_words(device.site))
        kind = "nail" if device.site.startswith("femur_") else device.kind  # screws of a femur hold a nail
        frame = pick(key("device", n), wording.DEVICES[kind])
        result.append((wording.DEVICE_REGIONS[device.kind], say(key("device words", n), frame, {"site": site})))
    return result


def _normal(key: Key, known: Facts) -> list[tuple[str, str]]:
    """(region, sentence) about organs that the model never harms, several in one sentence."""
    result = []
    for region, organs in wording.ORGANS.items():
        names = list(dict.fromkeys(called for structure, called in organs if structure in known.present))
        names = [names[i] for i in key("organs", region).permutation(len(names))]
        if not names:
            continue
        text = " and ".join(([", ".join(names[:-1])] if names[:-1] else []) + names[-1:])
        one = len(names) == 1 and not names[0].endswith("s")
        values = {"organs": text, "are": "is" if one else "are", "look": "appears" if one else "appear"}
        result.append((region, say(key("normal", region), pick(key("normal frame", region), wording.NORMAL), values)))
    return result


def _technique(key: Key, known: Facts) -> str:
    values = {
        "parts": _listed(known.parts),
        "contrast": pick(key("contrast"), wording.CONTRAST[known.phase]),
        "kernel": "soft-tissue" if known.kernel == "soft" else known.kernel,
        "mm": f"{known.thickness_mm:g}",
        "recon": pick(key("recon"), wording.RECON),
    }
    frame = pick(key("frame"), wording.TECHNIQUE)
    if known.motion:
        frame += f". {pick(key('motion'), wording.MOTION)}"
    return say(key, frame, values)


def _impression(key: Key, known: Facts, findings: Sequence[Finding], before: Mapping[int, Finding] | None) -> list[str]:
    """The findings again, short, the most important first; several of one kind are one item that names the largest."""
    ranked = sorted(findings, key=importance, reverse=True)
    items = []
    for kind, group in groupby(ranked, key=lambda finding: finding.kind):
        members = list(group)
        first, here = members[0], key(kind)
        slots = _slots(here("slots"), first)
        frames = PHRASES[kind].frames
        where = "{where}, {size}"
        if frames is wording.COLLECTION and first.side:
            where = "on the {side}, {size}"
        elif frames is wording.BROKEN or frames is wording.WIDENED:
            where = "of {site}" + (", {size}" if frames is wording.WIDENED else "")
        text = f"{{adj}} {{noun}} {where}"
        if len(members) > 1:
            which = "among them {site}" if kind == "fracture" else f"the largest {where}"
            text = f"{len(members)} {wording.MANY[kind]}, {which}"
        if before is not None:
            text += f"; {_change(here('change'), first, before)}"
        old = first.attributes.get("stage") in ("chronic", "healing")
        hedge = "" if old else pick(here("hedge"), PHRASES[kind].hedges)
        slots["noun"] = slots["noun"].removeprefix("an ").removeprefix("a ")
        items.append(say(here("words"), text + (f"; {hedge}" if hedge else ""), slots))
    if known.steatosis:
        items.append(sentence(pick(key("steatosis"), wording.STEATOSIS_SHORT)))
        if len(items) == 1:
            items.append(sentence(pick(key("otherwise"), wording.NOTHING_ACUTE)))
    if not items:
        items.append(say(key("nothing"), pick(key("nothing frame"), wording.NOTHING), {"parts": _listed(known.parts)}))
    return items


def _listed(words: Sequence[str]) -> str:
    return " and ".join(([", ".join(words[:-1])] if words[:-1] else []) + list(words[-1:]))


def _shuffled(key: Key, texts: Sequence[str]) -> list[str]:
    return [texts[i] for i in key.permutation(len(texts))]


def _americanised(report: Report) -> Report:
    def turned(text: str) -> str:
        for british, american in wording.AMERICAN:
            text = text.replace(british, american)
        return text

    return Report(
        turned(report.technique),
        {region: tuple(map(turned, texts)) for region, texts in report.findings.items()},
        tuple(map(turned, report.impression)),
        turned(report.comparison),
    )
