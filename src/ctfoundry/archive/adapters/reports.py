"""Scans with radiologists' reports: CT-RATE (chest) and Merlin (abdomen).

CT-RATE: huggingface.co/datasets/ibrahimhamamci/CT-RATE as public readers have it: ``dataset/train/train_1/train_1_a/train_1_a_1.nii.gz``
(patient, scan, reconstruction; ``valid`` for the held out; ``train_fixed`` and ``valid_fixed`` with corrected headers),
``radiology_text_reports/{train,validation}_reports.csv``, ``multi_abnormality_labels/{train,valid}_predicted_labels.csv`` (column
VolumeName, 18 findings), ``metadata/{train,validation}_metadata.csv``.

Merlin: StanfordMIMI/Merlin, documentation/download.md: ``merlin_data/ID.nii.gz``, ``reports_final.xlsx`` (study id, Findings, Split),
``zero_shot_findings_disease_cls.csv`` (1 stated, 0 denied, -1 not mentioned). The name of that table's first column could not be
verified, so whatever stands first is taken for the id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ctfoundry.archive.adapters import sheet
from ctfoundry.archive.adapters.dataset import Adapter, Case, DataSetError, Parts, Split
from ctfoundry.archive.adapters.tree import Row, Tree, stem, targets

_VOLUME = re.compile(r"((?:train|valid)_\d+)_[a-z]+_\d+")
_FOLDERS = ("train_fixed", "train", "valid_fixed", "valid")
_FACTS = ("PatientSex", "PatientAge", "Manufacturer", "SeriesDescription")
_MERLIN: dict[str, Split] = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def _home(tree: Tree) -> Path:
    return tree.root / "dataset" if (tree.root / "dataset").is_dir() else tree.root


def _is_ct_rate(tree: Tree) -> bool:
    home = _home(tree)
    return any(tree.folders(home / f, r"(train|valid)_\d+") for f in _FOLDERS) and (
        (home / "radiology_text_reports").is_dir() or (home / "multi_abnormality_labels").is_dir()
    )


def _volumes(tree: Tree, home: Path) -> Iterator[Path]:
    for part in ("train", "valid"):
        fixed = home / f"{part}_fixed"
        place = fixed if fixed.is_dir() else home / part
        if place == home / part and place.is_dir():
            tree.note(f"{part}: the first release, in which some headers are wrong; the corrected one is {part}_fixed")
        for patient in tree.folders(place):
            for scan in tree.folders(patient):
                yield from tree.files(scan, ".nii.gz")


def _ct_rate(tree: Tree) -> Parts:
    home = _home(tree)
    files = {stem(path): path for path in _volumes(tree, home)}
    words: dict[str, Row] = {}
    labels: dict[str, Row] = {}
    facts: dict[str, Row] = {}
    for part, long in (("train", "train"), ("valid", "validation")):
        ids = [id for id in files if id.startswith(f"{part}_")]
        for found, name in (
            (words, f"radiology_text_reports/{long}_reports.csv"),
            (labels, f"multi_abnormality_labels/{part}_predicted_labels.csv"),
            (facts, f"metadata/{long}_metadata.csv"),
        ):
            table = home / name
            if ids:
                found |= tree.keyed(table if table.is_file() else None, "VolumeName", ids, name, as_id=stem)
    told = targets(labels, leave=("VolumeName",))
    more = targets({id: {k: row[k] for k in _FACTS if k in row} for id, row in facts.items()})
    cases = []
    for id, path in files.items():
        match = _VOLUME.fullmatch(id)
        if match is None:
            tree.note(f"{tree.shown(path)} is not named like a volume of CT-RATE and was left out")
            continue
        split: Split = "train" if id.startswith("train_") else "validation"
        report = _text(words.get(id, {}), "Findings_EN", "Impressions_EN")
        cases.append(Case(id, match[1], path, split=split, report=report, targets=told.get(id, {}) | more.get(id, {})))
    return Parts(cases)


def _text(row: Row, *columns: str) -> str | None:
    """Findings and impression of a report, each with its heading."""
    parts = [f"{c.split('_')[0]}: {row[c].strip()}" for c in columns if row.get(c, "").strip()]
    return "\n".join(parts) or None


def _merlin_home(tree: Tree) -> Path | None:
    for folder in (tree.root, *tree.folders(pattern="merlin.*")):
        if (folder / "merlin_data").is_dir():
            return folder
    return None


def _merlin(tree: Tree) -> Parts:
    home = _merlin_home(tree) or tree.root
    files = {stem(path): path for path in tree.files(home / "merlin_data", ".nii.gz")}
    words = _sheet(tree, home / "reports_final.xlsx", files)
    table = home / "zero_shot_findings_disease_cls.csv"
    rows: dict[str, Row] = {}
    key = ""
    if table.is_file():
        for row in tree.rows(table):
            key = next(iter(row))
            if row[key].strip() in files:
                rows.setdefault(row[key].strip(), row)
    else:
        tree.note(f"no {table.name} here")
    told = targets(rows, leave=(key,))
    cases = []
    for id, path in files.items():
        row = words.get(id, {})
        report = row.get("findings", "").strip() or None
        split = _MERLIN.get(row.get("split", "").strip().lower(), "")
        cases.append(Case(id, id, path, split=split, report=report, targets=told.get(id, {})))
    if cases:
        tree.note("which scans are of one patient is not published; patients are scans here")
    return Parts(cases)


def _sheet(tree: Tree, path: Path, files: dict[str, Path]) -> dict[str, Row]:
    """Rows of the workbook by study id, columns in lower case."""
    if not path.is_file():
        tree.note(f"no {path.name} here: neither reports nor splits")
        return {}
    found: dict[str, Row] = {}
    columns: list[str] = []
    for cells in sheet.rows(path):
        if not columns:
            columns = [cell.strip().lower() for cell in cells]
            lost = [name for name in ("study id", "findings", "split") if name not in columns]
            if lost:
                raise DataSetError(f"has no column {', '.join(lost)}", where=path, do="download it again")
            continue
        row = dict(zip(columns, [*cells, *[""] * (len(columns) - len(cells))], strict=False))
        if row["study id"].strip() in files:
            found.setdefault(row["study id"].strip(), row)
    lost_ids = sorted(set(files).difference(found))
    if lost_ids:
        tree.note(f"{len(lost_ids)} of {len(files)} scans have no row in {path.name}, such as {lost_ids[0]}")
    return found


ADAPTERS = (
    Adapter(
        name="ct-rate",
        title="CT-RATE (chest CT with reports, 18 findings)",
        home="huggingface.co/datasets/ibrahimhamamci/CT-RATE",
        licence="CC BY-NC-SA 4.0",
        citation="Hamamci IE et al., arXiv 2403.17834",
        looks_for="train/train_1/... or valid/valid_1/... beside radiology_text_reports or multi_abnormality_labels",
        source="public readers of the repository's dataset folder; columns as in CT-CLIP",
        is_it=_is_ct_rate,
        read=_ct_rate,
    ),
    Adapter(
        name="merlin",
        title="Merlin abdominal CT (reports, 30 findings)",
        home="github.com/StanfordMIMI/Merlin (Stanford AIMI)",
        licence="read their page (data use agreement)",
        citation="Blankemeier L et al., arXiv 2406.06512",
        looks_for="merlin_data with ID.nii.gz",
        source="StanfordMIMI/Merlin, documentation/download.md",
        is_it=lambda tree: _merlin_home(tree) is not None,
        read=_merlin,
    ),
)
