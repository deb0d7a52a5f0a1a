"""Head CT: CQ500 and SinoCT.

CQ500: a public copy's listing of series (Hung-nd233960/MachineLearningET4248E, EDA_public/data.md), folders such as
``CQ500CT0 CQ500CT0/Unknown Study/CT PLAIN THIN``, and the header of ``reads.csv`` as quoted in public code (14 readings by each of three readers).

SinoCT: layout NOT verified: it is given out on request and no description of its files was found. One folder a scan, and labels of two
numbers of which the second is 1 for an abnormal scan, is what CT-FM's public evaluation implies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ctfoundry.archive.adapters.dataset import Adapter, Case, DataSetError, Parts
from ctfoundry.archive.adapters.tree import Tree, targets

_PATIENT = re.compile(r"CQ500-?CT-?(\d+)\b.*", re.IGNORECASE)


def _patients(tree: Tree) -> Iterator[tuple[int, Path]]:
    """(number, folder) of each patient, in the folder or one below, as the parts of the archive unpack."""
    for folder in tree.folders():
        match = _PATIENT.fullmatch(folder.name)
        for place in [folder] if match else tree.folders(folder):
            found = _PATIENT.fullmatch(place.name)
            if found:
                yield int(found[1]), place


def _cq500(tree: Tree) -> Parts:
    found = sorted(_patients(tree))
    who = {f"CQ500-CT-{n}" for n, _ in found}
    rows = tree.keyed(tree.first("reads.csv", beside=True), "name", who, "reads.csv")
    told = targets(rows, leave=("name",))
    cases, lost = [], []
    for n, folder in found:
        name = f"CQ500-CT-{n}"
        series = [place for study in tree.folders(folder) for place in tree.folders(study) if tree.files(place)]
        if not series:
            lost.append(tree.shown(folder))
        cases += [
            Case(f"{name}/{place.name}", name, place, targets={**told.get(name, {}), "series": place.name})
            for place in series
        ]
    tree.note_missing("series are", lost)
    return Parts(cases)


def _is_sinoct(tree: Tree) -> bool:
    """A table whose labels are two numbers, and folders of the same names as its rows."""
    table = tree.first("labels.csv")
    if table is None:
        return False
    try:
        for row in tree.rows(table):
            cells = list(row.values())
            if not (len(cells) == 2 and re.fullmatch(r"\s*\d+\s*,\s*[01]\s*", cells[1])):
                return False
            if (tree.root / Path(cells[0].strip() or "?").name).is_dir():
                return True
    except DataSetError:
        return False
    return False


def _sinoct(tree: Tree) -> Parts:
    table = tree.root / "labels.csv"
    folders = {folder.name: folder for folder in tree.folders() if tree.files(folder)}
    rows = {}
    for row in tree.rows(table):
        id, *rest = [cell.strip() for cell in row.values()]
        if id in folders:
            pair = ",".join(rest).split(",")
            if len(pair) != 2 or pair[1].strip() not in ("0", "1"):
                raise DataSetError(f"the label of {id} is {','.join(rest)[:40]!r}, not two numbers", where=table)
            rows[id] = {"abnormal": pair[1].strip(), "label": ",".join(rest)}
    lost = sorted(set(folders).difference(rows))
    if lost:
        tree.note(f"{len(lost)} of {len(folders)} scans have no row in labels.csv, such as {lost[0]}")
    told = targets(rows)
    return Parts([Case(name, name, folder, targets=told.get(name, {})) for name, folder in folders.items()])


ADAPTERS = (
    Adapter(
        name="cq500",
        title="CQ500 (head CT, 14 findings by three radiologists)",
        home="headctstudy.qure.ai/dataset",
        licence="CC BY-NC-SA 4.0, and an end user licence",
        citation="Chilamkurthy S et al., The Lancet 2018, 10.1016/S0140-6736(18)31645-3",
        looks_for="folders such as 'CQ500CT0 CQ500CT0'",
        source="Hung-nd233960/MachineLearningET4248E, EDA_public/data.md; header of reads.csv in public code",
        is_it=lambda tree: next(_patients(tree), None) is not None,
        read=_cq500,
    ),
    Adapter(
        name="sinoct",
        title="SinoCT (head CT, normal or abnormal)",
        home="Stanford AIMI, on request",
        licence="read their page",
        citation="see the page of the data set",
        looks_for="labels.csv with labels of two numbers, and a folder of DICOM files for each row",
        source="layout not verified: implied by CT-FM's evaluation (jaruanob/CT-FM, evaluation/sinoct.yaml)",
        is_it=_is_sinoct,
        read=_sinoct,
    ),
)
