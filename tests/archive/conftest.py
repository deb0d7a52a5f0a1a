from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from ctfoundry.archive import cohort as cohorts

MAIN = {
    "collection_id": "VARCHAR", "PatientID": "VARCHAR", "SeriesInstanceUID": "VARCHAR", "StudyInstanceUID": "VARCHAR",
    "source_DOI": "VARCHAR", "BodyPartExamined": "VARCHAR", "Modality": "VARCHAR", "Manufacturer": "VARCHAR",
    "ManufacturerModelName": "VARCHAR", "SeriesDescription": "VARCHAR", "SeriesNumber": "VARCHAR", "instanceCount": "BIGINT",
    "license_short_name": "VARCHAR", "series_init_idc_version": "BIGINT", "series_revised_idc_version": "BIGINT",
    "series_aws_url": "VARCHAR", "series_size_MB": "DOUBLE",
}  # fmt: skip
PRIOR = {
    "collection_id": "VARCHAR", "PatientID": "VARCHAR", "SeriesInstanceUID": "VARCHAR", "StudyInstanceUID": "VARCHAR",
    "Modality": "VARCHAR", "series_size_MB": "DOUBLE", "series_aws_url": "VARCHAR", "min_idc_version": "BIGINT",
    "max_idc_version": "BIGINT",
}  # fmt: skip
CT = {"SeriesInstanceUID": "VARCHAR", "ImageType": "VARCHAR[]", "SliceThickness": "DOUBLE"}
GEOMETRY = {"SeriesInstanceUID": "VARCHAR", "unique_slice_positions": "BOOLEAN"}

DEFAULT: dict[str, Any] = {
    "collection_id": "liver_study", "PatientID": "p1", "StudyInstanceUID": "1.2", "source_DOI": "10.1/x", "Modality": "CT",
    "instanceCount": 100, "license_short_name": "CC BY 4.0", "series_init_idc_version": 2, "series_revised_idc_version": 2,
    "SeriesNumber": "1", "SeriesDescription": "abdomen", "BodyPartExamined": "ABDOMEN", "series_size_MB": 52.8,
    "min_idc_version": 1, "max_idc_version": 9,
}  # fmt: skip


class Archive:
    """Index files with made-up series, in the layout of the real ones (their schema files)."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.rows: dict[str, list[dict[str, Any]]] = {"main": [], "prior": [], "ct": [], "geometry": []}

    def add(self, uid: str, *, to: str = "main", **values: Any) -> None:
        url = f"s3://made-up-bucket/{abs(hash(uid)) % 10**8:08d}-0000/*"
        self.rows[to].append({**DEFAULT, "series_aws_url": url, "SeriesInstanceUID": uid, **values})

    def indexes(self) -> cohorts.Indexes:
        paths = {}
        for name, columns in {"main": MAIN, "prior": PRIOR, "ct": CT, "geometry": GEOMETRY}.items():
            paths[name] = self.place / f"{name}.parquet"
            with duckdb.connect() as base:
                base.execute(f"CREATE TABLE t ({', '.join(f'{k} {v}' for k, v in columns.items())})")
                for row in self.rows[name]:
                    base.execute(
                        f"INSERT INTO t VALUES ({', '.join('?' * len(columns))})", [row.get(c) for c in columns]
                    )
                base.execute(f"COPY t TO '{paths[name]}' (FORMAT parquet)")
        return cohorts.Indexes(
            paths["main"],
            paths["prior"],
            "25.0.0",
            paths["ct"] if self.rows["ct"] else None,
            paths["geometry"] if self.rows["geometry"] else None,
        )


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    (tmp_path / "index").mkdir()
    return Archive(tmp_path / "index")
