"""AutoPET: whole-body FDG (and PSMA) PET/CT with tumour lesions, as NIfTI. Its DICOM form is in `tcia`.

Layout: lab-midas/TCIA_processing, tcia_dicom_to_nifti.py: ``PETCT_HASH/STUDY/`` with CT, CTres (the CT on the PET's grid), PET, SUV
and SEG; newer archives hold SUV, SEG and CTres alone. Lesions are drawn on the PET's grid, so ``CTres`` is the image here and ``CT``
stands among the others. AutoPET III (nnU-Net form): ClinicalDataScience/tcia-psma-pet-ct-preprocessing, README.md:
``imagesTr/psma_P_S_0000.nii.gz`` is the CT on the PET's grid, ``_0001`` the PET in SUV. Tables by the names that public code reads
(``fdg_metadata.csv``, ``Clinical Metadata FDG PET_CT Lesions.csv``, columns Subject ID, File Location, diagnosis, age, sex).
"""

from __future__ import annotations

from pathlib import Path

from ctfoundry.archive.adapters.dataset import Adapter, Case, Parts
from ctfoundry.archive.adapters.tree import NIFTI, Row, Tree, stem, targets

_TABLES = ("fdg_metadata.csv", "Clinical Metadata FDG PET_CT Lesions.csv")
_NAMES = {1: "tumor lesion"}
_PATIENT = r"PETCT_[0-9a-f]+"


def _folders(tree: Tree) -> list[Path]:
    inner = tree.folders(pattern="FDG-PET-CT-Lesions")
    return tree.folders(pattern=_PATIENT) or [p for folder in inner for p in tree.folders(folder, _PATIENT)]


def _is_it(tree: Tree) -> bool:
    for patient in _folders(tree)[:20]:
        if any((study / "SEG.nii.gz").is_file() for study in tree.folders(patient)):
            return True
    return _is_nnunet(tree)


def _is_nnunet(tree: Tree) -> bool:
    names = [path.name for path in tree.files(tree.root / "imagesTr", *NIFTI)]
    return bool(names) and all(n.startswith(("fdg_", "psma_")) for n in names[:10])


def _read(tree: Tree) -> Parts:
    return _nnunet(tree) if _is_nnunet(tree) else _studies(tree)


def _studies(tree: Tree) -> Parts:
    table = tree.first(*_TABLES, beside=True)
    cases, lost = [], []
    found = [(patient, study) for patient in _folders(tree) for study in tree.folders(patient)]
    facts = _facts(tree, table, {(p.name, s.name) for p, s in found})
    for patient, study in found:
        files = {stem(path): path for path in tree.files(study, *NIFTI)}
        image = files.get("CTres") or files.get("CT")
        if image is None:
            lost.append(tree.shown(study / "CTres.nii.gz"))
            continue
        if "CTres" not in files:
            tree.note("some studies have no CTres: their image is the CT, whose grid is not the one of SEG")
        others = {name: path for name, path in files.items() if name in ("CT", "PET", "SUV") and path != image}
        id = f"{patient.name}/{study.name}"
        seg = {"labels": files["SEG"]} if "SEG" in files else {}
        names = _NAMES if seg else {}
        cases.append(Case(id, patient.name, image, seg, names, targets=facts.get(id, {}), others=others))
    tree.note_missing("images", lost)
    return Parts(cases)


def _facts(tree: Tree, table: Path | None, wanted: set[tuple[str, str]]) -> dict[str, dict[str, str | float]]:
    """Age, sex and diagnosis by study; where the table does not name studies, what all rows of a patient share."""
    if table is None:
        tree.note(f"no {_TABLES[0]} here")
        return {}
    rows: dict[str, Row] = {}
    by_patient: dict[str, list[Row]] = {}
    for row in tree.rows(table, ("Subject ID",)):
        who = row["Subject ID"].strip()
        kept = {name: row[name].strip() for name in ("diagnosis", "age", "sex") if name in row}
        by_patient.setdefault(who, []).append(kept)
        places = row.get("File Location", "").replace("\\", "/").split("/")
        for place in places:
            if (who, place) in wanted:
                rows.setdefault(f"{who}/{place}", kept)
    for who, place in wanted:
        mine = by_patient.get(who)
        if f"{who}/{place}" not in rows and mine:
            rows[f"{who}/{place}"] = {n: v for n, v in mine[0].items() if all(r[n] == v for r in mine)}
    return targets(rows)


def _nnunet(tree: Tree) -> Parts:
    masks = {stem(path): path for path in tree.files(tree.root / "labelsTr", *NIFTI)}
    images = {stem(path): path for path in tree.files(tree.root / "imagesTr", *NIFTI)}
    cases = []
    for name, image in images.items():
        if not name.endswith("_0000"):
            continue
        id = name.removesuffix("_0000")
        tracer, _, rest = id.partition("_")
        pet = images.get(f"{id}_0001")
        cases.append(
            Case(
                id,
                f"{tracer}_{rest.split('_')[0]}",
                image,
                {"labels": masks[id]} if id in masks else {},
                _NAMES if id in masks else {},
                "train",
                targets={"tracer": tracer},
                others={"SUV": pet} if pet else {},
            )
        )
    return Parts(cases)


ADAPTERS = (
    Adapter(
        name="autopet",
        title="AutoPET: FDG-PET-CT-Lesions as NIfTI, and AutoPET III (FDG and PSMA)",
        home="doi 10.7937/gkr0-xv29; autopet-iii.grand-challenge.org",
        licence="CC BY 4.0 (FDG images, by the Imaging Data Commons' index); for the rest read their page",
        citation="Gatidis S et al., Scientific Data 2022, 10.1038/s41597-022-01718-3",
        looks_for="PETCT_HASH/STUDY/SEG.nii.gz, or imagesTr with fdg_* or psma_*",
        source="lab-midas/TCIA_processing, tcia_dicom_to_nifti.py; ClinicalDataScience/tcia-psma-pet-ct-preprocessing, README.md",
        is_it=_is_it,
        read=_read,
    ),
)
