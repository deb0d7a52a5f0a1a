"""What the reports of comparisons share: verdicts on intervals, their Markdown file and page, and one picture of intervals and scans."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files
from ctfoundry.report import charts
from ctfoundry.report.page import Figure, Heading, Page, Prose, Section, Table, write
from ctfoundry.stats import Interval

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from ctfoundry.report.page import Cell

BETTER, WORSE, UNDECIDED, FEW, MISSING = "better", "worse", "undecided", "too few patients", "not measured"


@dataclass(frozen=True)
class Measure:
    """One number of a method: its name, its text, which way is better (None: neither) and its digits."""

    name: str
    text: str
    higher: bool | None = True
    digits: int = 3

    def shown(self, found: Interval | None) -> str:
        """The number with its interval; nothing where nothing was measured."""
        return "" if found is None else found.text(self.digits)

    def verdict(self, change: Interval | None) -> str:
        """What the interval of a difference (first minus second) says of the first; nothing where neither way is better."""
        if change is None or math.isnan(change.value):
            return MISSING
        if change.low is None or change.high is None:
            return FEW
        if self.higher is None:
            return ""
        if change.low <= 0 <= change.high:
            return UNDECIDED
        return BETTER if (change.value > 0) is self.higher else WORSE

    def judged(self, change: Interval | None) -> str:
        """A difference and its verdict, for a table; without an interval the number says itself that it is an example."""
        word = self.verdict(change)
        if word == MISSING:
            return MISSING
        return self.shown(change) if word == FEW else f"{self.shown(change)} {word}".strip()


def measured(
    headers: Sequence[str],
    rows: Iterable[tuple[Sequence[Cell], Mapping[str, Interval | None]]],
    measures: Sequence[Measure],
    caption: str,
    *,
    judged: bool = False,
    more: Mapping[str, Sequence[Cell]] | None = None,
) -> Table:
    """A table of measures: of each row its first cells and its intervals by the measures' names; `judged` : differences, with verdicts.

    `more` : last columns, by their headers.
    """
    more = more or {}
    shown = [[*cells, *((m.judged if judged else m.shown)(found[m.name]) for m in measures)] for cells, found in rows]
    whole = [[*row, *(column[n] for column in more.values())] for n, row in enumerate(shown)]
    return Table([*headers, *(m.text for m in measures), *more], whole, caption=caption)


def plain(value: Any) -> Any:
    """A summary as JSON takes it: intervals as their numbers, what is no number as None."""
    if isinstance(value, Interval):
        told = {"value": value.value, "low": value.low, "high": value.high, "patients": value.patients}
        return plain(told)
    if isinstance(value, Mapping):
        return {key: plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, eq=False)
class Report:
    """What is told of a comparison.

    Attributes
    ----------
    title, subtitle : at its head. about : how it was made. words : what the intervals say.
    pictures : of the page alone. tables : of both.
    """

    title: str
    subtitle: str
    about: str
    words: Sequence[str]
    pictures: Sequence[Section]
    tables: Sequence[Table]

    def write(self, out: Path, name: str) -> None:
        """Write ``NAME.md`` and ``report.html`` into `out`."""
        lines = [f"# {self.title}", "", self.about, "", "## In words", "", *(f"- {line}" for line in self.words), ""]
        files.write_text(out / f"{name}.md", "\n".join([*lines, "## Tables", "", *map(markdown, self.tables)]))
        sections = [
            Prose(self.about),
            Heading("In words"),
            Prose("\n\n".join(self.words)),
            Heading("Pictures"),
            *self.pictures,
            Heading("Tables"),
            *self.tables,
        ]
        write(out / "report.html", Page(self.title, sections, self.subtitle))


def markdown(table: Table) -> str:
    """A table under its caption, with an empty line behind it."""
    rows = [table.headers, *(["" if cell is None else str(cell) for cell in row] for row in table.rows)]
    first, *rest = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([f"**{table.caption}**", "", first, "|---" * len(table.headers) + "|", *rest, ""])


def intervals(
    rows: Iterable[tuple[str, Interval | None]], text: str, caption: str, alt: str = "", **style: Any
) -> Figure:
    """A chart of named intervals, without those that are None; `style` : what `charts.intervals` takes."""
    drawn = [(name, found.value, found.low, found.high) for name, found in rows if found is not None]
    return Figure(charts.intervals(drawn, xlabel=text, **style), caption, alt or text)


def write_picture(
    path: Path,
    series: Mapping[str, Mapping[str, Interval]],
    pictures: Sequence[tuple[str, UInt8[np.ndarray, "rows columns 3"]]],
    xlabel: str,
    *,
    reference: float | None = None,
    footer: str = "",
) -> None:
    """Write a PNG: named intervals of each of two series on the left, pictures under their captions on the right."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    from ctfoundry.report.text import visible

    names = list(dict.fromkeys(name for own in series.values() for name in own))
    style: dict[Any, Any] = {
        "font.size": 8.5,
        "font.family": ["DejaVu Sans"],
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        canvas = Canvas(figsize=(12, max(2 * len(pictures), 1.2 + 0.4 * len(names))), dpi=100, layout="constrained")
        grid = canvas.add_gridspec(max(len(pictures), 1), 2, width_ratios=(1, 1))
        axes = canvas.add_subplot(grid[:, 0])
        for number, (label, own) in enumerate(series.items()):
            colour, marker = charts.SERIES[number], "os"[number]
            for name, found in own.items():
                several = sum(name in other for other in series.values()) > 1
                place = names.index(name) + (0.28 * number - 0.14 if several else 0)
                if found.low is not None and found.high is not None:
                    axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.4)
                axes.plot(found.value, place, marker, color=colour, markersize=5)
            axes.plot([], [], marker, color=colour, markersize=5, label=visible(label))
        if reference is not None:
            axes.axvline(reference, color="#888", linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_yticks(range(len(names)), [visible(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel(visible(xlabel))
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)
        for row, (caption, picture) in enumerate(pictures):
            shown = canvas.add_subplot(grid[row, 1])
            shown.imshow(picture)
            shown.set_axis_off()
            shown.set_title(textwrap.fill(visible(caption), 88), fontsize=8, pad=3)
        if footer:
            canvas.supxlabel(visible(footer), fontsize=8.5)
        with files.whole(path) as part:
            canvas.savefig(part, format="png", metadata={"Software": None})
