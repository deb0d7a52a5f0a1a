"""Charts are inert, well-formed, the same every time, and made of the page's own colours."""

from __future__ import annotations

import functools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from ctfoundry.errors import UsageError
from ctfoundry.report import charts

STEPS = np.arange(50)
HOSTILE = '"><script>alert(1)</script> onload=x javascript:y $\\frac{1}{0}$ font: 9px x'


@functools.cache
def all_charts(name: str = "train") -> dict[str, charts.Svg]:
    return {
        "lines": charts.lines({name: (STEPS, STEPS**0.5), "b": (STEPS, -STEPS)}, xlabel=name, ylabel=name, title=name),
        "log": charts.lines(
            {name: (STEPS, 10.0 ** (-STEPS / 10))}, xlabel="step", ylabel="rate", log_y=True, reference=0.1
        ),
        "intervals": charts.intervals(
            [(name, 1, 0, 2), ("b", 3.0, None, None)], xlabel=name, title=name, reference=0, marked=[0]
        ),
        "bars": charts.bars({name: 3, "b": -1.5}, xlabel=name, title=name),
        "key": charts.heat_key(name, name, title=name),
    }


def words(chart: charts.Svg) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(chart.markup).iter() if element.tag.endswith("text")
    ]


@pytest.mark.parametrize("kind", ["lines", "log", "intervals", "bars", "key"])
def test_well_formed_and_self_contained(kind: str):
    chart = all_charts()[kind]
    root = ElementTree.fromstring(chart.markup)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert chart.markup.count("http") == 1  # the name space, which loads nothing
    assert "train" in words(chart) or kind == "log"
    for element in root.iter():
        assert element.get("href", "#").startswith("#")
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_ink_is_the_pages_own():
    markup = all_charts()["lines"].markup
    assert "currentColor" in markup
    assert f"var(--series-1, {charts.SERIES[0]})" in markup
    assert f"var(--series-2, {charts.SERIES[1]})" in markup
    assert "#01020" not in markup
    assert "#000000" not in markup


@functools.cache
def again() -> dict[str, charts.Svg]:
    return all_charts.__wrapped__()


@pytest.mark.parametrize("kind", ["lines", "log", "intervals", "bars", "key"])
def test_the_same_data_give_the_same_bytes(kind: str):
    assert all_charts()[kind].markup == again()[kind].markup


@pytest.mark.parametrize("kind", ["lines", "intervals", "bars", "key"])
def test_hostile_names_are_only_text(kind: str):
    chart = all_charts(HOSTILE)[kind]
    assert HOSTILE in words(chart)
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(chart.markup).iter()}
    assert "script" not in tags


def test_matplotlib_is_left_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    charts.bars({"a": 1}, xlabel="n")
    assert dict(matplotlib.rcParams) == before


def test_gaps_foreign_letters_and_emptiness():
    chart = charts.lines({"损失 ✓": (STEPS, np.where(STEPS % 7, STEPS, np.nan))}, xlabel="шаг", ylabel="損失")
    assert "損失" in words(chart)
    charts.bars({"undecodable \udc80 and \x00": 1}, xlabel="n")
    charts.lines({}, xlabel="step", ylabel="loss")
    charts.intervals([], xlabel="mm")
    charts.bars({}, xlabel="n")
    charts.intervals([("a", 1.0, math.nan, math.nan)], xlabel="mm")


def test_numbers_are_written_beside():
    assert next(
        word.split()
        for word in words(charts.intervals([("a", 28.9, 22.1, 37.5)], xlabel="mm", digits=1))
        if "[" in word
    ) == ["28.9", "[22.1,", "37.5]"]
    assert "12" in words(charts.bars({"a": 12}, xlabel="patients", digits=0))


def test_uneven_lines_are_refused():
    with pytest.raises(UsageError, match="line 'a' has 2 x and 3 y"):
        charts.lines({"a": ([1, 2], [1, 2, 3])}, xlabel="", ylabel="")


@pytest.mark.parametrize(
    "markup",
    [
        "<p>no</p>",
        "<svg><script>x</script></svg>",
        '<svg onload="x"></svg>',
        '<svg><a href="javascript:x">y</a></svg>',
        '<svg><use href="http://x/y#z"/></svg>',
        '<svg><image href="data:image/png;base64,"/></svg>',
        "<svg><foreignObject/></svg>",
        '<svg style="background: url(http://x)"></svg>',
        "<svg><style>@import 'x'</style></svg>",
    ],
)
def test_active_drawings_are_refused(markup: str):
    with pytest.raises(UsageError):
        charts.Svg(markup, 100)


def test_bands_lie_about_their_lines_and_marks_carry_labels():
    """The band's outline passes through low and high, in the axes' own units, and a mark through its point."""
    x, y = [0.0, 1.0, 2.0], [1.0, 2.0, 3.0]
    plain = charts.lines({"a": (x, y)}, xlabel="x", ylabel="y")
    chart = charts.lines(
        {"a": (x, y)}, xlabel="x", ylabel="y", bands={"a": ([0.0] * 3, [4.0] * 3)}, marks=[(1.0, 2.0, "best <1>")]
    )
    assert words(chart).count("best <1>") == 1
    assert chart.markup.count("fill-opacity: 0.18") > plain.markup.count("fill-opacity: 0.18")
    paths = [re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", d) for d in re.findall(r' d="([^"]*)"', chart.markup)]
    band = next(p for p in paths if len(p) > 6)
    line = next(p for p in paths if len(p) == 3)
    below = float(re.findall(r'<use [^>]* y="([\d.]+)" style="[^"]*fill-opacity: 0.18', chart.markup)[0])
    high, low = sorted({round(float(up) + below, 3) for _, up in band})  # both level; an SVG counts downwards
    assert [round(4 * (low - float(up)) / (low - high), 3) for _, up in line] == y
    with pytest.raises(UsageError, match="not there"):
        charts.lines({"a": (x, y)}, xlabel="x", ylabel="y", bands={"b": (x, y)})
