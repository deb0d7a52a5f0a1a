"""The Medical Segmentation Decathlon: ten tasks, each a folder with a list of its files.

Layout: ``TaskNN_NAME/dataset.json`` with ``training`` (image and label), ``test`` (images), ``labels`` and ``modality``, as
quoted for Task09 by sarah-antillia/ImageMask-Dataset-Spleen, README.md, and read by MONAI's ``load_decathlon_datalist``. Names
of files as in abachaa/3D-MIR, Data/Data_Splits: ``liver_0``, ``lung_001``, ``pancreas_001``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctfoundry.archive.adapters.dataset import Adapter, Case, DataSetError, Parts, Split
from ctfoundry.archive.adapters.tree import Tree, names_of, stem

TASK = r"Task\d\d_\w+"


def tasks(tree: Tree) -> list[Path]:
    """The tasks' folders: the folder itself, or those in it."""
    if _is_task(tree.root):
        return [tree.root]
    return [folder for folder in tree.folders(pattern=TASK) if _is_task(folder)]


def _is_task(folder: Path) -> bool:
    if not (folder / "dataset.json").is_file() or not (folder / "imagesTr").is_dir():
        return False
    with open(folder / "dataset.json", "rb") as file:
        head = file.read(1 << 20)
    return b'"training"' in head and (folder.name.startswith("Task") or b"medicaldecathlon" in head.lower())


def _read(tree: Tree) -> Parts:
    found = tasks(tree)
    cases = []
    for folder in found:
        before = "" if len(found) == 1 else f"{folder.name}/"
        cases += list(task_cases(tree, folder, before))
    return Parts(cases)


def task_cases(tree: Tree, folder: Path, before: str = "") -> Iterator[Case]:
    """The scans that a task's list names and that are there; `before` is put in front of their ids."""
    where = folder / "dataset.json"
    data = tree.json(where)
    names = names_of(data.get("labels", {}), where)
    modality = modality_of(data.get("modality", {}))
    lost: list[str] = []
    for image, label, split in _listed(data, where):
        place = tree.path(image, where)
        if not place.is_file():
            lost.append(image)
            continue
        masks = {}
        if label:
            mask = tree.path(label, where)
            if mask.is_file():
                masks = {"labels": mask}
            else:
                lost.append(label)
        id = stem(place)
        yield Case(before + id, id, place, masks, names if masks else {}, split, modality=modality)
    tree.note_missing(f"files of {where.parent.name}/dataset.json are", lost)


def _listed(data: dict[str, Any], where: Path) -> Iterator[tuple[str, str, Split]]:
    parts: tuple[tuple[str, Split], ...] = (("training", "train"), ("validation", "validation"), ("test", "test"))
    for key, split in parts:
        items = data.get(key, [])
        if not isinstance(items, list):
            raise DataSetError(f"{key!r} is no list", where=where, do="download it again")
        for item in items:
            if isinstance(item, str):
                yield item, "", split
            elif isinstance(item, dict) and isinstance(item.get("image"), str):
                yield item["image"], str(item.get("label") or ""), split
            else:
                raise DataSetError(f"{key!r} lists {str(item)[:80]!r}, which names no image", where=where)


def modality_of(value: Any) -> str:
    """ "MR" unless the (first) modality is CT.

    >>> modality_of({"0": "CT"}), modality_of({"0": "FLAIR", "1": "T1w"})
    ('CT', 'MR')
    """
    words = list(value.values()) if isinstance(value, dict) else []
    return "CT" if not words or "CT" in str(words[0]).upper().split() else "MR"


ADAPTERS = (
    Adapter(
        name="msd",
        title="Medical Segmentation Decathlon (CT: liver, lung, pancreas, hepatic vessels, spleen, colon)",
        home="medicaldecathlon.com",
        licence="CC BY-SA 4.0",
        citation="Antonelli M et al., Nature Communications 2022, 10.1038/s41467-022-30695-9",
        looks_for="dataset.json with training and test in a folder TaskNN_NAME with imagesTr, or a folder of such folders",
        source="sarah-antillia/ImageMask-Dataset-Spleen, README.md; abachaa/3D-MIR, Data/Data_Splits",
        is_it=lambda tree: bool(tasks(tree)),
        read=_read,
    ),
)
