"""Collections of The Cancer Imaging Archive and the Imaging Data Commons as DICOM: any tree, because headers say what is what.

Folders such as ``RIDER Lung CT/RIDER-1129164940/09-20-2006-1-96508/4-24533`` (public code), ``NSCLC Radiogenomics/R01-001/...``,
``C4KC-KiTS/KiTS-00000/06-29-2003-threephaseabdomen-41748/5.000000-noncontrast-64798``, ``FDG-PET-CT-Lesions/PETCT_.../...`` by TCIA's
downloader, or ``rider_lung_ct/STUDY/SERIES`` by ``ctfoundry cohort download``. Tables: NSCLCR01Radiogenomic_DATA_LABELS (Case ID;
several public readers), ``C4KC-KiTS_final.csv`` (patient_id), ``radio_annotations_fixed.csv`` and ``radio_nsclc_radiogenomics.csv`` of
ricklisz/FlexiCT, downstream/retrieval/csv; the NIfTI forms as its README.md there has them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ctfoundry.archive.adapters.dataset import Adapter, Case, Pair, Parts, Point, Series
from ctfoundry.archive.adapters.tree import Row, Tree, number, stem, targets
from ctfoundry.io.discovery import Discovery, Found, discover

_DEPTH = 3
_SHORT = 16
"""A series of fewer slices is a localizer or a fragment."""


def _has_folder(tree: Tree, patient: str, collection: str) -> bool:
    """Whether some folder, up to three levels down, is called like a patient or the collection."""
    if re.fullmatch(collection, tree.root.name, re.IGNORECASE) and tree.folders():
        return True
    level = [tree.root]
    for _ in range(_DEPTH):
        below = [folder for place in level for folder in tree.folders(place)[:2000]]
        if any(re.fullmatch(f"{patient}|{collection}", folder.name, re.IGNORECASE) for folder in below):
            return True
        level = below[:2000]
    return False


def _is_dicom(tree: Tree, patient: str, collection: str) -> bool:
    return _has_folder(tree, patient, collection) and not any(
        tree.files(study, ".nii.gz") for p in tree.folders(pattern=patient)[:20] for study in tree.folders(p)[:20]
    )


def _series(tree: Tree, patient: str) -> tuple[list[Case], dict[str, Found]]:
    """One case for each CT volume of patients whose ID matches `patient`; what was found, by the case's id."""
    seen: Discovery = discover(tree.root)
    drawn: dict[str, list[Found]] = defaultdict(list)
    cases: list[Case] = []
    by: dict[str, Found] = {}
    strangers, short, broken = set[str](), 0, []
    for item in seen.found:
        if item.format != "dicom":
            continue
        if item.is_label:
            drawn[item.image].append(item)
            continue
        who = (item.patient or "").strip()
        if not re.fullmatch(patient, who, re.IGNORECASE):
            strangers.add(who)
        elif item.problem is not None:
            broken.append(f"{who} ({item.problem.what[:80]})")
        elif len(item.paths) < _SHORT and not item.frames:
            short += 1
        else:
            id = f"{who}/{item.series}" + (f"@{item.part}" if item.part else "")
            by[id] = item
    for id, item in sorted(by.items()):
        masks: dict[str, Path] = {}
        for mark in drawn.get(item.series or "", []):
            kind = (mark.modality or "SEG").lower()
            masks[f"{kind}-{sum(k.startswith(kind) for k in masks) + 1}"] = mark.path
        told: dict[str, str | float] = {"study": item.study or "", "slices": float(len(item.paths))}
        if item.facts is not None and item.facts.description:
            told["series"] = item.facts.description
        who = id.split("/")[0]
        cases.append(Case(id, who, Series(item.name, item.paths), masks, targets=told))
    if strangers:
        tree.note(f"series of {len(strangers)} patients with other IDs were left out")
    if short:
        tree.note(f"{short} CT series of fewer than {_SHORT} slices (localizers, fragments) were left out")
    tree.note_missing("CT series cannot be read as volumes and are", broken)
    return cases, by


def _collection(tree: Tree, patient: str, table: Callable[[Tree, set[str]], dict[str, Row]] | None = None) -> Parts:
    cases, _ = _series(tree, patient)
    if table is None:
        return Parts(cases)
    told = targets(table(tree, {case.patient for case in cases}))
    return Parts([_with(case, told.get(case.patient, {})) for case in cases])


def _with(case: Case, told: dict[str, str | float], points: tuple[Point, ...] = ()) -> Case:
    from dataclasses import replace

    return replace(case, targets={**case.targets, **told}, points=points or case.points)


# RIDER ----------------------------------------------------------------------------------------------------------------


def _rider(tree: Tree) -> Parts:
    """Scans, and the two of each patient that were taken minutes apart.

    The archive holds many reconstructions; the repeat scans stand in studies of their own. So the pair of a patient is the two
    series that lie in studies of at most two CT series. In the Imaging Data Commons' index (release 25) this finds one pair for 30 of
    32 patients; 29 of them have contours called TEST and RETEST, and for 28 these stand in the same studies.
    """
    cases, by = _series(tree, r"RIDER-\d+")
    studies: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in cases:
        studies[case.patient, str(case.targets["study"])].append(case)
    few: dict[str, list[Case]] = defaultdict(list)
    for (who, _), mine in studies.items():
        if len(mine) <= 2:
            few[who] += mine
    pairs, without = [], []
    for who in sorted({case.patient for case in cases}):
        two = sorted(few[who], key=lambda case: (_order(by[case.id]), case.id))
        if len(two) == 2:
            pairs.append(Pair(two[0].id, two[1].id, "test-retest"))
        else:
            without.append(who)
    tree.note_missing("patients have no two series in studies of at most two; their repeat scan is", without)
    return Parts(cases, pairs)


def _order(item: Found) -> int:
    text = item.facts.number if item.facts is not None else ""
    return int(text) if text.strip().isdigit() else 0


# Tables ---------------------------------------------------------------------------------------------------------------


def _radiogenomics_rows(tree: Tree, wanted: set[str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for path in tree.files(tree.root, ".csv"):
        if path.name.startswith("NSCLCR01Radiogenomic_DATA_LABELS") or path.name == "radio_nsclc_radiogenomics.csv":
            for id, row in tree.keyed(path, "Case ID", wanted, path.name).items():
                found[id] = {**found.get(id, {}), **{k: v for k, v in row.items() if k != "Case ID"}}
    if not found:
        tree.note("no NSCLCR01Radiogenomic_DATA_LABELS_*.csv here")
    return found


def _kits_rows(tree: Tree, wanted: set[str]) -> dict[str, Row]:
    for path in tree.files(tree.root, ".csv"):
        if "kits" in path.name.lower():
            rows = tree.keyed(path, "patient_id", wanted, path.name)
            return {id: {k: v for k, v in row.items() if k != "patient_id"} for id, row in rows.items()}
    tree.note("no table of clinical facts (C4KC-KiTS*.csv) here")
    return {}


# NIfTI forms ----------------------------------------------------------------------------------------------------------

_ANNOTATIONS = ("radio_annotations_fixed.csv", "radio_annotations_prepared.csv")
_SEEDS = ("image_path", "Case ID", "coordX", "coordY", "coordZ")


def _radio(tree: Tree) -> Parts:
    """Scans ``STUDY_UID/image.nii.gz`` and one seed in the tumour of each, given in LPS millimetres."""
    where = tree.first(*_ANNOTATIONS)
    assert where is not None  # is_it saw it
    found: dict[str, tuple[Path, Point]] = {}
    lost = []
    for row in tree.rows(where, _SEEDS):
        # the column holds paths of another machine: the last two parts are the data set's
        study = Path(row["image_path"].replace("\\", "/")).parent.name
        image = tree.path(f"{study or '?'}/image.nii.gz", where)
        if not image.is_file():
            lost.append(study)
            continue
        x, y, z = (number(row[c], where, "a coordinate") for c in _SEEDS[2:])
        found.setdefault(row["Case ID"].strip(), (image, Point((-x, -y, z), "tumor")))
    tree.note_missing("listed scans are", lost)
    told = targets(_radiogenomics_rows(tree, set(found)))
    return Parts([Case(id, id, image, targets=told.get(id, {}), points=(p,)) for id, (image, p) in found.items()])


def _is_kits_nifti(tree: Tree) -> bool:
    return any(re.fullmatch(r"KiTS-\d{5}_ct\.nii\.gz", path.name) for path in tree.files(tree.root, "_ct.nii.gz")[:5])


def _kits(tree: Tree) -> Parts:
    if not _is_kits_nifti(tree):
        return _collection(tree, r"KiTS-\d{5}", _kits_rows)
    images = {stem(p).removesuffix("_ct"): p for p in tree.files(tree.root, "_ct.nii.gz")}
    masks = {stem(p).removesuffix("_seg"): p for p in tree.files(tree.root, "_seg.nii.gz")}
    told = targets(_kits_rows(tree, set(images)))
    names = {1: "kidney", 2: "tumor"}
    return Parts(
        [
            Case(
                id,
                id,
                image,
                {"labels": masks[id]} if id in masks else {},
                names if id in masks else {},
                targets=told.get(id, {}),
            )
            for id, image in images.items()
        ]
    )


_RADIO_PATIENT = r"(R01|AMC)-\d{3}"
_INDEX = "by the Imaging Data Commons' index, release 25"

ADAPTERS = (
    Adapter(
        name="rider-lung",
        title="RIDER Lung CT (two scans of a patient, minutes apart)",
        home="doi 10.7937/k9/tcia.2015.u1x8a5nr",
        licence=f"CC BY 4.0 ({_INDEX})",
        citation="Zhao B et al., Radiology 2009, 10.1148/radiol.2522081593",
        looks_for="folders RIDER-NNNNNNNNNN or rider_lung_ct with DICOM files",
        source="folders in public code; series and studies in the Imaging Data Commons' index",
        is_it=partial(_is_dicom, patient=r"RIDER-\d{10}", collection=r"rider[ _]lung[ _]ct"),
        read=_rider,
    ),
    Adapter(
        name="nsclc-radiogenomics",
        title="NSCLC Radiogenomics (lung cancer, stage, survival), DICOM",
        home="doi 10.7937/k9/tcia.2017.7hs46erv",
        licence=f"CC BY 3.0 ({_INDEX})",
        citation="Bakr S et al., Scientific Data 2018, 10.1038/sdata.2018.202",
        looks_for="folders R01-NNN, AMC-NNN or nsclc_radiogenomics with DICOM files",
        source="folders and NSCLCR01Radiogenomic_DATA_LABELS in public code",
        is_it=partial(_is_dicom, patient=_RADIO_PATIENT, collection=r"nsclc[ _-]radiogenomics"),
        read=partial(_collection, patient=_RADIO_PATIENT, table=_radiogenomics_rows),
    ),
    Adapter(
        name="radio",
        title="RADIO: NSCLC Radiogenomics with one seed a tumour, as NIfTI",
        home="github.com/ricklisz/FlexiCT, downstream/retrieval",
        licence=f"images CC BY 3.0 ({_INDEX}); for the tables read their page",
        citation="arXiv 2605.21906; images: Bakr S et al., Scientific Data 2018",
        looks_for="radio_annotations_fixed.csv (or _prepared) and STUDY_UID/image.nii.gz",
        source="ricklisz/FlexiCT, downstream/retrieval/README.md and csv/",
        is_it=lambda tree: tree.first(*_ANNOTATIONS) is not None,
        read=_radio,
    ),
    Adapter(
        name="c4kc-kits",
        title="C4KC-KiTS (kidney tumours; grade and outcome), DICOM with SEG, or NIfTI",
        home="doi 10.7937/tcia.2019.ix49e8nx",
        licence=f"CC BY 3.0 ({_INDEX})",
        citation="Heller N et al., The Cancer Imaging Archive 2019, 10.7937/TCIA.2019.IX49E8NX",
        looks_for="folders KiTS-NNNNN or c4kc_kits with DICOM files, or files KiTS-NNNNN_ct.nii.gz",
        source="folders in public code; ricklisz/FlexiCT, downstream/retrieval/README.md and csv/C4KC-KiTS_final.csv",
        is_it=lambda tree: _is_kits_nifti(tree) or _is_dicom(tree, r"KiTS-\d{5}", r"c4kc[_-]kits"),
        read=_kits,
    ),
    Adapter(
        name="nsclc-radiomics",
        title="NSCLC-Radiomics, LUNG1 (lung cancer with contours), DICOM",
        home="doi 10.7937/k9/tcia.2015.pf0m9rei",
        licence=f"CC BY-NC 3.0 ({_INDEX})",
        citation="Aerts HJWL et al., Nature Communications 2014, 10.1038/ncomms5006",
        looks_for="folders LUNG1-NNN or nsclc_radiomics with DICOM files",
        source="pwoznicki/RadiomicsHub, radhub/NSCLC_Radiomics/README.md",
        is_it=partial(_is_dicom, patient=r"LUNG1-\d{3}", collection=r"nsclc[_-]radiomics"),
        read=partial(_collection, patient=r"LUNG1-\d{3}"),
    ),
    Adapter(
        name="fdg-pet-ct-lesions",
        title="FDG-PET-CT-Lesions (AutoPET), DICOM: CT, with SEG",
        home="doi 10.7937/gkr0-xv29",
        licence=f"CC BY 4.0 ({_INDEX})",
        citation="Gatidis S et al., Scientific Data 2022, 10.1038/s41597-022-01718-3",
        looks_for="folders PETCT_HASH or fdg_pet_ct_lesions with DICOM files",
        source="lab-midas/TCIA_processing, tcia_dicom_to_nifti.py",
        is_it=partial(_is_dicom, patient=r"PETCT_[0-9a-f]{10}", collection=r"fdg[_-]pet[_-]ct[_-]lesions"),
        read=partial(_collection, patient=r"PETCT_[0-9a-f]+"),
    ),
)
