"""MedMNIST's OrganMNIST3D: one small cube an organ, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctfoundry import files
from ctfoundry.layouts.cases import Case
from ctfoundry.layouts.layout import Layout, Row
from ctfoundry.phantom.names import GROUPS

CLASSES = (
    ("liver",), ("kidney_right",), ("kidney_left",), ("femur_right",), ("femur_left",), ("urinary_bladder",), GROUPS["heart"],
    ("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"),
    ("lung_upper_lobe_left", "lung_lower_lobe_left"), ("spleen",), ("pancreas",),
)  # fmt: skip
"""Structures of classes 0 to 10: liver, kidneys, femora, bladder, heart, lungs, spleen, pancreas."""
SIDE = 28
WINDOW_HU = (-160.0, 240.0)
"""Of the grey values 0 to 255: an abdominal window."""
LEAST_MM = 15.0
"""Organs of which less is in the scan, along any axis, are left out."""
_PARTS = ".ctfoundry/organmnist3d"


def case(root: Path, case: Case) -> Row:
    """The cubes of one scan, kept aside until the one file is written."""
    cubes, labels = organ_cubes(case)
    path = root / _PARTS / f"{case.name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as part:
        np.savez(part, images=cubes, labels=labels)
    return {"part": path.name, "split": case.split}


def tables(root: Path, rows: Sequence[Row]) -> None:
    """``organmnist3d.npz``: SPLIT_images (n, 28, 28, 28) and SPLIT_labels (n, 1), uint8, for train, val and test."""
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "val", "test"):
        loaded = [np.load(root / _PARTS / row["part"]) for row in rows if row["split"] == split]
        empty = np.zeros((0, SIDE, SIDE, SIDE), np.uint8), np.zeros((0, 1), np.uint8)
        arrays[f"{split}_images"] = np.concatenate([empty[0], *(part["images"] for part in loaded)])
        arrays[f"{split}_labels"] = np.concatenate([empty[1], *(part["labels"] for part in loaded)])
        for part in loaded:
            part.close()
    with files.whole(root / "organmnist3d.npz") as part:
        np.savez_compressed(part, allow_pickle=False, **arrays)


def organ_cubes(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """(n, 28, 28, 28) grey values of each organ's bounding box, in SPL order, and (n, 1) classes."""
    from scipy import ndimage

    ct, labels = case.phantom.ct.reorient("SPL"), case.phantom.labels.reorient("SPL")
    number = {name: i for i, name in (labels.names or {}).items()}
    cubes, classes = [], []
    boxes = ndimage.find_objects(labels.voxels)
    for label, parts in enumerate(CLASSES):
        found = [
            boxes[number[p] - 1] for p in parts if p in number and number[p] <= len(boxes) and boxes[number[p] - 1]
        ]
        if not found:
            continue
        box = tuple(slice(min(b[a].start for b in found), max(b[a].stop for b in found)) for a in range(3))
        if min((s.stop - s.start) * mm for s, mm in zip(box, ct.spacing, strict=True)) < LEAST_MM:
            continue
        part = ct.voxels[box].astype(np.float32)
        low, high = WINDOW_HU
        grey = np.clip((part - low) / (high - low), 0, 1) * 255
        place = np.meshgrid(*[(np.arange(SIDE) + 0.5) * n / SIDE - 0.5 for n in part.shape], indexing="ij")
        cubes.append(np.rint(ndimage.map_coordinates(grey, place, order=1, mode="nearest")).astype(np.uint8))
        classes.append([label])
    shape = (len(cubes), SIDE, SIDE, SIDE)
    return np.array(cubes, np.uint8).reshape(shape), np.array(classes, np.uint8).reshape(len(classes), 1)


LAYOUTS = {
    "medmnist": Layout(
        case,
        tables,
        "MedMNIST v2, medmnist/info.py (organmnist3d: 11 classes and their numbers, 28 x 28 x 28 from 3D bounding boxes) and the"
        " arrays {train,val,test}_{images,labels} that its loader reads; the window of the grey values could not be verified",
        "torso",
    )
}
