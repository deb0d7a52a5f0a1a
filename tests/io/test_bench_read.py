"""The reading benchmark runs and compares equal voxels."""

from __future__ import annotations

import pytest

from ctfoundry.bench import read


@pytest.mark.monai
def test_rows() -> None:
    rows = read.run(repeats=1, shape=(6, 48, 40))
    assert [r["name"] for r in rows] == [
        "dicom series: SimpleITK",
        "dicom series: MONAI",
        ".nii.gz: nibabel",
        ".nii.gz: SimpleITK",
    ]
    for row in rows:
        assert set(row) == {"name", "ours_s", "other_s", "ratio", "max_error", "threads", "dtype"}
        assert (row["max_error"], row["threads"], row["dtype"]) == (0, 1, "int16")
