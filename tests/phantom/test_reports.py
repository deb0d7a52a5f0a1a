"""Reports say what the findings say: read back with a lexicon and regular expressions that share nothing with the writer."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ctfoundry.keys import Key
from ctfoundry.phantom.facts import Facts, negatives
from ctfoundry.phantom.findings import Finding
from ctfoundry.phantom.reports import Report, growth, importance, report

TORSO = (
    "lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right", "lung_middle_lobe_right",
    "lung_lower_lobe_right", "heart", "trachea", "esophagus", "liver", "gallbladder", "spleen", "pancreas",
    "kidney_left", "kidney_right", "urinary_bladder", "stomach", "duodenum", "small_bowel", "colon", "aorta",
    "inferior_vena_cava", "vertebrae_L3", "vertebrae_T7", "rib_left_7", "rib_right_9", "gluteus_maximus_left",
    "iliopsoas_right", "pulmonary_artery",
)  # fmt: skip
HEAD = ("brain", "skull", "ventricle", "eye_left")
SITES = {
    "lung_nodule": [n for n in TORSO if n.startswith("lung_")],
    "liver_lesion": ["liver"],
    "renal_cyst": ["kidney_left", "kidney_right"],
    "pleural_effusion": ["lung_lower_lobe_left", "lung_lower_lobe_right"],
    "pneumothorax": ["lung_upper_lobe_left", "lung_upper_lobe_right"],
    "aortic_aneurysm": ["aorta"],
    "fracture": ["rib_left_7", "rib_right_9", "vertebrae_L3", "vertebrae_T7"],
    "soft_tissue_mass": ["gluteus_maximus_left", "iliopsoas_right"],
    "epidural_haemorrhage": ["brain"],
    "subdural_haemorrhage": ["brain"],
    "parenchymal_haemorrhage": ["brain"],
}
ATTRIBUTES = {
    "lung_nodule": {"attenuation": ["solid", "part-solid", "ground-glass"], "margin": ["smooth", "spiculated"], "cavitation": ["yes", "no"]},
    "liver_lesion": {"attenuation": ["hypo", "hyper"]},
    "aortic_aneurysm": {"segment": ["infrarenal", "descending", "ascending"], "thrombus": ["yes", "no"]},
    "fracture": {"stage": ["acute", "healing"], "displacement_mm": ["0.5", "4.2"], "height_loss_percent": ["30"]},
    "subdural_haemorrhage": {"stage": ["acute", "chronic"]},
    "parenchymal_haemorrhage": {"stage": ["acute"], "oedema": ["yes", "no"]},
    "renal_cyst": {"attenuation": ["water", "hyperdense"], "calcification": ["none", "wall"]},
    "soft_tissue_mass": {"composition": ["solid", "necrotic", "fatty"]},
}  # fmt: skip


def world(key: Key) -> tuple[Facts, list[Finding]]:
    """A random scan of torso, head or both, with random findings."""
    present = (TORSO, HEAD, TORSO + HEAD)[int(key("view").integers(0, 3))]
    found: list[Finding] = []
    for kind, sites in SITES.items():
        here = key(kind)
        sites = [s for s in sites if s in present]
        for n in range(int(here("count").integers(0, 4)) if sites and float(here("has").uniform()) < 0.4 else 0):
            site = sites[int(here("site", n).integers(0, len(sites)))]
            side = next((s for s in ("left", "right") if s in site), "")
            if site == "brain":
                side = ("left", "right")[int(here("side", n).integers(0, 2))]
            if kind in ("pleural_effusion", "pneumothorax") and any((f.kind, f.side) == (kind, side) for f in found):
                continue  # one space a side
            traits = ATTRIBUTES.get(kind, {})
            attributes = {a: v[int(here(a, n).integers(0, len(v)))] for a, v in traits.items()}
            if kind == "fracture":
                attributes.pop("height_loss_percent" if site.startswith("rib") else "displacement_mm")
            size, whole = float(here("size", n).uniform(3, 90)), float(here("whole", n).uniform()) < 0.8
            found.append(Finding(len(found), kind, site, side, size, 1.0, (0.0, 0.0, 0.0), whole, attributes))
    phase = ("none", "arterial", "portal", "late")[int(key("phase").integers(0, 4))]
    liver = float(key("liver").uniform(20, 70)) if "liver" in present else None
    cut = frozenset(n for n in present if float(key("cut", n).uniform()) < 0.2)
    return Facts(
        ("chest", "abdomen"), frozenset(present), cut, phase, "soft", 2.0, liver, 50.0 if liver else None
    ), found


# ---- the reader -------------------------------------------------------------------------------------------------

LEXICON = {
    "epidural_haemorrhage": r"epidural|extradural|intracranial",
    "subdural_haemorrhage": r"subdural|intracranial",
    "parenchymal_haemorrhage": r"intraparenchymal|intracerebral|parenchymal hem|intra-axial|intracranial",
    "pneumothorax": r"pneumothora|pleural air",
    "pleural_effusion": r"effusion|pleural fluid",
    "aortic_aneurysm": r"aneurysm",
    "fracture": r"fracture",
    "soft_tissue_mass": r"soft[- ]tissue (mass|tumor)|mass of soft",
    "lung_nodule": r"nodul",
    "renal_cyst": r"\bcyst",
    "liver_lesion": r"^(?=.*(liver|hepatic)).*(lesion|mass)",
}
NEGATION = r"^no\b|\bno |\bnone\b|negative for|absent|\bnot (seen|identified|present|demonstrated|observed)"
NUMBER_WORDS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
LENGTH = r"(\d+(?:\.\d)?) (mm|cm)"


def millimetres(text: str) -> list[int]:
    return [round(float(v) * (10 if unit == "cm" else 1)) for v, unit in re.findall(LENGTH, text)]


def side_of(text: str) -> str:
    if "middle lobe" in text:
        return "right"
    found = set(re.findall(r"\b(left|right)\b", text))
    return found.pop() if len(found) == 1 else "both" if found else ""


def place_of(kind: str, text: str) -> str:
    if kind == "lung_nodule":
        return "".join(re.findall(r"upper|middle|lower", text)[:1])
    if kind == "fracture":
        level = re.search(r"\b([tl])(\d+)\b", text)
        rib = re.search(r"rib (\d+)", text)
        words = [n for n, w in enumerate(NUMBER_WORDS, 1) if w in text]
        return (
            f"{level[1]}{level[2]}"
            if level
            else f"rib {rib[1] if rib else words[:1]}".replace("[", "").replace("]", "")
        )
    return ""


def parse(written: Report) -> tuple[Counter, set]:
    """((kind, side, mm or None, place) of what is stated, (kind, side) of what is denied), from the text alone."""
    body = written.text.split("Findings\n")[1].split("\nImpression\n")[0]
    stated: Counter = Counter()
    denied: set = set()
    for line in body.strip().splitlines():
        for whole in re.split(r"(?<=\.)\s+(?=[A-Z0-9])", line.split(": ", 1)[1]):
            text = whole.lower().replace("haem", "hem").replace("tumour", "tumor")
            if re.search(r"resol|disappeared", text):
                continue
            text = text.split(";")[0]
            text = re.sub(r",? (undisplaced|without relevant displacement|not displaced)", "", text)
            kinds = [k for k, pattern in LEXICON.items() if re.search(pattern, text)]
            if re.search(NEGATION, text):
                denied |= {(k, side_of(text)) for k in kinds}
                continue
            for kind in kinds:
                sizes = millimetres(text)
                if "bilateral" in text or "both sides" in text:
                    assert len(sizes) == 2, whole
                    first = re.search(r"left|right", re.sub(r"^.*?bilateral|on both sides", "", text))[0]
                    other = {"left": "right", "right": "left"}[first]
                    stated.update([(kind, first, sizes[0], ""), (kind, other, sizes[1], "")])
                    continue
                size = sizes[0] if sizes and kind != "fracture" else None
                assert kind == "fracture" or len(sizes) <= 1, whole
                stated[kind, side_of(text), size, place_of(kind, text)] += 1
    return stated, denied


def truth(findings: list[Finding]) -> Counter:
    def place(f: Finding) -> str:
        if f.kind == "lung_nodule":
            return f.site.split("_")[1]
        if f.kind == "fracture":
            return f"rib {f.site.split('_')[2]}" if f.site.startswith("rib") else f.site.split("_")[1].lower()
        return ""

    return Counter(
        (f.kind, f.side, None if f.kind == "fracture" else max(round(f.size_mm), 1), place(f)) for f in findings
    )


# ---- tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
def test_two_hundred_reports_say_exactly_what_was_found(part):
    for n in range(50 * part, 50 * part + 50):
        known, findings = world(Key.of("reports", n))
        written = report(known, findings, Key.of("words", n))
        stated, denied = parse(written)
        assert stated == truth(findings), written.text
        assert {kind for kind, side in denied if not side} == set(negatives(known, findings)), written.text
        for kind, side in denied:  # "no effusion on the left" beside one on the right
            assert side == "" or side not in {f.side for f in findings if f.kind == kind}, written.text


def test_kinds_are_denied_only_where_their_organs_are_seen():
    head = Facts(("head",), frozenset(HEAD))
    assert set(negatives(head, [])) == {
        "epidural_haemorrhage", "subdural_haemorrhage", "parenchymal_haemorrhage", "fracture",
    }  # fmt: skip
    assert "lung_nodule" in negatives(Facts(("chest",), frozenset(TORSO)), [])
    unsure = Facts(("chest",), frozenset(TORSO), unsure=frozenset({"lung_nodule"}))
    assert "lung_nodule" not in negatives(unsure, [])


def test_the_reader_notices_lies():
    """A reader that cannot fail proves nothing: swapped sides, a dropped negation, a changed size are all seen."""
    known = Facts(("chest",), frozenset(TORSO))
    findings = [Finding(0, "renal_cyst", "kidney_left", "left", 21.0, 1.0, (0, 0, 0), True)]
    written = report(known, findings, Key.of("lie"))

    def changed(old: str, new: str) -> Report:
        texts = {r: tuple(re.sub(old, new, t) for t in s) for r, s in written.findings.items()}
        return replace(written, findings=texts)

    assert parse(written)[0] == truth(findings)
    assert parse(changed(r"\bleft\b", "right"))[0] != truth(findings)
    assert parse(changed(r"2\.1|21", "22"))[0] != truth(findings)
    assert parse(changed(r"(?i)\b(no|negative for|not|none)\b", "Some"))[1] != parse(written)[1]


def test_each_statement_is_worded_in_many_ways():
    known = Facts(("chest",), frozenset(TORSO + HEAD))

    def skeletons(findings: list[Finding], pattern: str) -> set[str]:
        seen = set()
        for n in range(50):
            for texts in report(known, findings, Key.of("ways", n)).findings.values():
                for text in texts:
                    plain = text.lower().replace("haem", "hem").replace("tumour", "tumor")
                    if re.search(pattern, plain):
                        seen.add(re.sub(LENGTH, "#", plain))
        return seen

    counts = {}
    for kind, sites in SITES.items():
        side = next((s for s in ("left", "right") if s in sites[0]), "left" if sites[0] == "brain" else "")
        one = Finding(0, kind, sites[0], side, 14.0, 1.0, (0, 0, 0), True)
        counts[kind] = len({t for t in skeletons([one], LEXICON[kind]) if not re.search(NEGATION, t)})
        counts[f"no {kind}"] = len(skeletons([], LEXICON[kind]))
    assert min(counts.values()) >= 12, counts
    techniques = {report(known, [], Key.of("t", n)).technique for n in range(100)}
    nothing = {report(known, [], Key.of("t", n)).impression for n in range(100)}
    assert len(techniques) >= 30
    assert len(nothing) >= 8


def test_the_key_decides_the_words_and_nothing_else():
    known, findings = world(Key.of("reports", 3))
    assert report(known, findings, Key.of(1)) == report(known, findings, Key.of(1))
    assert report(known, findings, Key.of(1)).text != report(known, findings, Key.of(2)).text


def test_the_impression_is_sorted_by_importance():
    order = list(SITES)
    for n in range(40):
        known, findings = world(Key.of("impression", n))
        items = [
            i.lower().replace("haem", "hem").replace("tumour", "tumor")
            for i in report(known, findings, Key.of(n)).impression
        ]
        ranked = []
        for f in sorted(findings, key=importance, reverse=True):
            if f.kind not in ranked:
                ranked.append(f.kind)
        found = [next((k for k in order if re.search(LEXICON[k], i)), None) for i in items]
        assert [k for k in found if k] == ranked, items
        assert items
    bleed = Finding(0, "subdural_haemorrhage", "brain", "left", 4.0, 1.0, (0, 0, 0), True)
    cyst = Finding(1, "renal_cyst", "kidney_left", "left", 90.0, 1.0, (0, 0, 0), True)
    assert importance(bleed) > importance(cyst)


def test_a_repeat_scan_is_compared():
    known = Facts(("chest",), frozenset(TORSO))
    old = [
        Finding(0, "lung_nodule", "lung_upper_lobe_left", "left", 8.0, 1.0, (0, 0, 0), True),
        Finding(1, "liver_lesion", "liver", "", 30.0, 1.0, (0, 0, 0), True),
        Finding(2, "renal_cyst", "kidney_left", "left", 20.0, 1.0, (0, 0, 0), True),
    ]
    new = [
        replace(old[0], size_mm=12.0),
        replace(old[2], size_mm=20.4),
        Finding(3, "fracture", "rib_left_7", "left", 12.0, 1.0, (0, 0, 0), True),
    ]
    for n in range(30):
        written = report(known, new, Key.of("repeat", n), prior=old)
        nodule = next(t for t in written.findings["Lungs and pleura"] if "50 %" in t)
        assert millimetres(nodule) == [12, 8] or millimetres(nodule) == [8, 12], nodule
        assert any(re.search("(?i)resol|disappeared", t) for t in written.findings["Liver and bile ducts"])
        assert any(
            re.search("unchanged|stable|no significant|without interval", t)
            for t in written.findings["Kidneys and bladder"]
        )
        assert any(re.search("[Nn]ew|not seen on", t) for t in written.findings["Bones"])
        assert "Comparison" in written.text
    assert growth(old[0], new[0]) == pytest.approx(50)


def test_a_fatty_liver_is_told_by_its_hounsfield_units():
    base = Facts(("abdomen",), frozenset({"liver", "spleen"}), phase="none", liver_hu=30.0, spleen_hu=50.0)
    assert base.steatosis
    assert replace(base, liver_hu=45.0).steatosis is False
    assert replace(base, phase="arterial").steatosis is None
    assert replace(base, phase="portal").steatosis is False  # 20 HU below is usual there
    text = report(base, [], Key.of("fat")).text
    assert re.search("steatosis|fatty", text)
    assert "30 HU" in text
    assert "50 HU" in text


def test_facts_are_measured_from_the_scan():
    from ctfoundry.phantom import draw, make
    from ctfoundry.phantom.facts import facts

    phantom = make(draw(Key.of("phantom", 1), view="chest", voxel_mm=6))
    known = facts(phantom)
    names, labels = phantom.labels.names, phantom.labels.voxels
    assert {"lung_upper_lobe_left", "heart"} <= known.present
    assert "chest" in known.parts
    assert "head" not in known.parts
    liver = next(i for i, n in names.items() if n == "liver")
    assert known.liver_hu == np.median(phantom.ct.voxels[labels == liver])
    ends = {names[i] for i in np.unique(labels[[0, -1]]) if i}  # SPL: the first axis runs up
    assert known.cut == ends & known.present
