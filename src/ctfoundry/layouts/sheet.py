"""One page of a cohort: three planes of each scan with outlines, facts and the report; as HTML and as PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry import files
from ctfoundry.layouts.cases import Case, Cohort, cases
from ctfoundry.layouts.plain import in_processes
from ctfoundry.phantom.names import GROUPS, WRAPS
from ctfoundry.phantom.reports import importance
from ctfoundry.report import page
from ctfoundry.report.planes import Panel, body_centre, label_colour, layout, three_planes
from ctfoundry.volume import AIR, Volume

if TYPE_CHECKING:
    from jaxtyping import Bool, Integer, UInt8
    from PIL import Image, ImageFont

    Picture = UInt8[np.ndarray, "rows columns 3"]

MOST = 12
"""Patients on a page; a larger cohort shows its first ones."""
HEIGHT = 250
"""Rows of a scan's picture."""
LESION = (255, 64, 80)
"""Colour of a lesion's outline; structures have dimmer ones of their own."""
_WINDOWS: dict[str, str | tuple[float, float]] = {
    "lung_nodule": "lung",
    "pneumothorax": "lung",
    "fracture": "bone",
    **{f"{kind}_haemorrhage": (45, 130) for kind in ("epidural", "subdural", "parenchymal")},
}
"""What shows a kind of lesion; soft tissue where not listed."""
_WIDTH, _PAD = 1500, 18
_PAPER, _INK, _FAINT, _RULE = (255, 255, 255), (24, 27, 31), (96, 103, 112), (222, 226, 230)


@dataclass(frozen=True, eq=False)
class Entry:
    """What the page shows of one scan: its name, its picture, some facts, the report's text."""

    name: str
    picture: Picture
    facts: tuple[tuple[str, str], ...]
    text: str


def write_sheet(
    root: Path, cohort: Cohort, *, title: str = "", say: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Write ``sheet.html`` and ``sheet.png`` for the first patients of a cohort; returns their names."""
    jobs = [(cohort, patient) for patient in range(min(cohort.count, MOST))]
    entries = [entry for each in in_processes(entries_of, jobs, say=say) for entry in each]
    head = title or f"{cohort.count} phantom{'s' * (cohort.count != 1)}, seed {cohort.seed}"
    page.write(root / "sheet.html", as_page(entries, head))
    with files.whole(root / "sheet.png") as part:
        as_image(entries, head).save(part, "PNG", optimize=True)
    return ["sheet.html", "sheet.png"]


def entries_of(cohort: Cohort, patient: int) -> list[Entry]:
    """A patient's scans, made anew: a page needs no files."""
    return [entry_of(case) for case in cases(cohort, patient)]


def entry_of(case: Case) -> Entry:
    """The picture goes through the most important lesion, or through the middle of the body."""
    made = case.phantom
    worst = max(case.findings, key=importance, default=None)
    where = body_centre(made.ct) if worst is None else np.array(worst.centre_mm)
    subject, scan = made.spec.subject, made.spec.acquisition
    d, h, w = made.ct.shape
    facts = (
        ("patient", f"{subject.sex}, {subject.age_years:.0f} years, {subject.fat_mm:.0f} mm subcutaneous fat"),
        ("scan", f"{', '.join(case.facts.parts)}; {_phase(scan.phase)}"),
        ("grid", f"{d} x {h} x {w}, {scan.spacing_mm:g} x {scan.pixel_mm:.2g} mm, {scan.kernel} kernel"),
        ("lesions", ", ".join(f"{f.kind.replace('_', ' ')} {f.size_mm:.0f} mm" for f in case.findings) or "none"),
    )
    window = "auto" if worst is None else _WINDOWS.get(worst.kind, "soft tissue")
    picture = outlined(made.ct, made.labels, made.lesions, where, window=window)
    return Entry(case.name, picture, facts, case.report.text)


def _phase(phase: str) -> str:
    return {"none": "no contrast", "portal": "portal venous phase"}.get(phase, f"{phase} phase")


def outlined(
    ct: Volume,
    labels: Volume,
    lesions: Volume,
    where: np.ndarray,
    *,
    window: str | tuple[float, float] = "auto",
    height: int = HEIGHT,
) -> Picture:
    """Axial, coronal and sagittal plane through a world point, with the outlines of structures and lesions.

    Outside the reconstructed circle nothing was seen, so nothing is outlined there.
    """
    picture = np.array(three_planes(ct, point=where, height=height, window=window))
    for panel in layout(ct, height=height, include=[where]):
        part = picture[panel.top : panel.top + panel.rows, panel.left : panel.left + panel.columns]
        groups = np.where(_seen(ct, panel, where) > AIR, _groups(labels)[_seen(labels, panel, where)], 0)
        for group in np.unique(groups[groups > 0]).tolist():
            line = _edge(groups == group)
            part[line] = (0.45 * part[line] + 0.55 * np.array(label_colour(group))).astype(np.uint8)
        part[_edge(_seen(lesions, panel, where) > 0)] = LESION
    return picture


def _groups(labels: Volume) -> Integer[np.ndarray, "256"]:
    """Label to the number of its group: fine structures such as ribs share an outline; wraps have none."""
    table = np.zeros(256, dtype=np.int64)
    number = {name: i for i, name in (labels.names or {}).items()}
    inside = {part: i for i, (name, parts) in enumerate(GROUPS.items(), 1) if name not in WRAPS for part in parts}
    wrapped = {part for name in WRAPS for part in GROUPS[name]}
    for name, i in number.items():
        table[i] = 0 if name in wrapped else inside.get(name, 100 + i)
    return table


def _seen(volume: Volume, panel: Panel, where: np.ndarray) -> Integer[np.ndarray, "rows columns"]:
    """A volume's numbers at a panel's pixels; 0 outside it."""
    index = np.rint(volume.index(panel.points(float(where[panel.through])))).astype(np.int64)
    shape = np.array(volume.shape)
    inside = ((index >= 0) & (index < shape)).all(axis=-1)
    d, h, w = np.moveaxis(np.clip(index, 0, shape - 1), -1, 0)
    return np.where(inside, volume.voxels[d, h, w], 0).astype(np.int64)


def _edge(mask: Bool[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    """Pixels of a mask that have a neighbour outside it."""
    inner = np.pad(mask, 1, mode="edge")
    whole = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return np.asarray(mask & ~whole)


def as_page(entries: Sequence[Entry], title: str) -> page.Page:
    """The page as data."""
    sections: list[page.Section] = [
        page.Prose(
            "Synthetic anatomy: nobody was scanned. Planes lie through the most important lesion, else through the middle of"
            " the body; lesions are outlined in red, structures in dimmer colours. The reports are written from the masks."
        )
    ]
    for entry in entries:
        sections += [
            page.Heading(entry.name, 3),
            page.Figure(
                entry.picture, f"{entry.name}: axial, coronal and sagittal plane", f"three planes of {entry.name}"
            ),
            page.Facts(dict(entry.facts)),
            page.Prose(_marked(entry.text)),
        ]
    return page.Page(title, sections, footer="Made by ctfoundry phantom --sheet")


def _marked(text: str) -> str:
    """The report with its headings strong, one paragraph a section and region."""
    lines = [line for line in text.splitlines() if line]
    heads = {"Technique", "Comparison", "Findings", "Impression"}
    out = []
    for line in lines:
        region, sign, rest = line.partition(": ")
        if line in heads:
            out.append(f"**{line}**")
        elif sign and not region[0].isdigit() and len(region) < 30:
            out.append(f"**{region}.** {rest}")
        else:
            out.append(line)
    return "\n\n".join(out)


def as_image(entries: Sequence[Entry], title: str) -> Image.Image:
    """The page as one picture: planes on the left, facts and report on the right, a row a scan."""
    from PIL import Image, ImageDraw, ImageFont

    large, normal, small = (ImageFont.load_default(size) for size in (26, 15, 12))
    left = max((entry.picture.shape[1] for entry in entries), default=600)
    left = min(left, 980)
    rows = []
    for entry in entries:
        lines = _lines(entry, small, _WIDTH - left - 3 * _PAD)
        scaled = _fitted(entry.picture, left)
        rows.append((entry, scaled, lines, max(scaled.shape[0] + 78, 15 * len(lines) + 30) + 2 * _PAD))
    sheet = Image.new("RGB", (_WIDTH, 70 + sum(row[3] for row in rows)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_PAD, 20), title, _INK, large)
    top = 70
    for entry, picture, lines, tall in rows:
        draw.line((_PAD, top, _WIDTH - _PAD, top), _RULE)
        draw.text((_PAD, top + 10), entry.name, _INK, normal)
        for n, (name, value) in enumerate(entry.facts):
            x, y = _PAD + (n % 2) * (left // 2), top + 32 + 16 * (n // 2)
            room = left // 2 - 80
            draw.text((x, y), name, _FAINT, small)
            draw.text((x + 58, y), _short(value, small, room), _INK, small)
        sheet.paste(Image.fromarray(picture), (_PAD, top + 74))
        for n, (line, strong) in enumerate(lines):
            draw.text(
                (left + 2 * _PAD, top + 12 + 15 * n),
                line,
                _INK if strong else (62, 68, 75),
                small,
                stroke_width=0.3 if strong else 0,
                stroke_fill=_INK,
            )
        top += tall
    return sheet


def _fitted(picture: Picture, width: int) -> Picture:
    from PIL import Image

    if picture.shape[1] <= width:
        return picture
    tall = round(picture.shape[0] * width / picture.shape[1])
    return np.asarray(Image.fromarray(picture).resize((width, tall), Image.Resampling.LANCZOS))


def _short(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    while font.getlength(text) > room and len(text) > 4:
        text = text[:-4].rstrip(" ,;") + "..."
    return text


def _lines(entry: Entry, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> list[tuple[str, bool]]:
    """The report in lines that fit, and whether each is a heading."""
    wide = int(room / font.getlength("abcdefghij klmnopqrs") * 20)
    lines: list[tuple[str, bool]] = []
    for line in entry.text.splitlines():
        if line:
            wrapped = textwrap.wrap(line, wide, subsequent_indent="  ")
            lines += [(part, line in ("Technique", "Comparison", "Findings", "Impression")) for part in wrapped]
    return lines
