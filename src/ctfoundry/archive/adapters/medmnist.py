"""MedMNIST's 3D sets: cubes of 28 or 64 voxels in one NumPy archive each, read directly.

Layout: MedMNIST/MedMNIST, medmnist/info.py (names, labels, counts, how the cubes were made) and medmnist/dataset.py (arrays
``SPLIT_images`` and ``SPLIT_labels`` for train, val, test in ``FLAG.npz`` and ``FLAG_64.npz``). Sizes of voxels are given here only
where info.py states them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctfoundry.archive.adapters import cubes
from ctfoundry.archive.adapters.cubes import Array
from ctfoundry.archive.adapters.dataset import Adapter, Case, Cube, DataSetError, Parts, Split
from ctfoundry.archive.adapters.tree import Tree
from ctfoundry.volume import Volume

_FILE = re.compile(r"((?:organ|nodule|adrenal|fracture|vessel|synapse)mnist3d)(?:_(\d+))?\.npz")
_SPLITS: tuple[tuple[str, Split], ...] = (("train", "train"), ("val", "validation"), ("test", "test"))


@dataclass(frozen=True)
class _Set:
    labels: tuple[str, ...]
    counts: tuple[int, int, int]
    what: str
    spacing: float | None = None  # at 28 voxels
    edge: float | None = None  # millimetres of the cube, whatever its voxels
    modality: str = "CT"


_SETS = {
    "organmnist3d": _Set(
        ("liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart", "lung-right", "lung-left",
         "spleen", "pancreas"),
        (971, 161, 610),
        "the box around an organ, stretched to a cube; HU through an abdominal window that is not stated, as 0 to 255",
    ),
    "nodulemnist3d": _Set(
        ("benign", "malignant"), (1158, 165, 310), "a lung nodule at 1 mm; the window of the greys is not stated", spacing=1.0
    ),
    "adrenalmnist3d": _Set(
        ("normal", "hyperplasia"), (1188, 98, 298), "the mask of an adrenal gland, no image; a cube of 64 mm", edge=64.0
    ),
    "fracturemnist3d": _Set(
        ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
        (1027, 103, 240),
        "a rib fracture in a cube of 64 mm; the window of the greys is not stated",
        edge=64.0,
    ),
    "vesselmnist3d": _Set(("vessel", "aneurysm"), (1335, 191, 382), "a vessel as a solid from an MR angiography", modality="MR"),
    "synapsemnist3d": _Set(
        ("inhibitory synapse", "excitatory synapse"), (1230, 177, 352), "electron microscopy of a rat's brain", modality="EM"
    ),
}  # fmt: skip


def _files(tree: Tree) -> list[tuple[Path, str]]:
    """(file, flag) of each archive of 3D cubes."""
    found = []
    for path in tree.files(tree.root, ".npz"):
        match = _FILE.fullmatch(path.name)
        if match:
            found.append((path, match[1]))
    return found


def _read(tree: Tree) -> Parts:
    return Parts([case for path, flag in _files(tree) for case in _cases(tree, path, flag)])


def _cases(tree: Tree, path: Path, flag: str) -> list[Case]:
    cases = []
    about = _SETS[flag]
    found = cubes.arrays(path)
    counts = []
    for part, split in _SPLITS:
        images, labels = _pair(path, found, part)
        side = images.shape[1] if images.shape[0] else 28
        spacing = about.edge / side if about.edge else about.spacing if side == 28 else None
        counts.append(len(labels))
        for i, value in enumerate(labels[:, 0].tolist()):
            if not 0 <= value < len(about.labels):
                raise DataSetError(f"{part}_labels[{i}] is {value}, not below {len(about.labels)}", where=path)
            image = Cube(path, f"{part}_images", i, spacing, f"{flag}: {about.what}")
            id = f"{path.stem}/{part}-{i:05d}"
            told: dict[str, str | float] = {"label": float(value), "class": about.labels[value]}
            cases.append(Case(id, id, image, split=split, targets=told, modality=about.modality))
    if tuple(counts) != about.counts:
        tree.note(f"{path.name} has {counts} cubes, the published one {list(about.counts)}")
    tree.note(f"{path.name}: which cubes are of one patient is not published; patients are cubes here")
    return cases


def _pair(path: Path, found: dict[str, Array], part: str) -> tuple[Array, np.ndarray]:
    images, labels = found.get(f"{part}_images"), found.get(f"{part}_labels")
    if images is None or labels is None:
        raise DataSetError(f"has no {part}_images and {part}_labels", where=path, do="download it again")
    n, *edges = images.shape
    cubic = len(edges) == 3 and len(set(edges)) == 1 and 0 < edges[0] <= cubes.SIDE
    if not cubic or images.dtype != np.uint8 or n > cubes.COUNT:
        raise DataSetError(f"{part}_images is {images.shape} of {images.dtype}, not cubes of uint8", where=path)
    values = cubes.whole(path, labels)
    if values.shape != (n, 1) or values.dtype.kind not in "ui":
        raise DataSetError(f"{part}_labels is {values.shape} of {values.dtype}, not ({n}, 1) whole numbers", where=path)
    return images, values


def volumes(path: Path, split: Split) -> Iterator[tuple[Volume, int]]:
    """The cubes of one archive and split with their class, in one pass: (volume of kind "other", number of the class)."""
    match = _FILE.fullmatch(path.name)
    if match is None:
        raise DataSetError("is not named like a 3D set of MedMNIST", where=path, do="such as organmnist3d_64.npz")
    wanted = [case for case in _cases(Tree(path.parent), path, match[1]) if case.split == split]
    found = cubes.arrays(path)
    streams = {name: cubes.each(path, array) for name, array in found.items()}
    for case in wanted:
        assert isinstance(case.image, Cube)
        yield cubes.as_volume(next(streams[case.image.array]), case.image), int(case.targets["label"])


ADAPTERS = (
    Adapter(
        name="medmnist3d",
        title="MedMNIST 3D: Organ, Nodule, Adrenal, Fracture, Vessel, SynapseMNIST3D",
        home="medmnist.com; doi 10.5281/zenodo.10519652",
        licence="CC BY 4.0 (medmnist/info.py)",
        citation="Yang J et al., Scientific Data 2023, 10.1038/s41597-022-01721-8",
        looks_for="organmnist3d.npz, adrenalmnist3d_64.npz or another 3D set",
        source="MedMNIST/MedMNIST, medmnist/info.py and medmnist/dataset.py",
        is_it=lambda tree: bool(_files(tree)),
        read=_read,
        tested="adrenalmnist3d.npz and adrenalmnist3d_64.npz read whole; the others never",
    ),
)
