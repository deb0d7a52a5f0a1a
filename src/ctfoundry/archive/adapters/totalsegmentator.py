"""TotalSegmentator's CT data set, versions 1 and 2: one folder a scan, one mask file a structure.

Layout: wasserth/TotalSegmentator, resources/convert_dataset_to_nnunet.py (``meta.csv`` separated by semicolons with
``image_id`` and ``split`` train, val, test; ``SUBJECT/ct.nii.gz``; ``SUBJECT/segmentations/CLASS.nii.gz``). The columns of
``meta.csv``: six in version 1, eleven in version 2, as public notes list them from the archives' directories.
"""

from __future__ import annotations

from functools import partial

from ctfoundry.archive.adapters.dataset import Adapter, Case, Parts, Split
from ctfoundry.archive.adapters.tree import Tree, targets

_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
_V2 = "manufacturer"
"""A column that version 1 does not have."""
_SUBJECT = r"s\d{4}"


def _is_it(tree: Tree, version: int) -> bool:
    meta = tree.first("meta.csv")
    if meta is None:
        return False
    with open(meta, "rb") as file:
        head = file.readline(4096).decode("utf-8", "replace")
    return "image_id" in head and ";" in head and ((_V2 in head) == (version == 2))


def _read(tree: Tree, version: int) -> Parts:
    subjects = {folder.name: folder for folder in tree.folders(pattern=_SUBJECT)}
    rows = tree.keyed(tree.root / "meta.csv", "image_id", subjects, "meta.csv", sep=";")
    told = targets(rows, leave=("image_id", "split"))
    cases, lost = [], []
    for name, folder in subjects.items():
        image = folder / "ct.nii.gz"
        if not image.is_file():
            lost.append(tree.shown(image))
            continue
        masks = {path.name[:-7]: path for path in tree.files(folder / "segmentations", ".nii.gz")}
        if not masks:
            tree.note(f"{name} has no masks")
        split = _SPLITS.get(rows.get(name, {}).get("split", "").strip(), "")
        cases.append(Case(name, name, image, masks, split=split, targets=told.get(name, {})))
    tree.note_missing("images", lost)
    counts = {len(case.labels) for case in cases}
    if len(counts) > 1:
        tree.note(f"scans have between {min(counts)} and {max(counts)} masks")
    return Parts(cases)


def _adapter(version: int, name: str, home: str, classes: int) -> Adapter:
    return Adapter(
        name=name,
        title=f"TotalSegmentator CT, version {version} ({classes} structures)",
        home=home,
        licence="CC BY 4.0 (Zenodo)",
        citation="Wasserthal J et al., Radiology: Artificial Intelligence 2023, 10.1148/ryai.230024",
        looks_for=f"meta.csv separated by semicolons with image_id{' and manufacturer' if version == 2 else ''}, s0001/ct.nii.gz",
        source="wasserth/TotalSegmentator, resources/convert_dataset_to_nnunet.py",
        is_it=partial(_is_it, version=version),
        read=partial(_read, version=version),
    )


ADAPTERS = (
    _adapter(2, "totalsegmentator", "doi 10.5281/zenodo.10047292", 117),
    _adapter(1, "totalsegmentator-v1", "doi 10.5281/zenodo.6802614", 104),
)
