"""What a label map measures, structure by structure, and what of a batch a person should look at."""

from __future__ import annotations

import csv
import io as textio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import geometry
from ctfoundry.body import body_box
from ctfoundry.segmenter import side_of
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Bool

Point = tuple[float, float, float]

PART_SHARE = 0.01
"""A part of a structure counts as one from this share of its voxels; smaller ones are crumbs."""
MANY_PARTS = 4
"""More parts than this are flagged: no organ has so many; a label for all vertebrae together has."""
BATCH = 8
"""Whole structures of a name that a batch needs before a volume can stand out."""
DEVIATIONS = 3.0
"""Robust standard deviations (1.4826 times the median absolute deviation) from the median that a volume may be away."""
WRONG_SIDE = 0.1
"""Share of the body's width by which a structure may lie across its middle: ventricles and large veins do, a little."""
KNOWN_SIDES = {"liver": "right", "gallbladder": "right", "spleen": "left", "stomach": "left"}
"""Sides of structures whose names do not tell; a mirrored scan, or one of the few people built so, has them otherwise."""


@dataclass(frozen=True)
class Measure:
    """One structure in one scan; what cannot be said of an empty one is None.

    Attributes
    ----------
    label, name : its value in the label map, and its name.
    voxels, volume_ml : how large it is.
    mean, sd, median : of the scan's HU in its measured voxels; None where the scan is not in HU.
    box : lowest and highest x, y, z (mm, RAS+) of its voxels, to their edges.
    centre : mean of its voxels' centres, mm.
    cut_at : where it touches the border of the scan, as letters of R L A P I S; "" where it is whole.
    parts : pieces, connected by faces, of at least PART_SHARE of it. largest : share of the largest.
    """

    label: int
    name: str
    voxels: int
    volume_ml: float
    mean: float | None = None
    sd: float | None = None
    median: float | None = None
    box: tuple[Point, Point] | None = None
    centre: Point | None = None
    cut_at: str = ""
    parts: int = 0
    largest: float | None = None


def measure(scan: Volume, labels: Volume) -> list[Measure]:
    """Every named structure of a label map on the scan's grid, the empty ones too, in the order of their values."""
    from scipy import ndimage

    boxes = ndimage.find_objects(labels.voxels)
    found = []
    for value, name in sorted((labels.names or {}).items()):
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            found.append(Measure(value, name, 0, 0.0))
        else:
            found.append(_one(scan, labels.voxels[box] == value, box, value, name))
    return found


def _one(
    scan: Volume, mask: Bool[np.ndarray, "d h w"], box: tuple[slice, slice, slice], value: int, name: str
) -> Measure:
    from scipy import ndimage

    count = int(mask.sum())
    millilitres = abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
    mean = sd = median = None
    if scan.kind == "hu":
        hu = scan.voxels[box][mask if scan.valid is None else mask & scan.valid[box]]
        if hu.size:
            mean, sd = float(hu.mean(dtype=np.float64)), float(hu.std(dtype=np.float64))
            median = float(np.median(hu))
    pieces, _ = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())[1:]
    first = np.array([part.start for part in box])
    along = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    middle = [float(sums @ np.arange(len(sums))) / count for sums in along]
    return Measure(
        value,
        name,
        count,
        count * millilitres,
        mean,
        sd,
        median,
        _edges(mask, geometry.shifted(scan.affine, first.tolist())),
        _point(scan.world(first + middle)),
        _cut_at(scan, box),
        int((sizes >= PART_SHARE * count).sum()),
        float(sizes.max() / count),
    )


def _edges(mask: Bool[np.ndarray, "d h w"], affine: geometry.Affine) -> tuple[Point, Point]:
    """Lowest and highest x, y, z of a mask's voxels; those at the ends of its lines hold the extremes, on oblique grids too."""
    d, h = np.nonzero(mask.any(2))
    lines = mask[d, h]
    ends = np.stack([lines.argmax(1), mask.shape[2] - 1 - lines[:, ::-1].argmax(1)])
    points = geometry.to_world(affine, np.concatenate([np.stack([d, h, w], 1) for w in ends]))
    half = np.abs(affine[:3, :3]).sum(1) / 2
    return _point(points.min(0) - half), _point(points.max(0) + half)


def _cut_at(scan: Volume, box: tuple[slice, slice, slice]) -> str:
    opposite = dict(zip("RLAPIS", "LRPASI", strict=True))
    return "".join(
        letter
        for part, n, code in zip(box, scan.shape, scan.orientation, strict=True)
        for letter, there in ((opposite[code], part.start == 0), (code, part.stop == n))
        if there
    )


def _point(values: np.ndarray) -> Point:
    x, y, z = (round(float(v), 3) for v in values)
    return x, y, z


def middle(scan: Volume) -> tuple[float, float]:
    """World x (mm) of the body's middle, and the body's width."""
    low, high = body_box(scan)
    return float(low[0] + high[0]) / 2, float(high[0] - low[0])


@dataclass(frozen=True)
class Flag:
    """Something to look at: `what` is odd about a structure of a scan (name "": about all of it).

    `minor`: where a scan ends within a structure, which says something of the scan and its volume, and nothing against the labels.
    """

    scan: str
    name: str
    what: str
    minor: bool = False


@dataclass(frozen=True)
class Measured:
    """A scan of a batch: its measures, and where its body lies (`middle`)."""

    id: str
    measures: Sequence[Measure]
    middle: tuple[float, float] | None = None


def flags(batch: Sequence[Measured]) -> list[Flag]:
    """What of a batch stands out: volumes (of whole structures, from BATCH scans on), structures that the scan cuts off, that lie in many
    parts or on the wrong side of the body, and scans without any structure."""
    usual = _usual(batch)
    found = []
    for scan in batch:
        there = {m.name: m for m in scan.measures if m.voxels}
        if not there:
            found.append(Flag(scan.id, "", "no structure was found"))
        for m in there.values():
            texts = []
            if m.name in usual and not m.cut_at:
                median, deviation = usual[m.name]
                away = (m.volume_ml - median) / deviation
                if abs(away) > DEVIATIONS:
                    texts.append(
                        f"{m.volume_ml:.4g} ml is {abs(away):.1f} robust deviations {'above' if away > 0 else 'below'} the batch's median of {median:.4g} ml"
                    )
            if m.parts > MANY_PARTS:
                texts.append(f"lies in {m.parts} parts, the largest holds {m.largest:.0%}")
            texts += _side(m, there, scan.middle)
            found += [Flag(scan.id, m.name, text) for text in texts]
            if m.cut_at:
                text = f"touches the border of the scan ({', '.join(m.cut_at)}): incomplete"
                found.append(Flag(scan.id, m.name, text, minor=True))
    return found


def _usual(batch: Sequence[Measured]) -> Mapping[str, tuple[float, float]]:
    """Median and robust deviation of the volumes of each structure that is whole in enough scans."""
    volumes: dict[str, list[float]] = defaultdict(list)
    for scan in batch:
        for m in scan.measures:
            if m.voxels and not m.cut_at:
                volumes[m.name].append(m.volume_ml)
    found = {}
    for name, values in volumes.items():
        median = float(np.median(values))
        deviation = 1.4826 * float(np.median(np.abs(np.array(values) - median)))
        if len(values) >= BATCH and deviation > 0:
            found[name] = median, deviation
    return found


def _side(m: Measure, there: Mapping[str, Measure], body: tuple[float, float] | None) -> list[str]:
    """Whether a structure lies across the body's middle, or across its partner of the other side."""
    side = side_of(m.name) or KNOWN_SIDES.get(m.name)
    if side is None or m.centre is None:
        return []
    sign = 1 if side == "right" else -1  # RAS+: x grows towards the patient's right
    texts = []
    if body is not None and sign * (m.centre[0] - body[0]) < -WRONG_SIDE * body[1]:
        texts.append(f"lies {abs(m.centre[0] - body[0]):.0f} mm on the {'left' if side == 'right' else 'right'} side")
    other = there.get(partner(m.name))
    if side == "left" and other is not None and other.centre is not None and m.centre[0] > other.centre[0]:
        texts.append(f"lies further right than {other.name}")
    return texts


def partner(name: str) -> str:
    """The name of the same structure on the other side; the name itself where it tells no side."""
    side = side_of(name)
    if side is None:
        return name
    at = name.lower().rfind(side)
    return name[:at] + ("right" if side == "left" else "left") + name[at + len(side) :]


HEADERS = (
    *("scan", "label", "name", "voxels", "volume_ml", "mean_hu", "sd_hu", "median_hu"),
    *("x_min_mm", "x_max_mm", "y_min_mm", "y_max_mm", "z_min_mm", "z_max_mm"),
    *("centre_x_mm", "centre_y_mm", "centre_z_mm", "cut_at", "parts", "largest_share", "flags"),
)
"""Columns of volumes.csv."""


def rows(batch: Sequence[Measured], found: Sequence[Flag]) -> list[dict[str, Any]]:
    """One row a scan and structure, under HEADERS; numbers that do not exist are None."""
    said: dict[tuple[str, str], list[str]] = defaultdict(list)
    for flag in found:
        said[flag.scan, flag.name].append(flag.what)
    made = []
    for scan in batch:
        for m in scan.measures:
            low, high = m.box or ((None,) * 3, (None,) * 3)
            ends = [_short(v) for pair in zip(low, high, strict=True) for v in pair]
            numbers = (m.mean, m.sd, m.median, *ends, *(_short(v) for v in m.centre or (None,) * 3))
            values = (scan.id, m.label, m.name, m.voxels, *(_short(v) for v in (m.volume_ml, *numbers)))
            last = (m.cut_at, m.parts, _short(m.largest), "; ".join(said[scan.id, m.name]))
            made.append(dict(zip(HEADERS, (*values, *last), strict=True)))
    return made


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def as_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV text."""
    stream = textio.StringIO()
    writer = csv.DictWriter(stream, HEADERS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return stream.getvalue()
