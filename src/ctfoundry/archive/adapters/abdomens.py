"""AMOS 2022 and WORD: one folder a split, images and label maps under the same names.

AMOS: the data set's readme.md (copied in onkarsus13/AllMedicalCombine, amos/amos22/readme.md): imagesTr, imagesVa, imagesTs and
labels; ids below 500 are CT, the others MR. Unlabelled parts (``amos_unlabeled_ct_5000_5399``, all CT) and the tables
``labeled_data_meta_0000_0599.csv`` as two public readers of them have it (amid, and a loader that names Zenodo 7262581).

WORD: openmedlab/Awesome-Medical-Dataset, resources/WORD.md: imagesTr, imagesVal, imagesTs and labels; its table gives the order
of the 16 structures. Whether a dataset.json comes with it could not be verified; where there is one, its names are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ctfoundry.archive.adapters.dataset import Adapter, Case, Parts, Split
from ctfoundry.archive.adapters.tree import NIFTI, Tree, names_of, stem, targets

_AMOS = (
    "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "aorta", "postcava", "pancreas",
    "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
)  # fmt: skip
_WORD = (
    "liver", "spleen", "left kidney", "right kidney", "stomach", "gallbladder", "esophagus", "pancreas", "duodenum", "colon",
    "intestine", "adrenal", "rectum", "bladder", "left head of femur", "right head of femur",
)  # fmt: skip
_FIRST_MR, _FIRST_UNLABELLED = 500, 5000
_META = "labeled_data_meta_0000_0599.csv"
_TR: Split = "train"


def _folders(tree: Tree, prefix: str, parts: Mapping[str, Split]) -> list[tuple[Path, Path | None, Split]]:
    """(image, mask or None, split) of all files PREFIX_NNNN."""
    found: list[tuple[Path, Path | None, Split]] = []
    for part, split in parts.items():
        masks = {stem(path): path for path in tree.files(tree.root / f"labels{part}", *NIFTI)}
        images = [path for path in tree.files(tree.root / f"images{part}", *NIFTI) if path.name.startswith(prefix)]
        found += [(image, masks.get(stem(image)), split) for image in images]
    return found


def _has(tree: Tree, prefix: str) -> bool:
    for part in ("Tr", "Va", "Val", "Ts"):
        for path in tree.files(tree.root / f"images{part}", *NIFTI)[:1]:
            if path.name.startswith(prefix):
                return True
    return False


def _names(tree: Tree, fallback: tuple[str, ...]) -> dict[int, str]:
    listed = tree.first("dataset.json")
    if listed is None:
        tree.note("no dataset.json here: names of labels as published elsewhere")
        return dict(enumerate(fallback, 1))
    return names_of(tree.json(listed).get("labels", {}), listed) or dict(enumerate(fallback, 1))


def _amos(tree: Tree) -> Parts:
    parts: dict[str, Split] = {"Tr": _TR, "Va": "validation", "Ts": "test"}
    found = _folders(tree, "amos_", parts)
    for folder in tree.folders(pattern=r"amos(22)?_unlabeled_ct_\d+_\d+"):
        for place in (folder, *tree.folders(folder, r"amos_unlabeled_ct_\d+_\d+")):
            found += [(path, None, "") for path in tree.files(place, *NIFTI) if path.name.startswith("amos_")]
    names = _names(tree, _AMOS)
    ids = {stem(image) for image, _, _ in found}
    rows = tree.keyed(
        tree.first(_META, beside=True),
        "amos_id",
        ids,
        _META,
        as_id=lambda n: f"amos_{int(n):04d}" if n.isdigit() else n,
    )
    told = targets(rows, leave=("amos_id",))
    cases = []
    for image, mask, split in found:
        id = stem(image)
        digits = id.removeprefix("amos_")
        mr = digits.isdigit() and _FIRST_MR <= int(digits) < _FIRST_UNLABELLED
        masks = {"labels": mask} if mask else {}
        cases.append(
            Case(
                id,
                id,
                image,
                masks,
                names if mask else {},
                split,
                targets=told.get(id, {}),
                modality="MR" if mr else "CT",
            )
        )
    return Parts(cases)


def _word(tree: Tree) -> Parts:
    parts: dict[str, Split] = {"Tr": _TR, "Val": "validation", "Ts": "test"}
    names = _names(tree, _WORD)
    return Parts(
        [
            Case(stem(image), stem(image), image, {"labels": mask} if mask else {}, names if mask else {}, split)
            for image, mask, split in _folders(tree, "word_", parts)
        ]
    )


ADAPTERS = (
    Adapter(
        name="amos",
        title="AMOS 2022 (15 abdominal organs; CT and MR)",
        home="doi 10.5281/zenodo.7262581",
        licence="read their page",
        citation="Ji Y et al., NeurIPS 2022 Datasets and Benchmarks, arXiv 2206.08023",
        looks_for="imagesTr, imagesVa or imagesTs with amos_NNNN.nii.gz",
        source="the data set's readme.md, as in onkarsus13/AllMedicalCombine, amos/amos22/readme.md",
        is_it=lambda tree: _has(tree, "amos_") or bool(tree.folders(pattern=r"amos(22)?_unlabeled_ct_\d+_\d+")),
        read=_amos,
    ),
    Adapter(
        name="word",
        title="WORD (16 organs of the whole abdomen)",
        home="github.com/HiLab-git/WORD",
        licence="research only, no commercial use (their README)",
        citation="Luo X et al., Medical Image Analysis 2022, arXiv 2111.02403",
        looks_for="imagesTr, imagesVal or imagesTs with word_NNNN.nii.gz",
        source="openmedlab/Awesome-Medical-Dataset, resources/WORD.md",
        is_it=lambda tree: _has(tree, "word_"),
        read=_word,
    ),
)
