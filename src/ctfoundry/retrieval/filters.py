"""Which ids a condition on a table chooses: ``age > 60 and sex = 'F'``.

The table (CSV or Parquet, with a column of ids) is read first; the condition then runs where nothing but this table can be
reached. Before that its syntax tree is checked: columns, constants, comparisons, arithmetic and a few functions of text and
numbers, and nothing else, no query inside it among that.
"""

from __future__ import annotations

import json
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


def where(table: Path, condition: str, *, id: str = "id") -> set[str]:
    """The ids of the table's rows that meet the condition (an SQL expression over the table's columns).

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
            raise UsageError(f"cannot be read ({_first(error)})", where=table) from error
        base.execute("SET enable_external_access = false")
        base.execute("SET autoinstall_known_extensions = false")
        base.execute("SET lock_configuration = true")
        columns = [name for name, *_ in base.execute("DESCRIBE meta").fetchall()]
        if id not in columns:
            raise UsageError(
                f"has no column {id!r}; {nearest(id, columns)}", where=table, do="name the column of ids (--table-id)"
            )
        query = f'SELECT DISTINCT CAST("{id.replace(chr(34), chr(34) * 2)}" AS VARCHAR) FROM meta WHERE ({condition}\n)'
        tree = json.loads(base.execute("SELECT json_serialize_sql($1)", [query]).fetchall()[0][0])
        if tree["error"]:
            raise UsageError(f"is no condition ({tree.get('error_message', '')})", where=condition)
        _check(tree, condition)
        try:
            found = base.execute(query).fetchall()
        except duckdb.Error as error:
            known = ", ".join(columns[:12]) + (" ..." if len(columns) > 12 else "")
            raise UsageError(f"cannot be asked ({_first(error)})", where=condition, do=f"columns: {known}") from error
    return {id for (id,) in found if id is not None}


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
                raise UsageError(f"may not call {name!r}; {nearest(name, sorted(FUNCTIONS))}", where=condition)
        if kind is None and ("node" in part or "from_table" in part):
            raise UsageError("may not hold a query", where=condition)
        for key, each in part.items():
            if key != "value":
                _check_expression(each, condition)


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0]
