"""The reading benchmark runs and compares equal voxels and equal orders of files."""

from __future__ import annotations

import pytest

from ctfoundry.bench import read

KEYS = {"name", "ours_s", "other_s", "ratio", "max_error", "threads", "dtype"}


@pytest.mark.monai
def test_rows() -> None:
    rows = read.run(repeats=1, shape=(6, 48, 40), folders=3, slices=5)
    assert [r["name"] for r in rows] == [
        "dicom series: SimpleITK",
        "dicom series: MONAI",
        ".nii.gz: nibabel",
        ".nii.gz: SimpleITK",
        "write .nii.gz: nibabel",
        "write .nii.gz: SimpleITK",
        "headers: pydicom",
        "headers: SimpleITK (GDCM)",
    ]
    for row in rows:
        assert row.keys() >= KEYS
        assert (row["max_error"], row["threads"]) == (0, 1), row
        assert row["dtype"] == ("headers" if row["name"].startswith("headers") else "int16")
    assert rows[6]["files"] == 15


def test_an_order_that_differs_is_an_error() -> None:
    assert read._orders({"a": ["1", "2", "3"]}, {"a": ["1", "3", "2"]}) == (2, "headers")
    assert read._orders({"a": ["1"]}, {"a": ["1", "2"]}) == (None, "headers")
    assert read._orders({"a": ["1"]}, {"b": ["1"]}) == (None, "headers")
