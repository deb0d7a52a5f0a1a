"""A cohort: the series that rules choose from the archive's index, in one Parquet file with licence, origin and the query itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctfoundry import files
from ctfoundry.archive.query import COLUMNS, Index, quoted, write_query
from ctfoundry.archive.rules import Rules
from ctfoundry.errors import ReadError, UsageError
from ctfoundry.settings import from_data, nearest, to_data

if TYPE_CHECKING:
    import duckdb

FORMAT = 1
"""Version of the cohort file."""


@dataclass(frozen=True)
class Cohort:
    """A cohort file; rows are read when they are asked for, so 270,000 series cost nothing until then.

    Attributes
    ----------
    path : the file.
    rules : what the series were chosen by.
    query : the SQL that chose them, to be run on the index of `index_version` as it is.
    index_version : version of the installed index (its first number is the archive's release).
    unchecked : rules that the index could not answer and that have not been checked on headers yet (`check.check_headers`).
    """

    path: Path
    rules: Rules
    query: str
    index_version: str
    unchecked: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self._ask("count(*)")[0][0])

    def __repr__(self) -> str:
        return f"Cohort({self.rules.name}, {len(self)} series)"

    def rows(self) -> Iterator[dict[str, Any]]:
        """All series as mappings with the keys `query.COLUMNS`, sorted by collection, patient, study and series."""
        with _reading(self.path) as base:
            found = base.execute(f"SELECT {', '.join(COLUMNS)} FROM {self._source} ORDER BY place")
            while block := found.fetchmany(10_000):
                for row in block:
                    yield dict(zip(COLUMNS, row, strict=True))

    def counts(self, key: str = "collection_id") -> dict[str, int]:
        """Series by a column, most first; an empty value counts as "". Raises UsageError for no column of a cohort."""
        if key not in COLUMNS:
            raise UsageError(f"a cohort has no column {key!r}; {nearest(key, COLUMNS)}", where=self.path)
        found = self._ask(f"coalesce(CAST({key} AS VARCHAR), ''), count(*) AS n", "GROUP BY 1 ORDER BY n DESC, 1")
        return {name: int(n) for name, n in found}

    @property
    def patients(self) -> int:
        """How many patients there are (one is known by collection and Patient ID)."""
        return int(self._ask("count(DISTINCT (collection_id, patient_id))")[0][0])

    @property
    def size_gb(self) -> float:
        """Sum of the sizes that the index states, in gigabytes of 10^9 bytes."""
        return float(self._ask("coalesce(sum(size_mb), 0)")[0][0]) / 1000

    def only(self, series: Sequence[str], path: Path, *, checked: Sequence[str] = ()) -> Cohort:
        """A cohort file of the series named by UID; the rules `checked` count as met from now on."""
        import duckdb

        left = tuple(rule for rule in self.unchecked if rule not in checked)
        with duckdb.connect() as base:
            base.execute("CREATE TABLE kept AS SELECT unnest($1::VARCHAR[]) AS series_uid", [list(series)])
            columns = ", ".join(COLUMNS)
            return _write(
                base,
                f"SELECT {columns} FROM {self._source} SEMI JOIN kept USING (series_uid) ORDER BY place",
                Cohort(path, self.rules, self.query, self.index_version, left),
            )

    @property
    def _source(self) -> str:
        return f"read_parquet({quoted(str(self.path))})"

    def _ask(self, what: str, rest: str = "") -> list[tuple[Any, ...]]:
        with _reading(self.path) as base:
            return base.execute(f"SELECT {what} FROM {self._source} {rest}").fetchall()


@dataclass(frozen=True)
class Indexes:
    """Index files of the archive.

    Attributes
    ----------
    main, prior : ``idc_index.parquet`` and ``prior_versions_index.parquet``; by default those of the package `idc-index-data`.
    version : of these.
    ct, geometry : ``ct_index.parquet`` and ``volume_geometry_index.parquet``, which the archive publishes with each release;
        with them Slice Thickness, Image Type and positions are asked at once.
    """

    main: Path
    prior: Path
    version: str
    ct: Path | None = None
    geometry: Path | None = None


def bundled(*, ct: Path | None = None, geometry: Path | None = None) -> Indexes:
    """The indexes that the package `idc-index-data` ships; raises UsageError where it is not installed."""
    try:
        import idc_index_data
    except ImportError as error:
        raise UsageError(
            "choosing from the archive needs the package idc-index-data", do="pip install 'ctfoundry[archive]'"
        ) from error
    for given in (ct, geometry):
        if given is not None and not given.is_file():
            raise ReadError("does not exist", where=given, do="give the index file of the archive's release")
    main, prior = idc_index_data.IDC_INDEX_PARQUET_FILEPATH, idc_index_data.PRIOR_VERSIONS_INDEX_PARQUET_FILEPATH
    return Indexes(Path(main), Path(prior), idc_index_data.__version__, ct, geometry)


def build(rules: Rules, path: str | os.PathLike[str], indexes: Indexes | None = None) -> Cohort:
    """Write the series that `rules` choose as the cohort file `path` (Parquet), whole or not at all.

    Raises UsageError for collections that the index does not know and for an empty cohort; ReadError for an index file that is
    none.
    """
    target = Path(path)
    if target.suffix != ".parquet":
        raise UsageError("a cohort file ends in .parquet", where=target)
    indexes = indexes or bundled()
    with Index(indexes.main, indexes.prior, indexes.ct, indexes.geometry) as index:
        known = index.collections(rules.modality)
        for name in (*rules.collections, *rules.exclude_collections):
            if name not in known:
                raise UsageError(f"the archive has no {rules.modality} collection {name!r}; {nearest(name, known)}")
        query, unchecked = write_query(rules, index)
        return _write(index.base, query, Cohort(target, rules, query, indexes.version, unchecked))


def _write(base: duckdb.DuckDBPyConnection, query: str, cohort: Cohort) -> Cohort:
    import duckdb

    about = {
        "ctfoundry_cohort": str(FORMAT),
        "rules": json.dumps(to_data(cohort.rules)),
        "query": cohort.query,
        "index_version": cohort.index_version,
        "unchecked": json.dumps(list(cohort.unchecked)),
    }
    pairs = ", ".join(f"{key}: {quoted(value)}" for key, value in about.items())
    with files.whole(cohort.path) as part:
        try:
            base.execute(
                f"COPY (SELECT *, row_number() OVER () AS place FROM ({query})) TO {quoted(str(part))} "
                f"(FORMAT parquet, USE_TMP_FILE false, KV_METADATA {{{pairs}}})"
            )
            (count,) = base.execute(f"SELECT count(*) FROM read_parquet({quoted(str(part))})").fetchall()[0]
        except duckdb.Error as error:
            raise ReadError(f"the index cannot answer ({_first(error)})", where="archive index") from error
        if count == 0:
            raise UsageError(f"no series meets the rules of {cohort.rules.name!r}", do="loosen them")
    return cohort


def read_cohort(path: str | os.PathLike[str]) -> Cohort:
    """The cohort in a file; raises ReadError for any other file."""
    source = Path(path)
    if not source.is_file():
        raise ReadError("does not exist", where=source, do="make one with `ctfoundry cohort build`")
    with _reading(source) as base:
        found = base.execute(f"SELECT key, value FROM parquet_kv_metadata({quoted(str(source))})").fetchall()
        about = {bytes(key).decode(errors="replace"): bytes(value).decode(errors="replace") for key, value in found}
        if about.get("ctfoundry_cohort") != str(FORMAT):
            raise ReadError(
                "is no cohort file of this version", where=source, do="make one with `ctfoundry cohort build`"
            )
        have = {name for name, *_ in base.execute(f"DESCRIBE FROM read_parquet({quoted(str(source))})").fetchall()}
    lacking = [name for name in (*COLUMNS, "place") if name not in have]
    if lacking:
        raise ReadError(f"lacks the columns {', '.join(lacking)}", where=source)
    try:
        rules: Mapping[str, Any] = json.loads(about["rules"])
        unchecked = tuple(str(rule) for rule in json.loads(about["unchecked"]))
        return Cohort(source, from_data(Rules, rules, str(source)), about["query"], about["index_version"], unchecked)
    except (KeyError, ValueError, TypeError) as error:
        raise ReadError(f"its metadata are not a cohort's ({error})", where=source) from error


@contextmanager
def _reading(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection whose errors name the file."""
    import duckdb

    with duckdb.connect() as base:
        try:
            yield base
        except duckdb.Error as error:
            raise ReadError(f"cannot be read as a cohort ({_first(error)})", where=path) from error


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
