"""Small labelled scans: a body of soft tissue with a bright and a fat organ, and one that only its place tells."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np

from ctfoundry.adapt.cases import Classes, LabelledScan, scan_of
from ctfoundry.geometry import make_affine
from ctfoundry.keys import Key
from ctfoundry.volume import Volume

NAMES = {1: "bone", 2: "fat", 3: "left_side"}
CLASSES = Classes.of(NAMES.values())


def body(number: int, shape: tuple[int, int, int] = (16, 36, 40)) -> tuple[Volume, Volume]:
    """CT and labels at 6x2x2 mm; what is bright is bone, what is dark is fat; left_side has the body's own HU."""
    key = Key.of("body", number)
    hu = np.full(shape, -1000.0)
    labels = np.zeros(shape, dtype=np.uint8)
    hu[:, 4:-4, 4:-4] = 40
    shift = key.integers(-2, 3, (2,))
    for value, level, (h, w) in ((1, 600.0, (10, 10)), (2, -100.0, (10, 24)), (3, 40.0, (22, 26))):
        h, w = h + int(shift[0]), w + int(shift[1])
        part = (slice(3, 13), slice(h, h + 7), slice(w, w + 7))
        hu[part], labels[part] = level, value
    hu += 10 * key("noise").normal(shape)
    affine = make_affine((6.0, 2.0, 2.0), "SPL", (30.0, -20.0, 10.0 * number))
    return (
        Volume(hu.round().astype(np.int16), affine, "hu", source=f"body{number}"),
        Volume(labels, affine, "label", names=NAMES),
    )


def scans(count: int, first: int = 0) -> list[LabelledScan]:
    return [scan_of(f"body{i}", *body(i)) for i in range(first, first + count)]


def save(volume: Volume, path: Path) -> None:
    """A NIfTI file by nibabel alone: i, j, k are our axes in reverse."""
    affine = np.array(volume.affine)[:, [2, 1, 0, 3]]
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(volume.voxels.T), affine), path)


def write_plain(root: Path, count: int) -> Path:
    for i in range(count):
        ct, labels = body(i)
        save(ct, root / f"body{i}" / "ct.nii.gz")
        save(labels, root / f"body{i}" / "labels.nii.gz")
        (root / f"body{i}" / "labels.json").write_text(json.dumps({str(k): v for k, v in NAMES.items()}))
    return root
