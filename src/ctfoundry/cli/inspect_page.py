"""The page of ``inspect --html``: three planes, a histogram and the facts of every series, in one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ctfoundry
from ctfoundry import files
from ctfoundry.cli.inspect import cells
from ctfoundry.cli.inspect_rows import plain
from ctfoundry.ingest.rules import public
from ctfoundry.io import Discovery, Found
from ctfoundry.io.glance import glance
from ctfoundry.report import histogram, page, planes
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from ctfoundry.report.histogram import Picture

HEIGHT = 190
"""Rows of the planes."""
BAND = 26
"""Rows above the planes, where the page puts its badge."""
WIDTH = 600
"""Columns of a picture; more where the planes are wider, so that all pictures of a page have about one scale."""


KINDS = {"hu": "HU", "label": "labels", "other": "not HU"}
"""What the values are once they have been read; takes the place of what the header said."""


def write(
    target: Path, found: Discovery, rows: Sequence[dict[str, Any]], *, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write the page, for its owner's eyes (mode 0600: it shows pictures of patients and text typed at scanners).

    What the values are is put into the rows, now that they have been read. Returns {"bytes", "pictures", "failed": number of the series to why it has no picture}. One scan is in memory at a time, thinned.
    """
    cards: list[page.Card] = []
    failed: dict[str, str] = {}
    for n, (item, row) in enumerate(zip(found.found, rows, strict=True), 1):
        picture, kind, why = picture_of(item)
        if why:
            failed[str(n)] = why
        else:
            row["values"] = KINDS[kind]
        cards.append(_card(picture, row, why))
        say(f"picture {n} of {len(rows)}")
    text = page.render(_page(found, rows, cards))
    files.write_text(target, text, mode=0o600)
    return {"bytes": len(text.encode()), "pictures": len(cards) - len(failed), "failed": failed}


def picture_of(item: Found) -> tuple[Picture, str, str]:
    """(three planes through the middle of the body with the histogram below, kind of the values, why there are none or "")."""
    try:
        volume = glance(item)
        shown = planes.three_planes(volume, window=_window(volume), height=HEIGHT)
        return _framed(shown, volume), volume.kind, ""
    except (
        Exception
    ) as error:  # one scan that cannot be drawn leaves the others; errors of ours say what is wrong without a path
        why = getattr(error, "what", None) or f"{type(error).__name__}"
        return _empty("no picture"), "", public(str(why), item)


def _framed(shown: Picture, volume: Volume) -> Picture:
    """The planes in the middle of a black frame, the histogram below."""
    width = max(WIDTH, shown.shape[1])
    strip = histogram.strip(volume, width)
    frame = np.zeros((BAND + len(shown) + 6 + len(strip), width, 3), dtype=np.uint8)
    left = (width - shown.shape[1]) // 2
    frame[BAND : BAND + len(shown), left : left + shown.shape[1]] = shown
    frame[-len(strip) :] = strip
    return frame


def _window(volume: Volume) -> planes.Window:
    """Soft tissue; lung where the body is mostly lung; other kinds by their values."""
    if volume.kind != "hu":
        return "auto"
    lung = planes.WINDOWS["lung"]
    return lung if planes.choose_window(volume) == lung else planes.WINDOWS["soft tissue"]


def _empty(text: str) -> Picture:
    from PIL import Image, ImageDraw, ImageFont

    size = (WIDTH, BAND + HEIGHT + 62)
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).text(
        (size[0] / 2, size[1] / 2), text, fill=(150, 150, 150), font=ImageFont.load_default(15), anchor="mm"
    )
    return np.asarray(image)


def _card(picture: Picture, row: dict[str, Any], why: str) -> page.Card:
    cell = cells(row)
    size = " x ".join(map(str, row["shape"])) if row["shape"] else ""
    facts = {
        "slices": ", ".join(
            filter(
                None,
                (
                    f"{cell['thick']} mm thick" if cell["thick"] else "",
                    f"{cell['step']} mm apart" if cell["step"] else "",
                ),
            )
        ),
        "size": size,
        "covers": f"{cell['field'].replace('x', ' x ')} mm, {cell['z']} mm along z" if row["shape"] else "",
        "plane": f"{cell['plane']} ({cell['axes']})" if cell["plane"] else "",
        "kernel": f"{cell['kernel']} ({row['sharpness']})" if row["sharpness"] else cell["kernel"],
        "tube": f"{cell['kvp']} kV" if cell["kvp"] else "",
        "contrast": cell["phase"],
        "gantry": f"tilted by {cell['tilt']} degrees" if cell["tilt"] else "",
        "values": cell["values"],
    }
    kept = {name: value for name, value in facts.items() if value}
    problem = row["problem"] or why
    if problem:
        kept[row["problem_name"] or "no picture"] = plain(problem)
    for k, note in enumerate(row["notes"]):
        kept[f"note {k + 1}" if len(row["notes"]) > 1 else "note"] = plain(note)
    who = cell["study"] or (plain(Path(row["path"]).name) if "path" in row else "")
    number = f"series {cell['series']}" if cell["series"] else ""
    title = " · ".join(filter(None, (cell["no"], who, number, cell["description"], cell["part"])))
    return page.Card(
        image=picture,
        alt=f"Axial, coronal and sagittal plane of series {row['no']}, and the histogram of its values",
        title=title,
        facts=kept,
        badge="represents its study" if cell["represents"] == "yes" else cell["represents"],
        tone="poor" if problem else "good" if cell["represents"] == "yes" else "plain",
    )


def _page(found: Discovery, rows: Sequence[dict[str, Any]], cards: Sequence[page.Card]) -> page.Page:
    groups: dict[str, list[page.Card]] = {}
    for row, card in zip(rows, cards, strict=True):
        name = (
            f"{row['study']}"
            if row["study"]
            else f"{'Label maps' if row['kind'] == 'label map' else 'Files'} without a study"
        )
        groups.setdefault(name, []).append(card)
    people = {row["patient"] for row in rows} - {None}
    studies = {row["study"] for row in rows} - {None}
    numbers = [(str(len(rows)), "series")]
    numbers += [(str(len(people)), "patients"), (str(len(studies)), "studies")] if people else []
    numbers += [
        (str(sum(row["problem"] is not None for row in rows)), "with a problem"),
        (str(len(found.skips)), "files left out"),
    ]
    sections: list[Any] = [page.Numbers(numbers)]
    for name, group in sorted(groups.items(), key=lambda pair: _order(pair[0])):
        sections += [page.Heading(f"Study {name}" if name in studies else name), page.Cards(group, width=360)]
    sections += [page.Heading("All series"), _table(rows)]
    if found.skips:
        left = sorted(found.skipped.items(), key=lambda pair: (-pair[1], pair[0]))
        sections += [
            page.Heading("Left out"),
            page.Table(
                ("reason", "files"),
                [(plain(reason), count) for reason, count in left],
                caption="Files that are no scan.",
            ),
        ]
    return page.Page(
        title="What this folder holds",
        subtitle="Three planes through the middle of each body (soft tissue, or lung where it is mostly lung), the histogram of its "
        "values (roots of the counts; the air around the body is cut off), and what its headers say.",
        sections=sections,
        footer=f"Made by ctfoundry {ctfoundry.__version__} inspect. Pictures of patients and texts typed at scanners: keep it where the scans are kept.",
    )


def _order(name: str) -> tuple[int, list[int]]:
    numbers = name.removeprefix("P").split(".")
    return (0, [int(n) for n in numbers]) if all(n.isdigit() for n in numbers) else (1, [len(name)])


def _table(rows: Sequence[dict[str, Any]]) -> page.Table:
    columns = (
        ("no", "no"), ("study", "study"), ("represents", "represents"), ("ser", "series"), ("description", "description"), ("part", "part"), ("kernel", "kernel"), ("kV", "kvp"),
        ("contrast", "phase"), ("thick", "thick"), ("step", "step"), ("size", "shape"), ("field mm", "field"), ("z mm", "z"), ("plane", "plane"),
        ("tilt", "tilt"),
    )  # fmt: skip
    texts = [cells(row) for row in rows]
    used = [c for c in columns if any(t[c[1]] for t in texts)]
    return page.Table(
        [header for header, _ in used],
        [[t[key] or None for _, key in used] for t in texts],
        caption="One row a series; lengths in millimetres. The third column says which represents its study, and of the others why not.",
        marked=[k for k, row in enumerate(rows) if row["represents"] and row["study"]],
    )
