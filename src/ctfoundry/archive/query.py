"""From rules to SQL on the archive's index, which duckdb runs where the files are."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import TracebackType

from ctfoundry.archive.rules import Rules
from ctfoundry.errors import ReadError

COLUMNS: dict[str, str] = {
    "collection_id": "VARCHAR",
    "patient_id": "VARCHAR",
    "study_uid": "VARCHAR",
    "series_uid": "VARCHAR",
    "series_number": "VARCHAR",
    "series_description": "VARCHAR",
    "body_part": "VARCHAR",
    "manufacturer": "VARCHAR",
    "model": "VARCHAR",
    "instances": "BIGINT",
    "instances_from": "VARCHAR",
    "thickness_mm": "DOUBLE",
    "licence": "VARCHAR",
    "doi": "VARCHAR",
    "size_mb": "DOUBLE",
    "url": "VARCHAR",
    "first_version": "BIGINT",
    "last_version": "BIGINT",
}
"""What a cohort knows of a series. `instances_from`: "index", or "size" where only the size is known (withdrawn series);
`last_version`: the release that changed or withdrew it, NULL where it stands as it is."""

SLICE_MB = 512 * 512 * 2 / 1e6 + 0.004
"""Megabytes of an uncompressed slice with its header: gives the number of instances where the index has only the size."""

SOFT_WORDS = (
    "soft",
    "standard",
    "std",
    "b30",
    "b31",
    "br36",
    "br38",
    "br40",
    "i30",
    "i31",
    "fc0",
    "fc1",
    "st ",
    "stnd",
)
SHARP_WORDS = ("lung", "bone", "sharp", "b70", "b80", "bl57", "br5", "br6", "fc5", "fc3", "edge", "detail", "hrct")
"""Words in series descriptions that tell a soft from a sharp kernel, across the makers' habits; a guess by text, since the index
has no kernel."""

LICENCES = {
    "commercial": r"^(CC BY [0-9.]+|CC0.*|CC BY)$",
    "open": r"^(CC BY.*|CC0.*)$",
}


def quoted(text: str) -> str:
    """A SQL text literal."""
    return "'" + text.replace("'", "''") + "'"


class Index:
    """The index files, opened for queries on the views `idc_index`, `prior_versions_index`, `ct_index`, `geometry_index`."""

    def __init__(self, main: Path, prior: Path, ct: Path | None = None, geometry: Path | None = None) -> None:
        import duckdb

        self.has = {"ct_index": ct is not None, "geometry_index": geometry is not None}
        self.base = duckdb.connect()
        for name, path in {
            "idc_index": main,
            "prior_versions_index": prior,
            "ct_index": ct,
            "geometry_index": geometry,
        }.items():
            if path is None:
                continue
            try:
                self.base.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({quoted(str(path))})")
            except duckdb.Error as error:
                first = str(error).splitlines()[0]
                raise ReadError(f"is no index file ({first})", where=path, do="download it again") from error

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.base.close()

    def collections(self, modality: str) -> list[str]:
        """All collections with series of the modality, those of withdrawn series too."""
        which = f"WHERE Modality = {quoted(modality)}"
        found = self.base.execute(
            f"SELECT DISTINCT collection_id FROM idc_index {which} UNION "
            f"SELECT DISTINCT collection_id FROM prior_versions_index {which} ORDER BY 1"
        )
        return [name for (name,) in found.fetchall()]


def write_query(rules: Rules, index: Index) -> tuple[str, tuple[str, ...]]:
    """(SQL, rules that it leaves unchecked). The answer has the columns `COLUMNS`."""
    where, unchecked = _conditions(rules, index)
    parts = [f"WITH series AS (\n{_series(rules, index)}\n)", f", kept AS (\nSELECT * FROM series\nWHERE {where}\n)"]
    last = "kept"
    for name, step in _steps(rules):
        parts.append(f", {name} AS (\n{step.format(last=last)}\n)")
        last = name
    names = ", ".join(COLUMNS)
    return (
        "\n".join(parts) + f"\nSELECT {names} FROM {last}\nORDER BY collection_id, patient_id, study_uid, series_uid",
        unchecked,
    )


def _series(rules: Rules, index: Index) -> str:
    """All series of the modality, as the archive had them at the release asked for, with the names of `COLUMNS`."""
    thickness = "ct.SliceThickness" if index.has["ct_index"] else "CAST(NULL AS DOUBLE)"
    more = ["ct.ImageType AS image_type"] if index.has["ct_index"] else []
    more += ["g.unique_slice_positions AS unique_positions"] if index.has["geometry_index"] else []
    joins = " LEFT JOIN ct_index ct ON ct.SeriesInstanceUID = s.SeriesInstanceUID" if index.has["ct_index"] else ""
    joins += (
        " LEFT JOIN geometry_index g ON g.SeriesInstanceUID = s.SeriesInstanceUID"
        if index.has["geometry_index"]
        else ""
    )
    extra = "".join(f", {text}" for text in more)
    modality = f"s.Modality = {quoted(rules.modality)}"
    version = rules.version
    # A series revised since then counts as it was (its row stands among the prior versions), so the new row does not.
    now = f"""SELECT s.collection_id, s.PatientID AS patient_id, s.StudyInstanceUID AS study_uid,
  s.SeriesInstanceUID AS series_uid, s.SeriesNumber AS series_number, s.SeriesDescription AS series_description,
  s.BodyPartExamined AS body_part, s.Manufacturer AS manufacturer, s.ManufacturerModelName AS model,
  s.instanceCount AS instances, 'index' AS instances_from, {thickness} AS thickness_mm,
  s.license_short_name AS licence, s.source_DOI AS doi, s.series_size_MB AS size_mb, s.series_aws_url AS url,
  s.series_init_idc_version AS first_version, CAST(NULL AS BIGINT) AS last_version{extra}
FROM idc_index s{joins}
WHERE {modality}"""
    if version is None:
        return now
    # Withdrawn series: the prior index has no description, licence or number of instances; the collection's licence and what
    # the present index says of the same series stand in.
    old = f"""SELECT s.collection_id, s.PatientID, s.StudyInstanceUID, s.SeriesInstanceUID, n.SeriesNumber, n.SeriesDescription,
  n.BodyPartExamined, n.Manufacturer, n.ManufacturerModelName,
  coalesce(n.instanceCount, CAST(round(s.series_size_MB / {SLICE_MB:.6f}) AS BIGINT)),
  CASE WHEN n.instanceCount IS NULL THEN 'size' ELSE 'index' END, {thickness},
  coalesce(n.license_short_name, l.licence), n.source_DOI, s.series_size_MB, s.series_aws_url,
  s.min_idc_version, s.max_idc_version{extra}
FROM prior_versions_index s
LEFT JOIN idc_index n ON n.SeriesInstanceUID = s.SeriesInstanceUID
LEFT JOIN (SELECT collection_id, mode(license_short_name) AS licence FROM idc_index GROUP BY 1) l
  ON l.collection_id = s.collection_id{joins}
WHERE {modality} AND s.min_idc_version <= {version} AND s.max_idc_version >= {version}"""
    return f"{now} AND s.series_revised_idc_version <= {version}\nUNION ALL\n{old}"


def _conditions(rules: Rules, index: Index) -> tuple[str, tuple[str, ...]]:
    asked, unchecked = [f"instances >= {rules.instances[0]}"], []
    if rules.instances[1] is not None:
        asked.append(f"instances <= {rules.instances[1]}")
    if rules.collections:
        asked.append(f"collection_id IN {_list(rules.collections)}")
    if rules.exclude_collections:
        asked.append(f"collection_id NOT IN {_list(rules.exclude_collections)}")
    if rules.licence in LICENCES:
        asked.append(f"regexp_matches(coalesce(licence, ''), {quoted(LICENCES[rules.licence])})")
    if rules.body_parts:
        asked.append(f"upper(coalesce(body_part, '')) IN {_list([b.upper() for b in rules.body_parts])}")
    text = "lower(coalesce(series_description, ''))"
    if rules.description_has:
        asked.append("(" + " OR ".join(f"contains({text}, {quoted(w.lower())})" for w in rules.description_has) + ")")
    asked += [f"NOT contains({text}, {quoted(w.lower())})" for w in rules.description_lacks]
    if rules.exclude_benchmarks:
        asked += [_outside(collection, patient) for collection, patient, _, _ in benchmarks()]
    for name in rules.needs_headers:
        if name == "unique_positions":
            known, test = index.has["geometry_index"], "coalesce(unique_positions, false)"
        elif name == "no_localizer":
            known, test = index.has["ct_index"], "NOT list_contains(coalesce(image_type, []), 'LOCALIZER')"
        else:
            known = index.has["ct_index"]
            low, high = rules.thickness_mm or (0.0, 0.0)
            test = f"thickness_mm BETWEEN {low:g} AND {high:g}"
        if known:
            asked.append(test)
        else:
            unchecked.append(name)
    return "\n  AND ".join(asked), tuple(unchecked)


def _steps(rules: Rules) -> list[tuple[str, str]]:
    """Thinning, then caps, each a query on the one before."""
    steps = []
    number = "TRY_CAST(series_number AS BIGINT)"
    if rules.thin != "none":
        same = {
            "reconstructions": "collection_id, patient_id, study_uid, instances, round(ln(greatest(size_mb, 1e-3)) / ln(1.05))",
            "study": "collection_id, patient_id, study_uid",
            "patient": "collection_id, patient_id",
        }[rules.thin]
        largest = "" if rules.thin == "reconstructions" else "instances DESC, "
        order = f"{largest}{_softness()}, {number} NULLS LAST, series_uid"
        steps.append(
            (
                "thinned",
                f"SELECT * FROM {{last}}\nQUALIFY row_number() OVER (PARTITION BY {same}\n  ORDER BY {order}) = 1",
            )
        )
    for name, cap, group in (
        ("per_patient", rules.per_patient, "collection_id, patient_id"),
        ("per_collection", rules.per_collection, "collection_id"),
    ):
        if cap is not None:
            steps.append(
                (
                    name,
                    f"SELECT * FROM {{last}}\nQUALIFY row_number() OVER (PARTITION BY {group} "
                    f"ORDER BY sha256(series_uid), series_uid) <= {cap}",
                )
            )
    return steps


def _softness() -> str:
    text = "lower(coalesce(series_description, ''))"
    soft = " OR ".join(f"contains({text}, {quoted(w)})" for w in SOFT_WORDS)
    sharp = " OR ".join(f"contains({text}, {quoted(w)})" for w in SHARP_WORDS)
    return f"CASE WHEN {sharp} THEN 2 WHEN {soft} THEN 0 ELSE 1 END"


def _outside(collection: str, patient: str) -> str:
    if patient == "*":
        return f"collection_id <> {quoted(collection)}"
    return f"NOT (collection_id = {quoted(collection)} AND patient_id = {quoted(patient)})"


def _list(values: Sequence[str]) -> str:
    return "(" + ", ".join(quoted(v) for v in values) + ")"


def benchmarks() -> list[tuple[str, str, str, str]]:
    """(collection, patient or "*", benchmark, why) of every known evaluation set in the archive."""
    return [(r["collection"], r["patient"], r["benchmark"], r["why"]) for r in table("benchmarks.csv")]


def table(name: str) -> list[dict[str, str]]:
    """Rows of a data file of this package."""
    text = (resources.files("ctfoundry.archive") / name).read_text()
    return list(csv.DictReader(text.splitlines()))
