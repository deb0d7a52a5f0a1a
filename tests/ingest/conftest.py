from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import worlds
from ctfoundry import io
from ctfoundry.io.dicom_write import write_series
from ctfoundry.volume import Volume


@pytest.fixture(autouse=True)
def _salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTFOUNDRY_SALT", "ingest-test")


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scans to keep; a copy, a scan twice in other packing, and six to leave out, each for another rule."""
    folder = tmp_path_factory.mktemp("mixed")
    scans = [worlds.body(k, (20, 32, 36), (4, 3, 3)) for k in range(10)]
    for k, scan in enumerate(scans):
        if k % 2:
            write_series(folder / f"d{k}", scan.voxels, scan.affine, series=f"{k}")
        else:
            (folder / f"n{k}").mkdir()
            io.write(scan, folder / f"n{k}" / "ct.nii.gz")
    first = scans[0]
    (folder / "z-copy").mkdir()
    (folder / "z-copy" / "ct.nii.gz").write_bytes((folder / "n0" / "ct.nii.gz").read_bytes())
    io.write(scans[2], folder / "a-the-same-as-n2.mha")  # first in order, so the one that stays

    def broken(name: str, voxels: np.ndarray, affine: np.ndarray = first.affine) -> None:
        io.write(Volume(voxels, affine), folder / f"{name}.nii.gz")

    noise = np.random.default_rng(0).normal(0, 30, first.shape).round().astype(np.int16)
    broken("x-thin", first.voxels[:4])
    broken("x-coarse", first.voxels, worlds.body(0, first.shape, (4, 12, 3)).affine)
    broken("x-short", first.voxels, worlds.body(0, first.shape, (1, 3, 3)).affine)
    broken("x-air", noise - 1000)
    broken("x-steep", np.where(first.voxels > -500, first.voxels * 8 + 4000, first.voxels).astype(np.int16))
    broken("x-shifted", (first.voxels + 1100).clip(0).astype(np.int16))
    (folder / "x-cut.nii.gz").write_bytes((folder / "n0" / "ct.nii.gz").read_bytes()[:9000])
    return folder
