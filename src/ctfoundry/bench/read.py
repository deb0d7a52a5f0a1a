"""Reading and writing a CT, and looking through a folder: ours against SimpleITK, MONAI, nibabel, pydicom and GDCM.

Every pair works on the same files from the page cache, in turns, in one process; equal voxels (or the same files in the same
order) are part of the measurement.
"""

from __future__ import annotations

import gc
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ctfoundry import geometry, io
from ctfoundry.bench.baselines import read as baselines
from ctfoundry.io.dicom_write import write_series
from ctfoundry.keys import Key
from ctfoundry.volume import Volume

SHAPE = (300, 512, 512)
SPACING = (1.0, 0.75, 0.75)
FOLDERS, SLICES = 16, 250
"""Series in the tree whose headers are read, and slices of each: 4,000 files."""
TAGS = (
    "SOPClassUID", "Modality", "ImageType", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber",
    "AcquisitionNumber", "ConvolutionKernel", "KVP", "SliceThickness", "ContrastBolusAgent", "BodyPartExamined", "Manufacturer",
    "ManufacturerModelName", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "SamplesPerPixel",
    "PhotometricInterpretation", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "InstanceNumber",
)  # fmt: skip
"""What the other side reads of each header: what ours reads and shows."""

Work = Callable[[], Any]
Check = Callable[[Any, Any], tuple[float | None, str]]


def run(
    *,
    repeats: int = 5,
    threads: int = 1,
    shape: tuple[int, int, int] = SHAPE,
    folders: int = FOLDERS,
    slices: int = SLICES,
) -> list[dict[str, Any]]:
    """Rows of {name, ours_s, other_s, ratio, max_error, threads, dtype}; seconds are medians of `repeats` alternating runs.

    `threads` is given to both sides where they take it. MONAI's row is there where MONAI is installed. `max_error` is the largest
    difference of two voxels; for writing, of what nibabel reads back from both files; for headers, the number of files that are not
    at the same place of the same series. Rows of writing also say how large both files are, those of headers how many there are.
    """
    with tempfile.TemporaryDirectory(prefix="ctfoundry-bench-") as place:
        volume = _chest_like(shape)
        return [
            *_series(Path(place), volume, repeats, threads),
            *_nifti(Path(place), volume, repeats, threads),
            *_headers(Path(place), folders, slices, repeats, threads),
        ]


def _series(place: Path, volume: Volume, repeats: int, threads: int) -> list[dict[str, Any]]:
    folder = place / "series"
    stored = (volume.voxels + 1024).astype(np.uint16)
    write_series(folder, stored, volume.affine, intercept=-1024, change=_numbered)

    def ours() -> np.ndarray:
        return io.read(folder, threads=threads).voxels

    sides: dict[str, Work] = {"SimpleITK": lambda: baselines.simpleitk_series(folder, threads)}
    if importlib.util.find_spec("monai") is not None:
        sides["MONAI"] = lambda: baselines.monai_series(folder)
    return [_row(f"dicom series: {name}", ours, side, _voxels, repeats, threads) for name, side in sides.items()]


def _nifti(place: Path, volume: Volume, repeats: int, threads: int) -> list[dict[str, Any]]:
    path = place / "scan.nii.gz"
    io.write(volume, path)

    def ours() -> np.ndarray:
        return io.read(path).voxels

    rows = [
        _row(".nii.gz: nibabel", ours, lambda: baselines.nibabel_file(path), _voxels, repeats, threads),
        _row(".nii.gz: SimpleITK", ours, lambda: baselines.simpleitk_file(path), _voxels, repeats, threads),
    ]
    written, other = place / "ours.nii.gz", place / "other.nii.gz"
    for name, writer in (
        ("nibabel", baselines.nibabel_writer(volume.voxels, volume.affine)),
        ("SimpleITK", baselines.simpleitk_writer(volume.voxels)),
    ):

        def write(writer: Callable[[Path], None] = writer) -> Path:
            writer(other)
            return other

        def write_ours() -> Path:
            io.write(volume, written)
            return written

        row = _row(f"write .nii.gz: {name}", write_ours, write, _read_back, repeats, threads)
        rows.append(row | {"ours_bytes": written.stat().st_size, "other_bytes": other.stat().st_size})
    return rows


def _headers(place: Path, folders: int, slices: int, repeats: int, threads: int) -> list[dict[str, Any]]:
    """A tree of small slices: what counts is opening and parsing."""
    tree = place / "tree"
    stored = np.zeros((slices, 64, 64), dtype=np.uint16)
    affine = geometry.make_affine(SPACING, "SPL")
    for n in range(folders):
        write_series(tree / f"{n:02d}", stored, affine, intercept=-1024, series=f"{n + 1}", change=_described)

    def ours() -> dict[str, list[str]]:
        return {found.path.parent.name: [p.name for p in found.paths] for found in io.discover(tree).found}

    sides: dict[str, Work] = {
        "pydicom": lambda: baselines.pydicom_headers(tree, TAGS),
        "SimpleITK (GDCM)": lambda: baselines.gdcm_headers(tree),
    }
    return [
        _row(f"headers: {name}", ours, side, _orders, repeats, threads) | {"files": folders * slices}
        for name, side in sides.items()
    ]


def _row(name: str, ours: Work, other: Work, check: Check, repeats: int, threads: int) -> dict[str, Any]:
    error, dtype = check(ours(), other())  # also warms the page cache and the imports
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, work in enumerate((ours, other)):
            gc.collect()  # nobody pays for what the other left behind
            start = time.perf_counter()
            work()
            seconds[side].append(time.perf_counter() - start)
    ours_s, other_s = (median(s) for s in seconds)
    return {
        "name": name,
        "ours_s": ours_s,
        "other_s": other_s,
        "ratio": other_s / ours_s,
        "max_error": error,
        "threads": threads,
        "dtype": dtype,
    }


def _voxels(mine: np.ndarray, theirs: np.ndarray) -> tuple[float | None, str]:
    error = int(np.abs(mine.astype(np.int32) - theirs).max()) if mine.shape == theirs.shape else None
    return error, f"{mine.dtype}" if mine.dtype == theirs.dtype else f"{mine.dtype} / {theirs.dtype}"


def _read_back(mine: Path, theirs: Path) -> tuple[float | None, str]:
    return _voxels(baselines.nibabel_file(mine), baselines.nibabel_file(theirs))


def _orders(mine: dict[str, list[str]], theirs: dict[str, list[str]]) -> tuple[float | None, str]:
    if mine.keys() != theirs.keys() or any(len(mine[key]) != len(theirs[key]) for key in mine):
        return None, "headers"
    return sum(a != b for key in mine for a, b in zip(mine[key], theirs[key], strict=True)), "headers"


def _numbered(data: Any, d: int) -> None:
    data.InstanceNumber = d + 1  # MONAI stacks slices by it


def _described(data: Any, d: int) -> None:
    """What headers of scanners hold besides, a private block of some kilobytes included."""
    data.SeriesDescription, data.StudyDescription, data.ConvolutionKernel, data.KVP = (
        "Thorax 1.0",
        "Thorax",
        "B30f",
        "120",
    )
    data.Manufacturer, data.ManufacturerModelName, data.InstitutionName = "MAKER", "MODEL", "NOWHERE"
    data.SeriesNumber, data.AcquisitionNumber, data.StudyDate = 3, 1, "20240101"
    for keyword in ("DataCollectionDiameter", "ReconstructionDiameter", "DistanceSourceToDetector", "TableHeight"):
        setattr(data, keyword, "500")
    data.private_block(0x29, "BENCH", create=True).add_new(0x10, "OB", bytes(3000))


def _chest_like(shape: tuple[int, int, int]) -> Volume:
    """A body of soft tissue with noise in air: compresses about as a scan does."""
    affine = geometry.make_affine(SPACING, "SPL", (-190.0, -190.0, -150.0))
    h, w = (np.linspace(-1, 1, n) for n in shape[1:])
    body = (h[:, None] ** 2 / 0.5 + w[None] ** 2 / 0.8) < 1
    voxels = np.empty(shape, dtype=np.int16)
    for d in range(shape[0]):
        noise = Key.of("bench-read", d).integers(-24, 25, shape[1:]).astype(np.int16)
        voxels[d] = np.where(body, 40 + noise, -1000 + noise // 8)
    return Volume(voxels, affine, "hu")
