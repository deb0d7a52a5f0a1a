"""Settings are strict: unknown keys, wrong types and wrong shapes are named, nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctfoundry import settings
from ctfoundry.errors import SettingsError
from ctfoundry.preparation import PREPARATIONS, Preparation


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-3
    steps: int = 10
    mode: Literal["a", "b", 1] = "a"

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError("rate is positive")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner()
    size: tuple[int, int, int] = (1, 2, 3)
    windows: tuple[tuple[float, float], ...] = ()
    crop: tuple[int, int] | None = None
    pad: float | Literal["min", "air"] = "air"
    flag: bool = False
    maybe: Inner | None = None
    table: Mapping[str, float] = field(default_factory=dict)
    extra: Any = None


def test_round_trip_through_json():
    value = Outer(
        "x",
        Inner(0.5, 3, 1),
        (4, 5, 6),
        ((-1.0, 2.0), (0.5, 1e3)),
        (7, 8),
        -2.5,
        True,
        Inner(),
        {"k": 1.5},
        [1, {"a": None}],
    )
    data = json.loads(json.dumps(settings.to_data(value)))
    assert settings.from_data(Outer, data) == value
    assert settings.from_data(Outer, {"name": "y"}) == Outer("y")


@pytest.mark.parametrize("name", sorted(PREPARATIONS))
def test_preparations_round_trip(name):
    data = json.loads(json.dumps(settings.to_data(PREPARATIONS[name])))
    assert settings.from_data(Preparation, data) == PREPARATIONS[name]


@hypothesis.settings(deadline=None)
@given(
    st.floats(1e-6, 1e6), st.integers(), st.booleans(), st.text(), st.none() | st.tuples(st.integers(), st.integers())
)
def test_any_value_round_trips(rate, steps, flag, name, crop):
    value = Outer(name, Inner(rate, steps), flag=flag, crop=crop)
    assert settings.from_data(Outer, json.loads(json.dumps(settings.to_data(value)))) == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "settings: missing key 'name'"),
        ({"nam": "x"}, "settings: unknown key 'nam'; the nearest known one is 'name'"),
        ({"name": "x", "inner": {"rates": 1}}, "settings.inner: unknown key 'rates'; the nearest known one is 'rate'"),
        ({"name": "x", "qqqq": 1}, "known: name, inner, size"),
        ({"name": 3}, "settings.name: expected str, got 3"),
        ({"name": "x", "flag": 1}, "settings.flag: expected bool, got 1"),
        ({"name": "x", "inner": {"steps": True}}, "settings.inner.steps: expected int, got True"),
        ({"name": "x", "inner": {"steps": 1.0}}, "settings.inner.steps: expected int, got 1.0"),
        ({"name": "x", "inner": {"rate": "1"}}, "settings.inner.rate: expected float, got '1'"),
        ({"name": "x", "inner": {"rate": -1}}, "settings.inner: rate is positive"),
        ({"name": "x", "inner": {"mode": "c"}}, "settings.inner.mode: 'c' is not one of 'a', 'b', 1"),
        ({"name": "x", "inner": {"mode": True}}, "settings.inner.mode: True is not one of"),
        ({"name": "x", "inner": 3}, "settings.inner: expected a table for Inner, got 3"),
        ({"name": "x", "size": [1, 2]}, "settings.size: expected 3 values, got 2"),
        ({"name": "x", "size": [1, 2, "3"]}, "settings.size[2]: expected int, got '3'"),
        ({"name": "x", "size": "123"}, "settings.size: expected a list, got '123'"),
        ({"name": "x", "windows": [[0, 1], [2]]}, "settings.windows[1]: expected 2 values, got 1"),
        ({"name": "x", "crop": [1]}, "settings.crop: expected 2 values, got 1"),
        ({"name": "x", "maybe": {"stepz": 1}}, "settings.maybe: unknown key 'stepz'; the nearest known one is 'steps'"),
        ({"name": "x", "pad": "mean"}, "settings.pad: 'mean' fits none of float"),
        ({"name": "x", "table": [1]}, "settings.table: expected a table, got [1]"),
        ({"name": "x", "table": {"k": "v"}}, "settings.table.k: expected float, got 'v'"),
        ([], "settings: expected a table for Outer, got []"),
    ],
)
def test_errors_name_the_place(data, message):
    with pytest.raises(SettingsError) as caught:
        settings.from_data(Outer, data)
    assert message in str(caught.value)


def test_whole_numbers_are_floats_where_floats_are_wanted():
    value = settings.from_data(Outer, {"name": "x", "inner": {"rate": 2}, "pad": 0})
    assert (value.inner.rate, type(value.inner.rate)) == (2.0, float)
    assert (value.pad, type(value.pad)) == (0.0, float)


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("inner.rate=0.25", ("inner", "rate"), 0.25),
        ("inner.rate=1e-4", ("inner", "rate"), 1e-4),
        ("inner.steps=7", ("inner", "steps"), 7),
        ("size=[7,8,9]", ("size",), (7, 8, 9)),
        ("name=a=b", ("name",), "a=b"),
        ("name=", ("name",), ""),
        ('name="7"', ("name",), "7"),
        ("flag=true", ("flag",), True),
        ("crop=null", ("crop",), None),
        ("pad=min", ("pad",), "min"),
        ("maybe={}", ("maybe",), Inner()),
        ('table={"k": 2}', ("table",), {"k": 2.0}),
    ],
)
def test_changes_from_the_command_line(change, path, value):
    got = settings.with_changes(Outer("x", crop=(1, 2)), [change])
    for part in path:
        got = getattr(got, part)
    assert got == value


def test_changes_apply_in_order_and_leave_the_rest():
    start = Outer("x", Inner(0.5))
    got = settings.with_changes(start, ["inner.steps=3", "inner.steps=4"])
    assert got == Outer("x", Inner(0.5, 4))
    assert start == Outer("x", Inner(0.5))
    assert settings.with_changes(start, []) == start


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("inner.rat=1", "unknown key 'rat' in 'inner.rat'; the nearest known one is 'rate'"),
        ("iner.rate=1", "unknown key 'iner' in 'iner.rate'; the nearest known one is 'inner'"),
        ("inner.rate.x=1", "unknown key 'x'"),
        ("inner", "not of the form key=value"),
        ("inner.steps=1.5", "--set.inner.steps: expected int, got 1.5"),
        ("inner.rate=__import__('os')", "--set.inner.rate: expected float"),
        ("inner.rate=-1", "rate is positive"),
        ("inner.rate=NaN", "--set.inner.rate: expected float, got nan"),
        ("name=7", "--set.name: expected str, got 7"),
    ],
)
def test_bad_changes(change, message):
    with pytest.raises(SettingsError) as caught:
        settings.with_changes(Outer("x"), [change])
    assert message in str(caught.value)
