"""Who is who: patients of scans, and scans that are the same in disguise.

A patient is, in this order: what ``--patients CSV`` says; what a ``patients.csv`` in the scan's folder says (column
``patient``: file names that begin with it belong to it); the DICOM PatientID; the folder. Then scans that are near
duplicates join their patients, so that no copy of a training scan is held out.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.errors import UsageError
from ctfoundry.geometry import Grid, make_affine, obliquity, to_world
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float32

COARSE_MM = 8.0
OVERLAP_SHARE = 0.2
"""Two scans in one frame are compared where they overlap by at least this share of the smaller one."""
BODY_HU = -500
"""Only what is body in either scan is compared: outlines in air are alike for any two bodies that lie the same way."""
ALIKE = 0.95
"""Correlation of coarse HU (-1000..1000) above which two scans are near duplicates."""


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with a header."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            return list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot be read as CSV: {error}", where=path) from error


@dataclass(frozen=True)
class Roster:
    """Rules that name the patient of a file: exact or leading paths from the CSV, and the root they are relative to."""

    root: Path
    rows: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, root: Path, table: Path | None) -> Roster:
        """Rules from a CSV with the columns ``path`` (a file or folder relative to the data folder) and ``patient``."""
        if table is None:
            return cls(root)
        rows = read_csv(table)
        if not rows or not {"path", "patient"} <= set(rows[0]):
            raise UsageError(
                "needs the columns path and patient", where=table, do="path is a file or folder relative to --data"
            )
        for number, row in enumerate(rows, 2):
            if not row["path"] or not row["patient"]:
                raise UsageError(f"line {number} lacks a path or a patient", where=table)
        return cls(root, tuple((Path(row["path"]).as_posix(), row["patient"]) for row in rows))

    def given(self, file: Path) -> str | None:
        """The patient that the CSV names for `file`: that of the longest path which leads to it."""
        relative = file.relative_to(self.root).as_posix()
        named = [row for row in self.rows if relative == row[0] or relative.startswith(row[0] + "/")]
        return max(named, key=lambda row: len(row[0]))[1] if named else None

    def patient(self, file: Path, dicom_id: str | None) -> str:
        """A raw name of the patient that `file` belongs to (to be hashed before it is written anywhere)."""
        named = self.given(file)
        if named:
            return f"csv:{named}"
        beside = file.parent / "patients.csv"
        if beside.is_file():
            names = [row["patient"] for row in read_csv(beside) if row.get("patient")]
            found = [n for n in sorted(names, key=len, reverse=True) if file.name.startswith(n)]
            if found:
                return f"{beside.parent}:{found[0]}"
        if dicom_id:
            return f"dicom:{dicom_id}"
        return f"folder:{file.parent}"


@dataclass(frozen=True, eq=False)
class Coarse:
    """A scan at 8 mm for comparisons, SPL, on a lattice of whole multiples of 8 mm in the world, so that two scans of one
    frame are averaged over the same boxes; and as a cube of 24 voxels over its field of view."""

    volume: Volume
    cube: Float32[np.ndarray, "24 24 24"]
    extent_mm: tuple[float, float, float]

    @classmethod
    def of(cls, volume: Volume) -> Coarse:
        """The coarse form of a scan, HU clipped to -1000..1000."""
        turned = volume.reorient("SPL")
        clipped = turned.with_voxels(np.clip(turned.voxels, -1000, 1000))
        d, h, w = (n * s for n, s in zip(turned.shape, turned.spacing, strict=True))
        cube = clipped.resample((d / 24, h / 24, w / 24)).voxels[:24, :24, :24]
        return cls(_on_lattice(clipped), cube, (d, h, w))


def _on_lattice(volume: Volume) -> Volume:
    """At 8 mm, centres on multiples of 8 mm; for oblique grids, which have no such lattice, from the first voxel on."""
    low, high = volume.grid.corners.min(0), volume.grid.corners.max(0)
    first, last = np.ceil(low / COARSE_MM), np.floor(high / COARSE_MM)
    count = (last - first).astype(int) + 1
    if obliquity(volume.affine) > 0.1 or (count < 1).any():
        return volume.resample((COARSE_MM,) * 3)
    corner = COARSE_MM * np.array([last[0], last[1], first[2]])
    shape = (int(count[2]), int(count[1]), int(count[0]))
    return volume.onto(Grid(shape, make_affine((COARSE_MM,) * 3, "SPL", (corner[0], corner[1], corner[2]))))


def alike(a: Coarse, b: Coarse) -> str | None:
    """Why two scans are near duplicates, or None."""
    sizes = np.array(a.extent_mm) / np.array(b.extent_mm)
    if (np.abs(sizes - 1) < 0.05).all() and a.cube.shape == b.cube.shape and _correlation(a.cube, b.cube) > ALIKE:
        return "the same content"
    low = np.maximum(a.volume.grid.corners.min(0), b.volume.grid.corners.min(0))
    high = np.minimum(a.volume.grid.corners.max(0), b.volume.grid.corners.max(0))
    low = COARSE_MM * np.ceil(low / COARSE_MM - 1e-6)
    count = np.floor((high - low) / COARSE_MM + 1e-6).astype(int) + 1
    smaller = min(np.prod(a.volume.shape), np.prod(b.volume.shape))
    if (count < 3).any() or np.prod(count) < OVERLAP_SHARE * smaller:
        return None
    points = make_affine((COARSE_MM,) * 3, "SAR", (low[0], low[1], low[2]))
    grid = Grid((int(count[2]), int(count[1]), int(count[0])), points)
    if _correlation(_sample(a.volume, grid), _sample(b.volume, grid)) > ALIKE:
        return "the same place of one frame with the same content"
    return None


def _sample(volume: Volume, grid: Grid) -> np.ndarray:
    """Values at the centres of a world grid, linear between voxels, air outside."""
    from scipy import ndimage

    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)
    place = volume.index(to_world(grid.affine, index))
    return ndimage.map_coordinates(volume.voxels, place.reshape(-1, 3).T, order=1, mode="constant", cval=-1000.0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    body = (a > BODY_HU) | (b > BODY_HU)
    if body.sum() < 100 or a[body].std() < 1 or b[body].std() < 1:
        return 0.0
    return float(np.corrcoef(a[body], b[body])[0, 1])


@dataclass(frozen=True)
class Twin:
    """Two scans that are near duplicates, and why."""

    first: str
    second: str
    reason: str


def find_twins(coarse: Mapping[str, Coarse]) -> list[Twin]:
    """All pairs of near duplicates."""
    names = sorted(coarse)
    pairs = ((a, b) for i, a in enumerate(names) for b in names[i + 1 :])
    return [Twin(a, b, reason) for a, b in pairs if (reason := alike(coarse[a], coarse[b]))]


def merge_patients(patients: Mapping[str, str], twins: Sequence[Twin]) -> dict[str, str]:
    """Patients of scans after twins joined theirs; the name that sorts first stays."""
    joined = {p: p for p in patients.values()}

    def root(name: str) -> str:
        while joined[name] != name:
            name = joined[name]
        return name

    for twin in twins:
        a, b = sorted((root(patients[twin.first]), root(patients[twin.second])))
        joined[b] = a
    return {scan: root(patient) for scan, patient in patients.items()}
