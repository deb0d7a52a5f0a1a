"""Sets of scans with reports: CT-RATE and Merlin."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from ctfoundry import files
from ctfoundry.layouts.cases import Case
from ctfoundry.layouts.layout import Layout, Row, write_image, write_table

CT_RATE_LABELS = (
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis", "Lung nodule",
    "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern", "Peribronchial thickening",
    "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip
_CT_RATE_OF = {"lung_nodule": "Lung nodule", "pleural_effusion": "Pleural effusion"}
REPORTS = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
METADATA = ("VolumeName", "PatientSex", "PatientAge", "RescaleIntercept", "RescaleSlope", "XYSpacing", "ZSpacing")

MERLIN_FINDINGS = (
    "submucosal_edema", "renal_hypodensities", "aortic_valve_calcification", "coronary_calcification", "thrombosis",
    "metastatic_disease", "pancreatic_atrophy", "renal_cyst", "osteopenia", "surgically_absent_gallbladder", "atelectasis",
    "abdominal_aortic_aneurysm", "anasarca", "hiatal_hernia", "lymphadenopathy", "prostatomegaly", "biliary_ductal_dilation",
    "cardiomegaly", "splenomegaly", "hepatomegaly", "atherosclerosis", "ascites", "pleural_effusion", "hepatic_steatosis",
    "appendicitis", "gallstones", "hydronephrosis", "bowel_obstruction", "free_air", "fracture",
)  # fmt: skip
_MERLIN_OF = {
    "renal_cyst": "renal_cyst",
    "aortic_aneurysm": "abdominal_aortic_aneurysm",
    "pleural_effusion": "pleural_effusion",
    "fracture": "fracture",
}


def ct_rate_case(root: Path, case: Case) -> Row:
    """``dataset/train/train_1/train_1_a/train_1_a_1.nii.gz``: patient, scan, reconstruction; ``valid`` for the held out."""
    split = "train" if case.split == "train" else "valid"
    scan = f"{split}_{case.patient + 1}_{chr(ord('a') + case.scan)}"
    name = f"{scan}_1.nii.gz"
    write_image(case.phantom.ct, root / "dataset" / split / f"{split}_{case.patient + 1}" / scan / name, "SAL")
    spacing = case.phantom.ct.reorient("SAL").spacing
    positive = {_CT_RATE_OF[kind] for kind in case.kinds() if kind in _CT_RATE_OF}
    positive |= {"Medical material"} if case.facts.devices else set()
    return {
        "split": split,
        "report": [name, "Not given.", case.report.technique, _findings(case), " ".join(case.report.impression)],
        "labels": [name, *(int(label in positive) for label in CT_RATE_LABELS)],
        "metadata": [name, case.sex, f"{case.age:03d}Y", 0, 1, f"[{spacing[1]:g}, {spacing[2]:g}]", f"{spacing[0]:g}"],
    }


def ct_rate_tables(root: Path, rows: Sequence[Row]) -> None:
    """Reports, labels and metadata of each split."""
    home = root / "dataset"
    for split, long in (("train", "train"), ("valid", "validation")):
        mine = [row for row in rows if row["split"] == split]
        for path, columns, key in (
            (home / "radiology_text_reports" / f"{long}_reports.csv", REPORTS, "report"),
            (
                home / "multi_abnormality_labels" / f"{split}_predicted_labels.csv",
                ("VolumeName", *CT_RATE_LABELS),
                "labels",
            ),
            (home / "metadata" / f"{long}_metadata.csv", METADATA, "metadata"),
        ):
            write_table(path, [dict(zip(columns, row[key], strict=True)) for row in mine], columns)


def merlin_case(root: Path, case: Case) -> Row:
    """``merlinabdominalctdataset/merlin_data/ID.nii.gz``."""
    name = f"AC{case.patient:05x}{case.scan:x}"
    write_image(case.phantom.ct, root / "merlinabdominalctdataset" / "merlin_data" / f"{name}.nii.gz", "SAL")
    truth = {**dict.fromkeys(case.absent, 0), **dict.fromkeys(case.kinds(), 1)}
    labels = {_MERLIN_OF[kind]: value for kind, value in truth.items() if kind in _MERLIN_OF}
    if case.facts.steatosis is not None:
        labels["hepatic_steatosis"] = int(case.facts.steatosis)
    impression = " ".join(f"{n}. {text}" for n, text in enumerate(case.report.impression, 1))
    text = f"FINDINGS: {_findings(case)} IMPRESSION: {impression}"
    return {"id": name, "text": text, "split": case.split, "labels": [labels.get(f, -1) for f in MERLIN_FINDINGS]}


def merlin_tables(root: Path, rows: Sequence[Row]) -> None:
    """``reports_final.xlsx`` and ``zero_shot_findings_disease_cls.csv`` (1 stated, 0 denied, -1 not mentioned)."""
    home = root / "merlinabdominalctdataset"
    sheet = [["study id", "Findings", "Split", "Few Shot"], *([r["id"], r["text"], r["split"], ""] for r in rows)]
    write_xlsx(home / "reports_final.xlsx", sheet)
    columns = ("study id", *MERLIN_FINDINGS)
    lines = [dict(zip(columns, [row["id"], *row["labels"]], strict=True)) for row in rows]
    write_table(home / "zero_shot_findings_disease_cls.csv", lines, columns)


def _findings(case: Case) -> str:
    """The findings as running text with the regions' names."""
    return " ".join(f"{region}: {' '.join(texts)}" for region, texts in case.report.findings.items())


def write_xlsx(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Rows of texts as the one sheet of a workbook (ECMA-376, inline strings), the same bytes for the same rows."""
    cells = (
        f'<row r="{r}">'
        + "".join(
            f'<c r="{chr(65 + c)}{r}" t="inlineStr"><is><t xml:space="preserve">{escape(v)}</t></is></c>'
            for c, v in enumerate(row)
        )
        + "</row>"
        for r, row in enumerate(rows, 1)
    )
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kinds = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kinds}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{kinds}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="rId1" Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="rId1" Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{"".join(cells)}</sheetData></worksheet>',
    }
    with files.whole(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as book:
        for name, text in parts.items():
            head = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
            book.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), head + text, zipfile.ZIP_DEFLATED)


LAYOUTS = {
    "ct-rate": Layout(
        ct_rate_case,
        ct_rate_tables,
        "huggingface.co/datasets/ibrahimhamamci/CT-RATE as read by public adapters: train/train_P/train_P_S/train_P_S_R.nii.gz,"
        " radiology_text_reports/{train,validation}_reports.csv, multi_abnormality_labels/{train,valid}_predicted_labels.csv with"
        " 18 labels, metadata/*_metadata.csv (RescaleSlope, RescaleIntercept, XYSpacing as a list, ZSpacing: CT-CLIP's"
        " preprocessing). Its metadata has more columns; the geometry and HU of our NIfTI files are right, as in its later"
        " train_fixed, while those of its first release are not",
        "chest",
        lesions=True,
        repeats=True,
    ),
    "merlin": Layout(
        merlin_case,
        merlin_tables,
        "StanfordMIMI/Merlin, documentation/download.md (merlin_data, reports_final.xlsx, zero_shot_findings_disease_cls.csv with"
        " 1, 0, -1); column names of the sheet (study id, Findings, Split, Few Shot) from public users of it; the first column's"
        " name in the CSV could not be verified",
        "abdomen",
        lesions=True,
        repeats=True,
    ),
}
