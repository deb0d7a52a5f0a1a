"""Settings are data: plain values to and from frozen dataclasses, strictly.

One mechanism serves preparations, model cards and recipes. A key that no field has is an error that names the nearest
field; a value of the wrong type is an error that names the field. Nothing is ever evaluated.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, Union

from ctfoundry.errors import SettingsError

T = TypeVar("T")


def to_data(value: Any) -> Any:
    """Plain data (dict, list, str, number, bool, None) of a frozen dataclass, for JSON or YAML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_data(v) for v in value]
    return value


def from_data(cls: type[T], data: Any, where: str = "settings") -> T:
    """Build `cls` from plain data; raises SettingsError with the path of the failing key."""
    return typing.cast(T, _build(cls, data, where))


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """' (nearest: ...)' for error messages, or the list of what is known when nothing is near."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"the nearest known one is {close[0]!r}" if close else "known: " + ", ".join(known)


def _build(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(typing.cast(type, kind), data, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _build_union(args, data, where)
    if origin is typing.Literal:
        if not any(type(data) is type(known) and data == known for known in args):  # True is not 1
            raise SettingsError(f"{data!r} is not one of {', '.join(map(repr, args))}", where=where)
        return data
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise SettingsError(f"expected a list, got {data!r}", where=where)
        each = [args[0]] * len(data) if args[-1] is Ellipsis else list(args)
        if len(each) != len(data):
            raise SettingsError(f"expected {len(each)} values, got {len(data)}", where=where)
        return tuple(_build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(each, data, strict=True)))
    if origin in (dict, Mapping):
        if not isinstance(data, Mapping):
            raise SettingsError(f"expected a table, got {data!r}", where=where)
        return {_build(args[0], k, where): _build(args[1], v, f"{where}.{k}") for k, v in data.items()}
    return _build_scalar(kind, data, where)


def _build_scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is type(None) and data is None:
        return None
    if isinstance(data, bool) is (kind is bool) and isinstance(data, kind) and data == data:  # NaN is no setting
        return data
    raise SettingsError(f"expected {getattr(kind, '__name__', kind)}, got {data!r}", where=where)


def _build_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    errors = []
    for kind in kinds:
        try:
            return _build(kind, data, where)
        except SettingsError as error:
            errors.append(error)
    if data is not None and len(kinds) == 2 and type(None) in kinds:
        raise errors[1 - kinds.index(type(None))]
    names = ", ".join(str(getattr(k, "__name__", k)) for k in kinds)
    raise SettingsError(f"{data!r} fits none of {names}", where=where)


def _build_dataclass(cls: type, data: Any, where: str) -> Any:
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise SettingsError(f"expected a table for {cls.__name__}, got {data!r}", where=where)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise SettingsError(f"unknown key {key!r}; {nearest(str(key), fields)}", where=where)
    missing = [n for n, f in fields.items() if n not in data and f.default is f.default_factory is dataclasses.MISSING]
    if missing:
        raise SettingsError(f"missing key {', '.join(map(repr, missing))}", where=where)
    values = {key: _build(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise SettingsError(str(error), where=where) from error


def with_changes(settings: T, changes: typing.Iterable[str]) -> T:
    """Settings with ``a.b=value`` changes applied; values are read as JSON, else taken as text, and checked by type."""
    import json

    data = to_data(settings)
    for change in changes:
        path, sign, text = change.partition("=")
        if not sign:
            raise SettingsError(f"{change!r} is not of the form key=value")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *parents, last = path.split(".")
        place = data
        for part in parents:
            if not isinstance(place, dict) or part not in place:
                known = place if isinstance(place, dict) else ()
                raise SettingsError(f"unknown key {part!r} in {path!r}; {nearest(part, known)}", where="--set")
            place = place[part]
        if not isinstance(place, dict) or last not in place:
            known = place if isinstance(place, dict) else ()
            raise SettingsError(f"unknown key {last!r} in {path!r}; {nearest(last, known)}", where="--set")
        place[last] = value
    return from_data(type(settings), data, "--set")
