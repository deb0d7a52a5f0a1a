"""KiTS: kidneys, tumours and cysts; the editions of 2019, 2021 and 2023.

Layout: neheller/kits23, listing of ``dataset/`` (``case_NNNNN/segmentation.nii.gz``, ``case_NNNNN/instances/``) and
``dataset/kits23.json`` (a list with ``case_id`` and clinical facts); the images, ``imaging.nii.gz``, are downloaded beside
them. KiTS19: neheller/kits19, ``data/kits.json``, and chi-sq/3DUNet, README.md (1 kidney, 2 tumour; cases without a
segmentation are the test set). KiTS21 names the majority vote ``aggregated_MAJ_seg.nii.gz``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctfoundry.archive.adapters.dataset import Adapter, Case, DataSetError, Parts
from ctfoundry.archive.adapters.tree import Tree

_CASE = r"case_\d{5}"
_MASKS = ("segmentation.nii.gz", "aggregated_MAJ_seg.nii.gz")
_NAMES = {1: "kidney", 2: "tumor", 3: "cyst"}


def _is_it(tree: Tree) -> bool:
    return any((folder / "imaging.nii.gz").is_file() for folder in tree.folders(pattern=_CASE)[:1000])


def _read(tree: Tree) -> Parts:
    folders = tree.folders(pattern=_CASE)
    new, old = tree.first("kits23.json"), tree.first("kits.json")
    told = _clinical(tree, new or old)
    with_cysts = new is not None or any((f / name).exists() for f in folders for name in ("instances", _MASKS[1]))
    if new is None and old is None:
        tree.note(
            "no kits23.json or kits.json here: which edition it is is not known; cysts (3) are labelled from 2021 on"
        )
        with_cysts = True
    names = {n: name for n, name in _NAMES.items() if with_cysts or n < 3}
    cases, lost = [], []
    for folder in folders:
        image = folder / "imaging.nii.gz"
        if not image.is_file():
            lost.append(tree.shown(image))
            continue
        mask = next((folder / name for name in _MASKS if (folder / name).is_file()), None)
        cases.append(
            Case(
                folder.name,
                folder.name,
                image,
                {"labels": mask} if mask else {},
                names if mask else {},
                "train" if mask else "test",
                targets=told.get(folder.name, {}),
            )
        )
    tree.note_missing("images", lost)
    return Parts(cases)


def _clinical(tree: Tree, path: Path | None) -> dict[str, dict[str, str | float]]:
    if path is None:
        return {}
    found = {}
    for entry in tree.json(path, list):
        if not isinstance(entry, dict) or not isinstance(entry.get("case_id"), str):
            raise DataSetError("lists an entry without a case_id", where=path, do="download it again")
        found[entry["case_id"]] = flat({k: v for k, v in entry.items() if k != "case_id"})
    return found


def flat(data: dict[str, Any], before: str = "") -> dict[str, str | float]:
    """Nested facts with joined names; true is 1, what is not known is left out.

    >>> flat({"bmi": 29.5, "comorbidities": {"copd": False}, "pack_years": None, "pathology_t_stage": "3"})
    {'bmi': 29.5, 'comorbidities__copd': 0.0, 'pathology_t_stage': '3'}
    """
    found: dict[str, str | float] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            if before.count("__") < 4:
                found |= flat(value, f"{before}{name}__")
        elif isinstance(value, bool | int | float):
            found[before + name] = float(value)
        elif isinstance(value, str) and value:
            found[before + name] = value
    return found


ADAPTERS = (
    Adapter(
        name="kits",
        title="KiTS23, KiTS21 and KiTS19 (kidney, tumour, cyst; clinical facts)",
        home="github.com/neheller/kits23",
        licence="CC BY-NC-SA (their README)",
        citation="Heller N et al., arXiv 2307.01984; Medical Image Analysis 2021, arXiv 1912.01054",
        looks_for="case_NNNNN/imaging.nii.gz",
        source="neheller/kits23, dataset/; neheller/kits19, data/kits.json; chi-sq/3DUNet, README.md",
        is_it=_is_it,
        read=_read,
    ),
)
