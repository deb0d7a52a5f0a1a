"""One report as one HTML file that needs nothing else: no scripts, no fonts, no network.

A page is data (`Page` and its sections, all frozen); `render` turns it into text. All text is escaped, pictures are
embedded as WebP, drawings come from `ctfoundry.report.charts` only, and a content security policy forbids everything else,
so that a name from a DICOM header can do no harm in somebody's browser. The same page gives the same bytes.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ctfoundry import files
from ctfoundry.errors import UsageError
from ctfoundry.report.charts import Svg
from ctfoundry.report.text import visible

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from jinja2 import Environment
    from markupsafe import Markup

    Picture = UInt8[np.ndarray, "rows columns 3"]
    Cell = str | int | float | None

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Content security policy of every page: embedded pictures and styles, nothing from anywhere else, no scripts."""

QUALITY = 86
"""WebP quality of pictures: letters and one-pixel crosshairs stay clean; three planes of 600 x 200 take about 20 kB."""


@dataclass(frozen=True)
class Heading:
    """A heading; level 2 (a chapter) and 3 stand in the contents."""

    text: str
    level: Literal[2, 3, 4] = 2


@dataclass(frozen=True)
class Prose:
    """Paragraphs, parted by blank lines. ``**strong**`` and a word between backticks (code) are set so; all else is text."""

    text: str


@dataclass(frozen=True)
class Numbers:
    """Few large numbers with what they count, such as ("41", "patients")."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows under headers.

    Attributes
    ----------
    headers, rows : cells are shown as `str` gives them; None is shown as a dash. The first column names its row.
    align : one of l, c, r for each column; default: r where all cells are numbers, l elsewhere.
    caption : stands above, after the table's number.
    marked : rows set off from the others (the run that the report is about), never "the best".
    sortable : a click on a column's name sorts by it, a second one the other way. Done by style alone: each cell's rank is in the page.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    align: str = ""
    caption: str = ""
    marked: Sequence[int] = ()
    sortable: bool = False

    def __post_init__(self) -> None:
        width = len(self.headers)
        for row in self.rows:
            if len(row) != width:
                raise UsageError(f"a table with {width} headers has a row of {len(row)} cells: {list(row)}")
        if self.align and (len(self.align) != width or set(self.align) - set("lcr")):
            raise UsageError(f"{self.align!r} does not align {width} columns", do="give one of l, c, r a column")


@dataclass(frozen=True, eq=False)
class Figure:
    """A picture (RGB, uint8) or a chart.

    Attributes
    ----------
    image : shown at its own size, or smaller where the page is narrower.
    caption : stands below, after the figure's number.
    alt : what it shows, for those who do not see it.
    stretch : whether a picture fills the column's width.
    """

    image: Picture | Svg
    caption: str
    alt: str
    stretch: bool = False


@dataclass(frozen=True, eq=False)
class Card:
    """A thumbnail with a title, a badge and some facts, in `Cards`.

    Attributes
    ----------
    image, alt : as in `Figure`.
    title : one line.
    facts : name to value; an empty name gives a line of its own.
    badge : a word or two in the corner, such as "query".
    tone : colour of badge and edge.
    """

    image: Picture | Svg
    alt: str
    title: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    badge: str = ""
    tone: Literal["plain", "accent", "good", "poor"] = "plain"


@dataclass(frozen=True, eq=False)
class Cards:
    """Cards in a grid as wide as the page allows; `width` is the least width of a card in CSS pixels.

    All pictures are shown in frames of one aspect, the median of theirs; nothing is cut off.
    """

    items: Sequence[Card]
    caption: str = ""
    width: int = 300


@dataclass(frozen=True)
class Callout:
    """A short text set off: a note, or a warning that the reader must not miss."""

    text: str
    title: str = ""
    kind: Literal["note", "warning"] = "note"


@dataclass(frozen=True)
class Facts:
    """Names and values, such as the settings of a run."""

    items: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Details:
    """Sections behind a summary that opens by a click; printed open by most browsers' print dialogues only if opened."""

    summary: str
    sections: Sequence[Section]
    open: bool = False


Section = Heading | Prose | Numbers | Table | Figure | Cards | Callout | Facts | Details


@dataclass(frozen=True, eq=False)
class Page:
    """A whole report.

    Attributes
    ----------
    title, subtitle : at its head.
    sections : in reading order.
    footer : a last line: what made it, when, from what.
    """

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    footer: str = ""


def render(page: Page) -> str:
    """The page as one HTML document. Raises UsageError for pictures that are not RGB of 8 bits."""
    counts = {"figure": 0, "table": 0}
    slugs: set[str] = set()
    contents: list[dict[str, Any]] = []
    blocks = [_block(section, counts, slugs, contents) for section in page.sections]
    from markupsafe import Markup

    template = _environment().get_template("page.html.j2")
    style = Markup(_resource("style.css"))
    return visible(
        template.render(page=page, blocks=blocks, contents=contents, policy=POLICY, style=style, inline=_inline)
    )


def write(path: str | PathLike[str], page: Page) -> int:
    """Render the page to a file, whole or not at all; returns its size in bytes."""
    text = render(page)
    files.write_text(path, text)
    return len(text.encode())


def _block(section: Section, counts: dict[str, int], slugs: set[str], contents: list[dict[str, Any]]) -> dict[str, Any]:
    """What the template needs for one section: its kind, the section, and what is worked out from it."""
    block: dict[str, Any] = {"kind": type(section).__name__.lower(), "section": section}
    if isinstance(section, Heading):
        block["id"] = _slug(section.text, slugs)
        if section.level <= 3:
            contents.append({"id": block["id"], "text": section.text, "level": section.level})
    elif isinstance(section, Prose | Callout):
        block["paragraphs"] = [_inline(p) for p in re.split(r"\n\s*\n", section.text.strip()) if p.strip()]
    elif isinstance(section, Table):
        counts["table"] += 1
        block |= {"number": counts["table"], "align": section.align or _alignment(section)}
        block["ranks"] = _ranks(section) if section.sortable else []
    elif isinstance(section, Figure):
        counts["figure"] += 1
        block |= {"number": counts["figure"], "image": _image(section.image, section.alt)}
    elif isinstance(section, Cards):
        counts["figure"] += bool(section.caption)
        shapes = [card.image.shape for card in section.items if not isinstance(card.image, Svg)]
        block |= {
            "number": counts["figure"],
            "images": [_image(card.image, card.alt) for card in section.items],
            # one frame for all pictures of a grid, so that the texts below them stand in line
            "aspect": f"{np.median([columns / rows for rows, columns, _ in shapes]) if shapes else 1:.3f}",
        }
    elif isinstance(section, Details):
        block["blocks"] = [_block(inner, counts, slugs, []) for inner in section.sections]
    return block


def _alignment(table: Table) -> str:
    def number(cell: Cell) -> bool:
        return (
            cell is None or isinstance(cell, int | float) or bool(re.match(r"^[-−+]?[\d.]", cell)) or cell in ("", "–")
        )

    return "".join("r" if n and all(number(row[n]) for row in table.rows) else "l" for n in range(len(table.headers)))


def _ranks(table: Table) -> list[str]:
    """For each row its place in the order of each column, as style variables ``--c0``, ``--c1`` ...; empty cells come last, upwards."""
    columns = []
    for n in range(len(table.headers)):
        cells = [row[n] for row in table.rows]
        order = sorted(range(len(cells)), key=lambda k: _sort_key(cells[k]))
        places = [0] * len(cells)
        for place, k in enumerate(order):
            places[k] = place
        columns.append(places)
    return [";".join(f"--c{n}:{places[k]}" for n, places in enumerate(columns)) for k in range(len(table.rows))]


def _sort_key(cell: Cell) -> tuple[int, float, str]:
    """Numbers by value, then texts by their letters, then what is empty."""
    if cell is None or cell == "":
        return 2, 0.0, ""
    if isinstance(cell, int | float):
        return 0, float(cell), ""
    try:
        return 0, float(cell.replace(",", "")), ""
    except ValueError:
        return 1, 0.0, cell


def _slug(text: str, used: set[str]) -> str:
    """An id made of letters, digits and dashes, used once; the prefix keeps it apart from names that browsers know."""
    base = "s-" + (re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section")
    slug = next(name for n in itertools.count(1) if (name := base if n == 1 else f"{base}-{n}") not in used)
    used.add(slug)
    return slug


def _inline(text: str) -> Markup:
    """Escaped text with **strong** and `code`."""
    from markupsafe import Markup, escape

    safe = str(escape(text))  # what follows adds tags to escaped text only
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    safe = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe)
    return Markup(safe)


def _image(image: Picture | Svg, alt: str) -> dict[str, Any]:
    """What the template needs to embed a picture or a chart."""
    from markupsafe import Markup

    if isinstance(image, Svg):
        return {"svg": Markup(image.markup), "width": image.width, "alt": alt}  # checked by Svg
    rows, columns = image.shape[:2]
    return {"uri": data_uri(image), "width": columns, "height": rows, "alt": alt}


def data_uri(picture: Picture) -> str:
    """A picture as a data URI (WebP)."""
    from PIL import Image

    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise UsageError(f"a picture is uint8 (rows, columns, 3), not {picture.dtype} {picture.shape}")
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "WEBP", quality=QUALITY, method=4, use_sharp_yuv=True)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


@cache
def _resource(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
