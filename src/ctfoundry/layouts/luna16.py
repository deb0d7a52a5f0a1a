"""LUNA16: lung nodules as points and diameters beside MetaImage volumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctfoundry import files
from ctfoundry.keys import Key
from ctfoundry.layouts.cases import Case
from ctfoundry.layouts.layout import Layout, Row, write_table
from ctfoundry.layouts.series import uid
from ctfoundry.volume import Volume

SUBSETS = 10
LEAST_MM = 3.0
"""Smaller nodules are not annotated."""
ANNOTATIONS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
CANDIDATES = ("seriesuid", "coordX", "coordY", "coordZ", "class")
FALSE_CANDIDATES = 5
"""Points in the lungs without a nodule, for each scan."""


def case(root: Path, case: Case) -> Row:
    """``subsetN/UID.mhd`` and ``.raw``; points in the world of the header (LPS millimetres)."""
    name = uid("luna16", case.name)
    write_mhd(case.phantom.ct, root / f"subset{case.patient % SUBSETS}" / f"{name}.mhd")
    nodules = [f for f in case.findings if f.kind == "lung_nodule" and f.size_mm >= LEAST_MM]
    points = [_lps(f.centre_mm) for f in nodules]
    return {
        "annotations": [[name, *p, round(f.size_mm, 4)] for p, f in zip(points, nodules, strict=True)],
        "candidates": [[name, *p, 1] for p in points] + [[name, *p, 0] for p in _others(case, points)],
    }


def tables(root: Path, rows: Sequence[Row]) -> None:
    """``annotations.csv`` and ``candidates_V2.csv``."""
    for file, columns, key in (
        ("annotations.csv", ANNOTATIONS, "annotations"),
        ("candidates_V2.csv", CANDIDATES, "candidates"),
    ):
        lines = [dict(zip(columns, line, strict=True)) for row in rows for line in row[key]]
        write_table(root / file, lines, columns)


def write_mhd(volume: Volume, path: Path) -> None:
    """Write a MetaImage header with its voxels in a ``.raw`` beside it, through ITK; the header last, whole or not at all."""
    import SimpleITK as sitk

    ras = volume.reorient("SPL")  # ITK's arrays are (k, j, i) with axes L, P, S
    image = sitk.GetImageFromArray(ras.voxels)
    image.SetSpacing([float(s) for s in ras.spacing[::-1]])
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ras.affine
    image.SetOrigin([float(v) for v in lps[:3, 3]])
    image.SetDirection((lps[:3, [2, 1, 0]] / np.array(ras.spacing)[::-1]).ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name("part-" + path.name)
    sitk.WriteImage(image, str(part))
    part.with_suffix(".raw").replace(path.with_suffix(".raw"))
    files.write_text(path, part.read_text().replace(part.stem, path.stem))
    part.unlink()


def _lps(point: Sequence[float]) -> list[float]:
    x, y, z = point
    return [round(-x, 4), round(-y, 4), round(z, 4)]


def _others(case: Case, points: Sequence[Sequence[float]]) -> list[list[float]]:
    """Random points in the lungs, away from the nodules."""
    labels = case.phantom.labels
    lungs = [i for i, name in (labels.names or {}).items() if name.startswith("lung_")]
    inside = np.argwhere(np.isin(labels.voxels, lungs) & (case.phantom.lesions.voxels == 0))
    if not len(inside):
        return []
    chosen = Key.of("luna16", case.name).integers(0, len(inside), FALSE_CANDIDATES)
    world = [_lps(labels.world(inside[i]).tolist()) for i in chosen]
    return [p for p in world if all(np.linalg.norm(np.subtract(p, q)) > 15 for q in points)]


LAYOUTS = {
    "luna16": Layout(
        case,
        tables,
        "luna16.grand-challenge.org/Data as described in shartoo/luna16_multi_size_3dcnn (README.md: subset0 to 9, annotations.csv"
        " with seriesuid, coordX, coordY, coordZ, diameter_mm, candidates_V2.csv) and YichenGong/lung-cancer-detector"
        " (data/luna16/README.md: one UID.mhd and .raw a scan)",
        "chest",
        lesions=True,
        repeats=True,
    )
}
