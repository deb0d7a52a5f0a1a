"""Learn2Reg's abdominal registration tasks: CT with CT (between patients) and MR with CT (of one patient).

Layout: imagesTr, labelsTr, masksTr (Ts for tests) with ``TASK_NNNN_MMMM.nii.gz`` (case, modality), and a JSON file with
``training``, ``registration_val`` (fixed, moving), ``training_paired_images``, ``registration_direction``, ``modality``: as listed
for the sister task ThoraxCBCT (its ThoraxCBCT_dataset.json, quoted whole in a public repository) and begun for AbdomenMRCT (fixed 0,
moving 1, pairings hybrid). That 0000 is MR and 0001 CT in AbdomenMRCT: four public readers; one says the opposite, so the JSON
file's word goes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctfoundry.archive.adapters.dataset import Adapter, Case, DataSetError, Pair, Parts, Split
from ctfoundry.archive.adapters.decathlon import modality_of
from ctfoundry.archive.adapters.tree import NIFTI, Tree, names_of, stem

_FILE = re.compile(r"(AbdomenCTCT|AbdomenMRCT)_(\d{4})_(\d{4})\.nii(\.gz)?")
_DEFAULT = {"AbdomenCTCT": ("CT",), "AbdomenMRCT": ("MR", "CT")}
_PAIRS: tuple[tuple[str, Split], ...] = (
    ("training_paired_images", "train"),
    ("registration_val", "validation"),
    ("registration_test", "test"),
    ("test_paired_images", "test"),
)


def _is_it(tree: Tree, task: str) -> bool:
    for part in ("Tr", "Ts"):
        for path in tree.files(tree.root / f"images{part}", *NIFTI)[:1]:
            if path.name.startswith(f"{task}_"):
                return True
    return False


def _read(tree: Tree, task: str) -> Parts:
    where = tree.first(f"{task}_dataset.json", "dataset.json")
    data: dict[str, Any] = tree.json(where) if where else {}
    if where is None:
        tree.note(f"no {task}_dataset.json here: labels have no names, and pairs are not known")
    pairs = list(_pairs(data, where)) if where else []
    listed = {stem(i) for i in _training(data)}
    held_out = {i for p in pairs if p.split == "validation" for i in (p.first, p.second)} - listed
    shown = {pair.split for pair in pairs}
    names = _names(data, where)
    cases = []
    for part in ("Tr", "Ts"):
        labels = {p.name: p for p in tree.files(tree.root / f"labels{part}", *NIFTI)}
        for image in tree.files(tree.root / f"images{part}", *NIFTI):
            match = _FILE.fullmatch(image.name)
            if match is None or match[1] != task:
                continue
            id, kind = stem(image), int(match[3])
            split: Split = "test" if part == "Ts" else "validation" if id in held_out else "train"
            mask = labels.get(image.name)
            cases.append(
                Case(
                    id,
                    f"{task}_{match[2]}",
                    image,
                    {"labels": mask} if mask else {},
                    names.get(kind, names.get(-1, {})) if mask else {},
                    split,
                    modality=_modality(data, task, kind),
                )
            )
    known = {case.id for case in cases}
    lost = sorted({i for pair in pairs for i in (pair.first, pair.second)} - known)
    tree.note_missing("scans of listed pairs are", lost)
    if where and "validation" not in shown:
        tree.note("no pairs for validation are listed")
    return Parts(cases, [pair for pair in pairs if pair.first in known and pair.second in known])


def _training(data: dict[str, Any]) -> Iterator[str]:
    for item in _items(data.get("training", [])):
        if isinstance(item, dict) and isinstance(item.get("image"), str):
            yield item["image"]


def _items(value: Any) -> list[Any]:
    """A list, or lists by modality put together."""
    if isinstance(value, dict):
        return [item for part in value.values() if isinstance(part, list) for item in part]
    return value if isinstance(value, list) else []


def _pairs(data: dict[str, Any], where: Path) -> Iterator[Pair]:
    for key, split in _PAIRS:
        for item in _items(data.get(key, [])):
            if not isinstance(item, dict) or not all(isinstance(item.get(k), str) for k in ("fixed", "moving")):
                raise DataSetError(f"{key!r} lists a pair without fixed and moving", where=where)
            yield Pair(stem(item["fixed"]), stem(item["moving"]), "registration", split)


def _names(data: dict[str, Any], where: Path | None) -> dict[int, dict[int, str]]:
    """Names of labels by modality (-1: of all)."""
    labels = data.get("labels")
    if where is None or not isinstance(labels, dict) or not labels:
        return {}
    if all(isinstance(v, dict) for v in labels.values()):
        return {int(k): names_of(v, where) for k, v in labels.items() if str(k).isdigit()}
    return {-1: names_of(labels, where)}


def _modality(data: dict[str, Any], task: str, kind: int) -> str:
    value = data.get("modality")
    if isinstance(value, dict) and str(kind) in value:
        return modality_of({"0": value[str(kind)]})
    known = _DEFAULT[task]
    return known[min(kind, len(known) - 1)]


def _adapter(task: str, name: str, what: str) -> Adapter:
    return Adapter(
        name=name,
        title=f"Learn2Reg {task} ({what})",
        home="learn2reg.grand-challenge.org",
        licence="read their page (the parts come from BTCV, CHAOS and TCIA with licences of their own)",
        citation="Hering A et al., IEEE Transactions on Medical Imaging 2023, arXiv 2112.04489",
        looks_for=f"imagesTr with {task}_NNNN_NNNN.nii.gz",
        source="dataset.json of the sister task ThoraxCBCT and names of files in public readers",
        is_it=lambda tree: _is_it(tree, task),
        read=lambda tree: _read(tree, task),
    )


ADAPTERS = (
    _adapter("AbdomenCTCT", "learn2reg-abdomen-ct-ct", "CT of different patients"),
    _adapter("AbdomenMRCT", "learn2reg-abdomen-mr-ct", "MR and CT of one patient"),
)
