"""Small heads: a skull, a brain, and in some of them blood."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapt.bodies import save
from ctfoundry.adapt.tables import TargetScan
from ctfoundry.geometry import make_affine
from ctfoundry.keys import Key
from ctfoundry.volume import Volume


def head(number: int, bleeds: bool, shift: float = 0.0) -> Volume:
    """22x40x40 voxels of 7x4x4 mm."""
    key = Key.of("head", number)
    hu = np.full((22, 40, 40), -1000.0)
    hu[2:-2, 6:-6, 6:-6] = 900
    hu[4:-4, 9:-9, 9:-9] = 32
    if bleeds:
        d, h, w = key("place").integers(0, 4, (3,)).tolist()
        hu[6 + d : 13 + d, 12 + h : 21 + h, 12 + w : 21 + w] = 68
    hu += 6 * key("noise").normal(hu.shape) + shift
    return Volume(hu.round().astype(np.int16), make_affine((7.0, 4.0, 4.0), "SPL"), "hu", source=f"head{number}")


def target_scan(number: int, target: tuple[int, ...], split: str = "") -> TargetScan:
    return TargetScan(
        f"scan{number}",
        f"patient{number}",
        lambda: head(number, bool(target[0])),
        {},
        {},
        lambda: f"content{number}",
        split,  # type: ignore[arg-type]
        target,
    )


def write_heads(root: Path, count: int) -> Path:
    """``head000.nii.gz`` ..., every second one with blood, and ``labels.csv``."""
    rows = ["scan,patient,bleed"]
    for n in range(count):
        save(head(n, bool(n % 2)), root / f"head{n:03d}.nii.gz")
        rows.append(f"head{n:03d}.nii.gz,p{n},{n % 2}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root
