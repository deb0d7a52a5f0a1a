"""The page of a batch of segmentations: outlines in three planes of every scan, what stands out, and all volumes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ctfoundry
from ctfoundry import files, geometry
from ctfoundry.adapt.apply_table import BATCH, DEVIATIONS, MANY_PARTS, Flag, Measured
from ctfoundry.report import page, planes
from ctfoundry.segmenter import Segmenter
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import UInt8

    Picture = UInt8[np.ndarray, "rows columns 3"]

HEIGHT = 230
"""Rows of a scan's planes."""
BAND = 26
"""Rows above the planes, where the page puts its badge."""
MOST_ROWS = 4000
"""Rows of the table of volumes; a larger batch shows those that were flagged, and volumes.csv holds all."""
MOST_NAMES = 12
"""Names in one line of a card."""


def save_picture(path: Path, scan: Volume, labels: Volume) -> None:
    """Three planes with outlines as a PNG file."""
    from PIL import Image

    shown = planes.three_planes(scan, point=best_point(labels), height=HEIGHT, overlay=labels, outlined=True)
    with files.whole(path) as part:
        Image.fromarray(shown).save(part, "PNG")


def best_point(labels: Volume) -> np.ndarray | None:
    """The point, in world mm, whose three planes each cut the most structures (the middle one of equals); None without any."""
    from scipy import ndimage

    boxes = [box for box in ndimage.find_objects(labels.voxels) if box is not None]
    if not boxes:
        return None
    index = []
    for axis, n in enumerate(labels.shape):
        count = np.zeros(n)
        for box in boxes:
            count[box[axis]] += 1
        best = np.flatnonzero(count == count.max())
        index.append(float(best[len(best) // 2]))
    return np.asarray(geometry.to_world(labels.affine, index))


def write(
    target: Path,
    out: Path,
    segmenter: Segmenter,
    records: Sequence[Mapping[str, Any]],
    batch: Sequence[Measured],
    found: Sequence[Flag],
    failed: Mapping[str, str],
) -> None:
    """Write the page, for its owner's eyes (mode 0600: it shows pictures of patients)."""
    odd = [flag for flag in found if not flag.minor]
    said: dict[str, list[str]] = defaultdict(list)
    for flag in odd:
        said[flag.scan].append(f"{flag.name} {flag.what}" if flag.name else flag.what)
    numbers = [
        (str(len(batch)), "scans"),
        (str(len({m.name for scan in batch for m in scan.measures if m.voxels})), "structures found"),
        (str(len(said)), "scans to look at"),
        (str(len(failed)), "with something missing"),
    ]
    sections: list[Any] = [page.Numbers(numbers)]
    if failed:
        sections += [page.Heading("Not made"), _failures(failed)]
    cards = [_card(out, record, scan, said[scan.id]) for record, scan in zip(records, batch, strict=True)]
    cards.sort(key=lambda card: card.tone != "poor")
    if cards:
        names = {m.label: m.name for scan in batch for m in scan.measures if m.voxels}
        sections += [
            page.Heading("Scans"),
            page.Cards(
                cards,
                caption="Outlines in the planes that cut most structures; scans to look at first. The patient's right is on the left.",
                width=430,
            ),
            page.Figure(
                planes.label_legend(names), "Colours of the structures that were found.", "Names beside their colours"
            ),
        ]
    if odd:
        table = _flag_table(odd)
        folded = page.Details(f"{len(odd)} things to look at", [table])
        sections += [page.Heading("To look at"), folded if len(odd) > MOST_NAMES else table]
    if cards:
        sections += [page.Heading("Volumes"), *_volume_tables(batch, odd)]
    text = page.render(
        page.Page(
            title="Segmentations of a batch",
            subtitle=f"{segmenter.card.name}, weights {segmenter.card.sha256[:12] or segmenter.card.weights}. Computed, not read by a person: what is "
            "flagged here deserves a look, and what is not flagged is not thereby right.",
            sections=sections,
            footer=f"Made by ctfoundry {ctfoundry.__version__} segment. Pictures of patients: keep it where the scans are kept. Not for diagnosis.",
        )
    )
    files.write_text(target, text, mode=0o600)


def _failures(failed: Mapping[str, str]) -> page.Table:
    """What could not be made, those with one reason together."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for id, text in sorted(failed.items()):
        reasons[text].append(id)
    rows = [(text, len(ids), _listed(ids)) for text, ids in sorted(reasons.items(), key=lambda pair: -len(pair[1]))]
    return page.Table(("why", "scans", "which"), rows, caption="What could not be made.", align="lrl")


def _flag_table(found: Sequence[Flag]) -> page.Table:
    shown = found[:MOST_ROWS]
    rule = (
        f"Volumes more than {DEVIATIONS:g} robust deviations from the batch's median (from {BATCH} scans on, structures that touch the border left "
        f"aside); structures in more than {MANY_PARTS} parts of at least a hundredth of them; structures on the other side of the body than their name "
        "says. A click on a column's name sorts."
    )
    return page.Table(
        ("scan", "structure", "what"),
        [(flag.scan, flag.name or None, flag.what) for flag in shown],
        caption=rule,
        sortable=True,
    )


def _card(out: Path, record: Mapping[str, Any], scan: Measured, said: Sequence[str]) -> page.Card:
    there = [m for m in scan.measures if m.voxels]
    facts = {
        "grid": f"{' x '.join(map(str, record['shape']))}, {' x '.join(f'{s:.3g}' for s in record['spacing'])} mm",
        "found": f"{len(there)} of {len(scan.measures)}",
        "cut off": _listed([m.name for m in there if m.cut_at]),
        "not found": _listed([m.name for m in scan.measures if not m.voxels]),
        "notes": _listed(record["notes"]),
        "look at": "; ".join(said),
    }
    return page.Card(
        image=_picture(out / "scans" / f"{scan.id}.png"),
        alt=f"Axial, coronal and sagittal plane of {scan.id} with the outlines of its structures",
        title=scan.id,
        facts={name: text for name, text in facts.items() if text},
        badge=f"{len(said)} to look at" if said else "",
        tone="poor" if said else "plain",
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _picture(path: Path) -> Picture:
    from PIL import Image

    try:
        with Image.open(path) as image:
            shown = np.asarray(image.convert("RGB"))
    except OSError:  # removed by hand, perhaps because it shows a patient
        shown = np.zeros((HEIGHT, 2 * HEIGHT, 3), dtype=np.uint8)
    return np.pad(shown, ((BAND, 0), (0, 0), (0, 0)))


def _volume_tables(batch: Sequence[Measured], found: Sequence[Flag]) -> list[Any]:
    """Each structure over the batch, and each in each scan."""
    flagged = {(flag.scan, flag.name) for flag in found}
    by_name: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for scan in batch:
        for m in scan.measures:
            by_name[m.name].append((scan.id, m))
    summary = []
    for name, pairs in by_name.items():
        whole = sorted(m.volume_ml for _, m in pairs if m.voxels and not m.cut_at)
        summary.append(
            (
                name,
                sum(m.voxels > 0 for _, m in pairs),
                sum(bool(m.cut_at) for _, m in pairs),
                *((_ml(float(np.median(whole))), _ml(whole[0]), _ml(whole[-1])) if whole else (None, None, None)),
                sum((id, name) in flagged for id, _ in pairs),
            )
        )
    rows = [
        (
            scan.id,
            m.name,
            _ml(m.volume_ml),
            None if m.mean is None else f"{m.mean:.0f}",
            None if m.sd is None else f"{m.sd:.0f}",
            None if m.median is None else f"{m.median:.0f}",
            m.parts or None,
            m.cut_at,
            "yes" if (scan.id, m.name) in flagged else "",
        )
        for scan in batch
        for m in scan.measures
    ]
    every = len(rows) <= MOST_ROWS
    shown = rows if every else [row for row in rows if row[-1]][:MOST_ROWS]
    return [
        page.Table(
            ("structure", "found in", "cut off in", "median ml", "least ml", "most ml", "flagged in"),
            summary,
            caption="Each structure over the batch; volumes of those that the scan holds whole. A click on a column's name sorts.",
            sortable=True,
        ),
        page.Table(
            ("scan", "structure", "ml", "mean HU", "sd", "median", "parts", "cut at", "flag"),
            shown,
            align="llrrrrrll",
            caption=("Each structure in each scan; 0 ml: not found." if every else "Flagged structures; `volumes.csv` holds all.")
            + " Cut at: the sides of the scan that it touches; its volume is then only what was scanned.",
            marked=[k for k, row in enumerate(shown) if row[-1]],
            sortable=True,
        ),
    ]  # fmt: skip


def _ml(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
