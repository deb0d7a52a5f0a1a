"""Which ids a condition on a table chooses: ``age > 60 and sex = 'F'``.

The table (CSV or Parquet, with a column of ids) is read first; the condition then runs where nothing but this table can be
reached. Before that its syntax tree is checked: columns, constants, comparisons, arithmetic and a few functions of text and
numbers, and nothing else, no query inside it among that.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctfoundry.errors import UsageError
from ctfoundry.settings import nearest

LONGEST = 2000
"""Most characters of a condition."""
FUNCTIONS = frozenset(
    (
        "~~", "!~~", "~~*", "!~~*", "+", "-", "*", "/", "//", "%", "abs", "round", "floor", "ceil", "lower", "upper", "trim",
        "length", "contains", "starts_with", "ends_with", "prefix", "suffix", "coalesce", "year", "month", "day",
    )
)  # fmt: skip
CLASSES = frozenset(
    ("COMPARISON", "CONJUNCTION", "COLUMN_REF", "CONSTANT", "OPERATOR", "BETWEEN", "CASE", "CAST", "FUNCTION")
)


@dataclass(frozen=True)
class Chosen:
    """What a condition chooses: `ids` of rows that meet it; `known` : all ids of the table; `repeated` : those in several rows."""

    ids: frozenset[str]
    known: frozenset[str]
    repeated: frozenset[str]

    def of(self, there: Collection[str], table: Path) -> str:
        """What to say where the table and the ids `there` in an index differ, or ids stand in several rows; "" otherwise.

        Raises UsageError where they have nothing in common: the column is not the one of ids, or names scans otherwise.
        """
        there = set(there)
        if there and not there & self.known:
            one = f", such as {min(self.known)!r}; the index has {min(there)!r}" if self.known else ""
            raise UsageError(
                f"none of its {len(self.known)} ids is in the index{one}",
                where=table,
                do="name the column of ids (--table-id); `ctfoundry embeddings export OUT csv --names` says which id is which file",
            )
        said = []
        if missing := len(there - self.known):
            said.append(f"{missing} of {len(there)} scans of the index have no row in {table.name} and are left out")
        if repeated := len(self.repeated & there):
            said.append(
                f"{repeated} scans have several rows in {table.name} and are taken where one of them meets the condition"
            )
        return "; ".join(said)


def where(table: Path, condition: str, *, id: str = "id") -> Chosen:
    """What the condition (an SQL expression over the table's columns) chooses; blanks around ids do not count.

    Raises UsageError for a table that cannot be read or has no column `id`, and for a condition that is none, names an
    unknown column, or holds anything but the columns, constants and functions above.
    """
    import duckdb

    if not table.is_file():
        raise UsageError("is no file", where=table, do="--table takes a CSV or Parquet file with a column of ids")
    if len(condition) > LONGEST:
        raise UsageError(f"the condition has more than {LONGEST} characters", where="--where")
    reader = "read_parquet" if table.suffix == ".parquet" else "read_csv"
    with duckdb.connect(config={"threads": 1}) as base:
        try:
            base.execute(f"CREATE TABLE meta AS SELECT * FROM {reader}($1)", [str(table)])
        except duckdb.Error as error:
            if "not utf-8" in str(error):
                raise UsageError(
                    "is no text in UTF-8", where=table, do="save it as 'CSV UTF-8', or as Parquet"
                ) from error
            raise UsageError(f"cannot be read ({_first(error)})", where=table) from error
        base.execute("SET enable_external_access = false")
        base.execute("SET autoinstall_known_extensions = false")
        base.execute("SET lock_configuration = true")
        columns = {name: kind for name, kind, *_ in base.execute("DESCRIBE meta").fetchall()}
        if id not in columns and len(columns) == 1 and any(mark in next(iter(columns)) for mark in ",;\t|"):
            raise UsageError(
                "its lines have different numbers of fields, so it has no columns", where=table, do="mend it"
            )
        if id not in columns:
            raise UsageError(
                f"has no column {id!r}; {nearest(id, columns)}", where=table, do="name the column of ids (--table-id)"
            )
        name = f"""trim(CAST("{id.replace('"', '""')}" AS VARCHAR))"""
        query = f"SELECT DISTINCT {name} FROM meta WHERE ({condition}\n)"
        tree = json.loads(base.execute("SELECT json_serialize_sql($1)", [query]).fetchall()[0][0])
        if tree["error"]:
            raise UsageError(f"is no condition ({tree.get('error_message', '')})", where=condition)
        _check(tree, condition)
        try:
            found = base.execute(query).fetchall()
        except duckdb.Error as error:
            raise UsageError(f"cannot be asked ({_first(error)})", where=condition, do=_hint(columns, error)) from error
        each = base.execute(f"SELECT {name}, count(*) FROM meta GROUP BY 1").fetchall()
    return Chosen(
        frozenset(id for (id,) in found if id),
        frozenset(id for id, _ in each if id),
        frozenset(id for id, count in each if id and count > 1),
    )


def _hint(columns: dict[str, str], error: Exception) -> str:
    """The columns with their types, and what is wrong where that is known."""
    known = ", ".join(f"{name} ({kind.lower()})" for name, kind in [*columns.items()][:12])
    hint = ""
    if "Cannot compare values of type VARCHAR" in str(error):
        hint = (
            "a column with a word (NA) or a decimal comma in it is text: try_cast(COLUMN as double) > 60, or mend it; "
        )
    elif "Referenced column" in str(error):
        hint = "texts stand in single quotes: sex = 'F'; "
    return f"{hint}columns: {known}{' ...' if len(columns) > 12 else ''}"


def _check(tree: dict[str, Any], condition: str) -> None:
    """Raise unless the tree is one plain question to the table with an allowed condition."""
    statements = tree["statements"]
    node = statements[0]["node"] if len(statements) == 1 else {}
    source = node.get("from_table", {})
    plain = (
        node.get("type") == "SELECT_NODE"
        and source.get("type") == "BASE_TABLE"
        and (source.get("table_name"), source.get("schema_name"), source.get("sample")) == ("meta", "", None)
        and not node["cte_map"]["map"]
        and len(node["select_list"]) == 1
        and all(not node.get(key) for key in ("group_expressions", "group_sets", "having", "sample", "qualify"))
        and all(modifier["type"] == "DISTINCT_MODIFIER" for modifier in node["modifiers"])
    )
    if not plain:
        raise UsageError("is more than one condition", where=condition, do="write it as after WHERE: age > 60")
    _check_expression(node["where_clause"], condition)


def _check_expression(part: Any, condition: str) -> None:
    if isinstance(part, list):
        for each in part:
            _check_expression(each, condition)
    elif isinstance(part, dict):
        kind = part.get("class")
        if kind is not None and kind not in CLASSES:
            raise UsageError(f"may not hold a {kind.lower()}", where=condition, do="compare columns with constants")
        if kind == "FUNCTION":
            name = part["function_name"]
            if name not in FUNCTIONS or part.get("schema") or part.get("catalog") or part.get("filter"):
                raise UsageError(
                    f"may not call {name!r}; {nearest(name, sorted(f for f in FUNCTIONS if f[0].isalpha()))}",
                    where=condition,
                )
        if kind is None and ("node" in part or "from_table" in part):
            raise UsageError("may not hold a query", where=condition)
        for key, each in part.items():
            if key != "value":
                _check_expression(each, condition)


def _first(error: Exception) -> str:
    """The first line of what went wrong, and the next that says more than the line of the file, which may name somebody."""
    first, *others = str(error).splitlines()
    return first + "".join(f"; {line}" for line in others[1:2] if others[0].startswith("Original Line") and line)
