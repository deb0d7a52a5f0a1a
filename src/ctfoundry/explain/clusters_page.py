"""The page of clusters: measures with their baselines, and maps side by side that a person can move about in.

The page is a report (`report.page`) with one script of ours in it; its content security policy allows that script by its hash
and nothing else. Ids and labels are put in as data and shown as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.explain.clusters import Points, Score
from ctfoundry.report import page
from ctfoundry.report.page import Facts, Heading, Page, Prose, Section, Table
from ctfoundry.report.planes import three_planes
from ctfoundry.report.text import visible

if TYPE_CHECKING:
    from jaxtyping import Float64

    from ctfoundry import stats
    from ctfoundry.volume import Volume

THUMBNAIL = 84
"""Rows of a thumbnail."""
_MARKERS = "os^D"


@dataclass(frozen=True, eq=False)
class Panel:
    """One map: its title and the place of each point within -1..1."""

    title: str
    places: Float64[np.ndarray, "n 2"]


@dataclass(frozen=True)
class Row:
    """One measure of one encoder, and its paired difference from the first encoder's."""

    encoder: str
    score: Score
    gap: stats.Interval | None = None


def thumbnail(volume: Volume) -> str:
    """Three small planes as a data URI."""
    return page.data_uri(three_planes(volume, height=THUMBNAIL))


def render(
    points: Points,
    panels: Sequence[Panel],
    rows: Sequence[Row],
    settings: Mapping[str, str],
    *,
    thumbs: Mapping[str, str] | None = None,
    footer: str = "",
) -> str:
    """The page as one HTML document that needs nothing else."""
    text = page.render(_report(points, rows, settings, footer))
    script, style = (_resource(name) for name in ("clusters.js", "clusters.css"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = str(_escaped(page.POLICY))
    parts = [
        (policy, policy + str(_escaped(f"; script-src 'sha256-{allowed}'"))),
        ("</style>\n</head>", f"{style}</style>\n</head>"),
        ('<main id="text">', f'<main id="text">\n{_block(points, panels, thumbs or {}, script)}'),
    ]
    for old, new in parts:
        assert text.count(old) == 1, old  # the report's template and this file go together
        text = text.replace(old, new)
    return text


def _report(points: Points, rows: Sequence[Row], settings: Mapping[str, str], footer: str) -> Page:
    several = any(row.gap is not None for row in rows)
    headers = ["encoder", "measure", "value [95 %]", "labels at random", "p"] + several * ["minus the first"]
    table = []
    for row in rows:
        s = row.score
        line = [row.encoder, s.name, s.interval.text(), f"{s.null:.2f} (95 %: {s.null_high:.2f})", f"{s.p:.3f}"]
        table.append(line + several * ["" if row.gap is None else row.gap.text()])
    left = max((row.score.left_out for row in rows), default=0)
    sections: list[Section] = [
        Prose(
            "Drag to move, wheel to zoom, double click to reset; a click on a label hides it. "
            "Maps are for the eye: they make clusters of noise too, and distances between clusters, sizes and densities "
            "mean nothing in them. Compare several settings, and trust the table."
        ),
        Heading("Measured in the embedding space"),
        Table(
            headers,
            table,
            caption=f"{len(points)} points of {points.people}, cosine; a patient's own scans never count as alike. "
            "Intervals are over patients. In the fourth column the same measure where labels mean nothing."
            + (f" {left} points have a label that no other patient has; they are not measured." if left else ""),
        ),
        Heading("Settings"),
        Facts(settings),
    ]
    return Page("Clusters of embeddings", sections, "Do scans with one label lie together?", footer)


def _block(points: Points, panels: Sequence[Panel], thumbs: Mapping[str, str], script: str) -> str:
    names, counts = _names(points)
    data = {
        "ids": list(points.ids),
        "of": [names.index(label) for label in points.labels],
        "labels": [{"name": n, "count": counts[n], "colour": colour(k)} for k, n in enumerate(names)],
        "panels": [
            {"title": p.title, "x": p.places[:, 0].round(4).tolist(), "y": p.places[:, 1].round(4).tolist()}
            for p in panels
        ],
        "thumbs": {id: thumbs[id] for id in dict.fromkeys(points.ids) if id in thumbs},
    }
    # no tag can begin within the data
    written = (
        visible(json.dumps(data, allow_nan=False))
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
    )
    return (
        f'<div id="clusters"></div>\n<script type="application/json" id="clusters-data">{written}</script>\n'
        f"<script>{script}</script>"
    )


def draw(points: Points, panels: Sequence[Panel], path: Path) -> None:
    """The maps as one PNG."""
    from matplotlib.figure import Figure

    names, counts = _names(points)
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 4.4 * lines + 0.9), layout="constrained")
    of = np.array([names.index(label) for label in points.labels])
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(lines, columns, number)
        axes.set_title(panel.title, fontsize=10, parse_math=False)
        axes.set(xticks=[], yticks=[], xlim=(-1.07, 1.07), ylim=(-1.07, 1.07), aspect="equal")
        for k, name in enumerate(names):
            x, y = panel.places[of == k].T
            axes.scatter(
                x, y, s=22, marker=_MARKERS[k % 4], color=colour(k), edgecolors="white", linewidths=0.4, label=name
            )
    lines_of = figure.axes[0].get_legend_handles_labels()[0]
    legend = figure.legend(
        lines_of,
        [f"{visible(n)} ({counts[n]})" for n in names],
        loc="outside lower center",
        ncols=min(len(names), 6),
        frameon=False,
        fontsize=9,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path, dpi=110, format="png", metadata={"Software": None})


def colour(k: int) -> str:
    """The CSS colour of label number `k`: neighbours are far apart in hue, all are seen on white and on black."""
    import colorsys

    red, green, blue = colorsys.hls_to_rgb((0.58 + k * 0.6180339887498949) % 1.0, (0.5, 0.42)[k % 2], 0.65)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _names(points: Points) -> tuple[list[str], Counter[str]]:
    counts = Counter(points.labels)
    return sorted(counts), counts


def _escaped(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))


def _resource(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
