"""Folders without a published layout: NAME/ct.nii.gz, or images and labels under the same names.

Three forms: ``NAME/ct.nii.gz`` with ``labels.nii.gz``, ``labels.json`` and ``report.txt`` where there are such files (as
``ctfoundry phantom`` writes them); ``images/`` and ``labels/`` (or imagesTr, labelsTr ... as nnU-Net has them, with ``_0000`` for the
first channel) with the same names; ``labels.json`` at the top names the numbers of all maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ctfoundry.archive.adapters.dataset import Adapter, Case, Parts, Split
from ctfoundry.archive.adapters.tree import Tree, names_of, stem

_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_SPLITS: tuple[tuple[str, str, Split], ...] = (
    ("images", "labels", ""),
    ("imagesTr", "labelsTr", "train"),
    ("imagesVa", "labelsVa", "validation"),
    ("imagesVal", "labelsVal", "validation"),
    ("imagesTs", "labelsTs", "test"),
)
_REPORT_BYTES = 1 << 20


def _scans(tree: Tree) -> list[Path]:
    return [folder for folder in tree.folders() if (folder / "ct.nii.gz").is_file()]


def _is_it(tree: Tree) -> bool:
    return bool(_scans(tree)) or any(tree.files(tree.root / images, *_SUFFIXES) for images, _, _ in _SPLITS)


def _read(tree: Tree) -> Parts:
    common = _names(tree, tree.root)
    cases = list(_by_folder(tree, common)) + list(_by_name(tree, common))
    table = tree.first("patients.csv")
    who = {}
    if table is not None:
        who = {row["path"].strip().rstrip("/"): row["patient"].strip() for row in tree.rows(table, ("path", "patient"))}
    return Parts([_owned(case, who) for case in cases])


def _owned(case: Case, who: dict[str, str]) -> Case:
    from dataclasses import replace

    return replace(case, patient=who.get(case.id, case.patient)) if who else case


def _names(tree: Tree, folder: Path) -> dict[int, str]:
    for name in ("labels.json", "dataset.json"):
        path = folder / name
        if path.is_file():
            data = tree.json(path)
            return names_of(data.get("labels", {}) if name == "dataset.json" else data, path)
    return {}


def _by_folder(tree: Tree, common: dict[int, str]) -> Iterator[Case]:
    for folder in _scans(tree):
        mask, report = folder / "labels.nii.gz", folder / "report.txt"
        labels = {"labels": mask} if mask.is_file() else {}
        names = (_names(tree, folder) or common) if labels else {}
        text = tree.text(report, _REPORT_BYTES) if report.is_file() else None
        yield Case(folder.name, folder.name, folder / "ct.nii.gz", labels, names, report=text)


def _by_name(tree: Tree, common: dict[int, str]) -> Iterator[Case]:
    for images, labels, split in _SPLITS:
        masks = {stem(path): path for path in tree.files(tree.root / labels, *_SUFFIXES)}
        files = tree.files(tree.root / images, *_SUFFIXES)
        channels = bool(files) and all(stem(path)[-5:-4] == "_" and stem(path)[-4:].isdigit() for path in files)
        channels = channels and any(stem(path)[:-5] in masks for path in files)
        used = set()
        for path in files:
            id = stem(path)[:-5] if channels else stem(path)
            if channels and not stem(path).endswith("_0000"):
                continue
            used.add(id)
            mask = {"labels": masks[id]} if id in masks else {}
            yield Case(id, id, path, mask, common if mask else {}, split)
        tree.note_missing(f"images of masks in {labels} are", sorted(set(masks).difference(used)))


ADAPTERS = (
    Adapter(
        name="plain",
        title="Plain folders of images and label maps",
        home="yours",
        licence="yours",
        citation="",
        looks_for="NAME/ct.nii.gz, or images and labels (imagesTr and labelsTr ...) with files of the same names",
        source="docs/datasets.md",
        is_it=_is_it,
        read=_read,
        tested="phantoms of `ctfoundry phantom`",
    ),
)
