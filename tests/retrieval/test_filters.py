"""Conditions on tables: what they choose, and what they must never reach."""

from __future__ import annotations

import duckdb
import pytest

from ctfoundry.errors import UsageError
from ctfoundry.retrieval.filters import where

ROWS = "id,age,sex,note,scanned\na,61,F,liver cyst,2020-03-01\nb,59,M,,2021-05-02\nc,70,M,lung's nodule,2019-01-01\nd,,F,x,2020-01-01\n"


@pytest.fixture
def table(tmp_path):
    place = tmp_path / "clinical.csv"
    place.write_text(ROWS)
    return place


@pytest.mark.parametrize(
    ("condition", "ids"),
    [
        ("age > 60", "ac"),
        ("age > 60 and sex = 'M'", "c"),
        ("age is null or age between 55 and 60", "bd"),
        ("sex in ('F') and not note like 'liver%'", "d"),
        ("lower(note) like '%nodule%' or contains(note, 'cyst')", "ac"),
        ("note = 'lung''s nodule'", "c"),
        ("case when sex = 'F' then 1 else 0 end = 1", "ad"),
        ("year(scanned) = 2020 and cast(age as double) / 2 > 30", "a"),
        ("(age + 1) % 2 = 0 -- a remark", "ab"),
        ("false", ""),
    ],
)
def test_conditions(table, condition, ids):
    assert where(table, condition).ids == set(ids)


def test_parquet_and_another_column_of_ids(tmp_path, table):
    place = tmp_path / "t.parquet"
    duckdb.sql(f"copy (select age as \"the age\", id as scan from '{table}') to '{place}'")
    assert where(place, '"the age" > 60', id="scan").ids == {"a", "c"}
    with pytest.raises(UsageError, match="no column 'id'"):
        where(place, "true")


@pytest.mark.parametrize(
    "condition",
    [
        "1=1) union select content from read_text('{secret}') --",
        "1=1) union all select 'x' from meta where (true",
        "id in (select content from read_text('{secret}'))",
        "exists (select 1 from '{secret}')",
        "(select count(*) from read_csv('{secret}')) > 0",
        "true); drop table meta; select (true",
        "true); copy meta to '{out}'; select id from meta where (true",
        "true); attach '{out}' as x; select id from meta where (true",
        "true); install httpfs; select id from meta where (true",
        "getenv('HOME') is not null",
        "read_text('{secret}') is not null",
        "length(repeat('x', 1000000000)) > 0",
        "id in (from duckdb_settings() select name)",
        "row_number() over () = 1",
        "count(*) > 0",
        "list_transform([1], x -> x)[1] = 1",
        "query('select 1') is null",
        "current_setting('threads') is null",
        "id = $1",
        "true) order by (select 1",
        "true) limit (1",
        "true) group by (id",
        "true) qualify (true",
        "",
        ")",
        "nothing > 3",
        "age > ",
        "x" * 3000,
    ],
)
def test_what_is_no_plain_condition_is_refused(tmp_path, table, condition):
    secret, out = tmp_path / "secret.txt", tmp_path / "out"
    secret.write_text("a")
    with pytest.raises(UsageError):
        where(table, condition.format(secret=secret, out=out))
    assert not out.exists()


def test_a_table_that_is_none(tmp_path, table):
    with pytest.raises(UsageError, match="is no file"):
        where(tmp_path / "nothing.csv", "true")
    place = tmp_path / "bad.parquet"
    place.write_bytes(b"PAR1 not really")
    with pytest.raises(UsageError, match="cannot be read"):
        where(place, "true")


def test_a_table_that_does_not_fit_the_index(tmp_path, table):
    """Ids of another kind are an error, not an empty answer; scans without a row or with several are said."""
    chosen = where(table, "age > 60")
    assert chosen.of("abcd", table) == ""
    assert "2 of 6 scans of the index have no row" in chosen.of("abcdxy", table)
    with pytest.raises(UsageError, match="none of its 4 ids is in the index, such as 'a'; the index has 'scan-1'"):
        chosen.of(["scan-1"], table)
    table.write_text(ROWS + "b,80,M,,2022-05-02\n e ,80,M,,2022-05-02\n")
    chosen = where(table, "age > 60")
    assert chosen.ids == {"a", "b", "c", "e"}
    assert "1 scans have several rows" in chosen.of("abcde", table)


@pytest.mark.parametrize(
    ("content", "condition", "said"),
    [
        (b"id,age\na,61\nb,NA\n", "age > 60", r"try_cast.*columns: id \(varchar\), age \(varchar\)"),
        (b"id;age\na;61,5\n", "age > 60", "decimal comma"),
        (ROWS.encode(), 'sex = "F"', "single quotes"),
        (b"id,age,sex\na,61,M\nb,7\nc\n", "age > 60", "different numbers of fields"),
        ("id,sex\na,m\xe4nnlich\n".encode("latin-1"), "true", "UTF-8"),
        ("id,sex\na,M\n".encode("utf-16"), "true", "cannot be read|UTF-8"),
    ],
)
def test_what_clinical_tables_get_wrong(tmp_path, content, condition, said):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        where(tmp_path / "t.csv", condition)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_marks_between_fields_and_before_the_first(tmp_path, mark):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + ROWS.replace(",", mark).replace("\n", "\r\n").encode())
    assert where(tmp_path / "t.csv", "age > 60").ids == {"a", "c"}
