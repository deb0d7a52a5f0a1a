"""LUNA16: 888 scans of LIDC-IDRI as MetaImage in ten subsets, nodules as points.

Layout: shartoo/luna16_multi_size_3dcnn, README.md (subset0 to subset9, annotations.csv with seriesuid, coordX, coordY, coordZ,
diameter_mm, candidates.csv and candidates_V2.csv with class); a column header and rows quoted in public code. Coordinates are world
millimetres of the MetaImage header (LPS); here they are RAS+.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ctfoundry.archive.adapters.dataset import Adapter, Case, Parts, Point
from ctfoundry.archive.adapters.tree import Tree, number

_XYZ = ("coordX", "coordY", "coordZ")


def _is_it(tree: Tree) -> bool:
    return any(tree.files(folder, ".mhd") for folder in tree.folders(pattern=r"subset\d"))


def _table(tree: Tree, name: str) -> Path | None:
    return tree.first(name, f"CSVFILES/{name}", beside=True)


def _read(tree: Tree) -> Parts:
    scans = {
        path.stem: (path, int(folder.name[-1]))
        for folder in tree.folders(pattern=r"subset\d")
        for path in tree.files(folder, ".mhd")
    }
    lungs = {path.stem: path for path in tree.files(tree.root / "seg-lungs-LUNA16", ".mhd")}
    points: dict[str, list[Point]] = {uid: [] for uid in scans}
    table = _table(tree, "annotations.csv")
    if table is None:
        tree.note("no annotations.csv here: nodules are not known")
    else:
        for row in tree.rows(table, ("seriesuid", *_XYZ, "diameter_mm")):
            if row["seriesuid"] in points:
                x, y, z = (number(row[c], table, "a coordinate") for c in _XYZ)
                size = number(row["diameter_mm"], table, "a diameter")
                points[row["seriesuid"]].append(Point((-x, -y, z), "nodule", size))
    if _table(tree, "candidates_V2.csv") is None and _table(tree, "candidates.csv") is None:
        tree.note("no candidates_V2.csv here")
    cases, lost = [], []
    for uid, (path, subset) in scans.items():
        if not any(path.with_suffix(s).is_file() for s in (".raw", ".zraw")):
            lost.append(tree.shown(path.with_suffix(".raw")))
            continue
        told: dict[str, str | float] = {"subset": float(subset)}
        if table is not None:
            told["nodules"] = float(len(points[uid]))
        mask = {"lungs": lungs[uid]} if uid in lungs else {}
        cases.append(Case(uid, uid, path, mask, targets=told, points=tuple(points[uid])))
    tree.note_missing("files with voxels are", lost)
    return Parts(cases)


def candidates(path: Path) -> Mapping[str, np.ndarray]:
    """The points of ``candidates_V2.csv`` by scan: (n, 4) float64 of x, y, z in world millimetres (RAS+) and class 0 or 1.

    Raises DataSetError for a table without the published columns.
    """
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in Tree(path.parent).rows(path, ("seriesuid", *_XYZ, "class")):
        x, y, z = (number(row[c], path, "a coordinate") for c in _XYZ)
        found.setdefault(row["seriesuid"], []).append((-x, -y, z, number(row["class"], path, "class 0 or 1")))
    return {uid: np.array(rows) for uid, rows in found.items()}


ADAPTERS = (
    Adapter(
        name="luna16",
        title="LUNA16 (lung nodules, ten subsets for cross-validation)",
        home="luna16.grand-challenge.org",
        licence="read their page",
        citation="Setio AAA et al., Medical Image Analysis 2017, arXiv 1612.08012",
        looks_for="subset0 ... subset9 with UID.mhd",
        source="shartoo/luna16_multi_size_3dcnn, README.md",
        is_it=_is_it,
        read=_read,
    ),
)
