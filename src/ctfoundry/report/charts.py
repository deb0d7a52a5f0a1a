"""Small charts as inline SVG: lines, dots with intervals, bars.

Drawn by matplotlib, then made fit to stand inside a page: text stays text, ink is the page's own text colour, series colours
are CSS variables with a fallback (`SERIES`), so one chart serves light and dark mode. The same data give the same bytes.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry.errors import UsageError
from ctfoundry.files import digest
from ctfoundry.report.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = ("#2b6cb0", "#c2570c", "#2f855a", "#8a4fb5", "#b83260", "#6b7280")
"""Colours of series 1..6 where a page sets no ``--series-1`` .. ``--series-6``; told apart by all kinds of colour vision,
because lines differ in dashes too."""

_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1)), (0, (1, 3)))
_INK = "#010203"
"""Stands for the page's text colour until the SVG is written; a colour that nothing else uses."""
_FAINT = "#010204"
"""The same for grid lines: text colour, mostly transparent."""
_WIDTH = 7.2
"""Inches. One inch is 72 units of the SVG, so that 9-point text is readable at the width of a column."""


@dataclass(frozen=True)
class Svg:
    """An SVG drawing made by this module; pages embed it as it is.

    Attributes
    ----------
    markup : one ``<svg>`` element.
    width : its natural width in CSS pixels.
    """

    markup: str
    width: int

    def __post_init__(self) -> None:
        found = _ACTIVE.search("".join(_TAG.findall(self.markup)))
        if found or not self.markup.startswith("<svg"):
            raise UsageError(
                f"an SVG for a page holds drawings only, not {found.group(0)!r}" if found else "not an <svg> element",
                do="draw it with ctfoundry.report.charts",
            )


_TAG = re.compile(r"<[^>]*>")
_ACTIVE = re.compile(
    r"<(?:script|foreignObject|iframe|image|a|animate|set|style)\b|<!|<\?|[\s\"']on\w+\s*=|javascript:|url\((?!#)|href\s*=\s*[\"'](?!#)",
    re.IGNORECASE,
)


def lines(
    series: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log_y: bool = False,
    reference: float | None = None,
    bands: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]] | None = None,
    marks: Sequence[tuple[float, float, str]] = (),
    height: float = 2.7,
) -> Svg:
    """One line for each name -> (x, y); values that are not finite leave a gap.

    `reference` draws a thin horizontal line, for chance or a baseline. `bands` shade the space from low to high about the line of
    the same name (an interval at each x); `marks` are dots (x, y, label). `height` is in inches of 96 CSS pixels.
    """
    bands = bands or {}
    if set(bands) - set(series):
        raise UsageError(f"bands of lines that are not there: {sorted(set(bands) - set(series))}")
    with _figure(height) as (figure, axes):
        for n, (name, (x, y)) in enumerate(series.items()):
            if len(x) != len(y):
                raise UsageError(f"line {name!r} has {len(x)} x and {len(y)} y")
            style: dict[str, Any] = {
                "color": SERIES[n % 6],
                "linestyle": _DASHES[n % 6] if len(series) > 1 else "-",
            }
            axes.plot(np.asarray(x, float), np.asarray(y, float), linewidth=1.6, label=visible(name), **style)
            if name in bands:
                low, high = (np.asarray(bound, float) for bound in bands[name])
                axes.fill_between(np.asarray(x, float), low, high, color=SERIES[n % 6], alpha=0.18, linewidth=0)
        for across, up, label in marks:
            axes.plot([across], [up], marker="o", markersize=5, color=_INK, linestyle="none")
            axes.annotate(
                visible(label), (across, up), xytext=(0, 7), textcoords="offset points", ha="center", color=_INK
            )
        if log_y:
            axes.set_yscale("log")
            _plain_log(axes)
        if reference is not None:
            axes.axhline(reference, color=_INK, linewidth=0.8, linestyle=(0, (2, 2)), alpha=0.6)
        axes.grid(axis="y", color=_FAINT, linewidth=0.6)
        _names(axes, xlabel, ylabel, title)
        axes.margins(x=0.01)
        if len(series) > 1:
            _legend(axes, len(series), bool(title))
        drawn = [{k: [list(map(float, v)) for v in both] for k, both in data.items()} for data in (series, bands)]
        return _svg(figure, ("lines", drawn[0], title, *([drawn[1]] if bands else []), *marks))


def intervals(
    rows: Sequence[tuple[str, float, float | None, float | None]],
    *,
    xlabel: str,
    title: str = "",
    reference: float | None = None,
    marked: Sequence[int] = (),
    digits: int = 2,
) -> Svg:
    """A dot and a whisker for each (name, value, low, high), with the numbers beside them.

    Without low and high only the dot is drawn. `reference` draws a vertical line (0 for differences, chance for rates);
    rows numbered in `marked` take the first series' colour, the others the text's.
    """
    with _figure(0.75 + 0.3 * max(1, len(rows)) + (0.3 if title else 0)) as (figure, axes):
        for n, (_, value, low, high) in enumerate(rows):
            colour = SERIES[0] if n in marked else _INK
            if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
                axes.plot([low, high], [n, n], color=colour, linewidth=1.4, solid_capstyle="butt")
            axes.plot([value], [n], marker="o", markersize=5, color=colour, linestyle="none")
            axes.annotate(
                _numbers(value, low, high, digits),
                (1.015, n),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=9,
                color=_INK,
                annotation_clip=False,
            )
        if reference is not None:
            axes.axvline(reference, color=_INK, linewidth=0.8, linestyle=(0, (2, 2)), alpha=0.6)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [visible(name) for name, *_ in rows])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=_FAINT, linewidth=0.6)
        axes.margins(x=0.05)
        _names(axes, xlabel, "", title)
        return _svg(figure, ("intervals", [list(map(str, row)) for row in rows], title))


def bars(
    values: Mapping[str, float],
    *,
    xlabel: str,
    title: str = "",
    reference: float | None = None,
    marked: Sequence[int] = (),
    digits: int = 2,
) -> Svg:
    """A horizontal bar from zero for each name, with its number at the end; not for values with an interval (`intervals`)."""
    from matplotlib.ticker import MaxNLocator

    with _figure(0.75 + 0.3 * max(1, len(values)) + (0.3 if title else 0)) as (figure, axes):
        for n, value in enumerate(values.values()):
            axes.barh(n, value, height=0.62, color=SERIES[0] if n in marked or not marked else SERIES[5], linewidth=0)
            axes.annotate(
                f"{value:.{digits}f}",
                (value, n),
                xytext=(4 if value >= 0 else -4, 0),
                textcoords="offset points",
                ha="left" if value >= 0 else "right",
                va="center",
                fontsize=9,
                color=_INK,
            )
        axes.axvline(reference or 0, color=_INK, linewidth=0.8, alpha=0.6, linestyle=(0, (2, 2)) if reference else "-")
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_yticks(range(len(values)), [visible(name) for name in values])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.1)
        if digits == 0:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", color=_FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        _names(axes, xlabel, "", title)
        return _svg(figure, ("bars", {k: float(v) for k, v in values.items()}, title))


def heat_key(low: str, high: str, *, title: str = "") -> Svg:
    """The colour scale of heat maps (`planes.HEAT`) with a word at either end."""
    from html import escape

    from ctfoundry.report.planes import heat_colours

    stops = "".join(
        f'<stop offset="{t:.3f}" stop-color="#{r:02x}{g:02x}{b:02x}"/>'
        for t, (r, g, b) in zip(
            np.linspace(0, 1, 17), (heat_colours(np.linspace(0, 1, 17)) * 255 + 0.5).astype(int), strict=True
        )
    )
    text = 'style="font-size: 12px; fill: currentColor"'
    return Svg(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 360 34" width="360" role="img">'
        f'<defs><linearGradient id="heat-key">{stops}</linearGradient></defs>'
        f'<rect x="0" y="0" width="360" height="10" rx="2" fill="url(#heat-key)"/>'
        f'<text x="0" y="27" {text}>{escape(visible(low))}</text>'
        f'<text x="180" y="27" text-anchor="middle" {text}>{escape(visible(title))}</text>'
        f'<text x="360" y="27" text-anchor="end" {text}>{escape(visible(high))}</text></svg>',
        360,
    )


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure in our style; matplotlib's global state and settings stay as they were."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: searchable, small, in the page's own font
        "text.parse_math": False,  # a dollar sign in a scan's name is a dollar sign
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, so the layout is one everywhere
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "axes.unicode_minus": True,
        "legend.frameon": False,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        # names may hold letters that DejaVu lacks; the browser has them
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, figure.add_subplot()


def _names(axes: Axes, xlabel: str, ylabel: str, title: str) -> None:
    axes.set_xlabel(visible(xlabel))
    axes.set_ylabel(visible(ylabel))
    if title:
        axes.set_title(visible(title), loc="left", pad=10)


def _legend(axes: Axes, count: int, titled: bool) -> None:
    axes.legend(
        loc="lower right" if titled else "lower left",
        bbox_to_anchor=(1.0, 1.0) if titled else (0.0, 1.0),
        ncols=min(count, 4),
        borderaxespad=0.2,
        handlelength=2.4,
        columnspacing=1.4,
    )


def _plain_log(axes: Axes) -> None:
    """Ticks such as 0.01 and 30 in place of powers of ten, which would need mathematical text."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 3), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _numbers(value: float, low: float | None, high: float | None, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text if low is None or high is None else f"{text}  [{low:.{digits}f}, {high:.{digits}f}]"


def _svg(figure: Figure, content: Any) -> Svg:
    """The figure as one inline element: no prologue, no metadata, no dates, ids that depend on the content only."""
    import io

    import matplotlib as mpl

    stream = io.StringIO()
    salt = digest(repr(content))[:12]
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text)  # names of layers, alike in all charts
    text = _TAG.sub(_restyle, text)
    width = round(figure.get_figwidth() * 96)
    text = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        rf'<svg xmlns="http://www.w3.org/2000/svg" \1 width="{width}" role="img">',
        text,
        count=1,
    )
    return Svg(re.sub(r"\n\s*", "\n", text), width)


def _restyle(tag: re.Match[str]) -> str:
    """One tag with the page's font and colours; names that the user gave stand between tags and stay as they are."""
    text = tag.group(0).replace("xlink:href", "href")
    bold = "; font-weight: 600" if "font: bold" in text else ""
    text = re.sub(r"font: (?:bold )?([\d.]+)px [^;\"]*", rf"font-size: \1px{bold}", text)
    text = re.sub(rf"(fill|stroke): {_FAINT}", r"\1: currentColor; \1-opacity: 0.14", text)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", text)
    text = text.replace(_INK, "currentColor")
    for n, colour in enumerate(SERIES, 1):
        text = text.replace(f": {colour}", f": var(--series-{n}, {colour})")
    return text
