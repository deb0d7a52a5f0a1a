"""Recipes on disk, of any kind: those of the package, and a user's own YAML or JSON. No code, no expressions; unknown keys name the
nearest one.

A recipe may be written as its differences from another: ``like: NAME`` names a recipe of the package, ``like: FILE.yaml`` a file
in the same folder. Tables are merged key by key, everything else (lists too) is replaced. The differences are resolved
once, when the file is read: what a run keeps in ``recipe.json`` is always whole.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ctfoundry.errors import SettingsError
from ctfoundry.settings import from_data, nearest, to_data

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from yaml import SafeLoader

T = TypeVar("T")

FILES = (".yaml", ".yml", ".json")
DEPTH = 8
"""The longest chain of ``like``: a longer one can no longer be read by a person."""
LARGEST = 1_000_000
"""Bytes of a recipe file."""


def names(folder: str = "") -> list[str]:
    """Names of the recipes that come with the package, in a folder of its recipes: "" pretraining, ``finetune``."""
    return sorted(item.name.removesuffix(".yaml") for item in _shelf(folder).iterdir() if item.name.endswith(".yaml"))


def load(kind: type[T] | Mapping[str, type[T]], recipe: str | Path, folder: str = "") -> T:
    """A recipe by its name in a folder of the package, or from a YAML or JSON file.

    kind: the dataclass that recipes of this folder are, or several by the value of their key ``task``. One that is like another
    is of the other's kind.

    Raises SettingsError for anything it does not know, for a ``like`` that leads nowhere, round in a circle or through more
    than `DEPTH` files, and for a file with ``like`` that has no ``name`` of its own.
    """
    return _load(kind, recipe, folder, ())


def _load(kind: type[T] | Mapping[str, type[T]], recipe: str | Path, folder: str, chain: tuple[str, ...]) -> T:
    data, where = _read(recipe, folder)
    chain = (*chain, where)
    if where in chain[:-1]:
        raise SettingsError(f"`like` goes round: {' -> '.join(chain)}", where=chain[0])
    if len(chain) > DEPTH:
        raise SettingsError(f"more than {DEPTH} recipes are like one another: {' -> '.join(chain)}", where=chain[0])
    if not isinstance(data, Mapping) or "like" not in data:
        one = _kind_of(data, kind, where) if isinstance(kind, Mapping) else kind
        return from_data(one, _checked(one, data, where), where)
    own = {key: value for key, value in data.items() if key != "like"}
    if isinstance(kind, type):
        _checked(kind, own, where)
    if "name" not in own:
        raise SettingsError("a recipe that is like another needs a `name` of its own", where=where)
    base = _load(kind, _base(data["like"], recipe, where, folder), folder, chain)
    one = type(base)
    whole = to_data(base)
    whole["source"] = f"as {whole['name']}, changed"
    return from_data(one, _merged(whole, _checked(one, own, where)), where)


def _kind_of(data: Any, kinds: Mapping[str, type[T]], where: str) -> type[T]:
    task = data.get("task") if isinstance(data, Mapping) else None
    if not isinstance(task, str) or task not in kinds:
        raise SettingsError(f"`task` says what kind of recipe this is: {' or '.join(kinds)}, not {task!r}", where=where)
    return kinds[task]


def _base(like: Any, recipe: str | Path, where: str, folder: str) -> str | Path:
    """What ``like`` names, as `load` takes it."""
    if not isinstance(like, str):
        raise SettingsError(f"`like` is the name of a recipe or of a file beside this one, not {like!r}", where=where)
    if Path(like).suffix not in FILES:
        return _known(like, folder, where)
    beside = Path(recipe).parent / like
    if Path(like).name != like or Path(recipe).suffix not in FILES:
        raise SettingsError(f"`like` names a file in the same folder, not {like!r}", where=where)
    if not beside.is_file():
        raise SettingsError(f"`like` names {like}, which is not in this folder", where=where)
    return beside


def _known(name: str, folder: str, where: str | None = None) -> str:
    known = names(folder)
    if name not in known:
        raise SettingsError(f"no recipe is called {name!r}; {nearest(name, known)}", where=where)
    return name


def _shelf(folder: str) -> Traversable:
    shelf = resources.files("ctfoundry") / "recipes"
    return shelf / folder if folder else shelf


def _merged(base: Any, own: Any) -> Any:
    """`own` over `base`: tables key by key, everything else replaced."""
    if not (isinstance(base, Mapping) and isinstance(own, Mapping)):
        return own
    return {**base, **{key: _merged(base.get(key), value) for key, value in own.items()}}


def _checked(kind: type, data: Any, where: str) -> Any:
    """The same data; raises SettingsError for the first unknown key, with its path and the nearest known path."""
    for path, key, known in _unknown(kind, data if isinstance(data, Mapping) else {}, ""):
        everywhere = {full.rpartition(".")[2]: full for full in _paths(kind, "")}
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        if key in everywhere:  # it stands at the wrong level
            hint = f"it is {everywhere[key]!r}"
        else:
            hint = f"the nearest known one is {path + near[0]!r}" if near else "known: " + ", ".join(known)
        raise SettingsError(f"unknown key {path + key!r}; {hint}", where=where)
    return data


def _unknown(cls: type, data: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, list[str]]]:
    fields = _fields(cls)
    for key, value in data.items():
        if key not in fields:
            yield path, str(key), list(fields)
        elif (table := fields[key]) is not None and isinstance(value, Mapping):
            yield from _unknown(table, value, f"{path}{key}.")


def _paths(cls: type, path: str) -> Iterator[str]:
    for key, table in _fields(cls).items():
        yield path + key
        if table is not None:
            yield from _paths(table, f"{path}{key}.")


def _fields(cls: type) -> dict[str, type | None]:
    """The keys of a dataclass; of those that are tables, the dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: _table(hints[field.name]) for field in dataclasses.fields(cls)}


def _table(kind: Any) -> type | None:
    either = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return next((k for k in either if isinstance(k, type) and dataclasses.is_dataclass(k)), None)


def _read(recipe: str | Path, folder: str) -> tuple[Any, str]:
    """What a file says, as plain data, and what to call it in errors."""
    path = Path(recipe)
    if path.suffix in FILES:
        if not path.is_file():
            raise SettingsError("no such file", where=path, do=f"known recipes: {', '.join(names(folder))}")
        if path.stat().st_size > LARGEST:
            raise SettingsError(f"is larger than {LARGEST} bytes, which no recipe is", where=path)
        raw, where = path.read_bytes(), str(path)
    else:
        where = f"recipe {_known(str(recipe), folder)}"
        raw = (_shelf(folder) / f"{recipe}.yaml").read_bytes()
    try:
        text = raw.decode()
        return json.loads(text) if path.suffix == ".json" else _yaml(text, where), where
    except UnicodeDecodeError as error:
        raise SettingsError("is not text in UTF-8", where=where) from error
    except json.JSONDecodeError as error:
        raise SettingsError(f"is not JSON: {error}", where=where) from error
    except RecursionError as error:
        raise SettingsError("is nested more deeply than any recipe", where=where) from error


def _yaml(text: str, where: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise SettingsError(
            "reading YAML needs PyYAML, which is not installed here",
            where=where,
            do="install it, or write the recipe as JSON elsewhere (`RUN/recipe.json` is one)",
        ) from error
    try:
        return yaml.load(text, Loader=_strict_loader())
    except yaml.YAMLError as error:
        raise SettingsError(f"is not YAML: {error}".replace("\n", " "), where=where) from error


def _strict_loader() -> type[SafeLoader]:
    """A safe loader that refuses a key given twice and an alias, and takes ``1e-4`` for the number that it is (YAML 1.2).

    Ten lines of aliases make a list of a billion entries; a recipe that is like another says ``like``.
    """
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.constructor.ConstructorError(
                    None, None, "an alias (*NAME); write it out, or use `like`", mark
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
            return super().construct_mapping(node, deep=deep)

    number = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader
